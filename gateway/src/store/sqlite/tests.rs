//! The engine under faults: what fails fails alone, and nothing is acknowledged that was not committed.

use futures_util::future::join_all;
use sqlx::{ConnectOptions as _, SqliteConnection, sqlite::SqliteConnectOptions};

use super::{engine::Engine, fault, fault::OrFault as _, open};
use crate::store::{StoreError, StoreResult};

async fn engine(options: SqliteConnectOptions, setup: &[&'static str]) -> Engine {
    let mut writer = options.connect().await.unwrap();
    for statement in setup {
        sqlx::query(*statement).execute(&mut writer).await.unwrap();
    }
    Engine::start(writer, options, None, None).await.unwrap()
}

fn in_memory() -> SqliteConnectOptions {
    SqliteConnectOptions::new().in_memory(true)
}

const TABLE: &str = "CREATE TABLE t (n INTEGER PRIMARY KEY, filler BLOB)";

async fn insert(on: &mut SqliteConnection, n: i64, bytes: usize) -> StoreResult<()> {
    sqlx::query("INSERT INTO t (n, filler) VALUES ($1, $2)")
        .bind(n)
        .bind(vec![7_u8; bytes])
        .execute(on)
        .await
        .map(drop)
        .or_fault()
}

async fn add(engine: &Engine, n: i64, bytes: usize) -> StoreResult<()> {
    engine.write(move |on| Box::pin(insert(on, n, bytes))).await
}

async fn numbers(engine: &Engine) -> Vec<i64> {
    let read = engine.read(|on| {
        Box::pin(
            async move { sqlx::query_as::<_, (i64,)>("SELECT n FROM t ORDER BY n").fetch_all(on).await.or_fault() },
        )
    });
    read.await.unwrap().into_iter().map(|(n,)| n).collect()
}

#[tokio::test]
async fn what_fails_in_a_group_fails_alone_and_whole() {
    let engine = engine(in_memory(), &[TABLE]).await;
    let twice = engine.write(|on| {
        Box::pin(async move {
            insert(on, 100, 1).await?;
            // The second breaks the key: the first must go as well.
            insert(on, 100, 1).await
        })
    });
    let singles = join_all((0..20).map(|n| add(&engine, n, 1)));
    let (twice, singles) = tokio::join!(twice, singles);
    assert!(matches!(twice, Err(StoreError::Corrupt(_))));
    assert!(singles.iter().all(Result::is_ok));
    assert_eq!(numbers(&engine).await, (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_does_not_fit_on_the_disk_is_not_acknowledged() {
    let engine = engine(in_memory(), &[TABLE, "PRAGMA max_page_count = 40"]).await;
    let added = join_all((0..64).map(|n| add(&engine, n, 8000))).await;
    let stored: Vec<_> = (0..64).zip(&added).filter(|(_, it)| it.is_ok()).map(|(n, _)| n).collect();
    assert!(!stored.is_empty() && stored.len() < 64);
    assert!(added.iter().filter_map(|it| it.as_ref().err()).all(|it| matches!(it, StoreError::ReadOnly(_))));
    assert_eq!(numbers(&engine).await, stored, "the acknowledged ones, and no other");
    // Room again, and it goes on.
    let room = engine.write(|on| {
        Box::pin(async move { sqlx::query("DELETE FROM t").execute(on).await.map(drop).map_err(fault::of) })
    });
    room.await.unwrap();
    add(&engine, 1, 8000).await.unwrap();
}

/// Readiness asks this: it must not be content with what is in memory.
#[tokio::test]
async fn a_ping_finds_a_file_that_takes_no_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.db");
    let key = crate::config::SealKey { id: "k".into(), bytes: crate::secret::Secret::new([1; 32]) };
    let sealer = std::sync::Arc::new(crate::store::sealing::Sealer::new(&[key]).unwrap());
    let store = super::Sqlite::open(Some(&path), sealer).await.unwrap();
    for _ in 0..3 {
        let before = std::fs::metadata(path.with_extension("db-wal")).unwrap().len();
        crate::store::Store::ping(&store).await.unwrap();
        assert!(std::fs::metadata(path.with_extension("db-wal")).unwrap().len() > before, "nothing was written");
    }
}

#[tokio::test]
async fn a_read_only_file_takes_no_writes() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new().filename(dir.path().join("t.db"));
    engine(options.clone().create_if_missing(true), &[TABLE]).await.close().await;
    let engine = engine(options.read_only(true), &[]).await;
    assert!(matches!(add(&engine, 1, 1).await, Err(StoreError::ReadOnly(_))));
    assert!(numbers(&engine).await.is_empty());
}

/// Each is told after one wait for the lock, or two, not after all the others'.
#[tokio::test]
async fn who_waits_for_a_lock_does_not_wait_for_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new()
        .filename(dir.path().join("t.db"))
        .create_if_missing(true)
        .busy_timeout(std::time::Duration::from_millis(500));
    let engine = engine(options.clone(), &[TABLE]).await;
    let mut beside = options.connect().await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut beside).await.unwrap();
    let began = crate::clock::Instant::now();
    let added = join_all((0..100).map(|n| add(&engine, n, 1))).await;
    assert!(added.iter().all(|it| matches!(it, Err(StoreError::Unavailable(_)))));
    assert!(began.elapsed().as_secs() < 10, "{:?} instead of a second", began.elapsed());
    sqlx::query("ROLLBACK").execute(&mut beside).await.unwrap();
    add(&engine, 1, 1).await.unwrap();
    assert_eq!(numbers(&engine).await, [1]);
}

/// Only so is a commit on the disk when it returns (https://www.sqlite.org/pragma.html#pragma_synchronous).
#[tokio::test]
async fn each_commit_is_synced() {
    let dir = tempfile::tempdir().unwrap();
    let mut connection = open::options(Some(&dir.path().join("t.db"))).unwrap().connect().await.unwrap();
    let (journal,): (String,) = sqlx::query_as("PRAGMA journal_mode").fetch_one(&mut connection).await.unwrap();
    let (synchronous,): (i64,) = sqlx::query_as("PRAGMA synchronous").fetch_one(&mut connection).await.unwrap();
    assert_eq!((journal.as_str(), synchronous), ("wal", 2));
}

#[tokio::test]
async fn a_caller_who_hangs_up_interrupts_nothing() {
    let engine = engine(in_memory(), &[TABLE]).await;
    {
        let mut add = std::pin::pin!(add(&engine, 1, 1));
        // Polled once it is queued; then its caller is gone.
        assert!(futures_util::poll!(add.as_mut()).is_pending());
    }
    assert_eq!(numbers(&engine).await, [1]);
}

#[tokio::test]
async fn beyond_the_queue_it_says_so_at_once() {
    let engine = engine(in_memory(), &[TABLE]).await;
    let added = join_all((0..5000).map(|n| add(&engine, n, 1))).await;
    let refused = added.iter().filter(|it| matches!(it, Err(StoreError::Unavailable(_)))).count();
    let stored = numbers(&engine).await.len();
    assert!(refused > 0 && stored + refused == 5000, "{stored} stored, {refused} refused");
}
