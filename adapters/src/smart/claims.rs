//! Claims of an EHR's id_token (OpenID Connect Core §2), which issuer it must have, and `fhirUser`.
//!
//! Signatures are the caller's. Nothing here is trusted before they are verified.

use std::fmt;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use url::Url;

use super::{
    discovery::Endpoints,
    launch::{self, split_reference},
    token::TokenAnswer,
};
use crate::profile::{PatientSource, Profile};

/// The claims that are used.
#[derive(Clone, PartialEq)]
pub struct IdTokenClaims {
    pub iss: String,
    pub sub: String,
    pub aud: Vec<String>,
    pub azp: Option<String>,
    /// Seconds since 1970.
    pub exp: u64,
    pub iat: Option<u64>,
    pub nonce: Option<String>,
    /// `fhirUser`, or `profile` where it is a reference (SMART 1.0, Oracle before 2020).
    pub fhir_user: Option<String>,
    /// The other claims, for `patient_from = ["claim:NAME"]`.
    pub others: Map<String, Value>,
}

impl fmt::Debug for IdTokenClaims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdTokenClaims").field("iss", &self.iss).field("exp", &self.exp).finish_non_exhaustive()
    }
}

impl<'de> Deserialize<'de> for IdTokenClaims {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::read(Map::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

/// Why an id_token is refused. Texts name claims, never their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimFault {
    #[error("the claim `{0}` is missing or malformed")]
    Malformed(&'static str),
    #[error("`iss` is not the issuer that the profile expects")]
    Issuer,
    /// The profile says `discovery`, and discovery names no issuer.
    #[error("which issuer to expect is unknown: set `id_token.issuer`")]
    UnknownIssuer,
    #[error("`aud` does not name our client id")]
    Audience,
    #[error("`azp` is not our client id")]
    AuthorizedParty,
    #[error("it has expired")]
    Expired,
    #[error("`iat` is in the future")]
    IssuedInFuture,
    #[error("`nonce` is not the one that was sent")]
    Nonce,
}

/// What an id_token is held against.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    pub issuer: &'a IssuerRule,
    pub client_id: &'a str,
    /// None where none was sent.
    pub nonce: Option<&'a str>,
    /// Seconds since 1970.
    pub now: u64,
    /// Seconds by which clocks may differ.
    pub leeway: u64,
}

impl IdTokenClaims {
    fn read(mut claims: Map<String, Value>) -> Result<Self, ClaimFault> {
        let mut text = |name: &'static str| match claims.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(ClaimFault::Malformed(name)),
        };
        let needed = |value: Option<String>, name| {
            value.filter(|text| !text.is_empty() && text.len() <= 1024).ok_or(ClaimFault::Malformed(name))
        };
        let iss = needed(text("iss")?, "iss")?;
        let sub = needed(text("sub")?, "sub")?;
        let (azp, nonce) = (text("azp")?, text("nonce")?);
        let fhir_user = text("fhirUser")?.filter(|text| !text.is_empty());
        let profile = claims.get("profile").and_then(Value::as_str).filter(|text| split_reference(text).is_some());
        let fhir_user = fhir_user.or_else(|| profile.map(str::to_owned));
        let aud = match claims.remove("aud") {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(many)) => many
                .into_iter()
                .map(|one| match one {
                    Value::String(one) => Ok(one),
                    _ => Err(ClaimFault::Malformed("aud")),
                })
                .collect::<Result<_, _>>()?,
            _ => return Err(ClaimFault::Malformed("aud")),
        };
        let exp = claims.remove("exp").as_ref().and_then(seconds).ok_or(ClaimFault::Malformed("exp"))?;
        let iat = match claims.remove("iat") {
            None | Some(Value::Null) => None,
            Some(value) => Some(seconds(&value).ok_or(ClaimFault::Malformed("iat"))?),
        };
        Ok(Self { iss, sub, aud, azp, exp, iat, nonce, fhir_user, others: claims })
    }

    /// OpenID Connect Core §3.1.3.7, less the signature.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn check(&self, expected: &Expected<'_>) -> Result<(), ClaimFault> {
        expected.issuer.check(&self.iss)?;
        if !self.aud.iter().any(|aud| aud == expected.client_id) {
            return Err(ClaimFault::Audience);
        }
        if self.azp.as_deref().is_some_and(|azp| azp != expected.client_id) {
            return Err(ClaimFault::AuthorizedParty);
        }
        if self.exp.saturating_add(expected.leeway) <= expected.now {
            return Err(ClaimFault::Expired);
        }
        if self.iat.is_some_and(|iat| iat > expected.now.saturating_add(expected.leeway)) {
            return Err(ClaimFault::IssuedInFuture);
        }
        if expected.nonce.is_some() && self.nonce.as_deref() != expected.nonce {
            return Err(ClaimFault::Nonce);
        }
        Ok(())
    }
}

fn seconds(value: &Value) -> Option<u64> {
    // NumericDate may have a fraction (RFC 7519 §2).
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked in the condition")]
    let whole = |number: f64| (number >= 0.0).then_some(number as u64);
    value.as_u64().or_else(|| whole(value.as_f64()?))
}

/// Which `iss` an id_token must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IssuerRule {
    /// Compared byte for byte.
    Exact(String),
    /// One or more path segments between the two.
    Between {
        before: String,
        after: String,
    },
    Unknown,
}

impl IssuerRule {
    /// # Errors
    /// [`ClaimFault::Issuer`] or [`ClaimFault::UnknownIssuer`]
    pub fn check(&self, iss: &str) -> Result<(), ClaimFault> {
        let met = match self {
            Self::Exact(expected) => expected == iss,
            Self::Between { before, after } => iss
                .strip_prefix(before.as_str())
                .and_then(|rest| rest.strip_suffix(after.as_str()))
                .is_some_and(is_path),
            Self::Unknown => return Err(ClaimFault::UnknownIssuer),
        };
        if met { Ok(()) } else { Err(ClaimFault::Issuer) }
    }
}

fn is_path(text: &str) -> bool {
    text.split('/').all(|segment| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~'))
    })
}

/// The rule of the profile's `id_token.issuer`, with its placeholders filled in: `{authorize_base}` (the
/// authorization endpoint less its query and last segment), `{base}` (the FHIR base without final slash)
/// and `{discovery}` (the smart-configuration's issuer). A `*` stands for path segments: it is taken only
/// behind a host.
pub fn issuer_expected(profile: &Profile, endpoints: &Endpoints, fhir_base: &str) -> IssuerRule {
    let mut text = match profile.id_token.issuer.as_str() {
        "discovery" => "{discovery}".to_owned(),
        text => text.to_owned(),
    };
    if text.contains("{discovery}") {
        let Some(issuer) = &endpoints.issuer else { return IssuerRule::Unknown };
        text = text.replace("{discovery}", issuer);
    }
    text = text.replace("{authorize_base}", &authorize_base(&endpoints.authorize));
    text = text.replace("{base}", fhir_base.trim_end_matches('/'));
    match text.split_once('*') {
        None => IssuerRule::Exact(text),
        Some((before, after)) if behind_host(before) && !after.contains('*') => {
            IssuerRule::Between { before: before.to_owned(), after: after.to_owned() }
        }
        Some(_) => IssuerRule::Unknown,
    }
}

fn authorize_base(authorize: &Url) -> String {
    let mut url = authorize.clone();
    url.set_query(None);
    let text = url.as_str();
    text.rsplit_once('/').map_or(text, |(base, _)| base).to_owned()
}

fn behind_host(text: &str) -> bool {
    text.split_once("://").and_then(|(_, rest)| rest.split_once('/')).is_some_and(|(host, _)| !host.is_empty())
}

/// The person that uses the app, as a FHIR resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FhirUser {
    /// `Patient`, `Practitioner`, `PractitionerRole`, `RelatedPerson` or `Person`.
    pub resource_type: &'static str,
    pub id: String,
    /// Whether it stands at the site: relative, or absolute on its host. Elsewhere the id names another
    /// server's resource.
    pub here: bool,
}

impl FhirUser {
    /// Reads `fhirUser`, absolute or relative. Of an absolute one only host and last segments count:
    /// Epic documents one with a stray `/oauth2/` in its path, and EHRs spell their base in several ways.
    pub fn parse(text: &str, fhir_base: &Url) -> Option<Self> {
        const TYPES: [&str; 5] = ["Patient", "Practitioner", "PractitionerRole", "RelatedPerson", "Person"];
        let reference = split_reference(text)?;
        let resource_type = TYPES.into_iter().find(|known| *known == reference.resource_type)?;
        let here = match reference.before {
            "" => true,
            _ => Url::parse(text).is_ok_and(|url| url.host() == fhir_base.host()),
        };
        Some(Self { resource_type, id: reference.id.to_owned(), here })
    }
}

/// The patient in context, from the first of the profile's sources that names one.
pub fn patient(
    answer: &TokenAnswer,
    claims: Option<&IdTokenClaims>,
    patient_from: &[PatientSource],
    fhir_base: &Url,
) -> Option<String> {
    patient_from.iter().find_map(|source| match source {
        PatientSource::Patient => answer.context.patient.clone(),
        PatientSource::FhirUser => {
            let user = FhirUser::parse(claims?.fhir_user.as_deref()?, fhir_base)?;
            (user.here && user.resource_type == "Patient").then_some(user.id)
        }
        PatientSource::Claim(name) => {
            let value = claims.and_then(|claims| claims.others.get(name)).or_else(|| answer.extras.get(name))?;
            launch::id(value, "Patient").ok().flatten()
        }
    })
}
