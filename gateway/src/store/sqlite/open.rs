//! Opening: the lock, the file, and what the engines share. What is wrong is said here, with its name, before
//! the first request.

use std::{
    fs::{File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{
    ConnectOptions as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::{
    fault::OrFault as _,
    operations::{opening, seal},
};
use crate::store::{Schema, StoreError, StoreResult, sealing::Sealer};

/// Held while the store is open.
pub(super) struct Lock {
    _file: File,
}

/// Takes the lock that makes this the only gateway process on the file.
///
/// A file beside the database, not the database itself: closing any descriptor of that would drop the
/// locks that SQLite holds on it in this process (fcntl(2)).
pub(super) fn lock(database: &Path) -> StoreResult<Lock> {
    let path = with_suffix(database, ".lock");
    let file = private(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { _file: file }),
        Err(TryLockError::WouldBlock) => Err(StoreError::Unavailable(format!(
            "{} is in use by another gateway process: one process at a time may serve from SQLite; stop it, or use \
             PostgreSQL for several",
            database.display()
        ))),
        Err(TryLockError::Error(error)) => Err(at(&path, &error)),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Opens or makes a file that only its owner may read; SQLite gives its log files the same mode.
fn private(path: &Path) -> StoreResult<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map_err(|error| at(path, &error))
}

fn at(path: &Path, error: &std::io::Error) -> StoreError {
    let text = format!("{}: {error}", path.display());
    match error.kind() {
        std::io::ErrorKind::ReadOnlyFilesystem
        | std::io::ErrorKind::StorageFull
        | std::io::ErrorKind::PermissionDenied => StoreError::ReadOnly(text),
        _ => StoreError::Unavailable(text),
    }
}

pub(super) fn options(database: Option<&Path>) -> StoreResult<SqliteConnectOptions> {
    let options = SqliteConnectOptions::new();
    let options = match database {
        Some(path) => {
            private(path)?;
            options.filename(path).journal_mode(SqliteJournalMode::Wal)
        }
        None => options.in_memory(true),
    };
    Ok(options
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5))
        .foreign_keys(true)
        .disable_statement_logging())
}

/// The writing connection, on a schema and keys that fit.
pub(super) async fn writer(
    options: &SqliteConnectOptions,
    sealer: &Sealer,
    schema: &Schema,
) -> StoreResult<SqliteConnection> {
    let mut connection = options.connect().await.or_fault()?;
    opening::check_schema(&mut connection, schema.level()).await?;
    opening::migrate(&mut connection, schema).await.map_err(|error| opening::explain(error, schema))?;
    // The file's lock says that nobody else reads it.
    seal::check(&mut connection, sealer, true).await?;
    Ok(connection)
}
