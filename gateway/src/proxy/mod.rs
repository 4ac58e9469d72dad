//! The FHIR road.
//!
//! ```text
//! Call ─► serve: bearer ─► Session, Site, App ─► request: parsed, its body read, URLs moved up
//!          judge: Authorized, or a refusal
//!          plan: what this vendor is asked ─► forward: exchanges under custody's bearer
//!          answer: errors, inspection, URLs moved down ─► the app
//! ```
//!
//! Only the judge makes an `Authorized`, and nothing is sent without one (`guard.md`, "The judge").

mod answer;
mod batch;
mod body;
mod forward;
mod headers;
pub mod judge;
mod metadata;
mod outcome;
mod paging;
mod plan;
mod request;
mod serve;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

pub use body::{Body, BoxError};
use http::{Request, Response};
use hyper::body::Incoming;
use mantel_adapters::{
    fhir::{interaction::InteractionKind, rewrite::Bases},
    site::{AppId, SiteId, VendorId},
};
pub use metadata::Statements;
pub use paging::Pages;
use tokio::runtime::Handle;

use self::forward::SiteBases;
use crate::{
    clock::SharedClock,
    config::{Base, Config, Site, Timeouts},
    custody::Custody,
    error::{Error, Result},
    session::Bearers,
    store::GrantId,
    telemetry::{Metrics, metrics::Outcome},
    upstream::{Clients, Ehrs},
};

/// One request on the FHIR road.
pub struct Call {
    /// The snapshot that serves it whole.
    pub config: Arc<Config>,
    pub base: Base,
    /// The raw path below the base: empty, or from `/` on.
    pub tail: String,
    pub request: Request<Incoming>,
    pub request_id: String,
}

/// What was found out on the way, for log and metrics; filled as far as the request came.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub site: Option<(VendorId, SiteId)>,
    pub app: Option<AppId>,
    pub grant: Option<GrantId>,
    pub kind: Option<InteractionKind>,
    pub resource_type: Option<String>,
    /// Time spent waiting for the EHR.
    pub ehr: Duration,
    /// Whether the request carried a bearer.
    pub token_came: bool,
    /// Whose fault an answer is that is not 2xx; none: by its status.
    pub outcome: Option<Outcome>,
}

/// What the road is made of. All but `clients` is one for the process.
pub struct ProxyContext {
    pub bearers: Arc<Bearers>,
    pub custody: Custody,
    pub ehrs: Arc<Ehrs>,
    /// The worker's own: its sockets live on its runtime.
    pub clients: Clients,
    pub statements: Arc<Statements>,
    /// Made of a key that is derived from the seal key.
    pub pages: Arc<Pages>,
    pub clock: SharedClock,
    pub metrics: Arc<Metrics>,
    /// The control runtime: store look-ups and custody's flights run there.
    pub control: Handle,
    pub timeouts: Timeouts,
}

/// The FHIR road of one worker.
pub struct Proxy {
    context: ProxyContext,
    bases: BasesCache,
}

impl Proxy {
    pub fn new(context: ProxyContext) -> Self {
        Self { context, bases: BasesCache::default() }
    }

    /// Serves one request.
    ///
    /// # Errors
    /// What the gateway refuses, or an EHR that gives no answer. An error that an EHR answers is an `Ok`.
    pub async fn serve(&self, call: Call, facts: &mut Facts) -> Result<Response<Body>> {
        serve::serve(self, call, facts).await
    }
}

/// A site as it was, and its bases.
type Compiled = (Arc<Site>, Arc<SiteBases>);

/// The compiled bases of each site, as the snapshot in force has them.
#[derive(Default)]
struct BasesCache {
    known: Mutex<HashMap<(SiteId, bool), Compiled>>,
}

impl BasesCache {
    fn of(&self, config: &Config, site: &Arc<Site>, base: &Base) -> Result<Arc<SiteBases>> {
        let key = (site.id.clone(), *base == Base::Uniform);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((same, bases)) = known.get(&key)
            && Arc::ptr_eq(same, site)
        {
            return Ok(bases.clone());
        }
        let bases = Arc::new(SiteBases::new(config, site, base)?);
        known.retain(|(id, _), _| config.sites.contains_key(id));
        known.insert(key, (site.clone(), bases.clone()));
        Ok(bases)
    }
}

impl SiteBases {
    fn new(config: &Config, site: &Site, base: &Base) -> Result<Self> {
        let urls = config.urls();
        let ours = urls.fhir(base);
        let (uniform, own) = (urls.fhir(&Base::Uniform), urls.fhir(&Base::Site(site.id.clone())));
        let theirs = site.fhir_base_text.as_str();
        let all = std::iter::once(theirs).chain(site.link_bases.iter().map(String::as_str));
        let fault = |error: mantel_adapters::fhir::rewrite::InvalidBase| {
            Error::internal(format_args!("bases of site {}: {error}", site.id))
        };
        let host = |text: &str| url::Url::parse(text).ok()?.host_str().map(str::to_owned);
        Ok(Self {
            hosts: all.clone().filter_map(host).collect(),
            down: Arc::new(Bases::new(all, &ours).map_err(fault)?),
            judge: judge::bases(site, urls).map_err(fault)?,
            up: Arc::new(Bases::new([uniform.as_str(), own.as_str()], theirs).map_err(fault)?),
        })
    }
}
