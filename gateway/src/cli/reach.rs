//! Who carries out what a command asks: a gateway that runs, through its admin socket; else, with SQLite, the command
//! itself, under the file's lock.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context as _, bail};
use mantel::{
    admin::{
        client::Client,
        commands::{self, Command},
    },
    config::{Config, Sources, StoreUrl, load},
    store::{rotation::SealRotation, sealing::Sealer, sqlite::Sqlite},
};
use serde::de::DeserializeOwned;

use super::{FAULTS, From};

pub(super) type Work = std::pin::Pin<Box<dyn Future<Output = anyhow::Result<ExitCode>>>>;

/// Runs a command on what the configuration says.
pub(super) fn configured(from: From, work: impl FnOnce(Config) -> Work) -> anyhow::Result<ExitCode> {
    match load(&Sources::of_process(from.config)) {
        Ok(loaded) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(work(loaded.config))
        }
        Err(faults) => {
            write!(io::stderr().lock(), "{faults}")?;
            Ok(ExitCode::from(FAULTS))
        }
    }
}

/// Who does what is asked.
pub(super) enum Where {
    Running(Client),
    /// Nobody else has the file open, and nobody will until this is dropped.
    Here(Arc<Sqlite>, SealRotation),
}

pub(super) async fn find(config: &Config) -> anyhow::Result<Where> {
    let socket = config.admin_socket();
    if let Some(path) = &socket
        && let Some(client) = Client::connect(path).await?
    {
        return Ok(Where::Running(client));
    }
    let nobody = match &socket {
        Some(path) => format!("no gateway listens at {}", path.display()),
        None => "`server.admin_socket` is not set".to_owned(),
    };
    let StoreUrl::Sqlite(Some(file)) = &config.store.url else {
        bail!("{nobody}: with this store it is told to a running gateway, whichever of them")
    };
    if !file.exists() {
        bail!("{nobody}, and there is no database at {}", file.display());
    }
    let sealer = Arc::new(Sealer::new(&config.store.seal)?);
    let store = Sqlite::open(Some(file), sealer.clone()).await.with_context(|| nobody)?;
    let store = Arc::new(store);
    Ok(Where::Here(store.clone(), SealRotation::new(store, sealer)))
}

/// The one line with which a running gateway answers.
pub(super) async fn answer<T: DeserializeOwned>(client: Client, command: Command) -> anyhow::Result<T> {
    let mut answer = None;
    client
        .send(command, |line| {
            answer = Some(commands::read::<T>(line)?);
            Ok(())
        })
        .await?;
    answer.context("the gateway said nothing")
}
