//! The HTTP client: one a worker and TLS identity, so that no two workers share a lock or a socket.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{Request, Response};
use hyper_util::{
    client::{
        legacy::{Client, Error as ClientError, connect::capture_connection},
        proxy::matcher::Matcher,
    },
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::Instant;
use tower::ServiceExt as _;
use tower_http::decompression::{Decompression, DecompressionBody};

use super::{
    body::{Guarded, Outgoing, Progress, Sending},
    connector::Connector,
    gate::{Lane, SiteGate},
    guard::{Guard, RefusedAddress},
    tls::{Roots, TlsFault, TlsFiles},
};
use crate::config::{Site, Timeouts};

/// What a client is made of; shared by all workers.
pub struct ClientContext {
    key: IdentityKey,
    tls: rustls::ClientConfig,
    guard: Guard,
    proxies: Option<Arc<Matcher>>,
    connect: Duration,
}

/// Sites with an equal one share sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IdentityKey {
    files: [u8; 32],
    guard: Guard,
}

/// All TLS identities of the process.
pub struct Identities {
    roots: Roots,
    proxies: Option<Arc<Matcher>>,
    connect: Duration,
    known: Mutex<HashMap<IdentityKey, Arc<ClientContext>>>,
}

impl Identities {
    /// `proxies`: `Matcher::from_env()`, or none.
    pub fn new(roots: Roots, proxies: Option<Matcher>, timeouts: &Timeouts) -> Self {
        Self { roots, proxies: proxies.map(Arc::new), connect: timeouts.connect, known: Mutex::default() }
    }

    /// A site's identity. Reads its TLS files, so it is asked when a configuration is taken over and
    /// not once a request; equal files give the same identity again.
    pub fn of(&self, site: &Site) -> Result<Arc<ClientContext>, TlsFault> {
        let files = TlsFiles::read(&site.tls)?;
        let key = IdentityKey { files: files.digest(), guard: Guard::of(site.allow_private) };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = known.get(&key) {
            return Ok(context.clone());
        }
        let context = Arc::new(ClientContext {
            key,
            tls: files.config(&self.roots)?,
            guard: key.guard,
            proxies: self.proxies.clone(),
            connect: self.connect,
        });
        // What no worker and no snapshot holds any more belongs to a renewed certificate.
        known.retain(|_, context| Arc::strong_count(context) > 1);
        known.insert(key, context.clone());
        Ok(context)
    }
}

/// A worker's clients, made on first use.
#[derive(Default)]
pub struct Clients {
    made: Mutex<HashMap<IdentityKey, UpstreamClient>>,
}

impl Clients {
    pub fn of(&self, context: &ClientContext) -> UpstreamClient {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.entry(context.key).or_insert_with(|| UpstreamClient::new(context)).clone()
    }

    /// Lets go of clients whose identity is gone; their exchanges under way finish.
    pub fn retain(&self, live: &[Arc<ClientContext>]) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.retain(|key, _| live.iter().any(|context| context.key == *key));
    }
}

/// A site as the control plane reaches it.
#[derive(Clone)]
pub struct SiteLink {
    pub site: Arc<Site>,
    pub client: UpstreamClient,
    pub gate: Arc<SiteGate>,
}

/// How long the parts of an exchange may take.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// For the answer's head, from the request's last byte; the wait for a permit and a connection counts.
    pub head: Duration,
    /// Between two chunks of the answer's body.
    pub idle: Duration,
}

impl Waits {
    /// Those of a FHIR request.
    pub const fn fhir(timeouts: &Timeouts) -> Self {
        Self { head: timeouts.upstream, idle: timeouts.idle }
    }
}

/// Why there is no answer. What matters is whether the EHR may have acted on the request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No byte of the request has left: it may be sent again.
    #[error("not sent: {0}")]
    NotSent(NotSent),
    /// It failed after bytes may have left: the EHR may have acted on it.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// No answer in time.
    #[error("no answer in time")]
    TimedOut { sent: bool },
}

impl SendError {
    /// Whether the EHR may have acted on the request.
    pub const fn sent(&self) -> bool {
        match self {
            Self::NotSent(_) => false,
            Self::Unknown(_) => true,
            Self::TimedOut { sent } => *sent,
        }
    }
}

/// Why a request was not sent. The texts are for the log: they name hosts and causes, never a path or query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    #[error(transparent)]
    Refused(#[from] RefusedAddress),
    #[error("no connection: {0}")]
    Connect(String),
    #[error("TLS: the server refuses our client certificate: {0}")]
    ClientCertificate(String),
    #[error("no request can be made of this: {0}")]
    Malformed(String),
}

/// A pooled client. Clones share the pool.
#[derive(Clone)]
pub struct UpstreamClient {
    http: Client<Connector, Sending>,
    /// Never keeps a socket for longer than servers do.
    fresh: Client<Connector, Sending>,
}

/// Below what load balancers and EHR front ends keep (60 s and more).
const POOL_IDLE: Duration = Duration::from_secs(50);
/// A server that closes an idle socket just as a token request leaves makes its outcome unknown, and a
/// grant doubtful. Node's servers and Apache close after 5 s; a socket that is younger is safe.
const TOKEN_IDLE: Duration = Duration::from_secs(4);
/// Sockets kept per host and worker: what a burst may leave behind.
const POOL_MAX: usize = 64;
/// hyper's own defaults cost 100 MB with 64 large bodies.
const READ_BUFFER: usize = 32 << 10;
const H2_STREAM_WINDOW: u32 = 256 << 10;
const H2_CONNECTION_WINDOW: u32 = 1 << 20;

impl UpstreamClient {
    pub fn new(context: &ClientContext) -> Self {
        let connector = Connector::new(context.tls.clone(), context.guard, context.proxies.clone(), context.connect);
        Self { http: pool(connector.clone(), POOL_IDLE), fresh: pool(connector, TOKEN_IDLE) }
    }

    /// One exchange, up to the answer's head. Nothing is retried except what never left (a pooled
    /// socket that had closed before the request was begun).
    pub async fn send(
        &self,
        lane: &Lane,
        request: Request<Outgoing>,
        waits: &Waits,
    ) -> Result<Response<Guarded>, SendError> {
        exchange(&self.http, lane, request, waits).await
    }

    /// The same for requests that must not be lost to a stale socket: token requests.
    pub async fn send_carefully(
        &self,
        lane: &Lane,
        request: Request<Outgoing>,
        waits: &Waits,
    ) -> Result<Response<Guarded>, SendError> {
        exchange(&self.fresh, lane, request, waits).await
    }

    /// The same with gzip offered (unless the request names encodings itself) and undone.
    pub async fn send_decoded(
        &self,
        lane: &Lane,
        request: Request<Outgoing>,
        waits: &Waits,
    ) -> Result<Response<DecompressionBody<Guarded>>, SendError> {
        let exchange = tower::service_fn(|request| exchange(&self.http, lane, request, waits));
        Decompression::new(exchange).oneshot(request).await
    }
}

fn pool(connector: Connector, idle: Duration) -> Client<Connector, Sending> {
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(idle)
        .pool_max_idle_per_host(POOL_MAX)
        .http1_max_buf_size(READ_BUFFER)
        .http2_initial_stream_window_size(H2_STREAM_WINDOW)
        .http2_initial_connection_window_size(H2_CONNECTION_WINDOW)
        .http2_keep_alive_interval(Duration::from_secs(30))
        .build(connector)
}

async fn exchange(
    client: &Client<Connector, Sending>,
    lane: &Lane,
    request: Request<Outgoing>,
    waits: &Waits,
) -> Result<Response<Guarded>, SendError> {
    let deadline = Instant::now() + waits.head;
    let permit =
        tokio::time::timeout_at(deadline, lane.enter()).await.map_err(|_| SendError::TimedOut { sent: false })?;
    let progress = matches!(request.body(), Outgoing::Stream(_)).then(Progress::new);
    let mut request = request.map(|body| Sending { body, progress: progress.clone() });
    let connection = capture_connection(&mut request);
    let begun = || connection.connection_metadata().is_some();
    let mut answer = std::pin::pin!(client.request(request));
    let mut until = deadline;
    let answer = loop {
        match tokio::time::timeout_at(until, answer.as_mut()).await {
            Ok(answer) => break answer,
            Err(_) => match progress.as_ref().map(|progress| progress.last() + waits.head) {
                Some(later) if later > until => until = later,
                _ => return Err(SendError::TimedOut { sent: begun() }),
            },
        }
    };
    match answer {
        Ok(answer) => Ok(answer.map(|body| Guarded::new(body, waits.idle, permit))),
        Err(error) => Err(classify(&error, begun())),
    }
}

fn classify(error: &ClientError, begun: bool) -> SendError {
    if error.is_connect() || !begun {
        return SendError::NotSent(match find::<RefusedAddress>(error) {
            Some(refused) => NotSent::Refused(*refused),
            None => NotSent::Connect(chain(error)),
        });
    }
    // With TLS 1.3 a server judges our certificate after we count the connection as made, but before it
    // reads any data of ours.
    if let Some(rustls::Error::AlertReceived(alert)) = find::<rustls::Error>(error)
        && is_certificate_alert(*alert)
    {
        return SendError::NotSent(NotSent::ClientCertificate(format!("{alert:?}")));
    }
    SendError::Unknown(chain(error))
}

fn is_certificate_alert(alert: rustls::AlertDescription) -> bool {
    use rustls::AlertDescription as Alert;
    matches!(
        alert,
        Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
    )
}

/// The cause of that type. `io::Error` hides what it holds from `source()`.
fn find<'a, T: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(held) => Some(held),
            None => error.source(),
        };
    }
    None
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
