//! Subjects, assertions seen, signing keys, the outbox, and forgetting.

use std::time::Duration;

use mantel_adapters::site::SiteId;

use super::{Connection, fault::OrFault as _, seal};
use crate::{
    clock::Timestamp,
    store::{
        Revocation, StoreResult,
        records::{self, FORMAT, OutboxRow},
        sealing::Sealer,
    },
};

/// The `sub` that stands under one of `names`.
pub(super) async fn known_subject(on: &mut Connection, names: Vec<[u8; 32]>) -> StoreResult<Option<String>> {
    for name in &names {
        let found: Option<(String,)> = sqlx::query_as("SELECT sub FROM subjects WHERE name = $1")
            .bind(name.as_slice())
            .fetch_optional(&mut *on)
            .await
            .or_fault()?;
        if let Some((sub,)) = found {
            return Ok(Some(sub));
        }
    }
    Ok(None)
}

/// Stores `candidate`, unless somebody was faster: the `sub` that stands then.
pub(super) async fn new_subject(
    on: &mut Connection,
    sealer: &Sealer,
    site: &SiteId,
    ehr_subject: &str,
    candidate: String,
) -> StoreResult<String> {
    // Named and sealed by the key that all processes agree on, whichever one this process writes with.
    let naming = seal::naming_key(on).await?;
    let sealer = &*sealer.fixed_to(&naming)?;
    let names = records::subject_names(sealer, site.as_str(), ehr_subject);
    if let Some(sub) = known_subject(on, names.clone()).await? {
        return Ok(sub);
    }
    let Some(name) = names.first() else { return Ok(candidate) };
    let body = sealer.seal_json(records::subject_place(name), &(site, ehr_subject))?;
    sqlx::query("INSERT INTO subjects (name, format, sub, body) VALUES ($1, $2, $3, $4)")
        .bind(name.as_slice())
        .bind(FORMAT)
        .bind(candidate.as_str())
        .bind(body)
        .execute(on)
        .await
        .or_fault()?;
    Ok(candidate)
}

pub(super) async fn remember_jti(on: &mut Connection, hash: [u8; 32], until: Timestamp) -> StoreResult<bool> {
    let stored = sqlx::query("INSERT INTO jtis (hash, expires) VALUES ($1, $2) ON CONFLICT (hash) DO NOTHING")
        .bind(hash.as_slice())
        .bind(until.0)
        .execute(on)
        .await
        .or_fault()?;
    Ok(stored.rows_affected() == 1)
}

/// Format, kid, creation, sealed key.
pub(super) type KeyColumns = (i64, String, i64, Vec<u8>);

pub(super) async fn signing_keys(on: &mut Connection) -> StoreResult<Vec<KeyColumns>> {
    sqlx::query_as("SELECT format, kid, created, pkcs8 FROM signing_keys ORDER BY created DESC, kid DESC")
        .fetch_all(on)
        .await
        .or_fault()
}

pub(super) async fn add_signing_key(
    on: &mut Connection,
    kid: String,
    created: Timestamp,
    sealed: Vec<u8>,
    unless_younger_than: Timestamp,
) -> StoreResult<Vec<KeyColumns>> {
    seal::may_write(on, &[&sealed]).await?;
    // One at a time: each sees the key of the one before.
    touch(on).await?;
    sqlx::query(
        "INSERT INTO signing_keys (kid, format, created, pkcs8) SELECT $1, $2, $3, $4 \
         WHERE NOT EXISTS (SELECT 1 FROM signing_keys WHERE created > $5) ON CONFLICT (kid) DO NOTHING",
    )
    .bind(kid)
    .bind(FORMAT)
    .bind(created.0)
    .bind(sealed)
    .bind(unless_younger_than.0)
    .execute(&mut *on)
    .await
    .or_fault()?;
    signing_keys(on).await
}

pub(super) async fn add_revocations(on: &mut Connection, revocations: Vec<(Revocation, Vec<u8>)>) -> StoreResult<()> {
    seal::may_write(on, &revocations.iter().map(|(_, body)| body.as_slice()).collect::<Vec<_>>()).await?;
    for (revocation, body) in revocations {
        sqlx::query(
            "INSERT INTO outbox (id, format, kind, not_before, attempts, body) \
             VALUES ($1, $2, 'revocation', $3, $4, $5) ON CONFLICT (id) DO NOTHING",
        )
        .bind(revocation.id.as_bytes().as_slice())
        .bind(FORMAT)
        .bind(revocation.not_before.0)
        .bind(revocation.attempts)
        .bind(body)
        .execute(&mut *on)
        .await
        .or_fault()?;
    }
    Ok(())
}

type OutboxColumns = (Vec<u8>, i64, i64, i64, Vec<u8>);

pub(super) async fn take_revocations(
    on: &mut Connection,
    now: Timestamp,
    again: Timestamp,
    limit: u32,
) -> StoreResult<Vec<OutboxRow>> {
    // The condition stands twice: of two that chose the same rows, the second finds them taken as it locks them.
    let rows: Vec<OutboxColumns> = sqlx::query_as(
        "UPDATE outbox SET not_before = $1 WHERE not_before <= $2 AND id IN (SELECT id FROM outbox \
         WHERE kind = 'revocation' AND not_before <= $2 ORDER BY not_before, id LIMIT $3) \
         RETURNING id, format, not_before, attempts, body",
    )
    .bind(again.0)
    .bind(now.0)
    .bind(i64::from(limit))
    .fetch_all(on)
    .await
    .or_fault()?;
    Ok(rows
        .into_iter()
        .map(|(id, format, not_before, attempts, body)| OutboxRow { id, format, not_before, attempts, body })
        .collect())
}

pub(super) async fn settle_revocation(
    on: &mut Connection,
    id: uuid::Uuid,
    again: Option<Timestamp>,
) -> StoreResult<()> {
    let id = id.as_bytes().as_slice();
    let query = match again {
        None => sqlx::query("DELETE FROM outbox WHERE id = $1").bind(id),
        // With the time it is set to already: the same call again.
        Some(at) => {
            sqlx::query("UPDATE outbox SET attempts = attempts + 1, not_before = $2 WHERE id = $1 AND not_before <> $2")
                .bind(id)
                .bind(at.0)
        }
    };
    query.execute(on).await.map(drop).or_fault()
}

/// A redeemed code is remembered so long after its end, so that a second use is still told from an
/// unknown code.
const REPLAY_MEMORY: Duration = Duration::from_secs(24 * 3600);

/// An ended grant says why it ended for so long, at least; and while a token of ours points to it.
const ENDED_MEMORY: Duration = Duration::from_secs(30 * 24 * 3600);

/// What has expired stays for so long: a clock that is wrong by an hour, of this process or of another on the same
/// store, makes nobody's token unknown for ever.
const MARGIN: Duration = Duration::from_secs(2 * 3600);

/// Each statement forgets at most 1,000 records, so that no sweep keeps refreshes waiting.
const SWEEPS: [(&str, Duration); 7] = [
    (
        "DELETE FROM ehr_launches WHERE hash IN (SELECT hash FROM ehr_launches WHERE expires <= $1 LIMIT 1000)",
        Duration::ZERO,
    ),
    ("DELETE FROM launches WHERE id IN (SELECT id FROM launches WHERE expires <= $1 LIMIT 1000)", Duration::ZERO),
    ("DELETE FROM codes WHERE hash IN (SELECT hash FROM codes WHERE expires <= $1 LIMIT 1000)", REPLAY_MEMORY),
    (
        "DELETE FROM access_tokens WHERE hash IN (SELECT hash FROM access_tokens WHERE expires <= $1 LIMIT 1000)",
        Duration::ZERO,
    ),
    (
        "DELETE FROM refresh_tokens WHERE hash IN (SELECT hash FROM refresh_tokens WHERE expires <= $1 LIMIT 1000)",
        Duration::ZERO,
    ),
    ("DELETE FROM jtis WHERE hash IN (SELECT hash FROM jtis WHERE expires <= $1 LIMIT 1000)", Duration::ZERO),
    (
        "DELETE FROM grants WHERE id IN (SELECT g.id FROM grants g WHERE g.state = 'ended' AND g.ended_at <= $1 \
         AND NOT EXISTS (SELECT 1 FROM access_tokens a WHERE a.grant_id = g.id) \
         AND NOT EXISTS (SELECT 1 FROM refresh_tokens r WHERE r.grant_id = g.id) \
         AND NOT EXISTS (SELECT 1 FROM codes c WHERE c.grant_id = g.id) LIMIT 1000)",
        ENDED_MEMORY,
    ),
];

pub(super) async fn sweep(on: &mut Connection, now: Timestamp) -> StoreResult<u64> {
    let mut forgotten = 0;
    for (statement, memory) in SWEEPS {
        let done = sqlx::query(statement).bind(now.before(memory + MARGIN).0).execute(&mut *on).await.or_fault()?;
        forgotten += done.rows_affected();
    }
    Ok(forgotten)
}

/// The assertion that nobody can have made: its row is written by each ping, and swept as one that has expired.
const PING: [u8; 32] = [0; 32];

/// Writes, so that a full or read-only disk is found. SQLite writes no page whose content stays as it is, so the row
/// changes each time.
pub(super) async fn ping(on: &mut Connection) -> StoreResult<()> {
    sqlx::query(
        "INSERT INTO jtis (hash, expires) VALUES ($1, 0) ON CONFLICT (hash) DO UPDATE SET expires = jtis.expires + 1",
    )
    .bind(PING.as_slice())
    .execute(on)
    .await
    .map(drop)
    .or_fault()
}

/// Another one: its end is the latest time that a process has shown. Once it is swept it says nothing any more,
/// since the sweep's own time was later.
const LATEST: [u8; 32] = [0xff; 32];

pub(super) async fn see_time(on: &mut Connection, now: Timestamp) -> StoreResult<Timestamp> {
    let (latest,): (i64,) = sqlx::query_as(
        "INSERT INTO jtis (hash, expires) VALUES ($1, $2) ON CONFLICT (hash) DO UPDATE SET expires = \
         CASE WHEN jtis.expires > excluded.expires THEN jtis.expires ELSE excluded.expires END RETURNING expires",
    )
    .bind(LATEST.as_slice())
    .bind(now.0)
    .fetch_one(on)
    .await
    .or_fault()?;
    Ok(Timestamp(latest))
}

/// Writes the one row of `mantel_schema` as it is, and so holds it until the commit.
async fn touch(on: &mut Connection) -> StoreResult<()> {
    sqlx::query("UPDATE mantel_schema SET version = version WHERE one = 1").execute(on).await.map(drop).or_fault()
}
