//! Answers before they are dressed in a vendor's headers.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};

/// What an answer carries.
#[derive(Clone, Debug)]
pub enum Body {
    Empty,
    /// A FHIR resource; its media type is the vendor's choice.
    Fhir(Value),
    /// Anything else, with its content type (none: no header).
    Other(Option<String>, Bytes),
}

/// An answer whose general headers are still missing.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Body,
    /// A vendor can answer some requests as if it had never heard of browsers.
    pub cors: bool,
}

impl Reply {
    pub const fn new(status: StatusCode, body: Body) -> Self {
        Self { status, headers: Vec::new(), body, cors: true }
    }

    pub const fn empty(status: StatusCode) -> Self {
        Self::new(status, Body::Empty)
    }

    pub const fn fhir(status: StatusCode, resource: Value) -> Self {
        Self::new(status, Body::Fhir(resource))
    }

    pub fn text(status: StatusCode, content_type: &str, text: impl Into<String>) -> Self {
        Self::new(status, Body::Other(Some(content_type.to_owned()), Bytes::from(text.into())))
    }

    pub fn outcome(status: StatusCode, issues: Vec<Value>) -> Self {
        Self::fhir(status, outcome(issues))
    }

    /// Adds a header; a value that no header can hold is left out.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl AsRef<str>) -> Self {
        if let Ok(value) = HeaderValue::from_str(value.as_ref()) {
            self.headers.push((HeaderName::from_static(name), value));
        }
        self
    }

    #[must_use]
    pub const fn without_cors(mut self) -> Self {
        self.cors = false;
        self
    }

    /// The text of a header that this reply sets itself.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).and_then(|(_, value)| value.to_str().ok())
    }
}

pub fn outcome(issues: Vec<Value>) -> Value {
    json!({"resourceType": "OperationOutcome", "issue": Value::from(issues)})
}

/// A plain issue, as a server without a code system of its own writes it.
pub fn issue(severity: &str, code: &str, diagnostics: impl Into<String>) -> Value {
    json!({"severity": severity, "code": code, "diagnostics": diagnostics.into()})
}

/// The bytes and content type of a Binary, decoded.
pub fn raw_binary(resource: &Value) -> Option<(String, Bytes)> {
    let content_type = resource.get("contentType").and_then(Value::as_str)?;
    let data = resource.get("data").and_then(Value::as_str).unwrap_or_default();
    Some((content_type.to_owned(), Bytes::from(STANDARD.decode(data).ok()?)))
}
