//! TLS towards apps: 1.2 and 1.3 only, HTTP/2 and HTTP/1.1 by ALPN.

use std::{path::Path, sync::Arc};

use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

/// Reads a certificate chain and its key.
///
/// # Errors
/// If a file cannot be read, holds no certificate or key, or the two do not fit.
pub fn server_config(cert: &Path, key: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    use anyhow::Context as _;
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("server.tls.cert: {} holds no PEM certificates", cert.display()))?;
    anyhow::ensure!(!chain.is_empty(), "server.tls.cert: {} holds no PEM certificates", cert.display());
    let key_der = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("server.tls.key: {} holds no PEM private key", key.display()))?;
    let mut config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .with_no_client_auth()
        .with_single_cert(chain, key_der)
        .context("server.tls: certificate and key do not fit")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
