//! Answers that are durable in the spill and not in the store yet: who is shown them, and how the store gets
//! them, by the same compare-and-set as any answer.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::{
    Inner, SpillEvent,
    entry::Entry,
    machine::{Event, Flight, State},
    outcome::RefreshOutcome,
    spill::{Answer, Spill, SpillFault},
};
use crate::{
    clock::Instant,
    entropy::uuid4,
    store::{Finished, Grant, GrantId, GrantState, StoreError, StoreResult},
};

/// A store that takes an answer no faster is as good as away: the answer goes to the spill.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// Between tries: so soon the store is noticed to take writes again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Answers at a time: the store commits them in groups.
const SIDE_BY_SIDE: usize = 64;

/// An answer in the spill.
pub(super) struct Kept {
    pub answer: Answer,
    path: PathBuf,
    /// When it came, if it came to this process.
    received: Option<Instant>,
    /// Left by an earlier process: it is not certain that the store knows its grant.
    found: bool,
    /// Its file is gone, or was moved aside.
    done: AtomicBool,
    /// Other processes leave its grant alone for so long.
    pub beating: Option<AbortOnDropHandle<()>>,
}

impl Kept {
    pub(super) fn new(answer: Answer, path: PathBuf, received: Instant) -> Self {
        Self { answer, path, received: Some(received), found: false, done: AtomicBool::new(false), beating: None }
    }

    /// The grant as the store will have it; `grant` is as it has it.
    fn laid_over(&self, grant: &Grant) -> Grant {
        Grant {
            state: GrantState::Live,
            generation: grant.generation.saturating_add(1),
            tokens: self.answer.tokens.clone(),
            ..grant.clone()
        }
    }

    /// Whether it may be shared before the store has it. What a session enforces is read from the store: where
    /// the answer changes that, its token must not be used by the old word.
    pub(super) const fn shareable(&self) -> bool {
        self.answer.facts.is_none()
    }
}

type Key = (GrantId, i64, PathBuf);

pub(super) struct Pending {
    pub spill: Option<Arc<Spill>>,
    answers: Mutex<BTreeMap<Key, Arc<Kept>>>,
    /// Files, those too that a flight of its own gives to the store.
    files: AtomicUsize,
    news: Notify,
    /// One round at a time.
    round: tokio::sync::Mutex<()>,
    /// What an earlier process left is in the store.
    recovered: AtomicBool,
}

impl Pending {
    pub(super) fn new(spill: Option<Spill>) -> Self {
        let (mut answers, mut spill) = (BTreeMap::new(), spill);
        for (path, answer) in spill.as_mut().map(|spill| std::mem::take(&mut spill.found)).unwrap_or_default() {
            let key = (answer.grant, answer.consumed, path.clone());
            let kept = Kept { answer, path, received: None, found: true, done: AtomicBool::new(false), beating: None };
            answers.insert(key, Arc::new(kept));
        }
        Self {
            recovered: AtomicBool::new(answers.is_empty()),
            files: AtomicUsize::new(answers.len()),
            spill: spill.map(Arc::new),
            answers: Mutex::new(answers),
            news: Notify::new(),
            round: tokio::sync::Mutex::new(()),
        }
    }

    /// Each change is whole even if somebody panicked beside it.
    fn answers(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Kept>>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.answers().is_empty()
    }

    fn all(&self) -> Vec<Arc<Kept>> {
        self.answers().values().cloned().collect()
    }

    /// The answer that consumed this generation of the grant, if it waits here.
    pub(super) fn of(&self, grant: &Grant) -> Option<Arc<Kept>> {
        let first = (grant.id, grant.generation, PathBuf::new());
        let answers = self.answers();
        let (key, kept) = answers.range(first..).next()?;
        (key.0 == grant.id && key.1 == grant.generation).then(|| kept.clone())
    }

    fn add(&self, kept: Arc<Kept>) {
        let key = (kept.answer.grant, kept.answer.consumed, kept.path.clone());
        self.answers().insert(key, kept);
        self.news.notify_one();
    }

    fn settle(&self, kept: &Kept) {
        self.answers().remove(&(kept.answer.grant, kept.answer.consumed, kept.path.clone()));
    }
}

impl Inner {
    /// Writes an answer to the spill. None: there is none, or it does not take it either.
    pub(super) async fn spill(&self, answer: &Answer, received: Instant) -> Option<Kept> {
        let spill = self.pending.spill.clone()?;
        let (copy, random) = (answer.clone(), uuid4(&*self.context.entropy));
        // The sync takes as long as the disk does.
        let put = tokio::task::spawn_blocking(move || spill.put(&copy, random)).await;
        match put {
            Ok(Ok(path)) => {
                self.pending.files.fetch_add(1, Ordering::Relaxed);
                self.context.events.spill(SpillEvent::Spilled);
                self.tell_depth();
                Some(Kept::new(answer.clone(), path, received))
            }
            Ok(Err(fault)) => {
                tracing::error!(grant = %answer.grant, %fault, "the spill does not take an EHR's answer either");
                None
            }
            Err(error) => {
                tracing::error!(grant = %answer.grant, %error, "writing to the spill ended early");
                None
            }
        }
    }

    /// Shows an answer that is durable in the spill to who waits for it; the store gets it as soon as it may.
    pub(super) fn show(&self, entry: &Entry, grant: &Grant, kept: Kept, age: Duration) {
        let (now, kept) = (self.now(), Arc::new(kept));
        let grant = kept.laid_over(grant);
        entry.keep(&grant, self.context.policies.of(&grant).as_ref(), self.among(entry.id), age, now);
        self.wheel.set(entry.id, None);
        self.pending.add(kept);
    }

    /// How a grant is taken up whose next answer waits in the spill: served from that, and not refreshed until
    /// the store has it.
    pub(super) fn overlaid(&self, grant: &Grant) -> Option<(Grant, Arc<Kept>)> {
        let kept = self.pending.of(grant)?;
        let grant = if kept.shareable() { kept.laid_over(grant) } else { grant.clone() };
        Some((grant, kept))
    }

    pub(super) fn hold_for_replay(state: &mut State) {
        state.flight = Flight::Keeping;
        state.doubt = None;
    }

    /// After an entry was made by [`Self::overlaid`]: the store may have got the answer meanwhile.
    pub(super) fn overlay_settled(&self, entry: &Entry, kept: &Kept) {
        if kept.done.load(Ordering::Acquire) {
            entry.step(Event::Stored, self.now());
        }
    }

    pub(super) fn tell_depth(&self) {
        self.context.events.spill_depth(self.pending.files.load(Ordering::Relaxed));
    }

    // ---- the replay --------------------------------------------------------------------------------------

    /// Replays what is spilled for as long as the process lives.
    pub(super) async fn replay(self: Arc<Self>) {
        let mut failures = 0_u32;
        loop {
            let wait = if self.pending.is_empty() {
                None
            } else {
                Some(RETRY.0.saturating_mul(1 << failures.min(10)).min(RETRY.1))
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.pending.news.notified(), if wait.is_none() => {}
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
            failures = if self.replay_round().await { 0 } else { failures.saturating_add(1) };
        }
    }

    /// One try for each answer; whether none is left.
    pub(super) async fn replay_round(&self) -> bool {
        let _one = self.pending.round.lock().await;
        let mut tries = stream::iter(self.pending.all())
            .map(|kept| async move { (self.replay_one(&kept).await, kept.answer.grant) })
            .buffer_unordered(SIDE_BY_SIDE);
        let mut told = false;
        while let Some((outcome, grant)) = tries.next().await {
            match outcome {
                Ok(()) => {}
                // The store that fails one fails the others: once is enough.
                Err(StoreError::Unavailable(_) | StoreError::ReadOnly(_)) if told => {}
                Err(error @ (StoreError::Unavailable(_) | StoreError::ReadOnly(_))) => {
                    tracing::warn!(%error, "the store does not take what is spilled yet");
                    told = true;
                }
                Err(error) => tracing::error!(%grant, %error, "an EHR's answer stays in the spill"),
            }
        }
        drop(tries);
        let left = self.pending.all();
        if !left.iter().any(|kept| kept.found) {
            self.pending.recovered.store(true, Ordering::Release);
        }
        left.is_empty()
    }

    async fn replay_one(&self, kept: &Kept) -> StoreResult<()> {
        let Answer { grant: id, consumed, tokens, facts, .. } = &kept.answer;
        let store = &self.context.store;
        let patient = async {
            let Some(before) = store.grant(*id).await? else { return Ok(None) };
            let finished = store.finish_refresh(*id, *consumed, tokens, facts.as_ref(), tokens.received).await?;
            Ok(Some((before, finished)))
        };
        let finished = tokio::time::timeout(PATIENCE, patient)
            .await
            .unwrap_or_else(|_| Err(StoreError::Unavailable("it takes too long".into())))?;
        let Some((before, finished)) = finished else {
            return self.orphaned(kept).await;
        };
        match finished {
            Finished::Stored(grant) => {
                self.taken_off(kept, SpillEvent::Replayed).await;
                self.stored(&grant, kept);
            }
            Finished::Moved(current) => {
                // Further on, it may be that this very answer was stored and spent.
                let orphan = consumed.checked_add(1) == Some(current.generation)
                    && current.tokens.access != tokens.access
                    && current.tokens.refresh != tokens.refresh;
                if orphan {
                    self.revoke_later(&before, tokens).await?;
                }
                self.dropped(&before, kept).await;
                if let Some(entry) = self.table.get(*id) {
                    let age = current.tokens.received.until(self.context.clock.now());
                    self.renew(&entry, &current, age, self.now());
                }
            }
            Finished::Ended(reason) => {
                self.revoke_later(&before, tokens).await?;
                self.dropped(&before, kept).await;
                if let Some(entry) = self.table.get(*id) {
                    entry.step(Event::Ended(reason), self.now());
                }
                self.forget(*id);
            }
        }
        Ok(())
    }

    /// The store has the answer: memory has had it, or gets it now.
    fn stored(&self, grant: &Grant, kept: &Kept) {
        let Some(entry) = self.table.get(grant.id) else {
            if kept.answer.facts.is_some() {
                self.context.events.changed(grant);
            }
            return self.note(grant);
        };
        let now = self.now();
        if entry.generation() == grant.generation {
            entry.step(Event::Stored, now);
            return self.wheel.set(grant.id, entry.next_wake(now));
        }
        let age = kept.received.map_or_else(
            || grant.tokens.received.until(self.context.clock.now()),
            |received| now.saturating_duration_since(received),
        );
        self.renew(&entry, grant, age, now);
    }

    async fn dropped(&self, before: &Grant, kept: &Kept) {
        if let Some(policy) = self.context.policies.of(before) {
            self.context.events.refresh(&policy.vendor, &before.site, RefreshOutcome::Dropped);
        }
        self.taken_off(kept, SpillEvent::Dropped).await;
    }

    /// The file goes before anything may consume the answer: found again later, it would be taken for one that
    /// no store has.
    pub(super) async fn taken_off(&self, kept: &Kept, event: SpillEvent) {
        if let Some(spill) = self.pending.spill.clone() {
            let path = kept.path.clone();
            let removed = tokio::task::spawn_blocking(move || spill.remove(&path)).await;
            if let Ok(Err(fault)) = removed {
                tracing::error!(%fault, "an answer that is in the store stays in the spill, until the next start");
            }
        }
        self.done(kept, event);
    }

    fn done(&self, kept: &Kept, event: SpillEvent) {
        self.pending.settle(kept);
        kept.done.store(true, Ordering::Release);
        self.pending.files.fetch_sub(1, Ordering::Relaxed);
        self.context.events.spill(event);
        self.tell_depth();
    }

    /// The store does not know its grant.
    async fn orphaned(&self, kept: &Kept) -> StoreResult<()> {
        let (grant, path) = (kept.answer.grant, kept.path.display().to_string());
        tracing::error!(fault = %SpillFault::UnknownGrant { path, grant }, "an EHR's answer in the spill has no grant");
        if let Some(spill) = self.pending.spill.clone() {
            let path = kept.path.clone();
            let _ = tokio::task::spawn_blocking(move || spill.set_aside(&path)).await;
        }
        self.done(kept, SpillEvent::Bad);
        Ok(())
    }

    /// Whether what an earlier process left is in the store.
    pub(super) fn recovered(&self) -> bool {
        self.pending.recovered.load(Ordering::Acquire)
    }
}
