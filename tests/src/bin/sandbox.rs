//! All of Mantel in one process, to look at and to try one's own app in.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use mantel_tests::{
    ehr::auth::PASSWORD,
    sandbox::{App, Options, Running, Sandbox, hospitals::HOSPITALS},
};

/// Five simulated EHRs, Mantel, and a demo app. Prints the demo app's address; Ctrl-C ends it.
#[derive(Parser)]
#[command(name = "sandbox", version)]
struct Arguments {
    /// Uses this port and the seven after it, in the place of any free ones
    #[arg(long, value_name = "FIRST")]
    ports: Option<u16>,
    /// Keeps configuration and store here
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The EHRs play the harsher claims about their vendors: 5 minutes, single-use refresh tokens, no wildcards
    #[arg(long)]
    strict: bool,
    /// The EHRs' access tokens live 30 seconds (Oracle's 2 minutes), so that one can watch them being renewed
    #[arg(long)]
    fast: bool,
    /// Runs an app of your own beside the demo: its client id; a public client with PKCE
    #[arg(long, value_name = "NAME", requires = "redirect")]
    app: Option<String>,
    /// Its redirect URI
    #[arg(long, value_name = "URL", requires = "app")]
    redirect: Option<String>,
    /// Where an EHR launch opens it
    #[arg(long, value_name = "URL", requires = "app")]
    launch: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let app = match (&arguments.app, &arguments.redirect) {
        (Some(name), Some(redirect)) => Some(App::new(name, redirect, arguments.launch.as_deref())?),
        _ => None,
    };
    let options = Options {
        ports: arguments.ports,
        data: arguments.data,
        strict: arguments.strict,
        fast: arguments.fast,
        apps: app.clone().into_iter().collect(),
        npm: None,
    };
    let running = Sandbox::start(options).await?;
    print!("{}", told(&running, app.as_ref()));
    tokio::signal::ctrl_c().await?;
    println!();
    running.stop().await
}

fn told(running: &Running, app: Option<&App>) -> String {
    let mut text = format!("\n  Demo app   {}\n\n", running.demo_url);
    for (hospital, (_, ehr)) in HOSPITALS.iter().zip(&running.ehrs) {
        text += &format!("  {:<28} {:<26} {}/\n", hospital.name, format!("({})", hospital.product), ehr.origin);
    }
    text += &format!("  Everybody's password there is {PASSWORD:?}; nobody is real.\n\n");
    text += &format!("  Mantel's uniform base   {}/fhir/r4\n", running.gateway_url);
    text += &format!("  A site's base           {}\n", running.site_base("epic"));
    text += &format!("  Metrics                 {}/metrics\n", running.admin_url);
    text += &format!("  Its configuration       {}\n", running.data_dir.join("mantel.toml").display());
    if let Some(app) = app {
        text += &format!(
            "\n  Your app's client id    {} (public, PKCE)\n  Its redirect URI        {}\n",
            app.name, app.redirect
        );
    }
    text + "\n  Ctrl-C ends it.\n"
}
