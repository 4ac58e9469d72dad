//! Every end is known; ended means ended.

use mantel_adapters::profile::Meaning;

use super::world::*;
use crate::{
    custody::{CustodyFault, RefreshAnswer, RefreshOutcome},
    store::{EndReason, GrantState, Store as _},
};

fn ended(reason: EndReason) -> CustodyFault {
    CustodyFault::Ended(reason)
}

#[tokio::test(start_paused = true)]
async fn a_dead_token_ends_the_grant() {
    let world = World::new(300, epic()).await;
    let grant = world.grant().await;
    pass(300).await;
    world.ehr.next(refuse(Meaning::Dead));
    for _ in 0..3 {
        assert_eq!(world.bearer(grant).await.unwrap_err(), ended(EndReason::Dead));
    }
    assert_eq!((world.ehr.calls(), world.counted().ended), (1, vec![EndReason::Dead]));
    assert!(matches!(world.stored(grant).await.state, GrantState::Ended { reason: EndReason::Dead, .. }));
}

#[tokio::test(start_paused = true)]
async fn a_death_reads_the_store_again_first() {
    let world = World::new(300, epic()).await;
    let grant = world.grant().await;
    pass(300).await;
    let open = world.ehr.gate();
    let (served, ()) = tokio::join!(world.access(grant), async {
        world.ehr.called(1).await;
        // Another holder of the token was faster.
        let mut tokens = world.stored(grant).await.tokens;
        (tokens.access, tokens.received) = ("access-of-another".into(), world.now());
        world.store.finish_refresh(grant, 1, &tokens, None, world.now()).await.unwrap();
        open.send(refuse(Meaning::Dead)).ok().unwrap();
    });
    assert_eq!(served, "access-of-another");
    assert_eq!(world.stored(grant).await.state, GrantState::Live);
}

#[tokio::test(start_paused = true)]
async fn a_revocation_in_flight_wins_and_the_new_tokens_are_revoked() {
    let world = World::new(300, epic()).await;
    let grant = world.grant().await;
    pass(300).await;
    let open = world.ehr.gate();
    let (served, ()) = tokio::join!(world.bearer(grant), async {
        world.ehr.called(1).await;
        world.store.end_grant(grant, EndReason::Revoked, None, &[], world.now()).await.unwrap();
        open.send(Reply::Fair).ok().unwrap();
    });
    assert_eq!(served.unwrap_err(), ended(EndReason::Revoked));
    let revocations = world.revocations().await;
    assert_eq!(revocations.len(), 1);
    assert_eq!((&revocations[0].token, revocations[0].hint.as_str()), (&"refresh-2".into(), "refresh_token"));
    assert_eq!(world.counted().refreshes.get(&RefreshOutcome::Dropped), Some(&1));
}

#[tokio::test(start_paused = true)]
async fn an_ended_grant_that_is_forgotten_stays_ended() {
    let world = World::new(300, epic()).await;
    let grant = world.grant().await;
    world.access(grant).await;
    world.store.end_grant(grant, EndReason::Logout, None, &[], world.now()).await.unwrap();
    world.custody.forget(grant);
    assert_eq!(world.bearer(grant).await.unwrap_err(), ended(EndReason::Logout));
    assert_eq!(world.refused(grant, 1).await.unwrap_err(), ended(EndReason::Logout));
}

#[tokio::test(start_paused = true)]
async fn a_passing_fault_is_waited_out() {
    let world = World::new(300, epic()).await;
    let grant = world.grant().await;
    pass(200).await;
    world.ehr.next(Reply::Answer(RefreshAnswer::Refused {
        meaning: Meaning::Passing,
        retry_after: Some(secs(150)),
        detail: "503".into(),
    }));
    assert_eq!(world.access(grant).await, "access-1");
    world.until_outcome(RefreshOutcome::Passing).await;
    assert_eq!(world.stored(grant).await.state, GrantState::Live, "the intent was cleared");
    pass(100).await;
    let fault = world.bearer(grant).await.unwrap_err();
    assert!(matches!(fault, CustodyFault::Unavailable { retry_after } if retry_after == secs(50)), "{fault:?}");
    assert_eq!(world.ehr.calls(), 1);
    // It is wanted: the wheel tries again as soon as it may.
    tokio::time::advance(secs(50)).await;
    world.until_outcome(RefreshOutcome::Renewed).await;
    assert_eq!((world.access(grant).await.as_str(), world.ehr.calls()), ("access-2", 2));
}

#[tokio::test(start_paused = true)]
async fn what_was_not_sent_is_sent_again() {
    let world = World::new(300, epic()).await;
    let grant = world.grant().await;
    pass(300).await;
    world.ehr.next(Reply::Answer(RefreshAnswer::NotSent));
    assert!(matches!(world.bearer(grant).await, Err(CustodyFault::Unavailable { .. })));
    assert_eq!(world.stored(grant).await.state, GrantState::Live);
    tokio::time::advance(secs(1)).await;
    world.until_outcome(RefreshOutcome::Renewed).await;
    assert_eq!(world.access(grant).await, "access-2");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_the_users_fault_never_ends_a_grant() {
    for meaning in [Meaning::Misconfigured, Meaning::Suspended] {
        let world = World::new(300, epic()).await;
        let grant = world.grant().await;
        pass(300).await;
        (0..1000).for_each(|_| world.ehr.next(refuse(meaning)));
        for _ in 0..20 {
            let fault = world.bearer(grant).await.unwrap_err();
            match meaning {
                Meaning::Misconfigured => assert!(matches!(fault, CustodyFault::Misconfigured { .. }), "{fault:?}"),
                _ => assert!(matches!(fault, CustodyFault::Suspended { .. }), "{fault:?}"),
            }
            pass(120).await;
        }
        world.landed().await;
        assert_eq!(world.stored(grant).await.state, GrantState::Live);
        assert!(world.counted().ended.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_refresh_token_the_grant_ends_with_its_access_token() {
    let world = World::new(300, epic()).await;
    let (asked, unasked) = (world.grant_with(None).await, world.grant_with(None).await);
    pass(299).await;
    assert_eq!(world.access(asked).await, "access-1");
    tokio::time::advance(secs(1)).await;
    assert_eq!(world.bearer(asked).await.unwrap_err(), ended(EndReason::Expired));
    world.until(|counted| counted.ended.len() == 2).await;
    assert!(matches!(world.stored(unasked).await.state, GrantState::Ended { reason: EndReason::Expired, .. }));
    assert_eq!(world.ehr.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_ends_and_is_revoked() {
    let world = World::new(36_000, epic()).await;
    world.session(8 * 3600, 1800);
    let grant = world.grant().await;
    pass(1000).await;
    world.access(grant).await;
    pass(1799).await;
    assert!(world.counted().ended.is_empty());
    tokio::time::advance(secs(1)).await;
    world.until(|counted| counted.ended == [EndReason::SessionEnded]).await;
    world.landed().await;
    assert_eq!(world.bearer(grant).await.unwrap_err(), ended(EndReason::SessionEnded));
    assert_eq!(world.revocations().await[0].token, "refresh-1".into());
}
