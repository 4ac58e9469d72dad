//! Custody, seen from both sides: what the app gets, and what the EHR counts.

use std::time::Duration;

use mantel_tests::{
    ehr::{
        contract::Vendor,
        faults::{Fault, FaultKind},
        server::Running,
    },
    harness::{
        Ehr, World,
        app::{App, Tokens},
        read,
    },
};

const REFRESH: &str = "token:refresh_token";

/// Seconds that the first access tokens live where a test waits for their end.
const SHORT: u64 = 3;

fn refreshed(vendor: Vendor) -> String {
    format!("mantel_refreshes_total{{outcome=\"renewed\",vendor=\"{}\"}}", vendor.text())
}

/// Oracle refuses a second refresh within a minute: there is nothing to wait for but its clock.
fn pass_a_minute(ehr: &Running) {
    ehr.advance(61_000);
}

/// No spent refresh token came a second time, and no grant has ended.
#[track_caller]
fn unharmed(ehr: &Running, vendor: Vendor) {
    for grant in ehr.grants() {
        assert_eq!((grant.reuses, grant.ended), (0, None), "{vendor:?}: {grant:?}");
        for token in &grant.refresh_tokens {
            assert!(!token.spent || token.uses == 1, "{vendor:?}: {grant:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_at_expiry_cause_one_refresh_though_the_first_hang_up() {
    const CALLERS: usize = 200;
    let world = World::start([Ehr::strict(Vendor::Epic)]).await.unwrap();
    let ehr = world.ehr(Vendor::Epic);
    ehr.auth.set_lifetime(Some(2));
    let base = world.gateway.site_base(Vendor::Epic);
    let tokens = App::at(&base).await.unwrap().launch(ehr).await.unwrap();
    ehr.auth.set_lifetime(None);
    // The gateway's own clock has to reach the token's end.
    tokio::time::sleep(Duration::from_secs(2)).await;
    ehr.counters.reset();
    ehr.faults.add(Fault::new(REFRESH, FaultKind::Hold).times(1));
    let url = format!("{base}/Patient/{}", tokens.text("patient"));
    let ask = || {
        tokio::spawn({
            let (url, token) = (url.clone(), tokens.access().to_owned());
            async move { read(&url, &token).await }
        })
    };
    let first: Vec<_> = (0..CALLERS / 2).map(|_| ask()).collect();
    ehr.faults.wait_held(1).await;
    let joined = "mantel_refresh_joins_total";
    joins(&world, joined, CALLERS / 2 - 1).await;
    // Whoever caused the refresh is among them.
    first.iter().for_each(tokio::task::JoinHandle::abort);
    let rest: Vec<_> = (0..CALLERS / 2).map(|_| ask()).collect();
    joins(&world, joined, CALLERS - 1).await;
    assert_eq!(ehr.counters.get(REFRESH), 1, "before the answer");
    ehr.faults.release();
    for caller in rest {
        let answer = caller.await.unwrap().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(ehr.counters.get(REFRESH), 1);
    assert_eq!(world.gateway.metric(&refreshed(Vendor::Epic)).await.unwrap(), 1.0);
    unharmed(ehr, Vendor::Epic);
}

/// Another process's counter: there is nothing to await but its value.
async fn joins(world: &World, line: &str, at_least: usize) {
    for _ in 0..600 {
        if world.gateway.metric(line).await.unwrap() >= at_least as f64 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{line} did not reach {at_least}: {}", world.gateway.metric(line).await.unwrap());
}

struct Held {
    vendor: Vendor,
    app: App,
    tokens: Tokens,
}

impl Held {
    async fn launch(world: &World, vendor: Vendor) -> Self {
        let app = App::at(&world.gateway.site_base(vendor)).await.unwrap();
        let tokens = app.launch(world.ehr(vendor)).await.unwrap();
        Self { vendor, app, tokens }
    }

    /// With the token of the launch.
    async fn read(&self, world: &World) {
        let url = format!("{}/Patient/{}", self.app.base, self.tokens.text("patient"));
        let answer = read(&url, self.tokens.access()).await.unwrap();
        let vendor = self.vendor;
        assert_eq!(
            answer.status,
            200,
            "{vendor:?}: {}\nrefused: {:?}\n{}",
            answer.text(),
            world.ehr(vendor).auth.refused(),
            world.gateway.log("events.log").unwrap()
        );
        assert_eq!(answer.json().unwrap()["id"], self.tokens.text("patient"));
    }
}

/// Each vendor's access token ends by time; the app goes on with the token that it has.
async fn expiry(make: fn(Vendor) -> Ehr) {
    let world = World::start(Vendor::ALL.map(make)).await.unwrap();
    let mut held = Vec::new();
    for vendor in Vendor::ALL {
        let ehr = world.ehr(vendor);
        ehr.auth.set_lifetime(Some(SHORT));
        held.push(Held::launch(&world, vendor).await);
        ehr.auth.set_lifetime(None);
        ehr.counters.reset();
    }
    tokio::time::sleep(Duration::from_secs(SHORT)).await;
    pass_a_minute(world.ehr(Vendor::Oracle));
    for held in &held {
        let (vendor, ehr) = (held.vendor, world.ehr(held.vendor));
        held.read(&world).await;
        held.read(&world).await;
        assert_eq!(ehr.counters.get(REFRESH), 1, "{vendor:?}");
        assert_eq!(world.gateway.metric(&refreshed(vendor)).await.unwrap(), 1.0, "{vendor:?}");
        unharmed(ehr, vendor);
        // Of what the EHR rotates the app sees nothing: its own refresh token is ours.
        let renewed = held.app.refresh(held.tokens.refresh()).await.unwrap();
        let url = format!("{}/Patient/{}", held.app.base, held.tokens.text("patient"));
        assert_eq!(read(&url, renewed.access()).await.unwrap().status, 200, "{vendor:?}");
        assert_eq!(ehr.counters.get(REFRESH), 1, "{vendor:?}: an app's refresh is not the EHR's affair");
    }
}

#[tokio::test]
async fn data_stay_readable_after_expiry_at_each_vendor() {
    expiry(Ehr::new).await;
}

#[tokio::test]
async fn data_stay_readable_after_expiry_at_each_strict_vendor() {
    expiry(Ehr::strict).await;
}

/// The EHR ends a token before its time: 401, one forced refresh, one replay.
async fn early_end(make: fn(Vendor) -> Ehr) {
    let make = |vendor| make(vendor).site("tokens.min_refresh_interval = \"0s\"");
    // athenaPractice's refresh tokens die with the access token: there is no way back from an early end.
    let vendors = [Vendor::Epic, Vendor::Oracle, Vendor::Athena, Vendor::Generic];
    let world = World::start(vendors.map(make)).await.unwrap();
    for vendor in vendors {
        let ehr = world.ehr(vendor);
        let held = Held::launch(&world, vendor).await;
        held.read(&world).await;
        pass_a_minute(ehr);
        ehr.expire_access_tokens();
        ehr.counters.reset();
        held.read(&world).await;
        assert_eq!((ehr.counters.get(REFRESH), ehr.counters.get("fhir:GET Patient")), (1, 2), "{vendor:?}");
        unharmed(ehr, vendor);
        // Again within the minute: custody does not hammer, and the app is not logged out.
        ehr.expire_access_tokens();
        let url = format!("{}/Patient/{}", held.app.base, held.tokens.text("patient"));
        let answer = read(&url, held.tokens.access()).await.unwrap();
        assert_eq!(answer.status, 403, "{vendor:?}: {}", answer.text());
        assert_eq!(ehr.counters.get(REFRESH), 1, "{vendor:?}");
        unharmed(ehr, vendor);
    }
}

#[tokio::test]
async fn an_early_end_forces_one_refresh_and_one_replay() {
    early_end(Ehr::new).await;
}

#[tokio::test]
async fn an_early_end_forces_one_refresh_at_strict_vendors() {
    early_end(Ehr::strict).await;
}

#[tokio::test]
async fn a_sliding_rotation_is_followed() {
    let vendors = [Vendor::Epic, Vendor::Generic];
    let world = World::start(vendors.map(|vendor| Ehr::strict(vendor).switch("rotation=sliding"))).await.unwrap();
    let mut held = Vec::new();
    for vendor in vendors {
        world.ehr(vendor).auth.set_lifetime(Some(2));
        held.push(Held::launch(&world, vendor).await);
    }
    // Each round ends a generation. What is warm may be renewed in the background before it is asked for.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        for held in &held {
            held.read(&world).await;
        }
    }
    for held in &held {
        let ehr = world.ehr(held.vendor);
        unharmed(ehr, held.vendor);
        let grants = ehr.grants();
        assert!(grants.iter().any(|grant| grant.generation >= 3), "{:?}: {grants:?}", held.vendor);
    }
}

#[tokio::test]
async fn grants_are_renewed_each_for_itself() {
    let world = World::start([Ehr::strict(Vendor::Generic)]).await.unwrap();
    let ehr = world.ehr(Vendor::Generic);
    ehr.auth.set_lifetime(Some(SHORT));
    let base = world.gateway.site_base(Vendor::Generic);
    let mut held = Vec::new();
    for app in [App::at(&base).await.unwrap(), App::with_secret(&base).await.unwrap()] {
        let tokens = app.launch(ehr).await.unwrap();
        held.push(Held { vendor: Vendor::Generic, app, tokens });
    }
    ehr.auth.set_lifetime(None);
    tokio::time::sleep(Duration::from_secs(SHORT)).await;
    ehr.counters.reset();
    for held in &held {
        held.read(&world).await;
    }
    assert_eq!(ehr.counters.get(REFRESH), 2);
    assert!(ehr.grants().iter().all(|grant| grant.refreshes == 1), "{:?}", ehr.grants());
    unharmed(ehr, Vendor::Generic);
}

/// `keep_alive` goes by the end that an EHR's answers tell, of which no profile knows.
#[tokio::test]
async fn an_unused_grant_is_kept_alive_before_the_end_that_the_ehr_has_told() {
    let ehr = Ehr::new(Vendor::Generic).switch("refresh_lifetime=20").switch("rotation=sliding");
    let mut world = World::start([ehr]).await.unwrap();
    assert_eq!(world.gateway.terminate().await.unwrap(), Some(0));
    let file = world.gateway.dir().join("mantel.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("[apps.viewer]", "[apps.viewer]\nkeep_alive = true")).unwrap();
    world.gateway.spawn().await.unwrap();
    let (ehr, base) = (world.ehr(Vendor::Generic), world.gateway.site_base(Vendor::Generic));
    let (kept, left) = (App::at(&base).await.unwrap(), App::with_secret(&base).await.unwrap());
    let (tokens, other) = (kept.launch(ehr).await.unwrap(), left.launch(ehr).await.unwrap());
    let launched = tokio::time::Instant::now();
    ehr.counters.reset();
    // Longer than it lives without a use.
    tokio::time::sleep_until(launched + Duration::from_secs(22)).await;
    assert_eq!(ehr.counters.get(REFRESH), 1, "{:?}", ehr.grants());
    ehr.expire_access_tokens();
    for (tokens, status) in [(&tokens, 200), (&other, 401)] {
        let answer = read(&format!("{base}/Patient/{}", tokens.text("patient")), tokens.access()).await.unwrap();
        assert_eq!(answer.status, status, "{}", answer.text());
    }
}
