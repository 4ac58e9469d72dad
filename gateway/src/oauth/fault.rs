//! Faults of the authorization server, in the form that their reader understands: JSON for a client
//! (RFC 6749 §5.2), a page for a person, a redirect for an app whose request was good enough to trust
//! its redirect URI (§4.1.2.1).

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

pub use mantel_adapters::smart::error::OAuthErrorCode as Code;
pub(super) use mantel_adapters::smart::error::description;

use super::pages;
use crate::store::StoreError;

/// An error for a client, as JSON.
#[derive(Debug)]
pub struct JsonFault {
    pub code: Code,
    pub description: String,
    pub status: StatusCode,
    pub retry_after: Option<Duration>,
    /// Set where Basic was tried (RFC 6749 §5.2).
    pub basic_challenge: bool,
    /// For the log; nothing that guard.md forbids.
    pub internal: Option<String>,
}

impl JsonFault {
    pub fn new(code: Code, description: impl Into<String>) -> Self {
        let status = match code {
            Code::InvalidClient => StatusCode::UNAUTHORIZED,
            Code::ServerError => StatusCode::INTERNAL_SERVER_ERROR,
            Code::TemporarilyUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        };
        Self {
            code,
            description: description.into(),
            status,
            retry_after: None,
            basic_challenge: false,
            internal: None,
        }
    }

    /// Our trouble is never the user's: 503, and the client keeps what it has (`pains.md` 5).
    pub fn unavailable(internal: impl std::fmt::Display, after: Duration) -> Self {
        Self {
            retry_after: Some(after),
            internal: Some(internal.to_string()),
            ..Self::new(
                Code::TemporarilyUnavailable,
                "The gateway cannot serve this at present. Nothing is lost: try again.",
            )
        }
    }

    pub fn internal(internal: impl std::fmt::Display) -> Self {
        Self {
            internal: Some(internal.to_string()),
            ..Self::new(
                Code::ServerError,
                "The gateway failed to serve this. The fault is not yours; the id names it in the gateway's log.",
            )
        }
    }

    pub fn into_response(self, request_id: &str) -> Response<Bytes> {
        if let Some(internal) = &self.internal {
            tracing::warn!(request = request_id, code = self.code.text(), internal, "an OAuth request failed");
        } else {
            // The description may repeat what the client sent, and a scope may hold a query.
            tracing::debug!(request = request_id, code = self.code.text(), "an OAuth request was refused");
        }
        let body = serde_json::json!({
            "error": self.code.text(),
            "error_description": format!("{} (request {request_id})", description(&self.description)),
        });
        let mut response = json(self.status, &body);
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        if self.basic_challenge {
            headers
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"token\", charset=\"UTF-8\""));
        }
        response
    }
}

impl From<StoreError> for JsonFault {
    fn from(error: StoreError) -> Self {
        Self::unavailable(error, Duration::from_secs(2))
    }
}

impl From<super::params::ParamsFault> for JsonFault {
    fn from(fault: super::params::ParamsFault) -> Self {
        Self::new(Code::InvalidRequest, fault.to_string())
    }
}

/// A JSON answer that no cache keeps (RFC 6749 §5.1 asks for both headers).
pub fn json(status: StatusCode, body: &serde_json::Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    response
}

/// An error for a person, where no redirect may be made.
#[derive(Debug)]
pub struct PageFault {
    pub status: StatusCode,
    pub title: &'static str,
    /// What was given, what was expected, what to do. Words of the protocol stand between backticks.
    pub explanation: String,
    /// A way on: label and URL.
    pub way_on: Option<(&'static str, String)>,
    /// Whether that way leads to a window of its own: out of an EHR's frame.
    pub new_window: bool,
    pub internal: Option<String>,
}

impl PageFault {
    pub fn new(status: StatusCode, title: &'static str, explanation: impl Into<String>) -> Self {
        Self { status, title, explanation: explanation.into(), way_on: None, new_window: false, internal: None }
    }

    #[must_use]
    pub fn because(mut self, internal: impl std::fmt::Display) -> Self {
        self.internal = Some(internal.to_string());
        self
    }

    pub fn into_response(self, request_id: &str, frame_ancestors: &[String]) -> Response<Bytes> {
        if let Some(internal) = &self.internal {
            tracing::warn!(
                request = request_id,
                title = self.title,
                internal,
                "a page of the authorization server failed"
            );
        }
        let template = pages::Fault {
            title: self.title,
            explanation: self.explanation.split('`').collect(),
            way_on: &self.way_on,
            new_window: self.new_window,
            request_id,
        };
        pages::page(self.status, &template, frame_ancestors)
    }
}

impl From<StoreError> for PageFault {
    fn from(error: StoreError) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "Not available at present",
            "The gateway cannot go on with your sign-in at present. Please wait a moment and reload this page.",
        )
        .because(error)
    }
}
