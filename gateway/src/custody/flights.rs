//! One flight per key: a task of its own on the control runtime. A caller who hangs up cancels nothing;
//! a flight that dies wakes all who wait.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{runtime::Handle, sync::watch};
use tokio_util::task::TaskTracker;

type Board<K, V> = Arc<Mutex<HashMap<K, watch::Sender<Option<V>>>>>;

pub struct Flights<K, V> {
    board: Board<K, V>,
    tasks: TaskTracker,
    handle: Handle,
}

/// A place in a flight.
pub struct Seat<V>(watch::Receiver<Option<V>>);

impl<V: Clone> Seat<V> {
    /// The flight's answer. None: it died.
    pub async fn answer(mut self) -> Option<V> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|value| value.clone())
    }
}

/// Takes the key off the board, however the flight ends.
struct Landing<K: Hash + Eq, V> {
    board: Board<K, V>,
    key: K,
}

impl<K: Hash + Eq, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        locked(&self.board).remove(&self.key);
    }
}

/// The board is whole after a panic elsewhere: each change of it is one call.
fn locked<K, V>(board: &Board<K, V>) -> MutexGuard<'_, HashMap<K, watch::Sender<Option<V>>>> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub fn new(handle: Handle) -> Self {
        Self { board: Board::default(), tasks: TaskTracker::new(), handle }
    }

    /// A seat in the flight of that key; `start` makes one if there is none.
    ///
    /// What the work does, it has done before anybody who comes later finds no flight.
    pub fn join<F>(&self, key: K, start: impl FnOnce() -> F) -> Seat<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut board = locked(&self.board);
        if let Some(flight) = board.get(&key) {
            return Seat(flight.subscribe());
        }
        let (work, (publish, seat)) = (start(), watch::channel(None));
        board.insert(key.clone(), publish.clone());
        // Before the spawn: a runtime that is stopping drops the task in place.
        drop(board);
        let landing = Landing { board: self.board.clone(), key };
        self.tasks.spawn_on(
            async move {
                let value = work.await;
                drop(landing);
                publish.send_replace(Some(value));
            },
            &self.handle,
        );
        Seat(seat)
    }

    /// A seat in the flight of that key, if there is one.
    pub fn find(&self, key: &K) -> Option<Seat<V>> {
        locked(&self.board).get(key).map(|flight| Seat(flight.subscribe()))
    }

    /// Whether anybody has a seat in the flight of that key.
    pub fn waited_for(&self, key: &K) -> bool {
        locked(&self.board).get(key).is_some_and(|flight| flight.receiver_count() > 0)
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        locked(&self.board).is_empty()
    }

    /// Waits for the flights that are under way.
    pub async fn landed(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::sync::oneshot;

    use super::*;

    struct Counted {
        flights: Flights<u8, u32>,
        calls: Arc<AtomicUsize>,
    }

    impl Counted {
        fn new() -> Self {
            Self { flights: Flights::new(Handle::current()), calls: Arc::default() }
        }

        /// Joins a flight that ends when `gate` is told.
        fn join(&self, gate: &mut Option<oneshot::Receiver<u32>>) -> Seat<u32> {
            let calls = self.calls.clone();
            self.flights.join(1, || {
                let gate = gate.take();
                async move {
                    calls.fetch_add(1, Ordering::Relaxed);
                    gate.unwrap().await.unwrap()
                }
            })
        }

        fn calls(&self) -> usize {
            self.calls.load(Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn a_thousand_callers_make_one_call() {
        let (counted, (open, gate)) = (Counted::new(), oneshot::channel());
        let mut gate = Some(gate);
        let seats: Vec<_> = (0..1000).map(|_| counted.join(&mut gate)).collect();
        open.send(7).unwrap();
        assert!(join_all(seats.into_iter().map(Seat::answer)).await.iter().all(|it| *it == Some(7)));
        assert_eq!(counted.calls(), 1);
        assert!(counted.flights.find(&1).is_none());
    }

    #[tokio::test]
    async fn callers_who_hang_up_cancel_nothing() {
        let (counted, (open, gate)) = (Counted::new(), oneshot::channel());
        let seat = counted.join(&mut Some(gate));
        assert!(counted.flights.waited_for(&1));
        drop(seat);
        assert!(!counted.flights.waited_for(&1));
        tokio::task::yield_now().await;
        open.send(7).unwrap();
        counted.flights.landed().await;
        assert_eq!(counted.calls(), 1);
    }

    #[tokio::test]
    async fn who_comes_after_starts_another() {
        let counted = Counted::new();
        for n in [1, 2] {
            let (open, gate) = oneshot::channel();
            let seat = counted.join(&mut Some(gate));
            open.send(n).unwrap();
            assert_eq!(seat.answer().await, Some(n));
        }
        assert_eq!(counted.calls(), 2);
    }

    #[tokio::test]
    async fn a_panic_wakes_all() {
        let (counted, (open, gate)) = (Counted::new(), oneshot::channel());
        let mut gate = Some(gate);
        let seats: Vec<_> = (0..10).map(|_| counted.join(&mut gate)).collect();
        // The work unwraps what comes through the gate.
        drop(open);
        assert!(join_all(seats.into_iter().map(Seat::answer)).await.iter().all(Option::is_none));
        assert!(counted.flights.find(&1).is_none());
    }
}
