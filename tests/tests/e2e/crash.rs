//! `kill -9`, at points that the EHR holds still. A rotation that the gateway has acted on is never lost; one whose
//! answer never came is in doubt, and costs the login only where the EHR had rotated.

use std::time::{Duration, Instant};

use http::StatusCode;
use mantel_tests::{
    ehr::{
        contract::Vendor,
        faults::{Fault, FaultKind},
        server::Running,
    },
    harness::{
        Ehr, World,
        app::{App, Tokens, visitor},
        read,
    },
};

const REFRESH: &str = "token:refresh_token";
/// Beyond `custody::machine::LATE_WINNER`: so long a doubt may last.
const DOUBT: Duration = Duration::from_secs(90);

fn url(app: &App, tokens: &Tokens) -> String {
    format!("{}/Patient/{}", app.base, tokens.text("patient"))
}

fn spawn_read(url: &str, token: &str) -> tokio::task::JoinHandle<anyhow::Result<mantel_tests::harness::Answer>> {
    let (url, token) = (url.to_owned(), token.to_owned());
    tokio::spawn(async move { read(&url, &token).await })
}

/// No spent refresh token came twice, and nothing has ended.
#[track_caller]
fn unharmed(ehr: &Running) {
    for grant in ehr.grants() {
        assert_eq!((grant.reuses, grant.ended), (0, None), "{grant:?}");
    }
}

#[tokio::test]
async fn a_rotating_grant_survives_ten_kills() {
    let mut world = World::start([Ehr::strict(Vendor::Epic)]).await.unwrap();
    let base = world.gateway.site_base(Vendor::Epic);
    let app = App::at(&base).await.unwrap();
    let tokens = app.launch(world.ehr(Vendor::Epic)).await.unwrap();
    let url = url(&app, &tokens);
    let mut holds = 0;
    for kill in 0..10 {
        let ehr = world.ehr(Vendor::Epic);
        // The EHR ends the token early: the next read needs a refresh, which rotates.
        assert_eq!(ehr.expire_access_tokens(), 1, "kill {kill}");
        ehr.counters.reset();
        if kill % 2 == 0 {
            // Killed between the rotation and the answer to the app: the replay waits at the EHR, so the
            // new token is in use, so it is durable.
            ehr.faults.add(Fault::new(REFRESH, FaultKind::Hold).times(1));
            let reading = spawn_read(&url, tokens.access());
            holds += 1;
            ehr.faults.wait_holds(holds).await;
            ehr.faults.add(Fault::new("fhir", FaultKind::Hold).times(1));
            ehr.faults.release();
            holds += 1;
            ehr.faults.wait_holds(holds).await;
            world.gateway.kill().unwrap();
            assert!(reading.await.unwrap().is_err(), "kill {kill}: answered by a dead process");
        } else {
            // Killed as soon as the app has its answer.
            let answer = read(&url, tokens.access()).await.unwrap();
            assert_eq!(answer.status, 200, "kill {kill}: {}", answer.text());
            world.gateway.kill().unwrap();
        }
        let ehr = world.ehr(Vendor::Epic);
        ehr.faults.wait_free().await;
        assert_eq!(ehr.counters.get(REFRESH), 1, "kill {kill}");
        world.gateway.spawn().await.unwrap();
        let answer = read(&url, tokens.access()).await.unwrap();
        assert_eq!(
            answer.status,
            200,
            "kill {kill}: {}\nrefused: {:?}\n{}",
            answer.text(),
            world.ehr(Vendor::Epic).auth.refused(),
            world.gateway.log("events.log").unwrap()
        );
        let ehr = world.ehr(Vendor::Epic);
        assert_eq!(ehr.counters.get(REFRESH), 1, "kill {kill}: the stored rotation serves");
        unharmed(ehr);
    }
    let [grant] = <[_; 1]>::try_from(world.ehr(Vendor::Epic).grants()).unwrap();
    assert_eq!((grant.generation, grant.refreshes), (10, 10), "{grant:?}");
    // The app's own refresh token lives on as well.
    app.refresh(tokens.refresh()).await.unwrap();
}

/// Each of the two waits a minute and more for the end of a doubt: side by side.
#[tokio::test]
async fn a_doubt_ends_and_costs_a_login_only_where_the_ehr_had_rotated() {
    tokio::join!(a_kill_during_a_refresh(), a_lost_answer());
}

/// Killed while the token request waits before the EHR has done anything: nothing was rotated, and the gateway
/// cannot know. The old access token serves while it lives, then 503 with a time, then the one try that is left.
async fn a_kill_during_a_refresh() {
    let mut world = World::start([Ehr::strict(Vendor::Epic)]).await.unwrap();
    let base = world.gateway.site_base(Vendor::Epic);
    let app = App::at(&base).await.unwrap();
    let ehr = world.ehr(Vendor::Epic);
    // Due at 60 % of its life.
    ehr.auth.set_lifetime(Some(10));
    let tokens = app.launch(ehr).await.unwrap();
    let launched = Instant::now();
    ehr.auth.set_lifetime(None);
    let url = url(&app, &tokens);
    ehr.counters.reset();
    ehr.faults.add(Fault::new(REFRESH, FaultKind::Hold).times(1));
    tokio::time::sleep_until((launched + Duration::from_millis(6200)).into()).await;
    let answer = read(&url, tokens.access()).await.unwrap();
    assert_eq!(answer.status, 200, "served while the refresh runs behind it: {}", answer.text());
    ehr.faults.wait_holds(1).await;
    world.gateway.kill().unwrap();
    // The EHR sees its caller gone and does nothing.
    world.ehr(Vendor::Epic).faults.wait_free().await;
    world.gateway.spawn().await.unwrap();
    let ehr = world.ehr(Vendor::Epic);
    let answer = read(&url, tokens.access()).await.unwrap();
    if launched.elapsed() < Duration::from_secs(9) {
        assert_eq!(answer.status, 200, "the old token lives: {}", answer.text());
    }
    assert_eq!(ehr.counters.get(REFRESH), 1, "no second try while the old token lives");
    settled(&url, &tokens, StatusCode::OK).await;
    assert_eq!(ehr.counters.get(REFRESH), 2, "exactly one further try");
    unharmed(ehr);
    let [grant] = <[_; 1]>::try_from(ehr.grants()).unwrap();
    assert_eq!(grant.generation, 1, "{grant:?}");
}

/// Asks until the doubt is over, as it is told by `Retry-After`; until then it is never the user's fault.
async fn settled(url: &str, tokens: &Tokens, expected: StatusCode) {
    let started = Instant::now();
    loop {
        let answer = read(url, tokens.access()).await.unwrap();
        let in_doubt = answer.status == 503 || (answer.status == 200 && expected != StatusCode::OK);
        if !in_doubt {
            assert_eq!(answer.status, expected, "{}", answer.text());
            // The old token may serve still.
            if expected != StatusCode::OK || started.elapsed() > Duration::from_secs(15) {
                return;
            }
        }
        assert!(started.elapsed() < DOUBT, "in doubt for {:?}", started.elapsed());
        let wait = answer.header("retry-after").and_then(|text| text.parse().ok()).unwrap_or(1);
        if answer.status == 503 {
            assert!(answer.header("retry-after").is_some(), "{:?}", answer.headers);
        }
        tokio::time::sleep(Duration::from_secs(wait).min(Duration::from_secs(5))).await;
    }
}

/// The EHR rotates, and its answer is lost on the way: the only live token is nowhere. That one costs the login,
/// and is counted by itself; where the EHR does not rotate it costs nothing.
async fn a_lost_answer() {
    let world = World::start([Ehr::strict(Vendor::Epic), Ehr::new(Vendor::Generic)]).await.unwrap();
    let mut cases = Vec::new();
    for (vendor, expected) in [(Vendor::Epic, StatusCode::UNAUTHORIZED), (Vendor::Generic, StatusCode::OK)] {
        let ehr = world.ehr(vendor);
        let app = App::at(&world.gateway.site_base(vendor)).await.unwrap();
        ehr.auth.set_lifetime(Some(2));
        let tokens = app.launch(ehr).await.unwrap();
        ehr.auth.set_lifetime(None);
        // The one try that is left waits for the end of the old token, as the gateway's clock has it.
        tokio::time::sleep(Duration::from_secs(2)).await;
        ehr.counters.reset();
        ehr.faults.add(Fault::new(REFRESH, FaultKind::LostAnswer).times(1));
        let answer = read(&url(&app, &tokens), tokens.access()).await.unwrap();
        assert_eq!(answer.status, 503, "{vendor:?}: {}", answer.text());
        assert_eq!(ehr.counters.get(REFRESH), 1, "{vendor:?}: an unknown outcome is not tried again at once");
        cases.push((vendor, app, tokens, expected));
    }
    for (vendor, app, tokens, expected) in &cases {
        settled(&url(app, tokens), tokens, *expected).await;
        assert_eq!(world.ehr(*vendor).counters.get(REFRESH), 2, "{vendor:?}: tried exactly once more");
    }
    let lost =
        |vendor: Vendor| format!("mantel_grants_ended_total{{reason=\"lost_rotation\",vendor=\"{}\"}}", vendor.text());
    assert_eq!(world.gateway.metric(&lost(Vendor::Epic)).await.unwrap(), 1.0);
    assert_eq!(world.gateway.metric(&lost(Vendor::Generic)).await.unwrap(), 0.0);
    let (_, app, tokens, _) = &cases[0];
    let answer = app.try_refresh(&[("refresh_token", tokens.refresh())]).await.unwrap();
    assert_eq!((answer.status.as_u16(), &answer.json().unwrap()["error"]), (400, &"invalid_grant".into()));
}

#[tokio::test]
async fn launches_in_flight_survive_kills() {
    let mut world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let base = world.gateway.site_base(Vendor::Generic);
    let app = App::at(&base).await.unwrap();
    let callback = format!("{}/oauth/callback", world.gateway.public);
    // Killed while the user signs in at the EHR.
    let mut browser = visitor().stop_at(&callback);
    let back = app.authorize(&mut browser, world.ehr(Vendor::Generic), &[]).await.unwrap();
    assert!(back.as_str().starts_with(&callback), "{back}");
    world.gateway.kill().unwrap();
    world.gateway.spawn().await.unwrap();
    // A browser that went on would stop there again: its redirect is followed by hand.
    let page = browser.get(back.as_str()).await.unwrap();
    let code = app.code(&page.redirect().unwrap_or_else(|| panic!("{} {}", page.status, page.text()))).unwrap();
    // Killed between the code and its exchange.
    world.gateway.kill().unwrap();
    world.gateway.spawn().await.unwrap();
    let tokens = app.redeem(&code).await.unwrap();
    // And a code stays used.
    world.gateway.kill().unwrap();
    world.gateway.spawn().await.unwrap();
    let url = url(&app, &tokens);
    assert_eq!(read(&url, tokens.access()).await.unwrap().status, 200);
    let again = app.exchange(&[("code", &code)]).await.unwrap();
    assert_eq!((again.status.as_u16(), &again.json().unwrap()["error"]), (400, &"invalid_grant".into()));
}

#[tokio::test]
async fn sigterm_lets_requests_in_work_end() {
    let mut world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let app = App::at(&world.gateway.site_base(Vendor::Generic)).await.unwrap();
    let tokens = app.launch(world.ehr(Vendor::Generic)).await.unwrap();
    let ehr = world.ehrs.get(&Vendor::Generic).unwrap().ehr.clone();
    ehr.faults.add(Fault::new("fhir", FaultKind::Hold).times(1));
    let reading = spawn_read(&url(&app, &tokens), tokens.access());
    ehr.faults.wait_holds(1).await;
    let admin = world.gateway.admin.clone();
    let ending = async {
        // Ready no more, and yet at work.
        for _ in 0..400 {
            let ready = mantel_tests::harness::get(&format!("{admin}/health/ready"), &[]).await;
            if ready.as_ref().is_ok_and(|answer| answer.status == 503) {
                ehr.faults.release();
                return true;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        ehr.faults.release();
        false
    };
    let (code, was_told) = tokio::join!(world.gateway.terminate(), ending);
    assert!(was_told, "readiness never said that it ends");
    assert_eq!(code.unwrap(), Some(0));
    assert_eq!(reading.await.unwrap().unwrap().status, 200);
}
