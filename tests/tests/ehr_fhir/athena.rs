//! athenaOne, points 1 and 7, and athenaPractice's.

use http::StatusCode;
use mantel_tests::ehr::{
    contract::{TokenFacts, Vendor},
    fhir::PRACTICE,
};
use serde_json::json;

use super::client::{ehr, strict, token};

#[test]
fn the_practice_is_demanded_with_its_slash() {
    let ehr = ehr(Vendor::Athena);
    let patient = ehr.patient();
    let read = ehr.request("GET", &format!("/Patient/{patient}"));
    let search = ehr.request("GET", &format!("/Condition?patient={patient}"));
    for (query, status) in [
        (format!("patient={patient}"), StatusCode::BAD_REQUEST),
        (format!("patient={patient}&ah-practice=Organization%2Fa-1.Practice-{PRACTICE}"), StatusCode::BAD_REQUEST),
        (format!("patient={patient}&ah-practice=Organization%2fa-1.Practice-{PRACTICE}"), StatusCode::BAD_REQUEST),
        (format!("patient={patient}&ah-practice={PRACTICE}"), StatusCode::BAD_REQUEST),
        (format!("patient={patient}&ah-practice=Organization/a-1.Practice-1"), StatusCode::FORBIDDEN),
        (format!("patient={patient}&ah-practice=Organization/a-1.Practice-{PRACTICE}"), StatusCode::OK),
    ] {
        assert_eq!(ehr.send(&search.clone().raw_query(&query)).status, status, "{query}");
        if query.contains("ah-practice") {
            assert_eq!(ehr.send(&read.clone().raw_query(&query)).status, status, "{query}");
        }
    }
    let form = ehr.request("POST", "/Condition/_search").raw_query("").body(
        "application/x-www-form-urlencoded",
        format!("patient={patient}&ah-practice=Organization/a-1.Practice-{PRACTICE}"),
    );
    assert_eq!(ehr.send(&form).status, StatusCode::OK);
    let stranger = TokenFacts { tenant: Some("a-1.Practice-7".to_owned()), ..token("user/*.rs", None) };
    assert_eq!(ehr.send(&read.clone().token(stranger)).status, StatusCode::FORBIDDEN, "another practice's token");
    for tenant in [PRACTICE.to_owned(), format!("Organization/a-1.Practice-{PRACTICE}")] {
        let own = TokenFacts { tenant: Some(tenant), ..token("user/*.rs", None) };
        assert_eq!(ehr.send(&read.clone().token(own)).status, StatusCode::OK);
    }
}

#[test]
fn an_unknown_path_is_a_string_that_calls_itself_json() {
    let ehr = ehr(Vendor::Athena);
    for path in ["/nothing", "/Slot?patient=x", "/Patient/1/_history", "/Patient/1/$everything"] {
        let answer = ehr.get(path);
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(answer.header("content-type"), Some("application/json; charset=utf-8"));
        assert_eq!(answer.text(), "Service not registered with API gateway.");
    }
}

#[test]
fn bearers_are_refused_as_documented() {
    let ehr = ehr(Vendor::Athena);
    let patient = ehr.patient();
    let none = ehr.send(&ehr.request("GET", "/Patient/x").no_token());
    assert_eq!((none.status, none.text().as_str()), (StatusCode::UNAUTHORIZED, "Developer Inactive"));
    let request = ehr.request("GET", &format!("/Condition?patient={patient}"));
    let scope = ehr.send(&request.scopes("patient/Patient.read", &patient));
    assert_eq!(scope.status, StatusCode::FORBIDDEN);
    assert_eq!(
        scope.text(),
        r#"{"issue":[{"details":{"text":"Invalid Token Scope"},"expression":["Condition"],"severity":"fatal","code":"forbidden"}],"resourceType":"OperationOutcome"}"#
    );
}

#[test]
fn searches_need_one_of_the_combinations() {
    let ehr = ehr(Vendor::Athena);
    let answer = ehr.get("/Observation?category=laboratory");
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert_eq!(
        answer.json()["issue"][0]["details"]["text"],
        "The search query could not be performed because one of the required parameter combinations [[patient],[_id]] was not provided."
    );
    let patient = ehr.patient();
    assert_eq!(ehr.get("/Patient?family=a").status, StatusCode::FORBIDDEN);
    assert_eq!(ehr.get("/Patient?family=a&gender=male").status, StatusCode::OK);
    assert_eq!(ehr.get(&format!("/MedicationRequest?patient={patient}")).status, StatusCode::OK);
}

#[test]
fn the_strict_one_wants_an_intent() {
    let ehr = strict(Vendor::Athena);
    let patient = ehr.patient();
    let answer = ehr.get(&format!("/MedicationRequest?patient={patient}"));
    assert_eq!(
        answer.text(),
        r#"{"issue":[{"details":{"text":"The search query could not be performed because one of the required parameter combinations [[patient,intent],[_id]] was not provided."},"expression":["patient,intent","_id"],"severity":"fatal","code":"forbidden"}],"resourceType":"OperationOutcome"}"#
    );
    assert!(!ehr.get(&format!("/MedicationRequest?patient={patient}&intent=order")).matches().is_empty());
}

#[test]
fn a_next_link_has_a_cursor_and_no_practice() {
    let ehr = ehr(Vendor::Athena);
    let patient = ehr.patient();
    let first = ehr.get(&format!("/Observation?patient={patient}&_count=10"));
    assert!(first.json().get("total").is_none());
    let next = first.link("next").expect("a next link");
    assert!(
        next.starts_with(&format!("{}/Observation?patient={patient}&_count=10&cursor=a-{PRACTICE}.", ehr.base)),
        "{next}"
    );
    assert!(!next.contains("ah-practice"), "{next}");
    let bare = ehr.request("GET", &ehr.below(&next));
    assert_eq!(
        ehr.send(&bare.clone().raw_query(next.split_once('?').expect("a query").1)).status,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(ehr.send(&bare).matches().len(), 10);
}

#[test]
fn documents_travel_inline_and_binaries_are_for_systems() {
    let ehr = ehr(Vendor::Athena);
    let patient = ehr.patient();
    let document = ehr.get(&format!("/DocumentReference?patient={patient}")).matches()[0].clone();
    let attachment = &document["content"][0]["attachment"];
    assert!(attachment.get("url").is_none() && attachment["data"].is_string());
    let read = ehr.request("GET", &format!("/Binary/a-{PRACTICE}.Binary-1"));
    assert_eq!(ehr.send(&read.clone().scopes("patient/*.rs user/*.rs", &patient)).status, StatusCode::FORBIDDEN);
    assert_eq!(ehr.send(&read.token(token("system/Binary.r", None))).json()["resourceType"], "Binary");
}

#[test]
fn only_answers_to_questionnaires_are_written() {
    let ehr = ehr(Vendor::Athena);
    let patient = ehr.patient();
    let answers = json!({
        "resourceType": "QuestionnaireResponse",
        "status": "completed",
        "subject": {"reference": format!("Patient/{patient}")},
    });
    assert_eq!(ehr.send(&ehr.request("POST", "/QuestionnaireResponse").json(&answers)).status, StatusCode::CREATED);
    assert_eq!(
        ehr.send(&ehr.request("POST", "/Observation").json(&super::client::observation(&patient))).status,
        StatusCode::NOT_FOUND
    );
}

#[test]
fn answers_wear_athenas_headers() {
    let ehr = ehr(Vendor::Athena);
    let patient = ehr.patient();
    let answer = ehr.get(&format!("/Patient/{patient}"));
    assert_eq!(answer.header("location"), Some(format!("{}/Patient/{patient}", ehr.base).as_str()));
    assert!(answer.header("last-modified").is_some() && answer.header("etag").is_none());
    assert_eq!(answer.header("x-athenanet-practice-id"), Some(PRACTICE));
    assert!(answer.header("ratelimit-remaining").is_some());
    assert!(answer.json()["meta"].get("versionId").is_none());
}

#[test]
fn practice_answers_in_hapis_words() {
    let ehr = ehr(Vendor::AthenaPractice);
    let patient = ehr.patient();
    let unknown = ehr.get("/Patient?patientid=1");
    assert_eq!(unknown.status, StatusCode::BAD_REQUEST);
    assert!(
        unknown.json()["issue"][0]["diagnostics"]
            .as_str()
            .expect("diagnostics")
            .contains("does not know how to handle GET operation[Patient] with parameters [[patientid]]")
    );
    let missing = ehr.get("/Patient/nope");
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    assert_eq!(
        missing.text(),
        "{\"resourceType\":\"OperationOutcome\",\"text\":{\"status\":\"generated\",\"div\":\"<div xmlns=\\\"http://www.w3.org/1999/xhtml\\\"><h1>Operation Outcome</h1><table border=\\\"0\\\"><tr><td style=\\\"font-weight: bold;\\\">ERROR</td><td>[]</td><td>HAPI-2001: Resource Patient/nope is not known</td></tr></table></div>\"},\"issue\":[{\"severity\":\"error\",\"code\":\"processing\",\"diagnostics\":\"HAPI-2001: Resource Patient/nope is not known\"}]}"
    );
    let nobody = ehr.send(&ehr.request("GET", "/Patient/x").no_token().header("authorization", "Bearer old"));
    assert_eq!((nobody.status, nobody.text().as_str()), (StatusCode::UNAUTHORIZED, "Not authorized."));
    let other = ehr.other_patient();
    let refused =
        ehr.send(&ehr.request("GET", &format!("/Condition?patient={other}")).scopes("patient/*.read", &patient));
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert_eq!(refused.json()["issue"][0]["diagnostics"], "Not authorized");
    assert_eq!(ehr.get("/Slot").status, StatusCode::NOT_FOUND);
}

#[test]
fn practice_pages_by_getpages_and_knows_everything() {
    let ehr = ehr(Vendor::AthenaPractice);
    let patient = ehr.patient();
    let first = ehr.get(&format!("/Observation?patient={patient}&_count=10"));
    let next = first.link("next").expect("a next link");
    assert!(next.starts_with(&format!("{}?_getpages=", ehr.base)), "{next}");
    let everything = ehr.get(&format!("/Patient/{patient}/$everything?_count=250"));
    assert!(everything.json()["total"].as_u64() > Some(200));
    assert_eq!(ehr.send(&ehr.request("POST", "/Observation").json(&json!({}))).status, StatusCode::METHOD_NOT_ALLOWED);
}
