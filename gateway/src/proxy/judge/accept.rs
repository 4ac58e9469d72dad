//! Makes a request whose answer can be inspected: whole resources, in JSON, never "not modified".

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{ACCEPT, IF_MODIFIED_SINCE, IF_NONE_MATCH},
};
use mantel_adapters::fhir::interaction::Request;

use super::refusal::forbidden;
use crate::error::{Error, Kind, Result};

const FHIR_JSON: HeaderValue = HeaderValue::from_static("application/fhir+json");
const PREFER: HeaderName = HeaderName::from_static("prefer");

/// # Errors
/// Where the app takes no JSON, or asks for a count of what it may not see.
pub(super) fn make_inspectable(request: &mut Request) -> Result<()> {
    let by_format = take_format(&mut request.query)?;
    shape(&mut request.query)?;
    if by_format {
        request.headers.remove(ACCEPT);
    }
    make_whole(request)
}

/// The same for a URL that only the EHR understands: its parameters stay as they are.
///
/// # Errors
/// Where the app takes no JSON.
pub(super) fn make_whole(request: &mut Request) -> Result<()> {
    // A 304, and the length of a HEAD, tell of the content that the verdict is about.
    if matches!(request.method, Method::GET | Method::HEAD) {
        request.headers.remove(IF_NONE_MATCH);
        request.headers.remove(IF_MODIFIED_SINCE);
        request.method = Method::GET;
    }
    force_json(&mut request.headers)
}

/// Takes out what would make an answer less than its resources.
///
/// # Errors
/// `_summary=count`.
pub(super) fn shape(parameters: &mut Vec<(String, String)>) -> Result<()> {
    let name = |name: &str| name.split([':', '.']).next().unwrap_or_default().to_ascii_lowercase();
    if parameters.iter().any(|(given, value)| name(given) == "_summary" && value.eq_ignore_ascii_case("count")) {
        return Err(forbidden(
            "_summary=count would count what this token does not cover: search for the resources themselves.",
        ));
    }
    parameters.retain(|(given, _)| !matches!(name(given).as_str(), "_elements" | "_summary" | "_total"));
    Ok(())
}

/// Takes `_format` out; tells whether it asked for JSON.
///
/// # Errors
/// It asks for anything else.
pub(super) fn take_format(parameters: &mut Vec<(String, String)>) -> Result<bool> {
    let is_format = |name: &str| name.eq_ignore_ascii_case("_format");
    let mut formats = parameters.iter().filter(|(name, _)| is_format(name)).peekable();
    let given = formats.peek().is_some();
    // A plus in a query is a blank: `_format=application/fhir+json` comes so from many clients.
    if formats.any(|(_, value)| !is_json(&value.replace(' ', "+"))) {
        return Err(not_acceptable());
    }
    parameters.retain(|(name, _)| !is_format(name));
    Ok(given)
}

/// # Errors
/// `Accept` names no JSON.
pub(super) fn force_json(headers: &mut HeaderMap) -> Result<()> {
    let accepts = |value: &HeaderValue| value.to_str().is_ok_and(|text| text.split(',').any(accepts_json));
    let mut given = headers.get_all(ACCEPT).iter().peekable();
    if given.peek().is_some() && !given.any(accepts) {
        return Err(not_acceptable());
    }
    headers.insert(ACCEPT, FHIR_JSON);
    // An asynchronous answer would come at a URL of its own, past the inspection.
    let is_async = |value: &HeaderValue| value.to_str().is_ok_and(|text| text.contains("respond-async"));
    if headers.get_all(PREFER).iter().any(is_async) {
        headers.remove(PREFER);
    }
    Ok(())
}

fn accepts_json(range: &str) -> bool {
    let mut parts = range.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default();
    let refused = parts.filter_map(|part| part.strip_prefix("q=")).any(|q| q.parse().is_ok_and(|q: f32| q <= 0.0));
    !refused && (is_json(essence) || matches!(essence, "*/*" | "application/*"))
}

fn is_json(text: &str) -> bool {
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    matches!(
        essence.as_str(),
        "json" | "application/json" | "application/fhir+json" | "application/json+fhir" | "text/json"
    )
}

fn not_acceptable() -> Error {
    Error::app(
        Kind::NotAcceptable,
        "What this token covers is checked resource by resource, which is done in JSON: ask for application/fhir+json.",
    )
}
