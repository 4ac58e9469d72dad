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
    faults: Vec<Fault>,
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

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Fault {
    /// `kill -9` of a gateway
    Kill,
    /// SIGSTOP, and later SIGCONT
    Stop,
    /// PostgreSQL restarts, three ways, or stands still
    Database,
    /// The network to an EHR is cut, silent or slow
    Ehr,
    /// The network to PostgreSQL is cut, silent or slow
    Store,
    /// An EHR rotates, and its answer is lost
    LostAnswer,
    /// A gateway's disk is full
    Disk,
    /// A gateway's clock is an hour off
    Clock,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.store == Store::Sqlite && arguments.gateways != 1 {
        bail!("--gateways {}: SQLite serves one; expected --store postgres", arguments.gateways);
    }
    let faults = match arguments.faults.as_slice() {
        [] => FaultKind::ALL.to_vec(),
        chosen => chosen.iter().map(|fault| kind(*fault)).collect(),
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

const fn kind(fault: Fault) -> FaultKind {
    match fault {
        Fault::Kill => FaultKind::Kill,
        Fault::Stop => FaultKind::Stop,
        Fault::Database => FaultKind::Database,
        Fault::Ehr => FaultKind::Ehr,
        Fault::Store => FaultKind::Store,
        Fault::LostAnswer => FaultKind::LostAnswer,
        Fault::Disk => FaultKind::Disk,
        Fault::Clock => FaultKind::Clock,
    }
}
