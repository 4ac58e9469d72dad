//! All faults at once, a line each.

use crate::setup::{SITE, Setup, example};

fn twenty() -> Setup {
    Setup::default()
        .file("vendors.toml", include_str!("../fixtures/config/example/vendors.toml"))
        .file("mantel.toml", include_str!("../fixtures/config/twenty-faults/mantel.toml"))
        .file("sites.d/a.toml", include_str!("../fixtures/config/twenty-faults/sites.d/a.toml"))
}

#[test]
fn twenty_faults_are_twenty_lines() {
    let text = twenty().load().err().unwrap().to_string().replace("/etc/mantel/", "");
    let expected: [&str; 20] = [
        "mantel.toml:2: server.public_url: given \"https://gateway.example.org/\", expected an https origin such as",
        "mantel.toml:4: server.workers: given 0, expected a whole number from 1 to 1024",
        "mantel.toml:7: store.url: given a URL with a password, expected { env = \"NAME\" } or { file = \"path\" }",
        "mantel.toml:8: store.seal[0].file: given \"keys/not-there\", which is not there, expected a file that can be read",
        "mantel.toml:11: apps.viewer.client_auth.secrets[0]: given what is no hash, expected \"sha256:\"",
        "mantel.toml:12: apps.viewer.redirect_uris[0]: given \"http://localhost:3000/callback\", expected http://127.0.0.1 or http://[::1] in the place of localhost: use 127.0.0.1",
        "mantel.toml:12: apps.viewer.redirect_uris[1]: given \"https://viewer.example.org/callback#top\", expected a URL without a fragment",
        "mantel.toml:14: apps.viewer.sites[0]: given \"b\", expected \"*\", \"tag:…\" or a site: did you mean \"a\"?",
        "mantel.toml:15: apps.viewer.access_lifetime: given \"1s\", expected a duration from 1m to 1d",
        "sites.d/a.toml:4: registrations.one.apps[0]: given \"viewr\", expected an app: did you mean \"viewer\"?",
        "sites.d/a.toml:5: registrations.one.use[0]: given \"ehr-lunch\", expected one of the choices: did you mean \"ehr-launch\"?",
        "sites.d/a.toml:7: registrations.one.client_auth.secret: given a literal, expected { env = \"NAME\" }",
        "sites.d/a.toml:8: registrations.one.scopes[0]: given \"patient/*.rs\", expected the types that are ticked, one by one",
        "sites.d/a.toml:8: registrations.one.scopes[1]: given \"patient/Observation.sr\", expected `read`, `write`, `*`, or letters of `cruds`",
        "sites.d/a.toml:11: sites.a.vendor: given \"epci\", expected a vendor: did you mean \"epic\"?",
        "sites.d/a.toml:12: sites.a.nmae: given an unknown key, expected a known key: did you mean \"name\"?",
        "sites.d/a.toml:14: sites.a.fhir_base_url: given \"http://ehr.example.org/fhir\", expected a FHIR base: an absolute https URL",
        "sites.d/a.toml:16: sites.a.tokens.refresh_before: given \"5 parsecs\", expected a form like 90s, 5m, 1h or 30d",
        "sites.d/a.toml:17: sites.a.pkce: given \"plain\", expected one of the choices",
        "sites.d/a.toml:19: sites.Upper: given \"Upper\", expected a name of 1 to 63 of a-z, 0-9 and -",
    ];
    let lines: Vec<&str> = text.lines().collect();
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}\nis not\n{expected}\nin\n{text}");
    }
    assert_eq!(lines.len(), expected.len(), "{text}");
}

#[test]
fn no_fault_shows_a_secret() {
    let text = twenty().load().err().unwrap().to_string();
    assert!(!text.contains("hunter2"), "{text}");
}

/// Secrets where something else was expected, in every shape.
#[test]
fn misplaced_secrets_are_not_shown_either() {
    let canary = "canary-5f1c0f7e";
    let auth = "{ method = \"private_key_jwt\", keys = \"epic-prod\" }";
    let registration = [
        format!("\"{canary}\""),
        format!("{{ method = \"client_secret_post\", secret = [\"{canary}\"] }}"),
        format!("{{ method = \"client_secret_post\", secret = {{ value = \"{canary}\" }} }}"),
        format!("{{ method = \"client_secret_post\", secret = \"{canary} }}"),
        format!("{{ method = \"none\", secret = \"{canary}\" }}"),
    ];
    let mut setups: Vec<Setup> = registration.iter().map(|new| example().with(SITE, auth, new)).collect();
    for new in
        [format!("secrets = \"{canary}\""), format!("secrets = [[\"{canary}\"]]"), format!("secret = \"{canary}\"")]
    {
        let auth = "{ method = \"none\" }";
        let new = format!("{{ method = \"client_secret_basic\", {new} }}");
        setups.push(example().with("mantel.toml", auth, &new));
    }
    for new in [
        format!("postgres://u:{canary}@[/db"),
        format!("mysql://u:{canary}@db"),
        format!("postgres://db/x?password={canary}"),
    ] {
        setups.push(example().with("mantel.toml", "sqlite:///var/lib/mantel/mantel.db", &new));
    }
    setups.push(example().with(
        "mantel.toml",
        "[{ id = \"2026-11\", file = \"keys/seal-2026-11\" }]",
        &format!("\"{canary}\""),
    ));
    setups.push(example().with("mantel.toml", "key = { file = \"tls.key\" }", &format!("key = \"{canary}\"")));
    for setup in setups {
        let faults = setup.faults();
        assert!(!faults.is_empty() && !faults.join("\n").contains(canary), "{faults:?}");
    }
}

#[test]
fn a_fault_is_one_line_whatever_was_written() {
    let odd = "[\"si\\ntes\"]\n\"a\\nb\" = 1\n[sites.\"x\\ny\"]\n\"k\\nk\" = \"v\\nv\"\nvendor = \"e\\npic\"\n";
    let setup = example().file("sites.d/odd.toml", odd);
    let faults = setup.load().err().unwrap();
    assert_eq!(faults.to_string().lines().count(), faults.len());
}

#[test]
fn what_is_no_toml_is_told_with_its_line() {
    let faults = example().file("sites.d/broken.toml", "[sites.x]\nname = \n").faults();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].starts_with("sites.d/broken.toml:2: given what is no TOML"), "{faults:?}");
    let faults = example().file("sites.d/latin.toml", b"[sites.x]\nname = \"Spit\xe4l\"\n").faults();
    assert!(faults[0].starts_with("sites.d/latin.toml:2: given bytes that are not UTF-8"), "{faults:?}");
    let deep = format!("{}x = 1\n", "a.".repeat(200_000));
    assert_eq!(example().file("sites.d/deep.toml", &deep).faults().len(), 1);
    let nested = format!("x = {}{}\n", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(example().file("sites.d/nested.toml", &nested).faults().len(), 1);
}

#[test]
fn items_of_a_list_keep_their_numbers() {
    let list = "patient_from = [\"patient\", \"claim:\", \"fhirUser\", \"user\"]\nname = ";
    let faults = example().with(SITE, "name = ", list).faults();
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults[0].contains("patient_from[1]") && faults[1].contains("patient_from[3]"), "{faults:?}");
}

#[test]
fn everything_missing_is_told() {
    let faults = Setup::default().file("mantel.toml", "[sites.a]\n[apps.b]\n[registrations.c]\n[keys.d]\n").faults();
    let keys: Vec<&str> = faults.iter().filter_map(|fault| fault.split(": ").nth(1)).collect();
    let expected = [
        "server.public_url",
        "store.seal",
        "store.url",
        "sites.a.fhir_base_url",
        "sites.a.name",
        "sites.a.registrations",
        "sites.a.vendor",
        "apps.b.client_auth",
        "apps.b.redirect_uris",
        "apps.b.scopes",
        "registrations.c.apps",
        "registrations.c.client_auth",
        "registrations.c.client_id",
        "registrations.c.scopes",
        "registrations.c.use",
        "registrations.c.vendor",
        "keys.d.alg",
        "keys.d.private",
    ];
    assert_eq!(keys, expected, "{faults:#?}");
}
