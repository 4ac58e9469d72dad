//! What of a type a grant opens, and by which of its scopes.

use mantel_adapters::{
    fhir::{
        compartment::{Belonging, Class, belongs, class},
        constraint::{is_enforceable, satisfies},
        interaction::is_id,
        rewrite::Bases,
        types::RESOURCE_TYPES,
    },
    smart::scope::{Context, Coverage, Permissions, ScopeQuery, ScopeSet},
};

use super::{Case, refusal, written};
use crate::{error::Result, session::Session};

/// One way in which a grant opens a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// `user/` or `system/` without a query: whatever the EHR shows.
    Open,
    /// `patient/` without a query, and the EHR confines its token to the same.
    Confined,
    /// `patient/`: what is the patient's and satisfies one of the queries, if there are any.
    Patient(Vec<ScopeQuery>),
    /// `user/` or `system/`: what satisfies one of the queries.
    Constrained(Vec<ScopeQuery>),
}

impl Way {
    /// Whether it opens one patient's data only.
    pub(super) fn is_patients(&self) -> bool {
        matches!(self, Self::Confined | Self::Patient(_))
    }

    pub(super) fn streams(&self) -> bool {
        matches!(self, Self::Open | Self::Confined)
    }
}

/// What a resource is shown for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Shown,
    /// Held to more: what is written must be the patient's own, not merely name the patient somewhere.
    Written,
}

/// The patient in context.
pub(super) fn patient(session: &Session) -> Option<&str> {
    session.context.patient.as_deref().filter(|id| is_id(id))
}

/// The ways in which `needed` is open on a type; never empty. Where one is [`Way::Open`] it is the only one.
///
/// # Errors
/// None is: which scope is missing, or why one does not count.
pub(super) fn ways(case: &Case<'_>, resource_type: &str, needed: Permissions) -> Result<Vec<Way>> {
    let scopes = &case.session.enforced;
    let mut ways = broad(scopes, resource_type, needed);
    if ways.contains(&Way::Open) {
        return Ok(vec![Way::Open]);
    }
    let mut reason = None;
    match (scopes.permits(Context::Patient, resource_type, needed), case.patient()) {
        (Coverage::No, _) => {}
        (_, None) => reason = Some(refusal::no_patient(resource_type, needed)),
        (Coverage::Yes, Some(_)) if confines(case, resource_type, needed) => ways.insert(0, Way::Confined),
        (Coverage::Yes, Some(_)) if is_decidable(resource_type) => ways.insert(0, Way::Patient(Vec::new())),
        (Coverage::Constrained(queries), Some(_)) if is_decidable(resource_type) => {
            match enforceable(resource_type, queries) {
                queries if queries.is_empty() => reason = Some(refusal::unenforceable(resource_type, needed)),
                queries => ways.insert(0, Way::Patient(queries)),
            }
        }
        (_, Some(_)) => reason = Some(refusal::undecidable(resource_type, needed)),
    }
    if !ways.is_empty() {
        return Ok(ways);
    }
    let constrained = [Context::User, Context::System]
        .into_iter()
        .any(|context| matches!(scopes.permits(context, resource_type, needed), Coverage::Constrained(_)));
    Err(match reason {
        Some(reason) => reason,
        None if constrained => refusal::unenforceable(resource_type, needed),
        None => refusal::not_covered(scopes, resource_type, needed),
    })
}

/// The ways of `user/` and `system/`.
fn broad(scopes: &ScopeSet, resource_type: &str, needed: Permissions) -> Vec<Way> {
    let mut ways = Vec::new();
    for context in [Context::User, Context::System] {
        match scopes.permits(context, resource_type, needed) {
            Coverage::No => {}
            Coverage::Yes => ways.push(Way::Open),
            Coverage::Constrained(queries) => match enforceable(resource_type, queries) {
                queries if queries.is_empty() => {}
                queries => ways.push(Way::Constrained(queries)),
            },
        }
    }
    ways
}

fn enforceable(resource_type: &str, queries: Vec<ScopeQuery>) -> Vec<ScopeQuery> {
    let can = |query: &ScopeQuery| query.pairs().iter().all(|(name, _)| is_enforceable(resource_type, name));
    queries.into_iter().filter(can).collect()
}

/// Whether a resource of that type says whose it is, or is nobody's.
fn is_decidable(resource_type: &str) -> bool {
    !matches!(class(resource_type), Class::Binary | Class::Refused)
}

/// Whether the EHR itself confines its token to the patient, for this type: it granted it under `patient/` for the
/// same patient, no `user/` or `system/` scope of its token touches it, and ours is no narrower (in what an answer
/// can show) by permission or query.
fn confines(case: &Case<'_>, resource_type: &str, needed: Permissions) -> bool {
    let Some(upstream) = &case.session.upstream else { return false };
    if case.always_inspects() || case.patient_was_picked() {
        return false;
    }
    let grants = |context, permissions| upstream.permits(context, resource_type, permissions) != Coverage::No;
    let broad = Permissions::ALL.iter().any(|one| grants(Context::User, one) || grants(Context::System, one));
    let ours = |one| case.session.enforced.permits(Context::Patient, resource_type, one) == Coverage::Yes;
    let narrower = Permissions::V1_READ.iter().any(|one| grants(Context::Patient, one) && !ours(one));
    !broad && !narrower && grants(Context::Patient, needed)
}

/// Whether nothing of that type that an answer holds, or a search touches, can be outside the grant.
pub(super) fn streams(case: &Case<'_>, resource_type: &str, needed: Permissions) -> bool {
    ways(case, resource_type, needed).is_ok_and(|ways| ways.iter().any(Way::streams))
}

pub(super) fn is_stream_for_all(case: &Case<'_>, needed: Permissions) -> bool {
    RESOURCE_TYPES.iter().all(|name| streams(case, name, needed))
}

pub(super) fn is_open_for_all(case: &Case<'_>, needed: Permissions) -> bool {
    RESOURCE_TYPES.iter().all(|name| broad(&case.session.enforced, name, needed).contains(&Way::Open))
}

/// Demands a permission on every type: `*` in one context. Types that cannot be told apart pass here; what is held
/// of them is decided on the answer.
///
/// # Errors
/// Which scope is missing.
pub(super) fn require_all(case: &Case<'_>, needed: Permissions) -> Result<()> {
    let scopes = &case.session.enforced;
    let covers = |context| RESOURCE_TYPES.iter().all(|name| scopes.permits(context, name, needed) == Coverage::Yes);
    if [Context::User, Context::System].into_iter().any(covers) {
        return Ok(());
    }
    match (covers(Context::Patient), case.patient()) {
        (true, Some(_)) => Ok(()),
        (true, None) => Err(refusal::no_patient("*", needed)),
        (false, _) => Err(refusal::not_covered(scopes, "*", needed)),
    }
}

/// Whether a resource of that type is within what `needed` opens.
pub(super) fn admits(
    session: &Session,
    bases: &Bases,
    resource_type: &str,
    needed: Permissions,
    resource: &[u8],
    purpose: Use,
) -> bool {
    let scopes = &session.enforced;
    let satisfied = |queries: &[ScopeQuery]| queries.iter().any(|query| matches(resource, query));
    let broad = broad(scopes, resource_type, needed);
    if broad.iter().any(|way| match way {
        Way::Constrained(queries) => satisfied(queries),
        _ => true,
    }) {
        return true;
    }
    let Some(patient) = patient(session) else { return false };
    let by_query = match scopes.permits(Context::Patient, resource_type, needed) {
        Coverage::No => false,
        Coverage::Yes => true,
        Coverage::Constrained(queries) => satisfied(&queries),
    };
    by_query
        && match purpose {
            Use::Shown => matches!(belongs(resource, patient, bases), Belonging::Yes | Belonging::Shared),
            Use::Written => written::is_own(resource, patient, bases),
        }
}

/// Whether a resource satisfies a query, all of it; what cannot be decided does not.
pub(super) fn matches(resource: &[u8], query: &ScopeQuery) -> bool {
    query.pairs().iter().all(|(name, value)| satisfies(resource, name, value) == Some(true))
}
