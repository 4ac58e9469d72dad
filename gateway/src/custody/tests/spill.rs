//! Stored before shared: what the store does not take is in the spill before anybody sees it, and the store has it
//! before anything consumes it.

use std::{fs, path::Path};

use super::world::*;
use crate::{
    clock::Instant,
    custody::{CustodyFault, RefreshAnswer, RefreshOutcome, SpillEvent},
    store::{EndReason, GrantId, GrantState, Store as _},
};

/// Long, since paused time may run far ahead of the disk.
const LIFE: u64 = 100_000;
/// `refresh_before` its end.
const DUE: u64 = LIFE - 300;

async fn wait(seconds: u64) {
    tokio::time::advance(secs(seconds)).await;
}

/// From now on the store takes intents and no answers.
async fn refuse_answers(directory: &Path) {
    let trouble = "CREATE TRIGGER full BEFORE UPDATE OF generation ON grants BEGIN SELECT RAISE(FAIL, 'full'); END";
    tell(&directory.join("mantel.db"), trouble).await;
}

async fn take_answers(directory: &Path) {
    tell(&directory.join("mantel.db"), "DROP TRIGGER full").await;
}

/// A world whose grant's second tokens are in the spill and not in the store.
async fn spilled(directory: &Path) -> (World, GrantId) {
    let world = World::spilling(directory, LIFE, epic()).await;
    let grant = world.grant().await;
    wait(LIFE).await;
    refuse_answers(directory).await;
    assert_eq!(world.access(grant).await, "access-2");
    (world, grant)
}

fn count(world: &World, event: SpillEvent) -> usize {
    world.counted().spill.get(&event).copied().unwrap_or_default()
}

async fn until_spill(world: &World, event: SpillEvent) {
    world.until(|counted| counted.spill.contains_key(&event)).await;
}

/// Lets time pass in steps of a second until that is true; the store, whose threads know no paused time, does in
/// each what it was told before.
async fn until(world: &World, is: impl Fn() -> bool) {
    while !is() {
        pass(1).await;
        world.store.ping().await.unwrap();
    }
}

async fn until_replayed(world: &World) {
    until(world, || count(world, SpillEvent::Replayed) > 0).await;
    world.landed().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_store_does_not_take_is_spilled_shared_and_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let (world, grant) = spilled(dir.path()).await;
    let [answers, _] = world.spilled();
    assert_eq!((answers.len(), world.counted().spill_depth, world.counted().kept), (1, 1, 1));
    let name = answers[0].file_name().unwrap().to_string_lossy().into_owned();
    assert!(name.starts_with(&format!("{grant}.1.")), "{name}");
    assert!(matches!(world.stored(grant).await.state, GrantState::InDoubt { .. }));
    // Fresh and due are served; the store's own refresh token, which is burnt, is not touched.
    wait(DUE).await;
    assert_eq!((world.access(grant).await.as_str(), world.ehr.calls()), ("access-2", 1));
    assert!(matches!(world.refused(grant, 2).await, Err(CustodyFault::Unavailable { .. })));
    take_answers(dir.path()).await;
    until_replayed(&world).await;
    // It is due and was used: the wheel has gone on by itself.
    world.until(|counted| counted.refreshes[&RefreshOutcome::Renewed] == 2).await;
    world.landed().await;
    assert_eq!((world.access(grant).await.as_str(), world.ehr.calls()), ("access-3", 2));
    assert_eq!(world.stored(grant).await.generation, 3);
    assert!(world.spilled()[0].is_empty());
    assert_eq!((count(&world, SpillEvent::Spilled), world.counted().spill_depth), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn an_expired_one_waits_for_its_replay() {
    let dir = tempfile::tempdir().unwrap();
    let (world, grant) = spilled(dir.path()).await;
    wait(LIFE).await;
    let fault = world.bearer(grant).await.unwrap_err();
    assert!(matches!(fault, CustodyFault::Unavailable { retry_after } if retry_after <= secs(1)), "{fault:?}");
    assert_eq!(world.ehr.calls(), 1);
    take_answers(dir.path()).await;
    until_replayed(&world).await;
    assert_eq!((world.access(grant).await.as_str(), world.ehr.calls()), ("access-3", 2));
}

#[tokio::test(start_paused = true)]
async fn after_a_kill_it_is_replayed_before_the_process_is_ready() {
    let dir = tempfile::tempdir().unwrap();
    let (mut world, grant) = spilled(dir.path()).await;
    world.reboot().await;
    // The store is still in trouble: served from the spill, and neither doubted nor refreshed.
    world.custody.recover().await;
    assert!(!world.custody.recovered());
    assert_eq!(world.access(grant).await, "access-2");
    wait(LIFE - 1000).await;
    assert_eq!((world.access(grant).await.as_str(), world.ehr.calls()), ("access-2", 1));
    wait(2000).await;
    assert!(matches!(world.bearer(grant).await, Err(CustodyFault::Unavailable { .. })));
    assert_eq!(world.ehr.calls(), 1, "the burnt token is not tried, however long that takes");
    take_answers(dir.path()).await;
    world.custody.recover().await;
    assert!(world.custody.recovered());
    assert_eq!((world.access(grant).await.as_str(), world.ehr.calls()), ("access-3", 2));
    assert_eq!((count(&world, SpillEvent::Replayed), world.spilled()), (1, [vec![], vec![]]));
}

#[tokio::test(start_paused = true)]
async fn nobody_need_ask_for_a_replay_after_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let (mut world, grant) = spilled(dir.path()).await;
    take_answers(dir.path()).await;
    world.reboot().await;
    until_replayed(&world).await;
    assert!(world.custody.recovered());
    let stored = world.stored(grant).await;
    assert_eq!((stored.generation, stored.state), (2, GrantState::Live));
}

/// Killed between the store's commit and the end of the file.
#[tokio::test(start_paused = true)]
async fn an_answer_that_the_store_has_is_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let (mut world, grant) = spilled(dir.path()).await;
    let answer = world.spilled()[0][0].clone();
    let content = fs::read(&answer).unwrap();
    take_answers(dir.path()).await;
    until_replayed(&world).await;
    // One generation on it is the same call again; two on, it was stored and spent: nothing is revoked.
    for (expected, event) in [(2, SpillEvent::Replayed), (3, SpillEvent::Dropped)] {
        fs::write(&answer, &content).unwrap();
        let answers = world.spill.clone();
        world.reboot().await;
        world.custody.recover().await;
        assert_eq!((world.stored(grant).await.generation, count(&world, event)), (expected, 1));
        assert!(world.spilled()[0].is_empty());
        assert!(world.revocations().await.is_empty());
        world.spill = answers;
        wait(LIFE).await;
        world.access(grant).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_came_too_late_is_dropped_and_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let (world, grant) = spilled(dir.path()).await;
    // The user ends the grant while its answer waits.
    world.store.end_grant(grant, EndReason::Logout, None, &[], world.now()).await.unwrap();
    world.custody.forget(grant);
    take_answers(dir.path()).await;
    until(&world, || count(&world, SpillEvent::Dropped) > 0).await;
    let due = world.revocations().await;
    assert_eq!(due.iter().map(|it| &it.token).collect::<Vec<_>>(), [&"refresh-2".into()]);
    assert_eq!(world.bearer(grant).await.unwrap_err(), CustodyFault::Ended(EndReason::Logout));
    assert!(world.spilled()[0].is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_another_overtook_is_dropped_and_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let (mut world, grant) = spilled(dir.path()).await;
    world.custody.shutdown().await;
    take_answers(dir.path()).await;
    let mut tokens = world.stored(grant).await.tokens;
    (tokens.access, tokens.refresh) = ("access-of-another".into(), Some("refresh-of-another".into()));
    tokens.received = world.now();
    world.store.finish_refresh(grant, 1, &tokens, None, world.now()).await.unwrap();
    world.reboot().await;
    world.custody.recover().await;
    assert_eq!((count(&world, SpillEvent::Dropped), world.access(grant).await.as_str()), (1, "access-of-another"));
    assert_eq!(world.revocations().await[0].token, "refresh-2".into());
    assert_eq!(world.stored(grant).await.tokens.refresh, Some("refresh-of-another".into()));
}

/// A session enforces what the store says: a token with other scopes is not used by the old word.
#[tokio::test(start_paused = true)]
async fn an_answer_that_changes_the_scopes_is_durable_but_shared_only_when_stored() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::spilling(dir.path(), LIFE, epic()).await;
    let grant = world.grant().await;
    wait(DUE).await;
    refuse_answers(dir.path()).await;
    world.ehr.fair("refresh-1");
    world.ehr.next(Reply::Answer(RefreshAnswer::Tokens {
        access: "access-2".into(),
        refresh: Some("refresh-2".into()),
        lifetime: Some(secs(LIFE)),
        refresh_lifetime: None,
        scope: Some("user/*.rs".into()),
        id_token: None,
    }));
    assert_eq!(world.access(grant).await, "access-1");
    until_spill(&world, SpillEvent::Spilled).await;
    assert_eq!(world.access(grant).await, "access-1");
    world.reboot().await;
    world.custody.recover().await;
    assert_eq!(world.access(grant).await, "access-1");
    wait(300).await;
    assert!(matches!(world.bearer(grant).await, Err(CustodyFault::Unavailable { .. })));
    take_answers(dir.path()).await;
    world.custody.recover().await;
    assert_eq!((world.access(grant).await.as_str(), world.ehr.calls()), ("access-2", 1));
    assert_eq!(world.stored(grant).await.facts.upstream.as_deref(), Some("user/*.rs"));
}

#[tokio::test(start_paused = true)]
async fn if_both_fail_the_answer_is_kept_until_one_takes_it() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::spilling(dir.path(), LIFE, epic()).await;
    let grant = world.grant().await;
    wait(LIFE).await;
    refuse_answers(dir.path()).await;
    let spill = world.spill.clone().unwrap();
    fs::remove_dir_all(&spill).unwrap();
    let patient = world.custody.bearer(grant, Instant::now() + secs(1_000_000));
    let (waiter, ()) = tokio::join!(patient, async {
        until(&world, || world.counted().kept > 1).await;
        // Whoever comes now is told at once, and it is not the user's fault.
        let fault = world.bearer(grant).await.unwrap_err();
        assert!(matches!(fault, CustodyFault::Unavailable { .. }), "{fault:?}");
        fs::create_dir(&spill).unwrap();
        until(&world, || count(&world, SpillEvent::Spilled) > 0).await;
    });
    assert_eq!((waiter.unwrap().token.expose().as_str(), world.spilled()[0].len()), ("access-2", 1));
    take_answers(dir.path()).await;
    until_replayed(&world).await;
    assert_eq!(world.stored(grant).await.generation, 2);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_slow_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::spilling(dir.path(), LIFE, epic()).await;
    let grant = world.grant().await;
    wait(DUE).await;
    let open = world.ehr.gate();
    assert_eq!(world.access(grant).await, "access-1");
    world.ehr.called(1).await;
    let lock = hold(&dir.path().join("mantel.db")).await;
    open.send(Reply::Fair).ok().unwrap();
    pass(4).await;
    until_spill(&world, SpillEvent::Spilled).await;
    world.landed().await;
    assert_eq!(world.access(grant).await, "access-2");
    drop(lock);
    until_replayed(&world).await;
    assert_eq!(world.stored(grant).await.generation, 2);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_leaves_it_for_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (mut world, grant) = spilled(dir.path()).await;
    world.custody.shutdown().await;
    take_answers(dir.path()).await;
    world.reboot().await;
    world.custody.recover().await;
    assert_eq!((world.access(grant).await.as_str(), world.stored(grant).await.generation), ("access-2", 2));
}

#[tokio::test(start_paused = true)]
async fn bad_files_are_set_aside_and_the_good_ones_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut world, grant) = spilled(dir.path()).await;
    let (spill, answer) = (world.spill.clone().unwrap(), world.spilled()[0][0].clone());
    let content = fs::read(&answer).unwrap();
    let another = GrantId(uuid::Uuid::from_u128(9));
    fs::write(spill.join(format!("{another}.1.x.answer")), &content[..content.len() - 1]).unwrap();
    fs::write(spill.join(format!("{grant}.2.x.answer")), &content).unwrap();
    take_answers(dir.path()).await;
    world.reboot().await;
    world.custody.recover().await;
    assert!(world.custody.recovered());
    assert_eq!((count(&world, SpillEvent::Bad), count(&world, SpillEvent::Replayed)), (2, 1));
    let [answers, bad] = world.spilled();
    assert_eq!((answers.len(), bad.len(), world.access(grant).await.as_str()), (0, 2, "access-2"));
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_a_grant_that_the_store_does_not_know_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (mut world, grant) = spilled(dir.path()).await;
    tell(&dir.path().join("mantel.db"), "DELETE FROM codes").await;
    tell(&dir.path().join("mantel.db"), "DELETE FROM grants").await;
    world.reboot().await;
    world.custody.recover().await;
    let [answers, bad] = world.spilled();
    assert_eq!((answers.len(), bad.len(), count(&world, SpillEvent::Bad)), (0, 1, 1));
    assert!(world.custody.recovered());
    assert_eq!(world.bearer(grant).await.unwrap_err(), CustodyFault::Ended(EndReason::Expired));
}
