//! Bundles of search results, page by page, with each vendor's links.

use std::{collections::BTreeMap, sync::Arc};

use http::StatusCode;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::{
    Asked, House, State,
    access::{Access, Need},
    fault::Fault,
    ids,
    params::{self, Kind},
    reply::{self, Reply},
    search::{Hit, Matcher, Question},
    vendors,
};
use crate::ehr::contract::Vendor;

/// How long a server remembers the rest of a search (`vendors.md` B, Epic 9).
pub const SESSION_LIFE_MS: i64 = 600_000;
/// Bounds what a client that never turns a page can make us keep.
const SESSIONS: usize = 1000;

/// What is left alone in links, as EHRs do.
const KEPT: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/').remove(b':').remove(b',');

/// Searches whose later pages are still to be fetched.
#[derive(Clone, Default)]
pub struct Pages {
    sessions: BTreeMap<String, Session>,
    opened: u64,
}

#[derive(Clone)]
struct Session {
    serial: u64,
    since: i64,
    view: View,
}

/// A search's results, and where in them the page begins.
#[derive(Clone)]
pub struct View {
    question: Arc<Question>,
    hits: Arc<[Hit]>,
    offset: usize,
    size: usize,
    /// The server's session, once it has one.
    session: Option<String>,
    /// A session outlives the request: whoever turns the page sees what its opener was allowed to.
    access: Access,
}

impl View {
    pub fn new(house: &House, asked: &Asked, question: Question, hits: Vec<Hit>) -> Result<Self, Fault> {
        let size = vendors::page_size(house, &question);
        let offset = match (&question.position, house.vendor) {
            (Some(text), Vendor::Oracle) => unseal(text).ok_or_else(|| Fault::PageGone(text.clone()))?,
            (Some(cursor), _) => {
                hits.iter().position(|hit| hit.id == *cursor).ok_or_else(|| Fault::PageGone(cursor.clone()))?
            }
            (None, _) => 0,
        };
        let access = asked.access.clone();
        Ok(Self { question: Arc::new(question), hits: hits.into(), offset, size, session: None, access })
    }
}

impl Pages {
    fn open(&mut self, house: &House, view: View, now: i64) -> String {
        self.opened += 1;
        let id = match house.vendor {
            Vendor::Epic => {
                let text = ids::uuid(&format!("session/{}", self.opened)).replace('-', "").to_uppercase();
                format!("{}-{text}", 10 + self.opened % 40)
            }
            _ => ids::uuid(&format!("session/{}", self.opened)),
        };
        self.sessions.retain(|_, session| now.saturating_sub(session.since) < SESSION_LIFE_MS);
        while self.sessions.len() >= SESSIONS
            && let Some(oldest) =
                self.sessions.iter().min_by_key(|(_, session)| session.serial).map(|(id, _)| id.clone())
        {
            self.sessions.remove(&oldest);
        }
        self.sessions.insert(id.clone(), Session { serial: self.opened, since: now, view });
        id
    }

    fn find(&self, id: &str, now: i64) -> Option<View> {
        self.sessions
            .get(id)
            .filter(|session| now.saturating_sub(session.since) < SESSION_LIFE_MS)
            .map(|session| session.view.clone())
    }
}

/// `[base]?sessionID=…` (Epic) or `[base]?_getpages=…` (HAPI): the next page of a search whose type the URL
/// does not name.
pub fn resume(house: &House, state: &mut State, asked: &Asked) -> Option<Result<Reply, Fault>> {
    let value = |name: &str| asked.pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let id = match house.vendor {
        Vendor::Epic => value("sessionID")?,
        Vendor::AthenaPractice | Vendor::Generic => value("_getpages")?,
        Vendor::Oracle | Vendor::Athena => return None,
    };
    let Some(mut view) = state.pages.find(id, asked.now) else { return Some(Err(Fault::PageGone(id.to_owned()))) };
    if asked.access.permit(&view.question.ty, Need::Search).is_none() {
        return Some(Err(Fault::NoScope(view.question.ty.clone())));
    }
    if house.vendor != Vendor::Epic {
        let number = |name: &str| value(name).and_then(|text| text.parse::<usize>().ok());
        view.session = Some(id.to_owned());
        view.offset = number("_getpagesoffset").unwrap_or(0).min(view.hits.len());
        view.size = number("_count").filter(|size| *size > 0).unwrap_or(view.size).min(view.size);
    }
    Some(Ok(page(house, state, asked, view)))
}

pub fn page(house: &House, state: &mut State, asked: &Asked, mut view: View) -> Reply {
    let question = Arc::clone(&view.question);
    let total = view.hits.len();
    let own = link(house, &question.path, &question.pairs);
    if question.summary.as_deref() == Some("count") || question.count == Some(0) {
        let bundle = json!({
            "resourceType": "Bundle",
            "type": "searchset",
            "total": total,
            "link": [{"relation": "self", "url": own}],
        });
        return Reply::fhir(StatusCode::OK, bundle);
    }
    let end = view.offset.saturating_add(view.size).min(total);
    // Oracle's pages overlap now and then: here, every second one repeats the last of the page before.
    let repeats = house.vendor == Vendor::Oracle && view.size > 0 && (view.offset / view.size) % 2 == 1;
    let start = view.offset.saturating_sub(usize::from(repeats)).min(end);
    let hits = view.hits.get(start..end).unwrap_or_default().to_vec();

    let mut links = vec![json!({"relation": "self", "url": own})];
    if end < total {
        let url = next(house, state, asked, &mut view, end);
        links.push(json!({"relation": "next", "url": url}));
    }
    if let (Some(session), true) = (&view.session, view.offset > 0) {
        let url = getpages(house, session, view.offset.saturating_sub(view.size), view.size);
        links.push(json!({"relation": "previous", "url": url}));
    }
    if house.vendor == Vendor::Epic {
        links.reverse();
    }

    let mut entries: Vec<Value> = hits.iter().map(|hit| entry(house, &question, hit, "match")).collect();
    entries.extend(included(house, state, &view, &hits).iter().map(|hit| entry(house, &question, hit, "include")));
    let notes = vendors::notes(house, &question, hits.len());
    if !notes.is_empty() {
        state.answered += 1;
        entries.push(json!({
            "fullUrl": format!("urn:uuid:{}", ids::uuid(&format!("outcome/{}", state.answered))),
            "resource": reply::outcome(notes),
            "search": {"mode": "outcome"},
        }));
    }
    let mut bundle = json!({"resourceType": "Bundle", "type": "searchset"});
    if let Some(members) = bundle.as_object_mut() {
        match house.vendor {
            // Epic counts the page; Oracle and athenaOne count nothing.
            Vendor::Epic => {
                members.insert("total".to_owned(), json!(hits.len()));
            }
            Vendor::Oracle | Vendor::Athena if total > 0 => {}
            _ => {
                members.insert("total".to_owned(), json!(total));
            }
        }
        members.insert("link".to_owned(), json!(links));
        if !entries.is_empty() {
            members.insert("entry".to_owned(), json!(entries));
        }
    }
    Reply::fhir(StatusCode::OK, bundle)
}

fn next(house: &House, state: &mut State, asked: &Asked, view: &mut View, end: usize) -> String {
    match house.vendor {
        Vendor::Epic => {
            let rest = View { offset: end, ..view.clone() };
            format!("{}?sessionID={}", house.base, state.pages.open(house, rest, asked.now))
        }
        Vendor::AthenaPractice | Vendor::Generic => {
            let session = match &view.session {
                Some(session) => session.clone(),
                None => state.pages.open(house, view.clone(), asked.now),
            };
            let url = getpages(house, &session, end, view.size);
            view.session = Some(session);
            url
        }
        Vendor::Oracle => {
            let mut pairs = view.question.pairs.clone();
            pairs.push(("pageContext".to_owned(), seal(end)));
            pairs.push(("direction".to_owned(), "NEXT".to_owned()));
            link(house, &view.question.path, &pairs)
        }
        Vendor::Athena => {
            let mut pairs = view.question.pairs.clone();
            let cursor = view.hits.get(end).map(|hit| hit.id.clone()).unwrap_or_default();
            pairs.push(("cursor".to_owned(), cursor));
            link(house, &view.question.path, &pairs)
        }
    }
}

fn getpages(house: &House, session: &str, offset: usize, size: usize) -> String {
    format!("{}?_getpages={session}&_getpagesoffset={offset}&_count={size}&_bundletype=searchset", house.base)
}

/// A link to a search at `path`.
pub fn link(house: &House, path: &str, pairs: &[(String, String)]) -> String {
    let query: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{}={}", utf8_percent_encode(name, KEPT), utf8_percent_encode(value, KEPT)))
        .collect();
    let mark = if query.is_empty() { "" } else { "?" };
    format!("{}/{path}{mark}{}", house.base, query.join("&"))
}

/// Oracle's page contexts tell a client nothing.
fn seal(offset: usize) -> String {
    format!("{:016x}", (offset as u64) ^ 0x5bd1_e995_c0ff_ee00)
}

fn unseal(text: &str) -> Option<usize> {
    let offset = usize::try_from(u64::from_str_radix(text, 16).ok()? ^ 0x5bd1_e995_c0ff_ee00).ok()?;
    (offset < 1_000_000).then_some(offset)
}

pub fn entry(house: &House, question: &Question, hit: &Hit, mode: &str) -> Value {
    json!({
        "fullUrl": format!("{}/{}/{}", house.base, hit.ty, hit.id),
        "resource": shape(&hit.resource, question.summary.as_deref(), &question.elements),
        "search": {"mode": mode},
    })
}

/// `_elements` and `_summary`: what is left of a resource says so (R4 search, SUBSETTED).
pub fn shape(resource: &Value, summary: Option<&str>, elements: &[String]) -> Value {
    let kept = |member: &str| match summary {
        _ if matches!(member, "resourceType" | "id" | "meta") => true,
        _ if !elements.is_empty() => elements.iter().any(|element| element == member),
        Some("text") => member == "text",
        Some("data" | "true") => member != "text",
        _ => true,
    };
    let Some(members) = resource.as_object() else { return resource.clone() };
    if members.keys().all(|member| kept(member)) {
        return resource.clone();
    }
    let mut rest: serde_json::Map<_, _> = members
        .iter()
        .filter(|(member, _)| kept(member))
        .map(|(member, value)| (member.clone(), value.clone()))
        .collect();
    let tags =
        rest.get_mut("meta").and_then(Value::as_object_mut).map(|meta| meta.entry("tag").or_insert_with(|| json!([])));
    if let Some(Value::Array(tags)) = tags {
        tags.push(json!({"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "SUBSETTED"}));
    }
    Value::Object(rest)
}

/// What `_include` and `_revinclude` add: only what the bearer could read by itself.
fn included(house: &House, state: &State, view: &View, hits: &[Hit]) -> Vec<Hit> {
    let mut found: Vec<Hit> = Vec::new();
    let mut add = |ty: &str, id: &str| {
        let known = hits.iter().chain(&found).any(|hit| hit.ty == ty && hit.id == id);
        let Some(resource) = state.store.live(ty, id) else { return };
        let allowed =
            view.access.permit(ty, Need::Read).is_some_and(|permit| permit.admits(&state.store, &house.base, resource));
        if !known && allowed {
            found.push(Hit::include(ty, id, resource));
        }
    };
    let matcher = Matcher { store: &state.store, base: &house.base };
    for text in &view.question.includes {
        let mut parts = text.splitn(3, ':');
        let (source, name, target) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        for hit in hits.iter().filter(|hit| source == "*" || hit.ty == source) {
            let params = params::of(&hit.ty).filter(|param| param.kind == Kind::Reference);
            for param in params.filter(|param| source == "*" || name == Some("*") || name == Some(param.name)) {
                for (ty, id) in matcher.targets(&hit.resource, param.paths) {
                    if target.is_none_or(|target| target == ty) {
                        add(ty, id);
                    }
                }
            }
        }
    }
    for text in &view.question.revincludes {
        let Some((source, name)) = text.split_once(':') else { continue };
        let Some(param) = params::find(source, name).filter(|param| param.kind == Kind::Reference) else { continue };
        for (id, _, resource) in state.store.all(source) {
            let points = matcher
                .targets(resource, param.paths)
                .any(|(ty, target)| hits.iter().any(|hit| hit.ty == ty && hit.id == target));
            if points {
                add(source, id);
            }
        }
    }
    found
}
