//! Epic. Error codes: <https://fhir.epic.com/Specifications>; the rest:
//! <https://fhir.epic.com/Documentation?docId=oauth2>.

use crate::{
    adapter::{Adapter, AnswerKind, FhirAnswer, NormalisedError, Plan, PlanContext, Unplannable, plan},
    fhir::interaction::{Interaction, Request},
};

pub struct Epic;

/// `details.coding.code` of Epic's OperationOutcomes.
mod code {
    pub(super) const PAGE_EXPIRED: &str = "4113";
    pub(super) const BREAK_THE_GLASS: [&str; 2] = ["4130", "4131"];
    pub(super) const USER_NOT_AUTHORIZED: &str = "4118";
    pub(super) const CLIENT_NOT_AUTHORIZED: &str = "59203";
}

impl Adapter for Epic {
    fn name(&self) -> &'static str {
        "epic"
    }

    /// With `_id` Epic reads only `_count`, `_include` and `_revinclude`, and drops the rest: the patient
    /// that the judge put into the search, too.
    fn plan(
        &self,
        request: &Request,
        interaction: &Interaction,
        context: PlanContext<'_>,
    ) -> Result<Plan, Unplannable> {
        let mut plan = plan(request, interaction, context)?;
        let search = matches!(interaction, Interaction::SearchType { .. } | Interaction::SearchCompartment { .. });
        plan.inspect |= search && plan.requests.iter().any(voided_by_id);
        Ok(plan)
    }

    fn amend_error(&self, answer: &FhirAnswer<'_>, error: &mut NormalisedError) {
        if error.kind == AnswerKind::Html {
            return;
        }
        if code::BREAK_THE_GLASS.iter().any(|code| error.has_code(code)) {
            error.break_the_glass = true;
            error.status = 403;
            error.code = "suppressed";
        } else if error.has_code(code::PAGE_EXPIRED) {
            // The page's session lives some minutes; the search itself can be repeated.
            error.tell(410, "expired", "This page of the search has expired at the EHR: start the search again");
        } else if error.has_code(code::USER_NOT_AUTHORIZED) {
            error.status = 403;
            error.code = "forbidden";
        } else if error.has_code(code::CLIENT_NOT_AUTHORIZED)
            || (answer.status == 403 && error.kind == AnswerKind::Empty)
        {
            // Granted in the scope, yet not ticked as an API: read and search are ticked apart.
            error.tell(403, "forbidden", "This API is not enabled in the application's record at Epic");
        }
    }
}

fn voided_by_id(request: &Request) -> bool {
    const READ_WITH_ID: [&str; 4] = ["_id", "_count", "_include", "_revinclude"];
    let form = form_urlencoded::parse(&request.body).into_owned();
    let names =
        request.query.iter().map(|(name, _)| name.clone()).chain(form.map(|(name, _)| name)).collect::<Vec<_>>();
    names.iter().any(|name| name == "_id") && names.iter().any(|name| !READ_WITH_ID.contains(&name.as_str()))
}
