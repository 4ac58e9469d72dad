//! Our own tokens: rotation, grace, replay, narrowing.

use mantel_tests::{
    ehr::contract::Vendor,
    harness::{Ehr, World, app::App},
};

async fn world() -> (World, App) {
    let world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let app = App::at(&world.gateway.site_base(Vendor::Generic)).await.unwrap();
    (world, app)
}

#[tokio::test]
async fn a_refresh_rotates_and_keeps_the_context() {
    let (world, app) = world().await;
    let first = app.launch(world.ehr(Vendor::Generic)).await.unwrap();
    let second = app.refresh(first.refresh()).await.unwrap();
    assert_ne!(second.refresh(), first.refresh());
    assert_ne!(second.access(), first.access());
    assert_eq!(second.text("scope"), first.text("scope"));
    assert_eq!(second.text("patient"), first.text("patient"));
    // A lost answer: the same successor again, until it is used.
    let again = app.refresh(first.refresh()).await.unwrap();
    assert_eq!(again.refresh(), second.refresh());
    let third = app.refresh(second.refresh()).await.unwrap();
    // The successor was used: whoever comes with the predecessor is a thief, or is robbed.
    let replay = app.try_refresh(&[("refresh_token", first.refresh())]).await.unwrap();
    assert_eq!((replay.status.as_u16(), replay.json().unwrap()["error"].as_str()), (400, Some("invalid_grant")));
    let ended = app.try_refresh(&[("refresh_token", third.refresh())]).await.unwrap();
    assert_eq!((ended.status.as_u16(), ended.json().unwrap()["error"].as_str()), (400, Some("invalid_grant")));
}

#[tokio::test]
async fn a_refresh_without_client_id_is_the_public_apps() {
    let (world, app) = world().await;
    let first = app.launch(world.ehr(Vendor::Generic)).await.unwrap();
    let answer = mantel_tests::harness::post_form(
        &app.token,
        &[],
        &[("grant_type", "refresh_token"), ("refresh_token", first.refresh())],
    )
    .await
    .unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("pragma"), Some("no-cache"));
}

#[tokio::test]
async fn a_refresh_narrows_and_never_widens() {
    let (world, app) = world().await;
    let first = app.launch(world.ehr(Vendor::Generic)).await.unwrap();
    let narrow =
        app.try_refresh(&[("refresh_token", first.refresh()), ("scope", "patient/Patient.read")]).await.unwrap();
    assert_eq!(narrow.status, 200, "{}", narrow.text());
    let narrow = narrow.json().unwrap();
    assert_eq!(narrow["scope"], "patient/Patient.read");
    let refresh = narrow["refresh_token"].as_str().unwrap();
    let wide = app.try_refresh(&[("refresh_token", refresh), ("scope", "patient/Encounter.read")]).await.unwrap();
    assert_eq!((wide.status.as_u16(), wide.json().unwrap()["error"].as_str()), (400, Some("invalid_scope")));
    let whole = app.try_refresh(&[("refresh_token", refresh), ("scope", first.text("scope"))]).await.unwrap();
    assert_eq!(whole.json().unwrap()["scope"], first.text("scope"));
}

#[tokio::test]
async fn a_code_is_good_once() {
    let (world, app) = world().await;
    let ehr = world.ehr(Vendor::Generic);
    let back = app.authorize(&mut mantel_tests::harness::app::visitor(), ehr, &[]).await.unwrap();
    let code = app.code(&back).unwrap();
    let tokens = app.redeem(&code).await.unwrap();
    let again = app.exchange(&[("code", &code)]).await.unwrap();
    assert_eq!((again.status.as_u16(), again.json().unwrap()["error"].as_str()), (400, Some("invalid_grant")));
    // RFC 6749 §4.1.2: what the code gave is ended.
    let ended = app.try_refresh(&[("refresh_token", tokens.refresh())]).await.unwrap();
    assert_eq!(ended.status, 400);
}

#[tokio::test]
async fn a_secret_app_authenticates_or_is_refused() {
    let world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let base = world.gateway.site_base(Vendor::Generic);
    let app = App::with_secret(&base).await.unwrap();
    let tokens = app.launch(world.ehr(Vendor::Generic)).await.unwrap();
    let bare = mantel_tests::harness::post_form(
        &app.token,
        &[],
        &[("grant_type", "refresh_token"), ("refresh_token", tokens.refresh())],
    )
    .await
    .unwrap();
    assert_eq!((bare.status.as_u16(), bare.json().unwrap()["error"].as_str()), (401, Some("invalid_client")));
    let wrong = mantel_tests::harness::post_form(
        &app.token,
        &[("authorization", "Basic c2VydmVyLWFwcDp3cm9uZw==")],
        &[("grant_type", "refresh_token"), ("refresh_token", tokens.refresh())],
    )
    .await
    .unwrap();
    assert_eq!(wrong.status, 401);
    assert!(wrong.header("www-authenticate").unwrap().starts_with("Basic"));
    app.refresh(tokens.refresh()).await.unwrap();
}
