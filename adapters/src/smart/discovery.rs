//! Discovery documents of EHRs: smart-configuration (SMART App Launch 2.2, "Conformance"), the
//! `oauth-uris` of a CapabilityStatement, and openid-configuration (OpenID Connect Discovery 1.0).
//!
//! Whoever controls these documents controls where codes and secrets are sent. So an endpoint must be
//! https, must have neither fragment nor credentials, and a member that stands twice is refused;
//! [`held`] names what an operator has to confirm. What is merely odd is taken, and reported as an
//! [`Oddity`], so that `mantel probe` can tell it.

mod capability;
mod configuration;
mod resolve;

use std::fmt;

use url::Url;

pub use self::{
    capability::{CapabilityFacts, ResourceFacts, parse_capability_statement},
    configuration::{OpenIdConfiguration, SmartConfiguration, parse_openid_configuration, parse_smart_configuration},
    resolve::{EndpointName, Endpoints, HeldEndpoint, ResolveFault, audience, held, resolve},
};
use super::json::JsonFault;

/// Longest endpoint that is taken; browsers and EHRs break on longer ones.
const LONGEST_ENDPOINT: usize = 2048;

/// Why a discovery document is not used. Texts name members, never their values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryFault {
    #[error("the document is empty: expected a JSON object")]
    Empty,
    #[error("the document is not UTF-8 (RFC 8259 §8.1)")]
    NotUtf8,
    /// A login page, a portal's shell or a firewall's block page; often with status 200.
    #[error("the document is an HTML page: expected a JSON object")]
    Html,
    #[error("the document is XML: expected JSON (was `Accept` sent?)")]
    Xml,
    #[error("the document is no JSON: syntax error at line {line}, column {column}")]
    NotJson { line: usize, column: usize },
    #[error("the document is {found}: expected a JSON object")]
    NotObject { found: &'static str },
    #[error("the member `{0}` stands twice: which one is meant cannot be known")]
    DuplicateMember(String),
    #[error("`{0}` is missing or empty")]
    MissingEndpoint(&'static str),
    #[error("`{0}` is no URL of a server: expected https://host/path")]
    InvalidEndpoint(&'static str),
    #[error("`{0}` has a fragment (RFC 6749 §3.1 forbids it)")]
    EndpointHasFragment(&'static str),
    #[error("`{0}` holds credentials")]
    EndpointHasCredentials(&'static str),
    #[error("`{0}` is not https, though the FHIR base is")]
    InsecureEndpoint(&'static str),
    #[error("`{0}` is named twice with different values")]
    AmbiguousEndpoint(&'static str),
    #[error("the resource is {found:?}: expected a CapabilityStatement of FHIR R4")]
    WrongResourceType { found: String },
    #[error("fhirVersion is {found:?}: expected 4.0.1 (is the base that of another FHIR version?)")]
    WrongFhirVersion { found: String },
}

impl DiscoveryFault {
    /// A closed set of names, for metrics and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::NotUtf8 => "not_utf8",
            Self::Html => "html",
            Self::Xml => "xml",
            Self::NotJson { .. } => "not_json",
            Self::NotObject { .. } => "not_object",
            Self::DuplicateMember(_) => "duplicate_member",
            Self::MissingEndpoint(_) => "missing_endpoint",
            Self::InvalidEndpoint(_) => "invalid_endpoint",
            Self::EndpointHasFragment(_) => "endpoint_has_fragment",
            Self::EndpointHasCredentials(_) => "endpoint_has_credentials",
            Self::InsecureEndpoint(_) => "insecure_endpoint",
            Self::AmbiguousEndpoint(_) => "ambiguous_endpoint",
            Self::WrongResourceType { .. } => "wrong_resource_type",
            Self::WrongFhirVersion { .. } => "wrong_fhir_version",
        }
    }
}

impl From<JsonFault> for DiscoveryFault {
    fn from(fault: JsonFault) -> Self {
        match fault {
            JsonFault::Empty => Self::Empty,
            JsonFault::NotUtf8 => Self::NotUtf8,
            JsonFault::Html => Self::Html,
            JsonFault::Xml => Self::Xml,
            JsonFault::Syntax { line, column } => Self::NotJson { line, column },
            JsonFault::Duplicate(name) => Self::DuplicateMember(name),
        }
    }
}

/// What is wrong in a document and tolerated on purpose: each was seen at a vendor that works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Oddity {
    ByteOrderMark,
    /// Resolved against the FHIR base, read as a folder.
    RelativeEndpoint(&'static str),
    /// `"a b"` or `"a,b"` in the place of `["a", "b"]`.
    ListAsString(&'static str),
    /// `[["a"]]` (OpenEMR).
    NestedList(&'static str),
    /// Items that are no strings were left out.
    ItemsIgnored(&'static str),
    NullMember(&'static str),
    EmptyMember(&'static str),
    WrongType(&'static str),
    Misnamed {
        given: &'static str,
        expected: &'static str,
    },
    /// `code_challenge_methods_supported` is absent. S256 is sent all the same (RFC 9700 §2.1.1).
    NoPkceList,
    /// The list is there, without S256. `plain` is never used.
    PkceWithoutS256,
    NoCapabilities,
    /// Parameters are appended with `&` (RFC 6749 §3.1).
    AuthorizeHasQuery,
    /// The issuer is on another host than the FHIR base and the endpoints.
    IssuerElsewhere,
    /// The issuer is the URL of an openid-configuration (Oracle in 2021); it is cut back.
    IssuerIsDocument,
    /// `context-passthrough-*` of the first SMART drafts.
    OldCapabilityNames,
    /// An endpoint that is not needed to authorize was left out.
    EndpointDropped {
        name: &'static str,
        fault: DiscoveryFault,
    },
    /// `management_endpoint` is the FHIR base itself (Veradigm); left out.
    ManagementIsBase,
    /// `oauth-uris` under a wrong URL, such as `http://DSTU2/fhir-registry…` (athenahealth, Epic).
    MisnamedExtension,
    /// Another patch of R4, such as 4.0.0.
    FhirVersion(String),
}

impl fmt::Display for Oddity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByteOrderMark => f.write_str("a byte order mark stands before the document"),
            Self::RelativeEndpoint(name) => write!(f, "`{name}` is relative: resolved against the FHIR base"),
            Self::ListAsString(name) => write!(f, "`{name}` is a string: read as a list"),
            Self::NestedList(name) => write!(f, "`{name}` is a list in a list: flattened"),
            Self::ItemsIgnored(name) => write!(f, "`{name}` has items that are no strings: left out"),
            Self::NullMember(name) => write!(f, "`{name}` is null: read as absent"),
            Self::EmptyMember(name) => write!(f, "`{name}` is empty: read as absent"),
            Self::WrongType(name) => write!(f, "`{name}` has the wrong type: read as absent"),
            Self::Misnamed { given, expected } => write!(f, "`{given}` stands where `{expected}` is meant"),
            Self::NoPkceList => f.write_str("PKCE is not announced: S256 is sent all the same"),
            Self::PkceWithoutS256 => f.write_str("PKCE is announced without S256: S256 is sent all the same"),
            Self::NoCapabilities => f.write_str("no capabilities are announced"),
            Self::AuthorizeHasQuery => f.write_str("the authorization endpoint has a query: parameters are appended"),
            Self::IssuerElsewhere => f.write_str("the issuer is on another host than the endpoints"),
            Self::IssuerIsDocument => f.write_str("the issuer is the URL of its openid-configuration: cut back"),
            Self::OldCapabilityNames => f.write_str("capabilities have the names of the first SMART drafts"),
            Self::EndpointDropped { name, fault } => write!(f, "`{name}` is not used: {fault}"),
            Self::ManagementIsBase => f.write_str("the management endpoint is the FHIR base: not used"),
            Self::MisnamedExtension => f.write_str("`oauth-uris` stands under a wrong URL"),
            Self::FhirVersion(found) => write!(f, "fhirVersion is {found}: taken as R4"),
        }
    }
}

/// An endpoint that may be used, and whether it was relative.
fn endpoint(name: &'static str, text: &str, base: &Url) -> Result<(Url, bool), DiscoveryFault> {
    // `Url` would silently drop tabs and newlines, so that what is checked is not what was sent.
    if text.len() > LONGEST_ENDPOINT || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(DiscoveryFault::InvalidEndpoint(name));
    }
    let (url, relative) = match Url::parse(text) {
        Ok(url) => (url, false),
        Err(url::ParseError::RelativeUrlWithoutBase) => {
            let url = folder(base).join(text).map_err(|_| DiscoveryFault::InvalidEndpoint(name))?;
            (url, true)
        }
        Err(_) => return Err(DiscoveryFault::InvalidEndpoint(name)),
    };
    match url.scheme() {
        "https" => {}
        "http" if base.scheme() == "http" => {}
        _ => return Err(DiscoveryFault::InsecureEndpoint(name)),
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(DiscoveryFault::InvalidEndpoint(name));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(DiscoveryFault::EndpointHasCredentials(name));
    }
    if url.fragment().is_some() {
        return Err(DiscoveryFault::EndpointHasFragment(name));
    }
    Ok((url, relative))
}

/// The base with a final slash: FHIR resolves relative URLs below the base, not beside it.
fn folder(base: &Url) -> Url {
    let mut base = base.clone();
    if !base.path().ends_with('/') {
        base.set_path(&format!("{}/", base.path()));
    }
    base.set_query(None);
    base.set_fragment(None);
    base
}

fn same_host(a: &Url, b: &Url) -> bool {
    a.host() == b.host()
}
