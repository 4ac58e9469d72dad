//! From an app's scopes to an EHR's and back (`conformance.md` C2 and C4, `design.md` "Scopes").
//!
//! ```text
//! app asks ──▶ Asked ─┬─ ∩ Allowed (what the app may ask) ∩ Ticked (what the registration has) ── ask() ──▶ Request ──▶ EHR
//!                     │                                                                              │
//! app is told ◀── Granted ◀── report(): in the app's own words, never wider than asked ∩ granted ◀───┴── EHR's `scope`
//! ```
//!
//! Two things may be wider upstream than what the app gets: a permission set or a query that the vendor's dialect cannot
//! say (the smallest scope around it is asked), and `user/` in the place of `patient/` where the EHR names no patient and
//! Mantel asks the user. What the EHR's token can do more than the grant is refused by the judge, by
//! [`Granted::enforced`].

mod ask;
mod narrow;
mod report;

use serde::{Deserialize, Serialize};

pub use self::{
    ask::{AskOptions, GrantKind, Request, ask},
    narrow::{Narrowed, WiderThanGranted, narrow},
    report::{AnswerFacts, DeliveredContext, Granted, report},
};
use super::scope::{Malformed, MalformedKind, Permissions, ResourceScope, Scope, ScopeSet, Syntax, TypeOrAny};
use crate::profile::{Dialect, ScopePolicy, Wildcards};

/// Who refused a scope, as an app is told in `__scopes_refused`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// Not allowed to the app, or not ticked in the registration at the vendor.
    Registration,
    /// The vendor cannot be asked for it.
    Vendor,
    /// The user declined.
    User,
    /// The EHR did not grant it.
    Ehr,
}

/// An asked scope, or the part of it, that is not granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// As asked where all of it is refused; else the missing part.
    pub scope: String,
    pub by: By,
}

impl Refused {
    fn new(scope: impl Into<String>, by: By) -> Self {
        Self { scope: scope.into(), by }
    }

    /// The missing part of a resource scope, in the words of who asked where these can say it.
    fn part(text: &str, syntax: Option<Syntax>, scope: &ResourceScope, missing: Permissions, by: By) -> Self {
        if missing == scope.permissions {
            return Self::new(text, by);
        }
        let part = scope.with(missing);
        let said = syntax.and_then(|syntax| part.to_token(syntax));
        Self::new(said.unwrap_or_else(|| part.to_string()), by)
    }
}

/// A configured scope that will not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScopeFault {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("`{0}` is a wildcard and the vendor has none: expected the types that are ticked, one by one")]
    Wildcard(String),
    #[error("`{0}` cannot be said to a vendor that speaks v1: expected `.read`, `.write` or `.*`")]
    Unsayable(String),
    #[error("`{0}` has a query and the vendor takes none like it: expected the scope without it")]
    Query(String),
}

/// The scopes that an app is configured to ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed(ScopeSet);

impl Allowed {
    /// # Errors
    /// Every entry that is no scope.
    pub fn parse<S: AsRef<str>>(entries: &[S]) -> Result<Self, Vec<ScopeFault>> {
        let (set, faults) = parse_each(entries, |_| false);
        if faults.is_empty() { Ok(Self(set)) } else { Err(faults) }
    }

    pub fn set(&self) -> &ScopeSet {
        &self.0
    }
}

/// The scopes that a registration has ticked at the vendor's portal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ticked {
    set: ScopeSet,
    /// What is no scope of SMART's but this vendor wants in each request (Kaiser's `sandbox`).
    private: Vec<String>,
}

impl Ticked {
    /// # Errors
    /// Every entry that looks like a scope and is none. Other words are the vendor's own and are sent in each request.
    pub fn parse<S: AsRef<str>>(entries: &[S]) -> Result<Self, Vec<ScopeFault>> {
        let mut private = Vec::new();
        let (set, faults) = parse_each(entries, |entry| {
            let own = !resembles_smart(entry);
            if own && !private.iter().any(|known| known == entry) {
                private.push(entry.to_owned());
            }
            own
        });
        if faults.is_empty() { Ok(Self { set, private }) } else { Err(faults) }
    }

    pub fn set(&self) -> &ScopeSet {
        &self.set
    }

    /// What cannot have been ticked at a vendor of this kind, and so is a slip in the configuration.
    pub fn check(&self, policy: &ScopePolicy) -> Vec<ScopeFault> {
        let v1 = policy.dialect != Dialect::V2;
        self.set
            .resources()
            .filter_map(|scope| match (&scope.resource, &scope.query) {
                (TypeOrAny::Any, _) if policy.wildcards == Wildcards::Expand => {
                    Some(ScopeFault::Wildcard(scope.to_string()))
                }
                (_, Some(query)) if !ask::takes(policy, query) => Some(ScopeFault::Query(scope.to_string())),
                _ if v1 && scope.permissions.v1_floor() != scope.permissions => {
                    Some(ScopeFault::Unsayable(scope.to_string()))
                }
                _ => None,
            })
            .collect()
    }
}

/// Parses entries one by one; `excused` may take one that is no scope.
fn parse_each<S: AsRef<str>>(entries: &[S], mut excused: impl FnMut(&str) -> bool) -> (ScopeSet, Vec<ScopeFault>) {
    let mut set = ScopeSet::default();
    let mut faults = Vec::new();
    for entry in entries.iter().map(AsRef::as_ref) {
        match Scope::parse(entry) {
            Ok(scope) => set.insert(scope),
            Err(Malformed { kind: MalformedKind::Unknown, .. }) if excused(entry) => {}
            Err(malformed) => faults.push(malformed.into()),
        }
    }
    (set, faults)
}

/// Whether a word that is no scope was probably meant to be one: `Patient/Observation.read`, `offline-access`.
fn resembles_smart(word: &str) -> bool {
    const WORDS: [&str; 6] = ["launch", "openid", "fhiruser", "profile", "offlineaccess", "onlineaccess"];
    let letters: String = word.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let context = word.split(['/', '.']).next().unwrap_or(word).to_ascii_lowercase();
    WORDS.contains(&letters.as_str()) || ["patient", "user", "system", "launch"].contains(&context.as_str())
}
