//! The account is shown to fail: made-up books, one for each thing that must not be, beside the same with a cause.

use super::{
    account::{Books, Cause, Findings, Habits, Loss, Past},
    journal::{Event, What},
    login::{Attempt, Logout},
};
use crate::{
    ehr::auth::state::{GrantView, RefreshView},
    harness::wire::{Exchange, Passage},
};

const SITE: &str = "epic";
const LIFETIME: i64 = 10_000;
const BURNS: Habits = Habits { rotates: true, dies: false, lifetime: LIFETIME };
const DIES: Habits = Habits { rotates: false, dies: true, lifetime: LIFETIME };
/// When the grant began.
const START: i64 = 100_000;

struct World {
    habits: Habits,
    grant: GrantView,
    exchanges: Vec<Exchange>,
    events: Vec<Event>,
    logouts: Vec<Logout>,
    beyond: u64,
    one_disk: bool,
}

impl World {
    /// A grant whose refresh tokens came to the EHR at these times.
    fn new(habits: Habits, tokens: &[&[i64]]) -> Self {
        let token = |(n, presented): (usize, &&[i64])| RefreshView {
            digest: format!("token {n}"),
            generation: n as u64,
            uses: presented.len() as u64,
            presented: presented.to_vec(),
            spent: false,
        };
        let refresh_tokens: Vec<_> = tokens.iter().enumerate().map(token).collect();
        let last = tokens.iter().filter_map(|presented| presented.first()).max().copied().unwrap_or(START);
        Self {
            habits,
            grant: GrantView {
                id: 1,
                client_id: "viewer-at-epic".into(),
                username: Some("amy".into()),
                patient: Some("p1".into()),
                started: START,
                access_until: last + LIFETIME,
                generation: 0,
                refreshes: tokens.len() as u64,
                reuses: 0,
                refresh_tokens,
                access_tokens_alive: 0,
                suspended: false,
                ended: None,
            },
            exchanges: Vec::new(),
            events: Vec::new(),
            logouts: Vec::new(),
            beyond: 0,
            one_disk: false,
        }
    }

    /// A request with that token, sent and ended then.
    fn sent(mut self, token: usize, sent: i64, end: i64, how: Passage) -> Self {
        let name = format!("token {token}");
        self.exchanges.push(Exchange { name, sent, forwarded: Some(sent), end: Some((end, how)) });
        self
    }

    fn event(mut self, what: What, from: i64, until: i64) -> Self {
        self.events.push(Event { what, from, until: Some(until) });
        self
    }

    fn logout(mut self, at: i64, tried_for: i64) -> Self {
        self.logouts.push(Logout { at, since: START - 1, tried_for, unheard: Vec::new() });
        self
    }

    fn judge(&self) -> Findings {
        let books = Books {
            site: SITE,
            habits: self.habits,
            grants: std::slice::from_ref(&self.grant),
            exchanges: &self.exchanges,
            beyond: self.beyond,
            events: &self.events,
            one_disk: self.one_disk,
        };
        books.judge(&[Past {
            username: "amy",
            client_id: "viewer-at-epic".into(),
            patient: "p1",
            logouts: self.logouts.clone(),
        }])
    }

    #[track_caller]
    fn violates(&self, part: &str) {
        let found = self.judge().violations;
        assert!(matches!(found.as_slice(), [one] if one.contains(part)), "expected {part:?}, found {found:?}");
    }

    #[track_caller]
    fn lost(&self, cause: Cause) {
        let found = self.judge();
        assert_eq!(found.violations, [""; 0]);
        assert_eq!(found.logouts.into_iter().collect::<Vec<_>>(), [(cause, 1)]);
    }
}

/// The EHR's answer to a token was lost: it came again after its doubt.
fn reused(how: Passage) -> World {
    World::new(BURNS, &[&[106_000, 166_500]]).sent(0, 106_000, 106_100, how).sent(
        0,
        166_500,
        166_600,
        Passage::Answered,
    )
}

#[test]
fn a_quiet_life_is_no_finding() {
    let world = World::new(BURNS, &[&[106_000], &[112_000], &[118_010]]);
    let found = world.judge();
    assert_eq!((found.refreshes, found.tried_again, found.violations.len()), (3, 0, 0));
}

#[test]
fn a_refresh_token_that_comes_twice_needs_a_loss() {
    reused(Passage::Answered).violates("nothing was cut");
    reused(Passage::HungUp).violates("nothing was cut");
    reused(Passage::Cut).violates("nothing was cut");
    assert_eq!(reused(Passage::Swallowed).judge().violations, [""; 0]);
    let cut = |site: &str, from, until| reused(Passage::Cut).event(What::EhrCut(site.into()), from, until);
    assert_eq!(cut(SITE, 106_100, 107_000).judge().violations, [""; 0]);
    cut("oracle", 106_100, 107_000).violates("nothing was cut");
    cut(SITE, 106_101, 107_000).violates("nothing was cut");
    // Where they are not burnt, they come at each refresh.
    let fixed = World::new(Habits { rotates: false, ..BURNS }, &[&[106_000, 112_000, 118_000]]);
    assert_eq!(fixed.judge().violations, [""; 0]);
}

#[test]
fn a_kill_explains_a_loss_until_the_answer_had_to_be_durable() {
    let killed = |at: i64| reused(Passage::Answered).event(What::Killed(0), at, at + 500);
    assert_eq!(killed(106_050).judge().violations, [""; 0], "with the answer on its way");
    assert_eq!(killed(110_000).judge().violations, [""; 0], "the store had 3 s, and the spill a second");
    killed(110_200).violates("nothing was cut");
    killed(105_999).violates("nothing was cut");
    // A process that stands still writes nothing, nor one whose store and spill are both away.
    let late = || killed(113_000);
    assert_eq!(late().event(What::Stopped(0), 106_050, 110_000).judge().violations, [""; 0]);
    late().event(What::Stopped(1), 106_050, 110_000).violates("nothing was cut");
    late().event(What::StoreCut, 106_050, 110_000).violates("nothing was cut");
    late().event(What::DiskFull(0), 106_050, 110_000).violates("nothing was cut");
    let both = late().event(What::DiskFull(0), 106_050, 110_000).event(What::StoreCut, 106_050, 110_000);
    assert_eq!(both.judge().violations, [""; 0]);
    let mut one_disk = late().event(What::DiskFull(0), 106_050, 110_000);
    one_disk.one_disk = true;
    assert_eq!(one_disk.judge().violations, [""; 0]);
}

#[test]
fn the_one_try_is_one_and_waits_for_its_doubt() {
    let times = |presented: &[i64]| World::new(BURNS, &[presented]).sent(0, 106_000, 106_100, Passage::Swallowed);
    assert_eq!(times(&[106_000, 166_000]).judge().violations, [""; 0]);
    times(&[106_000, 166_000, 226_000]).violates("came 3 times");
    times(&[106_000, 140_000]).violates("before its doubt was over");
    // It was stopped with the intent recorded, and sent when it went on.
    let stopped = times(&[106_000, 156_000]).event(What::Stopped(0), 95_000, 105_500);
    assert_eq!(stopped.judge().violations, [""; 0]);
}

#[test]
fn a_second_refresh_of_one_lifetime_has_no_excuse() {
    World::new(BURNS, &[&[106_000], &[108_000]]).violates("2000 ms later");
    World::new(BURNS, &[&[106_000], &[111_900]]).violates("5900 ms later");
    let all = [What::Killed(0), What::Stopped(1), What::StoreCut, What::EhrCut(SITE.into()), What::DatabaseRestarted];
    let stormy = |world, what: &What| World::event(world, what.clone(), 100_000, 120_000);
    all.iter().fold(World::new(BURNS, &[&[106_000], &[108_000]]), stormy).violates("2000 ms later");
    World::new(Habits { rotates: false, ..BURNS }, &[&[106_000, 108_000]]).violates("2000 ms later");
    // What is dead is asked for once more before that is believed.
    let mut dead = World::new(DIES, &[&[106_000, 120_000, 120_500]]);
    dead.grant.access_until = 116_000;
    assert_eq!(dead.judge().violations, [""; 0]);
}

#[test]
fn a_lost_login_needs_a_cause() {
    let quiet = || World::new(BURNS, &[&[106_000]]).sent(0, 106_000, 106_100, Passage::Answered);
    quiet().logout(115_000, 500).violates("logged out without a cause");
    quiet().logout(145_000, 29_000).violates("logged out without a cause");
    quiet().logout(145_000, 31_000).lost(Cause::RepeatedLate);
    // That gateways were killed explains none.
    let killed = quiet().event(What::Killed(0), 112_000, 113_000).logout(115_000, 500);
    killed.violates("logged out without a cause");
}

#[test]
fn a_rotation_that_was_lost_is_a_cause_after_its_one_try() {
    reused(Passage::Swallowed).logout(166_700, 500).lost(Cause::Lost(Loss::Swallowed));
    let cut = reused(Passage::Cut).event(What::EhrCut(SITE.into()), 106_050, 107_000);
    cut.logout(166_700, 500).lost(Cause::Lost(Loss::CutOff));
    let killed = reused(Passage::Answered).event(What::Killed(0), 106_200, 107_000);
    killed.logout(166_700, 500).lost(Cause::Lost(Loss::Killed));
    // A minute before that it was not lost yet.
    reused(Passage::Swallowed).logout(120_000, 500).violates("logged out without a cause");
}

#[test]
fn a_try_that_is_cut_as_well_is_a_cause_after_another() {
    let last = || World::new(BURNS, &[&[170_000]]).sent(0, 170_000, 170_100, Passage::Swallowed).logout(171_000, 500);
    last().violates("logged out without a cause");
    last().event(What::Killed(0), 108_000, 109_000).lost(Cause::LostTwice(Loss::Swallowed));
    last().event(What::Killed(0), 120_000, 121_000).violates("logged out without a cause");
    let answered = World::new(BURNS, &[&[170_000]]).sent(0, 170_000, 170_100, Passage::Answered);
    let answered = answered.event(What::Killed(0), 108_000, 109_000).logout(171_000, 500);
    answered.violates("logged out without a cause");
}

#[test]
fn a_token_that_dies_with_the_access_token_needs_an_ehr_that_could_not_be_asked() {
    let dead = || World::new(DIES, &[&[106_000]]).sent(0, 106_000, 106_100, Passage::Answered).logout(117_000, 500);
    dead().violates("logged out without a cause");
    // Due at 112,000, dead at 116,000.
    dead().event(What::EhrCut(SITE.into()), 112_500, 113_000).lost(Cause::DiedWithAccess);
    dead().event(What::EhrCut(SITE.into()), 107_000, 111_000).violates("logged out without a cause");
    dead().event(What::EhrCut("oracle".into()), 112_500, 113_000).violates("logged out without a cause");
    // An answer that nobody has is a life that nobody knows of.
    let lost = World::new(DIES, &[&[106_000]]).sent(0, 106_000, 106_100, Passage::Swallowed);
    lost.logout(117_000, 500).lost(Cause::DiedWithAccess);
}

#[test]
fn a_refresh_that_lay_in_a_stopped_gateway_is_a_cause_when_that_goes_on() {
    let world = |gateway: Option<usize>, stopped: (i64, i64)| {
        let quiet = World::new(BURNS, &[&[106_000]]).sent(0, 106_000, 106_100, Passage::Answered);
        let mut world = quiet.event(What::Stopped(1), stopped.0, stopped.1).logout(115_000, 500);
        world.logouts[0].unheard.push(Attempt { until: 108_500, gateway });
        world
    };
    world(Some(1), (100_000, 112_000)).lost(Cause::Overtaken);
    world(None, (100_000, 112_000)).lost(Cause::Overtaken);
    world(Some(0), (100_000, 112_000)).violates("logged out without a cause");
    world(Some(1), (100_000, 108_000)).violates("logged out without a cause");
    world(Some(1), (100_000, 116_000)).violates("logged out without a cause");
    world(Some(1), (109_000, 112_000)).violates("logged out without a cause");
    // It may as well have waited for the store; an EHR has no part in it.
    let before = || world(Some(1), (100_000, 108_400));
    before().event(What::StoreSilent, 108_300, 109_000).lost(Cause::Overtaken);
    before().event(What::EhrSilent(SITE.into()), 108_300, 109_000).violates("logged out without a cause");
}

#[test]
fn another_patients_bearer_is_seen() {
    let mut world = World::new(BURNS, &[&[106_000]]);
    world.beyond = 1;
    world.violates("another's record");
}
