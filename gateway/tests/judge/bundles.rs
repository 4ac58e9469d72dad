//! Batches and transactions.

use mantel::{
    error::{Error, Kind},
    proxy::judge::{Authorized, EntryJudgement, JudgedBundle, Mode, judge_bundle},
};
use mantel_adapters::fhir::{
    inspect::{Ending, Inspector},
    interaction::BundleKind,
};
use serde_json::{Value, json};

use crate::setup::{Ehr::*, Sent, World, described, status};

fn bundle(kind: &str, entries: &[Value]) -> String {
    json!({"resourceType": "Bundle", "type": kind, "entry": entries}).to_string()
}

fn judged(world: &World, body: &str) -> Result<JudgedBundle, Error> {
    let (request, _) = Sent::new("POST ").json(body).classify();
    judge_bundle(&world.case(), &request)
}

fn verdicts(world: &World, entries: &[Value]) -> Vec<String> {
    let judged = judged(world, &bundle("batch", entries)).unwrap();
    let verdict = |judgement: &EntryJudgement| match judgement {
        EntryJudgement::Forward(authorized) => described(authorized),
        EntryJudgement::ReadFirst { .. } => "read-first".into(),
        EntryJudgement::Refused(error) => status(error).to_string(),
    };
    judged.entries.iter().map(|entry| verdict(&entry.judgement)).collect()
}

fn get(url: &str) -> Value {
    json!({"request": {"method": "GET", "url": url}})
}

#[test]
fn each_entry_of_a_batch_is_judged_by_itself() {
    let condition = |patient: &str| json!({"resourceType": "Condition", "subject": {"reference": patient}});
    let rows = [
        (get("Condition?patient=p1"), "inspect Condition?patient=p1"),
        (get("/Condition"), "inspect Condition?patient=p1"),
        (get("https://mantel.example/fhir/r4/Condition/1"), "inspect Condition/1"),
        (get("https://ehr.example/r4/Condition/1"), "inspect Condition/1"),
        (get("https://elsewhere.example/Condition/1"), "400"),
        (get("Condition?patient=p2"), "403"),
        (get("Patient/p2"), "403"),
        (get("Observation/1"), "403"),
        (get("Condition/../Patient/p2"), "400"),
        (get("Condition/1#a"), "400"),
        (get("Condition?access_token=a"), "400"),
        (get("metadata"), "403"),
        (get("?_getpages=a"), "403"),
        (json!({"request": {"method": "get", "url": "Condition/1"}}), "400"),
        (
            json!({"request": {"method": "POST", "url": "Condition"}, "resource": condition("Patient/p1")}),
            "inspect Condition",
        ),
        (json!({"request": {"method": "POST", "url": "Condition"}, "resource": condition("Patient/p2")}), "403"),
        (
            json!({"request": {"method": "POST", "url": "Condition", "ifNoneExist": "code=1"}, "resource": condition("Patient/p1")}),
            "inspect Condition",
        ),
        (
            json!({"request": {"method": "POST", "url": "Condition", "ifNoneExist": "patient=p2"}, "resource": condition("Patient/p1")}),
            "403",
        ),
        (json!({"request": {"method": "POST", "url": "Patient"}, "resource": condition("Patient/p1")}), "403"),
        (json!({"request": {"method": "DELETE", "url": "Condition/1"}}), "read-first"),
        (
            json!({"request": {"method": "POST", "url": ""}, "resource": {"resourceType": "Bundle", "type": "batch"}}),
            "403",
        ),
        (json!({"request": {"method": "POST", "url": "Bundle"}, "resource": {"resourceType": "Bundle"}}), "403"),
        (json!({"request": ["GET", "Condition/1"]}), "400"),
        (json!({"resource": condition("Patient/p1")}), "400"),
        (json!([]), "400"),
        // A conditional reference is a search too.
        (
            json!({"request": {"method": "POST", "url": "Condition"}, "resource": {
            "resourceType": "Condition", "subject": {"reference": "Patient/p1"},
            "asserter": {"reference": "Practitioner?identifier=1"}}}),
            "403",
        ),
    ];
    let world = World::new("patient/Condition.cruds patient/Patient.rs", Silent);
    let entries: Vec<Value> = rows.iter().map(|(entry, _)| entry.clone()).collect();
    for ((entry, expected), found) in rows.iter().zip(verdicts(&world, &entries)) {
        assert_eq!(found, *expected, "{entry}");
    }
}

#[test]
fn conditional_references_are_searches() {
    let entry = |reference: &str| {
        json!({"request": {"method": "POST", "url": "Condition"}, "resource": {
            "resourceType": "Condition", "subject": {"reference": "Patient/p1"}, "encounter": {"reference": reference}}})
    };
    let rows = [
        ("patient/Condition.c patient/Encounter.s", "Encounter?identifier=1", "403"),
        ("patient/Condition.c patient/Encounter.s", "Encounter?identifier=1&patient=p1", "stream Condition"),
        ("patient/Condition.c patient/Encounter.s", "Encounter?identifier=1&patient=p2", "403"),
        ("patient/Condition.c patient/Encounter.r", "Encounter?identifier=1&patient=p1", "403"),
        ("user/Condition.c user/Encounter.s", "Encounter?identifier=1", "stream Condition"),
        ("user/Condition.c", "Encounter?identifier=1", "403"),
        (
            "user/Condition.c user/Encounter.s",
            "https://mantel.example/fhir/r4/Encounter?identifier=1",
            "stream Condition",
        ),
        ("user/Condition.c user/Encounter.s", "https://elsewhere.example/Encounter?identifier=1", "403"),
        ("user/Condition.c user/Encounter.s", "Encounter?patient.name=x", "403"),
    ];
    for (scopes, reference, expected) in rows {
        assert_eq!(verdicts(&World::new(scopes, Same), &[entry(reference)]), [expected], "{scopes} {reference}");
    }
}

#[test]
fn one_refused_entry_refuses_a_transaction() {
    let world = World::new("patient/Condition.rs", Silent);
    let error = judged(&world, &bundle("transaction", &[get("Condition/1"), get("Observation/1")])).err().unwrap();
    assert_eq!(error.kind, Kind::Forbidden);
    assert!(error.public.starts_with("Entry 1 refuses the transaction:"), "{error}");
    let judged = judged(&world, &bundle("transaction", &[get("Condition/1")])).unwrap();
    assert_eq!((judged.kind, judged.entries.len()), (BundleKind::Transaction, 1));
}

#[test]
fn a_bundle_says_nothing_twice() {
    let world = World::new("user/*.cruds", Silent);
    for body in [
        r#"{"resourceType":"Bundle","type":"batch","entry":[],"entry":[{"request":{"method":"GET","url":"Patient"}}]}"#,
        r#"{"resourceType":"Bundle","type":"batch","entry":{}}"#,
    ] {
        assert_eq!(judged(&world, body).err().unwrap().kind, Kind::BadRequest, "{body}");
    }
    let twice = r#"{"resourceType":"Bundle","type":"batch","entry":[{"request":{"method":"GET","url":"Patient","url":"Condition"}}]}"#;
    let judged = judged(&world, twice).unwrap();
    assert!(matches!(judged.entries[0].judgement, EntryJudgement::Refused(_)));
}

fn ready(world: &World, entries: &[Value]) -> Vec<(Option<String>, Authorized)> {
    let judged = judged(world, &bundle("batch", entries)).unwrap();
    let forward = |entry: mantel::proxy::judge::BundleEntry| match entry.judgement {
        EntryJudgement::Forward(authorized) => (entry.full_url, authorized),
        _ => panic!("not forwarded"),
    };
    judged.entries.into_iter().map(forward).collect()
}

#[test]
fn what_is_sent_is_what_was_judged() {
    let world = World::new("patient/Condition.cruds", Silent);
    let resource = json!({"resourceType": "Condition", "subject": {"reference": "Patient/p1"}});
    let entries = [
        json!({"fullUrl": "urn:uuid:1", "search": {"mode": "match"}, "resource": resource, "request":
            {"method": "POST", "url": "Condition", "ifNoneExist": "code=1", "X-HTTP-Method-Override": "DELETE"}}),
        json!({"request": {"method": "GET", "url": "https://mantel.example/fhir/r4/Condition?subject:Patient=p1&_summary=text", "ifNoneMatch": "W/\"1\""}}),
    ];
    let mut headers = http::HeaderMap::new();
    headers.insert("if-match", "W/\"1\"".parse().unwrap());
    let sent = JudgedBundle::assemble(&world.case(), BundleKind::Batch, &headers, &ready(&world, &entries)).unwrap();
    let body: Value = serde_json::from_slice(&sent.request().body).unwrap();
    assert_eq!(
        body,
        json!({"resourceType": "Bundle", "type": "batch", "entry": [
            {"fullUrl": "urn:uuid:1", "resource": resource, "request":
                {"method": "POST", "url": "Condition", "ifNoneExist": "code=1&patient=p1"}},
            {"request": {"method": "GET", "url": "Condition?subject=Patient/p1"}},
        ]})
    );
    assert!(sent.mode().inspects());
    let names: Vec<_> = sent.request().headers.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["content-type", "accept"]);

    let open = World::new("user/Condition.rs", Silent);
    let entries = ready(&open, &[get("Condition/1")]);
    let sent = JudgedBundle::assemble(&open.case(), BundleKind::Transaction, &headers, &entries).unwrap();
    assert!(!sent.mode().inspects());
}

#[test]
fn each_answer_is_checked_by_its_entry() {
    let world = World::new("patient/Condition.rs user/Observation.rs", Silent);
    let entries = [get("Condition/1"), get("Condition/2"), get("Condition"), get("Observation/1"), get("Condition/3")];
    let sent =
        JudgedBundle::assemble(&world.case(), BundleKind::Batch, &http::HeaderMap::new(), &ready(&world, &entries))
            .unwrap();
    let Mode::Inspect(inspection) = sent.mode() else { panic!() };
    let condition = |id: &str, patient: &str| json!({"resourceType": "Condition", "id": id, "subject": {"reference": format!("Patient/{patient}")}});
    let ok = json!({"status": "200"});
    let outcome = json!({"resourceType": "OperationOutcome"});
    let answer = json!({"resourceType": "Bundle", "type": "batch-response", "entry": [
        {"resource": condition("1", "p1"), "response": ok},
        {"resource": condition("2", "p2"), "response": ok},
        {"resource": {"resourceType": "Bundle", "type": "searchset", "total": 2, "entry": [
            {"resource": condition("4", "p1")}, {"resource": condition("5", "p2")}]}, "response": {"status": "200", "etag": "1"}},
        {"resource": {"resourceType": "Observation", "id": "1"}, "response": ok},
        {"response": {"status": "410", "outcome": outcome}},
        {"resource": condition("6", "p1"), "response": ok},
    ]});
    let mut out = bytes::BytesMut::new();
    let mut inspector = Inspector::new(inspection.watch());
    inspector.push(answer.to_string().as_bytes(), &mut out).unwrap();
    assert!(matches!(inspector.finish(&mut out).unwrap(), Ending::Bundle { .. }));
    let passed: Value = serde_json::from_slice(&out).unwrap();
    let entries = passed["entry"].as_array().unwrap();
    assert_eq!(entries.len(), 5);
    assert_eq!(entries[0]["resource"]["id"], "1");
    assert_eq!(entries[1]["response"]["status"], "404");
    assert!(entries[1].get("resource").is_none());
    assert_eq!(entries[1], entries[4], "withheld, gone and not there look the same");
    assert_eq!(
        entries[2],
        json!({"resource": {"resourceType": "Bundle", "type": "searchset", "entry": [
        {"resource": condition("4", "p1")}]}, "response": {"status": "200"}})
    );
    assert_eq!(entries[3]["resource"]["resourceType"], "Observation");
}
