//! The body of an answer: an enum, so that the fast road has no boxed trait.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use mantel_adapters::{
    fhir::{
        inspect::{Inspector, Part, Verdict},
        rewrite::Rewriter,
    },
    site::SiteId,
};
use tower_http::decompression::DecompressionBody;

use crate::upstream::Guarded;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An answer's body.
#[derive(Default)]
pub struct Body(Inner);

#[derive(Default)]
enum Inner {
    #[default]
    Empty,
    Full(Bytes),
    /// What an EHR sends, while it comes.
    Relay(Box<Relay>),
    /// What comes from the layers around the authorization server.
    Boxed(UnsyncBoxBody<Bytes, BoxError>),
}

impl Body {
    pub fn full(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self(Inner::Empty) } else { Self(Inner::Full(bytes)) }
    }

    pub const fn boxed(body: UnsyncBoxBody<Bytes, BoxError>) -> Self {
        Self(Inner::Boxed(body))
    }

    pub(super) fn relay(relay: Relay) -> Self {
        Self(Inner::Relay(Box::new(relay)))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut self.get_mut().0;
        match this {
            Inner::Empty => Poll::Ready(None),
            Inner::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *this = Inner::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Inner::Relay(relay) => relay.poll(cx),
            Inner::Boxed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Empty => true,
            Inner::Full(_) => false,
            Inner::Relay(relay) => relay.is_over(),
            Inner::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Inner::Relay(relay) => relay.size_hint(),
            Inner::Boxed(body) => body.size_hint(),
        }
    }
}

/// An EHR's body, decompressed.
pub(super) type Upstream = DecompressionBody<Guarded>;

/// Decides on what an inspected body holds.
pub(super) type Verdicts = Box<dyn FnMut(&Part<'_>) -> Verdict + Send>;

/// What is done to a body while it passes.
pub(super) enum Pipe {
    Pass,
    Rewrite(Box<Rewriter>),
    /// Inspected first, since the judge reads the EHR's URLs.
    Inspect(Box<Inspector<Verdicts>>, Box<Rewriter>),
}

impl Pipe {
    fn push(&mut self, chunk: &Bytes) -> Result<Bytes, BoxError> {
        match self {
            Self::Pass => Ok(chunk.clone()),
            Self::Rewrite(rewriter) => rewritten(rewriter, chunk),
            Self::Inspect(inspector, rewriter) => {
                let mut passed = Vec::new();
                inspector.push(chunk, &mut passed)?;
                rewritten(rewriter, &passed.into())
            }
        }
    }

    fn finish(&mut self) -> Result<Bytes, BoxError> {
        match self {
            Self::Pass => Ok(Bytes::new()),
            Self::Rewrite(rewriter) => Ok(rewriter.finish_bytes()),
            Self::Inspect(inspector, rewriter) => {
                let mut passed = Vec::new();
                inspector.finish(&mut passed)?;
                let first = rewritten(rewriter, &passed.into())?;
                let rest = rewriter.finish_bytes();
                Ok(if first.is_empty() { rest } else { [first, rest].concat().into() })
            }
        }
    }
}

fn rewritten(rewriter: &mut Rewriter, chunk: &Bytes) -> Result<Bytes, BoxError> {
    let out = rewriter.push_bytes(chunk);
    match rewriter.refused() {
        Some(nonsense) => Err(nonsense.into()),
        None => Ok(out),
    }
}

/// An answer that passes while it comes. An error breaks the connection off, so that no app takes half
/// a body for a whole one.
pub(super) struct Relay {
    /// What has been read ahead and not passed through the pipe.
    pub(super) ahead: Option<Bytes>,
    /// What has passed through the pipe already.
    pub(super) passed: Bytes,
    /// None at its end.
    pub(super) source: Option<Upstream>,
    pub(super) pipe: Pipe,
    /// For the log, should it break off.
    pub(super) request_id: String,
    pub(super) site: SiteId,
}

impl Relay {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if !self.passed.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.passed)))));
        }
        loop {
            let Some(source) = &mut self.source else { return Poll::Ready(None) };
            let read = match self.ahead.take() {
                Some(chunk) => Some(Ok(chunk)),
                None => match ready!(Pin::new(source).poll_frame(cx)) {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(chunk) => Some(Ok(chunk)),
                        // Trailers name digests of what was sent before it was rewritten.
                        Err(_trailers) => continue,
                    },
                    Some(Err(error)) => Some(Err(error)),
                    None => None,
                },
            };
            let out = match read {
                Some(Ok(chunk)) => self.pipe.push(&chunk),
                Some(Err(error)) => Err(error),
                None => {
                    self.source = None;
                    self.pipe.finish()
                }
            };
            match out {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Err(error) => {
                    self.source = None;
                    tracing::warn!(request = self.request_id, site = %self.site, %error, "an answer was broken off");
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    fn is_over(&self) -> bool {
        self.source.is_none() && self.passed.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.pipe, &self.source) {
            (Pipe::Pass, Some(source)) => {
                let ahead = self.ahead.as_ref().map_or(0, |chunk| chunk.len() as u64);
                match source.size_hint().exact() {
                    Some(exact) => SizeHint::with_exact(exact.saturating_add(ahead)),
                    None => SizeHint::default(),
                }
            }
            _ => SizeHint::default(),
        }
    }
}
