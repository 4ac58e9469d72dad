use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use futures_util::future::{join, join_all};
use mantel::store::{Begun, EndReason, Finished, Grant, GrantState, Lease, Store};

use super::{samples::*, tokens::state};

fn won(begun: &Begun) -> bool {
    matches!(begun, Begun::Won { .. })
}

async fn begin(store: &dyn Store, grant: &Grant, owner: mantel::store::BootId) -> Begun {
    store.begin_refresh(grant.id, grant.generation, owner, NOW).await.unwrap()
}

pub async fn one_begins_among_many(store: &dyn Store) {
    let (grant, owner) = (stored_grant(store).await, boot());
    let begun = join_all((0..100).map(|_| begin(store, &grant, owner))).await;
    assert_eq!(begun.iter().filter(|it| won(it)).count(), 1);
    assert!(begun.iter().all(|it| won(it) || matches!(it, Begun::Lost(lease) if lease.owner == owner)));
    assert_eq!(state(store, &grant).await, GrantState::InDoubt { since: NOW, retried: false });
}

pub async fn one_begins_among_processes(store: &dyn Store) {
    let grant = stored_grant(store).await;
    let begun = join_all((0..100).map(|_| begin(store, &grant, boot()))).await;
    assert_eq!(begun.iter().filter(|it| won(it)).count(), 1);
}

pub async fn a_begin_names_what_moved(store: &dyn Store) {
    let grant = stored_grant(store).await;
    store.finish_refresh(grant.id, 1, &ehr_tokens(2), None, NOW).await.unwrap();
    let Begun::Moved(current) = begin(store, &grant, boot()).await else { panic!("it began on an old generation") };
    assert_eq!((current.generation, current.tokens.access), (2, ehr_tokens(2).access));
    store.end_grant(grant.id, EndReason::Logout, None, &[], NOW).await.unwrap();
    assert!(matches!(begin(store, &grant, boot()).await, Begun::Ended(EndReason::Logout)));
}

/// Whether its owner lives, the store does not judge: it names the lease.
pub async fn a_dead_process_leaves_doubt(store: &dyn Store) {
    let (grant, dead, next) = (stored_grant(store).await, boot(), boot());
    assert!(won(&begin(store, &grant, dead).await));
    let begun = store.begin_refresh(grant.id, 1, next, at(9)).await.unwrap();
    let Begun::Lost(lease) = begun else { panic!("{begun:?}") };
    assert_eq!(lease.owner, dead);
    let taken = store.take_over(grant.id, lease, next, at(9)).await.unwrap();
    assert!(matches!(taken, Begun::InDoubt { since: NOW, retried: false }), "{taken:?}");
}

pub async fn an_answer_is_stored_by_what_it_consumed(store: &dyn Store) {
    let (grant, owner) = (stored_grant(store).await, boot());
    begin(store, &grant, owner).await;
    let mut facts = grant.facts.clone();
    facts.upstream = Some("patient/Patient.r".into());
    let stored = store.finish_refresh(grant.id, 1, &ehr_tokens(2), Some(&facts), NOW).await.unwrap();
    let Finished::Stored(stored) = stored else { panic!("{stored:?}") };
    assert_eq!((stored.generation, stored.state), (2, GrantState::Live));
    let found = store.grant(grant.id).await.unwrap().unwrap();
    assert_eq!(found.tokens.refresh, ehr_tokens(2).refresh);
    assert_eq!(found.facts, facts);
    let moved = store.finish_refresh(grant.id, 1, &ehr_tokens(3), None, NOW).await.unwrap();
    assert!(matches!(moved, Finished::Moved(current) if current.tokens.access == ehr_tokens(2).access));
    assert!(won(&store.begin_refresh(grant.id, 2, owner, NOW).await.unwrap()), "the lease was given back");
}

pub async fn finishing_may_be_repeated(store: &dyn Store) {
    let grant = stored_grant(store).await;
    for _ in 0..2 {
        let stored = store.finish_refresh(grant.id, 1, &ehr_tokens(2), None, NOW).await.unwrap();
        assert!(matches!(stored, Finished::Stored(grant) if grant.generation == 2));
    }
}

/// The queue is full: an answer is refused by nothing, and waits for little of what came before it.
pub async fn an_ehrs_answer_goes_before_all_else(store: &dyn Store) {
    let (grant, owner) = (stored_grant(store).await, boot());
    begin(store, &grant, owner).await;
    let done = AtomicUsize::new(0);
    let flood = (0..6000).map(async |_| {
        let outcome = store.note_use(&[]).await;
        done.fetch_add(usize::from(outcome.is_ok()), Relaxed);
        outcome
    });
    let answer = async {
        let finished = store.finish_refresh(grant.id, 1, &ehr_tokens(2), None, NOW).await;
        (finished, done.load(Relaxed))
    };
    // Polled in this order.
    let (flood, (finished, before)) = join(join_all(flood), answer).await;
    assert!(flood.iter().any(Result::is_err), "the queue was not full");
    assert!(matches!(finished, Ok(Finished::Stored(_))), "{finished:?}");
    assert!(before < 1000 && done.into_inner() > 3000, "after {before}");
}

/// The EHR knows nothing of our fence: a winner that was stopped after sending may hold the only live token.
pub async fn a_late_answer_is_taken_whoever_holds_the_lease(store: &dyn Store) {
    let (grant, winner, other) = (stored_grant(store).await, boot(), boot());
    begin(store, &grant, winner).await;
    begin(store, &grant, other).await;
    assert!(store.retry_in_doubt(grant.id, 1, other, at(60)).await.unwrap().is_some());
    let stored = store.finish_refresh(grant.id, 1, &ehr_tokens(2), None, at(61)).await.unwrap();
    assert!(matches!(stored, Finished::Stored(_)));
    // What the other's try brings, a refusal, then ends nothing.
    assert!(!store.end_grant(grant.id, EndReason::LostRotation, Some(1), &[], at(62)).await.unwrap());
    assert_eq!(state(store, &grant).await, GrantState::Live);
}

pub async fn an_abandoned_refresh_leaves_the_grant_live(store: &dyn Store) {
    let (grant, owner) = (stored_grant(store).await, boot());
    begin(store, &grant, owner).await;
    store.abandon_refresh(grant.id, 1, boot()).await.unwrap();
    assert!(matches!(state(store, &grant).await, GrantState::InDoubt { .. }), "another's intent stays");
    for _ in 0..2 {
        store.abandon_refresh(grant.id, 1, owner).await.unwrap();
        assert_eq!(state(store, &grant).await, GrantState::Live);
    }
    assert!(won(&begin(store, &grant, boot()).await));
}

pub async fn the_one_try_is_noted_once(store: &dyn Store) {
    let grant = stored_grant(store).await;
    assert!(store.retry_in_doubt(grant.id, 1, boot(), NOW).await.unwrap().is_none(), "there is no doubt");
    begin(store, &grant, boot()).await;
    let tries: Vec<_> = (0..20).map(|n| (boot(), at(60 + n))).collect();
    let noted = join_all(tries.iter().map(|(owner, now)| store.retry_in_doubt(grant.id, 1, *owner, *now))).await;
    let noted: Vec<_> = noted.into_iter().map(Result::unwrap).collect();
    assert_eq!(noted.iter().flatten().count(), 1);
    assert_eq!(state(store, &grant).await, GrantState::InDoubt { since: NOW, retried: true });
    // The very same call again, after an error, is not another try.
    let (winner, now) = tries[noted.iter().position(Option::is_some).unwrap()];
    let fence = store.retry_in_doubt(grant.id, 1, winner, now).await.unwrap().unwrap();
    assert!(store.retry_in_doubt(grant.id, 2, winner, now).await.unwrap().is_none());
    assert!(store.beat(grant.id, winner, fence).await.unwrap(), "the try has a lease of its own");
    let (begun, next) = (begin(store, &grant, boot()).await, boot());
    let Begun::Lost(lease) = begun else { panic!("{begun:?}") };
    assert_eq!(lease, Lease { owner: winner, fence, beat: 1 });
    let taken = store.take_over(grant.id, lease, next, at(200)).await.unwrap();
    assert!(matches!(taken, Begun::InDoubt { retried: true, .. }));
}

pub async fn an_unanswered_try_may_be_made_again(store: &dyn Store) {
    let (grant, owner) = (stored_grant(store).await, boot());
    begin(store, &grant, boot()).await;
    assert!(store.retry_in_doubt(grant.id, 1, owner, at(60)).await.unwrap().is_some());
    // The very same call again, after an error, does not take the doubt along.
    for _ in 0..2 {
        store.abandon_refresh(grant.id, 1, owner).await.unwrap();
        assert_eq!(state(store, &grant).await, GrantState::InDoubt { since: NOW, retried: false });
    }
    assert!(store.retry_in_doubt(grant.id, 1, owner, at(90)).await.unwrap().is_some());
}

pub async fn a_lease_beats_for_its_owner(store: &dyn Store) {
    let (grant, owner) = (stored_grant(store).await, boot());
    let Begun::Won { fence } = begin(store, &grant, owner).await else { panic!("nobody else is there") };
    assert!(store.beat(grant.id, owner, fence).await.unwrap());
    assert!(!store.beat(grant.id, boot(), fence).await.unwrap());
    assert!(!store.beat(grant.id, owner, fence + 1).await.unwrap());
    let Begun::Lost(lease) = begin(store, &grant, owner).await else { panic!("it is held") };
    assert_eq!(lease, Lease { owner, fence, beat: 1 });
    store.finish_refresh(grant.id, 1, &ehr_tokens(2), None, NOW).await.unwrap();
    assert!(!store.beat(grant.id, owner, fence).await.unwrap());
}

pub async fn a_lease_is_taken_over_as_seen(store: &dyn Store) {
    let (grant, owner, contender) = (stored_grant(store).await, boot(), boot());
    let Begun::Won { fence } = begin(store, &grant, owner).await else { panic!("nobody else is there") };
    let seen = Lease { owner, fence, beat: 0 };
    store.beat(grant.id, owner, fence).await.unwrap();
    let late = store.take_over(grant.id, seen, contender, NOW).await.unwrap();
    assert!(matches!(late, Begun::Lost(lease) if lease.beat == 1), "it beats: {late:?}");
    let seen = Lease { beat: 1, ..seen };
    for _ in 0..2 {
        let taken = store.take_over(grant.id, seen, contender, NOW).await.unwrap();
        assert!(matches!(taken, Begun::InDoubt { since: NOW, retried: false }), "{taken:?}");
    }
    assert!(!store.beat(grant.id, owner, fence).await.unwrap());
    assert!(store.beat(grant.id, contender, fence + 1).await.unwrap());
    store.finish_refresh(grant.id, 1, &ehr_tokens(2), None, NOW).await.unwrap();
    assert!(matches!(store.take_over(grant.id, seen, contender, NOW).await.unwrap(), Begun::Moved(_)));
    store.end_grant(grant.id, EndReason::Revoked, None, &[], NOW).await.unwrap();
    assert!(matches!(store.take_over(grant.id, seen, contender, NOW).await.unwrap(), Begun::Ended(_)));
}

pub async fn revocation_in_flight_wins(store: &dyn Store) {
    let (grant, owner) = (stored_grant(store).await, boot());
    begin(store, &grant, owner).await;
    assert!(store.end_grant(grant.id, EndReason::Revoked, None, &[revocation()], NOW).await.unwrap());
    let finished = store.finish_refresh(grant.id, 1, &ehr_tokens(2), None, NOW).await.unwrap();
    assert!(matches!(finished, Finished::Ended(EndReason::Revoked)));
    store.abandon_refresh(grant.id, 1, owner).await.unwrap();
    assert!(store.retry_in_doubt(grant.id, 1, owner, NOW).await.unwrap().is_none());
    assert!(matches!(state(store, &grant).await, GrantState::Ended { reason: EndReason::Revoked, .. }));
}

pub async fn an_end_guards_the_generation(store: &dyn Store) {
    let grant = stored_grant(store).await;
    store.finish_refresh(grant.id, 1, &ehr_tokens(2), None, NOW).await.unwrap();
    assert!(!store.end_grant(grant.id, EndReason::Dead, Some(1), &[revocation()], NOW).await.unwrap());
    assert!(store.take_revocations(NOW, at(60), 10).await.unwrap().is_empty());
    assert!(store.end_grant(grant.id, EndReason::Dead, Some(2), &[], NOW).await.unwrap());
    assert!(!store.end_grant(grant.id, EndReason::Revoked, None, &[], NOW).await.unwrap(), "the first reason stays");
    assert!(matches!(state(store, &grant).await, GrantState::Ended { reason: EndReason::Dead, .. }));
    assert!(!store.end_grant(super::samples::grant().id, EndReason::Dead, None, &[], NOW).await.unwrap());
}

pub async fn ends_are_numbered(store: &dyn Store) {
    let (one, two, three) = (stored_grant(store).await, stored_grant(store).await, stored_grant(store).await);
    let (start, none) = store.ended_since(i64::MAX).await.unwrap();
    assert!(none.is_empty());
    for grant in [&two, &one] {
        store.end_grant(grant.id, EndReason::Revoked, None, &[], NOW).await.unwrap();
        store.end_grant(grant.id, EndReason::Revoked, None, &[], NOW).await.unwrap();
    }
    assert_eq!(store.ended_since(start).await.unwrap(), (start + 2, vec![two.id, one.id]));
    store.end_grant(three.id, EndReason::Revoked, None, &[], NOW).await.unwrap();
    assert_eq!(store.ended_since(start + 2).await.unwrap(), (start + 3, vec![three.id]));
}

pub async fn ended_tokens_are_forgotten(store: &dyn Store) {
    let grant = stored_grant(store).await;
    store.end_grant(grant.id, EndReason::Revoked, None, &[], NOW).await.unwrap();
    let found = store.grant(grant.id).await.unwrap().unwrap();
    assert!(found.tokens.access.expose().is_empty() && found.tokens.refresh.is_none());
    assert_eq!(found.facts, grant.facts, "what it was is still to be told");
}

pub async fn grants_come_in_pages(store: &dyn Store) {
    let mut ids = Vec::new();
    for _ in 0..7 {
        ids.push(stored_grant(store).await.id);
    }
    store.end_grant(ids[3], EndReason::Revoked, None, &[], NOW).await.unwrap();
    store.begin_refresh(ids[4], 1, boot(), NOW).await.unwrap();
    ids.remove(3);
    ids.sort();
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.grants_after(after, 4).await.unwrap();
        assert!(page.len() <= 4);
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        found.extend(page.iter().map(|grant| grant.id));
    }
    assert_eq!(found, ids);
}

pub async fn grants_are_counted(store: &dyn Store) {
    let (one, two) = (stored_grant(store).await, stored_grant(store).await);
    stored_grant(store).await;
    begin(store, &one, boot()).await;
    store.end_grant(two.id, EndReason::Revoked, None, &[], NOW).await.unwrap();
    assert_eq!(store.count_grants().await.unwrap(), [1, 1, 1]);
}

pub async fn a_use_is_noted_forwards(store: &dyn Store) {
    let (one, two, ended) = (stored_grant(store).await, stored_grant(store).await, stored_grant(store).await);
    assert_eq!(store.last_use(one.id).await.unwrap(), None);
    store.end_grant(ended.id, EndReason::Logout, None, &[], NOW).await.unwrap();
    // As two processes do, in whatever order.
    let ids = [one.id, two.id, ended.id];
    let uses = (0..20).map(|n| {
        let there = ids.map(|id| (id, at(n)));
        let mut back = there;
        back.reverse();
        if n % 2 == 0 { there } else { back }
    });
    let uses: Vec<_> = uses.collect();
    assert!(join_all(uses.iter().map(|uses| store.note_use(uses))).await.iter().all(Result::is_ok));
    for id in [one.id, two.id] {
        assert_eq!(store.last_use(id).await.unwrap(), Some(at(19)), "the latest stays");
    }
    assert_eq!(store.last_use(ended.id).await.unwrap(), None);
    assert_eq!(store.last_use(grant().id).await.unwrap(), None);
}
