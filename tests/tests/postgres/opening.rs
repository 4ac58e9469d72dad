//! What a start finds: an empty database, another's, a later binary's, a migration half done, other seal keys.

use futures_util::future::join_all;
use mantel::{
    secret::Secret,
    store::{Schema, Step, Store, StoreError, postgres::Postgres},
};

use super::{database, open, sealer, server, store_contract::samples::*, tell};

/// What a later binary adds.
fn next() -> Schema {
    Schema::default().and(Step {
        version: Schema::default().level() + 1,
        name: "next",
        sqlite: "",
        postgres: "CREATE TABLE from_the_future (id BIGINT PRIMARY KEY); \
                   ALTER TABLE grants ADD COLUMN from_the_future TEXT NOT NULL DEFAULT 'x'; \
                   UPDATE mantel_schema SET version = version + 1;",
    })
}

async fn refusal_of(url: &str, keys: &[(&str, u8)], schema: &Schema) -> StoreError {
    match Postgres::open_with(&Secret::from(url), sealer(keys), schema).await {
        Ok(_) => panic!("it was opened"),
        Err(error) => error,
    }
}

async fn refusal(url: &str) -> StoreError {
    refusal_of(url, &[("one", 1)], &Schema::default()).await
}

#[tokio::test]
async fn replicas_that_start_at_once_all_start() {
    for round in 0..4 {
        let url = database().await;
        // Also such as are of two levels.
        let schemas = [Schema::default(), next(), Schema::default(), next()];
        let schemas = if round < 2 { &schemas[..3] } else { &schemas[..] };
        let url = Secret::from(url.as_str());
        let stores =
            join_all(schemas.iter().map(|schema| Postgres::open_with(&url, sealer(&[("one", 1)]), schema))).await;
        let stores: Vec<_> = stores.into_iter().map(Result::unwrap).collect();
        for store in &stores {
            stored_grant(store).await;
        }
        assert_eq!(stores[0].count_grants().await.unwrap(), [stores.len() as u64, 0, 0]);
    }
}

#[tokio::test]
async fn a_deploy_is_rolled_out_and_back() {
    let url = database().await;
    let old = open(&url).await;
    let first = stored_grant(&old).await;
    let new = Postgres::open_with(&Secret::from(url.as_str()), sealer(&[("one", 1)]), &next()).await.unwrap();
    // Both serve: what one writes the other reads and writes on.
    let second = stored_grant(&new).await;
    for (store, grant) in [(&old, &second), (&new, &first)] {
        store.finish_refresh(grant.id, 1, &ehr_tokens(2), None, NOW).await.unwrap();
    }
    new.close().await;
    old.close().await;
    let back = open(&url).await;
    for grant in [first, second] {
        assert_eq!(back.grant(grant.id).await.unwrap().unwrap().generation, 2);
    }
}

#[tokio::test]
async fn a_database_that_asks_for_a_later_binary_is_refused() {
    let url = database().await;
    open(&url).await.close().await;
    tell(&server().await, &url, "UPDATE mantel_schema SET version = 1001, min_binary = 1000").await;
    let refused = refusal(&url).await;
    assert!(matches!(&refused, StoreError::Incompatible(text) if text.contains("1000")), "{refused}");
}

#[tokio::test]
async fn a_foreign_database_is_refused_by_name() {
    let url = database().await;
    tell(&server().await, &url, "CREATE TABLE patients (name TEXT)").await;
    let refused = refusal(&url).await;
    assert!(matches!(&refused, StoreError::Corrupt(text) if text.contains("\"patients\"")), "{refused}");
    assert_eq!(tell(&server().await, &url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").await, "1");
}

#[tokio::test]
async fn a_migration_that_fails_leaves_nothing_behind() {
    let url = database().await;
    open(&url).await.close().await;
    let broken = Schema::default().and(Step {
        version: Schema::default().level() + 1,
        name: "broken",
        sqlite: "",
        postgres: "CREATE TABLE half (n BIGINT); SELECT 1 / 0;",
    });
    let refused = refusal_of(&url, &[("one", 1)], &broken).await;
    let named = "(broken) failed and was undone: division by zero";
    assert!(matches!(&refused, StoreError::Corrupt(text) if text.contains(named)), "{refused}");
    assert_eq!(tell(&server().await, &url, "SELECT count(*) FROM pg_tables WHERE tablename = 'half'").await, "0");
    stored_grant(&open(&url).await).await;
}

#[tokio::test]
async fn a_migration_half_done_is_named_and_says_what_to_do() {
    for (spoil, named) in [
        ("UPDATE _sqlx_migrations SET success = false WHERE version = 2", "migration 2 (replicas) was begun and not"),
        ("DELETE FROM _sqlx_migrations WHERE version = 2", "migration 2 (replicas) finds what it is to make there"),
        (
            "UPDATE _sqlx_migrations SET checksum = 'x' WHERE version = 1",
            "migration 1 (begin) was made here in another",
        ),
    ] {
        let url = database().await;
        open(&url).await.close().await;
        tell(&server().await, &url, spoil).await;
        let refused = refusal(&url).await;
        assert!(matches!(&refused, StoreError::Corrupt(text) if text.contains(named)), "{refused}");
    }
}

#[tokio::test]
async fn a_needed_seal_key_is_asked_for() {
    let url = database().await;
    open(&url).await.close().await;
    let lacking = refusal_of(&url, &[("two", 2)], &Schema::default()).await;
    assert!(matches!(&lacking, StoreError::UnknownSealKey(id) if id == "one"), "{lacking}");
    let another = refusal_of(&url, &[("one", 9)], &Schema::default()).await;
    assert!(matches!(&another, StoreError::Corrupt(text) if text.contains("\"one\"")), "{another}");
}

/// A standby says of each transaction that it is read-only, as this database does.
#[tokio::test]
async fn a_standby_is_refused() {
    let url = database().await;
    open(&url).await.close().await;
    let name = url.rsplit('/').next().unwrap();
    server()
        .await
        .query("postgres", &format!("ALTER DATABASE {name} SET default_transaction_read_only = on"))
        .await
        .unwrap();
    let refused = refusal(&url).await;
    assert!(matches!(&refused, StoreError::Unavailable(text) if text.contains("standby")), "{refused}");
}

#[tokio::test]
async fn who_may_not_make_tables_is_told() {
    let url = database().await;
    let name = url.rsplit('/').next().unwrap();
    let role = format!("reader_of_{name}");
    server().await.query("postgres", &format!("CREATE ROLE {role} LOGIN")).await.unwrap();
    tell(&server().await, &url, "REVOKE CREATE ON SCHEMA public FROM PUBLIC").await;
    let refused = refusal(&url.replace("//mantel@", &format!("//{role}@"))).await;
    assert!(
        matches!(&refused, StoreError::ReadOnly(text) if text.contains("permission denied for schema")),
        "{refused}"
    );
}

#[tokio::test]
async fn a_server_that_is_away_is_named_without_the_password() {
    let port = mantel_tests::ports::free_port().unwrap();
    let refused = refusal(&format!("postgres://mantel:hunter2@127.0.0.1:{port}/grants?sslmode=disable")).await;
    let StoreError::Unavailable(text) = &refused else { panic!("{refused}") };
    assert!(text.contains(&format!("127.0.0.1:{port}")) && text.contains("\"grants\""), "{text}");
    assert!(text.contains("refused") && !text.contains("hunter2"), "{text}");
    let nowhere = refusal(&format!("{}_nowhere", database().await)).await;
    assert!(matches!(&nowhere, StoreError::Unavailable(text) if text.contains("does not exist")), "{nowhere}");
}

/// Only so is a commit on the disk when it is answered, whatever the server's configuration says.
#[tokio::test]
async fn each_commit_is_synced() {
    let url = database().await;
    let name = url.rsplit('/').next().unwrap().to_owned();
    server().await.query("postgres", &format!("ALTER DATABASE {name} SET synchronous_commit = off")).await.unwrap();
    // A row for each write of the ping says what held as it was written.
    let store = open(&url).await;
    tell(
        &server().await,
        &url,
        "CREATE TABLE held (setting TEXT); \
         CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN INSERT INTO held VALUES (current_setting('synchronous_commit')); RETURN NEW; END $$; \
         CREATE TRIGGER hold BEFORE INSERT OR UPDATE ON jtis FOR EACH ROW EXECUTE FUNCTION hold()",
    )
    .await;
    store.ping().await.unwrap();
    assert_eq!(tell(&server().await, &url, "SELECT setting FROM held").await, "on");
}
