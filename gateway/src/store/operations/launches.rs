//! Authorizations in flight.

use super::{Connection, fault::OrFault as _, seal};
use crate::{
    clock::Timestamp,
    secret::TokenHash,
    store::{
        LaunchId, LaunchStep, StoreResult,
        records::{FORMAT, LaunchRow},
    },
};

pub(super) async fn keep_ehr(
    on: &mut Connection,
    ours: TokenHash,
    expires: Timestamp,
    body: Vec<u8>,
) -> StoreResult<()> {
    seal::may_write(on, &[&body]).await?;
    sqlx::query(
        "INSERT INTO ehr_launches (hash, format, expires, body) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (hash) DO UPDATE SET format = excluded.format, expires = excluded.expires, body = excluded.body",
    )
    .bind(ours.0.as_slice())
    .bind(FORMAT)
    .bind(expires.0)
    .bind(body)
    .execute(on)
    .await
    .map(drop)
    .or_fault()
}

pub(super) async fn take_ehr(on: &mut Connection, ours: TokenHash) -> StoreResult<Option<(i64, i64, Vec<u8>)>> {
    sqlx::query_as("DELETE FROM ehr_launches WHERE hash = $1 RETURNING format, expires, body")
        .bind(ours.0.as_slice())
        .fetch_optional(on)
        .await
        .or_fault()
}

/// A launch as it is written: its columns and its sealed body.
#[derive(Clone)]
pub(super) struct NewLaunch {
    pub id: LaunchId,
    pub step: LaunchStep,
    pub ehr_state: Option<TokenHash>,
    pub expires: Timestamp,
    pub body: Vec<u8>,
}

impl NewLaunch {
    fn ehr_state(&self) -> Option<&[u8]> {
        self.ehr_state.as_ref().map(|hash| hash.0.as_slice())
    }
}

pub(super) async fn open(on: &mut Connection, launch: NewLaunch) -> StoreResult<()> {
    seal::may_write(on, &[&launch.body]).await?;
    sqlx::query(
        "INSERT INTO launches (id, format, step, ehr_state, expires, body) VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(launch.id.0.as_bytes().as_slice())
    .bind(FORMAT)
    .bind(launch.step.text())
    .bind(launch.ehr_state())
    .bind(launch.expires.0)
    .bind(launch.body.as_slice())
    .execute(on)
    .await
    .map(drop)
    .or_fault()
}

type Columns = (Vec<u8>, i64, String, i64, Vec<u8>);

fn row((id, format, step, expires, body): Columns) -> LaunchRow {
    LaunchRow { id, format, step, expires, body }
}

pub(super) async fn by_id(on: &mut Connection, id: LaunchId, now: Timestamp) -> StoreResult<Option<LaunchRow>> {
    let found: Option<Columns> =
        sqlx::query_as("SELECT id, format, step, expires, body FROM launches WHERE id = $1 AND expires > $2")
            .bind(id.0.as_bytes().as_slice())
            .bind(now.0)
            .fetch_optional(on)
            .await
            .or_fault()?;
    Ok(found.map(row))
}

pub(super) async fn advance(on: &mut Connection, from: LaunchStep, launch: NewLaunch) -> StoreResult<bool> {
    seal::may_write(on, &[&launch.body]).await?;
    let changed = sqlx::query(
        "UPDATE launches SET format = $1, step = $2, ehr_state = $3, expires = $4, body = $5 \
         WHERE id = $6 AND step = $7",
    )
    .bind(FORMAT)
    .bind(launch.step.text())
    .bind(launch.ehr_state())
    .bind(launch.expires.0)
    .bind(launch.body.as_slice())
    .bind(launch.id.0.as_bytes().as_slice())
    .bind(from.text())
    .execute(on)
    .await
    .or_fault()?;
    Ok(changed.rows_affected() == 1)
}

pub(super) async fn returned(on: &mut Connection, state: TokenHash, now: Timestamp) -> StoreResult<Option<LaunchRow>> {
    let found: Option<Columns> = sqlx::query_as(
        "UPDATE launches SET step = $1 WHERE ehr_state = $2 AND step = $3 AND expires > $4 \
         RETURNING id, format, step, expires, body",
    )
    .bind(LaunchStep::Returned.text())
    .bind(state.0.as_slice())
    .bind(LaunchStep::AtEhr.text())
    .bind(now.0)
    .fetch_optional(on)
    .await
    .or_fault()?;
    Ok(found.map(row))
}

pub(super) async fn done(on: &mut Connection, id: LaunchId) -> StoreResult<()> {
    sqlx::query("UPDATE launches SET step = $1 WHERE id = $2 AND step <> $1")
        .bind(LaunchStep::Done.text())
        .bind(id.0.as_bytes().as_slice())
        .execute(on)
        .await
        .map(drop)
        .or_fault()
}
