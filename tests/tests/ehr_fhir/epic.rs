//! Epic, points 7 to 10 and `strict`.

use http::StatusCode;
use mantel_tests::ehr::{
    contract::{Switches, Vendor},
    fhir::SESSION_LIFE_MS,
};

use super::client::{ehr, observation, strict, with};

const REQUIRED: &str = r#"{"resourceType":"OperationOutcome","issue":[{"severity":"fatal","code":"required","details":{"coding":[{"system":"urn:oid:1.2.840.114350.1.13.0.1.7.2.657369","code":"59108","display":"A required element is missing."}],"text":"A required element is missing."},"diagnostics":"Must have either code or category.","location":["/f:code/category"],"expression":["code/category"]}]}"#;
const INVALID: &str = r#"{"resourceType":"OperationOutcome","issue":[{"severity":"information","code":"value","details":{"coding":[{"system":"urn:oid:1.2.840.114350.1.13.0.1.7.2.657369","code":"59109","display":"An element value is invalid."}],"text":"An element value is invalid."},"diagnostics":"Invalid category: symptom","location":["/f:category"],"expression":["category"]},{"severity":"fatal","code":"value","details":{"coding":[{"system":"urn:oid:1.2.840.114350.1.13.0.1.7.2.657369","code":"59111","display":"An element value is invalid."}],"text":"An element value is invalid."},"diagnostics":"Required search parameter is provided but has an invalid value","location":["/f:category"],"expression":["category"]}]}"#;
const UNAUTHORIZED_USER: &str = r#"{"resourceType":"OperationOutcome","issue":[{"severity":"fatal","code":"processing","details":{"coding":[{"system":"urn:oid:1.2.840.114350.1.13.0.1.7.2.657369","code":"4118","display":"The authenticated user is not authorized to view the requested data."}],"text":"The authenticated user is not authorized to view the requested data."}}]}"#;
const EXPIRED: &str = r#"{"resourceType":"OperationOutcome","issue":[{"severity":"fatal","code":"processing","details":{"coding":[{"system":"urn:oid:1.2.840.114350.1.13.0.1.7.2.657369","code":"4113","display":"Session ID for cached search results has expired."}],"text":"Session ID for cached search results has expired."}}]}"#;
const NOTHING: &str = r#"{"resourceType":"OperationOutcome","issue":[{"severity":"warning","code":"processing","details":{"coding":[{"system":"urn:oid:1.2.840.114350.1.13.0.1.7.2.657369","code":"4101","display":"Resource request returns no results."}],"text":"Resource request returns no results."}},{"severity":"warning","code":"processing","details":{"coding":[{"system":"urn:oid:1.2.840.114350.1.13.0.1.7.2.657369","code":"4119","display":"This response includes information available to the authorized user at the time of the request. It may not contain the entire record available in the system."}],"text":"This response includes information available to the authorized user at the time of the request. It may not contain the entire record available in the system."}}]}"#;

#[test]
fn an_api_not_ticked_is_an_empty_403() {
    let ehr = ehr(Vendor::Epic);
    let patient = ehr.patient();
    let request = ehr.request("GET", &format!("/Condition?patient={patient}"));
    let answer = ehr.send(&request.scopes("patient/Observation.rs", &patient));
    assert_eq!((answer.status, answer.text().as_str()), (StatusCode::FORBIDDEN, ""));
    assert_eq!(
        answer.header("www-authenticate"),
        Some(
            "Bearer error=\"insufficient_scope\", error_description=\"The access token provided is valid, but is not authorized for this service\""
        )
    );
    assert_eq!(answer.header("content-type"), None);
}

#[test]
fn read_and_search_are_entitlements_apart() {
    let ehr = ehr(Vendor::Epic);
    let patient = ehr.patient();
    let status = |scopes, path: String| ehr.send(&ehr.request("GET", &path).scopes(scopes, &patient)).status;
    let (read, search) = (format!("/Patient/{patient}"), format!("/Condition?patient={patient}"));
    assert_eq!(status("patient/Patient.r patient/Condition.r", read.clone()), StatusCode::OK);
    assert_eq!(status("patient/Patient.r patient/Condition.r", search.clone()), StatusCode::FORBIDDEN);
    assert_eq!(status("patient/Condition.Search patient/Patient.s", search.clone()), StatusCode::OK);
    assert_eq!(status("patient/Patient.s", read.clone()), StatusCode::FORBIDDEN);
    assert_eq!(status("patient/Condition.Read Patient.read ", search), StatusCode::OK);
    assert_eq!(status("Patient.read", read), StatusCode::OK);
}

#[test]
fn a_user_without_rights_is_told_so() {
    let ehr = ehr(Vendor::Epic);
    let (own, other) = (ehr.patient(), ehr.other_patient());
    for path in [
        format!("/Patient/{other}"),
        format!("/Encounter/{}", ehr.server.encounters(&other).first().expect("an encounter")),
        format!("/Condition?patient={other}"),
        format!("/Condition?subject=Patient/{other}"),
    ] {
        let answer = ehr.send(&ehr.request("GET", &path).scopes("patient/*.rs", &own));
        assert_eq!((answer.status, answer.text().as_str()), (StatusCode::FORBIDDEN, UNAUTHORIZED_USER), "{path}");
    }
}

#[test]
fn a_bad_bearer_is_an_empty_401() {
    let ehr = ehr(Vendor::Epic);
    let answer = ehr.send(&ehr.request("GET", "/Patient/x").no_token().header("authorization", "Bearer old"));
    assert_eq!((answer.status, answer.text().as_str()), (StatusCode::UNAUTHORIZED, ""));
    assert_eq!(answer.header("www-authenticate"), Some("Bearer error=\"invalid_token\""));
}

#[test]
fn observations_need_a_category_or_a_code() {
    let ehr = ehr(Vendor::Epic);
    let patient = ehr.patient();
    let bare = ehr.get(&format!("/Observation?patient={patient}"));
    assert_eq!((bare.status, bare.text().as_str()), (StatusCode::BAD_REQUEST, REQUIRED));
    let invalid = ehr.get(&format!("/Observation?patient={patient}&category=symptom"));
    assert_eq!((invalid.status, invalid.text().as_str()), (StatusCode::BAD_REQUEST, INVALID));
    for category in ["procedure", "therapy", "activity"] {
        let answer = ehr.get(&format!("/Observation?patient={patient}&category={category}"));
        assert_eq!(answer.codes(), ["59109", "59111"], "{category}");
    }
    let some = ehr.get(&format!("/Observation?patient={patient}&category=laboratory,symptom"));
    assert_eq!(some.codes(), ["59109", "4119"]);
    assert!(!some.matches().is_empty());
    for query in ["category=vital-signs", "code=8302-2", "code=http://loinc.org|8302-2"] {
        let answer = ehr.get(&format!("/Observation?patient={patient}&{query}"));
        assert!(!answer.matches().is_empty(), "{query}: {}", answer.text());
    }
    let id = ehr.get(&format!("/Observation?patient={patient}&category=vital-signs")).matches()[0]["id"].clone();
    assert_eq!(ehr.get(&format!("/Observation?_id={}", id.as_str().expect("an id"))).matches().len(), 1);
}

#[test]
fn a_patient_search_does_not_take_patient() {
    let ehr = ehr(Vendor::Epic);
    let answer = ehr.get(&format!("/Patient?patient={}", ehr.patient()));
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(answer.codes(), ["59100", "59108"]);
    assert_eq!(answer.json()["issue"][0]["diagnostics"], "Unknown parameter: PATIENT. Parameter has been ignored.");
    assert_eq!(ehr.get("/Patient").status, StatusCode::BAD_REQUEST);
    assert_eq!(ehr.get("/Condition?clinical-status=active").codes(), ["59108"], "no patient");
}

#[test]
fn an_unknown_parameter_is_ignored_and_named() {
    let ehr = ehr(Vendor::Epic);
    let patient = ehr.patient();
    let answer = ehr.get(&format!("/Condition?patient={patient}&_lastUpdated=gt2020&colour=blue"));
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.codes(), ["59100", "59100", "4119"]);
    assert_eq!(answer.matches().len(), ehr.get(&format!("/Condition?patient={patient}")).matches().len());
    assert!(!answer.link("self").expect("a self link").contains("colour"));
}

#[test]
fn nothing_found_is_one_outcome_entry() {
    let ehr = ehr(Vendor::Epic);
    let answer = ehr.get(&format!("/Condition?patient={}&code=nothing", ehr.patient()));
    assert_eq!(answer.status, StatusCode::OK);
    let (bundle, entries) = (answer.json(), answer.entries());
    assert_eq!((bundle["total"].as_u64(), entries.len()), (Some(0), 1));
    assert_eq!(entries[0]["search"]["mode"], "outcome");
    assert!(entries[0]["fullUrl"].as_str().expect("a URL").starts_with("urn:uuid:"));
    assert_eq!(entries[0]["resource"].to_string(), NOTHING);
}

#[test]
fn every_patient_answer_carries_4119_and_others_do_not() {
    let ehr = ehr(Vendor::Epic);
    let patient = ehr.patient();
    for path in [format!("/Encounter?patient={patient}"), format!("/Patient?_id={patient}")] {
        assert_eq!(ehr.get(&path).codes(), ["4119"], "{path}");
    }
    assert_eq!(ehr.get("/Practitioner?name=a").codes(), Vec::<String>::new());
}

#[test]
fn more_than_a_hundred_patients_are_too_many() {
    let ehr = ehr(Vendor::Epic);
    let ids: Vec<String> = (0..101).map(|number| format!("e{number}")).collect();
    let many = ehr.get(&format!("/Patient?_id={}", ids.join(",")));
    assert_eq!((many.status, many.codes()), (StatusCode::BAD_REQUEST, vec!["4127".to_owned()]));
    assert_eq!(ehr.get(&format!("/Patient?_id={}", ids[..100].join(","))).codes(), ["4101", "4119"]);
}

#[test]
fn pages_are_sessions_that_die_after_ten_minutes() {
    let ehr = ehr(Vendor::Epic);
    let first = ehr.get(&format!("/Encounter?patient={}&_count=5", ehr.patient()));
    let next = first.link("next").expect("a next link");
    assert!(next.starts_with(&format!("{}?sessionID=", ehr.base)), "{next} names no type");
    assert_eq!(first.json()["total"], 5);
    let request = ehr.request("GET", &ehr.below(&next));
    let second = ehr.send(&request.clone().later(SESSION_LIFE_MS - 1));
    assert_eq!(second.matches().len(), 5);
    assert_ne!(second.matches(), first.matches());
    let typed = ehr.request("GET", &ehr.below(&next).replace('?', "/Encounter?"));
    assert_eq!(ehr.send(&typed).matches(), second.matches(), "a type in the URL does no harm");
    let late = ehr.send(&request.later(SESSION_LIFE_MS));
    assert_eq!((late.status, late.text().as_str()), (StatusCode::BAD_REQUEST, EXPIRED));
}

#[test]
fn an_id_voids_all_other_criteria() {
    let ehr = ehr(Vendor::Epic);
    let (own, other) = (ehr.patient(), ehr.other_patient());
    let condition = ehr.get(&format!("/Condition?patient={other}")).matches()[0]["id"].clone();
    let id = condition.as_str().expect("an id");
    let found = ehr.get(&format!("/Condition?patient={own}&_id={id}&code=nothing&colour=blue"));
    assert_eq!(found.matches().len(), 1, "another patient's: patient is void");
    assert_eq!(found.codes(), ["4119"]);
    assert!(!found.link("self").expect("a self link").contains("patient"));
}

#[test]
fn of_query_and_body_one_is_void() {
    let (lenient, strict) = (ehr(Vendor::Epic), strict(Vendor::Epic));
    let (own, other) = (lenient.patient(), lenient.other_patient());
    let subject = |ehr: &super::client::Ehr| {
        let request = ehr
            .request("POST", &format!("/Condition/_search?patient={own}"))
            .body("application/x-www-form-urlencoded", format!("patient={other}"));
        ehr.send(&request).matches()[0]["subject"]["reference"].clone()
    };
    assert_eq!(subject(&lenient), format!("Patient/{other}"), "since February 2026 the body counts");
    assert_eq!(subject(&strict), format!("Patient/{own}"), "before, the query did");
    let alone = lenient
        .request("POST", "/Condition/_search")
        .body("application/x-www-form-urlencoded", format!("patient={own}"));
    assert!(!lenient.send(&alone).matches().is_empty());
}

#[test]
fn a_merged_patient_is_a_redirect() {
    let ehr = ehr(Vendor::Epic);
    let (from, into) = ehr.server.merged_patient().expect("a merged patient");
    let answer = ehr.get(&format!("/Patient/{from}"));
    assert_eq!(answer.status, StatusCode::MOVED_PERMANENTLY);
    assert_eq!(answer.header("location"), Some(format!("{}/Patient/{into}", ehr.base).as_str()));
    assert_eq!(answer.codes(), ["4107"]);
    let other = ehr.other_patient();
    let stranger = ehr.send(&ehr.request("GET", &format!("/Patient/{from}")).scopes("patient/*.rs", &other));
    assert_eq!(stranger.text(), UNAUTHORIZED_USER);
}

#[test]
fn batch_patch_history_and_everything_are_not_there() {
    let ehr = ehr(Vendor::Epic);
    let patient = ehr.patient();
    let batch = serde_json::json!({"resourceType": "Bundle", "type": "batch", "entry": []});
    for request in [
        ehr.request("POST", "/").json(&batch),
        ehr.request("PATCH", &format!("/Patient/{patient}")).body("application/json-patch+json", "[]"),
        ehr.request("GET", &format!("/Patient/{patient}/_history")),
        ehr.request("GET", &format!("/Patient/{patient}/_history/1")),
        ehr.request("GET", &format!("/Patient/{patient}/$everything")),
        ehr.request("DELETE", &format!("/Patient/{patient}")),
        ehr.request("GET", "/InsurancePlan"),
        ehr.request("POST", "/MedicationStatement/_search").body("application/x-www-form-urlencoded", "patient=x"),
    ] {
        let answer = ehr.send(&request);
        assert_eq!((answer.status, answer.header("content-type")), (StatusCode::NOT_FOUND, Some("text/html")));
        assert!(answer.text().contains("<h2>404 - File or directory not found.</h2>"));
    }
}

#[test]
fn the_strict_one_has_no_patient_by_id() {
    let strict = strict(Vendor::Epic);
    let by_id = strict.get(&format!("/Patient?_id={}", strict.patient()));
    assert_eq!((by_id.status, by_id.codes()), (StatusCode::BAD_REQUEST, vec!["59108".to_owned()]));
    assert_eq!(strict.get(&format!("/Patient/{}", strict.patient())).status, StatusCode::OK);
    let switched = with(Vendor::Epic, true, Switches { patient_by_id: Some(true), ..Switches::default() });
    assert_eq!(switched.get(&format!("/Patient?_id={}", switched.patient())).matches().len(), 1);
    let plan = strict.get(&format!("/CarePlan?patient={}", strict.patient()));
    assert_eq!(plan.codes(), ["59159"]);
    assert!(!strict.get(&format!("/CarePlan?patient={}&category=38717003", strict.patient())).matches().is_empty());
}

#[test]
fn metadata_is_xml_unless_json_is_asked_for() {
    let ehr = ehr(Vendor::Epic);
    let request = ehr.request("GET", "/metadata").no_token();
    for request in [request.clone().without("accept"), request.clone().header("accept", "*/*")] {
        let answer = ehr.send(&request);
        assert_eq!(answer.header("content-type"), Some("application/fhir+xml; charset=utf-8"));
        assert!(answer.text().contains("<CapabilityStatement xmlns=\"http://hl7.org/fhir\">"));
    }
    let asked = ehr.send(&request.without("accept").raw_query("_format=json"));
    assert_eq!(asked.json()["software"]["name"], "Epic");
}

#[test]
fn answers_wear_what_was_recorded() {
    let ehr = ehr(Vendor::Epic);
    let request = ehr.request("GET", &format!("/Patient/{}", ehr.patient()));
    let answer = ehr.send(&request);
    assert_eq!(answer.header("content-type"), Some("application/fhir+json; charset=utf-8"));
    assert_eq!((answer.header("etag"), answer.header("e-tag")), (None, Some("52864728")));
    assert!(answer.header("set-cookie").is_some(), "a cookie that must not reach an app");
    let meta = &answer.json()["meta"];
    assert!(meta.get("versionId").is_none() && meta.get("lastUpdated").is_none());
    let old = ehr.send(&request.header("accept", "application/json+fhir"));
    assert_eq!(old.header("content-type"), Some("application/json+fhir; charset=utf-8"));
}

#[test]
fn a_create_is_a_201_without_a_body() {
    let ehr = ehr(Vendor::Epic);
    let patient = ehr.patient();
    let answer = ehr.send(&ehr.request("POST", "/Observation").json(&observation(&patient)));
    assert_eq!((answer.status, answer.text().as_str()), (StatusCode::CREATED, ""));
    let path = ehr.below(answer.header("location").expect("a location"));
    let created = ehr.get(&path).json();
    assert_eq!(created["meta"]["tag"][0]["code"], ehr.server.mark(&patient).expect("a mark"));
    let mut update = created;
    update["status"] = "amended".into();
    assert_eq!(ehr.send(&ehr.request("PUT", &path).json(&update)).status, StatusCode::OK);
    assert_eq!(ehr.get(&path).json()["status"], "amended");
    assert_eq!(
        ehr.send(&ehr.request("POST", "/Observation").json(&serde_json::json!({}))).status,
        StatusCode::BAD_REQUEST
    );
}

#[test]
fn an_include_brings_what_the_token_opens() {
    let ehr = ehr(Vendor::Epic);
    let patient = ehr.patient();
    let request = ehr.request("GET", &format!("/Condition?patient={patient}&_include=Condition:encounter&_include=*"));
    let all = ehr.send(&request);
    assert!(all.of_mode("include").iter().any(|resource| resource["resourceType"] == "Encounter"));
    let some = ehr.send(&request.scopes("patient/Condition.rs patient/Patient.r", &patient));
    let types: Vec<String> =
        some.of_mode("include").iter().map(|resource| resource["resourceType"].to_string()).collect();
    assert_eq!(types, ["\"Patient\""]);
}
