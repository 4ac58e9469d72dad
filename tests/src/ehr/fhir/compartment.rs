//! Whose a resource is: the patient compartment, as R4's CompartmentDefinition draws it.

use serde_json::Value;

/// Types that belong to no patient and may be seen by whoever was granted them.
pub fn is_shared(ty: &str) -> bool {
    matches!(ty, "Practitioner" | "PractitionerRole" | "Organization" | "Location" | "Medication" | "Questionnaire")
}

/// The paths that tie a type to patients.
fn paths(ty: &str) -> &'static [&'static str] {
    match ty {
        "AllergyIntolerance" => &["patient", "recorder", "asserter"],
        "Basic" => &["subject", "author"],
        "CarePlan" | "Observation" | "DiagnosticReport" => &["subject", "performer"],
        "CareTeam" => &["subject", "participant.member"],
        "Condition" => &["subject", "asserter"],
        "Coverage" => &["beneficiary", "subscriber", "policyHolder", "payor"],
        "DocumentReference" => &["subject", "author"],
        "Immunization" | "RelatedPerson" | "Device" => &["patient"],
        "Patient" => &["link.other"],
        "Procedure" => &["subject", "performer.actor"],
        "Provenance" => &["target"],
        "QuestionnaireResponse" => &["subject", "author"],
        "ServiceRequest" => &["subject", "performer"],
        _ => &["subject", "patient"],
    }
}

/// The ids of all patients in whose compartment a resource lies; a Binary's owners stand elsewhere
/// ([`super::store::Store::owners`]).
pub fn patients(base: &str, resource: &Value) -> Vec<String> {
    let ty = resource.get("resourceType").and_then(Value::as_str).unwrap_or_default();
    let mut found = Vec::new();
    if ty == "Patient" {
        found.extend(resource.get("id").and_then(Value::as_str).map(str::to_owned));
    }
    for path in paths(ty) {
        for value in collect(resource, path) {
            let target = value.get("reference").and_then(Value::as_str).and_then(|text| local(base, text));
            if let Some(("Patient", id)) = target
                && !found.iter().any(|known| known == id)
            {
                found.push(id.to_owned());
            }
        }
    }
    found
}

/// Splits `Type/id`, `{base}/Type/id` and either with a version; nothing else is ours.
pub fn local<'a>(base: &str, reference: &'a str) -> Option<(&'a str, &'a str)> {
    let relative = match reference.strip_prefix(base) {
        Some(rest) => rest.strip_prefix('/')?,
        None if reference.contains("://") => return None,
        None => reference,
    };
    let mut parts = relative.split('/');
    let (ty, id) = (parts.next()?, parts.next()?);
    let version = match (parts.next(), parts.next(), parts.next()) {
        (None, None, None) => true,
        (Some("_history"), Some(version), None) => !version.is_empty(),
        _ => false,
    };
    (version && ty.starts_with(|first: char| first.is_ascii_uppercase()) && !id.is_empty()).then_some((ty, id))
}

/// All values at a dotted path; arrays are walked through.
pub fn collect<'a>(resource: &'a Value, path: &str) -> Vec<&'a Value> {
    let mut found = vec![resource];
    for step in path.split('.') {
        found = found.into_iter().filter_map(|value| value.get(step)).flat_map(flat).collect();
    }
    found
}

fn flat(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        other => vec![other],
    }
}
