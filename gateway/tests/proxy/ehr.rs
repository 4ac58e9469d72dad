//! An EHR in the process: plain HTTP on port 0, scripted; every call is kept.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http::{HeaderMap, Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;

/// A request as the EHR saw it.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: Method,
    /// Path and query, byte for byte.
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Call {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn bearer(&self) -> &str {
        self.header("authorization").and_then(|text| text.strip_prefix("Bearer ")).unwrap_or_default()
    }

    /// What follows the base.
    pub fn below(&self) -> &str {
        self.target.strip_prefix(PATH).unwrap_or(&self.target)
    }
}

/// The path of the EHR's FHIR base.
pub const PATH: &str = "/api/r4";

#[derive(Debug, thiserror::Error)]
#[error("cut")]
pub struct Cut;

pub type Chunks = std::pin::Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Cut>> + Send>>;

pub enum Reply {
    Answer(Response<Bytes>),
    /// Reads the request and closes the connection.
    Cut,
    /// Says 200, sends the beginning of a body and closes the connection.
    CutBody(&'static str),
    /// Reads the request and says nothing.
    Silence,
    /// JSON in chunks, without a length.
    Stream(Chunks),
}

impl Reply {
    pub fn with(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Self {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        Self::Answer(response.body(body.into()).unwrap())
    }

    pub fn fhir(status: u16, body: &Value) -> Self {
        Self::with(status, &[("content-type", "application/fhir+json")], body.to_string())
    }

    pub fn html(status: u16) -> Self {
        let page = "<!DOCTYPE html><html><body>Runtime Error</body></html>";
        Self::with(status, &[("content-type", "text/html")], page)
    }

    pub fn status(status: u16) -> Self {
        Self::with(status, &[], "")
    }

    /// With one more header.
    pub fn and(self, name: &'static str, value: &str) -> Self {
        match self {
            Self::Answer(mut response) => {
                response.headers_mut().append(name, value.parse().unwrap());
                Self::Answer(response)
            }
            other => other,
        }
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, Cut>>;

async fn play(reply: Reply) -> Result<Answer, Cut> {
    match reply {
        Reply::Answer(response) => {
            Ok(response.map(|body| Full::new(body).map_err(|never| match never {}).boxed_unsync()))
        }
        Reply::Cut => Err(Cut),
        Reply::Silence => std::future::pending().await,
        Reply::CutBody(text) => {
            let begun = stream::iter([Ok(Frame::data(Bytes::from_static(text.as_bytes())))]);
            // What is there is sent when the body has nothing more to give at once.
            let cut = stream::once(async {
                tokio::task::yield_now().await;
                Err(Cut)
            });
            streamed(Box::pin(begun.chain(cut)))
        }
        Reply::Stream(chunks) => streamed(chunks),
    }
}

fn streamed(chunks: Chunks) -> Result<Answer, Cut> {
    let mut response = Response::new(StreamBody::new(chunks).boxed_unsync());
    response.headers_mut().insert("content-type", "application/fhir+json".parse().unwrap());
    Ok(response)
}

type Script = dyn Fn(&Call) -> Reply + Send + Sync;

#[derive(Clone)]
pub struct Ehr {
    pub origin: String,
    pub seen: Arc<Mutex<Vec<Call>>>,
}

impl Ehr {
    pub async fn start(script: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let ehr = Self { origin, seen: Arc::default() };
        tokio::spawn(ehr.clone().serve(listener, Arc::new(script)));
        ehr
    }

    /// Given its own base, since answers name it.
    pub async fn naming_itself(script: impl Fn(&str, &Call) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let ehr = Self { origin, seen: Arc::default() };
        let base = ehr.base();
        tokio::spawn(ehr.clone().serve(listener, Arc::new(move |call: &Call| script(&base, call))));
        ehr
    }

    async fn serve(self, listener: TcpListener, script: Arc<Script>) {
        while let Ok((socket, _)) = listener.accept().await {
            let (calls, script) = (self.seen.clone(), script.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let (calls, script) = (calls.clone(), script.clone());
                    async move {
                        let (head, body) = request.into_parts();
                        let target = head.uri.path_and_query().unwrap().to_string();
                        let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
                        let call = Call { method: head.method, target, headers: head.headers, body };
                        let reply = script(&call);
                        calls.lock().unwrap().push(call);
                        play(reply).await
                    }
                });
                // A cut is an error on purpose.
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
            });
        }
    }

    pub fn base(&self) -> String {
        format!("{}{PATH}", self.origin)
    }

    pub fn calls(&self) -> Vec<Call> {
        self.seen.lock().unwrap().clone()
    }

    pub fn targets(&self) -> Vec<String> {
        self.calls().iter().map(|call| call.below().to_owned()).collect()
    }
}
