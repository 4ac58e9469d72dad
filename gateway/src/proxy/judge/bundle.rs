//! Batches and transactions, entry by entry.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH},
};
use mantel_adapters::fhir::{
    compartment::head,
    interaction::{BodyKind, BundleKind, Interaction, Request, bundle_kind, classify, parse_target},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    Authorized, Case, Inspection, Judged, Pending, judge as judge_one,
    refusal::{forbidden, malformed},
    writes::{check_conditional_references, entry_url, inspection_of, mark_json},
};
use crate::error::{Error, Kind, Result};

const IF_NONE_EXIST: HeaderName = HeaderName::from_static("if-none-exist");

/// The largest number of entries: each may cost the EHR a search.
const MOST_ENTRIES: usize = 1000;

/// A Bundle whose entries were judged, in their order.
pub struct JudgedBundle {
    pub kind: BundleKind,
    pub entries: Vec<BundleEntry>,
}

/// One entry.
pub struct BundleEntry {
    /// As given: references within the Bundle go by it.
    pub full_url: Option<String>,
    pub judgement: EntryJudgement,
}

/// What becomes of an entry.
pub enum EntryJudgement {
    Forward(Authorized),
    /// As [`Judged::ReadFirst`].
    ReadFirst {
        read: Authorized,
        then: Box<Pending>,
    },
    /// Never in a transaction. The answer has this error in the entry's place.
    Refused(Error),
}

#[derive(Deserialize)]
struct Given<'a> {
    #[serde(default, borrow)]
    entry: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(rename = "fullUrl", default)]
    full_url: Option<String>,
    #[serde(default, borrow)]
    resource: Option<&'a RawValue>,
    #[serde(borrow)]
    request: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    method: String,
    url: String,
    #[serde(default)]
    if_match: Option<String>,
    #[serde(default)]
    if_none_match: Option<String>,
    #[serde(default)]
    if_modified_since: Option<String>,
    #[serde(default)]
    if_none_exist: Option<String>,
}

pub(super) fn judge(case: &Case<'_>, request: &Request) -> Result<JudgedBundle> {
    let kind = bundle_kind(&request.body).map_err(|fault| malformed(format!("{fault}.")))?;
    let given: Given<'_> = serde_json::from_slice(&request.body)
        .map_err(|_| malformed("The Bundle is malformed: expected one list of entries and no member twice."))?;
    if given.entry.len() > MOST_ENTRIES {
        return Err(Error::app(
            Kind::TooLarge,
            format!("The Bundle has more than {MOST_ENTRIES} entries: send several."),
        ));
    }
    let mut entries = Vec::with_capacity(given.entry.len());
    for (index, raw) in given.entry.into_iter().enumerate() {
        let (full_url, judged) = entry(case, raw);
        let judgement = match (judged, kind) {
            (Ok(Judged::Forward(authorized)), _) => EntryJudgement::Forward(authorized),
            (Ok(Judged::ReadFirst { read, then }), _) => EntryJudgement::ReadFirst { read, then },
            (Ok(Judged::Bundle(_)), _) => return Err(nested()),
            (Err(error), BundleKind::Batch) => EntryJudgement::Refused(error),
            (Err(mut error), BundleKind::Transaction) => {
                error.public = format!("Entry {index} refuses the transaction: {}", error.public);
                return Err(error);
            }
        };
        entries.push(BundleEntry { full_url, judgement });
    }
    Ok(JudgedBundle { kind, entries })
}

fn entry(case: &Case<'_>, raw: &RawValue) -> (Option<String>, Result<Judged>) {
    let malformed = || {
        malformed(
            "An entry is malformed: expected an object with fullUrl, resource and request, no member twice, request with method and url.",
        )
    };
    let is_object = |raw: &RawValue| raw.get().trim_start().starts_with('{');
    let read = is_object(raw).then(|| serde_json::from_str::<Entry<'_>>(raw.get()));
    let Some(Ok(entry)) = read else { return (None, Err(malformed())) };
    let asked = is_object(entry.request).then(|| serde_json::from_str::<Asked>(entry.request.get()));
    let Some(Ok(asked)) = asked else { return (entry.full_url, Err(malformed())) };
    let judged = request(case, &asked, entry.resource).and_then(|(request, interaction)| {
        if !request.body.is_empty() {
            check_conditional_references(case, &request.body)?;
        }
        judge_one(case, request, interaction)
    });
    (entry.full_url, judged)
}

fn nested() -> Error {
    forbidden("A Bundle within a Bundle is refused: send its entries by themselves.")
}

/// The request that an entry stands for.
fn request(case: &Case<'_>, asked: &Asked, resource: Option<&RawValue>) -> Result<(Request, Interaction)> {
    let method = match asked.method.as_str() {
        "GET" => Method::GET,
        "HEAD" => Method::HEAD,
        "POST" => Method::POST,
        "PUT" => Method::PUT,
        "PATCH" => Method::PATCH,
        "DELETE" => Method::DELETE,
        _ => return Err(malformed("An entry's method is unknown: expected GET, HEAD, POST, PUT, PATCH or DELETE.")),
    };
    let below = match case.bases.below(&asked.url) {
        Some(below) => below,
        None if asked.url.contains("://") => {
            return Err(malformed("An entry's URL is neither relative nor below this server's base."));
        }
        None => asked.url.as_str(),
    };
    if below.contains('#') {
        return Err(malformed("An entry's URL has a fragment: expected a path and a query."));
    }
    let (path, query) = match below.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (below, None),
    };
    let (path, query) = parse_target(path, query).map_err(|fault| malformed(format!("An entry's URL: {fault}.")))?;
    let mut headers = HeaderMap::new();
    let conditions = [
        (IF_MATCH, &asked.if_match),
        (IF_NONE_MATCH, &asked.if_none_match),
        (IF_MODIFIED_SINCE, &asked.if_modified_since),
        (IF_NONE_EXIST, &asked.if_none_exist),
    ];
    for (name, value) in conditions {
        if let Some(value) = value {
            let value =
                HeaderValue::from_str(value).map_err(|_| malformed("A condition of an entry is no header value."))?;
            headers.insert(name, value);
        }
    }
    let body = match resource {
        Some(resource) if matches!(method, Method::POST | Method::PUT | Method::PATCH) => {
            mark_json(&mut headers);
            Bytes::copy_from_slice(resource.get().as_bytes())
        }
        _ => Bytes::new(),
    };
    let kind = if body.is_empty() {
        BodyKind::Empty
    } else {
        let head = head(&body)
            .map_err(|_| malformed("An entry's resource is none: expected an object with one resourceType."))?;
        if head.resource_type == "Bundle" {
            return Err(nested());
        }
        BodyKind::Resource
    };
    let interaction = classify(&method, &path, &query, &headers, kind).map_err(|fault| {
        let kind = match fault.status() {
            404 => Kind::NotFound,
            405 => Kind::MethodNotAllowed,
            415 => Kind::UnsupportedMediaType,
            _ => Kind::BadRequest,
        };
        Error::app(kind, format!("An entry: {fault}."))
    })?;
    if matches!(interaction, Interaction::Page | Interaction::Capabilities) {
        return Err(forbidden("An entry of a Bundle may be no page and no metadata: ask for it by itself."));
    }
    Ok((Request { method, path, query, headers, body }, interaction))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SentRequest<'a> {
    method: &'a str,
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    if_match: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    if_none_match: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    if_modified_since: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    if_none_exist: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SentEntry<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    full_url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<&'a RawValue>,
    request: SentRequest<'a>,
}

#[derive(Serialize)]
struct SentBundle<'a> {
    #[serde(rename = "resourceType")]
    resource_type: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    entry: Vec<SentEntry<'a>>,
}

impl JudgedBundle {
    /// The Bundle that is sent: of `ready`, with the answer's inspection by their order. `headers`: those of the
    /// app's request.
    ///
    /// # Errors
    /// Where the app takes no JSON and something must be inspected.
    pub fn assemble(
        case: &Case<'_>,
        kind: BundleKind,
        headers: &HeaderMap,
        ready: &[(Option<String>, Authorized)],
    ) -> Result<Authorized> {
        let mut entries = Vec::with_capacity(ready.len());
        for (full_url, authorized) in ready {
            let request = authorized.request();
            let header = |name: &HeaderName| request.headers.get(name).and_then(|value| value.to_str().ok());
            let resource = match request.body.as_ref() {
                [] => None,
                body => Some(serde_json::from_slice(body).map_err(|_| Error::internal("a judged entry is no JSON"))?),
            };
            entries.push(SentEntry {
                full_url: full_url.as_deref(),
                resource,
                request: SentRequest {
                    method: request.method.as_str(),
                    url: entry_url(request),
                    if_match: header(&IF_MATCH),
                    if_none_match: header(&IF_NONE_MATCH),
                    if_modified_since: header(&IF_MODIFIED_SINCE),
                    if_none_exist: header(&IF_NONE_EXIST),
                },
            });
        }
        let (text, interaction) = match kind {
            BundleKind::Batch => ("batch", Interaction::Batch),
            BundleKind::Transaction => ("transaction", Interaction::Transaction),
        };
        let body = serde_json::to_vec(&SentBundle { resource_type: "Bundle", kind: text, entry: entries })
            .map_err(|_| Error::internal("a judged Bundle cannot be written"))?;
        let mut headers = headers.clone();
        mark_json(&mut headers);
        [IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_NONE_EXIST].iter().for_each(|name| {
            headers.remove(name);
        });
        let request = Request { method: Method::POST, path: Vec::new(), query: Vec::new(), headers, body: body.into() };
        if ready.iter().all(|(_, authorized)| !authorized.mode().inspects()) {
            return Ok(Authorized::stream(request, interaction));
        }
        let inspections = ready.iter().map(|(_, authorized)| inspection_of(authorized.mode())).collect();
        Authorized::inspect(request, interaction, Inspection::of_entries(case, inspections))
    }
}
