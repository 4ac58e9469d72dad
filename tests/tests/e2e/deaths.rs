//! Deaths are rationed: an EHR that suddenly refuses a whole registration logs nobody out.

use std::time::Duration;

use futures_util::future::join_all;
use mantel_tests::{
    ehr::{
        contract::Vendor,
        faults::{Fault, FaultKind},
    },
    harness::{
        Ehr, World,
        app::{App, Tokens},
        read,
    },
};
use tokio::time::{Instant, sleep_until};

use crate::keys::{OLD, Replica, onto_postgres, told};

const REFRESH: &str = "token:refresh_token";
const GRANTS: usize = 12;
const SUSPECT: &str = "mantel_registration_suspect{registration=\"viewer-generic\",site=\"generic\"}";

/// Twelve logins whose access tokens have just expired, at an EHR that refuses all.
async fn refused(world: &World) -> Vec<(App, String, Tokens)> {
    let (ehr, base) = (world.ehr(Vendor::Generic), world.gateway.site_base(Vendor::Generic));
    ehr.auth.set_lifetime(Some(2));
    let mut apps = Vec::new();
    for _ in 0..GRANTS {
        // Without an identity none takes the place of the one before.
        let app = App::at(&base).await.unwrap().asking("launch/patient offline_access patient/Patient.read");
        let tokens = app.launch(ehr).await.unwrap();
        let url = format!("{base}/Patient/{}", tokens.text("patient"));
        apps.push((app, url, tokens));
    }
    let launched = Instant::now();
    ehr.auth.set_lifetime(None);
    ehr.counters.reset();
    // As a blocked fetch of our keys is answered.
    ehr.faults.add(Fault::new(REFRESH, FaultKind::Burnt));
    sleep_until(launched + Duration::from_secs(2)).await;
    apps
}

#[tokio::test]
async fn an_ehr_that_refuses_a_registration_logs_nobody_out_and_service_resumes_by_itself() {
    let world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let (ehr, gateway) = (world.ehr(Vendor::Generic), &world.gateway);
    let apps = refused(&world).await;
    for round in 0..3 {
        for (_, url, tokens) in &apps {
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
    let answers = join_all(apps.iter().map(|(_, url, tokens)| read(url, tokens.access()))).await;
    for answer in answers {
        let answer = answer.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(gateway.metric("mantel_grants_ended_total{reason=\"dead\",vendor=\"generic\"}").await.unwrap(), 0.0);
    for grant in ehr.grants() {
        assert_eq!((grant.reuses, grant.ended), (0, None), "{grant:?}");
    }
}

#[tokio::test]
async fn an_operator_says_that_a_registrations_users_must_log_in_again() {
    let world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let (gateway, dir) = (&world.gateway, world.gateway.dir());
    let suspects = || async { told(&["registrations", "suspects"], dir).await };
    assert_eq!(suspects().await, (true, "no EHR refuses refresh tokens now (gateway processes asked: 1)\n".into()));
    let apps = refused(&world).await;
    for (_, url, tokens) in &apps {
        assert_eq!(read(url, tokens.access()).await.unwrap().status, 503);
    }
    let (done, text) = suspects().await;
    for part in [
        "viewer-generic at generic (client id ",
        "SUSPECT since 20",
        "refused: 6 grants, and 6 more wait; the EHR's last answer: status 400, rule burnt",
        "one grant tries at 20",
        "confirm-deaths --registration viewer-generic --site generic",
    ] {
        assert!(done && text.contains(part), "{part}: {text}");
    }
    for (_, _, tokens) in &apps {
        assert!(!text.contains(tokens.access()) && !text.contains(tokens.text("patient")), "{text}");
    }

    // A word of nothing that there is changes nothing.
    let confirm = ["registrations", "confirm-deaths", "--registration"];
    for (more, expected) in [
        (
            &["elsewhere"][..],
            "there is no registration \"elsewhere\": expected one of server-app-generic, viewer-generic",
        ),
        (
            &["viewer-generic", "--site", "elsewhere"],
            "\"viewer-generic\" is not used at a site \"elsewhere\": expected one of generic",
        ),
    ] {
        let (done, said) = told(&[&confirm[..], more].concat(), dir).await;
        assert!(!done && said.contains(expected), "{said}");
    }
    assert_eq!(gateway.metric(SUSPECT).await.unwrap(), 1.0);

    let (done, said) = told(&[&confirm[..], &["viewer-generic", "--site", "generic"]].concat(), dir).await;
    assert!(done && said.contains("viewer-generic at generic: 6 refused grants are tried once more"), "{said}");
    for (app, url, tokens) in &apps {
        let answer = read(url, tokens.access()).await.unwrap();
        assert_eq!(answer.status, 401, "{}\n{}", answer.text(), gateway.log("events.log").unwrap());
        let refused = app.try_refresh(&[("refresh_token", tokens.refresh())]).await.unwrap();
        assert_eq!((refused.status.as_u16(), &refused.json().unwrap()["error"]), (400, &"invalid_grant".into()));
    }
    let ended = "mantel_grants_ended_total{reason=\"dead\",vendor=\"generic\"}";
    assert_eq!(gateway.metric(ended).await.unwrap(), 12.0);
    assert_eq!(gateway.metric(SUSPECT).await.unwrap(), 0.0);
    let (done, text) = suspects().await;
    assert!(done && text.contains("no EHR refuses"), "{text}");
    assert!(gateway.log("events.log").unwrap().contains("an operator confirmed that refresh tokens are dead"));
}

/// Each process counts for itself; what is said to one is heard by all, those too that start within the hour.
#[tokio::test]
async fn the_word_reaches_every_process() {
    let vendor = Vendor::Generic;
    let mut world = World::start([Ehr::new(vendor)]).await.unwrap();
    onto_postgres(&mut world).await;
    let dir = world.gateway.dir().to_owned();
    let mut two = Replica::of(&dir, vendor);
    two.start(&[OLD]).await;
    let apps = refused(&world).await;
    let at = |url: &str, base: &str| url.replace(&world.gateway.site_base(vendor), base);
    for (_, url, tokens) in &apps {
        assert_eq!(read(&at(url, &two.base), tokens.access()).await.unwrap().status, 503);
    }
    // The first has refused nobody, and shows what the second has seen.
    let deadline = Instant::now() + Duration::from_secs(20);
    let text = loop {
        let (done, text) = told(&["registrations", "suspects"], &dir).await;
        assert!(done, "{text}");
        if text.contains("SUSPECT since") {
            break text;
        }
        assert!(Instant::now() < deadline, "{text}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert_eq!(text.matches("gateway process ").count(), 1, "{text}");
    let (done, said) = told(&["registrations", "confirm-deaths", "--registration", "viewer-generic"], &dir).await;
    assert!(done && said.contains("viewer-generic at all its sites: 0 refused grants"), "{said}");
    assert!(said.contains("1 other gateway processes hear it"), "{said}");
    let mut three = Replica::of(&dir, vendor);
    three.start(&[OLD]).await;
    for (n, (_, url, tokens)) in apps.iter().enumerate() {
        let base = if n % 2 == 0 { &two.base } else { &three.base };
        loop {
            let answer = read(&at(url, base), tokens.access()).await.unwrap();
            if answer.status == 401 {
                break;
            }
            let events = || std::fs::read_to_string(two.dir.path().join("events.log")).unwrap();
            assert!(Instant::now() < deadline && answer.status == 503, "{n}: {}\n{}", answer.text(), events());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    two.stop().await;
    three.stop().await;
}
