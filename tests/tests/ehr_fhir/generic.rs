//! A plain R4 server: reads and searches as the specification has them.

use http::StatusCode;
use mantel_tests::ehr::{
    contract::{Switches, Vendor},
    fhir::SESSION_LIFE_MS,
};
use serde_json::json;

use super::client::{ehr, ids, with};

#[test]
fn a_read_has_its_version_and_can_be_saved() {
    let ehr = ehr(Vendor::Generic);
    let path = format!("/Patient/{}", ehr.patient());
    let answer = ehr.get(&path);
    assert_eq!(answer.header("content-type"), Some("application/fhir+json; charset=utf-8"));
    assert_eq!(answer.header("etag"), Some("W/\"1\""));
    let modified = answer.header("last-modified").expect("a date").to_owned();
    let request = ehr.request("GET", &path);
    for (name, value, status) in [
        ("if-none-match", "W/\"1\"", StatusCode::NOT_MODIFIED),
        ("if-none-match", "W/\"2\", \"1\"", StatusCode::NOT_MODIFIED),
        ("if-none-match", "W/\"2\"", StatusCode::OK),
        ("if-modified-since", modified.as_str(), StatusCode::NOT_MODIFIED),
        ("if-modified-since", "Thu, 01 Jan 2026 00:00:00 GMT", StatusCode::OK),
    ] {
        let answer = ehr.send(&request.clone().header(name, value));
        assert_eq!(answer.status, status, "{name}: {value}");
        assert_eq!(answer.body.is_empty(), status == StatusCode::NOT_MODIFIED);
    }
}

#[test]
fn only_json_is_served_and_format_beats_accept() {
    let ehr = ehr(Vendor::Generic);
    let request = ehr.request("GET", &format!("/Patient/{}", ehr.patient()));
    for (accept, query, status) in [
        ("application/fhir+xml", "", StatusCode::NOT_ACCEPTABLE),
        ("application/fhir+xml", "_format=json", StatusCode::OK),
        ("application/fhir+json", "_format=xml", StatusCode::NOT_ACCEPTABLE),
        ("text/html, */*;q=0.1", "", StatusCode::OK),
        ("application/fhir+json;q=0, text/html", "", StatusCode::NOT_ACCEPTABLE),
        ("application/json", "_format=application/fhir+json", StatusCode::OK),
    ] {
        let answer = ehr.send(&request.clone().header("accept", accept).raw_query(query));
        assert_eq!(answer.status, status, "{accept} {query}");
    }
}

#[test]
fn bearers_are_challenged() {
    let ehr = ehr(Vendor::Generic);
    let none = ehr.send(&ehr.request("GET", "/Patient").no_token());
    assert_eq!((none.status, none.header("www-authenticate")), (StatusCode::UNAUTHORIZED, Some("Bearer")));
    let bad = ehr.send(&ehr.request("GET", "/Patient").no_token().header("authorization", "Bearer old"));
    assert_eq!(bad.header("www-authenticate"), Some("Bearer error=\"invalid_token\""));
    assert_eq!(bad.json()["issue"][0]["code"], "login");
}

#[test]
fn search_parameters_select() {
    let ehr = ehr(Vendor::Generic);
    let kermit = ehr.server.patients().into_iter().find(|patient| patient.name.contains("Trantow")).expect("Kermit").id;
    let count = |path: &str| ehr.get(path).json()["total"].as_u64().unwrap_or_else(|| panic!("{path}"));
    for (path, expected) in [
        ("/Patient".to_owned(), 10),
        ("/Patient?family=tran".to_owned(), 1),
        ("/Patient?family:exact=tran".to_owned(), 0),
        ("/Patient?name:contains=antow".to_owned(), 1),
        ("/Patient?name=maria".to_owned(), 1),
        ("/Patient?given=Kermit&family=Trantow".to_owned(), 1),
        ("/Patient?given=Kermit&family=Ritchie".to_owned(), 0),
        ("/Patient?family=Trantow,Ritchie".to_owned(), 2),
        ("/Patient?gender=male&birthdate=1993-06-21".to_owned(), 1),
        ("/Patient?birthdate=1993".to_owned(), 1),
        ("/Patient?birthdate=ge2019".to_owned(), 1),
        ("/Patient?birthdate=ge1993-06-21&birthdate=lt1993-06-22".to_owned(), 1),
        (format!("/Patient?_id={kermit}"), 1),
        (format!("/Patient?_id={kermit},nobody"), 1),
        ("/Patient?death-date:missing=false".to_owned(), 1),
        ("/Patient?identifier=http://hl7.org/fhir/sid/us-ssn|".to_owned(), 10),
        (format!("/AllergyIntolerance?patient={kermit}"), 3),
        (format!("/AllergyIntolerance?patient=Patient/{kermit}&clinical-status=active&category=food&code=91935009"), 1),
        (format!("/AllergyIntolerance?patient={}/Patient/{kermit}", ehr.base), 3),
        (format!("/Observation?subject=Patient/{kermit}&_summary=count"), 44),
        (format!("/Observation?subject:Patient={kermit}&code=http://loinc.org|8302-2&date=2011"), 1),
        (format!("/Observation?patient={kermit}&code:not=8302-2,8867-4&category=nothing"), 0),
        ("/Observation?subject:Patient.family=Trantow".to_owned(), 44),
        ("/Patient?_has:Observation:patient:code=nothing".to_owned(), 0),
        ("/Patient?_has:AllergyIntolerance:patient:category=food".to_owned(), 2),
        ("/Patient?_tag=urn:mantel:simulated-ehr:patient|generic-patient-01".to_owned(), 1),
        ("/Patient?_lastUpdated=gt2027".to_owned(), 0),
        ("/Patient?_lastUpdated=2026-06-01".to_owned(), 10),
        (format!("/Patient/{kermit}/AllergyIntolerance"), 3),
        (format!("/Encounter?patient={kermit}&status=finished&class=AMB,EMER&date=gt1990"), 12),
    ] {
        assert_eq!(count(&path), expected, "{path}");
    }
}

#[test]
fn by_encounter_finds_what_happened_in_it() {
    let ehr = ehr(Vendor::Generic);
    let patient = ehr.patient();
    let condition = ehr.all(&format!("/Condition?patient={patient}")).first().expect("a condition").clone();
    let encounter = condition["encounter"]["reference"].as_str().expect("an encounter").to_owned();
    let found = ehr.all(&format!("/Condition?encounter={encounter}"));
    assert!(ids(&found).contains(&condition["id"].as_str().expect("an id").to_owned()));
    assert!(found.iter().all(|resource| resource["encounter"]["reference"] == encounter.as_str()));
}

#[test]
fn a_wrong_value_is_refused_and_an_unknown_parameter_ignored_unless_strict() {
    let ehr = ehr(Vendor::Generic);
    assert_eq!(ehr.get("/Patient?birthdate=yesterday").status, StatusCode::BAD_REQUEST);
    assert_eq!(ehr.get("/Patient?gender:above=male").status, StatusCode::BAD_REQUEST);
    assert_eq!(ehr.get("/Patient?_count=many").status, StatusCode::BAD_REQUEST);
    let lenient = ehr.get("/Patient?colour=blue&family=Trantow");
    assert_eq!(lenient.matches().len(), 1);
    assert!(!lenient.link("self").expect("a self link").contains("colour"));
    let strict = ehr.request("GET", "/Patient?colour=blue").header("prefer", "handling=strict");
    assert_eq!(ehr.send(&strict).status, StatusCode::BAD_REQUEST);
}

#[test]
fn post_searches_join_query_and_body() {
    let ehr = ehr(Vendor::Generic);
    let request = ehr
        .request("POST", "/Patient/_search?gender=male")
        .body("application/x-www-form-urlencoded", "family=Trantow%2CRitchie");
    let found = ehr.send(&request);
    assert_eq!(found.matches().len(), 1);
    assert_eq!(ehr.send(&request.body("application/json", "{}")).status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

#[test]
fn sorting_orders_and_turns_round() {
    let ehr = ehr(Vendor::Generic);
    let dates = |sort: &str| -> Vec<String> {
        ehr.all(&format!("/Encounter?patient={}&_sort={sort}&_count=10", ehr.patient()))
            .iter()
            .map(|encounter| encounter["period"]["start"].to_string())
            .collect()
    };
    let (up, mut down) = (dates("date"), dates("-date"));
    assert!(up.is_sorted() && up.len() > 20);
    down.reverse();
    assert!(down.is_sorted());
    assert!(ids(&ehr.all("/Patient?_sort=_id")).is_sorted());
    assert!(ehr.all("/Patient?_sort=family").first().expect("a patient")["name"][0]["family"] == "Conn");
}

#[test]
fn pages_are_sessions_below_the_base() {
    let ehr = ehr(Vendor::Generic);
    let patient = ehr.patient();
    let first = ehr.get(&format!("/Procedure?patient={patient}&_count=20"));
    let next = first.link("next").expect("a next link");
    assert!(next.starts_with(&format!("{}?_getpages=", ehr.base)), "{next}");
    let second = ehr.get(&ehr.below(&next));
    let back = ehr.get(&ehr.below(&second.link("previous").expect("a previous link")));
    assert_eq!(back.matches(), first.matches());
    let request = ehr.request("GET", &ehr.below(&next));
    assert_eq!(ehr.send(&request.clone().later(SESSION_LIFE_MS)).status, StatusCode::GONE);
    let closed = request.scopes("patient/Observation.rs", &patient);
    assert_eq!(ehr.send(&closed).status, StatusCode::FORBIDDEN, "the type must be open to the bearer");
    let other = ehr.other_patient();
    let stolen = ehr.send(&ehr.request("GET", &ehr.below(&next)).scopes("patient/*.rs", &other));
    assert_eq!(stolen.matches(), second.matches(), "a session is the opener's: who guards links is the gateway");
}

#[test]
fn a_page_is_never_larger_than_the_server_allows() {
    let small = with(Vendor::Generic, false, Switches { page_size: Some(3), ..Switches::default() });
    assert_eq!(small.get("/Patient").matches().len(), 3);
    assert_eq!(small.get("/Patient?_count=9").matches().len(), 3);
    let none = with(Vendor::Generic, false, Switches { patient_by_id: Some(false), ..Switches::default() });
    assert_eq!(none.get("/Patient?_id=x").status, StatusCode::BAD_REQUEST);
}

#[test]
fn includes_and_reverse_includes_follow_references() {
    let ehr = ehr(Vendor::Generic);
    let patient = ehr.patient();
    let answer = ehr.get(&format!(
        "/DiagnosticReport?patient={patient}&_include=DiagnosticReport:result&_include=DiagnosticReport:patient:Patient"
    ));
    let included = answer.of_mode("include");
    assert!(included.iter().any(|resource| resource["resourceType"] == "Observation"));
    assert_eq!(included.iter().filter(|resource| resource["resourceType"] == "Patient").count(), 1);
    let back =
        ehr.get(&format!("/Patient?_id={patient}&_revinclude=CareTeam:participant&_revinclude=Provenance:target"));
    let teams = back.of_mode("include");
    assert!(!teams.is_empty() && teams.iter().all(|resource| resource["resourceType"] == "CareTeam"));
}

#[test]
fn what_is_cut_says_so() {
    let ehr = ehr(Vendor::Generic);
    let patient = ehr.patient();
    let cut = ehr.get(&format!("/Patient/{patient}?_elements=gender")).json();
    assert_eq!(cut["gender"], ehr.get(&format!("/Patient/{patient}")).json()["gender"]);
    assert!(cut.get("name").is_none());
    assert!(cut["meta"]["tag"].as_array().expect("tags").iter().any(|tag| tag["code"] == "SUBSETTED"));
    let data = ehr.get(&format!("/Patient?_id={patient}&_summary=data")).matches()[0].clone();
    assert!(data.get("text").is_none() && data.get("name").is_some());
    let text = ehr.get(&format!("/Patient?_id={patient}&_summary=text")).matches()[0].clone();
    assert!(text.get("text").is_some() && text.get("name").is_none());
    let count = ehr.get(&format!("/Observation?patient={patient}&_summary=count")).json();
    assert!(count.get("entry").is_none() && count["total"].as_u64() > Some(10));
}

#[test]
fn everything_is_the_compartment_and_whom_it_names() {
    let ehr = ehr(Vendor::Generic);
    let patient = ehr.patient();
    let request = ehr.request("GET", &format!("/Patient/{patient}/$everything?_count=250"));
    let all = ehr.send(&request);
    let types: std::collections::BTreeSet<String> =
        all.matches().iter().map(|resource| resource["resourceType"].to_string()).collect();
    assert!(types.contains("\"Observation\"") && types.contains("\"Practitioner\"") && types.len() > 10, "{types:?}");
    let some = ehr.send(&request.clone().scopes("patient/Patient.r patient/Condition.rs", &patient));
    assert!(
        some.matches()
            .iter()
            .all(|resource| ["Patient", "Condition"].contains(&resource["resourceType"].as_str().expect("a type")))
    );
    let other = ehr.other_patient();
    assert_eq!(ehr.send(&request.scopes("patient/*.rs", &other)).status, StatusCode::NOT_FOUND);
}

#[test]
fn a_binary_comes_raw_or_as_a_resource() {
    let ehr = ehr(Vendor::Generic);
    let document = ehr.get(&format!("/DocumentReference?patient={}", ehr.patient())).matches()[0].clone();
    let url = document["content"][1]["attachment"]["url"].as_str().expect("a URL").to_owned();
    let request = ehr.request("GET", &ehr.below(&url));
    assert_eq!(ehr.send(&request).json()["contentType"], json!("application/pdf"));
    let raw = ehr.send(&request.header("accept", "application/pdf"));
    assert_eq!(raw.header("content-type"), Some("application/pdf"));
    assert!(raw.body.starts_with(b"%PDF-"));
}
