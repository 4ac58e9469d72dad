//! Measures custody and its store at size.

use anyhow::Result;
use clap::{Parser, Subcommand};
use mantel_tests::custody::{
    bench::{self, Options},
    place::Place,
};

/// Measures custody over many grants: memory, the start, the wheel, writes, refreshes a second, fresh bearers.
#[derive(Parser)]
#[command(name = "custody-bench", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[arg(long, default_value_t = 100_000)]
    grants: u32,
    /// By each number of refreshes at once
    #[arg(long, default_value_t = 20_000)]
    refreshes: u32,
    /// 2,000 grants and 400 refreshes: whether it works, no figures to go by
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    place: Place,
    /// Prints the figures as JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Subcommand)]
enum Part {
    /// One measurement
    #[command(hide = true)]
    Part(bench::Arguments),
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // As the gateway's control runtime.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(arguments))
}

async fn run(arguments: Arguments) -> Result<()> {
    if let Some(Part::Part(arguments)) = arguments.part {
        println!("{}", serde_json::to_string(&bench::measure(&arguments).await?)?);
        return Ok(());
    }
    let place = arguments.place.open().await?;
    let report = bench::run(&Options {
        program: std::env::current_exe()?,
        directory: place.directory.clone(),
        store: place.store.clone(),
        grants: if arguments.quick { 2_000 } else { arguments.grants },
        refreshes: if arguments.quick { 400 } else { arguments.refreshes },
    })
    .await?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}
