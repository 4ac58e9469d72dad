//! What a refused app is told: which scope it lacks, never what exists, no id and no value of its own.

use mantel_adapters::smart::scope::{Context, Permissions, ScopeSet};

use crate::error::{Error, Kind};

/// The scopes that would do, in the contexts that this token has.
fn forms(scopes: &ScopeSet, resource_type: &str, needed: Permissions) -> String {
    if scopes.has_context(Context::System) {
        format!("system/{resource_type}.{needed}")
    } else {
        format!("patient/{resource_type}.{needed} or user/{resource_type}.{needed}")
    }
}

pub(super) fn not_covered(scopes: &ScopeSet, resource_type: &str, needed: Permissions) -> Error {
    let forms = forms(scopes, resource_type, needed);
    Error::app(Kind::Forbidden, format!("This token's scopes do not cover the request: it needs {forms}."))
}

pub(super) fn no_patient(resource_type: &str, needed: Permissions) -> Error {
    let text = format!(
        "This token's patient/ scopes name no patient: none is in context. Ask for launch/patient, or for user/{resource_type}.{needed}."
    );
    Error::app(Kind::Forbidden, text)
}

pub(super) fn undecidable(resource_type: &str, needed: Permissions) -> Error {
    let text = format!(
        "Whose a {resource_type} is cannot be told here from what it holds, so patient/ scopes do not open it at this site: it needs user/{resource_type}.{needed}."
    );
    Error::app(Kind::Forbidden, text)
}

pub(super) fn unenforceable(resource_type: &str, needed: Permissions) -> Error {
    let text = format!(
        "The query of this token's scope for {resource_type} cannot be enforced here, so it opens nothing: ask for the scope without it, patient/{resource_type}.{needed}, or with category."
    );
    Error::app(Kind::Forbidden, text)
}

pub(super) fn touches(parameter: &str, resource_type: Option<&str>) -> Error {
    let what = resource_type.map_or_else(
        || "resources of types that its value does not name".to_owned(),
        |name| format!("{name} resources"),
    );
    let text = format!(
        "The parameter {parameter} would search {what} beyond what this token's scopes cover, and its effect shows even where they are held back: leave it out."
    );
    Error::app(Kind::Forbidden, text)
}

pub(super) fn other_patient() -> Error {
    Error::app(
        Kind::Forbidden,
        "Under patient/ scopes every parameter that chooses a patient must name the patient in context, by id or as Patient/id: one of this request does not, or not in a form that can be compared.",
    )
}

pub(super) fn forbidden(text: &str) -> Error {
    Error::app(Kind::Forbidden, text)
}

pub(super) fn malformed(text: impl Into<String>) -> Error {
    Error::app(Kind::BadRequest, text)
}
