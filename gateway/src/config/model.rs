//! Configuration, checked: what the other rooms see. Nothing in it can be wrong in itself; the raw
//! forms and their faults stay in the loader.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use mantel_adapters::{
    adapter::Adapter,
    profile::Profile,
    site::{AppId, KeySetId, RegistrationId, SiteId, VendorId},
    smart::translate::{Allowed, Ticked},
};
use url::Url;

use crate::secret::Secret;

/// One consistent snapshot of the configuration.
pub struct Config {
    pub server: Server,
    pub telemetry: Telemetry,
    pub store: StoreConfig,
    pub keys: BTreeMap<KeySetId, Arc<KeySet>>,
    pub registrations: BTreeMap<RegistrationId, Arc<Registration>>,
    pub sites: BTreeMap<SiteId, Arc<Site>>,
    pub apps: BTreeMap<AppId, Arc<App>>,
}

impl Config {
    pub fn urls(&self) -> super::Urls<'_> {
        super::Urls::new(&self.server.public_url)
    }

    /// Where commands reach a running gateway, if anywhere.
    pub fn admin_socket(&self) -> Option<PathBuf> {
        let beside = || match &self.store.url {
            StoreUrl::Sqlite(file) => file.as_ref().map(|file| {
                let mut name = file.as_os_str().to_owned();
                name.push(".sock");
                PathBuf::from(name)
            }),
            StoreUrl::Postgres(_) => None,
        };
        self.server.admin_socket.clone().or_else(beside)
    }

    /// The registration by which an app is known at a site for a use; the first one listed wins.
    pub fn registration(&self, app: &AppId, site: &Site, usage: Use) -> Option<&Arc<Registration>> {
        site.registrations
            .iter()
            .filter_map(|id| self.registrations.get(id))
            .find(|registration| registration.apps.contains(app) && registration.uses.contains(&usage))
    }

    /// Whether some app has registered this origin for its scripts.
    pub fn knows_origin(&self, origin: &str) -> bool {
        self.apps.values().any(|app| app.origins.iter().any(|known| known == origin))
    }

    /// Whether the app may use the site at all (its `sites` list).
    pub fn permits(&self, app: &App, site: &Site) -> bool {
        app.sites.iter().any(|pattern| match pattern {
            SitePattern::All => true,
            SitePattern::Id(id) => *id == site.id,
            SitePattern::Tag(tag) => site.tags.contains(tag),
        })
    }
}

pub struct Server {
    /// Absolute, without a trailing slash: `https://gateway.example.org`.
    pub public_url: String,
    pub listen: SocketAddr,
    pub admin_listen: SocketAddr,
    /// Where commands reach a running gateway; none: beside an SQLite file, else nowhere.
    pub admin_socket: Option<PathBuf>,
    /// Absent: plain HTTP, only where the public URL is loopback or `behind_proxy` names the proxies.
    pub tls: Option<ServerTls>,
    pub behind_proxy: Vec<ipnet::IpNet>,
    /// Data-plane threads; default: the cores.
    pub workers: Option<usize>,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub max_stale: Duration,
    /// Only the sandbox sets it: literal secrets and `http://` bases of loopback hosts are taken.
    pub sandbox: bool,
}

/// What leaves for those who watch.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// An OpenTelemetry collector's base (`https://collector.example.org:4318`); none: no spans are made.
    pub otlp: Option<Url>,
    /// How many of a hundred traces are kept where the app's `traceparent` does not decide it.
    pub sample_percent: u64,
    /// Which events are logged, in `tracing`'s directive syntax.
    pub log: String,
}

pub struct ServerTls {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Bounds, each with its reason.
#[derive(Clone, Debug)]
pub struct Limits {
    /// A request body that is not a Bundle. FHIR resources are far smaller; 1 MiB.
    pub body: usize,
    /// A Bundle. 16 MiB.
    pub bundle: usize,
    /// A resource that is inspected. 4 MiB.
    pub inspected: usize,
    /// Request line and headers together. 32 KiB.
    pub head: usize,
    /// Concurrent requests to one site. 256.
    pub site_concurrency: usize,
    /// Open client connections. 20,000.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 1 << 20,
            bundle: 16 << 20,
            inspected: 4 << 20,
            head: 32 << 10,
            site_concurrency: 256,
            connections: 20_000,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Timeouts {
    /// From the connection's first byte to the end of the request's head. 10 s.
    pub header: Duration,
    /// TLS handshake. 10 s.
    pub handshake: Duration,
    /// DNS, TCP and TLS towards an EHR. 5 s.
    pub connect: Duration,
    /// From a FHIR request's last byte sent to the answer's head. 60 s.
    pub upstream: Duration,
    /// Between two chunks of a body, either way. 30 s.
    pub idle: Duration,
    /// A token request, whoever waits for it. 60 s.
    pub token: Duration,
    /// How long an app's request waits for custody. 20 s.
    pub custody: Duration,
    /// Graceful shutdown. 30 s.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            connect: Duration::from_secs(5),
            upstream: Duration::from_secs(60),
            idle: Duration::from_secs(30),
            token: Duration::from_secs(60),
            custody: Duration::from_secs(20),
            drain: Duration::from_secs(30),
        }
    }
}

pub struct StoreConfig {
    pub url: StoreUrl,
    /// All read; the first one writes, once every live process holds it.
    pub seal: Vec<SealKey>,
    /// Where EHRs' answers go that the store does not take. None: only in memory.
    pub spill: Option<PathBuf>,
}

pub enum StoreUrl {
    /// A file, or none: in memory, for tests.
    Sqlite(Option<PathBuf>),
    Postgres(Secret<String>),
}

/// A key that seals what the store holds: 32 bytes.
pub struct SealKey {
    pub id: String,
    pub bytes: Secret<[u8; 32]>,
}

/// Keys that sign client assertions, published at `/keys/{name}.json`.
pub struct KeySet {
    pub id: KeySetId,
    pub alg: AssertionAlg,
    pub keys: Vec<AssertionKey>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssertionAlg {
    RS384,
    ES384,
}

pub struct AssertionKey {
    /// PEM, PKCS#8 (or what can be made so).
    pub pem: Secret<String>,
    pub state: KeyState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// In the published set, not yet signing.
    Publish,
    Sign,
    /// Still published, no longer signing.
    Retired,
}

/// What was filed at a vendor's portal.
pub struct Registration {
    pub id: RegistrationId,
    pub vendor: VendorId,
    pub apps: BTreeSet<AppId>,
    pub uses: BTreeSet<Use>,
    pub client_id: String,
    pub auth: ClientAuth,
    /// The scopes ticked.
    pub scopes: Ticked,
    pub previous: Vec<PreviousRegistration>,
    /// `uploaded`: the vendor holds a copy of the keys, so a new one signs only when an operator says so.
    pub publish: Publish,
}

impl Registration {
    /// What a grant remembers of its registration: vendor, client_id, callback path; not keys, scopes or apps.
    pub fn fingerprint(&self) -> String {
        self.fingerprint_of(&self.client_id)
    }

    fn fingerprint_of(&self, client_id: &str) -> String {
        format!("{}|{client_id}|/oauth/callback/{}", self.vendor, self.id)
    }

    /// Who we were when a grant was made: this registration, or a previous form of it. None: it is no
    /// longer listed.
    pub fn client_of(&self, fingerprint: &str) -> Option<(&str, &ClientAuth)> {
        let now = std::iter::once((self.client_id.as_str(), &self.auth));
        let before = self.previous.iter().map(|previous| (previous.client_id.as_str(), &previous.auth));
        now.chain(before).find(|(client_id, _)| self.fingerprint_of(client_id) == fingerprint)
    }
}

pub struct PreviousRegistration {
    pub client_id: String,
    pub auth: ClientAuth,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publish {
    Url,
    Uploaded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Use {
    EhrLaunch,
    Standalone,
    Backend,
}

/// How we authenticate at a vendor.
#[derive(Clone)]
pub enum ClientAuth {
    None,
    SecretBasic { secret: Secret<String> },
    SecretPost { secret: Secret<String> },
    PrivateKeyJwt { keys: KeySetId },
}

/// One FHIR base of a vendor and persona.
pub struct Site {
    pub id: SiteId,
    pub vendor: VendorId,
    /// The vendor's profile with the site's overrides.
    pub profile: Arc<Profile>,
    pub adapter: &'static dyn Adapter,
    pub name: String,
    /// Without a trailing slash, as it is sent as `aud`.
    pub fhir_base: Url,
    /// `fhir_base` byte for byte as configured.
    pub fhir_base_text: String,
    pub registrations: Vec<RegistrationId>,
    pub iss_aliases: Vec<String>,
    pub link_bases: Vec<String>,
    pub persona: Option<Persona>,
    /// The value before a grant knows its own.
    pub tenant: Option<String>,
    pub tags: BTreeSet<String>,
    pub frame_origins: Vec<String>,
    pub tls: SiteTls,
    /// Addresses that are not public are dialled too.
    pub allow_private: bool,
    pub inspect: Inspect,
    /// Concurrent upstream requests.
    pub concurrency: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persona {
    Patient,
    Provider,
}

#[derive(Clone, Debug, Default)]
pub struct SiteTls {
    /// A PEM file with further roots.
    pub ca: Option<PathBuf>,
    /// Client certificate and key, PEM files.
    pub client: Option<(PathBuf, PathBuf)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inspect {
    Auto,
    Always,
}

/// A client registered with Mantel.
pub struct App {
    /// Its `client_id`.
    pub id: AppId,
    pub name: String,
    pub auth: AppAuth,
    pub redirect_uris: Vec<String>,
    pub launch_url: Option<String>,
    pub origins: Vec<String>,
    /// The scopes it may ask for.
    pub scopes: Allowed,
    pub required_scopes: Vec<String>,
    pub sites: Vec<SitePattern>,
    pub grants: BTreeSet<AppGrant>,
    pub consent: Consent,
    pub custody: CustodyMode,
    pub introspect: bool,
    pub inspect: Inspect,
    pub keep_alive: bool,
    pub session_max: Duration,
    pub session_idle: Duration,
    pub post_logout_redirect_uris: Vec<String>,
    pub access_lifetime: Duration,
    pub refresh_lifetime: Duration,
}

/// How an app authenticates with us.
pub enum AppAuth {
    None,
    /// SHA-256 of each secret in force (two at once, for a change without a gap).
    SecretBasic {
        secrets: Vec<SecretHash>,
    },
    SecretPost {
        secrets: Vec<SecretHash>,
    },
    PrivateKeyJwt(AppKeys),
}

/// `sha256:<64 hexadecimal digits>` of a client secret that holds at least 128 random bits.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretHash(pub [u8; 32]);

pub enum AppKeys {
    Url(Url),
    /// A literal JWK set.
    Set(serde_json::Value),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AppGrant {
    AuthorizationCode,
    ClientCredentials,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consent {
    Never,
    Once,
    Always,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CustodyMode {
    AsAsked,
    Session,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SitePattern {
    All,
    Id(SiteId),
    Tag(String),
}
