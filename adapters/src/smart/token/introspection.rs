//! Introspection answers (RFC 7662): how long a refresh token lives is learnt there.

use std::fmt;

use serde_json::Value;

use super::{TokenErrorKind, members, scope};
use crate::smart::launch;

/// What is used of an introspection answer.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Introspection {
    pub active: bool,
    /// Seconds since 1970.
    pub exp: Option<u64>,
    pub scope: Option<String>,
    pub client_id: Option<String>,
    pub sub: Option<String>,
    pub patient: Option<String>,
    pub fhir_user: Option<String>,
}

impl fmt::Debug for Introspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Introspection").field("active", &self.active).field("exp", &self.exp).finish_non_exhaustive()
    }
}

/// Reads an introspection answer. Without a readable `active: true` a token is not active, and nothing
/// else is read (RFC 7662 §2.2).
///
/// # Errors
/// What the body is, if it is no introspection answer.
pub fn parse_introspection(body: &[u8]) -> Result<Introspection, TokenErrorKind> {
    let members = members(None, body)?;
    let active = match members.get("active") {
        Some(Value::Bool(active)) => *active,
        Some(Value::String(text)) if text == "true" || text == "false" => text == "true",
        _ => return Err(TokenErrorKind::Malformed("active")),
    };
    if !active {
        return Ok(Introspection::default());
    }
    let text =
        |name: &str| members.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    let exp = members.get("exp").and_then(|exp| exp.as_u64().or_else(|| exp.as_str()?.parse().ok()));
    Ok(Introspection {
        active,
        exp,
        scope: members.get("scope").cloned().and_then(scope),
        client_id: text("client_id"),
        sub: text("sub"),
        patient: members.get("patient").and_then(|patient| launch::id(patient, "Patient").ok().flatten()),
        fhir_user: text("fhirUser"),
    })
}
