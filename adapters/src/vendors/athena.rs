//! athenahealth: athenaOne (<https://docs.athenahealth.com/api/guides>), and athenaPractice and
//! athenaFlow (<https://github.com/athenahealth/apiserver-athenaFlex>).

use serde_json::Value;

use crate::{
    adapter::{Adapter, AnswerKind, FhirAnswer, NormalisedError},
    smart::token::TokenAnswer,
};

pub struct Athena;

impl Adapter for Athena {
    fn name(&self) -> &'static str {
        "athena"
    }

    /// One base serves all practices, and each request names one: `ah_practice` of the answer, else the
    /// practice in the patient's id (`a-{practice}.E-{patient}`).
    fn normalise_token(&self, answer: &mut TokenAnswer) {
        let named = answer.extras.get("ah_practice").and_then(|value| match value {
            Value::String(text) => practice(text),
            Value::Number(number) => practice(&number.to_string()),
            _ => None,
        });
        let told = named.or_else(|| answer.context.tenant.as_deref().and_then(practice));
        let read = || answer.context.patient.as_deref().and_then(practice_of_patient);
        if let Some(tenant) = told.or_else(read) {
            answer.context.tenant = Some(tenant);
        }
    }

    fn amend_error(&self, _answer: &FhirAnswer<'_>, error: &mut NormalisedError) {
        if error.kind == AnswerKind::Outcome && error.diagnostics.contains("required parameter combinations") {
            // Said with 403, but it is a search that lacks a criterion, and no question of rights.
            error.status = 400;
            error.code = "required";
        } else if error.status == 404 && error.diagnostics.contains("not registered with API gateway") {
            error.code = "not-supported";
        }
    }
}

/// The form in which requests name a practice: `Organization/a-1.Practice-{number}`.
fn practice(text: &str) -> Option<String> {
    let id = text.strip_prefix("Organization/").unwrap_or(text);
    let number = id.strip_prefix("a-1.Practice-").unwrap_or(id);
    let is_number = (1..=20).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| format!("Organization/a-1.Practice-{number}"))
}

fn practice_of_patient(id: &str) -> Option<String> {
    let (number, _) = id.strip_prefix("a-")?.split_once(".E-")?;
    practice(number)
}
