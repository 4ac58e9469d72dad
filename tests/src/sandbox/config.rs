//! Mantel's configuration for the sandbox, as the files that an operator would write.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::json;

use crate::{
    ehr::{
        auth::{
            client::{Persona, Use},
            places::Host,
        },
        server,
    },
    sandbox::{
        App,
        hospitals::{Filing, Hospital, SitePlan},
    },
};

/// Bytes of a seal key.
const SEAL_KEY: usize = 32;

/// Where Mantel is.
#[derive(Clone, Debug)]
pub struct Addresses {
    pub public: String,
    pub port: u16,
    pub admin_port: u16,
}

/// A hospital with its EHR running.
pub struct Place<'a> {
    pub hospital: Hospital,
    pub ehr: &'a server::Running,
}

impl Place<'_> {
    pub fn fhir_base(&self, plan: &SitePlan) -> &str {
        let patients = self.ehr.patient_base().filter(|_| plan.persona == Some(Persona::Patient));
        patients.unwrap_or(&self.ehr.fhir_base)
    }
}

/// Writes `mantel.toml` and `sites.d/` into a directory, with the key that seals the store; returns the file to
/// start from. What an earlier sandbox wrote there is replaced, except for the key and the store.
pub fn write(
    directory: &Path,
    addresses: &Addresses,
    apps: &[App],
    places: &[Place<'_>],
    filings: &[Filing],
) -> Result<PathBuf> {
    let sites = directory.join("sites.d");
    fs::create_dir_all(&sites).with_context(|| format!("cannot make {}", sites.display()))?;
    let key = directory.join("seal.key");
    if !key.exists() {
        let mut bytes = [0; SEAL_KEY];
        aws_lc_rs::rand::fill(&mut bytes).ok().context("no randomness for a seal key")?;
        private(&key, &bytes)?;
    }
    for place in places {
        let name = place.hospital.host.split('.').next().unwrap_or_default();
        private(&sites.join(format!("{name}.toml")), site_file(place, filings).as_bytes())?;
    }
    let main = directory.join("mantel.toml");
    private(&main, main_file(directory, addresses, apps).as_bytes())?;
    Ok(main)
}

/// Client secrets stand in these files, which the sandbox alone may do.
fn private(path: &Path, content: &[u8]) -> Result<()> {
    use std::io::Write as _;
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(path).and_then(|mut file| file.write_all(content));
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn main_file(directory: &Path, addresses: &Addresses, apps: &[App]) -> String {
    let mut text = format!(
        "# Written by the sandbox at each start.\n\n[server]\npublic_url = {}\nlisten = \"127.0.0.1:{}\"\n\
         admin_listen = \"127.0.0.1:{}\"\nsandbox = true\nworkers = 2\n\n[store]\nurl = {}\n\
         seal = [{{ id = \"sandbox\", file = \"seal.key\" }}]\n",
        quoted(&addresses.public),
        addresses.port,
        addresses.admin_port,
        quoted(&format!("sqlite://{}", directory.join("mantel.db").display())),
    );
    for app in apps {
        let _ = write!(
            text,
            "\n[apps.{}]\nname = {}\nclient_auth = {{ method = \"none\" }}\nredirect_uris = {}\n",
            app.name,
            quoted(&app.title),
            list(std::iter::once(&app.redirect).chain(&app.more_redirects).map(String::as_str)),
        );
        if let Some(launch) = &app.launch {
            let _ = writeln!(text, "launch_url = {}", quoted(launch));
        }
        let _ = writeln!(
            text,
            "origins = {}\nscopes = {}\nsites = [\"*\"]",
            list(app.origin.as_deref()),
            list([
                "launch",
                "launch/patient",
                "launch/encounter",
                "openid",
                "fhirUser",
                "profile",
                "offline_access",
                "online_access",
                "patient/*.rs",
                "user/*.rs",
            ]),
        );
    }
    text
}

fn site_file(place: &Place<'_>, filings: &[Filing]) -> String {
    let mut text = format!("# {}. Written by the sandbox at each start.\n", place.hospital.product);
    for plan in place.hospital.sites {
        let filed: Vec<&Filing> = filings.iter().filter(|filing| filing.plan.id == plan.id).collect();
        let _ = write!(
            text,
            "\n[sites.{}]\nvendor = {}\nname = {}\nfhir_base_url = {}\nregistrations = {}\n",
            plan.id,
            quoted(place.hospital.vendor.text()),
            quoted(plan.name),
            quoted(place.fhir_base(plan)),
            list(filed.iter().map(|filing| filing.id.as_str())),
        );
        if let Some(persona) = plan.persona {
            let _ = writeln!(text, "persona = {}", quoted(persona.text()));
        }
        let _ = writeln!(
            text,
            "allow_private = true\nframe_origins = {}\nstandalone_patient = \"ehr\"",
            list([place.ehr.origin.as_str()])
        );
        let auth = &place.ehr.auth;
        if !auth.rules.smart_configuration {
            let host = if plan.persona == Some(Persona::Patient) { Host::Patients } else { Host::Main };
            let _ = writeln!(
                text,
                "# No smart-configuration says who signs its id_tokens.\nid_token = {{ issuer = {}, jwks = {} }}",
                quoted(&auth.places.issuer(host)),
                quoted(&auth.places.jwks(host)),
            );
        }
        for filing in filed {
            let _ = writeln!(
                text,
                "\n[registrations.{}]\nvendor = {}\napps = {}\nuse = {}\nclient_id = {}\n\
                 client_auth = {{ method = \"client_secret_basic\", secret = {} }}\nscopes = {}",
                filing.id,
                quoted(filing.hospital.vendor.text()),
                list([filing.app.as_str()]),
                list(filing.plan.uses.iter().map(|usage| use_text(*usage))),
                quoted(&filing.client_id),
                quoted(&filing.secret),
                list(place.hospital.scopes(&filing.plan).iter().map(String::as_str)),
            );
        }
    }
    text
}

const fn use_text(usage: Use) -> &'static str {
    match usage {
        Use::EhrLaunch => "ehr-launch",
        Use::Standalone => "standalone",
        Use::Backend => "backend",
    }
}

/// JSON's strings, and lists of them, are TOML's too.
fn quoted(text: &str) -> String {
    json!(text).to_string()
}

fn list<'t>(texts: impl IntoIterator<Item = &'t str>) -> String {
    json!(texts.into_iter().collect::<Vec<_>>()).to_string()
}
