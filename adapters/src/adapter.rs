//! What a vendor does that its profile cannot say: phases with conformant defaults.
//!
//! An adapter overrides only what its vendor does differently. It is handed values and answers with
//! values; the gateway carries out what it says.

mod headers;
mod normalise;
mod outcome;
mod plan;

pub use self::{
    headers::{Placeholders, discovery_headers, encode_query, fhir_headers, page_query},
    normalise::{AnswerKind, FhirAnswer, Issue, NormalisedError, Severity, VendorCode, fhir_error},
    plan::plan,
};
use crate::{
    fhir::interaction::{Interaction, Request},
    profile::Profile,
    smart::{discovery::Endpoints, token::TokenAnswer},
};

/// What a plan may know of the grant and its site.
#[derive(Clone, Copy, Debug)]
pub struct PlanContext<'a> {
    pub profile: &'a Profile,
    /// The practice at athena: a fact of the grant.
    pub tenant: Option<&'a str>,
    pub client_id: &'a str,
    /// The grant's patient, if it has one.
    pub patient: Option<&'a str>,
}

/// What is sent upstream for one request of an app, and how the answers become one.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// One or more; paths and queries are relative to the site's FHIR base. Queries are written with
    /// [`encode_query`].
    pub requests: Vec<Request>,
    pub answer: Answer,
    /// The vendor may drop criteria of this request: whatever the judge said, the answer is inspected.
    pub inspect: bool,
}

/// How the answers of a plan become the app's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The one answer streams through.
    Pass,
    /// The one answer is a resource (or a 404): it becomes a searchset of one (or none).
    WrapAsSearchset,
    /// The answers are searchsets: their entries become one searchset, ids once. A 400 or 403 among them
    /// (a category that this hospital has not, or has not granted) is a warning in it; if none is a
    /// searchset, the first error is the answer.
    Merge,
}

/// A request that cannot be put to this vendor, in words for the app.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unplannable {
    /// 400 or 422.
    pub status: u16,
    /// FHIR issue-type code.
    pub code: &'static str,
    pub reason: String,
}

pub trait Adapter: Send + Sync {
    /// The name by which a profile chooses it.
    fn name(&self) -> &'static str;

    /// Amends a token answer that has been parsed leniently: what only this vendor says elsewhere
    /// (athena's `ah_practice` is the tenant).
    fn normalise_token(&self, _answer: &mut TokenAnswer) {}

    /// Amends endpoints that were discovered, never those that were configured (Oracle announces the
    /// paths of v1 apps to all).
    fn amend_endpoints(&self, endpoints: Endpoints, _profile: &Profile) -> Endpoints {
        endpoints
    }

    /// The upstream requests for a judged request. The default sends it as it is, less what the
    /// profile says.
    fn plan(
        &self,
        request: &Request,
        interaction: &Interaction,
        context: PlanContext<'_>,
    ) -> Result<Plan, Unplannable> {
        plan(request, interaction, context)
    }

    /// Amends an error of the FHIR server that has been normalised: codes and texts that only this
    /// vendor uses.
    fn amend_error(&self, _answer: &FhirAnswer<'_>, _error: &mut NormalisedError) {}
}
