//! The clocks. Deadlines and leases use monotonic time. Wall time is for what is stored, so that it outlives the
//! process, and for what protocols carry (`exp`, `Date`); of a machine whose clock may be stepped it comes from
//! [`SteadyClock`], whose page says what a step does.

mod steady;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
pub use tokio::time::Instant;

pub use self::steady::{ClockWatch, SteadyClock, Step};

/// Wall time in milliseconds since 1970 (Unix time).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Whole seconds, as OAuth and JWT count.
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    pub fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
    }

    pub fn before(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The time from `self` until `later`, zero if that has passed.
    pub fn until(self, later: Self) -> Duration {
        Duration::from_millis(u64::try_from(later.0.saturating_sub(self.0)).unwrap_or(0))
    }
}

/// What was last seen of somebody who shows by changes that he lives; judged by the watcher's own monotonic
/// clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched<T> {
    value: T,
    since: Instant,
    seen: Instant,
}

impl<T: PartialEq> Watched<T> {
    pub const fn new(value: T, now: Instant) -> Self {
        Self { value, since: now, seen: now }
    }

    /// Sees it again. Who did not look for longer than `gap` knows nothing of the time between: neither was it
    /// seen to stand still then, nor could it perhaps show itself (the store was away from both).
    pub fn see(&mut self, value: T, gap: Duration, now: Instant) {
        if self.value != value || now.saturating_duration_since(self.seen) > gap {
            self.since = now;
        }
        self.value = value;
        self.seen = now;
    }

    /// Until when it was seen to stand still for `patience`, if it does not change before.
    pub fn still_at(&self, patience: Duration) -> Instant {
        self.since + patience
    }
}

pub trait Clock: Send + Sync {
    /// Wall time, of records: what is to end an hour from now ends in an hour.
    fn now(&self) -> Timestamp;

    /// Wall time as others are believed to have it: for what they judge (assertions, id_tokens), and for what
    /// they say of their own.
    fn civil(&self) -> Timestamp {
        self.now()
    }

    /// Whether a witness could decide something.
    fn seeks_witness(&self) -> bool {
        false
    }

    /// An EHR's own time, as its answer said a moment ago.
    fn witness(&self, _theirs: Timestamp) {}

    /// Monotonic time; obeys `tokio`'s paused time.
    fn monotonic(&self) -> Instant {
        Instant::now()
    }
}

pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

/// A wall clock that follows `tokio`'s (pausable) time from a fixed beginning: for tests.
pub struct TestClock {
    start: Timestamp,
    at: Instant,
    /// Milliseconds that it was set forward.
    ahead: AtomicI64,
}

impl TestClock {
    pub fn new(start: Timestamp) -> Self {
        Self { start, at: Instant::now(), ahead: AtomicI64::new(0) }
    }

    /// As an administrator would.
    pub fn set_back(&self, by: Duration) {
        self.ahead.fetch_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// As an administrator would.
    pub fn set_forward(&self, by: Duration) {
        self.ahead.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        let Timestamp(now) = self.start.after(self.at.elapsed());
        Timestamp(now + self.ahead.load(Ordering::Relaxed))
    }
}
