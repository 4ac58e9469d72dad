//! Whether what an app writes is the patient's own. Held to more than the compartment, which also has what merely
//! names the patient somewhere: an Observation of the child that the mother performed is not hers to write.

use mantel_adapters::fhir::{
    compartment::{Belonging, Class, LocalReference, belongs, class, head, local_reference, patient_parameters},
    rewrite::Bases,
};
use serde_json::Value;

/// Whether a resource (in JSON) is that patient's and no other's.
pub(super) fn is_own(resource: &[u8], patient: &str, bases: &Bases) -> bool {
    let Ok(head) = head(resource) else { return false };
    if belongs(resource, patient, bases) != Belonging::Yes {
        return false;
    }
    let Class::Compartment(elements) = class(&head.resource_type) else { return true };
    let Ok(parsed) = serde_json::from_slice::<Value>(resource) else { return false };
    let chooses = |parameter: &str| {
        matches!(parameter, "patient" | "subject") || patient_parameters(&head.resource_type).contains(&parameter)
    };
    let mut ours = false;
    for (parameter, element) in elements {
        let path: Vec<&str> = element.split('.').collect();
        let mut references = Vec::new();
        collect(&parsed, &path, &mut references);
        for reference in references {
            match whose(reference, patient, bases) {
                Whose::Ours => ours |= chooses(parameter),
                Whose::NoPatients => {}
                Whose::Others => return false,
            }
        }
    }
    ours
}

enum Whose {
    Ours,
    Others,
    NoPatients,
}

fn whose(reference: &Value, patient: &str, bases: &Bases) -> Whose {
    let text = |name: &str| reference.get(name).and_then(Value::as_str);
    match text("reference") {
        Some(literal) => match local_reference(literal, bases) {
            Some(LocalReference { resource_type: "Patient", id }) if id == patient => Whose::Ours,
            Some(LocalReference { resource_type: "Patient", .. }) => Whose::Others,
            Some(_) => Whose::NoPatients,
            None if literal.contains("Patient/") || literal.contains("Patient?") => Whose::Others,
            None => Whose::NoPatients,
        },
        // A logical reference cannot be compared.
        None if text("type").is_some_and(|name| name.ends_with("Patient")) => Whose::Others,
        None => Whose::NoPatients,
    }
}

/// The values at a path, lists entered.
fn collect<'v>(value: &'v Value, path: &[&str], found: &mut Vec<&'v Value>) {
    match (value, path) {
        (Value::Array(items), _) => items.iter().for_each(|item| collect(item, path, found)),
        (value, []) => found.push(value),
        (Value::Object(members), [name, rest @ ..]) => {
            if let Some(value) = members.get(*name) {
                collect(value, rest, found);
            }
        }
        _ => {}
    }
}
