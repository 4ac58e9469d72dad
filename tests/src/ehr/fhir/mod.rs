//! The FHIR server of a simulated EHR: five vendors' behaviour over one set of synthetic patients.
//!
//! A request goes from [`FhirServer::handle`] through `dispatch` to one interaction (`read`, `search`, `write`,
//! `batch`, `everything`); what fails is a [`fault::Fault`], which `vendors` puts into the vendor's words. What
//! differs by vendor stands in three places: `catalog` (types, interactions, parameters), `vendors` (searches'
//! demands, errors, headers) and `paging` (links). Every access is judged by the token's own scopes, as the EHR
//! would: the gateway's judge must not lean on it, since tokens may be wider than what an app was granted.

mod access;
mod batch;
mod capability;
mod catalog;
mod compartment;
mod data;
mod date;
mod dispatch;
mod everything;
mod fault;
mod ids;
mod paging;
mod params;
mod patch;
mod read;
mod reply;
mod search;
mod store;
mod vendors;
mod write;

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use http::{HeaderMap, Method};
use serde_json::Value;

use self::{access::Access, paging::Pages, store::Store};
pub use self::{ids::PRACTICE, paging::SESSION_LIFE_MS, read::BEYOND, store::MARK_SYSTEM};
use super::contract::{Behaviour, Counters, FhirAnswer, FhirCall, Vendor};

/// One simulated FHIR server, its records in memory.
pub struct FhirServer {
    house: House,
    state: Mutex<State>,
}

/// A patient, for pickers and tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatientSummary {
    pub id: String,
    pub name: String,
    pub birth_date: String,
    pub gender: String,
}

/// A clinician, for login pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PersonSummary {
    pub id: String,
    pub name: String,
}

/// What does not change while a server lives.
struct House {
    vendor: Vendor,
    strict: bool,
    /// Absolute, without a final slash.
    base: String,
    base_path: String,
    patient_by_id: bool,
    page_size: Option<usize>,
    counters: Counters,
}

/// What does.
#[derive(Clone)]
struct State {
    store: Store,
    pages: Pages,
    answered: u64,
}

/// A request, taken apart.
struct Asked {
    method: Method,
    /// Decoded segments below the base.
    path: Vec<String>,
    pairs: Vec<(String, String)>,
    raw_query: String,
    headers: HeaderMap,
    body: Bytes,
    bearer: Bearer,
    access: Access,
    /// Milliseconds since 1970.
    now: i64,
    /// An entry of a Bundle; a transaction fixes the id of what a POST in it creates.
    entry: Option<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bearer {
    Absent,
    Bad,
    Live,
}

#[derive(Clone, Debug, Default)]
struct Entry {
    id: Option<String>,
}

impl FhirServer {
    /// Loads the patients.
    ///
    /// # Errors
    /// When the embedded records cannot be read, which is a fault of the build.
    pub fn new(behaviour: Behaviour, counters: Counters) -> anyhow::Result<Self> {
        let Behaviour { vendor, strict, origin, switches } = behaviour;
        let base_path = base_path(vendor).to_owned();
        let base = format!("{}{base_path}", origin.trim_end_matches('/'));
        let store = data::load(vendor, &base)?;
        let house = House {
            vendor,
            strict,
            base,
            base_path,
            // `strict` plays the claim that Epic has no `Patient?_id=`.
            patient_by_id: switches.patient_by_id.unwrap_or(!(strict && vendor == Vendor::Epic)),
            page_size: switches.page_size,
            counters,
        };
        Ok(Self { house, state: Mutex::new(State { store, pages: Pages::default(), answered: 0 }) })
    }

    /// Answers one request, whose path and query are below the FHIR base.
    pub fn handle(&self, call: FhirCall) -> FhirAnswer {
        let asked = Asked::new(&self.house, call);
        self.house.counters.count(format!("fhir:{} {}", asked.method, dispatch::place(&self.house, &asked)));
        let mut state = self.state();
        let reply = dispatch::answer(&self.house, &mut state, &asked)
            .unwrap_or_else(|fault| vendors::fault(&self.house, &fault));
        vendors::dress(&self.house, &mut state, &asked, reply)
    }

    /// The answer to a request outside of the FHIR base: Oracle's to another tenant, athenaOne's gateway …
    pub fn elsewhere(&self, call: FhirCall) -> FhirAnswer {
        let asked = Asked::new(&self.house, call);
        vendors::dress(&self.house, &mut self.state(), &asked, vendors::elsewhere(&self.house))
    }

    /// All patients that can be picked, in a fixed order; the first three have over 200 resources each.
    pub fn patients(&self) -> Vec<PatientSummary> {
        let state = self.state();
        let mut records: BTreeMap<String, usize> = BTreeMap::new();
        for ty in state.store.types() {
            for owner in state.store.all(ty).flat_map(|(_, _, resource)| state.store.owners(resource)) {
                *records.entry(owner).or_default() += 1;
            }
        }
        let mut all: Vec<PatientSummary> = state
            .store
            .all("Patient")
            .filter(|(id, _, _)| state.store.merged_into(id).is_none())
            .map(|(id, _, patient)| {
                let text = |name: &str| patient.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
                PatientSummary {
                    id: id.to_owned(),
                    name: full_name(patient),
                    birth_date: text("birthDate"),
                    gender: text("gender"),
                }
            })
            .collect();
        all.sort_by_key(|patient| std::cmp::Reverse(records.get(&patient.id).copied()));
        all
    }

    pub fn practitioners(&self) -> Vec<PersonSummary> {
        let state = self.state();
        state
            .store
            .all("Practitioner")
            .map(|(id, _, person)| PersonSummary { id: id.to_owned(), name: full_name(person) })
            .collect()
    }

    /// The ids of a patient's encounters, the latest first.
    pub fn encounters(&self, patient: &str) -> Vec<String> {
        let state = self.state();
        let mut found: Vec<(String, String)> = state
            .store
            .all("Encounter")
            .filter(|(_, _, encounter)| state.store.owners(encounter).iter().any(|owner| owner == patient))
            .map(|(id, _, encounter)| {
                let start = encounter.pointer("/period/start").and_then(Value::as_str).unwrap_or_default();
                (start.to_owned(), id.to_owned())
            })
            .collect();
        found.sort_by(|one, other| other.cmp(one));
        found.into_iter().map(|(_, id)| id).collect()
    }

    /// Where the FHIR base is, below the origin.
    pub fn fhir_base_path(&self) -> String {
        self.house.base_path.clone()
    }

    /// The code (system [`MARK_SYSTEM`]) of the tag that every resource of this patient carries.
    pub fn mark(&self, patient: &str) -> Option<String> {
        self.state().store.mark(patient).map(str::to_owned)
    }

    /// A patient id that was merged, and into which (Epic, Oracle).
    pub fn merged_patient(&self) -> Option<(String, String)> {
        self.state().store.merged().map(|(from, into)| (from.to_owned(), into.to_owned()))
    }

    /// A panic in another request must not end the server: every write is complete or was never begun.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked {
    fn new(house: &House, call: FhirCall) -> Self {
        let FhirCall { method, path, query, headers, body, token, now } = call;
        let bearer = match &token {
            Some(_) => Bearer::Live,
            None if headers.contains_key(http::header::AUTHORIZATION) => Bearer::Bad,
            None => Bearer::Absent,
        };
        let raw_query = query.unwrap_or_default();
        Self {
            method: effective_method(house.vendor, method, &headers),
            path: segments(&path),
            pairs: url::form_urlencoded::parse(raw_query.as_bytes()).into_owned().collect(),
            raw_query,
            headers,
            body,
            bearer,
            access: token.map(|token| Access::of(house.vendor, &token)).unwrap_or_default(),
            now,
            entry: None,
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl House {
    /// The host and port that a challenge names.
    fn host(&self) -> &str {
        let rest = self.base.split_once("://").map_or(self.base.as_str(), |(_, rest)| rest);
        rest.split('/').next().unwrap_or(rest)
    }
}

const fn base_path(vendor: Vendor) -> &'static str {
    match vendor {
        Vendor::Epic => "/interconnect-fhir-oauth/api/FHIR/R4",
        Vendor::Oracle => "/r4/ec2458f2-1e24-41c8-b71b-0e701af7583d",
        Vendor::Athena | Vendor::Generic => "/fhir/r4",
        Vendor::AthenaPractice => "/demoAPIServer/fhir/r4",
    }
}

/// Oracle lets a POST say that it is another method.
fn effective_method(vendor: Vendor, method: Method, headers: &HeaderMap) -> Method {
    let other = headers.get("x-http-method-override").and_then(|value| value.to_str().ok());
    match (vendor, other) {
        (Vendor::Oracle, Some(name)) if method == Method::POST => {
            Method::from_bytes(name.to_ascii_uppercase().as_bytes()).unwrap_or(method)
        }
        _ => method,
    }
}

/// Decoded segments. One final slash is none, and dot segments are walked, encoded or not, as HTTP stacks do
/// (RFC 3986 §5.2.4): `Patient/../Observation` that a gateway took for a patient is a search here.
fn segments(path: &str) -> Vec<String> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let mut found = Vec::new();
    if path.is_empty() {
        return found;
    }
    for segment in path.split('/') {
        match percent_encoding::percent_decode_str(segment).decode_utf8_lossy().into_owned() {
            segment if segment == "." => {}
            segment if segment == ".." => drop(found.pop()),
            segment => found.push(segment),
        }
    }
    found
}

fn full_name(person: &Value) -> String {
    let given = person.pointer("/name/0/given").and_then(Value::as_array);
    let family = person.pointer("/name/0/family").and_then(Value::as_str);
    given.into_iter().flatten().filter_map(Value::as_str).chain(family).collect::<Vec<_>>().join(" ")
}
