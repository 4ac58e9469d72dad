//! How many requests of ours an EHR sees at once: one object a site in the process, never one a worker.
//!
//! The HTTP client dials anew whenever no HTTP/1 socket is idle, without bound; this is the bound.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use mantel_adapters::{
    profile::BudgetScope,
    site::{SiteId, VendorId},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::{Config, Site};

/// A site's bounds. Token, discovery and key requests have a lane of their own: a site that is slow to
/// answer FHIR requests must not keep its tokens from being refreshed.
pub struct SiteGate {
    pub fhir: Lane,
    pub auth: Lane,
}

impl SiteGate {
    pub fn new(concurrency: usize) -> Self {
        Self { fhir: Lane::new(concurrency), auth: Lane::new(auth_share(concurrency)) }
    }

    fn resize(&self, concurrency: usize) {
        self.fhir.resize(concurrency);
        self.auth.resize(auth_share(concurrency));
    }
}

/// An eighth: token requests are rare and short. At least 2, so that one slow answer blocks nobody.
const fn auth_share(concurrency: usize) -> usize {
    let eighth = concurrency / 8;
    if eighth < 2 { 2 } else { eighth }
}

/// A bounded number of exchanges.
#[derive(Clone)]
pub struct Lane(Arc<LaneState>);

struct LaneState {
    permits: Arc<Semaphore>,
    capacity: Mutex<usize>,
    /// Permits in use that are to vanish when they come back, since the bound was lowered.
    owed: AtomicUsize,
}

impl Lane {
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.clamp(1, Semaphore::MAX_PERMITS);
        Self(Arc::new(LaneState {
            permits: Arc::new(Semaphore::new(capacity)),
            capacity: Mutex::new(capacity),
            owed: AtomicUsize::new(0),
        }))
    }

    /// Waits, first come first served. The permit is held until the answer's body has ended.
    pub async fn enter(&self) -> Permit {
        // The semaphore is never closed; without a permit the bound is simply not counted.
        let permit = self.0.permits.clone().acquire_owned().await.ok();
        Permit { permit, lane: self.0.clone() }
    }

    /// Exchanges that could begin now.
    pub fn free(&self) -> usize {
        self.0.permits.available_permits()
    }

    fn resize(&self, capacity: usize) {
        let capacity = capacity.clamp(1, Semaphore::MAX_PERMITS);
        let mut now = self.0.capacity.lock().unwrap_or_else(PoisonError::into_inner);
        if capacity > *now {
            let mut add = capacity - *now;
            while add > 0 && self.0.forgive() {
                add -= 1;
            }
            self.0.permits.add_permits(add);
        } else {
            let cut = *now - capacity;
            let forgotten = self.0.permits.forget_permits(cut);
            self.0.owed.fetch_add(cut - forgotten, Ordering::Relaxed);
        }
        *now = capacity;
    }
}

impl LaneState {
    /// Takes one off what is owed; false if nothing is.
    fn forgive(&self) -> bool {
        self.owed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |owed| owed.checked_sub(1)).is_ok()
    }
}

/// The right to one exchange.
pub struct Permit {
    permit: Option<OwnedSemaphorePermit>,
    lane: Arc<LaneState>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take()
            && self.lane.forgive()
        {
            permit.forget();
        }
    }
}

/// What a site's refreshes share that nobody waits for: its name, and how many may be under way.
pub fn refresh_share(site: &Site, client_id: &str) -> (String, usize) {
    let shared_by = match BudgetKey::of(site, Some(client_id)) {
        BudgetKey::Site(id) => format!("site {id}"),
        BudgetKey::Authority(authority) => format!("authority {authority}"),
        BudgetKey::Client(vendor, id) => format!("client {vendor} {id}"),
    };
    (shared_by, auth_share(concurrency(site)))
}

/// What shares a vendor's limits (`budget.per`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum BudgetKey {
    Site(SiteId),
    Authority(String),
    Client(VendorId, String),
}

impl BudgetKey {
    fn of(site: &Site, client_id: Option<&str>) -> Self {
        match (site.profile.budget.per, client_id) {
            (BudgetScope::Authority, _) => Self::Authority(site.fhir_base.authority().to_owned()),
            (BudgetScope::ClientId, Some(id)) => Self::Client(site.vendor.clone(), id.to_owned()),
            (BudgetScope::Site, _) | (BudgetScope::ClientId, None) => Self::Site(site.id.clone()),
        }
    }
}

fn concurrency(site: &Site) -> usize {
    let vendor = site.profile.budget.concurrent.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    site.concurrency.min(vendor)
}

/// All gates of the process.
#[derive(Default)]
pub struct Gates {
    by_key: Mutex<HashMap<BudgetKey, Arc<SiteGate>>>,
}

impl Gates {
    /// The gate of a site; `client_id` counts where the vendor's limits are the client's.
    pub fn of(&self, site: &Site, client_id: Option<&str>) -> Arc<SiteGate> {
        let mut gates = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        gates
            .entry(BudgetKey::of(site, client_id))
            .or_insert_with(|| Arc::new(SiteGate::new(concurrency(site))))
            .clone()
    }

    /// Takes over a new snapshot: bounds change in place, also for exchanges under way; where sites
    /// share one, the smallest counts. Gates that nothing names any more go.
    pub fn apply(&self, config: &Config) {
        let mut bounds: HashMap<BudgetKey, usize> = HashMap::new();
        for site in config.sites.values() {
            let clients = site.registrations.iter().filter_map(|id| config.registrations.get(id));
            let keys = clients.map(|client| Some(client.client_id.as_str())).chain([None]);
            for key in keys.map(|client_id| BudgetKey::of(site, client_id)) {
                let bound = bounds.entry(key).or_insert(usize::MAX);
                *bound = concurrency(site).min(*bound);
            }
        }
        let mut gates = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        gates.retain(|key, _| bounds.contains_key(key));
        for (key, bound) in bounds {
            match gates.get(&key) {
                Some(gate) => gate.resize(bound),
                None => {
                    gates.insert(key, Arc::new(SiteGate::new(bound)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lowered_bound_counts_for_exchanges_under_way() {
        let lane = Lane::new(3);
        let (first, second) = (lane.enter().await, lane.enter().await);
        lane.resize(1);
        assert_eq!(lane.free(), 0);
        drop(first);
        assert_eq!(lane.free(), 0, "two were in use, one is allowed");
        drop(second);
        assert_eq!(lane.free(), 1);
    }

    #[tokio::test]
    async fn a_raised_bound_first_pays_what_is_owed() {
        let lane = Lane::new(2);
        let held = (lane.enter().await, lane.enter().await);
        lane.resize(1);
        lane.resize(2);
        drop(held);
        assert_eq!(lane.free(), 2);
        lane.resize(5);
        assert_eq!(lane.free(), 5);
    }
}
