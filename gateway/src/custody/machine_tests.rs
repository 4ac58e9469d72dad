//! The machine against a model that keeps whole seconds and knows each rule by itself.

use mantel_adapters::profile::TokenPolicy;
use proptest::prelude::*;

use super::*;
use crate::store::BootId;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn policy(before: u64, interval: u64, grace: u64) -> TokenPolicy {
    TokenPolicy {
        refresh_before: secs(before),
        min_refresh_interval: secs(interval),
        reuse_grace: secs(grace),
        ..TokenPolicy::default()
    }
}

fn rules(before: u64, interval: u64, grace: u64) -> Rules {
    Rules::new(&policy(before, interval, grace), secs(1800), false)
}

#[test]
fn a_token_falls_due_in_time_and_never_too_early() {
    let now = Instant::now();
    // Epic of 5 minutes: minute 3 of 5. Oracle: 90 s before the end. athena: 5 minutes before it.
    for (before, lifetime, due) in [(300, 300, 180), (90, 570, 480), (300, 3600, 3300), (300, 10, 6)] {
        let times = Times::new(&rules(before, 0, 0), secs(lifetime), Duration::ZERO, now);
        assert_eq!(times.due - now, secs(due), "{lifetime} s");
        assert_eq!(times.expires - now, secs(lifetime));
    }
    // Whose it is first, refreshes it first; a tenth of a short life is not long either.
    for (lifetime, due) in [(3600, 3305), (300, 185), (10, 7)] {
        let behind = Rules { yields: true, ..rules(300, 0, 0) };
        assert_eq!(Times::new(&behind, secs(lifetime), Duration::ZERO, now).due - now, secs(due), "{lifetime} s");
    }
    let aged = Times::new(&rules(300, 0, 0), secs(300), secs(200), now);
    assert_eq!((aged.due, aged.expires - now), (now, secs(100)));
}

#[test]
fn no_answer_makes_a_lifetime_that_cannot_be_reckoned_with() {
    let (rules, now) = (rules(300, 0, 0), Instant::now());
    assert_eq!(rules.lifetime(None), secs(3600));
    assert_eq!(rules.lifetime(Some(Duration::ZERO)), secs(3600));
    let times = Times::new(&rules, rules.lifetime(Some(Duration::MAX)), Duration::MAX, now);
    assert_eq!(times.expires, now);
    Times::new(&rules, Duration::MAX, Duration::ZERO, now);
}

#[test]
fn a_refused_bearer_that_is_due_is_renewed_whatever_was_forced() {
    let (rules, now) = (rules(300, 0, 0), Instant::now());
    let (refused, at) = (Event::Refused { current: true }, |seconds| now + secs(seconds));
    let renewed = |at| Event::Renewed { times: Times::new(&rules, secs(10), Duration::ZERO, at), refreshable: true };
    let mut state = State::new(Times::new(&rules, secs(10), Duration::ZERO, now), true);
    assert_eq!(state.step(&rules, refused, now), Action::Fly);
    state.step(&rules, renewed(now), now);
    assert_eq!(state.step(&rules, refused, at(5)), Action::Theirs, "the forced one brought it");
    // It came late, and the EHR's own reckoning ends it before ours.
    assert_eq!(state.step(&rules, refused, at(9)), Action::Fly);
    state.step(&rules, renewed(at(9)), at(9));
    assert_eq!(state.step(&rules, refused, at(61)), Action::Fly, "due, and so not forced");
    state.step(&rules, renewed(at(61)), at(61));
    assert_eq!(state.step(&rules, refused, at(62)), Action::Fly, "the first that is forced in this minute");
}

#[test]
fn the_interval_is_at_most_half_the_lifetime() {
    let now = Instant::now();
    assert_eq!(Times::new(&rules(0, 600, 0), secs(300), Duration::ZERO, now).settled - now, secs(150));
    assert_eq!(Times::new(&rules(0, 60, 0), secs(300), Duration::ZERO, now).settled - now, secs(60));
}

#[test]
fn a_wait_doubles_to_its_bound_and_honours_retry_after() {
    let most = |attempts| Cause::Passing.wait(attempts, None, u32::MAX).as_secs();
    assert_eq!((0..8).map(most).collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(Cause::Passing.wait(u32::MAX, None, 0), Duration::ZERO);
    assert_eq!(Cause::Passing.wait(0, Some(secs(30)), u32::MAX), secs(30));
    assert_eq!(Cause::Passing.wait(0, Some(Duration::MAX), 0), secs(3600));
    assert_eq!(Cause::Misconfigured.wait(9, None, u32::MAX), secs(900));
}

#[test]
fn who_asks_is_held_five_seconds_at_most_and_as_long_as_the_ehr_says() {
    let (start, rules) = (Instant::now(), rules(300, 0, 0));
    let held = |retry_after: Option<u64>| {
        let mut state = State::new(Times::new(&rules, secs(300), secs(300), start), true);
        for _ in 0..10 {
            state.step(
                &rules,
                Event::Held { cause: Cause::Passing, retry_after: retry_after.map(secs), die: u32::MAX },
                start,
            );
        }
        state
    };
    let mut state = held(None);
    assert_eq!(state.next_wake(&rules, start), Some(start + secs(60)), "nobody asks");
    assert_eq!(state.pressable(start + secs(4)), None);
    let blocked = |after| Action::Unavailable { cause: Cause::Passing, after: secs(after) };
    assert_eq!(state.step(&rules, Event::Asked, start), blocked(5));
    state.step(&rules, Event::Pressed, start + secs(4));
    assert_eq!(state.step(&rules, Event::Asked, start + secs(30)), blocked(1));
    assert_eq!(state.pressable(start + secs(5)), Some(start));
    state.step(&rules, Event::Pressed, start + secs(5));
    assert_eq!(state.step(&rules, Event::Asked, start + secs(5)), Action::Fly);
    assert_eq!(state.pressable(start + secs(5)), None, "it flies");

    let state = held(Some(40));
    assert_eq!((state.pressable(start + secs(39)), state.pressable(start + secs(40))), (None, Some(start)));
    // What its own outcome forbids is not for anybody to press.
    let mut doubtful = held(None);
    doubtful.doubt = Some(Doubt::new(&rules, start, Duration::ZERO, start));
    assert_eq!(doubtful.pressable(start + secs(30)), None);
    for cause in [Cause::Misconfigured, Cause::Store, Cause::Presumed] {
        let mut state = State::new(Times::new(&rules, secs(300), secs(300), start), true);
        state.step(&rules, Event::Held { cause, retry_after: Some(secs(100)), die: u32::MAX }, start);
        assert_eq!(state.pressable(start + secs(99)), None, "{cause:?}");
    }
}

#[test]
fn a_session_ends_by_idleness_and_by_its_end() {
    let (start, rules) = (Instant::now(), Rules::new(&policy(300, 0, 0), secs(600), true));
    let times = Times::new(&rules, secs(3600), Duration::ZERO, start);
    let mut state = State { session_ends: Some(start + secs(2000)), ..State::new(times, true) };
    assert_eq!(state.step(&rules, Event::Asked, start + secs(500)), Action::Serve);
    assert_eq!(state.next_wake(&rules, start + secs(500)), Some(start + secs(1100)));
    let mut idle = state;
    assert_eq!(idle.step(&rules, Event::Woken, start + secs(1100)), Action::End(EndReason::SessionEnded));
    for at in [1000, 1500, 1999] {
        assert_eq!(state.step(&rules, Event::Asked, start + secs(at)), Action::Serve);
    }
    assert_eq!(state.step(&rules, Event::Woken, start + secs(1999)), Action::Sleep(start + secs(2000)));
    assert_eq!(state.step(&rules, Event::Asked, start + secs(2000)), Action::End(EndReason::SessionEnded));
}

#[test]
fn a_cold_session_still_comes_to_its_end() {
    let (start, rules) = (Instant::now(), Rules::new(&policy(300, 0, 0), secs(1800), true));
    let mut state = State::new(Times::new(&rules, secs(300), Duration::ZERO, start), true);
    assert_eq!(state.next_wake(&rules, start), Some(start + secs(180)));
    assert_eq!(state.step(&rules, Event::Woken, start + secs(180)), Action::Sleep(start + secs(1800)));
    assert_eq!(state.step(&rules, Event::Woken, start + secs(1800)), Action::End(EndReason::SessionEnded));
}

#[test]
fn where_tokens_die_together_an_unused_grant_is_refreshed_until_it_is_idle() {
    let mut policy = policy(300, 0, 0);
    policy.dies_with_access = true;
    let (start, rules) = (Instant::now(), Rules::new(&policy, secs(600), false));
    let state = |age| State::new(Times::new(&rules, secs(900), secs(age), start), true);
    assert_eq!(state(600).step(&rules, Event::Woken, start + secs(1)), Action::Fly);
    let mut unused = state(0);
    assert_eq!(unused.step(&rules, Event::Woken, start + secs(600)), Action::Rest);
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Pass(u64),
    Ask,
    Refused {
        current: bool,
    },
    Wake,
    /// Somebody presses, whatever the site says.
    Press,
    Renew {
        lifetime: u64,
        refreshable: bool,
    },
    Hold {
        retry_after: u64,
    },
    Doubt,
    /// The other process's lease, by its beat.
    Contest {
        beat: i64,
        retried: bool,
    },
    /// Another process is at it, and nobody waits here.
    Watch {
        seconds: u64,
    },
    Keep,
    /// The answer goes to the spill, and is shared.
    Spill {
        lifetime: u64,
        refreshable: bool,
    },
    /// The store has it.
    Store,
    End,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (1_u64..150).prop_map(Op::Pass),
        3 => (1_u64..8).prop_map(Op::Pass),
        6 => Just(Op::Ask),
        3 => any::<bool>().prop_map(|current| Op::Refused { current }),
        4 => Just(Op::Wake),
        2 => Just(Op::Press),
        4 => (prop_oneof![Just(300_u64), Just(570), Just(3600), 1_u64..100], prop::bool::weighted(0.9))
            .prop_map(|(lifetime, refreshable)| Op::Renew { lifetime, refreshable }),
        2 => (0_u64..120).prop_map(|retry_after| Op::Hold { retry_after }),
        2 => Just(Op::Doubt),
        4 => (0_i64..2, prop::bool::weighted(0.2)).prop_map(|(beat, retried)| Op::Contest { beat, retried }),
        2 => (1_u64..5).prop_map(|seconds| Op::Watch { seconds }),
        1 => Just(Op::Keep),
        2 => (prop_oneof![Just(300_u64), 1_u64..100], prop::bool::weighted(0.9))
            .prop_map(|(lifetime, refreshable)| Op::Spill { lifetime, refreshable }),
        2 => Just(Op::Store),
        1 => prop::bool::weighted(0.1).prop_map(|ends| if ends { Op::End } else { Op::Ask }),
    ];
    prop::collection::vec(op, 1..200)
}

/// What is true of a grant, in whole seconds since the start.
struct Model {
    shared: bool,
    before: u64,
    interval: u64,
    grace: u64,
    now: u64,
    issued: u64,
    lifetime: u64,
    refreshable: bool,
    flying: bool,
    kept: bool,
    spilled: bool,
    held_until: u64,
    doubt_since: Option<u64>,
    forced: Option<u64>,
    /// When the EHR refused the current bearer, and was believed.
    refused: Option<u64>,
    /// Each look at another's lease since the last tokens: when, and its beat.
    looks: Vec<(u64, i64)>,
    watched_until: u64,
    used: bool,
    ended: bool,
}

impl Model {
    fn expires(&self) -> u64 {
        self.issued + self.lifetime
    }

    fn alive(&self) -> bool {
        self.now < self.expires()
    }

    /// Until when the old token serves: a refused one does not.
    fn serves_until(&self) -> u64 {
        self.refused.unwrap_or(u64::MAX).min(self.expires())
    }

    /// In tenths, since 40 % of a lifetime may be no whole second.
    fn due(&self) -> bool {
        let before = (self.before * 10).min(self.lifetime * 4);
        self.now * 10 >= self.expires() * 10 - before
    }

    fn settled(&self) -> bool {
        let interval = (self.interval * 2).min(self.lifetime);
        (self.now - self.issued) * 2 >= interval
    }

    /// Whether nothing but its being wanted keeps a refresh from starting.
    fn free(&self) -> bool {
        let certain = match self.doubt_since {
            None => true,
            // With other processes about, a late winner is looked for as soon as the old token serves no more.
            Some(_) if self.shared && self.now >= self.serves_until() => true,
            Some(since) => self.now < since + self.grace || self.now >= self.serves_until().max(since + 60),
        };
        self.refreshable && !self.flying && self.now >= self.held_until && certain
    }

    /// The same, and it is this process's turn to look what another has done.
    fn left_alone(&self) -> bool {
        self.free() && self.now >= self.watched_until
    }

    fn forced_lately(&self) -> bool {
        self.forced.is_some_and(|at| self.now < at + 60)
    }

    fn renewed_since(&self) -> bool {
        self.forced.is_some_and(|at| self.issued >= at)
    }

    /// Whether each look of the last `patience` seconds, none later than a TTL after the one before, saw this beat.
    fn stood_still(&self, patience: u64) -> bool {
        let (mut at, beat) = *self.looks.last().unwrap();
        for (before, other) in self.looks.iter().rev() {
            if *other != beat || at - before > 10 {
                break;
            }
            at = *before;
        }
        self.now - at >= patience
    }

    fn fly_if(&mut self, flies: bool) {
        if flies {
            (self.flying, self.watched_until) = (true, 0);
        }
    }

    fn check_ask(&mut self, action: Action) {
        self.used = true;
        match action {
            Action::Serve => assert!(self.alive() && !(self.due() && self.left_alone())),
            Action::ServeAndFly => assert!(self.alive() && self.due() && self.left_alone()),
            Action::Fly => assert!(!self.alive() && self.free()),
            Action::Join => assert!(!self.alive() && self.flying && !self.kept),
            Action::Unavailable { after, .. } => {
                assert!(!self.alive() && !self.free() && !after.is_zero());
                assert!(self.kept || (!self.flying && self.refreshable));
            }
            Action::End(reason) => {
                assert!(!self.alive() && !self.refreshable && !self.flying && reason == EndReason::Expired);
            }
            other => panic!("an app that asks is answered {other:?}"),
        }
    }

    fn check_refused(&mut self, action: Action) {
        if matches!(action, Action::Fly | Action::Unavailable { .. }) {
            self.refused = self.refused.or(Some(self.now));
        }
        match action {
            Action::Fly => {
                let told = self.forced_lately() && self.renewed_since();
                assert!(self.free() && self.settled() && (self.due() || !told));
            }
            Action::Join => assert!(self.flying && !self.kept),
            Action::Theirs => {
                let told = self.forced_lately() && self.renewed_since();
                assert!(!self.settled() || (told && !self.due()) || !self.refreshable, "a refresh would tell");
            }
            Action::Unavailable { after, .. } => {
                assert!(!self.free() && self.refreshable || self.kept);
                assert!(!after.is_zero());
            }
            other => panic!("a refusal is answered {other:?}"),
        }
    }

    fn check_wake(&self, action: Action) {
        let wanted = self.used || self.doubt_since.is_some();
        match action {
            Action::Fly => assert!(self.left_alone() && wanted && (self.due() || self.doubt_since.is_some())),
            Action::End(_) => assert!(!self.refreshable && !self.alive() && !self.flying),
            Action::Sleep(_) => assert!(!self.flying && (!self.due() || !self.left_alone())),
            Action::Rest => assert!(self.flying || !wanted || !self.left_alone() || !self.due()),
            other => panic!("the wheel is answered {other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_machine_does_what_the_model_allows(
        before in prop_oneof![Just(300_u64), Just(90), 0_u64..600],
        interval in prop_oneof![Just(0_u64), 0_u64..400],
        grace in prop_oneof![Just(0_u64), Just(30), 0_u64..100],
        shared in any::<bool>(),
        ops in ops(),
    ) {
        let (rules, start) = (Rules { shared, ..rules(before, interval, grace) }, Instant::now());
        let mut state = State::new(Times::new(&rules, secs(300), Duration::ZERO, start), true);
        let mut model = Model {
            shared, looks: Vec::new(), before, interval, grace, now: 0, issued: 0, lifetime: 300, refreshable: true,
            flying: false, kept: false, spilled: false, held_until: 0, doubt_since: None, forced: None,
            refused: None, watched_until: 0, used: false, ended: false,
        };
        for op in ops {
            let now = start + secs(model.now);
            let mut step = |event| {
                let action = state.step(&rules, event, now);
                (action, state)
            };
            match op {
                Op::Pass(by) => model.now += by,
                Op::Ask | Op::Refused { .. } | Op::Wake if model.ended => {
                    let (action, _) = step(Event::Asked);
                    prop_assert_eq!(action, Action::Over(EndReason::Revoked));
                }
                Op::Ask | Op::Refused { current: false } => {
                    let event = if matches!(op, Op::Ask) { Event::Asked } else { Event::Refused { current: false } };
                    let (action, _) = step(event);
                    model.check_ask(action);
                    model.fly_if(matches!(action, Action::Fly | Action::ServeAndFly | Action::End(_)));
                }
                Op::Refused { current: true } => {
                    let (action, _) = step(Event::Refused { current: true });
                    model.check_refused(action);
                    if action == Action::Fly {
                        model.fly_if(true);
                        if !model.forced_lately() && !model.due() {
                            model.forced = Some(model.now);
                        }
                    }
                }
                Op::Wake => {
                    let (action, _) = step(Event::Woken);
                    model.check_wake(action);
                    model.fly_if(matches!(action, Action::Fly | Action::End(_)));
                }
                // Not before the EHR's `Retry-After`, which is all that there is.
                Op::Press => {
                    step(Event::Pressed);
                }
                // The rest comes from flights only.
                _ if !model.flying || model.ended => {}
                Op::Keep => {
                    step(Event::Kept);
                    model.kept = true;
                }
                Op::Renew { lifetime, refreshable } => {
                    let times = Times::new(&rules, secs(lifetime), Duration::ZERO, now);
                    step(Event::Renewed { times, refreshable });
                    (model.flying, model.kept, model.issued, model.lifetime) = (false, false, model.now, lifetime);
                    (model.spilled, model.refused, model.watched_until) = (false, None, 0);
                    (model.refreshable, model.held_until, model.doubt_since) = (refreshable, 0, None);
                    model.looks.clear();
                    // Used in the very second of its renewal counts as used since.
                    model.used = state.used == Some(now);
                }
                // Shared already: nothing but the store's having it ends that.
                Op::Spill { .. } if model.spilled => {}
                Op::Spill { lifetime, refreshable } => {
                    let times = Times::new(&rules, secs(lifetime), Duration::ZERO, now);
                    step(Event::Spilled { times, refreshable });
                    (model.kept, model.spilled, model.issued, model.lifetime) = (true, true, model.now, lifetime);
                    (model.refused, model.watched_until) = (None, 0);
                    (model.refreshable, model.held_until, model.doubt_since) = (refreshable, 0, None);
                    model.looks.clear();
                    model.used = state.used == Some(now);
                }
                Op::Store if model.spilled => {
                    step(Event::Stored);
                    (model.flying, model.kept, model.spilled) = (false, false, false);
                }
                Op::Contest { beat, retried } => {
                    let lease = Lease { owner: BootId(uuid::Uuid::nil()), fence: 1, beat };
                    model.looks.push((model.now, beat));
                    let (action, _) = step(Event::Contested { lease, patience: patience(shared, retried) });
                    let dead = model.stood_still(if !shared { 0 } else if retried { 60 } else { 10 });
                    match action {
                        Action::TakeOver => prop_assert!(dead, "{:?}", model.looks),
                        Action::Watch(until) => prop_assert!(!dead && until > now, "{:?}", model.looks),
                        other => panic!("a lease is answered {other:?}"),
                    }
                }
                // An answer that is kept is stored in the end, nothing else.
                Op::Store => {}
                _ if model.kept => {}
                Op::Hold { retry_after } => {
                    // The lowest die: exactly `Retry-After`.
                    step(Event::Held { cause: Cause::Passing, retry_after: Some(secs(retry_after)), die: 0 });
                    (model.flying, model.held_until) = (false, model.now + retry_after);
                }
                Op::Watch { seconds } => {
                    step(Event::Watching(now + secs(seconds)));
                    (model.flying, model.watched_until) = (false, model.now + seconds);
                }
                Op::Doubt => {
                    let doubt = Doubt::new(&rules, state.serves_until(), Duration::ZERO, now);
                    state.step(&rules, Event::Doubtful(doubt), now);
                    (model.flying, model.held_until, model.doubt_since) = (false, 0, Some(model.now));
                }
                Op::End => {
                    step(Event::Ended(EndReason::Revoked));
                    model.ended = true;
                }
            }
            let now = start + secs(model.now);
            prop_assert_eq!(state.flight != Flight::None, model.flying && !model.ended);
            // A grant that is wanted, refreshable and left alone is always on the wheel.
            if !model.ended && !model.flying {
                prop_assert!(state.next_wake(&rules, now).is_some());
            }
        }
    }
}
