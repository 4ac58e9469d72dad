//! Epic (`vendors.md` §1 and B, Epic 7–10).

use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};

use super::{complete, named, set};
use crate::ehr::fhir::{
    Asked, House,
    catalog::TypeRule,
    compartment,
    fault::Fault,
    params,
    reply::{Body, Reply},
    search::Question,
};

/// Epic's own code system, with its organization and environment.
const CODES: &str = "urn:oid:1.2.840.114350.1.13.0.1.7.2.657369";

/// The categories an Observation search can ask for.
const OBSERVATION_CATEGORIES: [&str; 15] = [
    "laboratory",
    "vital-signs",
    "social-history",
    "core-characteristics",
    "LDA",
    "LDA-property",
    "LDA-assessment",
    "functional-mental-status",
    "periodontal",
    "labor-delivery",
    "newborn-delivery",
    "obstetrics-gynecology",
    "survey",
    "sdoh",
    "imaging",
];

/// As recorded; an IIS page, whatever was asked.
const NOT_FOUND_PAGE: &str = "<!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0 Strict//EN\" \"http://www.w3.org/TR/xhtml1/DTD/xhtml1-strict.dtd\">\r\n<html xmlns=\"http://www.w3.org/1999/xhtml\">\r\n<head>\r\n<meta http-equiv=\"Content-Type\" content=\"text/html; charset=iso-8859-1\"/>\r\n<title>404 - File or directory not found.</title>\r\n</head>\r\n<body>\r\n<h1>Server Error</h1>\r\n<h2>404 - File or directory not found.</h2>\r\n<h3>The resource you are looking for might have been removed, had its name changed, or is temporarily unavailable.</h3>\r\n</body>\r\n</html>\r\n";

fn issue(severity: &str, code: &str, number: &str, text: &str) -> Value {
    json!({
        "severity": severity,
        "code": code,
        "details": {"coding": [{"system": CODES, "code": number, "display": text}], "text": text},
    })
}

fn with(mut issue: Value, diagnostics: &str, element: Option<&str>) -> Value {
    if let Some(members) = issue.as_object_mut() {
        members.insert("diagnostics".to_owned(), json!(diagnostics));
        if let Some(element) = element {
            members.insert("location".to_owned(), json!([format!("/f:{element}")]));
            members.insert("expression".to_owned(), json!([element]));
        }
    }
    issue
}

fn bad(issues: Vec<Value>) -> Fault {
    Fault::Issues(StatusCode::BAD_REQUEST, issues)
}

/// 59108, as recorded for Observation.
pub fn required(diagnostics: &str, element: &str) -> Fault {
    bad(vec![with(issue("fatal", "required", "59108", "A required element is missing."), diagnostics, Some(element))])
}

/// 59100, as recorded: the name in capitals.
pub fn unknown_parameter(name: &str) -> Value {
    let diagnostics = format!("Unknown parameter: {}. Parameter has been ignored.", name.to_uppercase());
    let text = "Content invalid against the specification or a profile.";
    with(issue("information", "invalid", "59100", text), &diagnostics, None)
}

pub fn examine(house: &House, rule: &TypeRule, question: &mut Question) -> Result<(), Fault> {
    if rule.name == "Patient" && question.unknown.iter().any(|name| super::super::search::bare(name) == "patient") {
        let missing = issue("fatal", "required", "59108", "A required element is missing.");
        return Err(bad(vec![
            unknown_parameter("patient"),
            with(missing, "Not enough information to match a patient.", Some("patient")),
        ]));
    }
    named(house, question)?;
    if question.has("_id") {
        // With `_id` only `_count` and the includes count; the rest is void, even `patient`.
        question.criteria.retain(|(name, _)| name == "_id");
        question.pairs.retain(|(name, _)| matches!(name.as_str(), "_id" | "_count" | "_include" | "_revinclude"));
        question.unknown.clear();
        return Ok(());
    }
    if !complete(question, rule.needs) {
        let element = if rule.name == "Patient" { "_id" } else { "patient" };
        let diagnostics = match rule.name {
            "Patient" => "Not enough information to match a patient.",
            _ => "Must have a patient.",
        };
        return Err(required(diagnostics, element));
    }
    match rule.name {
        "Observation" => observation(question),
        // Recorded in 2024, but told by no table of the vendor's: only the strict one insists.
        "CarePlan" if house.strict && !question.has("category") => {
            let text = "The content/operation failed to pass a business rule, and so could not proceed.";
            let diagnostics = "This resource requires a category for searching. Use 38717003 for longitudinal, 734163000 for encounter, 736271009 for outpatient, 736353004 for inpatient, 738906000 for dental, 736378000 for oncology, 719091000000102 for questionnaires due, 959871000000107 for anticoagulation, inpatient-pathway for inpatient pathway, 409073007 for education, or care-path for Care Path.";
            Err(bad(vec![with(issue("fatal", "business-rule", "59159", text), diagnostics, Some("category"))]))
        }
        _ => Ok(()),
    }
}

fn observation(question: &mut Question) -> Result<(), Fault> {
    if !question.has("category") && !question.has("code") {
        return Err(required("Must have either code or category.", "code/category"));
    }
    let asked: Vec<String> = question.values("category").flat_map(params::alternatives).collect();
    let text = "An element value is invalid.";
    let wrong: Vec<Value> = asked
        .iter()
        .map(|value| value.rsplit('|').next().unwrap_or(value))
        .filter(|code| !OBSERVATION_CATEGORIES.contains(code))
        .map(|code| {
            with(issue("information", "value", "59109", text), &format!("Invalid category: {code}"), Some("category"))
        })
        .collect();
    if !asked.is_empty() && wrong.len() == asked.len() {
        let fatal = with(
            issue("fatal", "value", "59111", text),
            "Required search parameter is provided but has an invalid value",
            Some("category"),
        );
        return Err(bad(wrong.into_iter().chain([fatal]).collect()));
    }
    question.notes.extend(wrong);
    Ok(())
}

/// 4101 when nothing was found, and 4119 on every answer about a patient.
pub fn notes(question: &Question, found: usize) -> Vec<Value> {
    let mut notes = question.notes.clone();
    if found == 0 {
        notes.push(issue("warning", "processing", "4101", "Resource request returns no results."));
    }
    if !compartment::is_shared(&question.ty) {
        let text = "This response includes information available to the authorized user at the time of the request. It may not contain the entire record available in the system.";
        notes.push(issue("warning", "processing", "4119", text));
    }
    notes
}

pub fn fault(house: &House, fault: &Fault) -> Reply {
    let fatal = |status, code, number, text| Reply::outcome(status, vec![issue("fatal", code, number, text)]);
    match fault {
        Fault::NoToken => Reply::empty(StatusCode::UNAUTHORIZED).with("www-authenticate", "Bearer"),
        Fault::BadToken => {
            Reply::empty(StatusCode::UNAUTHORIZED).with("www-authenticate", "Bearer error=\"invalid_token\"")
        }
        Fault::NoScope(_) => Reply::empty(StatusCode::FORBIDDEN).with(
            "www-authenticate",
            "Bearer error=\"insufficient_scope\", error_description=\"The access token provided is valid, but is not authorized for this service\"",
        ),
        Fault::Hidden { .. } | Fault::Refused => fatal(
            StatusCode::FORBIDDEN,
            "processing",
            "4118",
            "The authenticated user is not authorized to view the requested data.",
        ),
        Fault::UnknownPath | Fault::UnknownType(_) | Fault::Unsupported(_) => {
            Reply::text(StatusCode::NOT_FOUND, "text/html", NOT_FOUND_PAGE)
        }
        Fault::NotFound { .. } => {
            fatal(StatusCode::NOT_FOUND, "not-found", "4102", "The read resource request contained an invalid ID.")
        }
        Fault::Gone { .. } => {
            fatal(StatusCode::GONE, "not-found", "4103", "The resource requested has been deleted")
        }
        Fault::Merged { into } => {
            fatal(StatusCode::MOVED_PERMANENTLY, "processing", "4107", "The resource requested has been merged.")
                .with("location", format!("{}/Patient/{into}", house.base))
        }
        Fault::PageGone(_) => fatal(
            StatusCode::BAD_REQUEST,
            "processing",
            "4113",
            "Session ID for cached search results has expired.",
        ),
        Fault::TooMany => {
            fatal(StatusCode::BAD_REQUEST, "too-costly", "4127", "The request is about more than 100 patients.")
        }
        Fault::Parameter { name, reason } => Reply::outcome(
            StatusCode::BAD_REQUEST,
            vec![with(issue("fatal", "value", "4115", "A parameter value is invalid."), reason, Some(name))],
        ),
        Fault::Required { element, .. } => Reply::outcome(
            StatusCode::BAD_REQUEST,
            vec![with(issue("fatal", "required", "59108", "A required element is missing."), "", Some(element))],
        ),
        Fault::Malformed(reason) | Fault::Invalid(reason) => Reply::outcome(
            StatusCode::BAD_REQUEST,
            vec![with(issue("fatal", "invalid", "59111", "An element value is invalid."), reason, None)],
        ),
        Fault::Issues(status, issues) => Reply::outcome(*status, issues.clone()),
        Fault::Unacceptable => Reply::empty(StatusCode::NOT_ACCEPTABLE),
        Fault::MediaType => Reply::empty(StatusCode::UNSUPPORTED_MEDIA_TYPE),
        other => super::generic::fault(other),
    }
}

/// Epic answers with the spelling of the media type that it was asked with.
pub fn media(asked: &Asked) -> &'static str {
    let old = asked.header(header::ACCEPT.as_str()).is_some_and(|accept| accept.contains("json+fhir"));
    if old { "application/json+fhir; charset=utf-8" } else { "application/fhir+json; charset=utf-8" }
}

/// As recorded on ordinary answers of fhir.epic.com.
pub fn headers(headers: &mut HeaderMap) {
    set(headers, "access-control-allow-credentials", "true");
    set(
        headers,
        "access-control-allow-headers",
        "origin, authorization, accept, content-type, x-requested-with, prefer, Epic-User-ID, Epic-User-IDType, Epic-Client-ID, soapaction, Epic-MyChartUser-ID, Epic-MyChartUser-IDType",
    );
    set(headers, "access-control-allow-methods", "GET, HEAD, POST, PUT, DELETE, TRACE, OPTIONS");
    set(headers, "access-control-allow-origin", "*");
    set(headers, "cache-control", "no-cache,no-store");
    set(headers, "expires", "-1");
    set(headers, "pragma", "no-cache");
    set(headers, "strict-transport-security", "max-age=31536000; includeSubDomains");
    set(headers, "set-cookie", "EpicPersistenceCookie=placeholder; path=/; Httponly; Secure");
}

/// `/metadata` when JSON was not asked for.
pub fn metadata_xml(house: &House) -> Reply {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><CapabilityStatement xmlns=\"http://hl7.org/fhir\"><status value=\"active\"/><date value=\"2026-07-24T20:25:44Z\"/><kind value=\"instance\"/><software><name value=\"Epic\"/><version value=\"May 2026\"/></software><implementation><description value=\"\"/><url value=\"{}\"/></implementation><fhirVersion value=\"4.0.1\"/><format value=\"xml\"/><format value=\"json\"/><rest><mode value=\"server\"/></rest></CapabilityStatement>",
        house.base
    );
    Reply::new(StatusCode::OK, Body::Other(Some("application/fhir+xml; charset=utf-8".to_owned()), text.into()))
}
