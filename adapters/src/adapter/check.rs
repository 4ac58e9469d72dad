//! What is wrong with a profile although each of its keys has the right type.

use http::{HeaderName, HeaderValue};
use url::Url;

use super::headers::Placeholders;
use crate::{
    profile::{DiscoverySource, Profile},
    registry::{self, ADAPTERS},
    smart::discovery::audience,
};

/// One fault: which key, what was given, what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} is {given:?}: expected {expected}")]
pub struct ProfileFault {
    /// Dotted, below the profile's table.
    pub key: String,
    pub given: String,
    pub expected: String,
}

/// All faults at once, for the configuration to report.
pub fn faults(profile: &Profile) -> Vec<ProfileFault> {
    let mut found = Vec::new();
    let mut fault = |key: String, given: &str, expected: String| {
        found.push(ProfileFault { key, given: given.to_owned(), expected });
    };
    if registry::adapter(&profile.adapter).is_none() {
        let names = ADAPTERS.iter().map(|adapter| adapter.name()).collect::<Vec<_>>().join(", ");
        fault("adapter".into(), &profile.adapter, format!("one of {names}"));
    }
    if profile.discovery.is_empty() {
        fault("discovery".into(), "[]", "at least one source".into());
    }
    let named = &profile.endpoints;
    if profile.discovery == [DiscoverySource::Configuration] && (named.authorize.is_none() || named.token.is_none()) {
        fault("discovery".into(), "configuration", "`endpoints.authorize` and `endpoints.token` beside it".into());
    }
    if audience(profile, "https://ehr.invalid/fhir").is_none() {
        fault("aud".into(), &profile.aud, "`base`, a URL, or a reference relative to the FHIR base".into());
    }
    issuer(profile, &mut fault);
    if profile.id_token.jwks != "discovery" && !is_https(&profile.id_token.jwks) {
        fault("id_token.jwks".into(), &profile.id_token.jwks, "`discovery` or an https URL".into());
    }
    for (set, headers) in [("headers.discovery", &profile.headers.discovery), ("headers.fhir", &profile.headers.fhir)] {
        for (name, value) in headers {
            let known = filled(value).is_some_and(|value| HeaderValue::from_str(&value).is_ok());
            if HeaderName::from_bytes(name.as_bytes()).is_err() || is_ours(name) {
                fault(
                    format!("{set}.{name}"),
                    name,
                    "the name of a header that the gateway does not set itself".into(),
                );
            } else if !known {
                fault(format!("{set}.{name}"), value, VALUE.into());
            }
        }
    }
    for (name, value) in &profile.query {
        if filled(value).is_none() {
            fault(format!("query.{name}"), value, VALUE.into());
        }
    }
    for (resource_type, fan_out) in &profile.fan_out {
        if fan_out.values.is_empty() || fan_out.parameter.is_empty() {
            fault(format!("fan_out.{resource_type}"), "", "a parameter and at least one value".into());
        }
    }
    for (name, rule) in &profile.errors {
        if rule.status.is_some_and(|status| !(200..600).contains(&status)) {
            let given = rule.status.map(|status| status.to_string()).unwrap_or_default();
            fault(format!("errors.{name}.status"), &given, "an HTTP status from 200 to 599".into());
        }
        if rule.status.is_none() && rule.error.is_none() && rule.contains.is_none() {
            // Such a rule would give every error one meaning.
            fault(format!("errors.{name}"), "", "at least one of `status`, `error` and `contains`".into());
        }
    }
    found
}

const VALUE: &str = "a text in which only `{client_id}` and `{tenant}` are in braces";

fn issuer(profile: &Profile, fault: &mut impl FnMut(String, &str, String)) {
    let given = &profile.id_token.issuer;
    let url = given
        .replace("{discovery}", "https://ehr.invalid/oauth")
        .replace("{authorize_base}", "https://ehr.invalid/oauth")
        .replace("{base}", "https://ehr.invalid/fhir");
    let stars = url.matches('*').count();
    let behind_path =
        url.split_once("://").and_then(|(_, rest)| rest.split_once('/')).is_some_and(|(host, _)| !host.contains('*'));
    let fits = given == "discovery"
        || (Url::parse(&url).is_ok_and(|url| matches!(url.scheme(), "https" | "http"))
            && !url.contains(['{', '}'])
            && (stars == 0 || (stars == 1 && behind_path)));
    if !fits {
        let expected = "`discovery`, or a URL with at most one `*`, behind its host; `{discovery}`, `{authorize_base}` and \
                        `{base}` may stand in it";
        fault("id_token.issuer".into(), given, expected.into());
    }
}

fn filled(value: &str) -> Option<String> {
    let filled = Placeholders { client_id: Some("x"), tenant: Some("x") }.fill(value)?;
    (!filled.contains(['{', '}'])).then(|| filled.into_owned())
}

/// Headers whose value decides who asks whom.
fn is_ours(name: &str) -> bool {
    ["authorization", "host", "content-length", "transfer-encoding", "connection", "cookie"]
        .iter()
        .any(|ours| ours.eq_ignore_ascii_case(name))
}

fn is_https(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "https" | "http") && url.has_host())
}
