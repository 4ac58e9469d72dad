//! Oracle Health (Cerner Millennium). <https://fhir.cerner.com/authorization/>,
//! <https://fhir.cerner.com/millennium/overview/>.

use url::Url;

use crate::{
    adapter::{Adapter, AnswerKind, FhirAnswer, NormalisedError, Severity, VendorCode},
    profile::{Dialect, Profile},
    smart::discovery::{EndpointName, Endpoints},
};

pub struct Oracle;

impl Adapter for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
    }

    /// Discovery announces `…/profiles/smart-v1/…` to all, yet an app that was registered for v2 scopes
    /// has another path, and hears `unknown-tenant` on this one. The dialect says which app it is.
    fn amend_endpoints(&self, mut endpoints: Endpoints, profile: &Profile) -> Endpoints {
        let version = match profile.scopes.dialect {
            Dialect::V1 | Dialect::V1Lowercase => "smart-v1",
            Dialect::V2 => "smart-v2",
        };
        if !endpoints.overridden.contains(&EndpointName::Authorize) {
            set_version(&mut endpoints.authorize, version);
        }
        if !endpoints.overridden.contains(&EndpointName::Token) && set_version(&mut endpoints.token, version) {
            endpoints.token_audience = endpoints.token.to_string();
        }
        endpoints
    }

    fn amend_error(&self, answer: &FhirAnswer<'_>, error: &mut NormalisedError) {
        let reason = error.diagnostics.clone();
        for name in ["code", "subcode"] {
            error.vendor_codes.extend(quoted(&reason, name).map(|code| VendorCode {
                system: None,
                code: code.to_owned(),
                display: None,
            }));
        }
        match (answer.status, error.kind) {
            (_, AnswerKind::Html) => {}
            (403, AnswerKind::Json) if reason.contains("insufficient_scope") => {
                error.tell(403, "forbidden", "The scopes that Oracle Health granted do not cover this request");
            }
            (401, AnswerKind::Json) => {
                error.tell(401, "login", "Oracle Health does not accept the token of this grant")
            }
            // Oracle says 409 for an outdated version where FHIR R4 says 412.
            (409, AnswerKind::Empty) => {
                error.tell(412, "conflict", "The resource was changed meanwhile: If-Match names an old version")
            }
            // A record or request that breaks a rule; trying again is useless, and 5xx would invite it.
            (500, AnswerKind::Outcome) if is_rule(error) => error.status = 422,
            _ => {}
        }
    }
}

/// Whether the version stood there and was changed.
fn set_version(url: &mut Url, version: &str) -> bool {
    let Some(path) = ["/profiles/smart-v1/", "/profiles/smart-v2/"]
        .iter()
        .find(|announced| url.path().contains(*announced))
        .map(|announced| url.path().replacen(announced, &format!("/profiles/{version}/"), 1))
    else {
        return false;
    };
    let changed = path != url.path();
    url.set_path(&path);
    changed
}

fn is_rule(error: &NormalisedError) -> bool {
    let codes =
        ["required", "value", "structure", "invariant", "invalid", "business-rule", "extension", "code-invalid"];
    error.issues.iter().any(|issue| issue.severity <= Severity::Error && codes.contains(&issue.code))
}

/// The value of `name="…"` in the message of an Oracle error.
fn quoted<'a>(message: &'a str, name: &str) -> Option<&'a str> {
    let start = format!("{name}=\"");
    let at = message.match_indices(&start).find(|(at, _)| {
        let before = message.get(..*at).and_then(|before| before.chars().next_back());
        before.is_none_or(|before| !before.is_ascii_alphanumeric())
    })?;
    message.get(at.0 + start.len()..)?.split('"').next().filter(|value| !value.is_empty())
}
