//! The CapabilityStatement.

use http::Method;
use serde_json::json;

use super::{
    ehr::{Ehr, Reply},
    gateway::{Gateway, PUBLIC, SITE, UNIFORM},
};

fn statement() -> Reply {
    Reply::fhir(
        200,
        &json!({
            "resourceType": "CapabilityStatement", "status": "active", "kind": "instance", "fhirVersion": "4.0.1",
            "software": {"name": "Secret EHR 7"},
            "implementation": {"url": "https://ehr.internal/api"},
            "rest": [{"mode": "server", "resource": [
                {"type": "Observation", "interaction": [{"code": "read"}], "searchParam": [{"name": "code", "type": "token"}]},
            ]}],
        }),
    )
}

#[tokio::test]
async fn it_is_public_trimmed_and_fetched_once() {
    let ehr = Ehr::start(|_| statement()).await;
    let gateway = Gateway::start(&ehr).await;
    let nobody = gateway.nobody();
    let target = format!("{SITE}/metadata");
    let answers = futures_util::future::join_all((0..10).map(|_| nobody.get(&target))).await;
    for answer in &answers {
        let body = answer.json();
        assert_eq!((answer.status, &body["resourceType"]), (200, &json!("CapabilityStatement")));
        assert_eq!(body["implementation"]["url"], format!("{PUBLIC}{SITE}"));
        assert_eq!(body["rest"][0]["resource"][0]["type"], "Observation");
        let uris = body["rest"][0]["security"]["extension"][0]["extension"].to_string();
        assert!(uris.contains(&format!("{PUBLIC}/sites/general/oauth/authorize")), "{uris}");
        assert!(!answer.text().contains("internal") && !answer.text().contains("Secret"), "{}", answer.text());
    }
    assert_eq!(ehr.targets(), ["/metadata"]);
    assert_eq!(ehr.calls()[0].header("authorization"), None);
    assert!(ehr.calls()[0].header("accept").unwrap().contains("json"));
}

#[tokio::test]
async fn an_ehr_that_is_away_leaves_one_that_names_what_was_ticked() {
    for script in [|| Reply::status(503), || Reply::html(200), || Reply::Cut] {
        let ehr = Ehr::start(move |_| script()).await;
        let gateway = Gateway::start(&ehr).await;
        let body = gateway.nobody().get(&format!("{SITE}/metadata")).await.json();
        assert_eq!(body["fhirVersion"], "4.0.1");
        let types: Vec<_> =
            body["rest"][0]["resource"].as_array().unwrap().iter().map(|resource| &resource["type"]).collect();
        assert_eq!(types, ["Observation", "Patient"]);
    }
}

#[tokio::test]
async fn the_uniform_base_announces_what_all_its_sites_can() {
    let ehr =
        Ehr::start(|call| if call.below().starts_with("/other") { Reply::status(500) } else { statement() }).await;
    let gateway = Gateway::start(&ehr).await;
    let body = gateway.nobody().get(&format!("{UNIFORM}/metadata")).await.json();
    assert_eq!(body["implementation"]["url"], format!("{PUBLIC}{UNIFORM}"));
    assert!(body.to_string().contains(&format!("{PUBLIC}/oauth/token")), "{body}");
    let types: Vec<_> =
        body["rest"][0]["resource"].as_array().unwrap().iter().map(|resource| &resource["type"]).collect();
    assert_eq!(types, ["Observation", "Patient"]);
}

#[tokio::test]
async fn it_is_read_only_and_in_json() {
    let ehr = Ehr::start(|_| statement()).await;
    let gateway = Gateway::start(&ehr).await;
    let nobody = gateway.nobody();
    nobody.send(Method::POST, &format!("{SITE}/metadata"), &[], "{}").await.refused(405, "not-supported");
    nobody.get(&format!("{SITE}/metadata?_format=xml")).await.refused(406, "not-supported");
    nobody.get("/sites/unknown/fhir/r4/metadata").await.refused(404, "not-found");
}
