//! An EHR that fails is spared, and one that works again is noticed by whoever asks.

use super::{
    town::{Town, failing},
    world::{epic, pass, secs},
};
use crate::{custody::CustodyFault, store::GrantId};

const GRANTS: usize = 40;

/// Everybody asks once a second, as impatient apps do; how many are served.
async fn ask_for(town: &Town, grants: &[GrantId], seconds: u64) -> usize {
    let mut served = 0;
    for _ in 0..seconds {
        served = 0;
        for grant in grants {
            match town.bearer(*grant).await {
                Ok(_) => served += 1,
                Err(CustodyFault::Unavailable { retry_after }) => {
                    assert!((secs(1)..=secs(5)).contains(&retry_after), "{retry_after:?}");
                }
                Err(other) => panic!("{other:?}"),
            }
        }
        pass(1).await;
    }
    served
}

/// `custody.md`: *Passing*: backoff with full jitter. It may be a minute long when the EHR works again.
#[tokio::test(start_paused = true)]
async fn an_outage_is_over_for_who_asks_within_ten_seconds_and_costs_the_ehr_little() {
    let town = Town::new(300, epic()).await;
    let grants = town.grants(GRANTS).await;
    tokio::time::advance(secs(300)).await;
    town.hospital.says(Some(failing()));
    assert_eq!(ask_for(&town, &grants, 60).await, 0);
    let before = town.hospital.calls();
    assert_eq!(ask_for(&town, &grants, 600).await, 0);
    // One a second for those who ask, and each grant's own backoff, a minute at most and half of it at the mean.
    let tried = town.hospital.calls() - before;
    assert!((400..=600 + GRANTS * 600 / 15).contains(&tried), "{tried}");
    town.hospital.says(None);
    assert_eq!(ask_for(&town, &grants, 10).await, GRANTS);
    assert!(town.counted().ended.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_fails_alone_does_not_hammer_an_ehr_that_works() {
    let town = Town::new(300, epic()).await;
    let grants = town.grants(2).await;
    town.hospital.ails(grants[0]);
    tokio::time::advance(secs(300)).await;
    for _ in 0..60 {
        // The other is renewed again and again.
        for _ in 0..10 {
            assert!(town.bearer(grants[0]).await.is_err());
            assert!(town.bearer(grants[1]).await.is_ok());
            pass(1).await;
        }
    }
    let own = town.hospital.calls.borrow().iter().filter(|(id, _)| *id == grants[0]).count();
    // Each second, were it not for its own wait; a full jitter of five seconds lets it try every third at the mean.
    assert!((60..=350).contains(&own), "{own} in 600 s");
}
