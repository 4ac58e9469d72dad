//! What a second reading found: ends that must reach memory, limits and forms of refusals.

use http::Method;
use mantel_tests::{
    ehr::contract::Vendor,
    harness::{
        APP, Ehr, ORIGIN, World,
        app::{App, visitor},
        call, read,
    },
};

async fn world() -> (World, App) {
    let world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let app = App::at(&world.gateway.site_base(Vendor::Generic)).await.unwrap();
    (world, app)
}

#[tokio::test]
async fn the_first_use_of_an_access_token_ends_the_grace_before_it() {
    let (world, app) = world().await;
    let first = app.launch(world.ehr(Vendor::Generic)).await.unwrap();
    let second = app.refresh(first.refresh()).await.unwrap();
    let patient = format!("{}/Patient/{}", app.base, second.text("patient"));
    assert_eq!(read(&patient, second.access()).await.unwrap().status, 200);
    // Its answer did arrive: who shows the old one again is not the app that lost it.
    let replay = app.try_refresh(&[("refresh_token", first.refresh())]).await.unwrap();
    assert_eq!((replay.status.as_u16(), replay.json().unwrap()["error"].as_str()), (400, Some("invalid_grant")));
    assert_eq!(read(&patient, second.access()).await.unwrap().status, 401);
}

#[tokio::test]
async fn a_new_authorization_ends_the_sessions_of_the_old_one_at_once() {
    let (world, app) = world().await;
    let old = app.launch(world.ehr(Vendor::Generic)).await.unwrap();
    let patient = format!("{}/Patient/{}", app.base, old.text("patient"));
    assert_eq!(read(&patient, old.access()).await.unwrap().status, 200);
    let new = app.launch(world.ehr(Vendor::Generic)).await.unwrap();
    assert_eq!(new.text("patient"), old.text("patient"));
    let answer = read(&patient, old.access()).await.unwrap();
    assert_eq!(answer.status, 401, "{}", answer.text());
    assert_eq!(read(&patient, new.access()).await.unwrap().status, 200);
    let ended = world.gateway.metric(r#"mantel_grants_ended_total{reason="superseded",vendor="generic"}"#).await;
    assert!((ended.unwrap() - 1.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_grant_of_a_registration_that_is_not_listed_gets_no_token_and_lives() {
    let (mut world, app) = world().await;
    let first = app.launch(world.ehr(Vendor::Generic)).await.unwrap();
    let file = world.gateway.dir().join("sites.d/generic.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let id = format!("\"{APP}-at-generic\"");
    std::fs::write(&file, text.replace(&id, "\"another\"")).unwrap();
    world.gateway.kill().unwrap();
    world.gateway.spawn().await.unwrap();
    let patient = format!("{}/Patient/{}", app.base, first.text("patient"));
    assert_eq!(read(&patient, first.access()).await.unwrap().status, 401);
    let refused = app.try_refresh(&[("refresh_token", first.refresh())]).await.unwrap();
    assert_eq!((refused.status.as_u16(), refused.json().unwrap()["error"].as_str()), (400, Some("invalid_grant")));
    std::fs::write(&file, text).unwrap();
    world.gateway.kill().unwrap();
    world.gateway.spawn().await.unwrap();
    let second = app.refresh(first.refresh()).await.unwrap();
    assert_eq!(read(&patient, second.access()).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_token_request_that_is_too_large_is_refused_in_oauths_words() {
    let (_world, app) = world().await;
    let form = ("content-type", "application/x-www-form-urlencoded");
    let body = format!("grant_type={}", "x".repeat(65 << 10));
    let answer = call(Method::POST, &app.token, &[("origin", ORIGIN), form], &body).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.json().unwrap()["error"].as_str()), (413, Some("invalid_request")));
    assert_eq!((answer.header("cache-control"), answer.header("pragma")), (Some("no-store"), Some("no-cache")));
    assert_eq!(answer.header("access-control-allow-origin"), Some(ORIGIN));
    let got = call(Method::GET, &app.token, &[], "").await.unwrap();
    assert_eq!((got.status.as_u16(), got.header("allow")), (405, Some("POST")));
}

#[tokio::test]
async fn a_refusal_may_be_shown_in_the_frame_of_its_ehr_and_tells_the_app() {
    let ehr = Ehr::new(Vendor::Generic).site("frame_origins = [\"https://ehr.example.org\"]");
    let world = World::start_with([ehr], "required_scopes = [\"patient/Encounter.rs\"]").await.unwrap();
    let app = App::with_secret(&world.gateway.site_base(Vendor::Generic)).await.unwrap();
    // The callback by itself, so that its page is seen.
    let callback = format!("{}/oauth/callback", world.gateway.public);
    let mut stopped = visitor().stop_at(&callback);
    let back = app.authorize(&mut stopped, world.ehr(Vendor::Generic), &[]).await.unwrap();
    let page = stopped.get(back.as_str()).await.unwrap();
    assert_eq!(page.status, 200, "{}", page.text());
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("frame-ancestors https://ehr.example.org"), "{policy}");
    assert!(page.text().contains("error=invalid_scope"), "{}", page.text());
    assert!(page.text().contains(&format!("state={}", app.state)), "{}", page.text());
    // A scope that says as much in the other syntax is enough.
    let app = app.asking("launch/patient openid fhirUser patient/Patient.read patient/Encounter.read");
    app.launch(world.ehr(Vendor::Generic)).await.unwrap();
}

#[tokio::test]
async fn plain_http_is_for_the_proxies_that_end_tls() {
    let (mut world, app) = world().await;
    let file = world.gateway.dir().join("mantel.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    for (proxies, served) in [("10.9.9.9", false), ("127.0.0.0/8", true)] {
        let line = format!("sandbox = true\nbehind_proxy = [\"{proxies}\"]");
        std::fs::write(&file, text.replace("sandbox = true", &line)).unwrap();
        world.gateway.kill().unwrap();
        world.gateway.spawn().await.unwrap();
        let answer = call(Method::GET, &format!("{}/metadata", app.base), &[], "").await;
        assert_eq!(answer.is_ok(), served, "{proxies}: {answer:?}");
    }
}

#[tokio::test]
async fn a_head_uses_up_neither_a_state_nor_a_launch() {
    let (world, app) = world().await;
    let callback = format!("{}/oauth/callback", world.gateway.public);
    let mut user = visitor().stop_at(&callback);
    let back = app.authorize(&mut user, world.ehr(Vendor::Generic), &[]).await.unwrap();
    let scanned = call(Method::HEAD, back.as_str(), &[], "").await.unwrap();
    assert_eq!(scanned.status, 404);
    let page = user.get(back.as_str()).await.unwrap();
    app.redeem(&app.code(&page.redirect().unwrap()).unwrap()).await.unwrap();
    let head = call(Method::HEAD, &format!("{}/.well-known/smart-configuration", app.base), &[], "").await.unwrap();
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
}

#[tokio::test]
async fn an_access_token_is_not_said_to_outlive_its_session() {
    let more = "custody = \"session\"\nsession_max = \"2m\"\nsession_idle = \"1m\"";
    let world = World::start_with([Ehr::new(Vendor::Generic)], more).await.unwrap();
    let app = App::with_secret(&world.gateway.site_base(Vendor::Generic)).await.unwrap();
    let app = app.asking("launch/patient patient/Patient.read");
    let tokens = app.launch(world.ehr(Vendor::Generic)).await.unwrap();
    let told = tokens.0["expires_in"].as_u64().unwrap();
    assert!((60..=120).contains(&told), "{told}");
    assert_eq!(tokens.refresh(), "", "custody's refresh token is not the app's");
}
