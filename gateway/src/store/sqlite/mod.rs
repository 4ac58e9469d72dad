//! The embedded store: one file, one gateway process, durable before it answers.

mod engine;
mod fault;
mod open;
#[path = "../operations/mod.rs"]
mod operations;

use std::{path::Path, sync::Arc};

use sqlx::{SqliteConnection as Connection, sqlite::SqliteRow as Row};

use self::engine::Engine;
pub use self::open::{BINARY, MIGRATIONS};
use super::{StoreResult, sealing::Sealer};

use Sqlite as Backend;

/// The store on an embedded SQLite database.
///
/// Its tasks run on the runtime that opened it; its methods may be called from any.
pub struct Sqlite {
    engine: Engine,
    sealer: Arc<Sealer>,
}

impl Sqlite {
    /// Opens a file, made if it is missing, or a database in memory for tests.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] where another process holds the file; [`StoreError::Corrupt`] where it
    /// is not a whole database of ours; [`StoreError::Incompatible`] where it asks for a later binary;
    /// [`StoreError::UnknownSealKey`] where it is sealed by a key that `sealer` lacks.
    pub async fn open(database: Option<&Path>, sealer: Arc<Sealer>) -> StoreResult<Self> {
        let lock = database.map(open::lock).transpose()?;
        let options = open::options(database)?;
        let writer = open::writer(&options, &sealer).await?;
        // In memory each connection would have a database of its own.
        let readers = database.map(|_| options.clone().read_only(true));
        let engine = Engine::start(writer, options, readers, lock).await?;
        Ok(Self { engine, sealer })
    }

    /// Commits what is queued and lets the file go. What comes later is refused as unavailable.
    pub async fn close(&self) {
        self.engine.close().await;
    }
}

#[cfg(test)]
mod tests;
