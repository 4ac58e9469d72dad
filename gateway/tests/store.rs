//! The store: the contract on SQLite, and what is SQLite's own: the lock, the file, kill -9.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod store_contract;

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use mantel::{
    config::SealKey,
    secret::Secret,
    store::{
        Begun, EndReason, Finished, GrantId, GrantState, STEPS, Schema, SharedStore, Step, Store, StoreError,
        StoreResult,
        sealing::{Sealer, seal_successor},
        sqlite::Sqlite,
    },
};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use store_contract::samples::*;
use tempfile::TempDir;

fn sealer(keys: &[(&str, u8)]) -> Arc<Sealer> {
    let keys: Vec<_> =
        keys.iter().map(|(id, byte)| SealKey { id: (*id).into(), bytes: Secret::new([*byte; 32]) }).collect();
    Arc::new(Sealer::new(&keys).unwrap())
}

async fn open(path: &Path) -> Sqlite {
    Sqlite::open(Some(path), sealer(&[("one", 1)])).await.unwrap()
}

/// Why a file is refused.
async fn refusal(path: &Path, keys: &[(&str, u8)]) -> StoreError {
    match Sqlite::open(Some(path), sealer(keys)).await {
        Ok(_) => panic!("it was opened"),
        Err(error) => error,
    }
}

async fn in_memory() -> (Sqlite, ()) {
    (Sqlite::open(None, sealer(&[("one", 1)])).await.unwrap(), ())
}

async fn on_disk() -> (Sqlite, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (open(&dir.path().join("mantel.db")).await, dir)
}

mod memory {
    crate::contract!(crate::in_memory);
}

mod file {
    crate::contract!(crate::on_disk);
}

/// A file that processes come to and leave.
struct File(TempDir);

impl File {
    async fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

#[async_trait::async_trait(?Send)]
impl store_contract::rotation::Database for File {
    async fn open(&self, sealer: Arc<Sealer>) -> StoreResult<SharedStore> {
        Ok(Arc::new(Sqlite::open(Some(&self.0.path().join("mantel.db")), sealer).await?))
    }

    async fn close(&self, store: SharedStore) {
        store.close().await;
    }
}

crate::rotation_contract!(crate::File::new);

/// A connection beside the store's.
async fn beside(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).connect().await.unwrap()
}

async fn tell(path: &Path, statement: &'static str) {
    let mut connection = beside(path).await;
    sqlx::query(statement).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

// ---- the file ----------------------------------------------------------------------------------------

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let (store, dir) = on_disk().await;
    let grant = stored_grant(&store).await;
    store.close().await;
    assert!(matches!(store.ping().await, Err(StoreError::Unavailable(_))), "a closed store takes nothing");
    let again = open(&dir.path().join("mantel.db")).await;
    assert_eq!(again.grant(grant.id).await.unwrap().unwrap().tokens.access, grant.tokens.access);
}

#[tokio::test]
async fn what_is_queued_is_committed_at_the_end() {
    let (store, dir) = on_disk().await;
    let (grants, launch) = ((0..50).map(|_| grant()).collect::<Vec<_>>(), launch());
    let codes: Vec<_> = grants.iter().map(|grant| (token(), code(grant))).collect();
    let made = grants.iter().zip(&codes).map(|(grant, (hash, code))| store.create_grant(grant, *hash, code, launch.id));
    let (made, ()) = tokio::join!(futures_util::future::join_all(made), store.close());
    assert!(made.iter().all(Result::is_ok));
    assert_eq!(open(&dir.path().join("mantel.db")).await.count_grants().await.unwrap()[0], 50);
}

#[tokio::test]
async fn a_second_process_is_refused() {
    let (store, dir) = on_disk().await;
    let path = dir.path().join("mantel.db");
    let refused = refusal(&path, &[("one", 1)]).await;
    assert!(matches!(&refused, StoreError::Unavailable(text) if text.contains("another gateway process")), "{refused}");
    store.close().await;
    open(&path).await;
}

#[cfg(unix)]
#[tokio::test]
async fn only_its_owner_may_read_the_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let (store, dir) = on_disk().await;
    stored_grant(&store).await;
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", entry.file_name());
    }
}

#[tokio::test]
async fn a_foreign_database_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mantel.db");
    let mut other = SqliteConnectOptions::new().filename(&path).create_if_missing(true).connect().await.unwrap();
    sqlx::query("CREATE TABLE patients (name TEXT)").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    let refused = refusal(&path, &[("one", 1)]).await;
    assert!(matches!(&refused, StoreError::Corrupt(text) if text.contains("\"patients\"")), "{refused}");
}

#[tokio::test]
async fn what_is_no_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mantel.db");
    std::fs::write(&path, "a text that somebody put here ".repeat(500)).unwrap();
    assert!(matches!(refusal(&path, &[("one", 1)]).await, StoreError::Corrupt(_)));
}

#[tokio::test]
async fn a_cut_database_is_a_named_fault_wherever_it_is_cut() {
    let (store, dir) = on_disk().await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(stored_grant(&store).await.id);
    }
    store.close().await;
    let whole = std::fs::read(dir.path().join("mantel.db")).unwrap();
    // Cut at a page's border, within a page, within the header.
    for length in [whole.len() - 4096, whole.len() / 2, whole.len() / 2 + 1000, 8192, 2000, 50] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mantel.db");
        std::fs::write(&path, &whole[..length]).unwrap();
        let refused = refusal(&path, &[("one", 1)]).await;
        assert!(matches!(refused, StoreError::Corrupt(_)), "{length} of {}: {refused}", whole.len());
    }
    // A last page that is there in part is found where it is read.
    let path = dir.path().join("part.db");
    std::fs::write(&path, &whole[..whole.len() - 4000]).unwrap();
    let store = open(&path).await;
    for id in ids {
        let found = store.grant(id).await;
        assert!(matches!(found, Ok(Some(_)) | Err(StoreError::Corrupt(_))), "{found:?}");
    }
}

#[tokio::test]
async fn a_damaged_page_is_a_named_fault() {
    let (store, dir) = on_disk().await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(stored_grant(&store).await.id);
    }
    store.close().await;
    let path = dir.path().join("mantel.db");
    let mut bytes = std::fs::read(&path).unwrap();
    // All pages but the schema's are nonsense.
    let page = 4096;
    let schema_ends = bytes.windows(11).rposition(|it| it == b"CREATE TABL").map_or(page, |at| (at / page + 1) * page);
    for byte in &mut bytes[schema_ends..] {
        *byte = byte.wrapping_mul(31).wrapping_add(7);
    }
    std::fs::write(&path, bytes).unwrap();
    match Sqlite::open(Some(&path), sealer(&[("one", 1)])).await {
        Err(error) => assert!(matches!(error, StoreError::Corrupt(_)), "{error}"),
        Ok(store) => {
            let found = store.grant(ids[0]).await;
            assert!(matches!(found, Err(StoreError::Corrupt(_))), "{found:?}");
        }
    }
}

// ---- seal keys ---------------------------------------------------------------------------------------

#[tokio::test]
async fn keys_are_changed_without_a_gap() {
    let (store, dir) = on_disk().await;
    let path = dir.path().join("mantel.db");
    let old = stored_grant(&store).await;
    let sub = store.subject(&"general".parse().unwrap(), "somebody", "first").await.unwrap();
    store.close().await;
    let store = Sqlite::open(Some(&path), sealer(&[("two", 2), ("one", 1)])).await.unwrap();
    assert_eq!(store.grant(old.id).await.unwrap().unwrap().tokens.access, old.tokens.access);
    assert_eq!(store.subject(&"general".parse().unwrap(), "somebody", "second").await.unwrap(), sub);
    // The same user's new authorization takes the old one's place, though they are named by other keys.
    let new = mantel::store::Grant { id: grant().id, ..old.clone() };
    store_grant(&store, &new).await;
    let state = store.grant(old.id).await.unwrap().unwrap().state;
    assert!(matches!(state, GrantState::Ended { reason: EndReason::Superseded, .. }));
    store.close().await;
    for lacking in ["one", "two"] {
        let others: &[_] = if lacking == "one" { &[("two", 2)] } else { &[("one", 1)] };
        let refused = refusal(&path, others).await;
        assert!(matches!(&refused, StoreError::UnknownSealKey(id) if id == lacking), "{refused}");
    }
}

#[tokio::test]
async fn another_key_of_the_same_name_is_refused() {
    let (store, dir) = on_disk().await;
    store.close().await;
    let refused = refusal(&dir.path().join("mantel.db"), &[("one", 9)]).await;
    assert!(matches!(&refused, StoreError::Corrupt(text) if text.contains("\"one\"")), "{refused}");
}

#[tokio::test]
async fn tokens_cannot_be_moved_from_grant_to_grant() {
    let (store, dir) = on_disk().await;
    let (one, other) = (stored_grant(&store).await, stored_grant(&store).await);
    tell(&dir.path().join("mantel.db"), "UPDATE grants SET tokens = (SELECT tokens FROM grants ORDER BY id LIMIT 1)")
        .await;
    let found = [store.grant(one.id).await, store.grant(other.id).await];
    assert_eq!(found.iter().filter(|it| matches!(it, Err(StoreError::Corrupt(_)))).count(), 1);
    // The others are still refreshed.
    assert_eq!(store.grants_after(None, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_dump_holds_no_secret_and_no_patient() {
    let (store, dir) = on_disk().await;
    let (grant, tokens) = with_tokens(&store).await;
    let refresh = tokens.refresh.as_ref().unwrap().hash;
    let successor = seal_successor("mtl_rt_presented", &format!("mtl_rt_{CANARY}"));
    let next = new_tokens(grant.id);
    store.rotate_app_token(refresh, &next, &successor, std::time::Duration::from_secs(30), NOW).await.unwrap();
    store.begin_refresh(grant.id, 1, boot(), NOW).await.unwrap();
    store.finish_refresh(grant.id, 1, &ehr_tokens(2), Some(&grant.facts), NOW).await.unwrap();
    store.keep_ehr_launch(token(), &ehr_launch()).await.unwrap();
    let opened = launch();
    store.open_launch(&opened).await.unwrap();
    store.advance_launch(mantel::store::LaunchStep::Opened, &at_ehr(opened, token())).await.unwrap();
    store.subject(&"general".parse().unwrap(), &format!("ehr-subject-{CANARY}"), "sub").await.unwrap();
    store.remember_jti("app", CANARY, at(60)).await.unwrap();
    let key = mantel::store::SigningKey {
        kid: "kid".into(),
        pkcs8: Secret::new(format!("key-{CANARY}").into_bytes()),
        created: NOW,
    };
    store.add_signing_key(&key, NOW).await.unwrap();
    let doomed = stored_grant(&store).await;
    store.end_grant(doomed.id, EndReason::Logout, None, &[revocation()], NOW).await.unwrap();
    assert_eq!(secrets(dir.path()), Vec::<String>::new());
    store.close().await;
    assert_eq!(secrets(dir.path()), Vec::<String>::new());
    // The search finds what is there.
    assert!(contains(dir.path(), "viewer-epic").contains(&"mantel.db".to_owned()));
}

fn secrets(dir: &Path) -> Vec<String> {
    contains(dir, CANARY)
}

/// The files of a directory that hold a text.
fn contains(dir: &Path, text: &str) -> Vec<String> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let holding = files.filter(|path| memchr::memmem::find(&std::fs::read(path).unwrap(), text.as_bytes()).is_some());
    holding.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

// ---- the schema --------------------------------------------------------------------------------------

#[tokio::test]
async fn a_database_that_asks_for_a_later_binary_is_refused() {
    let (store, dir) = on_disk().await;
    let path = dir.path().join("mantel.db");
    store.close().await;
    tell(&path, "UPDATE mantel_schema SET version = 7").await;
    open(&path).await.close().await;
    tell(&path, "UPDATE mantel_schema SET min_binary = 1000").await;
    let refused = refusal(&path, &[("one", 1)]).await;
    assert!(matches!(&refused, StoreError::Incompatible(text) if text.contains("1000")), "{refused}");
}

#[tokio::test]
async fn a_later_binarys_migration_is_no_fault() {
    let (store, dir) = on_disk().await;
    let path = dir.path().join("mantel.db");
    let grant = stored_grant(&store).await;
    store.close().await;
    tell(&path, "ALTER TABLE grants ADD COLUMN from_the_future TEXT NOT NULL DEFAULT 'x'").await;
    tell(
        &path,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'later', 1, x'00', 0)",
    )
    .await;
    let store = open(&path).await;
    assert!(store.grant(grant.id).await.unwrap().is_some());
    stored_grant(&store).await;
}

#[tokio::test]
async fn a_migration_half_done_is_named_and_says_what_to_do() {
    for (spoil, named) in [
        ("UPDATE _sqlx_migrations SET success = 0 WHERE version = 2", "migration 2 (replicas) was begun and not"),
        ("DELETE FROM _sqlx_migrations WHERE version = 2", "migration 2 (replicas) finds what it is to make there"),
        (
            "UPDATE _sqlx_migrations SET checksum = x'00' WHERE version = 1",
            "migration 1 (begin) was made here in another",
        ),
    ] {
        let (store, dir) = on_disk().await;
        let path = dir.path().join("mantel.db");
        store.close().await;
        tell(&path, spoil).await;
        let refused = refusal(&path, &[("one", 1)]).await;
        assert!(matches!(&refused, StoreError::Corrupt(text) if text.contains(named)), "{refused}");
    }
}

#[tokio::test]
async fn a_migration_that_fails_leaves_nothing_behind() {
    let (store, dir) = on_disk().await;
    let path = dir.path().join("mantel.db");
    store.close().await;
    let broken = Schema::default().and(Step {
        version: Schema::default().level() + 1,
        name: "broken",
        sqlite: "CREATE TABLE half (n INTEGER) STRICT; INSERT INTO half VALUES ('no number');",
        postgres: "",
    });
    let refused = Sqlite::open_with(Some(&path), sealer(&[("one", 1)]), &broken).await.err().expect("it was opened");
    let named = "(broken) failed and was undone";
    assert!(matches!(&refused, StoreError::Corrupt(text) if text.contains(named)), "{refused}");
    let mut connection = beside(&path).await;
    let half: Vec<(String,)> =
        sqlx::query_as("SELECT name FROM sqlite_master WHERE name = 'half'").fetch_all(&mut connection).await.unwrap();
    assert!(half.is_empty());
    stored_grant(&open(&path).await).await;
}

#[tokio::test]
async fn a_record_of_a_later_form_is_refused_not_guessed() {
    let (store, dir) = on_disk().await;
    let grant = stored_grant(&store).await;
    tell(&dir.path().join("mantel.db"), "UPDATE grants SET format = 99").await;
    assert!(matches!(store.grant(grant.id).await, Err(StoreError::Incompatible(_))));
}

/// What a migration must not do, since the binary before it goes on working beside and after it.
fn takes_away(migration: &str) -> Option<String> {
    let text: String =
        migration.lines().map(|line| line.split("--").next().unwrap_or("")).collect::<Vec<_>>().join(" ");
    text.split(';').find_map(|statement| {
        let words: Vec<String> = statement.split_whitespace().map(str::to_uppercase).collect();
        let has = |wanted: &[&str]| words.windows(wanted.len()).any(|it| it == wanted);
        let adds_unfilled = has(&["ADD"]) && has(&["NOT", "NULL"]) && !has(&["DEFAULT"]);
        (has(&["DROP"]) || has(&["RENAME"]) || adds_unfilled).then(|| words.join(" "))
    })
}

#[test]
fn migrations_only_add() {
    for bad in ["DROP TABLE x;", "ALTER TABLE x RENAME TO y;", "SELECT 1; alter table x add column y text not null;"] {
        assert!(takes_away(bad).is_some(), "{bad}");
    }
    assert_eq!(takes_away("-- DROP\nALTER TABLE x ADD COLUMN y TEXT NOT NULL DEFAULT '';"), None);
    for step in STEPS {
        for text in [step.sqlite, step.postgres] {
            assert_eq!(takes_away(text), None, "migration {} ({})", step.version, step.name);
        }
    }
    let versions: Vec<_> = STEPS.iter().map(|step| step.version).collect();
    assert_eq!(versions, (1..).take(STEPS.len()).collect::<Vec<_>>());
    // Each file is a step's.
    for dialect in ["sqlite", "postgres"] {
        let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/migrations").join(dialect);
        assert_eq!(std::fs::read_dir(files).unwrap().count(), STEPS.len(), "{dialect}");
    }
}

// ---- kill -9 -----------------------------------------------------------------------------------------

const VICTIM: &str = "MANTEL_TEST_VICTIM";

/// Writes until it is killed; a line for each step that was acknowledged.
#[tokio::test]
#[ignore = "the victim of `what_was_acknowledged_survives_kill_9`, which starts it"]
async fn victim() {
    let path = std::env::var_os(VICTIM).expect("started by its test");
    let store = Arc::new(open(Path::new(&path)).await);
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let store = store.clone();
        writers.spawn(async move {
            loop {
                let grant = grant();
                store_grant(&*store, &grant).await;
                println!("\nack created {}", grant.id);
                let begun = store.begin_refresh(grant.id, 1, boot(), NOW).await.unwrap();
                assert!(matches!(begun, Begun::Won { .. }));
                println!("\nack begun {}", grant.id);
                let finished = store.finish_refresh(grant.id, 1, &ehr_tokens(2), None, NOW).await.unwrap();
                assert!(matches!(finished, Finished::Stored(_)));
                println!("\nack finished {}", grant.id);
            }
        });
    }
    writers.join_next().await;
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mantel.db");
    let mut acknowledged = BTreeSet::new();
    for round in 1..=3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--ignored", "--nocapture"])
            .env(VICTIM, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        for line in lines.map_while(Result::ok) {
            let Some(step) = line.strip_prefix("ack ") else { continue };
            acknowledged.insert(step.to_owned());
            seen += 1;
            if seen == 200 * round {
                // SIGKILL; what it printed until then is still read.
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(seen >= 200 * round, "the victim wrote {seen} steps");
        let store = open(&path).await;
        for step in &acknowledged {
            let (step, id) = step.split_once(' ').unwrap();
            let grant =
                store.grant(GrantId(id.parse().unwrap())).await.unwrap().expect("an acknowledged grant is lost");
            match step {
                "finished" => assert_eq!(grant.tokens.refresh, ehr_tokens(2).refresh, "an acknowledged answer is lost"),
                "begun" => assert!(grant.generation == 2 || matches!(grant.state, GrantState::InDoubt { .. })),
                _ => {}
            }
        }
        store.close().await;
    }
}
