//! Opening: the server, and what the engines share.

use std::{str::FromStr as _, sync::Arc, time::Duration};

use sqlx::{Connection as _, migrate::MigrateError, postgres::PgConnectOptions};

use super::{
    connections::{Limits, Server, Spread},
    engine::Engine,
    fault,
    operations::{self, opening},
};
use crate::{
    secret::Secret,
    store::{Schema, StoreError, StoreResult, sealing::Sealer},
};

/// For the first connection, so that a start ends with a reason.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A step may work long on big tables. It may not wait long for a lock: who comes after it waits behind it.
const LIMITS: Limits =
    Limits { statement: Duration::ZERO, lock: Duration::from_secs(2), idle_in_transaction: Duration::from_secs(60) };

/// Tries of the schema's steps: where replicas start at once, one makes each step and the others find it made.
const TRIES: u32 = 8;

pub(super) fn server(url: &Secret<String>) -> StoreResult<Server> {
    let options = PgConnectOptions::from_str(url.expose())
        // Not shown: what stands there may hold a password in a form that we do not know.
        .map_err(|_| StoreError::Unavailable("store.url is not a URL of PostgreSQL that can be used".into()))?;
    Ok(Server::new(options))
}

/// Brings the database to the schema, if it is ours and serves us.
pub(super) async fn schema(server: &Server, schema: &Schema) -> StoreResult<()> {
    let mut on = tokio::time::timeout(CONNECT_TIMEOUT, server.connect(LIMITS))
        .await
        .map_err(|_| server.silent(CONNECT_TIMEOUT))?
        .map_err(|refused| refused.error)?;
    let spread = Spread::default();
    let mut tries = 1;
    loop {
        opening::check_schema(&mut on, schema.level()).await?;
        match opening::migrate(&mut on, schema).await {
            Ok(()) => break,
            Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _))
                if tries < TRIES && fault::is_race(&error) =>
            {
                tries += 1;
                tokio::time::sleep(spread.up_to(Duration::from_millis(400))).await;
            }
            Err(error) => return Err(opening::explain(error, schema)),
        }
    }
    let _ = on.close().await;
    Ok(())
}

/// Checks the seal keys.
pub(super) async fn seal(engine: &Engine, sealer: &Arc<Sealer>) -> StoreResult<()> {
    let sealer = sealer.clone();
    engine.write(move |on| Box::pin(async move { operations::seal::check(on, &sealer, false).await })).await
}
