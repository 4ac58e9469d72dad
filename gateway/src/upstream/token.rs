//! The token client: code exchange, refresh, `client_credentials`, revocation at an EHR.
//!
//! What matters most is what an attempt may have done: a refresh token that was sent may be burnt. So
//! each attempt ends in one of four ways, and is never repeated here: custody decides (`custody.md`,
//! "Unknown outcomes"). The deadline is this client's own; a caller who must not cancel an attempt by
//! leaving runs it in a task of its own.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use mantel_adapters::smart::{
    discovery::Endpoints,
    token::{TokenAnswer, TokenError, parse_answer},
};
use tokio::time::Instant;
use url::Url;

use super::{
    assertion::{AuthFault, Client, Form, Prover},
    body::{self, Outgoing},
    client::{NotSent, SendError, SiteLink, Waits},
    fetch::uri,
    retry::{date, retry_after},
};
use crate::{config::ClientAuth, secret::Secret};

/// Real answers have a few kB: id_token, JWTs of 2 kB, 300 scopes.
const ANSWER_LIMIT: usize = 256 << 10;

/// So far from an EHR's time no assertion of ours is valid there: it has expired, or ends more than five minutes
/// ahead (SMART "Client Authentication"), with a minute for the answer's way and one of leeway.
const UNTIMELY: Duration = Duration::from_secs(240);

/// How a token request ended.
#[derive(Debug)]
pub enum TokenOutcome {
    Answer(Box<TokenAnswer>),
    /// The EHR answered, and refused. 5xx are here too: what they mean is the profile's `errors`.
    Refused(Refusal),
    /// Nothing has left: the same may be sent again.
    NotSent(NotSentReason),
    /// Bytes have left and no usable answer came: what was sent may be used up.
    Unknown(String),
}

#[derive(Debug)]
pub struct Refusal {
    pub error: TokenError,
    /// At most an hour.
    pub retry_after: Option<Duration>,
    /// We signed in with an assertion that cannot have been of the EHR's time: it may be what was refused, by
    /// whatever name.
    pub untimely: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSentReason {
    #[error(transparent)]
    Auth(#[from] AuthFault),
    #[error(transparent)]
    Network(#[from] NotSent),
    /// No permit or no connection within the deadline.
    #[error("the site could not be reached in time")]
    TooSlow,
}

/// How a revocation ended.
#[derive(Debug)]
pub enum RevokeOutcome {
    Revoked,
    /// The site has no revocation endpoint.
    NotOffered,
    Refused {
        status: StatusCode,
        retry_after: Option<Duration>,
    },
    NotSent(NotSentReason),
    /// Revoking again does no harm (RFC 7009 §2.2).
    Unknown(String),
}

/// What a token request is made with.
#[derive(Clone, Copy)]
pub struct TokenClient<'a> {
    pub link: &'a SiteLink,
    pub endpoints: &'a Endpoints,
    pub client: Client<'a>,
    pub prover: Prover<'a>,
    /// Of the whole attempt (`timeouts.token`).
    pub within: Duration,
}

/// An authorization code and what it is bound to.
#[derive(Clone, Copy)]
pub struct CodeGrant<'a> {
    pub code: &'a Secret<String>,
    /// As it was in the authorization request.
    pub redirect_uri: &'a str,
    /// Absent where the profile switches PKCE off.
    pub verifier: Option<&'a Secret<String>>,
}

/// Which kind of token is revoked (RFC 7009 §2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenHint {
    Access,
    Refresh,
}

impl TokenHint {
    const fn text(self) -> &'static str {
        match self {
            Self::Access => "access_token",
            Self::Refresh => "refresh_token",
        }
    }
}

impl TokenClient<'_> {
    pub async fn exchange_code(&self, grant: CodeGrant<'_>) -> TokenOutcome {
        self.ask(|form| {
            form.append_pair("grant_type", "authorization_code")
                .append_pair("code", grant.code.expose())
                .append_pair("redirect_uri", grant.redirect_uri);
            if let Some(verifier) = grant.verifier {
                form.append_pair("code_verifier", verifier.expose());
            }
        })
        .await
    }

    /// `scope`: what was granted, where the profile says that it is repeated; else none.
    pub async fn refresh(&self, token: &Secret<String>, scope: Option<&str>) -> TokenOutcome {
        self.ask(|form| {
            form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", token.expose());
            if let Some(scope) = scope {
                form.append_pair("scope", scope);
            }
        })
        .await
    }

    pub async fn client_credentials(&self, scope: &str) -> TokenOutcome {
        self.ask(|form| {
            form.append_pair("grant_type", "client_credentials").append_pair("scope", scope);
        })
        .await
    }

    pub async fn revoke(&self, token: &Secret<String>, hint: TokenHint) -> RevokeOutcome {
        let Some(endpoint) = &self.endpoints.revoke else { return RevokeOutcome::NotOffered };
        let form = |form: &mut Form| {
            form.append_pair("token", token.expose()).append_pair("token_type_hint", hint.text());
        };
        match self.post(endpoint, form).await {
            Ok(reply) if reply.status.is_success() => RevokeOutcome::Revoked,
            Ok(reply) => RevokeOutcome::Refused { status: reply.status, retry_after: self.retry_after(&reply) },
            Err(Lost::NotSent(reason)) => RevokeOutcome::NotSent(reason),
            Err(Lost::Unknown(reason)) => RevokeOutcome::Unknown(reason),
        }
    }

    async fn ask(&self, form: impl FnOnce(&mut Form)) -> TokenOutcome {
        let reply = match self.post(&self.endpoints.token, form).await {
            Ok(reply) => reply,
            Err(Lost::NotSent(reason)) => return TokenOutcome::NotSent(reason),
            Err(Lost::Unknown(reason)) => return TokenOutcome::Unknown(reason),
        };
        let content_type = reply.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        match parse_answer(reply.status.as_u16(), content_type, &reply.body) {
            Ok(answer) => TokenOutcome::Answer(Box::new(answer)),
            // A 2xx that names no error is an answer that we cannot read: the token may be used up.
            Err(error) if reply.status.is_success() && error.error.is_none() => {
                TokenOutcome::Unknown(format!("status {} with a body that is no token answer", reply.status.as_u16()))
            }
            Err(error) => TokenOutcome::Refused(Refusal {
                error,
                retry_after: self.retry_after(&reply),
                untimely: reply.untimely && matches!(self.client.auth, ClientAuth::PrivateKeyJwt { .. }),
            }),
        }
    }

    fn retry_after(&self, reply: &Reply) -> Option<Duration> {
        retry_after(&reply.headers, self.prover.clock.civil())
    }

    async fn post(&self, to: &Url, form: impl FnOnce(&mut Form)) -> Result<Reply, Lost> {
        let deadline = Instant::now() + self.within;
        let told = self.prover.clock.civil();
        let request = self.request(to, form).map_err(Lost::NotSent)?;
        let waits = Waits { head: self.within, idle: self.within };
        let sent = self.link.client.send_carefully(&self.link.gate.auth, request, &waits).await;
        let (head, body) = sent.map_err(Lost::from)?.into_parts();
        let theirs = date(&head.headers);
        if let Some(theirs) = theirs {
            self.prover.clock.witness(theirs);
        }
        let untimely = theirs.is_some_and(|theirs| told.until(theirs).max(theirs.until(told)) > UNTIMELY);
        let body = match tokio::time::timeout_at(deadline, body::collect(body, ANSWER_LIMIT)).await {
            Ok(Ok(body)) => body,
            // The status alone says it: the EHR failed.
            _ if head.status.is_server_error() => Bytes::new(),
            Ok(Err(error)) => return Err(Lost::Unknown(format!("status {}, but {error}", head.status.as_u16()))),
            Err(_) => return Err(Lost::Unknown(format!("status {}, but no end in time", head.status.as_u16()))),
        };
        Ok(Reply { status: head.status, headers: head.headers, body, untimely })
    }

    fn request(&self, to: &Url, fill: impl FnOnce(&mut Form)) -> Result<Request<Outgoing>, NotSentReason> {
        let mut form = Form::new(String::new());
        fill(&mut form);
        // The `aud` of an assertion is the token endpoint, at the revocation endpoint too (RFC 7523 §3).
        let authorization = self.prover.authenticate(self.client, &self.endpoints.token_audience, &mut form)?;
        let uri = uri(to).ok_or_else(|| NotSent::Malformed("the endpoint's URL".into()))?;
        let mut request = Request::new(Outgoing::Full(Bytes::from(form.finish())));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, value);
        }
        Ok(request)
    }
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    untimely: bool,
}

enum Lost {
    NotSent(NotSentReason),
    Unknown(String),
}

impl From<SendError> for Lost {
    fn from(error: SendError) -> Self {
        match error {
            SendError::NotSent(reason) => Self::NotSent(reason.into()),
            SendError::TimedOut { sent: false } => Self::NotSent(NotSentReason::TooSlow),
            SendError::TimedOut { sent: true } => Self::Unknown("no answer in time".into()),
            SendError::Unknown(reason) => Self::Unknown(reason),
        }
    }
}
