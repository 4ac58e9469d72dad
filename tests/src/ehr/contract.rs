//! What the two halves of a simulated EHR, its authorization server and its FHIR server, know of each
//! other.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Method};

/// Which EHR is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Vendor {
    Epic,
    Oracle,
    /// athenaOne
    Athena,
    /// athenaPractice, athenaFlow
    AthenaPractice,
    /// A plain SMART 2.2 server.
    Generic,
}

impl Vendor {
    pub const ALL: [Self; 5] = [Self::Epic, Self::Oracle, Self::Athena, Self::AthenaPractice, Self::Generic];

    pub const fn text(self) -> &'static str {
        match self {
            Self::Epic => "epic",
            Self::Oracle => "oracle",
            Self::Athena => "athena",
            Self::AthenaPractice => "athena-practice",
            Self::Generic => "generic",
        }
    }
}

/// A FHIR request, its path and query raw, as they came below the FHIR base.
#[derive(Clone, Debug)]
pub struct FhirCall {
    pub method: Method,
    /// Raw path below the base, with its leading `/` (or empty).
    pub path: String,
    /// Raw query, without `?`.
    pub query: Option<String>,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The bearer's facts; none: no token, or one that is unknown or expired.
    pub token: Option<TokenFacts>,
    /// Milliseconds since 1970.
    pub now: i64,
}

/// What a live access token stands for at the EHR.
#[derive(Clone, Debug, Default)]
pub struct TokenFacts {
    pub client_id: String,
    /// As granted, in the EHR's own spelling.
    pub scopes: Vec<String>,
    /// The patient in context.
    pub patient: Option<String>,
    /// Relative: `Practitioner/…` or `Patient/…`.
    pub fhir_user: Option<String>,
    pub tenant: Option<String>,
}

/// The answer, whole.
pub type FhirAnswer = http::Response<Bytes>;

/// How often each thing was asked, by name: `token:refresh_token`, `fhir:GET Patient`, `authorize` …
#[derive(Clone, Default)]
pub struct Counters(Arc<Mutex<BTreeMap<String, u64>>>);

impl Counters {
    pub fn count(&self, name: impl Into<String>) {
        let mut counts = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *counts.entry(name.into()).or_default() += 1;
    }

    pub fn get(&self, name: &str) -> u64 {
        self.all().get(name).copied().unwrap_or(0)
    }

    pub fn all(&self) -> BTreeMap<String, u64> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    pub fn reset(&self) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
    }
}

/// What a simulated EHR is told to be; `mantel-tests` and the binary's command line both fill it.
#[derive(Clone, Debug)]
pub struct Behaviour {
    pub vendor: Vendor,
    /// The harsher claims: short lifetimes, single-use refresh tokens, no wildcards …
    pub strict: bool,
    /// The base URL under which the EHR is reached, without a path: `http://epic.localhost:9100`.
    pub origin: String,
    pub switches: Switches,
}

/// Single behaviours (`vendors.md` part B); `None` is the vendor's (or strict's) own default.
#[derive(Clone, Debug, Default)]
pub struct Switches {
    /// Access token lifetime in seconds.
    pub access_lifetime: Option<u64>,
    /// Seconds that a refresh token lives, from its first issue or (`Sliding`) its last use; answers say what is left
    /// of it, as `refresh_expires_in`.
    pub refresh_lifetime: Option<u32>,
    pub rotation: Option<Rotation>,
    /// The app record's scope version: v1 answers to v1 records whatever was asked.
    pub record_v1: Option<bool>,
    /// Scopes in odd case and order, duplicated, one more than asked.
    pub odd_scopes: Option<bool>,
    /// Leave `offline_access` out of `scope` though a refresh token is there.
    pub hide_offline_access: Option<bool>,
    /// `need_patient_banner` as the string `"false"`.
    pub banner_as_string: Option<bool>,
    /// Whether standalone launches of providers get a patient picker.
    pub provider_picker: Option<bool>,
    /// Answer `Patient?_id=`.
    pub patient_by_id: Option<bool>,
    /// Serve smart-configuration.
    pub smart_configuration: Option<bool>,
    /// Access tokens are 2 KB JWTs.
    pub jwt_tokens: Option<bool>,
    /// Oracle: seconds between two refreshes of one grant.
    pub min_refresh_interval: Option<u32>,
    /// athenaOne: token requests of all apps.
    pub token_requests_per_minute: Option<u32>,
    /// Largest `_count`.
    pub page_size: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// The first refresh token stays.
    Fixed,
    /// A new one each time, the end stays; the old one dies at once.
    Rolling,
    /// A new one each time with a new end; the old one dies at once.
    Sliding,
}
