//! A herd is spread: after a long outage all grants in use are due at once, and each vendor has limits.
//!
//! What nobody waits for starts only while the budget that its site shares (`budget.per`) has room, and of what waits
//! the grant that was used last comes first: its user is the likeliest to come back. Who is asked for waits for nothing
//! here, and takes the room of those whom nobody asked for; the site's own lane bounds them all.
//!
//! What waits is a number in a queue, no task: a hundred thousand of them cost a few megabytes. Budgets are this
//! process's; several processes share the wheel, and each has its own.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use crate::{clock::Instant, store::GrantId};

const MINUTE: Duration = Duration::from_secs(60);

/// What limits the refreshes of a grant that nobody waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// What shares it.
    pub shared_by: Arc<str>,
    /// Refreshes under way, with those that are waited for.
    pub at_once: usize,
    /// Refreshes begun in any minute, with those that are waited for; none: any number.
    pub per_minute: Option<u32>,
}

#[derive(Clone, Default)]
pub(super) struct Budgets(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queues: Mutex<HashMap<Arc<str>, Queue>>,
    changed: Notify,
}

#[derive(Default)]
struct Queue {
    at_once: usize,
    per_minute: Option<usize>,
    under_way: usize,
    /// When those of the last minute began, where that counts.
    begun: VecDeque<Instant>,
    /// By last use.
    waiting: BTreeSet<(Instant, GrantId)>,
    used: HashMap<GrantId, Instant>,
}

/// Room for one refresh, until it is dropped.
pub(super) struct Room {
    budgets: Budgets,
    shared_by: Arc<str>,
    taken: Instant,
    called: bool,
}

impl Room {
    /// A call goes to the EHR: what was taken counts for its minute.
    pub fn call(&mut self) {
        self.called = true;
    }
}

impl Queue {
    /// When one more may begin; none: as soon as one ends.
    fn free_at(&mut self, now: Instant) -> Option<Instant> {
        while self.begun.front().is_some_and(|at| *at + MINUTE <= now) {
            self.begun.pop_front();
        }
        if self.under_way >= self.at_once {
            return None;
        }
        // The oldest of those that fill the minute makes room when its minute is over.
        let full = self.per_minute.and_then(|most| self.begun.len().checked_sub(most));
        Some(full.and_then(|first| self.begun.get(first)).map_or(now, |at| *at + MINUTE))
    }

    fn begin(&mut self, now: Instant) {
        self.under_way += 1;
        if self.per_minute.is_some() {
            self.begun.push_back(now);
        }
    }

    /// What was taken at that time made no call.
    fn give_back(&mut self, taken: Instant) {
        if let Some(index) = self.begun.iter().rposition(|at| *at == taken) {
            self.begun.remove(index);
        }
    }

    fn remove(&mut self, grant: GrantId) {
        if let Some(used) = self.used.remove(&grant) {
            self.waiting.remove(&(used, grant));
        }
    }
}

impl Budgets {
    /// Each change is whole even if somebody panicked beside it.
    fn queues(&self) -> MutexGuard<'_, HashMap<Arc<str>, Queue>> {
        self.0.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what a budget is now; by its name it is found again.
    pub fn known(&self, budget: Budget) -> Arc<str> {
        let Budget { shared_by, at_once, per_minute } = budget;
        let mut queues = self.queues();
        let name = queues.get_key_value(&shared_by).map_or(shared_by, |(name, _)| name.clone());
        let queue = queues.entry(name.clone()).or_default();
        queue.at_once = at_once.max(1);
        queue.per_minute = per_minute.map(|most| usize::try_from(most).unwrap_or(usize::MAX).max(1));
        name
    }

    /// For a refresh that is waited for.
    pub fn begin(&self, shared_by: &Arc<str>, now: Instant) -> Room {
        self.queues().entry(shared_by.clone()).or_default().begin(now);
        self.room(shared_by, now)
    }

    fn room(&self, shared_by: &Arc<str>, taken: Instant) -> Room {
        Room { budgets: self.clone(), shared_by: shared_by.clone(), taken, called: false }
    }

    /// For one that nobody waits for. None: it has its place in the queue, and comes out of [`Self::due`].
    pub fn ask(&self, shared_by: &Arc<str>, grant: GrantId, used: Instant, now: Instant) -> Option<Room> {
        let mut queues = self.queues();
        let queue = queues.entry(shared_by.clone()).or_default();
        queue.remove(grant);
        let first = queue.waiting.last().is_none_or(|(latest, _)| *latest <= used);
        if first && queue.free_at(now).is_some_and(|at| at <= now) {
            queue.begin(now);
            return Some(self.room(shared_by, now));
        }
        queue.waiting.insert((used, grant));
        queue.used.insert(grant, used);
        drop(queues);
        self.0.changed.notify_one();
        None
    }

    /// Waits until one that waits may begin: the one used last, of each budget that has room.
    pub async fn due(&self) -> Vec<GrantId> {
        loop {
            let (due, next) = self.take(Instant::now());
            if !due.is_empty() {
                return due;
            }
            let turn = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = turn => {}
                () = self.0.changed.notified() => {}
            }
        }
    }

    fn take(&self, now: Instant) -> (Vec<GrantId>, Option<Instant>) {
        let (mut due, mut next) = (Vec::new(), None::<Instant>);
        for queue in self.queues().values_mut().filter(|queue| !queue.waiting.is_empty()) {
            match queue.free_at(now) {
                Some(at) if at <= now => {
                    if let Some((_, grant)) = queue.waiting.pop_last() {
                        queue.used.remove(&grant);
                        due.push(grant);
                    }
                }
                Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                None => {}
            }
        }
        (due, next)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(queue) = self.budgets.queues().get_mut(&self.shared_by) {
            queue.under_way = queue.under_way.saturating_sub(1);
            if !self.called {
                queue.give_back(self.taken);
            }
        }
        self.budgets.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(n: u128) -> GrantId {
        GrantId(Uuid::from_u128(n))
    }

    fn budgets(at_once: usize, per_minute: Option<u32>) -> (Budgets, Arc<str>) {
        let budgets = Budgets::default();
        let name = budgets.known(Budget { shared_by: "site".into(), at_once, per_minute });
        (budgets, name)
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_used_last_comes_first() {
        let (budgets, name) = budgets(1, None);
        let now = Instant::now();
        let room = budgets.ask(&name, id(1), now, now);
        assert!(room.is_some());
        for n in [3, 5, 2, 4] {
            let used = now + Duration::from_secs(u64::try_from(n).unwrap());
            assert!(budgets.ask(&name, id(n), used, now).is_none());
        }
        // Used again since.
        let used = now + Duration::from_secs(9);
        assert!(budgets.ask(&name, id(2), used, now).is_none());
        drop(room);
        let mut order = Vec::new();
        for _ in 0..4 {
            order.extend(budgets.due().await);
        }
        assert_eq!(order, [2, 5, 4, 3].map(id));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_waited_for_takes_the_room() {
        let (budgets, name) = budgets(2, None);
        let now = Instant::now();
        let waited_for: Vec<_> = (0..5).map(|_| budgets.begin(&name, now)).collect();
        assert!(budgets.ask(&name, id(1), now, now).is_none());
        let mut waited_for = waited_for.into_iter();
        for _ in 0..3 {
            drop(waited_for.next());
            assert_eq!(budgets.take(now).0, []);
        }
        drop(waited_for.next());
        assert_eq!(budgets.due().await, [id(1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_minute_sees_more_than_its_number() {
        let (budgets, name) = budgets(100, Some(3));
        let start = Instant::now();
        let mut begun = Vec::new();
        // What makes no call takes nothing of the minute.
        for _ in 0..5 {
            drop(budgets.begin(&name, start));
        }
        for n in 0..10 {
            if let Some(mut room) = budgets.ask(&name, id(n), start, start) {
                room.call();
                begun.push(0);
            }
        }
        while begun.len() < 10 {
            for grant in budgets.due().await {
                budgets.ask(&name, grant, start, Instant::now()).unwrap().call();
                begun.push(start.elapsed().as_secs());
            }
        }
        assert_eq!(begun, [0, 0, 0, 60, 60, 60, 120, 120, 120, 180]);
    }
}
