//! What an error of an EHR means for a grant (`custody`): by the profile's rules, else by default.

use super::{TokenError, TokenErrorKind};
use crate::{
    profile::{ErrorRule, Meaning, Place, Profile},
    smart::error::OAuthErrorCode,
};

/// What a rule can match on.
#[derive(Clone, Copy, Debug)]
pub struct ErrorFacts<'a> {
    /// 0 where there is none: the error came in a redirect.
    pub status: u16,
    pub error: Option<&'a str>,
    /// Where `contains` is looked for.
    pub texts: &'a [&'a str],
}

/// The meaning of a token endpoint's error, and the name of the rule that gave it.
///
/// Without a rule nothing is dead: a grant ends only because its vendor's profile says so.
pub fn meaning<'p>(profile: &'p Profile, place: Place, error: &TokenError) -> (Meaning, Option<&'p str>) {
    let texts = [
        error.description.as_deref().unwrap_or_default(),
        error.error_uri.as_deref().unwrap_or_default(),
        &error.excerpt,
    ];
    let facts = ErrorFacts { status: error.status, error: error.error.as_deref(), texts: &texts };
    match meaning_of(profile, place, facts) {
        Some((meaning, name)) => (meaning, Some(name)),
        None => (default_meaning(error), None),
    }
}

/// The most exact of the profile's rules that match. A 5xx or 429 is the server's own trouble whatever code
/// it carries (athenaPractice says 500 `invalid_client`), so only a rule with that very status matches it.
pub fn meaning_of<'p>(profile: &'p Profile, place: Place, facts: ErrorFacts<'_>) -> Option<(Meaning, &'p str)> {
    profile
        .errors
        .iter()
        .filter(|(_, rule)| matches(rule, place, facts))
        .max_by_key(|(_, rule)| exactness(rule))
        .map(|(name, rule)| (rule.means, name.as_str()))
}

fn matches(rule: &ErrorRule, place: Place, facts: ErrorFacts<'_>) -> bool {
    let status = match rule.status {
        Some(status) => status == facts.status,
        None => !is_trouble(facts.status),
    };
    let contained = |needle: &String| {
        let needle = needle.to_lowercase();
        facts.texts.iter().any(|text| text.to_lowercase().contains(&needle))
    };
    status
        && rule.at.is_none_or(|at| at == place)
        && rule.error.as_deref().is_none_or(|error| facts.error == Some(error))
        && rule.contains.as_ref().is_none_or(contained)
}

/// A text says more than a code, a code more than a status, a status more than a place.
fn exactness(rule: &ErrorRule) -> [bool; 4] {
    [rule.contains.is_some(), rule.error.is_some(), rule.status.is_some(), rule.at.is_some()]
}

/// Time-outs, throttling and failures of the server.
fn is_trouble(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..)
}

fn default_meaning(error: &TokenError) -> Meaning {
    if is_trouble(error.status) {
        return Meaning::Passing;
    }
    match error.kind {
        // A proxy's or a maintenance page says nothing of the grant.
        TokenErrorKind::Html => return Meaning::Passing,
        // A 2xx that cannot be read is the server's trouble, not our registration's.
        TokenErrorKind::Empty | TokenErrorKind::NotJson | TokenErrorKind::Malformed(_) | TokenErrorKind::Duplicate
            if (200..300).contains(&error.status) =>
        {
            return Meaning::Passing;
        }
        _ => {}
    }
    match error.error.as_deref().and_then(OAuthErrorCode::parse) {
        Some(OAuthErrorCode::ServerError | OAuthErrorCode::TemporarilyUnavailable) => Meaning::Passing,
        _ => Meaning::Misconfigured,
    }
}
