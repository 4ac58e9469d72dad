//! What a site's TLS rests on: the system's roots, the site's own CA, our client certificate.

use std::{path::Path, sync::Arc};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use crate::{config::SiteTls, secret::Secret};

/// A TLS file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct TlsFault {
    pub path: String,
    pub reason: String,
}

impl TlsFault {
    fn new(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self { path: path.display().to_string(), reason: reason.to_string() }
    }
}

/// Roots to trust for every site.
#[derive(Clone)]
pub struct Roots(Arc<RootCertStore>);

impl Roots {
    /// The system's, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
    pub fn native() -> Self {
        let found = rustls_native_certs::load_native_certs();
        let mut store = RootCertStore::empty();
        let (taken, ignored) = store.add_parsable_certificates(found.certs);
        if taken == 0 {
            tracing::warn!(
                ignored,
                problems = found.errors.len(),
                "no root certificate was found on this system: only sites with a CA of their own can be reached"
            );
        }
        Self(Arc::new(store))
    }

    /// None: only a site's own CA counts.
    pub fn none() -> Self {
        Self(Arc::new(RootCertStore::empty()))
    }
}

/// A site's TLS files as they are now. Two sites with equal files share sockets, and a renewed
/// certificate makes new ones.
pub(super) struct TlsFiles {
    ca: Option<(std::path::PathBuf, Vec<u8>)>,
    client: Option<Client>,
}

struct Client {
    cert: (std::path::PathBuf, Vec<u8>),
    key: (std::path::PathBuf, Secret<Vec<u8>>),
}

impl TlsFiles {
    pub(super) fn read(tls: &SiteTls) -> Result<Self, TlsFault> {
        let read = |path: &Path| std::fs::read(path).map_err(|error| TlsFault::new(path, error));
        Ok(Self {
            ca: tls.ca.as_ref().map(|path| read(path).map(|pem| (path.clone(), pem))).transpose()?,
            client: match &tls.client {
                None => None,
                Some((cert, key)) => {
                    Some(Client { cert: (cert.clone(), read(cert)?), key: (key.clone(), Secret::new(read(key)?)) })
                }
            },
        })
    }

    /// SHA-256 over the files, each with its length before it.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        let client = self.client.as_ref();
        let parts: [Option<&[u8]>; 3] = [
            self.ca.as_ref().map(|(_, pem)| pem.as_slice()),
            client.map(|client| client.cert.1.as_slice()),
            client.map(|client| client.key.1.expose().as_slice()),
        ];
        for part in parts {
            context.update(&part.map_or(u64::MAX, |part| part.len() as u64).to_be_bytes());
            context.update(part.unwrap_or_default());
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        digest
    }

    /// TLS 1.2 and 1.3 by aws-lc; sessions are resumed, since all clients made of it share its cache.
    pub(super) fn config(&self, roots: &Roots) -> Result<ClientConfig, TlsFault> {
        let roots = match &self.ca {
            None => roots.0.clone(),
            Some((path, pem)) => {
                let mut store = RootCertStore::clone(&roots.0);
                let mut added = 0_usize;
                for cert in CertificateDer::pem_slice_iter(pem) {
                    let cert = cert.map_err(|error| TlsFault::new(path, error))?;
                    store.add(cert).map_err(|error| TlsFault::new(path, error))?;
                    added += 1;
                }
                if added == 0 {
                    return Err(TlsFault::new(
                        path,
                        "no CERTIFICATE in it: expected a PEM file with root certificates",
                    ));
                }
                Arc::new(store)
            }
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsFault { path: "TLS".into(), reason: error.to_string() })?
            .with_root_certificates(roots);
        let Some(client) = &self.client else { return Ok(builder.with_no_client_auth()) };
        let (path, pem) = &client.cert;
        let chain = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| TlsFault::new(path, error))?;
        let (path, pem) = &client.key;
        let key = PrivateKeyDer::from_pem_slice(pem.expose()).map_err(|error| TlsFault::new(path, error))?;
        builder.with_client_auth_cert(chain, key).map_err(|error| TlsFault::new(path, error))
    }
}
