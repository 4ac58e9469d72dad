//! A request from its bearer to its answer.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, header};
use hyper::body::Incoming;
use mantel_adapters::{
    adapter::Plan,
    fhir::{
        interaction::{Interaction, InteractionKind, Pairs, Request, encode_target, parse_query},
        links::{JudgedSearch, canonical, unbind},
    },
};

use super::{
    Body, Call, Facts, Proxy, ProxyContext,
    answer::{Check, Expect, nonsense, whole},
    forward::{Content, Outbound, Passage, Waited},
    headers::{FHIR_JSON, FHIR_JSON_UTF8, Wanted},
    judge::{self, Authorized, Case, Judged, Pending},
    paging::PageFacts,
    request::{self, Asked},
};
use crate::{
    config::{Base, Config},
    error::{Error, Kind, Result, Side},
    secret::TokenHash,
    session::Session,
    telemetry::metrics::Outcome,
};

pub(super) async fn serve(proxy: &Proxy, call: Call, facts: &mut Facts) -> Result<Response<Body>> {
    if let Base::Site(id) = &call.base {
        let site = call.config.sites.get(id).ok_or_else(|| Error::app(Kind::NotFound, "No site has this base."))?;
        facts.site = Some((site.vendor.clone(), site.id.clone()));
    }
    if call.tail == "/metadata" {
        facts.kind = Some(InteractionKind::Capabilities);
        return metadata(&proxy.context, &call).await;
    }
    let Call { config, base, tail, request, request_id } = call;
    let session = session(&proxy.context, request.headers()).await?;
    let passage = admit(proxy, config, &base, session, &request_id, facts)?;
    let (up, limits) = (&passage.bases.up, &passage.config.server.limits);
    let asked = request::read(&tail, request, up, limits, proxy.context.timeouts.idle).await?;
    facts.kind = Some(asked.interaction.kind());
    facts.resource_type = asked.interaction.resource_type().map(str::to_owned);
    let answer = passage.serve(asked).await;
    passage.waited.tell(facts);
    if answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::TOO_MANY_REQUESTS) {
        facts.outcome = Some(Outcome::Ehr);
    }
    answer
}

// ---- who asks ----------------------------------------------------------------------------------------

/// The session of the request's bearer: from memory, else from the store.
async fn session(context: &ProxyContext, headers: &HeaderMap) -> Result<Arc<Session>> {
    let hash = TokenHash::of(bearer(headers)?);
    if let Some(session) = context.bearers.cached(hash) {
        return Ok(session);
    }
    let (bearers, custody) = (context.bearers.clone(), context.custody.clone());
    let loaded = context.control.spawn(async move { bearers.load(hash, |grant| custody.seen(grant)).await }).await;
    match loaded {
        Ok(Ok(Some(session))) => Ok(session),
        Ok(Ok(None)) => Err(unauthenticated("The access token is unknown, expired or revoked.")),
        Ok(Err(fault)) => {
            context.metrics.store_fault();
            let text = "The gateway's store does not answer at present. The token may be good: try again.";
            Err(Error::unavailable(Side::Gateway, text, Duration::from_secs(1)).because(fault))
        }
        Err(_) => Err(Error::internal("a look-up of a session ended early")),
    }
}

/// The one bearer of the `Authorization` header (RFC 6750 §2.1); forms and queries are refused elsewhere.
fn bearer(headers: &HeaderMap) -> Result<&str> {
    let expected = "expected one header `Authorization: Bearer …` with an access token of this gateway.";
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (given.next(), given.next()) else {
        return Err(unauthenticated(format!("No access token came, or more than one: {expected}")));
    };
    let token = value.to_str().ok().and_then(|text| text.split_once(' ')).and_then(|(scheme, token)| {
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_matches(' ')).filter(|token| !token.is_empty())
    });
    token.ok_or_else(|| unauthenticated(format!("The Authorization header holds no bearer: {expected}")))
}

fn unauthenticated(text: impl Into<String>) -> Error {
    Error::app(Kind::Unauthenticated, text)
}

/// What the session may be used for, as the snapshot has it.
fn admit<'p>(
    proxy: &'p Proxy,
    config: Arc<Config>,
    base: &Base,
    session: Arc<Session>,
    request_id: &'p str,
    facts: &mut Facts,
) -> Result<Passage<'p>> {
    // As for an unknown token: whose it is elsewhere is nobody's business here.
    if let Base::Site(id) = base
        && *id != session.site
    {
        return Err(unauthenticated("The access token does not open this base: it was issued for another."));
    }
    let gone = || unauthenticated("The site or application of this access token is not configured any more.");
    let site = config.sites.get(&session.site).ok_or_else(gone)?.clone();
    facts.site = Some((site.vendor.clone(), site.id.clone()));
    let app = config.apps.get(&session.app).ok_or_else(gone)?.clone();
    facts.app = Some(app.id.clone());
    facts.grant = Some(session.grant);
    if !config.permits(&app, &site) {
        return Err(Error::app(Kind::Forbidden, "The application may not use this site any more."));
    }
    let registration = config.registrations.get(&session.registration);
    let client = registration.and_then(|registration| registration.client_of(&session.fingerprint));
    let client_id = client.ok_or_else(gone)?.0.to_owned();
    let context = proxy.context.ehrs.context(&site.id);
    let context = context.ok_or_else(|| Error::internal(format_args!("site {} has no client", site.id)))?;
    Ok(Passage {
        client: proxy.context.clients.of(&context),
        gate: proxy.context.ehrs.gate(&site, &client_id),
        bases: proxy.bases.of(&config, &site, base)?,
        base_called: base.clone(),
        proxy: &proxy.context,
        waited: Waited::default(),
        client_id,
        config,
        site,
        app,
        session,
        request_id,
    })
}

// ---- metadata ----------------------------------------------------------------------------------------

async fn metadata(context: &ProxyContext, call: &Call) -> Result<Response<Body>> {
    if !matches!(*call.request.method(), Method::GET | Method::HEAD) {
        return Err(Error::app(Kind::MethodNotAllowed, "The CapabilityStatement is read with GET."));
    }
    let bad = |fault| Error::app(Kind::BadRequest, format!("The request's target: {fault}."));
    let mut query = call.request.uri().query().map_or_else(|| Ok(Vec::new()), parse_query).map_err(bad)?;
    if super::headers::wanted(&mut query, call.request.headers(), false)? == Wanted::Xml {
        return Err(no_xml());
    }
    statement(context, &call.config, &call.base).await
}

async fn statement(context: &ProxyContext, config: &Config, base: &Base) -> Result<Response<Body>> {
    let statement = context.statements.of(config, base).await;
    let statement = statement.ok_or_else(|| Error::app(Kind::NotFound, "No site has this base."))?;
    let mut response = Response::new(Body::full(statement.to_string().into()));
    response.headers_mut().insert(header::CONTENT_TYPE, FHIR_JSON_UTF8);
    Ok(response)
}

fn no_xml() -> Error {
    Error::app(Kind::NotAcceptable, "This answer is only to be had in JSON: expected Accept application/fhir+json.")
}

// ---- what is asked -----------------------------------------------------------------------------------

impl Passage<'_> {
    async fn serve(&self, asked: Asked) -> Result<Response<Body>> {
        match &asked.interaction {
            Interaction::Capabilities => statement(self.proxy, &self.config, &self.base_called).await,
            Interaction::Page => self.page(asked).await,
            _ => self.judged(asked).await,
        }
    }

    pub(super) fn case(&self, inspect: bool) -> Case<'_> {
        Case { session: &self.session, app: &self.app, site: &self.site, bases: &self.bases.judge, inspect }
    }

    async fn judged(&self, asked: Asked) -> Result<Response<Body>> {
        let manner = Manner { head_only: asked.head_only, wants_raw: asked.wants_raw, passing: asked.passing };
        let headers = matches!(asked.interaction, Interaction::Batch | Interaction::Transaction)
            .then(|| asked.request.headers.clone());
        match judge::judge(&self.case(false), asked.request, asked.interaction)? {
            Judged::Forward(authorized) => self.forward(authorized, manner).await,
            Judged::ReadFirst { read, then } => {
                let authorized = self.read_first(read, *then).await?;
                self.forward(authorized, manner).await
            }
            Judged::Bundle(bundle) => self.bundle(bundle, headers.unwrap_or_default()).await,
        }
    }

    /// Plans and carries out what the judge let through.
    pub(super) async fn forward(&self, authorized: Authorized, manner: Manner) -> Result<Response<Body>> {
        let (plan, authorized) = self.planned(authorized)?;
        let (request, interaction, mode, searched) = authorized.into_parts();
        let facts = |resource_type| PageFacts { resource_type, inspected: mode.inspects() };
        let links = match (searched, &interaction) {
            (Some(mut judged), _) => {
                // A link that does not repeat the search would be planned as another one.
                judged.required.extend(parameters(&request));
                let facts = facts(judged.resource_type.clone());
                Some((judged, facts))
            }
            // Their pages say nothing of what they continue.
            (
                None,
                Interaction::HistoryInstance { .. }
                | Interaction::HistoryType { .. }
                | Interaction::HistorySystem
                | Interaction::Operation { .. },
            ) => Some((JudgedSearch::default(), facts(None))),
            (None, _) => None,
        };
        let is_own_patient = interaction.resource_type() == Some("Patient")
            && interaction.id().is_some_and(|id| self.session.context.patient.as_deref() == Some(id));
        let is_write = matches!(
            interaction,
            Interaction::Create { .. }
                | Interaction::Update { .. }
                | Interaction::Patch { .. }
                | Interaction::Delete { .. }
        );
        let is_read = matches!(interaction, Interaction::Read { .. } | Interaction::VRead { .. });
        let is_binary = interaction.resource_type() == Some("Binary") && (is_read || is_write);
        let expect = Expect {
            check: Check::of(&mode),
            is_binary,
            may_be_html: is_binary && manner.wants_raw,
            is_write,
            is_operation: matches!(interaction, Interaction::Operation { .. }),
            is_own_patient,
            head_only: manner.head_only,
            links,
        };
        self.carry_out(plan, &request, expect, manner.passing).await
    }

    /// The plan of a judged request; judged anew where the plan calls for inspection, since the vendor
    /// drops criteria on which the judge relied.
    pub(super) fn planned(&self, authorized: Authorized) -> Result<(Plan, Authorized)> {
        let plan = self.plan(authorized.request(), authorized.interaction())?;
        if !plan.inspect || authorized.mode().inspects() {
            return Ok((plan, authorized));
        }
        let (request, interaction, ..) = authorized.into_parts();
        match judge::judge(&self.case(true), request, interaction)? {
            Judged::Forward(authorized) => Ok((self.plan(authorized.request(), authorized.interaction())?, authorized)),
            Judged::ReadFirst { .. } | Judged::Bundle(_) => {
                Err(Error::internal("a plan calls for inspection where there is nothing to inspect"))
            }
        }
    }

    /// Reads the current version of what is to be written, and has the write judged by it.
    pub(super) async fn read_first(&self, read: Authorized, then: Pending) -> Result<Authorized> {
        let plan = self.plan(read.request(), read.interaction())?;
        let [request] = <[Request; 1]>::try_from(plan.requests)
            .map_err(|_| Error::internal("the plan of a read asks for several"))?;
        let (head, body) = self.exchange(Outbound::of(request)).await?.into_parts();
        match head.status.as_u16() {
            200 => {}
            // Of the moment: that tells nothing of the resource.
            429 | 500.. => {
                return Err(nonsense(
                    "The EHR does not give the version by which the change would be judged; nothing was changed.",
                ));
            }
            _ => return Err(judge::not_found()),
        }
        let current = whole(body, self.config.server.limits.inspected).await.map_err(|error| match error.kind {
            // As for one that is not the grant's.
            Kind::Unprocessable => judge::not_found().because("too large to be judged"),
            _ => error,
        })?;
        then.finish(&current, head.headers.get(header::ETAG).and_then(|etag| etag.to_str().ok()))
    }

    /// A further page, which passes only by the binding that a link of ours gave it (`guard.md` 7).
    async fn page(&self, asked: Asked) -> Result<Response<Body>> {
        let (rest, binding) = unbind(asked.raw_query.as_deref().unwrap_or_default());
        let url = canonical(&asked.request.path, &asked.raw_pairs);
        let opened = binding.and_then(|binding| self.proxy.pages.open(self.session.grant, &binding, &url));
        let facts = opened.ok_or_else(|| {
            let text = "This is no link to a further page that this grant was given: start the search again.";
            Error::app(Kind::Forbidden, text)
        })?;
        let page = Request { query: asked.raw_pairs, ..asked.request };
        let page = judge::judge_page(&self.case(false), page, facts.resource_type.as_deref(), facts.inspected)?;
        let (request, _, mode, _) = page.into_parts();
        let mut headers = request.headers;
        self.profile_headers(&mut headers)?;
        headers.entry(header::ACCEPT).or_insert(FHIR_JSON);
        // The EHR's own bytes: its paging tokens are opaque.
        let path = Request {
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            path: request.path,
            method: Method::GET,
        };
        let mut target = encode_target(&path);
        if let Some(rest) = self.page_query(rest.as_deref())? {
            target.push('?');
            target.push_str(&rest);
        }
        let method = if mode.inspects() { Method::GET } else { request.method };
        let answer = self.exchange(Outbound { method, target, headers, content: Content::Held(Bytes::new()) }).await?;
        // A page shows by its URL no more than the first one did: each further link is bound again.
        let links = Some((JudgedSearch::default(), facts));
        let expect = Expect { head_only: asked.head_only, links, ..Expect::plain(Check::of(&mode)) };
        self.answer(answer, expect).await
    }
}

/// What the app's request brings besides what is judged.
#[derive(Default)]
pub(super) struct Manner {
    pub(super) head_only: bool,
    /// A document in its own type is asked for.
    pub(super) wants_raw: bool,
    /// A body that streams beside the request.
    pub(super) passing: Option<Incoming>,
}

/// The parameters of a search, wherever they stand.
pub(super) fn parameters(request: &Request) -> Pairs {
    let form = std::str::from_utf8(&request.body).ok().filter(|_| request.method == Method::POST);
    let mut pairs = request.query.clone();
    pairs.extend(form.and_then(|text| parse_query(text).ok()).unwrap_or_default());
    pairs
}
