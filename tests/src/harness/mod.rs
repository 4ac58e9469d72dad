//! The built gateway in front of simulated EHRs, as its user would run it: a process, a configuration
//! in TOML, real sockets. For end-to-end tests.

pub mod app;
pub mod block;
pub mod cluster;
mod config;
pub mod disk;
mod gateway;
pub mod postgres;
mod process;
pub mod wire;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

pub use self::gateway::{Gateway, binary};
use crate::{
    ehr::{
        contract::Vendor,
        server::{Options, Running, start},
    },
    ports::free_port,
};

/// The app that most tests use: public, with a redirect URI that nobody listens on.
pub const APP: &str = "viewer";
pub const CALLBACK: &str = "http://127.0.0.1:1/callback";
pub const LAUNCH_URL: &str = "http://127.0.0.1:1/launch";
/// What its browser origin would be.
pub const ORIGIN: &str = "http://app.localhost:1";
/// The confidential twin, and its secret.
pub const SECRET_APP: &str = "server-app";
pub const APP_SECRET: &str = "a-secret-of-32-characters-or-more";
/// Between the gateway and each EHR; with what a form-encoder must change.
pub const EHR_SECRET: &str = "ehr s3cret+/%";
/// What the apps may ask, and what is ticked.
pub const SCOPES: [&str; 13] = [
    "launch",
    "launch/patient",
    "openid",
    "fhirUser",
    "offline_access",
    "patient/Patient.read",
    "patient/Observation.read",
    "patient/Condition.read",
    "patient/MedicationRequest.read",
    "patient/AllergyIntolerance.read",
    "patient/Encounter.read",
    "user/Patient.read",
    "user/Practitioner.read",
];

/// What one EHR of a [`World`] is to be.
pub struct Ehr {
    /// Of its site, in a [`cluster::Cluster`]; in a [`World`] that is the vendor's.
    pub name: String,
    pub options: Options,
    /// Further keys of its site, as TOML lines.
    pub site: String,
}

impl Ehr {
    pub fn new(vendor: Vendor) -> Self {
        Self { name: vendor.text().to_owned(), options: Options::new(vendor), site: String::new() }
    }

    pub fn strict(vendor: Vendor) -> Self {
        let options = Options { strict: true, ..Options::new(vendor) };
        Self { name: format!("{}-strict", vendor.text()), options, site: String::new() }
    }

    #[must_use]
    pub fn site(mut self, lines: &str) -> Self {
        self.site.push_str(lines);
        self.site.push('\n');
        self
    }

    #[must_use]
    pub fn switch(mut self, text: &str) -> Self {
        // A misspelt switch fails the test at its start.
        #[allow(clippy::expect_used, reason = "a test's own slip")]
        self.options.switch(text).expect("a switch that exists");
        self
    }
}

/// Simulated EHRs with a gateway in front. Each vendor is a site of its own name.
pub struct World {
    pub ehrs: BTreeMap<Vendor, Running>,
    pub gateway: Gateway,
}

impl World {
    pub async fn start(ehrs: impl IntoIterator<Item = Ehr>) -> Result<Self> {
        Self::start_with(ehrs, "").await
    }

    /// `more`: further TOML for `mantel.toml`.
    pub async fn start_with(ehrs: impl IntoIterator<Item = Ehr>, more: &str) -> Result<Self> {
        Self::start_scoped(ehrs, more, &[]).await
    }

    /// `further`: scopes beyond [`SCOPES`] that are ticked at the EHRs and that the apps may ask for.
    pub async fn start_scoped(ehrs: impl IntoIterator<Item = Ehr>, more: &str, further: &[&str]) -> Result<Self> {
        let scopes: Vec<&str> = SCOPES.iter().chain(further).copied().collect();
        let dir = tempfile::tempdir()?;
        let (port, admin_port) = (free_port()?, free_port()?);
        let public = format!("http://127.0.0.1:{port}");
        let (mut running, mut sites) = (BTreeMap::new(), Vec::new());
        for Ehr { options, site, .. } in ehrs {
            let (vendor, name) = (options.vendor, options.vendor.text());
            let ehr = start(options).await?;
            for app in [APP, SECRET_APP] {
                ehr.auth.register(config::record(name, &public, app, &scopes))?;
            }
            sites.push((name.to_owned(), config::site_toml(name, &ehr, &site, &scopes)));
            running.insert(vendor, ehr);
        }
        let store = "url = \"sqlite://mantel.db\"";
        let server = config::Server { public: &public, port, admin_port, store, more, scopes: &scopes };
        config::write(dir.path(), &server, &sites)?;
        let mut gateway = Gateway::new(public, format!("http://127.0.0.1:{admin_port}"), dir)?;
        gateway.spawn().await?;
        Ok(Self { ehrs: running, gateway })
    }

    #[track_caller]
    pub fn ehr(&self, vendor: Vendor) -> &Running {
        match self.ehrs.get(&vendor) {
            Some(ehr) => ehr,
            None => panic_missing(vendor),
        }
    }
}

#[track_caller]
#[allow(clippy::panic, reason = "a test's own slip")]
fn panic_missing(vendor: Vendor) -> ! {
    panic!("this world has no {}", vendor.text())
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("status {}, and no JSON: {}", self.status, self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether it tells to come again, as a fault that is not the user's.
    pub fn is_held_back(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE
            && self.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok())
    }
}

/// One request over a connection of its own.
pub async fn call(method: Method, url: &str, headers: &[(&str, &str)], body: &str) -> Result<Answer> {
    call_over(&connections(), method, url, headers, body).await
}

/// Connections that are kept, as an app's HTTP client keeps them.
pub type Connections = HttpClient<HttpConnector, Full<Bytes>>;

pub fn connections() -> Connections {
    HttpClient::builder(TokioExecutor::new()).build_http()
}

pub async fn call_over(
    http: &Connections,
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Answer> {
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = http.request(request.body(Full::new(Bytes::from(body.to_owned())))?).await?;
    let (parts, body) = answer.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Answer { status: parts.status, headers: parts.headers, body })
}

pub async fn get(url: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    call(Method::GET, url, headers, "").await
}

/// A GET with a bearer.
pub async fn read(url: &str, token: &str) -> Result<Answer> {
    get(url, &[("authorization", &format!("Bearer {token}"))]).await
}

pub async fn post_form(url: &str, headers: &[(&str, &str)], pairs: &[(&str, &str)]) -> Result<Answer> {
    let mut all = vec![("content-type", "application/x-www-form-urlencoded")];
    all.extend_from_slice(headers);
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    call(Method::POST, url, &all, &body).await
}
