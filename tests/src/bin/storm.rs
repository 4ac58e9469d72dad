//! Gateways in a storm.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use mantel_tests::storm::{self, FaultKind, Options};

/// Runs gateways over one store before the simulated EHRs, with apps that read all the while, and kills, stops,
/// cuts, delays, fills and sets the clock. Fails if a login was lost, a refresh token used twice, or data of
/// another patient served, except where that cannot be otherwise.
#[derive(Parser)]
#[command(name = "storm", version)]
struct Arguments {
    /// How many gateways; SQLite serves one
    #[arg(long, default_value_t = 1)]
    gateways: usize,
    #[arg(long, value_enum, default_value_t = Store::Sqlite)]
    store: Store,
    /// How long things go wrong
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Of the faults' kinds and instants
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What goes wrong; else everything
    #[arg(long, value_enum, value_delimiter = ',')]
    faults: Vec<FaultKind>,
    /// Patients at each of the ten EHRs, each with two apps; at most 10
    #[arg(long, default_value_t = 5)]
    patients: usize,
    /// Copies the gateways' logs there
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Store {
    Sqlite,
    Postgres,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.store == Store::Sqlite && arguments.gateways != 1 {
        bail!("--gateways {}: SQLite serves one; expected --store postgres", arguments.gateways);
    }
    let faults = match arguments.faults.as_slice() {
        [] => FaultKind::value_variants().to_vec(),
        chosen => chosen.to_vec(),
    };
    let report = storm::run(&Options {
        gateways: arguments.gateways,
        postgres: arguments.store == Store::Postgres,
        seconds: arguments.seconds,
        seed: arguments.seed,
        faults,
        patients: arguments.patients,
        progress: true,
        logs: arguments.logs,
    })
    .await?;
    print!("{report}");
    Ok(if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
