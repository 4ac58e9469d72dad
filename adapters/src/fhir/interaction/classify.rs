//! From method, target, headers and body to an [`Interaction`] (FHIR R4, "RESTful API").
//!
//! What is no interaction of R4 is a fault, never passed on: the judge decides on interactions alone.

use std::fmt;

use http::{HeaderMap, Method};
use serde::Deserialize;

use super::Interaction;
use crate::fhir::{compartment::is_object, links::BINDING, types::is_resource_type};

/// Compartments that R4 defines; only below them a third segment may be a type.
const COMPARTMENTS: [&str; 5] = ["Patient", "Encounter", "RelatedPerson", "Practitioner", "Device"];

/// Headers by which some servers take another method than the judged one.
const METHOD_OVERRIDES: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];

/// What the body of a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    Empty,
    /// `application/x-www-form-urlencoded`
    Form,
    /// JSON or XML, FHIR's media types or the plain ones.
    Resource,
    /// JSON Patch or XML Patch. A FHIRPath Patch is a [`BodyKind::Resource`].
    Patch,
    Bundle(BundleKind),
    /// Any other media type: a Binary's content.
    Other,
}

/// The two Bundles that may be sent to the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleKind {
    Batch,
    Transaction,
}

/// Why a body sent to the base is neither batch nor transaction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleFault {
    #[error("the body is no JSON object with one `resourceType` and one `type`: expected a Bundle")]
    Malformed,
    #[error("the body is a {0}: expected a Bundle of type batch or transaction")]
    NotABundle(String),
    #[error("the Bundle's type is {0:?}: expected batch or transaction")]
    Type(String),
}

/// Why a request is no interaction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClassifyFault {
    #[error("the header {0} is refused: send the method itself")]
    MethodOverride(&'static str),
    #[error("access_token in the URL or form is refused: send it in the Authorization header")]
    TokenInQuery,
    #[error("{0:?} is no resource type of FHIR R4 and no path of this server")]
    UnknownPath(String),
    #[error("{0:?} is no id: expected 1 to 64 of A-Z, a-z, 0-9, - and .")]
    InvalidId(String),
    #[error("{method} is not defined here: expected {expected}")]
    MethodNotAllowed { method: Method, expected: &'static str },
    #[error("a conditional {0} needs criteria: expected search parameters in the URL")]
    NoCriteria(&'static str),
    #[error("the body is not what this interaction takes: expected {0}")]
    Body(&'static str),
}

impl ClassifyFault {
    /// The HTTP status of the answer.
    pub fn status(&self) -> u16 {
        match self {
            Self::MethodOverride(_) | Self::TokenInQuery | Self::InvalidId(_) => 400,
            Self::UnknownPath(_) => 404,
            Self::MethodNotAllowed { .. } => 405,
            Self::NoCriteria(_) => 412,
            Self::Body(_) => 415,
        }
    }

    /// FHIR's issue-type code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MethodOverride(_) | Self::TokenInQuery => "security",
            Self::UnknownPath(_) | Self::MethodNotAllowed { .. } | Self::Body(_) => "not-supported",
            Self::InvalidId(_) => "value",
            Self::NoCriteria(_) => "required",
        }
    }
}

/// R4's id: `[A-Za-z0-9\-\.]{1,64}`.
pub fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
}

/// What a body is by its media type; a Bundle sent to the base is then told by [`bundle_kind`].
pub fn body_kind(content_type: Option<&str>, is_empty: bool) -> BodyKind {
    let Some(content_type) = content_type else {
        return if is_empty { BodyKind::Empty } else { BodyKind::Other };
    };
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/x-www-form-urlencoded" => BodyKind::Form,
        "application/json-patch+json" | "application/xml-patch+xml" => BodyKind::Patch,
        "application/fhir+json"
        | "application/json+fhir"
        | "application/json"
        | "text/json"
        | "application/fhir+xml"
        | "application/xml+fhir"
        | "application/xml"
        | "text/xml" => {
            if is_empty {
                BodyKind::Empty
            } else {
                BodyKind::Resource
            }
        }
        _ if is_empty => BodyKind::Empty,
        _ => BodyKind::Other,
    }
}

/// The kind of a Bundle, read without parsing what is in it. Repeated members are a fault: another
/// parser might take the other one.
pub fn bundle_kind(body: &[u8]) -> Result<BundleKind, BundleFault> {
    #[derive(Deserialize)]
    struct Head {
        #[serde(rename = "resourceType")]
        resource_type: String,
        #[serde(rename = "type", default)]
        kind: Option<serde_json::Value>,
    }
    if !is_object(body) {
        return Err(BundleFault::Malformed);
    }
    let head: Head = serde_json::from_slice(body).map_err(|_| BundleFault::Malformed)?;
    if head.resource_type != "Bundle" {
        return Err(BundleFault::NotABundle(short(&head.resource_type)));
    }
    match head.kind.as_ref().and_then(serde_json::Value::as_str) {
        Some("batch") => Ok(BundleKind::Batch),
        Some("transaction") => Ok(BundleKind::Transaction),
        other => Err(BundleFault::Type(short(other.unwrap_or("absent")))),
    }
}

/// What is quoted of a request in a message.
fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

/// The interaction that a request is. `path` and `query` come from [`super::parse_target`]; HEAD counts
/// as GET.
pub fn classify(
    method: &Method,
    path: &[String],
    query: &[(String, String)],
    headers: &HeaderMap,
    body: BodyKind,
) -> Result<Interaction, ClassifyFault> {
    if let Some(name) = METHOD_OVERRIDES.into_iter().find(|name| headers.contains_key(*name)) {
        return Err(ClassifyFault::MethodOverride(name));
    }
    if has(query, "access_token") {
        return Err(ClassifyFault::TokenInQuery);
    }
    let request = Asked { verb: Verb::of(method), method, query, headers, body };
    // Only GETs are pages: a link's binding opens nothing else.
    if request.verb == Verb::Get && (has(query, BINDING) || path.is_empty() && has(query, "_getpages")) {
        return Ok(Interaction::Page);
    }
    let segments: Vec<&str> = path.iter().map(String::as_str).collect();
    match segments.as_slice() {
        [] => request.at_base(),
        ["metadata"] => request.only(Verb::Get, "GET", Interaction::Capabilities),
        ["_history"] => request.only(Verb::Get, "GET", Interaction::HistorySystem),
        ["_search"] => request.post_search(Interaction::SearchSystem),
        [operation] if operation.starts_with('$') => request.operation(operation, None, None),
        [resource_type, rest @ ..] if is_resource_type(resource_type) => request.below(resource_type, rest),
        [first, ..] => Err(ClassifyFault::UnknownPath(short(first))),
    }
}

fn has(query: &[(String, String)], name: &str) -> bool {
    query.iter().any(|(key, _)| key == name)
}

fn checked_id(text: &str) -> Result<String, ClassifyFault> {
    if is_id(text) { Ok(text.to_owned()) } else { Err(ClassifyFault::InvalidId(short(text))) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Get,
    Post,
    Put,
    Patch,
    Delete,
    Other,
}

impl Verb {
    fn of(method: &Method) -> Self {
        match *method {
            Method::GET | Method::HEAD => Self::Get,
            Method::POST => Self::Post,
            Method::PUT => Self::Put,
            Method::PATCH => Self::Patch,
            Method::DELETE => Self::Delete,
            _ => Self::Other,
        }
    }
}

struct Asked<'a> {
    verb: Verb,
    method: &'a Method,
    query: &'a [(String, String)],
    headers: &'a HeaderMap,
    body: BodyKind,
}

impl fmt::Debug for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").field("verb", &self.verb).field("body", &self.body).finish_non_exhaustive()
    }
}

impl Asked<'_> {
    fn refuse(&self, expected: &'static str) -> ClassifyFault {
        ClassifyFault::MethodNotAllowed { method: self.method.clone(), expected }
    }

    fn only(&self, verb: Verb, expected: &'static str, then: Interaction) -> Result<Interaction, ClassifyFault> {
        if self.verb == verb { Ok(then) } else { Err(self.refuse(expected)) }
    }

    /// A form, or nothing where all parameters are in the URL.
    fn post_search(&self, then: Interaction) -> Result<Interaction, ClassifyFault> {
        let then = self.only(Verb::Post, "POST", then)?;
        match self.body {
            BodyKind::Form | BodyKind::Empty => Ok(then),
            _ => Err(ClassifyFault::Body("application/x-www-form-urlencoded")),
        }
    }

    fn at_base(&self) -> Result<Interaction, ClassifyFault> {
        match (self.verb, self.body) {
            (Verb::Get, _) => Ok(Interaction::SearchSystem),
            (Verb::Post, BodyKind::Bundle(BundleKind::Batch)) => Ok(Interaction::Batch),
            (Verb::Post, BodyKind::Bundle(BundleKind::Transaction)) => Ok(Interaction::Transaction),
            (Verb::Post, _) => Err(ClassifyFault::Body("a Bundle of type batch or transaction, in JSON")),
            _ => Err(self.refuse("GET or POST")),
        }
    }

    fn below(&self, resource_type: &str, rest: &[&str]) -> Result<Interaction, ClassifyFault> {
        let named = || resource_type.to_owned();
        match rest {
            [] => self.at_type(resource_type),
            ["_search"] => self.post_search(Interaction::SearchType { resource_type: named() }),
            ["_history"] => self.only(Verb::Get, "GET", Interaction::HistoryType { resource_type: named() }),
            [operation] if operation.starts_with('$') => self.operation(operation, Some(resource_type), None),
            [id] => self.at_instance(resource_type, checked_id(id)?),
            [id, "_history"] => {
                let found = Interaction::HistoryInstance { resource_type: named(), id: checked_id(id)? };
                self.only(Verb::Get, "GET", found)
            }
            [id, "_history", version] => {
                let (id, version) = (checked_id(id)?, checked_id(version)?);
                self.only(Verb::Get, "GET", Interaction::VRead { resource_type: named(), id, version })
            }
            [id, operation] if operation.starts_with('$') => {
                self.operation(operation, Some(resource_type), Some(checked_id(id)?))
            }
            [id, wanted, search @ ..] if COMPARTMENTS.contains(&resource_type) => {
                self.in_compartment(resource_type, checked_id(id)?, wanted, search)
            }
            [.., last] => Err(ClassifyFault::UnknownPath(short(last))),
        }
    }

    fn at_type(&self, resource_type: &str) -> Result<Interaction, ClassifyFault> {
        let resource_type = resource_type.to_owned();
        match self.verb {
            Verb::Get => Ok(Interaction::SearchType { resource_type }),
            Verb::Post => {
                let conditional = self.headers.contains_key("if-none-exist");
                self.with_resource(Interaction::Create { resource_type, conditional })
            }
            Verb::Put => {
                self.criteria("update")?;
                self.with_resource(Interaction::Update { resource_type, id: None })
            }
            Verb::Patch => {
                self.criteria("patch")?;
                self.with_patch(Interaction::Patch { resource_type, id: None })
            }
            Verb::Delete => {
                self.criteria("delete")?;
                Ok(Interaction::Delete { resource_type, id: None })
            }
            Verb::Other => Err(self.refuse("GET, POST, PUT, PATCH or DELETE")),
        }
    }

    /// Parameters that shape an answer select nothing: `DELETE Observation?_format=json` would empty a type.
    fn criteria(&self, what: &'static str) -> Result<(), ClassifyFault> {
        const SHAPING: [&str; 5] = ["_format", "_pretty", "_summary", "_elements", "_count"];
        let selects = |(name, value): &(String, String)| !SHAPING.contains(&name.as_str()) && !value.is_empty();
        if self.query.iter().any(selects) { Ok(()) } else { Err(ClassifyFault::NoCriteria(what)) }
    }

    fn at_instance(&self, resource_type: &str, id: String) -> Result<Interaction, ClassifyFault> {
        let resource_type = resource_type.to_owned();
        match self.verb {
            Verb::Get => Ok(Interaction::Read { resource_type, id }),
            Verb::Put => self.with_resource(Interaction::Update { resource_type, id: Some(id) }),
            Verb::Patch => self.with_patch(Interaction::Patch { resource_type, id: Some(id) }),
            Verb::Delete => Ok(Interaction::Delete { resource_type, id: Some(id) }),
            Verb::Post | Verb::Other => Err(self.refuse("GET, PUT, PATCH or DELETE")),
        }
    }

    fn in_compartment(
        &self,
        compartment: &str,
        id: String,
        wanted: &str,
        search: &[&str],
    ) -> Result<Interaction, ClassifyFault> {
        let resource_type = match wanted {
            "*" => None,
            name if is_resource_type(name) => Some(name.to_owned()),
            other => return Err(ClassifyFault::UnknownPath(short(other))),
        };
        let found = Interaction::SearchCompartment { compartment: compartment.to_owned(), id, resource_type };
        match search {
            [] => self.only(Verb::Get, "GET", found),
            ["_search"] => self.post_search(found),
            [other, ..] => Err(ClassifyFault::UnknownPath(short(other))),
        }
    }

    fn operation(
        &self,
        segment: &str,
        resource_type: Option<&str>,
        id: Option<String>,
    ) -> Result<Interaction, ClassifyFault> {
        let name = segment.strip_prefix('$').unwrap_or_default();
        let fits =
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        match self.verb {
            Verb::Get | Verb::Post if fits => Ok(Interaction::Operation {
                name: name.to_owned(),
                resource_type: resource_type.map(str::to_owned),
                id,
            }),
            Verb::Get | Verb::Post => Err(ClassifyFault::UnknownPath(short(segment))),
            _ => Err(self.refuse("GET or POST")),
        }
    }

    /// Any media type may be a Binary; elsewhere a resource is JSON or XML.
    fn with_resource(&self, then: Interaction) -> Result<Interaction, ClassifyFault> {
        match self.body {
            BodyKind::Resource | BodyKind::Bundle(_) => Ok(then),
            BodyKind::Other | BodyKind::Form | BodyKind::Patch if then.resource_type() == Some("Binary") => Ok(then),
            _ => Err(ClassifyFault::Body("a resource as application/fhir+json or application/fhir+xml")),
        }
    }

    fn with_patch(&self, then: Interaction) -> Result<Interaction, ClassifyFault> {
        match self.body {
            BodyKind::Patch | BodyKind::Resource => Ok(then),
            _ => Err(ClassifyFault::Body("application/json-patch+json, or a FHIRPath Patch as application/fhir+json")),
        }
    }
}
