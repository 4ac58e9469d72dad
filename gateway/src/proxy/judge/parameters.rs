//! The parameters of a search: whom they choose, which types they touch, what they include.

use mantel_adapters::fhir::{
    compartment::{LocalReference, Selector, local_reference, patient_parameters, patient_value, selects},
    rewrite::Bases,
    types::is_resource_type,
};

use super::refusal::{malformed, other_patient};
use crate::error::Result;

pub(super) type Pairs = Vec<(String, String)>;

/// A parameter's name and what follows it: a modifier, a chain.
pub(super) fn split(name: &str) -> (&str, &str) {
    name.split_at(name.find(['.', ':']).unwrap_or(name.len()))
}

/// Names that steer a search. Some servers take them in any case; here they have one.
const STEERING: [&str; 15] = [
    "_content",
    "_elements",
    "_filter",
    "_format",
    "_has",
    "_id",
    "_include",
    "_list",
    "_query",
    "_revinclude",
    "_sort",
    "_summary",
    "_text",
    "_total",
    "_type",
];

/// # Errors
/// A steering parameter that is spelt so that only some servers know it.
pub(super) fn refuse_odd_spelling(resource_types: &[&str], parameters: &[(String, String)]) -> Result<()> {
    for (name, _) in parameters {
        let (base, _) = split(name);
        let lower = base.trim().to_ascii_lowercase();
        let chooses = |name: &str| {
            matches!(name, "patient" | "subject")
                || resource_types.iter().any(|resource_type| patient_parameters(resource_type).contains(&name))
        };
        if lower != base && (STEERING.contains(&lower.as_str()) || chooses(&lower)) {
            return Err(malformed(format!(
                "A search parameter is spelt otherwise than FHIR has it: expected {lower}, in that case and without blanks."
            )));
        }
    }
    Ok(())
}

/// # Errors
/// A name with a character that no search parameter has: another parser might read another name.
pub(super) fn refuse_odd_names(parameters: &[(String, String)]) -> Result<()> {
    let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    if parameters.iter().any(|(name, _)| name.is_empty() || !name.bytes().all(known)) {
        let text = "A search parameter's name holds a character that none has: expected A-Z, a-z, 0-9, -, _, . and :.";
        return Err(malformed(text));
    }
    Ok(())
}

/// Where a search names its patient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// In a parameter, one of the type's own.
    Parameter,
    /// In this one, which all types searched for have.
    Named(&'static str),
    /// In the path: `Patient/1/Observation`.
    Path,
}

/// Leaves a search exactly one choice of a patient, ours: in the app's parameter if it has one, else in the one that
/// is added.
///
/// # Errors
/// Another patient is chosen, or one that cannot be compared.
pub(super) fn bind_patient(
    resource_type: &str,
    parameters: Pairs,
    patient: &str,
    naming: Naming,
    bases: &Bases,
) -> Result<Pairs> {
    let own = patient_parameters(resource_type);
    let mut chosen: Option<usize> = None;
    let mut kept = Pairs::with_capacity(parameters.len() + 1);
    for (name, value) in parameters {
        let (base, rest) = split(&name);
        // `Patient?patient=1` is no search of R4, yet apps send it and mean the id.
        let base = if resource_type == "Patient" && matches!(base, "patient" | "subject") { "_id" } else { base };
        if !own.contains(&base) && !matches!(base, "patient" | "subject") {
            refuse_other_references(&value, patient, bases)?;
            kept.push((name, value));
            continue;
        }
        let known = own.contains(&base);
        // Where a type has no such parameter of its own it is read as those that have.
        let read_as = if known { resource_type } else { "Observation" };
        match selects(read_as, &format!("{base}{rest}"), &value, bases) {
            Selector::None if known => {
                refuse_other_references(&value, patient, bases)?;
                kept.push((name, value));
            }
            Selector::Patients(ids) if ids.iter().all(|id| *id == patient) => {
                if known && chosen.is_none() && naming == Naming::Parameter {
                    chosen = Some(kept.len());
                    kept.push((base.to_owned(), patient_value(base, patient)));
                }
            }
            _ => return Err(other_patient()),
        }
    }
    let added = match naming {
        Naming::Path => None,
        Naming::Named(name) => Some(name),
        Naming::Parameter if chosen.is_some() => None,
        Naming::Parameter => own.first().copied(),
    };
    kept.extend(added.map(|name| (name.to_owned(), patient_value(name, patient))));
    Ok(kept)
}

/// Whether a parameter chooses exactly that patient.
pub(super) fn names_patient(
    resource_type: &str,
    parameters: &[(String, String)],
    patient: &str,
    bases: &Bases,
) -> bool {
    parameters.iter().any(|(name, value)| {
        matches!(selects(resource_type, name, value, bases), Selector::Patients(ids) if ids.iter().all(|id| *id == patient))
    })
}

/// Any parameter may hold a reference: none may be to another patient.
pub(super) fn refuse_other_references(value: &str, patient: &str, bases: &Bases) -> Result<()> {
    let is_other = |item: &str| match local_reference(item.trim(), bases) {
        Some(LocalReference { resource_type: "Patient", id }) => id != patient,
        Some(_) => false,
        // Something else that a server may still read as a patient's URL; a token's system is none.
        None => item.contains("Patient/") && !item.contains('|'),
    };
    if value.split(',').any(is_other) { Err(other_patient()) } else { Ok(()) }
}

/// Which types a parameter searches besides, or by what a hit's content is weighed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    /// The type searched for itself, in ways that show what is held back: by its text, by its order.
    Own,
    Type(String),
    /// Types that it does not name.
    Any,
}

/// What a parameter touches beyond plain criteria of the type itself.
///
/// # Errors
/// It is malformed.
pub(super) fn touches(name: &str, value: &str) -> Result<Vec<Touch>> {
    let (base, rest) = split(name);
    match base {
        "_has" => has(rest),
        "_sort" if value.contains(['.', ':']) => Ok(vec![Touch::Own, Touch::Any]),
        "_sort" | "_text" | "_content" => Ok(vec![Touch::Own]),
        "_list" => Ok(vec![Touch::Own, Touch::Type("List".into())]),
        // A filter has chains of its own; a named query is whatever the server made of it.
        "_filter" if !value.contains('.') && !value.contains("_has") => Ok(vec![Touch::Own]),
        "_filter" | "_query" => Ok(vec![Touch::Own, Touch::Any]),
        "_include" | "_revinclude" => Ok(Vec::new()),
        _ => Ok(chain(base, rest)),
    }
}

/// `:Observation:patient:code`, and deeper.
fn has(rest: &str) -> Result<Vec<Touch>> {
    let mut touched = Vec::new();
    let mut parts = rest.strip_prefix(':').unwrap_or_default().split(':');
    loop {
        let (Some(source), Some(_reference), Some(parameter)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(malformed("A _has is malformed: expected _has:Type:reference:parameter."));
        };
        if !is_resource_type(source) {
            return Err(malformed("A _has names no resource type of FHIR R4: expected _has:Type:reference:parameter."));
        }
        touched.push(Touch::Type(source.to_owned()));
        if parameter == "_has" {
            continue;
        }
        if parameter.contains('.') || parts.any(|modifier| modifier.contains('.')) {
            touched.push(Touch::Any);
        }
        return Ok(touched);
    }
}

/// `performer:Practitioner.name`, `subject.general-practitioner.name`.
fn chain(base: &str, rest: &str) -> Vec<Touch> {
    let Some((_, _)) = rest.split_once('.') else { return Vec::new() };
    let whole = format!("{base}{rest}");
    let links: Vec<&str> = whole.split('.').collect();
    let (_, references) = links.split_last().unwrap_or((&"", &[]));
    references
        .iter()
        .map(|link| match link.split_once(':') {
            Some((_, name)) if is_resource_type(name) => Touch::Type(name.to_owned()),
            Some(_) => Touch::Any,
            None => target(link).map_or(Touch::Any, |name| Touch::Type(name.to_owned())),
        })
        .collect()
}

/// What a reference parameter of that name refers to, on every type that has it.
fn target(parameter: &str) -> Option<&'static str> {
    Some(match parameter {
        "patient" => "Patient",
        "encounter" => "Encounter",
        "practitioner" => "Practitioner",
        "organization" => "Organization",
        "location" => "Location",
        "medication" => "Medication",
        _ => return None,
    })
}

/// What a search includes besides its hits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Include {
    Type(String),
    /// Whatever a reference leads to.
    Unnamed,
    /// `*`
    Everything,
}

/// Reads `_include` and `_revinclude`; none for other parameters.
///
/// # Errors
/// It is malformed.
pub(super) fn include(name: &str, value: &str) -> Result<Option<Include>> {
    let (base, rest) = split(name);
    let reverse = match base {
        "_include" => false,
        "_revinclude" => true,
        _ => return Ok(None),
    };
    if !matches!(rest, "" | ":iterate" | ":recurse") {
        return Err(malformed("The modifier of an _include or _revinclude is unknown: expected :iterate or none."));
    }
    let fault =
        || malformed("An _include or _revinclude is malformed: expected Type:parameter or Type:parameter:Type.");
    let parts: Vec<&str> = value.split(':').collect();
    let typed = |name: &str| is_resource_type(name).then(|| Include::Type(name.to_owned())).ok_or_else(fault);
    let included = match parts.as_slice() {
        ["*"] | [_, "*"] | [_, "*", _] => Include::Everything,
        _ if value.contains(',') => return Err(fault()),
        [source, _] | [source, _, _] if reverse => typed(source)?,
        [source, _] | [source, _, _] if !is_resource_type(source) => return Err(fault()),
        [_, _, target] => typed(target)?,
        [_, parameter] => target(parameter).map_or(Include::Unnamed, |name| Include::Type(name.to_owned())),
        _ => return Err(fault()),
    };
    Ok(Some(included))
}
