//! Writes at a plain R4 server.

use http::StatusCode;
use mantel_tests::ehr::contract::Vendor;
use serde_json::{Value, json};

use super::client::{Answer, Ehr, ehr, observation};

fn created(ehr: &Ehr) -> (String, Answer) {
    let answer = ehr.send(&ehr.request("POST", "/Observation").json(&observation(&ehr.patient())));
    assert_eq!(answer.status, StatusCode::CREATED);
    let location = ehr.below(answer.header("location").expect("a location"));
    let path = location.strip_suffix("/_history/1").expect("a versioned location").to_owned();
    (path, answer)
}

#[test]
fn a_create_answers_as_preferred() {
    let ehr = ehr(Vendor::Generic);
    let (path, answer) = created(&ehr);
    assert_eq!(answer.header("etag"), Some("W/\"1\""));
    assert_eq!(answer.json(), ehr.get(&path).json());
    let request = ehr.request("POST", "/Observation").json(&observation(&ehr.patient()));
    let minimal = ehr.send(&request.clone().header("prefer", "return=minimal"));
    assert_eq!((minimal.status, minimal.text().as_str()), (StatusCode::CREATED, ""));
    let outcome = ehr.send(&request.header("prefer", "return=OperationOutcome"));
    assert_eq!(outcome.json()["resourceType"], "OperationOutcome");
}

#[test]
fn bodies_that_do_not_fit_are_refused() {
    let ehr = ehr(Vendor::Generic);
    let request = ehr.request("POST", "/Observation");
    let status = |body: &Value| ehr.send(&request.clone().json(body)).status;
    assert_eq!(status(&json!([])), StatusCode::BAD_REQUEST);
    assert_eq!(status(&json!({"resourceType": "Condition"})), StatusCode::BAD_REQUEST);
    assert_eq!(status(&json!({"resourceType": "Observation"})), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(ehr.send(&request.clone().body("application/fhir+json", "{")).status, StatusCode::BAD_REQUEST);
    let deep = "[".repeat(100_000);
    assert_eq!(ehr.send(&request.clone().body("application/fhir+json", deep)).status, StatusCode::BAD_REQUEST);
    assert_eq!(ehr.send(&request.body("text/plain", "{}")).status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

#[test]
fn updates_make_versions_that_can_be_read() {
    let ehr = ehr(Vendor::Generic);
    let (path, answer) = created(&ehr);
    let mut body = answer.json();
    body["status"] = json!("amended");
    let put = ehr.request("PUT", &path).json(&body).later(60_000);
    let stale = ehr.send(&put.clone().header("if-match", "W/\"9\""));
    assert_eq!(stale.status, StatusCode::PRECONDITION_FAILED);
    let updated = ehr.send(&put.header("if-match", "W/\"1\""));
    assert_eq!((updated.status, updated.header("etag")), (StatusCode::OK, Some("W/\"2\"")));
    assert_eq!(ehr.get(&format!("{path}/_history/1")).json()["status"], "final");
    assert_eq!(ehr.get(&format!("{path}/_history/2")).json()["status"], "amended");
    assert_eq!(ehr.get(&format!("{path}/_history/3")).status, StatusCode::NOT_FOUND);
    let history = ehr.get(&format!("{path}/_history"));
    let bundle = history.json();
    assert_eq!((&bundle["type"], &bundle["total"]), (&json!("history"), &json!(2)));
    assert_eq!(bundle["entry"][0]["request"]["method"], "PUT");
    assert_eq!(bundle["entry"][1]["request"], json!({"method": "POST", "url": "Observation"}));
    let since = ehr.get("/Observation/_history?_since=2026-10-01&_count=1").json();
    assert_eq!((&since["total"], since["entry"].as_array().map(Vec::len)), (&json!(2), Some(1)));
    assert!(ehr.get("/_history").json()["total"].as_u64() > Some(1000));
    let mut moved = body;
    moved["id"] = json!("other");
    assert_eq!(ehr.send(&ehr.request("PUT", &path).json(&moved)).status, StatusCode::BAD_REQUEST);
}

#[test]
fn an_update_can_create() {
    let ehr = ehr(Vendor::Generic);
    let mut body = observation(&ehr.patient());
    body["id"] = json!("my-own");
    let answer = ehr.send(&ehr.request("PUT", "/Observation/my-own").json(&body));
    assert_eq!(answer.status, StatusCode::CREATED);
    body["id"] = json!("my own");
    let bad = ehr.send(&ehr.request("PUT", "/Observation/my%20own").json(&body));
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
}

#[test]
fn what_is_deleted_is_gone_and_its_past_is_not() {
    let ehr = ehr(Vendor::Generic);
    let (path, _) = created(&ehr);
    let delete = ehr.request("DELETE", &path);
    assert_eq!(ehr.send(&delete.clone().header("if-match", "W/\"2\"")).status, StatusCode::PRECONDITION_FAILED);
    assert_eq!(ehr.send(&delete).status, StatusCode::NO_CONTENT);
    assert_eq!(ehr.send(&delete).status, StatusCode::NO_CONTENT, "twice is once");
    assert_eq!(ehr.get(&path).status, StatusCode::GONE);
    assert_eq!(ehr.get(&format!("{path}/_history/1")).status, StatusCode::OK);
    assert_eq!(ehr.get(&format!("{path}/_history/2")).status, StatusCode::GONE);
    let other = ehr.other_patient();
    let stranger = ehr.send(&ehr.request("GET", &path).scopes("patient/*.rs", &other));
    assert_eq!(stranger.status, StatusCode::NOT_FOUND, "nor does a stranger hear that it was there");
    assert_eq!(ehr.send(&ehr.request("DELETE", "/Observation/never")).status, StatusCode::NOT_FOUND);
}

#[test]
fn a_patch_changes_and_keeps_identity() {
    let ehr = ehr(Vendor::Generic);
    let (path, _) = created(&ehr);
    let patch = |body: &str| ehr.request("PATCH", &path).body("application/json-patch+json", body.to_owned());
    assert_eq!(ehr.send(&patch(r#"[{"op":"replace","path":"/status","value":"amended"}]"#)).status, StatusCode::OK);
    assert_eq!(ehr.get(&path).json()["status"], "amended");
    for (body, status) in [
        (r#"[{"op":"replace","path":"/id","value":"x"}]"#, StatusCode::UNPROCESSABLE_ENTITY),
        (r#"[{"op":"test","path":"/status","value":"final"}]"#, StatusCode::UNPROCESSABLE_ENTITY),
        (r#"[{"op":"remove","path":"/code"}]"#, StatusCode::UNPROCESSABLE_ENTITY),
        ("{", StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(ehr.send(&patch(body)).status, status, "{body}");
    }
    let steal =
        format!(r#"[{{"op":"replace","path":"/subject/reference","value":"Patient/{}"}}]"#, ehr.other_patient());
    let own = ehr.patient();
    assert_eq!(ehr.send(&patch(&steal).scopes("patient/*.cruds", &own)).status, StatusCode::FORBIDDEN);
    let xml = ehr.request("PATCH", &path).body("application/xml-patch+xml", "<diff/>");
    assert_eq!(ehr.send(&xml).status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

#[test]
fn conditions_choose_what_is_written() {
    let ehr = ehr(Vendor::Generic);
    let patient = ehr.patient();
    let mut body = observation(&patient);
    body["identifier"] = json!([{"system": "urn:test", "value": "1"}]);
    let create = ehr.request("POST", "/Observation").json(&body).header("if-none-exist", "identifier=urn:test|1");
    assert_eq!(ehr.send(&create).status, StatusCode::CREATED);
    let again = ehr.send(&create);
    assert_eq!(again.status, StatusCode::OK);
    assert_eq!(ehr.get("/Observation?identifier=urn:test|1").json()["total"], 1);
    let several = create.clone().header("if-none-exist", &format!("subject=Patient/{patient}"));
    assert_eq!(ehr.send(&several).status, StatusCode::PRECONDITION_FAILED);
    let unknown = create.header("if-none-exist", "colour=blue");
    assert_eq!(ehr.send(&unknown).status, StatusCode::BAD_REQUEST, "what is not understood must not widen");

    body["status"] = json!("amended");
    let put = ehr.request("PUT", "/Observation?identifier=urn:test|1").json(&body);
    assert_eq!(ehr.send(&put).status, StatusCode::OK);
    let patch = ehr
        .request("PATCH", "/Observation?identifier=urn:test|1")
        .body("application/json-patch+json", r#"[{"op":"replace","path":"/status","value":"corrected"}]"#);
    assert_eq!(ehr.send(&patch).json()["status"], "corrected");
    let all = ehr.request("DELETE", &format!("/Observation?subject=Patient/{patient}"));
    assert_eq!(ehr.send(&all).status, StatusCode::PRECONDITION_FAILED);
    assert_eq!(ehr.send(&ehr.request("DELETE", "/Observation")).status, StatusCode::BAD_REQUEST);
    let one = ehr.request("DELETE", "/Observation?identifier=urn:test|1");
    assert_eq!(ehr.send(&one).status, StatusCode::NO_CONTENT);
    assert_eq!(ehr.send(&one).status, StatusCode::NOT_FOUND);
}
