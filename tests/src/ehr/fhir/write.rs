//! Create, update, patch, delete, and their conditional forms.

use http::StatusCode;
use serde_json::{Value, json};

use super::{
    Asked, House, State,
    access::Need,
    catalog::TypeRule,
    dispatch,
    fault::Fault,
    patch as json_patch,
    read::{bare_tag, seen, versioned},
    reply::{self, Reply},
    search,
    store::{Verb, Version},
};
use crate::ehr::contract::Vendor;

pub fn create(house: &House, state: &mut State, asked: &Asked, rule: &TypeRule) -> Result<Reply, Fault> {
    if !rule.can('c') {
        return Err(Fault::Unsupported("create"));
    }
    let permit = asked.access.permit(rule.name, Need::Create).ok_or_else(|| Fault::NoScope(rule.name.to_owned()))?;
    let resource = body(house, asked, rule)?;
    if let (true, Some(criteria)) = (rule.can('+'), asked.header("if-none-exist")) {
        let criteria = criteria.strip_prefix('?').unwrap_or(criteria);
        if let Some(id) = unique(house, state, asked, rule, criteria)? {
            let version = state.store.newest(rule.name, &id).cloned().ok_or(Fault::Several)?;
            return Ok(written(house, asked, rule, &id, &version, StatusCode::OK));
        }
    }
    if !permit.admits(&state.store, &house.base, &resource) {
        return Err(Fault::Refused);
    }
    let id = match asked.entry.as_ref().and_then(|entry| entry.id.clone()) {
        Some(id) => id,
        None => state.store.next_id(rule.name),
    };
    let version = state.store.write(rule.name, &id, resource, Verb::Post, asked.now);
    Ok(written(house, asked, rule, &id, &version, StatusCode::CREATED))
}

pub fn update(house: &House, state: &mut State, asked: &Asked, rule: &TypeRule, id: &str) -> Result<Reply, Fault> {
    if !rule.can('u') {
        return Err(Fault::Unsupported("update"));
    }
    let permit = asked.access.permit(rule.name, Need::Update).ok_or_else(|| Fault::NoScope(rule.name.to_owned()))?;
    let resource = body(house, asked, rule)?;
    if resource.get("id").and_then(Value::as_str) != Some(id) {
        return Err(Fault::Malformed(format!("the body's id must be {id}, as in the URL")));
    }
    let existing = match seen(house, state, &permit, rule, id) {
        Ok(version) => Some(version),
        Err(Fault::NotFound { .. } | Fault::Gone { .. }) if house.vendor == Vendor::Generic => None,
        Err(fault) => return Err(fault),
    };
    matches(house, asked, existing)?;
    let status = if existing.is_some() { StatusCode::OK } else { StatusCode::CREATED };
    if existing.is_none() && !is_id(id) {
        return Err(Fault::Malformed("an id is 1 to 64 letters, digits, dashes and dots".to_owned()));
    }
    if !permit.admits(&state.store, &house.base, &resource) {
        return Err(Fault::Refused);
    }
    let version = state.store.write(rule.name, id, resource, Verb::Put, asked.now);
    Ok(written(house, asked, rule, id, &version, status))
}

pub fn patch(house: &House, state: &mut State, asked: &Asked, rule: &TypeRule, id: &str) -> Result<Reply, Fault> {
    if !rule.can('p') {
        return Err(Fault::Unsupported("patch"));
    }
    let permit = asked.access.permit(rule.name, Need::Update).ok_or_else(|| Fault::NoScope(rule.name.to_owned()))?;
    if !matches!(dispatch::media(asked), "application/json-patch+json") {
        return Err(Fault::MediaType);
    }
    let patch = json(asked)?;
    let version = seen(house, state, &permit, rule, id)?;
    matches(house, asked, Some(version))?;
    let mut resource = version.resource.as_deref().cloned().unwrap_or_default();
    json_patch::apply(&mut resource, &patch).map_err(Fault::Invalid)?;
    let kept = resource.get("resourceType").and_then(Value::as_str) == Some(rule.name)
        && resource.get("id").and_then(Value::as_str) == Some(id);
    if !kept {
        return Err(Fault::Invalid("a patch changes neither id nor type".to_owned()));
    }
    complete(house, rule, &resource)?;
    if !permit.admits(&state.store, &house.base, &resource) {
        return Err(Fault::Refused);
    }
    let version = state.store.write(rule.name, id, resource, Verb::Patch, asked.now);
    Ok(written(house, asked, rule, id, &version, StatusCode::OK))
}

pub fn delete(house: &House, state: &mut State, asked: &Asked, rule: &TypeRule, id: &str) -> Result<Reply, Fault> {
    if !rule.can('d') {
        return Err(Fault::Unsupported("delete"));
    }
    let permit = asked.access.permit(rule.name, Need::Delete).ok_or_else(|| Fault::NoScope(rule.name.to_owned()))?;
    match seen(house, state, &permit, rule, id) {
        Ok(version) => matches(house, asked, Some(version))?,
        // Deleting twice is deleting once (R4 http, "delete").
        Err(Fault::Gone { .. }) => return Ok(Reply::empty(StatusCode::NO_CONTENT)),
        Err(fault) => return Err(fault),
    }
    let version = state.store.delete(rule.name, id, asked.now);
    Ok(Reply::empty(StatusCode::NO_CONTENT).with("etag", version.etag()))
}

/// `PUT Type?criteria`
pub fn update_where(house: &House, state: &mut State, asked: &Asked, rule: &TypeRule) -> Result<Reply, Fault> {
    let resource = body(house, asked, rule)?;
    match unique(house, state, asked, rule, &asked.raw_query)? {
        Some(id) => match resource.get("id").and_then(Value::as_str) {
            Some(other) if other != id => Err(Fault::Malformed(format!("the criteria fit {id}, the body is {other}"))),
            _ => update(house, state, &asked.with_id(resource, &id), rule, &id),
        },
        None => match resource.get("id").and_then(Value::as_str).map(str::to_owned) {
            Some(id) => update(house, state, asked, rule, &id),
            None => create(house, state, asked, rule),
        },
    }
}

/// `PATCH Type?criteria`
pub fn patch_where(house: &House, state: &mut State, asked: &Asked, rule: &TypeRule) -> Result<Reply, Fault> {
    let id = unique(house, state, asked, rule, &asked.raw_query)?.ok_or_else(|| nothing(rule))?;
    patch(house, state, asked, rule, &id)
}

/// `DELETE Type?criteria`
pub fn delete_where(house: &House, state: &mut State, asked: &Asked, rule: &TypeRule) -> Result<Reply, Fault> {
    let id = unique(house, state, asked, rule, &asked.raw_query)?.ok_or_else(|| nothing(rule))?;
    delete(house, state, asked, rule, &id)
}

fn nothing(rule: &TypeRule) -> Fault {
    Fault::NotFound { ty: rule.name.to_owned(), id: "that fits the criteria".to_owned() }
}

/// The one record that criteria fit; a criterion that is not understood must not widen a write.
pub fn unique(
    house: &House,
    state: &State,
    asked: &Asked,
    rule: &TypeRule,
    criteria: &str,
) -> Result<Option<String>, Fault> {
    let permit = asked.access.permit(rule.name, Need::Search).ok_or_else(|| Fault::NoScope(rule.name.to_owned()))?;
    let pairs = url::form_urlencoded::parse(criteria.as_bytes()).into_owned().collect();
    let mut question = search::read(house, rule, pairs)?;
    let hits =
        search::find(house, state, &mut question, |store, resource| permit.admits(store, &house.base, resource))?;
    if !question.unknown.is_empty() || question.criteria.is_empty() {
        return Err(Fault::Parameter {
            name: question.unknown.first().cloned().unwrap_or_else(|| "criteria".to_owned()),
            reason: "a conditional request needs criteria that are all known".to_owned(),
        });
    }
    let mut hits = hits.into_iter();
    match (hits.next(), hits.next()) {
        (None, _) => Ok(None),
        (Some(hit), None) => Ok(Some(hit.id)),
        (Some(_), Some(_)) => Err(Fault::Several),
    }
}

/// `If-Match`: Oracle demands it and calls a stale one a conflict; Epic has no conditional requests.
fn matches(house: &House, asked: &Asked, existing: Option<&Version>) -> Result<(), Fault> {
    match (asked.header("if-match"), existing) {
        (None, _) if house.vendor == Vendor::Oracle => Err(Fault::MatchWanted),
        (Some(_), _) if house.vendor == Vendor::Epic => Ok(()),
        (None, _) => Ok(()),
        (Some("*"), Some(_)) => Ok(()),
        (Some(tag), Some(version)) if bare_tag(tag) == version.number.to_string() => Ok(()),
        (Some(_), _) => Err(Fault::Stale),
    }
}

fn json(asked: &Asked) -> Result<Value, Fault> {
    serde_json::from_slice(&asked.body).map_err(|error| Fault::Malformed(format!("the body is no JSON: {error}")))
}

/// The resource in a request's body, of the URL's type and with what its type must have.
fn body(house: &House, asked: &Asked, rule: &TypeRule) -> Result<Value, Fault> {
    let json_media = ["application/fhir+json", "application/json", "application/json+fhir", "text/json"];
    if !json_media.contains(&dispatch::media(asked)) {
        return Err(Fault::MediaType);
    }
    let resource = json(asked)?;
    match resource.get("resourceType").and_then(Value::as_str) {
        Some(ty) if ty == rule.name => {}
        Some(ty) => return Err(Fault::Malformed(format!("the body is of type {ty}, the URL of type {}", rule.name))),
        None => return Err(Fault::Malformed("the body has no resourceType".to_owned())),
    }
    complete(house, rule, &resource)?;
    Ok(resource)
}

fn complete(house: &House, rule: &TypeRule, resource: &Value) -> Result<(), Fault> {
    if house.vendor == Vendor::Oracle && resource.get("modifierExtension").is_some() {
        return Err(Fault::ModifierExtension(rule.name.to_owned()));
    }
    match required(rule.name).iter().find(|element| resource.get(**element).is_none_or(Value::is_null)) {
        Some(element) => Err(Fault::Required { ty: rule.name.to_owned(), element }),
        None => Ok(()),
    }
}

/// R4's elements of cardinality 1, and `subject` where every EHR wants one.
fn required(ty: &str) -> &'static [&'static str] {
    match ty {
        "AllergyIntolerance" | "RelatedPerson" => &["patient"],
        "Basic" => &["code"],
        "Binary" => &["contentType"],
        "CarePlan" | "MedicationRequest" | "ServiceRequest" => &["status", "intent", "subject"],
        "Condition" | "CareTeam" => &["subject"],
        "DiagnosticReport" => &["status", "code"],
        "DocumentReference" => &["status", "content"],
        "Encounter" => &["status", "class"],
        "Goal" => &["lifecycleStatus", "description", "subject"],
        "Immunization" => &["status", "vaccineCode", "patient"],
        "Observation" => &["status", "code", "subject"],
        "Procedure" => &["status", "subject"],
        "Provenance" => &["target"],
        "QuestionnaireResponse" => &["status"],
        _ => &[],
    }
}

pub fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.')
}

/// The answer to a write.
fn written(house: &House, asked: &Asked, rule: &TypeRule, id: &str, version: &Version, status: StatusCode) -> Reply {
    let address = format!("{}/{}/{id}", house.base, rule.name);
    let created = status == StatusCode::CREATED;
    match house.vendor {
        Vendor::Oracle => {
            // Nothing, and that as HTML.
            let reply = Reply::text(status, "text/html", "").with("content-length", "0");
            let reply = versioned(house, reply, version);
            if created { reply.with("location", address) } else { reply }
        }
        Vendor::Epic | Vendor::Athena | Vendor::AthenaPractice => {
            let reply = versioned(house, Reply::empty(status), version);
            if created { reply.with("location", address) } else { reply }
        }
        Vendor::Generic => {
            let wish = asked.header("prefer").unwrap_or_default();
            let reply = if wish.contains("return=minimal") {
                Reply::empty(status)
            } else if wish.contains("return=OperationOutcome") {
                Reply::outcome(status, vec![reply::issue("information", "informational", "written")])
            } else {
                Reply::fhir(status, version.resource.as_deref().cloned().unwrap_or_else(|| json!({})))
            };
            let place = format!("{address}/_history/{}", version.number);
            let reply = versioned(house, reply, version);
            if created { reply.with("location", place) } else { reply.with("content-location", place) }
        }
    }
}

impl Asked {
    /// The same request, its body with the id that its criteria found.
    fn with_id(&self, mut resource: Value, id: &str) -> Self {
        if let Some(members) = resource.as_object_mut() {
            members.insert("id".to_owned(), json!(id));
        }
        Self {
            method: self.method.clone(),
            path: self.path.clone(),
            pairs: self.pairs.clone(),
            raw_query: self.raw_query.clone(),
            headers: self.headers.clone(),
            body: resource.to_string().into(),
            bearer: self.bearer,
            access: self.access.clone(),
            now: self.now,
            entry: self.entry.clone(),
        }
    }
}
