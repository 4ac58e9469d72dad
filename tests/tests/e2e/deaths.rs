//! Deaths are rationed: an EHR that suddenly refuses a whole registration logs nobody out.

use std::time::Duration;

use futures_util::future::join_all;
use mantel_tests::{
    ehr::{
        contract::Vendor,
        faults::{Fault, FaultKind},
    },
    harness::{Ehr, World, app::App, read},
};
use tokio::time::{Instant, sleep_until};

const REFRESH: &str = "token:refresh_token";
const GRANTS: usize = 12;
const SUSPECT: &str = "mantel_registration_suspect{registration=\"viewer-generic\",site=\"generic\"}";

#[tokio::test]
async fn an_ehr_that_refuses_a_registration_logs_nobody_out_and_service_resumes_by_itself() {
    let world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let (ehr, gateway) = (world.ehr(Vendor::Generic), &world.gateway);
    ehr.auth.set_lifetime(Some(2));
    let base = gateway.site_base(Vendor::Generic);
    let mut apps = Vec::new();
    for _ in 0..GRANTS {
        // Without an identity none takes the place of the one before.
        let app = App::at(&base).await.unwrap().asking("launch/patient offline_access patient/Patient.read");
        let tokens = app.launch(ehr).await.unwrap();
        apps.push((format!("{base}/Patient/{}", tokens.text("patient")), tokens));
    }
    let launched = Instant::now();
    ehr.auth.set_lifetime(None);
    ehr.counters.reset();
    // As a blocked fetch of our keys is answered.
    ehr.faults.add(Fault::new(REFRESH, FaultKind::Burnt));
    sleep_until(launched + Duration::from_secs(2)).await;
    for round in 0..3 {
        for (url, tokens) in &apps {
            let answer = read(url, tokens.access()).await.unwrap();
            assert_eq!(answer.status, 503, "round {round}: {}\n{}", answer.text(), gateway.log("events.log").unwrap());
            let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=30).contains(&wait), "round {round}: {wait}");
        }
    }
    assert!(ehr.counters.get(REFRESH) <= 6, "{} tried", ehr.counters.get(REFRESH));
    assert_eq!(gateway.metric(SUSPECT).await.unwrap(), 1.0);
    let suspected = SUSPECT.replace("suspect{", "suspected_total{");
    assert_eq!(gateway.metric(&suspected).await.unwrap(), 1.0);

    ehr.faults.clear();
    // One tries after a minute; nobody need do anything.
    let deadline = Instant::now() + Duration::from_secs(75);
    while gateway.metric(SUSPECT).await.unwrap() > 0.0 {
        assert!(Instant::now() < deadline, "{}", gateway.log("events.log").unwrap());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let answers = join_all(apps.iter().map(|(url, tokens)| read(url, tokens.access()))).await;
    for answer in answers {
        let answer = answer.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(gateway.metric("mantel_grants_ended_total{reason=\"dead\",vendor=\"generic\"}").await.unwrap(), 0.0);
    for grant in ehr.grants() {
        assert_eq!((grant.reuses, grant.ended), (0, None), "{grant:?}");
    }
}
