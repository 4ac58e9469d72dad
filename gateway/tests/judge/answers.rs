//! What of an answer leaves.

use std::sync::Arc;

use mantel::proxy::judge::{Authorized, Inspection, Judged, Mode};
use mantel_adapters::fhir::inspect::{Ending, Inspector, Verdict};
use serde_json::{Value, json};

use crate::setup::{Ehr::*, Sent, Setting, World};

fn inspection(authorized: &Authorized) -> Arc<Inspection> {
    match authorized.mode() {
        Mode::Inspect(inspection) => inspection.clone(),
        Mode::Stream => panic!("streams"),
    }
}

fn keeps(scopes: &str, line: &str, resource: &Value) -> bool {
    let world = World::new(scopes, Silent);
    inspection(&world.authorized(line)).verdict(resource.to_string().as_bytes()) == Verdict::Keep
}

fn observation(id: &str, patient: &str, category: &str) -> Value {
    json!({"resourceType": "Observation", "id": id, "subject": {"reference": patient},
        "category": [{"coding": [{"system": "http://s", "code": category}]}]})
}

#[test]
fn a_read_shows_the_resource_that_was_asked_for_if_it_is_ours() {
    let read = "GET Observation/1";
    let rows = [
        ("patient/Observation.r", observation("1", "Patient/p1", "a"), true),
        ("patient/Observation.r", observation("1", "https://ehr.example/r4/Patient/p1", "a"), true),
        ("patient/Observation.r", observation("1", "https://other.ehr.example/r4/Patient/p1", "a"), true),
        ("patient/Observation.r", observation("1", "Patient/p2", "a"), false),
        ("patient/Observation.r", observation("1", "https://elsewhere.example/Patient/p1", "a"), false),
        ("patient/Observation.r", observation("2", "Patient/p1", "a"), false),
        ("patient/*.r", json!({"resourceType": "Condition", "id": "1", "subject": {"reference": "Patient/p1"}}), false),
        ("patient/Observation.r", json!({"resourceType": "Observation", "id": "1"}), false),
        ("patient/Observation.r", json!({"resourceType": "OperationOutcome"}), true),
        (
            "patient/Observation.r",
            json!({"resourceType": "OperationOutcome", "contained": [{"resourceType": "Patient"}]}),
            false,
        ),
        ("patient/Observation.r", json!([1]), false),
        ("patient/Observation.r?category=a", observation("1", "Patient/p1", "a"), true),
        ("patient/Observation.r?category=http://s|a", observation("1", "Patient/p1", "a"), true),
        ("patient/Observation.r?category=b", observation("1", "Patient/p1", "a"), false),
        ("patient/Observation.r?category=a", observation("1", "Patient/p2", "a"), false),
        ("user/Observation.r?category=a", observation("1", "Patient/p2", "a"), true),
        ("user/Observation.r?category=b", observation("1", "Patient/p2", "a"), false),
        ("patient/Observation.r user/Observation.r?category=a", observation("1", "Patient/p2", "a"), true),
        ("patient/Observation.r user/Observation.r?category=a", observation("1", "Patient/p2", "b"), false),
        ("patient/Observation.r user/Observation.r?category=a", observation("1", "Patient/p1", "b"), true),
    ];
    for (scopes, resource, expected) in rows {
        assert_eq!(keeps(scopes, read, &resource), expected, "{scopes} {resource}");
    }
    let mut two = observation("1", "Patient/p1", "a");
    two["category"].as_array_mut().unwrap().push(json!({"coding": [{"code": "b"}]}));
    assert!(keeps("patient/Observation.r?category=b", read, &two), "visible through the granted one of its categories");
}

/// Ids of what is left of a searchset.
fn left(scopes: &str, line: &str, entries: &[Value]) -> Vec<String> {
    let world = World::new(scopes, Silent);
    let entries: Vec<Value> = entries.iter().map(|resource| json!({"resource": resource})).collect();
    let bundle = json!({"resourceType": "Bundle", "type": "searchset", "total": entries.len(), "entry": entries});
    let mut out = bytes::BytesMut::new();
    let mut inspector = Inspector::new(inspection(&world.authorized(line)).watch());
    inspector.push(bundle.to_string().as_bytes(), &mut out).unwrap();
    let ending = inspector.finish(&mut out).unwrap();
    assert!(matches!(ending, Ending::Bundle { .. }));
    let passed: Value = serde_json::from_slice(&out).unwrap();
    assert!(passed.get("total").is_none());
    let none = Vec::new();
    let left = passed["entry"].as_array().unwrap_or(&none);
    left.iter().map(|entry| entry["resource"]["id"].as_str().unwrap_or("-").to_owned()).collect()
}

#[test]
fn a_search_shows_its_hits_and_what_may_be_read() {
    let entries = [
        observation("o1", "Patient/p1", "a"),
        observation("o2", "Patient/p2", "a"),
        json!({"resourceType": "Patient", "id": "p1"}),
        json!({"resourceType": "Patient", "id": "p2"}),
        json!({"resourceType": "Practitioner", "id": "x"}),
        json!({"resourceType": "Condition", "id": "c1", "subject": {"reference": "Patient/p1"}}),
        json!({"resourceType": "Binary", "id": "b"}),
        json!({"resourceType": "Bundle", "id": "d"}),
        json!({"resourceType": "OperationOutcome", "id": "w"}),
        json!({"resourceType": "Observation", "id": "o3", "subject": {"reference": "Patient/p1"},
            "contained": [{"resourceType": "Patient", "id": "p2"}]}),
    ];
    let rows: [(&str, &str, &[&str]); 6] = [
        ("patient/Observation.s", "GET Observation", &["o1", "w"]),
        (
            "patient/Observation.rs patient/Patient.r",
            "GET Observation?_include=Observation:patient",
            &["o1", "p1", "w"],
        ),
        ("patient/Observation.rs patient/Patient.s", "GET Observation", &["o1", "w"]),
        ("patient/*.rs", "GET Observation", &["o1", "p1", "x", "c1", "w"]),
        (
            "user/Observation.rs patient/Patient.r",
            "GET Observation?_include=Observation:performer",
            &["o1", "o2", "p1", "w", "o3"],
        ),
        ("patient/Observation.rs?category=b", "GET Observation", &["w"]),
    ];
    for (scopes, line, expected) in rows {
        assert_eq!(left(scopes, line, &entries), expected, "{scopes} {line}");
    }
}

#[test]
fn a_provenance_passes_with_what_it_is_about() {
    let provenance = |id: &str, targets: &[&str]| {
        let targets: Vec<Value> = targets.iter().map(|target| json!({"reference": target})).collect();
        json!({"resourceType": "Provenance", "id": id, "target": targets})
    };
    let entries = [
        observation("o1", "Patient/p1", "a"),
        observation("o2", "Patient/p2", "a"),
        provenance("v1", &["Observation/o1"]),
        provenance("v2", &["Observation/o2"]),
        provenance("v3", &["Observation/o1", "Observation/o2"]),
        provenance("v4", &["Patient/p1"]),
    ];
    let line = "GET Observation?_revinclude=Provenance:target";
    assert_eq!(left("patient/Observation.rs patient/Provenance.r", line, &entries), ["o1", "v1", "v4"]);
}

#[test]
fn a_history_shows_versions_of_its_resource_only() {
    let world = World::new("patient/Observation.r", Silent);
    let mut out = bytes::BytesMut::new();
    let history = json!({"resourceType": "Bundle", "type": "history", "entry": [
        {"resource": observation("1", "Patient/p1", "a")},
        {"resource": observation("1", "Patient/p2", "a")},
        {"resource": observation("2", "Patient/p1", "a")},
        {"request": {"method": "DELETE", "url": "Observation/1"}, "response": {"status": "204"}},
    ]});
    let mut inspector = Inspector::new(inspection(&world.authorized("GET Observation/1/_history")).watch());
    inspector.push(history.to_string().as_bytes(), &mut out).unwrap();
    assert_eq!(inspector.finish(&mut out).unwrap(), Ending::Bundle { dropped: 3 });
}

#[test]
fn an_operator_s_inspection_of_open_grants_lets_what_is_granted_pass() {
    let world = World::with(Setting::SiteInspects, "user/Observation.rs", Silent);
    let inspection = inspection(&world.authorized("GET Observation?_sort=date"));
    assert_eq!(inspection.verdict(observation("1", "Patient/p2", "a").to_string().as_bytes()), Verdict::Keep);
    assert_eq!(inspection.verdict(br#"{"resourceType":"Patient","id":"p1"}"#), Verdict::Drop);
}

#[test]
fn a_write_s_answer_is_held_to_what_was_written() {
    let world = World::new("patient/Observation.c", Silent);
    let sent = Sent::new("POST Observation").json(&observation("1", "Patient/p1", "a").to_string());
    let Ok(Judged::Forward(authorized)) = world.judge(&sent) else { panic!() };
    let inspection = inspection(&authorized);
    assert!(!inspection.is_by_id());
    assert_eq!(inspection.verdict(observation("9", "Patient/p1", "a").to_string().as_bytes()), Verdict::Keep);
    assert_eq!(inspection.verdict(observation("9", "Patient/p2", "a").to_string().as_bytes()), Verdict::Drop);
}

#[test]
fn reads_by_id_are_told_apart() {
    let world = World::new("patient/*.rs", Silent);
    for (line, by_id) in [("GET Observation/1", true), ("GET Observation/1/_history", true), ("GET Observation", false)]
    {
        assert_eq!(inspection(&world.authorized(line)).is_by_id(), by_id, "{line}");
    }
}
