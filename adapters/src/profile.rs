//! What can be said of a vendor in data.
//!
//! A profile is assembled by `config` from layers (built-in `vendors.toml`, the operator's files, the
//! site's own keys) and arrives here whole. Every key may be set for a vendor and overridden for a
//! site. Vendors differ by hospital and by year, so lifetimes, rotation and scopes are *learnt* from
//! each answer; a profile holds what to assume until then.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

/// One vendor's behaviour, as far as data can say it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Profile {
    /// The code for the rest: `generic`, `epic`, `oracle` or `athena` (see [`crate::registry`]).
    pub adapter: String,
    pub scopes: ScopePolicy,
    pub tokens: TokenPolicy,
    /// PKCE towards the EHR. S256 is sent whatever discovery says; `off` is for servers that refuse it.
    pub pkce: Pkce,
    /// Where endpoints are looked up, in this order, one after the other.
    pub discovery: Vec<DiscoverySource>,
    /// Endpoints that win over discovery; absolute URLs, or relative to the FHIR base.
    pub endpoints: EndpointOverrides,
    /// Hosts besides the site's own where discovery may put its endpoints. Others are held until an
    /// operator confirms them.
    pub auth_hosts: Vec<String>,
    pub id_token: IdTokenPolicy,
    pub headers: HeaderPolicy,
    /// Parameters added to each FHIR request, values may hold `{tenant}` and `{client_id}`.
    pub query: BTreeMap<String, String>,
    pub search: SearchPolicy,
    /// Who lets a user choose the patient in a standalone launch.
    pub standalone_patient: StandalonePatient,
    pub budget: Budget,
    /// What an error answer means. Named, so that an operator can add or replace one; the most exact
    /// match wins.
    pub errors: BTreeMap<String, ErrorRule>,
    /// The `aud` of an authorization request: `base`, a URL, or a reference relative to the FHIR base
    /// (`../..`; see [`crate::smart::discovery::audience`]).
    pub aud: String,
    /// Whether a `nonce` is sent with `openid`.
    pub nonce: bool,
    /// Where the patient in context is read from, first hit wins: `patient`, `fhirUser`, `claim:NAME`.
    pub patient_from: Vec<PatientSource>,
    /// Whether revoking one token leaves the EHR's other tokens of that user and registration alone.
    pub revoke_per_token: bool,
    /// Whether the EHR takes batch Bundles; else they are played entry by entry.
    pub batch: bool,
    /// Searches that the EHR refuses unless a further parameter narrows them, by resource type.
    pub fan_out: BTreeMap<String, FanOut>,
    /// How long the vendor keeps our public keys.
    #[serde(with = "duration")]
    pub jwks_cache: Duration,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            adapter: "generic".into(),
            scopes: ScopePolicy::default(),
            tokens: TokenPolicy::default(),
            pkce: Pkce::S256,
            discovery: vec![DiscoverySource::SmartConfiguration, DiscoverySource::CapabilityStatement],
            endpoints: EndpointOverrides::default(),
            auth_hosts: Vec::new(),
            id_token: IdTokenPolicy::default(),
            headers: HeaderPolicy::default(),
            query: BTreeMap::new(),
            search: SearchPolicy::default(),
            standalone_patient: StandalonePatient::Ehr,
            budget: Budget::default(),
            errors: BTreeMap::new(),
            aud: "base".into(),
            nonce: true,
            patient_from: vec![PatientSource::Patient, PatientSource::FhirUser],
            revoke_per_token: false,
            batch: false,
            fan_out: BTreeMap::new(),
            jwks_cache: Duration::from_secs(24 * 3600),
        }
    }
}

/// How scopes are written to a vendor (`conformance.md` part C).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScopePolicy {
    /// What the vendor is asked in. What it answers in is read off each answer.
    pub dialect: Dialect,
    pub wildcards: Wildcards,
    /// Whether it takes query-constrained scopes (`?category=…`); else they are widened upstream and
    /// enforced here.
    pub queries: bool,
}

impl Default for ScopePolicy {
    fn default() -> Self {
        Self { dialect: Dialect::V2, wildcards: Wildcards::Expand, queries: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// `patient/Observation.read`
    V1,
    /// `patient/Observation.rs`
    V2,
    /// `patient/observation.read`: legacy servers, towards the EHR only.
    V1Lowercase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wildcards {
    /// `patient/*.rs` is sent as it is.
    Keep,
    /// It is sent as the types that the registration has ticked, one by one.
    Expand,
}

/// What is assumed of a vendor's tokens until an answer teaches better (`custody.md`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenPolicy {
    /// Lifetime of an access token whose answer names none.
    #[serde(with = "duration")]
    pub assume_lifetime: Duration,
    /// How long before its end a token falls due; clamped to 40 % of the learnt lifetime.
    #[serde(with = "duration")]
    pub refresh_before: Duration,
    /// The scope that asks for a refresh token: `offline_access`, `online_access` or `none`.
    pub refresh_scope: RefreshScope,
    /// Whether a refresh request repeats the scope that was granted.
    pub send_scope_on_refresh: bool,
    /// No two refreshes of a grant within this time; clamped to half the learnt lifetime.
    #[serde(with = "duration")]
    pub min_refresh_interval: Duration,
    /// For how long the vendor answers a reused refresh token with the same answer again.
    #[serde(with = "duration")]
    pub reuse_grace: Duration,
    /// Whether a refresh token dies with the access token it came with.
    pub dies_with_access: bool,
    /// How long a refresh token lives from the answer that it came with or was last used for, where a use prolongs its
    /// life: an app's `keep_alive` uses it before its end. None: not known, or it ends whatever is done.
    #[serde(with = "duration::optional")]
    pub refresh_lifetime: Option<Duration>,
}

impl Default for TokenPolicy {
    fn default() -> Self {
        Self {
            assume_lifetime: Duration::from_secs(3600),
            refresh_before: Duration::from_secs(300),
            refresh_scope: RefreshScope::OfflineAccess,
            send_scope_on_refresh: false,
            min_refresh_interval: Duration::ZERO,
            reuse_grace: Duration::ZERO,
            dies_with_access: false,
            refresh_lifetime: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefreshScope {
    OfflineAccess,
    OnlineAccess,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pkce {
    S256,
    #[serde(rename = "off")]
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiscoverySource {
    /// `{base}/.well-known/smart-configuration`
    SmartConfiguration,
    /// `oauth-uris` in `{base}/metadata`
    CapabilityStatement,
    /// `endpoints` of the profile or site, and nothing is fetched.
    Configuration,
}

/// Endpoints that an operator sets in the place of discovery.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EndpointOverrides {
    pub authorize: Option<String>,
    pub token: Option<String>,
    pub introspect: Option<String>,
    pub revoke: Option<String>,
    pub jwks: Option<String>,
    pub end_session: Option<String>,
}

/// How an EHR's id_token is checked. Issuer and keys are pinned: Oracle's and athena's issuers are
/// not the ones that discovery names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdTokenPolicy {
    /// `discovery` (the smart-configuration's `issuer`), or a URL, in which one `*` stands for path
    /// segments and these placeholders may be: `{discovery}` (that same issuer), `{authorize_base}`
    /// (the authorization endpoint less its last segment), `{base}` (the FHIR base).
    pub issuer: String,
    /// A URL, or `discovery` (the smart-configuration's `jwks_uri`, else the issuer's
    /// openid-configuration, when that issuer is the pinned one).
    pub jwks: String,
}

impl Default for IdTokenPolicy {
    fn default() -> Self {
        Self { issuer: "discovery".into(), jwks: "discovery".into() }
    }
}

/// Headers added to what is sent; values may hold `{client_id}` and `{tenant}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderPolicy {
    pub discovery: BTreeMap<String, String>,
    pub fhir: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SearchPolicy {
    /// Whether `Patient?_id=X` is answered; else it becomes a read whose answer is a searchset.
    pub by_id: bool,
    /// Whether `POST …/_search` is answered; else it becomes a GET.
    pub post: bool,
}

impl Default for SearchPolicy {
    fn default() -> Self {
        Self { by_id: true, post: true }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StandalonePatient {
    /// The EHR asks the user and names the patient.
    Ehr,
    /// The EHR names none (providers at Epic and Oracle): Mantel asks.
    Picker,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// What shares a vendor's limits.
    pub per: BudgetScope,
    /// Concurrent requests; none = the gateway's default.
    pub concurrent: Option<u32>,
    /// Requests a minute; none = unlimited.
    pub per_minute: Option<u32>,
    /// Refreshes a minute that nobody waits for, of each gateway process; none = as many as there is room for.
    pub refreshes_per_minute: Option<u32>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { per: BudgetScope::Site, concurrent: None, per_minute: None, refreshes_per_minute: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BudgetScope {
    Site,
    Authority,
    ClientId,
}

/// Maps an error answer of an EHR to its meaning. Absent members match anything, but a 5xx or 429 is
/// matched only by a rule with that status. Of several that match, `contains` says more than `error`, that more
/// than `status`, that more than `at`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorRule {
    pub means: Meaning,
    #[serde(default)]
    pub at: Option<Place>,
    #[serde(default)]
    pub status: Option<u16>,
    #[serde(default)]
    pub error: Option<String>,
    /// A text that `error_description`, `error_uri` or the body contains, compared without case.
    #[serde(default)]
    pub contains: Option<String>,
}

/// What an error answer means for a grant (`custody.md`, "Every end is known").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Meaning {
    /// The refresh token is gone: the user must authorise again.
    Dead,
    /// A fault that goes by; tried again with backoff.
    Passing,
    /// Our client id, secret, key or registration is wrong: an alarm, never the grant's end.
    Misconfigured,
    /// The EHR holds the grant back until the user acts (Oracle's `error_uri`).
    Suspended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The EHR's redirect back to us with an error; it has no status.
    Authorize,
    /// The exchange of an authorization code.
    Code,
    Refresh,
    /// `client_credentials`.
    Backend,
    Fhir,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatientSource {
    /// The token answer's `patient`.
    Patient,
    /// `fhirUser`, where it names a Patient.
    FhirUser,
    /// A claim of the id_token or of a JWT access token's companion member.
    Claim(String),
}

impl Serialize for PatientSource {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Patient => to.serialize_str("patient"),
            Self::FhirUser => to.serialize_str("fhirUser"),
            Self::Claim(name) => to.collect_str(&format_args!("claim:{name}")),
        }
    }
}

impl<'de> Deserialize<'de> for PatientSource {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        match (text.as_str(), text.strip_prefix("claim:")) {
            ("patient", _) => Ok(Self::Patient),
            ("fhirUser", _) => Ok(Self::FhirUser),
            (_, Some(name)) if !name.is_empty() => Ok(Self::Claim(name.to_owned())),
            _ => Err(serde::de::Error::custom(format_args!(
                "{text:?} is no source of the patient: expected `patient`, `fhirUser` or `claim:NAME`"
            ))),
        }
    }
}

/// A search that becomes several: one per value of `parameter`, merged into one searchset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FanOut {
    pub parameter: String,
    pub values: Vec<String>,
    /// With any of these parameters in the request the search is sent as it is.
    #[serde(default)]
    pub unless: Vec<String>,
}

/// Durations as people write them: `5m`, `1h 30m`, `0s`.
pub mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(*value))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_duration(&text).map_err(|_| {
            serde::de::Error::custom(format_args!("{text:?} is no duration: expected a form like 90s, 5m, 1h or 30d"))
        })
    }

    /// The same, or nothing.
    pub mod optional {
        use std::time::Duration;

        use serde::{Deserialize as _, Deserializer, Serializer};

        pub fn serialize<S: Serializer>(value: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
            match value {
                Some(value) => super::serialize(value, to),
                None => to.serialize_none(),
            }
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
            #[derive(serde::Deserialize)]
            struct Given(#[serde(with = "super")] Duration);
            Ok(Option::<Given>::deserialize(from)?.map(|Given(value)| value))
        }
    }
}
