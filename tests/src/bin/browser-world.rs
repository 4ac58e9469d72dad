//! The sandbox for the tests in `tests/browser`: apps are given as JSON, addresses are told as JSON, and it ends
//! when its standard input does, so that no test can leave it behind.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use clap::Parser;
use mantel_tests::sandbox::{App, Options, Running, Sandbox};
use serde::Deserialize;
use serde_json::{Value, json};

/// Simulated EHRs, Mantel and a demo app, for tests in browsers.
#[derive(Parser)]
#[command(name = "browser-world", version)]
struct Arguments {
    /// Apps beside the demo, as JSON: `[{"name": "mine", "redirects": ["http://…"], "launch": "http://…"}]`
    #[arg(long, value_name = "JSON", default_value = "[]")]
    apps: String,
    /// The EHRs play the harsher claims about their vendors
    #[arg(long)]
    strict: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    name: String,
    redirects: Vec<String>,
    launch: Option<String>,
}

impl Wanted {
    fn app(&self) -> Result<App> {
        let (first, more) = self.redirects.split_first().context("an app without a redirect URI")?;
        let app = App::new(&self.name, first, self.launch.as_deref())?;
        more.iter().try_fold(app, |app, redirect| app.or_redirect(redirect))
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let wanted: Vec<Wanted> = serde_json::from_str(&arguments.apps).context("--apps")?;
    let apps = wanted.iter().map(Wanted::app).collect::<Result<_>>()?;
    let running = Sandbox::start(Options { apps, strict: arguments.strict, ..Options::default() }).await?;
    println!("{}", told(&running));
    // Whatever comes is not read for its content.
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    running.stop().await
}

fn told(running: &Running) -> Value {
    let ehrs: BTreeMap<&str, Value> = running
        .ehrs
        .iter()
        .map(|(name, ehr)| {
            let patients: Vec<&str> = ehr.auth.patients().iter().map(|patient| patient.id.as_str()).collect();
            (name.as_str(), json!({"origin": ehr.origin, "fhir": ehr.fhir_base, "patients": patients}))
        })
        .collect();
    let filings: Vec<Value> = running
        .filings
        .iter()
        .map(|filing| json!({"app": filing.app, "site": filing.plan.id, "client": filing.client_id}))
        .collect();
    json!({
        "demo": running.demo_url,
        "gateway": running.gateway_url,
        "admin": running.admin_url,
        "ehrs": ehrs,
        "filings": filings,
    })
}
