//! What `deaths` decides, carried out: who is refused waits, who is freed tries again, and people hear of it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mantel_adapters::{
    profile::Meaning,
    site::{RegistrationId, SiteId},
};
use tokio::sync::Notify;

use super::{
    Custody, CustodyFault, Inner, RefreshAnswer,
    deaths::{Confirmed, Deaths, FEW, HOUR, Heard, Realm, Refusals, Relief, Verdict},
    entry::Entry,
    machine::{Action, Cause, Event},
    outcome::{Answer, Attempt},
    refresh::{Case, Job, Landing, kind},
};
use crate::{
    clock::Instant,
    store::{DeathsSeen, EndReason, Grant, GrantId, GrantState},
};

#[derive(Default)]
pub(super) struct Suspects {
    deaths: Mutex<Deaths>,
    changed: Notify,
}

impl Suspects {
    /// Each change is whole even if somebody panicked beside it.
    fn deaths(&self) -> MutexGuard<'_, Deaths> {
        self.deaths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ended(&self, grant: GrantId) {
        self.deaths().ended(grant);
    }
}

impl Custody {
    /// A registration or its keys changed so long ago: for the rest of the hour no refused refresh token ends its
    /// grant at once.
    pub fn registration_changed(&self, registration: &RegistrationId, ago: Duration) {
        let left = HOUR.saturating_sub(ago);
        self.0.suspects.deaths().changed(registration, left, self.0.now());
    }

    /// An operator's word, given so long ago, that a registration's refused refresh tokens are dead, at that site or at
    /// all. Each is tried once more; whoever is refused now, or within the hour, ends. How many are tried.
    pub async fn confirm_deaths(&self, registration: &RegistrationId, site: Option<&SiteId>, ago: Duration) -> usize {
        let left = HOUR.saturating_sub(ago);
        if left.is_zero() {
            return 0;
        }
        let confirmed = self.0.suspects.deaths().confirm(registration, site, left, self.0.now());
        let Confirmed { sites, refused, waiting } = confirmed;
        let at = site.map_or("all sites", SiteId::as_str);
        tracing::warn!(%registration, at, refused = refused.len(), "an operator confirmed that refresh tokens are dead");
        self.0.suspects.changed.notify_one();
        for site in &sites {
            self.0.context.events.suspect(registration, site, false);
        }
        self.0.release(waiting);
        for grant in &refused {
            self.0.try_now(*grant).await;
        }
        refused.len()
    }

    /// What this process counts of deaths, for the other ones on its store.
    pub fn deaths_seen(&self) -> Vec<DeathsSeen> {
        self.0.suspects.deaths().seen(self.0.now())
    }

    /// Whom EHRs refuse at present as this process sees it, suspect or not.
    pub fn refusals(&self) -> Vec<Refusals> {
        self.0.suspects.deaths().refusals(self.0.now())
    }
}

impl Inner {
    /// Why nothing may be sent for a grant now: its registration is suspect, and another one tries.
    pub(super) fn denied(&self, entry: &Entry, case: &Case) -> Option<Landing> {
        let (realm, now) = (Realm::of(&case.grant), self.now());
        let mut deaths = self.suspects.deaths();
        let until = match case.grant.state {
            // Its one try is not spent for the others.
            GrantState::InDoubt { .. } => deaths.unsure(&realm, entry.id, now).filter(|(_, suspect)| *suspect)?.0,
            _ => deaths.admit(&realm, entry.id, now)?,
        };
        drop(deaths);
        Some(self.held(entry, Cause::Suspect, Some(until - now)))
    }

    /// Why the one try after an unknown outcome would be wasted now.
    pub(super) fn spared(&self, entry: &Entry, case: &Case) -> Option<Landing> {
        let now = self.now();
        let (until, suspect) = self.suspects.deaths().unsure(&Realm::of(&case.grant), entry.id, now)?;
        let cause = if suspect { Cause::Suspect } else { Cause::Presumed };
        Some(self.held(entry, cause, Some(until - now)))
    }

    /// What an answer is to be taken for: of a refusal, whether the token is believed to be dead.
    pub(super) async fn weigh(
        &self,
        entry: &Entry,
        case: &Case,
        attempt: Attempt,
        sent: Instant,
        answer: &mut RefreshAnswer,
    ) -> Result<Answer, Landing> {
        let (realm, now) = (Realm::of(&case.grant), self.now());
        let wait = match answer {
            RefreshAnswer::Tokens { .. } => {
                entry.outage.renewed(now);
                let relief = self.suspects.deaths().renewed(&realm, entry.id, sent, now);
                self.relieve(&realm, relief);
                return Ok(Answer::Tokens);
            }
            RefreshAnswer::Refused { meaning: Meaning::Dead, retry_after, detail } => {
                self.suspects.deaths().heard(&realm, detail.clone());
                retry_after
            }
            other => return Ok(kind(other)),
        };
        self.still(entry, case, attempt).await?;
        let verdict = match attempt {
            Attempt::First | Attempt::InGrace => self.verdict(&realm, entry.id, sent).await,
            // That it is gone is what the cut before explains, unless everybody is refused.
            Attempt::Last => self.suspects.deaths().last_refused(&realm, entry.id, now),
        };
        let (taken, until) = match verdict {
            Verdict::Dead => return Ok(Answer::Refused(Meaning::Dead)),
            Verdict::Presumed { until } => (Answer::Presumed, until),
            Verdict::Suspect { until, new } => {
                if new {
                    self.suspect(&realm);
                }
                (Answer::Suspect, until)
            }
        };
        *wait = Some(until.saturating_duration_since(now));
        Ok(taken)
    }

    async fn verdict(&self, realm: &Realm, grant: GrantId, sent: Instant) -> Verdict {
        let verdict = self.suspects.deaths().refused(realm, grant, sent, self.now());
        if matches!(verdict, Verdict::Presumed { .. }) {
            let live = self.context.store.live_grants_of(&realm.registration, FEW.saturating_add(1)).await;
            let few = live.is_ok_and(|live| live <= u64::from(FEW));
            if few && self.suspects.deaths().too_few(realm, grant, self.now()) {
                return Verdict::Dead;
            }
        }
        verdict
    }

    /// Reads the store again: another holder of the token may have been faster.
    async fn still(&self, entry: &Entry, case: &Case, attempt: Attempt) -> Result<(), Landing> {
        let (grant, reason) = match attempt {
            Attempt::First | Attempt::InGrace => (&case.grant, EndReason::Dead),
            Attempt::Last => (&case.grant, EndReason::LostRotation),
        };
        match self.context.store.grant(grant.id).await {
            Ok(None) => Err(Landing::Ended(EndReason::Expired)),
            Ok(Some(Grant { state: GrantState::Ended { reason, .. }, .. })) => Err(Landing::Ended(reason)),
            Ok(Some(current)) if current.generation != grant.generation => Err(self.moved(current)),
            Ok(Some(_)) => Ok(()),
            Err(error) => Err(self.unended(entry, case, reason, &error)),
        }
    }

    fn suspect(&self, realm: &Realm) {
        let Realm { registration, site, .. } = realm;
        tracing::error!(%registration, %site,
            "an EHR refuses the refresh tokens of a registration in numbers: it is suspect, and none of its grants ends; \
             look at its keys, and at whether the EHR can fetch them");
        self.context.events.suspect(registration, site, true);
        self.suspects.changed.notify_one();
    }

    fn relieve(&self, realm: &Realm, relief: Relief) {
        let Realm { registration, site, .. } = realm;
        if relief.freed {
            tracing::warn!(%registration, %site, grants = relief.retry.len(), "a suspect registration works again");
            self.context.events.suspect(registration, site, false);
            self.suspects.changed.notify_one();
        }
        self.release(relief.retry);
    }

    /// Lets grants try again: those in use at once, the others when they are asked for.
    fn release(&self, grants: Vec<GrantId>) {
        let now = self.now();
        for entry in grants.into_iter().filter_map(|id| self.table.get(id)) {
            entry.step(Event::Freed, now);
            self.wheel.set(entry.id, entry.next_wake(now));
        }
    }

    /// Refreshes a grant though nobody asks and it was held.
    async fn try_now(self: &Arc<Self>, id: GrantId) {
        let entry = match self.known(id).await {
            Ok(entry) => entry,
            Err(CustodyFault::Ended(_)) => return self.suspects.ended(id),
            Err(_) => return,
        };
        let (action, flight) = entry.step(Event::Tried, self.now());
        if action == Action::Fly {
            drop(self.start(&entry, flight, Job::Refresh));
        }
    }

    /// Counts what the other processes see, for as long as this one lives.
    pub(super) async fn hear_of_deaths(self: Arc<Self>) {
        let (me, mut present) = (self.context.replicas.me(), self.context.replicas.present());
        while let Some(Ok(())) = self.stop.run_until_cancelled(present.changed()).await {
            let Heard { suspect, hope } = {
                let present = present.borrow_and_update();
                let others = present.iter().filter(|it| it.boot != me);
                let told = others.flat_map(|it| it.facts.deaths.iter().map(|seen| (it.boot, seen)));
                self.suspects.deaths().hear(told, self.now())
            };
            for realm in &suspect {
                self.suspect(realm);
            }
            if hope {
                self.suspects.changed.notify_one();
            }
        }
    }

    /// Has each suspect registration try one grant when it is time.
    pub(super) async fn try_suspects(self: Arc<Self>) {
        loop {
            let next = self.suspects.deaths().next_try();
            let turn = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.suspects.changed.notified() => {}
                () = turn => {
                    let tries = self.suspects.deaths().tries(self.now());
                    for grant in tries {
                        self.try_now(grant).await;
                    }
                }
            }
        }
    }
}
