//! One refresh at a time among processes; a late answer is taken by what it consumed.

use futures_util::future::join_all;
use mantel_adapters::profile::Meaning;
use tokio::{sync::oneshot, task::JoinHandle};

use super::{many::Many, world::*};
use crate::{
    clock::Instant,
    custody::{Bearer, CustodyFault, RefreshAnswer, RefreshOutcome, ports::AT_ONCE},
    entropy::uuid4,
    store::{BootId, EndReason, GrantId, GrantState, Store as _},
};

fn token(served: Result<Bearer, CustodyFault>) -> String {
    served.unwrap().token.expose().clone()
}

/// Three processes whose grant has just expired, and the first of them at the EHR.
async fn expired(lifetime: u64, tokens: mantel_adapters::profile::TokenPolicy) -> (Many, GrantId) {
    let many = Many::new(3, lifetime, tokens).await;
    let grant = many.world.grant().await;
    many.pass(secs(lifetime)).await;
    (many, grant)
}

/// The same, until the gate is told what the first of them is answered.
async fn at_ehr(
    lifetime: u64,
    tokens: mantel_adapters::profile::TokenPolicy,
) -> (Many, GrantId, oneshot::Sender<Reply>, JoinHandle<Result<Bearer, CustodyFault>>) {
    let (many, grant) = expired(lifetime, tokens).await;
    let open = many.world.ehr.gate();
    let first = many.asked(0, grant).await;
    (many, grant, open, first)
}

#[tokio::test(start_paused = true)]
async fn a_slow_ehr_is_asked_once() {
    let (many, grant) = expired(300, epic()).await;
    let open = many.world.ehr.gate();
    let mut waiting = vec![many.asked(0, grant).await];
    for node in [1, 2, 1, 2] {
        waiting.push(many.asked(node, grant).await);
    }
    many.pass(secs(30)).await;
    assert!(waiting.iter().all(|it| !it.is_finished()));
    open.send(Reply::Fair).ok().unwrap();
    // Each has the winner's answer as soon as it is stored, within what somebody who waits would notice.
    many.pass(secs(1)).await;
    assert!(waiting.iter().all(JoinHandle::is_finished));
    for served in join_all(waiting).await {
        assert_eq!(token(served.unwrap()), "access-2");
    }
    assert_eq!((many.calls(), many.leases("lost"), many.leases("taken_over")), (1, 0, 0));
    // It beat while it worked; the others looked now and then.
    assert!((9..=11).contains(&many.nodes[0].link.count("beat")), "{:?}", many.nodes[0].link.counts());
    for node in &many.nodes[1..] {
        assert!(node.link.count("grant") < 90 && node.link.count("begin_refresh") < 15, "{:?}", node.link.counts());
    }
}

#[tokio::test(start_paused = true)]
async fn whose_old_token_serves_waits_for_nobody() {
    let many = Many::new(2, 300, epic()).await;
    let grant = many.world.grant().await;
    let open = many.world.ehr.gate();
    for seconds in [0, 200, 30] {
        many.pass(secs(seconds)).await;
        for node in [0, 1] {
            assert_eq!(many.access(node, grant).await, "access-1");
        }
    }
    open.send(Reply::Fair).ok().unwrap();
    many.pass(secs(3)).await;
    for node in [0, 1] {
        assert_eq!((many.access(node, grant).await.as_str(), many.calls()), ("access-2", 1));
    }
}

/// Killed at the EHR, which has not taken the request: the one try renews it.
#[tokio::test(start_paused = true)]
async fn after_a_kill_one_of_the_others_tries_once() {
    let (many, grant, _open, _dead) = at_ehr(300, epic()).await;
    many.nodes[0].kill();
    let waiting = [many.asked(1, grant).await, many.asked(2, grant).await];
    many.pass(secs(59)).await;
    assert_eq!((many.calls(), many.leases("taken_over")), (1, 0), "a late winner is waited for");
    many.pass(secs(4)).await;
    for served in join_all(waiting).await {
        assert_eq!(token(served.unwrap()), "access-2");
    }
    assert_eq!((many.calls(), many.leases("taken_over")), (2, 1));
    assert_eq!(many.world.stored(grant).await.state, GrantState::Live);
}

/// Killed at the EHR, which has renewed.
#[tokio::test(start_paused = true)]
async fn a_rotation_that_died_with_its_process_is_lost_once() {
    let (many, grant, _open, _dead) = at_ehr(300, epic()).await;
    many.world.ehr.fair("refresh-1");
    many.nodes[0].kill();
    let waiting = [many.asked(1, grant).await, many.asked(2, grant).await];
    many.pass(secs(64)).await;
    for served in join_all(waiting).await {
        assert_eq!(served.unwrap().unwrap_err(), CustodyFault::Ended(EndReason::LostRotation));
    }
    assert_eq!((many.calls(), many.ended(), many.outcomes(RefreshOutcome::LostRotation)), (2, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn within_the_reuse_grace_it_is_taken_over_after_a_ttl() {
    let mut policy = epic();
    policy.reuse_grace = secs(30);
    let (many, grant, _open, _dead) = at_ehr(300, policy).await;
    many.nodes[0].kill();
    let waiting = many.asked(1, grant).await;
    many.pass(secs(9)).await;
    assert_eq!(many.calls(), 1);
    many.pass(secs(4)).await;
    assert_eq!(token(waiting.await.unwrap()), "access-2");
    assert_eq!((many.calls(), many.leases("taken_over")), (2, 1));
}

/// Stopped for longer than its lease after it has sent, and continued: the generation is still current.
#[tokio::test(start_paused = true)]
async fn who_was_stopped_and_goes_on_brings_the_answer() {
    let (many, grant, open, stopped) = at_ehr(300, epic()).await;
    many.nodes[0].link.freeze(true);
    open.send(Reply::Fair).ok().unwrap();
    let waiting = many.asked(1, grant).await;
    many.pass(secs(40)).await;
    assert_eq!(many.world.stored(grant).await.generation, 1);
    many.nodes[0].link.freeze(false);
    many.pass(secs(1)).await;
    assert_eq!(token(stopped.await.unwrap()), "access-2");
    assert_eq!(token(waiting.await.unwrap()), "access-2");
    assert_eq!((many.calls(), many.ended(), many.world.revocations().await.len()), (1, 0, 0));
}

/// The other has taken over by then, and its one try is at the EHR.
#[tokio::test(start_paused = true)]
async fn an_answer_is_taken_though_its_lease_is_lost() {
    let (many, grant, open, slow) = at_ehr(300, epic()).await;
    many.nodes[0].link.fail("beat");
    let retry = many.world.ehr.gate();
    let waiting = many.asked(1, grant).await;
    many.pass(secs(64)).await;
    assert_eq!((many.calls(), many.leases("taken_over")), (2, 1));
    many.nodes[0].link.mend();
    many.pass(secs(4)).await;
    assert_eq!(many.leases("lost"), 1);
    for gate in [open, retry] {
        gate.send(Reply::Fair).ok().unwrap();
        many.settle().await;
    }
    // The EHR refused the try, since the first request had been faster: it ends nothing.
    for served in [slow, waiting] {
        assert_eq!(token(served.await.unwrap()), "access-2");
    }
    assert_eq!((many.calls(), many.ended()), (2, 0));
}

/// The other's try was refused and has ended the grant: the late answer is revoked at the EHR.
#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_after_the_end_is_revoked() {
    let (many, grant, open, stopped) = at_ehr(300, epic()).await;
    // Its answer is on the way, and the process does not read it.
    many.nodes[0].link.freeze(true);
    open.send(Reply::Fair).ok().unwrap();
    let waiting = many.asked(1, grant).await;
    many.pass(secs(64)).await;
    assert_eq!(waiting.await.unwrap().unwrap_err(), CustodyFault::Ended(EndReason::LostRotation));
    many.nodes[0].link.freeze(false);
    many.settle().await;
    assert_eq!(stopped.await.unwrap().unwrap_err(), CustodyFault::Ended(EndReason::LostRotation));
    let revocations = many.world.revocations().await;
    assert_eq!((revocations.len(), &revocations[0].token), (1, &"refresh-2".into()));
    assert_eq!(many.outcomes(RefreshOutcome::Dropped), 1);
}

/// Its request had not reached the EHR, where the other's try was faster: its refusal ends nothing.
#[tokio::test(start_paused = true)]
async fn a_late_refusal_finds_what_another_has_stored() {
    let (many, grant, open, stopped) = at_ehr(300, epic()).await;
    many.nodes[0].link.freeze(true);
    let waiting = many.asked(1, grant).await;
    many.pass(secs(64)).await;
    assert_eq!(token(waiting.await.unwrap()), "access-2");
    drop(open);
    many.nodes[0].link.freeze(false);
    many.settle().await;
    assert_eq!(many.access(0, grant).await, "access-2");
    assert_eq!((many.calls(), many.ended()), (2, 0));
    drop(stopped);
}

#[tokio::test(start_paused = true)]
async fn a_beat_that_fails_stops_nothing() {
    let (many, grant, open, first) = at_ehr(300, epic()).await;
    many.nodes[0].link.fail("beat");
    let waiting = many.asked(1, grant).await;
    many.pass(secs(30)).await;
    open.send(Reply::Fair).ok().unwrap();
    many.pass(secs(1)).await;
    assert_eq!(token(first.await.unwrap()), "access-2");
    assert_eq!(token(waiting.await.unwrap()), "access-2");
    assert_eq!(many.calls(), 1);
}

/// The one try is cut short by a kill: the last process waits for a late winner, and ends the grant then.
#[tokio::test(start_paused = true)]
async fn a_try_that_died_is_waited_for_and_not_made_again() {
    let (many, grant) = expired(300, epic()).await;
    let _gates = [many.world.ehr.gate(), many.world.ehr.gate()];
    let _dead = many.asked(0, grant).await;
    many.nodes[0].kill();
    let _dead_too = many.asked(1, grant).await;
    many.pass(secs(62)).await;
    assert_eq!(many.calls(), 2);
    many.nodes[1].kill();
    let waiting = many.asked(2, grant).await;
    many.pass(secs(58)).await;
    assert!(!waiting.is_finished() && many.ended() == 0);
    many.pass(secs(4)).await;
    assert_eq!(waiting.await.unwrap().unwrap_err(), CustodyFault::Ended(EndReason::LostRotation));
    assert_eq!(many.calls(), 2);
}

/// What came to nothing at one is not sent at once by each of the others.
#[tokio::test(start_paused = true)]
async fn a_passing_fault_is_shared() {
    let (many, grant, open, first) = at_ehr(300, epic()).await;
    let others = [many.asked(1, grant).await, many.asked(2, grant).await];
    open.send(refuse(Meaning::Passing)).ok().unwrap();
    many.pass(secs(1) / 2).await;
    for served in [first].into_iter().chain(others) {
        assert!(matches!(served.await.unwrap(), Err(CustodyFault::Unavailable { .. })));
    }
    many.pass(secs(3)).await;
    assert_eq!(many.access(2, grant).await, "access-2");
    assert_eq!(many.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_store_away_is_no_standstill() {
    let (many, grant) = expired(300, epic()).await;
    many.world.ehr.next(Reply::Answer(RefreshAnswer::Unknown));
    assert!(many.ask(0, grant).await.is_err());
    let looking = many.asked(1, grant).await;
    // Since then neither could show itself or look.
    for node in &many.nodes {
        for operation in ["grant", "begin_refresh", "beat"] {
            node.link.fail(operation);
        }
    }
    many.pass(secs(100)).await;
    assert!(looking.await.unwrap().is_err());
    for node in &many.nodes {
        node.link.mend();
    }
    let _open = many.world.ehr.gate();
    let _looking = many.asked(1, grant).await;
    many.pass(secs(9)).await;
    assert_eq!(many.leases("taken_over"), 0, "it was not seen to stand still");
}

#[tokio::test(start_paused = true)]
async fn who_watches_stops_when_told() {
    let (many, grant, _open, _first) = at_ehr(300, epic()).await;
    let waiting = many.asked(1, grant).await;
    many.nodes[1].custody.shutdown().await;
    assert!(matches!(waiting.await.unwrap(), Err(CustodyFault::Unavailable { .. })));
}

/// The EHR has refused a bearer: who is not first waits for the other's renewal, and is given it; also one that has
/// just started, and first reads of the grant when the other's intent stands.
#[tokio::test(start_paused = true)]
async fn who_is_refused_at_once_has_one_renewal() {
    for knows in [true, false] {
        let many = Many::new(3, 3600, epic()).await;
        let grant = many.world.grant().await;
        for node in (0..3).filter(|_| knows) {
            assert_eq!(many.access(node, grant).await, "access-1");
        }
        many.pass(secs(10)).await;
        let open = many.world.ehr.gate();
        let mut waiting = Vec::new();
        for node in &many.nodes {
            let custody = node.custody.clone();
            waiting.push(tokio::spawn(async move { custody.refused(grant, 1, Instant::now() + secs(20)).await }));
            many.settle().await;
        }
        many.pass(secs(10)).await;
        open.send(Reply::Fair).ok().unwrap();
        // They wait: as soon as somebody who waits would notice.
        many.pass(secs(1)).await;
        assert!(waiting.iter().all(JoinHandle::is_finished), "knows: {knows}");
        for served in join_all(waiting).await {
            let bearer = served.unwrap().unwrap().unwrap();
            assert_eq!(bearer.token.expose(), "access-2", "knows: {knows}");
        }
        assert_eq!(many.calls(), 1);
    }
}

/// Many processes' worth of doubts: who waits out dead leases holds no room of the EHR's, and a call does.
#[tokio::test(start_paused = true)]
async fn what_is_waited_out_holds_no_room() {
    const DOUBTS: usize = 10 * AT_ONCE;
    let mut many = Many::new(0, 300, epic()).await;
    let dead = BootId(uuid4(&*many.world.entropy));
    let mut grants = Vec::new();
    for _ in 0..DOUBTS {
        grants.push(many.world.grant().await);
    }
    many.pass(secs(300)).await;
    for grant in grants {
        many.world.store.begin_refresh(grant, 1, dead, many.world.now()).await.unwrap();
    }
    let mut gates: Vec<_> = (0..AT_ONCE).map(|_| many.world.ehr.gate()).collect();
    for _ in AT_ONCE..DOUBTS {
        many.world.ehr.next(Reply::Answer(tokens("access-2".into(), "refresh-2".into(), secs(3600))));
    }
    many.start().await;
    many.pass(secs(59)).await;
    assert_eq!(many.calls(), 0, "a late winner is waited for");
    // By then each has been seen to stand still, not only those that came first.
    many.pass(secs(5)).await;
    assert_eq!((many.calls(), many.outcomes(RefreshOutcome::Renewed)), (AT_ONCE, 0), "a call holds its room");
    let last = gates.pop().unwrap();
    for gate in gates {
        gate.send(Reply::Answer(tokens("access-2".into(), "refresh-2".into(), secs(3600)))).ok().unwrap();
    }
    many.pass(secs(5)).await;
    assert_eq!((many.calls(), many.outcomes(RefreshOutcome::Renewed)), (DOUBTS, DOUBTS - 1));
    drop(last);
    // A look takes the store a read and a write that writes nothing.
    let [reads, writes] = ["grant", "begin_refresh"].map(|operation| many.nodes[0].link.count(operation) / DOUBTS);
    assert!(reads <= 30 && writes <= 25, "{reads} and {writes} for each");
}

/// Stopped between its intent and its request: it goes on when another has spent the refresh token.
#[tokio::test(start_paused = true)]
async fn who_was_stopped_before_it_sent_sends_nothing() {
    let (many, grant) = expired(300, epic()).await;
    many.nodes[0].link.freeze_in("begin_refresh");
    let stopped = many.asked(0, grant).await;
    assert!(matches!(many.world.stored(grant).await.state, GrantState::InDoubt { .. }));
    let waiting = many.asked(1, grant).await;
    many.pass(secs(64)).await;
    assert_eq!(token(waiting.await.unwrap()), "access-2");
    many.nodes[0].link.freeze(false);
    many.settle().await;
    assert_eq!(token(stopped.await.unwrap()), "access-2");
    let sent: Vec<_> = many.world.ehr.calls.borrow().iter().map(|call| call.token.clone()).collect();
    assert_eq!(sent, ["refresh-1"], "used once");
}

/// The store fails when the end of a doubt is looked for: what was sent before may have burnt the token all the same.
#[tokio::test(start_paused = true)]
async fn a_store_that_fails_in_a_doubt_shortens_it_by_nothing() {
    let (many, grant) = expired(300, epic()).await;
    many.world.ehr.next(Reply::Answer(RefreshAnswer::Unknown));
    let link = &many.nodes[0].link;
    many.asked(0, grant).await.await.unwrap().unwrap_err();
    assert_eq!(many.calls(), 1);
    many.pass(secs(20)).await;
    link.fail("begin_refresh");
    many.asked(0, grant).await.await.unwrap().unwrap_err();
    link.mend();
    for _ in 0..3 {
        many.pass(secs(10)).await;
        drop(many.asked(0, grant).await);
        assert_eq!(many.calls(), 1);
    }
    many.pass(secs(20)).await;
    assert_eq!((many.access(0, grant).await.as_str(), many.calls()), ("access-2", 2));
}

/// An intent whose commit was not answered, and of which nobody asked for the outcome for long: the doubt about the
/// request that goes out at last begins with that.
#[tokio::test(start_paused = true)]
async fn an_intent_that_nothing_was_sent_for_is_written_anew() {
    let (many, grant) = expired(300, epic()).await;
    let link = &many.nodes[0].link;
    link.fail_after("begin_refresh");
    many.asked(0, grant).await.await.unwrap().unwrap_err();
    assert!(matches!(many.world.stored(grant).await.state, GrantState::InDoubt { .. }));
    // For as long as a doubt lasts, nearly.
    link.fail("grant");
    many.pass(secs(50)).await;
    assert_eq!(many.calls(), 0);
    many.world.ehr.next(Reply::Answer(RefreshAnswer::Unknown));
    let mended = many.world.now();
    link.mend();
    many.pass(secs(5)).await;
    assert_eq!(many.calls(), 1);
    let GrantState::InDoubt { since, retried: false } = many.world.stored(grant).await.state else {
        panic!("no doubt")
    };
    assert!(since >= mended, "{since:?} {mended:?}");
    link.freeze(true);
    let waiting = many.asked(1, grant).await;
    many.pass(secs(50)).await;
    assert_eq!(many.calls(), 1, "a stopped winner is waited for");
    many.pass(secs(15)).await;
    assert_eq!((many.calls(), token(waiting.await.unwrap())), (2, "access-2".into()));
}

/// The one try was recorded, and the store's answer to that was lost: the EHR has not been asked.
#[tokio::test(start_paused = true)]
async fn a_recorded_try_that_was_not_sent_costs_no_login() {
    let (many, grant) = expired(300, epic()).await;
    many.world.ehr.next(Reply::Answer(RefreshAnswer::Unknown));
    let link = &many.nodes[0].link;
    many.asked(0, grant).await.await.unwrap().unwrap_err();
    link.fail_after("retry_in_doubt");
    many.pass(secs(64)).await;
    assert!(matches!(many.world.stored(grant).await.state, GrantState::InDoubt { retried: true, .. }));
    assert_eq!(many.calls(), 1);
    link.mend();
    many.pass(secs(5)).await;
    assert_eq!((many.access(0, grant).await.as_str(), many.calls()), ("access-2", 2));
}

/// The one try is spent, and the store fails when the grant is to be ended for it.
#[tokio::test(start_paused = true)]
async fn the_one_try_is_not_made_again_since_the_store_failed() {
    let (many, grant) = expired(300, epic()).await;
    many.world.ehr.next(Reply::Answer(RefreshAnswer::Unknown));
    let link = &many.nodes[0].link;
    many.asked(0, grant).await.await.unwrap().unwrap_err();
    let open = many.world.ehr.gate();
    many.pass(secs(64)).await;
    assert_eq!(many.calls(), 2);
    link.fail("grant");
    open.send(Reply::Answer(RefreshAnswer::Unknown)).ok().unwrap();
    many.pass(secs(5)).await;
    link.mend();
    many.pass(secs(10)).await;
    assert_eq!(many.calls(), 2, "a refresh token came a third time");
    let state = many.world.stored(grant).await.state;
    assert!(matches!(state, GrantState::Ended { reason: EndReason::LostRotation, .. }), "{state:?}");
}

/// Each of its writes takes longer than a beat, and less than a lease lives.
#[tokio::test(start_paused = true)]
async fn a_slow_store_lets_refreshes_out() {
    let (many, grant) = expired(300, epic()).await;
    many.nodes[0].link.slow("begin_refresh", secs(4));
    many.nodes[0].link.slow("beat", secs(4));
    let asked = many.asked(0, grant).await;
    many.pass(secs(12)).await;
    assert_eq!((token(asked.await.unwrap()), many.calls()), ("access-2".into(), 1));
}
