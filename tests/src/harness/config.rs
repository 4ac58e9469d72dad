//! The configuration files of a gateway in front of simulated EHRs.

use std::path::Path;

use anyhow::Result;

use super::{APP, APP_SECRET, CALLBACK, EHR_SECRET, LAUNCH_URL, ORIGIN, SECRET_APP};
use crate::ehr::{
    auth::{
        client::{Client, ClientAuth},
        places::Host,
    },
    contract::Vendor,
    server::Running,
};

/// The app's record at an EHR: what an operator would file at the vendor's portal.
pub fn record(name: &str, public: &str, app: &str, scopes: &[&str]) -> Client {
    let auth = ClientAuth::ClientSecretBasic { secret: EHR_SECRET.into() };
    let callback = format!("{public}/oauth/callback/{app}-{name}");
    Client {
        launch_url: Some(format!("{public}/launch/{app}")),
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        ..Client::new(&format!("{app}-at-{name}"), auth, &[&callback])
    }
}

pub fn site_toml(name: &str, ehr: &Running, more: &str, scopes: &[&str]) -> String {
    let (vendor, strict) = (ehr.auth.rules.vendor, ehr.auth.rules.strict);
    let scopes = scopes.iter().map(|scope| format!("{scope:?}")).collect::<Vec<_>>().join(", ");
    let mut registrations = String::new();
    for app in [APP, SECRET_APP] {
        registrations.push_str(&format!(
            r#"
[registrations.{app}-{name}]
vendor = "{vendor}"
apps = ["{app}"]
use = ["ehr-launch", "standalone"]
client_id = "{app}-at-{name}"
client_auth = {{ method = "client_secret_basic", secret = "{EHR_SECRET}" }}
scopes = [{scopes}]
"#,
            vendor = vendor.text()
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
[sites.{name}-staff]
vendor = "oracle"
name = "{name} hospital"
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
vendor = "{vendor}"
name = "{name} hospital"
fhir_base_url = "{base}"
registrations = ["{APP}-{name}", "{SECRET_APP}-{name}"]
allow_private = true
{dialect}{vendor_lines}{more}
{staff}
{registrations}"#,
        vendor = vendor.text()
    )
}

/// What differs between the gateways of one world, and what does not.
pub struct Server<'a> {
    pub public: &'a str,
    pub port: u16,
    pub admin_port: u16,
    /// The keys of `[store]`, but for the seal.
    pub store: &'a str,
    /// Further tables.
    pub more: &'a str,
    pub scopes: &'a [&'a str],
}

/// Writes `mantel.toml`, the seal key, and `sites.d/NAME.toml` from (name, text).
pub fn write(dir: &Path, server: &Server<'_>, sites: &[(String, String)]) -> Result<()> {
    std::fs::create_dir(dir.join("sites.d"))?;
    for (name, text) in sites {
        std::fs::write(dir.join(format!("sites.d/{name}.toml")), text)?;
    }
    std::fs::write(dir.join("seal"), std::array::from_fn::<u8, 32, _>(|n| n as u8))?;
    Ok(std::fs::write(dir.join("mantel.toml"), mantel_toml(server))?)
}

fn mantel_toml(server: &Server<'_>) -> String {
    let Server { public, port, admin_port, store, more, scopes } = server;
    let hash = sha256_hex(APP_SECRET);
    let others = [
        "patient/*.read",
        "patient/*.rs",
        "user/*.rs",
        "patient/Patient.rs",
        "patient/Observation.rs",
        "patient/Condition.rs",
    ];
    let scopes = scopes.iter().copied().chain(others).map(|scope| format!("{scope:?}")).collect::<Vec<_>>().join(", ");
    format!(
        r#"[server]
public_url = "{public}"
listen = "127.0.0.1:{port}"
admin_listen = "127.0.0.1:{admin_port}"
sandbox = true
workers = 2

[store]
{store}
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
