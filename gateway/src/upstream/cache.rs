//! One value that is fetched, kept for a while, and fetched once however many ask.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{runtime::Handle, sync::watch, time::Instant};

/// The task that fetched is gone (the runtime stops, or it panicked).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Died;

/// How long things are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    /// How long after its lifetime a value is served while a new one is fetched.
    pub(crate) stale: Duration,
    /// How long a failure is answered before it is tried again.
    pub(crate) failure: Duration,
}

/// A fetched value and its lifetime.
pub(crate) struct Loaded<V> {
    pub(crate) value: V,
    pub(crate) lifetime: Duration,
}

pub(crate) struct Kept<V, E> {
    state: Arc<Mutex<State<V, E>>>,
    keep: Keep,
    /// Fetches outlive who asked first, and that runtime must outlive them all.
    runtime: Handle,
}

struct State<V, E> {
    value: Option<Stored<V>>,
    failed: Option<(E, Instant)>,
    begun: Option<Instant>,
    flight: Option<watch::Receiver<Landed<V, E>>>,
}

type Landed<V, E> = Option<Result<Arc<V>, E>>;

struct Stored<V> {
    value: Arc<V>,
    since: Instant,
    lifetime: Duration,
}

impl<V> Stored<V> {
    fn age_allows(&self, allowance: Duration) -> bool {
        self.since.elapsed() < self.lifetime.saturating_add(allowance)
    }
}

impl<V: Send + Sync + 'static, E: Clone + From<Died> + Send + Sync + 'static> Kept<V, E> {
    pub(crate) fn new(keep: Keep, runtime: Handle) -> Self {
        let state = State { value: None, failed: None, begun: None, flight: None };
        Self { state: Arc::new(Mutex::new(state)), keep, runtime }
    }

    /// The value: at once if it is fresh, or stale within bounds (then a new one is fetched behind);
    /// else what the one fetch under way brings. `load` is given the value before.
    pub(crate) async fn get<F>(&self, load: impl FnOnce(Option<Arc<V>>) -> F) -> Result<Arc<V>, E>
    where
        F: Future<Output = Result<Loaded<V>, E>> + Send + 'static,
    {
        let seat = {
            let mut state = lock(&self.state);
            let cooling = state.failed.as_ref().filter(|(_, at)| at.elapsed() < self.keep.failure).cloned();
            match &state.value {
                Some(stored) if stored.age_allows(Duration::ZERO) => return Ok(stored.value.clone()),
                Some(stored) if stored.age_allows(self.keep.stale) => {
                    let value = stored.value.clone();
                    if cooling.is_none() {
                        self.join(&mut state, load);
                    }
                    return Ok(value);
                }
                _ => {}
            }
            if let Some((error, _)) = cooling {
                return Err(error);
            }
            self.join(&mut state, load)
        };
        answer(seat).await
    }

    /// Fetches anew even if the value is fresh, but not more than once in `interval`; what is known then
    /// if it is too soon or fails.
    pub(crate) async fn renew<F>(&self, interval: Duration, load: impl FnOnce(Option<Arc<V>>) -> F) -> Result<Arc<V>, E>
    where
        F: Future<Output = Result<Loaded<V>, E>> + Send + 'static,
    {
        let (known, seat) = {
            let mut state = lock(&self.state);
            let known = state.value.as_ref().map(|stored| stored.value.clone());
            let soon = state.flight.is_none() && state.begun.is_some_and(|at| at.elapsed() < interval);
            if let Some(known) = known.clone().filter(|_| soon) {
                return Ok(known);
            }
            (known, self.join(&mut state, load))
        };
        match (answer(seat).await, known) {
            (Err(_), Some(known)) => Ok(known),
            (answer, _) => answer,
        }
    }

    fn join<F>(
        &self,
        state: &mut MutexGuard<'_, State<V, E>>,
        load: impl FnOnce(Option<Arc<V>>) -> F,
    ) -> watch::Receiver<Landed<V, E>>
    where
        F: Future<Output = Result<Loaded<V>, E>> + Send + 'static,
    {
        if let Some(seat) = &state.flight {
            return seat.clone();
        }
        let work = load(state.value.as_ref().map(|stored| stored.value.clone()));
        let (publish, seat) = watch::channel(None);
        state.flight = Some(seat.clone());
        state.begun = Some(Instant::now());
        let landing = Landing(self.state.clone());
        self.runtime.spawn(async move {
            let loaded = work.await;
            let landed = landing.store(loaded);
            publish.send_replace(Some(landed));
        });
        seat
    }
}

async fn answer<V, E: Clone + From<Died>>(mut seat: watch::Receiver<Landed<V, E>>) -> Result<Arc<V>, E> {
    match seat.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(landed)) => landed.clone(),
        _ => Err(Died.into()),
    }
}

fn lock<V, E>(state: &Mutex<State<V, E>>) -> MutexGuard<'_, State<V, E>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the flight off the board however it ends.
struct Landing<V, E>(Arc<Mutex<State<V, E>>>);

impl<V, E: Clone> Landing<V, E> {
    fn store(self, loaded: Result<Loaded<V>, E>) -> Result<Arc<V>, E> {
        let now = Instant::now();
        let mut state = lock(&self.0);
        match loaded {
            Ok(Loaded { value, lifetime }) => {
                let value = Arc::new(value);
                state.value = Some(Stored { value: value.clone(), since: now, lifetime });
                state.failed = None;
                Ok(value)
            }
            Err(error) => {
                state.failed = Some((error.clone(), now));
                Err(error)
            }
        }
    }
}

impl<V, E> Drop for Landing<V, E> {
    fn drop(&mut self) {
        lock(&self.0).flight = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    enum Fault {
        Down,
        Died,
    }

    impl From<Died> for Fault {
        fn from(_: Died) -> Self {
            Self::Died
        }
    }

    const TTL: Duration = Duration::from_secs(3600);
    const KEEP: Keep = Keep { stale: Duration::MAX, failure: Duration::from_secs(30) };

    struct Source {
        kept: Kept<usize, Fault>,
        calls: Arc<AtomicUsize>,
    }

    impl Source {
        fn new(keep: Keep) -> Self {
            Self { kept: Kept::new(keep, Handle::current()), calls: Arc::default() }
        }

        fn load(&self, works: bool) -> impl FnOnce(Option<Arc<usize>>) -> LoadFuture + use<> {
            let calls = self.calls.clone();
            move |_| {
                Box::pin(async move {
                    let n = calls.fetch_add(1, Ordering::SeqCst) + 1;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    if works { Ok(Loaded { value: n, lifetime: TTL }) } else { Err(Fault::Down) }
                })
            }
        }

        async fn get(&self, works: bool) -> Result<usize, Fault> {
            self.kept.get(self.load(works)).await.map(|value| *value)
        }

        fn calls(&self) -> usize {
            self.calls.load(Ordering::SeqCst)
        }
    }

    type LoadFuture = std::pin::Pin<Box<dyn Future<Output = Result<Loaded<usize>, Fault>> + Send>>;

    #[tokio::test(start_paused = true)]
    async fn a_thousand_ask_and_one_call_is_made() {
        let source = Source::new(KEEP);
        let answers = futures_util::future::join_all((0..1000).map(|_| source.get(true))).await;
        assert!(answers.iter().all(|answer| *answer == Ok(1)));
        assert_eq!(source.calls(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_who_leaves_stops_nothing() {
        let source = Source::new(KEEP);
        let left = tokio::time::timeout(Duration::from_millis(1), source.get(true)).await;
        assert!(left.is_err());
        assert_eq!(source.get(true).await, Ok(1));
        assert_eq!(source.calls(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stale_value_serves_while_a_new_one_is_fetched_and_while_that_fails() {
        let source = Source::new(KEEP);
        assert_eq!(source.get(true).await, Ok(1));
        tokio::time::advance(TTL).await;
        let before = Instant::now();
        assert_eq!(source.get(false).await, Ok(1));
        assert_eq!(before.elapsed(), Duration::ZERO, "nobody waits for a refresh");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!((source.get(false).await, source.calls()), (Ok(1), 2), "a failure is not repeated at once");
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(source.get(true).await, Ok(1));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!((source.get(true).await, source.calls()), (Ok(3), 3));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_value_a_failure_is_answered_for_a_while() {
        let source = Source::new(KEEP);
        assert_eq!(source.get(false).await, Err(Fault::Down));
        assert_eq!((source.get(true).await, source.calls()), (Err(Fault::Down), 1));
        tokio::time::advance(KEEP.failure).await;
        assert_eq!((source.get(true).await, source.calls()), (Ok(2), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn where_nothing_stale_is_served_an_old_value_is_waited_for() {
        let source = Source::new(Keep { stale: Duration::ZERO, ..KEEP });
        assert_eq!(source.get(true).await, Ok(1));
        tokio::time::advance(TTL).await;
        assert_eq!(source.get(true).await, Ok(2));
    }

    #[tokio::test(start_paused = true)]
    async fn renewals_are_rationed_and_fall_back_to_what_is_known() {
        let source = Source::new(KEEP);
        let minute = Duration::from_secs(60);
        assert_eq!(source.get(true).await, Ok(1));
        assert_eq!(source.kept.renew(minute, source.load(true)).await.map(|v| *v), Ok(1), "too soon");
        tokio::time::advance(minute).await;
        assert_eq!(source.kept.renew(minute, source.load(true)).await.map(|v| *v), Ok(2));
        tokio::time::advance(minute).await;
        assert_eq!(source.kept.renew(minute, source.load(false)).await.map(|v| *v), Ok(2));
        assert_eq!(source.calls(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_wakes_who_waits_and_the_next_one_tries_again() {
        let source = Source::new(KEEP);
        let dies = |_: Option<Arc<usize>>| -> LoadFuture { Box::pin(async { panic!("as planned") }) };
        assert_eq!(source.kept.get(dies).await, Err(Fault::Died));
        assert_eq!(source.get(true).await, Ok(1));
    }
}
