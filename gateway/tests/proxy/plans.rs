//! Vendors' plans: reads as searchsets, searches in parts.

use serde_json::{Value, json};

use super::{
    ehr::{Ehr, Reply},
    gateway::{Covers, Gateway, PUBLIC, SITE, Setup, USER},
};

#[tokio::test]
async fn a_search_by_id_is_played_as_a_read() {
    let ehr = Ehr::start(|call| match call.below() {
        "/Patient/p1" => Reply::fhir(200, &json!({"resourceType": "Patient", "id": "p1"})),
        "/Patient/broken" => Reply::html(200),
        "/Patient/locked" => Reply::status(403),
        _ => Reply::status(404),
    })
    .await;
    let site = "search = { by_id = false, post = true }";
    let gateway = Gateway::with(&ehr, Setup { site: site.into(), ..Setup::default() }).await;
    let client = gateway.client(&USER).await;
    let found = client.get(&format!("{SITE}/Patient?_id=p1")).await.json();
    assert_eq!((&found["type"], &found["total"]), (&json!("searchset"), &json!(1)));
    assert_eq!(found["entry"][0]["fullUrl"], format!("{PUBLIC}{SITE}/Patient/p1"));
    assert_eq!(found["link"][0]["url"], format!("{PUBLIC}{SITE}/Patient?_id=p1"));
    let nothing = client.get(&format!("{SITE}/Patient?_id=p2")).await.json();
    assert_eq!((&nothing["total"], nothing.get("entry")), (&json!(0), None));
    client.get(&format!("{SITE}/Patient?_id=locked")).await.refused(403, "forbidden");
    assert_eq!(client.get(&format!("{SITE}/Patient?_id=broken")).await.status, 502);
}

const FAN_OUT: &str = r#"fan_out = { Observation = { parameter = "category", values = ["labs", "vitals", "social"], unless = ["code"] } }"#;

fn searchset(base: &str, ids: &[&str], next: Option<&str>) -> Value {
    let entry: Vec<Value> = ids
        .iter()
        .map(|id| {
            let resource = json!({"resourceType": "Observation", "id": id, "subject": {"reference": "Patient/p1"}});
            json!({"fullUrl": format!("{base}/Observation/{id}"), "resource": resource, "search": {"mode": "match"}})
        })
        .collect();
    let link: Vec<Value> =
        next.map(|next| json!({"relation": "next", "url": format!("{base}{next}")})).into_iter().collect();
    json!({"resourceType": "Bundle", "type": "searchset", "link": link, "entry": entry})
}

fn ids(bundle: &Value) -> Vec<&str> {
    let entries = bundle["entry"].as_array().unwrap();
    entries.iter().map(|entry| entry["resource"]["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_search_that_is_taken_in_parts_only_is_put_together_with_all_its_pages() {
    let ehr = Ehr::naming_itself(|base, call| {
        let below = call.below();
        if below.contains("page=2") {
            Reply::fhir(200, &searchset(base, &["c"], None))
        } else if below.contains("labs") {
            Reply::fhir(200, &searchset(base, &["a", "b"], Some("/Observation?session=1&page=2")))
        } else if below.contains("vitals") {
            Reply::fhir(200, &searchset(base, &["b", "d"], None))
        } else {
            Reply::status(403)
        }
    })
    .await;
    let gateway = Gateway::with(&ehr, Setup { site: FAN_OUT.into(), ..Setup::default() }).await;
    let client = gateway.client(&USER).await;
    let answer = client.get(&format!("{SITE}/Observation?patient=p1")).await;
    let bundle = answer.json();
    assert_eq!(ids(&bundle), ["a", "b", "c", "d", "request-1"], "ids once, a refused part as a warning");
    assert_eq!(bundle["entry"][0]["fullUrl"], format!("{PUBLIC}{SITE}/Observation/a"));
    let warning = &bundle["entry"][4]["resource"]["issue"][0];
    assert_eq!(warning["severity"], "warning");
    assert!(bundle["link"].as_array().unwrap().iter().all(|link| link["relation"] != "next"));
    assert_eq!(ehr.calls().len(), 4);
    assert_eq!(client.get(&format!("{SITE}/Observation?patient=p1&code=x")).await.status, 403, "sent as it is");
    assert_eq!(ehr.calls().len(), 5);
}

#[tokio::test]
async fn where_all_parts_are_refused_so_is_the_search() {
    let ehr = Ehr::start(|_| Reply::status(403)).await;
    let gateway = Gateway::with(&ehr, Setup { site: FAN_OUT.into(), ..Setup::default() }).await;
    let client = gateway.client(&USER).await;
    client.get(&format!("{SITE}/Observation?patient=p1")).await.refused(403, "forbidden");
}

#[tokio::test]
async fn a_part_that_fails_fails_the_search() {
    let ehr = Ehr::naming_itself(|base, call| {
        if call.below().contains("social") {
            Reply::status(500)
        } else {
            Reply::fhir(200, &searchset(base, &["a"], None))
        }
    })
    .await;
    let gateway = Gateway::with(&ehr, Setup { site: FAN_OUT.into(), ..Setup::default() }).await;
    let answer = gateway.client(&USER).await.get(&format!("{SITE}/Observation?patient=p1")).await;
    assert_eq!(answer.status, 502, "half an answer is none");
}

#[tokio::test]
async fn what_a_vendor_drops_criteria_of_is_inspected_though_the_grant_would_stream() {
    // With `_id` Epic reads nothing else: the patient, too, is dropped.
    let ehr = Ehr::naming_itself(|base, _| Reply::fhir(200, &json!({"resourceType": "Bundle", "type": "searchset", "entry": [
        {"fullUrl": format!("{base}/Observation/x"), "resource": {"resourceType": "Observation", "id": "x", "subject": {"reference": "Patient/p2"}}},
    ]})))
    .await;
    let gateway = Gateway::with(&ehr, Setup { vendor: "epic", ..Setup::default() }).await;
    let covers = Covers {
        scopes: "launch/patient patient/Observation.rs",
        upstream: Some("launch/patient patient/Observation.rs"),
        patient: Some("p1"),
        ..USER
    };
    let client = gateway.client(&covers).await;
    let bundle = client.get(&format!("{SITE}/Observation?_id=x&code=y")).await.json();
    assert_eq!(bundle.get("entry"), None, "{bundle}");
    assert_eq!(ehr.calls().len(), 1);
}
