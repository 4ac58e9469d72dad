//! The admin listener: metrics and health, read-only. Loopback by default. What changes something goes through a
//! Unix socket (`socket`).

pub mod client;
pub mod commands;
pub mod socket;

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{Clock as _, SteadyClock, Timestamp},
    custody::Custody,
    store::SharedStore,
    telemetry::Metrics,
};

/// A scraper or a probe; more at once are mistakes.
const CONNECTIONS: usize = 64;
/// A store that takes longer does not serve.
const PING: Duration = Duration::from_secs(2);

/// What the admin roads look at.
pub struct Admin {
    pub metrics: Arc<Metrics>,
    pub store: SharedStore,
    pub custody: Custody,
    pub clock: Arc<SteadyClock>,
    /// The latest time that the store had seen when this process started.
    pub latest: Timestamp,
    /// Set from the start of the shutdown: load balancers must look elsewhere first.
    pub stop: CancellationToken,
}

impl Admin {
    /// Serves until `until`.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, until: CancellationToken) {
        let room = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
        loop {
            let socket = match until.run_until_cancelled(listener.accept()).await {
                None => return,
                Some(Ok((socket, _))) => socket,
                Some(Err(_)) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(permit) = room.clone().try_acquire_owned() else { continue };
            let admin = self.clone();
            tokio::spawn(async move {
                let _permit = permit;
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let admin = admin.clone();
                    async move { Ok::<_, Infallible>(admin.answer(&request).await) }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(Duration::from_secs(10))
                    .serve_connection(TokioIo::new(socket), service)
                    .await;
            });
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n");
        }
        match request.uri().path() {
            "/metrics" => self.exposition().await,
            "/health/live" => text(StatusCode::OK, "live\n"),
            "/health/ready" => self.ready().await,
            _ => text(StatusCode::NOT_FOUND, "served here: /metrics, /health/live, /health/ready\n"),
        }
    }

    async fn exposition(&self) -> Response<Full<Bytes>> {
        if let Ok(Ok(counts)) = tokio::time::timeout(PING, self.store.count_grants()).await {
            self.metrics.grants(counts);
        }
        match self.metrics.render() {
            Ok(body) => {
                let mut response = Response::new(Full::new(Bytes::from(body)));
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
                response
            }
            Err(error) => {
                tracing::error!(%error, "the metrics cannot be written");
                text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n")
            }
        }
    }

    /// What is wrong with the clock keeps nobody from serving.
    fn ready_and(&self) -> String {
        let mut said = "ready\n".to_owned();
        if let Some(seconds) = self.clock.off() {
            let way = if seconds > 0 { "ahead of" } else { "behind" };
            let seconds = seconds.abs();
            said +=
                &format!("the machine's clock is {seconds} s {way} the time by which records end: it was stepped\n");
        }
        let behind = self.clock.now().until(self.latest).as_secs();
        if behind > 5 {
            said += &format!("the time here is {behind} s behind the latest that the store had seen at the start\n");
        }
        said
    }

    async fn ready(&self) -> Response<Full<Bytes>> {
        if self.stop.is_cancelled() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
        }
        match tokio::time::timeout(PING, self.store.ping()).await {
            Ok(Ok(())) if !self.custody.recovered() => {
                text(StatusCode::SERVICE_UNAVAILABLE, "the spill of an earlier process is not in the store yet\n")
            }
            Ok(Ok(())) => text(StatusCode::OK, self.ready_and()),
            Ok(Err(error)) => {
                tracing::warn!(%error, "not ready");
                text(StatusCode::SERVICE_UNAVAILABLE, "the store does not serve\n")
            }
            Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "the store does not answer\n"),
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
