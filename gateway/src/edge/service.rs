//! The one concrete service of a connection: FHIR here, everything else over on the control runtime.

use std::{
    convert::Infallible,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use mantel_adapters::fhir::interaction::InteractionKind;
use tokio::runtime::Handle;
use tracing::{Instrument as _, Span};

use super::{
    cors::{self, Readers},
    respond,
    routes::{Road, road},
    stack::{ControlStack, readers},
};
use crate::{
    clock::SharedClock,
    config::{Base, Config},
    entropy::{self, SharedEntropy},
    error::{Error, Kind},
    proxy::{self, Body, BoxError, Facts, Proxy},
    telemetry::{AccessRecord, Metrics, access_log::Lines, metrics::Outcome, traces},
};

/// A form or an assertion; far above what any client sends.
const CONTROL_BODY: usize = 64 << 10;
/// It comes at once; who sends it byte by byte holds a connection.
const CONTROL_BODY_WITHIN: Duration = Duration::from_secs(30);

/// What one worker's connections share.
pub struct Worker {
    pub config: Arc<ArcSwap<Config>>,
    pub proxy: Proxy,
    pub stack: ControlStack,
    pub control: Handle,
    pub metrics: Arc<Metrics>,
    /// Whether spans are made at all.
    pub traced: bool,
    pub lines: Mutex<Lines>,
    pub clock: SharedClock,
    pub entropy: SharedEntropy,
}

/// One connection's service.
#[derive(Clone)]
pub struct Service {
    pub worker: Arc<Worker>,
    /// Set by the first request: a client that says nothing is cut off (`listen`).
    pub seen: Arc<AtomicBool>,
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.seen.store(true, Ordering::Relaxed);
        let worker = self.worker.clone();
        Box::pin(async move { Ok(worker.serve(request).await) })
    }
}

/// A request's name in logs, answers and towards EHRs.
fn request_id(entropy: &dyn entropy::Entropy, now: crate::clock::Timestamp) -> String {
    entropy::uuid7(entropy, now).to_string()
}

impl Worker {
    async fn serve(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let id = request_id(&*self.entropy, self.clock.now());
        let origin = request.headers().get(header::ORIGIN).cloned();
        let correlation = request.headers().get("x-request-id").filter(|value| value.len() <= 128).cloned();
        // Absolute-form and authority-form targets name a host of their own: this is no forward proxy.
        let mut response = if request.uri().authority().is_some() && request.version() < http::Version::HTTP_2 {
            let error = Error::app(
                Kind::BadRequest,
                "The request's target is an absolute URL; expected a path, as in GET /fhir/r4/metadata.",
            );
            respond::outcome(&error, &id, false).map(Body::from)
        } else {
            let path = request.uri().path().to_owned();
            match road(&path) {
                Road::Fhir { base, tail } => self.fhir(base, tail.to_owned(), request, &id, origin.as_ref()).await,
                Road::SmartConfiguration(_) | Road::Control => self.control(request, &id, origin.as_ref()).await,
            }
        };
        let headers = response.headers_mut();
        if let Ok(value) = HeaderValue::from_str(&id) {
            headers.insert("x-request-id", value);
        }
        if let Some(theirs) = correlation {
            headers.insert("x-correlation-id", theirs);
        }
        response
    }

    async fn fhir(
        &self,
        base: Base,
        tail: String,
        request: Request<Incoming>,
        id: &str,
        origin: Option<&HeaderValue>,
    ) -> Response<Body> {
        let config = self.config.load_full();
        let public = tail == "/metadata";
        let readers = if public { Readers::Anyone } else { Readers::Registered };
        let known = origin.and_then(|origin| origin.to_str().ok()).is_some_and(|origin| config.knows_origin(origin));
        if cors::is_preflight(request.method(), request.headers()) {
            return cors::preflight(readers, origin, known);
        }
        let started = self.clock.monotonic();
        let at = self.clock.civil();
        let method = request.method().clone();
        let mut facts = Facts { token_came: request.headers().contains_key(header::AUTHORIZATION), ..Facts::default() };
        let span = if self.traced { traces::request(request.headers(), "fhir") } else { Span::none() };
        let call = proxy::Call { config, base, tail, request, request_id: id.to_owned() };
        let serving = self.proxy.serve(call, &mut facts).instrument(span.clone());
        let answered = AssertUnwindSafe(serving).catch_unwind().await;
        let (mut response, outcome) = match answered {
            Ok(Ok(response)) => {
                let outcome = facts.outcome.unwrap_or_else(|| Outcome::of_status(response.status().as_u16()));
                (response, outcome)
            }
            Ok(Err(error)) => {
                log_error(&error, id, &facts);
                (respond::outcome(&error, id, facts.token_came).map(Body::from), Outcome::from(error.side))
            }
            Err(_panic) => {
                let error = Error::internal("a panic while serving a FHIR request");
                log_error(&error, id, &facts);
                (respond::outcome(&error, id, facts.token_came).map(Body::from), Outcome::Gateway)
            }
        };
        let headers = response.headers_mut();
        if public {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
        } else {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            cors::vary(headers, "Authorization");
        }
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        cors::vary(headers, "Accept");
        cors::add(headers, readers, origin, known);
        let took = started.elapsed();
        let kind = facts.kind.unwrap_or(InteractionKind::Read);
        span.record("mantel.interaction", kind.text());
        if let Some((vendor, site)) = &facts.site {
            span.record("mantel.vendor", vendor.as_str()).record("mantel.site", site.as_str());
        }
        span.record("http.response.status_code", response.status().as_u16());
        self.metrics.request(facts.site.as_ref().map(|(vendor, site)| (vendor, site)), kind, outcome, took, facts.ehr);
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).write(&AccessRecord {
            at,
            request: id,
            app: facts.app.as_ref().map(|app| app.as_str()),
            site: facts.site.as_ref().map(|(_, site)| site.as_str()),
            grant: facts.grant.map(|grant| grant.0),
            method: method_text(&method),
            action: facts.kind.map_or("unread", InteractionKind::text),
            resource_type: facts.resource_type.as_deref(),
            status: response.status().as_u16(),
            outcome: outcome.text(),
            took,
            ehr: facts.ehr,
        });
        response
    }

    async fn control(&self, request: Request<Incoming>, id: &str, origin: Option<&HeaderValue>) -> Response<Body> {
        let started = self.clock.monotonic();
        let at = self.clock.civil();
        let config = self.config.load_full();
        let readers = readers(request.uri().path());
        let known = origin.and_then(|origin| origin.to_str().ok()).is_some_and(|origin| config.knows_origin(origin));
        if cors::is_preflight(request.method(), request.headers()) && readers != Readers::Nobody {
            return cors::preflight(readers, origin, known);
        }
        let method = request.method().clone();
        let (parts, body) = request.into_parts();
        let (mut response, endpoint) = match whole(body).await {
            Err(error) => (respond::plain(&error, id).map(Body::from), "unread"),
            Ok(body) => {
                let request = Request::from_parts(parts, body);
                let span = if self.traced { traces::request(request.headers(), "oauth") } else { Span::none() };
                let serving = self.stack.clone().serve(request, config, id.to_owned()).instrument(span.clone());
                match self.control.spawn(serving).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        (respond::plain(&Error::internal("a control task ended early"), id).map(Body::from), "failed")
                    }
                }
            }
        };
        cors::add(response.headers_mut(), readers, origin, known);
        let status = response.status().as_u16();
        self.metrics.oauth(endpoint, status);
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).write(&AccessRecord {
            at,
            request: id,
            app: None,
            site: None,
            grant: None,
            method: method_text(&method),
            action: endpoint,
            resource_type: None,
            status,
            outcome: Outcome::of_status(status).text(),
            took: started.elapsed(),
            ehr: Duration::ZERO,
        });
        response
    }
}

/// The body of a control request.
async fn whole<B>(body: B) -> Result<Bytes, Error>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    match tokio::time::timeout(CONTROL_BODY_WITHIN, Limited::new(body, CONTROL_BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Error::app(Kind::TooLarge, format!("The request's body is larger than {CONTROL_BODY} bytes.")))
        }
        Ok(Err(_)) => Err(Error::app(Kind::BadRequest, "The request's body ended before it was complete.")),
        Err(_elapsed) => Err(Error::app(
            Kind::BadRequest,
            format!("The request's body did not come within {} s.", CONTROL_BODY_WITHIN.as_secs()),
        )),
    }
}

/// Methods are a closed set in the log: what a client invents is not repeated.
fn method_text(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

fn log_error(error: &Error, id: &str, facts: &Facts) {
    let internal = error.internal.as_deref().unwrap_or_default();
    let grant = facts.grant.map(|grant| grant.to_string()).unwrap_or_default();
    let site = facts.site.as_ref().map(|(_, site)| site.as_str()).unwrap_or_default();
    match error.side {
        crate::error::Side::App => tracing::debug!(request = id, grant, site, kind = ?error.kind, internal, "refused"),
        crate::error::Side::Gateway => {
            tracing::error!(request = id, grant, site, kind = ?error.kind, internal, "failed")
        }
        crate::error::Side::Ehr => {
            tracing::warn!(request = id, grant, site, kind = ?error.kind, internal, "the EHR failed")
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::full(bytes)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    /// Sends one byte and then nothing.
    struct Stalled(bool);

    impl http_body::Body for Stalled {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
            if std::mem::replace(&mut self.0, false) {
                return std::task::Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(b"g")))));
            }
            std::task::Poll::Pending
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_control_body_comes_whole_in_time_and_within_its_limit() {
        assert_eq!(whole(Full::new(Bytes::from_static(b"a=1"))).await.unwrap(), "a=1");
        let large = Full::new(Bytes::from(vec![b'a'; CONTROL_BODY + 1]));
        assert_eq!(whole(large).await.unwrap_err().kind, Kind::TooLarge);
        let begun = tokio::time::Instant::now();
        assert_eq!(whole(Stalled(true)).await.unwrap_err().kind, Kind::BadRequest);
        assert!(begun.elapsed() < CONTROL_BODY_WITHIN + Duration::from_secs(1));
    }
}
