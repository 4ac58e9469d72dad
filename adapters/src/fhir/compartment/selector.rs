//! Search parameters that choose the patient.

use super::{
    reading::{LocalReference, local_reference},
    table::PATIENT_PARAMETERS,
};
use crate::fhir::{interaction::is_id, rewrite::Bases};

/// What a search parameter says of the patient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector<'a> {
    /// Nothing.
    None,
    /// The ids of patients, any of which a hit may have.
    Patients(Vec<&'a str>),
    /// Something that cannot be compared with an id: a chain, `:identifier`, `:missing`, a foreign URL.
    Unclear,
}

/// The search parameters that choose the patient of a type, first the one to add to a search; none for types that
/// have no patient.
pub fn patient_parameters(resource_type: &str) -> &'static [&'static str] {
    let row = PATIENT_PARAMETERS.iter().find(|(name, _)| *name == resource_type);
    row.map_or(&[], |(_, parameters)| parameters)
}

/// A patient's id as the value of such a parameter: bare where only patients can be meant, else typed.
pub fn patient_value(parameter: &str, patient_id: &str) -> String {
    match parameter {
        "patient" | "_id" => patient_id.to_owned(),
        _ => format!("Patient/{patient_id}"),
    }
}

/// What a parameter of a search for that type says of the patient. Parameters that only narrow what a patient's
/// search finds (`performer`, `link`) say nothing.
pub fn selects<'a>(resource_type: &str, name: &str, value: &'a str, bases: &Bases) -> Selector<'a> {
    let (base, rest) = name.split_at(name.find(['.', ':']).unwrap_or(name.len()));
    if !patient_parameters(resource_type).contains(&base) {
        return Selector::None;
    }
    if !matches!(rest, "" | ":Patient") || value.is_empty() {
        return Selector::Unclear;
    }
    let is_id_only = base == "_id" || rest == ":Patient";
    let mut patients = Vec::new();
    for item in value.split(',') {
        match local_reference(item, bases) {
            Some(LocalReference { resource_type: "Patient", id }) if base != "_id" => patients.push(id),
            // `actor=Practitioner/1` chooses no patient; `patient=Practitioner/1` is nonsense.
            Some(_) if !is_id_only && base != "patient" => {}
            None if is_id(item) => patients.push(item),
            _ => return Selector::Unclear,
        }
    }
    match (patients.is_empty(), patients.len() == value.split(',').count()) {
        (true, _) => Selector::None,
        (_, true) => Selector::Patients(patients),
        // `actor=Patient/1,Practitioner/2`: hits need not have the patient.
        _ => Selector::Unclear,
    }
}
