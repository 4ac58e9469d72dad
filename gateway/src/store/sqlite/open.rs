//! Opening: the lock, the file, the schema, the seal keys. What is wrong is said here, with its name,
//! before the first request.

use std::{
    fs::{File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{
    ConnectOptions as _, SqliteConnection,
    migrate::{Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use zeroize::Zeroizing;

use super::{fault, fault::OrFault as _};
use crate::store::{StoreError, StoreResult, records, sealing::Sealer};

/// The migrations that this binary knows, oldest first. They only add (`tests/store.rs` holds that), so
/// that a binary of the level before goes on working beside and after this one.
pub const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "begin", include_str!("../migrations/sqlite/0001_begin.sql")),
    (2, "replicas", include_str!("../migrations/sqlite/0002_replicas.sql")),
];

/// This binary's level: a schema may ask for a later one in `min_binary`.
pub const BINARY: i64 = 2;

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
pub(super) async fn writer(options: &SqliteConnectOptions, sealer: &Sealer) -> StoreResult<SqliteConnection> {
    let mut connection = options.connect().await.or_fault()?;
    check_schema(&mut connection).await?;
    migrate(&mut connection).await?;
    check_seal(&mut connection, sealer).await?;
    Ok(connection)
}

/// Refuses a database that asks for a later binary, or that is none of ours.
async fn check_schema(on: &mut SqliteConnection) -> StoreResult<()> {
    let tables: Vec<(String,)> =
        sqlx::query_as("SELECT name FROM sqlite_master WHERE type = 'table'").fetch_all(&mut *on).await.or_fault()?;
    if !tables.iter().any(|(name,)| name == "mantel_schema") {
        let foreign = tables.iter().find(|(name,)| name != "_sqlx_migrations" && !name.starts_with("sqlite_"));
        return foreign.map_or(Ok(()), |(name,)| {
            Err(StoreError::Corrupt(format!(
                "this is another program's database (it has a table {name:?} and none named \"mantel_schema\")"
            )))
        });
    }
    let schema: Option<(i64, i64)> =
        sqlx::query_as("SELECT version, min_binary FROM mantel_schema").fetch_optional(on).await.or_fault()?;
    match schema {
        None => Err(StoreError::Corrupt("mantel_schema is empty".into())),
        Some((version, needs)) if needs > BINARY => Err(StoreError::Incompatible(format!(
            "the database has schema {version}, which asks for a binary of level {needs} or later; this one is of \
             level {BINARY}: run the newer one"
        ))),
        Some(_) => Ok(()),
    }
}

async fn migrate(on: &mut SqliteConnection) -> StoreResult<()> {
    use sqlx::SqlSafeStr as _;
    let migrations = MIGRATIONS
        .iter()
        .map(|&(version, name, text)| {
            Migration::new(version, name.into(), MigrationType::Simple, text.into_sql_str(), false)
        })
        .collect();
    let mut migrator = Migrator::with_migrations(migrations);
    // A later binary's migrations are no fault: `min_binary` says whether this one may still serve.
    migrator.set_ignore_missing(true);
    migrator.run(on).await.map_err(|error| match error {
        sqlx::migrate::MigrateError::Execute(error) | sqlx::migrate::MigrateError::ExecuteMigration(error, _) => {
            fault::of(error)
        }
        other => StoreError::Corrupt(other.to_string()),
    })
}

const PROOF: &[u8] = b"mantel";

/// Refuses to start without a key that the database is sealed by, or with another one under its name.
async fn check_seal(on: &mut SqliteConnection, sealer: &Sealer) -> StoreResult<()> {
    let known: Vec<(String, Vec<u8>)> =
        sqlx::query_as("SELECT id, proof FROM seal_keys ORDER BY id").fetch_all(&mut *on).await.or_fault()?;
    for (id, proof) in &known {
        match sealer.open(records::proof_place(id), proof) {
            Ok(_) => {}
            Err(StoreError::Corrupt(_)) => {
                return Err(StoreError::Corrupt(format!(
                    "the key {id:?} in `store.seal` is not the one of that name which this database is sealed by"
                )));
            }
            Err(other) => return Err(other),
        }
    }
    let writes = sealer.writes_with();
    if !known.iter().any(|(id, _)| id == writes) {
        let proof = sealer.seal(records::proof_place(writes), Zeroizing::new(PROOF.to_vec()))?;
        sqlx::query("INSERT INTO seal_keys (id, proof) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING")
            .bind(writes)
            .bind(proof)
            .execute(on)
            .await
            .or_fault()?;
    }
    Ok(())
}
