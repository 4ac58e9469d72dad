//! Create, update, patch, delete.

use std::sync::Arc;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{CONTENT_TYPE, ETAG, IF_MATCH},
};
use mantel_adapters::{
    fhir::{
        compartment::{Class, class, head},
        interaction::{BodyKind, Interaction, Request, body_kind, encode_pairs, encode_target, parse_query},
        rewrite::Bases,
    },
    smart::scope::{Permissions, ScopeQuery},
};

use super::{
    Authorized, Case, Inspection, Judged, Mode, accept,
    grounds::{self, Use, Way, admits},
    inspection::not_found,
    parameters::Naming,
    patch,
    refusal::{forbidden, malformed},
    refuse_other_patient, search, written,
};
use crate::{
    error::{Error, Kind, Result},
    session::Session,
};

const IF_NONE_EXIST: HeaderName = HeaderName::from_static("if-none-exist");
const FHIR_JSON: HeaderValue = HeaderValue::from_static("application/fhir+json");

pub(super) fn judge(case: &Case<'_>, mut request: Request, interaction: Interaction) -> Result<Judged> {
    if !matches!(interaction, Interaction::Create { .. }) {
        // Only a create has this condition; elsewhere it would go up unjudged.
        request.headers.remove(IF_NONE_EXIST);
    }
    let Some(resource_type) = interaction.resource_type().map(str::to_owned) else {
        return Err(Error::internal("a write without a type"));
    };
    let needed = match interaction {
        Interaction::Create { .. } => Permissions::CREATE,
        Interaction::Delete { .. } => Permissions::DELETE,
        _ => Permissions::UPDATE,
    };
    let ways = grounds::ways(case, &resource_type, needed)?;
    let id = interaction.id().map(str::to_owned);
    if let Some(id) = &id {
        refuse_other_patient(case, &ways, &resource_type, id)?;
    }
    match (&interaction, &id) {
        (Interaction::Create { .. }, _) => {
            create(case, &ways, &resource_type, request, interaction).map(Judged::Forward)
        }
        (_, None) => conditional(case, &ways, &resource_type, request, interaction).map(Judged::Forward),
        (_, Some(id)) => change(case, &ways, &resource_type, id, needed, request, interaction),
    }
}

fn create(
    case: &Case<'_>,
    ways: &[Way],
    resource_type: &str,
    mut request: Request,
    interaction: Interaction,
) -> Result<Authorized> {
    check_type(&request, resource_type, None)?;
    let way = first(ways, |way| may_become(case, way, resource_type, &request))?;
    let mut streams = way.streams();
    // A header that the interaction does not know of is judged all the same.
    if let Some(text) = header(&request.headers, &IF_NONE_EXIST)? {
        let allowed = search::condition(case, resource_type, &text)?;
        streams &= allowed.streams;
        let value = HeaderValue::from_str(&encode_pairs(&allowed.parameters))
            .map_err(|_| malformed("If-None-Exist cannot be sent as a header."))?;
        request.headers.insert(IF_NONE_EXIST, value);
    }
    if streams && !case.always_inspects() {
        return Ok(Authorized::stream(request, interaction));
    }
    let inspection = Inspection::of_instance(case, resource_type, None, Permissions::CREATE);
    Authorized::inspect(request, interaction, inspection)
}

/// A write whose criteria choose what is written: only where all that the EHR can find is covered, since the version
/// that it will choose cannot be read first.
fn conditional(
    case: &Case<'_>,
    ways: &[Way],
    resource_type: &str,
    mut request: Request,
    interaction: Interaction,
) -> Result<Authorized> {
    if !matches!(interaction, Interaction::Delete { .. }) {
        check_type(&request, resource_type, None)?;
    }
    let by_id = || {
        forbidden(
            "A conditional write is passed on only where the EHR itself confines this token: name the resource by its id.",
        )
    };
    let way = ways.iter().find(|way| way.streams()).ok_or_else(by_id)?;
    may_become(case, way, resource_type, &request)?;
    let parameters = std::mem::take(&mut request.query);
    let allowed = search::of_type(case, resource_type, &parameters, Naming::Parameter)?;
    if !allowed.streams || case.always_inspects() {
        return Err(by_id());
    }
    request.query = allowed.parameters;
    Ok(Authorized::stream(request, interaction))
}

fn change(
    case: &Case<'_>,
    ways: &[Way],
    resource_type: &str,
    id: &str,
    needed: Permissions,
    request: Request,
    interaction: Interaction,
) -> Result<Judged> {
    if matches!(interaction, Interaction::Update { .. }) {
        check_type(&request, resource_type, Some(id))?;
    }
    let way = first(ways, |way| may_become(case, way, resource_type, &request))?;
    if way.streams() && !case.always_inspects() {
        return Ok(Judged::Forward(Authorized::stream(request, interaction)));
    }
    let inspection = Inspection::of_instance(case, resource_type, Some(id), needed);
    if way.streams() {
        // Open, and inspected by order of the operator: there is nothing in the current version to decide by.
        return Authorized::inspect(request, interaction, inspection).map(Judged::Forward);
    }
    let authorized = Authorized::inspect(request, interaction, inspection)?;
    let mut headers = HeaderMap::new();
    accept::force_json(&mut headers)?;
    let read = Request {
        method: Method::GET,
        path: vec![resource_type.to_owned(), id.to_owned()],
        query: Vec::new(),
        headers,
        body: bytes::Bytes::new(),
    };
    let reads = Interaction::Read { resource_type: resource_type.to_owned(), id: id.to_owned() };
    let read = Authorized { request: read, interaction: reads, mode: authorized.mode.clone(), searched: None };
    let then = Pending {
        session: case.session.clone(),
        bases: case.bases.clone(),
        resource_type: resource_type.to_owned(),
        id: id.to_owned(),
        needed,
        authorized,
    };
    Ok(Judged::ReadFirst { read, then: Box::new(then) })
}

/// The first way by which a write may go; else why the first one refuses.
fn first(ways: &[Way], allows: impl Fn(&Way) -> Result<()>) -> Result<&Way> {
    let mut refused = None;
    for way in ways {
        match allows(way) {
            Ok(()) => return Ok(way),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| Error::internal("a write with no way")))
}

/// Whether what the request makes of a resource is within that way.
fn may_become(case: &Case<'_>, way: &Way, resource_type: &str, request: &Request) -> Result<()> {
    let (queries, patient): (&[ScopeQuery], _) = match way {
        Way::Open => return Ok(()),
        Way::Confined => (&[], case.patient()),
        Way::Patient(queries) => (queries, case.patient()),
        Way::Constrained(queries) => (queries, None),
    };
    if patient.is_some() {
        match class(resource_type) {
            Class::Patient if request.method == Method::POST => {
                return Err(forbidden("patient/ scopes make no new Patient: it needs user/Patient.c."));
            }
            // Nobody's: one patient's token must not change it for all, unless the EHR lets it.
            Class::Shared if *way != Way::Confined => {
                return Err(forbidden(
                    "This type is about no patient, so patient/ scopes do not write it at this site: it needs user/ scopes.",
                ));
            }
            _ => {}
        }
    }
    match request.method {
        Method::DELETE => Ok(()),
        Method::PATCH => may_patch(resource_type, queries, request),
        _ => {
            let says_whose =
                matches!(class(resource_type), Class::Patient | Class::Compartment(_) | Class::Members | Class::Device);
            if !says_whose && queries.is_empty() {
                return Ok(());
            }
            let body = json(request)?;
            if !queries.is_empty() && !queries.iter().any(|query| grounds::matches(body, query)) {
                return Err(forbidden("The resource does not satisfy the query of this token's scope for its type."));
            }
            match patient {
                Some(patient) if says_whose && !written::is_own(body, patient, case.bases) => Err(forbidden(
                    "Under patient/ scopes a resource is written only if its subject or patient is a literal reference to the patient in context, and no other patient is named where it says whose it is.",
                )),
                _ => Ok(()),
            }
        }
    }
}

fn may_patch(resource_type: &str, queries: &[ScopeQuery], request: &Request) -> Result<()> {
    let content_type = header(&request.headers, &CONTENT_TYPE)?.unwrap_or_default().to_ascii_lowercase();
    if !content_type.trim_start().starts_with("application/json-patch+json") {
        return Err(Error::app(
            Kind::UnsupportedMediaType,
            "Under patient/ scopes, or scopes with a query, a patch is judged by its paths: send a JSON Patch as application/json-patch+json.",
        ));
    }
    if !queries.is_empty() {
        return Err(forbidden(
            "What a patch makes of a resource cannot be held to the query of this token's scope: send an update.",
        ));
    }
    if patch::keeps_owner(&request.body, resource_type) {
        Ok(())
    } else {
        Err(forbidden(
            "Under patient/ scopes a patch may not touch the elements that say whose the resource is, its id, type or contained resources: expected steps with other paths.",
        ))
    }
}

/// The body as JSON.
fn json(request: &Request) -> Result<&[u8]> {
    let content_type = header(&request.headers, &CONTENT_TYPE)?.unwrap_or_default().to_ascii_lowercase();
    if content_type.contains("json") && !content_type.contains("patch") {
        Ok(&request.body)
    } else {
        Err(Error::app(
            Kind::UnsupportedMediaType,
            "Under patient/ scopes, or scopes with a query, the resource is judged, which is done in JSON: send application/fhir+json.",
        ))
    }
}

/// The body is of the type, and has the id, that the URL names: what was judged must be what the EHR stores.
fn check_type(request: &Request, resource_type: &str, id: Option<&str>) -> Result<()> {
    if request.method == Method::PATCH {
        return Ok(());
    }
    let content_type = header(&request.headers, &CONTENT_TYPE)?;
    if body_kind(content_type.as_deref(), request.body.is_empty()) != BodyKind::Resource {
        // The content of a Binary: `classify` lets no other type have such a body.
        return if resource_type == "Binary" {
            Ok(())
        } else {
            Err(malformed("The request has no body: expected a resource."))
        };
    }
    let differs = || {
        malformed(format!(
            "The body is not the resource that the URL names: expected one {resource_type}, with the URL's id if there is one."
        ))
    };
    let is_xml = content_type.as_deref().is_some_and(|text| text.to_ascii_lowercase().contains("xml"));
    if is_xml {
        return if xml_root(&request.body) == Some(resource_type) { Ok(()) } else { Err(differs()) };
    }
    let head = head(&request.body).map_err(|_| {
        malformed("The body is no FHIR resource in JSON: expected an object with one resourceType and no member twice.")
    })?;
    let fits = head.resource_type == resource_type && id.is_none_or(|id| head.id.as_deref() == Some(id));
    if fits { Ok(()) } else { Err(differs()) }
}

/// The name of an XML document's root; none where a DTD or a prefix could change it.
fn xml_root(body: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(body).ok()?;
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix("<?") {
            rest = after.split_once("?>")?.1;
        } else if let Some(after) = rest.strip_prefix("<!--") {
            rest = after.split_once("-->")?.1;
        } else {
            let name = rest.strip_prefix('<')?;
            let end = name.find(|c: char| !c.is_ascii_alphanumeric())?;
            let (name, after) = name.split_at(end);
            let ends = after.starts_with(['>', '/', ' ', '\t', '\r', '\n']);
            return (ends && !name.is_empty()).then_some(name);
        }
    }
}

/// A header that stands at most once.
fn header(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            let text = value.to_str().map_err(|_| malformed(format!("The header {name} is no text.")))?;
            Ok(Some(text.to_owned()))
        }
        _ => Err(malformed(format!("The header {name} stands twice."))),
    }
}

/// A write that waits for the current version of what it changes.
pub struct Pending {
    session: Arc<Session>,
    bases: Arc<Bases>,
    resource_type: String,
    id: String,
    needed: Permissions,
    authorized: Authorized,
}

impl Pending {
    /// Judges the current version: `current` is the EHR's answer with status 200, in JSON, `etag` its header. The
    /// write is bound to that version by `If-Match`; the app's own `If-Match` is kept, since the EHR compares it with
    /// the same version.
    ///
    /// # Errors
    /// [`not_found`] where the current version is not covered: the same as if there were none.
    pub fn finish(self, current: &[u8], etag: Option<&str>) -> Result<Authorized> {
        let Ok(head) = head(current) else { return Err(not_found()) };
        let is_it = head.resource_type == self.resource_type && head.id.as_deref() == Some(&self.id);
        let (resource_type, needed) = (&self.resource_type, self.needed);
        if !is_it || !admits(&self.session, &self.bases, resource_type, needed, current, Use::Written) {
            return Err(not_found());
        }
        let version = match (etag, head.version()) {
            (Some(etag), _) => Some(etag.to_owned()),
            (None, version) => version.map(|version| format!("W/\"{version}\"")),
        };
        let mut authorized = self.authorized;
        // `*` and lists would let other versions than the judged one be changed.
        let names_one = |value: &HeaderValue| value.to_str().is_ok_and(|text| text != "*" && !text.contains(','));
        if !authorized.request.headers.get(IF_MATCH).is_some_and(names_one) {
            let value = version.as_deref().and_then(|version| HeaderValue::from_str(version).ok());
            let value = value.filter(|value| !value.is_empty() && value != "*").ok_or_else(|| {
                forbidden("The EHR names no version of this resource, so a write cannot be bound to the one that was checked.")
                    .because(format!("no usable {ETAG} and no meta.versionId before a write"))
            })?;
            authorized.request.headers.insert(IF_MATCH, value);
        }
        Ok(authorized)
    }
}

/// Judges the conditions in a body's references (`Patient?identifier=…`, transactions): each is a search that must be
/// covered as it stands.
///
/// # Errors
/// One is not, or the body is no JSON.
pub(super) fn check_conditional_references(case: &Case<'_>, body: &[u8]) -> Result<()> {
    let parsed: serde_json::Value =
        serde_json::from_slice(body).map_err(|_| malformed("An entry's resource is no JSON."))?;
    let mut conditions = Vec::new();
    collect_conditions(&parsed, &mut conditions);
    for text in conditions {
        let refuse = || {
            forbidden(
                "A conditional reference is a search, and this one is not covered as it stands: name the resource by its id.",
            )
        };
        let path = case.bases.below(text).unwrap_or(text);
        let Some((resource_type, query)) = path.trim_start_matches('/').split_once('?') else { return Err(refuse()) };
        let given = parse_query(query).map_err(|_| refuse())?;
        let allowed = search::condition(case, resource_type, query)?;
        if allowed.parameters != given || !allowed.streams {
            return Err(refuse());
        }
    }
    Ok(())
}

fn collect_conditions<'v>(value: &'v serde_json::Value, found: &mut Vec<&'v str>) {
    match value {
        serde_json::Value::Array(items) => items.iter().for_each(|item| collect_conditions(item, found)),
        serde_json::Value::Object(members) => {
            for (name, value) in members {
                match value {
                    serde_json::Value::String(text) if name == "reference" && text.contains('?') => found.push(text),
                    value => collect_conditions(value, found),
                }
            }
        }
        _ => {}
    }
}

/// The URL of an entry for this request, relative to the base.
pub(super) fn entry_url(request: &Request) -> String {
    encode_target(request).trim_start_matches('/').to_owned()
}

/// Marks a request as JSON, where its body came in a Bundle.
pub(super) fn mark_json(headers: &mut HeaderMap) {
    headers.insert(CONTENT_TYPE, FHIR_JSON);
}

/// The mode's inspection, if it has one.
pub(super) fn inspection_of(mode: &Mode) -> Option<Arc<Inspection>> {
    match mode {
        Mode::Stream => None,
        Mode::Inspect(inspection) => Some(inspection.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::xml_root;

    #[test]
    fn an_xml_root_is_read_past_prolog_and_comments_only() {
        let cases: [(&str, Option<&str>); 7] = [
            ("<Patient xmlns=\"http://hl7.org/fhir\"/>", Some("Patient")),
            ("\u{feff}<?xml version=\"1.0\"?>\n<!-- <Observation> --> <Patient>", Some("Patient")),
            ("<f:Patient/>", None),
            ("<!DOCTYPE Patient><Patient/>", None),
            ("Patient", None),
            ("<Patient", None),
            ("", None),
        ];
        for (given, expected) in cases {
            assert_eq!(xml_root(given.as_bytes()), expected, "{given}");
        }
    }
}
