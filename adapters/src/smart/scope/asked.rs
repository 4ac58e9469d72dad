//! What an app asks for: the tokens in its order and spelling.

use std::{collections::HashSet, fmt};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Malformed, MalformedKind, Scope, ScopeSet, Syntax, TypeOrAny, parse};

/// An authorization request comes from a stranger. R4 has 146 types, so an app that lists them all in three contexts
/// stays well below.
const MAX_TOKENS: usize = 1024;

/// Each of these expands to as many scopes as a registration lists types, and means something for few of them.
const MAX_CONSTRAINED_WILDCARDS: usize = 8;

/// One token that an app asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Byte for byte.
    pub text: String,
    /// How a resource scope's permissions are spelt; `None` for other scopes.
    pub dialect: Option<Syntax>,
    pub scope: Scope,
}

/// A scope string of an app: what it says, in order and once each, and what was dropped because it is malformed (SMART
/// 2.2 leaves the choice; guessing would widen).
///
/// Serialised as the scope string, less what was dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    written: Vec<Written>,
    malformed: Vec<Malformed>,
}

impl Asked {
    pub fn parse(text: &str) -> Self {
        let mut asked = Self::default();
        let mut seen = HashSet::new();
        let mut constrained_wildcards = 0;
        for token in text.split(' ').filter(|token| !token.is_empty() && seen.insert(*token)) {
            let full = asked.written.len() + asked.malformed.len() >= MAX_TOKENS;
            let outcome = if full { Err(MalformedKind::TooMany) } else { parse::token(token) };
            let outcome = match outcome {
                Ok((scope, _))
                    if is_constrained_wildcard(&scope) && constrained_wildcards == MAX_CONSTRAINED_WILDCARDS =>
                {
                    Err(MalformedKind::TooMany)
                }
                other => other,
            };
            match outcome {
                Ok((scope, dialect)) => {
                    constrained_wildcards += usize::from(is_constrained_wildcard(&scope));
                    asked.written.push(Written { text: token.to_owned(), dialect, scope });
                }
                Err(kind) => {
                    asked.malformed.push(Malformed { token: token.to_owned(), kind });
                    if full {
                        break;
                    }
                }
            }
        }
        asked
    }

    pub fn written(&self) -> &[Written] {
        &self.written
    }

    pub fn malformed(&self) -> &[Malformed] {
        &self.malformed
    }

    /// Whether nothing is left that could be asked for: `invalid_scope`.
    pub fn is_empty(&self) -> bool {
        self.written.is_empty()
    }

    /// What it means.
    pub fn set(&self) -> ScopeSet {
        self.written.iter().map(|written| written.scope.clone()).collect()
    }
}

pub(super) fn is_constrained_wildcard(scope: &Scope) -> bool {
    matches!(scope, Scope::Resource(resource) if resource.resource == TypeOrAny::Any && resource.query.is_some())
}

impl fmt::Display for Asked {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, written) in self.written.iter().enumerate() {
            let blank = if index == 0 { "" } else { " " };
            write!(to, "{blank}{}", written.text)?;
        }
        Ok(())
    }
}

impl Serialize for Asked {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Asked {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Self::parse(&String::deserialize(from)?))
    }
}
