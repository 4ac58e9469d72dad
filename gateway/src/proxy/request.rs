//! An app's request, read whole: what the judge sees is what the EHR gets.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use mantel_adapters::fhir::{
    interaction::{
        BodyKind, Interaction, Pairs, Request, body_kind, bundle_kind, classify, encode_pairs, parse_query,
        parse_target,
    },
    links::BINDING,
    rewrite::{Bases, Format, Rewriter, sniff},
};

use super::headers::{self, Wanted};
use crate::{
    config::Limits,
    error::{Error, Kind, Result},
};

const IF_NONE_EXIST: HeaderName = HeaderName::from_static("if-none-exist");

/// A request, taken apart.
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) interaction: Interaction,
    /// The query as it came, for pages: their tokens are opaque, and each byte goes to the EHR.
    pub(super) raw_query: Option<String>,
    /// The same, decoded.
    pub(super) raw_pairs: Pairs,
    /// The app asks for a Binary in its own type.
    pub(super) wants_raw: bool,
    /// The app sent HEAD.
    pub(super) head_only: bool,
    /// A body that nothing has to read: a Binary's content, larger than what is held.
    pub(super) passing: Option<Incoming>,
}

/// Takes a request apart and reads its body.
///
/// # Errors
/// What is no FHIR request, or larger than it may be.
pub(super) async fn read(
    tail: &str,
    request: http::Request<Incoming>,
    up: &Arc<Bases>,
    limits: &Limits,
    idle: Duration,
) -> Result<Asked> {
    let (head, body) = request.into_parts();
    let raw_query = head.uri.query().map(str::to_owned);
    let bad = |fault: &dyn std::fmt::Display| Error::app(Kind::BadRequest, format!("The request's target: {fault}."));
    let (path, mut query) = parse_target(tail, raw_query.as_deref()).map_err(|fault| bad(&fault))?;
    let content_type = header_text(&head.headers, &header::CONTENT_TYPE);
    let is_empty = body.is_end_stream();
    let is_binary = path.first().is_some_and(|first| first == "Binary");
    let limit = if path.is_empty() { limits.bundle } else { limits.body };
    let passes = is_binary
        && body_kind(content_type, is_empty) == BodyKind::Other
        && body.size_hint().lower() > u64::try_from(limit).unwrap_or(u64::MAX);
    let (held, passing) = if passes { (Bytes::new(), Some(body)) } else { (hold(body, limit, idle).await?, None) };

    let mut kind = match &passing {
        Some(_) => BodyKind::Other,
        None => body_kind(content_type, held.is_empty()),
    };
    if path.is_empty() && head.method == Method::POST && kind == BodyKind::Resource {
        if content_type.and_then(Format::of) != Some(Format::Json) {
            let text = "A batch or transaction in XML is not served: expected application/fhir+json.";
            return Err(Error::app(Kind::UnsupportedMediaType, text));
        }
        let found =
            bundle_kind(&held).map_err(|fault| Error::app(Kind::BadRequest, format!("{}.", sentence(&fault))))?;
        kind = BodyKind::Bundle(found);
    }
    let raw_pairs = query.clone();
    let interaction = classify(&head.method, &path, &query, &head.headers, kind).map_err(|fault| {
        let kind = match fault.status() {
            404 => Kind::NotFound,
            405 => Kind::MethodNotAllowed,
            415 => Kind::UnsupportedMediaType,
            _ => Kind::BadRequest,
        };
        Error::app(kind, format!("{}.", sentence(&fault)))
    })?;

    let mut form = if kind == BodyKind::Form { Some(read_form(&held)?) } else { None };
    let mut formats = query.clone();
    formats.extend(form.iter().flatten().cloned());
    let is_document = is_binary && (path.len() > 1 || head.method == Method::POST);
    let wanted = headers::wanted(&mut formats, &head.headers, is_document)?;
    let named = query.iter().chain(form.iter().flatten()).find(|(name, _)| name == "_format");
    let named = named.and_then(|(_, value)| HeaderValue::from_str(value).ok());

    let mut kept = headers::up(&head.headers);
    headers::set_accept(&mut kept, wanted, named);
    move_if_none_exist(&mut kept, up);
    let passes = |(name, _): &(String, String)| name != BINDING && name != "_format";
    query.retain(passes);
    for (_, value) in &mut query {
        *value = up.rewrite_parameter(value).into_owned();
    }
    let body = match &mut form {
        Some(pairs) => {
            pairs.retain(passes);
            for (_, value) in pairs.iter_mut() {
                *value = up.rewrite_parameter(value).into_owned();
            }
            encode_pairs(pairs).into()
        }
        None => move_up(held, content_type.and_then(Format::of), up)?,
    };
    if body.is_empty() && passing.is_none() {
        kept.remove(header::CONTENT_TYPE);
    }
    let request = Request { method: head.method.clone(), path, query, headers: kept, body };
    let head_only = head.method == Method::HEAD;
    Ok(Asked { request, interaction, raw_query, raw_pairs, wants_raw: wanted == Wanted::Raw, head_only, passing })
}

/// A fault's text as the beginning of a sentence.
fn sentence(fault: &dyn std::fmt::Display) -> String {
    let text = fault.to_string();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// The body, if it fits.
async fn hold(mut body: Incoming, limit: usize, idle: Duration) -> Result<Bytes> {
    let too_large = || {
        Error::app(Kind::TooLarge, format!("The request's body is larger than the {limit} bytes that are taken here."))
    };
    if body.size_hint().lower() > u64::try_from(limit).unwrap_or(u64::MAX) {
        return Err(too_large());
    }
    let mut whole = BytesMut::new();
    loop {
        let frame = tokio::time::timeout(idle, body.frame()).await;
        let frame =
            frame.map_err(|_| Error::app(Kind::BadRequest, "The request's body stopped before it was complete."))?;
        let Some(frame) = frame else { return Ok(whole.freeze()) };
        let frame =
            frame.map_err(|_| Error::app(Kind::BadRequest, "The request's body ended before it was complete."))?;
        if let Ok(chunk) = frame.into_data() {
            if chunk.len() > limit.saturating_sub(whole.len()) {
                return Err(too_large());
            }
            whole.extend_from_slice(&chunk);
        }
    }
}

fn read_form(body: &Bytes) -> Result<Pairs> {
    let text = std::str::from_utf8(body).map_err(|_| Error::app(Kind::BadRequest, "The form is not UTF-8."))?;
    let pairs = parse_query(text).map_err(|fault| Error::app(Kind::BadRequest, format!("The form: {fault}.")))?;
    // RFC 6750 allows it in forms; here it would be logged and forwarded as a parameter.
    if pairs.iter().any(|(name, _)| name == "access_token") {
        let text = "access_token in a form is refused: send it in the Authorization header.";
        return Err(Error::app(Kind::BadRequest, text));
    }
    Ok(pairs)
}

/// Moves our URLs in a body to the EHR's base.
fn move_up(body: Bytes, format: Option<Format>, up: &Arc<Bases>) -> Result<Bytes> {
    let Some(format) = format.filter(|_| !body.is_empty()) else { return Ok(body) };
    let bad = |what: &dyn std::fmt::Display| Error::app(Kind::BadRequest, format!("The request's body: {what}."));
    sniff(&body, format).map_err(|what| bad(&what))?;
    let mut rewriter = Rewriter::new(up, format);
    let mut moved = BytesMut::from(rewriter.push_bytes(&body));
    moved.extend_from_slice(&rewriter.finish_bytes());
    match rewriter.refused() {
        Some(what) => Err(bad(&what)),
        None => Ok(moved.freeze()),
    }
}

/// The criteria of a conditional create may hold our URLs too.
fn move_if_none_exist(headers: &mut HeaderMap, up: &Bases) {
    let Some(criteria) = header_text(headers, &IF_NONE_EXIST).map(str::to_owned) else { return };
    let criteria = criteria.split_once('?').map_or(criteria.as_str(), |(_, query)| query);
    let moved = parse_query(criteria).ok().and_then(|mut pairs| {
        for (_, value) in &mut pairs {
            *value = up.rewrite_parameter(value).into_owned();
        }
        HeaderValue::from_str(&encode_pairs(&pairs)).ok()
    });
    match moved {
        Some(value) => headers.insert(IF_NONE_EXIST, value),
        // Left empty, the judge refuses the create: without its condition it would be another request.
        None => headers.insert(IF_NONE_EXIST, HeaderValue::from_static("")),
    };
}

fn header_text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
