//! How each vendor words a refusal at the token endpoint.

use http::{
    HeaderName, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, EXPIRES, PRAGMA, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde_json::{Value, json};

use crate::ehr::{
    auth::AuthServer,
    contract::Vendor,
    web::{Call, Reply, any_origin, echo_origin, encode, json as json_reply, no_store, reply, with_header},
};

/// Why a request to the token endpoint, or one that authenticates like it, is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    InvalidRequest(&'static str),
    InvalidClient(String),
    /// The code, or the refresh token, does not work; the reason is Oracle's word for it.
    InvalidGrant {
        oracle: &'static str,
        why: &'static str,
    },
    UnauthorizedClient(&'static str),
    UnsupportedGrantType,
    InvalidScope(&'static str),
    /// Seconds.
    TooOften(u64),
    /// Practice, Flow: an inner fault, worded as if the app were unknown.
    Inner,
}

impl Refusal {
    pub const DEAD_REFRESH: &'static str = "refresh-token-invalid-or-expired";

    pub const fn code(why: &'static str) -> Self {
        Self::InvalidGrant { oracle: "code-invalid-or-expired", why }
    }

    pub const fn refresh(why: &'static str) -> Self {
        Self::InvalidGrant { oracle: Self::DEAD_REFRESH, why }
    }

    const fn error(&self) -> &'static str {
        match self {
            Self::InvalidRequest(_) => "invalid_request",
            Self::InvalidClient(_) | Self::Inner => "invalid_client",
            Self::InvalidGrant { .. } => "invalid_grant",
            Self::UnauthorizedClient(_) => "unauthorized_client",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::InvalidScope(_) => "invalid_scope",
            Self::TooOften(_) => "too_many_requests",
        }
    }

    fn why(&self) -> &str {
        match self {
            Self::InvalidRequest(why) | Self::UnauthorizedClient(why) | Self::InvalidScope(why) => why,
            Self::InvalidClient(why) => why,
            Self::InvalidGrant { why, .. } => why,
            Self::UnsupportedGrantType => "grant_type is not one of ours",
            Self::TooOften(_) => "too many requests",
            Self::Inner => "an inner fault",
        }
    }
}

impl AuthServer {
    /// `grant`: the one that it is about, which Oracle's `error_uri` leads to.
    pub fn refuse(&self, call: &Call, refusal: &Refusal, client_id: Option<&str>, grant: Option<u64>) -> Reply {
        self.note("token", client_id, refusal.error(), refusal.why());
        let basic = call.header(http::header::AUTHORIZATION).is_some_and(|value| value.starts_with("Basic "));
        if let Refusal::TooOften(seconds) = refusal {
            let answer = json_reply(StatusCode::TOO_MANY_REQUESTS, &json!({"error": "Too Many Requests"}));
            return with_header(answer, RETRY_AFTER, &seconds.to_string());
        }
        if *refusal == Refusal::Inner {
            return json_reply(StatusCode::INTERNAL_SERVER_ERROR, &inner_fault());
        }
        let answer = match self.rules.vendor {
            Vendor::Epic => json_reply(
                StatusCode::BAD_REQUEST,
                &json!({"error": refusal.error(), "error_description": Value::Null}),
            ),
            Vendor::Oracle => self.oracle_refusal(call, refusal, client_id, grant),
            Vendor::Athena => {
                let text = match refusal {
                    Refusal::InvalidGrant { oracle: Refusal::DEAD_REFRESH, .. } => {
                        "The refresh token is invalid or expired."
                    }
                    Refusal::InvalidScope(_) => {
                        "One or more scopes are not configured for the authorization server resource."
                    }
                    Refusal::InvalidClient(_) => "Client authentication failed.",
                    other => other.why(),
                };
                json_reply(status(refusal), &json!({"error": refusal.error(), "error_description": text}))
            }
            Vendor::AthenaPractice => match refusal {
                Refusal::InvalidGrant { oracle: Refusal::DEAD_REFRESH, .. } => json_reply(
                    StatusCode::BAD_REQUEST,
                    &json!({"expires_in": 0, "error": "invalid_client", "error_description":
                        "Refresh token could not be mapped to the original authorization request. User must re-authenticate."}),
                ),
                _ => json_reply(
                    status(refusal),
                    &json!({"expires_in": 0, "error": refusal.error(), "error_description": refusal.why()}),
                ),
            },
            Vendor::Generic => {
                json_reply(status(refusal), &json!({"error": refusal.error(), "error_description": refusal.why()}))
            }
        };
        let challenge = basic && answer.status() == StatusCode::UNAUTHORIZED;
        if challenge { with_header(answer, WWW_AUTHENTICATE, r#"Basic realm="token""#) } else { answer }
    }

    fn oracle_refusal(&self, call: &Call, refusal: &Refusal, client_id: Option<&str>, grant: Option<u64>) -> Reply {
        let reason = match refusal {
            Refusal::InvalidGrant { oracle, .. } => oracle,
            Refusal::InvalidClient(_) if call.headers.contains_key(http::header::AUTHORIZATION) => {
                "invalid-authorization-header"
            }
            Refusal::InvalidClient(_) => "invalid-client-credentials",
            Refusal::InvalidScope(_) => "empty-scopes",
            Refusal::UnauthorizedClient(_) => "unauthorized-client",
            Refusal::UnsupportedGrantType => "unsupported-grant-type",
            _ => "invalid-request",
        };
        let uri = self.oracle_error_uri(call, &format!("token:{reason}"), None, client_id, grant);
        json_reply(status(refusal), &json!({"error": refusal.error(), "error_uri": uri}))
    }

    /// `…/errors/urn:cerner:error:authorization-server:oauth2:{place}:{reason}/instances/{uuid}?client=…&tenant=…`
    pub fn oracle_error_uri(
        &self,
        call: &Call,
        reason: &str,
        persona: Option<&str>,
        client_id: Option<&str>,
        grant: Option<u64>,
    ) -> String {
        let instance = uuid();
        if let Some(grant) = grant {
            self.state().errors.insert(instance.clone(), grant);
        }
        let persona = persona.map(|persona| format!("persona={persona}&")).unwrap_or_default();
        format!(
            "{}/errors/{}/instances/{instance}?{persona}client={}&tenant={}",
            self.places.origin(call.host),
            encode(&format!("urn:cerner:error:authorization-server:oauth2:{reason}")),
            encode(client_id.unwrap_or("unknown")),
            encode(self.places.tenant()),
        )
    }

    /// The headers that all answers of the token endpoint have at this vendor.
    pub fn dress(&self, call: &Call, answer: Reply) -> Reply {
        match self.rules.vendor {
            Vendor::Epic => {
                let answer = with_header(answer, CONTENT_TYPE, "application/json; charset=utf-8");
                let answer = with_header(answer, CACHE_CONTROL, "no-cache, no-store,no-store");
                let answer = with_header(answer, PRAGMA, "no-cache");
                any_origin(with_header(answer, EXPIRES, "-1"))
            }
            Vendor::Oracle => {
                let correlation = HeaderName::from_static("cerner-correlation-id");
                any_origin(no_store(with_header(answer, correlation, &uuid())))
            }
            // Its token endpoint has no working CORS.
            Vendor::Athena => with_header(with_header(answer, CACHE_CONTROL, "no-cache, no-store"), PRAGMA, "no-cache"),
            Vendor::AthenaPractice => no_store(answer),
            Vendor::Generic => echo_origin(call, no_store(answer)),
        }
    }
}

pub fn inner_fault() -> Value {
    json!({"expires_in": 0, "error": "invalid_client",
        "error_description": "An unexpected error has occurred. Please try this operation again later."})
}

/// A vendor-shaped proxy page in the place of an answer.
pub fn html_fault(status: StatusCode) -> Reply {
    reply(
        status,
        "text/html",
        format!("<html><head><title>{status}</title></head><body><h1>{status}</h1></body></html>"),
    )
}

fn status(refusal: &Refusal) -> StatusCode {
    match refusal {
        Refusal::InvalidClient(_) => StatusCode::UNAUTHORIZED,
        _ => StatusCode::BAD_REQUEST,
    }
}

pub fn uuid() -> String {
    let mut bytes = [0; 16];
    // See jwt::random.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_uuids() {
        assert_eq!(uuid::Uuid::parse_str(&uuid()).unwrap().get_version_num(), 4);
    }
}
