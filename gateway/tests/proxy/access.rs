//! Who may ask: bearers, bases, and targets that are not what they seem.

use http::Method;
use serde_json::json;

use super::{
    ehr::{Ehr, Reply},
    gateway::{Covers, Gateway, PATIENT, SITE, UNIFORM, USER},
};

async fn patient_server() -> Ehr {
    Ehr::start(|_| Reply::fhir(200, &json!({"resourceType": "Patient", "id": "p1"}))).await
}

#[tokio::test]
async fn without_a_bearer_nothing_is_asked() {
    let ehr = patient_server().await;
    let gateway = Gateway::start(&ehr).await;
    let mut client = gateway.nobody();
    let none = client.get(&format!("{SITE}/Patient/p1")).await;
    none.refused(401, "login");
    assert_eq!(none.header("www-authenticate"), Some("Bearer"), "no token came: no error is named (RFC 6750 3.1)");
    for header in ["Bearer mtl_at_unknown", "Basic dmlld2VyOng=", "Bearer", "Bearer  "] {
        let answer = client.send(Method::GET, &format!("{SITE}/Patient/p1"), &[("authorization", header)], "").await;
        answer.refused(401, "login");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer error=\"invalid_token\""), "{header}");
    }
    client.token = gateway.client(&USER).await.token;
    let twice = client.send(Method::GET, &format!("{SITE}/Patient/p1"), &[("authorization", "Bearer x")], "").await;
    twice.refused(401, "login");
    assert_eq!(ehr.calls().len(), 0);
}

#[tokio::test]
async fn a_token_opens_its_own_base_and_the_uniform_one() {
    let ehr = patient_server().await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&USER).await;
    for base in [SITE, UNIFORM] {
        assert_eq!(client.get(&format!("{base}/Patient/p1")).await.status, 200, "{base}");
    }
    client.get("/sites/other/fhir/r4/Patient/p1").await.refused(401, "login");
    client.get("/sites/unknown/fhir/r4/Patient/p1").await.refused(404, "not-found");
    assert_eq!(ehr.calls().len(), 2);
}

#[tokio::test]
async fn the_uniform_base_leads_to_the_grants_own_site() {
    let ehr = patient_server().await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&Covers { site: "other", ..USER }).await;
    client.get(&format!("{UNIFORM}/Patient/p1")).await;
    assert_eq!(ehr.targets(), ["/other/Patient/p1"]);
}

#[tokio::test]
async fn a_token_in_the_url_or_a_form_is_refused() {
    let ehr = patient_server().await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&USER).await;
    client.get(&format!("{SITE}/Patient?access_token=x")).await.refused(400, "invalid");
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let posted = client.send(Method::POST, &format!("{SITE}/Patient/_search"), &form, "access_token=x").await;
    posted.refused(400, "invalid");
    assert_eq!(ehr.calls().len(), 0);
}

#[tokio::test]
async fn targets_that_two_servers_could_read_differently_are_refused() {
    let ehr = patient_server().await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&PATIENT).await;
    for tail in [
        "/Patient/../Observation/1",
        "/Patient/%2e%2e/Observation/1",
        "/Patient/..%2fObservation%2f1",
        "/Patient%2Fp1",
        "/Patient/p1%5c..",
        "//Patient/p1",
        "/Patient//p1",
        "/Patient/%252e%252e/x",
        "/Patient/p1%00",
        "/Patient/%zz",
        "/Patient?name=%ff",
    ] {
        let answer = client.get(&format!("{SITE}{tail}")).await;
        answer.refused(400, "invalid");
    }
    for tail in ["/nothing", "/patient/p1", "/Patient/p1/nothing", "/.well-known/other"] {
        assert!(matches!(client.get(&format!("{SITE}{tail}")).await.status, 400 | 404), "{tail}");
    }
    assert_eq!(ehr.calls().len(), 0);
}

#[tokio::test]
async fn what_the_scopes_do_not_cover_is_refused_before_the_ehr_is_asked() {
    let ehr = patient_server().await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&Covers { scopes: "patient/Observation.rs", ..PATIENT }).await;
    let refused = client.get(&format!("{SITE}/Condition?patient=p1")).await;
    refused.refused(403, "forbidden");
    assert_eq!(refused.header("www-authenticate"), Some("Bearer error=\"insufficient_scope\""));
    assert_eq!(ehr.calls().len(), 0);
}

#[tokio::test]
async fn an_ended_grant_tells_the_user_the_way_back() {
    let ehr = patient_server().await;
    let gateway = Gateway::start(&ehr).await;
    for (covers, advice) in [
        (USER, "https://viewer.example.org/launch?iss=https%3A%2F%2Fgateway.example.org%2Fsites%2Fgeneral%2Ffhir%2Fr4"),
        (Covers { ehr_launch: true, ..USER }, "from the EHR again"),
    ] {
        let client = gateway.client(&covers).await;
        assert_eq!(client.get(&format!("{SITE}/Patient/p1")).await.status, 200);
        let now = mantel::clock::Timestamp(jiff::Timestamp::now().as_millisecond());
        let reason = mantel::store::EndReason::Dead;
        assert!(gateway.store.end_grant(client.grant, reason, None, &[], now).await.unwrap());
        gateway.custody.forget(client.grant);
        let text = client.get(&format!("{SITE}/Patient/p1")).await.refused(401, "expired");
        assert!(text.contains(advice), "{text}");
    }
    assert_eq!(ehr.calls().len(), 2);
}
