//! The only place that makes a response of an [`Error`], in the form that the reader understands.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use crate::error::{Error, Kind};

fn codes(kind: Kind) -> (StatusCode, &'static str) {
    let (status, code) = kind.codes();
    (StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), code)
}

/// For the FHIR road: an OperationOutcome. `token_came`: RFC 6750 §3 names the error only then.
pub fn outcome(error: &Error, request_id: &str, token_came: bool) -> Response<Bytes> {
    let (status, code) = codes(error.kind);
    let body = serde_json::json!({
        "resourceType": "OperationOutcome",
        "id": request_id,
        "issue": [{
            "severity": "error",
            "code": code,
            "details": { "text": error.public },
            "diagnostics": format!("Answered by the gateway; request {request_id}, at fault: {}.", error.side.text()),
        }],
    });
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/fhir+json; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    challenge(headers, error.kind, token_came);
    retry_after(headers, error);
    response
}

/// For the roads of the authorization server, where it does not answer itself: in OAuth's form, which its
/// clients read (RFC 6749 §5.2).
pub fn plain(error: &Error, request_id: &str) -> Response<Bytes> {
    let (status, _) = codes(error.kind);
    let code = match status.as_u16() {
        429 | 503 | 504 => "temporarily_unavailable",
        500.. => "server_error",
        _ => "invalid_request",
    };
    let body = serde_json::json!({ "error": code, "error_description": error.public, "request_id": request_id });
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    retry_after(response.headers_mut(), error);
    response
}

fn challenge(headers: &mut http::HeaderMap, kind: Kind, token_came: bool) {
    let value = match (kind, token_came) {
        (Kind::Unauthenticated | Kind::GrantEnded, true) => "Bearer error=\"invalid_token\"",
        (Kind::Unauthenticated | Kind::GrantEnded, false) => "Bearer",
        (Kind::Forbidden, _) => "Bearer error=\"insufficient_scope\"",
        _ => return,
    };
    headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(value));
}

fn retry_after(headers: &mut http::HeaderMap, error: &Error) {
    if let Some(after) = error.retry_after {
        // Rounded up: a client that waits exactly so long must not come too early.
        headers.insert(
            header::RETRY_AFTER,
            HeaderValue::from(after.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)),
        );
    }
}
