//! The operations that may pass, and what each demands. One that is not here is refused.

use serde_json::Value;

use super::compartment::Unreadable;

/// Where an operation is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    System,
    Type,
    Instance,
}

/// The permissions (letters of `cruds`) that an operation demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// On the type in the URL.
    OnType(&'static str),
    /// On `*`: it shows whatever there is.
    OnAll(&'static str),
}

/// What ties an operation to the patient of a `patient/` grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatientRule {
    /// The instance in the URL is the patient.
    UrlIsPatient,
    /// The instance in the URL belongs to the patient; its answer is inspected.
    UrlBelongs,
    /// This parameter must be there and name the patient.
    Parameter(&'static str),
    /// Its parameters are those of a search, and judged as such.
    Search,
    /// The resource sent along is judged as a create or update would be.
    Body,
    /// It is about no patient.
    Nobody,
    /// Not under `patient/`.
    Refused,
}

/// One operation at one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Without `$`.
    pub name: &'static str,
    pub level: Level,
    /// The types that it is called on; empty: any.
    pub types: &'static [&'static str],
    pub needs: Needs,
    pub patient: PatientRule,
    /// Only under `system/`.
    pub system_only: bool,
    /// Whether GET is defined besides POST (it changes nothing and takes simple parameters).
    pub get: bool,
}

const fn operation(
    name: &'static str,
    level: Level,
    types: &'static [&'static str],
    needs: Needs,
    patient: PatientRule,
) -> Operation {
    Operation { name, level, types, needs, patient, system_only: false, get: true }
}

impl Operation {
    const fn post_only(mut self) -> Self {
        self.get = false;
        self
    }

    const fn system_only(mut self) -> Self {
        self.system_only = true;
        self
    }
}

/// The table.
pub const OPERATIONS: &[Operation] = {
    use Level::{Instance, System, Type};
    use Needs::{OnAll, OnType};
    use PatientRule::{Body, Nobody, Parameter, Refused, Search, UrlBelongs, UrlIsPatient};
    &[
        operation("everything", Instance, &["Patient"], OnAll("rs"), UrlIsPatient),
        operation("everything", Instance, &["Encounter"], OnAll("rs"), UrlBelongs),
        // International Patient Summary.
        operation("summary", Instance, &["Patient"], OnAll("rs"), UrlIsPatient),
        operation("lastn", Type, &["Observation"], OnType("rs"), Search),
        operation("stats", Type, &["Observation"], OnType("rs"), Parameter("subject")),
        // US Core: finds documents, and may have one made of what is there.
        operation("docref", Type, &["DocumentReference"], OnType("rs"), Parameter("patient")),
        operation("document", Instance, &["Composition"], OnAll("rs"), UrlBelongs),
        operation("match", Type, &["Patient"], OnType("s"), Refused).post_only(),
        operation("validate", Type, &[], OnType("c"), Body).post_only(),
        operation("validate", Instance, &[], OnType("u"), Body).post_only(),
        operation("meta", Instance, &[], OnType("r"), UrlBelongs),
        operation("expand", Type, &["ValueSet"], OnType("r"), Nobody),
        operation("expand", Instance, &["ValueSet"], OnType("r"), Nobody),
        operation("validate-code", Type, &["ValueSet", "CodeSystem"], OnType("r"), Nobody),
        operation("validate-code", Instance, &["ValueSet", "CodeSystem"], OnType("r"), Nobody),
        operation("lookup", Type, &["CodeSystem"], OnType("r"), Nobody),
        operation("subsumes", Type, &["CodeSystem"], OnType("r"), Nobody),
        operation("subsumes", Instance, &["CodeSystem"], OnType("r"), Nobody),
        operation("translate", Type, &["ConceptMap"], OnType("r"), Nobody),
        operation("translate", Instance, &["ConceptMap"], OnType("r"), Nobody),
        // Bulk Data.
        operation("export", System, &[], OnAll("rs"), Refused).system_only(),
        operation("export", Type, &["Patient"], OnAll("rs"), Refused).system_only(),
        operation("export", Instance, &["Group"], OnAll("rs"), Refused).system_only(),
    ]
};

/// Looks an operation up by its name (without `$`) and where it is called.
pub fn find(name: &str, resource_type: Option<&str>, has_id: bool) -> Option<&'static Operation> {
    let level = match (resource_type, has_id) {
        (None, _) => Level::System,
        (Some(_), false) => Level::Type,
        (Some(_), true) => Level::Instance,
    };
    let fits = |operation: &&Operation| {
        operation.name == name
            && operation.level == level
            && resource_type.is_none_or(|wanted| operation.types.is_empty() || operation.types.contains(&wanted))
    };
    OPERATIONS.iter().find(fits)
}

/// The parameters in the body of a POSTed operation as pairs, so that they are judged like those of a GET.
/// A reference counts by its literal; anything else that is no primitive (a resource, parts, a CodeableConcept)
/// makes the body unreadable here.
pub fn simple_parameters(body: &[u8]) -> Result<Vec<(String, String)>, Unreadable> {
    let head = super::compartment::head(body)?;
    if head.resource_type != "Parameters" {
        return Err(Unreadable);
    }
    let parsed: Value = serde_json::from_slice(body).map_err(|_| Unreadable)?;
    let Some(list) = parsed.get("parameter") else { return Ok(Vec::new()) };
    list.as_array().ok_or(Unreadable)?.iter().map(simple).collect()
}

fn simple(parameter: &Value) -> Result<(String, String), Unreadable> {
    let members = parameter.as_object().ok_or(Unreadable)?;
    let name = members.get("name").and_then(Value::as_str).ok_or(Unreadable)?;
    let mut values = members.iter().filter(|(member, _)| !matches!(member.as_str(), "name" | "id"));
    let (Some((member, value)), None) = (values.next(), values.next()) else { return Err(Unreadable) };
    if !member.starts_with("value") {
        return Err(Unreadable);
    }
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Object(reference) if member == "valueReference" => {
            reference.get("reference").and_then(Value::as_str).ok_or(Unreadable)?.to_owned()
        }
        _ => return Err(Unreadable),
    };
    Ok((name.to_owned(), text))
}
