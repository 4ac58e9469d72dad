//! This process among those that share its store: it shows itself every second, and sees who else lives.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{Instant, SharedClock},
    store::{BootId, Replica, ReplicaFacts, SharedStore, StoreResult, rotation::SealRotation},
};

const BEAT: Duration = Duration::from_secs(1);

/// A process whose beat has stood still for so long, by this one's monotonic clock, is not waited for.
const STOOD_STILL: Duration = Duration::from_secs(30);

/// By wall time, hence long: only what certainly died is cleared away.
const GONE: Duration = Duration::from_secs(24 * 3600);

pub(super) struct Presence {
    store: SharedStore,
    clock: SharedClock,
    me: BootId,
    rotation: Arc<SealRotation>,
    /// Each one's beat, and since when it stands.
    beats: BTreeMap<BootId, (i64, Instant)>,
    live: watch::Sender<Vec<Replica>>,
}

impl Presence {
    /// Shows this process to the others, and then makes sure that it may serve: in this order, so that none of them
    /// begins to write with a key that it lacks.
    pub(super) async fn begin(
        store: SharedStore,
        clock: SharedClock,
        me: BootId,
        rotation: Arc<SealRotation>,
    ) -> StoreResult<(Self, watch::Receiver<Vec<Replica>>)> {
        let (live, watched) = watch::channel(Vec::new());
        let mut presence = Self { store, clock, me, rotation, beats: BTreeMap::new(), live };
        presence.look().await?;
        if let Err(error) = presence.rotation.join().await {
            // Whoever cannot serve must not keep the others waiting.
            let _ = presence.store.forget_replica(me).await;
            return Err(error);
        }
        Ok((presence, watched))
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = beat.tick() => {}
            }
            let looked = match self.look().await {
                Ok(()) => {
                    let live = self.live.borrow().clone();
                    self.rotation.beat(&live).await
                }
                Err(error) => Err(error),
            };
            if let Err(error) = looked {
                tracing::warn!(%error, "this process could not show itself to the others");
            }
        }
        let _ = self.store.forget_replica(self.me).await;
    }

    async fn look(&mut self) -> StoreResult<()> {
        let facts = ReplicaFacts { version: env!("CARGO_PKG_VERSION").to_owned(), ..self.rotation.facts() };
        let (wall, now) = (self.clock.now(), self.clock.monotonic());
        let shown = self.store.show_replica(self.me, &facts, wall.before(GONE), wall).await?;
        let all: Vec<Replica> =
            shown.into_iter().filter(|replica| self.store.shared() || replica.boot == self.me).collect();
        self.beats.retain(|boot, _| all.iter().any(|replica| replica.boot == *boot));
        let lives = |replica: &Replica| {
            let (beat, since) = self.beats.entry(replica.boot).or_insert((replica.beat, now));
            if *beat != replica.beat {
                (*beat, *since) = (replica.beat, now);
            }
            now.saturating_duration_since(*since) < STOOD_STILL
        };
        let live: Vec<Replica> = all.into_iter().filter(lives).collect();
        self.live.send_replace(live);
        Ok(())
    }
}
