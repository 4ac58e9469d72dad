//! `vendors.md` part B, Practice and Flow 8–11.

use http::StatusCode;
use mantel_tests::ehr::{
    contract::Vendor,
    faults::{Fault, FaultKind},
};

use crate::kit::*;

#[tokio::test]
async fn only_metadata_tells_where_to_go() {
    let ehr = ehr(Vendor::AthenaPractice, false, |_| {}).await;
    assert_eq!(
        get(&format!("{}/.well-known/smart-configuration", ehr.fhir_base), &[]).await.status,
        StatusCode::NOT_FOUND
    );
    let app = App::new("secret", &ehr.fhir_base).await;
    // aud is the server, without /fhir.
    assert_eq!(app.aud, format!("{}/demoAPIServer", ehr.origin));
    let answer = app.launch(&patient(&ehr).1).await;
    assert_eq!(answer.text("patient"), patient(&ehr).0);
    let (_, page) = app.open(&[("aud", &ehr.fhir_base)]).await;
    assert_eq!(page.redirect_param("error").as_deref(), Some("invalid_request"));
    // It would have, by switch.
    let other = crate::kit::ehr(Vendor::AthenaPractice, false, |o| o.switches.smart_configuration = Some(true)).await;
    get(&format!("{}/.well-known/smart-configuration", other.fhir_base), &[]).await.ok();
}

#[tokio::test]
async fn scopes_that_are_refused() {
    let ehr = ehr(Vendor::AthenaPractice, false, |options| options.fhir_user_fails = true).await;
    let app = App::new("secret", &ehr.fhir_base).await;
    for (scope, error) in [
        ("patient/Patient.read", "invalid_scope"),
        ("launch/patient patient/Patient.rs", "invalid_scope"),
        ("openid fhirUser launch/patient patient/Patient.read", "invalid_client"),
    ] {
        assert_eq!(app.open(&[("scope", scope)]).await.1.redirect_param("error").as_deref(), Some(error), "{scope}");
    }
    assert_eq!(app.open(&[("scope", "launch/patient patient/*.read")]).await.1.status, StatusCode::OK);
    let strict = crate::kit::ehr(Vendor::AthenaPractice, true, |_| {}).await;
    let app = App::new("secret", &strict.fhir_base).await;
    let (_, page) = app.open(&[("scope", "launch/patient patient/*.read")]).await;
    assert_eq!(page.redirect_param("error").as_deref(), Some("invalid_scope"));
}

#[tokio::test]
async fn a_refresh_token_dies_with_the_access_token() {
    let ehr = ehr(Vendor::AthenaPractice, false, |_| {}).await;
    let app = App::new("secret", &ehr.fhir_base).await;
    let refresh = app.launch(&patient(&ehr).1).await.text("refresh_token");
    for _ in 0..3 {
        ehr.advance(50 * 60_000);
        app.refresh(&refresh).await.ok();
    }
    ehr.expire_access_tokens();
    let dead = app.refresh(&refresh).await;
    assert_eq!(dead.status, StatusCode::BAD_REQUEST);
    assert_eq!(
        dead.json(),
        serde_json::json!({"expires_in": 0, "error": "invalid_client", "error_description":
            "Refresh token could not be mapped to the original authorization request. User must re-authenticate."})
    );
}

#[tokio::test]
async fn an_inner_fault_looks_like_an_unknown_client_and_passes() {
    let ehr = ehr(Vendor::AthenaPractice, false, |_| {}).await;
    let app = App::new("secret", &ehr.fhir_base).await;
    let refresh = app.launch(&patient(&ehr).1).await.text("refresh_token");
    ehr.faults.add(Fault::new("token:refresh_token", FaultKind::Inner).times(1));
    let fault = app.refresh(&refresh).await;
    assert_eq!(fault.error(), (500, "invalid_client".into()));
    assert_eq!(
        fault.text("error_description"),
        "An unexpected error has occurred. Please try this operation again later."
    );
    app.refresh(&refresh).await.ok();
}

#[tokio::test]
async fn thirty_calls_at_once_and_no_more() {
    let ehr = std::sync::Arc::new(ehr(Vendor::AthenaPractice, false, |_| {}).await);
    let app = App::new("secret", &ehr.fhir_base).await;
    let token = app.launch(&patient(&ehr).1).await.text("access_token");
    ehr.faults.add(Fault::new("fhir", FaultKind::Hold).times(30));
    let url = format!("{}/Patient/{}", ehr.fhir_base, patient(&ehr).0);
    let bearer = format!("Bearer {token}");
    let mut held = tokio::task::JoinSet::new();
    for _ in 0..30 {
        let (url, bearer) = (url.clone(), bearer.clone());
        held.spawn(async move { get(&url, &[("authorization", &bearer)]).await.status });
    }
    ehr.faults.wait_held(30).await;
    let one_more = get(&url, &[("authorization", &bearer)]).await;
    assert_eq!(one_more.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(&one_more.body[..], b"System Rate Limit Exceeded");
    ehr.faults.release();
    assert!(held.join_all().await.iter().all(|status| *status == StatusCode::OK));
}
