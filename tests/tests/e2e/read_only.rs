//! The kernel turns the file system under the store read-only.

use std::{path::Path, time::Duration};

use mantel_tests::{
    ehr::{
        contract::Vendor,
        faults::{Fault, FaultKind},
    },
    harness::{
        Ehr, World,
        app::visitor,
        block::{BlockDisk, can_break},
    },
};

use super::store::{Login, REFRESH, answers, held_back, spilled, unharmed};

/// A gateway whose store is on that disk, and whose spill is not.
async fn world_on(disk: &Path) -> World {
    let mut world = World::start([Ehr::strict(Vendor::Epic)]).await.unwrap();
    world.gateway.kill().unwrap();
    let file = world.gateway.dir().join("mantel.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let url = format!("url = \"sqlite://{}\"\nspill = \"spill\"", disk.join("mantel.db").display());
    let text = text.replacen("url = \"sqlite://mantel.db\"", &url, 1);
    std::fs::write(&file, text).unwrap();
    world.gateway.spawn().await.unwrap();
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_turns_read_only_costs_no_login() {
    if !can_break() {
        // Not root, or in a container without devices; the store's own tests have a file that takes no writes.
        return;
    }
    let mut disk = BlockDisk::mount().unwrap();
    let mut world = world_on(&disk.path()).await;
    let spill = world.gateway.dir().join("spill");
    let ehr = &world.ehrs[&Vendor::Epic];
    let [fresh, expired, flying] =
        [Login::of(&world, None).await, Login::of(&world, Some(2)).await, Login::of(&world, Some(2)).await];
    tokio::time::sleep(Duration::from_secs(2)).await;
    ehr.faults.add(Fault::new(REFRESH, FaultKind::Hold).times(1));
    let waiting = flying.reading();
    ehr.faults.wait_held(1).await;
    disk.fail().unwrap();
    ehr.counters.reset();
    ehr.faults.release();
    let answer = waiting.await.unwrap().unwrap();
    assert_eq!(answer.status, 200, "its new token is in the spill: {}", answer.text());
    assert_eq!(answers(&spill).len(), 1);
    for _ in 0..3 {
        assert_eq!(flying.read().await.status, 200);
        assert_eq!(fresh.read().await.status, 200);
        held_back(&expired.read().await);
    }
    let answer = fresh.app.try_refresh(&[("refresh_token", fresh.tokens.refresh())]).await.unwrap();
    let error = answer.json().unwrap()["error"].clone();
    assert_eq!((answer.status.as_u16(), error), (503, "temporarily_unavailable".into()));
    let page = visitor().get(&fresh.app.url(&[]).unwrap()).await.unwrap();
    let told = page.redirect_param("error").as_deref() == Some("temporarily_unavailable") || page.status == 503;
    assert!(told, "{} {}", page.status, page.text());
    assert!(!world.gateway.is_ready().await);
    assert_eq!(ehr.counters.get(REFRESH), 0, "nothing is sent without an intent in the store");

    // The next process finds a store that it cannot open, says so and ends; the spill waits.
    world.gateway.kill().unwrap();
    let fault = world.gateway.spawn().await.unwrap_err().to_string();
    assert!(fault.contains("store") && fault.contains("ead-only"), "{fault}");
    world.gateway.kill().unwrap();
    assert_eq!(answers(&spill).len(), 1);
    disk.mend().unwrap();
    world.gateway.spawn().await.unwrap();
    assert_eq!((spilled(&world, "replayed").await, answers(&spill).len()), (1.0, 0));
    let ehr = world.ehr(Vendor::Epic);
    for login in [&fresh, &expired, &flying] {
        login.served().await;
        login.app.refresh(login.tokens.refresh()).await.unwrap();
    }
    assert_eq!(ehr.counters.get(REFRESH), 1, "of the one that had ended");
    assert!(ehr.expire_access_tokens() >= 3);
    for login in [&fresh, &expired, &flying] {
        login.served().await;
    }
    unharmed(ehr);
    assert!(world.gateway.is_ready().await);
    // The gateway first, or the disk is in use.
    world.gateway.kill().unwrap();
}
