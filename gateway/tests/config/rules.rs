//! What is refused and what is noted, rule by rule: one change to the valid example each.

use crate::setup::{EC, RSA, SITE, Setup, example};

fn refused(setup: &Setup, starts: &str, holds: &str) {
    let faults = setup.faults();
    let hit = |fault: &String| fault.contains(starts) && fault.contains(holds);
    assert!(faults.iter().any(hit), "no fault at {starts} with {holds:?}: {faults:#?}");
    assert_eq!(faults.len(), 1, "{faults:#?}");
}

fn noted(setup: &Setup, starts: &str, holds: &str) {
    let notes = setup.notes();
    let hit = |note: &String| note.contains(starts) && note.contains(holds);
    assert!(notes.iter().any(hit), "no note at {starts} with {holds:?}: {notes:#?}");
}

fn server(line: &str) -> Setup {
    example().with("mantel.toml", "public_url = \"https://gateway.example.org\"", line)
}

#[test]
fn public_urls() {
    for bad in [
        "https://g.example.org/",
        "https://g.example.org/x",
        "https://g.example.org?x",
        "https://G.example.org",
        "https://g.example.org:443",
        "https://u:p@g.example.org",
        "ftp://g.example.org",
        "g.example.org",
        " https://g.example.org",
    ] {
        refused(&server(&format!("public_url = \"{bad}\"")), "server.public_url", "expected an https origin");
    }
    refused(&server("public_url = \"http://g.example.org\""), "server.public_url", "http only for a loopback");
    let tls = "tls = { cert = { file = \"tls.crt\" }, key = { file = \"tls.key\" } }\n";
    refused(&example().with("mantel.toml", tls, ""), "server.tls", "behind_proxy");
    for good in ["http://127.0.0.1:8080", "http://gateway.localhost:8080", "http://[::1]:8080"] {
        let setup = server(&format!("public_url = \"{good}\"")).with("mantel.toml", tls, "");
        assert_eq!(setup.faults(), Vec::<String>::new());
    }
    let proxied = example().with("mantel.toml", tls, "behind_proxy = [\"10.0.0.7\", \"fd00::/8\"]\n");
    assert_eq!(proxied.faults(), Vec::<String>::new());
    refused(&example().with("mantel.toml", "127.0.0.1:9464", "0.0.0.0:9464"), "server.admin_listen", "loopback");
    let long = format!("127.0.0.1:9464\"\nadmin_socket = \"{}", "x".repeat(92));
    refused(&example().with("mantel.toml", "127.0.0.1:9464", &long), "server.admin_socket", "91 bytes");
    refused(
        &example().with("mantel.toml", "file = \"tls.crt\"", "file = \"tls.key\""),
        "server.tls.cert.file",
        "certificate",
    );
}

#[test]
fn redirect_uris_and_origins() {
    let uri =
        |uri: &str| example().with("mantel.toml", "[\"https://viewer.example.org/callback\"]", &format!("[\"{uri}\"]"));
    for bad in [
        "http://viewer.example.org/cb",
        "https://viewer.example.org/#x",
        "/callback",
        "myapp:/cb",
        "javascript:alert(1)",
        "https://*.example.org/cb",
        "https://u@viewer.example.org/cb",
        "http://127.0.0.1.example.org/cb",
        "http://127.1/cb",
        "https://viewer.example.org\\\\@evil.example/cb",
        "http://localhost:3000/cb",
        "https://app.localhost/cb",
        "https://a b.org/",
    ] {
        refused(&uri(bad), "apps.viewer.redirect_uris[0]", "expected");
    }
    for good in [
        "http://127.0.0.1/cb",
        "http://127.0.0.1:4711/cb",
        "http://[::1]:1/cb",
        "com.example.viewer:/cb",
        "https://viewer.example.org/cb?x=1",
    ] {
        assert_eq!(uri(good).faults(), Vec::<String>::new());
    }
    refused(&uri("http://localhost/cb"), "redirect_uris[0]", "use 127.0.0.1");
    let sandboxed = uri("http://localhost:3000/cb").with("mantel.toml", "[server]", "[server]\nsandbox = true");
    assert_eq!(sandboxed.faults(), Vec::<String>::new());

    let origin = |origin: &str| {
        example().with(
            "mantel.toml",
            "origins = [\"https://viewer.example.org\"]",
            &format!("origins = [\"{origin}\"]"),
        )
    };
    for bad in ["https://viewer.example.org/", "*", "null", "http://viewer.example.org", "https://Viewer.example.org"] {
        refused(&origin(bad), "apps.viewer.origins[0]", "origin");
    }
    for good in ["http://localhost:3000", "capacitor://localhost"] {
        assert_eq!(origin(good).faults(), Vec::<String>::new());
    }
    refused(
        &example().with("mantel.toml", "https://viewer.example.org/launch", "myapp:/launch"),
        "apps.viewer.launch_url",
        "https",
    );
}

#[test]
fn sites() {
    let key = |line: &str| example().with(SITE, "name = ", &format!("{line}\nname = "));
    let base = |url: &str| example().with(SITE, "https://ehr.example.org/api/FHIR/R4", url);
    for bad in [
        "ehr.example.org",
        "https://ehr.example.org/fhir?x=1",
        "https://u:p@ehr.example.org/fhir",
        "https://ehr.example.org/#",
        "http://127.0.0.1/fhir",
    ] {
        refused(&base(bad), "sites.general-hospital.fhir_base_url", "https");
    }
    refused(&base("https://gateway.example.org/fhir"), "fhir_base_url", "Mantel's own address");
    noted(&base("https://10.1.2.3/fhir"), "sites.general-hospital.fhir_base_url", "allow_private");
    refused(&key("tokens.refresh_before = \"900000d\""), "tokens.refresh_before", "at most 3660d");
    let sandboxed = base("http://epic.localhost:9001/fhir").with("mantel.toml", "[server]", "[server]\nsandbox = true");
    assert_eq!(sandboxed.faults(), Vec::<String>::new());

    refused(&key("frame_origins = [\"https://ehr.example.org; script-src *\"]"), "frame_origins[0]", "origin");
    assert_eq!(key("frame_origins = [\"https://*.epic.example.org\"]").faults(), Vec::<String>::new());
    refused(&key("aliases.iss = [\"/fhir\"]"), "aliases.iss[0]", "absolute URL");
    refused(&key("aliases.is = []"), "aliases.is", "did you mean \"iss\"?");
    refused(&key("limits.concurrency = 0"), "limits.concurrency", "whole number");
    refused(
        &key("tls.client_cert = { file = \"../tls.crt\" }")
            .file("sites.d/../tls.crt", example().files[&std::path::PathBuf::from("/etc/mantel/tls.crt")].clone()),
        "tls.client_key",
        "other half",
    );
    refused(&key("adapter = \"epik\""), "adapter", "did you mean \"epic\"?");
    refused(&key("pkce = 0"), "pkce", "a string");
    refused(&key("discovery = [\"configuration\"]"), "discovery", "endpoints.authorize");
    refused(&key("headers.fhir.Authorization = \"Basic x\""), "headers.fhir.Authorization", "does not set itself");
    refused(&key("headers.fhir.X = \"{tennant}\""), "headers.fhir.X", "placeholders");
    refused(&key("query.patient = \"1\""), "query.patient", "does not choose patients");
    refused(&key("id_token.issuer = \"https://*/oauth2\""), "id_token.issuer", "in the path");
    assert_eq!(key("id_token.issuer = \"https://as.example.org/tenants/*/\"").faults(), Vec::<String>::new());
    assert_eq!(key("id_token.issuer = \"{base}/oidc/*/\"\naud = \"../..\"").faults(), Vec::<String>::new());
    refused(&key("id_token.issuer = \"{base}.evil.example\""), "id_token.issuer", "a / after");
    refused(&key("id_token.issuer = \"{bases}/x\""), "id_token.issuer", "{authorize_base}");
    refused(&key("aud = \"//evil.example\""), "aud", "relative to the FHIR base");
    refused(&key("endpoints.token = \"http://as.example.org/token\""), "endpoints.token", "https");
    refused(&key("errors.all = { means = \"dead\" }"), "errors.all", "end grants");
    refused(&key("errors.all = { at = \"refresh\" }"), "errors.all.means", "nothing");
    refused(&key("errors.all = { means = \"deadd\", at = \"refresh\" }"), "errors.all.means", "did you mean \"dead\"?");
    refused(&key("tokens.refresh_befor = \"1m\""), "tokens.refresh_befor", "did you mean \"refresh_before\"?");
    refused(&key("batch = \"yes\""), "batch", "true or false");
    noted(&key("pkce = \"off\""), "pkce", "PKCE is off");

    let twin = "[sites.twin]\nvendor = \"epic\"\nname = \"Twin\"\nfhir_base_url = \"https://EHR.example.org/api/FHIR/R4/\"\nregistrations = [\"viewer-epic-prod\"]\n";
    refused(&example().file("sites.d/twin.toml", twin), "sites.twin.fhir_base_url", "of its own");
    let other_persona = example().file("sites.d/twin.toml", format!("{twin}persona = \"patient\"\n"));
    noted(&other_persona, "apps.viewer", "/launch/viewer/SITE");
}

#[test]
fn personas_of_oracle_are_compared_with_the_host() {
    let oracle = "[vendors.o]\nadapter = \"oracle\"\n[sites.o]\nvendor = \"o\"\nname = \"O\"\nregistrations = []\nfhir_base_url = \"https://fhir-myrecord.example.org/r4/t\"\n";
    noted(&example().file("sites.d/o.toml", oracle), "sites.o", "no persona");
    refused(
        &example().file("sites.d/o.toml", format!("{oracle}persona = \"provider\"\n")),
        "sites.o.persona",
        "patient",
    );
}

#[test]
fn registrations() {
    let scopes = "\"patient/Condition.rs\"]";
    refused(
        &example().with(SITE, scopes, "\"patient/*.rs\"]"),
        "viewer-epic-prod.scopes[7]",
        "the types that are ticked",
    );
    let keeps = example().with("vendors.toml", "wildcards = \"expand\"", "wildcards = \"keep\"").with(
        SITE,
        scopes,
        "\"patient/*.rs\"]",
    );
    assert_eq!(keeps.faults(), Vec::<String>::new());
    refused(
        &keeps.with(SITE, "name = ", "scopes.wildcards = \"expand\"\nname = "),
        "sites.general-hospital.registrations[0]",
        "the types that are ticked",
    );

    let other = "[vendors.other]\n";
    let moved =
        example().file("sites.d/other.toml", other).with(SITE, "vendor = \"epic\"\napps", "vendor = \"other\"\napps");
    refused(&moved, "sites.general-hospital.registrations[0]", "filed at \"other\"");

    let keys = "keys/epic-2026-11.pem";
    refused(&example().file(&format!("sites.d/../{keys}"), EC.as_str()), "keys.epic-prod.private[0]", "RSA");
    let elliptic = example().file(&format!("sites.d/../{keys}"), EC.as_str()).with(SITE, "\"RS384\"", "\"ES384\"");
    assert_eq!(elliptic.faults(), Vec::<String>::new());
    refused(
        &elliptic.with(SITE, "client_id = ", "publish = \"uploaded\"\nclient_id = "),
        "client_auth.keys",
        "EC keys",
    );
    refused(&example().with(SITE, "state = \"sign\"", "state = \"retired\""), "keys.epic-prod.private", "exactly one");
    let twice =
        format!("[{{ file = \"../{keys}\", state = \"sign\" }}, {{ file = \"../{keys}\", state = \"publish\" }}]");
    refused(
        &example().with(SITE, &format!("[{{ file = \"../{keys}\", state = \"sign\" }}]"), &twice),
        "private[1]",
        "each key once",
    );
    refused(
        &example().with(SITE, "keys = \"epic-prod\"", "keys = \"epic-pro\""),
        "client_auth.keys",
        "did you mean \"epic-prod\"?",
    );

    let public =
        example().with(SITE, "{ method = \"private_key_jwt\", keys = \"epic-prod\" }", "{ method = \"none\" }");
    noted(&public, "viewer-epic-prod.client_auth", "no refresh token to public clients");
    refused(&public.with(SITE, "\"standalone\"]", "\"backend\"]"), "client_auth", "confidential");
    noted(
        &example().with(SITE, "registrations = [\"viewer-epic-prod\"]", "registrations = []"),
        "apps.viewer",
        "no registration serves this app",
    );
    noted(
        &example().with(SITE, "registrations = [\"viewer-epic-prod\"]", "registrations = []"),
        "registrations.viewer-epic-prod",
        "never used",
    );
    let same = "previous = [{ client_id = \"0e7f3a5c-52c1-4f3e-9b0c-2b1f6a7d8e90\", client_auth = { method = \"none\" } }]\nuse = ";
    refused(&example().with(SITE, "use = ", same), "previous[0].client_id", "another client id");
}

fn second_app(lines: &str) -> String {
    format!(
        "[apps.second]\nclient_auth = {{ method = \"none\" }}\nredirect_uris = [\"https://second.example.org/cb\"]\nlaunch_url = \"https://second.example.org/launch\"\nscopes = [\"openid\"]\n{lines}\n"
    )
}

#[test]
fn a_registration_serves_one_app_until_there_is_a_consent_page() {
    let shared = example().with(SITE, "apps = [\"viewer\"]", "apps = [\"viewer\", \"second\"]");
    let faults = shared.clone().file("sites.d/app.toml", second_app("")).faults();
    assert_eq!(faults.len(), 2, "{faults:#?}");
    assert!(faults[0].contains("apps.viewer.consent") && faults[0].contains("given \"never\""), "{faults:#?}");
    assert!(faults[1].contains("registrations.viewer-epic-prod.apps: given 2 apps, expected one"), "{faults:#?}");

    let credentials = second_app("").replace(
        "{ method = \"none\" }",
        "{ method = \"private_key_jwt\", jwks_uri = \"https://second.example.org/jwks\" }",
    ) + "grants = [\"client_credentials\"]\n";
    let faults = shared.file("sites.d/app.toml", credentials).faults();
    assert!(
        faults.iter().any(|fault| fault.contains("apps.second.grants") && fault.contains("serves other apps too")),
        "{faults:#?}"
    );
    refused(
        &example().with("mantel.toml", "consent = \"never\"", "consent = \"once\""),
        "apps.viewer.consent",
        "not there yet",
    );
}

#[test]
fn apps() {
    let app = |lines: &str| example().file("sites.d/app.toml", second_app(lines));
    let with_auth = |auth: &str, lines: &str| {
        example().file("sites.d/app.toml", second_app(lines).replace("{ method = \"none\" }", auth))
    };
    let hash = format!("\"sha256:{}\"", "ab".repeat(32));
    refused(&app("grants = [\"client_credentials\"]"), "apps.second.grants[0]", "private_key_jwt");
    refused(&app("grants = [\"authorization_code\", \"refresh_token\"]"), "apps.second.grants[1]", "offline_access");
    refused(&app("introspect = true"), "apps.second.introspect", "public client");
    refused(&app("keep_alive = true\ncustody = \"session\""), "apps.second.keep_alive", "session");
    refused(&app("access_lifetime = \"10s\""), "apps.second.access_lifetime", "from 1m");
    refused(&app("session_max = \"10m\""), "apps.second.session_max", "no longer than session_max");
    refused(&app("required_scopes = [\"patient/Observation.sr\"]"), "apps.second.required_scopes[0]", "in this order");
    refused(&app("sites = [\"general-hospitl\"]"), "apps.second.sites[0]", "did you mean \"general-hospital\"?");
    noted(&app("sites = [\"tag:nowhere\"]"), "apps.second.sites[0]", "no site has the tag");
    noted(&app("access_lifetime = \"2h\""), "apps.second.access_lifetime", "SMART advises");
    refused(
        &with_auth(&format!("{{ method = \"none\", secrets = [{hash}] }}"), ""),
        "apps.second.client_auth.secrets",
        "another method",
    );
    refused(
        &with_auth(&format!("{{ method = \"client_secret_basic\", secrets = [{hash}, {hash}, {hash}] }}"), ""),
        "secrets",
        "3 secrets",
    );
    assert_eq!(
        with_auth(&format!("{{ method = \"client_secret_basic\", secrets = [{hash}] }}"), "introspect = true").faults(),
        Vec::<String>::new()
    );
    refused(&with_auth("{ method = \"private_key_jwt\" }", ""), "apps.second.client_auth", "neither");
    refused(
        &with_auth("{ method = \"private_key_jwt\", jwks_uri = \"http://second.example.org/jwks\" }", ""),
        "jwks_uri",
        "https",
    );
    let set = |key: &str| with_auth(&format!("{{ method = \"private_key_jwt\", jwks = {{ keys = [{key}] }} }}"), "");
    assert_eq!(set("{ kty = \"RSA\", kid = \"1\", n = \"x\", e = \"AQAB\" }").faults(), Vec::<String>::new());
    refused(&set("{ kty = \"RSA\", kid = \"1\", n = \"x\", e = \"AQAB\", d = \"x\" }"), "jwks.keys[0]", "public half");
    refused(&set("{ kty = \"RSA\", n = \"x\", e = \"AQAB\" }"), "jwks.keys[0]", "kid");
    let launch = "launch_url = \"https://viewer.example.org/launch\"\n";
    refused(&example().with("mantel.toml", launch, ""), "apps.viewer.launch_url", "ehr-launch");
}

#[test]
fn session_custody_is_recommended_where_tokens_are_short_lived() {
    let short = example().with("vendors.toml", "assume_lifetime = \"1h\"", "assume_lifetime = \"5m\"");
    assert_eq!(short.notes(), Vec::<String>::new(), "an app that asks for refresh tokens needs no advice");
    let online = short.with("mantel.toml", "\"fhirUser\", \"offline_access\"", "\"fhirUser\"");
    noted(&online, "apps.viewer.custody", "custody = \"session\"");
    let session = online.with("mantel.toml", "custody = \"as-asked\"", "custody = \"session\"");
    assert_eq!(session.notes(), Vec::<String>::new());
}

#[test]
fn stores_and_seal_keys() {
    let seal = "file = \"keys/seal-2026-11\"";
    refused(&example().with("mantel.toml", seal, "env = \"SEAL\""), "store.seal[0].env", "which is not set");
    refused(
        &example().with("mantel.toml", seal, "env = \"SEAL\"").set("SEAL", "c2hvcnQ="),
        "store.seal[0]",
        "32 bytes",
    );
    refused(&example().with("mantel.toml", &format!(", {seal}"), ""), "store.seal[0]", "neither env nor file");
    refused(
        &example().with("mantel.toml", "sqlite:///var/lib/mantel/mantel.db", "mysql://db/x"),
        "store.url",
        "sqlite://",
    );
    let plain =
        example().with("mantel.toml", "sqlite:///var/lib/mantel/mantel.db", "postgres://mantel@db.example.org/mantel");
    refused(&plain, "store.spill", "a directory that only this gateway process writes to");
    noted(&plain.with("mantel.toml", "[store]", "[store]\nspill = \"spill\""), "store.url", "verify-full");
    let limits = |line: &str| example().with("mantel.toml", "[store]", &format!("[server.limits]\n{line}\n[store]"));
    refused(&limits("body = \"1 MB\""), "server.limits.body", "KiB, MiB or GiB");
    let loaded = limits("body = \"2 MiB\"").load().unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(loaded.config.server.limits.body, 2 << 20);
    refused(
        &example().with("mantel.toml", "[store]", "[server.timeouts]\ntoken = \"1ms\"\n[store]"),
        "server.timeouts.token",
        "from 100ms",
    );
    assert!(RSA.starts_with("-----BEGIN"));
}

#[test]
fn the_spill_stands_beside_the_file_or_where_it_is_told() {
    let file = "sqlite:///var/lib/mantel/mantel.db";
    let spill = |setup: &Setup| {
        let loaded = setup.load().unwrap_or_else(|faults| panic!("{faults}"));
        loaded.config.store.spill.as_ref().map(|path| path.display().to_string())
    };
    assert_eq!(spill(&example()).as_deref(), Some("/var/lib/mantel/mantel.db.spill"));
    assert!(example().load().unwrap_or_else(|faults| panic!("{faults}")).describe().contains("mantel.db.spill"));
    let named = |text: &str| example().with("mantel.toml", "[store]", &format!("[store]\nspill = {text:?}"));
    assert_eq!(spill(&named("answers")).as_deref(), Some("/etc/mantel/answers"));
    assert_eq!(spill(&named("/mnt/answers")).as_deref(), Some("/mnt/answers"));
    refused(&named(""), "store.spill", "a directory");
    assert_eq!(spill(&example().with("mantel.toml", file, "sqlite::memory:")), None);
    refused(&named("x").with("mantel.toml", file, "sqlite::memory:"), "store.spill", "none with sqlite::memory:");
    // In the sandbox a database needs none, and is told what that means.
    let sandbox = example().with("mantel.toml", "[server]", "[server]\nsandbox = true");
    noted(&sandbox.with("mantel.toml", file, "postgres://localhost/mantel"), "store.spill", "lost with this process");
}

#[test]
fn the_sandbox_takes_literal_secrets() {
    let secret = "{ method = \"client_secret_basic\", secret = \"only-for-play\" }";
    let literal = example().with(SITE, "{ method = \"private_key_jwt\", keys = \"epic-prod\" }", secret);
    refused(&literal, "client_auth.secret", "no secret stands in a configuration");
    assert_eq!(literal.with("mantel.toml", "[server]", "[server]\nsandbox = true").faults(), Vec::<String>::new());
}
