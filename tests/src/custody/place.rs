//! Where a program that measures custody has its store, as its command line says.

use std::path::PathBuf;

use anyhow::Result;
use tempfile::TempDir;

use crate::harness::postgres::Postgres;

#[derive(clap::Args)]
pub struct Place {
    /// An empty store, as in `store.url`; else SQLite in a directory that goes with the program
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// A PostgreSQL of its own (Debian's package) as the store
    #[arg(long, conflicts_with = "store")]
    postgres: bool,
    /// Keeps what the program writes here
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// It is there until this is dropped, unless it is to be kept.
pub struct Opened {
    /// As in `store.url`; none: SQLite in the directory.
    pub store: Option<String>,
    pub directory: PathBuf,
    _server: Option<Postgres>,
    _made: Option<TempDir>,
}

impl Place {
    /// Starts and makes what is asked for.
    ///
    /// # Errors
    /// If PostgreSQL does not start, or the directory cannot be made.
    pub async fn open(self) -> Result<Opened> {
        let server = if self.postgres { Some(Postgres::start().await?) } else { None };
        let store = match &server {
            Some(server) => Some(server.database().await?),
            None => self.store,
        };
        let (directory, made) = match self.data {
            Some(directory) => {
                std::fs::create_dir_all(&directory)?;
                (directory, None)
            }
            None => {
                let made = tempfile::tempdir()?;
                (made.path().to_owned(), Some(made))
            }
        };
        Ok(Opened { store, directory, _server: server, _made: made })
    }
}
