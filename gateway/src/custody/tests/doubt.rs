//! Unknown outcomes: cuts, panics, kills.

use futures_util::future::join_all;
use mantel_adapters::profile::Meaning;

use super::world::*;
use crate::{
    clock::Instant,
    custody::{CustodyFault, RefreshAnswer, RefreshOutcome},
    store::{EndReason, GrantState},
};

fn in_doubt(state: GrantState) -> bool {
    matches!(state, GrantState::InDoubt { .. })
}

/// A grant, used and due, whose refresh was sent and not answered; the old access token has 100 s left.
async fn doubtful(world: &World, reply: Reply) -> crate::store::GrantId {
    let grant = world.grant().await;
    pass(200).await;
    world.ehr.next(reply);
    assert_eq!(world.access(grant).await, "access-1");
    world.until_outcome(RefreshOutcome::InDoubt).await;
    assert!(in_doubt(world.stored(grant).await.state));
    grant
}

#[tokio::test(start_paused = true)]
async fn the_old_token_serves_and_is_tried_once_when_nothing_can_be_lost() {
    let (world, start) = (World::new(300, epic()).await, Instant::now());
    // Nothing was taken at the EHR: its refresh token is still good.
    let grant = doubtful(&world, Reply::Answer(RefreshAnswer::Unknown)).await;
    pass(99).await;
    assert_eq!((world.access(grant).await.as_str(), world.ehr.calls()), ("access-1", 1));
    let open = world.ehr.gate();
    tokio::time::advance(secs(1)).await;
    world.ehr.called(2).await;
    assert_eq!(world.stored(grant).await.state, GrantState::InDoubt { since: START.after(secs(200)), retried: true });
    open.send(Reply::Fair).ok().unwrap();
    world.until_outcome(RefreshOutcome::Renewed).await;
    assert_eq!((world.ehr.calls.borrow()[1].at - start).as_secs(), 300);
    assert_eq!(world.access(grant).await, "access-2");
    assert_eq!(world.stored(grant).await.state, GrantState::Live);
}

/// A doubt lasts as long as a monotonic clock says.
#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_prolongs_no_doubt() {
    let (world, start) = (World::new(300, epic()).await, Instant::now());
    let grant = doubtful(&world, Reply::Answer(RefreshAnswer::Unknown)).await;
    world.clock.set_back(secs(3600));
    pass(100).await;
    world.until_outcome(RefreshOutcome::Renewed).await;
    assert_eq!((world.ehr.calls.borrow()[1].at - start).as_secs(), 300);
    assert_eq!(world.access(grant).await, "access-2");
}

/// The next process cannot know how old an intent from the future is: it begins with a whole life of the token.
#[tokio::test(start_paused = true)]
async fn after_a_start_with_a_clock_that_is_behind_a_doubt_lasts_once_more() {
    let (mut world, start) = (World::new(300, epic()).await, Instant::now());
    let grant = doubtful(&world, Reply::Answer(RefreshAnswer::Unknown)).await;
    world.clock.set_back(secs(3600));
    world.reboot().await;
    assert_eq!(world.access(grant).await, "access-1");
    pass(300).await;
    world.until_outcome(RefreshOutcome::Renewed).await;
    assert_eq!((world.ehr.calls.borrow()[1].at - start).as_secs(), 500);
    assert_eq!(world.access(grant).await, "access-2");
}

#[tokio::test(start_paused = true)]
async fn a_rotation_that_was_lost_ends_as_such() {
    let world = World::new(300, epic()).await;
    let grant = doubtful(&world, Reply::Lost).await;
    pass(100).await;
    world.until_outcome(RefreshOutcome::LostRotation).await;
    assert_eq!(world.bearer(grant).await.unwrap_err(), CustodyFault::Ended(EndReason::LostRotation));
    assert_eq!((world.ehr.calls(), world.counted().ended), (2, vec![EndReason::LostRotation]));
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_waits_a_minute_for_a_late_winner() {
    let world = World::new(300, epic()).await;
    let grant = world.grant().await;
    pass(300).await;
    world.ehr.next(Reply::Answer(RefreshAnswer::Unknown));
    let fault = world.bearer(grant).await.unwrap_err();
    assert!(matches!(fault, CustodyFault::Unavailable { retry_after } if retry_after == secs(60)), "{fault:?}");
    pass(59).await;
    assert!(matches!(world.bearer(grant).await, Err(CustodyFault::Unavailable { .. })));
    assert_eq!(world.ehr.calls(), 1);
    tokio::time::advance(secs(1)).await;
    assert_eq!((world.access(grant).await.as_str(), world.ehr.calls()), ("access-2", 2));
}

#[tokio::test(start_paused = true)]
async fn a_second_unknown_outcome_is_not_tried_again() {
    let world = World::new(300, epic()).await;
    let grant = doubtful(&world, Reply::Answer(RefreshAnswer::Unknown)).await;
    world.ehr.next(Reply::Answer(RefreshAnswer::Unknown));
    pass(100).await;
    world.until_outcome(RefreshOutcome::LostRotation).await;
    assert_eq!(world.bearer(grant).await.unwrap_err(), CustodyFault::Ended(EndReason::LostRotation));
    assert_eq!(world.ehr.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_try_that_met_a_passing_fault_is_made_again() {
    let world = World::new(300, epic()).await;
    let grant = doubtful(&world, Reply::Answer(RefreshAnswer::Unknown)).await;
    world.ehr.next(refuse(Meaning::Passing));
    tokio::time::advance(secs(100)).await;
    world.until_outcome(RefreshOutcome::Passing).await;
    assert!(in_doubt(world.stored(grant).await.state), "the doubt stays");
    tokio::time::advance(secs(1)).await;
    world.until_outcome(RefreshOutcome::Renewed).await;
    assert_eq!((world.access(grant).await.as_str(), world.ehr.calls()), ("access-2", 3));
}

#[tokio::test(start_paused = true)]
async fn within_the_reuse_grace_it_is_tried_again_at_once() {
    let mut policy = epic();
    policy.reuse_grace = secs(30);
    let world = World::new(300, policy).await;
    let grant = world.grant().await;
    pass(300).await;
    world.ehr.next(Reply::Answer(RefreshAnswer::Unknown));
    assert_eq!(world.access(grant).await, "access-2");
    assert_eq!(world.ehr.calls(), 2);
    let calls = world.ehr.calls.borrow().clone();
    assert_eq!((calls[0].at, calls[0].token.as_str()), (calls[1].at, calls[1].token.as_str()));
}

#[tokio::test(start_paused = true)]
async fn a_token_request_has_a_deadline_of_its_own() {
    let world = World::new(300, epic()).await;
    let grant = world.grant().await;
    pass(200).await;
    world.ehr.next(Reply::Never);
    world.access(grant).await;
    world.ehr.called(1).await;
    pass(60).await;
    world.until_outcome(RefreshOutcome::InDoubt).await;
    assert!(in_doubt(world.stored(grant).await.state));
}

#[tokio::test(start_paused = true)]
async fn a_panic_wakes_all_and_leaves_doubt() {
    let world = World::new(300, epic()).await;
    let grant = world.grant().await;
    pass(300).await;
    world.ehr.next(Reply::Panic);
    let served = join_all((0..20).map(|_| world.bearer(grant))).await;
    assert!(served.iter().all(|it| matches!(it, Err(CustodyFault::Unavailable { .. }))));
    assert!(in_doubt(world.stored(grant).await.state));
    tokio::time::advance(secs(60)).await;
    assert_eq!((world.access(grant).await.as_str(), world.ehr.calls()), ("access-2", 2));
}

/// Killed between the request and its answer; the EHR has taken it.
#[tokio::test(start_paused = true)]
async fn after_a_kill_the_grant_is_in_doubt_and_tried_once() {
    for (renewed, expected) in [(false, Ok("access-2")), (true, Err(EndReason::LostRotation))] {
        let mut world = World::to_be_killed(300).await;
        let grant = world.grant().await;
        pass(200).await;
        let _open = world.ehr.gate();
        world.access(grant).await;
        world.ehr.called(1).await;
        if renewed {
            world.ehr.fair("refresh-1");
        }
        world.reboot().await;
        // The old access token still serves, and nobody need ask: the wheel finds the doubt in the store.
        assert_eq!(world.access(grant).await, "access-1");
        pass(99).await;
        assert_eq!(world.ehr.calls(), 1);
        tokio::time::advance(secs(1)).await;
        world.ehr.called(2).await;
        world.landed().await;
        match (world.bearer(grant).await, expected) {
            (Ok(bearer), Ok(token)) => assert_eq!(bearer.token.expose(), token),
            (Err(fault), Err(reason)) => assert_eq!(fault, CustodyFault::Ended(reason)),
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
        assert_eq!(world.ehr.calls(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_start_the_wheel_finds_the_doubt_by_itself() {
    let mut world = World::to_be_killed(300).await;
    let grant = world.grant().await;
    pass(200).await;
    let _open = world.ehr.gate();
    world.access(grant).await;
    world.ehr.called(1).await;
    world.reboot().await;
    // Wait until the pages are read: the doubt has its turn then.
    while world.custody.0.wheel.is_empty() {
        tokio::task::yield_now().await;
    }
    pass(99).await;
    assert_eq!(world.ehr.calls(), 1);
    tokio::time::advance(secs(1)).await;
    world.until_outcome(RefreshOutcome::Renewed).await;
    assert_eq!(world.stored(grant).await.state, GrantState::Live);
}

/// Killed during the one try: there is no other.
#[tokio::test(start_paused = true)]
async fn a_try_that_was_cut_short_is_not_made_again() {
    let mut world = World::to_be_killed(300).await;
    let grant = doubtful(&world, Reply::Answer(RefreshAnswer::Unknown)).await;
    let _open = world.ehr.gate();
    pass(100).await;
    world.ehr.called(2).await;
    world.reboot().await;
    assert_eq!(world.bearer(grant).await.unwrap_err(), CustodyFault::Ended(EndReason::LostRotation));
    assert_eq!(world.ehr.calls(), 2);
}

/// The winner comes late: its answer is taken by what it consumed.
#[tokio::test(start_paused = true)]
async fn a_late_winner_ends_the_doubt() {
    let mut world = World::to_be_killed(300).await;
    let grant = world.grant().await;
    pass(200).await;
    let open = world.ehr.gate();
    world.access(grant).await;
    world.ehr.called(1).await;
    let stopped = world.custody.clone();
    world.reboot().await;
    assert_eq!(world.access(grant).await, "access-1");
    pass(50).await;
    open.send(Reply::Fair).ok().unwrap();
    stopped.shutdown().await;
    assert_eq!(world.stored(grant).await.generation, 2);
    pass(50).await;
    assert_eq!((world.access(grant).await.as_str(), world.ehr.calls()), ("access-2", 1));
}

/// The doubt came first, and then the EHR refuses the bearer that it waits for.
#[tokio::test(start_paused = true)]
async fn a_doubt_does_not_wait_for_a_bearer_that_is_refused() {
    let (world, start) = (World::new(3600, epic()).await, Instant::now());
    let grant = world.grant().await;
    pass(3310).await;
    world.ehr.next(Reply::Answer(RefreshAnswer::Unknown));
    assert_eq!(world.access(grant).await, "access-1");
    world.until_outcome(RefreshOutcome::InDoubt).await;
    pass(10).await;
    let fault = world.refused(grant, 1).await.unwrap_err();
    assert!(matches!(fault, CustodyFault::Unavailable { retry_after } if retry_after == secs(50)), "{fault:?}");
    pass(50).await;
    world.until_outcome(RefreshOutcome::Renewed).await;
    assert_eq!((world.ehr.calls.borrow()[1].at - start).as_secs(), 3370);
    assert_eq!(world.access(grant).await, "access-2");
}
