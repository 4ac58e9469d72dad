//! What custody decides, without IO: (state, event, now) → action. It is explored by proptest against a
//! simple model (`machine_tests.rs`).

use std::time::Duration;

use super::rules::LONGEST;
pub use super::rules::{Rules, Times};
use crate::{
    clock::{Instant, Watched},
    store::{EndReason, Lease},
};

/// A forced refresh, at most so often for a grant.
pub const FORCED_INTERVAL: Duration = Duration::from_secs(60);

/// So long a late winner is waited for after an unknown outcome, at least.
pub const LATE_WINNER: Duration = Duration::from_secs(60);

/// Whose lease stands still for so long, as its watcher sees it, is dead or stopped.
pub const LEASE_TTL: Duration = Duration::from_secs(10);

/// A grant that somebody asks for is not held longer by its backoff, where its site lets it try (`outages`).
const HELD_FROM_ASKERS: Duration = Duration::from_secs(5);

/// `Retry-After` beyond it is not believed.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Why a grant is not refreshed at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Passing,
    /// Our client id, key or registration: an alarm.
    Misconfigured,
    /// The EHR waits for the user.
    Suspended,
    /// Our store is away.
    Store,
    /// Another process is at it.
    Elsewhere,
    /// Its refresh token was refused, which is not believed yet (`deaths`).
    Presumed,
    /// Too many of its registration were.
    Suspect,
}

impl Cause {
    /// First wait and longest wait.
    const fn backoff(self) -> (Duration, Duration) {
        match self {
            Self::Passing => (Duration::from_secs(1), Duration::from_secs(60)),
            // Ours: it is not spared, so that everything works soon after it does.
            Self::Store => (Duration::from_secs(1), Duration::from_secs(4)),
            // What people must put right needs no hammering, and is noticed within a quarter of an hour.
            Self::Misconfigured | Self::Suspended => (Duration::from_secs(60), Duration::from_secs(900)),
            Self::Elsewhere => (Duration::from_secs(1), Duration::from_secs(1)),
            // `deaths` says until when.
            Self::Presumed | Self::Suspect => (Duration::ZERO, Duration::ZERO),
        }
    }

    /// Full jitter: anything up to the doubled wait, by a die of 0..=`u32::MAX`; never before `Retry-After`.
    pub fn wait(self, attempts: u32, retry_after: Option<Duration>, die: u32) -> Duration {
        self.wait_at_most(self.backoff().1, attempts, retry_after, die)
    }

    /// How long a try waits of which somebody waits for the outcome.
    pub fn askers_wait(self, attempts: u32, retry_after: Option<Duration>, die: u32) -> Duration {
        let longest = match self {
            Self::Passing => HELD_FROM_ASKERS,
            _ => self.backoff().1,
        };
        self.wait_at_most(longest, attempts, retry_after, die)
    }

    fn wait_at_most(self, longest: Duration, attempts: u32, retry_after: Option<Duration>, die: u32) -> Duration {
        let (first, _) = self.backoff();
        let most = first.saturating_mul(1 << attempts.min(20)).min(longest);
        let jittered = most.mul_f64(f64::from(die) / f64::from(u32::MAX));
        jittered.max(retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    pub cause: Cause,
    pub attempts: u32,
    pub since: Instant,
    pub until: Instant,
    /// From then on it may be tried for somebody who asks ([`Event::Pressed`]).
    pub askers: Instant,
}

/// A refresh whose outcome is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// Until then the vendor repeats its answer to the old refresh token.
    pub grace_until: Instant,
    /// From then on a late winner is looked for, since the old access token serves no more.
    pub look_at: Instant,
    /// From then on the one try may be made.
    pub try_at: Instant,
    /// A late winner is waited for until then, at least.
    late_until: Instant,
}

impl Doubt {
    /// Of an intent that is `age` old now.
    pub fn new(rules: &Rules, expires: Instant, age: Duration, now: Instant) -> Self {
        let grace_until = now + rules.reuse_grace.min(LONGEST).saturating_sub(age);
        let late_until = now + LATE_WINNER.saturating_sub(age);
        Self { grace_until, look_at: expires, try_at: expires, late_until }.until(rules, expires)
    }

    /// The same, where the old access token serves until then.
    fn until(self, rules: &Rules, expires: Instant) -> Self {
        let try_at = expires.max(self.late_until);
        Self { look_at: if rules.shared { expires } else { try_at }, try_at, ..self }
    }

    pub fn in_grace(&self, now: Instant) -> bool {
        now < self.grace_until
    }

    fn blocked_until(&self, now: Instant) -> Instant {
        if self.in_grace(now) { now } else { self.look_at }
    }
}

/// How long a lease of another process must be seen to stand still before it is taken over. `retried`: that
/// process makes the one try that is left, so that only a late winner could still save the grant.
pub fn patience(shared: bool, retried: bool) -> Duration {
    match (shared, retried) {
        // There is no other process: whoever held it is dead.
        (false, _) => Duration::ZERO,
        (true, false) => LEASE_TTL,
        (true, true) => LATE_WINNER.max(LEASE_TTL),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flight {
    None,
    Underway,
    /// The EHR has answered and the store does not take it: the answer is kept, in the spill or, until that
    /// takes it, in memory. No refresh begins from what the store has.
    Keeping,
}

/// What is known of a grant in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    pub times: Times,
    pub refreshable: bool,
    /// Last use by an app, as far as this process knows.
    pub used: Option<Instant>,
    pub flight: Flight,
    pub hold: Option<Hold>,
    pub doubt: Option<Doubt>,
    /// When a 401 last forced a refresh.
    pub forced: Option<Instant>,
    /// When the EHR refused the current bearer.
    pub refused: Option<Instant>,
    /// `session_max`.
    pub session_ends: Option<Instant>,
    /// Another process's lease, as it was last seen.
    pub contender: Option<Watched<Lease>>,
    /// When it is looked at again though nobody asks: until then the wheel leaves it alone.
    pub watched: Option<Instant>,
    pub ended: Option<EndReason>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An app's request needs a bearer.
    Asked,
    /// The EHR answered 401 to a bearer; whether that is still the current one.
    Refused {
        current: bool,
    },
    /// The wheel came round.
    Woken,
    /// The store does not take the EHR's answer.
    Kept,
    /// New tokens are stored and shared.
    Renewed {
        times: Times,
        refreshable: bool,
    },
    /// New tokens are durable in the spill and shared; the store does not have them yet.
    Spilled {
        times: Times,
        refreshable: bool,
    },
    /// The store has what was kept.
    Stored,
    /// The refresh came to nothing.
    Held {
        cause: Cause,
        retry_after: Option<Duration>,
        die: u32,
    },
    /// What held it for its registration's sake is over.
    Freed,
    /// That, and it is to be tried now.
    Tried,
    /// Somebody asks, and its site lets it try before its backoff is over ([`State::pressable`]).
    Pressed,
    /// Its outcome is unknown.
    Doubtful(Doubt),
    /// Another process is at it, and nobody waits here: it is looked at again then.
    Watching(Instant),
    /// The grant is not idle: another process has served it.
    UsedElsewhere,
    /// Another process holds the lease; how long it must be seen to stand still ([`patience`]).
    Contested {
        lease: Lease,
        patience: Duration,
    },
    Ended(EndReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The current bearer.
    Serve,
    /// The current bearer, and a refresh in the background.
    ServeAndFly,
    /// Start a refresh; who asked waits for it.
    Fly,
    /// Wait for the one under way.
    Join,
    Unavailable {
        cause: Cause,
        after: Duration,
    },
    /// The grant is at its end: write that down; who asked waits for it.
    End(EndReason),
    /// It has ended.
    Over(EndReason),
    /// The 401 is that resource's refusal.
    Theirs,
    /// The lease may be taken over.
    TakeOver,
    /// Its owner may live: look again until then.
    Watch(Instant),
    /// Come again at that time.
    Sleep(Instant),
    Rest,
}

impl State {
    pub const fn new(times: Times, refreshable: bool) -> Self {
        Self {
            times,
            refreshable,
            used: None,
            flight: Flight::None,
            hold: None,
            doubt: None,
            forced: None,
            refused: None,
            session_ends: None,
            contender: None,
            watched: None,
            ended: None,
        }
    }

    pub fn step(&mut self, rules: &Rules, event: Event, now: Instant) -> Action {
        if let Some(reason) = self.ended {
            return Action::Over(reason);
        }
        match event {
            Event::Asked => self.asked(rules, now),
            Event::Refused { current: true } => self.refused(rules, now),
            // On an older bearer: the newer one may do.
            Event::Refused { current: false } => self.asked(rules, now),
            Event::Woken => self.woken(rules, now),
            Event::Kept => {
                self.flight = Flight::Keeping;
                Action::Rest
            }
            Event::Renewed { times, refreshable } => self.renewed(times, refreshable, Flight::None),
            Event::Spilled { times, refreshable } => self.renewed(times, refreshable, Flight::Keeping),
            Event::Stored => {
                if self.flight == Flight::Keeping {
                    self.flight = Flight::None;
                }
                Action::Rest
            }
            Event::Held { cause, retry_after, die } => {
                self.flight = Flight::None;
                let attempts = self.hold.filter(|hold| hold.cause == cause).map_or(0, |hold| hold.attempts);
                let until = now + cause.wait(attempts, retry_after, die);
                let askers = now + cause.askers_wait(attempts, retry_after, die);
                self.hold = Some(Hold { cause, attempts: attempts.saturating_add(1), since: now, until, askers });
                Action::Rest
            }
            Event::Freed => {
                self.free();
                Action::Rest
            }
            Event::Tried => {
                self.free();
                match self.way(now) {
                    Way::Free => self.fly(Action::Fly),
                    _ => Action::Rest,
                }
            }
            Event::Pressed => {
                if let Some(hold) = self.hold.as_mut().filter(|hold| hold.askers <= now) {
                    hold.until = hold.until.min(now);
                }
                Action::Rest
            }
            Event::Doubtful(doubt) => {
                self.flight = Flight::None;
                self.hold = None;
                self.doubt = Some(doubt);
                Action::Rest
            }
            Event::Watching(until) => {
                self.flight = Flight::None;
                self.watched = Some(until);
                Action::Rest
            }
            Event::UsedElsewhere => {
                self.flight = Flight::None;
                Action::Rest
            }
            Event::Contested { lease, patience } => {
                let mut seen = self.contender.unwrap_or(Watched::new(lease, now));
                seen.see(lease, LEASE_TTL, now);
                self.contender = Some(seen);
                let still = seen.still_at(patience);
                if still <= now { Action::TakeOver } else { Action::Watch(still) }
            }
            Event::Ended(reason) => {
                self.flight = Flight::None;
                self.ended = Some(reason);
                Action::Rest
            }
        }
    }

    fn renewed(&mut self, times: Times, refreshable: bool, flight: Flight) -> Action {
        let Self { used, forced, session_ends, .. } = *self;
        *self = Self { used, forced, session_ends, flight, ..Self::new(times, refreshable) };
        Action::Rest
    }

    fn asked(&mut self, rules: &Rules, now: Instant) -> Action {
        if let Some(action) = self.session_over(rules, now) {
            return action;
        }
        self.used = Some(now);
        let alive = now < self.times.expires;
        if now < self.times.due {
            return Action::Serve;
        }
        match self.way(now) {
            Way::Free if alive && self.watched.is_none_or(|until| until <= now) => self.fly(Action::ServeAndFly),
            _ if alive => Action::Serve,
            Way::Free => self.fly(Action::Fly),
            Way::Busy => Action::Join,
            Way::Blocked { cause, after } => Action::Unavailable { cause, after },
            Way::None => self.fly(Action::End(EndReason::Expired)),
        }
    }

    fn refused(&mut self, rules: &Rules, now: Instant) -> Action {
        let forced = self.forced.filter(|at| now < *at + FORCED_INTERVAL);
        let due = self.times.due <= now;
        match self.way(now) {
            // One that is under way brings a newer bearer, whoever forced it.
            Way::Busy => return Action::Join,
            Way::None => return Action::Theirs,
            _ if now < self.times.settled => return Action::Theirs,
            // The forced one brought this bearer, and it is refused too. What is due by now needs no force.
            _ if !due && forced.is_some_and(|at| self.times.received >= at) => return Action::Theirs,
            _ => {}
        }
        // No doubt waits for the end of a bearer that does not serve; and where other processes are about, one of
        // them may be at the EHR for this very refusal.
        let refused = *self.refused.get_or_insert(now);
        self.doubt = self.doubt.map(|doubt| doubt.until(rules, refused.min(self.times.expires)));
        match self.way(now) {
            Way::Blocked { cause, after } => Action::Unavailable { cause, after },
            // One that brought nothing is not forced again: it is tried again, when its own outcome allows that.
            _ => {
                self.forced = forced.or((!due).then_some(now));
                self.fly(Action::Fly)
            }
        }
    }

    fn woken(&mut self, rules: &Rules, now: Instant) -> Action {
        if let Some(action) = self.session_over(rules, now) {
            return action;
        }
        match (self.way(now), self.next_wake(rules, now)) {
            (Way::Busy, _) | (_, None) => Action::Rest,
            (_, Some(at)) if now < at => Action::Sleep(at),
            (Way::Free, _) if self.wanted(rules, now) => self.fly(Action::Fly),
            (Way::None, _) if now >= self.times.expires => self.fly(Action::End(EndReason::Expired)),
            // Unused: it is refreshed on use. Its session may still come to its end, or its refresh token.
            _ => [self.session_end(rules), self.keep_by()]
                .into_iter()
                .flatten()
                .min()
                .map_or(Action::Rest, Action::Sleep),
        }
    }

    fn free(&mut self) {
        self.hold = self.hold.filter(|hold| !matches!(hold.cause, Cause::Presumed | Cause::Suspect));
    }

    fn fly(&mut self, action: Action) -> Action {
        self.flight = Flight::Underway;
        self.watched = None;
        action
    }

    /// Whether nothing but its backoff keeps a refresh from starting, and not from one who asks; since when.
    pub fn pressable(&self, now: Instant) -> Option<Instant> {
        let hold = self.hold.filter(|hold| hold.askers <= now && now < hold.until)?;
        let doubtful = self.doubt.is_some_and(|doubt| now < doubt.blocked_until(now));
        (self.refreshable && self.flight == Flight::None && !doubtful).then_some(hold.since)
    }

    /// Whether a refresh may start.
    fn way(&self, now: Instant) -> Way {
        match self.flight {
            Flight::Underway => return Way::Busy,
            // New callers are told at once; the answer is stored as soon as the store takes it.
            Flight::Keeping => return Way::Blocked { cause: Cause::Store, after: Duration::from_secs(1) },
            Flight::None => {}
        }
        if !self.refreshable {
            return Way::None;
        }
        let until = self.blocked_until(now);
        if until <= now {
            return Way::Free;
        }
        match self.hold.filter(|hold| hold.until == until) {
            // It may help to ask again before.
            Some(hold) => {
                let again = hold.askers.max(now + Duration::from_secs(1)).min(until);
                Way::Blocked { cause: hold.cause, after: again - now }
            }
            None => Way::Blocked { cause: Cause::Passing, after: until - now },
        }
    }

    fn blocked_until(&self, now: Instant) -> Instant {
        let hold = self.hold.map_or(now, |hold| hold.until);
        let doubt = self.doubt.map_or(now, |doubt| doubt.blocked_until(now));
        hold.max(doubt)
    }

    /// Until when a doubt waits for the old access token's sake: one that the EHR has refused is not waited for.
    pub fn serves_until(&self) -> Instant {
        self.refused.map_or(self.times.expires, |at| at.min(self.times.expires))
    }

    /// Used since its access token came.
    fn warm(&self) -> bool {
        self.used.is_some_and(|used| used >= self.times.received)
    }

    /// Whether a refresh is worth while though nobody asks.
    fn wanted(&self, rules: &Rules, now: Instant) -> bool {
        let kept = self.keep_by().is_some_and(|at| at <= now);
        kept || self.doubt.is_some() || self.warm() || rules.cold_for.is_some_and(|cold| now < self.last_use() + cold)
    }

    /// When an unused grant is refreshed for its refresh token's sake.
    pub fn keep_by(&self) -> Option<Instant> {
        self.times.keep_by.filter(|_| self.refreshable)
    }

    /// After a start the last use is not known: it counts from then.
    pub fn last_use(&self) -> Instant {
        self.used.unwrap_or(self.times.received)
    }

    fn session_over(&mut self, rules: &Rules, now: Instant) -> Option<Action> {
        let over = self.session_end(rules).is_some_and(|end| end <= now);
        (over && self.flight == Flight::None).then(|| self.fly(Action::End(EndReason::SessionEnded)))
    }

    fn session_end(&self, rules: &Rules) -> Option<Instant> {
        let idle = rules.session_idle.map(|idle| self.last_use() + idle);
        [idle, self.session_ends].into_iter().flatten().min()
    }

    /// When to look at the grant though nobody asks.
    pub fn next_wake(&self, rules: &Rules, now: Instant) -> Option<Instant> {
        if self.ended.is_some() || self.flight != Flight::None {
            return None;
        }
        let refresh = if !self.refreshable {
            self.times.expires
        } else if self.doubt.is_some() {
            self.blocked_until(now)
        } else {
            self.times.due.max(self.blocked_until(self.times.due))
        };
        let refresh = self.watched.map_or(refresh, |until| until.max(refresh));
        Some(self.session_end(rules).map_or(refresh, |end| end.min(refresh)))
    }

    /// Whether an unused grant needs the wheel at all; others are refreshed on use.
    pub fn needs_wheel(&self, rules: &Rules) -> bool {
        self.doubt.is_some() || !self.refreshable || rules.cold_for.is_some() || self.session_end(rules).is_some()
    }

    /// Whether nothing is lost if this process forgets it: the store knows the rest.
    pub fn forgettable(&self, rules: &Rules, unused_for: Duration, now: Instant) -> bool {
        self.flight == Flight::None
            && self.hold.is_none()
            && self.doubt.is_none()
            && self.session_end(rules).is_none()
            // What is warm is refreshed when due, for which it must be known to be warm.
            && !(self.refreshable && self.warm())
            && self.last_use() + unused_for.max(rules.cold_for.unwrap_or_default()) <= now
    }
}

enum Way {
    Free,
    Busy,
    Blocked {
        cause: Cause,
        after: Duration,
    },
    /// There is no refresh token.
    None,
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
