//! PostgreSQL: the store that several gateway processes share, durable before it answers.
//!
//! Nothing here asks for more than SQL that PostgreSQL-compatible distributed engines speak as well: no advisory
//! locks, no LISTEN, no extension. It is right at each isolation level from READ COMMITTED on; the database
//! (`default_transaction_isolation`) chooses.

mod connections;
mod engine;
mod fault;
mod open;
#[allow(clippy::duplicate_mod, reason = "the same SQL, compiled for each engine's driver")]
#[path = "../operations/mod.rs"]
mod operations;

use std::sync::Arc;

use sqlx::{PgConnection as Connection, postgres::PgRow as Row};

use self::engine::Engine;
use super::{Schema, Step, StoreResult, sealing::Sealer};
use crate::secret::Secret;

use Postgres as Backend;

const DIALECT: fn(&Step) -> &'static str = |step| step.postgres;

const TABLES: &str =
    "SELECT CAST(tablename AS TEXT) FROM pg_catalog.pg_tables WHERE CAST(schemaname AS TEXT) = current_schema()";

/// What a read that a write follows ends with.
macro_rules! locking {
    () => {
        " FOR UPDATE"
    };
}
use locking;

/// The store on a PostgreSQL database.
///
/// Its tasks run on the runtime that opened it; its methods may be called from any.
pub struct Postgres {
    engine: Engine,
    sealer: Arc<Sealer>,
}

impl Postgres {
    const SHARED: bool = true;

    /// Opens the database that a URL names (`postgres://user@host/database?…`), and makes its tables if it is
    /// empty.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] where the server does not let us in, or is a standby;
    /// [`StoreError::Corrupt`] where the database is another's, or a migration stands half done in it;
    /// [`StoreError::Incompatible`] where it asks for a later binary; [`StoreError::UnknownSealKey`] where it is
    /// sealed by a key that `sealer` lacks; [`StoreError::ReadOnly`] where its tables cannot be made.
    ///
    /// [`StoreError::Unavailable`]: super::StoreError::Unavailable
    /// [`StoreError::Corrupt`]: super::StoreError::Corrupt
    /// [`StoreError::Incompatible`]: super::StoreError::Incompatible
    /// [`StoreError::UnknownSealKey`]: super::StoreError::UnknownSealKey
    /// [`StoreError::ReadOnly`]: super::StoreError::ReadOnly
    pub async fn open(url: &Secret<String>, sealer: Arc<Sealer>) -> StoreResult<Self> {
        Self::open_with(url, sealer, &Schema::default()).await
    }

    /// As a binary of that schema would.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_with(url: &Secret<String>, sealer: Arc<Sealer>, schema: &Schema) -> StoreResult<Self> {
        let server = open::server(url)?;
        open::schema(&server, schema).await?;
        let engine = Engine::start(server);
        open::seal(&engine, &sealer).await?;
        Ok(Self { engine, sealer })
    }
}
