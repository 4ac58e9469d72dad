//! OperationOutcomes of our own making.

use serde::Serialize;

use super::interaction::is_id;

/// The system of the codes by which an app can tell our refusals apart.
pub const CODE_SYSTEM: &str = "urn:mantel:outcome";

/// FHIR's issue-severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Fatal,
    Error,
    Warning,
    Information,
}

/// An OperationOutcome with one issue.
///
/// ```
/// # use mantel_adapters::fhir::outcome::OperationOutcome;
/// let outcome = OperationOutcome::error("forbidden", "The grant has no scope for Condition.").coded("scope-missing");
/// assert!(outcome.to_json().starts_with(br#"{"resourceType":"OperationOutcome""#));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OperationOutcome {
    #[serde(rename = "resourceType")]
    resource_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    issue: [Issue; 1],
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Issue {
    severity: Severity,
    code: &'static str,
    details: Details,
    #[serde(skip_serializing_if = "Option::is_none")]
    diagnostics: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    expression: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Details {
    #[serde(skip_serializing_if = "Option::is_none")]
    coding: Option<[Coding; 1]>,
    text: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Coding {
    system: &'static str,
    code: &'static str,
}

impl OperationOutcome {
    /// `code` is FHIR's issue-type; `text` says what was given, what was expected and where.
    pub fn new(severity: Severity, code: &'static str, text: impl Into<String>) -> Self {
        let details = Details { coding: None, text: text.into() };
        let issue = Issue { severity, code, details, diagnostics: None, expression: Vec::new() };
        Self { resource_type: "OperationOutcome", id: None, issue: [issue] }
    }

    pub fn error(code: &'static str, text: impl Into<String>) -> Self {
        Self::new(Severity::Error, code, text)
    }

    /// A code of [`CODE_SYSTEM`] that an app can act on.
    pub fn coded(mut self, code: &'static str) -> Self {
        let [issue] = &mut self.issue;
        issue.details.coding = Some([Coding { system: CODE_SYSTEM, code }]);
        self
    }

    /// The request's id, by which an operator finds it in the logs; left out where it is no FHIR id.
    pub fn with_id(mut self, id: &str) -> Self {
        self.id = is_id(id).then(|| id.to_owned());
        self
    }

    pub fn with_diagnostics(mut self, diagnostics: impl Into<String>) -> Self {
        let [issue] = &mut self.issue;
        issue.diagnostics = Some(diagnostics.into());
        self
    }

    /// The element at fault, as FHIRPath (`Bundle.entry[2]`).
    pub fn at(mut self, expression: impl Into<String>) -> Self {
        let [issue] = &mut self.issue;
        issue.expression.push(expression.into());
        self
    }

    pub fn to_json(&self) -> Vec<u8> {
        // Strings and fixed names only: there is nothing in it that could fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}
