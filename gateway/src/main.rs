//! The binary `mantel`: exit code 0 when all went well, 2 for faults of the configuration or the command
//! line, 1 for everything else.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    cli::Cli::parse().run().unwrap_or_else(|error| {
        eprintln!("mantel: {error:#}");
        ExitCode::FAILURE
    })
}
