//! The seal keys, and sealing anew what an older one has sealed. A record is replaced by compare-and-set on its
//! old bytes, so that no answer of an EHR that comes meanwhile is overwritten.

use super::{
    Backend, Connection, Row,
    fault::OrFault as _,
    grants::{self, Revoke},
};
use crate::{
    clock::Timestamp,
    store::{
        EndReason, GrantFacts, GrantId, KnownSealKey, Resealed, Retired, SealKeyState, SealUsage, SealedTable,
        StoreError, StoreResult,
        records::{self, corrupt},
        sealing::{Place, Sealer, prefix, sealed_by},
    },
};

// ---- the keys ------------------------------------------------------------------------------------------

pub(super) async fn known(on: &mut Connection) -> StoreResult<Vec<KnownSealKey>> {
    let rows: Vec<(String, String, Vec<u8>)> =
        sqlx::query_as("SELECT id, state, proof FROM seal_keys ORDER BY id").fetch_all(on).await.or_fault()?;
    let open = |(id, text, proof): (String, String, Vec<u8>)| {
        let state = SealKeyState::ALL
            .into_iter()
            .find(|state| state.text() == text)
            .ok_or_else(|| corrupt("seal_keys", format_args!("the state {text:?} is unknown")))?;
        Ok(KnownSealKey { id, state, proof })
    };
    rows.into_iter().map(open).collect()
}

pub(super) async fn announce(on: &mut Connection, id: String, proof: Vec<u8>) -> StoreResult<()> {
    sqlx::query(
        "INSERT INTO seal_keys (id, proof, state) VALUES ($1, $2, 'held') ON CONFLICT (id) DO UPDATE \
         SET state = CASE WHEN seal_keys.state = 'retired' THEN 'held' ELSE seal_keys.state END",
    )
    .bind(id)
    .bind(proof)
    .execute(on)
    .await
    .map(drop)
    .or_fault()
}

pub(super) async fn promote(on: &mut Connection, id: String) -> StoreResult<bool> {
    let promoted = sqlx::query(
        "UPDATE seal_keys SET state = CASE WHEN id = $1 THEN 'writing' ELSE 'held' END \
         WHERE (id = $1 OR state = 'writing') \
         AND EXISTS (SELECT 1 FROM seal_keys k WHERE k.id = $1 AND k.state <> 'retired')",
    )
    .bind(id)
    .execute(on)
    .await
    .or_fault()?;
    Ok(promoted.rows_affected() > 0)
}

/// At the start of a process: refuses to go on without a key that the database is sealed by, or with another
/// one under its name; else says to the sealer which one writes. `alone`: no other process can read this
/// database, so the preferred key writes at once.
pub(in super::super) async fn check(on: &mut Connection, sealer: &Sealer, alone: bool) -> StoreResult<()> {
    let keys = known(on).await?;
    let in_use = || keys.iter().filter(|key| key.state != SealKeyState::Retired);
    for key in &keys {
        if key.state != SealKeyState::Retired || sealer.holds(&key.id) {
            sealer.check(&key.id, &key.proof)?;
        }
    }
    let writing = in_use().find(|key| key.state == SealKeyState::Writing).map(|key| key.id.as_str());
    // A database of the level before says of none that it writes.
    let prefers = sealer.prefers();
    let unsaid = in_use().find(|key| key.id == prefers).or_else(|| in_use().next()).map(|key| key.id.as_str());
    let writes = match writing.or(unsaid) {
        Some(id) if !alone => id,
        _ => prefers,
    };
    if writing != Some(writes) {
        announce(on, writes.to_owned(), sealer.prove(writes)?).await?;
        promote(on, writes.to_owned()).await?;
    }
    sealer.write_with(writes);
    Ok(())
}

pub(super) async fn retire(on: &mut Connection, id: String) -> StoreResult<Retired> {
    let retired = sqlx::query("UPDATE seal_keys SET state = 'retired' WHERE id = $1 AND state <> 'writing'")
        .bind(id.as_str())
        .execute(&mut *on)
        .await
        .or_fault()?;
    if retired.rows_affected() > 0 {
        return Ok(Retired::Yes);
    }
    let there: Option<(String,)> =
        sqlx::query_as("SELECT id FROM seal_keys WHERE id = $1").bind(id).fetch_optional(on).await.or_fault()?;
    Ok(if there.is_some() { Retired::Writes } else { Retired::Unknown })
}

/// Whether the key that has sealed these may still write. A process that was stopped for so long that the others count
/// it as gone may go on with one that they have retired since: nobody needs to hold that any more.
pub(super) async fn may_write(on: &mut Connection, sealed: &[&[u8]]) -> StoreResult<()> {
    let mut ids: Vec<_> = sealed.iter().filter_map(|sealed| sealed_by(sealed)).collect();
    ids.dedup();
    for id in ids {
        not_retired(on, &id).await?;
    }
    Ok(())
}

pub(super) async fn not_retired(on: &mut Connection, id: &str) -> StoreResult<()> {
    let retired: Option<(String,)> = sqlx::query_as("SELECT id FROM seal_keys WHERE id = $1 AND state = 'retired'")
        .bind(id)
        .fetch_optional(on)
        .await
        .or_fault()?;
    match retired {
        None => Ok(()),
        Some((id,)) => Err(StoreError::Unavailable(format!(
            "the seal key {id:?}, which this process writes with, has been retired: put the new one first in its \
             `store.seal`"
        ))),
    }
}

/// A record came while it was retired: it is needed still.
async fn take_up(on: &mut Connection, id: String) -> StoreResult<()> {
    sqlx::query("UPDATE seal_keys SET state = 'held' WHERE id = $1 AND state = 'retired'")
        .bind(id)
        .execute(on)
        .await
        .map(drop)
        .or_fault()
}

/// The key by which all processes name subjects now. Its row stays locked until the transaction ends: so two
/// processes never name one subject by different keys, and none looks while a subject is being renamed.
pub(super) async fn naming_key(on: &mut Connection) -> StoreResult<String> {
    let rows: Vec<(String,)> =
        sqlx::query_as("UPDATE seal_keys SET state = state WHERE state = 'writing' RETURNING id")
            .fetch_all(on)
            .await
            .or_fault()?;
    rows.into_iter().map(|(id,)| id).min().ok_or_else(|| corrupt("seal_keys", "none of the keys writes"))
}

// ---- what is sealed by which -----------------------------------------------------------------------------

/// As much of a record as names its key: ids have at most 64 bytes (`config`).
macro_rules! head {
    ($column:literal) => {
        concat!("substr(", $column, ", 1, 66)")
    };
}

/// Rows looked at in one go.
const HEADS: i64 = 5000;

/// A row's key, and the heads of its sealed columns.
type Heads = (Vec<u8>, Vec<u8>, Option<Vec<u8>>);

async fn heads(on: &mut Connection, statement: &'static str, after: Vec<u8>) -> StoreResult<Vec<Heads>> {
    sqlx::query_as(statement).bind(after).bind(HEADS).fetch_all(on).await.or_fault()
}

async fn signing_heads(on: &mut Connection) -> StoreResult<Vec<(Vec<u8>,)>> {
    sqlx::query_as(concat!("SELECT ", head!("pkcs8"), " FROM signing_keys")).fetch_all(on).await.or_fault()
}

/// A table whose rows have one sealed column, and a key of bytes.
struct OneColumn {
    place: fn(&[u8]) -> Place<'_>,
    heads: &'static str,
    stale: &'static str,
    swap: &'static str,
}

macro_rules! one_column {
    ($place:ident, $table:literal, $key:literal, $column:literal) => {
        OneColumn {
            place: records::$place,
            heads: concat!(
                "SELECT ",
                $key,
                ", ",
                head!($column),
                ", NULL FROM ",
                $table,
                " WHERE ",
                $key,
                " > $1 ORDER BY ",
                $key,
                " LIMIT $2"
            ),
            stale: concat!(
                "SELECT ",
                $key,
                ", ",
                $column,
                " FROM ",
                $table,
                " WHERE ",
                $key,
                " > $1 AND substr(",
                $column,
                ", 1, $2) <> $3 ORDER BY ",
                $key,
                " LIMIT $4"
            ),
            swap: concat!("UPDATE ", $table, " SET ", $column, " = $1 WHERE ", $key, " = $2 AND ", $column, " = $3"),
        }
    };
}

const LAUNCHES: OneColumn = one_column!(launch_place, "launches", "id", "body");
const EHR_LAUNCHES: OneColumn = one_column!(ehr_launch_place, "ehr_launches", "hash", "body");
const CODES: OneColumn = one_column!(code_place, "codes", "hash", "body");
const SUBJECTS: OneColumn = one_column!(subject_place, "subjects", "name", "body");
const OUTBOX: OneColumn = one_column!(outbox_place, "outbox", "id", "body");
const GRANT_HEADS: &str =
    concat!("SELECT id, ", head!("facts"), ", ", head!("tokens"), " FROM grants WHERE id > $1 ORDER BY id LIMIT $2");

/// A record that is sealed by another key than the one that writes: its key and its sealed bytes.
type Stale = (Vec<u8>, Vec<u8>);

async fn stale<R>(
    on: &mut Connection,
    statement: &'static str,
    after: Vec<u8>,
    current: Vec<u8>,
    limit: u32,
) -> StoreResult<Vec<R>>
where
    R: for<'r> sqlx::FromRow<'r, Row> + Send + Unpin,
{
    sqlx::query_as(statement)
        .bind(after)
        .bind(length(&current))
        .bind(current)
        .bind(i64::from(limit))
        .fetch_all(on)
        .await
        .or_fault()
}

/// Where `substr` ends: PostgreSQL's takes no wider number.
fn length(current: &[u8]) -> i32 {
    i32::try_from(current.len()).unwrap_or(i32::MAX)
}

/// A record's key, its old bytes, its new ones.
type Swap = (Vec<u8>, Vec<u8>, Vec<u8>);

async fn swap(on: &mut Connection, statement: &'static str, swaps: Vec<Swap>) -> StoreResult<u64> {
    may_write(on, &swaps.iter().map(|(.., new)| new.as_slice()).collect::<Vec<_>>()).await?;
    let mut done = 0;
    for (key, old, new) in swaps {
        let swapped = sqlx::query(statement).bind(new).bind(key).bind(old).execute(&mut *on).await.or_fault()?;
        done += swapped.rows_affected();
    }
    Ok(done)
}

type StaleGrant = (Vec<u8>, String, String, Vec<u8>, Option<Vec<u8>>);

const STALE_GRANTS: &str = "SELECT id, app, site, facts, tokens FROM grants WHERE id > $1 \
     AND (substr(facts, 1, $2) <> $3 OR substr(tokens, 1, $2) <> $3) ORDER BY id LIMIT $4";

#[derive(Clone)]
struct GrantSwap {
    id: Vec<u8>,
    old: (Vec<u8>, Option<Vec<u8>>),
    facts: Vec<u8>,
    tokens: Option<Vec<u8>>,
    identity: Option<[u8; 32]>,
}

impl GrantSwap {
    fn of(sealer: &Sealer, (id, app, site, facts, tokens): StaleGrant) -> StoreResult<Self> {
        let (at_facts, at_tokens) = (records::facts_place(&id), records::tokens_place(&id));
        let known: GrantFacts = sealer.open_json(at_facts, &facts)?;
        // Its name is by the same key as its facts.
        let identity = records::identity(sealer, &app, &site, &known).and_then(|names| names.first().copied());
        let new_tokens = tokens.as_deref().map(|sealed| sealer.reseal(at_tokens, at_tokens, sealed)).transpose()?;
        Ok(Self {
            facts: sealer.reseal(at_facts, at_facts, &facts)?,
            tokens: new_tokens,
            identity,
            old: (facts, tokens),
            id,
        })
    }
}

/// Two processes that wrote with different keys may each have made a grant for one identity, unseen by the other:
/// under one name the older one's place has been taken. True: it was this one's.
async fn superseded(on: &mut Connection, sealer: &Sealer, it: &GrantSwap) -> StoreResult<bool> {
    let Some(identity) = &it.identity else { return Ok(false) };
    let other: Option<(Vec<u8>, i64, i64)> = sqlx::query_as(
        "SELECT o.id, o.created, g.created FROM grants o JOIN grants g ON g.id = $2 \
         WHERE o.identity = $1 AND o.id <> $2 AND o.state <> 'ended' AND g.state <> 'ended' ORDER BY o.created DESC",
    )
    .bind(identity.as_slice())
    .bind(it.id.as_slice())
    .fetch_optional(&mut *on)
    .await
    .or_fault()?;
    let Some((other, theirs, own)) = other else { return Ok(false) };
    let older = if own <= theirs { &it.id } else { &other };
    let id = GrantId(records::id16("grants", older)?);
    grants::end(on, sealer, id, EndReason::Superseded, None, Revoke::Its, Timestamp(own.max(theirs))).await?;
    Ok(*older == it.id)
}

async fn swap_grants(on: &mut Connection, sealer: &Sealer, swaps: Vec<GrantSwap>) -> StoreResult<u64> {
    may_write(on, &swaps.iter().map(|it| it.facts.as_slice()).collect::<Vec<_>>()).await?;
    let mut done = 0;
    for it in swaps {
        if superseded(on, sealer, &it).await? {
            // Its facts are sealed anew by the next pass.
            continue;
        }
        let swapped = sqlx::query(
            "UPDATE grants SET facts = $1, tokens = $2, identity = $3 WHERE id = $4 AND facts = $5 \
             AND (tokens = $6 OR (tokens IS NULL AND $7 = 1))",
        )
        .bind(it.facts)
        .bind(it.tokens)
        .bind(it.identity.as_ref().map(<[u8; 32]>::as_slice))
        .bind(it.id)
        .bind(it.old.0)
        .bind(it.old.1.as_deref())
        .bind(i32::from(it.old.1.is_none()))
        .execute(&mut *on)
        .await
        .or_fault()?;
        done += swapped.rows_affected();
    }
    Ok(done)
}

#[derive(Clone)]
struct SubjectSwap {
    old: Stale,
    name: [u8; 32],
    body: Vec<u8>,
}

impl SubjectSwap {
    fn of(sealer: &Sealer, (name, body): Stale) -> StoreResult<Self> {
        let (site, subject): (String, String) = sealer.open_json(records::subject_place(&name), &body)?;
        let names = records::subject_names(sealer, &site, &subject);
        let new = *names.first().ok_or_else(|| corrupt("subjects", "no key names it"))?;
        let sealed = sealer.reseal(records::subject_place(&name), records::subject_place(&new), &body)?;
        Ok(Self { old: (name, body), name: new, body: sealed })
    }
}

async fn swap_subjects(on: &mut Connection, swaps: Vec<SubjectSwap>) -> StoreResult<u64> {
    naming_key(on).await?;
    may_write(on, &swaps.iter().map(|it| it.body.as_slice()).collect::<Vec<_>>()).await?;
    let mut done = 0;
    for SubjectSwap { old: (old_name, old_body), name, body } in swaps {
        sqlx::query(
            "INSERT INTO subjects (name, format, sub, body) SELECT $1, format, sub, $2 FROM subjects WHERE name = $3 \
             AND body = $4 ON CONFLICT (name) DO NOTHING",
        )
        .bind(name.as_slice())
        .bind(body)
        .bind(old_name.as_slice())
        .bind(old_body.as_slice())
        .execute(&mut *on)
        .await
        .or_fault()?;
        let gone = sqlx::query("DELETE FROM subjects WHERE name = $1 AND body = $2 AND name <> $3")
            .bind(old_name)
            .bind(old_body)
            .bind(name.as_slice())
            .execute(&mut *on)
            .await
            .or_fault()?;
        done += gone.rows_affected();
    }
    Ok(done)
}

async fn stale_signing_keys(on: &mut Connection, current: Vec<u8>) -> StoreResult<Vec<(String, Vec<u8>)>> {
    sqlx::query_as("SELECT kid, pkcs8 FROM signing_keys WHERE substr(pkcs8, 1, $1) <> $2 ORDER BY kid")
        .bind(length(&current))
        .bind(current)
        .fetch_all(on)
        .await
        .or_fault()
}

async fn swap_signing_keys(on: &mut Connection, swaps: Vec<(String, Vec<u8>, Vec<u8>)>) -> StoreResult<u64> {
    may_write(on, &swaps.iter().map(|(.., new)| new.as_slice()).collect::<Vec<_>>()).await?;
    let mut done = 0;
    for (kid, old, new) in swaps {
        let swapped = sqlx::query("UPDATE signing_keys SET pkcs8 = $1 WHERE kid = $2 AND pkcs8 = $3")
            .bind(new)
            .bind(kid)
            .bind(old)
            .execute(&mut *on)
            .await
            .or_fault()?;
        done += swapped.rows_affected();
    }
    Ok(done)
}

/// Seals each record anew; those that cannot be opened are told and stay.
fn sealed_anew<R, S>(
    rows: Vec<R>,
    unreadable: &mut Vec<String>,
    name: impl Fn(&R) -> String,
    anew: impl Fn(R) -> StoreResult<S>,
) -> Vec<S> {
    let one = |row: R| {
        let name = name(&row);
        anew(row).map_err(|error| unreadable.push(format!("{name}: {error}"))).ok()
    };
    rows.into_iter().filter_map(one).collect()
}

fn shown(key: &[u8]) -> String {
    match uuid::Uuid::from_slice(key) {
        Ok(id) => id.to_string(),
        Err(_) => key.iter().take(8).map(|byte| format!("{byte:02x}")).collect(),
    }
}

impl Backend {
    pub(super) async fn reseal_some(&self, table: SealedTable, after: &[u8], limit: u32) -> StoreResult<Resealed> {
        let sealer = self.sealer.fixed();
        let current = prefix(sealer.writes_with());
        let after = after.to_vec();
        let mut done = Resealed::default();
        let told = &mut done.unreadable;
        let (seen, last, wanted, swapped) = match table {
            SealedTable::Grants => {
                let rows: Vec<StaleGrant> =
                    self.engine.read(move |on| Box::pin(stale(on, STALE_GRANTS, after, current, limit))).await?;
                let (seen, last) = (rows.len(), rows.last().map(|row| row.0.clone()));
                let swaps = sealed_anew(rows, told, |row| shown(&row.0), |row| GrantSwap::of(&sealer, row));
                let wanted = swaps.len();
                let swapped =
                    self.engine.write(move |on| Box::pin(async move { swap_grants(on, &sealer, swaps).await })).await?;
                (seen, last, wanted, swapped)
            }
            SealedTable::Subjects => {
                let rows: Vec<Stale> =
                    self.engine.read(move |on| Box::pin(stale(on, SUBJECTS.stale, after, current, limit))).await?;
                let (seen, last) = (rows.len(), rows.last().map(|row| row.0.clone()));
                let swaps = sealed_anew(rows, told, |row| shown(&row.0), |row| SubjectSwap::of(&sealer, row));
                let wanted = swaps.len();
                (seen, last, wanted, self.engine.write(move |on| Box::pin(swap_subjects(on, swaps))).await?)
            }
            SealedTable::SigningKeys => {
                let rows = self.engine.read(move |on| Box::pin(stale_signing_keys(on, current))).await?;
                let anew = |(kid, old): (String, Vec<u8>)| {
                    let place = records::key_place(&kid);
                    let new = sealer.reseal(place, place, &old)?;
                    Ok((kid, old, new))
                };
                let swaps = sealed_anew(rows, told, |row| row.0.clone(), anew);
                let wanted = swaps.len();
                // A handful: all at once.
                (0, None, wanted, self.engine.write(move |on| Box::pin(swap_signing_keys(on, swaps))).await?)
            }
            SealedTable::Launches => return self.reseal_column(&LAUNCHES, &sealer, after, limit).await,
            SealedTable::EhrLaunches => return self.reseal_column(&EHR_LAUNCHES, &sealer, after, limit).await,
            SealedTable::Codes => return self.reseal_column(&CODES, &sealer, after, limit).await,
            SealedTable::Outbox => return self.reseal_column(&OUTBOX, &sealer, after, limit).await,
        };
        done.count(seen, last, wanted, swapped, limit);
        Ok(done)
    }

    async fn reseal_column(
        &self,
        of: &'static OneColumn,
        sealer: &Sealer,
        after: Vec<u8>,
        limit: u32,
    ) -> StoreResult<Resealed> {
        let current = prefix(sealer.writes_with());
        let rows: Vec<Stale> = self.engine.read(move |on| Box::pin(stale(on, of.stale, after, current, limit))).await?;
        let (seen, last) = (rows.len(), rows.last().map(|row| row.0.clone()));
        let mut done = Resealed::default();
        let anew = |(key, old): Stale| {
            let place = (of.place)(&key);
            let new = sealer.reseal(place, place, &old)?;
            Ok((key, old, new))
        };
        let swaps = sealed_anew(rows, &mut done.unreadable, |row| shown(&row.0), anew);
        let wanted = swaps.len();
        let swapped = self.engine.write(move |on| Box::pin(swap(on, of.swap, swaps))).await?;
        done.count(seen, last, wanted, swapped, limit);
        Ok(done)
    }

    pub(super) async fn usage(&self) -> StoreResult<SealUsage> {
        let mut usage = SealUsage::new();
        let mut count = |table: SealedTable, heads: &[&[u8]]| {
            let mut ids: Vec<String> = heads.iter().map(|head| sealed_by(head).unwrap_or_default()).collect();
            ids.dedup();
            for id in ids {
                *usage.entry(id).or_default().entry(table).or_insert(0) += 1;
            }
        };
        for table in SealedTable::ALL {
            let statement = match table {
                SealedTable::Grants => GRANT_HEADS,
                SealedTable::Launches => LAUNCHES.heads,
                SealedTable::EhrLaunches => EHR_LAUNCHES.heads,
                SealedTable::Codes => CODES.heads,
                SealedTable::Subjects => SUBJECTS.heads,
                SealedTable::Outbox => OUTBOX.heads,
                SealedTable::SigningKeys => {
                    for (head,) in self.engine.read(|on| Box::pin(signing_heads(on))).await? {
                        count(table, &[&head]);
                    }
                    continue;
                }
            };
            let mut after = Some(Vec::new());
            while let Some(from) = after.take() {
                let rows = self.engine.read(move |on| Box::pin(heads(on, statement, from))).await?;
                for (_, first, second) in &rows {
                    let both: Vec<&[u8]> = std::iter::once(first).chain(second).map(Vec::as_slice).collect();
                    count(table, &both);
                }
                after = rows.into_iter().last().map(|(key, ..)| key);
            }
        }
        Ok(usage)
    }

    pub(super) async fn retire_unused(&self, id: &str) -> StoreResult<Retired> {
        let sealed = self.count_sealed_by(id).await?;
        if sealed > 0 {
            return Ok(Retired::Sealed(sealed));
        }
        let key = id.to_owned();
        let retired = self.engine.write(move |on| Box::pin(retire(on, key))).await?;
        if retired == Retired::Yes {
            // From now on none is written; one may have been while they were counted.
            let sealed = self.count_sealed_by(id).await?;
            if sealed > 0 {
                let key = id.to_owned();
                self.engine.write(move |on| Box::pin(take_up(on, key))).await?;
                return Ok(Retired::Sealed(sealed));
            }
        }
        Ok(retired)
    }

    async fn count_sealed_by(&self, id: &str) -> StoreResult<u64> {
        Ok(self.usage().await?.get(id).into_iter().flat_map(|tables| tables.values()).sum())
    }
}
