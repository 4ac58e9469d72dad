//! What a profile's values must be, beyond their types.

use std::time::Duration;

use figment::value::{Dict, Value};
use mantel_adapters::{
    profile::{Meaning, Pkce, Profile},
    registry::ADAPTERS,
};

use super::{
    address,
    fault::{shown, span},
    layers::KeyPath,
    reader::{Context, one_of},
};

/// The checks of values look only at what the table itself says.
pub(super) struct Checks<'c> {
    pub context: &'c Context<'c>,
    pub path: &'c KeyPath,
    pub dict: &'c Dict,
}

impl Checks<'_> {
    fn says(&self, keys: &[&str]) -> Option<KeyPath> {
        let mut at = self.dict.get(*keys.first()?)?;
        for key in keys.iter().skip(1) {
            match at {
                Value::Dict(_, dict) => at = dict.get(*key)?,
                _ => return None,
            }
        }
        Some(keys.iter().fold(self.path.clone(), |path, key| path.key(key)))
    }

    fn text(&self, keys: &[&str], text: &str, expected: Result<(), String>) {
        if let (Some(path), Err(expected)) = (self.says(keys), expected) {
            self.context.fault(&path, shown(text), expected);
        }
    }
}

pub(super) fn check(checks: &Checks<'_>, profile: &Profile) {
    let sandbox = checks.context.sandbox;
    let names: Vec<&str> = ADAPTERS.iter().map(|adapter| adapter.name()).collect();
    let known = names.contains(&profile.adapter.as_str());
    let adapter = if known { Ok(()) } else { Err(one_of(&profile.adapter, "an adapter", names.iter().copied())) };
    checks.text(&["adapter"], &profile.adapter, adapter);

    if profile.aud != "base" && !is_relative(&profile.aud) {
        let what = "`base`, a reference relative to the FHIR base, or";
        checks.text(&["aud"], &profile.aud, address::base(&profile.aud, sandbox, what).map(drop));
    }
    let endpoints = &profile.endpoints;
    let endpoints = [
        ("authorize", &endpoints.authorize),
        ("token", &endpoints.token),
        ("introspect", &endpoints.introspect),
        ("revoke", &endpoints.revoke),
        ("jwks", &endpoints.jwks),
        ("end_session", &endpoints.end_session),
    ];
    for (name, endpoint) in endpoints {
        let Some(endpoint) = endpoint else { continue };
        let fits = if is_relative(endpoint) {
            Ok(())
        } else {
            address::fetched(endpoint, sandbox, "an endpoint, relative to the FHIR base or").map(drop)
        };
        checks.text(&["endpoints", name], endpoint, fits);
    }
    if profile.discovery.is_empty()
        && let Some(path) = checks.says(&["discovery"])
    {
        let expected = "at least one of \"smart-configuration\", \"capability-statement\", \"configuration\"";
        checks.context.fault(&path, "an empty list", expected);
    }
    check_id_token(checks, profile);
    check_additions(checks, profile);
    check_lists(checks, profile);
    if profile.pkce == Pkce::Off
        && let Some(path) = checks.says(&["pkce"])
    {
        checks.context.note(&path, "PKCE is off: only for a server that refuses it; a stolen code could be used");
    }
}

/// A reference relative to the FHIR base; what begins with a scheme or `//` names another host.
fn is_relative(text: &str) -> bool {
    let plain = text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b':' | b'\\' | b'#'));
    plain && !text.is_empty() && !text.starts_with("//")
}

/// What may stand at an issuer's beginning in the place of a URL.
const PLACES: [&str; 3] = ["{discovery}", "{authorize_base}", "{base}"];

fn check_id_token(checks: &Checks<'_>, profile: &Profile) {
    let sandbox = checks.context.sandbox;
    let issuer = &profile.id_token.issuer;
    let fits = if issuer == "discovery" { Ok(()) } else { issuer_pattern(issuer, sandbox) };
    checks.text(&["id_token", "issuer"], issuer, fits);
    let jwks = &profile.id_token.jwks;
    if jwks != "discovery" {
        checks.text(&["id_token", "jwks"], jwks, address::fetched(jwks, sandbox, "`discovery`, or a URL").map(drop));
    }
}

fn issuer_pattern(issuer: &str, sandbox: bool) -> Result<(), String> {
    let rest = PLACES.iter().find_map(|place| issuer.strip_prefix(place));
    let url = rest.map_or_else(|| issuer.to_owned(), |rest| format!("https://place.invalid/place{rest}"));
    if url.matches('*').count() > 1 {
        return Err("a URL with at most one *".into());
    }
    if rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/')) {
        return Err("a / after the placeholder".into());
    }
    let what = "`discovery`; {discovery}, {authorize_base} or {base} and a path; or";
    address::base(&url.replace('*', "any"), sandbox, what)?;
    // `*` stands for path segments; in the host it would let anybody be the issuer.
    let host = url.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or_default());
    if host.contains('*') { Err("a URL whose * stands in the path".into()) } else { Ok(()) }
}

/// Headers that are ours to send: an operator's would break the message, or hand our credentials over.
const RESERVED: [&str; 12] = [
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

fn check_additions(checks: &Checks<'_>, profile: &Profile) {
    for (table, headers) in [("discovery", &profile.headers.discovery), ("fhir", &profile.headers.fhir)] {
        for (name, value) in headers {
            let Some(path) = checks.says(&["headers", table, name]) else { continue };
            if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
                checks.context.fault(&path, shown(name), "the name of a header");
            } else if RESERVED.contains(&name.to_ascii_lowercase().as_str()) {
                checks.context.fault(&path, shown(name), "a header that Mantel does not set itself");
            }
            if http::HeaderValue::from_str(value).is_err() {
                checks.context.fault(&path, "a value with control characters", "a header's value: visible text");
            }
            placeholders(checks, &path, value);
        }
    }
    for (name, value) in &profile.query {
        let Some(path) = checks.says(&["query", name]) else { continue };
        let reserved = matches!(name.as_str(), "access_token" | "patient" | "subject" | "_id");
        if name.is_empty() || reserved {
            // Those are the judge's: a fixed value would widen or void each request.
            checks.context.fault(&path, shown(name), "a parameter that does not choose patients or tokens");
        }
        placeholders(checks, &path, value);
    }
}

fn placeholders(checks: &Checks<'_>, path: &KeyPath, value: &str) {
    let rest = value.replace("{tenant}", "").replace("{client_id}", "");
    if rest.contains(['{', '}']) {
        checks.context.fault(path, shown(value), "no placeholders but {tenant} and {client_id}");
    }
}

/// Ten years.
const LONGEST: Duration = Duration::from_secs(3660 * 24 * 3600);

fn check_lists(checks: &Checks<'_>, profile: &Profile) {
    for (n, host) in profile.auth_hosts.iter().enumerate() {
        let Some(path) = checks.says(&["auth_hosts"]) else { break };
        let fits = url::Host::parse(host).is_ok_and(|parsed| parsed.to_string() == *host);
        if !fits {
            checks.context.fault(&path.index(n), shown(host), "a host name in lower case, without scheme and port");
        }
    }
    if profile.patient_from.is_empty()
        && let Some(path) = checks.says(&["patient_from"])
    {
        checks.context.fault(&path, "an empty list", "at least one of \"patient\", \"fhirUser\", \"claim:NAME\"");
    }
    for (name, number) in [
        ("concurrent", profile.budget.concurrent),
        ("per_minute", profile.budget.per_minute),
        ("refreshes_per_minute", profile.budget.refreshes_per_minute),
    ] {
        if number == Some(0)
            && let Some(path) = checks.says(&["budget", name])
        {
            checks.context.fault(&path, "0", "a whole number from 1: none is no request at all");
        }
    }
    // What is reckoned with them must not overflow.
    let tokens = &profile.tokens;
    let durations = [
        (&["tokens", "assume_lifetime"][..], tokens.assume_lifetime),
        (&["tokens", "refresh_before"], tokens.refresh_before),
        (&["tokens", "min_refresh_interval"], tokens.min_refresh_interval),
        (&["tokens", "reuse_grace"], tokens.reuse_grace),
        (&["jwks_cache"], profile.jwks_cache),
    ];
    let refresh_lifetime = tokens.refresh_lifetime.map(|lifetime| (&["tokens", "refresh_lifetime"][..], lifetime));
    for (keys, duration) in durations.into_iter().chain(refresh_lifetime) {
        if let Some(path) = checks.says(keys).filter(|_| duration > LONGEST) {
            checks.context.fault(&path, span(duration), format!("at most {}", span(LONGEST)));
        }
    }
    if profile.tokens.refresh_lifetime.is_some_and(|lifetime| lifetime.is_zero())
        && let Some(path) = checks.says(&["tokens", "refresh_lifetime"])
    {
        checks.context.fault(&path, "\"0s\"", "a duration above zero");
    }
    if profile.tokens.assume_lifetime.is_zero()
        && let Some(path) = checks.says(&["tokens", "assume_lifetime"])
    {
        checks.context.fault(&path, "\"0s\"", "a duration above zero");
    }
    for (name, rule) in &profile.errors {
        let Some(path) = checks.says(&["errors", name]) else { continue };
        if let Some(status) = rule.status.filter(|status| !(400..=599).contains(status)) {
            checks.context.fault(&path.key("status"), status.to_string(), "a status from 400 to 599");
        }
        let anything = rule.at.is_none() && rule.status.is_none() && rule.error.is_none() && rule.contains.is_none();
        if anything && rule.means == Meaning::Dead {
            let expected = "at, status, error or contains beside means: every error of this vendor would end grants";
            checks.context.fault(&path, "a rule that matches everything", expected);
        }
    }
    for (kind, fan_out) in &profile.fan_out {
        let Some(path) = checks.says(&["fan_out", kind]) else { continue };
        if fan_out.parameter.is_empty() || fan_out.values.is_empty() {
            checks.context.fault(&path, "no parameter or no values", "a parameter and at least one value");
        }
    }
}
