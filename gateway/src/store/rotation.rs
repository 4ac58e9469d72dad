//! Which seal key a process writes with, and how the old one goes (`custody.md`, "Sealing").
//!
//! A key that is put first in `store.seal` writes once no live process lacks it:
//!
//! ```text
//! who writes   all live processes hold it ─► announce it ─► look again: all hold it ─► promote, write
//! who starts   show oneself ─► read what was announced: refuse if one is lacking ─► serve
//! ```
//!
//! Each side writes before it reads. So either who starts sees the announcement, or who writes sees who has
//! started: no record is ever sealed by a key that a serving process lacks. Then records are sealed anew, and the old
//! key retires when none is left.

mod anew;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::{Deserialize, Serialize};

pub use self::anew::{Progress, rotate};
use super::{BootId, KnownSealKey, Replica, ReplicaFacts, SealKeyState, SharedStore, StoreResult, sealing::Sealer};

/// What keeps a process from writing with the key that it prefers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "because")]
pub enum Hindrance {
    /// A live process does not hold it.
    Lacks { replica: BootId, key: String },
    /// A live process has other bytes under its id.
    OtherBytes { replica: BootId, key: String },
    /// A live process goes on writing with another.
    Writes { replica: BootId, key: String },
    /// A live process has spilled records that another key has sealed.
    Spilled { replica: BootId, key: String },
}

impl Hindrance {
    pub const fn replica(&self) -> BootId {
        match self {
            Self::Lacks { replica, .. }
            | Self::OtherBytes { replica, .. }
            | Self::Writes { replica, .. }
            | Self::Spilled { replica, .. } => *replica,
        }
    }
}

impl std::fmt::Display for Hindrance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lacks { replica, key } => {
                write!(f, "process {replica} lacks the key {key:?}: add it to its `store.seal` and restart it")
            }
            Self::OtherBytes { replica, key } => {
                write!(f, "process {replica} has another key under the id {key:?}: ids must be the same everywhere")
            }
            Self::Writes { replica, key } => {
                write!(
                    f,
                    "process {replica} writes with the key {key:?} still: put the new one first in its `store.seal`"
                )
            }
            Self::Spilled { replica, key } => {
                write!(
                    f,
                    "process {replica} has answers of EHRs in its spill that the key {key:?} has sealed: they go to the \
                     store as soon as that takes them from it"
                )
            }
        }
    }
}

/// Which of the configured seal keys this process writes with.
pub struct SealRotation {
    store: SharedStore,
    sealer: Arc<Sealer>,
    /// Whether the preferred key stood announced when the last look at the processes ended.
    announced: Mutex<bool>,
    /// Processes that went without a word and may have left something in their spills.
    left: Mutex<Vec<Replica>>,
    /// Whether it has been told that this process is left without a key to write with.
    left_without: AtomicBool,
}

/// What is to be done about the preferred key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It writes, or somebody lacks it.
    Stay,
    Announce,
    /// Announced a moment ago: another look at the processes must come after that.
    LookAgain,
    Promote,
}

/// The next step. `hindered`: whether some live process cannot read it. `announced_before`: whether it stood
/// announced before `hindered` was looked at.
fn step(sealer: &Sealer, known: &[KnownSealKey], hindered: bool, announced_before: bool) -> Step {
    let prefers = sealer.prefers();
    let announced = known.iter().any(|key| key.id == prefers && key.state != SealKeyState::Retired);
    match () {
        () if sealer.writes_with() == prefers || hindered => Step::Stay,
        () if !announced => Step::Announce,
        () if !announced_before => Step::LookAgain,
        () => Step::Promote,
    }
}

/// Who cannot read what the key of that id and fingerprint seals.
fn hindrances(key: &str, print: &str, live: &[Replica]) -> Vec<Hindrance> {
    let hindrance = |it: &Replica| match it.facts.seal_keys.get(key) {
        Some(theirs) if theirs == print => None,
        Some(_) => Some(Hindrance::OtherBytes { replica: it.boot, key: key.to_owned() }),
        None => Some(Hindrance::Lacks { replica: it.boot, key: key.to_owned() }),
    };
    live.iter().filter_map(hindrance).collect()
}

/// Whether a process that holds these keys may serve: it lacks none that is needed, and has no other under the name
/// of one that is known.
fn may_serve(sealer: &Sealer, known: &[KnownSealKey]) -> StoreResult<()> {
    for key in known {
        if key.state != SealKeyState::Retired || sealer.holds(&key.id) {
            sealer.check(&key.id, &key.proof)?;
        }
    }
    Ok(())
}

impl SealRotation {
    pub fn new(store: SharedStore, sealer: Arc<Sealer>) -> Self {
        Self {
            store,
            sealer,
            announced: Mutex::new(false),
            left: Mutex::default(),
            left_without: AtomicBool::new(false),
        }
    }

    /// What the other processes must know of this one's keys; the rest is the caller's.
    pub fn facts(&self) -> ReplicaFacts {
        ReplicaFacts {
            seal_keys: self.sealer.held(),
            writes_with: self.sealer.writes_with().to_owned(),
            ..ReplicaFacts::default()
        }
    }

    /// At the start, after this process has shown itself to the others and before it serves.
    ///
    /// # Errors
    /// [`super::StoreError::UnknownSealKey`] and [`super::StoreError::Corrupt`] as at the opening of the store: this process may
    /// not serve.
    pub async fn join(&self) -> StoreResult<()> {
        let known = self.store.seal_keys().await?;
        may_serve(&self.sealer, &known)?;
        if let Some(writing) = known.iter().find(|key| key.state == SealKeyState::Writing) {
            self.sealer.write_with(&writing.id);
        }
        Ok(())
    }

    /// Takes the next step towards the preferred key, every second.
    ///
    /// `live`: this process and all others but those whose beat has stood still for long. It must have been read
    /// from the store after the last call returned.
    ///
    /// # Errors
    /// If the store does not serve: nothing was changed here.
    pub async fn beat(&self, live: &[Replica]) -> StoreResult<()> {
        let prefers = self.sealer.prefers();
        let hindered = !self.hindrances(live).is_empty();
        let announced_before = std::mem::take(&mut *self.announced.lock().unwrap_or_else(PoisonError::into_inner));
        let known = self.store.seal_keys().await?;
        if self.leaves_retired(&known) {
            return Ok(());
        }
        let announced = match step(&self.sealer, &known, hindered, announced_before) {
            Step::Stay => false,
            Step::Announce => {
                self.store.announce_seal_key(prefers, &self.sealer.prove(prefers)?).await?;
                true
            }
            Step::LookAgain => true,
            Step::Promote => {
                // Under its name there may stand another's proof, from before this process saw it.
                may_serve(&self.sealer, &known)?;
                if self.store.promote_seal_key(prefers).await? {
                    self.sealer.write_with(prefers);
                    tracing::info!(key = prefers, "new records are sealed by another key from now on");
                }
                false
            }
        };
        *self.announced.lock().unwrap_or_else(PoisonError::into_inner) = announced;
        Ok(())
    }

    /// Who has gone without a word, of those that are remembered. What another process found in the same spill is
    /// that one's to tell.
    pub fn see_gone(&self, present: &[Replica], gone: &[Replica]) {
        let taken_up = |spill| present.iter().any(|it| it.facts.spill == spill);
        let left = gone.iter().filter(|it| it.facts.spill.is_some() && !taken_up(it.facts.spill));
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = left.cloned().collect();
    }

    /// The process that went without a word and may have left answers in its spill which the key has sealed.
    fn left_behind(&self, key: &str) -> Option<BootId> {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let may = |it: &&Replica| it.facts.writes_with == key || it.facts.spill_keys.iter().any(|id| id == key);
        left.iter().find(may).map(|it| it.boot)
    }

    /// The others took this process for gone and have retired the key that it writes with: it goes on with theirs, if
    /// it holds that.
    fn leaves_retired(&self, known: &[KnownSealKey]) -> bool {
        let writes = self.sealer.writes_with().to_owned();
        if !known.iter().any(|key| key.id == writes && key.state == SealKeyState::Retired) {
            self.left_without.store(false, Ordering::Relaxed);
            return false;
        }
        let writing = known.iter().find(|key| key.state == SealKeyState::Writing);
        if writing.is_some_and(|key| self.sealer.write_with(&key.id)) {
            tracing::warn!(
                retired = writes,
                "the seal key that this process wrote with has been retired: it leaves it"
            );
        } else if !self.left_without.swap(true, Ordering::Relaxed) {
            tracing::error!(
                retired = writes,
                "the seal key that this process writes with has been retired, and it lacks the one that the others \
                 write with, so that it stores nothing: add that to its `store.seal` and restart it"
            );
        }
        true
    }

    /// Who keeps the preferred key from writing.
    pub fn hindrances(&self, live: &[Replica]) -> Vec<Hindrance> {
        let prefers = self.sealer.prefers();
        hindrances(prefers, &self.sealer.held().remove(prefers).unwrap_or_default(), live)
    }

    pub fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    pub fn store(&self) -> &SharedStore {
        &self.store
    }
}

/// The seal keys as an operator sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealKeyReport {
    pub id: String,
    /// None: the store does not know it (yet).
    pub state: Option<SealKeyState>,
    /// Whether this process's `store.seal` names it.
    pub configured: bool,
    /// Whether this process writes with it.
    pub writes: bool,
    /// Records by table.
    pub records: BTreeMap<String, u64>,
}

/// Each key that is configured, known, or has sealed something. The empty id: records that name no key.
///
/// # Errors
/// If the store does not serve.
pub async fn report(rotation: &SealRotation) -> StoreResult<Vec<SealKeyReport>> {
    let (known, usage) = (rotation.store.seal_keys().await?, rotation.store.seal_usage().await?);
    let sealer = rotation.sealer();
    let mut ids: Vec<String> = sealer.held().into_keys().chain(known.iter().map(|key| key.id.clone())).collect();
    ids.extend(usage.keys().cloned());
    ids.sort();
    ids.dedup();
    let one = |id: String| SealKeyReport {
        state: known.iter().find(|key| key.id == id).map(|key| key.state),
        configured: sealer.holds(&id),
        writes: sealer.writes_with() == id,
        records: usage.get(&id).into_iter().flatten().map(|(table, n)| (table.text().to_owned(), *n)).collect(),
        id,
    };
    Ok(ids.into_iter().map(one).collect())
}
