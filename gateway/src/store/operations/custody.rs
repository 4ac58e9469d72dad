//! Refreshes: intent and lease in one statement, results by compare-and-set on the generation that they
//! consumed (`custody.md`, "One refresh at a time, everywhere").

use sqlx::{FromRow as _, Row as _};

use super::{Connection, Row, fault::OrFault as _, grants, seal};
use crate::{
    clock::Timestamp,
    store::{
        BootId, EhrTokens, EndReason, GrantFacts, GrantId, GrantState, Lease, StoreError, StoreResult,
        records::{self, FORMAT, GrantRow},
        sealing::Sealer,
    },
};

/// [`crate::store::Begun`], its grant unopened.
pub(super) enum Beginning {
    Won { fence: i64 },
    Lost(Lease),
    InDoubt { since: Timestamp, retried: bool },
    Moved(Box<GrantRow>),
    Ended(EndReason),
}

pub(super) async fn begin(
    on: &mut Connection,
    id: GrantId,
    generation: i64,
    owner: BootId,
    now: Timestamp,
) -> StoreResult<Beginning> {
    let won: Option<(i64,)> = sqlx::query_as(
        "UPDATE grants SET state = 'in_doubt', doubt_since = $1, retried_at = NULL, retried_by = NULL, \
         lease_owner = $2, fence = fence + 1, beat = 0 WHERE id = $3 AND generation = $4 AND state = 'live' \
         RETURNING fence",
    )
    .bind(now.0)
    .bind(owner.0.as_bytes().as_slice())
    .bind(id.0.as_bytes().as_slice())
    .bind(generation)
    .fetch_optional(&mut *on)
    .await
    .or_fault()?;
    match won {
        Some((fence,)) => Ok(Beginning::Won { fence }),
        None => stands(on, id, Some(generation), |_| true).await,
    }
}

pub(super) async fn take_over(on: &mut Connection, id: GrantId, seen: Lease, owner: BootId) -> StoreResult<Beginning> {
    sqlx::query(
        "UPDATE grants SET lease_owner = $1, fence = fence + 1, beat = 0 \
         WHERE id = $2 AND state = 'in_doubt' AND lease_owner = $3 AND fence = $4 AND beat = $5",
    )
    .bind(owner.0.as_bytes().as_slice())
    .bind(id.0.as_bytes().as_slice())
    .bind(seen.owner.0.as_bytes().as_slice())
    .bind(seen.fence)
    .bind(seen.beat)
    .execute(&mut *on)
    .await
    .or_fault()?;
    // What is ours now is an intent without a result.
    stands(on, id, None, |lease| lease.owner != owner).await
}

/// Why an intent was not written: what stands instead. `held`: whether its lease is to be waited for.
async fn stands(
    on: &mut Connection,
    id: GrantId,
    generation: Option<i64>,
    held: impl Fn(&Lease) -> bool + Send,
) -> StoreResult<Beginning> {
    // One statement: another writer's must not come between the grant and its lease.
    let found = sqlx::query(concat!(
        "SELECT g.lease_owner, g.fence, g.beat, ",
        grants::grant_columns!(),
        " FROM grants g WHERE g.id = $1"
    ))
    .bind(id.0.as_bytes().as_slice())
    .fetch_optional(on)
    .await
    .or_fault()?;
    // A grant that the store has forgotten ended long ago.
    let Some(found) = found else { return Ok(Beginning::Ended(EndReason::Expired)) };
    let row = GrantRow::from_row(&found).or_fault()?;
    match row.state()? {
        GrantState::Ended { reason, .. } => Ok(Beginning::Ended(reason)),
        GrantState::Live => Ok(Beginning::Moved(Box::new(row))),
        GrantState::InDoubt { .. } if generation.is_some_and(|wanted| wanted != row.generation) => {
            Ok(Beginning::Moved(Box::new(row)))
        }
        GrantState::InDoubt { since, retried } => match lease(&found)? {
            Some(lease) if held(&lease) => Ok(Beginning::Lost(lease)),
            _ => Ok(Beginning::InDoubt { since, retried }),
        },
    }
}

fn lease(row: &Row) -> StoreResult<Option<Lease>> {
    let owner: Option<Vec<u8>> = row.try_get("lease_owner").or_fault()?;
    let Some(owner) = owner else { return Ok(None) };
    Ok(Some(Lease {
        owner: BootId(records::id16("grants", &owner)?),
        fence: row.try_get("fence").or_fault()?,
        beat: row.try_get("beat").or_fault()?,
    }))
}

pub(super) async fn beat(on: &mut Connection, id: GrantId, owner: BootId, fence: i64) -> StoreResult<bool> {
    let beaten = sqlx::query(
        "UPDATE grants SET beat = beat + 1 WHERE id = $1 AND lease_owner = $2 AND fence = $3 AND state = 'in_doubt'",
    )
    .bind(id.0.as_bytes().as_slice())
    .bind(owner.0.as_bytes().as_slice())
    .bind(fence)
    .execute(on)
    .await
    .or_fault()?;
    Ok(beaten.rows_affected() == 1)
}

/// [`crate::store::Finished`], its grant unopened.
pub(super) enum Finishing {
    Stored(Box<GrantRow>),
    Moved(Box<GrantRow>),
    Ended(EndReason),
}

pub(super) async fn finish(
    on: &mut Connection,
    sealer: &Sealer,
    id: GrantId,
    consumed: i64,
    tokens: &EhrTokens,
    facts: Option<&GrantFacts>,
) -> StoreResult<Finishing> {
    // Locked: what is written is made from what was read.
    let Some(row) = grants::locked(on, id).await? else { return Ok(Finishing::Ended(EndReason::Expired)) };
    if let GrantState::Ended { reason, .. } = row.state()? {
        return Ok(Finishing::Ended(reason));
    }
    if row.generation != consumed {
        let next = consumed.checked_add(1) == Some(row.generation);
        return Ok(if next && holds(sealer, &row, tokens)? {
            // The same call again.
            Finishing::Stored(Box::new(row))
        } else {
            Finishing::Moved(Box::new(row))
        });
    }
    let sealed = records::seal_tokens(sealer, id, tokens, row.tokens.as_deref())?;
    // The grant's name is by the key that seals its facts.
    let identity = facts.and_then(|facts| records::identity(sealer, &row.app, &row.site, facts)?.into_iter().next());
    let facts = facts.map(|facts| records::seal_facts(sealer, id, facts)).transpose()?;
    let stored: Option<GrantRow> = sqlx::query_as(concat!(
        "UPDATE grants AS g SET format = $1, generation = generation + 1, state = 'live', doubt_since = NULL, \
         retried_at = NULL, retried_by = NULL, lease_owner = NULL, tokens = $2, facts = COALESCE($3, facts), \
         identity = CASE WHEN EXISTS (SELECT 1 FROM grants o WHERE o.identity = $6 AND o.id <> $4 \
         AND o.state <> 'ended') THEN identity ELSE COALESCE($6, identity) END WHERE id = $4 AND generation = $5 AND state IN ('live', 'in_doubt') \
         AND NOT EXISTS (SELECT 1 FROM seal_keys k WHERE k.id = $7 AND k.state = 'retired') RETURNING ",
        "id, format, app, site, registration, fingerprint, created, state, generation, doubt_since, retried_at, \
         ended_at, end_reason, facts, tokens"
    ))
    .bind(FORMAT)
    .bind(sealed)
    .bind(facts)
    .bind(id.0.as_bytes().as_slice())
    .bind(consumed)
    .bind(identity.as_ref().map(<[u8; 32]>::as_slice))
    .bind(sealer.writes_with())
    .fetch_optional(&mut *on)
    .await
    .or_fault()?;
    if let Some(row) = stored {
        return Ok(Finishing::Stored(Box::new(row)));
    }
    seal::not_retired(on, sealer.writes_with()).await?;
    // Under the row's lock nobody else can have moved it: an engine whose locks do not hold says so by refusing the
    // commit.
    Err(StoreError::Contended("the grant moved on under its lock".into()))
}

/// Whether a row holds these very tokens.
fn holds(sealer: &Sealer, row: &GrantRow, tokens: &EhrTokens) -> StoreResult<bool> {
    let Some(sealed) = &row.tokens else { return Ok(false) };
    let stored = records::open_tokens(sealer, &row.id, sealed)?;
    Ok(stored.access == tokens.access && stored.refresh == tokens.refresh && stored.received == tokens.received)
}

pub(super) async fn abandon(on: &mut Connection, id: GrantId, consumed: i64, owner: BootId) -> StoreResult<()> {
    // The intent of the one try goes, the doubt before it stays; else the grant is as it was. Who tried last stays
    // noted, so that the same call again is not taken for the first intent's.
    let cleared = sqlx::query(
        "UPDATE grants SET retried_at = NULL WHERE id = $1 AND generation = $2 AND lease_owner = $3 \
         AND state = 'in_doubt' AND retried_at IS NOT NULL",
    )
    .bind(id.0.as_bytes().as_slice())
    .bind(consumed)
    .bind(owner.0.as_bytes().as_slice())
    .execute(&mut *on)
    .await
    .or_fault()?;
    if cleared.rows_affected() == 1 {
        return Ok(());
    }
    sqlx::query(
        "UPDATE grants SET state = 'live', doubt_since = NULL, lease_owner = NULL WHERE id = $1 AND generation = $2 \
         AND lease_owner = $3 AND state = 'in_doubt' AND retried_by IS NULL",
    )
    .bind(id.0.as_bytes().as_slice())
    .bind(consumed)
    .bind(owner.0.as_bytes().as_slice())
    .execute(on)
    .await
    .map(drop)
    .or_fault()
}

pub(super) async fn retry(
    on: &mut Connection,
    id: GrantId,
    generation: i64,
    owner: BootId,
    now: Timestamp,
) -> StoreResult<Option<i64>> {
    // The same owner at the same time is the same call again.
    let noted: Option<(i64,)> = sqlx::query_as(
        "UPDATE grants SET retried_at = $1, retried_by = $2, lease_owner = $2, fence = fence + 1, beat = 0 \
         WHERE id = $3 AND generation = $4 AND state = 'in_doubt' \
         AND (retried_at IS NULL OR (retried_at = $1 AND retried_by = $2)) RETURNING fence",
    )
    .bind(now.0)
    .bind(owner.0.as_bytes().as_slice())
    .bind(id.0.as_bytes().as_slice())
    .bind(generation)
    .fetch_optional(on)
    .await
    .or_fault()?;
    Ok(noted.map(|(fence,)| fence))
}
