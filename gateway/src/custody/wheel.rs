//! When which grant is to be looked at though nobody asks.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{clock::Instant, store::GrantId};

#[derive(Default)]
pub struct Wheel {
    turns: Mutex<Turns>,
    changed: Notify,
}

#[derive(Default)]
struct Turns {
    order: BTreeSet<(Instant, GrantId)>,
    at: HashMap<GrantId, Instant>,
}

impl Turns {
    fn remove(&mut self, id: GrantId) {
        if let Some(at) = self.at.remove(&id) {
            self.order.remove(&(at, id));
        }
    }
}

impl Wheel {
    /// Each change is whole even if somebody panicked beside it.
    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets a grant's one turn; none: it has none.
    pub fn set(&self, id: GrantId, at: Option<Instant>) {
        let mut turns = self.turns();
        turns.remove(id);
        let Some(at) = at else { return };
        turns.at.insert(id, at);
        turns.order.insert((at, id));
        if turns.order.first() == Some(&(at, id)) {
            self.changed.notify_one();
        }
    }

    /// Sets a turn, unless the grant has one.
    pub fn set_if_none(&self, id: GrantId, at: Instant) {
        let known = self.turns().at.contains_key(&id);
        if !known {
            self.set(id, Some(at));
        }
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.turns().at.is_empty()
    }

    /// Waits for the next turn, and takes all that have come.
    pub async fn due(&self) -> Vec<GrantId> {
        loop {
            let first = self.turns().order.first().map(|(at, _)| *at);
            let turn = async {
                match first {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = turn => {
                    let due = self.take(Instant::now());
                    if !due.is_empty() {
                        return due;
                    }
                }
                () = self.changed.notified() => {}
            }
        }
    }

    fn take(&self, now: Instant) -> Vec<GrantId> {
        let mut turns = self.turns();
        let mut due = Vec::new();
        while let Some(&(at, id)) = turns.order.first().filter(|(at, _)| *at <= now) {
            turns.order.remove(&(at, id));
            turns.at.remove(&id);
            due.push(id);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;

    fn id(n: u128) -> GrantId {
        GrantId(Uuid::from_u128(n))
    }

    #[tokio::test(start_paused = true)]
    async fn turns_come_in_their_order_at_their_time() {
        let (wheel, start) = (Wheel::default(), Instant::now());
        let at = |seconds| Some(start + Duration::from_secs(seconds));
        wheel.set(id(1), at(30));
        wheel.set(id(2), at(10));
        wheel.set(id(3), at(10));
        wheel.set(id(4), at(5));
        wheel.set(id(4), None);
        wheel.set(id(1), at(20));
        wheel.set_if_none(id(1), start);
        assert_eq!(wheel.due().await, [id(2), id(3)]);
        assert_eq!(start.elapsed().as_secs(), 10);
        assert_eq!(wheel.due().await, [id(1)]);
        assert_eq!(start.elapsed().as_secs(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_turn_is_noticed_while_waiting() {
        let (wheel, start) = (Wheel::default(), Instant::now());
        wheel.set(id(1), Some(start + Duration::from_secs(3600)));
        let (due, ()) = tokio::join!(wheel.due(), async {
            tokio::task::yield_now().await;
            wheel.set(id(2), Some(start + Duration::from_secs(1)));
        });
        assert_eq!((due, start.elapsed().as_secs()), (vec![id(2)], 1));
    }
}
