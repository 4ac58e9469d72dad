//! Where a site's OAuth endpoints are: the IO half. What a document says is
//! `mantel_adapters::smart::discovery`'s.
//!
//! Sources are asked one after the other, never in a race: `/metadata` knows nothing of PKCE. What is
//! found is kept an hour and served stale while, and for as long as, a new look fails. Endpoints are
//! pinned to the site's own host and `auth_hosts`: a document must not be able to send a user's login or
//! our client secret elsewhere.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, StatusCode, header};
use mantel_adapters::{
    profile::DiscoverySource,
    site::SiteId,
    smart::discovery::{self as documents, CapabilityFacts, Endpoints, HeldEndpoint, Oddity, SmartConfiguration},
};
use tokio::runtime::Handle;
use url::Url;

use super::{
    cache::{Died, Keep, Kept, Loaded},
    client::SiteLink,
    fetch::{FetchError, FetchLimits, Fetched, fetch},
    template::Placeholders,
};
use crate::config::Site;

/// What is found is kept that long.
pub const DISCOVERY_TTL: Duration = Duration::from_secs(3600);
/// A failure without anything known is answered that long: who asks is served soon after the EHR works again.
pub const DISCOVERY_FAILURE_TTL: Duration = Duration::from_secs(5);
/// The largest smart-configuration seen has 25 kB.
const SMART_CONFIGURATION_LIMIT: usize = 1 << 20;
/// HAPI's CapabilityStatement has 706 kB.
const METADATA_LIMIT: usize = 8 << 20;
/// Old Epic sites take seconds to say 404.
const WITHIN: Duration = Duration::from_secs(20);

/// What is known of a site's authorization server.
#[derive(Clone, Debug)]
pub struct Discovered {
    pub endpoints: Endpoints,
    /// The smart-configuration, if there is one.
    pub smart: Option<SmartConfiguration>,
    /// What was odd in the document, in words for `mantel probe`.
    pub oddities: Vec<Oddity>,
    /// The endpoints are others than at the look before: an alarm.
    pub changed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// No source had a usable document; a reason for each, in the order asked.
    #[error("no endpoints of site {site} found: {}", reasons(.tried))]
    NotFound { site: SiteId, tried: Vec<Tried> },
    /// Not used until an operator confirms the hosts.
    #[error(
        "discovery puts endpoints of site {site} on a host that is neither its own nor confirmed: {}. If the vendor \
         says that they belong there, add it to `auth_hosts` of the site or vendor",
        places(.held)
    )]
    Held { site: SiteId, held: Vec<HeldEndpoint> },
    #[error("discovery was broken off")]
    BrokenOff,
}

impl From<Died> for DiscoveryError {
    fn from(_: Died) -> Self {
        Self::BrokenOff
    }
}

/// A source that had nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    pub source: DiscoverySource,
    pub reason: String,
}

fn places(held: &[HeldEndpoint]) -> String {
    held.iter().map(|held| format!("`{}` on {}", held.name, held.host)).collect::<Vec<_>>().join(", ")
}

fn reasons(tried: &[Tried]) -> String {
    let each = tried.iter().map(|tried| format!("{}: {}", name(tried.source), tried.reason));
    each.collect::<Vec<_>>().join("; ")
}

const fn name(source: DiscoverySource) -> &'static str {
    match source {
        DiscoverySource::SmartConfiguration => "smart-configuration",
        DiscoverySource::CapabilityStatement => "capability-statement",
        DiscoverySource::Configuration => "configuration",
    }
}

/// All sites' endpoints, found on first use.
pub struct Discovery {
    known: Mutex<HashMap<Key, Entry>>,
    runtime: Handle,
}

/// At Epic endpoints can differ by client: where a discovery header names the client, so does the key.
type Key = (SiteId, Option<String>);

struct Entry {
    site: Arc<Site>,
    kept: Arc<Kept<Discovered, DiscoveryError>>,
}

impl Discovery {
    /// `runtime`: the control plane's, which carries the fetches.
    pub fn new(runtime: Handle) -> Self {
        Self { known: Mutex::default(), runtime }
    }

    /// The endpoints of a site for a client of ours.
    pub async fn find(&self, link: &SiteLink, client_id: &str) -> Result<Arc<Discovered>, DiscoveryError> {
        let named = link.site.profile.headers.discovery.values().any(|value| value.contains("{client_id}"));
        let key = (link.site.id.clone(), named.then(|| client_id.to_owned()));
        let kept = self.entry(key, &link.site);
        let (link, client_id) = (link.clone(), client_id.to_owned());
        kept.get(move |before| async move {
            let value = look(&link, &client_id, before.as_deref()).await?;
            Ok(Loaded { value, lifetime: DISCOVERY_TTL })
        })
        .await
    }

    /// Forgets what is known of a site: the next call looks anew.
    pub fn forget(&self, site: &SiteId) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).retain(|(id, _), _| id != site);
    }

    fn entry(&self, key: Key, site: &Arc<Site>) -> Arc<Kept<Discovered, DiscoveryError>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = known.get_mut(&key)
            && same(&entry.site, site)
        {
            entry.site = site.clone();
            return entry.kept.clone();
        }
        let keep = Keep { stale: Duration::MAX, failure: DISCOVERY_FAILURE_TTL };
        let kept = Arc::new(Kept::new(keep, self.runtime.clone()));
        known.insert(key, Entry { site: site.clone(), kept: kept.clone() });
        kept
    }
}

/// Whether discovery would ask and judge alike: an operator who adds an `auth_hosts` waits for no cache.
fn same(before: &Arc<Site>, now: &Arc<Site>) -> bool {
    Arc::ptr_eq(before, now)
        || (before.fhir_base == now.fhir_base && before.tenant == now.tenant && before.profile == now.profile)
}

async fn look(link: &SiteLink, client_id: &str, before: Option<&Discovered>) -> Result<Discovered, DiscoveryError> {
    let site = &link.site;
    let mut found = search(link, client_id).await?;
    let held = documents::held(&found.endpoints, &site.fhir_base, &site.profile.auth_hosts);
    if !held.is_empty() {
        let hosts = held.iter().map(|held| format!("{} ({})", held.host, held.name)).collect::<Vec<_>>();
        tracing::warn!(site = %site.id, hosts = hosts.join(", "), "endpoints are held: their host is not confirmed");
        return Err(DiscoveryError::Held { site: site.id.clone(), held });
    }
    found.changed = before.is_some_and(|before| before.endpoints != found.endpoints);
    if found.changed {
        tracing::warn!(
            site = %site.id,
            authorize = place(&found.endpoints.authorize),
            token = place(&found.endpoints.token),
            "the site's endpoints have changed"
        );
    }
    Ok(found)
}

/// Asks the sources in turn until what they said, and what the operator set, is enough.
async fn search(link: &SiteLink, client_id: &str) -> Result<Discovered, DiscoveryError> {
    let site = &link.site;
    let mut said = Said::default();
    let mut tried = Vec::new();
    for &source in &site.profile.discovery {
        if let Err(reason) = said.ask(link, client_id, source).await {
            tried.push(Tried { source, reason });
            continue;
        }
        match documents::resolve(&site.fhir_base, &site.profile, said.smart.as_ref(), said.facts.as_ref()) {
            Ok(endpoints) => {
                let Said { smart, oddities, .. } = said;
                return Ok(Discovered { endpoints, smart, oddities, changed: false });
            }
            Err(fault) => tried.push(Tried { source, reason: fault.to_string() }),
        }
    }
    Err(DiscoveryError::NotFound { site: site.id.clone(), tried })
}

/// What the sources have said so far.
#[derive(Default)]
struct Said {
    smart: Option<SmartConfiguration>,
    facts: Option<CapabilityFacts>,
    oddities: Vec<Oddity>,
}

impl Said {
    /// A soft 200 (an HTML page) is as good as a 404: the body decides.
    async fn ask(&mut self, link: &SiteLink, client_id: &str, source: DiscoverySource) -> Result<(), String> {
        let base = &link.site.fhir_base;
        match source {
            DiscoverySource::SmartConfiguration => {
                let url = below(base, ".well-known/smart-configuration");
                let answer = get(link, client_id, &url, SMART_CONFIGURATION_LIMIT).await?;
                let (smart, oddities) =
                    documents::parse_smart_configuration(&answer.body, base).map_err(|fault| fault.to_string())?;
                self.smart = Some(smart);
                self.oddities.extend(oddities);
            }
            DiscoverySource::CapabilityStatement => {
                let answer = get(link, client_id, &below(base, "metadata"), METADATA_LIMIT).await?;
                let facts =
                    documents::parse_capability_statement(&answer.body, base).map_err(|fault| fault.to_string())?;
                self.oddities.extend(facts.oddities.iter().cloned());
                self.facts = Some(facts);
            }
            DiscoverySource::Configuration => {}
        }
        Ok(())
    }
}

/// A URL for the log: without its query.
fn place(url: &Url) -> String {
    format!("{}{}", url.authority(), url.path())
}

/// A URL below the FHIR base, whatever the base ends in.
fn below(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_query(None);
    url.set_fragment(None);
    url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
    url
}

async fn get(link: &SiteLink, client_id: &str, url: &Url, size: usize) -> Result<Fetched, String> {
    let site = &link.site;
    let placeholders = Placeholders { client_id, tenant: site.tenant.as_deref() };
    let mut headers: HeaderMap = placeholders.headers(&site.profile.headers.discovery);
    // Without it Epic's /metadata is XML.
    headers.entry(header::ACCEPT).or_insert(HeaderValue::from_static("application/json, application/fhir+json;q=0.9"));
    let limits = FetchLimits { size, total: WITHIN, plain_http: plain_http(site) };
    let answer = fetch(&link.client, &link.gate.auth, url, &headers, &limits)
        .await
        .map_err(|error: FetchError| error.to_string())?;
    if answer.status == StatusCode::OK { Ok(answer) } else { Err(format!("status {}", answer.status.as_u16())) }
}

pub(super) fn plain_http(site: &Site) -> bool {
    site.fhir_base.scheme() == "http"
}
