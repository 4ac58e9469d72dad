//! An EHR that fails must not be asked by everybody at once, and one that works again must be noticed soon, by whoever
//! asks: a grant's backoff may be a minute long by then.
//!
//! So while a site fails, one of the grants that somebody asks for may try each second though its backoff lasts. A
//! renewal at the site lets all of them, each when it is asked for and not before its own short wait is over: what
//! fails for a reason of its own is no reason to hammer an EHR that works for the others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mantel_adapters::site::SiteId;

use crate::clock::Instant;

/// Between tries at a site that fails.
const PROBE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Outages(Mutex<HashMap<SiteId, Arc<Outage>>>);

impl Outages {
    pub fn of(&self, site: &SiteId) -> Arc<Outage> {
        let mut sites = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = sites.get(site) {
            return known.clone();
        }
        sites.entry(site.clone()).or_default().clone()
    }
}

/// What is known of a site.
#[derive(Default)]
pub(super) struct Outage(Mutex<Known>);

#[derive(Default)]
struct Known {
    renewed: Option<Instant>,
    tried: Option<Instant>,
}

impl Outage {
    /// Each change is whole even if somebody panicked beside it.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn renewed(&self, now: Instant) {
        self.known().renewed = Some(now);
    }

    /// Whether a grant that failed then may try before its backoff is over, since somebody asks for it.
    pub fn admits(&self, failed: Instant, now: Instant) -> bool {
        let mut known = self.known();
        if known.renewed.is_some_and(|at| at > failed) {
            return true;
        }
        let free = known.tried.is_none_or(|at| at + PROBE <= now);
        if free {
            known.tried = Some(now);
        }
        free
    }
}
