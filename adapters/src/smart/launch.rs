//! Launch context (SMART App Launch 2.2, "Scopes and Launch Context"), normalised.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// What an EHR's token answer says of the launch, in the form in which an app is told it.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LaunchContext {
    /// A bare id, never a reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patient: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encounter: Option<String>,
    /// Objects, as 2.2 has them.
    #[serde(rename = "fhirContext", skip_serializing_if = "Vec::is_empty")]
    pub fhir_context: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub need_patient_banner: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smart_style_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Members whose names begin with `__` or are absolute URIs: passed on as they are.
    #[serde(flatten)]
    pub extensions: Map<String, Value>,
}

/// Names nobody: what holds one may stand in a log by mistake.
impl std::fmt::Debug for LaunchContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let told = |value: &Option<String>| value.as_ref().map(|_| "…");
        f.debug_struct("LaunchContext")
            .field("patient", &told(&self.patient))
            .field("encounter", &told(&self.encounter))
            .field("need_patient_banner", &self.need_patient_banner)
            .finish_non_exhaustive()
    }
}

impl LaunchContext {
    /// Takes the launch parameters out of a token answer; what is left in `members` is none.
    ///
    /// # Errors
    /// The name of a member that must be an id and is none: a wrong patient is worse than no launch.
    pub(crate) fn take_from(members: &mut Map<String, Value>) -> Result<Self, &'static str> {
        let text = |value: Value| match value {
            Value::String(text) if !text.is_empty() => Some(text),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let context = Self {
            patient: members
                .remove("patient")
                .map_or(Ok(None), |value| id(&value, "Patient"))
                .map_err(|()| "patient")?,
            encounter: members
                .remove("encounter")
                .map_or(Ok(None), |value| id(&value, "Encounter"))
                .map_err(|()| "encounter")?,
            fhir_context: members.remove("fhirContext").map(fhir_context).unwrap_or_default(),
            need_patient_banner: members.remove("need_patient_banner").as_ref().and_then(boolean),
            smart_style_url: members.remove("smart_style_url").and_then(text),
            intent: members.remove("intent").and_then(text),
            tenant: members.remove("tenant").and_then(text),
            extensions: Map::new(),
        };
        let (extensions, rest) = std::mem::take(members).into_iter().partition(|(name, _)| is_extension(name));
        *members = rest;
        Ok(Self { extensions, ..context })
    }
}

/// SMART 2.2 lets a server add members by a full URI; Epic's begin with `__`.
fn is_extension(name: &str) -> bool {
    name.starts_with("__") || name.starts_with("http://") || name.starts_with("https://") || name.starts_with("urn:")
}

/// An id, from a string, a number, or a reference to that type. Empty and null are none.
pub(crate) fn id(value: &Value, resource_type: &str) -> Result<Option<String>, ()> {
    let text = match value {
        Value::Null => return Ok(None),
        Value::String(text) if text.is_empty() => return Ok(None),
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_u64() => number.to_string(),
        _ => return Err(()),
    };
    if is_id(&text) {
        return Ok(Some(text));
    }
    match split_reference(&text) {
        Some(reference) if reference.resource_type == resource_type => Ok(Some(reference.id.to_owned())),
        _ => Err(()),
    }
}

/// FHIR R4 `id`.
pub(crate) fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        && !matches!(text, "." | "..")
}

/// A literal reference, taken apart; `before` is what stands before the type, empty if it is relative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reference<'a> {
    pub(crate) before: &'a str,
    pub(crate) resource_type: &'a str,
    pub(crate) id: &'a str,
    pub(crate) version: Option<&'a str>,
}

pub(crate) fn split_reference(text: &str) -> Option<Reference<'_>> {
    if text.contains(['?', '#', '|']) || text.chars().any(char::is_whitespace) {
        return None;
    }
    let (rest, version) = match text.rsplit_once("/_history/") {
        Some((rest, version)) => (rest, Some(version)),
        None => (text, None),
    };
    let (rest, id) = rest.rsplit_once('/')?;
    let (before, resource_type) = rest.rsplit_once('/').unwrap_or(("", rest));
    let typed = resource_type.starts_with(|c: char| c.is_ascii_uppercase())
        && resource_type.len() <= 64
        && resource_type.bytes().all(|b| b.is_ascii_alphabetic());
    (typed && is_id(id) && version.is_none_or(is_id)).then_some(Reference { before, resource_type, id, version })
}

/// Real booleans: `"false"` (Epic) is true in JavaScript.
fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        Value::String(text) if text.trim().eq_ignore_ascii_case("true") => Some(true),
        Value::String(text) if text.trim().eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// Items that say nothing by 2.2's rules are left out: an experimental member fails no launch.
fn fhir_context(value: Value) -> Vec<Value> {
    let items = match value {
        Value::Array(items) => items,
        item @ (Value::Object(_) | Value::String(_)) => vec![item],
        _ => Vec::new(),
    };
    items.into_iter().filter_map(context_item).collect()
}

fn context_item(item: Value) -> Option<Value> {
    let mut item = match item {
        // Before 2.1 items were bare references.
        Value::String(reference) => return relative(&reference).map(|reference| json!({ "reference": reference })),
        Value::Object(item) => item,
        _ => return None,
    };
    item.retain(|_, value| !value.is_null());
    if let Some(reference) = item.get("reference") {
        match reference.as_str().and_then(relative) {
            Some(reference) => item.insert("reference".into(), Value::String(reference)),
            None => item.remove("reference"),
        };
    }
    if item.get("role").and_then(Value::as_str).is_none_or(str::is_empty) {
        item.remove("role");
    }
    if item.get("identifier").is_some_and(|identifier| !identifier.is_object()) {
        item.remove("identifier");
    }
    if item.get("canonical").is_some_and(|canonical| !canonical.is_string()) {
        item.remove("canonical");
    }
    let says = ["reference", "canonical", "identifier"].iter().any(|name| item.contains_key(*name));
    says.then_some(Value::Object(item))
}

/// `Type/id`: an EHR's absolute reference would lead an app past the gateway.
fn relative(reference: &str) -> Option<String> {
    let found = split_reference(reference)?;
    Some(match found.version {
        Some(version) => format!("{}/{}/_history/{version}", found.resource_type, found.id),
        None => format!("{}/{}", found.resource_type, found.id),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fhir_context_becomes_objects_with_relative_references() {
        let given = json!([
            "https://ehr.example/fhir/ImagingStudy/1",
            {"reference": "https://ehr.example/fhir/Observation/2/_history/3", "role": ""},
            {"canonical": "http://example.org/Questionnaire/q|1", "type": "Questionnaire", "reference": null},
            {"reference": "#contained"},
            {"identifier": "9"},
            7
        ]);
        let expected = json!([
            {"reference": "ImagingStudy/1"},
            {"reference": "Observation/2/_history/3"},
            {"canonical": "http://example.org/Questionnaire/q|1", "type": "Questionnaire"}
        ]);
        assert_eq!(Value::Array(fhir_context(given)), expected);
    }

    #[test]
    fn ids_are_ids_or_references_to_their_type() {
        let cases = [
            (json!("a-195900.E-1"), Ok(Some("a-195900.E-1"))),
            (json!(12), Ok(Some("12"))),
            (json!("Patient/12"), Ok(Some("12"))),
            (json!("https://ehr.example/r4/Patient/12"), Ok(Some("12"))),
            (json!(""), Ok(None)),
            (json!(null), Ok(None)),
            (json!("Encounter/12"), Err(())),
            (json!("1/../2"), Err(())),
            (json!(".."), Err(())),
            (json!(-1), Err(())),
            (json!(["12"]), Err(())),
        ];
        for (given, expected) in cases {
            assert_eq!(id(&given, "Patient"), expected.map(|id| id.map(str::to_owned)), "{given}");
        }
    }
}
