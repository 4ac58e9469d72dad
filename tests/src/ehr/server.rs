//! The listener: HTTP/1.1 on loopback.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, StatusCode, header::CONTENT_LENGTH};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody, combinators::BoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::ehr::{
    auth::{
        client::Client,
        places::{Base, Host, origin_of},
    },
    contract::{Behaviour, Rotation, Switches, Vendor},
    simulator::{Outcome, Simulator},
};

/// Bundles of 16 MB are the most that the gateway forwards.
const MAX_BODY: usize = 32 << 20;

/// What one simulated EHR is to be.
#[derive(Clone, Debug)]
pub struct Options {
    pub vendor: Vendor,
    pub strict: bool,
    /// 0: any free one.
    pub port: u16,
    /// The name in its URLs; none: `127.0.0.1`.
    pub host: Option<String>,
    /// The whole origin in its URLs, where something stands in front of it; replaces `host`.
    pub origin: Option<String>,
    /// Oracle: the origin of the patients' FHIR host; none: `X-patient.localhost` beside `X.localhost`, and
    /// `localhost` beside `127.0.0.1`.
    pub patient_origin: Option<String>,
    pub switches: Switches,
    /// Practice, Flow: `fhirUser` breaks the sign-in.
    pub fhir_user_fails: bool,
    pub clients: Vec<Client>,
    /// PEM of the authorities that apps' `https` key sets are read with.
    pub ca: Option<Vec<u8>>,
}

impl Options {
    pub fn new(vendor: Vendor) -> Self {
        Self {
            vendor,
            strict: false,
            port: 0,
            host: None,
            origin: None,
            patient_origin: None,
            switches: Switches::default(),
            fhir_user_fails: false,
            clients: Vec::new(),
            ca: None,
        }
    }

    /// Reads `name=value`, as on the command line.
    ///
    /// # Errors
    /// When there is no such switch, or it takes no such value.
    pub fn switch(&mut self, text: &str) -> Result<()> {
        let (name, value) = text.split_once('=').with_context(|| format!("switch {text:?}: expected NAME=VALUE"))?;
        let flag = || match value {
            "true" | "on" | "yes" => Ok(true),
            "false" | "off" | "no" => Ok(false),
            other => bail!("switch {name}: given {other:?}, expected true or false"),
        };
        let number =
            || value.parse::<u64>().with_context(|| format!("switch {name}: given {value:?}, expected a number"));
        let switches = &mut self.switches;
        match name {
            "access_lifetime" => switches.access_lifetime = Some(number()?),
            "refresh_lifetime" => switches.refresh_lifetime = Some(u32::try_from(number()?)?),
            "rotation" => {
                switches.rotation = Some(match value {
                    "fixed" => Rotation::Fixed,
                    "rolling" => Rotation::Rolling,
                    "sliding" => Rotation::Sliding,
                    other => bail!("switch rotation: given {other:?}, expected fixed, rolling or sliding"),
                });
            }
            "record_v1" => switches.record_v1 = Some(flag()?),
            "odd_scopes" => switches.odd_scopes = Some(flag()?),
            "hide_offline_access" => switches.hide_offline_access = Some(flag()?),
            "banner_as_string" => switches.banner_as_string = Some(flag()?),
            "provider_picker" => switches.provider_picker = Some(flag()?),
            "patient_by_id" => switches.patient_by_id = Some(flag()?),
            "smart_configuration" => switches.smart_configuration = Some(flag()?),
            "jwt_tokens" => switches.jwt_tokens = Some(flag()?),
            "min_refresh_interval" => switches.min_refresh_interval = Some(u32::try_from(number()?)?),
            "token_requests_per_minute" => switches.token_requests_per_minute = Some(u32::try_from(number()?)?),
            "page_size" => switches.page_size = Some(usize::try_from(number()?)?),
            "fhir_user_fails" => self.fhir_user_fails = flag()?,
            other => bail!(
                "there is no switch {other:?}; there are access_lifetime, refresh_lifetime, rotation, record_v1, odd_scopes, \
                 hide_offline_access, banner_as_string, provider_picker, patient_by_id, smart_configuration, \
                 jwt_tokens, min_refresh_interval, token_requests_per_minute, page_size, fhir_user_fails"
            ),
        }
        Ok(())
    }

    /// Reads app records from a JSON file: one, or a list.
    pub fn clients_file(&mut self, path: &PathBuf) -> Result<()> {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let clients: Vec<Client> = match text.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'[') => serde_json::from_slice(&text),
            _ => serde_json::from_slice(&text).map(|one| vec![one]),
        }
        .with_context(|| format!("{}: no app record, or a list of them", path.display()))?;
        self.clients.extend(clients);
        Ok(())
    }
}

/// A simulated EHR that is listening; it stops when this is dropped.
pub struct Running {
    pub address: SocketAddr,
    /// `http://epic.localhost:9100`
    pub origin: String,
    /// The FHIR base; Oracle's for providers.
    pub fhir_base: String,
    /// All FHIR bases: Oracle has one for patients, and strict has legacy ones.
    pub bases: HashMap<Base, String>,
    pub ehr: Arc<Simulator>,
    // Dropping a set aborts its tasks.
    tasks: JoinSet<()>,
}

impl Running {
    /// Oracle's FHIR base for patients.
    pub fn patient_base(&self) -> Option<&str> {
        self.bases.get(&Base { host: Host::Patients, legacy: false }).map(String::as_str)
    }

    /// Serves until the listener fails, which it does not.
    pub async fn wait(mut self) {
        self.tasks.join_next().await;
    }
}

impl std::ops::Deref for Running {
    type Target = Simulator;

    fn deref(&self) -> &Simulator {
        &self.ehr
    }
}

/// Starts an EHR on the runtime of the caller.
///
/// # Errors
/// When the port is taken, or an option or app record is no good.
pub async fn start(options: Options) -> Result<Running> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port))
        .await
        .with_context(|| format!("port {}: cannot listen", options.port))?;
    let address = listener.local_addr()?;
    let host = options.host.as_deref().unwrap_or("127.0.0.1");
    let origin = options.origin.clone().unwrap_or_else(|| origin_of(host, address));
    let behaviour = Behaviour {
        vendor: options.vendor,
        strict: options.strict,
        origin: origin.clone(),
        switches: options.switches.clone(),
    };
    let ehr =
        Simulator::new(&behaviour, options.patient_origin.clone(), options.fhir_user_fails, options.ca.as_deref())?;
    for client in options.clients {
        ehr.auth.register(client)?;
    }
    let places = &ehr.auth.places;
    let bases: HashMap<Base, String> = places.bases().into_iter().map(|base| (base, places.fhir_base(base))).collect();
    let fhir_base = places.fhir_base(Base { host: Host::Main, legacy: false });
    let ehr = Arc::new(ehr);
    let mut tasks = JoinSet::new();
    tasks.spawn(accept(listener, ehr.clone()));
    // Names below `localhost` resolve to either family.
    if let Ok(second) = TcpListener::bind((Ipv6Addr::LOCALHOST, address.port())).await {
        tasks.spawn(accept(second, ehr.clone()));
    }
    Ok(Running { address, origin, fhir_base, bases, ehr, tasks })
}

async fn accept(listener: TcpListener, ehr: Arc<Simulator>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, ehr.clone()));
                }
                // Out of file descriptors: others may close some.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, ehr: Arc<Simulator>) {
    // Small answers, many of them: without this they wait for each other.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let ehr = ehr.clone();
        async move { answer(&ehr, request).await }
    });
    // A connection's end, however it comes, is the client's affair.
    let _ = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
}

type Body = BoxBody<Bytes, io::Error>;

fn whole(reply: Response<Bytes>) -> Response<Body> {
    reply.map(|body| Full::new(body).map_err(|never| match never {}).boxed())
}

async fn answer(ehr: &Simulator, request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
    let (parts, body) = request.into_parts();
    let Ok(body) = Limited::new(body, MAX_BODY).collect().await else {
        let mut refused = Response::new(Bytes::new());
        *refused.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        return Ok(whole(refused));
    };
    match ehr.serve(parts, body.to_bytes()).await {
        Outcome::Answer(reply) => Ok(whole(reply)),
        Outcome::Cut(reply) => {
            let (mut parts, body) = reply.into_parts();
            parts.headers.insert(CONTENT_LENGTH, (body.len().max(2)).into());
            let half = body.slice(..body.len() / 2);
            let frames = [Ok(Frame::data(half)), Err(io::Error::from(io::ErrorKind::ConnectionReset))];
            Ok(Response::from_parts(parts, StreamBody::new(stream::iter(frames)).boxed()))
        }
        // An error of the service closes the connection without a byte.
        Outcome::Dropped => Err(io::Error::from(io::ErrorKind::ConnectionAborted)),
    }
}
