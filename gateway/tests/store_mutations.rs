//! A database that holds what we did not write: each column of each table is given what it must not hold, and every
//! operation is called. Each works or says by name what is wrong; none panics or takes the others along.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "the suite's samples are shared with other tests")]

mod store_contract {
    pub mod samples;
}

use std::{future::Future, path::Path, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use mantel::{
    config::SealKey,
    secret::{Secret, TokenHash},
    store::{
        BootId, EndReason, Grant, Launch, LaunchStep, NewTokens, ReplicaFacts, SealedTable, SharedStore, SigningKey,
        StoreError, StoreResult,
        sealing::{Sealer, seal_successor},
        sqlite::Sqlite,
    },
};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use store_contract::samples::*;
use tempfile::TempDir;

async fn open(path: &Path) -> StoreResult<SharedStore> {
    let key = SealKey { id: "one".into(), bytes: Secret::new([1; 32]) };
    Ok(Arc::new(Sqlite::open(Some(path), Arc::new(Sealer::new(&[key]).unwrap())).await?))
}

async fn beside(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).connect().await.unwrap()
}

// ---- a database with one of everything, twice -------------------------------------------------------------

/// What a grant's owner knows of it.
struct Known {
    grant: Grant,
    code: TokenHash,
    tokens: NewTokens,
    /// A launch before the EHR, one at the EHR and the state that it returns with, one of an EHR's.
    opened: Launch,
    at_ehr: Launch,
    state: TokenHash,
    ehr: TokenHash,
    subject: String,
    boot: BootId,
}

async fn fill(store: &SharedStore) -> Known {
    let grant = grant();
    let code = store_grant(&**store, &grant).await;
    let first = new_tokens(grant.id);
    store.redeem_code(code, &first, NOW).await.unwrap();
    // With a predecessor whose grace runs.
    let tokens = new_tokens(grant.id);
    let successor = seal_successor("mtl_rt_a", "mtl_rt_b");
    let presented = first.refresh.unwrap().hash;
    store.rotate_app_token(presented, &tokens, &successor, Duration::from_secs(30), NOW).await.unwrap();
    let (opened, state, ehr) = (launch(), token(), token());
    store.open_launch(&opened).await.unwrap();
    let begun = launch();
    store.open_launch(&begun).await.unwrap();
    let at_ehr = at_ehr(begun, state);
    assert!(store.advance_launch(LaunchStep::Opened, &at_ehr).await.unwrap());
    store.keep_ehr_launch(ehr, &ehr_launch()).await.unwrap();
    let subject = format!("subject {}", fresh());
    store.subject(&"general".parse().unwrap(), &subject, "a sub").await.unwrap();
    store.remember_jti("issuer", &subject, at(60)).await.unwrap();
    let pkcs8 = Secret::new(b"key".to_vec());
    let kid = format!("kid {}", fresh());
    store.add_signing_key(&SigningKey { kid, pkcs8, created: NOW }, NOW).await.unwrap();
    let ended = stored_grant(&**store).await;
    store.end_grant(ended.id, EndReason::Logout, None, &[revocation()], NOW).await.unwrap();
    let boot = boot();
    store.show_replica(boot, &ReplicaFacts::default(), at(-60), NOW).await.unwrap();
    Known { grant, code, tokens, opened, at_ehr, state, ehr, subject, boot }
}

type Called = (&'static str, StoreResult<()>);

/// In time: what waits for ever is no named fault.
async fn call<T>(name: &'static str, operation: impl Future<Output = StoreResult<T>>) -> Called {
    let done = tokio::time::timeout(Duration::from_secs(20), operation).await;
    (name, done.unwrap_or_else(|_| panic!("{name} does not end")).map(drop))
}

/// What concerns one grant.
async fn of_one(store: &SharedStore, known: &Known) -> Vec<Called> {
    let Known { grant, code, tokens, opened, at_ehr, state, ehr, subject, boot } = known;
    let (id, refresh) = (grant.id, tokens.refresh.as_ref().unwrap().hash);
    let site = "general".parse().unwrap();
    let mut called = vec![
        call("launch", store.launch(opened.id, NOW)).await,
        call("launch at the EHR", store.launch(at_ehr.id, NOW)).await,
        call("advance_launch", store.advance_launch(LaunchStep::Opened, opened)).await,
        call("return_launch", store.return_launch(*state, NOW)).await,
        call("take_ehr_launch", store.take_ehr_launch(*ehr, NOW)).await,
        call("code", store.code(*code, NOW)).await,
        call("access_token", store.access_token(tokens.access.hash, NOW)).await,
        call("refresh_token", store.refresh_token(refresh, NOW)).await,
        call("token_owner", store.token_owner(refresh)).await,
        call("successor_used", store.successor_used(tokens.access.hash)).await,
        call("grant", store.grant(id)).await,
        call("subject", store.subject(&site, subject, "another sub")).await,
        call("remember_jti", store.remember_jti("issuer", subject, at(60))).await,
        call("show_replica", store.show_replica(*boot, &ReplicaFacts::default(), at(-60), NOW)).await,
    ];
    let owner = mantel::store::BootId(uuid());
    called.push(call("begin_refresh", store.begin_refresh(id, 1, owner, NOW)).await);
    if let Ok(mantel::store::Begun::Lost(lease)) = store.begin_refresh(id, 1, owner, NOW).await {
        called.push(call("take_over", store.take_over(id, lease, mantel::store::BootId(uuid()), NOW)).await);
        called.push(call("beat", store.beat(id, owner, lease.fence)).await);
    }
    called.push(call("abandon_refresh", store.abandon_refresh(id, 1, owner)).await);
    called.push(call("retry_in_doubt", store.retry_in_doubt(id, 1, owner, NOW)).await);
    let facts = Some(&grant.facts);
    called.push(call("finish_refresh", store.finish_refresh(id, 1, &ehr_tokens(2), facts, NOW)).await);
    let successor = seal_successor("mtl_rt_b", "mtl_rt_c");
    let next = new_tokens(id);
    let grace = Duration::from_secs(30);
    called.push(call("rotate_app_token", store.rotate_app_token(refresh, &next, &successor, grace, NOW)).await);
    let again = new_tokens(id);
    called.push(call("rotate_app_token, again", store.rotate_app_token(refresh, &again, &successor, grace, NOW)).await);
    called.push(call("redeem_code, again", store.redeem_code(*code, &new_tokens(id), NOW)).await);
    called.push(call("end_grant", store.end_grant(id, EndReason::Operator, None, &[revocation()], NOW)).await);
    called
}

/// What concerns all.
async fn of_all(store: &SharedStore) -> Vec<Called> {
    let key = SigningKey { kid: format!("kid {}", fresh()), pkcs8: Secret::new(b"key".to_vec()), created: at(1) };
    let mut called = vec![
        call("grants_after", store.grants_after(None, 1)).await,
        call("count_grants", store.count_grants()).await,
        call("ended_since", store.ended_since(0)).await,
        call("signing_keys", store.signing_keys()).await,
        call("add_signing_key", store.add_signing_key(&key, NOW)).await,
        call("add_revocations", store.add_revocations(&[revocation()])).await,
        call("take_revocations", store.take_revocations(NOW, at(60), 10)).await,
        call("seal_keys", store.seal_keys()).await,
        call("seal_usage", store.seal_usage()).await,
        call("retire_seal_key", store.retire_seal_key("another")).await,
        call("promote_seal_key", store.promote_seal_key("one")).await,
    ];
    for table in SealedTable::ALL {
        called.push(call("reseal", store.reseal(table, &[], 100)).await);
    }
    called.push(call("sweep", store.sweep(at(3600))).await);
    called.push(call("see_time", store.see_time(NOW)).await);
    called.push(call("ping", store.ping()).await);
    called
}

// ---- mutations -------------------------------------------------------------------------------------------

struct Column {
    table: String,
    name: String,
    kind: String,
    nullable: bool,
}

async fn columns(on: &mut SqliteConnection) -> Vec<Column> {
    let rows: Vec<(String, String, String, i64)> = sqlx::query_as(
        "SELECT m.name, c.name, c.type, c.\"notnull\" FROM sqlite_master m JOIN pragma_table_info(m.name) c \
         WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' AND m.name NOT LIKE '\\_sqlx%' ESCAPE '\\' ORDER BY 1, 2",
    )
    .fetch_all(on)
    .await
    .unwrap();
    let column = |(table, name, kind, not_null): (String, String, String, i64)| Column {
        table,
        name,
        kind,
        nullable: not_null == 0,
    };
    rows.into_iter().map(column).collect()
}

/// SQL for what a column of that type must not hold.
fn nonsense(column: &Column) -> Vec<&'static str> {
    let mut values = match column.kind.as_str() {
        "INTEGER" => vec!["-9223372036854775808", "-1", "9223372036854775807"],
        "TEXT" => vec!["''", "'nonsense'", "char(0, 10, 65533) || 'é'", "hex(zeroblob(5000))"],
        // Nothing, too little, too much, a record of a key that is not there, one that is cut, and one changed.
        "BLOB" => vec![
            "x''",
            "x'01'",
            "zeroblob(5000)",
            "x'01036e6578' || zeroblob(60)",
            "CAST(substr(CAST(? AS BLOB), 1, 20) AS BLOB)",
            "x'01036f6e65' || zeroblob(60)",
        ],
        other => panic!("{}.{} is {other}", column.table, column.name),
    };
    if column.nullable {
        values.push("NULL");
    }
    values
}

/// Only these say that a record is not as it should be.
fn is_named(error: &StoreError) -> bool {
    match error {
        StoreError::Corrupt(text) | StoreError::Incompatible(text) => !text.is_empty(),
        StoreError::UnknownSealKey(_) => true,
        StoreError::Unavailable(_) | StoreError::Contended(_) | StoreError::ReadOnly(_) => false,
    }
}

/// One row for all: what is wrong in it is wrong for everybody.
const GLOBAL: [&str; 3] = ["mantel_schema", "seal_keys", "changes"];

struct Template {
    dir: TempDir,
    victim: Known,
    other: Known,
}

impl Template {
    async fn make() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir.path().join("mantel.db")).await.unwrap();
        let (victim, other) = (fill(&store).await, fill(&store).await);
        store.close().await;
        Self { dir, victim, other }
    }

    /// A copy in which the victim's row of a table, the first that was written, holds something else.
    async fn mutated(&self, column: &Column, value: &str, at: &Path) -> bool {
        std::fs::copy(self.dir.path().join("mantel.db"), at).unwrap();
        let Column { table, name, .. } = column;
        let mut on = beside(at).await;
        let value = value.replace('?', name);
        // What the file itself refuses cannot come to stand in it.
        let statement = format!("UPDATE {table} SET {name} = {value} WHERE rowid = (SELECT min(rowid) FROM {table})");
        let changed = sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut on).await.is_ok();
        on.close().await.unwrap();
        changed
    }
}

async fn one_case(template: &Template, column: &Column, value: &str, at: &Path) -> Option<usize> {
    if !template.mutated(column, value, at).await {
        return None;
    }
    let what = format!("{}.{} = {value}", column.table, column.name);
    let store = match open(at).await {
        Ok(store) => store,
        Err(error) => {
            let everybodys = GLOBAL.contains(&column.table.as_str());
            assert!(everybodys && is_named(&error), "{what}: the store is not opened: {error:?}");
            return Some(1);
        }
    };
    let mut faults = 0;
    let global = GLOBAL.contains(&column.table.as_str());
    // The other one first, before anything is ended.
    for (name, outcome) in of_one(&store, &template.other).await {
        if let Err(error) = outcome {
            assert!(global && is_named(&error), "{what}: {name} of another record: {error:?}");
            faults += 1;
        }
    }
    for (name, outcome) in of_one(&store, &template.victim).await.into_iter().chain(of_all(&store).await) {
        if let Err(error) = outcome {
            assert!(is_named(&error), "{what}: {name}: {error:?}");
            faults += 1;
        }
    }
    // It works on: nothing has taken its tasks along.
    assert!(store.grant(template.other.grant.id).await.is_ok(), "{what}");
    store.close().await;
    Some(faults)
}

#[tokio::test]
async fn each_column_may_hold_nonsense() {
    let template = Template::make().await;
    let mut on = beside(&template.dir.path().join("mantel.db")).await;
    let columns = columns(&mut on).await;
    on.close().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let cases = columns.iter().flat_map(|column| nonsense(column).into_iter().map(move |value| (column, value)));
    // They wait for the disk.
    let faults: Vec<usize> = stream::iter(cases.enumerate())
        .map(|(number, (column, value))| {
            let (template, at) = (&template, dir.path().join(format!("{number}.db")));
            async move { one_case(template, column, value, &at).await }
        })
        .buffer_unordered(8)
        .filter_map(std::future::ready)
        .collect()
        .await;
    let with_faults = faults.iter().filter(|faults| **faults > 0).count();
    assert!(
        columns.len() > 60 && faults.len() > 200 && with_faults > 40,
        "{} {} {with_faults}",
        columns.len(),
        faults.len()
    );
}
