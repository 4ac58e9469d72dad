//! Batches and transactions.

use http::StatusCode;
use mantel_tests::ehr::contract::Vendor;
use serde_json::{Value, json};

use super::client::{Answer, Ehr, ehr, observation};

fn post(ehr: &Ehr, kind: &str, entries: &[Value]) -> Answer {
    let bundle = json!({"resourceType": "Bundle", "type": kind, "entry": entries});
    ehr.send(&ehr.request("POST", "/").json(&bundle))
}

fn get(url: &str) -> Value {
    json!({"request": {"method": "GET", "url": url}})
}

#[test]
fn each_entry_of_a_batch_stands_alone() {
    for vendor in [Vendor::Oracle, Vendor::Generic] {
        let ehr = ehr(vendor);
        let patient = ehr.patient();
        let answer = post(
            &ehr,
            "batch",
            &[
                get(&format!("Patient/{patient}")),
                get("Patient/12345678"),
                get(&format!("{}/Condition?patient={patient}", ehr.base)),
                json!({"request": {"method": "POST", "url": "Observation"}, "resource": observation(&patient)}),
                get("http://elsewhere.example/Patient/1"),
                json!({"request": {"method": "POST", "url": ""}, "resource": {"resourceType": "Bundle", "type": "batch"}}),
                json!({}),
            ],
        );
        assert_eq!(answer.status, StatusCode::OK);
        let bundle = answer.json();
        assert_eq!(bundle["type"], "batch-response");
        let status: Vec<&str> = bundle["entry"]
            .as_array()
            .expect("entries")
            .iter()
            .map(|entry| entry["response"]["status"].as_str().expect("a status").get(..3).expect("a code"))
            .collect();
        assert_eq!(status, ["200", "404", "200", "201", "400", "400", "400"], "{vendor:?}");
        assert_eq!(bundle["entry"][0]["resource"]["id"], patient.as_str());
        assert_eq!(bundle["entry"][1]["response"]["outcome"]["resourceType"], "OperationOutcome");
        assert_eq!(bundle["entry"][2]["resource"]["type"], "searchset");
        let location = bundle["entry"][3]["response"]["location"].as_str().expect("a location");
        assert_eq!(ehr.get(&ehr.below(location)).status, StatusCode::OK);
    }
}

#[test]
fn entries_are_judged_by_the_token() {
    let ehr = ehr(Vendor::Oracle);
    let (own, other) = (ehr.patient(), ehr.other_patient());
    let bundle = json!({"resourceType": "Bundle", "type": "batch", "entry": [
        get(&format!("Patient/{own}")), get(&format!("Patient/{other}")), get(&format!("Condition?patient={own}")),
    ]});
    let answer = ehr.send(&ehr.request("POST", "/").json(&bundle).scopes("patient/Patient.rs", &own)).json();
    let status = |index: usize| answer["entry"][index]["response"]["status"].clone();
    assert_eq!((status(0), status(1), status(2)), (json!("200 OK"), json!("403 Forbidden"), json!("403 Forbidden")));
    assert!(answer["entry"][1].get("resource").is_none());
}

#[test]
fn the_headers_of_a_batch_do_not_reach_its_entries() {
    let ehr = ehr(Vendor::Oracle);
    let path = format!("Patient/{}", ehr.patient());
    let entry = json!({"request": {"method": "POST", "url": path}, "resource": {"resourceType": "Patient"}});
    let bundle = json!({"resourceType": "Bundle", "type": "batch", "entry": [entry]});
    let request = ehr.request("POST", "/").json(&bundle).header("if-match", "W/\"0\"");
    assert_eq!(ehr.send(&request).json()["entry"][0]["response"]["status"], "404 Not Found");
}

#[test]
fn a_transaction_names_what_it_makes() {
    let ehr = ehr(Vendor::Generic);
    let patient = json!({
        "fullUrl": "urn:uuid:11111111-1111-4111-8111-111111111111",
        "resource": {"resourceType": "Patient", "name": [{"family": "New"}], "identifier": [{"system": "urn:test", "value": "p"}]},
        "request": {"method": "POST", "url": "Patient"},
    });
    let mut first = observation("x");
    first["subject"]["reference"] = json!("urn:uuid:11111111-1111-4111-8111-111111111111");
    let entries = [
        get("Patient?family=New"),
        json!({"resource": first, "request": {"method": "POST", "url": "Observation"}}),
        patient,
    ];
    let answer = post(&ehr, "transaction", &entries).json();
    assert_eq!(answer["type"], "transaction-response");
    assert_eq!(answer["entry"][0]["resource"]["total"], 1, "reads come last, answers in order");
    let id = answer["entry"][2]["resource"]["id"].as_str().expect("an id");
    assert_eq!(answer["entry"][1]["resource"]["subject"]["reference"], format!("Patient/{id}"));

    let mut second = observation("x");
    second["subject"]["reference"] = json!("Patient?identifier=urn:test|p");
    let entries = [json!({"resource": second, "request": {"method": "POST", "url": "Observation"}})];
    let answer = post(&ehr, "transaction", &entries).json();
    assert_eq!(answer["entry"][0]["resource"]["subject"]["reference"], format!("Patient/{id}"));
}

#[test]
fn a_transaction_is_all_or_nothing() {
    let ehr = ehr(Vendor::Generic);
    let patient = ehr.patient();
    let before = ehr.get("/Observation?_summary=count").json()["total"].clone();
    let good = json!({"resource": observation(&patient), "request": {"method": "POST", "url": "Observation"}});
    for bad in [
        get("Patient/never"),
        json!({"resource": {"resourceType": "Observation"}, "request": {"method": "PUT", "url": "Observation/x"}}),
        json!({"request": {"method": "DELETE", "url": "Observation/never"}}),
    ] {
        let answer = post(&ehr, "transaction", &[good.clone(), bad]);
        assert!(answer.status.is_client_error());
        assert_eq!(answer.json()["resourceType"], "OperationOutcome");
    }
    assert_eq!(ehr.get("/Observation?_summary=count").json()["total"], before);
    assert_eq!(post(&ehr, "document", &[]).status, StatusCode::BAD_REQUEST);
    let oracle = super::client::ehr(Vendor::Oracle);
    assert_eq!(post(&oracle, "transaction", &[]).status, StatusCode::BAD_REQUEST, "Oracle has batch only");
}

#[test]
fn a_patch_in_a_bundle_travels_in_a_binary() {
    let ehr = ehr(Vendor::Generic);
    let patient = ehr.patient();
    // [{"op":"replace","path":"/gender","value":"unknown"}]
    let data = "W3sib3AiOiJyZXBsYWNlIiwicGF0aCI6Ii9nZW5kZXIiLCJ2YWx1ZSI6InVua25vd24ifV0=";
    let entry = json!({
        "request": {"method": "PATCH", "url": format!("Patient/{patient}"), "ifMatch": "W/\"1\""},
        "resource": {"resourceType": "Binary", "contentType": "application/json-patch+json", "data": data},
    });
    let answer = post(&ehr, "batch", &[entry]).json();
    assert_eq!(answer["entry"][0]["response"]["etag"], "W/\"2\"");
    assert_eq!(answer["entry"][0]["resource"]["gender"], "unknown");
}
