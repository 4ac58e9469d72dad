//! Verification of an EHR's id_token (OpenID Connect Core §3.1.3.7): the signature, by keys from the place
//! that the profile pins. What its claims must say is `mantel_adapters::smart::claims`'.

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse},
};
use mantel_adapters::smart::{
    claims::{ClaimFault, Expected as ExpectedClaims, IdTokenClaims, issuer_expected},
    discovery::Endpoints,
};
use serde_json::{Map, Value};

use super::{
    client::SiteLink,
    jwks::{Jwks, JwksError},
};
use crate::clock::Timestamp;

/// Tolerated between our clock and the EHR's, in seconds.
const LEEWAY: u64 = 60;
/// Far more than any seen; keeps a hostile answer from costing time.
const SIZE_LIMIT: usize = 64 << 10;
/// RS256 is what SMART demands; the others are what vendors' discovery documents list beside it.
const ALGORITHMS: [Algorithm; 4] = [Algorithm::RS256, Algorithm::RS384, Algorithm::ES256, Algorithm::ES384];

/// Why an id_token is not believed. The texts hold no claim's value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdTokenError {
    #[error("it is no signed JWT of at most 64 KiB")]
    Malformed,
    #[error("its algorithm is not one of RS256, RS384, ES256, ES384")]
    Algorithm,
    #[error("it has a `crit` header that we do not understand")]
    Critical,
    #[error("the EHR's key set has no key for it")]
    NoKey,
    #[error("its signature is wrong")]
    Signature,
    #[error("it lacks one of exp, iss, aud, sub, or has it in another form")]
    Claims,
    #[error(transparent)]
    Claim(#[from] ClaimFault),
    #[error("keys: {0}")]
    Keys(#[from] JwksError),
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
///
/// # Errors
/// The first check that fails; nothing of the token may be used then.
pub async fn verify(
    jwks: &Jwks,
    link: &SiteLink,
    endpoints: &Endpoints,
    token: &str,
    expected: Expected<'_>,
) -> Result<IdTokenClaims, IdTokenError> {
    let head = read_head(token)?;
    let site = &link.site;
    let issuer = issuer_expected(&site.profile, endpoints, &site.fhir_base_text);
    let set = jwks.find(link, endpoints, &issuer, head.kid.as_deref()).await?;
    let claims = verify_signature(token, &head, &set)?;
    let claims: IdTokenClaims = serde_json::from_value(Value::Object(claims)).map_err(|_| IdTokenError::Claims)?;
    claims.check(&ExpectedClaims {
        issuer: &issuer,
        client_id: expected.client_id,
        nonce: expected.nonce,
        now: u64::try_from(expected.now.seconds()).unwrap_or(0),
        leeway: LEEWAY,
    })?;
    Ok(claims)
}

struct Head {
    alg: Algorithm,
    kid: Option<String>,
}

fn read_head(token: &str) -> Result<Head, IdTokenError> {
    if token.len() > SIZE_LIMIT || token.split('.').count() != 3 {
        return Err(IdTokenError::Malformed);
    }
    // `none`, and whatever else jsonwebtoken has no name for, fails in the decoding of the header.
    let head = jsonwebtoken::decode_header(token).map_err(|_| IdTokenError::Algorithm)?;
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
    // Compared afterwards, with our own clock and the profile's rules.
    (validation.validate_exp, validation.validate_aud) = (false, false);
    let mut keys = set.keys.iter().filter(|jwk| fits(jwk, head)).peekable();
    keys.peek().ok_or(IdTokenError::NoKey)?;
    for key in keys.filter_map(|jwk| DecodingKey::from_jwk(jwk).ok()) {
        match jsonwebtoken::decode::<Map<String, Value>>(token, &key, &validation) {
            Ok(data) => return Ok(data.claims),
            // These are looked at once the signature has been found right.
            Err(error) if matches!(error.kind(), ErrorKind::MissingRequiredClaim(_) | ErrorKind::Json(_)) => {
                return Err(IdTokenError::Claims);
            }
            Err(_) => {}
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
