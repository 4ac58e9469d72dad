//! The EHR's own outgoing calls: an app's key set.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Request, header::ACCEPT};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::Value;

/// What a real EHR would not read beyond.
const MAX_KEY_SET: usize = 256 << 10;
const TIMEOUT: Duration = Duration::from_secs(10);

pub struct Fetcher(Client<HttpsConnector<HttpConnector>, Empty<Bytes>>);

impl Fetcher {
    /// `ca`: PEM; the only authorities that are trusted. Without one only `http` addresses can be read.
    pub fn new(ca: Option<&[u8]>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca.unwrap_or_default()) {
            roots.add(certificate.context("the CA file is no PEM")?)?;
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        Ok(Self(Client::builder(TokioExecutor::new()).build(https)))
    }

    pub async fn key_set(&self, url: &str) -> Result<Value> {
        let request = Request::get(url).header(ACCEPT, "application/json").body(Empty::new())?;
        let read = async {
            let answer = self.0.request(request).await?;
            ensure!(answer.status().is_success(), "answered {}", answer.status());
            let body = Limited::new(answer.into_body(), MAX_KEY_SET).collect().await;
            let body = body.map_err(|fault| anyhow::anyhow!("{fault}"))?.to_bytes();
            serde_json::from_slice(&body).context("is no JSON")
        };
        tokio::time::timeout(TIMEOUT, read).await.context("took longer than 10 s")?
    }
}
