//! `mantel keys rotate-seal`: waits until all processes write with the preferred key, seals anew what older ones have
//! sealed, and retires those. Each step may be repeated and the whole begun again: what is done is found done.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{Hindrance, SealRotation};
use crate::store::{BootId, Replica, Retired, SealKeyState, SealedTable, StoreResult};

/// Records sealed anew in one go: each go is one short transaction.
const BATCH: u32 = 100;

/// Passes over all tables. Once all processes write with the new key a second one finds nothing but what cannot be
/// read; the further ones are for what was written between.
const PASSES: usize = 5;

/// What happens, for who watches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum Progress {
    /// Some process is not ready: nothing is sealed anew until then.
    Waiting { writes_with: String, to_write_with: String, hindrances: Vec<Hindrance> },
    /// All live processes write with it.
    Writing { key: String, processes: usize },
    /// Records sealed anew so far, of how many.
    Resealing { table: SealedTable, done: u64, of: u64 },
    /// A record that no configured key opens: it stays as it is.
    Unreadable { table: SealedTable, record: String },
    /// No record is sealed by it: it may be taken out of `store.seal`.
    Retired { key: String },
    /// It is needed still: so many records are sealed by it.
    Kept { key: String, records: u64 },
    /// It may be needed still: that process went without a word, and may have left answers in its spill.
    Left { key: String, replica: BootId },
    /// All that could be done is done.
    Done { writes_with: String, needed: Vec<String> },
}

/// Carries the rotation to its end. `live`: as [`SealRotation::beat`] takes them, renewed every second.
///
/// # Errors
/// If the store does not serve: begin again.
pub async fn rotate(
    rotation: &SealRotation,
    mut live: watch::Receiver<Vec<Replica>>,
    tell: &mut (dyn FnMut(Progress) + Send),
) -> StoreResult<()> {
    let target = rotation.sealer().prefers().to_owned();
    let processes = ready(rotation, &target, &mut live, tell).await;
    // A process that has gone may have named another as the one that starters write with.
    rotation.store().promote_seal_key(&target).await?;
    tell(Progress::Writing { key: target.clone(), processes });
    let mut unreadable = Vec::new();
    for _ in 0..PASSES {
        unreadable.clear();
        if pass(rotation, &target, &mut unreadable, tell).await? == 0 {
            break;
        }
    }
    for (table, record) in unreadable {
        tell(Progress::Unreadable { table, record });
    }
    let mut needed = Vec::new();
    for key in rotation.store().seal_keys().await? {
        if key.id == target || key.state == SealKeyState::Retired {
            continue;
        }
        if let Some(replica) = rotation.left_behind(&key.id) {
            needed.push(key.id.clone());
            tell(Progress::Left { key: key.id, replica });
            continue;
        }
        match rotation.store().retire_seal_key(&key.id).await? {
            Retired::Yes => tell(Progress::Retired { key: key.id }),
            Retired::Sealed(records) => {
                needed.push(key.id.clone());
                tell(Progress::Kept { key: key.id, records });
            }
            Retired::Writes | Retired::Unknown => needed.push(key.id),
        }
    }
    tell(Progress::Done { writes_with: target, needed });
    Ok(())
}

/// Who keeps older keys from going: processes that do not write with `target`, or have spilled by another key.
fn in_the_way(rotation: &SealRotation, target: &str, live: &[Replica]) -> Vec<Hindrance> {
    let mut all = rotation.hindrances(live);
    let hindered: Vec<_> = all.iter().map(Hindrance::replica).collect();
    for replica in live.iter().filter(|it| !hindered.contains(&it.boot)) {
        let facts = &replica.facts;
        if facts.writes_with != target {
            all.push(Hindrance::Writes { replica: replica.boot, key: facts.writes_with.clone() });
        }
        let others = facts.spill_keys.iter().filter(|key| *key != target);
        all.extend(others.map(|key| Hindrance::Spilled { replica: replica.boot, key: key.clone() }));
    }
    all
}

/// Waits until all live processes write with `target`, this one included; how many there are.
async fn ready(
    rotation: &SealRotation,
    target: &str,
    live: &mut watch::Receiver<Vec<Replica>>,
    tell: &mut (dyn FnMut(Progress) + Send),
) -> usize {
    let mut told = None;
    loop {
        let now = live.borrow_and_update().clone();
        let hindrances = in_the_way(rotation, target, &now);
        let writes_with = rotation.sealer().writes_with().to_owned();
        if hindrances.is_empty() && writes_with == target {
            return now.len();
        }
        if told.as_ref() != Some(&hindrances) {
            tell(Progress::Waiting { writes_with, to_write_with: target.to_owned(), hindrances: hindrances.clone() });
            told = Some(hindrances);
        }
        if live.changed().await.is_err() {
            // Nobody looks at the processes any more: this one stops.
            std::future::pending::<()>().await;
        }
    }
}

/// One pass over all tables; how many records were sealed anew, or changed under it.
async fn pass(
    rotation: &SealRotation,
    target: &str,
    unreadable: &mut Vec<(SealedTable, String)>,
    tell: &mut (dyn FnMut(Progress) + Send),
) -> StoreResult<u64> {
    let mut left: BTreeMap<SealedTable, u64> = BTreeMap::new();
    for (id, tables) in rotation.store().seal_usage().await? {
        if id != target {
            for (table, records) in tables {
                *left.entry(table).or_insert(0) += records;
            }
        }
    }
    let mut changed = 0;
    for table in SealedTable::ALL {
        let of = left.get(&table).copied().unwrap_or(0);
        let (mut after, mut done) = (Some(Vec::new()), 0);
        while let Some(from) = after.take() {
            let some = rotation.store().reseal(table, &from, BATCH).await?;
            done += some.resealed;
            changed += some.resealed + some.overtaken;
            unreadable.extend(some.unreadable.into_iter().map(|record| (table, record)));
            after = some.next;
            if some.resealed > 0 {
                tell(Progress::Resealing { table, done, of: of.max(done) });
            }
        }
    }
    Ok(changed)
}
