//! What operators see of registrations that EHRs refuse, and what they say of them. The word that is given to
//! one process reaches the others by what it shows of itself.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use mantel_adapters::site::{RegistrationId, SiteId};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::commands::{DeathsToldOf, ProcessRefusals, Registrations},
    clock::{Instant, SharedClock, Timestamp},
    config::Config,
    custody::{Custody, HOUR, Refusals, Suspected},
    replicas::Replicas,
    store::{DeathsConfirmed, DeathsSeen, RefusedClient, SuspectClient},
};

/// So many are shown to the other processes each second; the rest is told where they are counted.
const SHOWN: usize = 64;

pub(super) struct Registrar {
    config: Arc<ArcSwap<Config>>,
    custody: Custody,
    clock: SharedClock,
    replicas: Replicas,
    /// What was told to this process within the hour.
    told: Mutex<Vec<DeathsConfirmed>>,
}

impl Registrar {
    pub fn new(config: Arc<ArcSwap<Config>>, custody: Custody, clock: SharedClock, replicas: Replicas) -> Self {
        Self { config, custody, clock, replicas, told: Mutex::default() }
    }

    /// Each change is whole even if somebody panicked beside it.
    fn words(&self) -> MutexGuard<'_, Vec<DeathsConfirmed>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was told to this process and holds still.
    pub fn told(&self) -> Vec<DeathsConfirmed> {
        let now = self.clock.now();
        let mut words = self.words();
        words.retain(|word| word.at.until(now) < HOUR);
        words.clone()
    }

    /// Whom EHRs refuse, for the other processes' operators: those first that need one.
    pub fn shown(&self) -> Vec<RefusedClient> {
        let mut refused = self.refused();
        refused.sort_by_key(|it| it.suspect.is_none());
        refused.truncate(SHOWN);
        refused
    }

    pub fn deaths_seen(&self) -> Vec<DeathsSeen> {
        self.custody.deaths_seen()
    }

    fn refused(&self) -> Vec<RefusedClient> {
        let (config, now, wall) = (self.config.load(), self.clock.monotonic(), self.clock.now());
        self.custody.refusals().into_iter().map(|it| told_of(&config, it, now, wall)).collect()
    }

    /// Hears what is told to the other processes, until `stop`.
    pub async fn hear(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.replicas.changes();
        let mut heard = BTreeSet::new();
        loop {
            let live = changes.borrow_and_update().clone();
            let others = live.iter().filter(|it| it.boot != self.replicas.me());
            for word in others.flat_map(|it| &it.facts.confirmed) {
                if heard.insert(word.clone()) {
                    let ago = word.at.until(self.clock.now());
                    self.custody.confirm_deaths(&word.registration, word.site.as_ref(), ago).await;
                }
            }
            let now = self.clock.now();
            heard.retain(|word| word.at.until(now) < HOUR);
            if !matches!(stop.run_until_cancelled(changes.changed()).await, Some(Ok(()))) {
                return;
            }
        }
    }

    /// Why a word would be of nothing that there is.
    fn unknown(&self, registration: &RegistrationId, site: Option<&SiteId>) -> Option<String> {
        let config = self.config.load();
        if !config.registrations.contains_key(registration) {
            let known = names(config.registrations.keys().map(RegistrationId::as_str));
            return Some(format!("there is no registration \"{registration}\": expected one of {known}"));
        }
        let site = site?;
        let uses = config.sites.values().filter(|site| site.registrations.contains(registration));
        let uses: Vec<_> = uses.map(|site| &site.id).collect();
        // A grant may be older than the configuration.
        let refused = || self.custody.refusals().iter().any(|it| it.realm.site == *site);
        if uses.contains(&site) || refused() {
            return None;
        }
        let known = names(uses.into_iter().map(SiteId::as_str));
        Some(format!("the registration \"{registration}\" is not used at a site \"{site}\": expected one of {known}"))
    }
}

fn names<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<_> = names.collect();
    if names.is_empty() { "none, since none is configured".into() } else { names.join(", ") }
}

fn told_of(config: &Config, refusals: Refusals, now: Instant, wall: Timestamp) -> RefusedClient {
    let Refusals { realm, refused, waiting, answer, suspicion, confirmed } = refusals;
    let registration = config.registrations.get(&realm.registration);
    let client_id = registration.and_then(|it| it.client_of(&realm.fingerprint)).map(|(client_id, _)| client_id);
    let at = |at: Instant| match at.checked_duration_since(now) {
        Some(ahead) => wall.after(ahead),
        None => wall.before(now.saturating_duration_since(at)),
    };
    RefusedClient {
        client_id: client_id.unwrap_or("no longer configured").into(),
        registration: realm.registration,
        site: realm.site,
        refused,
        waiting,
        answer,
        suspect: suspicion.map(|Suspected { since, next }| SuspectClient { since: at(since), next_try: at(next) }),
        confirmed_until: confirmed.map(at),
    }
}

#[async_trait]
impl Registrations for Registrar {
    fn refusals(&self) -> Vec<ProcessRefusals> {
        let own = ProcessRefusals { boot: self.replicas.me(), refused: self.refused() };
        let live = self.replicas.live();
        let others = live.iter().filter(|it| it.boot != own.boot);
        let others: Vec<_> =
            others.map(|it| ProcessRefusals { boot: it.boot, refused: it.facts.refused.clone() }).collect();
        std::iter::once(own).chain(others).collect()
    }

    async fn confirm_deaths(
        &self,
        registration: &RegistrationId,
        site: Option<&SiteId>,
    ) -> Result<DeathsToldOf, String> {
        if let Some(unknown) = self.unknown(registration, site) {
            return Err(unknown);
        }
        let at = self.clock.now();
        self.words().push(DeathsConfirmed { registration: registration.clone(), site: site.cloned(), at });
        let tried = self.custody.confirm_deaths(registration, site, std::time::Duration::ZERO).await;
        let others = self.replicas.live().len().saturating_sub(1);
        Ok(DeathsToldOf { tried, others })
    }
}
