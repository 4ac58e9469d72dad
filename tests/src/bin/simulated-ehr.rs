//! One simulated EHR on loopback, for an app team's own tests.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser;
use mantel_tests::ehr::{
    auth::PASSWORD,
    contract::Vendor,
    server::{Options, start},
};

/// A simulated EHR: SMART App Launch and FHIR, as strict as the real ones are strange.
#[derive(Parser)]
struct Arguments {
    /// epic, oracle, athena, athena-practice or generic
    #[arg(long, value_parser = vendor)]
    vendor: Vendor,
    #[arg(long, default_value_t = 9100)]
    port: u16,
    /// Plays the harsher claims about the vendor: short lifetimes, single-use refresh tokens, no wildcards
    #[arg(long)]
    strict: bool,
    /// The name in its URLs, such as epic.localhost
    #[arg(long)]
    host: Option<String>,
    /// The whole origin in its URLs, where something stands in front of it
    #[arg(long)]
    origin: Option<String>,
    /// Oracle: the origin of the patients' FHIR host
    #[arg(long)]
    patient_origin: Option<String>,
    /// A single behaviour, NAME=VALUE, such as rotation=rolling; again for more
    #[arg(long = "switch")]
    switches: Vec<String>,
    /// An app record as JSON: {"client_id":"…","redirect_uris":["…"],"launch_url":"…"}; again for more
    #[arg(long = "client")]
    clients: Vec<String>,
    /// A JSON file of app records
    #[arg(long = "clients")]
    client_files: Vec<PathBuf>,
    /// PEM of the authorities that apps' https key sets are read with
    #[arg(long)]
    ca: Option<PathBuf>,
}

fn vendor(text: &str) -> Result<Vendor, String> {
    let names = Vendor::ALL.map(Vendor::text).join(", ");
    Vendor::ALL.into_iter().find(|vendor| vendor.text() == text).ok_or_else(|| format!("expected one of {names}"))
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("simulated-ehr: {fault:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let arguments = Arguments::parse();
    let mut options = Options {
        strict: arguments.strict,
        port: arguments.port,
        host: arguments.host,
        origin: arguments.origin,
        patient_origin: arguments.patient_origin,
        ..Options::new(arguments.vendor)
    };
    for switch in &arguments.switches {
        options.switch(switch)?;
    }
    for text in &arguments.clients {
        let client = serde_json::from_str(text).with_context(|| format!("--client {text}: no app record"))?;
        options.clients.push(client);
    }
    for path in &arguments.client_files {
        options.clients_file(path)?;
    }
    if let Some(path) = &arguments.ca {
        options.ca = Some(std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    let running = start(options).await?;
    println!("{} at {}/", arguments.vendor.text(), running.origin);
    let mut bases: Vec<&String> = running.bases.values().collect();
    bases.sort();
    for base in bases {
        println!("FHIR base {base}");
    }
    if let Some(user) = running.auth.users().first() {
        println!("sign in as {}, password {PASSWORD}", user.username);
    }
    running.wait().await;
    Ok(())
}
