//! What a token opens, in every dialect, at the EHR's own judge.

use http::StatusCode;
use mantel_tests::ehr::{contract::Vendor, fhir::MARK_SYSTEM};
use serde_json::Value;

use super::client::{ehr, observation, token};

#[test]
fn scopes_are_read_in_every_dialect() {
    let ehr = ehr(Vendor::Generic);
    let patient = ehr.patient();
    let may = |scopes: &str, path: &str| {
        ehr.send(&ehr.request("GET", path).scopes(scopes, &patient)).status == StatusCode::OK
    };
    let (read, search) = (format!("/Patient/{patient}"), "/Patient".to_owned());
    for (scopes, reads, searches) in [
        ("patient/Patient.read", true, true),
        ("patient/Patient.*", true, true),
        ("patient/*.read", true, true),
        ("patient/*.*", true, true),
        ("patient/Patient.rs", true, true),
        ("patient/Patient.cruds", true, true),
        ("patient/Patient.r", true, false),
        ("patient/Patient.s", false, true),
        ("patient/patient.read", true, true),
        ("patient/PATIENT.Read", true, true),
        ("user/Patient.rs", true, true),
        ("system/*.rs", true, true),
        ("patient/Patient.r patient/Patient.s", true, true),
        ("patient/Patient.write", false, false),
        ("patient/Patient.cud", false, false),
        ("patient/Observation.rs", false, false),
        ("patient/Patient.rx", false, false),
        ("patient/Patient.", false, false),
        ("launch/patient openid fhirUser", false, false),
        ("guest/Patient.rs", false, false),
        ("", false, false),
    ] {
        assert_eq!((may(scopes, &read), may(scopes, &search)), (reads, searches), "{scopes}");
    }
}

#[test]
fn patient_scopes_confine_and_user_scopes_do_not() {
    let ehr = ehr(Vendor::Generic);
    let (own, other) = (ehr.patient(), ehr.other_patient());
    let mark = ehr.server.mark(&own).expect("a mark");
    for ty in ["Observation", "Condition", "Encounter", "Procedure", "Patient", "DocumentReference", "CareTeam"] {
        let request = ehr.request("GET", &format!("/{ty}?_count=250"));
        let confined = ehr.send(&request.clone().scopes("patient/*.rs", &own)).matches();
        assert!(!confined.is_empty(), "{ty}");
        for resource in &confined {
            let tags = resource["meta"]["tag"].as_array().expect("tags");
            assert!(tags.iter().any(|tag| tag["system"] == MARK_SYSTEM && tag["code"] == mark.as_str()), "{ty}");
        }
        let all = ehr.send(&request.scopes("patient/*.rs user/*.rs", &own)).json()["total"].as_u64();
        assert!(all > Some(confined.len() as u64), "{ty}: a wider token sees more");
    }
    let status = |path: String, scopes| ehr.send(&ehr.request("GET", &path).scopes(scopes, &own)).status;
    assert_eq!(status(format!("/Patient/{other}"), "patient/*.rs"), StatusCode::NOT_FOUND);
    assert_eq!(status(format!("/Patient/{other}"), "user/*.rs"), StatusCode::OK);
}

#[test]
fn a_patient_scope_without_a_patient_opens_nothing() {
    let ehr = ehr(Vendor::Generic);
    let answer = ehr.send(&ehr.request("GET", "/Patient").token(token("patient/*.rs", None)));
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert_eq!(answer.header("www-authenticate"), Some("Bearer error=\"insufficient_scope\""));
}

#[test]
fn people_and_places_belong_to_no_patient() {
    let ehr = ehr(Vendor::Generic);
    let practitioner = ehr.server.practitioners().first().expect("a practitioner").id.clone();
    let answer = ehr.send(
        &ehr.request("GET", &format!("/Practitioner/{practitioner}")).scopes("patient/Practitioner.r", &ehr.patient()),
    );
    assert_eq!(answer.status, StatusCode::OK);
}

#[test]
fn a_hidden_record_looks_like_none_at_a_plain_server() {
    let ehr = ehr(Vendor::Generic);
    let (own, other) = (ehr.patient(), ehr.other_patient());
    let ask = |id: &str| ehr.send(&ehr.request("GET", &format!("/Patient/{id}")).scopes("patient/*.rs", &own));
    let (hidden, missing) = (ask(&other), ask("00000000-0000-0000-0000-000000000000"));
    assert_eq!(hidden.status, missing.status);
    assert_eq!(hidden.text().replace(&other, "x"), missing.text().replace("00000000-0000-0000-0000-000000000000", "x"));
}

#[test]
fn query_scopes_hold_for_reads_searches_and_writes() {
    let ehr = ehr(Vendor::Generic);
    let patient = ehr.patient();
    let category = "http://terminology.hl7.org/CodeSystem/observation-category|laboratory";
    let scopes = format!("patient/Observation.cruds?category={category}");
    let request = |method: &str, path: &str| ehr.request(method, path).scopes(&scopes, &patient);
    let found = ehr.send(&request("GET", "/Observation?_count=250")).matches();
    assert!(!found.is_empty());
    assert!(found.iter().all(|resource| resource["category"][0]["coding"][0]["code"] == "laboratory"));
    let vital = ehr.get(&format!("/Observation?patient={patient}&category=vital-signs")).matches()[0].clone();
    let vital = vital["id"].as_str().expect("an id");
    assert_eq!(ehr.send(&request("GET", &format!("/Observation/{vital}"))).status, StatusCode::NOT_FOUND);
    assert_eq!(ehr.send(&request("DELETE", &format!("/Observation/{vital}"))).status, StatusCode::NOT_FOUND);
    assert_eq!(ehr.send(&request("POST", "/Observation").json(&observation(&patient))).status, StatusCode::FORBIDDEN);
    let mut lab: Value = found[0].clone();
    lab["category"][0]["coding"][0]["code"] = "vital-signs".into();
    let path = format!("/Observation/{}", lab["id"].as_str().expect("an id"));
    assert_eq!(ehr.send(&request("PUT", &path).json(&lab)).status, StatusCode::FORBIDDEN, "nor may it leave the scope");
}

#[test]
fn a_binary_belongs_to_its_documents_patient() {
    for vendor in [Vendor::Epic, Vendor::Oracle, Vendor::AthenaPractice, Vendor::Generic] {
        let ehr = ehr(vendor);
        let (own, other) = (ehr.patient(), ehr.other_patient());
        let read = |patient: &str| {
            let document = ehr.get(&format!("/DocumentReference?patient={patient}")).matches()[0].clone();
            let url = document["content"][0]["attachment"]["url"].as_str().expect("a URL").to_owned();
            ehr.send(&ehr.request("GET", &ehr.below(&url)).scopes("patient/Binary.read", &own)).status
        };
        assert_eq!(read(&own), StatusCode::OK, "{vendor:?}");
        assert_ne!(read(&other), StatusCode::OK, "{vendor:?}");
    }
}

#[test]
fn writes_stay_in_the_compartment() {
    for vendor in [Vendor::Epic, Vendor::Oracle, Vendor::Generic] {
        let ehr = ehr(vendor);
        let (own, other) = (ehr.patient(), ehr.other_patient());
        let create = |patient: &str| {
            ehr.send(&ehr.request("POST", "/Observation").json(&observation(patient)).scopes("patient/*.cruds", &own))
                .status
        };
        assert_eq!(create(&own), StatusCode::CREATED, "{vendor:?}");
        assert_eq!(create(&other), StatusCode::FORBIDDEN, "{vendor:?}");
    }
}
