//! Operations.

use crate::setup::{Ehr::*, Row, Sent, World, check};

const ROWS: &[Row] = &[
    ("user/*.cruds", Silent, "POST Patient/p1/$unheard-of", "403"),
    ("user/*.cruds", Silent, "GET $reindex", "403"),
    ("user/*.cruds", Silent, "GET Observation/1/$lastn", "403"),
    // $everything
    ("user/*.rs", Silent, "GET Patient/p2/$everything", "stream Patient/p2/$everything"),
    ("user/Patient.rs", Silent, "GET Patient/p2/$everything", "403"),
    ("patient/*.rs", Silent, "GET Patient/p1/$everything", "inspect Patient/p1/$everything"),
    ("patient/*.rs", Same, "GET Patient/p1/$everything", "stream Patient/p1/$everything"),
    ("patient/*.rs", Same, "GET Patient/p2/$everything", "403"),
    ("patient/*.rs", Same, "GET Patient/$everything", "403"),
    ("patient/*.r", Same, "GET Patient/p1/$everything", "403"),
    ("patient/Patient.rs patient/Observation.rs", Same, "GET Patient/p1/$everything", "403"),
    ("patient/*.rs", Silent, "GET Encounter/1/$everything", "inspect Encounter/1/$everything"),
    ("patient/*.rs", Silent, "GET Patient/p1/$everything?patient=p2", "403"),
    // Searches by another name.
    ("patient/Observation.rs", Silent, "GET Observation/$lastn", "inspect Observation/$lastn?patient=p1"),
    (
        "patient/Observation.rs",
        Same,
        "GET Observation/$lastn?category=a",
        "stream Observation/$lastn?category=a&patient=p1",
    ),
    ("patient/Observation.rs", Same, "GET Observation/$lastn?patient=p2", "403"),
    ("patient/Observation.r", Same, "GET Observation/$lastn", "403"),
    ("user/Observation.rs", Silent, "GET Observation/$lastn?patient.name=x", "403"),
    ("patient/Observation.rs?category=a", Same, "GET Observation/$lastn", "403"),
    (
        "patient/DocumentReference.rs",
        Silent,
        "GET DocumentReference/$docref?patient=p1",
        "inspect DocumentReference/$docref?patient=p1",
    ),
    ("patient/DocumentReference.rs", Silent, "GET DocumentReference/$docref", "403"),
    ("patient/DocumentReference.rs", Silent, "GET DocumentReference/$docref?patient=p2", "403"),
    ("patient/DocumentReference.rs", Silent, "GET DocumentReference/$docref?subject=Patient/p1", "403"),
    ("patient/*.rs", Same, "POST Patient/$match", "403"),
    ("user/Patient.s", Silent, "GET Patient/$match", "405"),
    ("patient/Observation.r", Silent, "GET Observation/1/$meta", "403"),
    ("patient/Observation.r", Same, "GET Observation/1/$meta", "stream Observation/1/$meta"),
    ("patient/ValueSet.r", Silent, "GET ValueSet/$expand?url=x", "stream ValueSet/$expand?url=x"),
    ("patient/Observation.r", Silent, "GET ValueSet/$expand?url=x", "403"),
    // Bulk Data.
    ("system/*.rs", Silent, "GET $export", "stream $export"),
    ("user/*.rs", Silent, "GET $export", "403"),
    ("patient/*.rs", Same, "GET $export", "403"),
    ("system/Patient.rs", Silent, "GET Group/1/$export", "403"),
];

#[test]
fn operations() {
    check(ROWS);
}

#[test]
fn posted_parameters_are_judged_as_those_of_a_get() {
    let parameters = |name: &str, value: &str| {
        format!(r#"{{"resourceType":"Parameters","parameter":[{{"name":"{name}","valueId":"{value}"}}]}}"#)
    };
    let rows = [
        ("POST DocumentReference/$docref", parameters("patient", "p1"), "inspect DocumentReference/$docref"),
        ("POST DocumentReference/$docref", parameters("patient", "p2"), "403"),
        ("POST DocumentReference/$docref?patient=p1", parameters("patient", "p2"), "403"),
        ("POST DocumentReference/$docref", parameters("access_token", "p1"), "400"),
        ("POST DocumentReference/$docref", r#"{"resourceType":"Patient"}"#.into(), "400"),
        ("POST Observation/$lastn", parameters("patient", "p1"), "inspect Observation/$lastn"),
        ("POST Observation/$lastn", parameters("category", "a"), "403"),
        ("POST Observation/$lastn", parameters("patient", "p2"), "403"),
    ];
    for (line, body, expected) in rows {
        let world = World::new("patient/Observation.rs patient/DocumentReference.rs", Silent);
        assert_eq!(world.verdict(&Sent::new(line).json(&body)), expected, "{line} {body}");
    }
}

#[test]
fn what_is_validated_is_judged_like_a_create() {
    let ours = r#"{"resourceType":"Condition","subject":{"reference":"Patient/p1"}}"#;
    let other = r#"{"resourceType":"Condition","subject":{"reference":"Patient/p2"}}"#;
    let rows = [
        ("patient/Condition.c", "POST Condition/$validate", ours, "inspect Condition/$validate"),
        ("patient/Condition.c", "POST Condition/$validate", other, "403"),
        ("patient/Condition.c", "POST Condition/$validate", r#"{"resourceType":"Parameters"}"#, "403"),
        ("patient/Condition.rs", "POST Condition/$validate", ours, "403"),
        ("patient/Condition.u", "POST Condition/1/$validate", ours, "403"),
        ("user/Condition.c", "POST Condition/$validate", other, "stream Condition/$validate"),
    ];
    for (scopes, line, body, expected) in rows {
        assert_eq!(World::new(scopes, Silent).verdict(&Sent::new(line).json(body)), expected, "{scopes} {line} {body}");
    }
}
