//! The one fetcher for every URL that came as data: discovery documents, JWK sets, `jwks_uri`s of apps.
//!
//! https, bounded in size and time, no redirect to another origin, no credentials; the address is judged
//! when it is dialled ([`super::guard`]). See `guard.md`, "Fetching what others name".

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use tokio::time::Instant;
use url::Url;

use super::{
    body::{self, BodyError, CollectError, Outgoing},
    client::{SendError, UpstreamClient, Waits},
    gate::Lane,
};

/// Redirects followed within the origin: `/fhir` to `/fhir/` and the like.
const REDIRECTS: usize = 3;

#[derive(Clone, Copy, Debug)]
pub struct FetchLimits {
    /// Bytes of the body.
    pub size: usize,
    /// For everything, redirects included.
    pub total: Duration,
    /// `http://` is taken too: only where the site's own base is (the sandbox, loopback).
    pub plain_http: bool,
}

/// An answer, whatever its status.
#[derive(Debug)]
pub struct Fetched {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    #[error("{0} cannot be fetched: expected an https URL without user and password")]
    NotHttps(String),
    #[error("a redirect to another origin ({0}) was not followed")]
    OtherOrigin(String),
    #[error("more than {REDIRECTS} redirects, or one without a place to go")]
    Redirects,
    #[error("larger than {0} bytes")]
    TooLarge(usize),
    #[error("not complete within {0:?}")]
    TooSlow(Duration),
    #[error("the answer broke off")]
    Broken,
    #[error(transparent)]
    Send(#[from] SendError),
}

/// GETs `url`. `headers` must hold nothing secret.
pub async fn fetch(
    client: &UpstreamClient,
    lane: &Lane,
    url: &Url,
    headers: &HeaderMap,
    limits: &FetchLimits,
) -> Result<Fetched, FetchError> {
    let deadline = Instant::now() + limits.total;
    tokio::time::timeout_at(deadline, follow(client, lane, url, headers, limits))
        .await
        .unwrap_or(Err(FetchError::TooSlow(limits.total)))
}

async fn follow(
    client: &UpstreamClient,
    lane: &Lane,
    url: &Url,
    headers: &HeaderMap,
    limits: &FetchLimits,
) -> Result<Fetched, FetchError> {
    let mut url = url.clone();
    for _ in 0..=REDIRECTS {
        check(&url, limits)?;
        let answer = get(client, lane, &url, headers, limits).await?;
        if !matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(answer);
        }
        let to = answer.headers.get(header::LOCATION).and_then(|to| to.to_str().ok()).ok_or(FetchError::Redirects)?;
        let to = url.join(to).map_err(|_| FetchError::Redirects)?;
        if to.origin() != url.origin() {
            return Err(FetchError::OtherOrigin(to.origin().ascii_serialization()));
        }
        url = to;
    }
    Err(FetchError::Redirects)
}

fn check(url: &Url, limits: &FetchLimits) -> Result<(), FetchError> {
    let scheme = url.scheme() == "https" || (limits.plain_http && url.scheme() == "http");
    if scheme && url.has_host() && url.username().is_empty() && url.password().is_none() {
        Ok(())
    } else {
        Err(FetchError::NotHttps(format!("{}://{}", url.scheme(), url.host_str().unwrap_or_default())))
    }
}

async fn get(
    client: &UpstreamClient,
    lane: &Lane,
    url: &Url,
    headers: &HeaderMap,
    limits: &FetchLimits,
) -> Result<Fetched, FetchError> {
    let mut request = Request::new(Outgoing::Empty);
    *request.method_mut() = Method::GET;
    *request.uri_mut() = uri(url).ok_or_else(|| FetchError::NotHttps(url.scheme().to_owned()))?;
    *request.headers_mut() = headers.clone();
    // We undo no encoding here, so that a small answer cannot become a large one.
    request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let waits = Waits { head: limits.total, idle: limits.total };
    let (head, body) = client.send(lane, request, &waits).await?.into_parts();
    let body = body::collect(body, limits.size).await.map_err(|error| match error {
        CollectError::TooLarge { limit } => FetchError::TooLarge(limit),
        CollectError::Body(BodyError::Idle(_)) => FetchError::TooSlow(limits.total),
        CollectError::Body(BodyError::Broken(_)) => FetchError::Broken,
    })?;
    Ok(Fetched { status: head.status, headers: head.headers, body })
}

/// As the HTTP client takes it; a fragment is never sent.
pub(super) fn uri(url: &Url) -> Option<Uri> {
    let mut url = url.clone();
    url.set_fragment(None);
    url.as_str().parse().ok()
}
