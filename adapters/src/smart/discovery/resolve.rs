//! From what was discovered and configured to the endpoints that are used.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};
use url::Url;

use super::{CapabilityFacts, DiscoveryFault, SmartConfiguration, endpoint, folder};
use crate::{
    profile::{DiscoverySource, Profile},
    registry,
};

/// The endpoints of a site, as they are used and pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// May have a query: parameters are appended to it.
    pub authorize: Url,
    pub token: Url,
    /// The `aud` of our client assertions: the token endpoint as the EHR published it.
    pub token_audience: String,
    pub introspect: Option<Url>,
    pub revoke: Option<Url>,
    pub jwks: Option<Url>,
    pub end_session: Option<Url>,
    /// As the smart-configuration has it. Which issuer an id_token must have is
    /// [`crate::smart::claims::issuer_expected`]'s.
    pub issuer: Option<String>,
    /// The EHR announces `iss` in its authorization response: one without it is refused (RFC 9207 §2.4).
    pub iss_parameter: bool,
    /// The authorization request may be POSTed (capability `authorize-post`).
    pub authorize_post: bool,
    /// Which source named the authorization and token endpoints.
    pub from: DiscoverySource,
    /// What the operator or the profile named itself; never held.
    pub overridden: BTreeSet<EndpointName>,
}

impl Endpoints {
    /// Each endpoint that is there.
    pub fn named(&self) -> impl Iterator<Item = (EndpointName, &Url)> {
        [
            (EndpointName::Authorize, Some(&self.authorize)),
            (EndpointName::Token, Some(&self.token)),
            (EndpointName::Introspect, self.introspect.as_ref()),
            (EndpointName::Revoke, self.revoke.as_ref()),
            (EndpointName::Jwks, self.jwks.as_ref()),
            (EndpointName::EndSession, self.end_session.as_ref()),
        ]
        .into_iter()
        .filter_map(|(name, url)| url.map(|url| (name, url)))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointName {
    Authorize,
    Token,
    Introspect,
    Revoke,
    Jwks,
    EndSession,
}

impl EndpointName {
    /// The key of `endpoints` in the configuration.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Authorize => "authorize",
            Self::Token => "token",
            Self::Introspect => "introspect",
            Self::Revoke => "revoke",
            Self::Jwks => "jwks",
            Self::EndSession => "end_session",
        }
    }
}

impl fmt::Display for EndpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveFault {
    /// No source names it together with its partner: a code is never taken to another server's token endpoint.
    #[error("no {name} endpoint: tried {}; set `endpoints.{name}`", list(tried))]
    Missing { name: EndpointName, tried: Vec<DiscoverySource> },
    #[error("configured endpoint: {0}")]
    Configured(DiscoveryFault),
}

fn list(sources: &[DiscoverySource]) -> String {
    let names = sources.iter().map(|source| match source {
        DiscoverySource::SmartConfiguration => "smart-configuration",
        DiscoverySource::CapabilityStatement => "capability-statement",
        DiscoverySource::Configuration => "configuration",
    });
    names.collect::<Vec<_>>().join(", ")
}

/// An endpoint that must not be used before an operator has confirmed its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldEndpoint {
    pub name: EndpointName,
    pub host: String,
}

/// Chooses the endpoints: configured ones win; the authorization and token endpoints come from the
/// first source of `profile.discovery` that has both; the others from that source, else from the next.
///
/// # Errors
/// Where no source has the pair, or a configured endpoint cannot be used.
pub fn resolve(
    fhir_base: &Url,
    profile: &Profile,
    smart: Option<&SmartConfiguration>,
    capability: Option<&CapabilityFacts>,
) -> Result<Endpoints, ResolveFault> {
    let configured = Configured::read(fhir_base, profile)?;
    let mut sources = profile.discovery.iter().map(|source| Source::of(*source, smart, capability)).collect::<Vec<_>>();
    if configured.names_both() {
        sources.insert(0, Source::of(DiscoverySource::Configuration, None, None));
    }
    let pair = sources.iter().position(|source| {
        (configured.authorize.is_some() || source.authorize.is_some())
            && (configured.token.is_some() || source.token.is_some())
    });
    let missing = |name| ResolveFault::Missing { name, tried: profile.discovery.clone() };
    let Some(index) = pair else {
        let authorize = configured.authorize.is_some() || sources.iter().any(|source| source.authorize.is_some());
        return Err(missing(if authorize { EndpointName::Token } else { EndpointName::Authorize }));
    };
    let chosen = sources.remove(index);
    sources.insert(0, chosen.clone());
    let first = |of: fn(&Source) -> Option<Url>| sources.iter().find_map(of);

    let overridden = configured.names();
    let authorize = configured.authorize.or(chosen.authorize).ok_or_else(|| missing(EndpointName::Authorize))?;
    let (token, token_audience) =
        configured.token.or_else(|| chosen.token.zip(chosen.token_text)).ok_or_else(|| missing(EndpointName::Token))?;
    let endpoints = Endpoints {
        authorize,
        token,
        token_audience,
        introspect: configured.introspect.or_else(|| first(|source| source.introspect.clone())),
        revoke: configured.revoke.or_else(|| first(|source| source.revoke.clone())),
        jwks: configured.jwks.or_else(|| first(|source| source.jwks.clone())),
        end_session: configured.end_session.or_else(|| first(|source| source.end_session.clone())),
        issuer: smart.and_then(|smart| smart.issuer.clone()),
        iss_parameter: smart.is_some_and(|smart| smart.iss_parameter),
        authorize_post: smart.is_some_and(|smart| smart.capabilities.iter().any(|name| name == "authorize-post")),
        from: chosen.from,
        overridden,
    };
    Ok(match registry::adapter(&profile.adapter) {
        Some(adapter) => adapter.amend_endpoints(endpoints, profile),
        None => endpoints,
    })
}

/// What stands on a host that is neither the FHIR base's nor in `auth_hosts` (`host` or `host:port`).
pub fn held(endpoints: &Endpoints, fhir_base: &Url, auth_hosts: &[String]) -> Vec<HeldEndpoint> {
    let known = |url: &Url| {
        let host = url.host_str().unwrap_or_default();
        let with_port = url.port_or_known_default().map(|port| format!("{host}:{port}"));
        fhir_base.host_str() == Some(host)
            || auth_hosts.iter().any(|known| {
                known.eq_ignore_ascii_case(host)
                    || with_port.as_ref().is_some_and(|with_port| known.eq_ignore_ascii_case(with_port))
            })
    };
    endpoints
        .named()
        .filter(|(name, url)| !endpoints.overridden.contains(name) && !known(url))
        .map(|(name, url)| HeldEndpoint { name, host: url.host_str().unwrap_or_default().to_owned() })
        .collect()
}

/// The `aud` of an authorization request by the profile's `aud`: `base` is the FHIR base byte for byte;
/// a URL is itself; a relative reference (`../..`) is resolved below the base and loses its final slash.
pub fn audience(profile: &Profile, fhir_base: &str) -> Option<String> {
    if profile.aud == "base" {
        return Some(fhir_base.to_owned());
    }
    match Url::parse(&profile.aud) {
        Ok(_) => Some(profile.aud.clone()),
        Err(url::ParseError::RelativeUrlWithoutBase) => {
            let url = folder(&Url::parse(fhir_base).ok()?).join(&profile.aud).ok()?;
            Some(url.as_str().trim_end_matches('/').to_owned())
        }
        Err(_) => None,
    }
}

#[derive(Clone)]
struct Source {
    from: DiscoverySource,
    authorize: Option<Url>,
    token: Option<Url>,
    token_text: Option<String>,
    introspect: Option<Url>,
    revoke: Option<Url>,
    jwks: Option<Url>,
    end_session: Option<Url>,
}

impl Source {
    fn of(from: DiscoverySource, smart: Option<&SmartConfiguration>, capability: Option<&CapabilityFacts>) -> Self {
        let nothing = Self {
            from,
            authorize: None,
            token: None,
            token_text: None,
            introspect: None,
            revoke: None,
            jwks: None,
            end_session: None,
        };
        match (from, smart, capability) {
            (DiscoverySource::SmartConfiguration, Some(smart), _) => Self {
                authorize: Some(smart.authorization_endpoint.clone()),
                token: Some(smart.token_endpoint.clone()),
                token_text: Some(smart.token_endpoint_text.clone()),
                introspect: smart.introspection_endpoint.clone(),
                revoke: smart.revocation_endpoint.clone(),
                jwks: smart.jwks_uri.clone(),
                end_session: smart.end_session_endpoint.clone(),
                ..nothing
            },
            (DiscoverySource::CapabilityStatement, _, Some(facts)) => Self {
                authorize: facts.authorize.clone(),
                token: facts.token.clone(),
                token_text: facts.token_text.clone().or_else(|| facts.token.clone().map(String::from)),
                introspect: facts.introspect.clone(),
                revoke: facts.revoke.clone(),
                ..nothing
            },
            _ => nothing,
        }
    }
}

/// Endpoints that the profile names.
struct Configured {
    authorize: Option<Url>,
    token: Option<(Url, String)>,
    introspect: Option<Url>,
    revoke: Option<Url>,
    jwks: Option<Url>,
    end_session: Option<Url>,
}

impl Configured {
    fn read(base: &Url, profile: &Profile) -> Result<Self, ResolveFault> {
        let one = |name: EndpointName, text: Option<&String>| {
            text.map(|text| {
                endpoint(name.text(), text, base).map(|(url, relative)| {
                    let published = if relative { url.as_str().to_owned() } else { text.clone() };
                    (url, published)
                })
            })
            .transpose()
            .map_err(ResolveFault::Configured)
        };
        let url = |name, text| one(name, text).map(|found| found.map(|(url, _)| url));
        let named = &profile.endpoints;
        let pinned_keys = Some(&profile.id_token.jwks).filter(|jwks| *jwks != "discovery");
        Ok(Self {
            authorize: url(EndpointName::Authorize, named.authorize.as_ref())?,
            token: one(EndpointName::Token, named.token.as_ref())?,
            introspect: url(EndpointName::Introspect, named.introspect.as_ref())?,
            revoke: url(EndpointName::Revoke, named.revoke.as_ref())?,
            jwks: url(EndpointName::Jwks, named.jwks.as_ref().or(pinned_keys))?,
            end_session: url(EndpointName::EndSession, named.end_session.as_ref())?,
        })
    }

    fn names_both(&self) -> bool {
        self.authorize.is_some() && self.token.is_some()
    }

    fn names(&self) -> BTreeSet<EndpointName> {
        [
            (EndpointName::Authorize, self.authorize.is_some()),
            (EndpointName::Token, self.token.is_some()),
            (EndpointName::Introspect, self.introspect.is_some()),
            (EndpointName::Revoke, self.revoke.is_some()),
            (EndpointName::Jwks, self.jwks.is_some()),
            (EndpointName::EndSession, self.end_session.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, there)| there.then_some(name))
        .collect()
    }
}
