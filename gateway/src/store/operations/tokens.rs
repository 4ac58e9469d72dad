//! Codes and tokens of ours, by their hashes.

use sqlx::{FromRow as _, Row as _};

use super::{
    Connection, Row,
    fault::OrFault as _,
    grants::{self, Revoke, grant_columns},
    locking,
};
use crate::{
    clock::Timestamp,
    secret::TokenHash,
    store::{
        AccessToken, EndReason, GrantId, GrantState, NewTokens, SealedSuccessor, StoreResult,
        records::{self, CodeRow, GrantRow},
        sealing::Sealer,
    },
};

type CodeColumns = (i64, Vec<u8>, i64, Option<i64>, Vec<u8>);

/// A code that has not expired, or that was redeemed: a second use of that is to be noticed.
pub(super) async fn code(on: &mut Connection, hash: TokenHash, now: Timestamp) -> StoreResult<Option<CodeRow>> {
    let found: Option<CodeColumns> = sqlx::query_as(
        "SELECT format, grant_id, expires, redeemed_at, body FROM codes \
         WHERE hash = $1 AND (expires > $2 OR redeemed_at IS NOT NULL)",
    )
    .bind(hash.0.as_slice())
    .bind(now.0)
    .fetch_optional(on)
    .await
    .or_fault()?;
    Ok(found.map(|(format, grant, expires, redeemed_at, body)| CodeRow { format, grant, expires, redeemed_at, body }))
}

/// [`crate::store::Redeemed`], its grant unopened.
pub(super) enum Redeeming {
    Now(Box<GrantRow>),
    Replayed(GrantId),
    Unknown,
    Ended(EndReason),
}

/// Grant, expiry, time of use, the access token that it was used for.
type RedeemColumns = (Vec<u8>, i64, Option<i64>, Option<Vec<u8>>);

pub(super) async fn redeem(
    on: &mut Connection,
    sealer: &Sealer,
    hash: TokenHash,
    tokens: NewTokens,
    now: Timestamp,
) -> StoreResult<Redeeming> {
    let found: Option<RedeemColumns> =
        sqlx::query_as(concat!("SELECT grant_id, expires, redeemed_at, access FROM codes WHERE hash = $1", locking!()))
            .bind(hash.0.as_slice())
            .fetch_optional(&mut *on)
            .await
            .or_fault()?;
    let Some((grant, expires, redeemed_at, access)) = found else { return Ok(Redeeming::Unknown) };
    let id = GrantId(records::id16("codes", &grant)?);
    if redeemed_at.is_some() && access.as_deref() != Some(tokens.access.hash.0.as_slice()) {
        grants::end(on, sealer, id, EndReason::CodeReplay, None, Revoke::Its, now).await?;
        return Ok(Redeeming::Replayed(id));
    }
    if redeemed_at.is_none() && expires <= now.0 {
        return Ok(Redeeming::Unknown);
    }
    let Some(row) = grants::by_id(on, id).await? else { return Ok(Redeeming::Unknown) };
    if let GrantState::Ended { reason, .. } = row.state()? {
        return Ok(Redeeming::Ended(reason));
    }
    // With these very tokens redeemed already: the same call again.
    if redeemed_at.is_none() {
        sqlx::query("UPDATE codes SET redeemed_at = $1, access = $2 WHERE hash = $3")
            .bind(now.0)
            .bind(tokens.access.hash.0.as_slice())
            .bind(hash.0.as_slice())
            .execute(&mut *on)
            .await
            .or_fault()?;
        insert(on, id, &tokens, tokens.refresh.as_ref().map(|refresh| refresh.hash)).await?;
    }
    Ok(Redeeming::Now(Box::new(row)))
}

/// Stores new tokens; the access token belongs to the refresh token `beside`.
async fn insert(on: &mut Connection, grant: GrantId, tokens: &NewTokens, beside: Option<TokenHash>) -> StoreResult<()> {
    sqlx::query(
        "INSERT INTO access_tokens (hash, grant_id, refresh, reported, enforced, expires) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (hash) DO NOTHING",
    )
    .bind(tokens.access.hash.0.as_slice())
    .bind(grant.0.as_bytes().as_slice())
    .bind(beside.as_ref().map(|hash| hash.0.as_slice()))
    .bind(tokens.access.reported.as_str())
    .bind(tokens.access.enforced.as_str())
    .bind(tokens.access.expires.0)
    .execute(&mut *on)
    .await
    .or_fault()?;
    if let Some(refresh) = tokens.refresh.as_ref().filter(|refresh| beside == Some(refresh.hash)) {
        sqlx::query(
            "INSERT INTO refresh_tokens (hash, grant_id, expires) VALUES ($1, $2, $3) ON CONFLICT (hash) DO NOTHING",
        )
        .bind(refresh.hash.0.as_slice())
        .bind(grant.0.as_bytes().as_slice())
        .bind(refresh.expires.0)
        .execute(on)
        .await
        .or_fault()?;
    }
    Ok(())
}

pub(super) async fn access(
    on: &mut Connection,
    hash: TokenHash,
    now: Timestamp,
) -> StoreResult<Option<(AccessToken, GrantRow)>> {
    let statement = concat!(
        "SELECT a.reported AS a_reported, a.enforced AS a_enforced, a.expires AS a_expires, ",
        grant_columns!(),
        " FROM access_tokens a JOIN grants g ON g.id = a.grant_id \
         WHERE a.hash = $1 AND a.expires > $2 AND g.state <> 'ended'"
    );
    let Some((row, grant)) = living(on, statement, hash, now).await? else { return Ok(None) };
    let token = AccessToken {
        hash,
        grant: GrantId(records::id16("grants", &grant.id)?),
        reported: row.try_get("a_reported").or_fault()?,
        enforced: row.try_get("a_enforced").or_fault()?,
        expires: Timestamp(row.try_get("a_expires").or_fault()?),
    };
    Ok(Some((token, grant)))
}

pub(super) async fn refresh(
    on: &mut Connection,
    hash: TokenHash,
    now: Timestamp,
) -> StoreResult<Option<(i64, GrantRow)>> {
    let statement = concat!(
        "SELECT r.expires AS r_expires, ",
        grant_columns!(),
        " FROM refresh_tokens r JOIN grants g ON g.id = r.grant_id WHERE r.hash = $1 AND r.expires > $2"
    );
    let Some((row, grant)) = living(on, statement, hash, now).await? else { return Ok(None) };
    Ok(Some((row.try_get("r_expires").or_fault()?, grant)))
}

/// The row of a token that lives now, and the grant in it.
async fn living(
    on: &mut Connection,
    statement: &'static str,
    hash: TokenHash,
    now: Timestamp,
) -> StoreResult<Option<(Row, GrantRow)>> {
    let found = sqlx::query(statement).bind(hash.0.as_slice()).bind(now.0).fetch_optional(on).await.or_fault()?;
    found.map(|row| GrantRow::from_row(&row).or_fault().map(|grant| (row, grant))).transpose()
}

/// [`crate::store::Rotated`], its grant unopened.
pub(super) enum Rotating {
    Now(Box<GrantRow>),
    Again { grant: Box<GrantRow>, successor: SealedSuccessor },
    Replayed(GrantId),
    Unknown,
    Ended(EndReason),
}

/// What stands against the presented token.
struct Standing {
    grant: Vec<u8>,
    expires: i64,
    superseded_at: Option<i64>,
    successor: Option<Vec<u8>>,
    sealed: Option<Vec<u8>>,
    grace_until: Option<i64>,
}

type StandingColumns = (Vec<u8>, i64, Option<i64>, Option<Vec<u8>>, Option<Vec<u8>>, Option<i64>);

async fn standing(on: &mut Connection, presented: TokenHash) -> StoreResult<Option<Standing>> {
    let found: Option<StandingColumns> = sqlx::query_as(
        "SELECT grant_id, expires, superseded_at, successor, sealed_successor, grace_until FROM refresh_tokens \
         WHERE hash = $1",
    )
    .bind(presented.0.as_slice())
    .fetch_optional(on)
    .await
    .or_fault()?;
    Ok(found.map(|(grant, expires, superseded_at, successor, sealed, grace_until)| Standing {
        grant,
        expires,
        superseded_at,
        successor,
        sealed,
        grace_until,
    }))
}

#[derive(Clone)]
pub(super) struct Rotation {
    pub presented: TokenHash,
    pub tokens: NewTokens,
    pub successor: SealedSuccessor,
    pub grace_until: Timestamp,
    pub now: Timestamp,
}

pub(super) async fn rotate(on: &mut Connection, sealer: &Sealer, with: Rotation) -> StoreResult<Rotating> {
    let Some(seen) = standing(on, with.presented).await?.filter(|it| it.expires > with.now.0) else {
        return Ok(Rotating::Unknown);
    };
    let id = GrantId(records::id16("refresh_tokens", &seen.grant)?);
    // Who ends the grant locks it before its tokens; so does this.
    let Some(row) = grants::locked(on, id).await? else { return Ok(Rotating::Unknown) };
    let Some(standing) = standing(on, with.presented).await? else { return Ok(Rotating::Unknown) };
    if let GrantState::Ended { reason, .. } = row.state()? {
        return Ok(Rotating::Ended(reason));
    }
    let grant = Box::new(row);
    let offered = with.tokens.refresh.as_ref().map(|refresh| refresh.hash.0.to_vec());
    if standing.superseded_at.is_none() {
        supersede(on, id, &with).await?;
        return Ok(Rotating::Now(grant));
    }
    if offered.is_some() && offered == standing.successor {
        // With this very successor superseded already: the same call again.
        return Ok(Rotating::Now(grant));
    }
    let successor = standing.successor.and_then(|hash| <[u8; 32]>::try_from(hash).ok()).map(TokenHash);
    let in_grace = standing.grace_until.is_some_and(|until| with.now.0 <= until);
    if let (Some(sealed), Some(successor), true) = (standing.sealed, successor, in_grace) {
        insert(on, id, &with.tokens, Some(successor)).await?;
        return Ok(Rotating::Again { grant, successor: SealedSuccessor(sealed) });
    }
    grants::end(on, sealer, id, EndReason::RefreshReplay, None, Revoke::Its, with.now).await?;
    Ok(Rotating::Replayed(id))
}

async fn supersede(on: &mut Connection, grant: GrantId, with: &Rotation) -> StoreResult<()> {
    // That the presented token was used ends the grace of the one before it.
    used(on, with.presented).await?;
    let Some(refresh) = &with.tokens.refresh else {
        // A further access token; the presented token stays.
        return insert(on, grant, &with.tokens, Some(with.presented)).await;
    };
    sqlx::query(
        "UPDATE refresh_tokens SET superseded_at = $1, successor = $2, sealed_successor = $3, grace_until = $4 \
         WHERE hash = $5",
    )
    .bind(with.now.0)
    .bind(refresh.hash.0.as_slice())
    .bind(with.successor.0.as_slice())
    .bind(with.grace_until.0)
    .bind(with.presented.0.as_slice())
    .execute(&mut *on)
    .await
    .or_fault()?;
    insert(on, grant, &with.tokens, Some(refresh.hash)).await
}

/// Ends the grace of the predecessor of the refresh token that `token` is, or was given with.
pub(super) async fn used(on: &mut Connection, token: TokenHash) -> StoreResult<()> {
    sqlx::query(
        "UPDATE refresh_tokens SET sealed_successor = NULL, grace_until = NULL WHERE sealed_successor IS NOT NULL \
         AND (successor = $1 OR successor = (SELECT refresh FROM access_tokens WHERE hash = $1))",
    )
    .bind(token.0.as_slice())
    .execute(on)
    .await
    .map(drop)
    .or_fault()
}

pub(super) async fn owner(on: &mut Connection, token: TokenHash) -> StoreResult<Option<GrantRow>> {
    sqlx::query_as(concat!(
        "SELECT ",
        grant_columns!(),
        " FROM grants g WHERE g.id IN (SELECT grant_id FROM access_tokens WHERE hash = $1 \
         UNION ALL SELECT grant_id FROM refresh_tokens WHERE hash = $1)"
    ))
    .bind(token.0.as_slice())
    .fetch_optional(on)
    .await
    .or_fault()
}
