//! From a URL to a socket: the guard, the resolver, a CONNECT proxy, TLS, and one deadline over all.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{
    client::{
        legacy::connect::{
            HttpConnector,
            dns::{GaiResolver, Name},
            proxy::Tunnel,
        },
        proxy::matcher::Matcher,
    },
    rt::TokioIo,
};
use tokio::net::TcpStream;
use tower::{Service, ServiceExt as _};

use super::guard::{Guard, RefusedAddress};

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Dialling<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// TCP keepalive: load balancers forget a silent connection after minutes (AWS: 350 s).
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Resolves a name by the system and lets through what the guard permits, so that what is judged is
/// what is dialled: a second lookup could answer otherwise (DNS rebinding).
#[derive(Clone)]
pub(super) struct Resolver {
    guard: Guard,
    names: GaiResolver,
}

impl Resolver {
    pub(super) fn new(guard: Guard) -> Self {
        Self { guard, names: GaiResolver::new() }
    }
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = BoxError;
    type Future = Dialling<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (guard, names) = (self.guard, self.names.clone());
        Box::pin(async move {
            let found: Vec<SocketAddr> = if is_localhost(name.as_str()) {
                vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))]
            } else {
                names.oneshot(name).await?.collect()
            };
            permitted(guard, found)
        })
    }
}

/// RFC 6761 §6.3: names below `localhost` are loopback, whatever a resolver says. The sandbox gives
/// each of its parts such a name.
fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let last = name.rsplit('.').next().unwrap_or_default();
    last.eq_ignore_ascii_case("localhost")
}

fn permitted(guard: Guard, found: Vec<SocketAddr>) -> Result<std::vec::IntoIter<SocketAddr>, BoxError> {
    let first = found.first().copied();
    let kept: Vec<_> = found.into_iter().filter(|at| guard.permits(at.ip())).collect();
    match first {
        Some(at) if kept.is_empty() => Err(RefusedAddress(at.ip()).into()),
        _ => Ok(kept.into_iter()),
    }
}

/// TCP to the destination, or through the operator's proxy.
#[derive(Clone)]
pub(super) struct Dial {
    guard: Guard,
    direct: HttpConnector<Resolver>,
    /// The proxy itself is the operator's and is not judged.
    to_proxy: HttpConnector,
    proxies: Option<Arc<Matcher>>,
}

impl Dial {
    fn new(guard: Guard, proxies: Option<Arc<Matcher>>) -> Self {
        let mut direct = HttpConnector::new_with_resolver(Resolver::new(guard));
        direct.enforce_http(false);
        direct.set_nodelay(true);
        direct.set_keepalive(Some(KEEPALIVE));
        let mut to_proxy = HttpConnector::new();
        to_proxy.enforce_http(false);
        to_proxy.set_nodelay(true);
        to_proxy.set_keepalive(Some(KEEPALIVE));
        Self { guard, direct, to_proxy, proxies }
    }
}

impl Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Dialling<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        // `HttpConnector` does not ask its resolver for a literal.
        let host = to.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = host.parse::<IpAddr>()
            && let Err(refused) = self.guard.judge(ip)
        {
            return Box::pin(async move { Err(refused.into()) });
        }
        let direct = self.direct.clone();
        let tunnelled = to.scheme_str() == Some("https");
        match self.proxies.as_ref().filter(|_| tunnelled).and_then(|proxies| proxies.intercept(&to)) {
            None => Box::pin(async move { Ok(direct.oneshot(to).await?) }),
            Some(proxy) if proxy.uri().scheme_str() == Some("http") => {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), self.to_proxy.clone());
                if let Some(auth) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(auth.clone());
                }
                Box::pin(async move { Ok(tunnel.oneshot(to).await?) })
            }
            Some(_) => Box::pin(async move {
                Err(io::Error::new(io::ErrorKind::Unsupported, "the proxy in the environment is no http:// URL").into())
            }),
        }
    }
}

pub(super) type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;

/// The whole way to a usable connection: DNS, proxy, TCP and TLS within one deadline. `HttpConnector`'s
/// own connect timeout ends with TCP.
#[derive(Clone)]
pub(super) struct Connector {
    https: HttpsConnector<Dial>,
    within: Duration,
}

impl Connector {
    pub(super) fn new(
        tls: rustls::ClientConfig,
        guard: Guard,
        proxies: Option<Arc<Matcher>>,
        within: Duration,
    ) -> Self {
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(Dial::new(guard, proxies));
        Self { https, within }
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Dialling<Stream>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let (https, within) = (self.https.clone(), self.within);
        Box::pin(async move {
            tokio::time::timeout(within, https.oneshot(to))
                .await
                .map_err(|_| BoxError::from(io::Error::from(io::ErrorKind::TimedOut)))?
        })
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use super::*;

    #[test]
    fn names_below_localhost_are_loopback() {
        for name in ["localhost", "epic.localhost", "EPIC.LOCALHOST.", "a.b.localhost"] {
            assert!(is_localhost(name), "{name}");
        }
        for name in ["localhost.example.org", "notlocalhost", "localhost.com", ""] {
            assert!(!is_localhost(name), "{name}");
        }
    }

    #[tokio::test]
    async fn a_name_is_refused_by_the_address_it_stands_for() {
        let name = || Name::from_str("epic.localhost").unwrap();
        let refused = Resolver::new(Guard::PublicOnly).oneshot(name()).await.unwrap_err();
        assert_eq!(refused.downcast_ref::<RefusedAddress>().unwrap().0, IpAddr::from(Ipv4Addr::LOCALHOST));
        let found: Vec<_> = Resolver::new(Guard::PrivateToo).oneshot(name()).await.unwrap().collect();
        assert_eq!(found, [SocketAddr::from(([127, 0, 0, 1], 0))]);
    }

    #[test]
    fn of_several_addresses_the_permitted_ones_are_dialled() {
        let found = || vec!["10.0.0.1:0".parse().unwrap(), "8.8.8.8:0".parse().unwrap()];
        assert_eq!(permitted(Guard::PublicOnly, found()).unwrap().count(), 1);
        assert_eq!(permitted(Guard::PrivateToo, found()).unwrap().count(), 2);
        assert_eq!(permitted(Guard::PublicOnly, Vec::new()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn literals_are_judged_before_they_are_dialled() {
        for literal in ["http://127.0.0.1:1/", "http://[::1]:1/", "http://[::ffff:127.0.0.1]:1/"] {
            let refused = Dial::new(Guard::PublicOnly, None).oneshot(Uri::from_static(literal)).await.unwrap_err();
            assert!(refused.is::<RefusedAddress>(), "{literal}: {refused}");
        }
    }
}
