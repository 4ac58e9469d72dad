//! An EHR in the process: real TLS on port 0, scripted, every call kept.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use mantel_adapters::profile::Profile;
use rustls::{HandshakeKind, server::WebPkiClientVerifier};
use rustls_pki_types::PrivateKeyDer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use url::Url;

use crate::{
    config::{Inspect, Site, SiteTls, Timeouts},
    upstream::{ClientContext, Gates, Identities, Outgoing, Roots, SiteLink, UpstreamClient, Waits},
};

/// What hyper is told so that it closes the connection.
#[derive(Debug, thiserror::Error)]
#[error("cut")]
pub(super) struct Cut;

pub(super) const NAME: &str = "ehr.localhost";

/// A request as the EHR saw it.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Call {
    pub(super) fn form(&self) -> Vec<(String, String)> {
        form_urlencoded::parse(&self.body).into_owned().collect()
    }

    pub(super) fn field(&self, name: &str) -> Option<String> {
        self.form().into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// What the EHR does with a call.
pub(super) enum Reply {
    Answer(Response<Bytes>),
    /// Reads the request and closes the connection.
    Cut,
    /// Says 200, sends the beginning of a body and closes the connection.
    CutBody(&'static str),
    /// Says 200, sends the beginning of a body and then nothing.
    Stall(&'static str),
    /// A body that is sent in chunks, without a length.
    Chunks(usize, Bytes),
    /// Says 200, and each part of a body after a while.
    Slow(Duration, &'static [&'static str]),
    /// Reads the request and says nothing.
    Silence,
}

impl Reply {
    pub(super) fn json(status: u16, body: &serde_json::Value) -> Self {
        Self::with(status, &[("content-type", "application/json")], body.to_string())
    }

    pub(super) fn with(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Self {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        Self::Answer(response.body(body.into()).unwrap())
    }

    pub(super) fn status(status: u16) -> Self {
        Self::with(status, &[], "")
    }

    pub(super) fn redirect(to: &str) -> Self {
        Self::with(302, &[("location", to)], "")
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, Cut>>;

async fn play(reply: Reply) -> Result<Answer, Cut> {
    let frames = |chunks: Vec<Result<Bytes, Cut>>| stream::iter(chunks).map(|chunk| chunk.map(Frame::data));
    match reply {
        Reply::Answer(response) => {
            Ok(response.map(|body| Full::new(body).map_err(|never| match never {}).boxed_unsync()))
        }
        Reply::Cut => Err(Cut),
        Reply::Silence => std::future::pending().await,
        Reply::CutBody(text) => {
            // What is there is sent when the body has nothing more to give at once.
            let cut = stream::once(async {
                tokio::task::yield_now().await;
                Err(Cut)
            });
            let broken = frames(vec![Ok(Bytes::from_static(text.as_bytes()))]).chain(cut);
            Ok(Response::new(StreamBody::new(broken).boxed_unsync()))
        }
        Reply::Stall(text) => {
            let stalled = frames(vec![Ok(Bytes::from_static(text.as_bytes()))]).chain(stream::pending());
            Ok(Response::new(StreamBody::new(stalled).boxed_unsync()))
        }
        Reply::Slow(pause, parts) => {
            let parts = stream::iter(parts).then(move |part| async move {
                tokio::time::sleep(pause).await;
                Ok(Frame::data(Bytes::from_static(part.as_bytes())))
            });
            Ok(Response::new(StreamBody::new(parts.chain(stream::pending())).boxed_unsync()))
        }
        Reply::Chunks(count, chunk) => {
            let chunks = stream::iter(0..count).map(move |_| Ok(Frame::data(chunk.clone())));
            Ok(Response::new(StreamBody::new(chunks).boxed_unsync()))
        }
    }
}

/// How the EHR's TLS is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    Http1,
    Http2,
    /// HTTP/1.1, and TLS wants a certificate of ours.
    MutualTls,
    /// No TLS.
    Clear,
}

/// The simulated EHR.
#[derive(Clone)]
pub(super) struct Ehr {
    pub(super) at: SocketAddr,
    scheme: &'static str,
    connections: Arc<AtomicUsize>,
    resumed: Arc<AtomicUsize>,
    calls: Arc<Mutex<Vec<Call>>>,
    files: Arc<Files>,
}

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

struct Pki {
    files: Files,
    server: rustls::ServerConfig,
}

fn pki(speaks: Speaks) -> Pki {
    let files = Files { folder: tempfile::tempdir().unwrap() };
    let server = rcgen::generate_simple_self_signed([NAME.to_owned(), "localhost".to_owned()]).unwrap();
    let client = rcgen::generate_simple_self_signed(["mantel".to_owned()]).unwrap();
    std::fs::write(files.path("ca.pem"), server.cert.pem()).unwrap();
    std::fs::write(files.path("client.pem"), client.cert.pem()).unwrap();
    std::fs::write(files.path("client.key"), client.signing_key.serialize_pem()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        rustls::ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = if speaks == Speaks::MutualTls {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(client.cert.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let key = PrivateKeyDer::try_from(server.signing_key.serialize_der()).unwrap();
    let mut config = builder.with_single_cert(vec![server.cert.der().clone()], key).unwrap();
    config.alpn_protocols = if speaks == Speaks::Http2 { vec![b"h2".to_vec()] } else { vec![b"http/1.1".to_vec()] };
    Pki { files, server: config }
}

impl Ehr {
    pub(super) async fn start(reply: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        Self::speaking(Speaks::Http1, reply).await
    }

    pub(super) async fn speaking(speaks: Speaks, reply: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        let Pki { files, server } = pki(speaks);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ehr = Self {
            at: listener.local_addr().unwrap(),
            scheme: if speaks == Speaks::Clear { "http" } else { "https" },
            connections: Arc::default(),
            resumed: Arc::default(),
            calls: Arc::default(),
            files: Arc::new(files),
        };
        let tls = (speaks != Speaks::Clear).then(|| tokio_rustls::TlsAcceptor::from(Arc::new(server)));
        tokio::spawn(ehr.clone().serve(listener, tls, Arc::new(reply)));
        ehr
    }

    async fn serve(
        self,
        listener: TcpListener,
        tls: Option<tokio_rustls::TlsAcceptor>,
        reply: Arc<dyn Fn(&Call) -> Reply + Send + Sync>,
    ) {
        while let Ok((tcp, _)) = listener.accept().await {
            self.connections.fetch_add(1, Ordering::SeqCst);
            let (ehr, tls, reply) = (self.clone(), tls.clone(), reply.clone());
            tokio::spawn(async move {
                let calls = ehr.calls.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let (calls, reply) = (calls.clone(), reply.clone());
                    async move {
                        let (head, body) = request.into_parts();
                        let path = head.uri.path_and_query().map(ToString::to_string).unwrap();
                        let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
                        let call = Call { method: head.method, path, headers: head.headers, body };
                        let reply = reply(&call);
                        calls.lock().unwrap().push(call);
                        play(reply).await
                    }
                });
                let server = auto::Builder::new(TokioExecutor::new());
                match tls {
                    None => drop(server.serve_connection(TokioIo::new(tcp), service).await),
                    Some(tls) => {
                        let Ok(tls) = tls.accept(tcp).await else { return };
                        if tls.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) {
                            ehr.resumed.fetch_add(1, Ordering::SeqCst);
                        }
                        drop(server.serve_connection(TokioIo::new(tls), service).await);
                    }
                }
            });
        }
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    pub(super) fn paths(&self) -> Vec<String> {
        self.calls().into_iter().map(|call| call.path).collect()
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(super) fn resumed(&self) -> usize {
        self.resumed.load(Ordering::SeqCst)
    }

    pub(super) fn origin(&self) -> String {
        format!("{}://{NAME}:{}", self.scheme, self.at.port())
    }

    pub(super) fn url(&self, path: &str) -> Url {
        Url::parse(&format!("{}{path}", self.origin())).unwrap()
    }

    /// Trusts the EHR.
    pub(super) fn tls(&self) -> SiteTls {
        SiteTls { ca: Some(self.files.path("ca.pem")), client: None }
    }

    /// Trusts the EHR and has a certificate that it takes.
    pub(super) fn mutual_tls(&self) -> SiteTls {
        SiteTls { client: Some((self.files.path("client.pem"), self.files.path("client.key"))), ..self.tls() }
    }

    pub(super) fn site(&self) -> Site {
        let fhir_base_text = format!("{}/fhir/r4", self.origin());
        Site {
            id: "general-hospital".parse().unwrap(),
            vendor: "generic".parse().unwrap(),
            profile: Arc::new(Profile::default()),
            adapter: mantel_adapters::registry::adapter("generic").unwrap(),
            name: "General Hospital".into(),
            fhir_base: Url::parse(&fhir_base_text).unwrap(),
            fhir_base_text,
            registrations: Vec::new(),
            iss_aliases: Vec::new(),
            link_bases: Vec::new(),
            persona: None,
            tenant: None,
            tags: std::collections::BTreeSet::new(),
            frame_origins: Vec::new(),
            tls: self.tls(),
            allow_private: true,
            inspect: Inspect::Auto,
            concurrency: 16,
        }
    }

    /// The site with another profile.
    pub(super) fn site_with(&self, change: impl FnOnce(&mut Profile)) -> Site {
        let mut profile = Profile::default();
        change(&mut profile);
        Site { profile: Arc::new(profile), ..self.site() }
    }

    pub(super) fn link(&self) -> SiteLink {
        link(self.site())
    }
}

pub(super) fn context(site: &Site) -> Arc<ClientContext> {
    Identities::new(Roots::none(), None, &Timeouts::default()).of(site).unwrap()
}

pub(super) fn link(site: Site) -> SiteLink {
    let client = UpstreamClient::new(&context(&site));
    let gate = Gates::default().of(&site, None);
    SiteLink { site: Arc::new(site), client, gate }
}

pub(super) fn get(url: &Url) -> Request<Outgoing> {
    Request::get(url.as_str()).body(Outgoing::Empty).unwrap()
}

pub(super) fn waits() -> Waits {
    Waits::fhir(&Timeouts::default())
}

/// A proxy that takes one `CONNECT`; what it was asked for comes first.
pub(super) async fn proxy(to: SocketAddr) -> (SocketAddr, tokio::sync::oneshot::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (asked, line) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(near.read_u8().await.unwrap());
        }
        asked.send(String::from_utf8(head).unwrap()).unwrap();
        near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let mut far = tokio::net::TcpStream::connect(to).await.unwrap();
        drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
    });
    (at, line)
}

/// A port on which nobody listens.
pub(super) async fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

pub(super) fn ok(_: &Call) -> Reply {
    Reply::Answer(Response::builder().status(StatusCode::OK).body(Bytes::from_static(b"{}")).unwrap())
}

/// Waits for what another task brings about; real time, but no guess at how long.
pub(super) async fn eventually(mut holds: impl AsyncFnMut() -> bool) {
    let held = async {
        while !holds().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), held).await.expect("it never came about");
}
