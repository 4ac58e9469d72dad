//! Errors that blame and advise: whose fault it is, whether trying again helps, one text for the caller
//! and one for the log. `edge::respond` is the only place that makes a response of one, in the form
//! that its reader understands.

use std::{fmt, time::Duration};

/// What went wrong, in the gateway's own words; each kind has one status and one code in each form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request is malformed. 400 · `invalid`.
    BadRequest,
    /// No token, or one that is unknown, expired or revoked. 401 · `login`.
    Unauthenticated,
    /// The EHR's token is dead: the user must authorise again. 401 · `expired`.
    GrantEnded,
    /// The grant does not cover this. 403 · `forbidden`.
    Forbidden,
    /// Not there, or not to be told whether it is. 404 · `not-found`.
    NotFound,
    /// The method is not served here. 405 · `not-supported`.
    MethodNotAllowed,
    /// An answer in that form cannot be given. 406 · `not-supported`.
    NotAcceptable,
    /// 413 · `too-long`.
    TooLarge,
    /// 415 · `not-supported`.
    UnsupportedMediaType,
    /// 422 · `processing`.
    Unprocessable,
    /// A limit of ours or of the EHR. 429 · `throttled`.
    Throttled,
    /// A fault of ours. 500 · `exception`.
    Internal,
    /// The EHR's answer is nonsense. 502 · `transient`.
    BadGateway,
    /// We or the EHR cannot serve at present. 503 · `transient`.
    Unavailable,
    /// The EHR did not answer in time. 504 · `timeout`.
    GatewayTimeout,
}

impl Kind {
    /// HTTP's status and FHIR's issue-type code.
    pub const fn codes(self) -> (u16, &'static str) {
        match self {
            Self::BadRequest => (400, "invalid"),
            Self::Unauthenticated => (401, "login"),
            Self::GrantEnded => (401, "expired"),
            Self::Forbidden => (403, "forbidden"),
            Self::NotFound => (404, "not-found"),
            Self::MethodNotAllowed => (405, "not-supported"),
            Self::NotAcceptable => (406, "not-supported"),
            Self::TooLarge => (413, "too-long"),
            Self::UnsupportedMediaType => (415, "not-supported"),
            Self::Unprocessable => (422, "processing"),
            Self::Throttled => (429, "throttled"),
            Self::Internal => (500, "exception"),
            Self::BadGateway => (502, "transient"),
            Self::Unavailable => (503, "transient"),
            Self::GatewayTimeout => (504, "timeout"),
        }
    }
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    App,
    Gateway,
    Ehr,
}

impl Side {
    pub const fn text(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Gateway => "gateway",
            Self::Ehr => "ehr",
        }
    }
}

/// An error on its way to a caller.
#[derive(Debug)]
pub struct Error {
    pub kind: Kind,
    pub side: Side,
    /// When to try again, if that can help.
    pub retry_after: Option<Duration>,
    /// For the caller: what was given, what was expected, what to do. No secrets, no internals.
    pub public: String,
    /// For the log: no token, code, secret, patient id, query value or body (`guard.md`).
    pub internal: Option<String>,
}

impl Error {
    pub fn new(kind: Kind, side: Side, public: impl Into<String>) -> Self {
        Self { kind, side, retry_after: None, public: public.into(), internal: None }
    }

    /// A fault of the app's request.
    pub fn app(kind: Kind, public: impl Into<String>) -> Self {
        Self::new(kind, Side::App, public)
    }

    /// A fault of ours: the caller learns no more than that.
    pub fn internal(what: impl fmt::Display) -> Self {
        Self {
            kind: Kind::Internal,
            side: Side::Gateway,
            retry_after: None,
            public: "The gateway failed to serve this request. The fault is not yours; the id names it in the gateway's log.".into(),
            internal: Some(what.to_string()),
        }
    }

    /// We cannot serve at present.
    pub fn unavailable(side: Side, public: impl Into<String>, retry_after: Duration) -> Self {
        Self { kind: Kind::Unavailable, side, retry_after: Some(retry_after), public: public.into(), internal: None }
    }

    #[must_use]
    pub fn because(mut self, internal: impl fmt::Display) -> Self {
        self.internal = Some(internal.to_string());
        self
    }

    #[must_use]
    pub const fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.public)
    }
}

impl std::error::Error for Error {}

pub type Result<T, E = Error> = std::result::Result<T, E>;
