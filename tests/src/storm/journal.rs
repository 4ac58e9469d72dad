//! What went wrong when: what each loss is later explained by.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Which kinds of faults a storm has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    Kill,
    Stop,
    Database,
    Ehr,
    Store,
    LostAnswer,
    Disk,
    Clock,
}

impl FaultKind {
    pub const ALL: [Self; 8] =
        [Self::Kill, Self::Stop, Self::Database, Self::Ehr, Self::Store, Self::LostAnswer, Self::Disk, Self::Clock];
}

/// One thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Killed,
    Stopped,
    DatabaseRestarted,
    DatabasePaused,
    /// Of this site.
    EhrCut(String),
    EhrSilent(String),
    EhrSlow(String),
    AnswersLost(String),
    StoreCut,
    StoreSilent,
    StoreSlow,
    DiskFull,
    ClockSet,
    /// None of ours: a timer or a write of the storm's own came late.
    MachineSlow,
}

impl What {
    pub const fn text(&self) -> &'static str {
        match self {
            Self::Killed => "gateway killed",
            Self::Stopped => "gateway stopped",
            Self::DatabaseRestarted => "database restarted",
            Self::DatabasePaused => "database paused",
            Self::EhrCut(_) => "EHR cut off",
            Self::EhrSilent(_) => "EHR silent",
            Self::EhrSlow(_) => "EHR slow",
            Self::AnswersLost(_) => "answers to be lost",
            Self::StoreCut => "store cut off",
            Self::StoreSilent => "store silent",
            Self::StoreSlow => "store slow",
            Self::DiskFull => "disk full",
            Self::ClockSet => "clock set",
            Self::MachineSlow => "machine slow",
        }
    }

    /// The one EHR that it concerns; none: all.
    fn site(&self) -> Option<&str> {
        match self {
            Self::EhrCut(site) | Self::EhrSilent(site) | Self::EhrSlow(site) | Self::AnswersLost(site) => Some(site),
            _ => None,
        }
    }

    /// Whether it keeps what a process has from being durable.
    const fn delays_commits(&self) -> bool {
        !matches!(self, Self::Killed | Self::AnswersLost(_) | Self::ClockSet)
    }
}

/// From when to when, in milliseconds since 1970.
#[derive(Clone, Debug)]
pub struct Event {
    pub what: What,
    pub from: i64,
    /// None: it goes on.
    pub until: Option<i64>,
}

impl Event {
    fn overlaps(&self, from: i64, until: i64) -> bool {
        self.from <= until && self.until.is_none_or(|end| end >= from)
    }
}

#[derive(Default)]
pub struct Journal(Mutex<Vec<Event>>);

/// The place of an event that has begun.
#[derive(Clone, Copy)]
#[must_use]
pub struct Begun(usize);

/// Why an answer of an EHR may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// The answer was swallowed on purpose.
    Swallowed,
    /// The connection to the EHR was cut with the answer on its way.
    CutOff,
    /// The process was killed before the answer was durable.
    Killed,
}

impl Loss {
    pub const fn text(self) -> &'static str {
        match self {
            Self::Swallowed => "answer swallowed",
            Self::CutOff => "connection cut",
            Self::Killed => "gateway killed before it was durable",
        }
    }
}

/// So long an undisturbed answer takes to be durable, on a busy machine.
const COMMIT: i64 = 2_000;

/// So far an event's own record may be off.
const SLACK: i64 = 300;

impl Journal {
    pub fn begin(&self, what: What) -> Begun {
        let mut events = self.lock();
        events.push(Event { what, from: now(), until: None });
        Begun(events.len() - 1)
    }

    /// Enters what is over already.
    pub fn note(&self, what: What, from: i64) {
        let until = Some(now());
        self.lock().push(Event { what, from, until });
    }

    pub fn end(&self, begun: Begun) {
        if let Some(event) = self.lock().get_mut(begun.0) {
            event.until = Some(now());
        }
    }

    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for event in self.lock().iter() {
            *counts.entry(event.what.text()).or_default() += 1;
        }
        counts
    }

    /// Whether anything was wrong for this site then, or shortly before or after.
    pub fn disturbed(&self, site: &str, from: i64, until: i64) -> bool {
        let near = |event: &&Event| event.overlaps(from - COMMIT, until + COMMIT);
        self.lock().iter().filter(near).any(|event| event.what.site().is_none_or(|known| known == site))
    }

    /// What may have kept an answer that this site gave at that time from being durable. `swallowed`: when
    /// answers were, from which the one that explains this is taken.
    pub fn loss(&self, site: &str, answered: i64, swallowed: &mut Vec<i64>) -> Option<Loss> {
        // An answer that a slow wire carries is swallowed later.
        let near = |at: &i64| (answered - SLACK..=answered + COMMIT).contains(at);
        if let Some(place) = swallowed.iter().position(near) {
            swallowed.swap_remove(place);
            return Some(Loss::Swallowed);
        }
        let events = self.lock();
        let cut = |event: &Event| event.what == What::EhrCut(site.to_owned());
        let on_its_way = |event: &Event| (answered - SLACK..=answered + COMMIT).contains(&event.from);
        if events.iter().any(|event| cut(event) && on_its_way(event)) {
            return Some(Loss::CutOff);
        }
        let killed = events.iter().filter(|event| event.what == What::Killed && event.from >= answered - SLACK);
        let too_soon = |kill: &Event| {
            // What held the commit up meanwhile counts for nothing.
            let held: i64 = events
                .iter()
                .filter(|event| event.what.delays_commits() && event.overlaps(answered, kill.from))
                .filter(|event| event.what.site().is_none_or(|known| known == site))
                .map(|event| event.until.unwrap_or(kill.from).min(kill.from) - event.from.max(answered) + COMMIT)
                .sum();
            kill.from - answered <= COMMIT + held
        };
        killed.into_iter().any(too_soon).then_some(Loss::Killed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Event>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Milliseconds since 1970.
pub fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(events: &[(What, i64, i64)]) -> Journal {
        let event =
            |(what, from, until): &(What, i64, i64)| Event { what: what.clone(), from: *from, until: Some(*until) };
        Journal(Mutex::new(events.iter().map(event).collect()))
    }

    #[test]
    fn a_loss_needs_a_cause_at_its_time_and_place() {
        let cut = journal(&[(What::EhrCut("epic".into()), 100_000, 103_000)]);
        assert_eq!(cut.loss("epic", 99_900, &mut vec![]), Some(Loss::CutOff));
        assert_eq!(cut.loss("oracle", 99_900, &mut vec![]), None, "another EHR's cut");
        assert_eq!(cut.loss("epic", 90_000, &mut vec![]), None, "long before");
        assert_eq!(cut.loss("epic", 102_000, &mut vec![]), None, "nothing is answered over a wire that is cut");
        let killed = journal(&[(What::Killed, 100_000, 101_000)]);
        assert_eq!(killed.loss("epic", 99_000, &mut vec![]), Some(Loss::Killed));
        assert_eq!(killed.loss("epic", 97_000, &mut vec![]), None, "it was durable by then");
        let held = journal(&[(What::StoreCut, 96_000, 99_500), (What::Killed, 100_000, 101_000)]);
        assert_eq!(held.loss("epic", 97_000, &mut vec![]), Some(Loss::Killed), "nothing was durable meanwhile");
        let mut swallowed = vec![50_500];
        assert_eq!(killed.loss("epic", 50_000, &mut swallowed), Some(Loss::Swallowed));
        assert_eq!(killed.loss("epic", 50_000, &mut swallowed), None, "one swallowed answer explains one loss");
    }

    #[test]
    fn a_disturbance_has_its_time_and_place() {
        let slow = journal(&[(What::EhrSlow("epic".into()), 100_000, 103_000)]);
        assert!(slow.disturbed("epic", 90_000, 100_000) && slow.disturbed("epic", 104_000, 110_000));
        assert!(!slow.disturbed("oracle", 90_000, 110_000) && !slow.disturbed("epic", 80_000, 90_000));
    }
}
