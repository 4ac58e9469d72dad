//! JSON Patches (RFC 6902) whose result is the patient's if what they start from is.

use mantel_adapters::fhir::compartment::{Class, class};
use serde::Deserialize;

/// What a patch may not touch, whatever the type: what a resource is, and what others hide in it.
const FIXED: [&str; 4] = ["resourceType", "id", "contained", "implicitRules"];

#[derive(Deserialize)]
struct Step<'a> {
    #[serde(borrow)]
    path: std::borrow::Cow<'a, str>,
}

/// Whether a patch leaves alone everything that says whose a resource is.
pub(super) fn keeps_owner(patch: &[u8], resource_type: &str) -> bool {
    // Each step an object: where a struct is read, serde takes a list for its members in their order.
    let Ok(steps) = serde_json::from_slice::<Vec<&serde_json::value::RawValue>>(patch) else { return false };
    let elements: &[(&str, &str)] = match class(resource_type) {
        Class::Compartment(elements) => elements,
        Class::Members => &[("member", "member")],
        Class::Device => &[("patient", "patient")],
        _ => &[],
    };
    let is_owner = |name: &str| elements.iter().any(|(_, element)| element.split('.').next() == Some(name));
    steps.into_iter().all(|raw| {
        let step = raw.get().trim_start().starts_with('{').then(|| serde_json::from_str::<Step<'_>>(raw.get()));
        let Some(Ok(step)) = step else { return false };
        let Some(first) = step.path.strip_prefix('/').and_then(|rest| rest.split('/').next()) else { return false };
        let name = first.replace("~1", "/").replace("~0", "~");
        // `_subject` is what JSON says of `subject` besides (extensions): part of the same element.
        let name = name.strip_prefix('_').unwrap_or(&name);
        !name.is_empty() && !FIXED.contains(&name) && !is_owner(name)
    })
}
