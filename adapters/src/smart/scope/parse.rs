//! The strict grammar of one scope (`conformance.md` C1).

use super::{Context, LaunchScope, Permissions, ResourceScope, Scope, ScopeQuery, Syntax, TypeOrAny};
use crate::fhir::types;

/// The prefixes that SMART 2.2 gives to scopes where they must be URIs.
pub(super) const URI_PREFIXES: [&str; 2] =
    ["http://smarthealthit.org/fhir/scopes/", "http://openid.net/specs/openid-connect-core-1_0#"];

/// Words beside SMART's own that say nothing of FHIR data: OpenID Connect's, and one of Cerner's DSTU2 days.
const HARMLESS_WORDS: [&str; 4] = ["email", "address", "phone", "smart/orchestrate_launch"];

/// Members that we add to token answers: taken for scopes from outside, they would be confused with ours.
const RESERVED: [&str; 3] = ["__site", "__fhir_base", "__scopes_refused"];

/// A token that is no scope, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{token}` is no scope: {kind}")]
pub struct Malformed {
    pub token: String,
    pub kind: MalformedKind,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedKind {
    #[error("expected printable ASCII without quotes and backslashes (RFC 6749 §3.3)")]
    Characters,
    #[error("expected a scope of SMART App Launch, an absolute URI or a `__name`")]
    Unknown,
    #[error("expected an R4 resource type or `*` after the context, in its exact case")]
    ResourceType,
    #[error("expected `read`, `write`, `*`, or letters of `cruds` in this order, none twice")]
    Permissions,
    #[error("expected no query on a v1 scope")]
    QueryOnV1,
    #[error("expected `name=value` pairs after the `?`")]
    Query,
    #[error("expected `launch/` and an R4 resource type in lower case, with no more than one `?role=`")]
    Launch,
    #[error("expected a name that is not one of the gateway's own")]
    Reserved,
    #[error("expected fewer scopes in one request")]
    TooMany,
}

/// Parses one token exactly. The syntax is that of a resource scope's permissions.
pub(super) fn token(text: &str) -> Result<(Scope, Option<Syntax>), MalformedKind> {
    if !text.bytes().all(is_token_byte) || text.is_empty() {
        return Err(MalformedKind::Characters);
    }
    let text = URI_PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix)).unwrap_or(text);
    if let Some(scope) = word(text) {
        return Ok((scope, None));
    }
    if let Some(rest) = text.strip_prefix("launch/") {
        return launch(rest).map(|launch| (Scope::Launch(launch), None)).ok_or(MalformedKind::Launch);
    }
    for context in [Context::Patient, Context::User, Context::System] {
        if let Some(rest) = text.strip_prefix(context.as_str()).and_then(|rest| rest.strip_prefix('/')) {
            return resource(context, rest).map(|(scope, syntax)| (Scope::Resource(scope), Some(syntax)));
        }
    }
    match extension(text) {
        true if RESERVED.contains(&text) => Err(MalformedKind::Reserved),
        true => Ok((Scope::Extension(text.to_owned()), None)),
        false => Err(MalformedKind::Unknown),
    }
}

/// RFC 6749 §3.3: `%x21 / %x23-5B / %x5D-7E`.
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b'"' && byte != b'\\'
}

pub(super) fn word(text: &str) -> Option<Scope> {
    Some(match text {
        "launch" => Scope::Launch(LaunchScope::Ehr),
        "openid" => Scope::OpenId,
        "fhirUser" => Scope::FhirUser,
        "profile" => Scope::Profile,
        "offline_access" => Scope::OfflineAccess,
        "online_access" => Scope::OnlineAccess,
        _ => return None,
    })
}

/// What follows `launch/`.
pub(super) fn launch(rest: &str) -> Option<LaunchScope> {
    let (name, role) = match rest.split_once('?') {
        Some((name, query)) => (name, Some(query.strip_prefix("role=").filter(|role| !role.is_empty())?)),
        None => (rest, None),
    };
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) || role.is_some_and(|role| role.contains('&')) {
        return None;
    }
    Some(match (types::canonical(name)?, role) {
        ("Patient", None) => LaunchScope::Patient,
        ("Encounter", None) => LaunchScope::Encounter,
        (resource_type, role) => {
            LaunchScope::Other { resource_type: resource_type.to_owned(), role: role.map(str::to_owned) }
        }
    })
}

fn resource(context: Context, rest: &str) -> Result<(ResourceScope, Syntax), MalformedKind> {
    let (head, query) = match rest.split_once('?') {
        Some((head, query)) => (head, Some(query)),
        None => (rest, None),
    };
    let (name, permissions) = head.split_once('.').ok_or(MalformedKind::Permissions)?;
    let resource = match name {
        "*" => TypeOrAny::Any,
        _ if types::is_resource_type(name) => TypeOrAny::Type(name.to_owned()),
        _ => return Err(MalformedKind::ResourceType),
    };
    let (permissions, syntax) = match Permissions::parse_v1(permissions) {
        Some(_) if query.is_some() => return Err(MalformedKind::QueryOnV1),
        Some(known) => (known, Syntax::V1),
        None => (Permissions::parse_v2(permissions).ok_or(MalformedKind::Permissions)?, Syntax::V2),
    };
    let query = match query {
        Some(text) => Some(ScopeQuery::parse(text).ok_or(MalformedKind::Query)?),
        None => None,
    };
    Ok((ResourceScope { context, resource, permissions, query }, syntax))
}

pub(super) fn extension(text: &str) -> bool {
    let uri = |text: &str| match text.split_once(':') {
        Some((scheme, rest)) => {
            let named = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
                && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
            let body = if scheme.eq_ignore_ascii_case("urn") { rest } else { rest.strip_prefix("//").unwrap_or("") };
            named && !body.is_empty()
        }
        None => false,
    };
    HARMLESS_WORDS.contains(&text) || text.strip_prefix("__").is_some_and(|name| !name.is_empty()) || uri(text)
}

/// Whether a token is one of the gateway's own names.
pub(super) fn is_reserved(text: &str) -> bool {
    RESERVED.contains(&text)
}
