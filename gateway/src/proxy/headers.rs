//! Allow-lists both ways (`guard.md`, "Headers, parameters, caches"): what is not named here does not pass.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{self, ACCEPT},
};
use mantel_adapters::fhir::rewrite::Bases;

use crate::error::{Error, Kind, Result};

/// What an app's request brings to an EHR. `Authorization` is the EHR's own, `Content-Length` the client's.
const UP: [HeaderName; 10] = [
    header::ACCEPT,
    header::ACCEPT_LANGUAGE,
    header::CONTENT_TYPE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    HeaderName::from_static("if-none-exist"),
    HeaderName::from_static("prefer"),
    HeaderName::from_static("traceparent"),
];

/// What an EHR's answer brings to an app as it is; URLs are moved in three more.
const DOWN: [HeaderName; 6] = [
    header::CONTENT_LANGUAGE,
    header::CONTENT_DISPOSITION,
    header::ETAG,
    header::LAST_MODIFIED,
    HeaderName::from_static("preference-applied"),
    HeaderName::from_static("x-progress"),
];

/// Marks an answer that is not byte for byte the EHR's (FHIR R4, "Intermediaries").
const INTERMEDIARY: HeaderName = HeaderName::from_static("x-intermediary");

pub(super) const FHIR_JSON: HeaderValue = HeaderValue::from_static("application/fhir+json");
pub(super) const FHIR_XML: HeaderValue = HeaderValue::from_static("application/fhir+xml");
pub(super) const FHIR_JSON_UTF8: HeaderValue = HeaderValue::from_static("application/fhir+json; charset=utf-8");

/// The app's headers that may go up.
pub(super) fn up(given: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in UP {
        // One that stands twice could be read differently by the judge and by the EHR.
        let mut values = given.get_all(&name).iter();
        if let (Some(value), None) = (values.next(), values.next()) {
            kept.insert(name, value.clone());
        }
    }
    kept
}

/// What an answer is to be written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Json,
    Xml,
    /// A Binary in its own type.
    Raw,
}

/// What the app asks for; `_format` beats `Accept` (FHIR R4, http.html) and is taken out of the query.
///
/// # Errors
/// 406 where none of what it takes is spoken here.
pub(super) fn wanted(query: &mut Vec<(String, String)>, headers: &HeaderMap, is_binary: bool) -> Result<Wanted> {
    let format = query.iter().find(|(name, _)| name == "_format").map(|(_, value)| value.clone());
    query.retain(|(name, _)| name != "_format");
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let Some(text) = format.as_deref().or(accept) else { return Ok(Wanted::Json) };
    let (mut json, mut xml, mut any) = (false, false, false);
    for range in text.split(',') {
        // A plus in a query is a blank: `_format=application/fhir+json` comes so from many clients.
        let essence = range.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().replace(' ', "+");
        match essence.as_str() {
            "json"
            | "application/json"
            | "application/fhir+json"
            | "application/json+fhir"
            | "text/json"
            | "application/fhir+ndjson"
            | "application/ndjson" => json = true,
            "xml" | "application/xml" | "application/fhir+xml" | "application/xml+fhir" | "text/xml" => xml = true,
            "*/*" | "application/*" => any = true,
            _ => {}
        }
    }
    match (json || any, xml) {
        (true, _) => Ok(Wanted::Json),
        (false, true) => Ok(Wanted::Xml),
        (false, false) if is_binary => Ok(Wanted::Raw),
        (false, false) => Err(Error::app(
            Kind::NotAcceptable,
            "None of the formats in `_format` or Accept is served here: expected application/fhir+json or application/fhir+xml.",
        )),
    }
}

/// Sets `Accept` as it goes up. For JSON the profile has its word first, and [`FHIR_JSON`] is the default.
pub(super) fn set_accept(headers: &mut HeaderMap, wanted: Wanted, by_parameter: Option<HeaderValue>) {
    match (wanted, by_parameter) {
        (Wanted::Json, _) => {
            headers.remove(ACCEPT);
        }
        (Wanted::Xml, _) => {
            headers.insert(ACCEPT, FHIR_XML);
        }
        (Wanted::Raw, Some(value)) => {
            headers.insert(ACCEPT, value);
        }
        (Wanted::Raw, None) => {}
    }
}

/// The headers of the app's answer but for `Content-Type`.
pub(super) fn down(given: &HeaderMap, bases: &Bases, altered: bool) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in DOWN {
        if let Some(value) = given.get(&name) {
            kept.insert(name, value.clone());
        }
    }
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        move_url(given, &name, &mut kept, |text| bases.rewrite_location(text).into_owned());
    }
    move_url(given, &header::LINK, &mut kept, |text| bases.rewrite_link_header(text).into_owned());
    if altered {
        kept.insert(INTERMEDIARY, HeaderValue::from_static("mantel"));
    }
    kept
}

fn move_url(given: &HeaderMap, name: &HeaderName, kept: &mut HeaderMap, moved: impl Fn(&str) -> String) {
    // What is no text holds no URL of the EHR that could be moved, so it does not pass.
    for value in given.get_all(name) {
        if let Some(value) = value.to_str().ok().and_then(|text| HeaderValue::from_str(&moved(text)).ok()) {
            kept.append(name, value);
        }
    }
}
