//! After a long outage all grants in use are due at once.

use std::{collections::BTreeSet, sync::atomic::Ordering};

use super::{
    town::Town,
    world::{epic, pass, secs},
};
use crate::custody::{RefreshAnswer, RefreshOutcome, ports::AT_ONCE};

const GRANTS: usize = 1000;

#[tokio::test(start_paused = true)]
async fn a_herd_is_spread_the_newest_used_first_and_who_waits_goes_before() {
    let town = Town::new(300, epic()).await;
    let grants = town.grants(GRANTS).await;
    // Each is used a little later than the one before; then the EHR is away for long.
    for grant in &grants {
        tokio::time::advance(std::time::Duration::from_millis(1)).await;
        assert!(town.bearer(*grant).await.is_ok());
    }
    *town.hospital.takes.lock().unwrap() = secs(1);
    // All fall due in the same moment, which is after their end.
    tokio::time::advance(secs(400)).await;
    town.hospital.called(AT_ONCE).await;
    assert_eq!(town.hospital.calls(), AT_ONCE);
    let first: BTreeSet<_> = town.hospital.calls.borrow().iter().map(|(id, _)| *id).collect();
    assert_eq!(first, grants[GRANTS - AT_ONCE..].iter().copied().collect(), "the newest-used");
    // Who is asked for waits for nobody, though its last use was the first.
    let (served, ()) = tokio::join!(town.bearer(grants[0]), async {
        town.hospital.called(AT_ONCE + 1).await;
        assert_eq!(town.hospital.calls.borrow().last().unwrap().0, grants[0]);
        tokio::time::advance(secs(1)).await;
    });
    assert_eq!(served.unwrap().generation, 2);
    while town.hospital.calls() < GRANTS {
        tokio::time::advance(std::time::Duration::from_millis(100)).await;
        town.settle().await;
    }
    *town.hospital.takes.lock().unwrap() = secs(0);
    pass(2).await;
    town.until(|counted| counted.refreshes.get(&RefreshOutcome::Renewed) == Some(&GRANTS)).await;
    assert_eq!(town.hospital.calls(), GRANTS, "each once");
    assert_eq!(town.hospital.most_in_flight.load(Ordering::SeqCst), AT_ONCE + 1);
    // From the last used to the first, give or take those under way together.
    let order: Vec<_> = town.hospital.calls.borrow().iter().map(|(id, _)| *id).filter(|id| *id != grants[0]).collect();
    for (at, id) in order.iter().enumerate() {
        let ideal = GRANTS - 1 - grants.iter().position(|known| known == id).unwrap();
        assert!(ideal.abs_diff(at) <= 2 * AT_ONCE, "place {at} instead of {ideal}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_outage_held_back_is_not_sent_at_once_when_it_ends() {
    let town = Town::new(300, epic()).await;
    let grants = town.grants(200).await;
    for grant in &grants {
        assert!(town.bearer(*grant).await.is_ok());
    }
    town.hospital.says(Some(RefreshAnswer::NotSent));
    tokio::time::advance(secs(200)).await;
    town.until(|counted| counted.refreshes.get(&RefreshOutcome::NotSent) >= Some(&200)).await;
    town.hospital.says(None);
    *town.hospital.takes.lock().unwrap() = secs(1);
    town.hospital.most_in_flight.store(0, Ordering::SeqCst);
    for _ in 0..200 {
        tokio::time::advance(secs(1)).await;
        town.settle().await;
    }
    assert_eq!(town.counted().refreshes[&RefreshOutcome::Renewed], 200);
    assert!(town.hospital.most_in_flight.load(Ordering::SeqCst) <= AT_ONCE);
}
