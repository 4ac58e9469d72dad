//! Bodies to and from an EHR: enums and structs, no boxed traits, since every FHIR request passes here.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::gate::Permit;

/// What is sent.
#[derive(Debug, Default)]
pub enum Outgoing {
    #[default]
    Empty,
    /// Sent with its length.
    Full(Bytes),
    /// An app's body, passed on as it comes.
    Stream(Incoming),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Stream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(body) => body.size_hint(),
        }
    }
}

/// When the last chunk of a streamed request went by: the wait for the answer's head begins there.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    start: Instant,
    millis: Arc<AtomicU64>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), millis: Arc::default() }
    }

    fn mark(&self) {
        let millis = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }

    pub(super) fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.millis.load(Ordering::Relaxed))
    }
}

/// A body on its way, with its progress noted where it streams.
pub(super) struct Sending {
    pub(super) body: Outgoing,
    pub(super) progress: Option<Progress>,
}

impl Body for Sending {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(progress) = &self.progress {
            progress.mark();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Why an answer's body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the EHR sent nothing for {0:?} in the middle of its answer")]
    Idle(Duration),
    #[error("the EHR's answer broke off")]
    Broken(#[source] hyper::Error),
}

/// An answer's body: silence between two chunks ends it, and it holds the site's permit until its end.
pub struct Guarded {
    body: Incoming,
    idle: Duration,
    /// Made when the body first has nothing to give, so that a body that is there costs no timer.
    silence: Option<Pin<Box<Sleep>>>,
    permit: Option<Permit>,
}

impl Guarded {
    pub(super) fn new(body: Incoming, idle: Duration, permit: Permit) -> Self {
        let permit = (!body.is_end_stream()).then_some(permit);
        Self { body, idle, silence: None, permit }
    }
}

impl Body for Guarded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                this.silence = None;
                if !matches!(frame, Some(Ok(_))) || this.body.is_end_stream() {
                    this.permit = None;
                }
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Broken)))
            }
            Poll::Pending => {
                let idle = this.idle;
                let silence = this.silence.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
                ready!(silence.as_mut().poll(cx));
                this.permit = None;
                Poll::Ready(Some(Err(BodyError::Idle(idle))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Why a body could not be had whole.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    #[error("the answer is larger than {limit} bytes")]
    TooLarge { limit: usize },
    #[error(transparent)]
    Body(#[from] BodyError),
}

/// The body whole, of at most `limit` bytes. Trailers are dropped.
pub async fn collect(mut body: Guarded, limit: usize) -> Result<Bytes, CollectError> {
    use http_body_util::BodyExt as _;

    let too_large = CollectError::TooLarge { limit };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large);
    }
    let mut whole = bytes::BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(chunk) = frame?.into_data() {
            if chunk.len() > limit.saturating_sub(whole.len()) {
                return Err(too_large);
            }
            whole.extend_from_slice(&chunk);
        }
    }
    Ok(whole.freeze())
}
