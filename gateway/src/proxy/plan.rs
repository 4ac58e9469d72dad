//! What a vendor is asked for one judged request, and how its answers become one
//! ([`mantel_adapters::adapter::Plan`]).

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, Method, Response, StatusCode, header, response::Parts};
use hyper::body::Incoming;
use mantel_adapters::{
    adapter::{Answer, NormalisedError, Plan, PlanContext, Severity},
    fhir::{
        inspect::{Ending, Inspector},
        interaction::{Interaction, Request, encode_target, parse_target},
        merge::merge,
        rewrite::{Format, rewrite_all},
        wrap::searchset,
    },
};

use super::{
    Body,
    answer::{Check, Expect, nonsense, whole},
    body::Verdicts,
    forward::{Content, Outbound, Passage, unplannable},
    headers::{FHIR_JSON, FHIR_JSON_UTF8},
    judge::not_found,
    outcome,
};
use crate::error::{Error, Kind, Result, Side};

/// Of each answer that is put together with others.
pub(super) const LARGEST_PART: usize = 16 << 20;
/// Of all of them, and of the pages that they lead to.
pub(super) const LARGEST_WHOLE: usize = 32 << 20;
/// Parts and pages of one search: at Epic fifteen categories of some pages each.
const MOST_PARTS: usize = 60;
/// Exchanges at once for one request.
pub(super) const AT_ONCE: usize = 4;

const NO_SEARCHSET: &str = "The EHR's answer to a search is no searchset.";

/// One answer of several.
enum Piece {
    Whole(Bytes),
    Error(Parts, NormalisedError),
}

/// A part of a search, with its pages.
enum Chain {
    Bundles(Vec<Bytes>),
    Error(Parts, NormalisedError),
}

/// What one request of an app may cost.
#[derive(Default)]
struct Budget {
    parts: AtomicUsize,
    bytes: AtomicUsize,
}

impl Budget {
    fn take(&self, parts: usize, bytes: usize) -> Result<()> {
        let parts = self.parts.fetch_add(parts, Ordering::Relaxed).saturating_add(parts);
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if parts > MOST_PARTS || bytes > LARGEST_WHOLE { Err(too_much()) } else { Ok(()) }
    }
}

impl Passage<'_> {
    /// What the vendor is asked.
    ///
    /// # Errors
    /// Where it has no way to answer.
    pub(super) fn plan(&self, request: &Request, interaction: &Interaction) -> Result<Plan> {
        let context = PlanContext {
            profile: &self.site.profile,
            tenant: self.tenant(),
            client_id: &self.client_id,
            patient: self.session.context.patient.as_deref(),
        };
        let mut plan = self.site.adapter.plan(request, interaction, context).map_err(|fault| unplannable(&fault))?;
        for request in &mut plan.requests {
            request.headers.entry(header::ACCEPT).or_insert(FHIR_JSON);
        }
        Ok(plan)
    }

    /// Carries a plan out.
    pub(super) async fn carry_out(
        &self,
        plan: Plan,
        asked: &Request,
        expect: Expect,
        passing: Option<Incoming>,
    ) -> Result<Response<Body>> {
        let mut requests = plan.requests;
        if plan.answer != Answer::Pass {
            // What is put together needs the bodies.
            requests.iter_mut().filter(|request| request.method == Method::HEAD).for_each(|request| {
                request.method = Method::GET;
            });
        }
        match plan.answer {
            Answer::Pass => {
                let [request] = <[Request; 1]>::try_from(requests)
                    .map_err(|_| Error::internal("a plan that passes one answer on asks for several"))?;
                let mut outbound = Outbound::of(request);
                if passing.is_some() {
                    outbound.content = Content::Passing(passing);
                }
                let answer = self.exchange(outbound).await?;
                self.answer(answer, expect).await
            }
            Answer::WrapAsSearchset => {
                let [request] = <[Request; 1]>::try_from(requests)
                    .map_err(|_| Error::internal("a plan that wraps one answer asks for several"))?;
                let bundle = self.wrapped(request, asked).await?;
                self.assembled(bundle, &expect)
            }
            Answer::Merge => self.merged(requests, asked, expect).await,
        }
    }

    // ---- a read as a searchset -----------------------------------------------------------------------

    async fn wrapped(&self, request: Request, asked: &Request) -> Result<Result<Bytes, (Parts, NormalisedError)>> {
        let full_url = format!("{}{}", self.base(), encode_target(&Request { query: Vec::new(), ..request.clone() }));
        let self_url = self.self_url(asked);
        let wrap = |resource: Option<&[u8]>| {
            let bundle = searchset(resource, &full_url, &self_url);
            bundle.map(Bytes::from).map_err(|_| nonsense("The EHR's answer is no FHIR JSON."))
        };
        match self.fetch(Outbound::of(request)).await? {
            Piece::Whole(resource) => wrap(Some(&resource)).map(Ok),
            Piece::Error(_, error) if matches!(error.status, 404 | 410) => wrap(None).map(Ok),
            Piece::Error(head, error) => Ok(Err((head, error))),
        }
    }

    // ---- several searches as one ---------------------------------------------------------------------

    async fn merged(&self, requests: Vec<Request>, asked: &Request, expect: Expect) -> Result<Response<Body>> {
        let budget = Budget::default();
        let chains = stream::iter(requests).map(|request| self.chain(request, &budget)).buffered(AT_ONCE);
        let mut chains = std::pin::pin!(chains);
        let mut parts: Vec<Bytes> = Vec::new();
        let (mut found, mut refused) = (false, None);
        while let Some(chain) = chains.next().await {
            match chain? {
                Chain::Bundles(bundles) => {
                    found = true;
                    parts.extend(bundles);
                }
                // A category that this hospital has not, or has not granted; anything else is an error, and
                // what breaks the glass is asked no further.
                Chain::Error(head, error) if matches!(error.status, 400 | 403) && !error.break_the_glass => {
                    let warning = outcome::document(&error, self.scrub(), self.request_id, Some(Severity::Warning));
                    parts.push(warning.to_string().into());
                    refused.get_or_insert((head, error));
                }
                Chain::Error(head, error) => return self.tell(&error, &head, &expect),
            }
        }
        if let (false, Some((head, error))) = (found, refused) {
            return self.tell(&error, &head, &expect);
        }
        let slices: Vec<&[u8]> = parts.iter().map(AsRef::as_ref).collect();
        let merged = merge(&slices, &self.self_url(asked)).map_err(|_| nonsense(NO_SEARCHSET))?;
        self.assembled(Ok(merged.bundle.into()), &expect)
    }

    /// One part with all its pages: the merged answer has no `next` of its own.
    async fn chain(&self, request: Request, budget: &Budget) -> Result<Chain> {
        let headers = request.headers.clone();
        let mut next = Some(Outbound::of(request));
        let mut pages: Vec<Bytes> = Vec::new();
        while let Some(outbound) = next.take() {
            budget.take(1, 0)?;
            let page = match self.fetch(outbound).await? {
                Piece::Whole(page) => page,
                Piece::Error(head, error) if pages.is_empty() => return Ok(Chain::Error(head, error)),
                Piece::Error(..) => return Err(nonsense("The EHR refuses a further page of its own search.")),
            };
            budget.take(0, page.len())?;
            let further = merge(&[&page], "").map_err(|_| nonsense(NO_SEARCHSET))?.next;
            pages.push(page);
            if let Some(url) = further.first() {
                next = Some(self.further(url, &headers)?);
            }
        }
        Ok(Chain::Bundles(pages))
    }

    /// A further page, by the EHR's own URL.
    fn further(&self, url: &str, headers: &HeaderMap) -> Result<Outbound> {
        let below = self.bases.down.below(url);
        let below = below.ok_or_else(|| nonsense("The EHR names a further page outside its FHIR base."))?;
        let below = below.split('#').next().unwrap_or_default();
        let (path, query) = below.split_once('?').map_or((below, None), |(path, query)| (path, Some(query)));
        let odd = |fault| nonsense("The EHR names a further page that is no FHIR URL.").because(fault);
        parse_target(path, query).map_err(odd)?;
        let mut target = path.to_owned();
        if let Some(query) = self.page_query(query)? {
            target.push('?');
            target.push_str(&query);
        }
        Ok(Outbound { method: Method::GET, target, headers: headers.clone(), content: Content::Held(Bytes::new()) })
    }

    fn self_url(&self, asked: &Request) -> String {
        format!("{}{}", self.base(), encode_target(asked))
    }

    /// An answer, whole.
    async fn fetch(&self, outbound: Outbound) -> Result<Piece> {
        let answer = self.exchange(outbound).await?;
        let (head, mut body) = answer.into_parts();
        if head.status != StatusCode::OK {
            let error = self.read_error(&head, &mut body, false).await?;
            return Ok(Piece::Error(head, error));
        }
        Ok(Piece::Whole(whole(body, LARGEST_PART).await?))
    }

    /// An answer of our making from what the EHR sent.
    fn assembled(&self, bundle: Result<Bytes, (Parts, NormalisedError)>, expect: &Expect) -> Result<Response<Body>> {
        let bundle = match bundle {
            Ok(bundle) => bundle,
            Err((head, error)) => return self.tell(&error, &head, expect),
        };
        let bundle = match &expect.check {
            Check::Stream => bundle,
            Check::Inspect(inspection) => inspected(&bundle, Box::new(inspection.watch()))?,
        };
        let bundle = rewrite_all(&self.bases.down, Format::Json, &bundle);
        let mut response = Response::new(if expect.head_only { Body::default() } else { Body::full(bundle) });
        response.headers_mut().insert(header::CONTENT_TYPE, FHIR_JSON_UTF8);
        response.headers_mut().insert("x-intermediary", http::HeaderValue::from_static("mantel"));
        Ok(response)
    }
}

/// A body that is in memory, as far as the judge lets it pass.
///
/// # Errors
/// 404 for a resource that is withheld.
pub(super) fn inspected(body: &[u8], verdicts: Verdicts) -> Result<Bytes> {
    let broken = |fault| nonsense("The EHR's answer is not complete FHIR JSON.").because(fault);
    let mut inspector = Inspector::new(verdicts);
    let mut passed = Vec::new();
    inspector.push(body, &mut passed).map_err(broken)?;
    match inspector.finish(&mut passed).map_err(broken)? {
        Ending::Withheld => Err(not_found()),
        Ending::Passed | Ending::Bundle { .. } => Ok(passed.into()),
    }
}

pub(super) fn too_much() -> Error {
    let text = "The EHR takes this search only in parts, whose answers are too large to be put together: ask for less, by date or category.";
    Error::new(Kind::Unprocessable, Side::Ehr, text)
}
