//! Oracle Health, points 8 to 10.

use http::StatusCode;
use mantel_tests::ehr::contract::{FhirCall, Vendor};
use serde_json::json;

use super::client::{ehr, ids, observation, token};

#[test]
fn fhir_errors_are_oracles_byte_for_byte() {
    let ehr = ehr(Vendor::Oracle);
    let patient = ehr.patient();
    let path = format!("/Observation?patient={patient}&category=laboratory");
    let none = ehr.send(&ehr.request("GET", &path).no_token());
    assert_eq!(none.status, StatusCode::UNAUTHORIZED);
    assert_eq!(
        none.text(),
        r#"{"code":401,"message":"code=\"urn:cerner:error:oauth2:resource-access:token-required\""}"#
    );
    assert_eq!(none.header("www-authenticate"), Some("Bearer realm=\"oracle.localhost:9100\""));
    let bad = ehr.send(&ehr.request("GET", &path).no_token().header("authorization", "Bearer old"));
    assert_eq!(bad.status, StatusCode::UNAUTHORIZED);
    assert_eq!(
        bad.json(),
        json!({"resourceType": "OperationOutcome", "issue": [{
            "severity": "error",
            "code": "login",
            "diagnostics": "Bearer realm=\"oracle.localhost:9100\", error=\"invalid_token\"",
            "location": ["http.Authorization"],
        }]})
    );
    let scope = ehr.send(&ehr.request("GET", &path).scopes("patient/Condition.rs", &patient));
    assert_eq!(scope.status, StatusCode::FORBIDDEN);
    assert_eq!(
        scope.text(),
        r#"{"code":403,"message":"code=\"urn:cerner:error:oauth2:resource-access:insufficient-scopes\", error=\"insufficient_scope\", subcode=\"no_scope_for_resource_path\""}"#
    );
    let nothing = ehr.get("/Patient?colour=blue");
    assert_eq!(
        (nothing.status, nothing.text().as_str()),
        (StatusCode::BAD_REQUEST, "no supported search parameters provided")
    );
    let xml = ehr.send(&ehr.request("GET", &format!("/Patient/{patient}")).header("accept", "application/fhir+xml"));
    assert_eq!((xml.status, xml.text().as_str(), xml.header("content-type")), (StatusCode::NOT_ACCEPTABLE, "", None));
}

#[test]
fn another_tenant_is_refused() {
    let ehr = ehr(Vendor::Oracle);
    let answer = ehr.server.elsewhere(FhirCall {
        method: http::Method::GET,
        path: "/r4/other/Patient/1".to_owned(),
        query: None,
        headers: http::HeaderMap::new(),
        body: bytes::Bytes::new(),
        token: Some(token("user/*.rs", None)),
        now: 0,
    });
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    assert_eq!(answer.body(), "Tenant not valid or accessible");
}

#[test]
fn only_a_401_comes_without_cors() {
    let ehr = ehr(Vendor::Oracle);
    let path = format!("/Patient/{}", ehr.patient());
    let cors = "access-control-allow-origin";
    assert_eq!(ehr.get(&path).header(cors), Some("*"));
    assert_eq!(ehr.get("/Patient?colour=blue").header(cors), Some("*"));
    assert_eq!(ehr.send(&ehr.request("GET", &path).no_token()).header(cors), None);
}

#[test]
fn media_types_take_turns() {
    let ehr = ehr(Vendor::Oracle);
    let path = format!("/Patient/{}", ehr.patient());
    let media: Vec<String> =
        (0..4).map(|_| ehr.get(&path).header("content-type").expect("a media type").to_owned()).collect();
    assert_eq!(media[0], media[2]);
    assert_eq!(media[1], media[3]);
    let mut both = [media[0].as_str(), media[1].as_str()];
    both.sort_unstable();
    assert_eq!(both, ["application/fhir+json", "application/json+fhir"]);
}

#[test]
fn a_create_answers_with_nothing_as_html() {
    let ehr = ehr(Vendor::Oracle);
    let answer = ehr.send(&ehr.request("POST", "/Observation").json(&observation(&ehr.patient())));
    assert_eq!((answer.status, answer.text().as_str()), (StatusCode::CREATED, ""));
    assert_eq!(answer.header("content-length"), Some("0"));
    assert_eq!(answer.header("content-type"), Some("text/html"));
    assert_eq!(answer.header("etag"), Some("W/\"0\""));
    assert!(answer.header("x-request-id").is_some() && answer.header("opc-request-id").is_some());
    let location = answer.header("location").expect("a location");
    assert!(location.starts_with(&format!("{}/Observation/", ehr.base)), "{location}");
    assert_eq!(ehr.get(&ehr.below(location)).status, StatusCode::OK);
}

#[test]
fn an_update_needs_the_newest_version() {
    let ehr = ehr(Vendor::Oracle);
    let patient = ehr.patient();
    let created = ehr.send(&ehr.request("POST", "/Observation").json(&observation(&patient)));
    let path = ehr.below(created.header("location").expect("a location"));
    let mut body = ehr.get(&path).json();
    body["status"] = json!("amended");
    let put = ehr.request("PUT", &path).json(&body);
    let without = ehr.send(&put);
    assert_eq!((without.status, without.text().as_str()), (StatusCode::PRECONDITION_FAILED, ""));
    let stale = ehr.send(&put.clone().header("if-match", "W/\"7\""));
    assert_eq!((stale.status, stale.text().as_str()), (StatusCode::CONFLICT, ""));
    let updated = ehr.send(&put.header("if-match", "W/\"0\""));
    assert_eq!((updated.status, updated.header("etag")), (StatusCode::OK, Some("W/\"1\"")));
    assert_eq!(ehr.get(&path).json()["meta"]["versionId"], "1");
}

#[test]
fn a_rule_broken_is_422_and_a_bad_record_500() {
    let ehr = ehr(Vendor::Oracle);
    let patient = ehr.patient();
    let mut extended =
        json!({"resourceType": "AllergyIntolerance", "patient": {"reference": format!("Patient/{patient}")}});
    extended["modifierExtension"] = json!([{"url": "urn:x", "valueBoolean": true}]);
    let rule = ehr.send(&ehr.request("POST", "/AllergyIntolerance").json(&extended));
    assert_eq!(rule.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        rule.text(),
        r#"{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"extension","location":["/f:AllergyIntolerance/f:modifierExtension"]}]}"#
    );
    let mut bare = observation(&patient);
    bare.as_object_mut().expect("an object").remove("status");
    let record = ehr.send(&ehr.request("POST", "/Observation").json(&bare));
    assert_eq!(record.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(
        record.text(),
        r#"{"resourceType":"OperationOutcome","issue":[{"severity":"fatal","code":"required","location":["/f:Observation/f:status"]}]}"#
    );
}

#[test]
fn a_patch_is_json_patch_with_if_match_and_may_come_as_a_post() {
    let ehr = ehr(Vendor::Oracle);
    let path = format!("/Patient/{}", ehr.patient());
    let patch = |method: &str| {
        ehr.request(method, &path)
            .body("application/json-patch+json", r#"[{"op":"replace","path":"/gender","value":"unknown"}]"#)
    };
    assert_eq!(ehr.send(&patch("PATCH")).status, StatusCode::PRECONDITION_FAILED);
    assert_eq!(ehr.send(&patch("POST").header("if-match", "W/\"0\"")).status, StatusCode::NOT_FOUND);
    let posted = patch("POST").header("x-http-method-override", "PATCH").header("if-match", "W/\"0\"");
    assert_eq!(ehr.send(&posted).status, StatusCode::OK);
    assert_eq!(ehr.get(&path).json()["gender"], "unknown");
    assert_eq!(ehr.counters.get("fhir:patch Patient"), 2);
}

#[test]
fn pages_have_a_context_and_overlap() {
    let ehr = ehr(Vendor::Oracle);
    let patient = ehr.patient();
    let query = format!("/Observation?patient={patient}&category=vital-signs,laboratory,survey&_count=10");
    let first = ehr.get(&query);
    let next = first.link("next").expect("a next link");
    assert!(next.starts_with(&format!("{}/Observation?patient={patient}", ehr.base)), "{next}");
    assert!(next.contains("&pageContext=") && next.ends_with("&direction=NEXT"), "{next}");
    assert!(first.json().get("total").is_none());
    let second = ehr.get(&ehr.below(&next));
    assert_eq!(ids(&second.matches())[0], ids(&first.matches())[9], "an id comes twice");
    assert_eq!(second.matches().len(), 11);
    assert_eq!(ehr.get(&ehr.below(&next)).matches(), second.matches(), "a page can be turned again");
}

#[test]
fn observations_come_two_hundred_at_most() {
    let ehr = ehr(Vendor::Oracle);
    let patient = ehr.patient();
    for _ in 0..201 {
        let created = ehr.send(&ehr.request("POST", "/Observation").json(&observation(&patient)));
        assert_eq!(created.status, StatusCode::CREATED);
    }
    let query = format!("/Observation?patient={patient}&code=8867-4");
    assert_eq!(ehr.get(&format!("{query}&_count=1000")).matches().len(), 200);
    assert_eq!(ehr.get(&query).matches().len(), 50);
}

#[test]
fn more_than_a_thousand_patients_are_422() {
    let ehr = ehr(Vendor::Oracle);
    let names: Vec<String> = (0..1001).map(|number| number.to_string()).collect();
    assert_eq!(ehr.get(&format!("/Patient?_id={}", names.join(","))).status, StatusCode::UNPROCESSABLE_ENTITY);
    for _ in 0..1001 {
        let patient = json!({"resourceType": "Patient", "name": [{"family": "Crowd"}]});
        assert_eq!(ehr.send(&ehr.request("POST", "/Patient").json(&patient)).status, StatusCode::CREATED);
    }
    assert_eq!(ehr.get("/Patient?family=Crowd").status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[test]
fn searches_have_oracles_conditions() {
    let ehr = ehr(Vendor::Oracle);
    let patient = ehr.patient();
    let status = |path: String| ehr.get(&path).status;
    assert_eq!(status("/Patient?gender=male".to_owned()), StatusCode::BAD_REQUEST, "gender alone is too little");
    assert_eq!(status("/Patient?family=a&gender=male".to_owned()), StatusCode::OK);
    assert_eq!(status("/Observation?category=laboratory".to_owned()), StatusCode::BAD_REQUEST);
    let bare = ehr.get(&format!("/Observation?patient={patient}"));
    assert_eq!(
        (&bare.json()["issue"][0]["severity"], &bare.json()["issue"][0]["code"]),
        (&json!("fatal"), &json!("required"))
    );
    let labs = format!("/Observation?patient={patient}&category=laboratory");
    assert_eq!(status(format!("{labs}&date=ge2010&_lastUpdated=ge2010")), StatusCode::BAD_REQUEST);
    assert_eq!(status(format!("{labs}&date=2010&date=2011")), StatusCode::BAD_REQUEST);
    assert_eq!(status(format!("{labs}&date=ge2010&date=lt2015&date=ne2012")), StatusCode::BAD_REQUEST);
    assert_eq!(status(format!("{labs}&date=ge2010&date=lt2015&colour=blue&-own=1")), StatusCode::OK);
    let single = ehr.get(&format!("/Patient?_id={patient}&_count=0"));
    assert_eq!(single.json()["total"], 1);
}

#[test]
fn a_merged_patient_is_read_but_not_found() {
    let ehr = ehr(Vendor::Oracle);
    let (from, into) = ehr.server.merged_patient().expect("a merged patient");
    let record = ehr.get(&format!("/Patient/{from}")).json();
    assert_eq!(record["active"], false);
    assert_eq!(record["link"][0]["other"]["reference"], format!("Patient/{into}"));
    assert!(ehr.get("/Patient?family=Entered").matches().is_empty());
    assert!(ehr.get(&format!("/Patient?_id={from}")).matches().is_empty());
    assert!(ehr.server.patients().iter().all(|patient| patient.id != from));
}

#[test]
fn provenance_needs_its_own_scope() {
    let ehr = ehr(Vendor::Oracle);
    let patient = ehr.patient();
    let request = ehr.request("GET", &format!("/Condition?patient={patient}&_revinclude=Provenance:target"));
    assert_eq!(ehr.send(&request.clone().scopes("patient/Condition.rs", &patient)).status, StatusCode::FORBIDDEN);
    assert_eq!(
        ehr.send(&request.scopes("patient/Condition.rs patient/Provenance.rs", &patient)).status,
        StatusCode::OK
    );
}

#[test]
fn includes_are_not_for_what_is_here() {
    let ehr = ehr(Vendor::Oracle);
    let answer = ehr.get(&format!("/Condition?patient={}&_include=Condition:encounter", ehr.patient()));
    assert!(!answer.matches().is_empty() && answer.of_mode("include").is_empty());
}

#[test]
fn a_binary_is_json_only_if_asked() {
    let ehr = ehr(Vendor::Oracle);
    let document = ehr.get(&format!("/DocumentReference?patient={}", ehr.patient())).matches()[0].clone();
    let url = document["content"][0]["attachment"]["url"].as_str().expect("a URL");
    assert!(url.starts_with(&format!("{}/Binary/", ehr.base)), "{url}");
    let request = ehr.request("GET", &ehr.below(url));
    assert_eq!(ehr.send(&request).json()["resourceType"], "Binary");
    for request in [request.clone().without("accept"), request.header("accept", "text/plain, */*")] {
        let raw = ehr.send(&request);
        assert_eq!(raw.header("content-type"), Some("text/plain; charset=utf-8"));
        assert!(raw.text().starts_with("SYNTHETIC NOTE"), "{}", raw.text());
    }
}
