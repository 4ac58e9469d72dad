//! Counts what interrupted refreshes cost.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use mantel_tests::custody::{
    interrupt::{self, Options, victim},
    place::Place,
};

/// Kills a process that has refreshes in flight, again and again, before an EHR that burns refresh tokens, and
/// counts the refreshes that were cut by the instant, with the logins that it cost. Fails if one was lost that need
/// not be.
#[derive(Parser)]
#[command(name = "interrupt", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// At least so many kills
    #[arg(long, default_value_t = 250)]
    kills: u32,
    /// At least so many interrupted refreshes
    #[arg(long, default_value_t = 10_000)]
    interrupted: u64,
    /// Refreshes in flight at any time
    #[arg(long, default_value_t = 40)]
    in_flight: u32,
    /// Living logins
    #[arg(long, default_value_t = 8_000)]
    logins: u32,
    #[command(flatten)]
    place: Place,
    /// Of the kills' instants and the EHR's pauses
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Tells the last process that a minute has passed, in the place of waiting for the end of the doubts
    #[arg(long)]
    ahead: bool,
    /// Prints the report as JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Subcommand)]
enum Part {
    /// The process that is killed
    #[command(hide = true)]
    Victim(victim::Arguments),
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(Part::Victim(arguments)) = arguments.part {
        victim::run(arguments).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let place = arguments.place.open().await?;
    let report = interrupt::run(&Options {
        program: std::env::current_exe()?,
        directory: place.directory.clone(),
        store: place.store.clone(),
        logins: arguments.logins,
        in_flight: arguments.in_flight,
        kills: arguments.kills,
        interrupted: arguments.interrupted,
        seed: arguments.seed,
        ahead: arguments.ahead,
        progress: true,
    })
    .await?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(if report.wrong_count == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
