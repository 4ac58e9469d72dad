//! What the other processes on the store have seen: of an EHR that refuses a whole registration each of them may see
//! no more than people's fate.
//!
//! A process tells what it counts, and names the first of the grants: apps that ask now this process and now that one
//! are refused by each, and one death must not be counted three times. What is not named is counted once, by the
//! process that has most of it: rather too few than too many, since a suspicion keeps others waiting.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use mantel_adapters::site::RegistrationId;

use super::{Count, Deaths, Ration, Realm};
use crate::{
    clock::Instant,
    store::{BootId, DeathsSeen, GrantId},
};

/// Grants that a process names of a client at a site.
const NAMED: usize = 16;

/// Clients at sites of which a process tells: those with most deaths.
const TOLD: usize = 64;

/// So long a process tells that a client is not suspect any more.
const NEWS: Duration = Duration::from_secs(60);

/// Of all the other processes.
#[derive(Default)]
pub(super) struct Elsewhere {
    clients: BTreeMap<Realm, Seen>,
    /// How often a suspicion has ended at a process, by a renewal.
    freed: HashMap<(BootId, Realm), u64>,
}

/// Of one client at one site.
#[derive(Default)]
struct Seen {
    refused: BTreeSet<GrantId>,
    /// Dead besides those.
    more: u64,
    renewed: u64,
}

/// What becomes of what the others tell.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Suspect from now on.
    pub suspect: Vec<Realm>,
    /// Whether a suspect client is to be tried at once: it works for another process.
    pub hope: bool,
}

impl Deaths {
    /// What this process tells the others.
    pub fn seen(&mut self, now: Instant) -> Vec<DeathsSeen> {
        let told = |(realm, ration): (&Realm, &mut Ration)| {
            let Count { dead, all } = ration.count(now);
            let freed = ration.freed.filter(|(_, at)| now < *at + NEWS).map_or(0, |(times, _)| times);
            if dead == 0 && freed == 0 {
                return None;
            }
            let counted = ration.refused.iter().filter(|(_, refusal)| refusal.counts(now));
            let refused: Vec<_> = counted.map(|(id, _)| *id).take(NAMED).collect();
            Some(DeathsSeen {
                registration: realm.registration.clone(),
                site: realm.site.clone(),
                fingerprint: realm.fingerprint.clone(),
                more: dead.saturating_sub(u64::try_from(refused.len()).unwrap_or(u64::MAX)),
                refused,
                renewed: all.saturating_sub(dead),
                freed,
            })
        };
        let mut seen: Vec<_> = self.rations.iter_mut().filter_map(told).collect();
        seen.sort_by_key(|it| Reverse((it.more, it.refused.len())));
        seen.truncate(TOLD);
        seen
    }

    /// Takes what each of the other processes tells now in the place of what they told before.
    pub fn hear<'s>(&mut self, others: impl Iterator<Item = (BootId, &'s DeathsSeen)>, now: Instant) -> Heard {
        let (mut elsewhere, mut heard) = (Elsewhere::default(), Heard::default());
        for (boot, told) in others {
            let (registration, site) = (told.registration.clone(), told.site.clone());
            let realm = Realm { registration, site, fingerprint: told.fingerprint.clone() };
            let seen = elsewhere.clients.entry(realm.clone()).or_default();
            seen.refused.extend(&told.refused);
            seen.more = seen.more.max(told.more);
            seen.renewed = seen.renewed.saturating_add(told.renewed);
            if told.freed > 0 {
                let suspicion = self.rations.get_mut(&realm).and_then(|ration| ration.suspicion.as_mut());
                let key = (boot, realm);
                if let Some(suspicion) = suspicion.filter(|_| self.elsewhere.freed.get(&key) != Some(&told.freed)) {
                    suspicion.next = now;
                    heard.hope = true;
                }
                elsewhere.freed.insert(key, told.freed);
            }
        }
        self.elsewhere = elsewhere;
        for realm in self.unsuspected() {
            if self.elsewhere.tells_of(&realm.registration)
                && self.confirmed(&realm, now).is_none()
                && self.suspicious(&realm, now)
            {
                heard.suspect.push(realm);
            }
        }
        heard
    }

    /// Clients of whose grants some are refused here and not believed to be dead.
    fn unsuspected(&self) -> Vec<Realm> {
        let open =
            |ration: &Ration| ration.suspicion.is_none() && ration.refused.values().any(|refusal| !refusal.believed);
        self.rations.iter().filter(|(_, ration)| open(ration)).map(|(realm, _)| realm.clone()).collect()
    }

    /// What all processes have counted of a client at a site.
    pub(super) fn total(&mut self, realm: &Realm, now: Instant) -> Count {
        let mut ration = self.rations.get_mut(realm);
        let own = ration.as_mut().map(|ration| ration.count(now)).unwrap_or_default();
        let Some(seen) = self.elsewhere.clients.get(realm) else { return own };
        let here = |id: &&GrantId| ration.as_ref().is_some_and(|ration| ration.refused.contains_key(*id));
        let further = seen.refused.iter().filter(|id| !here(id)).count();
        let further = u64::try_from(further).unwrap_or(u64::MAX).saturating_add(seen.more);
        let renewed = (own.all - own.dead).saturating_add(seen.renewed);
        let dead = own.dead.saturating_add(further);
        Count { dead, all: dead.saturating_add(renewed) }
    }
}

impl Elsewhere {
    fn tells_of(&self, registration: &RegistrationId) -> bool {
        self.clients.keys().any(|realm| realm.registration == *registration)
    }

    /// The clients of that registration, at all sites.
    pub(super) fn realms<'r>(&'r self, registration: &'r RegistrationId) -> impl Iterator<Item = &'r Realm> {
        self.clients.keys().filter(move |realm| realm.registration == *registration)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::{
        super::{FEW, Verdict, WINDOW},
        *,
    };

    fn id(n: u32) -> GrantId {
        GrantId(Uuid::from_u128(n.into()))
    }

    fn realm() -> Realm {
        let (registration, site) = ("viewer-epic".parse().unwrap(), "general".parse().unwrap());
        Realm { registration, site, fingerprint: "epic|client|/oauth/callback/viewer-epic".into() }
    }

    /// Processes that tell each other what they see.
    struct Wards {
        processes: Vec<Deaths>,
        now: Instant,
    }

    impl Wards {
        fn new() -> Self {
            Self { processes: (0..3).map(|_| Deaths::default()).collect(), now: Instant::now() }
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
        }

        fn refuse(&mut self, process: usize, grant: u32) -> Verdict {
            self.processes[process].refused(&realm(), id(grant), self.now, self.now)
        }

        fn renew(&mut self, process: usize, grant: u32) {
            self.processes[process].renewed(&realm(), id(grant), self.now, self.now);
        }

        fn tell(&mut self) -> Vec<Heard> {
            let seen: Vec<_> = self.processes.iter_mut().map(|it| it.seen(self.now)).collect();
            let boot = |n: usize| BootId(Uuid::from_u128(n as u128));
            let mut heard = Vec::new();
            for (n, process) in self.processes.iter_mut().enumerate() {
                let others = seen.iter().enumerate().filter(|(other, _)| *other != n);
                let others = others.flat_map(|(other, seen)| seen.iter().map(move |it| (boot(other), it)));
                heard.push(process.hear(others, self.now));
            }
            heard
        }
    }

    fn suspect() -> Heard {
        Heard { suspect: vec![realm()], hope: false }
    }

    #[test]
    fn what_is_fate_to_each_is_suspect_to_all() {
        let mut wards = Wards::new();
        for n in 0..FEW + 1 {
            let until = wards.now + WINDOW;
            assert_eq!(wards.refuse(n as usize % 3, n), Verdict::Presumed { until }, "each sees two");
        }
        assert_eq!(wards.tell(), [suspect(), suspect(), suspect()]);
        assert_eq!(wards.tell(), [Heard::default(), Heard::default(), Heard::default()], "once");
        wards.pass(WINDOW);
        assert!(matches!(wards.refuse(0, 0), Verdict::Suspect { new: false, .. }));
    }

    #[test]
    fn who_has_seen_none_yet_believes_the_others() {
        let mut wards = Wards::new();
        for n in 0..FEW {
            wards.refuse(0, n);
        }
        wards.tell();
        assert!(matches!(wards.refuse(1, FEW), Verdict::Suspect { new: true, .. }));
    }

    #[test]
    fn one_death_is_counted_once_wherever_it_is_seen() {
        let mut wards = Wards::new();
        for process in 0..3 {
            for n in 0..FEW {
                wards.refuse(process, n);
            }
        }
        assert_eq!(wards.tell(), [Heard::default(), Heard::default(), Heard::default()]);
    }

    #[test]
    fn renewals_elsewhere_make_deaths_fate() {
        let mut wards = Wards::new();
        for n in 0..FEW + 1 {
            wards.refuse(n as usize % 3, n);
        }
        // Less than a fifth of all then.
        for n in 0..FEW * 4 + 5 {
            wards.renew(n as usize % 3, 100 + n);
        }
        assert_eq!(wards.tell(), [Heard::default(), Heard::default(), Heard::default()]);
    }

    #[test]
    fn a_process_that_is_gone_counts_no_more() {
        let mut wards = Wards::new();
        for n in 0..FEW {
            wards.refuse(0, n);
        }
        wards.tell();
        wards.processes[0] = Deaths::default();
        wards.tell();
        assert!(matches!(wards.refuse(1, FEW), Verdict::Presumed { .. }));
    }

    #[test]
    fn what_works_for_one_is_tried_by_all_at_once_and_only_once() {
        let mut wards = Wards::new();
        for n in 0..FEW + 1 {
            wards.refuse(n as usize % 3, n);
        }
        wards.tell();
        wards.pass(Duration::from_secs(50));
        let now = wards.now;
        assert!(wards.processes[1].tries(now).is_empty());
        assert!(wards.processes[0].renewed(&realm(), id(0), now, now).freed);
        let hope = || Heard { suspect: Vec::new(), hope: true };
        assert_eq!(wards.tell()[1..], [hope(), hope()]);
        for process in [1, 2] {
            assert_eq!(wards.processes[process].tries(now).len(), 1);
        }
        assert_eq!(wards.tell()[1..], [Heard::default(), Heard::default()]);
    }
}
