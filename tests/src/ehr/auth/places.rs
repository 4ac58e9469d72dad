//! Where things are: each vendor's addresses, as `vendors.md` has them, on one listener.

use std::net::SocketAddr;

use crate::ehr::{auth::client::Persona, contract::Vendor};

/// The name that a request came to. Oracle's patients have a FHIR host of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    Main,
    Patients,
}

/// One of the EHR's FHIR bases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Base {
    pub host: Host,
    /// Oracle, strict: the base that knows lower-case v1 scopes only.
    pub legacy: bool,
}

/// Which set of OAuth endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    Usual,
    /// Oracle: `smart-v2`, for apps that are registered for v2.
    SmartV2,
    /// Epic: those of clients that are marked overridden.
    Override,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint<'a> {
    Discovery(Base),
    Metadata(Base),
    /// The raw path below the base.
    Fhir(Base, &'a str),
    Authorize(Profile, Option<Persona>),
    Token(Profile),
    Introspect,
    Revoke,
    Jwks,
    OpenId,
    Logout,
    Manage,
    /// Oracle: what an `error_uri` leads to.
    ErrorPage(&'a str),
    SignIn,
    SelectPatient,
    Consent,
    Style,
    Home,
    Portal,
    Launch,
    Control(&'a str),
    Unknown,
}

#[derive(Clone, Debug)]
pub struct Places {
    vendor: Vendor,
    strict: bool,
    main: String,
    patients: String,
    /// athenaOne's issuer is another host than its endpoints.
    issuer_origin: String,
    fhir_path: String,
    /// The FHIR base less what is FHIR's: Epic's instance, athena's server.
    server_path: String,
    tenant: String,
}

pub const EPIC_KEYS: &str = "/api/epic/2019/Security/Open/PublicKeys/530027/OIDC";
const ATHENA_SERVER: &str = "/oauth2/aus2hff5eqFb7Wqfh297";
const LEGACY: &str = "/legacy";

impl Places {
    /// `origin` is the main one, without a path.
    pub fn new(vendor: Vendor, strict: bool, origin: &str, patients: Option<String>, fhir_path: &str) -> Self {
        let second = |suffix: &str| second_origin(origin, suffix);
        let server_path = match vendor {
            Vendor::Epic => fhir_path.strip_suffix("/api/FHIR/R4"),
            Vendor::AthenaPractice => fhir_path.strip_suffix("/fhir/r4"),
            _ => None,
        };
        Self {
            vendor,
            strict,
            main: origin.to_owned(),
            patients: patients.unwrap_or_else(|| second("-patient")),
            issuer_origin: second("-okta"),
            fhir_path: fhir_path.to_owned(),
            server_path: server_path.unwrap_or_default().to_owned(),
            tenant: fhir_path.rsplit('/').next().unwrap_or_default().to_owned(),
        }
    }

    /// By the `Host` header.
    pub fn host(&self, name: Option<&str>) -> Host {
        let patients = self.patients.split_once("://").map(|(_, rest)| rest);
        if self.vendor == Vendor::Oracle && name.is_some() && name == patients { Host::Patients } else { Host::Main }
    }

    pub fn origin(&self, host: Host) -> &str {
        match host {
            Host::Main => &self.main,
            Host::Patients => &self.patients,
        }
    }

    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// Every FHIR base that there is.
    pub fn bases(&self) -> Vec<Base> {
        let hosts: &[Host] = if self.vendor == Vendor::Oracle { &[Host::Main, Host::Patients] } else { &[Host::Main] };
        let legacy: &[bool] = if self.vendor == Vendor::Oracle && self.strict { &[false, true] } else { &[false] };
        hosts.iter().flat_map(|host| legacy.iter().map(|legacy| Base { host: *host, legacy: *legacy })).collect()
    }

    pub fn fhir_base(&self, base: Base) -> String {
        format!("{}{}{}", self.origin(base.host), if base.legacy { LEGACY } else { "" }, self.fhir_path)
    }

    /// What `aud` must be at this base.
    pub fn audience(&self, base: Base) -> String {
        match self.vendor {
            Vendor::AthenaPractice => format!("{}{}", self.main, self.server_path),
            _ => self.fhir_base(base),
        }
    }

    pub fn base_of_audience(&self, aud: &str) -> Option<Base> {
        let aud = if self.vendor == Vendor::Oracle { aud.strip_suffix('/').unwrap_or(aud) } else { aud };
        self.bases().into_iter().find(|base| self.audience(*base) == aud)
    }

    pub fn authorize(&self, host: Host, profile: Profile, persona: Persona) -> String {
        let origin = self.origin(host);
        match self.vendor {
            Vendor::Epic => format!("{origin}{}/{}/authorize", self.server_path, epic_folder(profile)),
            Vendor::Oracle => format!(
                "{origin}/tenants/{}/protocols/oauth2/profiles/{}/personas/{}/authorize",
                self.tenant,
                oracle_profile(profile),
                persona.text()
            ),
            Vendor::Athena => format!("{origin}/oauth2/v1/authorize"),
            Vendor::AthenaPractice => format!("{origin}{}/oauth2/authorize", self.server_path),
            Vendor::Generic => format!("{origin}/auth/authorize"),
        }
    }

    pub fn token(&self, host: Host, profile: Profile) -> String {
        let origin = self.origin(host);
        match self.vendor {
            Vendor::Epic => format!("{origin}{}/{}/token", self.server_path, epic_folder(profile)),
            Vendor::Oracle => format!(
                "{origin}/tenants/{}/hosts/{}/protocols/oauth2/profiles/{}/token",
                self.tenant,
                host_name(origin),
                oracle_profile(profile)
            ),
            Vendor::Athena => format!("{origin}/oauth2/v1/token"),
            Vendor::AthenaPractice => format!("{origin}{}/oauth2/token", self.server_path),
            Vendor::Generic => format!("{origin}/auth/token"),
        }
    }

    /// None where the vendor has none, or does not say so.
    pub fn introspect(&self, host: Host) -> Option<String> {
        let origin = self.origin(host);
        match self.vendor {
            Vendor::Epic => Some(format!("{origin}{}/oauth2/introspect", self.server_path)),
            Vendor::Oracle => Some(format!("{origin}/tokeninfo")),
            Vendor::Athena => Some(format!("{origin}/oauth2/v1/introspect")),
            Vendor::AthenaPractice => None,
            Vendor::Generic => Some(format!("{origin}/auth/introspect")),
        }
    }

    pub fn revoke(&self, host: Host) -> Option<String> {
        let origin = self.origin(host);
        match self.vendor {
            Vendor::Oracle => {
                Some(format!("{origin}/tenants/{}/protocols/oauth2/profiles/smart-v1/token/revoke", self.tenant))
            }
            Vendor::Athena => Some(format!("{origin}/oauth2/v1/revoke")),
            Vendor::Epic | Vendor::AthenaPractice => None,
            Vendor::Generic => Some(format!("{origin}/auth/revoke")),
        }
    }

    pub fn manage(&self, host: Host, persona: Persona) -> Option<String> {
        let origin = self.origin(host);
        match self.vendor {
            Vendor::Oracle => {
                Some(format!("{origin}/tenants/{}/personas/{}/my-authorizations", self.tenant, persona.text()))
            }
            Vendor::Generic => Some(format!("{origin}/auth/manage")),
            _ => None,
        }
    }

    pub fn jwks(&self, host: Host) -> String {
        let origin = self.origin(host);
        match self.vendor {
            Vendor::Epic => format!("{origin}{}{EPIC_KEYS}", self.server_path),
            Vendor::Oracle => format!("{origin}/jwk"),
            Vendor::Athena => format!("{origin}/oauth2/v1/keys"),
            Vendor::AthenaPractice => format!("{origin}{}/oauth2/keys", self.server_path),
            Vendor::Generic => format!("{origin}/auth/jwks"),
        }
    }

    /// The `iss` of id_tokens.
    pub fn issuer(&self, host: Host) -> String {
        let origin = self.origin(host);
        match self.vendor {
            Vendor::Epic => format!("{origin}{}/oauth2", self.server_path),
            Vendor::Oracle => format!("{origin}/tenants/{0}/oidc/idsps/{0}/", self.tenant),
            Vendor::Athena => format!("{}{ATHENA_SERVER}", self.issuer_origin),
            Vendor::AthenaPractice => format!("{origin}{}", self.server_path),
            Vendor::Generic => origin.to_owned(),
        }
    }

    /// The `issuer` that discovery names, which at Oracle is not that of id_tokens.
    pub fn discovery_issuer(&self, host: Host) -> String {
        match self.vendor {
            Vendor::Oracle => format!("{}/tenants/{}", self.origin(host), self.tenant),
            _ => self.issuer(host),
        }
    }

    pub fn style(&self, host: Host) -> String {
        format!("{}/styles/smart-v1.json", self.origin(host))
    }

    pub fn route<'a>(&self, host: Host, path: &'a str) -> Endpoint<'a> {
        match path {
            "/" => return Endpoint::Home,
            "/portal" => return Endpoint::Portal,
            "/launch" => return Endpoint::Launch,
            "/sign-in" => return Endpoint::SignIn,
            "/select-patient" => return Endpoint::SelectPatient,
            "/consent" => return Endpoint::Consent,
            "/sign-out" => return Endpoint::Logout,
            "/styles/smart-v1.json" => return Endpoint::Style,
            _ => {}
        }
        if let Some(what) = path.strip_prefix("/_control/") {
            return Endpoint::Control(what);
        }
        if let Some(instance) = path.strip_prefix("/errors/").and_then(|rest| rest.split_once("/instances/"))
            && self.vendor == Vendor::Oracle
        {
            return Endpoint::ErrorPage(instance.1);
        }
        if let Some(found) = self.fhir_route(host, path) {
            return found;
        }
        self.oauth_route(host, path)
    }

    fn fhir_route<'a>(&self, host: Host, path: &'a str) -> Option<Endpoint<'a>> {
        let (legacy, rest) = match path.strip_prefix(LEGACY) {
            Some(rest) if self.vendor == Vendor::Oracle && self.strict => (true, rest),
            _ => (false, path),
        };
        let rest = rest.strip_prefix(self.fhir_path.as_str())?;
        let base = Base { host, legacy };
        match rest {
            "/.well-known/smart-configuration" => Some(Endpoint::Discovery(base)),
            "/metadata" => Some(Endpoint::Metadata(base)),
            rest if rest.is_empty() || rest.starts_with('/') => Some(Endpoint::Fhir(base, rest)),
            _ => None,
        }
    }

    fn oauth_route<'a>(&self, host: Host, path: &'a str) -> Endpoint<'a> {
        let is = |url: Option<String>| url.is_some_and(|url| path_of(&url) == path);
        let profiles: &[Profile] = match self.vendor {
            Vendor::Epic => &[Profile::Usual, Profile::Override],
            Vendor::Oracle => &[Profile::Usual, Profile::SmartV2],
            _ => &[Profile::Usual],
        };
        for profile in profiles {
            for persona in [Persona::Provider, Persona::Patient] {
                if is(Some(self.authorize(host, *profile, persona))) {
                    return Endpoint::Authorize(*profile, (self.vendor == Vendor::Oracle).then_some(persona));
                }
            }
            // Of 2024, without `hosts`; it is still served.
            let old = (self.vendor == Vendor::Oracle).then(|| {
                format!(
                    "{}/tenants/{}/protocols/oauth2/profiles/{}/token",
                    self.main,
                    self.tenant,
                    oracle_profile(*profile)
                )
            });
            if is(Some(self.token(host, *profile))) || is(old) {
                return Endpoint::Token(*profile);
            }
        }
        let configuration = format!("{}/.well-known/openid-configuration", self.issuer(host).trim_end_matches('/'));
        if is(self.introspect(host)) {
            Endpoint::Introspect
        } else if is(self.revoke(host)) {
            Endpoint::Revoke
        } else if is(Some(self.jwks(host))) {
            Endpoint::Jwks
        } else if is(Some(configuration)) {
            Endpoint::OpenId
        } else if is(self.manage(host, Persona::Provider)) || is(self.manage(host, Persona::Patient)) {
            Endpoint::Manage
        } else {
            Endpoint::Unknown
        }
    }
}

/// `http://epic.localhost:9100`; IP addresses have the port only.
pub fn origin_of(host: &str, address: SocketAddr) -> String {
    format!("http://{host}:{}", address.port())
}

/// Another name of the same listener: `oracle.localhost` has `oracle-patient.localhost`, an IP address has
/// `localhost`.
fn second_origin(origin: &str, suffix: &str) -> String {
    let (scheme, rest) = origin.split_once("://").unwrap_or(("http", origin));
    let (name, port) = match rest.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (name, format!(":{port}")),
        _ => (rest, String::new()),
    };
    let name = match name.split_once('.') {
        _ if name.parse::<std::net::Ipv4Addr>().is_ok() => "localhost".to_owned(),
        Some((first, others)) => format!("{first}{suffix}.{others}"),
        None => format!("{name}{suffix}.localhost"),
    };
    format!("{scheme}://{name}{port}")
}

fn path_of(url: &str) -> &str {
    url.split_once("://").and_then(|(_, rest)| rest.find('/').and_then(|at| rest.get(at..))).unwrap_or("/")
}

fn host_name(origin: &str) -> &str {
    let rest = origin.split_once("://").map_or(origin, |(_, rest)| rest);
    rest.split(':').next().unwrap_or(rest)
}

const fn epic_folder(profile: Profile) -> &'static str {
    match profile {
        Profile::Override => "oauth2-override",
        Profile::Usual | Profile::SmartV2 => "oauth2",
    }
}

const fn oracle_profile(profile: Profile) -> &'static str {
    match profile {
        Profile::SmartV2 => "smart-v2",
        Profile::Usual | Profile::Override => "smart-v1",
    }
}
