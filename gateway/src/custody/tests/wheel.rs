//! What is done though nobody asks is shared among processes; what one of them ends is ended everywhere.

use super::{many::Many, world::*};
use crate::{
    clock::Instant,
    custody::{CustodyFault, RefreshAnswer, RefreshOutcome},
    store::{EndReason, GrantState, Store as _},
};

#[tokio::test(start_paused = true)]
async fn a_grant_that_is_warm_everywhere_is_refreshed_once() {
    let many = Many::new(3, 300, epic()).await;
    let grant = many.world.grant().await;
    for node in 0..3 {
        assert_eq!(many.access(node, grant).await, "access-1");
    }
    for node in &many.nodes {
        node.link.forget_counts();
    }
    many.pass(secs(179)).await;
    assert_eq!(many.calls(), 0);
    many.pass(secs(2)).await;
    assert_eq!(many.calls(), 1);
    assert_eq!(many.nodes[many.first(grant)].counted().refreshes.get(&RefreshOutcome::Renewed), Some(&1));
    many.pass(secs(5)).await;
    for (number, node) in many.nodes.iter().enumerate() {
        assert_eq!(many.access(number, grant).await, "access-2");
        let refresh = |name| node.link.count(name);
        let first = usize::from(number == many.first(grant));
        assert_eq!((refresh("grant"), refresh("begin_refresh"), refresh("finish_refresh")), (1, first, first));
    }
    assert_eq!(many.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn apps_that_ask_at_the_due_time_start_one_refresh() {
    let many = Many::new(3, 300, epic()).await;
    let grant = many.world.grant().await;
    for _ in 0..190 {
        for node in 0..3 {
            many.access(node, grant).await;
        }
        many.pass(secs(1)).await;
    }
    let begun: usize = many.nodes.iter().map(|node| node.link.count("begin_refresh")).sum();
    assert_eq!((many.calls(), begun), (1, 1));
}

/// The first dies; to whom it is warm, refreshes it a little later.
#[tokio::test(start_paused = true)]
async fn the_next_is_not_far_behind() {
    let many = Many::new(3, 300, epic()).await;
    let grant = many.world.grant().await;
    let other = (many.first(grant) + 1) % 3;
    many.access(other, grant).await;
    many.pass(secs(179)).await;
    many.nodes[many.first(grant)].kill();
    many.pass(secs(7)).await;
    assert_eq!((many.access(other, grant).await.as_str(), many.calls()), ("access-2", 1));
}

/// Nobody asks for it: whose share it is by now finds it in the store.
#[tokio::test(start_paused = true)]
async fn a_dead_process_leaves_its_share_to_the_others() {
    let many = Many::new(3, 300, epic()).await;
    let grant = many.world.grant().await;
    many.pass(secs(200)).await;
    let owner = many.first(grant);
    let _open = many.world.ehr.gate();
    many.access(owner, grant).await;
    many.settle().await;
    assert_eq!(many.calls(), 1);
    many.nodes[owner].kill();
    let heirs: Vec<_> = (0..3).filter(|node| *node != owner).collect();
    many.pass(secs(10)).await;
    let heir = *heirs.iter().find(|node| many.nodes[**node].replicas.first_for(grant)).unwrap();
    assert!(heirs.iter().all(|node| many.nodes[*node].replicas.live().len() == 2));
    // The old token has ended by then; a lease is watched before it is taken over.
    many.pass(secs(115)).await;
    assert_eq!((many.calls(), many.leases("taken_over")), (2, 1));
    assert_eq!(many.nodes[heir].counted().refreshes.get(&RefreshOutcome::Renewed), Some(&1));
    assert_eq!(many.world.stored(grant).await.state, GrantState::Live);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_is_missed_at_once() {
    let many = Many::new(3, 300, epic()).await;
    many.pass(secs(2)).await;
    assert_eq!(many.nodes[0].replicas.live().len(), 3);
    many.nodes[1].replicas.leave().await;
    many.pass(secs(2)).await;
    for node in [0, 2] {
        assert_eq!(many.nodes[node].replicas.live().len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_ended_elsewhere_is_refused_within_a_poll() {
    let many = Many::new(3, 300, epic()).await;
    let grant = many.world.grant().await;
    for node in 0..3 {
        many.access(node, grant).await;
    }
    let at = many.world.now();
    many.nodes[0].link.end_grant(grant, EndReason::RefreshReplay, None, &[], at).await.unwrap();
    many.pass(secs(1) * 3 / 10).await;
    for node in 0..3 {
        let served = many.ask(node, grant).await;
        assert_eq!(served.unwrap_err(), CustodyFault::Ended(EndReason::RefreshReplay));
    }
}

/// While the ends are unknown nothing is served for longer than `max_stale`; with the next word of them it is.
#[tokio::test(start_paused = true)]
async fn without_word_of_ends_nothing_is_served() {
    let many = Many::new(2, 3600, epic()).await;
    let (lives, ends) = (many.world.grant().await, many.world.grant().await);
    for grant in [lives, ends] {
        many.access(1, grant).await;
    }
    many.nodes[1].link.fail("ended_since");
    many.world.store.end_grant(ends, EndReason::Logout, None, &[], many.world.now()).await.unwrap();
    many.pass(secs(59)).await;
    assert_eq!(many.access(1, lives).await, "access-1");
    many.pass(secs(2)).await;
    for grant in [lives, ends] {
        assert!(matches!(many.ask(1, grant).await, Err(CustodyFault::Unavailable { .. })));
        assert!(matches!(many.nodes[1].custody.refused(grant, 1, now(1)).await, Err(CustodyFault::Unavailable { .. })));
    }
    assert!(many.ask(0, lives).await.is_ok());
    many.nodes[1].link.mend();
    many.pass(secs(1)).await;
    assert_eq!(many.access(1, lives).await, "access-1");
    assert_eq!(many.ask(1, ends).await.unwrap_err(), CustodyFault::Ended(EndReason::Logout));
}

fn now(seconds: u64) -> crate::clock::Instant {
    crate::clock::Instant::now() + secs(seconds)
}

/// Ended at one process while another is at the EHR: the end wins, and the new tokens are revoked, once.
#[tokio::test(start_paused = true)]
async fn an_end_elsewhere_wins_over_a_flight_here() {
    let many = Many::new(2, 300, epic()).await;
    let grant = many.world.grant().await;
    many.pass(secs(300)).await;
    let open = many.world.ehr.gate();
    let waiting = many.asked(0, grant).await;
    let at = many.world.now();
    assert!(many.nodes[1].link.end_grant(grant, EndReason::Revoked, None, &[], at).await.unwrap());
    many.pass(secs(1)).await;
    open.send(Reply::Fair).ok().unwrap();
    assert_eq!(waiting.await.unwrap().unwrap_err(), CustodyFault::Ended(EndReason::Revoked));
    let revocations = many.world.revocations().await;
    assert_eq!((revocations.len(), &revocations[0].token), (1, &"refresh-2".into()));
    assert_eq!(revocations[0].fingerprint.as_deref(), Some("epic|client|/oauth/callback/viewer-epic"));
}

/// What a refresh elsewhere has changed is told here no later than its bearer is served.
#[tokio::test(start_paused = true)]
async fn changed_facts_come_with_their_bearer() {
    let many = Many::new(2, 300, epic()).await;
    let grant = many.world.grant().await;
    many.pass(secs(300)).await;
    for node in 0..2 {
        // Both knew it as it was.
        many.nodes[node].custody.adopt(&many.world.stored(grant).await);
    }
    many.world.ehr.next(Reply::Answer(RefreshAnswer::Tokens {
        access: "access-2".into(),
        refresh: None,
        lifetime: Some(secs(300)),
        refresh_lifetime: None,
        scope: Some("patient/Patient.r".into()),
        id_token: None,
    }));
    for node in 0..2 {
        assert_eq!(many.access(node, grant).await, "access-2");
        assert_eq!(many.nodes[node].counted().changed, 1);
    }
    // A generation that changes nothing is not told.
    many.world.ehr.next(Reply::Answer(RefreshAnswer::Tokens {
        access: "access-3".into(),
        refresh: None,
        lifetime: Some(secs(300)),
        refresh_lifetime: None,
        scope: None,
        id_token: None,
    }));
    many.pass(secs(190)).await;
    for node in 0..2 {
        assert_eq!(many.access(node, grant).await, "access-3");
        assert_eq!(many.nodes[node].counted().changed, 1);
    }
}

/// Somebody has read a newer generation, and goes by what it is about: an older bearer is not served with it.
#[tokio::test(start_paused = true)]
async fn a_newer_generation_that_was_seen_is_taken_up() {
    let many = Many::new(2, 3600, epic()).await;
    let grant = many.world.grant().await;
    assert_eq!(many.access(1, grant).await, "access-1");
    let mut tokens = many.world.stored(grant).await.tokens;
    (tokens.access, tokens.received) = ("access-of-another".into(), many.world.now());
    many.world.store.finish_refresh(grant, 1, &tokens, None, many.world.now()).await.unwrap();
    assert_eq!(many.access(1, grant).await, "access-1");
    many.nodes[1].custody.seen(&many.world.stored(grant).await);
    assert_eq!(many.access(1, grant).await, "access-of-another");
    // What is not known here is not brought in.
    many.nodes[0].custody.seen(&many.world.stored(grant).await);
    assert_eq!(many.nodes[0].custody.0.table.len(), 0);
}

/// Between the decision to refresh and the flight, newer tokens were taken up: they are not refreshed as well.
#[tokio::test(start_paused = true)]
async fn what_was_decided_of_older_tokens_is_not_done_to_newer_ones() {
    let world = World::new(300, epic()).await;
    let grant = world.grant().await;
    // Known, and not used: nothing refreshes it before it is asked for.
    world.custody.adopt(&world.stored(grant).await);
    pass(300).await;
    let mut tokens = world.stored(grant).await.tokens;
    (tokens.access, tokens.received) = ("access-of-another".into(), world.now());
    world.store.finish_refresh(grant, 1, &tokens, None, world.now()).await.unwrap();
    let newer = world.stored(grant).await;
    let mut asked = std::pin::pin!(world.custody.bearer(grant, Instant::now() + secs(20)));
    assert!(futures_util::poll!(&mut asked).is_pending());
    world.custody.seen(&newer);
    assert_eq!(asked.await.unwrap().token.expose(), "access-of-another");
    world.landed().await;
    assert_eq!(world.ehr.calls(), 0);
}

/// A session that is idle at one process is at work at another.
#[tokio::test(start_paused = true)]
async fn a_session_is_idle_only_where_nobody_uses_it() {
    let many = Many::new(2, 36_000, epic()).await;
    many.world.session(8 * 3600, 600);
    let grant = many.world.grant().await;
    many.access(0, grant).await;
    // Each minute at one, and for an hour not at the other, which knows it and would end it.
    for _ in 0..60 {
        many.pass(secs(60)).await;
        assert_eq!(many.access(1, grant).await, "access-1");
    }
    assert_eq!(many.ended(), 0);
    assert!(many.nodes[1].link.count("note_use") < 60, "{:?}", many.nodes[1].link.counts());
    // The store may be behind, so that it takes longer than by one process.
    many.pass(secs(600)).await;
    assert_eq!(many.ended(), 0);
    many.pass(secs(120)).await;
    assert_eq!(many.ended(), 1);
    for node in 0..2 {
        assert_eq!(many.ask(node, grant).await.unwrap_err(), CustodyFault::Ended(EndReason::SessionEnded));
    }
    assert_eq!(many.world.revocations().await.len(), 1);
}

/// Its time is up, however much it is used.
#[tokio::test(start_paused = true)]
async fn a_session_that_is_at_its_end_ends_in_use() {
    let many = Many::new(2, 36_000, epic()).await;
    many.world.session(900, 600);
    let grant = many.world.grant().await;
    many.access(0, grant).await;
    for _ in 0..14 {
        many.pass(secs(60)).await;
        many.access(1, grant).await;
    }
    many.pass(secs(61)).await;
    assert_eq!(many.ended(), 1);
}
