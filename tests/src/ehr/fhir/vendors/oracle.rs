//! Oracle Health (`vendors.md` §2 and B, Oracle 8–10).

use http::{HeaderMap, StatusCode};
use serde_json::json;

use super::{complete, named, set};
use crate::ehr::fhir::{
    Asked, House, access::Need, catalog::TypeRule, date::Prefix, fault::Fault, ids, params, reply::Reply,
    search::Question,
};

pub fn examine(house: &House, asked: &Asked, rule: &TypeRule, question: &mut Question) -> Result<(), Fault> {
    // `_include` is for Consent and Slot, neither of which is here.
    question.includes.clear();
    if question.revincludes.iter().any(|text| text == "Provenance:target")
        && asked.access.permit("Provenance", Need::Read).is_none()
    {
        return Err(Fault::NoScope("Provenance".to_owned()));
    }
    named(house, question)?;
    if !complete(question, rule.needs) {
        return Err(Fault::Needs { ty: rule.name.to_owned(), combinations: rule.needs });
    }
    if rule.name == "Observation" && !question.has("_id") && !question.has("category") && !question.has("code") {
        // Since 2026, "like Epic".
        return Err(Fault::Issues(
            StatusCode::BAD_REQUEST,
            vec![json!({
                "severity": "fatal",
                "code": "required",
                "diagnostics": "Must have either code or category.",
                "location": ["/f:code/category"],
            })],
        ));
    }
    if question.has("date") && question.has("_lastUpdated") {
        return Err(Fault::Parameter {
            name: "date".to_owned(),
            reason: "date and _lastUpdated exclude each other".to_owned(),
        });
    }
    for name in ["date", "_lastUpdated"] {
        let values: Vec<String> = question.values(name).flat_map(params::alternatives).collect();
        let bare = values.iter().any(|value| Prefix::split(value).1 == value);
        if values.len() > 2 || (values.len() == 2 && bare) {
            return Err(Fault::Parameter {
                name: name.to_owned(),
                reason: "may be given once, or twice with prefixes".to_owned(),
            });
        }
    }
    Ok(())
}

pub fn fault(house: &House, fault: &Fault) -> Reply {
    let json = |status, text: &str| Reply::text(status, "application/json", text);
    let realm = house.host();
    match fault {
        Fault::NoToken => json(
            StatusCode::UNAUTHORIZED,
            r#"{"code":401,"message":"code=\"urn:cerner:error:oauth2:resource-access:token-required\""}"#,
        )
        .with("www-authenticate", format!("Bearer realm=\"{realm}\""))
        .without_cors(),
        Fault::BadToken => {
            let challenge = format!("Bearer realm=\"{realm}\", error=\"invalid_token\"");
            Reply::outcome(
                StatusCode::UNAUTHORIZED,
                vec![json!({
                    "severity": "error",
                    "code": "login",
                    "diagnostics": challenge,
                    "location": ["http.Authorization"],
                })],
            )
            .with("www-authenticate", challenge)
            .without_cors()
        }
        Fault::NoScope(_) => json(
            StatusCode::FORBIDDEN,
            r#"{"code":403,"message":"code=\"urn:cerner:error:oauth2:resource-access:insufficient-scopes\", error=\"insufficient_scope\", subcode=\"no_scope_for_resource_path\""}"#,
        ),
        Fault::Hidden { .. } | Fault::Refused => {
            Reply::outcome(StatusCode::FORBIDDEN, vec![json!({"severity": "error", "code": "forbidden"})])
        }
        Fault::Needs { .. } => {
            Reply::text(StatusCode::BAD_REQUEST, "text/plain", "no supported search parameters provided")
        }
        Fault::Unacceptable => Reply::empty(StatusCode::NOT_ACCEPTABLE),
        Fault::Stale => Reply::empty(StatusCode::CONFLICT),
        Fault::MatchWanted => Reply::empty(StatusCode::PRECONDITION_FAILED),
        Fault::ModifierExtension(ty) => Reply::outcome(
            StatusCode::UNPROCESSABLE_ENTITY,
            vec![
                json!({"severity": "error", "code": "extension", "location": [format!("/f:{ty}/f:modifierExtension")]}),
            ],
        ),
        // A bad record, though it is the server that says it failed: trying again is useless.
        Fault::Required { ty, element } => Reply::outcome(
            StatusCode::INTERNAL_SERVER_ERROR,
            vec![json!({"severity": "fatal", "code": "required", "location": [format!("/f:{ty}/f:{element}")]})],
        ),
        Fault::TooMany => Reply::outcome(
            StatusCode::UNPROCESSABLE_ENTITY,
            vec![json!({"severity": "error", "code": "too-costly", "diagnostics": "more than 1,000 patients"})],
        ),
        other => super::generic::fault(other),
    }
}

pub fn other_tenant() -> Reply {
    Reply::text(StatusCode::FORBIDDEN, "text/plain", "Tenant not valid or accessible")
}

/// By turns.
pub const fn media(serial: u64) -> &'static str {
    if serial.is_multiple_of(2) { "application/json+fhir" } else { "application/fhir+json" }
}

pub fn headers(headers: &mut HeaderMap, serial: u64) {
    let id = ids::uuid(&format!("oracle/{serial}"));
    set(headers, "access-control-allow-origin", "*");
    set(
        headers,
        "access-control-expose-headers",
        "ETag, Content-Location, Location, X-Request-Id, WWW-Authenticate, Date",
    );
    set(headers, "cache-control", "no-cache");
    set(headers, "vary", "Origin,User-Agent,Accept-Encoding");
    set(headers, "x-request-id", &id);
    set(headers, "opc-request-id", &format!("/{}/{}", id.replace('-', "").to_uppercase(), serial));
}
