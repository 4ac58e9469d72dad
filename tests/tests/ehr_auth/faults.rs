//! Faults on demand, and the control address.

use http::{Method, StatusCode};
use mantel_tests::ehr::{
    contract::Vendor,
    faults::{Fault, FaultKind},
};
use serde_json::{Value, json};

use crate::kit::*;

#[tokio::test]
async fn a_lost_answer_has_rotated_all_the_same() {
    let ehr = ehr(Vendor::Epic, true, |_| {}).await;
    let app = App::new("secret", &ehr.fhir_base).await;
    let refresh = app.launch(&patient(&ehr).1).await.text("refresh_token");
    ehr.faults.add(Fault::new("token:refresh_token", FaultKind::LostAnswer).times(1));
    let header = app.basic_header(true);
    let pairs = [("grant_type", "refresh_token"), ("refresh_token", refresh.as_str())];
    let headers = [("content-type", "application/x-www-form-urlencoded"), ("authorization", header.as_str())];
    assert!(try_call(Method::POST, &app.at.token, &headers, &form(&pairs)).await.is_err());
    assert_eq!((ehr.grants()[0].generation, ehr.grants()[0].refreshes), (1, 1));
    // Whoever tries the old one again has lost the grant.
    assert_eq!(app.refresh(&refresh).await.error(), (400, "invalid_grant".into()));
    assert_eq!(ehr.grants()[0].reuses, 1);
    assert_eq!(serde_json::to_value(ehr.grants()[0].ended).unwrap(), "reuse");
}

#[tokio::test]
async fn each_fault_strikes_as_often_as_it_is_told() {
    let ehr = ehr(Vendor::Generic, false, |_| {}).await;
    let app = App::new("secret", &ehr.fhir_base).await;
    let answer = app.launch(&patient(&ehr).1).await;
    let (refresh, token) = (answer.text("refresh_token"), answer.text("access_token"));
    for (kind, status) in [
        (FaultKind::Status { status: 500 }, 500),
        (FaultKind::Html { status: 502 }, 502),
        (FaultKind::TooMany { retry_after: Some(7) }, 429),
        (FaultKind::Burnt, 400),
        (FaultKind::Inner, 500),
    ] {
        ehr.faults.add(Fault::new("token", kind.clone()).times(1));
        let struck = app.refresh(&refresh).await;
        assert_eq!(struck.status.as_u16(), status, "{kind:?}");
        if kind == (FaultKind::TooMany { retry_after: Some(7) }) {
            assert_eq!(struck.header("retry-after"), Some("7"));
        }
        if matches!(kind, FaultKind::Html { .. }) {
            assert_eq!(struck.header("content-type"), Some("text/html"));
        }
        // Nothing happened to the token.
        app.refresh(&refresh).await.ok();
    }
    // A reset in the middle of the body.
    ehr.faults.add(Fault::new("fhir", FaultKind::Reset).times(1));
    let path = format!("/Patient/{}", patient(&ehr).0);
    let url = format!("{}{path}", ehr.fhir_base);
    let bearer = format!("Bearer {token}");
    assert!(try_call(Method::GET, &url, &[("authorization", &bearer)], "").await.is_err());
    get(&url, &[("authorization", &bearer)]).await.ok();
    // By path only.
    ehr.faults.add(Fault { path: Some("/Patient/2".into()), ..Fault::new("fhir", FaultKind::Status { status: 503 }) });
    get(&url, &[("authorization", &bearer)]).await.ok();
    assert_eq!(app.read("/Patient/2", &token).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ehr.counters.get("fhir:GET Patient"), 4, "what fails is counted, too");
}

#[tokio::test]
async fn held_calls_wait_for_their_release() {
    let ehr = ehr(Vendor::Generic, false, |_| {}).await;
    let app = App::new("public", &ehr.fhir_base).await;
    let refresh = app.launch(&patient(&ehr).1).await.text("refresh_token");
    ehr.faults.add(Fault::new("token", FaultKind::Hold).times(2));
    let both = async { tokio::join!(app.refresh(&refresh), app.refresh(&refresh)) };
    let release = async {
        ehr.faults.wait_held(2).await;
        assert_eq!(ehr.grants()[0].refreshes, 0);
        ehr.faults.release();
    };
    let ((one, other), ()) = tokio::join!(both, release);
    one.ok();
    other.ok();
    assert_eq!(ehr.grants()[0].refreshes, 2);
}

#[tokio::test]
async fn all_of_it_over_http() {
    let ehr = ehr(Vendor::Oracle, false, |_| {}).await;
    let control = |what: &str| format!("{}/_control/{what}", ehr.origin);
    let post = async |what: &str, body: Value| call(Method::POST, &control(what), &[], &body.to_string()).await;
    post("clients", json!({"client_id": "new", "redirect_uris": [CALLBACK], "launch_url": "http://app.test/l?x=1",
        "auth": {"method": "client_secret_basic", "secret": SECRET}, "uses": ["ehr-launch"], "scopes": ["launch", "user/Patient.read", "offline_access"]}))
    .await
    .ok();
    let keyed = json!({"client_id": "k", "auth": {"method": "private_key_jwt", "jwks_url": "http://app.test/keys"}});
    post("clients", json!([keyed])).await.ok();
    let bad = post("clients", json!({"client_id": "p", "auth": {"method": "client_secret_post", "secret": "x"}})).await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
    assert!(
        bad.text("error").contains("oracle takes none, client_secret_basic, private_key_jwt; given client_secret_post")
    );
    let launch = post("launch", json!({"client_id": "new", "patient": patient(&ehr).0})).await.ok().json();
    assert!(launch["url"].as_str().unwrap().starts_with("http://app.test/l?x=1&iss="));
    let app = App::new("new", &ehr.fhir_base).await.asking("launch user/Patient.read offline_access");
    let back = app.open(&[("launch", launch["launch"].as_str().unwrap())]).await.1;
    let code = back.redirect_param("code").unwrap();
    let header = app.basic_header(true);
    let answer = post_form(&app.at.token, &[("authorization", &header)], &app.redemption(&code)).await.ok();
    assert_eq!(get(&control("counts"), &[]).await.ok().json()["token:authorization_code"], 1);
    let grants = get(&control("grants"), &[]).await.ok().json();
    assert_eq!((&grants[0]["client_id"], &grants[0]["access_tokens_alive"]), (&json!("new"), &json!(1)));
    assert!(!grants.to_string().contains(&answer.text("refresh_token")));
    // Expire, lifetime, advance, end.
    assert_eq!(call(Method::POST, &control("expire"), &[], "").await.ok().json()["expired"], 1);
    assert_eq!(app.read("/Patient/1", &answer.text("access_token")).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(post("lifetime", json!({"minutes": 1})).await.status, StatusCode::BAD_REQUEST);
    post("lifetime", json!({"seconds": 33})).await.ok();
    let refresh = [("grant_type", "refresh_token"), ("refresh_token", &*answer.text("refresh_token"))];
    assert_eq!(post_form(&app.at.token, &[("authorization", &header)], &refresh).await.ok().json()["expires_in"], 33);
    post("advance", json!({"seconds": 60})).await.ok();
    post("faults", json!([{"at": "token:refresh_token", "kind": "status", "status": 503, "times": 1}])).await.ok();
    assert_eq!(
        post_form(&app.at.token, &[("authorization", &header)], &refresh).await.status,
        StatusCode::SERVICE_UNAVAILABLE
    );
    post_form(&app.at.token, &[("authorization", &header)], &refresh).await.ok();
    assert_eq!(post("end", json!({})).await.ok().json()["ended"], 1);
    post("advance", json!({"seconds": 60})).await.ok();
    assert_eq!(
        post_form(&app.at.token, &[("authorization", &header)], &refresh).await.error(),
        (400, "invalid_grant".into())
    );
    let refusals = get(&control("refusals"), &[]).await.ok().json();
    assert_eq!(refusals.as_array().unwrap().last().unwrap()["why"], "the grant has ended");
    call(Method::POST, &control("reset"), &[], "").await.ok();
    assert_eq!(get(&control("counts"), &[]).await.ok().json(), json!({}));
    assert_eq!(get(&control("nothing"), &[]).await.status, StatusCode::NOT_FOUND);
}
