//! The embedded store: one file, one gateway process, durable before it answers.

mod engine;
mod fault;
mod open;
#[path = "../operations/mod.rs"]
mod operations;

use std::{path::Path, sync::Arc};

use sqlx::{SqliteConnection as Connection, sqlite::SqliteRow as Row};

use self::engine::Engine;
use super::{Schema, Step, StoreResult, sealing::Sealer};

use Sqlite as Backend;

const DIALECT: fn(&Step) -> &'static str = |step| step.sqlite;

const TABLES: &str = "SELECT name FROM sqlite_master WHERE type = 'table'";

/// What a read that a write follows ends with: nothing, since there is one writer.
macro_rules! locking {
    () => {
        ""
    };
}
use locking;

/// The store on an embedded SQLite database.
///
/// Its tasks run on the runtime that opened it; its methods may be called from any.
pub struct Sqlite {
    engine: Engine,
    sealer: Arc<Sealer>,
}

impl Sqlite {
    /// The lock on the file keeps other processes out.
    const SHARED: bool = false;

    /// Opens a file, made if it is missing, or a database in memory for tests.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] where another process holds the file; [`StoreError::Corrupt`] where it
    /// is not a whole database of ours; [`StoreError::Incompatible`] where it asks for a later binary;
    /// [`StoreError::UnknownSealKey`] where it is sealed by a key that `sealer` lacks.
    pub async fn open(database: Option<&Path>, sealer: Arc<Sealer>) -> StoreResult<Self> {
        Self::open_with(database, sealer, &Schema::default()).await
    }

    /// As a binary of that schema would.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_with(database: Option<&Path>, sealer: Arc<Sealer>, schema: &Schema) -> StoreResult<Self> {
        let lock = database.map(open::lock).transpose()?;
        let options = open::options(database)?;
        let writer = open::writer(&options, &sealer, schema).await?;
        // In memory each connection would have a database of its own.
        let readers = database.map(|_| options.clone().read_only(true));
        let engine = Engine::start(writer, options, readers, lock).await?;
        Ok(Self { engine, sealer })
    }

    /// How many groups were committed: each is one wait for the disk.
    pub fn commits(&self) -> u64 {
        self.engine.commits()
    }
}

#[cfg(test)]
mod tests;
