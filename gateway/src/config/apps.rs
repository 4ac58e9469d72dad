//! `[apps]`: the clients of Mantel.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use figment::value::Value;
use mantel_adapters::site::{AppId, SiteId};

use super::{
    address,
    fault::shown,
    model::{App, AppAuth, AppGrant, AppKeys, Consent, CustodyMode, Inspect, SecretHash, SitePattern},
    profiles::NAME,
    reader::{Context, Given, Table, choose, described, table},
    registrations::{HAS_CONSENT_PAGE, Registrations},
    scopes, secrets,
    server::DAY,
    sites::{INSPECT, Sites},
};

pub(super) type Apps = BTreeMap<AppId, Arc<App>>;

pub(super) fn names(context: &Context<'_>) -> BTreeSet<String> {
    context.top("apps").entries().map(|(name, _)| name.to_owned()).collect()
}

pub(super) fn read(context: &Context<'_>, sites: &Sites, registrations: &Registrations) -> Apps {
    let top = context.top("apps");
    let apps = top.entries().filter_map(|(name, given)| {
        let id = name.parse::<AppId>().map_err(|_| context.fault(&given.path, shown(name), NAME)).ok();
        let table = table(context, &given, "a table with client_auth, redirect_uris and scopes")?;
        let app = app(&table, id, sites, registrations);
        table.finish();
        app.map(|app| (app.id.clone(), Arc::new(app)))
    });
    apps.collect()
}

fn app(table: &Table<'_>, id: Option<AppId>, sites: &Sites, registrations: &Registrations) -> Option<App> {
    let context = table.context;
    let name = table.text("name", "the name that users read").map(|name| name.value);
    let auth = auth(table);
    let grants = grants(table, auth.as_ref());
    let code = grants.contains(&AppGrant::AuthorizationCode);

    let redirect_uris = addresses(table, "redirect_uris", &|uri| address::redirect(uri, context.sandbox));
    if code && !table.has("redirect_uris") {
        table.missing("redirect_uris", "at least one redirect URI, for the grant authorization_code");
    } else if code && table.value("redirect_uris").is_some_and(|given| is_empty_list(given.value)) {
        let expected = "at least one redirect URI, for the grant authorization_code";
        context.fault(&table.at("redirect_uris"), "an empty list", expected);
    }
    let launch_url = table.text("launch_url", "a URL").and_then(|url| match address::launch(&url, context.sandbox) {
        Ok(()) => Some(url.value),
        Err(expected) => {
            context.refuse(&url, expected);
            None
        }
    });
    let scopes = scopes::allowed(table.context, &table.texts("scopes", "a scope").unwrap_or_default());
    if !table.has("scopes") {
        table.missing("scopes", "the scopes that the app may ask for");
    }
    let consent = consent(table, id.as_ref(), registrations);
    let choices = [("as-asked", CustodyMode::AsAsked), ("session", CustodyMode::Session)];
    let custody = table.choice("custody", &choices).map_or(CustodyMode::AsAsked, |custody| custody.value);
    let introspect = table.flag("introspect").unwrap_or_default();
    if introspect && matches!(auth, Some(AppAuth::None)) {
        let expected = "false, or an app that authenticates: it would see the tokens of all apps";
        context.fault(&table.at("introspect"), "true for a public client", expected);
    }
    let keep_alive = table.flag("keep_alive").unwrap_or_default();
    if keep_alive && custody == CustodyMode::Session {
        let expected = "false where custody is \"session\": a session ends, it is not kept alive";
        context.fault(&table.at("keep_alive"), "true", expected);
    }
    let lifetimes = lifetimes(table);
    let inspect = table.choice("inspect", &INSPECT).map_or(Inspect::Auto, |inspect| inspect.value);
    let app = App {
        name: name.unwrap_or_else(|| id.as_ref().map(ToString::to_string).unwrap_or_default()),
        redirect_uris,
        launch_url,
        origins: addresses(table, "origins", &address::origin),
        scopes,
        required_scopes: required_scopes(table),
        sites: patterns(table, sites),
        grants,
        consent,
        custody,
        introspect,
        inspect,
        keep_alive,
        session_max: lifetimes.session_max,
        session_idle: lifetimes.session_idle,
        post_logout_redirect_uris: addresses(table, "post_logout_redirect_uris", &|uri| {
            address::redirect(uri, context.sandbox)
        }),
        access_lifetime: lifetimes.access,
        refresh_lifetime: lifetimes.refresh,
        auth: auth?,
        id: id?,
    };
    Some(app)
}

fn is_empty_list(value: &Value) -> bool {
    matches!(value, Value::Array(_, values) if values.is_empty())
}

fn addresses(table: &Table<'_>, key: &'static str, check: &dyn Fn(&str) -> Result<(), String>) -> Vec<String> {
    let context = table.context;
    let texts = table.texts(key, "a string").unwrap_or_default();
    let mut seen = BTreeSet::new();
    for text in texts {
        match check(&text) {
            Err(expected) => context.refuse(&text, expected),
            Ok(()) if seen.contains(&text.value) => context.refuse(&text, "each once"),
            Ok(()) => drop(seen.insert(text.value)),
        }
    }
    seen.into_iter().collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    None,
    Basic,
    Post,
    Jwt,
}

const AUTH: &str = "{ method = \"none\" } or another method";

fn auth(table: &Table<'_>) -> Option<AppAuth> {
    if !table.has("client_auth") {
        table.missing("client_auth", AUTH);
    }
    let auth = table.table("client_auth", AUTH)?;
    let methods = [
        ("none", Method::None),
        ("client_secret_basic", Method::Basic),
        ("client_secret_post", Method::Post),
        ("private_key_jwt", Method::Jwt),
    ];
    if !auth.has("method") {
        auth.missing("method", "none, client_secret_basic, client_secret_post or private_key_jwt");
    }
    let method = auth.choice("method", &methods)?.value;
    let read = match method {
        Method::None => Some(AppAuth::None),
        Method::Basic => hashes(&auth).map(|secrets| AppAuth::SecretBasic { secrets }),
        Method::Post => hashes(&auth).map(|secrets| AppAuth::SecretPost { secrets }),
        Method::Jwt => app_keys(&auth).map(AppAuth::PrivateKeyJwt),
    };
    let secret = matches!(method, Method::Basic | Method::Post);
    for (key, of) in [("secrets", secret), ("jwks_uri", method == Method::Jwt), ("jwks", method == Method::Jwt)] {
        if !of && auth.value(key).is_some() {
            auth.context.fault(&auth.at(key), "a key of another method", "only what this method needs");
        }
    }
    auth.finish();
    read
}

fn hashes(auth: &Table<'_>) -> Option<Vec<SecretHash>> {
    let context = auth.context;
    let form = "\"sha256:\" and the 64 hexadecimal digits of the secret's SHA-256";
    let Some(given) = auth.value("secrets") else {
        auth.missing("secrets", &format!("a list of one or two, each {form}"));
        return None;
    };
    let Value::Array(_, values) = given.value else {
        // Not shown: it may be the secret.
        context.fault(&given.path, super::reader::kind(given.value), format!("a list of one or two, each {form}"));
        return None;
    };
    if !(1..=2).contains(&values.len()) {
        let expected = "one secret, or two while it is changed";
        context.fault(&given.path, format!("{} secrets", values.len()), expected);
    }
    let hashes = values.iter().enumerate().filter_map(|(n, value)| {
        let hash = value.as_str().and_then(|text| secrets::secret_hash(text, context.sandbox));
        if hash.is_none() {
            context.fault(&given.path.index(n), "what is no hash", form);
        }
        hash
    });
    Some(hashes.collect())
}

fn app_keys(auth: &Table<'_>) -> Option<AppKeys> {
    let context = auth.context;
    let expected = "jwks_uri with the app's https URL, or jwks with its keys";
    let (uri, set) = (auth.has("jwks_uri"), auth.has("jwks"));
    if uri == set {
        let given = if uri { "both jwks_uri and jwks" } else { "neither jwks_uri nor jwks" };
        context.fault(&auth.path, given, expected);
    }
    let url = auth.text("jwks_uri", "a URL").and_then(|text| {
        match address::fetched(&text, context.sandbox, "the address of a JWK set") {
            Ok(url) => Some(AppKeys::Url(url)),
            Err(expected) => {
                context.refuse(&text, expected);
                None
            }
        }
    });
    let set = auth.value("jwks").and_then(|given| jwks(context, &given));
    url.or(set.map(AppKeys::Set))
}

const JWKS: &str = "a table with keys, or { file = \"path\" }";

fn jwks(context: &Context<'_>, given: &Given<&Value>) -> Option<serde_json::Value> {
    let jwks = table(context, given, JWKS)?;
    let json = if let Some(file) = jwks.text("file", "the path of a JWK set") {
        jwks.finish();
        secrets::json_file(context, &file)?
    } else {
        serde_json::to_value(given.value).ok()?
    };
    let keys = json.get("keys").and_then(serde_json::Value::as_array).filter(|keys| !keys.is_empty());
    let Some(keys) = keys else {
        context.fault(&given.path, "a set without keys", JWKS);
        return None;
    };
    let mut kids = BTreeSet::new();
    for (n, key) in keys.iter().enumerate() {
        let path = given.path.key("keys").index(n);
        let text = |name: &str| key.get(name).and_then(serde_json::Value::as_str);
        // RFC 7518 §6: `d` of RSA and EC, `k` of symmetric keys.
        if key.get("d").is_some() || key.get("k").is_some() {
            context.fault(&path, "a private or symmetric key", "the public half alone");
        } else if !matches!(text("kty"), Some("RSA" | "EC")) {
            context.fault(&path, "a key whose kty is neither RSA nor EC", "an RSA or EC key");
        } else if text("kid").is_none_or(|kid| !kids.insert(kid.to_owned())) {
            context.fault(&path, "a key without a kid of its own", "a kid: an assertion names its key by it");
        }
    }
    Some(json)
}

fn grants(table: &Table<'_>, auth: Option<&AppAuth>) -> BTreeSet<AppGrant> {
    let context = table.context;
    let choices =
        [("authorization_code", AppGrant::AuthorizationCode), ("client_credentials", AppGrant::ClientCredentials)];
    let Some(texts) = table.texts("grants", "a grant") else { return BTreeSet::from([AppGrant::AuthorizationCode]) };
    if texts.is_empty() {
        context.fault(&table.at("grants"), "an empty list", "at least one grant");
    }
    let mut grants = BTreeSet::new();
    for text in &texts {
        // Comes of itself with the scope offline_access; many write it here all the same.
        if text.value == "refresh_token" {
            context.refuse(text, "authorization_code alone: refresh tokens come with offline_access");
            continue;
        }
        let Some(grant) = choose(context, text, &choices) else { continue };
        // Backend Services: a secret SHALL NOT be used.
        if grant.value == AppGrant::ClientCredentials
            && auth.is_some_and(|auth| !matches!(auth, AppAuth::PrivateKeyJwt(_)))
        {
            context.refuse(text, "authorization_code, or client_auth.method = \"private_key_jwt\" beside it");
        }
        grants.insert(grant.value);
    }
    grants
}

fn required_scopes(table: &Table<'_>) -> Vec<String> {
    let scopes = table.texts("required_scopes", "a scope").unwrap_or_default();
    // Their meaning counts, as a part of what is allowed and against what an EHR granted.
    scopes::allowed(table.context, &scopes);
    scopes.into_iter().map(|scope| scope.value).collect()
}

fn consent(table: &Table<'_>, id: Option<&AppId>, registrations: &Registrations) -> Consent {
    let context = table.context;
    let shared = |id: &AppId| registrations.values().find(|found| found.apps.contains(id) && found.apps.len() > 1);
    let shared = id.and_then(shared);
    let choices = [("never", Consent::Never), ("once", Consent::Once), ("always", Consent::Always)];
    let given = table.choice("consent", &choices);
    match (given, shared) {
        (Some(given), Some(shared)) if given.value == Consent::Never => {
            let expected =
                format!("\"once\" or \"always\": the registration {:?} serves other apps too", shared.id.as_str());
            context.fault(&given.path, "\"never\"", expected);
            Consent::Once
        }
        (Some(given), _) if given.value != Consent::Never && !HAS_CONSENT_PAGE => {
            let name = if given.value == Consent::Once { "\"once\"" } else { "\"always\"" };
            context.fault(&given.path, name, "\"never\": Mantel's consent page is not there yet");
            given.value
        }
        (Some(given), _) => given.value,
        (None, Some(_)) => Consent::Once,
        (None, None) => Consent::Never,
    }
}

fn patterns(table: &Table<'_>, sites: &Sites) -> Vec<SitePattern> {
    let context = table.context;
    let Some(texts) = table.texts("sites", "\"*\", the name of a site, or \"tag:…\"") else {
        return vec![SitePattern::All];
    };
    let patterns = texts.into_iter().filter_map(|text| {
        if text.value == "*" {
            return Some(SitePattern::All);
        }
        if let Some(tag) = text.strip_prefix("tag:") {
            if !sites.tags.contains(tag) {
                context.note(&text.path, format!("no site has the tag {}", shown(tag)));
            }
            return Some(SitePattern::Tag(tag.to_owned()));
        }
        if !sites.declared.contains(&text.value) {
            let known = sites.declared.iter().map(String::as_str);
            context.unknown(&text.path, &text, "\"*\", \"tag:…\" or a site", known);
            return None;
        }
        text.parse::<SiteId>().ok().map(SitePattern::Id)
    });
    patterns.collect()
}

struct Lifetimes {
    session_max: Duration,
    session_idle: Duration,
    access: Duration,
    refresh: Duration,
}

fn lifetimes(table: &Table<'_>) -> Lifetimes {
    let context = table.context;
    let minute = Duration::from_secs(60);
    let hour = 60 * minute;
    // Shorter ones are for those who watch tokens age; in the field they only make load.
    let shortest = if context.sandbox { Duration::from_secs(1) } else { minute };
    let read = Lifetimes {
        session_max: table.duration("session_max", shortest..=7 * DAY).unwrap_or(8 * hour),
        session_idle: table.duration("session_idle", shortest..=7 * DAY).unwrap_or(30 * minute),
        access: table.duration("access_lifetime", shortest..=DAY).unwrap_or(hour),
        refresh: table.duration("refresh_lifetime", shortest..=3660 * DAY).unwrap_or(90 * DAY),
    };
    let shown_at = |key: &'static str| table.value(key).map(|given| described(given.value));
    if read.session_idle > read.session_max {
        let key = if table.has("session_idle") { "session_idle" } else { "session_max" };
        let expected = "session_idle no longer than session_max";
        context.fault(&table.at(key), shown_at(key).unwrap_or_default(), expected);
    }
    if read.access > read.refresh {
        let key = if table.has("access_lifetime") { "access_lifetime" } else { "refresh_lifetime" };
        let expected = "access_lifetime no longer than refresh_lifetime";
        context.fault(&table.at(key), shown_at(key).unwrap_or_default(), expected);
    }
    if read.access > hour {
        context.note(&table.at("access_lifetime"), "longer than the hour that SMART advises for an access token");
    }
    read
}
