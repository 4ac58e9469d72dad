//! One exchange with an EHR under a grant: its bearer, its budget, and what a 401 means
//! (`custody.md`, "Fresh, due, expired").

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use hyper::body::Incoming;
use mantel_adapters::{adapter, fhir::rewrite::Bases};

use super::{Facts, ProxyContext, body::Upstream};
use crate::{
    clock::Instant,
    config::{App, Base, Config, Site},
    custody::{Bearer, CustodyFault},
    error::{Error, Kind, Result, Side},
    session::Session,
    store::EndReason,
    telemetry::metrics::{Call, CallOutcome},
    upstream::{NotSent, Outgoing, SendError, SiteGate, UpstreamClient, Waits, date},
};

/// How long an app waits that came when all of a site's permits were taken.
const CROWDED: Duration = Duration::from_secs(5);

/// The two directions of URLs between a site and a base of ours.
pub(super) struct SiteBases {
    /// The EHR's to ours, in answers.
    pub(super) down: Arc<Bases>,
    /// Ours to the EHR's, in requests.
    pub(super) up: Arc<Bases>,
    /// Every spelling, for the judge.
    pub(super) judge: Arc<Bases>,
    /// Of the EHR and its `link_bases`: not to be named to apps.
    pub(super) hosts: Vec<String>,
}

/// What all exchanges of one request share.
pub(super) struct Passage<'p> {
    pub(super) proxy: &'p ProxyContext,
    pub(super) config: Arc<Config>,
    pub(super) base_called: Base,
    pub(super) site: Arc<Site>,
    pub(super) app: Arc<App>,
    pub(super) session: Arc<Session>,
    /// The grant's client id at the EHR.
    pub(super) client_id: String,
    pub(super) client: UpstreamClient,
    pub(super) gate: Arc<SiteGate>,
    pub(super) bases: Arc<SiteBases>,
    pub(super) request_id: &'p str,
    pub(super) waited: Waited,
}

/// A request as it is sent.
pub(super) struct Outbound {
    pub(super) method: Method,
    /// What follows the EHR's base: a path and query, encoded.
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    pub(super) content: Content,
}

pub(super) enum Content {
    Held(Bytes),
    /// An app's body that nothing has to read; sent once.
    Passing(Option<Incoming>),
}

impl Outbound {
    /// A judged request, encoded.
    pub(super) fn of(request: mantel_adapters::fhir::interaction::Request) -> Self {
        Self {
            target: mantel_adapters::fhir::interaction::encode_target(&request),
            method: request.method,
            headers: request.headers,
            content: Content::Held(request.body),
        }
    }

    fn is_safe(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD)
    }
}

impl Passage<'_> {
    /// The EHR's answer, up to its head. A 401 that custody has a remedy for is replayed once, with a
    /// body too: the EHR has refused it unread.
    pub(super) async fn exchange(&self, mut outbound: Outbound) -> Result<Response<Upstream>> {
        let bearer = self.bearer().await.map_err(|fault| self.without_bearer(&fault))?;
        let answer = self.send(&mut outbound, &bearer).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        match self.refused(bearer.generation).await {
            // That resource's refusal: the grant lives.
            Ok(None) => Ok(answer),
            Ok(Some(_)) if matches!(outbound.content, Content::Passing(None)) => {
                let text = "The EHR's token was renewed while the body was on its way: send the request again.";
                Err(Error::unavailable(Side::Ehr, text, Duration::from_secs(1)))
            }
            Ok(Some(bearer)) => {
                drop(answer);
                self.send(&mut outbound, &bearer).await
            }
            Err(fault) => Err(self.without_bearer(&fault)),
        }
    }

    async fn send(&self, outbound: &mut Outbound, bearer: &Bearer) -> Result<Response<Upstream>> {
        let url = format!("{}{}", self.base(), outbound.target);
        let uri: Uri = url.parse().map_err(|_| {
            Error::app(
                Kind::BadRequest,
                "The request's path and query are no URL once they stand below the EHR's base.",
            )
        })?;
        let waits = Waits::fhir(&self.proxy.timeouts);
        let mut left = 2;
        loop {
            left -= 1;
            let request = self.request(outbound, uri.clone(), bearer)?;
            let started = self.proxy.clock.monotonic();
            let answer = {
                let _waiting = self.waited.begin(started);
                self.client.send_decoded(&self.gate.fhir, request, &waits).await
            };
            let outcome = match &answer {
                Ok(answer) => CallOutcome::of_status(answer.status().as_u16()),
                Err(SendError::NotSent(_) | SendError::TimedOut { sent: false }) => CallOutcome::NotSent,
                Err(SendError::Unknown(_)) => CallOutcome::Cut,
                Err(SendError::TimedOut { sent: true }) => CallOutcome::TimedOut,
            };
            self.proxy.metrics.upstream(&self.site.vendor, Call::Fhir, outcome, started.elapsed());
            match answer {
                Ok(answer) => {
                    if self.proxy.clock.seeks_witness()
                        && let Some(theirs) = date(answer.headers())
                    {
                        self.proxy.clock.witness(theirs);
                    }
                    return Ok(answer);
                }
                // A server may close a socket just as a request leaves on it; reading twice does no harm.
                Err(SendError::Unknown(_)) if outbound.is_safe() && left > 0 => {}
                Err(error) => return Err(lost(&error, outbound.is_safe())),
            }
        }
    }

    fn request(&self, outbound: &mut Outbound, uri: Uri, bearer: &Bearer) -> Result<Request<Outgoing>> {
        let body = match &mut outbound.content {
            Content::Held(bytes) if bytes.is_empty() => Outgoing::Empty,
            Content::Held(bytes) => Outgoing::Full(bytes.clone()),
            Content::Passing(body) => Outgoing::Stream(
                body.take().ok_or_else(|| Error::internal("a body that was sent is to be sent again"))?,
            ),
        };
        let mut request = Request::new(body);
        *request.method_mut() = outbound.method.clone();
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.clone_from(&outbound.headers);
        let mut credentials = HeaderValue::from_str(&format!("Bearer {}", bearer.token.expose()))
            .map_err(|_| Error::internal("the EHR's token cannot stand in a header"))?;
        credentials.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, credentials);
        if let Ok(id) = HeaderValue::from_str(self.request_id) {
            headers.insert("x-request-id", id);
        }
        // Firewalls before EHRs refuse requests without one.
        headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("mantel/", env!("CARGO_PKG_VERSION"))));
        Ok(request)
    }

    pub(super) fn base(&self) -> &str {
        self.site.fhir_base_text.trim_end_matches('/')
    }

    /// The profile's headers, which replace the app's.
    ///
    /// # Errors
    /// Where the profile needs what is not known of this grant.
    pub(super) fn profile_headers(&self, headers: &mut HeaderMap) -> Result<()> {
        let placeholders = adapter::Placeholders { client_id: Some(&self.client_id), tenant: self.tenant() };
        adapter::fhir_headers(headers, &self.site.profile, placeholders).map_err(|fault| unplannable(&fault))
    }

    /// The raw query of a further page, with what the profile adds to each request.
    pub(super) fn page_query(&self, raw: Option<&str>) -> Result<Option<String>> {
        let placeholders = adapter::Placeholders { client_id: Some(&self.client_id), tenant: self.tenant() };
        adapter::page_query(raw, &self.site.profile, placeholders).map_err(|fault| unplannable(&fault))
    }

    pub(super) fn tenant(&self) -> Option<&str> {
        self.session.tenant.as_deref().or(self.site.tenant.as_deref())
    }

    fn deadline(&self) -> Instant {
        self.proxy.clock.monotonic() + self.proxy.timeouts.custody
    }

    async fn bearer(&self) -> Result<Bearer, CustodyFault> {
        let (custody, grant, deadline) = (self.proxy.custody.clone(), self.session.grant, self.deadline());
        // A fresh one is in memory. What has to wait, waits on the control runtime, where the store is.
        if let Some(at_once) = custody.bearer(grant, deadline).now_or_never() {
            return at_once;
        }
        let asked = self.proxy.control.spawn(async move { custody.bearer(grant, deadline).await });
        asked.await.unwrap_or(Err(CustodyFault::Unavailable { retry_after: Duration::from_secs(1) }))
    }

    async fn refused(&self, generation: i64) -> Result<Option<Bearer>, CustodyFault> {
        let (custody, grant, deadline) = (self.proxy.custody.clone(), self.session.grant, self.deadline());
        let asked = self.proxy.control.spawn(async move { custody.refused(grant, generation, deadline).await });
        asked.await.unwrap_or(Err(CustodyFault::Unavailable { retry_after: Duration::from_secs(1) }))
    }

    fn without_bearer(&self, fault: &CustodyFault) -> Error {
        match fault {
            CustodyFault::Ended(reason) => {
                let side = match reason {
                    EndReason::Dead => Side::Ehr,
                    EndReason::LostRotation => Side::Gateway,
                    _ => Side::App,
                };
                Error::new(Kind::GrantEnded, side, self.launch_advice()).because(reason.text())
            }
            CustodyFault::Unavailable { retry_after } => Error::unavailable(
                Side::Gateway,
                "The EHR's token for this grant cannot be had at present; the grant lives. Try again.",
                *retry_after,
            ),
            CustodyFault::Misconfigured { retry_after } => Error::unavailable(
                Side::Gateway,
                "The gateway's registration at the EHR does not work at present; its operator has been told. The grant lives.",
                *retry_after,
            ),
            CustodyFault::Suspect { retry_after } => Error::unavailable(
                Side::Gateway,
                "The EHR refuses the gateway's registration at present; its operator has been told. The grant lives.",
                *retry_after,
            ),
            CustodyFault::Suspended { retry_after } => Error::unavailable(
                Side::Ehr,
                "The EHR holds this grant back until its user signs in there again; the grant lives.",
                *retry_after,
            ),
        }
    }

    /// How the user comes back (`custody.md`, "Every end is known").
    fn launch_advice(&self) -> String {
        let over = "This grant has ended: its user must authorise again.";
        match (&self.app.launch_url, self.session.ehr_launch) {
            (_, true) => format!("{over} Open the application from the EHR again."),
            (Some(url), false) => {
                let base = self.config.urls().fhir(&Base::Site(self.site.id.clone()));
                let separator = if url.contains('?') { '&' } else { '?' };
                let iss: String = form_urlencoded::byte_serialize(base.as_bytes()).collect();
                format!("{over} Open {url}{separator}iss={iss}")
            }
            (None, false) => over.to_owned(),
        }
    }
}

/// What an EHR's silence or a broken line means to the app.
fn lost(error: &SendError, is_safe: bool) -> Error {
    let unknown = "Whether the request took effect is unknown: read before it is sent again.";
    let (kind, side, text) = match error {
        SendError::NotSent(NotSent::Connect(_)) => {
            (Kind::BadGateway, Side::Ehr, "The EHR cannot be reached; nothing was sent.".to_owned())
        }
        SendError::NotSent(NotSent::Refused(_) | NotSent::ClientCertificate(_) | NotSent::Malformed(_)) => {
            (Kind::BadGateway, Side::Gateway, "The gateway cannot speak to this EHR as it is configured.".to_owned())
        }
        SendError::Unknown(_) if is_safe => {
            (Kind::BadGateway, Side::Ehr, "The EHR closed the connection without an answer.".to_owned())
        }
        SendError::Unknown(_) => {
            (Kind::BadGateway, Side::Ehr, format!("The EHR closed the connection without an answer. {unknown}"))
        }
        SendError::TimedOut { sent: false } => {
            let text = "The EHR has more requests under way than it takes: nothing was sent.";
            return Error::unavailable(Side::Ehr, text, CROWDED).because(error);
        }
        SendError::TimedOut { sent: true } if is_safe => {
            (Kind::GatewayTimeout, Side::Ehr, "The EHR did not answer in time.".to_owned())
        }
        SendError::TimedOut { sent: true } => {
            (Kind::GatewayTimeout, Side::Ehr, format!("The EHR did not answer in time. {unknown}"))
        }
    };
    Error::new(kind, side, text).because(error)
}

/// A request that cannot be put to this vendor.
pub(super) fn unplannable(fault: &adapter::Unplannable) -> Error {
    let kind = if fault.status == 422 { Kind::Unprocessable } else { Kind::BadRequest };
    Error::app(kind, fault.reason.clone())
}

/// The time during which at least one exchange waited for the EHR.
#[derive(Default)]
pub(super) struct Waited(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    running: u32,
    since: Option<Instant>,
    total: Duration,
}

impl Waited {
    fn begin(&self, now: Instant) -> impl Drop + '_ {
        struct Ends<'a>(&'a Waited);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                let mut waiting = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
                waiting.running = waiting.running.saturating_sub(1);
                if waiting.running == 0
                    && let Some(since) = waiting.since.take()
                {
                    waiting.total += since.elapsed();
                }
            }
        }
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.running += 1;
        waiting.since.get_or_insert(now);
        Ends(self)
    }

    pub(super) fn tell(&self, facts: &mut Facts) {
        facts.ehr = self.0.lock().unwrap_or_else(PoisonError::into_inner).total;
    }
}
