//! What went wrong when, as it was done: what each loss is later explained by.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use clap::ValueEnum;

/// Which kinds of faults a storm has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum FaultKind {
    /// `kill -9` of a gateway
    Kill,
    /// SIGSTOP, and later SIGCONT
    Stop,
    /// PostgreSQL restarts, three ways, or stands still
    Database,
    /// The network to an EHR is cut, silent or slow
    Ehr,
    /// The network to PostgreSQL is cut, silent or slow
    Store,
    /// An EHR rotates, and its answer is lost
    LostAnswer,
    /// A gateway's disk is full
    Disk,
    /// A gateway's clock is an hour off, and is set right again
    Clock,
}

/// A gateway, by its number.
pub type Place = usize;

/// One thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// From the kill until its successor is ready.
    Killed(Place),
    Stopped(Place),
    DiskFull(Place),
    /// From the step until the step back.
    ClockOff(Place),
    DatabaseRestarted,
    DatabasePaused,
    StoreCut,
    StoreSilent,
    StoreSlow,
    /// Of this site.
    EhrCut(String),
    EhrSilent(String),
    EhrSlow(String),
    AnswersLost(String),
    /// None of ours: a timer or a write of the storm's own came late.
    MachineSlow,
}

/// What it keeps from working.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concern<'a> {
    /// One gateway.
    Gateway(Place),
    /// The store, of all gateways.
    Store,
    /// The way to one EHR.
    Ehr(&'a str),
    /// The machine that all of it runs on.
    Machine,
}

impl What {
    pub const fn text(&self) -> &'static str {
        match self {
            Self::Killed(_) => "gateway killed",
            Self::Stopped(_) => "gateway stopped",
            Self::DiskFull(_) => "disk full",
            Self::ClockOff(_) => "clock an hour off",
            Self::DatabaseRestarted => "database restarted",
            Self::DatabasePaused => "database paused",
            Self::StoreCut => "store cut off",
            Self::StoreSilent => "store silent",
            Self::StoreSlow => "store slow",
            Self::EhrCut(_) => "EHR cut off",
            Self::EhrSilent(_) => "EHR silent",
            Self::EhrSlow(_) => "EHR slow",
            Self::AnswersLost(_) => "answers to be lost",
            Self::MachineSlow => "machine slow",
        }
    }

    pub fn concern(&self) -> Concern<'_> {
        match self {
            Self::Killed(place) | Self::Stopped(place) | Self::DiskFull(place) | Self::ClockOff(place) => {
                Concern::Gateway(*place)
            }
            Self::DatabaseRestarted | Self::DatabasePaused | Self::StoreCut | Self::StoreSilent | Self::StoreSlow => {
                Concern::Store
            }
            Self::EhrCut(site) | Self::EhrSilent(site) | Self::EhrSlow(site) | Self::AnswersLost(site) => {
                Concern::Ehr(site)
            }
            Self::MachineSlow => Concern::Machine,
        }
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
    pub fn overlaps(&self, from: i64, until: i64) -> bool {
        self.from <= until && self.until.is_none_or(|end| end >= from)
    }
}

#[derive(Default)]
pub struct Journal(Mutex<Vec<Event>>);

/// The place of an event that has begun.
#[derive(Clone, Copy)]
#[must_use]
pub struct Begun(usize);

impl Journal {
    /// To be called before the fault is made, and [`Self::end`] after it was mended: it lies between the two.
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

    pub fn events(&self) -> Vec<Event> {
        self.lock().clone()
    }

    /// All of it, a line each.
    pub fn text(&self) -> String {
        let time =
            |at: i64| jiff::Timestamp::from_millisecond(at).map_or_else(|_| at.to_string(), |at| format!("{at:.3}"));
        let line = |event: Event| {
            let until = event.until.map_or("goes on".to_owned(), time);
            format!("{} {} {until} {:?}\n", event.from, time(event.from), event.what)
        };
        self.events().into_iter().map(line).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Event>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Milliseconds since 1970.
pub fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
