//! When a grant was last used, at whichever process: a session that is idle here may be at work elsewhere.
//!
//! Who serves a grant notes that in the store now and then; who would end it for idleness looks there first. The
//! store is a little behind, so where processes share it an idle session lives for a little longer.

use std::{sync::Arc, time::Duration};

use super::{Inner, entry::Entry, refresh::Landing};

const NOTE: Duration = Duration::from_secs(15);

/// Uses noted in one transaction.
const BATCH: usize = 200;

/// After what disuse a session ends where other processes may serve it: `idle`, and what the store may be behind.
pub(super) fn shared_idle(idle: Duration) -> Duration {
    idle + idle / 8 + NOTE * 2
}

/// So often the use of a grant is noted at most, by the disuse that ends it: within what [`shared_idle`] adds, less
/// two rounds.
pub(super) fn noted_every(shared_idle: Duration) -> Duration {
    shared_idle / 10
}

impl Inner {
    /// Notes the use of sessions, while other processes may look for it.
    pub(super) async fn note_uses(self: Arc<Self>) {
        let mut tick = tokio::time::interval(NOTE);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.stop.run_until_cancelled(tick.tick()).await.is_some() {
            let (now, wall) = (self.now(), self.context.clock.now());
            let used = self.table.all(|entry| entry.to_be_noted(now));
            for used in used.chunks(BATCH) {
                let use_of = |(entry, age): &(Arc<Entry>, Duration)| (entry.id, wall.before(*age));
                let uses: Vec<_> = used.iter().map(use_of).collect();
                match self.context.store.note_use(&uses).await {
                    Ok(()) => used.iter().for_each(|(entry, _)| entry.noted(now)),
                    Err(error) => tracing::warn!(%error, "the use of sessions is not noted for other processes"),
                }
            }
        }
    }

    /// Whether a grant that has its time still, and is idle here, was used elsewhere. None: it is at its end.
    pub(super) async fn used_elsewhere(&self, entry: &Entry) -> Option<Landing> {
        let (now, wall) = (self.now(), self.context.clock.now());
        let idle = entry.idle_limit(now).filter(|_| self.context.store.shared())?;
        match self.context.store.last_use(entry.id).await {
            Ok(at) => {
                let age = at?.until(wall);
                (age < idle).then(|| Landing::Used(now.checked_sub(age).unwrap_or(now)))
            }
            Err(error) => Some(self.store_away(entry, &error)),
        }
    }
}
