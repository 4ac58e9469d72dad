//! Batches and transactions. A vendor that takes batches gets those of its entries that it understands as
//! they are; every other entry is played by itself, and each answer stands in its entry's place.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, HeaderName, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use mantel_adapters::{
    adapter::{Answer, Plan},
    fhir::{
        interaction::{BundleKind, Request},
        outcome::OperationOutcome,
        rewrite::Format,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};

use super::{
    Body,
    answer::{Check, nonsense, whole},
    forward::{Outbound, Passage},
    headers::FHIR_JSON_UTF8,
    judge::{Authorized, BundleEntry, EntryJudgement, JudgedBundle},
    paging::PageFacts,
    plan::{AT_ONCE, LARGEST_PART, LARGEST_WHOLE, inspected, too_much},
    serve::{Manner, parameters},
};
use crate::error::{Error, Kind, Result};

/// An entry of the answer, as JSON.
type Answered = Box<RawValue>;

/// An entry that is settled but for its answer.
enum Ready {
    /// For the vendor's own batch.
    Sent(Option<String>, Authorized),
    /// Played by itself.
    Played(Authorized),
    Refused(Error),
}

impl Passage<'_> {
    /// `headers`: those of the app's request.
    pub(super) async fn bundle(&self, bundle: JudgedBundle, headers: HeaderMap) -> Result<Response<Body>> {
        match bundle.kind {
            BundleKind::Transaction => self.transaction(bundle, headers).await,
            BundleKind::Batch => self.batch(bundle, headers).await,
        }
    }

    /// All of it or nothing: only where the EHR takes it as it is.
    async fn transaction(&self, bundle: JudgedBundle, headers: HeaderMap) -> Result<Response<Body>> {
        let refuse = |text: &str| Err(Error::app(Kind::Unprocessable, text));
        if !self.site.profile.batch {
            return refuse("This EHR takes no transactions: send a batch, or the requests by themselves.");
        }
        let mut sent = Vec::with_capacity(bundle.entries.len());
        for entry in bundle.entries {
            match self.ready(entry).await? {
                Ready::Sent(full_url, authorized) => sent.push((full_url, authorized)),
                Ready::Played(_) => {
                    return refuse("This EHR takes one of the entries only in another form: send it by itself.");
                }
                Ready::Refused(error) => return Err(error),
            }
        }
        let authorized = JudgedBundle::assemble(&self.case(false), BundleKind::Transaction, &headers, &sent)?;
        self.forward(authorized, Manner::default()).await
    }

    async fn batch(&self, bundle: JudgedBundle, headers: HeaderMap) -> Result<Response<Body>> {
        let ready: Vec<Result<Ready>> =
            stream::iter(bundle.entries).map(|entry| self.ready(entry)).buffered(AT_ONCE).collect().await;
        let (mut sent, mut rest, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for (place, ready) in ready.into_iter().enumerate() {
            match ready? {
                Ready::Sent(full_url, authorized) => {
                    sent.push((full_url, authorized));
                    places.push(place);
                }
                other => rest.push((place, other)),
            }
        }
        let count = places.len() + rest.len();
        // Each searchset among the answers has links of its own, which are bound one by one.
        let searches = sent.iter().any(|(_, authorized)| authorized.searched().is_some());
        if rest.is_empty() && count > 0 && !searches {
            let authorized = JudgedBundle::assemble(&self.case(false), BundleKind::Batch, &headers, &sent)?;
            return self.forward(authorized, Manner::default()).await;
        }
        let mut answers: Vec<Option<Answered>> = (0..count).map(|_| None).collect();
        if !sent.is_empty() {
            let answered = self.sent(&headers, &sent).await?;
            for (place, answer) in places.into_iter().zip(answered) {
                if let Some(slot) = answers.get_mut(place) {
                    *slot = Some(answer);
                }
            }
        }
        let mut size = 0;
        let mut played = std::pin::pin!(
            stream::iter(rest).map(|(place, ready)| async move { (place, self.played(ready).await) }).buffered(AT_ONCE)
        );
        while let Some((place, answer)) = played.next().await {
            let answer = answer?;
            size += answer.get().len();
            if size > LARGEST_WHOLE {
                return Err(too_much());
            }
            if let Some(slot) = answers.get_mut(place) {
                *slot = Some(answer);
            }
        }
        let entry: Option<Vec<Answered>> = answers.into_iter().collect();
        let entry = entry.ok_or_else(|| nonsense("The EHR's answer to a batch has other entries than the batch."))?;
        let bundle = BatchResponse { resource_type: "Bundle", kind: "batch-response", entry };
        let body = serde_json::to_vec(&bundle).map_err(Error::internal)?;
        let mut response = Response::new(Body::full(body.into()));
        response.headers_mut().insert(header::CONTENT_TYPE, FHIR_JSON_UTF8);
        Ok(response)
    }

    /// Settles what an entry needs before it can be sent.
    async fn ready(&self, entry: BundleEntry) -> Result<Ready> {
        let authorized = match entry.judgement {
            EntryJudgement::Refused(error) => return Ok(Ready::Refused(error)),
            EntryJudgement::Forward(authorized) => Ok(authorized),
            EntryJudgement::ReadFirst { read, then } => self.read_first(read, *then).await,
        };
        let planned = authorized.and_then(|authorized| self.planned(authorized));
        match planned {
            Ok((plan, authorized)) if self.site.profile.batch && is_as_judged(&plan, authorized.request()) => {
                Ok(Ready::Sent(entry.full_url, authorized))
            }
            Ok((_, authorized)) => Ok(Ready::Played(authorized)),
            Err(error) => refused(error).map(Ready::Refused),
        }
    }

    /// The entries of the vendor's answer to its part of a batch.
    async fn sent(&self, headers: &HeaderMap, sent: &[(Option<String>, Authorized)]) -> Result<Vec<Answered>> {
        let authorized = JudgedBundle::assemble(&self.case(false), BundleKind::Batch, headers, sent)?;
        let (plan, authorized) = self.planned(authorized)?;
        let [request] = <[Request; 1]>::try_from(plan.requests)
            .map_err(|_| Error::internal("the plan of a batch asks for several"))?;
        let (head, mut body) = self.exchange(Outbound::of(request)).await?.into_parts();
        if head.status != StatusCode::OK {
            let error = self.read_error(&head, &mut body, false).await?;
            let text = format!("The EHR refuses the batch as a whole (status {}).", error.status);
            return Err(nonsense(&text).because(format_args!("status {}", head.status.as_u16())));
        }
        let bundle = whole(body, LARGEST_PART).await?;
        let bundle = match Check::of(authorized.mode()) {
            Check::Stream => bundle,
            Check::Inspect(inspection) => inspected(&bundle, Box::new(inspection.watch()))?,
        };
        let read: Read =
            serde_json::from_slice(&bundle).map_err(|_| nonsense("The EHR's answer to a batch is no Bundle."))?;
        if read.entry.len() != sent.len() {
            return Err(nonsense("The EHR's answer to a batch has other entries than the batch."));
        }
        read.entry.into_iter().zip(sent).map(|(entry, (_, asked))| self.moved(&entry, asked)).collect()
    }

    /// An entry of the vendor's answer under our base. The links of a searchset are bound as if it had come
    /// by itself.
    fn moved(&self, entry: &RawValue, asked: &Authorized) -> Result<Answered> {
        let broken = |_| nonsense("An entry of the EHR's answer to a batch is no JSON object.");
        let mut members: BTreeMap<String, Answered> = serde_json::from_str(entry.get()).map_err(broken)?;
        for (name, value) in &mut members {
            let links = asked.searched().filter(|_| name == "resource").map(|judged| {
                let mut judged = judged.clone();
                judged.required.extend(parameters(asked.request()));
                let facts =
                    PageFacts { resource_type: judged.resource_type.clone(), inspected: asked.mode().inspects() };
                (judged, facts)
            });
            let mut rewriter = self.rewriter(Format::Json, links);
            let mut moved = rewriter.push_bytes(&Bytes::copy_from_slice(value.get().as_bytes())).to_vec();
            moved.extend_from_slice(&rewriter.finish_bytes());
            *value = serde_json::from_slice(&moved).map_err(broken)?;
        }
        raw(&members)
    }

    /// The answer to an entry that is played by itself.
    ///
    /// # Errors
    /// Where no entry can be answered, since the grant has ended.
    async fn played(&self, ready: Ready) -> Result<Answered> {
        let answered = match ready {
            Ready::Refused(error) => Err(error),
            Ready::Sent(_, authorized) | Ready::Played(authorized) => {
                match Box::pin(self.forward(authorized, Manner::default())).await {
                    Ok(answer) => as_entry(answer).await,
                    Err(error) => Err(error),
                }
            }
        };
        match answered {
            Ok(entry) => Ok(entry),
            Err(error) => raw(&self.refused_entry(&refused(error)?)),
        }
    }

    fn refused_entry(&self, error: &Error) -> Value {
        let (status, code) = error.kind.codes();
        let outcome = OperationOutcome::error(code, error.public.clone()).with_id(self.request_id);
        let outcome: Value = serde_json::from_slice(&outcome.to_json()).unwrap_or_default();
        serde_json::json!({ "response": { "status": status_text(status), "outcome": outcome } })
    }
}

/// Whether the vendor takes the request in the form in which it was judged.
fn is_as_judged(plan: &Plan, judged: &Request) -> bool {
    match plan.requests.as_slice() {
        [one] => {
            let same = (&one.method, &one.path, &one.query, &one.body)
                == (&judged.method, &judged.path, &judged.query, &judged.body);
            // What stands in the entry's headers besides conditions cannot be said in a Bundle.
            same && plan.answer == Answer::Pass && judged.body.first().is_none_or(|byte| *byte == b'{')
        }
        _ => false,
    }
}

/// An error of one entry; one that ends the grant is the whole Bundle's.
fn refused(error: Error) -> Result<Error> {
    match error.kind {
        Kind::GrantEnded | Kind::Unauthenticated => Err(error),
        _ => Ok(error),
    }
}

/// An answer as an entry of a batch-response (FHIR R4, Bundle.entry.response).
async fn as_entry(answer: Response<Body>) -> Result<Answered> {
    let (head, mut body) = answer.into_parts();
    let mut held = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| nonsense("The EHR's answer broke off.").because(error))?;
        if let Ok(chunk) = frame.into_data() {
            if chunk.len() > LARGEST_PART.saturating_sub(held.len()) {
                return Err(too_much());
            }
            held.extend_from_slice(&chunk);
        }
    }
    let mut response = Map::new();
    response.insert("status".into(), status_text(head.status.as_u16()).into());
    let text = |name: &HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok());
    for (member, name) in [("location", header::LOCATION), ("etag", header::ETAG)] {
        if let Some(value) = text(&name) {
            response.insert(member.into(), value.into());
        }
    }
    if let Some(instant) = text(&header::LAST_MODIFIED).and_then(instant) {
        response.insert("lastModified".into(), instant.into());
    }
    let held: Bytes = held.freeze();
    if held.is_empty() {
        return raw(&serde_json::json!({ "response": response }));
    }
    let content: &RawValue = serde_json::from_slice(&held).map_err(|_| {
        nonsense("The EHR's answer to an entry is not in JSON, so no Bundle can hold it: ask for it by itself.")
    })?;
    if !head.status.is_success() {
        let outcome: Value = serde_json::from_str(content.get()).map_err(Error::internal)?;
        response.insert("outcome".into(), outcome);
        return raw(&serde_json::json!({ "response": response }));
    }
    raw(&Entry { resource: content, response })
}

/// An HTTP date as FHIR's instant.
fn instant(text: &str) -> Option<String> {
    let at = httpdate::parse_http_date(text).ok()?;
    jiff::Timestamp::try_from(at).ok().map(|at| at.to_string())
}

fn status_text(status: u16) -> String {
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    reason.map_or_else(|| status.to_string(), |reason| format!("{status} {reason}"))
}

fn raw(value: &impl Serialize) -> Result<Answered> {
    serde_json::value::to_raw_value(value).map_err(Error::internal)
}

#[derive(Serialize)]
struct Entry<'a> {
    resource: &'a RawValue,
    response: Map<String, Value>,
}

#[derive(Serialize)]
struct BatchResponse {
    #[serde(rename = "resourceType")]
    resource_type: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    entry: Vec<Answered>,
}

#[derive(Deserialize)]
struct Read {
    #[serde(default)]
    entry: Vec<Answered>,
}
