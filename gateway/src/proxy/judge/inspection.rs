//! What of an answer may leave: each resource by its own content.

use std::{collections::HashSet, sync::Arc};

use bytes::BytesMut;
use mantel_adapters::{
    fhir::{
        compartment::{head, provenance_targets},
        inspect::{Ending, Inspector, Part, Verdict},
        rewrite::Bases,
    },
    smart::scope::{Context, Coverage, Permissions},
};
use serde_json::{Value, json, value::RawValue};

use super::{
    Case,
    grounds::{Use, admits},
};
use crate::{
    error::{Error, Kind},
    session::Session,
};

/// The answer to whatever is not there, or not for this grant to know of: in both cases the same.
pub fn not_found() -> Error {
    Error::app(Kind::NotFound, "There is no such resource, or this token does not cover it.")
}

/// Decides on the resources of one answer.
pub struct Inspection {
    session: Arc<Session>,
    bases: Arc<Bases>,
    expects: Expects,
}

enum Expects {
    /// One resource, or its versions.
    Instance { resource_type: String, id: Option<String>, needed: Permissions },
    /// What a search finds and includes; the type where there is one.
    Search { resource_type: Option<String> },
    /// The answers to a batch's or transaction's entries; none: that entry's answer streams.
    Entries(Vec<Option<Arc<Inspection>>>),
}

impl Inspection {
    fn new(case: &Case<'_>, expects: Expects) -> Self {
        Self { session: case.session.clone(), bases: case.bases.clone(), expects }
    }

    pub(super) fn of_instance(case: &Case<'_>, resource_type: &str, id: Option<&str>, needed: Permissions) -> Self {
        let (resource_type, id) = (resource_type.to_owned(), id.map(str::to_owned));
        Self::new(case, Expects::Instance { resource_type, id, needed })
    }

    pub(super) fn of_search(case: &Case<'_>, resource_type: Option<&str>) -> Self {
        Self::new(case, Expects::Search { resource_type: resource_type.map(str::to_owned) })
    }

    pub(super) fn of_entries(case: &Case<'_>, entries: Vec<Option<Arc<Self>>>) -> Self {
        Self::new(case, Expects::Entries(entries))
    }

    /// Whether the request named one resource: then an EHR's 404, 410 and 403 and a withheld resource must all be
    /// answered by [`not_found`], since any difference tells what exists.
    pub fn is_by_id(&self) -> bool {
        matches!(self.expects, Expects::Instance { id: Some(_), .. })
    }

    /// Whether one resource (its JSON) may leave. Knows nothing of what else the answer holds: for a Bundle use
    /// [`Inspection::watch`].
    pub fn verdict(&self, resource: &[u8]) -> Verdict {
        if self.keeps(resource) { Verdict::Keep } else { Verdict::Drop }
    }

    fn keeps(&self, resource: &[u8]) -> bool {
        let Ok(head) = head(resource) else { return false };
        if head.resource_type == "OperationOutcome" {
            return head.contained.is_empty();
        }
        let admits = |needed| admits(&self.session, &self.bases, &head.resource_type, needed, resource, Use::Shown);
        match &self.expects {
            Expects::Instance { resource_type, id, needed } => {
                head.resource_type == *resource_type
                    && id.as_ref().is_none_or(|id| head.id.as_ref() == Some(id))
                    && admits(*needed)
            }
            Expects::Search { resource_type } => {
                let is_hit = resource_type.as_ref().is_none_or(|name| *name == head.resource_type);
                is_hit && admits(Permissions::SEARCH) || admits(Permissions::READ)
            }
            Expects::Entries(_) => false,
        }
    }

    /// Looks at the parts of one answer in their order; made for
    /// [`mantel_adapters::fhir::inspect::Inspector::new`].
    pub fn watch(self: &Arc<Self>) -> impl FnMut(&Part<'_>) -> Verdict + Send + use<> {
        let inspection = self.clone();
        let mut kept = self.shows_provenance().then(HashSet::new);
        move |part| match &inspection.expects {
            Expects::Entries(entries) => answer(entries, part),
            _ => inspection.see(part, kept.as_mut()),
        }
    }

    fn see(&self, part: &Part<'_>, kept: Option<&mut HashSet<String>>) -> Verdict {
        // An entry without a resource (a deletion in a history) says nothing to decide by.
        let Some(resource) = part.resource else { return Verdict::Drop };
        if part.outcome.is_some_and(|outcome| !is_outcome(outcome)) {
            return Verdict::Drop;
        }
        if !self.keeps(resource) && !kept.as_ref().is_some_and(|kept| self.is_about_kept(resource, kept)) {
            return Verdict::Drop;
        }
        if let Some(kept) = kept
            && let Ok(head) = head(resource)
            && let Some(id) = head.id
        {
            kept.insert(format!("{}/{id}", head.resource_type));
        }
        Verdict::Keep
    }

    /// Whether a Provenance may pass that does not name the patient.
    fn shows_provenance(&self) -> bool {
        matches!(self.expects, Expects::Search { .. })
            && self.session.enforced.permits(Context::Patient, "Provenance", Permissions::READ) == Coverage::Yes
    }

    /// A Provenance whose targets all were shown is as good as they: `_revinclude=Provenance:target`.
    fn is_about_kept(&self, resource: &[u8], kept: &HashSet<String>) -> bool {
        head(resource).is_ok_and(|head| head.resource_type == "Provenance" && head.contained.is_empty())
            && provenance_targets(resource, &self.bases)
                .is_some_and(|targets| targets.iter().all(|target| kept.contains(target)))
    }
}

fn is_outcome(resource: &[u8]) -> bool {
    head(resource).is_ok_and(|head| head.resource_type == "OperationOutcome" && head.contained.is_empty())
}

/// One entry of a batch-response, by the inspection of the entry that it answers.
fn answer(entries: &[Option<Arc<Inspection>>], part: &Part<'_>) -> Verdict {
    let Some(entry) = entries.get(part.index) else { return Verdict::Drop };
    let Some(inspection) = entry else { return Verdict::Keep };
    let status = part.response_status.as_deref().unwrap_or_default();
    let withheld = || Verdict::Replace(withheld_entry(inspection.is_by_id()));
    if part.outcome.is_some_and(|outcome| !is_outcome(outcome)) {
        return withheld();
    }
    if !status.starts_with('2') {
        return match part.resource {
            _ if inspection.is_by_id() => withheld(),
            Some(resource) if !is_outcome(resource) => withheld(),
            _ => Verdict::Keep,
        };
    }
    let Some(resource) = part.resource else { return Verdict::Keep };
    // The answer is a resource, or a Bundle with further entries.
    let mut passed = BytesMut::new();
    let mut inspector = Inspector::new(inspection.watch());
    let ending = inspector.push(resource, &mut passed).and_then(|()| inspector.finish(&mut passed));
    match ending {
        Ok(Ending::Passed) => Verdict::Keep,
        Ok(Ending::Bundle { .. }) => filtered_entry(&passed, part).map_or_else(withheld, Verdict::Replace),
        Ok(Ending::Withheld) | Err(_) => withheld(),
    }
}

/// The entry with what is left of its Bundle; of its `response` only what a search's answer has.
fn filtered_entry(bundle: &[u8], part: &Part<'_>) -> Option<Vec<u8>> {
    let resource: &RawValue = serde_json::from_slice(bundle).ok()?;
    let status = part.response_status.as_deref()?;
    #[derive(serde::Serialize)]
    struct Entry<'a> {
        resource: &'a RawValue,
        response: Value,
    }
    serde_json::to_vec(&Entry { resource, response: json!({ "status": status }) }).ok()
}

/// The same for what is not there and for what is withheld.
fn withheld_entry(by_id: bool) -> Vec<u8> {
    let (status, code) = if by_id { ("404", "not-found") } else { ("403", "forbidden") };
    let text = not_found().public;
    json!({"response": {"status": status, "outcome": {
        "resourceType": "OperationOutcome",
        "issue": [{"severity": "error", "code": code, "diagnostics": text}],
    }}})
    .to_string()
    .into_bytes()
}
