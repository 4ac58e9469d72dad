//! Everything in one process: five simulated EHRs, Mantel on SQLite, and a demo app.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use mantel_tests::sandbox::{Options, Sandbox};
//! let running = Sandbox::start(Options::default()).await?;
//! println!("{}", running.demo_url);
//! # Ok(()) }
//! ```
//!
//! Each part has a name of its own below `localhost`, so that cookies and frames behave as between strangers.
//! Browsers resolve such names to this machine by themselves.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use tokio::net::TcpListener;
use url::Url;

use crate::{
    demo,
    ehr::{auth::client::Use, server},
    ports::free_port,
    sandbox::{
        config::{Addresses, Place},
        hospitals::{Filing, HOSPITALS},
    },
};

pub mod config;
mod gateway;
pub mod hospitals;
pub mod npm;

/// The name of the demo app, which is its client id too.
pub const DEMO: &str = "demo";
const DEMO_HOST: &str = "app.localhost";
const GATEWAY_HOST: &str = "mantel.localhost";

/// What the sandbox is to be.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The first of eight ports in a row; none: any free ones.
    pub ports: Option<u16>,
    /// Where configuration and store stay; none: a directory that is removed at the end.
    pub data: Option<PathBuf>,
    /// The EHRs play the harsher claims about their vendors.
    pub strict: bool,
    /// The EHRs' access tokens live half a minute (Oracle's two), so that one can watch their renewal.
    pub fast: bool,
    /// Apps of one's own beside the demo.
    pub apps: Vec<App>,
    /// Where npm packages are kept; none: [`npm::cache`].
    pub npm: Option<PathBuf>,
}

/// An app of Mantel: public, with PKCE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    /// Also its client id.
    pub name: String,
    pub title: String,
    pub redirect: String,
    /// Further redirect URIs.
    pub more_redirects: Vec<String>,
    pub launch: Option<String>,
    /// Of its pages; a native app has none.
    pub origin: Option<String>,
}

impl App {
    /// # Errors
    /// When the name does not fit, or an address is no URL.
    pub fn new(name: &str, redirect: &str, launch: Option<&str>) -> Result<Self> {
        // The names of registrations, which have 63 characters, are made of it.
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let named = (1..=40).contains(&name.len()) && name.bytes().all(fits) && name != DEMO;
        ensure!(named, "app {name:?}: expected 1 to 40 of a-z, 0-9 and -, and not {DEMO:?}");
        let url = |given: &str| Url::parse(given).with_context(|| format!("app {name}: {given:?} is no URL"));
        let origin = url(redirect)?.origin();
        launch.map(url).transpose()?;
        Ok(Self {
            name: name.to_owned(),
            title: name.to_owned(),
            redirect: redirect.to_owned(),
            more_redirects: Vec::new(),
            launch: launch.map(str::to_owned),
            origin: origin.is_tuple().then(|| origin.ascii_serialization()),
        })
    }

    /// # Errors
    /// When the address is no URL.
    pub fn or_redirect(mut self, redirect: &str) -> Result<Self> {
        Url::parse(redirect).with_context(|| format!("app {}: {redirect:?} is no URL", self.name))?;
        self.more_redirects.push(redirect.to_owned());
        Ok(self)
    }
}

pub struct Sandbox;

/// A sandbox that runs; its parts stop when this is dropped.
pub struct Running {
    /// The demo app's start page, `http://app.localhost:…/`.
    pub demo_url: String,
    /// Mantel's public URL, `http://mantel.localhost:…`.
    pub gateway_url: String,
    /// Mantel's admin listener, `http://127.0.0.1:…`.
    pub admin_url: String,
    /// By the host's first label: `epic`, `oracle`, `athena`, `athenapractice`, `generic`.
    pub ehrs: Vec<(String, server::Running)>,
    /// With `mantel.toml`, `sites.d/` and `mantel.db`.
    pub data_dir: PathBuf,
    pub filings: Vec<Filing>,
    gateway: gateway::Gateway,
    _demo: demo::Running,
    // Removed last, when nothing writes there any more.
    _temporary: Option<tempfile::TempDir>,
}

impl Sandbox {
    /// Starts all parts on the runtime of the caller.
    ///
    /// # Errors
    /// When a port is taken, the data directory cannot be written, or npm's package cannot be fetched.
    pub async fn start(options: Options) -> Result<Running> {
        let library = npm::fhirclient(&options.npm.clone().unwrap_or_else(npm::cache)).await?;
        let port = |at: u16| match options.ports {
            Some(first) => first.checked_add(at).with_context(|| format!("port {first}: expected at most 65528")),
            None => Ok(0),
        };
        let demo_listener = listen(port(0)?).await?;
        let demo_url = format!("http://{DEMO_HOST}:{}/", demo_listener.local_addr()?.port());
        let addresses = gateway_addresses(port(1)?, port(2)?).await?;
        let mut ehrs = Vec::new();
        for (at, hospital) in (3..).zip(HOSPITALS) {
            let started = server::start(hospital.options(port(at)?, options.strict, options.fast)).await?;
            ehrs.push((hospital.host.trim_end_matches(".localhost").to_owned(), started));
        }
        let demo_app = demo_app(&demo_url);
        let apps: Vec<App> = std::iter::once(demo_app).chain(options.apps.clone()).collect();
        let filings = file(&apps, &ehrs, &addresses.public)?;

        let (data_dir, temporary) = data_directory(options.data.as_deref())?;
        let places: Vec<Place<'_>> =
            HOSPITALS.into_iter().zip(&ehrs).map(|(hospital, (_, ehr))| Place { hospital, ehr }).collect();
        let main = config::write(&data_dir, &addresses, &apps, &places, &filings)?;
        let gateway = gateway::start(&main).await?;

        let facts = demo::Facts {
            library,
            gateway: addresses.public.clone(),
            hospitals: places.iter().map(|place| demo_hospital(place, &filings, &gateway)).collect(),
        };
        let demo = demo::start(demo_listener, facts);
        Ok(Running {
            demo_url,
            gateway_url: addresses.public,
            admin_url: format!("http://127.0.0.1:{}", addresses.admin_port),
            ehrs,
            data_dir,
            filings,
            gateway,
            _demo: demo,
            _temporary: temporary,
        })
    }
}

impl Running {
    /// The EHR with this name, such as `epic`.
    pub fn ehr(&self, name: &str) -> Option<&server::Running> {
        self.ehrs.iter().find(|(known, _)| known == name).map(|(_, ehr)| ehr)
    }

    /// A site's base at Mantel.
    pub fn site_base(&self, site: &str) -> String {
        format!("{}/sites/{site}/fhir/r4", self.gateway_url)
    }

    /// Where the demo app is returned to.
    pub fn redirect_uri(&self) -> String {
        demo_app(&self.demo_url).redirect
    }

    /// Stops Mantel as an operator would, so that nothing is cut off, and then the rest.
    ///
    /// # Errors
    /// When Mantel did not end well.
    pub async fn stop(self) -> Result<()> {
        self.gateway.stop().await
    }
}

fn demo_app(demo_url: &str) -> App {
    App {
        name: DEMO.into(),
        title: "Hearth".into(),
        redirect: format!("{demo_url}chart.html"),
        more_redirects: Vec::new(),
        launch: Some(format!("{demo_url}launch.html")),
        origin: Some(demo_url.trim_end_matches('/').to_owned()),
    }
}

async fn listen(port: u16) -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.with_context(|| format!("port {port}: cannot listen"))
}

/// Mantel's configuration names its ports before it listens, so free ones are looked for here.
async fn gateway_addresses(port: u16, admin_port: u16) -> Result<Addresses> {
    let (port, admin_port) = (free(port).await?, free(admin_port).await?);
    Ok(Addresses { public: format!("http://{GATEWAY_HOST}:{port}"), port, admin_port })
}

/// That port, if it can be listened on; 0: any.
async fn free(port: u16) -> Result<u16> {
    if port == 0 { free_port() } else { listen(port).await.map(|_| port) }
}

/// Files each app at each vendor's portal.
fn file(apps: &[App], ehrs: &[(String, server::Running)], gateway: &str) -> Result<Vec<Filing>> {
    let mut filings = Vec::new();
    for app in apps {
        for (hospital, (_, ehr)) in HOSPITALS.into_iter().zip(ehrs) {
            for plan in hospital.sites {
                let mut plan = *plan;
                // What has no launch URL cannot be opened from an EHR.
                if app.launch.is_none() {
                    plan.uses = if plan.uses.contains(&Use::Standalone) { &[Use::Standalone] } else { continue };
                }
                let filing = Filing::new(hospital, plan, &app.name);
                ehr.auth.register(filing.client(&app.title, gateway))?;
                filings.push(filing);
            }
        }
    }
    Ok(filings)
}

fn data_directory(given: Option<&Path>) -> Result<(PathBuf, Option<tempfile::TempDir>)> {
    match given {
        Some(path) => {
            std::fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
            Ok((path.canonicalize()?, None))
        }
        None => {
            let temporary = tempfile::Builder::new().prefix("mantel-sandbox-").tempdir()?;
            Ok((temporary.path().to_owned(), Some(temporary)))
        }
    }
}

fn demo_hospital(place: &Place<'_>, filings: &[Filing], gateway: &gateway::Gateway) -> demo::Hospital {
    let sites = place.hospital.sites.iter().filter_map(|plan| {
        let filing = filings.iter().find(|filing| filing.app == DEMO && filing.plan.id == plan.id)?;
        Some(demo::Site {
            id: plan.id,
            standalone: plan.uses.contains(&Use::Standalone),
            client_id: filing.client_id.clone(),
            refresh_before: gateway.refresh_before(plan.id),
        })
    });
    demo::Hospital {
        name: place.hospital.name,
        product: place.hospital.product,
        vendor: place.hospital.vendor.text(),
        home: format!("{}/", place.ehr.origin),
        sites: sites.collect(),
        ehr: Arc::clone(&place.ehr.ehr),
    }
}
