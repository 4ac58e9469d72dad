//! Grants: made, found, ended.

use sqlx::{FromRow, Row as _};

use super::{Backend, Connection, Row, fault::OrFault as _, launches, locking, misc, seal};
use crate::{
    clock::Timestamp,
    secret::TokenHash,
    store::{
        EndReason, Grant, GrantId, LaunchId, Revocation, StoreError, StoreResult,
        records::{self, FORMAT, GrantRow},
        sealing::Sealer,
    },
};

macro_rules! grant_columns {
    () => {
        "g.id, g.format, g.app, g.site, g.registration, g.fingerprint, g.created, g.state, g.generation, \
         g.doubt_since, g.retried_at, g.ended_at, g.end_reason, g.facts, g.tokens"
    };
}
pub(super) use grant_columns;

impl FromRow<'_, Row> for GrantRow {
    fn from_row(row: &Row) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            format: row.try_get("format")?,
            app: row.try_get("app")?,
            site: row.try_get("site")?,
            registration: row.try_get("registration")?,
            fingerprint: row.try_get("fingerprint")?,
            created: row.try_get("created")?,
            state: row.try_get("state")?,
            generation: row.try_get("generation")?,
            doubt_since: row.try_get("doubt_since")?,
            retried_at: row.try_get("retried_at")?,
            ended_at: row.try_get("ended_at")?,
            end_reason: row.try_get("end_reason")?,
            facts: row.try_get("facts")?,
            tokens: row.try_get("tokens")?,
        })
    }
}

/// A grant as it is first written, sealed.
#[derive(Clone)]
pub(super) struct NewGrant {
    pub grant: Grant,
    pub facts: Vec<u8>,
    pub tokens: Vec<u8>,
    /// Whose it is, by each key's name; the first is written.
    pub identity: Option<Vec<[u8; 32]>>,
    pub code: TokenHash,
    pub code_expires: Timestamp,
    pub code_body: Vec<u8>,
    pub launch: LaunchId,
}

pub(super) async fn create(on: &mut Connection, sealer: &Sealer, new: NewGrant) -> StoreResult<()> {
    seal::may_write(on, &[&new.facts]).await?;
    // Where there are several writers the schema takes one living grant for a name. That it took this one says that
    // no other is there under its only name; at SERIALIZABLE what need not be read cannot be lost to others.
    let by_name = Backend::SHARED && new.identity.as_ref().is_none_or(|names| names.len() == 1);
    let stored = (by_name && insert(on, &new).await?) || take_place(on, sealer, &new).await?;
    if !stored {
        // The same call again: all of it took place.
        return Ok(());
    }
    sqlx::query("INSERT INTO codes (hash, format, grant_id, expires, body) VALUES ($1, $2, $3, $4, $5)")
        .bind(new.code.0.as_slice())
        .bind(FORMAT)
        .bind(new.grant.id.0.as_bytes().as_slice())
        .bind(new.code_expires.0)
        .bind(new.code_body.as_slice())
        .execute(&mut *on)
        .await
        .or_fault()?;
    launches::done(on, new.launch).await
}

/// Ends the others of a grant's identity and stores it. False: it is there.
async fn take_place(on: &mut Connection, sealer: &Sealer, new: &NewGrant) -> StoreResult<bool> {
    if by_id(on, new.grant.id).await?.is_some() {
        return Ok(false);
    }
    let mut others = Vec::new();
    for name in new.identity.iter().flatten() {
        others.extend(of_identity(on, name).await?);
    }
    for other in others {
        end(on, sealer, other, EndReason::Superseded, None, Revoke::Its, new.grant.created).await?;
    }
    if insert(on, new).await? {
        return Ok(true);
    }
    // Somebody else's grant for the same identity came between: it is found, and ended, by the next try.
    Err(StoreError::Contended("another grant for the same app, subject and patient is being made".into()))
}

/// The living grants under an identity's name, locked before any of them is ended.
async fn of_identity(on: &mut Connection, name: &[u8; 32]) -> StoreResult<Vec<GrantId>> {
    let found: Vec<(Vec<u8>,)> = sqlx::query_as(concat!(
        "SELECT id FROM grants WHERE identity = $1 AND state <> 'ended' ORDER BY id",
        locking!()
    ))
    .bind(name.as_slice())
    .fetch_all(on)
    .await
    .or_fault()?;
    found.into_iter().map(|(id,)| records::id16("grants", &id).map(GrantId)).collect()
}

/// False: a grant of its id, or a living one of its identity, is there.
async fn insert(on: &mut Connection, new: &NewGrant) -> StoreResult<bool> {
    let grant = &new.grant;
    let inserted = sqlx::query(
        "INSERT INTO grants (id, format, app, site, registration, fingerprint, created, identity, state, generation, \
         facts, tokens) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'live', $9, $10, $11) ON CONFLICT DO NOTHING",
    )
    .bind(grant.id.0.as_bytes().as_slice())
    .bind(FORMAT)
    .bind(grant.app.as_str())
    .bind(grant.site.as_str())
    .bind(grant.registration.as_str())
    .bind(grant.fingerprint.as_str())
    .bind(grant.created.0)
    .bind(new.identity.as_ref().and_then(|names| names.first()).map(<[u8; 32]>::as_slice))
    .bind(grant.generation)
    .bind(new.facts.as_slice())
    .bind(new.tokens.as_slice())
    .execute(on)
    .await
    .or_fault()?;
    Ok(inserted.rows_affected() == 1)
}

pub(super) async fn by_id(on: &mut Connection, id: GrantId) -> StoreResult<Option<GrantRow>> {
    sqlx::query_as(concat!("SELECT ", grant_columns!(), " FROM grants g WHERE g.id = $1"))
        .bind(id.0.as_bytes().as_slice())
        .fetch_optional(on)
        .await
        .or_fault()
}

/// [`by_id`], for an operation that writes what hangs on the grant.
pub(super) async fn locked(on: &mut Connection, id: GrantId) -> StoreResult<Option<GrantRow>> {
    sqlx::query_as(concat!("SELECT ", grant_columns!(), " FROM grants g WHERE g.id = $1", locking!()))
        .bind(id.0.as_bytes().as_slice())
        .fetch_optional(on)
        .await
        .or_fault()
}

/// `after`: the nil UUID is nobody's, so that it comes before all.
pub(super) async fn after(on: &mut Connection, after: Vec<u8>, limit: u32) -> StoreResult<Vec<GrantRow>> {
    sqlx::query_as(concat!(
        "SELECT ",
        grant_columns!(),
        " FROM grants g WHERE g.id > $1 AND g.state <> 'ended' ORDER BY g.id LIMIT $2"
    ))
    .bind(after)
    .bind(i64::from(limit))
    .fetch_all(on)
    .await
    .or_fault()
}

/// Live, in doubt, ended.
pub(super) async fn count(on: &mut Connection) -> StoreResult<[u64; 3]> {
    let counted: Vec<(String, i64)> =
        sqlx::query_as("SELECT state, COUNT(*) FROM grants GROUP BY state").fetch_all(on).await.or_fault()?;
    let of = |state: &str| {
        counted.iter().find(|(name, _)| name == state).and_then(|(_, n)| u64::try_from(*n).ok()).unwrap_or(0)
    };
    Ok([of("live"), of("in_doubt"), of("ended")])
}

/// Which revocations an end writes to the outbox.
#[derive(Clone)]
pub(super) enum Revoke {
    /// These, sealed.
    These(Vec<(Revocation, Vec<u8>)>),
    /// The grant's own: whoever carries it out asks the profile whether it may.
    Its,
}

/// Ends a grant with all that hangs on it. False: it had ended, or its generation is not `consumed`.
pub(super) async fn end(
    on: &mut Connection,
    sealer: &Sealer,
    id: GrantId,
    reason: EndReason,
    consumed: Option<i64>,
    revoke: Revoke,
    now: Timestamp,
) -> StoreResult<bool> {
    let key = id.0.as_bytes().as_slice();
    let ended: Option<(String, String, String, Option<Vec<u8>>)> = sqlx::query_as(
        "UPDATE grants SET state = 'ended', ended_at = $1, end_reason = $2, lease_owner = NULL \
         WHERE id = $3 AND state <> 'ended' AND generation = COALESCE($4, generation) \
         RETURNING site, registration, fingerprint, tokens",
    )
    .bind(now.0)
    .bind(reason.text())
    .bind(key)
    .bind(consumed)
    .fetch_optional(&mut *on)
    .await
    .or_fault()?;
    let Some((site, registration, fingerprint, tokens)) = ended else { return Ok(false) };
    let revocations = match (revoke, tokens) {
        (Revoke::These(revocations), _) => revocations,
        (Revoke::Its, None) => Vec::new(),
        // Tokens that cannot be read cannot be revoked either; the end must not fail for it.
        (Revoke::Its, Some(sealed)) => match records::open_tokens(sealer, key, &sealed) {
            Ok(tokens) => {
                let revocation = records::revocation_of(&site, &registration, fingerprint, id, &tokens, now)?;
                let body = records::seal_revocation(sealer, &revocation)?;
                vec![(revocation, body)]
            }
            Err(error) => {
                tracing::error!(grant = %id, error = %error, "its tokens are not revoked at the EHR");
                Vec::new()
            }
        },
    };
    // Raised under this transaction's lock of the row, so that its numbers follow the order of commits.
    let (change,): (i64,) = sqlx::query_as("UPDATE changes SET value = value + 1 WHERE one = 1 RETURNING value")
        .fetch_optional(&mut *on)
        .await
        .or_fault()?
        .ok_or_else(|| StoreError::Corrupt("changes is empty".into()))?;
    sqlx::query("UPDATE grants SET change = $1, tokens = NULL WHERE id = $2")
        .bind(change)
        .bind(key)
        .execute(&mut *on)
        .await
        .or_fault()?;
    sqlx::query(
        "UPDATE refresh_tokens SET sealed_successor = NULL WHERE grant_id = $1 AND sealed_successor IS NOT NULL",
    )
    .bind(key)
    .execute(&mut *on)
    .await
    .or_fault()?;
    misc::add_revocations(on, revocations).await?;
    Ok(true)
}

pub(super) async fn ended_since(on: &mut Connection, since: i64) -> StoreResult<(i64, Vec<GrantId>)> {
    // One statement, hence one snapshot: the counter belongs to the list.
    let rows: Vec<(i64, Option<Vec<u8>>)> = sqlx::query_as(
        "SELECT c.value, g.id FROM changes c LEFT JOIN grants g ON g.change > $1 WHERE c.one = 1 ORDER BY g.change",
    )
    .bind(since)
    .fetch_all(on)
    .await
    .or_fault()?;
    let counter = rows.first().map_or(0, |(value, _)| *value);
    let ids = rows.into_iter().filter_map(|(_, id)| id);
    Ok((counter, ids.map(|id| records::id16("grants", &id).map(GrantId)).collect::<StoreResult<_>>()?))
}

pub(super) async fn note_use(on: &mut Connection, uses: Vec<(GrantId, Timestamp)>) -> StoreResult<()> {
    for (id, at) in uses {
        sqlx::query("UPDATE grants SET used_at = $1 WHERE id = $2 AND state <> 'ended' AND COALESCE(used_at, 0) < $1")
            .bind(at.0)
            .bind(id.0.as_bytes().as_slice())
            .execute(&mut *on)
            .await
            .or_fault()?;
    }
    Ok(())
}

pub(super) async fn last_use(on: &mut Connection, id: GrantId) -> StoreResult<Option<Timestamp>> {
    let found: Option<(Option<i64>,)> = sqlx::query_as("SELECT used_at FROM grants WHERE id = $1")
        .bind(id.0.as_bytes().as_slice())
        .fetch_optional(on)
        .await
        .or_fault()?;
    Ok(found.and_then(|(at,)| at).map(Timestamp))
}
