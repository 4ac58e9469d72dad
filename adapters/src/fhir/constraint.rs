//! Whether a resource satisfies the query of a scope (`patient/Observation.rs?category=…|laboratory`).
//!
//! Only token parameters whose element stands at a resource's root are known, which is what scopes are
//! constrained by in practice. Anything else is not decided, and the judge refuses what is not decided.

use serde_json::{Map, Value};

use super::members::Members;

/// Token parameters and their elements.
const TOKENS: [(&str, &str); 10] = [
    ("category", "category"),
    ("code", "code"),
    ("status", "status"),
    ("type", "type"),
    ("class", "class"),
    ("intent", "intent"),
    ("clinical-status", "clinicalStatus"),
    ("verification-status", "verificationStatus"),
    ("lifecycle-status", "lifecycleStatus"),
    ("identifier", "identifier"),
];

/// Whether that parameter of a scope's query can be enforced on that type.
pub fn is_enforceable(resource_type: &str, parameter: &str) -> bool {
    element(resource_type, parameter).is_some()
}

fn element(resource_type: &str, parameter: &str) -> Option<&'static str> {
    // Their `code` is that of a medication, which may be another resource.
    let is_elsewhere = parameter == "code" && resource_type.starts_with("Medication") && resource_type != "Medication";
    let row = TOKENS.iter().find(|(name, _)| *name == parameter).filter(|_| !is_elsewhere);
    row.map(|(_, element)| *element)
}

/// Whether a resource (in JSON) satisfies one parameter of a query; alternatives stand between commas. A resource in
/// several categories satisfies by any of them. `None`: not to be decided.
pub fn satisfies(resource: &[u8], parameter: &str, value: &str) -> Option<bool> {
    let members: Members<'_> = serde_json::from_slice(resource).ok()?;
    let resource_type: String = serde_json::from_str(members.get("resourceType")?.get()).ok()?;
    let element = element(&resource_type, parameter)?;
    // An escaped comma or bar would have to be told from a real one.
    if value.contains('\\') || value.split(',').any(str::is_empty) {
        return None;
    }
    let found: Option<Value> = members.get(element).map(|raw| serde_json::from_str(raw.get())).transpose().ok()?;
    Some(value.split(',').map(Token::parse).any(|token| found.as_ref().is_some_and(|value| token.matches(value))))
}

struct Token<'a> {
    /// Absent: any; empty: none.
    system: Option<&'a str>,
    /// Empty: any.
    code: &'a str,
}

impl<'a> Token<'a> {
    fn parse(text: &'a str) -> Self {
        match text.split_once('|') {
            Some((system, code)) => Self { system: Some(system), code },
            None => Self { system: None, code: text },
        }
    }

    /// A code, Coding, CodeableConcept or Identifier, or a list of them.
    fn matches(&self, value: &Value) -> bool {
        match value {
            Value::String(code) => self.system.is_none() && self.code == code,
            Value::Array(items) => items.iter().any(|item| self.matches(item)),
            Value::Object(members) => match members.get("coding") {
                Some(codings) => self.matches(codings),
                None => self.matches_coding(members),
            },
            _ => false,
        }
    }

    fn matches_coding(&self, members: &Map<String, Value>) -> bool {
        let text = |name: &str| members.get(name).and_then(Value::as_str);
        // An Identifier has `value` where a Coding has `code`.
        let code = text("code").or_else(|| text("value"));
        let system_fits = self.system.is_none_or(|system| text("system").unwrap_or_default() == system);
        let code_fits = code.is_some_and(|code| self.code.is_empty() || self.code == code);
        system_fits && code_fits && !(self.code.is_empty() && self.system.is_none_or(str::is_empty))
    }
}
