//! A plain SMART 2.2 server.

use http::{Method, StatusCode};
use mantel_tests::ehr::{
    auth::client::Client,
    contract::{Rotation, Vendor},
    simulator::LaunchOrder,
};
use serde_json::json;

use crate::kit::*;

#[tokio::test]
async fn every_kind_of_client_gets_through() {
    for strict in [false, true] {
        let ehr = ehr(Vendor::Generic, strict, |_| {}).await;
        let (id, username) = patient(&ehr);
        for client_id in ["public", "secret", "key"] {
            let app = App::new(client_id, &ehr.fhir_base).await;
            let back = app.approve(&username).await;
            assert_eq!(back.redirect_param("iss").as_deref(), Some(ehr.origin.as_str()), "RFC 9207");
            let answer = app.redeem(&back.redirect_param("code").unwrap()).await.ok();
            assert_eq!(answer.text("scope"), app.scopes, "byte for byte");
            let refreshed = app.refresh(&answer.text("refresh_token")).await.ok();
            assert_eq!(refreshed.text("patient"), id);
            assert_eq!(refreshed.json().get("refresh_token").is_some(), strict, "rotation is strict's");
        }
        assert_eq!(ehr.counters.get("token:refresh_token"), 3);
        assert_eq!(ehr.counters.get("authorize"), 3);
    }
}

#[tokio::test]
async fn its_answers_say_when_the_refresh_token_ends_if_they_are_to() {
    for (rotation, told, moves) in
        [(Rotation::Sliding, true, true), (Rotation::Rolling, true, false), (Rotation::Fixed, false, false)]
    {
        let ehr = ehr(Vendor::Generic, false, |options| {
            options.switches.rotation = Some(rotation);
            options.switches.refresh_lifetime = told.then_some(600);
        })
        .await;
        let app = App::new("secret", &ehr.fhir_base).await;
        let back = app.approve(&patient(&ehr).1).await;
        let first = app.redeem(&back.redirect_param("code").unwrap()).await.ok();
        assert_eq!(first.json().get("refresh_expires_in"), told.then_some(&json!(600)));
        ehr.advance(100_000);
        let second = app.refresh(&first.text("refresh_token")).await.ok().json();
        let left = second.get("refresh_expires_in").map(|left| left.as_u64().unwrap());
        let expected = told.then_some(if moves { 600..=600 } else { 490..=500 });
        assert!(left.zip(expected.clone()).is_none_or(|(left, expected)| expected.contains(&left)), "{left:?}");
        assert_eq!(left.is_some(), expected.is_some());
    }
}

#[tokio::test]
async fn a_launch_from_inside_carries_its_context() {
    let ehr = ehr(Vendor::Generic, false, |_| {}).await;
    let context = json!([{"reference": "ImagingStudy/1"}]);
    let launch = ehr
        .launch(&LaunchOrder {
            intent: Some("reconcile-medications".into()),
            fhir_context: Some(context.clone()),
            need_patient_banner: Some(true),
            ..order("public", &ehr)
        })
        .unwrap();
    let app = App::new("public", &ehr.fhir_base).await.asking("launch openid fhirUser patient/Patient.rs");
    // By POST as well.
    let pairs = app.request(&[("launch", &launch.launch)]);
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let back = post_form(&app.at.authorize, &[], &pairs).await;
    assert_eq!(back.status, StatusCode::FOUND);
    let to = url::Url::parse(back.header("location").unwrap()).unwrap();
    let code = to.query_pairs().find(|(name, _)| name == "code").unwrap().1.into_owned();
    let body = app.redeem(&code).await.ok().json();
    assert_eq!((&body["fhirContext"], &body["intent"]), (&context, &json!("reconcile-medications")));
    assert_eq!((&body["need_patient_banner"], &body["encounter"]), (&json!(true), &json!("enc-1")));
    // Another app's launch, another base's, a used one.
    let other = App::new("secret", &ehr.fhir_base).await.asking("launch openid");
    let launch = ehr.launch(&order("public", &ehr)).unwrap();
    assert_eq!(other.launched(&launch).await.redirect_param("error").as_deref(), Some("invalid_request"));
}

#[tokio::test]
async fn faults_come_back_to_the_app_but_for_who_it_is() {
    let ehr = ehr(Vendor::Generic, false, |_| {}).await;
    let app = App::new("public", &ehr.fhir_base).await;
    for page in
        [&[("client_id", "nobody")][..], &[("redirect_uri", "http://app.test/callback/")], &[("redirect_uri", "")]]
    {
        let (_, shown) = app.open(page).await;
        assert_eq!((shown.status, shown.redirect()), (StatusCode::BAD_REQUEST, None), "{page:?}");
    }
    for (changes, error) in [
        (&[("response_type", "token")][..], "unsupported_response_type"),
        (&[("state", "")], "invalid_request"),
        (&[("aud", "http://elsewhere/fhir")], "invalid_request"),
        (&[("code_challenge", ""), ("code_challenge_method", "")], "invalid_request"),
        (&[("code_challenge_method", "")], "invalid_request"),
        (&[("scope", "nonsense patient/observation.rs")], "invalid_scope"),
        (&[("scope", "")], "invalid_scope"),
    ] {
        let (_, page) = app.open(changes).await;
        assert_eq!(page.redirect_param("error").as_deref(), Some(error), "{changes:?}");
    }
    // Who clicks Deny.
    let (mut visitor, page) = app.open(&[]).await;
    let consent = visitor.sign_in(&page, &patient(&ehr).1).await.unwrap();
    let denied = visitor.press(&consent, "deny", &[]).await.unwrap();
    assert_eq!(denied.redirect_param("error").as_deref(), Some("access_denied"));
    // A wrong password; and the same form twice gives one code.
    let (mut visitor, page) = app.open(&[]).await;
    let wrong = visitor.press(&page, "sign-in", &[("password", "wrong")]).await.unwrap();
    assert_eq!(wrong.status, StatusCode::UNAUTHORIZED);
    let consent = visitor.sign_in(&wrong, &patient(&ehr).1).await.unwrap();
    visitor.press(&consent, "approve", &[]).await.unwrap();
    assert_eq!(visitor.press(&consent, "approve", &[]).await.unwrap().status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_user_may_untick_what_an_app_asks_for() {
    let ehr = ehr(Vendor::Generic, false, |_| {}).await;
    let app = App::new("public", &ehr.fhir_base).await;
    let (mut visitor, page) = app.open(&[]).await;
    let consent = visitor.sign_in(&page, &patient(&ehr).1).await.unwrap();
    let back = visitor.press(&consent, "approve", &[("scope", "patient/Patient.read")]).await.unwrap();
    let answer = app.redeem(&back.redirect_param("code").unwrap()).await.ok();
    assert_eq!(answer.text("scope"), "openid fhirUser launch/patient offline_access patient/Patient.read");
}

#[tokio::test]
async fn a_record_narrows_wildcards_and_queries() {
    let ehr = ehr(Vendor::Generic, false, |options| {
        let scopes = ["patient/Patient.rs", "patient/Observation.rs?category=laboratory"].map(String::from).to_vec();
        options.clients.push(Client { scopes, ..client("ticked", mantel_tests::ehr::auth::client::ClientAuth::None) });
    })
    .await;
    let app = App::new("ticked", &ehr.fhir_base).await.asking("launch/patient patient/*.cruds");
    let scopes = app.launch(&patient(&ehr).1).await.scopes();
    assert_eq!(scopes, ["launch/patient", "patient/Observation.rs?category=laboratory", "patient/Patient.rs"]);
}

#[tokio::test]
async fn refresh_may_narrow_and_never_widen() {
    let ehr = ehr(Vendor::Generic, false, |options| options.switches.rotation = Some(Rotation::Rolling)).await;
    let app = App::new("public", &ehr.fhir_base)
        .await
        .asking("launch/patient offline_access patient/Patient.rs patient/Goal.rs");
    let answer = app.launch(&patient(&ehr).1).await;
    let refresh = answer.text("refresh_token");
    let ask = async |token: &str, scope: &str| {
        app.token(&[("grant_type", "refresh_token"), ("refresh_token", token), ("scope", scope)]).await
    };
    assert_eq!(ask(&refresh, "patient/Patient.cruds").await.error(), (400, "invalid_scope".into()));
    let narrow = ask(&refresh, "patient/Patient.r").await.ok();
    assert_eq!(narrow.text("scope"), "patient/Patient.r");
    let whole = app.refresh(&narrow.text("refresh_token")).await.ok();
    assert_eq!(whole.scopes(), answer.scopes(), "narrowing touches the access token only");
}

#[tokio::test]
async fn client_authentication_as_registered_and_in_no_other_way() {
    let ehr = ehr(Vendor::Generic, false, |_| {}).await;
    let app = App::new("secret", &ehr.fhir_base).await;
    let pairs = [("grant_type", "refresh_token"), ("refresh_token", "x")];
    // Raw or form-encoded Basic.
    for encode in [true, false] {
        let header = app.basic_header(encode);
        let answer = post_form(&app.at.token, &[("authorization", &header)], &pairs).await;
        assert_eq!(answer.error(), (400, "invalid_grant".into()));
        assert_eq!((answer.header("cache-control"), answer.header("pragma")), (Some("no-store"), Some("no-cache")));
    }
    let wrong = post_form(&app.at.token, &[("authorization", "Basic c2VjcmV0Om5v")], &pairs).await;
    assert_eq!(wrong.error(), (401, "invalid_client".into()));
    assert!(wrong.header("www-authenticate").unwrap().starts_with("Basic"));
    let mut posted = pairs.to_vec();
    posted.extend([("client_id", "secret"), ("client_secret", SECRET)]);
    assert_eq!(post_form(&app.at.token, &[], &posted).await.error(), (401, "invalid_client".into()));
    posted.retain(|(name, _)| *name != "client_secret");
    assert_eq!(post_form(&app.at.token, &[], &posted).await.error(), (401, "invalid_client".into()));
    assert_eq!(get(&app.at.token, &[]).await.status, StatusCode::METHOD_NOT_ALLOWED);
    // CORS.
    let origin = [("origin", "http://app.test")];
    let answer = post_form(&app.at.token, &origin, &pairs).await;
    assert_eq!(answer.header("access-control-allow-origin"), Some("http://app.test"));
    let preflight = call(Method::OPTIONS, &app.at.token, &origin, "").await;
    assert_eq!(preflight.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn old_codes_and_tokens_are_dead() {
    let ehr = ehr(Vendor::Generic, false, |_| {}).await;
    let app = App::new("public", &ehr.fhir_base).await;
    let username = patient(&ehr).1;
    let code = app.code(&username).await;
    ehr.advance(6 * 60_000);
    assert_eq!(app.redeem(&code).await.error(), (400, "invalid_grant".into()));
    let token = app.launch(&username).await.text("access_token");
    let path = format!("/Patient/{}", patient(&ehr).0);
    assert_eq!(app.read(&path, &token).await.status, StatusCode::OK);
    ehr.advance(3601 * 1000);
    assert_eq!(app.read(&path, &token).await.status, StatusCode::UNAUTHORIZED);
}
