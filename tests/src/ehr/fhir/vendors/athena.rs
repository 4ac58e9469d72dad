//! athenaOne (`vendors.md` §3 and B, athenaOne 1 and 7).

use http::{HeaderMap, StatusCode};
use serde_json::json;

use super::{complete, set};
use crate::ehr::fhir::{Asked, House, catalog::TypeRule, fault::Fault, ids::PRACTICE, reply::Reply, search::Question};

const PRACTICE_PREFIX: &str = "Organization/a-1.Practice-";

/// Recorded, but in no table of the vendor's that this project has: only the strict one insists.
const WITH_INTENT: &[&[&str]] = &[&["patient", "intent"], &["_id"]];

/// Reads and searches name the practice, with its slash as it is.
pub fn practice(asked: &Asked) -> Result<(), Fault> {
    let body = std::str::from_utf8(&asked.body).unwrap_or_default();
    let body = if asked.header("content-type").is_some_and(|media| media.contains("form")) { body } else { "" };
    let raw = asked
        .raw_query
        .split('&')
        .chain(body.split('&'))
        .find_map(|pair| pair.strip_prefix("ah-practice="))
        .ok_or_else(|| Fault::Practice("ah-practice is required".to_owned()))?;
    let Some(id) = raw.strip_prefix(PRACTICE_PREFIX) else {
        return Err(Fault::Practice("ah-practice must be Organization/a-1.Practice-{id}".to_owned()));
    };
    // How a token names its practice is the authorization server's affair; what counts is the number.
    let own = asked.access.tenant.as_deref().map(|tenant| tenant.rsplit(['-', '/']).next().unwrap_or(tenant));
    if id == PRACTICE && own.is_none_or(|own| own == id) { Ok(()) } else { Err(Fault::OtherPractice) }
}

pub fn examine(house: &House, rule: &TypeRule, question: &Question) -> Result<(), Fault> {
    let needs = if house.strict && rule.name == "MedicationRequest" { WITH_INTENT } else { rule.needs };
    if complete(question, needs) { Ok(()) } else { Err(Fault::Needs { ty: rule.name.to_owned(), combinations: needs }) }
}

pub fn fault(fault: &Fault) -> Reply {
    match fault {
        Fault::NoToken => Reply::text(StatusCode::UNAUTHORIZED, "text/plain", "Developer Inactive"),
        Fault::BadToken => Reply::outcome(
            StatusCode::UNAUTHORIZED,
            vec![json!({"details": {"text": "Invalid Access Token"}, "severity": "fatal", "code": "login"})],
        )
        .with("www-authenticate", "Bearer error=\"invalid_token\""),
        Fault::NoScope(ty) | Fault::Hidden { ty, .. } => forbidden("Invalid Token Scope", std::slice::from_ref(ty)),
        Fault::Refused => forbidden("Invalid Token Scope", &["patient".to_owned()]),
        Fault::OtherPractice => forbidden("Invalid Token Scope", &["ah-practice".to_owned()]),
        Fault::Practice(reason) => Reply::outcome(
            StatusCode::BAD_REQUEST,
            vec![
                json!({"details": {"text": reason}, "expression": ["ah-practice"], "severity": "fatal", "code": "required"}),
            ],
        ),
        // A string where JSON was promised.
        Fault::UnknownPath | Fault::UnknownType(_) | Fault::Unsupported(_) => Reply::text(
            StatusCode::NOT_FOUND,
            "application/json; charset=utf-8",
            "Service not registered with API gateway.",
        ),
        Fault::Needs { combinations, .. } => {
            let each: Vec<String> = combinations.iter().map(|names| names.join(",")).collect();
            let list: Vec<String> = each.iter().map(|names| format!("[{names}]")).collect();
            let text = format!(
                "The search query could not be performed because one of the required parameter combinations [{}] was not provided.",
                list.join(",")
            );
            forbidden(&text, &each)
        }
        other => super::generic::fault(other),
    }
}

/// As recorded, members in its order.
fn forbidden(text: &str, expression: &[String]) -> Reply {
    let body = json!({
        "issue": [{"details": {"text": text}, "expression": expression, "severity": "fatal", "code": "forbidden"}],
        "resourceType": "OperationOutcome",
    });
    Reply::fhir(StatusCode::FORBIDDEN, body)
}

/// As recorded, misspelt header and all.
pub fn headers(headers: &mut HeaderMap, serial: u64) {
    let id = format!("rrt-9075210155180537409-d-gea1-2255941-47427034-{serial}");
    set(headers, "cache-control", "no-cache, no-store, must-revalidate");
    set(headers, "expires", "0");
    set(headers, "nncoection", "close");
    set(headers, "pragma", "no-cache");
    set(headers, "ratelimit-limit", "500");
    set(headers, "ratelimit-remaining", &(499 - serial % 500).to_string());
    set(headers, "ratelimit-reset", "1");
    set(headers, "server", "Apache");
    set(headers, "strict-transport-security", "max-age=31536000; includeSubDomains");
    set(headers, "vary", "Accept-Encoding, Origin");
    set(headers, "x-athenanet-practice-id", PRACTICE);
    set(headers, "x-content-type-options", "nosniff");
    set(headers, "x-frame-options", "DENY");
    set(headers, "x-request-id", &id);
    set(headers, "x-athena-request-id", &id);
}
