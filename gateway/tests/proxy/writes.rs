//! Bodies upward, batches, and what is too large.

use http::Method;
use serde_json::{Value, json};

use super::{
    ehr::{Ehr, Reply},
    gateway::{Covers, Gateway, PATIENT, PUBLIC, SITE, Setup, UNIFORM, USER},
};

fn observation(patient: &str) -> Value {
    json!({"resourceType": "Observation", "status": "final", "code": {"text": "x"}, "subject": {"reference": patient}})
}

#[tokio::test]
async fn our_urls_in_bodies_and_parameters_become_the_ehrs() {
    let ehr = Ehr::naming_itself(|base, call| match call.method {
        Method::POST if call.below() == "/Observation" => {
            Reply::fhir(201, &serde_json::from_slice(&call.body).unwrap())
                .and("location", &format!("{base}/Observation/new/_history/1"))
        }
        _ => Reply::fhir(200, &json!({"resourceType": "Bundle", "type": "searchset"})),
    })
    .await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&USER).await;
    for base in [SITE, UNIFORM] {
        let given = observation(&format!("{PUBLIC}{base}/Patient/p1"));
        let answer = client.post(&format!("{SITE}/Observation"), &given).await;
        assert_eq!(answer.status, 201);
        assert_eq!(answer.header("location"), Some(format!("{PUBLIC}{SITE}/Observation/new/_history/1").as_str()));
        assert_eq!(answer.json()["subject"]["reference"], format!("{PUBLIC}{SITE}/Patient/p1"));
        let call = ehr.calls().pop().unwrap();
        let sent: Value = serde_json::from_slice(&call.body).unwrap();
        assert_eq!(sent["subject"]["reference"], format!("{}/Patient/p1", ehr.base()));
        assert_eq!(call.header("content-length"), Some(call.body.len().to_string().as_str()), "sent with a length");
    }
    let foreign = observation(&format!("{PUBLIC}/sites/other/fhir/r4/Patient/p1"));
    client.post(&format!("{SITE}/Observation"), &foreign).await;
    assert!(String::from_utf8_lossy(&ehr.calls().pop().unwrap().body).contains("/sites/other/"), "not this site's");

    client.get(&format!("{SITE}/Observation?subject={PUBLIC}{UNIFORM}/Patient/p1")).await;
    assert!(ehr.calls().pop().unwrap().below().contains(&format!("subject={}/Patient/p1", ehr.base())));
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let body = format!("subject={PUBLIC}{SITE}/Patient/p1");
    client.send(Method::POST, &format!("{SITE}/Observation/_search"), &form, body).await;
    let call = ehr.calls().pop().unwrap();
    assert_eq!(call.below(), "/Observation/_search");
    let sent: Vec<_> = form_urlencoded::parse(&call.body).into_owned().collect();
    assert_eq!(sent, [("subject".to_owned(), format!("{}/Patient/p1", ehr.base()))]);
}

#[tokio::test]
async fn too_large_a_body_is_refused_unsent() {
    let ehr = Ehr::start(|_| Reply::status(201)).await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&USER).await;
    let large = json!({"resourceType": "Observation", "note": [{"text": "x".repeat(1 << 20)}]});
    client.post(&format!("{SITE}/Observation"), &large).await.refused(413, "too-long");
    assert_eq!(ehr.calls().len(), 0);
    // A Binary's content has nothing to judge or rewrite.
    let content = vec![7_u8; 3 << 20];
    let sent = client
        .send(Method::POST, &format!("{SITE}/Binary"), &[("content-type", "application/pdf")], content.clone())
        .await;
    assert_eq!(sent.status, 201);
    assert_eq!(ehr.calls()[0].body, content);
}

#[tokio::test]
async fn a_write_that_the_ehr_does_not_confine_is_judged_by_the_current_version() {
    let ehr = Ehr::start(|call| match (call.method.as_str(), call.below()) {
        ("GET", "/Observation/mine") => {
            let mut current = observation("Patient/p1");
            current["id"] = "mine".into();
            Reply::fhir(200, &current).and("etag", "W/\"4\"")
        }
        ("GET", _) => {
            let mut current = observation("Patient/p2");
            current["id"] = "theirs".into();
            Reply::fhir(200, &current).and("etag", "W/\"4\"")
        }
        _ => Reply::fhir(200, &serde_json::from_slice(&call.body).unwrap()),
    })
    .await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&PATIENT).await;
    let json = [("content-type", "application/fhir+json")];
    for (id, status) in [("mine", 200), ("theirs", 404)] {
        let mut body = observation("Patient/p1");
        body["id"] = id.into();
        let answer = client.send(Method::PUT, &format!("{SITE}/Observation/{id}"), &json, body.to_string()).await;
        assert_eq!(answer.status, status, "{answer:?}");
    }
    let calls = ehr.calls();
    let seen: Vec<_> = calls.iter().map(|call| format!("{} {}", call.method, call.below())).collect();
    assert_eq!(seen, ["GET /Observation/mine", "PUT /Observation/mine", "GET /Observation/theirs"]);
    assert_eq!(calls[1].header("if-match"), Some("W/\"4\""));
}

fn batch(kind: &str) -> Value {
    json!({"resourceType": "Bundle", "type": kind, "entry": [
        {"request": {"method": "GET", "url": "Patient/p1"}},
        {"request": {"method": "GET", "url": "Condition/c1"}},
        {"request": {"method": "GET", "url": format!("{PUBLIC}{SITE}/Observation?patient=p1")}},
        {"request": {"method": "GET", "url": "Observation/nothing"}},
    ]})
}

/// Everything but conditions.
const SOME: Covers = Covers { scopes: "user/Patient.rs user/Observation.rs", ..USER };

async fn ehr_with(batches: bool) -> Ehr {
    Ehr::naming_itself(move |base, call| {
        let one = |below: &str| match below {
            "Patient/p1" => Some(json!({"resourceType": "Patient", "id": "p1", "link": [{"other": {"reference": format!("{base}/Patient/p0")}}]})),
            "Observation?patient=p1" => Some(json!({"resourceType": "Bundle", "type": "searchset"})),
            _ => None,
        };
        if call.method != Method::POST {
            return one(call.below().trim_start_matches('/')).map_or_else(|| Reply::status(404), |body| Reply::fhir(200, &body).and("etag", "W/\"3\""));
        }
        assert!(batches, "this EHR knows no batch");
        let asked: Value = serde_json::from_slice(&call.body).unwrap();
        let entries: Vec<Value> = asked["entry"].as_array().unwrap().iter().map(|entry| {
            match one(entry["request"]["url"].as_str().unwrap()) {
                Some(body) => json!({"resource": body, "response": {"status": "200 OK"}}),
                None => json!({"response": {"status": "404 Not Found"}}),
            }
        }).collect();
        Reply::fhir(200, &json!({"resourceType": "Bundle", "type": "batch-response", "entry": entries}))
    })
    .await
}

#[tokio::test]
async fn a_batch_is_answered_entry_by_entry_with_or_without_the_vendors_help() {
    for batches in [false, true] {
        let ehr = ehr_with(batches).await;
        let gateway = Gateway::with(&ehr, Setup { site: format!("batch = {batches}"), ..Setup::default() }).await;
        let client = gateway.client(&SOME).await;
        let answer = client.post(SITE, &batch("batch")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let body = answer.json();
        assert_eq!((&body["resourceType"], &body["type"]), (&json!("Bundle"), &json!("batch-response")));
        let statuses: Vec<_> = body["entry"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| &entry["response"]["status"].as_str().unwrap()[..3])
            .collect();
        assert_eq!(statuses, ["200", "403", "200", "404"], "batches: {batches}");
        assert_eq!(body["entry"][0]["resource"]["link"][0]["other"]["reference"], format!("{PUBLIC}{SITE}/Patient/p0"));
        assert_eq!(body["entry"][1]["response"]["outcome"]["issue"][0]["code"], "forbidden");
        assert_eq!(body["entry"][2]["resource"]["type"], "searchset");
        assert_eq!(ehr.calls().len(), if batches { 1 } else { 3 }, "what is refused is not asked");
    }
}

#[tokio::test]
async fn a_transaction_is_sent_whole_or_refused() {
    let transaction = json!({"resourceType": "Bundle", "type": "transaction", "entry": [
        {"resource": observation("Patient/p1"), "request": {"method": "POST", "url": "Observation"}},
        {"resource": observation("Patient/p1"), "request": {"method": "POST", "url": "Observation"}},
    ]});
    let ehr = Ehr::start(|call| {
        let asked: Value = serde_json::from_slice(&call.body).unwrap();
        let count = asked["entry"].as_array().unwrap().len();
        let entry = vec![json!({"response": {"status": "201 Created"}}); count];
        Reply::fhir(200, &json!({"resourceType": "Bundle", "type": "transaction-response", "entry": entry}))
    })
    .await;
    let without = Gateway::start(&ehr).await;
    without.client(&USER).await.post(SITE, &transaction).await.refused(422, "processing");
    assert_eq!(ehr.calls().len(), 0);

    let with = Gateway::with(&ehr, Setup { site: "batch = true".into(), ..Setup::default() }).await;
    let answer = with.client(&USER).await.post(SITE, &transaction).await;
    assert_eq!(answer.json()["type"], "transaction-response");
    assert_eq!(answer.json()["entry"].as_array().unwrap().len(), 2);
    let reads_only = with.client(&Covers { scopes: "user/*.rs", ..USER }).await;
    reads_only.post(SITE, &transaction).await.refused(403, "forbidden");
    assert_eq!(ehr.calls().len(), 1);
}
