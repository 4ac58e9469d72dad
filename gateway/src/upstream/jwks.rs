//! The keys that EHRs sign id_tokens with, from the place that the profile pins: never from a `jku` or
//! any other claim of a token that is not verified yet.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, StatusCode, header};
use jsonwebtoken::jwk::JwkSet;
use mantel_adapters::{
    site::SiteId,
    smart::{
        claims::IssuerRule,
        discovery::{EndpointName, Endpoints, held, parse_openid_configuration},
    },
};
use tokio::runtime::Handle;
use url::Url;

use super::{
    cache::{Died, Keep, Kept, Loaded},
    client::{SiteLink, UpstreamClient},
    discovery::plain_http,
    fetch::{FetchError, FetchLimits, Fetched, fetch},
    gate::Lane,
};

/// A set is kept as its `Cache-Control` says, within these bounds.
const LIFETIME_MIN: Duration = Duration::from_secs(300);
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// Without a word from the server.
const LIFETIME_DEFAULT: Duration = Duration::from_secs(3600);
/// An unknown `kid` makes us look again, but not for everybody who invents one.
const REFETCH_INTERVAL: Duration = Duration::from_secs(60);
const FAILURE_TTL: Duration = Duration::from_secs(5);
/// Epic allows 100 keys; a set with certificate chains has some kB a key.
const SET_LIMIT: usize = 512 << 10;
const WITHIN: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    #[error("no place to get the keys from: the site's discovery names no `jwks_uri`, and `id_token.jwks` no URL")]
    NoPlace,
    #[error("`id_token.jwks` = {0:?} is no URL")]
    NotUrl(String),
    #[error("keys would come from {0}, which is neither the site's own host nor in `auth_hosts`")]
    Held(String),
    #[error("{host}: {error}")]
    Fetch { host: String, error: FetchError },
    #[error("{host}: status {status}")]
    Status { host: String, status: u16 },
    #[error("{host} sent no {expected}")]
    Nonsense { host: String, expected: &'static str },
    #[error("the openid-configuration on {host} is another issuer's than the pinned one")]
    OtherIssuer { host: String },
    #[error("the fetch was broken off")]
    BrokenOff,
}

impl From<Died> for JwksError {
    fn from(_: Died) -> Self {
        Self::BrokenOff
    }
}

/// All key sets that were fetched.
pub struct Jwks {
    sets: Mutex<HashMap<Place, Arc<Kept<JwkSet, JwksError>>>>,
    runtime: Handle,
}

/// By site too, since sites differ in whom they trust and whom they may reach.
type Place = (SiteId, KeysAt);

/// Where a site's keys are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum KeysAt {
    Set(Url),
    /// `jwks_uri` of the pinned issuer's openid-configuration.
    Issuer(Url),
}

impl Jwks {
    /// `runtime`: the control plane's.
    pub fn new(runtime: Handle) -> Self {
        Self { sets: Mutex::default(), runtime }
    }

    /// The site's key set; fetched again if it lacks the key.
    pub(super) async fn find(
        &self,
        link: &SiteLink,
        endpoints: &Endpoints,
        issuer: &IssuerRule,
        kid: Option<&str>,
    ) -> Result<Arc<JwkSet>, JwksError> {
        let at = keys_at(link, endpoints, issuer)?;
        let kept = self.kept((link.site.id.clone(), at.clone()));
        let load = || {
            let (link, endpoints, at) = (link.clone(), endpoints.clone(), at.clone());
            move |_| async move { load(&link, &endpoints, at).await }
        };
        let set = kept.get(load()).await?;
        if kid.is_none_or(|kid| set.find(kid).is_some()) {
            return Ok(set);
        }
        kept.renew(REFETCH_INTERVAL, load()).await
    }

    fn kept(&self, place: Place) -> Arc<Kept<JwkSet, JwksError>> {
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        let keep = Keep { stale: Duration::ZERO, failure: FAILURE_TTL };
        sets.entry(place).or_insert_with(|| Arc::new(Kept::new(keep, self.runtime.clone()))).clone()
    }
}

fn keys_at(link: &SiteLink, endpoints: &Endpoints, issuer: &IssuerRule) -> Result<KeysAt, JwksError> {
    let pinned = link.site.profile.id_token.jwks.as_str();
    if pinned != "discovery" {
        // The operator's own word needs no confirmation.
        return Url::parse(pinned).map(KeysAt::Set).map_err(|_| JwksError::NotUrl(pinned.into()));
    }
    match (&endpoints.jwks, issuer) {
        (Some(url), _) => Ok(KeysAt::Set(url.clone())),
        (None, IssuerRule::Exact(issuer)) => Url::parse(issuer).map(KeysAt::Issuer).map_err(|_| JwksError::NoPlace),
        (None, IssuerRule::Between { .. } | IssuerRule::Unknown) => Err(JwksError::NoPlace),
    }
}

async fn load(link: &SiteLink, endpoints: &Endpoints, at: KeysAt) -> Result<Loaded<JwkSet>, JwksError> {
    let url = match at {
        KeysAt::Set(url) => url,
        KeysAt::Issuer(issuer) => jwks_uri(link, endpoints, &issuer).await?,
    };
    let plain = plain_http(&link.site);
    fetch_set(&link.client, &link.gate.auth, &url, plain).await
}

/// The `jwks_uri` of an issuer, if it is the issuer that answers and the keys' host is one we trust.
async fn jwks_uri(link: &SiteLink, endpoints: &Endpoints, issuer: &Url) -> Result<Url, JwksError> {
    let mut at = issuer.clone();
    at.set_path(&format!("{}/.well-known/openid-configuration", issuer.path().trim_end_matches('/')));
    let answer = get(&link.client, &link.gate.auth, &at, plain_http(&link.site)).await?;
    let (document, _) = parse_openid_configuration(&answer.body, issuer)
        .map_err(|_| JwksError::Nonsense { host: host(&at), expected: "openid-configuration" })?;
    if document.issuer.trim_end_matches('/') != issuer.as_str().trim_end_matches('/') {
        return Err(JwksError::OtherIssuer { host: host(&at) });
    }
    let pinned = Endpoints { jwks: Some(document.jwks_uri.clone()), ..endpoints.clone() };
    let held = held(&pinned, &link.site.fhir_base, &link.site.profile.auth_hosts);
    let own = document.jwks_uri.host() == issuer.host();
    match held.into_iter().find(|held| held.name == EndpointName::Jwks) {
        Some(held) if !own => Err(JwksError::Held(held.host)),
        _ => Ok(document.jwks_uri),
    }
}

/// Fetches a key set and says how long it may be kept.
async fn fetch_set(
    client: &UpstreamClient,
    lane: &Lane,
    url: &Url,
    plain_http: bool,
) -> Result<Loaded<JwkSet>, JwksError> {
    let answer = get(client, lane, url, plain_http).await?;
    let set = serde_json::from_slice(&answer.body)
        .map_err(|_| JwksError::Nonsense { host: host(url), expected: "JWK set" })?;
    Ok(Loaded { value: set, lifetime: lifetime(&answer.headers).clamp(LIFETIME_MIN, LIFETIME_MAX) })
}

async fn get(client: &UpstreamClient, lane: &Lane, url: &Url, plain_http: bool) -> Result<Fetched, JwksError> {
    let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("application/json"))]);
    let limits = FetchLimits { size: SET_LIMIT, total: WITHIN, plain_http };
    let answer = fetch(client, lane, url, &headers, &limits)
        .await
        .map_err(|error| JwksError::Fetch { host: host(url), error })?;
    if answer.status == StatusCode::OK {
        Ok(answer)
    } else {
        Err(JwksError::Status { host: host(url), status: answer.status.as_u16() })
    }
}

fn host(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

/// What `Cache-Control` allows, unbounded.
pub fn lifetime(headers: &HeaderMap) -> Duration {
    let mut allowed = None;
    for value in headers.get_all(header::CACHE_CONTROL) {
        for directive in value.to_str().unwrap_or_default().split(',') {
            let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
            match name.trim().to_ascii_lowercase().as_str() {
                "no-store" | "no-cache" => return Duration::ZERO,
                "max-age" => allowed = value.trim().trim_matches('"').parse().ok().map(Duration::from_secs),
                _ => {}
            }
        }
    }
    allowed.unwrap_or(LIFETIME_DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_control_is_read() {
        let table = [
            ("max-age=600", 600),
            ("public, Max-Age=\"600\" , must-revalidate", 600),
            ("max-age=600, no-store", 0),
            ("no-cache", 0),
            ("max-age=soon", 3600),
            ("private", 3600),
        ];
        for (text, expected) in table {
            let headers = HeaderMap::from_iter([(header::CACHE_CONTROL, HeaderValue::from_static(text))]);
            assert_eq!(lifetime(&headers), Duration::from_secs(expected), "{text}");
        }
        assert_eq!(lifetime(&HeaderMap::new()), LIFETIME_DEFAULT);
    }
}
