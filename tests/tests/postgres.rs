//! The store on PostgreSQL: the contract at two isolation levels.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../../gateway/tests/store_contract/mod.rs"]
mod store_contract;

use std::sync::Arc;

use mantel::{
    config::SealKey,
    secret::Secret,
    store::{postgres::Postgres, sealing::Sealer},
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

async fn database() -> String {
    Server::shared().await.unwrap().database().await.unwrap()
}

/// The server's default.
async fn read_committed() -> (Postgres, ()) {
    (open(&database().await).await, ())
}

async fn serializable() -> (Postgres, ()) {
    (open(&format!("{}?options[default_transaction_isolation]=serializable", database().await)).await, ())
}

mod read_committed_level {
    crate::contract!(crate::read_committed);
}

mod serializable_level {
    crate::contract!(crate::serializable);
}
