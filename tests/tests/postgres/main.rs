//! The store on PostgreSQL: the contract at two isolation levels, several replicas on one database, and what the
//! server and the database do to it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod faults;
mod opening;
mod replicas;
#[path = "../../../gateway/tests/store_contract/mod.rs"]
mod store_contract;

use std::sync::Arc;

use mantel::{
    config::SealKey,
    secret::Secret,
    store::{SharedStore, StoreResult, postgres::Postgres, sealing::Sealer},
};
use mantel_tests::harness::postgres::Postgres as Server;

fn sealer(keys: &[(&str, u8)]) -> Arc<Sealer> {
    let keys: Vec<_> =
        keys.iter().map(|(id, byte)| SealKey { id: (*id).into(), bytes: Secret::new([*byte; 32]) }).collect();
    Arc::new(Sealer::new(&keys).unwrap())
}

async fn open(url: &str) -> Postgres {
    Postgres::open(&Secret::from(url), sealer(&[("one", 1)])).await.unwrap()
}

/// The URL of an empty database on the server that all tests share.
async fn database() -> String {
    server().await.database().await.unwrap()
}

async fn server() -> Server {
    Server::shared().await.unwrap()
}

/// What a session of `psql` on a database says.
async fn tell(server: &Server, url: &str, sql: &str) -> String {
    let name = url.rsplit('/').next().unwrap().split('?').next().unwrap();
    server.query(name, sql).await.unwrap()
}

/// The URL at which each transaction is serializable.
fn each_serializable(url: &str) -> String {
    format!("{url}?options[default_transaction_isolation]=serializable")
}

/// The server's default.
async fn at_read_committed() -> (Postgres, ()) {
    (open(&database().await).await, ())
}

async fn at_serializable() -> (Postgres, ()) {
    (open(&each_serializable(&database().await)).await, ())
}

/// A database that processes come to and leave.
struct Shared(String);

#[async_trait::async_trait(?Send)]
impl store_contract::rotation::Database for Shared {
    async fn open(&self, sealer: Arc<Sealer>) -> StoreResult<SharedStore> {
        Ok(Arc::new(Postgres::open(&Secret::from(self.0.as_str()), sealer).await?))
    }

    async fn close(&self, store: SharedStore) {
        store.close().await;
    }
}

async fn shared() -> Shared {
    Shared(database().await)
}

async fn shared_serializable() -> Shared {
    Shared(each_serializable(&database().await))
}

mod read_committed {
    crate::contract!(crate::at_read_committed);
    crate::rotation_contract!(crate::shared);
}

mod serializable {
    crate::contract!(crate::at_serializable);
    crate::rotation_contract!(crate::shared_serializable);
}
