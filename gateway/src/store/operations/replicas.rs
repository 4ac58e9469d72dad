//! The gateway processes that share this store, as each shows itself to the others.

use super::{Connection, fault::OrFault as _};
use crate::{
    clock::Timestamp,
    store::{BootId, Replica, ReplicaFacts, StoreError, StoreResult, records},
};

pub(super) async fn show(
    on: &mut Connection,
    me: BootId,
    facts: ReplicaFacts,
    gone_before: Timestamp,
    now: Timestamp,
) -> StoreResult<Vec<Replica>> {
    let body = serde_json::to_string(&facts).map_err(|error| StoreError::Corrupt(format!("replicas.body: {error}")))?;
    sqlx::query("DELETE FROM replicas WHERE seen < $1").bind(gone_before.0).execute(&mut *on).await.or_fault()?;
    sqlx::query(
        "INSERT INTO replicas (boot, beat, seen, body) VALUES ($1, 1, $2, $3) \
         ON CONFLICT (boot) DO UPDATE SET beat = replicas.beat + 1, seen = excluded.seen, body = excluded.body",
    )
    .bind(me.0.as_bytes().as_slice())
    .bind(now.0)
    .bind(body)
    .execute(&mut *on)
    .await
    .or_fault()?;
    let rows: Vec<(Vec<u8>, i64, String)> =
        sqlx::query_as("SELECT boot, beat, body FROM replicas ORDER BY boot").fetch_all(on).await.or_fault()?;
    let open = |(boot, beat, body): (Vec<u8>, i64, String)| {
        let Ok(boot) = records::id16("replicas", &boot).map(BootId) else {
            tracing::error!(beat, "a row of replicas has no id of ours and is passed over");
            return None;
        };
        // Who says what cannot be read holds nothing that we know of: nobody relies on it, nor stops for it.
        let facts = serde_json::from_str(&body).unwrap_or_else(|error| {
            tracing::error!(%boot, at = error.column(), "what a process says of itself cannot be read");
            ReplicaFacts::default()
        });
        Some(Replica { boot, beat, facts })
    };
    Ok(rows.into_iter().filter_map(open).collect())
}

pub(super) async fn forget(on: &mut Connection, boot: BootId) -> StoreResult<()> {
    sqlx::query("DELETE FROM replicas WHERE boot = $1")
        .bind(boot.0.as_bytes().as_slice())
        .execute(on)
        .await
        .map(drop)
        .or_fault()
}
