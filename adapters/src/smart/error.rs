//! OAuth error codes (RFC 6749 §4.1.2.1 and §5.2, RFC 6750 §3.1, RFC 7009 §2.2.1, OpenID Connect Core
//! §3.1.2.6, RFC 8707), and what an app is told of an EHR's.

use std::fmt;

use super::token::{ErrorFacts, meaning_of};
use crate::profile::{Meaning, Place, Profile};

/// A code that our endpoints answer with, or that an EHR's do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OAuthErrorCode {
    InvalidRequest,
    InvalidClient,
    InvalidGrant,
    UnauthorizedClient,
    UnsupportedGrantType,
    UnsupportedResponseType,
    UnsupportedTokenType,
    InvalidScope,
    InvalidTarget,
    AccessDenied,
    ServerError,
    TemporarilyUnavailable,
    LoginRequired,
    InteractionRequired,
    ConsentRequired,
    AccountSelectionRequired,
    RequestNotSupported,
    RequestUriNotSupported,
    InvalidToken,
    InsufficientScope,
}

impl OAuthErrorCode {
    pub const ALL: [Self; 20] = [
        Self::InvalidRequest,
        Self::InvalidClient,
        Self::InvalidGrant,
        Self::UnauthorizedClient,
        Self::UnsupportedGrantType,
        Self::UnsupportedResponseType,
        Self::UnsupportedTokenType,
        Self::InvalidScope,
        Self::InvalidTarget,
        Self::AccessDenied,
        Self::ServerError,
        Self::TemporarilyUnavailable,
        Self::LoginRequired,
        Self::InteractionRequired,
        Self::ConsentRequired,
        Self::AccountSelectionRequired,
        Self::RequestNotSupported,
        Self::RequestUriNotSupported,
        Self::InvalidToken,
        Self::InsufficientScope,
    ];

    /// The code on the wire.
    pub const fn text(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::InvalidClient => "invalid_client",
            Self::InvalidGrant => "invalid_grant",
            Self::UnauthorizedClient => "unauthorized_client",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::UnsupportedResponseType => "unsupported_response_type",
            Self::UnsupportedTokenType => "unsupported_token_type",
            Self::InvalidScope => "invalid_scope",
            Self::InvalidTarget => "invalid_target",
            Self::AccessDenied => "access_denied",
            Self::ServerError => "server_error",
            Self::TemporarilyUnavailable => "temporarily_unavailable",
            Self::LoginRequired => "login_required",
            Self::InteractionRequired => "interaction_required",
            Self::ConsentRequired => "consent_required",
            Self::AccountSelectionRequired => "account_selection_required",
            Self::RequestNotSupported => "request_not_supported",
            Self::RequestUriNotSupported => "request_uri_not_supported",
            Self::InvalidToken => "invalid_token",
            Self::InsufficientScope => "insufficient_scope",
        }
    }

    /// Codes are compared byte for byte; an unknown one is none.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.text() == text)
    }

    /// May stand in an authorization response, on its way to the app's redirect URI.
    pub const fn at_authorize(self) -> bool {
        matches!(
            self,
            Self::InvalidRequest
                | Self::UnauthorizedClient
                | Self::AccessDenied
                | Self::UnsupportedResponseType
                | Self::InvalidScope
                | Self::InvalidTarget
                | Self::ServerError
                | Self::TemporarilyUnavailable
                | Self::LoginRequired
                | Self::InteractionRequired
                | Self::ConsentRequired
                | Self::AccountSelectionRequired
                | Self::RequestNotSupported
                | Self::RequestUriNotSupported
        )
    }

    /// May stand in a token endpoint's error.
    pub const fn at_token(self) -> bool {
        matches!(
            self,
            Self::InvalidRequest
                | Self::InvalidClient
                | Self::InvalidGrant
                | Self::UnauthorizedClient
                | Self::UnsupportedGrantType
                | Self::InvalidScope
                | Self::InvalidTarget
                | Self::ServerError
                | Self::TemporarilyUnavailable
        )
    }

    /// The status of a JSON error answer. 401 for `invalid_client` also where no header was sent
    /// (RFC 6749 §5.2 lets us); 503 is the last resort and comes with `Retry-After`.
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidClient | Self::InvalidToken => 401,
            Self::InsufficientScope | Self::AccessDenied => 403,
            Self::ServerError => 500,
            Self::TemporarilyUnavailable => 503,
            _ => 400,
        }
    }
}

impl fmt::Display for OAuthErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// What an app is told of an error that the EHR's authorization endpoint sent back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToldApp {
    pub code: OAuthErrorCode,
    /// Words of ours: the EHR's may name our registration, or the patient.
    pub description: &'static str,
    /// Our registration is at fault: an operator must hear of it.
    pub alarm: bool,
}

/// Maps the error of an EHR's authorization response. What is our fault towards the EHR is no fault of
/// the app's: it hears `server_error`. A rule at `authorize` that says `misconfigured` raises the alarm
/// for codes that otherwise pass (athenahealth refuses a scope that is not ticked with `access_denied`).
pub fn told_app(profile: &Profile, error: &str, description: Option<&str>, error_uri: Option<&str>) -> ToldApp {
    let texts = [description.unwrap_or_default(), error_uri.unwrap_or_default()];
    let facts = ErrorFacts { status: 0, error: Some(error), texts: &texts };
    let rule = meaning_of(profile, Place::Authorize, facts).map(|(meaning, _)| meaning);
    let misconfigured = rule == Some(Meaning::Misconfigured);
    let told = |code, description, alarm| ToldApp { code, description, alarm: alarm || misconfigured };
    let unavailable = "The EHR is temporarily unavailable: try again later";
    if rule == Some(Meaning::Passing) {
        return ToldApp { code: OAuthErrorCode::TemporarilyUnavailable, description: unavailable, alarm: false };
    }
    match OAuthErrorCode::parse(error) {
        Some(code @ OAuthErrorCode::AccessDenied) if misconfigured => {
            told(code, "The EHR refused this application: its registration there does not fit the request", true)
        }
        Some(code @ OAuthErrorCode::AccessDenied) => told(code, "The user or the EHR denied the request", false),
        Some(code @ OAuthErrorCode::InvalidScope) => told(code, "The EHR refused the scopes that were asked", false),
        Some(code @ OAuthErrorCode::TemporarilyUnavailable) => told(code, unavailable, false),
        Some(code @ OAuthErrorCode::LoginRequired) => told(code, "The EHR asks the user to sign in", false),
        Some(code @ OAuthErrorCode::ServerError) => told(code, "The EHR failed to authorize", false),
        _ => told(OAuthErrorCode::ServerError, "The EHR did not accept this gateway's request", true),
    }
}

/// Whether a text has the form of an error code (RFC 6749: visible ASCII without `"` and `\`), short
/// enough to stand in a log.
pub(crate) fn is_code(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\'))
}

/// A description as RFC 6749 §5.2 allows it: printable ASCII without `"` and `\`.
pub fn description(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '"' => '\'',
            '\\' => '/',
            ' '..='~' => c,
            _ => '?',
        })
        .take(500)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_back() {
        for code in OAuthErrorCode::ALL {
            assert_eq!(OAuthErrorCode::parse(code.text()), Some(code));
        }
        assert_eq!(OAuthErrorCode::parse("Invalid_Grant"), None);
    }

    #[test]
    fn what_is_our_fault_is_a_server_error_to_the_app() {
        let profile = Profile::default();
        let cases = [
            ("access_denied", OAuthErrorCode::AccessDenied, false),
            ("invalid_scope", OAuthErrorCode::InvalidScope, false),
            ("temporarily_unavailable", OAuthErrorCode::TemporarilyUnavailable, false),
            ("login_required", OAuthErrorCode::LoginRequired, false),
            ("server_error", OAuthErrorCode::ServerError, false),
            ("invalid_client", OAuthErrorCode::ServerError, true),
            ("unauthorized_client", OAuthErrorCode::ServerError, true),
            ("invalid_request", OAuthErrorCode::ServerError, true),
            ("invalid_launch_token", OAuthErrorCode::ServerError, true),
        ];
        for (error, code, alarm) in cases {
            let told = told_app(&profile, error, Some("aud is required"), None);
            assert_eq!((told.code, told.alarm), (code, alarm), "{error}");
        }
    }

    #[test]
    fn descriptions_hold_only_what_the_rfc_allows() {
        assert_eq!(description("say \"é\"\\\r\n"), "say '?'/??");
    }
}
