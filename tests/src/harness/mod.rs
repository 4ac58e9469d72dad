//! The built gateway in front of simulated EHRs, as its user would run it: a process, a configuration
//! in TOML, real sockets. For end-to-end tests.

pub mod app;
pub mod postgres;
pub mod wire;

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    ehr::{
        auth::{
            client::{Client, ClientAuth},
            places::Host,
        },
        contract::Vendor,
        server::{Options, Running, start},
    },
    ports::free_port,
};

/// The app that most tests use: public, with a redirect URI that nobody listens on.
pub const APP: &str = "viewer";
pub const CALLBACK: &str = "http://127.0.0.1:1/callback";
pub const LAUNCH_URL: &str = "http://127.0.0.1:1/launch";
/// What its browser origin would be.
pub const ORIGIN: &str = "http://app.localhost:1";
/// The confidential twin, and its secret.
pub const SECRET_APP: &str = "server-app";
pub const APP_SECRET: &str = "a-secret-of-32-characters-or-more";
/// Between the gateway and each EHR; with what a form-encoder must change.
pub const EHR_SECRET: &str = "ehr s3cret+/%";
/// What the apps may ask, and what is ticked.
pub const SCOPES: [&str; 13] = [
    "launch",
    "launch/patient",
    "openid",
    "fhirUser",
    "offline_access",
    "patient/Patient.read",
    "patient/Observation.read",
    "patient/Condition.read",
    "patient/MedicationRequest.read",
    "patient/AllergyIntolerance.read",
    "patient/Encounter.read",
    "user/Patient.read",
    "user/Practitioner.read",
];

/// What one EHR of a [`World`] is to be.
pub struct Ehr {
    pub options: Options,
    /// Further keys of its site, as TOML lines.
    pub site: String,
}

impl Ehr {
    pub fn new(vendor: Vendor) -> Self {
        Self { options: Options::new(vendor), site: String::new() }
    }

    pub fn strict(vendor: Vendor) -> Self {
        Self { options: Options { strict: true, ..Options::new(vendor) }, site: String::new() }
    }

    #[must_use]
    pub fn site(mut self, lines: &str) -> Self {
        self.site.push_str(lines);
        self.site.push('\n');
        self
    }

    #[must_use]
    pub fn switch(mut self, text: &str) -> Self {
        // A misspelt switch fails the test at its start.
        #[allow(clippy::expect_used, reason = "a test's own slip")]
        self.options.switch(text).expect("a switch that exists");
        self
    }
}

/// Simulated EHRs with a gateway in front. Each vendor is a site of its own name.
pub struct World {
    pub ehrs: BTreeMap<Vendor, Running>,
    pub gateway: Gateway,
}

/// The gateway's process.
pub struct Gateway {
    pub public: String,
    pub admin: String,
    binary: PathBuf,
    dir: TempDir,
    child: Option<Child>,
}

impl World {
    pub async fn start(ehrs: impl IntoIterator<Item = Ehr>) -> Result<Self> {
        Self::start_with(ehrs, "").await
    }

    /// `more`: further TOML for `mantel.toml`.
    pub async fn start_with(ehrs: impl IntoIterator<Item = Ehr>, more: &str) -> Result<Self> {
        Self::start_scoped(ehrs, more, &[]).await
    }

    /// `further`: scopes beyond [`SCOPES`] that are ticked at the EHRs and that the apps may ask for.
    pub async fn start_scoped(ehrs: impl IntoIterator<Item = Ehr>, more: &str, further: &[&str]) -> Result<Self> {
        let scopes: Vec<&str> = SCOPES.iter().chain(further).copied().collect();
        let dir = tempfile::tempdir()?;
        let (port, admin_port) = (free_port()?, free_port()?);
        let public = format!("http://127.0.0.1:{port}");
        std::fs::create_dir(dir.path().join("sites.d"))?;
        let mut running = BTreeMap::new();
        for Ehr { options, site } in ehrs {
            let (vendor, strict) = (options.vendor, options.strict);
            let ehr = start(options).await?;
            for app in [APP, SECRET_APP] {
                ehr.auth.register(record(vendor, &public, app, &scopes))?;
            }
            let text = site_toml(vendor, &ehr, &site, strict, &scopes);
            std::fs::write(dir.path().join(format!("sites.d/{}.toml", vendor.text())), text)?;
            running.insert(vendor, ehr);
        }
        std::fs::write(dir.path().join("seal"), std::array::from_fn::<u8, 32, _>(|n| n as u8))?;
        std::fs::write(dir.path().join("mantel.toml"), mantel_toml(&public, port, admin_port, more, &scopes))?;
        let mut gateway =
            Gateway { public, admin: format!("http://127.0.0.1:{admin_port}"), binary: binary()?, dir, child: None };
        gateway.spawn().await?;
        Ok(Self { ehrs: running, gateway })
    }

    #[track_caller]
    pub fn ehr(&self, vendor: Vendor) -> &Running {
        match self.ehrs.get(&vendor) {
            Some(ehr) => ehr,
            None => panic_missing(vendor),
        }
    }
}

#[track_caller]
#[allow(clippy::panic, reason = "a test's own slip")]
fn panic_missing(vendor: Vendor) -> ! {
    panic!("this world has no {}", vendor.text())
}

impl Gateway {
    /// Starts the process, and waits until it is ready.
    pub async fn spawn(&mut self) -> Result<()> {
        let open = |name: &str| File::options().create(true).append(true).open(self.dir.path().join(name));
        let child = Command::new(&self.binary)
            .args(["serve", "--config"])
            .arg(self.dir.path())
            .stdin(Stdio::null())
            .stdout(open("access.log")?)
            .stderr(open("events.log")?)
            .spawn()
            .context("the gateway's binary does not start")?;
        self.child = Some(child);
        for _ in 0..400 {
            if let Some(Some(status)) = self.child.as_mut().map(Child::try_wait).transpose()? {
                bail!("the gateway ended at its start with {status}: {}", self.log("events.log")?);
            }
            if call(Method::GET, &format!("{}/health/ready", self.admin), &[], "")
                .await
                .is_ok_and(|answer| answer.status == 200)
            {
                return Ok(());
            }
            // Another process: there is nothing to await but its readiness.
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        bail!("the gateway was not ready in 10 s: {}", self.log("events.log")?)
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM, and its exit code.
    pub async fn terminate(&mut self) -> Result<Option<i32>> {
        let Some(mut child) = self.child.take() else { return Ok(None) };
        Command::new("kill").arg("-TERM").arg(child.id().to_string()).status()?;
        Ok(tokio::task::spawn_blocking(move || child.wait()).await??.code())
    }

    /// The process that runs now.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `events.log` or `access.log`.
    pub fn log(&self, name: &str) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(self.dir.path().join(name))?).into_owned())
    }

    /// A site's FHIR base.
    pub fn site_base(&self, vendor: Vendor) -> String {
        format!("{}/sites/{}/fhir/r4", self.public, vendor.text())
    }

    /// The base of the site from which the EHR launches.
    pub fn staff_base(&self, vendor: Vendor) -> String {
        let suffix = if vendor == Vendor::Oracle { "-staff" } else { "" };
        format!("{}/sites/{}{suffix}/fhir/r4", self.public, vendor.text())
    }

    pub fn uniform_base(&self) -> String {
        format!("{}/fhir/r4", self.public)
    }

    /// The value of a metric's line, such as `mantel_refreshes_total{outcome="renewed",vendor="epic"}`.
    pub async fn metric(&self, line: &str) -> Result<f64> {
        let text = call(Method::GET, &format!("{}/metrics", self.admin), &[], "").await?;
        let text = text.text();
        let value = text.lines().find_map(|known| known.strip_prefix(line)?.strip_prefix(' '));
        Ok(value.map_or(Ok(0.0), str::parse)?)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // The test is over either way.
        let _ = self.kill();
    }
}

/// The gateway's binary, built beside the test's own.
pub fn binary() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let built = own.ancestors().map(|dir| dir.join("mantel")).find(|path| path.is_file());
    built.context("there is no binary `mantel` beside the tests: run `cargo build --workspace` first")
}

/// The app's record at an EHR: what an operator would file at the vendor's portal.
fn record(vendor: Vendor, public: &str, app: &str, scopes: &[&str]) -> Client {
    let auth = ClientAuth::ClientSecretBasic { secret: EHR_SECRET.into() };
    let callback = format!("{public}/oauth/callback/{app}-{}", vendor.text());
    Client {
        launch_url: Some(format!("{public}/launch/{app}")),
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        ..Client::new(&format!("{app}-at-{}", vendor.text()), auth, &[&callback])
    }
}

fn site_toml(vendor: Vendor, ehr: &Running, more: &str, strict: bool, scopes: &[&str]) -> String {
    let name = vendor.text();
    let scopes = scopes.iter().map(|scope| format!("{scope:?}")).collect::<Vec<_>>().join(", ");
    let mut registrations = String::new();
    for app in [APP, SECRET_APP] {
        registrations.push_str(&format!(
            r#"
[registrations.{app}-{name}]
vendor = "{name}"
apps = ["{app}"]
use = ["ehr-launch", "standalone"]
client_id = "{app}-at-{name}"
client_auth = {{ method = "client_secret_basic", secret = "{EHR_SECRET}" }}
scopes = [{scopes}]
"#
        ));
    }
    // Who signs in standalone is a patient at Oracle's patient host; the others know both.
    let base = match vendor {
        Vendor::Oracle => ehr.patient_base().unwrap_or(&ehr.fhir_base).to_owned(),
        _ => ehr.fhir_base.clone(),
    };
    let vendor_lines = match vendor {
        // Strict Epic knows no `Patient?_id=`.
        Vendor::Epic if strict => "search.by_id = false\n".to_owned(),
        Vendor::Epic | Vendor::Generic => String::new(),
        Vendor::Oracle => "auth_hosts = [\"localhost\", \"127.0.0.1\"]\npersona = \"patient\"\n".to_owned(),
        // Without a smart-configuration nobody tells the issuer and its keys.
        Vendor::Athena | Vendor::AthenaPractice => format!(
            "auth_hosts = [\"localhost\"]\nid_token = {{ issuer = \"{}\", jwks = \"{}\" }}\n",
            ehr.auth.places.issuer(Host::Main),
            ehr.auth.places.jwks(Host::Main)
        ),
    };
    // Numbers from the vendor's own record: Oracle's app records are v1 unless they say otherwise.
    let dialect = match (vendor, strict) {
        (Vendor::Oracle, _) => "scopes.dialect = \"v1\"\n",
        (Vendor::Athena, true) => "scopes.dialect = \"v1\"\n",
        _ => "",
    };
    // Oracle's staff have a host of their own, and so a site.
    let staff = match vendor {
        Vendor::Oracle => format!(
            r#"
[sites.oracle-staff]
vendor = "oracle"
name = "oracle hospital"
persona = "provider"
fhir_base_url = "{}"
registrations = ["{APP}-{name}", "{SECRET_APP}-{name}"]
allow_private = true
auth_hosts = ["localhost", "127.0.0.1"]
{dialect}{more}
"#,
            ehr.fhir_base
        ),
        _ => String::new(),
    };
    format!(
        r#"[sites.{name}]
vendor = "{name}"
name = "{name} hospital"
fhir_base_url = "{base}"
registrations = ["{APP}-{name}", "{SECRET_APP}-{name}"]
allow_private = true
{dialect}{vendor_lines}{more}
{staff}
{registrations}"#
    )
}

fn mantel_toml(public: &str, port: u16, admin_port: u16, more: &str, scopes: &[&str]) -> String {
    let hash = sha256_hex(APP_SECRET);
    let others = [
        "patient/*.read",
        "patient/*.rs",
        "user/*.rs",
        "patient/Patient.rs",
        "patient/Observation.rs",
        "patient/Condition.rs",
    ];
    let scopes = scopes.iter().chain(&others).map(|scope| format!("{scope:?}")).collect::<Vec<_>>().join(", ");
    format!(
        r#"[server]
public_url = "{public}"
listen = "127.0.0.1:{port}"
admin_listen = "127.0.0.1:{admin_port}"
sandbox = true
workers = 2

[store]
url = "sqlite://mantel.db"
seal = [{{ id = "test", file = "seal" }}]

[apps.{APP}]
name = "Chart viewer"
client_auth = {{ method = "none" }}
redirect_uris = ["{CALLBACK}", "com.example.viewer:/callback"]
launch_url = "{LAUNCH_URL}"
origins = ["{ORIGIN}"]
scopes = [{scopes}]
sites = ["*"]
consent = "never"

[apps.{SECRET_APP}]
name = "Server app"
client_auth = {{ method = "client_secret_basic", secrets = ["sha256:{hash}"] }}
redirect_uris = ["{CALLBACK}"]
launch_url = "{LAUNCH_URL}"
scopes = [{scopes}]
sites = ["*"]
consent = "never"

{more}
"#
    )
}

fn sha256_hex(text: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("status {}, and no JSON: {}", self.status, self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// One request over a connection of its own.
pub async fn call(method: Method, url: &str, headers: &[(&str, &str)], body: &str) -> Result<Answer> {
    let http: HttpClient<HttpConnector, Full<Bytes>> = HttpClient::builder(TokioExecutor::new()).build_http();
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = http.request(request.body(Full::new(Bytes::from(body.to_owned())))?).await?;
    let (parts, body) = answer.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Answer { status: parts.status, headers: parts.headers, body })
}

pub async fn get(url: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    call(Method::GET, url, headers, "").await
}

/// A GET with a bearer.
pub async fn read(url: &str, token: &str) -> Result<Answer> {
    get(url, &[("authorization", &format!("Bearer {token}"))]).await
}

pub async fn post_form(url: &str, headers: &[(&str, &str)], pairs: &[(&str, &str)]) -> Result<Answer> {
    let mut all = vec![("content-type", "application/x-www-form-urlencoded")];
    all.extend_from_slice(headers);
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    call(Method::POST, url, &all, &body).await
}
