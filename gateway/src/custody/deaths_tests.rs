//! Each rule by itself, and all of them against whatever may happen.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn id(n: u128) -> GrantId {
    GrantId(Uuid::from_u128(n))
}

fn realm(registration: &str, site: &str) -> Realm {
    Realm {
        registration: registration.parse().unwrap(),
        site: site.parse().unwrap(),
        fingerprint: format!("epic|client|/oauth/callback/{registration}"),
    }
}

/// One client at one site, and its seconds.
struct Ward {
    deaths: Deaths,
    realm: Realm,
    start: Instant,
    now: u64,
}

impl Ward {
    fn new() -> Self {
        Self { deaths: Deaths::default(), realm: realm("viewer-epic", "general"), start: Instant::now(), now: 0 }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.start + secs(seconds)
    }

    fn refuse(&mut self, grant: u128) -> Verdict {
        let now = self.at(self.now);
        self.deaths.refused(&self.realm, id(grant), now, now)
    }

    fn renew(&mut self, grant: u128) -> Relief {
        let now = self.at(self.now);
        self.deaths.renewed(&self.realm, id(grant), now, now)
    }

    fn admit(&mut self, grant: u128) -> Option<Instant> {
        self.deaths.admit(&self.realm, id(grant), self.at(self.now))
    }

    /// More deaths than people's fate.
    fn suspect() -> Self {
        let mut ward = Self::new();
        for n in 0..5 {
            assert_eq!(ward.refuse(n), Verdict::Presumed { until: ward.at(600) });
        }
        assert!(matches!(ward.refuse(5), Verdict::Suspect { new: true, .. }));
        ward
    }
}

#[test]
fn a_death_is_believed_once_the_registration_has_worked_since() {
    let mut ward = Ward::new();
    assert_eq!(ward.refuse(1), Verdict::Presumed { until: ward.at(600) });
    ward.now = 3;
    assert_eq!(ward.refuse(1), Verdict::Presumed { until: ward.at(600) }, "nothing new is known");
    // Sent before the first refusal: it says nothing of what has been since.
    let old = ward.deaths.renewed(&ward.realm, id(2), ward.start - secs(1), ward.at(3));
    assert_eq!(old, Relief::default());
    ward.now = 4;
    assert_eq!(ward.renew(2), Relief { freed: false, retry: vec![id(1)] });
    assert_eq!(ward.renew(3), Relief::default(), "once is enough");
    let sent = ward.at(3);
    let unproven = ward.deaths.refused(&ward.realm, id(1), sent, ward.at(5));
    assert_eq!(unproven, Verdict::Presumed { until: ward.at(600) }, "sent before the renewal");
    ward.now = 6;
    assert_eq!(ward.refuse(1), Verdict::Dead);
}

#[test]
fn a_death_is_believed_when_its_window_has_closed() {
    let mut ward = Ward::new();
    ward.refuse(1);
    ward.now = 599;
    assert!(matches!(ward.refuse(1), Verdict::Presumed { .. }));
    ward.now = 600;
    assert_eq!(ward.refuse(1), Verdict::Dead);
}

#[test]
fn a_life_is_no_death() {
    let mut ward = Ward::new();
    ward.refuse(1);
    ward.renew(1);
    ward.now = 599;
    assert_eq!(ward.refuse(1), Verdict::Presumed { until: ward.at(1199) }, "it begins anew");
}

#[test]
fn a_handful_of_grants_waits_for_nothing_unless_something_changed() {
    let mut ward = Ward::new();
    ward.refuse(1);
    assert!(ward.deaths.too_few(&ward.realm, id(1), ward.start));
    ward.deaths.changed(&ward.realm.registration, secs(1800), ward.start);
    for (now, believed) in [(0, false), (1799, false), (1800, true)] {
        ward.now = now;
        ward.refuse(2 + u128::from(now));
        let at = ward.at(now);
        assert_eq!(ward.deaths.too_few(&ward.realm, id(2 + u128::from(now)), at), believed, "{now}");
    }
}

#[test]
fn within_an_hour_of_a_change_the_first_one_waits_whatever_is_renewed() {
    let mut ward = Ward::new();
    ward.deaths.changed(&ward.realm.registration, HOUR, ward.start);
    ward.refuse(1);
    ward.now = 1;
    ward.renew(2);
    ward.now = 2;
    assert_eq!(ward.refuse(1), Verdict::Presumed { until: ward.at(600) });
    ward.now = 600;
    assert_eq!(ward.refuse(1), Verdict::Dead);
}

#[test]
fn many_deaths_among_more_renewals_are_believed() {
    let mut ward = Ward::new();
    for n in 0..20 {
        ward.refuse(n);
        // 3 % of them.
        (0..33).for_each(|other| drop(ward.renew(1000 + other)));
    }
    ward.now = 1;
    ward.renew(1000);
    ward.now = 2;
    for n in 0..20 {
        assert_eq!(ward.refuse(n), Verdict::Dead, "{n}");
    }
}

#[test]
fn a_fifth_of_all_refreshes_is_the_bound() {
    for (renewals, suspect) in [(24, false), (23, true)] {
        let mut ward = Ward::new();
        (0..renewals).for_each(|other| drop(ward.renew(1000 + other)));
        for n in 0..5 {
            ward.refuse(n);
        }
        assert_eq!(matches!(ward.refuse(5), Verdict::Suspect { .. }), suspect, "6 of {}", renewals + 6);
    }
}

#[test]
fn renewals_of_long_ago_do_not_hide_deaths() {
    let mut ward = Ward::new();
    (0..1000).for_each(|other| drop(ward.renew(1000 + other)));
    ward.now = 620;
    for n in 0..5 {
        ward.refuse(n);
    }
    assert!(matches!(ward.refuse(5), Verdict::Suspect { .. }));
}

#[test]
fn a_silence_makes_old_refusals_no_younger_and_no_less() {
    let mut ward = Ward::new();
    // Hidden at first by what went well before.
    (0..100).for_each(|other| drop(ward.renew(1000 + other)));
    ward.now = 1;
    for n in 0..20 {
        assert!(matches!(ward.refuse(n), Verdict::Presumed { .. }), "{n}");
    }
    ward.now = 700;
    assert!(matches!(ward.refuse(0), Verdict::Suspect { new: true, .. }), "none of them ends");
}

#[test]
fn a_suspect_registration_tries_one_at_a_time_from_one_minute_to_fifteen() {
    let mut ward = Ward::suspect();
    assert!(ward.admit(9).is_some(), "one that was never refused waits too");
    let mut tried = Vec::new();
    let mut at = 0;
    for minutes in [1, 2, 4, 8, 15, 15, 15, 15] {
        assert_eq!(ward.deaths.next_try(), Some(ward.at(at + 60 * minutes)), "{minutes} min after {at} s");
        let early = ward.at(at + 60 * minutes - 1);
        assert_eq!(ward.deaths.tries(early), []);
        at += 60 * minutes;
        ward.now = at;
        let tries = ward.deaths.tries(ward.at(at));
        assert_eq!(tries.len(), 1);
        let GrantId(one) = tries[0];
        assert_eq!(ward.admit(one.as_u128()), None);
        assert_eq!(ward.admit(20).is_none(), tries == [id(20)], "only that one");
        assert!(matches!(ward.refuse(one.as_u128()), Verdict::Suspect { new: false, .. }));
        tried.push(one.as_u128());
    }
    assert_eq!(tried[0], 9, "what was never refused may live");
    assert_eq!(tried[1], 20);
    tried.sort_unstable();
    tried.dedup();
    assert_eq!(tried.len(), 8, "each has its turn");
}

#[test]
fn a_try_that_brings_nothing_gives_way() {
    let mut ward = Ward::suspect();
    ward.now = 60;
    let first = ward.deaths.tries(ward.at(60));
    // Neither refused nor renewed.
    assert_eq!(ward.deaths.next_try(), Some(ward.at(120)));
    ward.now = 120;
    let second = ward.deaths.tries(ward.at(120));
    assert_ne!(first, second);
}

#[test]
fn who_comes_when_a_try_is_due_is_the_try() {
    let mut ward = Ward::suspect();
    ward.now = 59;
    assert!(ward.admit(7).is_some());
    ward.now = 60;
    assert_eq!(ward.admit(8), None);
    assert!(ward.admit(7).is_some());
    assert_eq!(ward.deaths.tries(ward.at(60)), []);
}

#[test]
fn one_renewal_frees_all_and_each_is_tried_again() {
    let mut ward = Ward::suspect();
    ward.admit(9);
    let stale = ward.deaths.renewed(&ward.realm, id(30), ward.start - secs(5), ward.at(1));
    assert_eq!(stale, Relief::default(), "sent before the suspicion");
    ward.now = 61;
    let relief = ward.renew(20);
    assert!(relief.freed);
    assert_eq!(relief.retry, [0, 1, 2, 3, 4, 5, 9].map(id));
    assert_eq!(ward.deaths.next_try(), None);
    ward.now = 62;
    assert_eq!(ward.refuse(0), Verdict::Presumed { until: ward.at(662) }, "its count begins anew");
    assert_eq!(ward.admit(9), None);
}

#[test]
fn an_operator_confirms_deaths_for_an_hour() {
    let mut ward = Ward::suspect();
    ward.admit(9);
    ward.now = 10;
    let confirmed = ward.deaths.confirm(&ward.realm.registration.clone(), None, HOUR, ward.at(10));
    assert_eq!(confirmed.sites, ["general".parse().unwrap()]);
    assert_eq!(confirmed.refused.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5].map(id));
    assert_eq!(confirmed.waiting, [id(9)]);
    for n in 0..100 {
        assert_eq!(ward.admit(n), None);
        assert_eq!(ward.refuse(n), Verdict::Dead);
        ward.deaths.ended(id(n));
    }
    ward.now = 10 + 3600;
    assert!(matches!(ward.refuse(200), Verdict::Presumed { .. }));
}

#[test]
fn an_operator_may_confirm_the_deaths_of_one_site() {
    let mut ward = Ward::suspect();
    let registration = ward.realm.registration.clone();
    let elsewhere = ward.deaths.confirm(&registration, Some(&"elsewhere".parse().unwrap()), HOUR, ward.at(10));
    assert_eq!(elsewhere, Confirmed::default());
    assert!(matches!(ward.refuse(0), Verdict::Suspect { new: false, .. }));
    // What was said a while ago holds for the rest of its hour.
    let left = Duration::from_secs(60);
    let confirmed = ward.deaths.confirm(&registration, Some(&"general".parse().unwrap()), left, ward.at(10));
    assert_eq!(confirmed.sites, ["general".parse().unwrap()]);
    ward.now = 69;
    assert_eq!(ward.refuse(0), Verdict::Dead);
    ward.now = 70;
    assert!(matches!(ward.refuse(200), Verdict::Presumed { .. }));
}

#[test]
fn another_hospitals_renewals_prove_nothing() {
    let (mut ward, other) = (Ward::new(), realm("viewer-epic", "county"));
    let now = ward.start;
    ward.refuse(1);
    for n in 0..1000 {
        assert_eq!(ward.deaths.renewed(&other, id(1000 + n), now + secs(1), now + secs(1)), Relief::default());
    }
    for n in 2..6 {
        assert!(matches!(ward.refuse(n), Verdict::Presumed { .. }));
    }
    assert!(matches!(ward.refuse(6), Verdict::Suspect { .. }), "its own count is enough");
    assert_eq!(ward.deaths.admit(&other, id(7), now), None, "the other one works");
}

#[test]
fn many_small_sites_dying_of_one_key_are_suspect_together() {
    let (mut deaths, now) = (Deaths::default(), Instant::now());
    for n in 0..40 {
        let site = realm("viewer-epic", &format!("clinic-{n}"));
        let verdict = deaths.refused(&site, id(n), now, now);
        assert_eq!(matches!(verdict, Verdict::Suspect { .. }), n > 4, "{n}: {verdict:?}");
    }
    let later = now + secs(600);
    for n in 0..40 {
        let site = realm("viewer-epic", &format!("clinic-{n}"));
        assert!(matches!(deaths.refused(&site, id(n), later, later), Verdict::Suspect { .. }), "{n}");
    }
    // Another registration is another matter.
    assert!(matches!(deaths.refused(&realm("other", "clinic-0"), id(99), now, now), Verdict::Presumed { .. }));
}

#[test]
fn a_big_site_that_is_suspect_does_not_taint_the_others() {
    let mut ward = Ward::suspect();
    let (other, now) = (realm("viewer-epic", "county"), ward.start);
    assert!(matches!(ward.deaths.refused(&other, id(50), now, now), Verdict::Presumed { .. }));
    assert_eq!(ward.deaths.admit(&other, id(51), now), None);
}

#[test]
fn the_one_try_is_kept_until_refusals_are_explained() {
    let mut ward = Ward::new();
    assert_eq!(ward.deaths.unsure(&ward.realm, id(8), ward.start), None);
    ward.refuse(1);
    assert_eq!(ward.deaths.unsure(&ward.realm, id(8), ward.start), Some((ward.at(600), false)));
    ward.now = 5;
    assert_eq!(ward.renew(2).retry, [id(1), id(8)]);
    assert_eq!(ward.deaths.unsure(&ward.realm, id(8), ward.at(5)), None);
    let mut ward = Ward::suspect();
    assert!(ward.deaths.unsure(&ward.realm, id(8), ward.start).is_some_and(|(_, suspect)| suspect));
    assert!(ward.deaths.tries(ward.at(60)).iter().all(|tried| *tried != id(8)), "it is no try for others");
    ward.now = 61;
    assert!(ward.renew(20).retry.contains(&id(8)));
}

#[test]
fn refusals_that_nobody_comes_back_for_are_forgotten() {
    let mut ward = Ward::new();
    for n in 0..4 {
        ward.refuse(n);
    }
    ward.now = 24 * 3600 + 1;
    for n in 10..15 {
        assert!(matches!(ward.refuse(n), Verdict::Presumed { .. }), "{n}");
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Pass(u64),
    /// `ago`: when its request was sent.
    Refuse {
        grant: u128,
        ago: u64,
    },
    Renew {
        grant: u128,
        ago: u64,
    },
    Few(u128),
    Admit(u128),
    Unsure(u128),
    Tries,
    End(u128),
    Change,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let grant = 0_u128..30;
    let op = prop_oneof![
        6 => prop_oneof![0_u64..30, 0_u64..700].prop_map(Op::Pass),
        12 => (grant.clone(), 0_u64..60).prop_map(|(grant, ago)| Op::Refuse { grant, ago }),
        5 => (grant.clone(), 0_u64..60).prop_map(|(grant, ago)| Op::Renew { grant, ago }),
        1 => grant.clone().prop_map(Op::Few),
        4 => grant.clone().prop_map(Op::Admit),
        2 => grant.clone().prop_map(Op::Unsure),
        4 => Just(Op::Tries),
        2 => grant.prop_map(Op::End),
        1 => prop::bool::weighted(0.2).prop_map(|changed| if changed { Op::Change } else { Op::Tries }),
    ];
    prop::collection::vec(op, 1..300)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens: no end under suspicion, none without a reason, few in any window, one try a minute at most,
    /// and one renewal frees all.
    #[test]
    fn deaths_are_rationed(ops in ops()) {
        let mut ward = Ward::new();
        // What a reader of custody.md would note on paper: first refusals, renewals and believed deaths.
        let mut first: BTreeMap<u128, u64> = BTreeMap::new();
        let mut renewals: Vec<(u64, u64)> = Vec::new();
        let mut dead: Vec<(u64, u128)> = Vec::new();
        let mut suspect_since: Option<u64> = None;
        let mut tries: Vec<u64> = Vec::new();
        let mut careful_until = 0;
        for op in ops {
            let now = ward.at(ward.now);
            match op {
                Op::Pass(by) => ward.now += by,
                Op::Refuse { grant, ago } => {
                    let sent = ward.start + secs(ward.now.saturating_sub(ago));
                    let began = *first.entry(grant).or_insert(ward.now);
                    match ward.deaths.refused(&ward.realm, id(grant), sent, now) {
                        Verdict::Dead => {
                            prop_assert_eq!(suspect_since, None, "no end under suspicion");
                            let sent = ward.now.saturating_sub(ago);
                            let proven = renewals.iter().any(|(left, came)| *left >= began && *came <= sent);
                            let believed = dead.iter().any(|(_, known)| *known == grant);
                            let careful = ward.now < careful_until;
                            prop_assert!(ward.now >= began + 600 || (proven && !careful) || believed);
                            dead.retain(|(_, known)| *known != grant);
                            dead.push((ward.now, grant));
                            let lately = dead.iter().filter(|(at, _)| at + 600 >= ward.now).count() as u64;
                            let well = renewals.iter().filter(|(_, came)| came + 620 >= ward.now).count() as u64;
                            prop_assert!(lately <= 5 || lately * 5 <= lately + well, "{lately} of {}", lately + well);
                        }
                        Verdict::Presumed { until } => {
                            prop_assert_eq!(suspect_since, None);
                            prop_assert!(until > now && until <= now + WINDOW);
                        }
                        Verdict::Suspect { until, new } => {
                            prop_assert_eq!(new, suspect_since.is_none());
                            prop_assert!(until > now);
                            suspect_since.get_or_insert(ward.now);
                        }
                    }
                }
                Op::Renew { grant, ago } => {
                    let left = ward.now.saturating_sub(ago);
                    let relief = ward.deaths.renewed(&ward.realm, id(grant), ward.start + secs(left), now);
                    let frees = suspect_since.is_some_and(|since| left >= since);
                    prop_assert_eq!(relief.freed, frees);
                    first.remove(&grant);
                    renewals.push((left, ward.now));
                    dead.retain(|(_, known)| *known != grant);
                    if frees {
                        for other in first.keys() {
                            prop_assert!(relief.retry.contains(&id(*other)), "{other} is not freed");
                        }
                        first.clear();
                        (suspect_since, tries) = (None, Vec::new());
                        prop_assert_eq!(ward.deaths.next_try(), None);
                    }
                }
                Op::Few(grant) => {
                    if ward.deaths.too_few(&ward.realm, id(grant), now) {
                        prop_assert!(suspect_since.is_none() && ward.now >= careful_until);
                        dead.retain(|(_, known)| *known != grant);
                        dead.push((ward.now, grant));
                    }
                }
                Op::Admit(grant) => match ward.deaths.admit(&ward.realm, id(grant), now) {
                    Some(until) => prop_assert!(suspect_since.is_some() && until > now),
                    None if suspect_since.is_some() => tries.push(ward.now),
                    None => {}
                },
                Op::Unsure(grant) => {
                    if let Some((until, suspect)) = ward.deaths.unsure(&ward.realm, id(grant), now) {
                        prop_assert!(until > now && suspect == suspect_since.is_some());
                    } else {
                        prop_assert!(suspect_since.is_none());
                    }
                }
                Op::Tries => {
                    let one = ward.deaths.tries(now);
                    prop_assert!(one.len() <= usize::from(suspect_since.is_some()));
                    if one.len() == 1 {
                        tries.push(ward.now);
                    }
                }
                Op::End(grant) => {
                    ward.deaths.ended(id(grant));
                    first.remove(&grant);
                }
                Op::Change => {
                    ward.deaths.changed(&ward.realm.registration, HOUR, now);
                    careful_until = ward.now + 3600;
                }
            }
            if let Some(since) = suspect_since {
                prop_assert!(ward.deaths.next_try().is_some_and(|at| at <= ward.at(ward.now) + LONGEST_PROBE));
                tries.dedup();
                // The same grant may come twice within its try.
                let apart = tries.windows(2).all(|pair| pair[1] - pair[0] >= 60) || tries.len() < 2;
                prop_assert!(apart || tries.first() >= Some(&(since + 60)));
                prop_assert!(tries.first().is_none_or(|at| *at >= since + 60));
            }
        }
    }

    /// A registration whose every token is refused, however it went before and however the refusals are spread.
    #[test]
    fn none_of_many_that_die_at_once_ends(
        before in 0_u128..200,
        dying in 6_u128..60,
        retries in prop::collection::vec((0_u128..60, 0_u64..900), 0..200),
    ) {
        let mut ward = Ward::new();
        for n in 0..before {
            ward.renew(1000 + n);
        }
        for n in 0..dying {
            prop_assert_ne!(ward.refuse(n), Verdict::Dead);
        }
        for (n, pass) in retries {
            ward.now += pass;
            // Old refusals are forgotten after a day, which is another death then.
            if ward.now >= 24 * 3600 {
                break;
            }
            if ward.admit(n % dying).is_none() {
                prop_assert_ne!(ward.refuse(n % dying), Verdict::Dead, "at {} s", ward.now);
            }
        }
    }
}
