//! `/metadata`: an EHR's CapabilityStatement, trimmed to what passes here (FHIR R4, "capabilities").
//!
//! It is public and the same for all, so it is fetched once for the process and kept for ten minutes. An
//! EHR that is away does not take it away: an old one serves, else one that names what its registrations
//! have ticked.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use mantel_adapters::{
    adapter::discovery_headers,
    fhir::{
        capability::{self, OurEndpoints},
        types::is_resource_type,
    },
    site::SiteId,
    smart::scope::TypeOrAny,
};
use serde_json::Value;
use tokio::runtime::Handle;
use url::Url;

use crate::{
    clock::Timestamp,
    config::{Base, Config, Site, Urls},
    telemetry::{
        Metrics,
        metrics::{Call, CallOutcome},
    },
    upstream::{
        Clients, Ehrs, FetchLimits,
        cache::{Died, Keep, Kept, Loaded},
        fetch,
    },
};

const LIFETIME: Duration = Duration::from_secs(600);
/// An EHR's statement changes with its upgrades; one of yesterday is nearer to the truth than none.
const STALE: Duration = Duration::from_secs(24 * 3600);
const FAILURE: Duration = Duration::from_secs(30);
/// The largest real one is 3 MB (HAPI's with all profiles).
const LARGEST: usize = 8 << 20;
const FETCH_WITHIN: Duration = Duration::from_secs(20);
/// Who asks waits so long for an EHR, then goes without it.
const WAIT: Duration = Duration::from_secs(5);

/// What an EHR may be asked for where nothing else is known: the patient's data of US Core.
const COMMON: [&str; 18] = [
    "AllergyIntolerance",
    "CarePlan",
    "CareTeam",
    "Condition",
    "Coverage",
    "DiagnosticReport",
    "DocumentReference",
    "Encounter",
    "Goal",
    "Immunization",
    "Location",
    "MedicationRequest",
    "Observation",
    "Organization",
    "Patient",
    "Practitioner",
    "Procedure",
    "Provenance",
];

/// Why an EHR's statement cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Away;

impl From<Died> for Away {
    fn from(_: Died) -> Self {
        Self
    }
}

/// A statement, and when it was fetched: it is what a `date` says.
struct Fetched {
    statement: Value,
    at: Timestamp,
}

type Entry = (Arc<Site>, Arc<Kept<Fetched, Away>>);

/// The CapabilityStatements of all sites; one for the process.
pub struct Statements {
    known: Mutex<HashMap<SiteId, Entry>>,
    ehrs: Arc<Ehrs>,
    /// Fetches run on the control runtime, so they have sockets of their own.
    clients: Arc<Clients>,
    metrics: Arc<Metrics>,
    clock: crate::clock::SharedClock,
    control: Handle,
}

impl Statements {
    pub fn new(ehrs: Arc<Ehrs>, metrics: Arc<Metrics>, clock: crate::clock::SharedClock, control: Handle) -> Arc<Self> {
        Arc::new(Self { known: Mutex::default(), ehrs, clients: Arc::default(), metrics, clock, control })
    }

    /// The statement of one of our bases; `None`: no such site.
    pub(super) async fn of(&self, config: &Config, base: &Base) -> Option<Value> {
        let urls = config.urls();
        match base {
            Base::Site(id) => {
                let site = config.sites.get(id)?;
                Some(self.of_site(config, site, &endpoints(urls, base, &site.name)).await)
            }
            Base::Uniform => {
                let ours = OurEndpoints { date: date(self.clock.now()), ..endpoints(urls, base, "Mantel") };
                let all = join_all(config.sites.values().map(|site| self.of_site(config, site, &ours))).await;
                Some(capability::union(&all, &ours))
            }
        }
    }

    async fn of_site(&self, config: &Config, site: &Arc<Site>, ours: &OurEndpoints) -> Value {
        let kept = self.kept(site);
        let client_id = site.registrations.iter().find_map(|id| config.registrations.get(id));
        let client_id = client_id.map(|registration| registration.client_id.clone());
        let load = |_| {
            let (site, ehrs, clients) = (site.clone(), self.ehrs.clone(), self.clients.clone());
            let (metrics, clock) = (self.metrics.clone(), self.clock.clone());
            async move {
                let started = clock.monotonic();
                let fetched = load(&site, client_id.as_deref(), &ehrs, &clients).await;
                let outcome = if fetched.is_ok() { CallOutcome::Ok } else { CallOutcome::Failed };
                metrics.upstream(&site.vendor, Call::Discovery, outcome, started.elapsed());
                let statement = fetched.inspect_err(|reason| {
                    tracing::warn!(site = %site.id, reason, "no CapabilityStatement");
                });
                let statement = statement.map_err(|_| Away)?;
                Ok(Loaded { value: Fetched { statement, at: clock.now() }, lifetime: LIFETIME })
            }
        };
        match tokio::time::timeout(WAIT, kept.get(load)).await {
            Ok(Ok(fetched)) => {
                capability::trim(&fetched.statement, &OurEndpoints { date: date(fetched.at), ..ours.clone() })
            }
            Ok(Err(Away)) | Err(_) => {
                let ours = OurEndpoints { date: date(self.clock.now()), ..ours.clone() };
                let ticked = ticked(config, site);
                let types: Vec<&str> = ticked.iter().map(String::as_str).collect();
                capability::minimal(&ours, if types.is_empty() { &COMMON } else { &types })
            }
        }
    }

    /// A site that was configured anew is asked anew.
    fn kept(&self, site: &Arc<Site>) -> Arc<Kept<Fetched, Away>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((same, kept)) = known.get(&site.id)
            && Arc::ptr_eq(same, site)
        {
            return kept.clone();
        }
        let kept = Arc::new(Kept::new(Keep { stale: STALE, failure: FAILURE }, self.control.clone()));
        known.insert(site.id.clone(), (site.clone(), kept.clone()));
        kept
    }
}

async fn load(site: &Site, client_id: Option<&str>, ehrs: &Ehrs, clients: &Clients) -> Result<Value, String> {
    let context = ehrs.context(&site.id).ok_or("the site is not configured any more")?;
    let url = format!("{}/metadata", site.fhir_base_text.trim_end_matches('/'));
    let url = Url::parse(&url).map_err(|error| error.to_string())?;
    let limits = FetchLimits { size: LARGEST, total: FETCH_WITHIN, plain_http: site.fhir_base.scheme() == "http" };
    let headers = discovery_headers(&site.profile, client_id);
    let gate = ehrs.gate(site, client_id.unwrap_or_default());
    let answer = fetch(&clients.of(&context), &gate.auth, &url, &headers, &limits).await;
    let answer = answer.map_err(|error| error.to_string())?;
    if !answer.status.is_success() {
        return Err(format!("status {}", answer.status.as_u16()));
    }
    let statement: Value = serde_json::from_slice(&answer.body).map_err(|_| "its body is no JSON")?;
    match statement.get("resourceType").and_then(Value::as_str) {
        Some("CapabilityStatement") => Ok(statement),
        _ => Err("its body is no CapabilityStatement".into()),
    }
}

/// The types in the scopes that were ticked at the vendor's portal.
fn ticked(config: &Config, site: &Site) -> BTreeSet<String> {
    let registrations = site.registrations.iter().filter_map(|id| config.registrations.get(id));
    let scopes = registrations.flat_map(|registration| registration.scopes.set().resources());
    let types = scopes.filter_map(|scope| match scope.resource {
        TypeOrAny::Type(name) => Some(name),
        TypeOrAny::Any => None,
    });
    types.filter(|name| is_resource_type(name)).collect()
}

fn endpoints(urls: Urls<'_>, base: &Base, description: &str) -> OurEndpoints {
    OurEndpoints {
        base: urls.fhir(base),
        description: description.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        date: String::new(),
        authorize: Some(urls.authorize(base)),
        token: Some(urls.token(base)),
        register: None,
        // Absent where smart-configuration has them absent (conformance A4).
        manage: None,
        introspect: None,
        revoke: None,
    }
}

/// A FHIR dateTime.
fn date(at: Timestamp) -> String {
    let at = jiff::Timestamp::from_second(at.seconds()).unwrap_or_default();
    at.to_string()
}
