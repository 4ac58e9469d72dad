//! From an EHR's answer to the app's: errors become OperationOutcomes, bodies stream through the
//! rewriter, and what has to be inspected leaves only once it is judged.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, response::Parts};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use mantel_adapters::{
    adapter::{FhirAnswer, NormalisedError, fhir_error},
    fhir::{
        inspect::{Ending, Fault, Inspector},
        links::{JudgedSearch, LinkBinder},
        rewrite::{Format, LinkHook, Rewriter, rewrite_all, sniff},
    },
};

use super::{
    Body,
    body::{Pipe, Relay, Upstream, Verdicts},
    forward::Passage,
    headers::{FHIR_JSON_UTF8, down},
    judge::{Inspection, Mode, not_found},
    outcome::{self, Scrub},
    paging::PageFacts,
};
use crate::{
    error::{Error, Kind, Result, Side},
    upstream::retry_after,
};

/// Of an error's body, so much is read.
const ERROR_BODY: usize = 256 << 10;
/// Whether a body is an HTML page shows in its beginning.
const BEGINNING: usize = 1 << 10;
/// An EHR that says 429 says seldom for how long (`vendors.md` C 27).
const THROTTLED: Duration = Duration::from_secs(10);
const UNAVAILABLE: Duration = Duration::from_secs(5);

/// What may become of an answer's body.
pub(super) enum Check {
    /// Nothing in it can be outside the grant.
    Stream,
    /// Each resource is shown to the judge before its bytes leave.
    Inspect(Arc<Inspection>),
}

impl Check {
    pub(super) fn of(mode: &Mode) -> Self {
        match mode {
            Mode::Stream => Self::Stream,
            Mode::Inspect(inspection) => Self::Inspect(inspection.clone()),
        }
    }

    /// Whether the app may not learn which of the reasons there is for which it gets nothing.
    fn is_blind(&self) -> bool {
        matches!(self, Self::Inspect(inspection) if inspection.is_by_id())
    }
}

/// What is known of an answer before it comes.
pub(super) struct Expect {
    pub(super) check: Check,
    /// A Binary: in its own type, whatever that is.
    pub(super) is_binary: bool,
    /// The app asked for a document in its own type, so an HTML page is one.
    pub(super) may_be_html: bool,
    /// It has changed something: whatever of its answer is withheld, that it took place is not.
    pub(super) is_write: bool,
    /// An operation may answer with JSON that is not FHIR's.
    pub(super) is_operation: bool,
    /// It is about the patient in context: that this one exists is no secret.
    pub(super) is_own_patient: bool,
    /// The app sent HEAD; where the answer is inspected it was played as GET.
    pub(super) head_only: bool,
    /// How links to further pages are bound; none: there are none.
    pub(super) links: Option<(JudgedSearch, PageFacts)>,
}

impl Expect {
    /// An answer without pages or other specialities.
    pub(super) fn plain(check: Check) -> Self {
        Self {
            check,
            is_binary: false,
            may_be_html: false,
            is_write: false,
            is_operation: false,
            is_own_patient: false,
            head_only: false,
            links: None,
        }
    }
}

impl Passage<'_> {
    /// The app's answer.
    pub(super) async fn answer(&self, answer: Response<Upstream>, expect: Expect) -> Result<Response<Body>> {
        let (head, mut body) = answer.into_parts();
        match head.status.as_u16() {
            304 => return Ok(self.bodyless(&head)),
            300..=399 if expect.check.is_blind() && !expect.is_own_patient => return Err(not_found()),
            300..=399 => return self.redirect(&head),
            status if !(200..=299).contains(&status) => {
                let error = self.read_error(&head, &mut body, expect.may_be_html).await?;
                return self.tell(&error, &head, &expect);
            }
            _ => {}
        }
        let first = if body.is_end_stream() || head.status == StatusCode::NO_CONTENT {
            None
        } else if head.headers.get(header::CONTENT_ENCODING).is_some_and(|value| value != "identity") {
            return Err(nonsense("The EHR answered in an encoding that it was not offered."));
        } else {
            next_chunk(&mut body).await?
        };
        let Some(first) = first else {
            // Its headers would tell of a resource that nobody could judge.
            let tells = expect.check.is_blind() && !expect.is_write;
            return if tells { Err(not_found()) } else { Ok(self.bodyless(&head)) };
        };
        let format = self.format(&head, &first, &expect)?;
        match (&expect.check, format) {
            (Check::Inspect(inspection), Some(Format::Json)) => {
                let verdicts: Verdicts = Box::new(inspection.watch());
                self.inspected(head, body, first, verdicts, expect).await
            }
            // Only JSON can be shown to the judge.
            (Check::Inspect(_), _) if expect.check.is_blind() => Err(not_found()),
            (Check::Inspect(_), _) => Err(nonsense("The EHR did not answer in the JSON that it was asked for.")),
            (Check::Stream, None) => {
                let mut response = self.respond(&head, false, content_type(&head));
                // It comes from our origin: no browser may run what an EHR keeps as a document.
                let headers = response.headers_mut();
                headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
                headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
                *response.body_mut() = self.relay(Some(first), Bytes::new(), body, Pipe::Pass);
                Ok(response)
            }
            (Check::Stream, Some(format)) => {
                let mut response = self.respond(&head, true, fhir_type(&head, format, expect.is_operation));
                let pipe = Pipe::Rewrite(Box::new(self.rewriter(format, expect.links)));
                *response.body_mut() = self.relay(Some(first), Bytes::new(), body, pipe);
                Ok(response)
            }
        }
    }

    /// How the body is written; none: it passes as it is.
    fn format(&self, head: &Parts, first: &Bytes, expect: &Expect) -> Result<Option<Format>> {
        let named = text(&head.headers, header::CONTENT_TYPE);
        let format = match named {
            // A Binary's content may be JSON or XML of its own: no URL in it is for us to move.
            Some(named) if expect.is_binary => {
                Format::of(named).filter(|_| named.to_ascii_lowercase().contains("fhir"))
            }
            Some(named) => Format::of(named),
            None if expect.is_binary => None,
            None => Some(Format::Json),
        };
        match format {
            Some(format) => {
                let other = |what| nonsense("The EHR's answer is not what its media type says.").because(what);
                sniff(first, format).map_err(other)?;
            }
            None => {
                let page = FhirAnswer {
                    status: head.status.as_u16(),
                    content_type: named,
                    www_authenticate: None,
                    body: first.get(..BEGINNING).unwrap_or(first),
                    may_be_html: expect.may_be_html,
                };
                if fhir_error(self.site.adapter, &page).is_some() {
                    return Err(nonsense("The EHR answered with an HTML page where FHIR was asked."));
                }
            }
        }
        Ok(format)
    }

    async fn inspected(
        &self,
        head: Parts,
        mut body: Upstream,
        first: Bytes,
        verdicts: Verdicts,
        expect: Expect,
    ) -> Result<Response<Body>> {
        let broken = |fault| match fault {
            // As for a small one: that it is there is not to be told.
            Fault::TooLarge if expect.check.is_blind() => not_found().because(fault),
            _ => nonsense("The EHR's answer is not complete FHIR JSON, or too large to be judged.").because(fault),
        };
        let mut inspector = Box::new(Inspector::new(verdicts));
        let mut passed = Vec::new();
        let mut chunk = Some(first);
        // A Bundle shows itself by its first bytes that pass; anything else is judged whole.
        while let Some(bytes) = chunk {
            inspector.push(&bytes, &mut passed).map_err(broken)?;
            if !passed.is_empty() {
                break;
            }
            chunk = next_chunk(&mut body).await?;
        }
        let mut response = self.respond(&head, true, Some(FHIR_JSON_UTF8));
        if passed.is_empty() {
            match inspector.finish(&mut passed).map_err(broken)? {
                Ending::Withheld if expect.is_write => return Ok(self.bodyless(&head)),
                Ending::Withheld => return Err(not_found()),
                Ending::Passed | Ending::Bundle { .. } => {}
            }
            let bytes = rewrite_all(&self.bases.down, Format::Json, &passed.into());
            if !expect.head_only {
                *response.body_mut() = Body::full(bytes);
            }
        } else if !expect.head_only {
            let mut rewriter = Box::new(self.rewriter(Format::Json, expect.links));
            let passed = rewriter.push_bytes(&passed.into());
            *response.body_mut() = self.relay(None, passed, body, Pipe::Inspect(inspector, rewriter));
        }
        Ok(response)
    }

    fn relay(&self, ahead: Option<Bytes>, passed: Bytes, source: Upstream, pipe: Pipe) -> Body {
        let (request_id, site) = (self.request_id.to_owned(), self.site.id.clone());
        Body::relay(Relay { ahead, passed, source: Some(source), pipe, request_id, site })
    }

    pub(super) fn rewriter(&self, format: Format, links: Option<(JudgedSearch, PageFacts)>) -> Rewriter {
        let rewriter = Rewriter::new(&self.bases.down, format);
        match links {
            Some((judged, facts)) => rewriter.with_links(self.binder(judged, facts)),
            None => rewriter,
        }
    }

    fn binder(&self, judged: JudgedSearch, facts: PageFacts) -> LinkHook {
        let (pages, grant, bases) = (self.proxy.pages.clone(), self.session.grant, self.bases.down.clone());
        let mut binder = LinkBinder::new(judged, move |url: &str| pages.bind(grant, &facts, url));
        Box::new(move |url| binder.link(url, &bases))
    }

    fn bodyless(&self, head: &Parts) -> Response<Body> {
        self.respond(head, false, content_type(head).filter(|_| head.status != StatusCode::NO_CONTENT))
    }

    fn respond(&self, head: &Parts, altered: bool, content_type: Option<HeaderValue>) -> Response<Body> {
        let mut response = Response::new(Body::default());
        *response.status_mut() = head.status;
        *response.headers_mut() = down(&head.headers, &self.bases.down, altered);
        if let Some(value) = content_type {
            response.headers_mut().insert(header::CONTENT_TYPE, value);
        }
        response
    }

    /// Only within the EHR's base, and never followed with a token.
    fn redirect(&self, head: &Parts) -> Result<Response<Body>> {
        let location = text(&head.headers, header::LOCATION).unwrap_or_default();
        let moves = matches!(head.status.as_u16(), 301 | 302 | 303 | 307 | 308);
        if moves && self.bases.down.holds(location) {
            return Ok(self.respond(head, false, None));
        }
        Err(nonsense("The EHR redirects to an address outside its FHIR base: it was not followed."))
    }

    // ---- errors ------------------------------------------------------------------------------------------

    /// The error in an answer whose status is one.
    pub(super) async fn read_error(
        &self,
        head: &Parts,
        body: &mut Upstream,
        may_be_html: bool,
    ) -> Result<NormalisedError> {
        let mut begun = BytesMut::new();
        while begun.len() < ERROR_BODY {
            match next_chunk(body).await {
                Ok(Some(chunk)) => begun.extend_from_slice(&chunk),
                // An error that breaks off is an error still.
                Ok(None) | Err(_) => break,
            }
        }
        let answer = FhirAnswer {
            status: head.status.as_u16(),
            content_type: text(&head.headers, header::CONTENT_TYPE),
            www_authenticate: text(&head.headers, header::WWW_AUTHENTICATE),
            body: &begun,
            may_be_html,
        };
        let mut error = fhir_error(self.site.adapter, &answer)
            .ok_or_else(|| nonsense("The EHR's answer has a status that is none of HTTP's."))?;
        if error.status == 401 {
            // Custody has had its say: the grant lives, and the app must not take it for ended.
            error.tell(403, "forbidden", "The EHR does not accept this grant's token for this request");
        }
        Ok(error)
    }

    /// Puts an EHR's error to the app.
    pub(super) fn tell(&self, error: &NormalisedError, head: &Parts, expect: &Expect) -> Result<Response<Body>> {
        let may_know = error.break_the_glass && expect.is_own_patient;
        if expect.check.is_blind() && matches!(error.status, 403 | 404 | 410) && !may_know {
            // As a resource that is there and not the grant's.
            return Err(not_found());
        }
        let wait = self.retry_after(&head.headers, error.status);
        Ok(outcome::response(error, self.scrub(), self.request_id, wait))
    }

    fn retry_after(&self, headers: &HeaderMap, status: u16) -> Option<Duration> {
        let named = retry_after(headers, self.proxy.clock.civil());
        match status {
            429 => Some(named.unwrap_or(THROTTLED)),
            503 => Some(named.unwrap_or(UNAVAILABLE)),
            _ => None,
        }
    }

    pub(super) fn scrub(&self) -> Scrub<'_> {
        Scrub { bases: &self.bases.down, hosts: &self.bases.hosts }
    }
}

pub(super) fn nonsense(text: &str) -> Error {
    Error::new(Kind::BadGateway, Side::Ehr, text)
}

/// FHIR's media type as R4 writes it. A charset that is not UTF-8 stays: the bytes stay too.
fn fhir_type(head: &Parts, format: Format, is_operation: bool) -> Option<HeaderValue> {
    let given = content_type(head);
    let named = given.as_ref().and_then(|value| value.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
    let foreign = named.split_once("charset=").is_some_and(|(_, charset)| {
        let charset = charset.trim_matches('"');
        !charset.starts_with("utf-8") && !charset.starts_with("utf8")
    });
    let is_fhir = named.contains("fhir") || !is_operation;
    if format == Format::Json && is_fhir && !foreign { Some(FHIR_JSON_UTF8) } else { given }
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn content_type(head: &Parts) -> Option<HeaderValue> {
    head.headers.get(header::CONTENT_TYPE).cloned()
}

/// The next bytes of a body; none at its end.
pub(super) async fn next_chunk(body: &mut Upstream) -> Result<Option<Bytes>> {
    while let Some(frame) = Pin::new(&mut *body).frame().await {
        let frame = frame.map_err(|error| nonsense("The EHR's answer broke off.").because(error))?;
        if let Ok(chunk) = frame.into_data()
            && !chunk.is_empty()
        {
            return Ok(Some(chunk));
        }
    }
    Ok(None)
}

/// A body whole.
///
/// # Errors
/// 502 if it breaks off, 422 if it is larger than `limit` bytes.
pub(super) async fn whole(mut body: Upstream, limit: usize) -> Result<Bytes> {
    let mut whole = BytesMut::new();
    while let Some(chunk) = next_chunk(&mut body).await? {
        if chunk.len() > limit.saturating_sub(whole.len()) {
            let text =
                "The EHR's answer is too large to be put together here: ask for less, by date, category or _count.";
            return Err(Error::new(Kind::Unprocessable, Side::Ehr, text));
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}
