//! A refresh with `scope`: a token for less (RFC 6749 §6, `conformance.md` C4.9).

use crate::smart::scope::{Asked, ScopeSet};

/// An access token's share of a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Narrowed {
    /// The asked subset, byte for byte.
    pub reported: String,
    pub enforced: ScopeSet,
}

/// More was asked than is granted: `invalid_scope`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{scope}` is not within the grant: expected scopes of the first answer, or narrower ones")]
pub struct WiderThanGranted {
    /// The first token that is not granted.
    pub scope: String,
}

/// Narrows a grant to the asked scopes: a subset by meaning, not by spelling, and all of it included. Nothing asked is all
/// of it.
///
/// # Errors
/// The first token that is malformed or not within the grant.
pub fn narrow(granted_reported: &str, granted: &ScopeSet, asked: &str) -> Result<Narrowed, WiderThanGranted> {
    let asked = if asked.split(' ').all(str::is_empty) { granted_reported } else { asked };
    let parsed = Asked::parse(asked);
    if let Some(malformed) = parsed.malformed().first() {
        return Err(WiderThanGranted { scope: malformed.token.clone() });
    }
    let wider = parsed.written().iter().find(|written| !granted.covers_scope(&written.scope));
    match wider {
        Some(written) => Err(WiderThanGranted { scope: written.text.clone() }),
        None => Ok(Narrowed { reported: parsed.to_string(), enforced: parsed.set() }),
    }
}
