//! Which engine a configuration asks for.

use std::sync::Arc;

use crate::{
    config::StoreUrl,
    store::{Schema, SharedStore, StoreResult, postgres::Postgres, sealing::Sealer, sqlite::Sqlite},
};

pub(super) async fn open_store(url: &StoreUrl, sealer: Arc<Sealer>, schema: &Schema) -> StoreResult<SharedStore> {
    Ok(match url {
        StoreUrl::Sqlite(path) => Arc::new(Sqlite::open_with(path.as_deref(), sealer, schema).await?),
        StoreUrl::Postgres(url) => Arc::new(Postgres::open_with(url, sealer, schema).await?),
    })
}
