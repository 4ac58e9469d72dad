//! EHRs that fail: nonsense, silence, cut lines, limits. The app hears whose fault it is and when to come again, and
//! nothing is lost.

use http::Method;
use mantel_tests::{
    ehr::{
        contract::Vendor,
        faults::{Fault, FaultKind},
    },
    harness::{
        Answer, CALLBACK, Ehr, World,
        app::{App, Tokens, visitor},
        call, read,
    },
};

const REFRESH: &str = "token:refresh_token";
const CODE: &str = "token:authorization_code";
/// Silence is told within a second or two.
const TIMEOUTS: &str = "[server.timeouts]\nupstream = \"1s\"\nidle = \"1s\"\ntoken = \"1s\"\n";

async fn world(ehr: Ehr) -> World {
    World::start_with([ehr], TIMEOUTS).await.unwrap()
}

async fn launched(world: &World, vendor: Vendor) -> (App, Tokens, String) {
    let app = App::at(&world.gateway.site_base(vendor)).await.unwrap();
    let tokens = app.launch(world.ehr(vendor)).await.unwrap();
    let url = format!("{}/Patient/{}", app.base, tokens.text("patient"));
    (app, tokens, url)
}

fn outcome(answer: &Answer, what: &str) -> String {
    let body = answer.json().unwrap_or_else(|_| panic!("{what}: {}", answer.text()));
    assert_eq!(body["resourceType"], "OperationOutcome", "{what}: {body}");
    assert!(answer.header("content-type").unwrap().starts_with("application/fhir+json"), "{what}");
    assert!(!answer.text().contains('<'), "{what}: markup came through: {}", answer.text());
    body["issue"][0]["code"].as_str().unwrap_or_default().to_owned()
}

/// How a read and a search fare under each fault, and after it.
async fn fhir(ehr: Ehr) {
    let vendor = ehr.options.vendor;
    let world = world(ehr).await;
    let (_, tokens, url) = launched(&world, vendor).await;
    let ehr = world.ehr(vendor);
    let search =
        url.replace(&format!("Patient/{}", tokens.text("patient")), "Condition?patient=") + tokens.text("patient");
    for (what, fault, statuses) in [
        ("a page with 200", FaultKind::Html { status: 200 }, &[502][..]),
        ("a page with 502", FaultKind::Html { status: 502 }, &[502]),
        ("a page with 404", FaultKind::Html { status: 404 }, &[404, 502]),
        ("500", FaultKind::Status { status: 500 }, &[500, 502]),
        ("503", FaultKind::Status { status: 503 }, &[502, 503]),
        ("nothing in the body", FaultKind::Status { status: 200 }, &[200, 502]),
        ("429", FaultKind::TooMany { retry_after: Some(7) }, &[429]),
        ("429 without a time", FaultKind::TooMany { retry_after: None }, &[429]),
        ("silence", FaultKind::Hold, &[504]),
        ("no answer", FaultKind::LostAnswer, &[502]),
    ] {
        for url in [&url, &search] {
            ehr.faults.add(Fault::new("fhir", fault.clone()));
            let answer = read(url, tokens.access()).await.unwrap();
            let what = format!("{vendor:?}, {what}");
            assert!(statuses.contains(&answer.status.as_u16()), "{what}: {} {}", answer.status, answer.text());
            if answer.status != 200 {
                outcome(&answer, &what);
            }
            if answer.status == 429 {
                let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
                assert!(if what.contains("without") { seconds > 0 } else { seconds == 7 }, "{what}: {seconds}");
            }
            ehr.faults.clear();
            let answer = read(url, tokens.access()).await.unwrap();
            assert_eq!(answer.status, 200, "after {what}: {}", answer.text());
        }
    }
    // What began well and is cut in the middle must not look whole.
    ehr.faults.add(Fault::new("fhir", FaultKind::Reset));
    for url in [&url, &search] {
        let answer = read(url, tokens.access()).await;
        if let Ok(answer) = answer {
            assert!(matches!(answer.status.as_u16(), 502 | 504), "{vendor:?}: {} {}", answer.status, answer.text());
            outcome(&answer, "cut");
        }
    }
    ehr.faults.clear();
    assert_eq!(read(&url, tokens.access()).await.unwrap().status, 200);
    assert_eq!(ehr.counters.get(REFRESH), 0, "{vendor:?}: none of it was about the token");
    assert!(ehr.grants().iter().all(|grant| grant.ended.is_none()));
}

#[tokio::test]
async fn fhir_faults_at_a_plain_server() {
    fhir(Ehr::new(Vendor::Generic)).await;
}

#[tokio::test]
async fn fhir_faults_where_answers_are_inspected() {
    fhir(Ehr::new(Vendor::Generic).site("inspect = \"always\"")).await;
}

#[tokio::test]
async fn fhir_faults_at_epic() {
    fhir(Ehr::strict(Vendor::Epic)).await;
}

/// A write whose answer is lost is not repeated, and that is said.
#[tokio::test]
async fn a_lost_write_is_not_repeated() {
    let scope = "patient/Observation.write";
    let world = World::start_scoped([Ehr::new(Vendor::Generic)], TIMEOUTS, &[scope]).await.unwrap();
    let ehr = world.ehr(Vendor::Generic);
    let base = world.gateway.site_base(Vendor::Generic);
    let app =
        App::at(&base).await.unwrap().asking(&format!("launch/patient offline_access patient/Patient.read {scope}"));
    let tokens = app.launch(ehr).await.unwrap();
    let body = serde_json::json!({
        "resourceType": "Observation", "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
        "subject": {"reference": format!("Patient/{}", tokens.text("patient"))},
    });
    ehr.faults.add(Fault::new("fhir", FaultKind::LostAnswer).times(1));
    ehr.counters.reset();
    let bearer = format!("Bearer {}", tokens.access());
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/fhir+json")];
    let answer = call(Method::POST, &format!("{base}/Observation"), &headers, &body.to_string()).await.unwrap();
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(answer.text().contains("unknown"), "{}", answer.text());
    assert_eq!(ehr.counters.get("fhir:POST Observation"), 1);
}

#[tokio::test]
async fn faults_at_the_exchange_of_the_code_reach_the_app() {
    let world = world(Ehr::new(Vendor::Generic)).await;
    let ehr = world.ehr(Vendor::Generic);
    let app = App::at(&world.gateway.site_base(Vendor::Generic)).await.unwrap();
    for (what, fault, errors) in [
        ("a page with 200", FaultKind::Html { status: 200 }, &["temporarily_unavailable", "server_error"][..]),
        ("a page with 502", FaultKind::Html { status: 502 }, &["temporarily_unavailable"]),
        ("500", FaultKind::Status { status: 500 }, &["temporarily_unavailable"]),
        ("429", FaultKind::TooMany { retry_after: Some(1) }, &["temporarily_unavailable"]),
        ("silence", FaultKind::Hold, &["temporarily_unavailable"]),
        ("cut", FaultKind::Reset, &["temporarily_unavailable", "server_error"]),
        ("no answer", FaultKind::LostAnswer, &["temporarily_unavailable"]),
        ("a refusal", FaultKind::Burnt, &["server_error"]),
    ] {
        ehr.faults.add(Fault::new(CODE, fault));
        let back = app.authorize(&mut visitor(), ehr, &[]).await.unwrap();
        let param =
            |name: &str| back.query_pairs().find(|(known, _)| known == name).map(|(_, value)| value.into_owned());
        assert!(back.as_str().starts_with(CALLBACK), "{what}: {back}");
        let error = param("error").unwrap_or_else(|| panic!("{what}: {back}"));
        assert!(errors.contains(&error.as_str()), "{what}: {back}");
        assert_eq!(param("state").as_deref(), Some(app.state.as_str()), "{what}");
        assert_eq!(param("code"), None, "{what}");
        ehr.faults.clear();
    }
    app.launch(ehr).await.unwrap();
}

#[tokio::test]
async fn faults_at_discovery_stop_a_launch_and_no_other() {
    for fault in [
        FaultKind::Html { status: 200 },
        FaultKind::Html { status: 502 },
        FaultKind::Status { status: 500 },
        FaultKind::Reset,
    ] {
        let world = world(Ehr::new(Vendor::Generic)).await;
        let ehr = world.ehr(Vendor::Generic);
        for at in ["discovery", "metadata"] {
            ehr.faults.add(Fault::new(at, fault.clone()));
        }
        // Our own documents stand by themselves.
        let app = App::at(&world.gateway.site_base(Vendor::Generic)).await.unwrap();
        let page = visitor().get(&app.url(&[]).unwrap()).await.unwrap();
        match page.redirect() {
            Some(back) => {
                assert!(back.as_str().starts_with(CALLBACK), "{fault:?}: {back}");
                let error = page.redirect_param("error");
                assert!(
                    matches!(error.as_deref(), Some("temporarily_unavailable" | "server_error")),
                    "{fault:?}: {back}"
                );
            }
            None => assert!(matches!(page.status.as_u16(), 502..=504), "{fault:?}: {} {}", page.status, page.text()),
        }
        assert_eq!(ehr.counters.get("authorize"), 0, "{fault:?}");
    }
    // Once found, endpoints outlast a discovery that fails.
    let world = world(Ehr::new(Vendor::Generic)).await;
    let (app, tokens, url) = launched(&world, Vendor::Generic).await;
    let ehr = world.ehr(Vendor::Generic);
    for at in ["discovery", "metadata"] {
        ehr.faults.add(Fault::new(at, FaultKind::Html { status: 200 }));
    }
    assert_eq!(read(&url, tokens.access()).await.unwrap().status, 200);
    app.launch(ehr).await.unwrap();
}

/// While the old access token lives, a failing token endpoint is nobody's business; once it is dead, 503.
#[tokio::test]
async fn a_failing_token_endpoint_costs_nothing_while_the_token_lives() {
    for fault in [
        FaultKind::Status { status: 500 },
        FaultKind::Html { status: 200 },
        FaultKind::Html { status: 502 },
        FaultKind::TooMany { retry_after: Some(1) },
    ] {
        let world = world(Ehr::new(Vendor::Generic)).await;
        let ehr = world.ehr(Vendor::Generic);
        // Due at 60 % of its life.
        ehr.auth.set_lifetime(Some(4));
        let (_, tokens, url) = launched(&world, Vendor::Generic).await;
        let launched = tokio::time::Instant::now();
        ehr.auth.set_lifetime(None);
        ehr.faults.add(Fault::new(REFRESH, fault.clone()));
        tokio::time::sleep_until(launched + std::time::Duration::from_millis(2500)).await;
        let answer = read(&url, tokens.access()).await.unwrap();
        assert_eq!(answer.status, 200, "{fault:?}: {}", answer.text());
        tokio::time::sleep_until(launched + std::time::Duration::from_millis(4000)).await;
        let answer = read(&url, tokens.access()).await.unwrap();
        assert_eq!(answer.status, 503, "{fault:?}: {}", answer.text());
        outcome(&answer, "no token");
        assert!(answer.header("retry-after").is_some(), "{fault:?}");
        assert!(ehr.counters.get(REFRESH) >= 1, "{fault:?}");
        ehr.faults.clear();
        // A page with 200 is an unknown outcome, which custody waits out.
        if fault == (FaultKind::Html { status: 200 }) {
            continue;
        }
        // Backoff with full jitter: the gateway says when.
        for _ in 0..30 {
            let answer = read(&url, tokens.access()).await.unwrap();
            if answer.status == 200 {
                break;
            }
            assert_eq!(answer.status, 503, "{fault:?}: {}", answer.text());
            let wait = answer.header("retry-after").unwrap().parse().unwrap();
            tokio::time::sleep(std::time::Duration::from_secs(wait)).await;
        }
        let answer = read(&url, tokens.access()).await.unwrap();
        assert_eq!(answer.status, 200, "{fault:?}: {}", answer.text());
    }
}

/// The EHR's word for a dead refresh token ends the grant, with a reason and a way back.
#[tokio::test]
async fn a_dead_refresh_token_ends_the_grant() {
    let vendors = [Vendor::Epic, Vendor::Oracle, Vendor::Athena, Vendor::Generic];
    let make = |vendor| Ehr::new(vendor).site("tokens.min_refresh_interval = \"0s\"");
    let world = World::start(vendors.map(make)).await.unwrap();
    for vendor in vendors {
        let ehr = world.ehr(vendor);
        let (app, tokens, url) = launched(&world, vendor).await;
        ehr.expire_access_tokens();
        ehr.end_grants(None);
        let answer = read(&url, tokens.access()).await.unwrap();
        assert_eq!(answer.status, 401, "{vendor:?}: {}\n{}", answer.text(), world.gateway.log("events.log").unwrap());
        assert!(answer.header("www-authenticate").unwrap().contains("invalid_token"), "{vendor:?}");
        assert_eq!(outcome(&answer, "dead"), "expired", "{vendor:?}");
        let way_back = format!("{}?iss=", mantel_tests::harness::LAUNCH_URL);
        assert!(answer.text().contains(&way_back), "{vendor:?}: {}", answer.text());
        let ended = format!("mantel_grants_ended_total{{reason=\"dead\",vendor=\"{}\"}}", vendor.text());
        assert_eq!(world.gateway.metric(&ended).await.unwrap(), 1.0, "{vendor:?}");
        // It stays ended, and the EHR is not asked again.
        ehr.counters.reset();
        assert_eq!(read(&url, tokens.access()).await.unwrap().status, 401, "{vendor:?}");
        let refused = app.try_refresh(&[("refresh_token", tokens.refresh())]).await.unwrap();
        assert_eq!((refused.status.as_u16(), &refused.json().unwrap()["error"]), (400, &"invalid_grant".into()));
        assert_eq!(ehr.counters.get(REFRESH), 0, "{vendor:?}");
        // And a new launch serves.
        let (_, tokens, url) = launched(&world, vendor).await;
        assert_eq!(read(&url, tokens.access()).await.unwrap().status, 200, "{vendor:?}");
    }
}

#[tokio::test]
async fn an_ehr_that_is_gone_is_told() {
    let mut world = world(Ehr::new(Vendor::Generic)).await;
    let (_, tokens, url) = launched(&world, Vendor::Generic).await;
    world.ehrs.clear();
    let answer = read(&url, tokens.access()).await.unwrap();
    assert_eq!(answer.status, 502, "{}", answer.text());
    outcome(&answer, "gone");
}
