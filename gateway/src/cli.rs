//! The command line of `mantel`.

mod keys;
mod reach;
mod registrations;

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use mantel::{
    app::{self, Ports},
    config::{Sources, load},
    lifecycle,
    telemetry::logging,
};

/// A configuration with faults; clap says the same of a command line.
const FAULTS: u8 = 2;

/// One SMART on FHIR API in front of many EHRs.
#[derive(Parser)]
#[command(name = "mantel", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves apps and EHRs.
    Serve(From),
    /// Checks the configuration: prints its faults, or what each site and app resolves to and where from.
    Check(From),
    /// The keys that seal the store, and those that sign id_tokens.
    Keys(keys::Keys),
    /// What users have authorised.
    Grants(keys::Grants),
    /// What was filed at vendors' portals, and whether EHRs take it.
    Registrations(registrations::Registrations),
}

#[derive(Args)]
struct From {
    /// A directory (vendors.toml, sites.d/*.toml, mantel.toml) or a file; may be repeated, later ones win.
    #[arg(long = "config", value_name = "DIR|FILE", default_value = "./mantel.toml", global = true)]
    config: Vec<PathBuf>,
}

impl Cli {
    /// # Errors
    ///
    /// What kept the command from its end, other than faults of the configuration.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Serve(from) => serve(&Sources::of_process(from.config)),
            Command::Check(from) => check(&Sources::of_process(from.config)),
            Command::Keys(keys) => keys.run(),
            Command::Grants(grants) => grants.run(),
            Command::Registrations(registrations) => registrations.run(),
        }
    }
}

fn check(sources: &Sources) -> anyhow::Result<ExitCode> {
    match load(sources) {
        Ok(loaded) => {
            let mut out = io::stdout().lock();
            out.write_all(loaded.describe().as_bytes())?;
            for note in &loaded.notes {
                writeln!(out, "\nnote: {note}")?;
            }
            out.flush()?;
            Ok(ExitCode::SUCCESS)
        }
        Err(faults) => {
            write!(io::stderr().lock(), "{faults}")?;
            Ok(ExitCode::from(FAULTS))
        }
    }
}

fn serve(sources: &Sources) -> anyhow::Result<ExitCode> {
    let loaded = match load(sources) {
        Ok(loaded) => loaded,
        Err(faults) => {
            write!(io::stderr().lock(), "{faults}")?;
            return Ok(ExitCode::from(FAULTS));
        }
    };
    let format = if io::stderr().is_terminal() { logging::Format::Text } else { logging::Format::Json };
    // A flight that an EHR has not answered yet is waited for: its answer may be the only live token.
    let timeouts = &loaded.config.server.timeouts;
    let drain = timeouts.drain + timeouts.token;
    let control =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().thread_name("control").build()?;
    let traces = app::traces(&loaded.config, control.handle().clone())?;
    logging::init(format, &loaded.config.telemetry.log, traces.as_ref())?;
    for note in &loaded.notes {
        tracing::warn!(%note, "configuration");
    }
    control.block_on(async move {
        lifecycle::outlive_limited_files()?;
        let running = app::start(loaded.config, Ports::of_process()).await?;
        lifecycle::on_signals(running.stopping(), drain)?;
        running.until_stopped().await
    })?;
    if let Some(traces) = traces {
        traces.stop();
    }
    Ok(ExitCode::SUCCESS)
}
