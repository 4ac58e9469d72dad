//! Bundles of type batch and transaction, posted to the base.

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};

use super::{
    Asked, Entry, House, State, catalog, date,
    dispatch::{self, dispatch},
    fault::Fault,
    reply::{self, Body, Reply},
    segments, vendors, write,
};
use crate::ehr::contract::Vendor;

/// More entries than any client of a test needs.
const ENTRIES: usize = 1000;

pub fn run(house: &House, state: &mut State, asked: &Asked) -> Result<Reply, Fault> {
    if !matches!(house.vendor, Vendor::Oracle | Vendor::Generic) {
        return Err(Fault::Unsupported("batch"));
    }
    if !dispatch::media(asked).ends_with("json") {
        return Err(Fault::MediaType);
    }
    let bundle: Value = serde_json::from_slice(&asked.body)
        .map_err(|error| Fault::Malformed(format!("the body is no JSON: {error}")))?;
    if bundle.get("resourceType").and_then(Value::as_str) != Some("Bundle") {
        return Err(Fault::Malformed("only a Bundle can be posted to the base".to_owned()));
    }
    let entries: Vec<Value> = bundle.get("entry").and_then(Value::as_array).cloned().unwrap_or_default();
    if entries.len() > ENTRIES {
        return Err(Fault::Malformed(format!("a Bundle may have {ENTRIES} entries, not {}", entries.len())));
    }
    match bundle.get("type").and_then(Value::as_str) {
        Some("batch") => Ok(batch(house, state, asked, &entries)),
        // All or nothing: what failed leaves the records as they were.
        Some("transaction") if house.vendor == Vendor::Generic => {
            let before = state.clone();
            transaction(house, state, asked, entries).inspect_err(|_| *state = before)
        }
        other => Err(Fault::Malformed(format!("a Bundle of type {} is not processed", other.unwrap_or("none")))),
    }
}

fn batch(house: &House, state: &mut State, asked: &Asked, entries: &[Value]) -> Reply {
    let answers = entries
        .iter()
        .map(|entry| {
            let reply = request(house, asked, entry, None)
                .and_then(|inner| dispatch(house, state, &inner))
                .unwrap_or_else(|fault| vendors::fault(house, &fault));
            answer(reply)
        })
        .collect();
    respond("batch-response", answers)
}

fn transaction(house: &House, state: &mut State, asked: &Asked, mut entries: Vec<Value>) -> Result<Reply, Fault> {
    // What is created has its id before anything is written, so that entries can name each other.
    let mut ids: Vec<Option<String>> = vec![None; entries.len()];
    let mut names: HashMap<String, String> = HashMap::new();
    for (slot, entry) in ids.iter_mut().zip(&entries) {
        let text = |pointer: &str| entry.pointer(pointer).and_then(Value::as_str);
        let (Some(method), Some(url)) = (text("/request/method"), text("/request/url")) else { continue };
        let ty = text("/resource/resourceType").unwrap_or_default();
        let target = match method {
            "POST" => {
                let rule = catalog::rule(house.vendor, ty).ok_or_else(|| Fault::UnknownType(ty.to_owned()))?;
                let existing = match text("/request/ifNoneExist") {
                    Some(criteria) => write::unique(house, state, asked, rule, criteria)?,
                    None => None,
                };
                let id = existing.unwrap_or_else(|| state.store.next_id(ty));
                *slot = Some(id.clone());
                format!("{ty}/{id}")
            }
            "PUT" if url.contains('?') => {
                let rule = catalog::rule(house.vendor, ty).ok_or_else(|| Fault::UnknownType(ty.to_owned()))?;
                let criteria = url.split_once('?').map_or("", |(_, criteria)| criteria);
                let id = match write::unique(house, state, asked, rule, criteria)? {
                    Some(id) => id,
                    None => state.store.next_id(ty),
                };
                *slot = Some(id.clone());
                format!("{ty}/{id}")
            }
            _ => url.to_owned(),
        };
        if let Some(name) = text("/fullUrl") {
            names.insert(name.to_owned(), target);
        }
    }
    for entry in &mut entries {
        if let Some(resource) = entry.get_mut("resource") {
            resolve(house, state, asked, resource, &names)?;
        }
    }
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by_key(|index| rank(entries.get(*index)));
    let mut answers: Vec<Value> = vec![Value::Null; entries.len()];
    for index in order {
        let Some(entry) = entries.get(index) else { continue };
        let inner = request(house, asked, entry, ids.get(index).cloned().flatten())?;
        let reply = dispatch(house, state, &inner)?;
        if let Some(slot) = answers.get_mut(index) {
            *slot = answer(reply);
        }
    }
    Ok(respond("transaction-response", answers))
}

/// DELETE, POST, PUT and PATCH, GET (R4 http, "Transaction Processing Rules").
fn rank(entry: Option<&Value>) -> u8 {
    match entry.and_then(|entry| entry.pointer("/request/method")).and_then(Value::as_str) {
        Some("DELETE") => 0,
        Some("POST") => 1,
        Some("PUT" | "PATCH") => 2,
        _ => 3,
    }
}

/// `urn:uuid:…` becomes the id it will have, `Patient?identifier=…` the one it has.
fn resolve(
    house: &House,
    state: &State,
    asked: &Asked,
    value: &mut Value,
    names: &HashMap<String, String>,
) -> Result<(), Fault> {
    match value {
        Value::Object(members) => {
            for (member, inner) in members {
                let Value::String(text) = inner else {
                    resolve(house, state, asked, inner, names)?;
                    continue;
                };
                if !matches!(member.as_str(), "reference" | "url") {
                    continue;
                }
                if let Some(target) = names.get(text.as_str()) {
                    *text = target.clone();
                } else if let (Some((ty, criteria)), "reference") = (text.split_once('?'), member.as_str())
                    && let Some(rule) = catalog::rule(house.vendor, ty)
                {
                    let id = write::unique(house, state, asked, rule, criteria)?.ok_or(Fault::Several)?;
                    *text = format!("{ty}/{id}");
                }
            }
            Ok(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(|item| resolve(house, state, asked, item, names)),
        _ => Ok(()),
    }
}

/// An entry as the request it stands for. The Bundle's own headers do not reach into it.
fn request(house: &House, asked: &Asked, entry: &Value, id: Option<String>) -> Result<Asked, Fault> {
    let text = |name: &str| entry.pointer(&format!("/request/{name}")).and_then(Value::as_str);
    let method = match text("method") {
        Some("GET") => Method::GET,
        Some("POST") => Method::POST,
        Some("PUT") => Method::PUT,
        Some("PATCH") => Method::PATCH,
        Some("DELETE") => Method::DELETE,
        other => return Err(Fault::Malformed(format!("{} is no method of an entry", other.unwrap_or("none")))),
    };
    let url = text("url").ok_or_else(|| Fault::Malformed("an entry without a URL".to_owned()))?;
    let relative = match url.strip_prefix(house.base.as_str()) {
        Some(rest) => rest,
        None if url.contains("://") => return Err(Fault::Malformed("an entry with another server's URL".to_owned())),
        None => url,
    };
    let (path, query) = relative.split_once('?').unwrap_or((relative, ""));
    let mut headers = HeaderMap::new();
    let mut set = |name: HeaderName, value: Option<&str>| {
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
            headers.insert(name, value);
        }
    };
    set(header::ACCEPT, Some("application/fhir+json"));
    set(header::IF_MATCH, text("ifMatch"));
    set(header::IF_NONE_MATCH, text("ifNoneMatch"));
    set(HeaderName::from_static("if-none-exist"), text("ifNoneExist"));
    if let Some(since) = text("ifModifiedSince").and_then(date::parse) {
        set(header::IF_MODIFIED_SINCE, Some(&date::http(since.from)));
    }
    let resource = entry.get("resource");
    let (media, body) = match (&method, resource) {
        // A patch travels in a Binary (R4 http, "Patch in Transactions").
        (&Method::PATCH, Some(binary)) => {
            let data = binary.get("data").and_then(Value::as_str).unwrap_or_default();
            let media = binary.get("contentType").and_then(Value::as_str).unwrap_or_default().to_owned();
            (
                media,
                Bytes::from(STANDARD.decode(data).map_err(|_| Fault::Malformed("a patch is no base64".to_owned()))?),
            )
        }
        (_, Some(resource)) => ("application/fhir+json".to_owned(), Bytes::from(resource.to_string())),
        (_, None) => (String::new(), Bytes::new()),
    };
    set(header::CONTENT_TYPE, Some(&media));
    Ok(Asked {
        method,
        path: segments(path),
        pairs: url::form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
        raw_query: query.to_owned(),
        headers,
        body,
        bearer: asked.bearer,
        access: asked.access.clone(),
        now: asked.now,
        entry: Some(Entry { id }),
    })
}

fn answer(reply: Reply) -> Value {
    let mut response = json!({"status": status(reply.status)});
    for (header, member) in [("location", "location"), ("etag", "etag")] {
        if let (Some(value), Some(response)) = (reply.header(header), response.as_object_mut()) {
            response.insert(member.to_owned(), json!(value));
        }
    }
    if let (Some(modified), Some(response)) =
        (reply.header("last-modified").and_then(date::parse_http), response.as_object_mut())
    {
        response.insert("lastModified".to_owned(), json!(date::instant(modified)));
    }
    match reply.body {
        Body::Fhir(resource) if reply.status.is_success() => json!({"resource": resource, "response": response}),
        body => {
            let outcome = match body {
                Body::Fhir(outcome) => Some(outcome),
                // A vendor's text where no text can stand.
                Body::Other(_, bytes) if !bytes.is_empty() => {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    Some(reply::outcome(vec![reply::issue("error", "processing", text)]))
                }
                Body::Other(..) | Body::Empty => None,
            };
            if let (Some(outcome), Some(response)) = (outcome, response.as_object_mut()) {
                response.insert("outcome".to_owned(), outcome);
            }
            json!({"response": response})
        }
    }
}

fn status(status: StatusCode) -> String {
    format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or_default()).trim_end().to_owned()
}

fn respond(kind: &str, entries: Vec<Value>) -> Reply {
    Reply::fhir(StatusCode::OK, json!({"resourceType": "Bundle", "type": kind, "entry": Value::from(entries)}))
}
