//! `keep_alive`: a grant that nobody uses is refreshed before its refresh token ends.

use super::world::*;
use crate::{
    clock::Instant,
    custody::RefreshOutcome,
    store::{GrantId, RefreshEnd},
};

const DAY: u64 = 24 * 3600;

#[tokio::test(start_paused = true)]
async fn a_grant_that_nobody_uses_is_kept_alive_before_its_refresh_token_ends() {
    let mut policy = epic();
    policy.refresh_lifetime = Some(secs(10 * 24 * 3600));
    let mut world = World::new(300, policy).await;
    world.profile.0.lock().unwrap().keep_alive = true;
    let grant = world.grant().await;
    tokio::time::advance(secs(9 * 24 * 3600 - 1)).await;
    pass(0).await;
    assert_eq!(world.ehr.calls(), 0);
    tokio::time::advance(secs(1)).await;
    world.until_outcome(RefreshOutcome::Renewed).await;
    // Its life is another; a restart loses nothing of it.
    world.reboot().await;
    while world.custody.0.wheel.is_empty() {
        tokio::task::yield_now().await;
    }
    tokio::time::advance(secs(9 * 24 * 3600 - 1)).await;
    pass(0).await;
    assert_eq!(world.ehr.calls(), 1);
    tokio::time::advance(secs(1)).await;
    world.until_outcome(RefreshOutcome::Renewed).await;
    assert_eq!((world.ehr.calls(), world.stored(grant).await.generation), (2, 3));
}

/// One of whose refresh token the profile knows no end, and which was used a while ago: two refreshes.
async fn used_once(keep_alive: bool, end: End) -> (World, GrantId) {
    let world = World::new(300, epic()).await;
    world.profile.0.lock().unwrap().keep_alive = keep_alive;
    *world.ehr.ends.lock().unwrap() = Some(end);
    let grant = world.grant().await;
    pass(300).await;
    assert_eq!(world.access(grant).await, "access-2");
    pass(180).await;
    world.until(|counted| counted.refreshes.get(&RefreshOutcome::Renewed) == Some(&2)).await;
    world.landed().await;
    (world, grant)
}

async fn days(days: u64) {
    tokio::time::advance(secs(days * DAY)).await;
    pass(1).await;
}

#[tokio::test(start_paused = true)]
async fn the_end_is_learnt_from_the_answer() {
    let (mut world, grant) = used_once(true, End::After(secs(10 * DAY))).await;
    assert_eq!(world.stored(grant).await.tokens.refresh_end, Some(RefreshEnd::said(secs(10 * DAY))));
    for refreshes in [3, 4] {
        days(8).await;
        assert_eq!(world.ehr.calls(), refreshes - 1);
        days(1).await;
        world.ehr.called(refreshes).await;
        world.landed().await;
        // A restart loses nothing of it.
        world.reboot().await;
        while world.custody.0.wheel.is_empty() {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(world.stored(grant).await.generation, 5);
}

#[tokio::test(start_paused = true)]
async fn where_no_use_puts_the_end_off_none_is_made_for_it() {
    let (world, grant) = used_once(true, End::At(Instant::now() + secs(10 * DAY))).await;
    let end = world.stored(grant).await.tokens.refresh_end.unwrap();
    assert!(end.fixed && end.after > secs(9 * DAY), "{end:?}");
    days(9).await;
    days(1).await;
    assert_eq!(world.ehr.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_app_that_does_not_ask_for_it_is_not_kept_alive() {
    let (world, grant) = used_once(false, End::After(secs(10 * DAY))).await;
    assert!(world.stored(grant).await.tokens.refresh_end.is_some());
    days(9).await;
    days(1).await;
    assert_eq!(world.ehr.calls(), 2);
}
