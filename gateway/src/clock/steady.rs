//! A wall clock that a step of the machine's does not take along.
//!
//! A machine's clock is stepped by people, by NTP at boot, by a hypervisor, and after a suspension. Which of
//! the two times is right, the one before or the one after, cannot be known from here. So there are two:
//!
//! - [`Clock::now`], of records (tokens, codes, launches, the age of an EHR's token), goes on by the monotonic
//!   clock. It follows the machine's clock where that is off by at most 2 s (NTP's slewing), and what is left of
//!   a step that is believed at one tenth of the time that passes. So nothing ends early or late by more than a
//!   tenth of its time: an access token of an hour lives 54 to 66 minutes. A step of an hour takes ten hours.
//! - [`Clock::civil`], what others are told (`iat` and `exp` of assertions and id_tokens), takes a step as soon
//!   as it is believed: when the `Date` of any answer of an EHR agrees with the new time and not with the old
//!   one, else after five minutes in which none has agreed with the old one. An EHR chooses between the two
//!   times and can name no third, so one with a wrong clock, or an evil one, moves nothing.
//!
//! | the machine's clock | records | assertions, id_tokens |
//! |---|---|---|
//! | was wrong, and is set right (NTP after boot) | slewed | right from the first answer of an EHR, else after 5 min |
//! | was right, and is set wrong | go on; slewed after 5 min without an EHR's answer | right while EHRs answer |
//! | is set back within that | have never left | have never left |
//! | is wrong from the start | by the wrong time | refused by EHRs, which is never taken for a dead token; a warning |
//!
//! A start behind what the store has seen is told by `app`. Each process goes by its own clock: where those of
//! replicas differ, a token that one gave ends at another early or late by what they differ.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;

use super::{Clock, Instant, SharedClock, Timestamp};

/// The machine's clock is read so often.
const LOOK: Duration = Duration::from_secs(1);

/// Up to here a difference is followed: NTP slews by less in a second, and more than that ends nobody's token.
const SLEWED: i64 = 2_000_000;

/// A step that nobody confirms or denies is believed after so long: a machine's own administration knows better
/// than nobody.
const PATIENCE: Duration = Duration::from_secs(300);

/// `Date` has whole seconds, the answer took its time, and clocks that are kept by NTP differ by less.
const AGREES: i64 = 60_000_000;

/// An EHR whose clock is not ours is told of so often at most.
const TELL_AGAIN: Duration = Duration::from_secs(3600);

/// A step of the machine's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Forward,
    Back,
}

impl Step {
    pub const ALL: [Self; 2] = [Self::Forward, Self::Back];

    pub const fn text(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Back => "back",
        }
    }
}

/// Who counts what happens to clocks.
pub trait ClockWatch: Send + Sync {
    fn stepped(&self, step: Step);

    /// By how many seconds the machine's clock is ahead of the time of records.
    fn ahead(&self, seconds: f64);

    /// By how many seconds an EHR's clock was ahead of the civil time.
    fn ehr_ahead(&self, seconds: f64);
}

/// The two times at an instant, in microseconds since 1970.
#[derive(Clone, Copy, Debug)]
struct Anchor {
    at: Instant,
    records: i64,
    civil: i64,
}

/// A time that the machine's clock shows and that is not believed yet.
#[derive(Clone, Copy, Debug)]
struct Rival {
    at: Instant,
    time: i64,
    /// Nobody has denied it since.
    undisputed: Instant,
}

#[derive(Default)]
struct Judge {
    rival: Option<Rival>,
    told: Option<Instant>,
}

/// See the module's page.
pub struct SteadyClock {
    machine: SharedClock,
    watch: Arc<dyn ClockWatch>,
    anchor: ArcSwap<Anchor>,
    judge: Mutex<Judge>,
    /// Microseconds by which the machine's clock is ahead of the time of records.
    ahead: AtomicI64,
    /// There is a rival.
    disputed: AtomicBool,
}

fn micros(time: Timestamp) -> i64 {
    time.0.saturating_mul(1000)
}

fn later(time: i64, from: Instant, to: Instant) -> i64 {
    let passed = to.saturating_duration_since(from).as_micros();
    time.saturating_add(i64::try_from(passed).unwrap_or(i64::MAX))
}

#[allow(clippy::cast_precision_loss, reason = "a figure to look at")]
fn seconds(micros: i64) -> f64 {
    micros as f64 / 1e6
}

impl Anchor {
    fn moved_to(&self, at: Instant) -> Self {
        Self { at, records: later(self.records, self.at, at), civil: later(self.civil, self.at, at) }
    }
}

impl SteadyClock {
    /// It begins with what the machine's clock shows now.
    pub fn new(machine: SharedClock, watch: Arc<dyn ClockWatch>) -> Self {
        let time = micros(machine.now());
        let anchor = Anchor { at: machine.monotonic(), records: time, civil: time };
        Self {
            machine,
            watch,
            anchor: ArcSwap::from_pointee(anchor),
            judge: Mutex::default(),
            ahead: AtomicI64::new(0),
            disputed: AtomicBool::new(false),
        }
    }

    /// By how many seconds the machine's clock is ahead of the time of records, if that is more than slewing.
    pub fn off(&self) -> Option<i64> {
        self.read();
        let ahead = self.ahead.load(Ordering::Relaxed);
        (ahead.abs() > SLEWED).then_some(ahead / 1_000_000)
    }

    /// Both times now.
    fn read(&self) -> Anchor {
        let at = self.machine.monotonic();
        let anchor = **self.anchor.load();
        if at.saturating_duration_since(anchor.at) < LOOK {
            return anchor.moved_to(at);
        }
        // Whoever finds it taken reads while another looks: what was known a moment ago will do.
        match self.judge.try_lock() {
            Ok(mut judge) => {
                let looked = self.look(&mut judge, at);
                self.publish(&judge, looked);
                looked
            }
            Err(_) => anchor.moved_to(at),
        }
    }

    fn publish(&self, judge: &Judge, now: Anchor) {
        self.anchor.store(Arc::new(now));
        self.disputed.store(judge.rival.is_some(), Ordering::Relaxed);
    }

    fn look(&self, judge: &mut Judge, at: Instant) -> Anchor {
        // Not the one that was read before the lock: another may have looked meanwhile.
        let before = **self.anchor.load();
        let mut now = before.moved_to(at);
        let system = micros(self.machine.now());
        let expected = judge.rival.map_or(now.civil, |rival| later(rival.time, rival.at, at));
        if (system - expected).abs() > SLEWED {
            self.stepped(system - expected, system - now.civil);
        }
        if (system - now.civil).abs() <= SLEWED {
            now.civil = system;
            judge.rival = None;
        } else {
            let undisputed =
                judge.rival.filter(|_| (system - expected).abs() <= SLEWED).map_or(at, |rival| rival.undisputed);
            judge.rival = Some(Rival { at, time: system, undisputed });
            if at.saturating_duration_since(undisputed) >= PATIENCE {
                self.believe(judge, &mut now, "nobody denies it");
            }
        }
        let gap = now.civil - now.records;
        let passed = later(0, before.at, at);
        now.records = if gap.abs() <= SLEWED { now.civil } else { now.records + gap.clamp(-passed / 10, passed / 10) };
        self.ahead.store(system - now.records, Ordering::Relaxed);
        self.watch.ahead(seconds(system - now.records));
        now
    }

    fn stepped(&self, by: i64, from_civil: i64) {
        self.watch.stepped(if by > 0 { Step::Forward } else { Step::Back });
        if from_civil.abs() <= SLEWED {
            tracing::warn!(seconds = seconds(by), "the machine's clock was stepped, to the time that it had before");
        } else {
            tracing::warn!(
                seconds = seconds(by),
                "the machine's clock was stepped: this process goes on by the time before, until an EHR or \
                 {PATIENCE:?} confirm the new one; nothing ends early or late by more than a tenth of its time"
            );
        }
    }

    fn believe(&self, judge: &mut Judge, now: &mut Anchor, why: &'static str) {
        let Some(rival) = judge.rival.take() else { return };
        let time = later(rival.time, rival.at, now.at);
        tracing::warn!(
            seconds = seconds(time - now.civil),
            why,
            "the time that the machine's clock was stepped to is believed: assertions and id_tokens carry it now"
        );
        now.civil = time;
    }

    fn hear(&self, judge: &mut Judge, theirs: i64, now: &mut Anchor) {
        let agrees = |time: i64| (theirs - time).abs() <= AGREES;
        self.watch.ehr_ahead(seconds(theirs - now.civil));
        match &mut judge.rival {
            Some(rival) => match (agrees(now.civil), agrees(later(rival.time, rival.at, now.at))) {
                (true, false) => rival.undisputed = now.at,
                (false, true) => self.believe(judge, now, "an EHR has it"),
                // It tells nothing: a step of a minute, or a third time.
                (true, true) | (false, false) => {}
            },
            None if !agrees(now.civil) => {
                let due = judge.told.is_none_or(|told| now.at.saturating_duration_since(told) >= TELL_AGAIN);
                if due {
                    judge.told = Some(now.at);
                    tracing::warn!(
                        seconds = seconds(theirs - now.civil),
                        "an EHR's clock is ahead of ours by so much: one of them is wrong, and it may refuse our \
                         assertions"
                    );
                }
            }
            None => {}
        }
    }
}

impl Clock for SteadyClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.read().records.div_euclid(1000))
    }

    fn civil(&self) -> Timestamp {
        Timestamp(self.read().civil.div_euclid(1000))
    }

    fn seeks_witness(&self) -> bool {
        self.disputed.load(Ordering::Relaxed)
    }

    fn witness(&self, theirs: Timestamp) {
        // What the machine's clock shows now, not a second ago: the witness is to choose between the two.
        let Ok(mut judge) = self.judge.lock() else { return };
        let mut now = self.look(&mut judge, self.machine.monotonic());
        self.hear(&mut judge, micros(theirs), &mut now);
        self.publish(&judge, now);
    }

    fn monotonic(&self) -> Instant {
        self.machine.monotonic()
    }
}

#[cfg(test)]
#[path = "steady_tests.rs"]
mod tests;
