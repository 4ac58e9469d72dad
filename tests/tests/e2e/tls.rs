//! TLS towards apps: 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN, sessions resumed, and nothing in clear.

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mantel_tests::{
    harness::{binary, get},
    ports::free_port,
};
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion, RootCertStore};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

struct Secured {
    port: u16,
    roots: Arc<RootCertStore>,
    child: Child,
    _dir: TempDir,
}

impl Drop for Secured {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn secured() -> Secured {
    let dir = tempfile::tempdir().unwrap();
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certified.cert.der().clone()).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("tls.crt", &certified.cert.pem());
    write("tls.key", &certified.signing_key.serialize_pem());
    std::fs::write(dir.path().join("seal"), std::array::from_fn::<u8, 32, _>(|n| n as u8)).unwrap();
    let (port, admin) = (free_port().unwrap(), free_port().unwrap());
    write(
        "mantel.toml",
        &format!(
            r#"[server]
public_url = "https://localhost:{port}"
listen = "127.0.0.1:{port}"
admin_listen = "127.0.0.1:{admin}"
tls = {{ cert = {{ file = "tls.crt" }}, key = {{ file = "tls.key" }} }}

[store]
url = "sqlite://mantel.db"
seal = [{{ id = "test", file = "seal" }}]
"#
        ),
    );
    let child = Command::new(binary().unwrap())
        .args(["serve", "--config"])
        .arg(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let secured = Secured { port, roots: Arc::new(roots), child, _dir: dir };
    for _ in 0..400 {
        if get(&format!("http://127.0.0.1:{admin}/health/ready"), &[]).await.is_ok_and(|answer| answer.status == 200) {
            return secured;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    panic!("the gateway was not ready in 10 s");
}

impl Secured {
    fn config(&self, versions: &[&'static rustls::SupportedProtocolVersion], alpn: &[&str]) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    async fn connect(&self, config: &Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
        let socket = TcpStream::connect(("127.0.0.1", self.port)).await?;
        TlsConnector::from(config.clone()).connect("localhost".try_into().unwrap(), socket).await
    }
}

/// One request over a connection, whole, so that session tickets are read.
async fn ask(stream: TlsStream<TcpStream>) -> (http::Version, Vec<u8>) {
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let io = TokioIo::new(stream);
    let request = |uri: &str| http::Request::get(uri).header("host", "localhost").body(Empty::<Bytes>::new()).unwrap();
    const PATH: &str = "/fhir/r4/.well-known/smart-configuration";
    let answer = if h2 {
        let (mut client, conn) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(conn);
        client.send_request(request(&format!("https://localhost{PATH}"))).await.unwrap()
    } else {
        let (mut client, conn) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(conn);
        client.send_request(request(PATH)).await.unwrap()
    };
    assert_eq!(answer.status(), 200);
    let version = answer.version();
    (version, answer.into_body().collect().await.unwrap().to_bytes().to_vec())
}

#[tokio::test]
async fn versions_protocols_and_resumption() {
    let gateway = secured().await;
    let (tls12, tls13) = (&rustls::version::TLS12, &rustls::version::TLS13);
    for (versions, expected) in [(&[tls12][..], ProtocolVersion::TLSv1_2), (&[tls13][..], ProtocolVersion::TLSv1_3)] {
        for (alpn, version) in
            [(&["h2", "http/1.1"][..], http::Version::HTTP_2), (&["http/1.1"][..], http::Version::HTTP_11)]
        {
            let config = gateway.config(versions, alpn);
            let first = gateway.connect(&config).await.unwrap();
            assert_eq!(first.get_ref().1.protocol_version(), Some(expected));
            let (spoken, body) = ask(first).await;
            assert_eq!(spoken, version);
            // Metadata come from the configured public URL, never from `Host`.
            let document: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let endpoint = format!("https://localhost:{}/oauth/token", gateway.port);
            assert_eq!(document["token_endpoint"], endpoint);
            let second = gateway.connect(&config).await.unwrap();
            assert_eq!(second.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed), "{expected:?} {alpn:?}");
        }
    }
}

#[tokio::test]
async fn clear_text_gets_no_answer() {
    let gateway = secured().await;
    let clear = get(&format!("http://127.0.0.1:{}/fhir/r4/metadata", gateway.port), &[]).await;
    assert!(clear.is_err(), "{clear:?}");
}
