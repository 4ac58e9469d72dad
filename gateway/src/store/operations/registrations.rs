//! Registrations as they were last seen, and how many grants live by them.

use super::{Connection, fault::OrFault as _, locking};
use crate::{clock::Timestamp, store::StoreResult};

pub(super) async fn see(
    on: &mut Connection,
    registration: String,
    facts: Vec<[u8; 32]>,
    now: Timestamp,
) -> StoreResult<Option<Timestamp>> {
    let Some(first) = facts.first() else { return Ok(None) };
    // Seen for the first time, if nobody is faster: what is there is locked from then on.
    sqlx::query("INSERT INTO registrations (name, facts, changed) VALUES ($1, $2, NULL) ON CONFLICT (name) DO NOTHING")
        .bind(registration.as_str())
        .bind(first.as_slice())
        .execute(&mut *on)
        .await
        .or_fault()?;
    let (before, changed): (Vec<u8>, Option<i64>) =
        sqlx::query_as(concat!("SELECT facts, changed FROM registrations WHERE name = $1", locking!()))
            .bind(registration.as_str())
            .fetch_one(&mut *on)
            .await
            .or_fault()?;
    let same = facts.iter().any(|facts| facts.as_slice() == before);
    let changed = if same { changed } else { Some(now.0) };
    sqlx::query("UPDATE registrations SET facts = $2, changed = $3 WHERE name = $1")
        .bind(registration.as_str())
        .bind(first.as_slice())
        .bind(changed)
        .execute(on)
        .await
        .or_fault()?;
    Ok(changed.map(Timestamp))
}

pub(super) async fn live_grants(on: &mut Connection, registration: String, at_most: u32) -> StoreResult<u64> {
    let (count,): (i64,) = sqlx::query_as(
        "SELECT COUNT(*) FROM (SELECT 1 AS one FROM grants WHERE registration = $1 AND state IN ('live', 'in_doubt') \
         LIMIT $2) AS found",
    )
    .bind(registration)
    .bind(i64::from(at_most))
    .fetch_one(on)
    .await
    .or_fault()?;
    Ok(u64::try_from(count).unwrap_or(0))
}
