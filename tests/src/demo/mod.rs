//! The demo app's server: static files, and a view into the simulated EHRs that a real app would not have.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS},
};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::ehr::simulator::Simulator;

mod custody;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const JSON: &str = "application/json";

/// What is asked of an EHR at its own words; `Procedure` is not ticked everywhere.
const SCOPES: &str = "openid fhirUser offline_access patient/Patient.rs patient/Condition.rs patient/Observation.rs \
                      patient/MedicationRequest.rs patient/AllergyIntolerance.rs patient/Encounter.rs \
                      patient/Practitioner.rs patient/Procedure.rs";

macro_rules! files {
    ($($path:literal, $kind:expr;)*) => {
        /// Path, media type, content.
        const FILES: &[(&str, &str, &str)] = &[
            $((concat!("/", $path), $kind, include_str!(concat!("../../demo/", $path))),)*
        ];
    };
}

files! {
    "index.html", HTML;
    "launch.html", HTML;
    "chart.html", HTML;
    "app.css", CSS;
    "start.js", SCRIPT;
    "launch.js", SCRIPT;
    "chart.js", SCRIPT;
    "record.js", SCRIPT;
    "tokens.js", SCRIPT;
    "scopes.js", SCRIPT;
    "dom.js", SCRIPT;
    "icon.svg", "image/svg+xml";
}

/// What the app's pages know.
pub struct Facts {
    /// `fhir-client.js`
    pub library: Vec<u8>,
    /// Mantel's public URL.
    pub gateway: String,
    pub hospitals: Vec<Hospital>,
}

pub struct Hospital {
    pub name: &'static str,
    pub product: &'static str,
    pub vendor: &'static str,
    /// The EHR's own start page.
    pub home: String,
    pub sites: Vec<Site>,
    pub ehr: Arc<Simulator>,
}

pub struct Site {
    pub id: &'static str,
    pub standalone: bool,
    /// Mantel's, at the EHR.
    pub client_id: String,
    /// How long before its end Mantel renews an access token of this site, before clamping.
    pub refresh_before: Duration,
}

/// The server stops when this is dropped.
pub struct Running {
    // Dropping a set aborts its tasks.
    _tasks: JoinSet<()>,
}

pub fn start(listener: TcpListener, facts: Facts) -> Running {
    let server = Arc::new(Server::new(facts));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve(stream, server.clone()));
                    }
                    // Out of file descriptors: others may close some.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    });
    Running { _tasks: tasks }
}

async fn serve(stream: TcpStream, server: Arc<Server>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = server.answer(request.method(), request.uri().path(), request.uri().query());
        async move { Ok::<_, std::convert::Infallible>(answer.map(Full::new)) }
    });
    // A connection's end, however it comes, is the browser's affair.
    let _ = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
}

struct Server {
    facts: Facts,
    library: Bytes,
    policy: HeaderValue,
}

impl Server {
    fn new(mut facts: Facts) -> Self {
        // The EHRs may show the app inside their pages, nobody else may.
        let frames: Vec<&str> = facts.hospitals.iter().map(|hospital| hospital.home.trim_end_matches('/')).collect();
        let policy = format!(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self' {}; \
             base-uri 'none'; form-action 'none'; frame-ancestors {}",
            facts.gateway,
            frames.join(" ")
        );
        let policy = HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
        let library = Bytes::from(std::mem::take(&mut facts.library));
        Self { facts, library, policy }
    }

    fn answer(&self, method: &Method, path: &str, query: Option<&str>) -> Response<Bytes> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return self.reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", Bytes::from_static(b"only GET"));
        }
        let path = if path == "/" { "/index.html" } else { path };
        if let Some((_, kind, content)) = FILES.iter().find(|(known, _, _)| *known == path) {
            return self.reply(StatusCode::OK, kind, Bytes::from_static(content.as_bytes()));
        }
        match path {
            "/fhir-client.js" => self.reply(StatusCode::OK, SCRIPT, self.library.clone()),
            "/config.json" => self.json(&self.config()),
            "/custody.json" => self.json(&self.custody(query.unwrap_or_default())),
            _ => self.reply(StatusCode::NOT_FOUND, "text/plain", Bytes::from_static(b"there is nothing here")),
        }
    }

    fn json(&self, value: &Value) -> Response<Bytes> {
        self.reply(StatusCode::OK, JSON, Bytes::from(value.to_string()))
    }

    fn reply(&self, status: StatusCode, kind: &'static str, body: Bytes) -> Response<Bytes> {
        let mut reply = Response::new(body);
        *reply.status_mut() = status;
        let mut set = |name: HeaderName, value: HeaderValue| drop(reply.headers_mut().insert(name, value));
        set(CONTENT_TYPE, HeaderValue::from_static(kind));
        set(CONTENT_SECURITY_POLICY, self.policy.clone());
        set(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        set(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        // A code stands in the URL for a moment.
        set(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        reply
    }

    fn config(&self) -> Value {
        let hospital = |hospital: &Hospital| {
            let sites: Vec<Value> = hospital
                .sites
                .iter()
                .map(|site| {
                    let base = format!("{}/sites/{}/fhir/r4", self.facts.gateway, site.id);
                    json!({"id": site.id, "base": base, "standalone": site.standalone})
                })
                .collect();
            json!({
                "name": hospital.name, "product": hospital.product, "vendor": hospital.vendor,
                "home": hospital.home, "sites": sites,
            })
        };
        json!({
            "clientId": crate::sandbox::DEMO,
            "scopes": SCOPES,
            "gateway": self.facts.gateway,
            "base": format!("{}/fhir/r4", self.facts.gateway),
            "hospitals": self.facts.hospitals.iter().map(hospital).collect::<Vec<_>>(),
        })
    }

    /// `site`, and the `patient` whose record is open.
    fn custody(&self, query: &str) -> Value {
        let asked: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let get = |wanted: &str| asked.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        let sites =
            self.facts.hospitals.iter().flat_map(|hospital| hospital.sites.iter().map(move |site| (hospital, site)));
        let found = sites.into_iter().find(|(_, site)| Some(site.id) == get("site"));
        let view = found.and_then(|(hospital, site)| custody::view(&hospital.ehr, site, get("patient")));
        json!({ "custody": view })
    }
}
