//! Generic.

use crate::adapter::Adapter;

pub struct Generic;

impl Adapter for Generic {
    fn name(&self) -> &'static str {
        "generic"
    }
}

use crate::{
    adapter::{Answer, Plan, PlanContext, Unplannable},
    fhir::interaction::{Interaction, Request},
};

/// The conformant plan: the request as it is, less what the profile says.
pub fn plan(request: &Request, _interaction: &Interaction, _context: PlanContext<'_>) -> Result<Plan, Unplannable> {
    Ok(Plan { requests: vec![request.clone()], answer: Answer::Pass })
}
