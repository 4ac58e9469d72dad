//! Verification of an EHR's id_token (OpenID Connect Core §3.1.3.7), by what the profile pins.

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse},
};
use mantel_adapters::smart::discovery::Endpoints;
use serde_json::{Map, Value};
use url::Url;

use super::{
    client::SiteLink,
    jwks::{Jwks, JwksError, Wanted},
};
use crate::{clock::Timestamp, config::Site};

/// Tolerated between our clock and the EHR's, in seconds.
const SKEW: i64 = 60;
/// Far more than any seen; keeps a hostile answer from costing time.
const SIZE_LIMIT: usize = 64 << 10;
/// RS256 is what SMART demands; the others are what vendors' discovery documents list beside it.
const ALGORITHMS: [Algorithm; 4] = [Algorithm::RS256, Algorithm::RS384, Algorithm::ES256, Algorithm::ES384];

/// Why an id_token is not believed. The texts hold no claim.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdTokenError {
    #[error("it is no JWT")]
    Malformed,
    #[error("its algorithm is not one of RS256, RS384, ES256, ES384")]
    Algorithm,
    #[error("it has a `crit` header that we do not understand")]
    Critical,
    #[error("the EHR's key set has no key for it")]
    NoKey,
    #[error("its signature is wrong")]
    Signature,
    #[error("its issuer is not the one that the profile pins")]
    Issuer,
    #[error("it is meant for another client")]
    Audience,
    #[error("it has expired")]
    Expired,
    #[error("it was issued in the future: compare the clocks")]
    Future,
    #[error("it lacks {0}")]
    Missing(&'static str),
    #[error("its nonce is not ours")]
    Nonce,
    #[error("no issuer to compare with: `id_token.issuer` = {0:?}, and discovery names none")]
    NoIssuer(String),
    #[error("keys: {0}")]
    Keys(#[from] JwksError),
}

/// The issuer that a profile pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Issuer {
    Exact(String),
    /// A URL with one `*` in its path.
    Below {
        before: String,
        after: String,
    },
}

impl Issuer {
    /// Reads the profile's rule for a site.
    pub fn pinned(site: &Site, endpoints: &Endpoints) -> Result<Self, IdTokenError> {
        let rule = site.profile.id_token.issuer.as_str();
        let none = || IdTokenError::NoIssuer(rule.to_owned());
        match rule {
            "discovery" => endpoints.issuer.clone().map(Self::Exact).ok_or_else(none),
            "{base}" => Ok(Self::Exact(site.fhir_base_text.clone())),
            "{authorize_base}" => authorize_base(&endpoints.authorize).map(Self::Exact).ok_or_else(none),
            url => Self::parse(url).ok_or_else(none),
        }
    }

    fn parse(rule: &str) -> Option<Self> {
        let Some((before, after)) = rule.split_once('*') else { return Some(Self::Exact(rule.to_owned())) };
        // The star must stand in the path: in the host it would let anybody be the issuer.
        let path = before.split_once("://")?.1.contains('/');
        (path && !after.contains('*')).then(|| Self::Below { before: before.into(), after: after.into() })
    }

    pub fn admits(&self, issuer: &str) -> bool {
        match self {
            Self::Exact(expected) => expected == issuer,
            Self::Below { before, after } => issuer
                .strip_prefix(before.as_str())
                .and_then(|rest| rest.strip_suffix(after.as_str()))
                .is_some_and(is_path_segments),
        }
    }
}

/// One or more plain path segments: nothing that ends a path, climbs out of it or is written in escapes.
fn is_path_segments(text: &str) -> bool {
    text.split('/').all(|segment| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
    })
}

/// The authorization endpoint less its last segment: `…/oauth2/authorize` → `…/oauth2`.
fn authorize_base(authorize: &Url) -> Option<String> {
    let mut url = authorize.clone();
    url.set_query(None);
    url.set_fragment(None);
    let text = url.as_str().trim_end_matches('/');
    let (base, last) = text.rsplit_once('/')?;
    (!last.is_empty() && base.contains("://") && !base.ends_with('/')).then(|| base.to_owned())
}

/// What an id_token must fit.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    pub client_id: &'a str,
    /// What we sent, if we did.
    pub nonce: Option<&'a str>,
    pub now: Timestamp,
}

/// Verifies an id_token with the site's keys, and gives its claims.
pub async fn verify(
    jwks: &Jwks,
    link: &SiteLink,
    endpoints: &Endpoints,
    token: &str,
    expected: Expected<'_>,
) -> Result<Map<String, Value>, IdTokenError> {
    if token.len() > SIZE_LIMIT {
        return Err(IdTokenError::Malformed);
    }
    let head = read_head(token)?;
    let issuer = Issuer::pinned(&link.site, endpoints)?;
    let set = jwks.find(link, endpoints, &issuer, Wanted { kid: head.kid.as_deref() }).await?;
    let claims = verify_signature(token, &head, &set)?;
    check_claims(&claims, &issuer, expected)?;
    Ok(claims)
}

struct Head {
    alg: Algorithm,
    kid: Option<String>,
}

fn read_head(token: &str) -> Result<Head, IdTokenError> {
    let head = jsonwebtoken::decode_header(token).map_err(|_| {
        // An `alg` that jsonwebtoken does not know (`none`) fails here as well.
        if token.split('.').count() == 3 { IdTokenError::Algorithm } else { IdTokenError::Malformed }
    })?;
    if !ALGORITHMS.contains(&head.alg) {
        return Err(IdTokenError::Algorithm);
    }
    if head.crit.is_some() {
        return Err(IdTokenError::Critical);
    }
    Ok(Head { alg: head.alg, kid: head.kid })
}

fn verify_signature(token: &str, head: &Head, set: &JwkSet) -> Result<Map<String, Value>, IdTokenError> {
    let mut validation = Validation::new(head.alg);
    validation.set_required_spec_claims(&["exp", "iss", "aud"]);
    // Compared below, with our own clock and rules.
    (validation.validate_exp, validation.validate_aud) = (false, false);
    let mut keys = set.keys.iter().filter(|jwk| fits(jwk, head)).peekable();
    keys.peek().ok_or(IdTokenError::NoKey)?;
    for key in keys.filter_map(|jwk| DecodingKey::from_jwk(jwk).ok()) {
        match jsonwebtoken::decode::<Map<String, Value>>(token, &key, &validation) {
            Ok(data) => return Ok(data.claims),
            Err(error) => match error.kind() {
                jsonwebtoken::errors::ErrorKind::MissingRequiredClaim(_) => {
                    return Err(IdTokenError::Missing("exp, iss or aud"));
                }
                jsonwebtoken::errors::ErrorKind::Json(_) => return Err(IdTokenError::Malformed),
                _ => {}
            },
        }
    }
    Err(IdTokenError::Signature)
}

/// Whether a key may verify this token: its name if the token names one, its type, its purpose.
fn fits(jwk: &Jwk, head: &Head) -> bool {
    let named = head.kid.is_none() || jwk.common.key_id == head.kid;
    let signs = !matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption));
    let kind = match (&jwk.algorithm, head.alg) {
        (AlgorithmParameters::RSA(_), Algorithm::RS256 | Algorithm::RS384) => true,
        (AlgorithmParameters::EllipticCurve(key), Algorithm::ES256) => key.curve == EllipticCurve::P256,
        (AlgorithmParameters::EllipticCurve(key), Algorithm::ES384) => key.curve == EllipticCurve::P384,
        _ => false,
    };
    named && signs && kind
}

fn check_claims(claims: &Map<String, Value>, issuer: &Issuer, expected: Expected<'_>) -> Result<(), IdTokenError> {
    let text = |name: &'static str| claims.get(name).and_then(Value::as_str);
    if !issuer.admits(text("iss").ok_or(IdTokenError::Missing("iss"))?) {
        return Err(IdTokenError::Issuer);
    }
    text("sub").filter(|sub| !sub.is_empty()).ok_or(IdTokenError::Missing("sub"))?;
    check_audience(claims, expected.client_id)?;
    let now = expected.now.seconds();
    if seconds(claims, "exp")?.saturating_add(SKEW) <= now {
        return Err(IdTokenError::Expired);
    }
    if seconds(claims, "iat")?.saturating_sub(SKEW) > now {
        return Err(IdTokenError::Future);
    }
    match (expected.nonce, text("nonce")) {
        (Some(ours), theirs) if theirs != Some(ours) => Err(IdTokenError::Nonce),
        _ => Ok(()),
    }
}

fn check_audience(claims: &Map<String, Value>, client_id: &str) -> Result<(), IdTokenError> {
    let (ours, several) = match claims.get("aud") {
        Some(Value::String(aud)) => (aud == client_id, false),
        Some(Value::Array(all)) => (all.iter().any(|aud| aud.as_str() == Some(client_id)), all.len() > 1),
        _ => (false, false),
    };
    // With several audiences `azp` says for whom it was made (Core §3.1.3.7, 4 and 5).
    let party = match claims.get("azp") {
        None | Some(Value::Null) => !several,
        Some(azp) => azp.as_str() == Some(client_id),
    };
    if ours && party { Ok(()) } else { Err(IdTokenError::Audience) }
}

/// A NumericDate; fractions are allowed (RFC 7519 §2) and cut.
fn seconds(claims: &Map<String, Value>, name: &'static str) -> Result<i64, IdTokenError> {
    let value = claims.get(name).ok_or(IdTokenError::Missing(name))?;
    #[allow(clippy::cast_possible_truncation, reason = "`as` saturates, and that is right for a date")]
    let cut = value.as_f64().map(|seconds| seconds as i64);
    value.as_i64().or(cut).ok_or(IdTokenError::Missing(name))
}
