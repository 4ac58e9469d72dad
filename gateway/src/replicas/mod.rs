//! The gateway processes on one store, as this one sees them.
//!
//! Each shows itself to the others by raising a beat in the store. Who lives is judged by the watcher's own
//! monotonic clock; nobody's wall time is compared with another's. From the set of the living follows whose a
//! grant is, so that what is done though nobody asks is done by one; and what any of them ends is evicted here
//! (`custody.md`, "Ended means ended").

mod ends;
mod watch;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::watch as channel;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::watch::{Others, Seen};
use crate::{
    clock::{Instant, SharedClock},
    store::{BootId, GrantId, Replica, ReplicaFacts, SharedStore, StoreError, StoreResult, rotation::SealRotation},
    telemetry::Metrics,
};

const SHOW: Duration = Duration::from_secs(1);

/// Who showed himself last so long ago, by wall time, is taken off the list in the store. Long, since clocks
/// differ, and a row costs nothing: whether somebody lives is judged otherwise.
const FORGOTTEN: Duration = Duration::from_secs(24 * 3600);

/// No look at the store takes longer; the next one is tried then.
const LONGEST: Duration = Duration::from_secs(2);

/// What this process says of itself, and what it does about what the others say.
#[async_trait]
pub trait Voice: Send + Sync {
    fn facts(&self) -> ReplicaFacts;

    /// After this process has shown itself for the first time, and before it serves.
    ///
    /// # Errors
    /// It may not serve.
    async fn joined(&self) -> StoreResult<()> {
        Ok(())
    }

    /// After each look, which began after the last of these calls had ended. `present`: this process and all but those
    /// that have certainly gone; `gone`: those, of the last day, that went without a word.
    ///
    /// # Errors
    /// If the store does not serve.
    async fn looked(&self, _present: &[Replica], _gone: &[Replica]) -> StoreResult<()> {
        Ok(())
    }
}

#[async_trait]
impl Voice for SealRotation {
    fn facts(&self) -> ReplicaFacts {
        ReplicaFacts { version: env!("CARGO_PKG_VERSION").to_owned(), ..self.facts() }
    }

    async fn joined(&self) -> StoreResult<()> {
        self.join().await
    }

    async fn looked(&self, present: &[Replica], gone: &[Replica]) -> StoreResult<()> {
        self.see_gone(present, gone);
        self.beat(present).await
    }
}

/// One that has nothing new to say.
#[async_trait]
impl Voice for ReplicaFacts {
    fn facts(&self) -> ReplicaFacts {
        self.clone()
    }
}

/// This process among those that share its store.
#[derive(Clone)]
pub struct Replicas(Arc<Inner>);

struct Inner {
    me: BootId,
    voice: Arc<dyn Voice>,
    live: channel::Sender<Arc<Vec<Replica>>>,
    present: channel::Sender<Vec<Replica>>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// None: no other process can be on this store.
    shared: Option<Shared>,
}

struct Shared {
    store: SharedStore,
    clock: SharedClock,
    max_stale: Duration,
    born: Instant,
    /// When the ended grants were last read, in milliseconds since `born`.
    polled: AtomicU64,
    /// The store's counter of ends, as it was read then.
    counter: AtomicI64,
}

impl Replicas {
    /// Shows this process to the others, if the store can have any, and begins to watch them. `max_stale`: so
    /// long grants are served from memory while the ended ones cannot be read.
    ///
    /// Grants must be read from the store only after this: what ends from now on is told by [`Self::follow`].
    ///
    /// # Errors
    /// If the store does not serve.
    pub async fn join(
        store: SharedStore,
        clock: SharedClock,
        metrics: Arc<Metrics>,
        me: BootId,
        voice: Arc<dyn Voice>,
        max_stale: Duration,
    ) -> StoreResult<Self> {
        let shared = match store.shared() {
            false => None,
            true => {
                let (counter, _) = store.ended_since(i64::MAX).await?;
                let (born, polled) = (clock.monotonic(), AtomicU64::new(0));
                Some(Shared { store, clock, max_stale, born, polled, counter: AtomicI64::new(counter) })
            }
        };
        let this = Self(Arc::new(Inner {
            me,
            voice,
            live: channel::channel(Arc::default()).0,
            present: channel::channel(Vec::new()).0,
            metrics,
            shared,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }));
        let mut others = Others::default();
        this.look(&mut others).await?;
        if let Err(error) = this.0.voice.joined().await {
            // Whoever may not serve must not keep the others waiting.
            this.leave().await;
            return Err(error);
        }
        this.0.tasks.spawn(this.clone().watch(others));
        Ok(this)
    }

    pub fn me(&self) -> BootId {
        self.0.me
    }

    /// Who lives, this process among them. One that was seen a moment ago for the first time counts.
    pub fn live(&self) -> Arc<Vec<Replica>> {
        self.0.live.borrow().clone()
    }

    /// Told whenever somebody comes, goes, or says something new of himself.
    pub fn changes(&self) -> channel::Receiver<Arc<Vec<Replica>>> {
        self.0.live.subscribe()
    }

    /// All but those that have certainly gone, renewed with each look.
    pub fn present(&self) -> channel::Receiver<Vec<Replica>> {
        self.0.present.subscribe()
    }

    /// Whether what is done for a grant though nobody asks is this process's to do first.
    pub fn first_for(&self, grant: GrantId) -> bool {
        let live = self.0.live.borrow();
        watch::first(live.iter().map(|replica| replica.boot), grant).is_none_or(|first| first == self.0.me)
    }

    /// Whether grants that ended elsewhere may have gone unnoticed for too long to serve any from memory.
    pub fn stale(&self, now: Instant) -> bool {
        self.0.shared.as_ref().is_some_and(|shared| shared.age(now) > shared.max_stale)
    }

    /// Stops watching, and takes this process off the list, so that the others need not wait for its silence; but where
    /// its spill holds answers, they must know of it.
    pub async fn leave(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        let Some(shared) = &self.0.shared else { return };
        let facts = self.0.voice.facts();
        let told = async {
            if facts.spill_keys.is_empty() {
                return shared.store.forget_replica(self.0.me).await;
            }
            let wall = shared.clock.now();
            shared.store.show_replica(self.0.me, &facts, wall.before(FORGOTTEN), wall).await.map(drop)
        };
        match tokio::time::timeout(LONGEST, told).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the others are not told that this process stops"),
            Err(_) => tracing::warn!("the others are not told that this process stops: the store does not answer"),
        }
    }

    async fn watch(self, mut others: Others) {
        let mut tick = tokio::time::interval(SHOW);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failing = false;
        while self.0.stop.run_until_cancelled(tick.tick()).await.is_some() {
            let looked = async {
                let gone = self.look(&mut others).await?;
                let present = self.0.present.borrow().clone();
                self.0.voice.looked(&present, &gone).await
            };
            let looked = tokio::time::timeout(LONGEST, looked).await;
            match looked.unwrap_or_else(|_| Err(StoreError::Unavailable("no answer in time".into()))) {
                Ok(()) => failing = false,
                Err(error) if !failing => {
                    tracing::warn!(%error, "the other gateway processes cannot be seen in the store");
                    failing = true;
                }
                Err(_) => {}
            }
        }
    }

    /// Shows this process, and sees who else does; who has gone without a word.
    async fn look(&self, others: &mut Others) -> StoreResult<Vec<Replica>> {
        let facts = self.0.voice.facts();
        let Some(shared) = &self.0.shared else {
            let alone = vec![Replica { boot: self.0.me, beat: 0, facts }];
            self.0.present.send_replace(alone.clone());
            self.publish(alone);
            return Ok(Vec::new());
        };
        let wall = shared.clock.now();
        let shown = shared.store.show_replica(self.0.me, &facts, wall.before(FORGOTTEN), wall).await?;
        let Seen { living, present, gone } = others.see(shown, self.0.me, shared.clock.monotonic());
        self.0.present.send_replace(present);
        self.publish(living);
        Ok(gone)
    }

    fn publish(&self, living: Vec<Replica>) {
        self.0.metrics.replicas(living.len());
        let told = |replicas: &[Replica]| replicas.iter().map(|it| (it.boot, it.facts.clone())).collect::<Vec<_>>();
        self.0.live.send_if_modified(|live| {
            let changed = told(live) != told(&living);
            *live = Arc::new(living);
            changed
        });
    }
}

impl Shared {
    /// How long ago the ended grants were last read.
    fn age(&self, now: Instant) -> Duration {
        let polled = self.born + Duration::from_millis(self.polled.load(Ordering::Relaxed));
        now.saturating_duration_since(polled)
    }
}
