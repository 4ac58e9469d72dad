//! What another process ended is evicted here within a second; without word of that, nothing is served from
//! memory for longer than `max_stale`.

use std::{sync::atomic::Ordering, time::Duration};

use super::{LONGEST, Replicas, Shared};
use crate::{
    clock::Instant,
    store::{GrantId, StoreError, StoreResult},
};

const POLL: Duration = Duration::from_millis(300);

impl Replicas {
    /// Tells of each grant that has ended since [`Self::join`], whoever ended it. With one process on the store
    /// there is nothing to tell: whoever ends a grant evicts it.
    pub fn follow(&self, ended: impl Fn(GrantId) + Send + Sync + 'static) {
        if self.0.shared.is_none() {
            return;
        }
        let this = self.clone();
        self.0.tasks.spawn(async move { this.poll(ended).await });
    }

    async fn poll(&self, ended: impl Fn(GrantId) + Send + Sync) {
        let Some(shared) = &self.0.shared else { return };
        let mut tick = tokio::time::interval(POLL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failing = false;
        while self.0.stop.run_until_cancelled(tick.tick()).await.is_some() {
            let polled = tokio::time::timeout(LONGEST, shared.ended()).await;
            let polled = polled.unwrap_or_else(|_| Err(StoreError::Unavailable("no answer in time".into())));
            match polled {
                Ok((asked, grants)) => {
                    grants.into_iter().for_each(&ended);
                    // Only now: what was read is served by nobody any more.
                    shared.polled.store(shared.since_birth(asked), Ordering::Relaxed);
                    failing = false;
                }
                Err(error) if !failing => {
                    failing = true;
                    let after = shared.max_stale.as_secs();
                    tracing::warn!(%error, "the grants that ended elsewhere cannot be read; no grant is served from memory after {after} s of this");
                }
                Err(_) => {}
            }
            self.0.metrics.ends_polled(shared.age(shared.clock.monotonic()));
        }
    }
}

impl Shared {
    /// The grants that have ended since they were last read, and when the store was asked.
    async fn ended(&self) -> StoreResult<(Instant, Vec<GrantId>)> {
        let asked = self.clock.monotonic();
        let (counter, grants) = self.store.ended_since(self.counter.load(Ordering::Relaxed)).await?;
        self.counter.store(counter, Ordering::Relaxed);
        Ok((asked, grants))
    }

    fn since_birth(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX)
    }
}
