//! Whose a resource is.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;

use mantel_adapters::fhir::{
    compartment::{
        Belonging, Class, Selector, belongs, class, head, local_reference, patient_parameters, patient_value,
        provenance_targets, selects,
    },
    constraint::{is_enforceable, satisfies},
    rewrite::Bases,
    types::RESOURCE_TYPES,
};
use serde_json::{Value, json};

fn bases() -> Bases {
    Bases::new(["https://ehr.example/r4"], "https://mantel.example/fhir/r4").unwrap()
}

fn of(resource: &Value, patient: &str) -> Belonging {
    belongs(resource.to_string().as_bytes(), patient, &bases())
}

/// The table is HL7's, parameter by parameter.
#[test]
fn the_compartment_is_r4s() {
    let definition: Value = serde_json::from_slice(include_bytes!("fixtures/fhir/compartment-patient.json")).unwrap();
    let mut count = 0;
    for row in definition["resource"].as_array().unwrap() {
        let name = row["code"].as_str().unwrap();
        let wanted: BTreeSet<&str> = row["param"]
            .as_array()
            .map(|all| all.iter().map(|param| param.as_str().unwrap()).collect())
            .unwrap_or_default();
        match class(name) {
            Class::Compartment(elements) => {
                let ours: BTreeSet<&str> = elements.iter().map(|(parameter, _)| *parameter).collect();
                assert_eq!(ours, wanted, "{name}");
                count += 1;
            }
            Class::Patient | Class::Members => assert!(["Patient", "Group"].contains(&name)),
            _ => assert!(wanted.is_empty(), "{name}"),
        }
    }
    assert_eq!(count, 65);
}

#[test]
fn every_type_has_a_class_and_few_are_refused() {
    let refused: Vec<&str> = RESOURCE_TYPES.into_iter().filter(|name| class(name) == Class::Refused).collect();
    assert_eq!(
        refused,
        [
            "BiologicallyDerivedProduct",
            "Bundle",
            "Contract",
            "DeviceMetric",
            "EnrollmentResponse",
            "GuidanceResponse",
            "Linkage",
            "MessageHeader",
            "Parameters",
            "PaymentNotice",
            "PaymentReconciliation",
            "Subscription",
            "TestReport",
            "VerificationResult",
        ]
    );
    assert_eq!(class("Nothing"), Class::Refused);
    for name in RESOURCE_TYPES {
        let has_patient =
            matches!(class(name), Class::Compartment(_) | Class::Patient | Class::Members | Class::Device);
        assert_eq!(!patient_parameters(name).is_empty(), has_patient, "{name}");
    }
}

#[test]
fn references_in_each_form() {
    let cases = [
        ("Patient/1", Belonging::Yes),
        ("Patient/1/_history/3", Belonging::Yes),
        ("https://ehr.example/r4/Patient/1", Belonging::Yes),
        ("https://ehr.example:443/r4/Patient/1/_history/2", Belonging::Yes),
        ("Patient/2", Belonging::No),
        ("Patient/12", Belonging::No),
        ("Patient/1/x", Belonging::No),
        ("Patient/1/_history/a_b", Belonging::No),
        ("patient/1", Belonging::No),
        ("Group/1", Belonging::No),
        ("https://other.example/r4/Patient/1", Belonging::No),
        ("https://ehr.example/r4/Patient/2", Belonging::No),
        ("/Patient/1", Belonging::No),
        ("urn:uuid:1", Belonging::No),
        ("#1", Belonging::No),
        ("", Belonging::No),
    ];
    for (reference, expected) in cases {
        let resource = json!({"resourceType": "Observation", "subject": {"reference": reference}});
        assert_eq!(of(&resource, "1"), expected, "{reference}");
    }
    assert_eq!(
        of(&json!({"resourceType": "Observation", "subject": {"identifier": {"value": "1"}}}), "1"),
        Belonging::No
    );
    assert_eq!(of(&json!({"resourceType": "Observation"}), "1"), Belonging::No);
    assert_eq!(local_reference("Patient/1/_history/2/3", &bases()), None);
    assert_eq!(local_reference("Patient/a_b", &bases()), None);
}

#[test]
fn elements_deep_and_in_lists() {
    let appointment = json!({"resourceType": "Appointment", "participant": [{"actor": {"reference": "Practitioner/9"}}, {"actor": {"reference": "Patient/1"}}]});
    assert_eq!((of(&appointment, "1"), of(&appointment, "9")), (Belonging::Yes, Belonging::No));
    let plan = json!({"resourceType": "CarePlan", "subject": {"reference": "Patient/2"}, "activity": [{"detail": {"performer": [{"reference": "Patient/1"}]}}]});
    assert_eq!((of(&plan, "1"), of(&plan, "2"), of(&plan, "3")), (Belonging::Yes, Belonging::Yes, Belonging::No));
    // The name of an element elsewhere says nothing.
    let decoy = json!({"resourceType": "Observation", "extension": [{"subject": {"reference": "Patient/1"}}], "subject": {"reference": "Patient/2", "x": {"reference": "Patient/1"}}});
    assert_eq!(of(&decoy, "1"), Belonging::No);
}

#[test]
fn patients_by_id_alone() {
    let patient = json!({"resourceType": "Patient", "id": "1", "link": [{"other": {"reference": "Patient/2"}}]});
    assert_eq!((of(&patient, "1"), of(&patient, "2")), (Belonging::Yes, Belonging::No));
    assert_eq!(of(&json!({"resourceType": "Patient"}), "1"), Belonging::No);
}

#[test]
fn groups_devices_binaries_and_the_rest() {
    let group = |members: &[&str]| {
        let members: Vec<Value> = members.iter().map(|text| json!({"entity": {"reference": text}})).collect();
        json!({"resourceType": "Group", "member": members})
    };
    assert_eq!(of(&group(&["Patient/1"]), "1"), Belonging::Yes);
    assert_eq!(of(&group(&["Patient/1", "Practitioner/2"]), "1"), Belonging::Yes);
    assert_eq!(of(&group(&["Patient/1", "Patient/2"]), "1"), Belonging::No);
    assert_eq!(of(&group(&["Patient/1", "https://other.example/Patient/1"]), "1"), Belonging::No);
    assert_eq!(of(&group(&[]), "1"), Belonging::No);
    let device = |patient: Value| of(&json!({"resourceType": "Device", "patient": patient}), "1");
    assert_eq!(device(json!({"reference": "Patient/1"})), Belonging::Yes);
    assert_eq!(device(json!({"reference": "Patient/2"})), Belonging::No);
    assert_eq!(device(json!({"identifier": {"value": "2"}})), Belonging::No);
    assert_eq!(of(&json!({"resourceType": "Device"}), "1"), Belonging::Shared);
    assert_eq!(of(&json!({"resourceType": "Binary", "data": ""}), "1"), Belonging::Binary);
    assert_eq!(of(&json!({"resourceType": "Practitioner"}), "1"), Belonging::Shared);
    assert_eq!(of(&json!({"resourceType": "Bundle"}), "1"), Belonging::Unknown);
    assert_eq!(of(&json!({"resourceType": "Parameters"}), "1"), Belonging::Unknown);
}

#[test]
fn contained_resources_are_judged_too() {
    let with = |contained: Value| {
        of(
            &json!({"resourceType": "Observation", "subject": {"reference": "Patient/1"}, "contained": [contained]}),
            "1",
        )
    };
    assert_eq!(with(json!({"resourceType": "Practitioner", "id": "p"})), Belonging::Yes);
    assert_eq!(with(json!({"resourceType": "Condition", "subject": {"reference": "Patient/1"}})), Belonging::Yes);
    assert_eq!(with(json!({"resourceType": "Condition", "asserter": {"reference": "#"}})), Belonging::Yes);
    assert_eq!(with(json!({"resourceType": "Condition", "subject": {"reference": "Patient/2"}})), Belonging::No);
    assert_eq!(
        with(json!({"resourceType": "Condition", "subject": {"reference": "https://other.example/Patient/2"}})),
        Belonging::No
    );
    assert_eq!(with(json!({"resourceType": "Patient", "id": "p"})), Belonging::No);
    assert_eq!(with(json!({"resourceType": "Bundle"})), Belonging::Unknown);
    assert_eq!(
        with(json!({"resourceType": "Practitioner", "contained": [{"resourceType": "Patient"}]})),
        Belonging::Unknown
    );
    assert_eq!(with(json!("x")), Belonging::Unknown);
    let shared = json!({"resourceType": "Medication", "contained": [{"resourceType": "Condition", "subject": {"reference": "Patient/2"}}]});
    assert_eq!(of(&shared, "1"), Belonging::No);
}

/// Where two parsers may see different things, nothing is decided.
#[test]
fn what_stands_twice_is_not_decided() {
    for text in [
        r#"{"resourceType":"Observation","subject":{"reference":"Patient/1"},"subject":{"reference":"Patient/2"}}"#,
        r#"{"resourceType":"Observation","subject":{"reference":"Patient/1","reference":"Patient/2"}}"#,
        r#"{"resourceType":"Observation","resourceType":"Practitioner","subject":{"reference":"Patient/1"}}"#,
        r#"{"resourceType":"Patient","id":"1","id":"2"}"#,
        r#"{"resourceType":"Patient","id":"1","contained":[],"contained":[]}"#,
        r#"{"resourceType":"Patient","id":"1"} x"#,
        r#"{"id":"1"}"#,
        r#"["Patient"]"#,
        "",
    ] {
        assert_eq!(belongs(text.as_bytes(), "1", &bases()), Belonging::Unknown, "{text}");
    }
    // Escapes change no name.
    let escaped = r#"{"\u0072esourceType":"Observation","s\u0075bject":{"\u0072eference":"P\u0061tient\/1"}}"#;
    assert_eq!(belongs(escaped.as_bytes(), "1", &bases()), Belonging::Yes);
    let deep = format!(
        r#"{{"resourceType":"Observation","x":{}1{},"subject":{{"reference":"Patient/1"}}}}"#,
        "[".repeat(20_000),
        "]".repeat(20_000)
    );
    assert_eq!(belongs(deep.as_bytes(), "1", &bases()), Belonging::Yes);
    let deep = format!(r#"{{"resourceType":"Observation","subject":{}1{}}}"#, "[".repeat(20_000), "]".repeat(20_000));
    assert_eq!(belongs(deep.as_bytes(), "1", &bases()), Belonging::Unknown);
}

#[test]
fn hl7s_examples() {
    let official = |name: &str| {
        std::fs::read(format!("{}/tests/fixtures/fhir/official/{name}.json", env!("CARGO_MANIFEST_DIR"))).unwrap()
    };
    for (name, patient, expected) in [
        ("Observation-example", "example", Belonging::Yes),
        ("Observation-example", "other", Belonging::No),
        ("Condition-example", "example", Belonging::Yes),
        ("CarePlan-integrate", "1", Belonging::Yes),
        ("MedicationRequest-medrx0301", "pat1", Belonging::Yes),
        ("MedicationRequest-medrx0301", "example", Belonging::No),
        ("DocumentReference-example", "xcda", Belonging::Yes),
        ("Group-102", "pat1", Belonging::No),
        ("Medication-med0301", "pat1", Belonging::Shared),
        ("Practitioner-example", "pat1", Belonging::Shared),
        ("Binary-f006", "pat1", Belonging::Binary),
        ("Patient-example", "example", Belonging::Yes),
        ("Bundle-bundle-example", "347", Belonging::Unknown),
    ] {
        assert_eq!(belongs(&official(name), patient, &bases()), expected, "{name} of {patient}");
    }
    let targets = provenance_targets(&official("Provenance-example"), &bases());
    assert_eq!(targets, Some(vec!["Procedure/example".to_owned()]));
    assert_eq!(provenance_targets(&official("Observation-example"), &bases()), None);
    assert_eq!(
        provenance_targets(
            br##"{"resourceType":"Provenance","target":[{"reference":"Procedure/1"},{"reference":"#x"}]}"##,
            &bases()
        ),
        None
    );
}

#[test]
fn a_head_has_type_id_and_version() {
    let head = head(br#"{"meta":{"versionId":"3"},"resourceType":"Patient","id":"1"}"#).unwrap();
    assert_eq!((head.resource_type.as_str(), head.id.as_deref(), head.version()), ("Patient", Some("1"), Some("3")));
}

#[test]
fn parameters_that_choose_the_patient() {
    let bases = bases();
    let ids = |ids: &[&'static str]| Selector::Patients(ids.to_vec());
    let cases = [
        ("Observation", "patient", "1", ids(&["1"])),
        ("Observation", "patient", "Patient/1", ids(&["1"])),
        ("Observation", "patient", "https://ehr.example/r4/Patient/1", ids(&["1"])),
        ("Observation", "subject", "Patient/1", ids(&["1"])),
        ("Observation", "subject", "1", ids(&["1"])),
        ("Observation", "subject:Patient", "1", ids(&["1"])),
        ("Observation", "patient", "1,Patient/2", ids(&["1", "2"])),
        ("Patient", "_id", "1,2", ids(&["1", "2"])),
        ("Observation", "_id", "1", Selector::None),
        ("Observation", "performer", "Patient/2", Selector::None),
        ("Appointment", "actor", "Practitioner/2", Selector::None),
        ("Appointment", "actor", "Patient/1", ids(&["1"])),
        ("Appointment", "actor", "Patient/1,Practitioner/2", Selector::Unclear),
        ("Observation", "patient.name", "x", Selector::Unclear),
        ("Observation", "subject:Patient.name", "x", Selector::Unclear),
        ("Observation", "patient:missing", "true", Selector::Unclear),
        ("Observation", "subject:identifier", "a|b", Selector::Unclear),
        ("Observation", "patient", "https://other.example/Patient/1", Selector::Unclear),
        ("Observation", "patient", "Practitioner/1", Selector::Unclear),
        ("Observation", "patient", "1,", Selector::Unclear),
        ("Observation", "patient", "", Selector::Unclear),
        ("Patient", "_id", "Patient/1", Selector::Unclear),
        ("Patient", "_id:not", "1", Selector::Unclear),
        ("Practitioner", "patient", "1", Selector::None),
    ];
    for (resource_type, name, value, expected) in cases {
        assert_eq!(selects(resource_type, name, value, &bases), expected, "{resource_type}?{name}={value}");
    }
    for name in RESOURCE_TYPES {
        if let Some(parameter) = patient_parameters(name).first() {
            let value = patient_value(parameter, "1");
            assert_eq!(selects(name, parameter, &value, &bases), ids(&["1"]), "{name}?{parameter}={value}");
        }
    }
}

#[test]
fn queries_of_scopes() {
    const CATEGORY: &str = "http://terminology.hl7.org/CodeSystem/observation-category";
    let observation = json!({"resourceType": "Observation", "status": "final", "category": [
        {"coding": [{"system": CATEGORY, "code": "laboratory"}, {"system": CATEGORY, "code": "exam"}]},
        {"coding": [{"code": "local"}], "text": "x"},
    ]});
    let bare = json!({"resourceType": "Observation"});
    let is =
        |resource: &Value, parameter: &str, value: &str| satisfies(resource.to_string().as_bytes(), parameter, value);
    let lab = format!("{CATEGORY}|laboratory");
    for (parameter, value, expected) in [
        ("category", lab.as_str(), Some(true)),
        ("category", "exam", Some(true)),
        ("category", "vital-signs,exam", Some(true)),
        ("category", "vital-signs", Some(false)),
        ("category", "http://other.example|laboratory", Some(false)),
        ("category", "|local", Some(true)),
        ("category", "|laboratory", Some(false)),
        ("category", &format!("{CATEGORY}|"), Some(true)),
        ("category", "|", Some(false)),
        ("category", "", None),
        ("category", "a\\,b", None),
        ("category:not", "exam", None),
        ("status", "final", Some(true)),
        ("status", "x|final", Some(false)),
        ("date", "2020", None),
    ] {
        assert_eq!(is(&observation, parameter, value), expected, "{parameter}={value}");
    }
    assert_eq!(is(&bare, "category", &lab), Some(false));
    assert_eq!(is(&json!({"resourceType": "MedicationRequest", "code": "x"}), "code", "x"), None);
    assert_eq!(satisfies(b"[]", "status", "x"), None);
    assert!(is_enforceable("Condition", "category") && !is_enforceable("Observation", "value-quantity"));
    // Where a member stands twice, what another parser would read is not known.
    let twice = format!(r#"{{"resourceType":"Observation","status":"draft",{}"#, &observation.to_string()[1..]);
    assert_eq!(satisfies(twice.as_bytes(), "status", "final"), None);
}
