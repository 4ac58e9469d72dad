//! Scope strings of EHRs: any case, any order, legacy spellings, and much that is no SMART scope.
//!
//! Lenient in spelling, never in meaning: what cannot be read grants nothing.

use super::{Context, Permissions, ResourceScope, Scope, ScopeQuery, ScopeSet, TypeOrAny, asked, parse};
use crate::fhir::types;

/// A hostile or broken answer; the longest real list (MEDITECH's) has 581.
const MAX_TOKENS: usize = 2048;

/// See the same bound on what apps ask.
const MAX_CONSTRAINED_WILDCARDS: usize = 8;

/// What an EHR's scope string says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lenient {
    pub set: ScopeSet,
    /// The resource scopes of `set` in the EHR's order.
    pub(crate) order: Vec<ResourceScope>,
    /// Resource scopes for types or versions that are not R4's (Epic: `user/ProcedureRequest.Read`): no R4 resource can
    /// be covered by them.
    pub foreign: Vec<String>,
    /// What could mean anything: Epic's `Patient.Search` without a context, OpenEMR's `api:oemr`. With any of these the
    /// EHR's grant is not wholly known.
    pub unreadable: Vec<String>,
}

enum Read {
    Known(Scope),
    Foreign,
    Unreadable,
}

pub(super) fn parse(text: &str) -> Lenient {
    let mut lenient = Lenient::default();
    let mut constrained_wildcards = 0;
    let mut tokens = text.split_ascii_whitespace().peekable();
    for _ in 0..MAX_TOKENS {
        let Some(token) = tokens.next() else { return lenient };
        // Epic's old records name the version after a blank: `Patient.Read (STU3)`.
        let version = tokens.next_if(|next| next.starts_with('('));
        let read = match version {
            Some(version) if !version.eq_ignore_ascii_case("(R4)") => Read::Foreign,
            _ => read(token),
        };
        match read {
            Read::Known(scope) => {
                constrained_wildcards += usize::from(asked::is_constrained_wildcard(&scope));
                if constrained_wildcards > MAX_CONSTRAINED_WILDCARDS {
                    lenient.unreadable.push(token.to_owned());
                } else {
                    if let Scope::Resource(resource) = &scope {
                        lenient.order.push(resource.clone());
                    }
                    lenient.set.insert(scope);
                }
            }
            Read::Foreign => lenient.foreign.push(token.to_owned()),
            Read::Unreadable => lenient.unreadable.push(token.to_owned()),
        }
    }
    lenient.unreadable.extend(tokens.next().map(str::to_owned));
    lenient
}

fn read(token: &str) -> Read {
    if !token.bytes().all(parse::is_token_byte) || parse::is_reserved(token) {
        return Read::Unreadable;
    }
    let token = parse::URI_PREFIXES.iter().find_map(|prefix| token.strip_prefix(prefix)).unwrap_or(token);
    if let Some(word) = word(token) {
        return Read::Known(word);
    }
    if let Some((context, rest)) =
        token.split_once('/').and_then(|(context, rest)| Some((self::context(context)?, rest)))
    {
        return resource(context, rest);
    }
    if parse::extension(token) { Read::Known(Scope::Extension(token.to_owned())) } else { Read::Unreadable }
}

fn word(token: &str) -> Option<Scope> {
    let lower = token.to_ascii_lowercase();
    if lower == "fhiruser" {
        return Some(Scope::FhirUser);
    }
    let launch = || {
        // A role is case-sensitive.
        let (path, role) = token.split_at(token.find('?').unwrap_or(token.len()));
        let path = path.to_ascii_lowercase();
        parse::launch(&format!("{}{role}", path.strip_prefix("launch/")?)).map(Scope::Launch)
    };
    parse::word(&lower).or_else(launch)
}

fn context(text: &str) -> Option<Context> {
    [Context::Patient, Context::User, Context::System]
        .into_iter()
        .find(|known| known.as_str().eq_ignore_ascii_case(text))
}

fn resource(context: Context, rest: &str) -> Read {
    let (head, query) = match rest.split_once('?') {
        Some((head, query)) => (head, Some(query)),
        None => (rest, None),
    };
    let Some((name, word)) = head.split_once('.') else { return Read::Unreadable };
    let Some(permissions) = permissions(&word.to_ascii_lowercase()) else { return Read::Unreadable };
    let resource = match types::canonical(name) {
        Some(known) => TypeOrAny::Type(known.to_owned()),
        None if name == "*" => TypeOrAny::Any,
        None if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphabetic()) => return Read::Foreign,
        None => return Read::Unreadable,
    };
    let query = match query {
        None => None,
        // A constraint that cannot be read must not become none.
        Some(text) => match ScopeQuery::parse(text) {
            Some(query) => Some(query),
            None => return Read::Unreadable,
        },
    };
    Read::Known(Scope::Resource(ResourceScope { context, resource, permissions, query }))
}

fn permissions(word: &str) -> Option<Permissions> {
    // `search` and `create` are no words of v1, but EHRs' records have them (Oracle, Epic), each for the one thing.
    let one = match word {
        "search" => Permissions::SEARCH,
        "create" => Permissions::CREATE,
        "update" => Permissions::UPDATE,
        "delete" => Permissions::DELETE,
        _ => return Permissions::parse_v1(word).or_else(|| Permissions::parse_unordered(word)),
    };
    Some(one)
}
