//! Cross-origin answers. Discovery is for any origin; tokens and FHIR for registered ones, echoed.
//! Errors carry the headers too: a browser app must see *why* it was refused (conformance A12, E26).

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};

/// Who may read an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Public documents.
    Anyone,
    /// Origins that some app has registered.
    Registered,
    /// No script: pages.
    Nobody,
}

const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS");
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "Authorization, Content-Type, Accept, If-Match, If-None-Match, If-Modified-Since, If-None-Exist, Prefer, X-Request-Id, Traceparent",
);
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "ETag, Location, Content-Location, Last-Modified, WWW-Authenticate, Retry-After, X-Request-Id, X-Correlation-Id",
);

/// Whether this is a preflight: answered without authentication.
pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer to a preflight.
pub fn preflight<B: Default>(readers: Readers, origin: Option<&HeaderValue>, known: bool) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if add(response.headers_mut(), readers, origin, known) {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
    response
}

/// Adds what a browser needs to show the answer to a script; whether it may.
pub fn add(headers: &mut HeaderMap, readers: Readers, origin: Option<&HeaderValue>, known: bool) -> bool {
    match (readers, origin) {
        (Readers::Nobody, _) => false,
        (Readers::Anyone, _) => {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
            true
        }
        (Readers::Registered, origin) => {
            // The answer differs by origin even where none came: caches must know.
            vary(headers, "Origin");
            let Some(origin) = origin.filter(|_| known) else { return false };
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
            true
        }
    }
}

/// Adds a name to `Vary`, once.
pub fn vary(headers: &mut HeaderMap, name: &'static str) {
    let there = headers
        .get_all(header::VARY)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|one| one.trim().eq_ignore_ascii_case(name));
    if !there {
        headers.append(header::VARY, HeaderValue::from_static(name));
    }
}
