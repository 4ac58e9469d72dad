//! Sockets: one acceptor, N workers.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::service::{Service, Worker};
use crate::{
    config::{Limits, Timeouts},
    telemetry::Metrics,
};

/// How a listener treats its connections.
#[derive(Clone)]
pub struct Settings {
    pub limits: Limits,
    pub timeouts: Timeouts,
    /// Loaded for each connection, so that a new certificate needs no restart.
    pub tls: Option<Arc<arc_swap::ArcSwap<ServerConfig>>>,
    /// Who may come without TLS: the proxies that end it. None named: anybody, on loopback.
    pub proxies: Vec<ipnet::IpNet>,
    pub metrics: Arc<Metrics>,
}

impl Settings {
    /// Plain HTTP from anybody else would carry tokens in the clear past the proxy.
    fn admits(&self, peer: SocketAddr) -> bool {
        // A socket for both families shows IPv4 peers mapped.
        let ip = peer.ip().to_canonical();
        self.tls.is_some() || self.proxies.is_empty() || self.proxies.iter().any(|net| net.contains(&ip))
    }
}

struct Accepted {
    socket: std::net::TcpStream,
    permit: OwnedSemaphorePermit,
}

/// Makes a worker's state on its own thread and runtime.
pub type MakeWorker = Arc<dyn Fn() -> Worker + Send + Sync>;

/// Accepts until `stop`, then lets the requests in work end, at most `timeouts.drain`.
///
/// # Errors
/// If the system gives no threads.
pub async fn serve(
    listener: TcpListener,
    workers: usize,
    make: MakeWorker,
    settings: Settings,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut lanes = Vec::with_capacity(workers);
    let mut ends = Vec::with_capacity(workers);
    for number in 0..workers.max(1) {
        let (to, from) = mpsc::unbounded_channel();
        let (ended, end) = tokio::sync::oneshot::channel();
        let (make, settings, stop) = (make.clone(), settings.clone(), stop.clone());
        std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(work(from, make(), settings, stop)),
                Err(error) => tracing::error!(%error, "a worker has no runtime"),
            }
            let _ = ended.send(());
        })?;
        lanes.push(to);
        ends.push(end);
    }
    accept(&listener, &lanes, &settings, &stop).await;
    drop((listener, lanes));
    for end in ends {
        let _ = end.await;
    }
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    lanes: &[mpsc::UnboundedSender<Accepted>],
    settings: &Settings,
    stop: &CancellationToken,
) {
    let room = Arc::new(Semaphore::new(settings.limits.connections));
    for lane in lanes.iter().cycle() {
        // The permit first: at the limit, clients wait in the kernel's queue and not in our memory.
        let Some(Ok(permit)) = stop.run_until_cancelled(room.clone().acquire_owned()).await else { return };
        let socket = loop {
            match stop.run_until_cancelled(listener.accept()).await {
                None => return,
                Some(Ok((socket, peer))) if settings.admits(peer) => break socket,
                Some(Ok((_, peer))) => {
                    tracing::debug!(peer = %peer.ip(), "a connection came past the proxies of `server.behind_proxy`");
                }
                // Out of file descriptors, most likely: what is open must close first.
                Some(Err(error)) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
        let _ = socket.set_nodelay(true);
        // The socket leaves the acceptor's reactor for the worker's.
        if let Ok(socket) = socket.into_std() {
            let _ = lane.send(Accepted { socket, permit });
        }
    }
}

async fn work(
    mut from: mpsc::UnboundedReceiver<Accepted>,
    worker: Worker,
    settings: Settings,
    stop: CancellationToken,
) {
    let worker = Arc::new(worker);
    let graceful = GracefulShutdown::new();
    let mut idle = tokio::time::interval(Duration::from_millis(200));
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = from.recv() => match accepted {
                Some(accepted) => {
                    tokio::spawn(connection(accepted, worker.clone(), settings.clone(), graceful.watcher()));
                }
                None => break,
            },
            _ = idle.tick() => hand_over(&worker),
        }
    }
    if timeout(settings.timeouts.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections were still open at the end of the drain");
    }
    hand_over(&worker);
}

fn hand_over(worker: &Worker) {
    worker.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner).hand_over();
}

async fn connection(
    accepted: Accepted,
    worker: Arc<Worker>,
    settings: Settings,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let Accepted { socket, permit: _permit } = accepted;
    let Ok(socket) = TcpStream::from_std(socket) else { return };
    settings.metrics.connection_opened();
    let seen = Arc::new(AtomicBool::new(false));
    let service = Service { worker, seen: seen.clone() };
    let mut http = auto::Builder::new(TokioExecutor::new());
    // hyper's defaults cost 100 MB with 64 large bodies.
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.timeouts.header)
        .max_headers(100)
        .max_buf_size(settings.limits.head.max(8192));
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(128)
        .max_header_list_size(u32::try_from(settings.limits.head).unwrap_or(u32::MAX))
        .initial_stream_window_size(256 << 10)
        .initial_connection_window_size(1 << 20)
        .max_send_buf_size(256 << 10)
        .keep_alive_interval(Duration::from_secs(30));
    match &settings.tls {
        None => {
            let conn = watcher.watch(http.http1_only().serve_connection(TokioIo::new(socket), service).into_owned());
            or_silent(conn, settings.timeouts.header, &seen).await;
        }
        Some(tls) => {
            let acceptor = TlsAcceptor::from(tls.load_full());
            if let Ok(Ok(stream)) = timeout(settings.timeouts.handshake, acceptor.accept(socket)).await {
                // By ALPN and not by sniffing: a silent client is never cut while `auto` sniffs.
                let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let http = if h2 { http.http2_only() } else { http.http1_only() };
                let conn = watcher.watch(http.serve_connection(TokioIo::new(stream), service).into_owned());
                or_silent(conn, settings.timeouts.header, &seen).await;
            }
        }
    }
    settings.metrics.connection_closed();
}

/// Drives a connection; without a first request in time it goes.
async fn or_silent<C: Future>(conn: C, header: Duration, seen: &AtomicBool) {
    let mut conn = std::pin::pin!(conn);
    if timeout(header, &mut conn).await.is_err() && seen.load(std::sync::atomic::Ordering::Relaxed) {
        let _ = conn.await;
    }
}

/// Binds a listener.
///
/// # Errors
/// If the address is taken or not ours.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    use anyhow::Context as _;
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}
