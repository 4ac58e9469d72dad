//! Deaths are rationed (`custody.md`, "Every end is known"): when a refused refresh token is believed to be dead,
//! decided without IO: events with their instants in, verdicts out.
//!
//! One user's token dies; a whole registration's tokens do not, unless we or the EHR are misconfigured. So a refused
//! token is at first only *presumed* dead: its grant lives, the old access token serves while it can, and then apps
//! get 503 with `Retry-After`. The presumption ends
//!
//! - as a death, if the token is refused once more after another grant of the same client was renewed at the same
//!   site (the registration works, this token does not): within moments where people are at work; or after
//!   [`WINDOW`], when the window that could have made the registration suspect has closed; or at once where the
//!   registration has no more than [`FEW`] grants, which cannot make it suspect at all. So nobody waits ten minutes to
//!   be told to log in, but where the registration has been silent;
//! - as a life, if the token is taken;
//! - in suspicion: more than [`FEW`] grants and more than a fifth of all refreshes dead within [`WINDOW`].
//!
//! A suspect registration's grants are never ended. One of them at a time tries its own refresh token, after 1 minute,
//! then 2, 4, 8 and every 15; a renewal frees all, and each is tried again before it is believed to be dead. In the
//! hour after a change of a registration or its keys no renewal and no small number shortens the wait. An operator may
//! confirm the deaths, of a registration or of its grants at one site: for an hour, whoever is refused then ends.
//!
//! What is counted together is a client *at a site*: each hospital fetches our keys by itself, so another hospital's
//! renewals prove nothing and its deaths must not hide in a registration's thousands. The registration's sum over its
//! sites counts as well, since many small sites can die of one key; sites that are suspect by their own count are left
//! out of it.
//!
//! Counts are of this process and, of each living other one on the store, what it told last (`elsewhere`). A suspicion
//! is each process's own; where it ends by a renewal, the others try a grant at once. After a restart nothing is known
//! of oneself, and a first refusal waits as any other.
//!
//! The one try after an unknown outcome (`lost_rotation`) is not counted: that the token is gone is what our own cut
//! would explain. But it is not made while refusals stand unexplained ([`Deaths::unsure`]): it is the only one.

mod elsewhere;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use mantel_adapters::site::{RegistrationId, SiteId};

use self::elsewhere::Elsewhere;
pub use self::elsewhere::Heard;
use crate::{
    clock::Instant,
    store::{Grant, GrantId},
};

/// Within this time deaths are counted together.
pub const WINDOW: Duration = Duration::from_secs(600);

/// So many deaths are people's fate.
pub const FEW: u32 = 5;

/// More than one in so many refreshes is not.
const SHARE: u64 = 5;

/// After a change of a registration or its keys, and after an operator's word.
pub const HOUR: Duration = Duration::from_secs(3600);

/// Longest wait between the tries of a suspect registration.
const LONGEST_PROBE: Duration = Duration::from_secs(15 * 60);

/// Refusals whose user never came back are forgotten: the next one is a first one again.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// Renewals are counted in buckets of so long: a thousand a second must not be a thousand instants.
const BUCKET: Duration = Duration::from_secs(10);

/// What is counted together: who we are, and to whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Realm {
    pub registration: RegistrationId,
    pub site: SiteId,
    /// The registration's, as the grant was made: a previous client id is another client.
    pub fingerprint: String,
}

impl Realm {
    pub fn of(grant: &Grant) -> Self {
        Self {
            registration: grant.registration.clone(),
            site: grant.site.clone(),
            fingerprint: grant.fingerprint.clone(),
        }
    }
}

/// What a refused refresh token means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is dead: the grant ends.
    Dead,
    /// Counted, and to be tried again: then, or as soon as a renewal shows that the registration works.
    Presumed { until: Instant },
    /// Its registration is suspect. `new`: since this refusal.
    Suspect { until: Instant, new: bool },
}

/// What a renewal lets go.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Relief {
    /// The registration was suspect and is not any more.
    pub freed: bool,
    /// Grants that may try again.
    pub retry: Vec<GrantId>,
}

/// What stands against a client at a site, for its operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusals {
    pub realm: Realm,
    /// Grants whose refresh token was refused, and which have not ended.
    pub refused: usize,
    /// Grants that were not tried and wait with them.
    pub waiting: usize,
    /// The EHR's last refusal: its status and the profile's rule, nothing of the request.
    pub answer: Option<String>,
    pub suspicion: Option<Suspected>,
    /// Until then whoever is refused ends, by an operator's word.
    pub confirmed: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspected {
    pub since: Instant,
    /// When a grant tries next.
    pub next: Instant,
}

/// All registrations of this process.
#[derive(Default)]
pub struct Deaths {
    rations: HashMap<Realm, Ration>,
    terms: HashMap<RegistrationId, Terms>,
    elsewhere: Elsewhere,
}

/// What differs from the ordinary for a registration, until when.
#[derive(Default)]
struct Terms {
    careful: Option<Instant>,
    /// By site; none: at all of them.
    confirmed: BTreeMap<Option<SiteId>, Instant>,
}

impl Terms {
    fn careful(&self, now: Instant) -> bool {
        self.careful.is_some_and(|until| now < until)
    }

    fn confirmed(&self, site: &SiteId, now: Instant) -> Option<Instant> {
        let words = self.confirmed.iter().filter(|(at, _)| at.as_ref().is_none_or(|at| at == site));
        words.map(|(_, until)| *until).filter(|until| now < *until).max()
    }
}

#[derive(Default)]
struct Ration {
    /// Grants that are presumed dead, or believed to be and not yet ended.
    refused: BTreeMap<GrantId, Refusal>,
    /// When those died that have ended.
    ended: VecDeque<Instant>,
    renewed: VecDeque<(Instant, u64)>,
    /// Grants whose one try after an unknown outcome waits.
    spared: BTreeSet<GrantId>,
    suspicion: Option<Suspicion>,
    /// How often a renewal has ended a suspicion, and when one did last.
    freed: Option<(u64, Instant)>,
    /// What was answered to the last of the refused.
    answer: Option<String>,
}

#[derive(Clone, Copy)]
struct Refusal {
    first: Instant,
    last: Instant,
    /// When another grant's renewal was answered that was sent after the first refusal.
    vouched: Option<Instant>,
    believed: bool,
}

struct Suspicion {
    since: Instant,
    /// By its own count, not the registration's.
    own: bool,
    /// Tries refused.
    refused: u32,
    next: Instant,
    trying: Option<GrantId>,
    /// Grants that wait for a renewal, and when they were last let try.
    waiting: BTreeMap<GrantId, Option<Instant>>,
}

impl Suspicion {
    fn wait(&self) -> Duration {
        Duration::from_secs(60 << self.refused.min(4)).min(LONGEST_PROBE)
    }

    /// Lets a grant try. A try that brings nothing, or never ends, gives way to the next.
    fn try_one(&mut self, grant: GrantId, now: Instant) {
        self.trying = Some(grant);
        self.next = now + self.wait();
        self.waiting.insert(grant, Some(now));
    }
}

/// Deaths, and all refreshes that had a clear answer.
#[derive(Clone, Copy, Default)]
struct Count {
    dead: u64,
    all: u64,
}

impl Count {
    fn too_many(self) -> bool {
        self.dead > u64::from(FEW) && self.dead.saturating_mul(SHARE) > self.all
    }
}

impl Deaths {
    // ---- what happens --------------------------------------------------------------------------------------

    /// A refresh token was refused by a request that was sent then.
    pub fn refused(&mut self, realm: &Realm, grant: GrantId, sent: Instant, now: Instant) -> Verdict {
        let (careful, confirmed) = (self.careful(realm, now), self.confirmed(realm, now).is_some());
        let ration = self.rations.entry(realm.clone()).or_default();
        let refusal = ration.refuse(grant, now);
        if confirmed {
            return ration.believe(grant, now);
        }
        if let Some(suspicion) = &mut ration.suspicion {
            if suspicion.trying == Some(grant) {
                suspicion.trying = None;
                suspicion.refused = suspicion.refused.saturating_add(1);
                suspicion.next = now + suspicion.wait();
            }
            return Verdict::Suspect { until: now + LONGEST_PROBE, new: false };
        }
        if self.suspicious(realm, now) {
            return Verdict::Suspect { until: now + LONGEST_PROBE, new: true };
        }
        let closed = now >= refusal.first + WINDOW;
        let proven = !careful && refusal.vouched.is_some_and(|at| at <= sent);
        let ration = self.rations.entry(realm.clone()).or_default();
        if refusal.believed || closed || proven {
            return ration.believe(grant, now);
        }
        Verdict::Presumed { until: refusal.first + WINDOW }
    }

    /// What the EHR said as it refused, for the operator.
    pub fn heard(&mut self, realm: &Realm, answer: String) {
        self.rations.entry(realm.clone()).or_default().answer = Some(answer);
    }

    /// The registration was found to have no more than [`FEW`] grants: whether the presumed death is one.
    pub fn too_few(&mut self, realm: &Realm, grant: GrantId, now: Instant) -> bool {
        let careful = self.careful(realm, now);
        let Some(ration) = self.rations.get_mut(realm) else { return false };
        let few = ration.suspicion.is_none() && ration.refused.contains_key(&grant) && !careful;
        if few {
            ration.believe(grant, now);
        }
        few
    }

    /// The one try after an unknown outcome was refused: that is not counted, and believed unless all are refused.
    pub fn last_refused(&mut self, realm: &Realm, grant: GrantId, now: Instant) -> Verdict {
        match self.rations.get_mut(realm) {
            Some(ration) if ration.suspicion.is_some() => {
                ration.spared.insert(grant);
                Verdict::Suspect { until: now + LONGEST_PROBE, new: false }
            }
            _ => Verdict::Dead,
        }
    }

    /// A refresh that was sent then was answered with tokens.
    pub fn renewed(&mut self, realm: &Realm, grant: GrantId, sent: Instant, now: Instant) -> Relief {
        let ration = self.rations.entry(realm.clone()).or_default();
        ration.renew(grant, now);
        // Sent before, it says nothing of what has happened since.
        if ration.suspicion.as_ref().is_some_and(|suspicion| sent >= suspicion.since) {
            let times = ration.freed.map_or(0, |(times, _)| times);
            ration.freed = Some((times.saturating_add(1), now));
            return Relief { freed: true, retry: ration.free() };
        }
        if ration.suspicion.is_some() {
            return Relief::default();
        }
        let mut retry = Vec::new();
        for (id, refusal) in &mut ration.refused {
            if refusal.vouched.is_none() && refusal.first <= sent {
                refusal.vouched = Some(now);
                retry.push(*id);
            }
        }
        if ration.unexplained(now).is_none() {
            retry.extend(std::mem::take(&mut ration.spared));
        }
        Relief { freed: false, retry }
    }

    /// A grant has ended, whyever: it is not waited for any more.
    pub fn ended(&mut self, grant: GrantId) {
        for ration in self.rations.values_mut() {
            if let Some(refusal) = ration.refused.remove(&grant).filter(|refusal| refusal.believed) {
                ration.ended.push_back(refusal.last);
            }
            ration.spared.remove(&grant);
            if let Some(suspicion) = &mut ration.suspicion {
                suspicion.waiting.remove(&grant);
            }
        }
    }

    // ---- what is asked -------------------------------------------------------------------------------------

    /// Whether a refresh may be sent. Else its grant waits: until then, or until it is let go before.
    pub fn admit(&mut self, realm: &Realm, grant: GrantId, now: Instant) -> Option<Instant> {
        let suspicion = self.rations.get_mut(realm)?.suspicion.as_mut()?;
        if suspicion.trying == Some(grant) {
            return None;
        }
        if now >= suspicion.next {
            suspicion.try_one(grant, now);
            return None;
        }
        suspicion.waiting.entry(grant).or_default();
        Some(now + LONGEST_PROBE)
    }

    /// Whether the one try after an unknown outcome would be wasted now: until when it waits, and whether that
    /// is for suspicion.
    pub fn unsure(&mut self, realm: &Realm, grant: GrantId, now: Instant) -> Option<(Instant, bool)> {
        let ration = self.rations.get_mut(realm)?;
        let until = match &ration.suspicion {
            Some(_) => (now + LONGEST_PROBE, true),
            None => (ration.unexplained(now)?, false),
        };
        ration.spared.insert(grant);
        Some(until)
    }

    /// When some suspect registration is to try.
    pub fn next_try(&self) -> Option<Instant> {
        let suspicions = self.rations.values().filter_map(|ration| ration.suspicion.as_ref());
        suspicions.map(|suspicion| suspicion.next).min()
    }

    /// The grants that are to try now, one for each suspect registration whose time has come: one that has not tried
    /// yet, else the one whose try is the oldest.
    pub fn tries(&mut self, now: Instant) -> Vec<GrantId> {
        let mut tries = Vec::new();
        for ration in self.rations.values_mut() {
            let Ration { refused, suspicion: Some(suspicion), .. } = ration else { continue };
            if now < suspicion.next {
                continue;
            }
            let refusals = refused.iter().map(|(id, refusal)| (Some(refusal.last), *id));
            let waiting = suspicion.waiting.iter().filter(|(id, _)| !refused.contains_key(id));
            match refusals.chain(waiting.map(|(id, tried)| (*tried, *id))).min() {
                Some((_, id)) => {
                    // It may bring nothing: the next time is another's turn.
                    if let Some(refusal) = refused.get_mut(&id) {
                        refusal.last = now;
                    }
                    suspicion.try_one(id, now);
                    tries.push(id);
                }
                // Nobody waits: the next to come tries.
                None => suspicion.next = now + suspicion.wait(),
            }
        }
        tries
    }

    /// Whom EHRs refuse at present, suspect or not.
    pub fn refusals(&self, now: Instant) -> Vec<Refusals> {
        let standing = self.rations.iter().filter(|(_, it)| it.suspicion.is_some() || !it.refused.is_empty());
        let mut all: Vec<_> = standing
            .map(|(realm, ration)| {
                let waits = |id: &&GrantId| !ration.refused.contains_key(id);
                let waiting = ration.suspicion.iter().flat_map(|suspicion| suspicion.waiting.keys());
                let waiting: BTreeSet<_> = waiting.chain(&ration.spared).filter(waits).collect();
                let suspected = |it: &Suspicion| Suspected { since: it.since, next: it.next };
                Refusals {
                    realm: realm.clone(),
                    refused: ration.refused.len(),
                    waiting: waiting.len(),
                    answer: ration.answer.clone(),
                    suspicion: ration.suspicion.as_ref().map(suspected),
                    confirmed: self.confirmed(realm, now),
                }
            })
            .collect();
        all.sort_by(|a, b| a.realm.cmp(&b.realm));
        all
    }

    fn careful(&self, realm: &Realm, now: Instant) -> bool {
        self.terms.get(&realm.registration).is_some_and(|terms| terms.careful(now))
    }

    fn confirmed(&self, realm: &Realm, now: Instant) -> Option<Instant> {
        self.terms.get(&realm.registration)?.confirmed(&realm.site, now)
    }

    // ---- what people say -----------------------------------------------------------------------------------

    /// The registration or its keys changed, so long before `now` that this much of the hour is left.
    pub fn changed(&mut self, registration: &RegistrationId, left: Duration, now: Instant) {
        self.terms.entry(registration.clone()).or_default().careful = Some(now + left.min(HOUR));
    }

    /// An operator confirms the deaths, at that site or at all: who is refused while so much of the hour is left ends.
    /// The realms that were suspect, the grants that were refused, to be tried at once, and those that only waited.
    pub fn confirm(
        &mut self,
        registration: &RegistrationId,
        site: Option<&SiteId>,
        left: Duration,
        now: Instant,
    ) -> Confirmed {
        let terms = self.terms.entry(registration.clone()).or_default();
        terms.confirmed.retain(|_, until| now < *until);
        terms.confirmed.insert(site.cloned(), now + left.min(HOUR));
        let mut confirmed = Confirmed::default();
        let meant = |realm: &Realm| realm.registration == *registration && site.is_none_or(|site| *site == realm.site);
        for (realm, ration) in self.rations.iter_mut().filter(|(realm, _)| meant(realm)) {
            confirmed.refused.extend(ration.refused.keys());
            if ration.suspicion.is_some() {
                confirmed.sites.push(realm.site.clone());
            }
            confirmed.waiting.extend(ration.free());
        }
        confirmed.waiting.retain(|id| !confirmed.refused.contains(id));
        confirmed
    }

    fn suspect(&mut self, realm: &Realm, own: bool, now: Instant) {
        let mut suspicion =
            Suspicion { since: now, own, refused: 0, next: now, trying: None, waiting: BTreeMap::new() };
        suspicion.next = now + suspicion.wait();
        self.rations.entry(realm.clone()).or_default().suspicion = Some(suspicion);
    }

    /// Begins a suspicion, if too many are dead.
    fn suspicious(&mut self, realm: &Realm, now: Instant) -> bool {
        let own = self.total(realm, now).too_many();
        let all = own || self.count(&realm.registration, now).too_many();
        if all {
            self.suspect(realm, own, now);
        }
        all
    }

    /// The registration's, over its sites.
    fn count(&mut self, registration: &RegistrationId, now: Instant) -> Count {
        let own = self.rations.keys().filter(|realm| realm.registration == *registration);
        let mut realms: BTreeSet<Realm> = own.chain(self.elsewhere.realms(registration)).cloned().collect();
        realms.retain(|realm| {
            let suspicion = self.rations.get(realm).and_then(|ration| ration.suspicion.as_ref());
            !suspicion.is_some_and(|suspicion| suspicion.own)
        });
        realms.iter().fold(Count::default(), |sum, realm| {
            let Count { dead, all } = self.total(realm, now);
            Count { dead: sum.dead.saturating_add(dead), all: sum.all.saturating_add(all) }
        })
    }
}

/// What an operator's word sets going.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Confirmed {
    pub sites: Vec<SiteId>,
    pub refused: BTreeSet<GrantId>,
    pub waiting: Vec<GrantId>,
}

impl Refusal {
    /// Refusals count for a window; those that no renewal has followed count until one does.
    fn counts(&self, now: Instant) -> bool {
        self.vouched.is_none() || now <= self.last + WINDOW
    }
}

impl Ration {
    fn refuse(&mut self, grant: GrantId, now: Instant) -> Refusal {
        self.refused.retain(|id, refusal| *id == grant || now < refusal.last + STALE);
        let fresh = Refusal { first: now, last: now, vouched: None, believed: false };
        let refusal = self.refused.entry(grant).or_insert(fresh);
        refusal.last = now;
        *refusal
    }

    fn believe(&mut self, grant: GrantId, now: Instant) -> Verdict {
        if let Some(refusal) = self.refused.get_mut(&grant) {
            (refusal.believed, refusal.last) = (true, now);
        }
        Verdict::Dead
    }

    fn renew(&mut self, grant: GrantId, now: Instant) {
        self.refused.remove(&grant);
        self.spared.remove(&grant);
        self.prune(now);
        match self.renewed.back_mut() {
            Some((began, count)) if now < *began + BUCKET => *count += 1,
            _ => self.renewed.push_back((now, 1)),
        }
    }

    fn prune(&mut self, now: Instant) {
        while self.renewed.front().is_some_and(|(began, _)| *began + WINDOW <= now) {
            self.renewed.pop_front();
        }
        while self.ended.front().is_some_and(|at| *at + WINDOW < now) {
            self.ended.pop_front();
        }
    }

    fn count(&mut self, now: Instant) -> Count {
        self.prune(now);
        let dead = self.refused.values().filter(|refusal| refusal.counts(now)).count() + self.ended.len();
        let dead = u64::try_from(dead).unwrap_or(u64::MAX);
        Count { dead, all: dead.saturating_add(self.renewed.iter().map(|(_, count)| count).sum()) }
    }

    /// Until when refusals stand that no renewal has followed.
    fn unexplained(&self, now: Instant) -> Option<Instant> {
        let open = self.refused.values().filter(|refusal| refusal.vouched.is_none() && !refusal.believed);
        open.map(|refusal| refusal.first + WINDOW).filter(|until| now < *until).max()
    }

    /// Ends the suspicion: all that waited may try, and what was counted counts no more.
    fn free(&mut self) -> Vec<GrantId> {
        let waiting = self.suspicion.take().map(|suspicion| suspicion.waiting).unwrap_or_default();
        let mut freed: BTreeSet<GrantId> = std::mem::take(&mut self.refused).into_keys().collect();
        freed.extend(waiting.into_keys());
        freed.extend(std::mem::take(&mut self.spared));
        freed.into_iter().collect()
    }
}

#[cfg(test)]
#[path = "deaths_tests.rs"]
mod tests;
