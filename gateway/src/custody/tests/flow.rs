//! Fresh, due, expired; one refresh at a time; stored before shared.

use std::pin::pin;

use futures_util::{FutureExt as _, future::join_all};
use mantel_adapters::profile::Meaning;

use super::world::*;
use crate::{
    clock::Instant,
    custody::{
        CustodyFault, RefreshAnswer, RefreshOutcome,
        machine::{Action, Event},
        refresh::Job,
    },
    store::{GrantState, Store as _},
};

/// When, in seconds after receipt, a warm grant is refreshed without being asked.
async fn refreshed_at(lifetime: u64, before: u64) -> u64 {
    let mut policy = epic();
    policy.refresh_before = secs(before);
    let world = World::new(lifetime, policy).await;
    let (grant, start) = (world.grant().await, Instant::now());
    assert_eq!(world.access(grant).await, "access-1");
    let due = lifetime - before.min(lifetime * 2 / 5);
    pass(due - 1).await;
    assert_eq!(world.ehr.calls(), 0);
    tokio::time::advance(secs(1)).await;
    world.until_outcome(RefreshOutcome::Renewed).await;
    assert_eq!(world.access(grant).await, "access-2");
    assert_eq!(world.ehr.calls(), 1);
    (world.ehr.calls.borrow()[0].at - start).as_secs()
}

#[tokio::test(start_paused = true)]
async fn epic_of_five_minutes_is_refreshed_in_minute_three() {
    assert_eq!(refreshed_at(300, 300).await, 180);
}

#[tokio::test(start_paused = true)]
async fn oracle_is_refreshed_in_minute_eight() {
    assert_eq!(refreshed_at(570, 90).await, 480);
}

#[tokio::test(start_paused = true)]
async fn athena_is_refreshed_five_minutes_before_its_hour() {
    assert_eq!(refreshed_at(3600, 300).await, 3300);
}

#[tokio::test(start_paused = true)]
async fn a_fresh_bearer_needs_no_store() {
    let world = World::new(300, epic()).await;
    let grant = world.grant().await;
    world.store.close().await;
    assert_eq!(world.access(grant).await, "access-1");
}

#[tokio::test(start_paused = true)]
async fn two_hundred_callers_at_expiry_make_one_refresh() {
    let world = World::new(300, epic()).await;
    let grant = world.grant().await;
    pass(300).await;
    let open = world.ehr.gate();
    let callers = join_all((0..200).map(|_| world.access(grant)));
    let (served, ()) = tokio::join!(callers, async {
        world.ehr.called(1).await;
        open.send(Reply::Fair).ok().unwrap();
    });
    assert!(served.iter().all(|token| token == "access-2"));
    assert_eq!((world.ehr.calls(), world.counted().joined), (1, 199));
    assert_eq!(world.stored(grant).await.tokens.refresh, Some("refresh-2".into()));
}

/// Its starter lost the processor in between.
#[tokio::test(start_paused = true)]
async fn who_finds_a_flight_that_is_not_on_the_board_yet_waits_for_it() {
    let world = World::new(300, epic()).await;
    let grant = world.grant().await;
    pass(300).await;
    let custody = &world.custody.0;
    let entry = custody.table.get(grant).unwrap();
    let (action, flight) = entry.step(Event::Asked, Instant::now());
    assert_eq!(action, Action::Fly);
    let mut asked = pin!(world.access(grant));
    for _ in 0..20 {
        assert_eq!(asked.as_mut().now_or_never(), None);
        tokio::time::advance(std::time::Duration::from_millis(1)).await;
    }
    let _started = custody.start(&entry, flight, Job::Refresh);
    let (served, ()) = tokio::join!(asked, pass(1));
    assert_eq!((served.as_str(), world.ehr.calls()), ("access-2", 1));
}

#[tokio::test(start_paused = true)]
async fn callers_who_hang_up_cancel_nothing() {
    let world = World::new(300, epic()).await;
    let grant = world.grant().await;
    pass(300).await;
    let open = world.ehr.gate();
    {
        let first = join_all((0..50).map(|_| world.bearer(grant)));
        tokio::select! {
            biased;
            () = world.ehr.called(1) => {}
            _ = first => panic!("the EHR has not answered"),
        }
    }
    let later = join_all((0..50).map(|_| world.access(grant)));
    let (served, ()) = tokio::join!(later, async {
        tokio::task::yield_now().await;
        open.send(Reply::Fair).ok().unwrap();
    });
    assert!(served.iter().all(|token| token == "access-2"));
    assert_eq!(world.ehr.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn with_nobody_left_the_answer_is_stored_all_the_same() {
    let world = World::new(300, epic()).await;
    let grant = world.grant().await;
    pass(300).await;
    let open = world.ehr.gate();
    tokio::select! {
        biased;
        () = world.ehr.called(1) => {}
        _ = world.bearer(grant) => panic!("the EHR has not answered"),
    }
    open.send(Reply::Fair).ok().unwrap();
    world.until_outcome(RefreshOutcome::Renewed).await;
    assert_eq!(world.stored(grant).await.generation, 2);
    assert_eq!(world.access(grant).await, "access-2");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_the_waiting_and_not_the_refresh() {
    let world = World::new(300, epic()).await;
    let grant = world.grant().await;
    pass(300).await;
    let open = world.ehr.gate();
    let (served, ()) = tokio::join!(world.bearer(grant), async {
        world.ehr.called(1).await;
        pass(20).await;
    });
    assert!(matches!(served, Err(CustodyFault::Unavailable { .. })));
    open.send(Reply::Fair).ok().unwrap();
    world.until_outcome(RefreshOutcome::Renewed).await;
    assert_eq!((world.access(grant).await.as_str(), world.ehr.calls()), ("access-2", 1));
}

#[tokio::test(start_paused = true)]
async fn a_due_bearer_is_served_at_once_and_refreshed_once_behind() {
    let world = World::new(300, epic()).await;
    let grant = world.grant().await;
    // Unused, so the wheel leaves it alone.
    pass(200).await;
    assert_eq!(world.ehr.calls(), 0);
    let open = world.ehr.gate();
    for _ in 0..20 {
        assert_eq!(world.access(grant).await, "access-1");
    }
    world.ehr.called(1).await;
    assert_eq!(world.access(grant).await, "access-1");
    open.send(Reply::Fair).ok().unwrap();
    world.until_outcome(RefreshOutcome::Renewed).await;
    assert_eq!((world.access(grant).await.as_str(), world.ehr.calls()), ("access-2", 1));
}

#[tokio::test(start_paused = true)]
async fn a_cold_grant_is_refreshed_on_its_next_use() {
    let world = World::new(300, epic()).await;
    let grant = world.grant().await;
    world.access(grant).await;
    pass(180).await;
    world.until_outcome(RefreshOutcome::Renewed).await;
    // Not used since: the wheel lets it expire.
    pass(1000).await;
    assert_eq!(world.ehr.calls(), 1);
    assert_eq!((world.access(grant).await.as_str(), world.ehr.calls()), ("access-3", 2));
}

/// A trigger stands for a disk that takes no writes; the EHR has answered meanwhile.
#[tokio::test(start_paused = true)]
async fn an_answer_that_the_store_does_not_take_is_kept_and_not_shared() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("mantel.db");
    let world = World::on(Some(&database), 300, epic()).await;
    let grant = world.grant().await;
    pass(200).await;
    tell(&database, "CREATE TRIGGER full BEFORE UPDATE OF tokens ON grants BEGIN SELECT RAISE(ABORT, 'full'); END")
        .await;
    assert_eq!(world.access(grant).await, "access-1");
    world.until(|counted| counted.kept > 0).await;
    assert_eq!(world.access(grant).await, "access-1", "the old one serves while it lives");
    pass(100).await;
    for _ in 0..3 {
        let served = world.bearer(grant).await;
        assert!(matches!(served, Err(CustodyFault::Unavailable { .. })), "{served:?}");
    }
    assert_eq!(world.stored(grant).await.generation, 1);
    tell(&database, "DROP TRIGGER full").await;
    tokio::time::advance(secs(10)).await;
    world.until_outcome(RefreshOutcome::Renewed).await;
    assert_eq!(
        (world.stored(grant).await.generation, world.ehr.calls()),
        (2, 1),
        "the answer was kept, not asked again"
    );
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_unless_the_intent_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("mantel.db");
    let world = World::on(Some(&database), 300, epic()).await;
    let grant = world.grant().await;
    tell(
        &database,
        "CREATE TRIGGER full BEFORE UPDATE OF lease_owner ON grants BEGIN SELECT RAISE(ABORT, 'full'); END",
    )
    .await;
    pass(300).await;
    assert!(matches!(world.bearer(grant).await, Err(CustodyFault::Unavailable { .. })));
    assert_eq!(world.ehr.calls(), 0);
    assert_eq!(world.counted().refreshes.get(&RefreshOutcome::StoreAway), Some(&1));
    tell(&database, "DROP TRIGGER full").await;
    pass(2).await;
    assert_eq!(world.access(grant).await, "access-2");
}

#[tokio::test(start_paused = true)]
async fn an_unused_grant_is_forgotten_and_found_again() {
    let world = World::new(3600, epic()).await;
    let grant = world.grant().await;
    world.access(grant).await;
    pass(3300).await;
    world.until_outcome(RefreshOutcome::Renewed).await;
    assert_eq!(world.custody.0.table.len(), 1, "it was used since its first token came");
    pass(62).await;
    assert_eq!(world.custody.0.table.len(), 0);
    assert_eq!((world.access(grant).await.as_str(), world.ehr.calls()), ("access-2", 1));
}

#[tokio::test(start_paused = true)]
async fn a_401_forces_one_refresh_a_minute() {
    let world = World::new(3600, epic()).await;
    let grant = world.grant().await;
    let old = world.bearer(grant).await.unwrap().generation;
    let tries = join_all((0..20).map(|_| world.refused(grant, old))).await;
    let got: Vec<_> = tries.into_iter().map(|it| it.unwrap().unwrap().token.expose().clone()).collect();
    assert!(got.iter().all(|token| token == "access-2"));
    assert_eq!(world.ehr.calls(), 1);
    // The newer one is refused as well: that is the resource's refusal, and the grant lives.
    assert!(world.refused(grant, old + 1).await.unwrap().is_none());
    pass(60).await;
    assert_eq!(world.refused(grant, old + 1).await.unwrap().unwrap().generation, 3);
    assert_eq!(world.ehr.calls(), 2);
    // Who still comes with the first gets the newest.
    assert_eq!(world.refused(grant, old).await.unwrap().unwrap().generation, 3);
}

#[tokio::test(start_paused = true)]
async fn a_401_within_the_interval_forces_nothing() {
    let mut policy = epic();
    policy.min_refresh_interval = secs(600);
    let world = World::new(300, policy).await;
    let grant = world.grant().await;
    pass(149).await;
    assert!(world.refused(grant, 1).await.unwrap().is_none());
    pass(1).await;
    assert!(world.refused(grant, 1).await.unwrap().is_some(), "the interval is at most half the lifetime");
}

#[tokio::test(start_paused = true)]
async fn what_an_answer_teaches_is_stored() {
    let world = World::new(300, epic()).await;
    let grant = world.grant().await;
    pass(300).await;
    world.ehr.next(Reply::Answer(crate::custody::RefreshAnswer::Tokens {
        access: "access-2".into(),
        // None: the old one stays good.
        refresh: None,
        lifetime: Some(secs(900)),
        refresh_lifetime: None,
        scope: Some("patient/Patient.r".into()),
        id_token: None,
    }));
    world.access(grant).await;
    let stored = world.stored(grant).await;
    assert_eq!(stored.tokens.refresh, Some("refresh-1".into()));
    assert_eq!(stored.tokens.lifetime, secs(900));
    assert_eq!(stored.facts.upstream.as_deref(), Some("patient/Patient.r"));
    assert_eq!((stored.generation, stored.state), (2, GrantState::Live));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_the_answer() {
    let world = World::new(300, epic()).await;
    let grant = world.grant().await;
    pass(200).await;
    let open = world.ehr.gate();
    world.access(grant).await;
    world.ehr.called(1).await;
    let ((), ()) = tokio::join!(world.custody.shutdown(), async {
        tokio::task::yield_now().await;
        open.send(Reply::Fair).ok().unwrap();
    });
    assert_eq!(world.stored(grant).await.generation, 2);
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_moved_on_in_the_store_is_taken_from_there() {
    let world = World::new(300, epic()).await;
    let grant = world.grant().await;
    pass(250).await;
    let mut tokens = world.stored(grant).await.tokens;
    tokens.access = "access-of-another".into();
    tokens.received = world.now();
    world.store.finish_refresh(grant, 1, &tokens, None, world.now()).await.unwrap();
    pass(50).await;
    assert_eq!((world.access(grant).await.as_str(), world.ehr.calls()), ("access-of-another", 0));
    assert_eq!(world.counted().refreshes.get(&RefreshOutcome::Moved), Some(&1));
}

/// Whoever starts behind a clock that was set back cannot know how old a token is.
#[tokio::test(start_paused = true)]
async fn a_refusal_is_believed_of_a_token_from_the_future() {
    let mut policy = epic();
    policy.min_refresh_interval = secs(60);
    let mut world = World::new(300, policy).await;
    let grant = world.grant().await;
    pass(30).await;
    world.clock.set_back(secs(3600));
    world.reboot().await;
    assert_eq!(world.access(grant).await, "access-1");
    assert_eq!(world.refused(grant, 1).await.unwrap().unwrap().generation, 2);
    assert_eq!(world.ehr.calls(), 1);
}

/// What the EHR has refused is dead, whatever its clock says: the next try is the same refresh's, by its own backoff.
#[tokio::test(start_paused = true)]
async fn a_forced_refresh_that_met_a_passing_fault_is_tried_again_when_it_may_be() {
    let world = World::new(3600, epic()).await;
    let grant = world.grant().await;
    pass(1).await;
    world.ehr.next(Reply::Answer(RefreshAnswer::Refused {
        meaning: Meaning::Passing,
        retry_after: Some(secs(5)),
        detail: "503".into(),
    }));
    assert!(matches!(world.refused(grant, 1).await, Err(CustodyFault::Unavailable { .. })));
    pass(4).await;
    let fault = world.refused(grant, 1).await.unwrap_err();
    assert_eq!(fault, CustodyFault::Unavailable { retry_after: secs(1) });
    assert_eq!(world.ehr.calls(), 1);
    pass(1).await;
    assert_eq!(world.refused(grant, 1).await.unwrap().unwrap().generation, 2);
    assert_eq!(world.ehr.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn after_a_forced_refresh_the_refused_token_is_not_waited_for() {
    let world = World::new(3600, epic()).await;
    let grant = world.grant().await;
    pass(1).await;
    world.ehr.next(Reply::Answer(RefreshAnswer::Unknown));
    assert!(matches!(world.refused(grant, 1).await, Err(CustodyFault::Unavailable { .. })));
    pass(59).await;
    assert!(matches!(world.refused(grant, 1).await, Err(CustodyFault::Unavailable { .. })));
    assert_eq!(world.ehr.calls(), 1);
    tokio::time::advance(secs(1)).await;
    world.until_outcome(RefreshOutcome::Renewed).await;
    assert_eq!((world.access(grant).await.as_str(), world.ehr.calls()), ("access-2", 2));
}
