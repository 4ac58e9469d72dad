//! Scopes: one normal form for v1, v2 and what EHRs write in their place (SMART App Launch 2.2, "Scopes and Launch
//! Context").
//!
//! An app's scopes are read strictly ([`Asked`]): what is malformed is dropped and never guessed at. An EHR's are read
//! leniently ([`ScopeSet::parse_lenient`]), but never as more than they say. Both become a [`ScopeSet`], and only sets
//! are compared; the text is kept beside ([`Written`]), for an app is answered byte for byte in what it wrote.
//!
//! ```
//! use mantel_adapters::smart::scope::{Asked, Context, Coverage, Permissions};
//!
//! let asked = Asked::parse("launch/patient patient/Observation.read patient/Observation.sr");
//! assert_eq!(asked.written().len(), 2);
//! assert_eq!(asked.malformed().len(), 1);
//! let set = asked.set();
//! assert_eq!(set.permits(Context::Patient, "Observation", Permissions::SEARCH), Coverage::Yes);
//! assert_eq!(set.permits(Context::User, "Observation", Permissions::SEARCH), Coverage::No);
//! ```

mod asked;
mod lenient;
mod parse;
mod permissions;
mod query;
mod set;

use std::fmt;

pub use self::{
    asked::{Asked, Written},
    lenient::Lenient,
    parse::{Malformed, MalformedKind},
    permissions::Permissions,
    query::ScopeQuery,
    set::{Coverage, ScopeSet},
};

/// Whose access a resource scope speaks of. Contexts match only themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Context {
    /// The patient in context.
    Patient,
    /// Whatever the user may see.
    User,
    /// An app acting for itself (Backend Services).
    System,
}

impl Context {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Patient => "patient",
            Self::User => "user",
            Self::System => "system",
        }
    }
}

impl fmt::Display for Context {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.as_str())
    }
}

/// The resource of a scope.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TypeOrAny {
    Any,
    /// A resource type of R4.
    Type(String),
}

impl TypeOrAny {
    /// `*` or the type's name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Any => "*",
            Self::Type(name) => name,
        }
    }
}

impl fmt::Display for TypeOrAny {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.as_str())
    }
}

/// The two ways to spell permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Syntax {
    /// `.read`, `.write`, `.*`
    V1,
    /// `.cruds` and subsets
    V2,
}

/// One resource scope in normal form. Displayed in v2.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceScope {
    pub context: Context,
    pub resource: TypeOrAny,
    pub permissions: Permissions,
    pub query: Option<ScopeQuery>,
}

impl ResourceScope {
    /// The scope as a token, if this syntax can say exactly it: v1 knows no queries and only three permission sets.
    pub fn to_token(&self, syntax: Syntax) -> Option<String> {
        match syntax {
            Syntax::V2 => Some(self.to_string()),
            Syntax::V1 if self.query.is_some() => None,
            Syntax::V1 => self.permissions.v1_word().map(|word| format!("{}/{}.{word}", self.context, self.resource)),
        }
    }

    pub(crate) fn with(&self, permissions: Permissions) -> Self {
        Self { permissions, ..self.clone() }
    }
}

impl fmt::Display for ResourceScope {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}/{}.{}", self.context, self.resource, self.permissions)?;
        match &self.query {
            Some(query) => write!(to, "?{query}"),
            None => Ok(()),
        }
    }
}

/// A scope that asks for launch context.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LaunchScope {
    /// `launch`: the context of the EHR that launches.
    Ehr,
    Patient,
    Encounter,
    /// `launch/imagingstudy`, `launch/list?role=…` (experimental): delivered in `fhirContext`.
    Other {
        /// In its R4 spelling: `ImagingStudy`.
        resource_type: String,
        /// As written, percent-encoding and all.
        role: Option<String>,
    },
}

impl fmt::Display for LaunchScope {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ehr => to.write_str("launch"),
            Self::Patient => to.write_str("launch/patient"),
            Self::Encounter => to.write_str("launch/encounter"),
            Self::Other { resource_type, role } => {
                write!(to, "launch/{}", resource_type.to_ascii_lowercase())?;
                match role {
                    Some(role) => write!(to, "?role={role}"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// Any scope. The order of the variants is the order in which scopes are written to an EHR.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    Launch(LaunchScope),
    OpenId,
    FhirUser,
    /// v1's name for `fhirUser`.
    Profile,
    OfflineAccess,
    OnlineAccess,
    /// An absolute URI, a `__name`, or one of the few known words beside SMART's (`email`).
    Extension(String),
    Resource(ResourceScope),
}

impl Scope {
    /// Parses one token exactly.
    ///
    /// # Errors
    /// Why it is no scope.
    pub fn parse(token: &str) -> Result<Self, Malformed> {
        match parse::token(token) {
            Ok((scope, _)) => Ok(scope),
            Err(kind) => Err(Malformed { token: token.to_owned(), kind }),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Launch(launch) => launch.fmt(to),
            Self::OpenId => to.write_str("openid"),
            Self::FhirUser => to.write_str("fhirUser"),
            Self::Profile => to.write_str("profile"),
            Self::OfflineAccess => to.write_str("offline_access"),
            Self::OnlineAccess => to.write_str("online_access"),
            Self::Resource(resource) => resource.fmt(to),
            Self::Extension(text) => to.write_str(text),
        }
    }
}
