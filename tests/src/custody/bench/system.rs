//! What the system knows of this process, and what its disk does by itself.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use sqlx::{
    ConnectOptions as _, Connection as _,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

/// Resident memory that belongs to no file, in bytes.
///
/// # Errors
/// Where the system does not tell (it is Linux's).
pub fn anonymous() -> Result<u64> {
    let kilobytes = field("/proc/self/status", "RssAnon")?;
    Ok(kilobytes * 1024)
}

/// What this process has written since its start.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// By calls, files and pipes alike.
    pub bytes: u64,
    pub calls: u64,
}

/// # Errors
/// As [`anonymous`].
pub fn written() -> Result<Written> {
    Ok(Written { bytes: field("/proc/self/io", "wchar")?, calls: field("/proc/self/io", "syscw")? })
}

/// The time that this thread itself has run, whoever else wants the processor.
///
/// # Errors
/// As [`anonymous`].
pub fn own_time() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = text.split_whitespace().next().context("/proc/thread-self/schedstat is empty")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}

fn field(file: &str, name: &str) -> Result<u64> {
    let text = std::fs::read_to_string(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.with_context(|| format!("{file} has no {name}"))?.parse().with_context(|| format!("{file}: {name}"))
}

/// Commits a second of one statement each, on a database of its own with the store's settings: what the disk gives
/// without groups.
///
/// # Errors
/// If it cannot be written.
pub async fn raw_commits(directory: &Path, within: Duration) -> Result<f64> {
    let mut on = SqliteConnectOptions::new()
        .filename(directory.join("raw.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .disable_statement_logging()
        .connect()
        .await?;
    sqlx::query("CREATE TABLE IF NOT EXISTS one (id INTEGER PRIMARY KEY, body BLOB)").execute(&mut on).await?;
    let (began, mut commits) = (Instant::now(), 0_u32);
    while began.elapsed() < within {
        sqlx::query("INSERT OR REPLACE INTO one (id, body) VALUES ($1, $2)")
            .bind(i64::from(commits % 1000))
            .bind(vec![7_u8; 2000])
            .execute(&mut on)
            .await?;
        commits += 1;
    }
    let rate = f64::from(commits) / began.elapsed().as_secs_f64();
    on.close().await?;
    Ok(rate)
}
