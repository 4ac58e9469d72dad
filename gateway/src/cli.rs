//! The command line of `mantel`.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use mantel::config::{Sources, load};

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
}

#[derive(Args)]
struct From {
    /// A directory (vendors.toml, sites.d/*.toml, mantel.toml) or a file; may be repeated, later ones win.
    #[arg(long = "config", value_name = "DIR|FILE", default_value = "./mantel.toml")]
    config: Vec<PathBuf>,
}

impl Cli {
    /// # Errors
    ///
    /// What kept the command from its end, other than faults of the configuration.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Serve(from) => serve(Sources::of_process(from.config)),
            Command::Check(from) => check(&Sources::of_process(from.config)),
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

/// The call point of the server: `mantel::app::serve(sources)`.
fn serve(_sources: Sources) -> anyhow::Result<ExitCode> {
    anyhow::bail!("this build cannot serve: it has no listeners yet")
}
