//! The FHIR road behind a real socket, with a store, custody and grants; without the rest of the edge.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use mantel::{
    clock::{SharedClock, SystemClock, Timestamp},
    config::{Base, Config, SealKey, Sources, load},
    custody::{
        Custody, CustodyContext, CustodyEvents, GrantPolicy, LeaseMark, Policies, RefreshAnswer, RefreshOutcome,
        SpillEvent, TokenEndpoint,
    },
    edge::{
        respond,
        routes::{Road, road},
    },
    entropy::SystemEntropy,
    proxy::{Body, Call, Facts, Pages, Proxy, ProxyContext, Statements},
    replicas::Replicas,
    secret::{Secret, TokenHash},
    session::Bearers,
    store::{
        AccessToken, AppRequest, BootId, Code, EhrTokens, EndReason, Grant, GrantFacts, GrantId, GrantState, Launch,
        LaunchId, LaunchStep, NewTokens, Redeemed, ReplicaFacts, SharedStore, sealing::Sealer, sqlite::Sqlite,
    },
    telemetry::Metrics,
    upstream::{Clients, Ehrs, Roots},
};
use mantel_adapters::smart::launch::LaunchContext;
use serde_json::Value;
use tokio::{net::TcpListener, runtime::Handle};
use uuid::Uuid;

use super::ehr::Ehr;

/// What differs from test to test.
#[derive(Clone)]
pub struct Setup {
    pub vendor: &'static str,
    /// Further keys of the site.
    pub site: String,
    pub upstream_wait: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self { vendor: "generic", site: String::new(), upstream_wait: Duration::from_secs(20) }
    }
}

/// What a grant covers.
#[derive(Clone)]
pub struct Covers {
    pub scopes: &'static str,
    /// What the EHR said that it granted.
    pub upstream: Option<&'static str>,
    pub patient: Option<&'static str>,
    pub site: &'static str,
    pub ehr_launch: bool,
}

/// A clinician: whatever the EHR shows.
pub const USER: Covers = Covers {
    scopes: "user/*.cruds",
    upstream: Some("user/*.cruds"),
    patient: None,
    site: "general",
    ehr_launch: false,
};

/// A patient, at an EHR whose token opens more.
pub const PATIENT: Covers =
    Covers { scopes: "patient/*.cruds", upstream: None, patient: Some("p1"), site: "general", ehr_launch: false };

/// The EHR's token endpoint: each refresh gives the next token.
#[derive(Default)]
pub struct Tokens {
    refreshes: AtomicUsize,
}

#[async_trait]
impl TokenEndpoint for Tokens {
    async fn refresh(&self, _: &Grant, _: &Secret<String>, _: Option<&str>) -> RefreshAnswer {
        let number = self.refreshes.fetch_add(1, Ordering::SeqCst) + 2;
        RefreshAnswer::Tokens {
            access: format!("ehr-token-{number}").into(),
            refresh: None,
            lifetime: Some(Duration::from_secs(3600)),
            refresh_lifetime: None,
            scope: None,
            id_token: None,
        }
    }
}

struct Words(Arc<Config>);

impl Policies for Words {
    fn of(&self, grant: &Grant) -> Option<GrantPolicy> {
        let site = self.0.sites.get(&grant.site)?;
        let tokens = site.profile.tokens.clone();
        Some(GrantPolicy {
            vendor: site.vendor.clone(),
            tokens,
            keep_alive: false,
            session: None,
            cold_for: Duration::from_secs(1800),
        })
    }

    fn learnt(&self, _: &Grant, _: &str) -> Option<GrantFacts> {
        None
    }
}

impl CustodyEvents for Words {
    fn lease(&self, _: LeaseMark) {}

    fn refresh(&self, _: &mantel_adapters::site::VendorId, _: &mantel_adapters::site::SiteId, _: RefreshOutcome) {}
    fn ended(&self, _: &Grant, _: EndReason) {}
    fn changed(&self, _: &Grant) {}
    fn suspect(&self, _: &mantel_adapters::site::RegistrationId, _: &mantel_adapters::site::SiteId, _: bool) {}
    fn joined(&self) {}
    fn kept(&self) {}
    fn spill(&self, _: SpillEvent) {}
    fn spill_depth(&self, _: usize) {}
}

pub const PUBLIC: &str = "https://gateway.example.org";
pub const SITE: &str = "/sites/general/fhir/r4";
pub const UNIFORM: &str = "/fhir/r4";

pub struct Gateway {
    address: std::net::SocketAddr,
    pub store: SharedStore,
    pub custody: Custody,
    pub tokens: Arc<Tokens>,
    config: Arc<Config>,
}

fn config(ehr: &Ehr, setup: &Setup) -> Config {
    let mantel = format!(
        r#"
        [server]
        public_url = "{PUBLIC}"
        listen = "127.0.0.1:0"
        behind_proxy = ["127.0.0.1"]
        sandbox = true
        [store]
        url = "sqlite::memory:"
        seal = [{{ id = "one", file = "seal" }}]
        [apps.viewer]
        client_auth = {{ method = "none" }}
        redirect_uris = ["https://viewer.example.org/callback"]
        launch_url = "https://viewer.example.org/launch"
        scopes = ["launch/patient", "patient/*.cruds", "user/*.cruds"]
        sites = ["*"]
        consent = "never"
        [registrations.viewer]
        vendor = "{vendor}"
        apps = ["viewer"]
        use = ["ehr-launch", "standalone"]
        client_id = "client"
        client_auth = {{ method = "none" }}
        scopes = ["patient/Patient.cruds", "patient/Observation.cruds", "user/Patient.cruds"]
        [sites.general]
        vendor = "{vendor}"
        name = "General Hospital"
        fhir_base_url = "{base}"
        registrations = ["viewer"]
        allow_private = true
        {site}
        [sites.other]
        vendor = "{vendor}"
        name = "Another one"
        fhir_base_url = "{base}/other"
        registrations = ["viewer"]
        allow_private = true
        "#,
        vendor = setup.vendor,
        base = ehr.base(),
        site = setup.site,
    );
    let files: BTreeMap<PathBuf, Vec<u8>> = [
        (PathBuf::from("/etc/mantel/mantel.toml"), mantel.into_bytes()),
        (PathBuf::from("/etc/mantel/seal"), (1..=32).collect()),
    ]
    .into();
    let sources = Sources { paths: vec!["/etc/mantel".into()], environment: Vec::new(), files: Arc::new(files) };
    match load(&sources) {
        Ok(loaded) => loaded.config,
        Err(faults) => panic!("{faults}"),
    }
}

impl Gateway {
    pub async fn start(ehr: &Ehr) -> Self {
        Self::with(ehr, Setup::default()).await
    }

    pub async fn with(ehr: &Ehr, setup: Setup) -> Self {
        let config = Arc::new(config(ehr, &setup));
        let clock: SharedClock = Arc::new(SystemClock);
        let entropy = Arc::new(SystemEntropy::new());
        let sealer = Arc::new(Sealer::new(&[SealKey { id: "one".into(), bytes: Secret::new([1; 32]) }]).unwrap());
        let store: SharedStore = Arc::new(Sqlite::open(None, sealer.clone()).await.unwrap());
        let metrics = Metrics::new().unwrap();
        metrics.take_on(&config, 0);
        let handle = Handle::current();
        let mut timeouts = config.server.timeouts.clone();
        timeouts.upstream = setup.upstream_wait;
        let ehrs = Ehrs::new(Roots::none(), &timeouts, handle.clone(), clock.clone(), entropy.clone(), metrics.clone());
        ehrs.take_on(&config).unwrap_or_else(|faults| panic!("{faults:?}"));
        let ehrs = Arc::new(ehrs);
        let tokens = Arc::new(Tokens::default());
        let words = Arc::new(Words(config.clone()));
        let boot = BootId(Uuid::from_u128(1));
        let (facts, max_stale) = (ReplicaFacts::default(), Duration::from_secs(60));
        let replicas = Replicas::join(store.clone(), clock.clone(), metrics.clone(), boot, Arc::new(facts), max_stale)
            .await
            .unwrap();
        let custody = Custody::new(CustodyContext {
            store: store.clone(),
            endpoint: tokens.clone(),
            clock: clock.clone(),
            entropy,
            handle: handle.clone(),
            replicas: replicas.clone(),
            events: words.clone(),
            policies: words,
            token_timeout: timeouts.token,
            spill: None,
        });
        let proxy = Arc::new(Proxy::new(ProxyContext {
            bearers: Arc::new(Bearers::new(store.clone(), clock.clone(), replicas)),
            custody: custody.clone(),
            statements: Statements::new(ehrs.clone(), metrics.clone(), clock.clone(), handle.clone()),
            ehrs,
            clients: Clients::default(),
            pages: Arc::new(Pages::new(sealer)),
            clock,
            metrics,
            control: handle,
            timeouts,
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, proxy, config.clone()));
        Self { address, store, custody, tokens, config }
    }

    /// How often the EHR's token was refreshed.
    pub fn refreshes(&self) -> usize {
        self.tokens.refreshes.load(Ordering::SeqCst)
    }

    /// A grant and the app's access token.
    pub async fn grant(&self, covers: &Covers) -> (GrantId, String) {
        let now = Timestamp(jiff::Timestamp::now().as_millisecond());
        // An answer of ten minutes ago: a 401 may force a refresh.
        let received = now.before(Duration::from_secs(600));
        let number = GRANTS.fetch_add(1, Ordering::SeqCst) as u128;
        let registration = &self.config.registrations[&"viewer".parse().unwrap()];
        let grant = Grant {
            id: GrantId(Uuid::from_u128(1000 + number)),
            app: "viewer".parse().unwrap(),
            site: covers.site.parse().unwrap(),
            registration: registration.id.clone(),
            fingerprint: registration.fingerprint(),
            created: now,
            state: GrantState::Live,
            generation: 1,
            facts: GrantFacts {
                enforced: covers.scopes.into(),
                reported: covers.scopes.into(),
                upstream: covers.upstream.map(str::to_owned),
                context: LaunchContext { patient: covers.patient.map(str::to_owned), ..LaunchContext::default() },
                sub: Some(format!("sub-{number}")),
                ehr_launch: covers.ehr_launch,
                ..GrantFacts::default()
            },
            tokens: EhrTokens {
                access: "ehr-token-1".to_owned().into(),
                refresh: Some("ehr-refresh".to_owned().into()),
                received,
                lifetime: Duration::from_secs(3600),
                refresh_end: None,
                scope: covers.upstream.map(str::to_owned),
                id_token: None,
            },
        };
        let launch = Launch {
            id: LaunchId(Uuid::from_u128(5000 + number)),
            step: LaunchStep::Opened,
            app: grant.app.clone(),
            base: Base::Uniform,
            request: AppRequest {
                redirect_uri: "https://viewer.example.org/callback".into(),
                scope: covers.scopes.into(),
                state: "state".into(),
                nonce: None,
                code_challenge: "challenge".into(),
                organization: None,
            },
            browser: None,
            ehr: None,
            ehr_launch: None,
            created: now,
            expires: now.after(Duration::from_secs(600)),
        };
        let code = TokenHash::of(&format!("code-{number}"));
        let record = Code {
            grant: grant.id,
            app: grant.app.clone(),
            base: Base::Uniform,
            redirect_uri: "https://viewer.example.org/callback".into(),
            code_challenge: "challenge".into(),
            nonce: None,
            expires: now.after(Duration::from_secs(60)),
            redeemed: false,
        };
        let token = format!("mtl_at_{number}");
        let access = AccessToken {
            hash: TokenHash::of(&token),
            grant: grant.id,
            reported: covers.scopes.into(),
            enforced: covers.scopes.into(),
            expires: now.after(Duration::from_secs(3600)),
        };
        self.store.open_launch(&launch).await.unwrap();
        self.store.create_grant(&grant, code, &record, launch.id).await.unwrap();
        let redeemed = self.store.redeem_code(code, &NewTokens { access, refresh: None }, now).await.unwrap();
        assert!(matches!(redeemed, Redeemed::Now(_)), "{redeemed:?}");
        (grant.id, token)
    }

    /// Grants, and asks once.
    pub async fn client(&self, covers: &Covers) -> Client {
        let (grant, token) = self.grant(covers).await;
        Client { address: self.address, token: Some(token), grant }
    }

    pub fn nobody(&self) -> Client {
        Client { address: self.address, token: None, grant: GrantId(Uuid::nil()) }
    }
}

static GRANTS: AtomicUsize = AtomicUsize::new(1);

async fn serve(listener: TcpListener, proxy: Arc<Proxy>, config: Arc<Config>) {
    while let Ok((socket, _)) = listener.accept().await {
        let (proxy, config) = (proxy.clone(), config.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (proxy, config) = (proxy.clone(), config.clone());
                async move { Ok::<_, Infallible>(answer(&proxy, config, request).await) }
            });
            // A body that broke off is an error on purpose.
            let _ = hyper::server::conn::http1::Builder::new()
                .max_buf_size(32 << 10)
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
    }
}

async fn answer(proxy: &Proxy, config: Arc<Config>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let Road::Fhir { base, tail } = road(&path) else { panic!("{path} is not on the FHIR road") };
    let mut facts = Facts { token_came: request.headers().contains_key("authorization"), ..Facts::default() };
    let call = Call { config, base, tail: tail.to_owned(), request, request_id: "request-1".into() };
    match proxy.serve(call, &mut facts).await {
        Ok(response) => response,
        Err(error) => respond::outcome(&error, "request-1", facts.token_came).map(Body::full),
    }
}

/// An app with a token.
#[derive(Clone)]
pub struct Client {
    address: std::net::SocketAddr,
    pub token: Option<String>,
    pub grant: GrantId,
}

/// An answer, as the app has it.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    /// None: it broke off.
    pub body: Option<Bytes>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(self.body.as_ref().unwrap()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(self.text()).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The first issue of an OperationOutcome.
    #[track_caller]
    pub fn refused(&self, status: u16, code: &str) -> String {
        let body = self.json();
        assert_eq!((self.status, &body["issue"][0]["code"]), (status, &Value::from(code)), "{body}");
        assert_eq!(body["resourceType"], "OperationOutcome");
        assert_eq!(self.header("content-type"), Some("application/fhir+json; charset=utf-8"));
        body.to_string()
    }
}

impl Client {
    pub async fn get(&self, target: &str) -> Answer {
        self.send(Method::GET, target, &[], "").await
    }

    pub async fn send(&self, method: Method, target: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let (head, mut body) = self.open(method, target, headers, body).await.into_parts();
        let mut held = Vec::new();
        let mut whole = true;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => held.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Err(_) => {
                    whole = false;
                    break;
                }
            }
        }
        Answer { status: head.status.as_u16(), headers: head.headers, body: whole.then(|| held.into()) }
    }

    /// The answer's head; its body is still to come.
    pub async fn open(
        &self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response<Incoming> {
        let socket = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(target).header("host", "gateway.example.org");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = sender.send_request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
        assert_ne!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR, "{answer:?}");
        answer
    }

    pub async fn post(&self, target: &str, body: &Value) -> Answer {
        self.send(Method::POST, target, &[("content-type", "application/fhir+json")], body.to_string()).await
    }
}
