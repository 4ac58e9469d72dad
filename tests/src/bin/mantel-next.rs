//! The gateway as its next version might be, for tests of rolling upgrades: the same code, and a schema with one
//! more step. Takes what `mantel` takes of `serve --config DIR`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, anyhow};
use clap::Parser;
use mantel::{
    app::{self, Ports},
    config::{Sources, load},
    lifecycle,
    store::{Schema, Step},
    telemetry::logging,
};

#[derive(Parser)]
enum Next {
    /// Serves apps and EHRs.
    Serve {
        #[arg(long)]
        config: PathBuf,
    },
}

/// A table and a column that this version does not know.
fn schema() -> Schema {
    let now = Schema::default();
    let version = now.level() + 1;
    now.and(Step {
        version,
        name: "next",
        sqlite: "CREATE TABLE from_the_future (id INTEGER NOT NULL PRIMARY KEY) STRICT; \
                 ALTER TABLE grants ADD COLUMN from_the_future TEXT NOT NULL DEFAULT 'x'; \
                 UPDATE mantel_schema SET version = version + 1;",
        postgres: "CREATE TABLE from_the_future (id BIGINT NOT NULL PRIMARY KEY); \
                   ALTER TABLE grants ADD COLUMN from_the_future TEXT NOT NULL DEFAULT 'x'; \
                   UPDATE mantel_schema SET version = version + 1;",
    })
}

fn main() -> Result<ExitCode> {
    let Next::Serve { config } = Next::parse();
    let loaded = load(&Sources::of_process(vec![config])).map_err(|faults| anyhow!("{faults}"))?;
    let drain = loaded.config.server.timeouts.drain + loaded.config.server.timeouts.token;
    logging::init(logging::Format::Json, &loaded.config.telemetry.log, None)?;
    let control =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().thread_name("control").build()?;
    control.block_on(async move {
        let ports = Ports { schema: schema(), ..Ports::of_process() };
        let running = app::start(loaded.config, ports).await?;
        lifecycle::on_signals(running.stopping(), drain)?;
        running.until_stopped().await
    })?;
    Ok(ExitCode::SUCCESS)
}
