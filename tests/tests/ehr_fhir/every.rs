//! What holds for every vendor: records are closed, marked, addressed below the base, and apart from other sites'.

use std::collections::BTreeSet;

use http::StatusCode;
use mantel_tests::ehr::{contract::Vendor, fhir::MARK_SYSTEM};
use serde_json::Value;

use super::client::{Ehr, ehr, ids};

/// Types with one patient each, and how to find them all at a vendor that demands more than a patient.
const OWNED: [&str; 14] = [
    "AllergyIntolerance",
    "CarePlan",
    "CareTeam",
    "Condition",
    "DiagnosticReport",
    "DocumentReference",
    "Encounter",
    "Goal",
    "Immunization",
    "MedicationRequest",
    "Observation",
    "Procedure",
    "RelatedPerson",
    "Binary",
];

/// All records of a patient that searches show.
fn record(ehr: &Ehr, patient: &str) -> Vec<Value> {
    let mut found = vec![ehr.get(&format!("/Patient/{patient}")).json()];
    for ty in OWNED.iter().filter(|ty| **ty != "Binary") {
        let extra = if *ty == "Observation" { "&category=vital-signs,laboratory,survey" } else { "" };
        found.extend(ehr.all(&format!("/{ty}?patient={patient}&_count=100{extra}")));
    }
    found
}

fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(members) => {
            for (member, inner) in members {
                match (member.as_str(), inner) {
                    ("reference", Value::String(text)) => found.push(text),
                    ("attachment", inner) => found.extend(inner["url"].as_str()),
                    (_, inner) => references(inner, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_somewhere() {
    for vendor in Vendor::ALL {
        let ehr = ehr(vendor);
        let mut seen = BTreeSet::new();
        let mut followed = 0;
        for patient in ehr.server.patients() {
            for resource in record(&ehr, &patient.id) {
                let mut named = Vec::new();
                references(&resource, &mut named);
                for reference in named {
                    if !seen.insert(reference.to_owned()) {
                        continue;
                    }
                    let path = reference.strip_prefix(&ehr.base).unwrap_or(reference);
                    let path = format!("/{}", path.trim_start_matches('/'));
                    let answer = ehr.get(&path);
                    assert_eq!(answer.status, StatusCode::OK, "{vendor:?}: {reference}");
                    followed += 1;
                }
            }
        }
        assert!(followed > 300, "{vendor:?}: only {followed} references");
    }
}

#[test]
fn a_record_carries_its_patients_mark_and_no_other() {
    for vendor in Vendor::ALL {
        let ehr = ehr(vendor);
        let mut marks = BTreeSet::new();
        for patient in ehr.server.patients() {
            let mark = ehr.server.mark(&patient.id).expect("a mark");
            let resources = record(&ehr, &patient.id);
            assert!(resources.len() > 40, "{vendor:?}: {} has only {}", patient.name, resources.len());
            for resource in resources {
                let codes: Vec<&Value> = resource["meta"]["tag"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|tag| tag["system"] == MARK_SYSTEM)
                    .map(|tag| &tag["code"])
                    .collect();
                assert_eq!(codes, [mark.as_str()], "{vendor:?}: {}", resource["id"]);
            }
            assert!(marks.insert(mark));
        }
        assert_eq!(marks.len(), 10);
    }
}

#[test]
fn three_patients_have_long_records() {
    let ehr = ehr(Vendor::Generic);
    for patient in ehr.server.patients().iter().take(3) {
        assert!(record(&ehr, &patient.id).len() > 200, "{}", patient.name);
    }
}

#[test]
fn no_two_vendors_share_an_id() {
    let all: Vec<BTreeSet<String>> = Vendor::ALL
        .map(|vendor| {
            let ehr = ehr(vendor);
            let patient = ehr.patient();
            record(&ehr, &patient).iter().map(|resource| resource["id"].as_str().expect("an id").to_owned()).collect()
        })
        .into();
    for (index, one) in all.iter().enumerate() {
        for other in all.iter().skip(index + 1) {
            assert!(one.is_disjoint(other));
        }
    }
}

#[test]
fn ids_are_in_the_vendors_style() {
    let style = |vendor| {
        let ehr = ehr(vendor);
        (ehr.patient(), ehr.server.practitioners().first().expect("a practitioner").id.clone())
    };
    let (patient, practitioner) = style(Vendor::Epic);
    assert!(patient.starts_with('e') && patient.ends_with('3') && patient.len() == 24, "{patient}");
    assert!(practitioner.len() == 45, "{practitioner}");
    let (patient, _) = style(Vendor::Oracle);
    assert!(patient.parse::<u64>().is_ok(), "{patient}");
    let (patient, practitioner) = style(Vendor::Athena);
    assert!(patient.starts_with("a-195900.E-") && practitioner.starts_with("a-195900."), "{patient}");
    let (patient, _) = style(Vendor::Generic);
    assert_eq!(patient.len(), 36, "{patient}");
}

#[test]
fn full_urls_are_absolute_and_below_the_base() {
    for vendor in Vendor::ALL {
        let ehr = ehr(vendor);
        let page = ehr.get(&format!("/Condition?patient={}", ehr.patient()));
        let entries = page.entries();
        assert!(entries.len() > 3);
        for entry in entries.iter().filter(|entry| entry["search"]["mode"] == "match") {
            let resource = &entry["resource"];
            let url = format!("{}/Condition/{}", ehr.base, resource["id"].as_str().expect("an id"));
            assert_eq!(entry["fullUrl"], url);
        }
        assert!(page.link("self").expect("a self link").starts_with(&ehr.base));
    }
}

#[test]
fn bases_look_like_the_vendors() {
    let path = |vendor| ehr(vendor).server.fhir_base_path();
    assert_eq!(path(Vendor::Epic), "/interconnect-fhir-oauth/api/FHIR/R4");
    assert_eq!(path(Vendor::Oracle), "/r4/ec2458f2-1e24-41c8-b71b-0e701af7583d");
    assert_eq!(path(Vendor::Athena), "/fhir/r4");
    assert_eq!(path(Vendor::AthenaPractice), "/demoAPIServer/fhir/r4");
    assert_eq!(path(Vendor::Generic), "/fhir/r4");
}

#[test]
fn capability_statements_need_no_token_and_leave_security_open() {
    for vendor in Vendor::ALL {
        let ehr = ehr(vendor);
        let answer = ehr.send(&ehr.request("GET", "/metadata").no_token());
        let statement = answer.json();
        assert_eq!(statement["resourceType"], "CapabilityStatement", "{vendor:?}");
        assert_eq!(statement["fhirVersion"], "4.0.1");
        assert_eq!(statement["implementation"]["url"], ehr.base);
        assert!(statement["rest"][0].get("security").is_none());
        let types: Vec<&Value> =
            statement["rest"][0]["resource"].as_array().into_iter().flatten().map(|entry| &entry["type"]).collect();
        assert!(types.contains(&&Value::from("Observation")) && types.len() > 15);
    }
}

/// Interactions a CapabilityStatement names are there, and those it does not name are not.
#[test]
fn capability_statements_are_true() {
    for vendor in Vendor::ALL {
        let ehr = ehr(vendor);
        let statement = ehr.get("/metadata").json();
        for entry in statement["rest"][0]["resource"].as_array().into_iter().flatten() {
            let ty = entry["type"].as_str().expect("a type");
            let codes: Vec<&str> = entry["interaction"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|entry| entry["code"].as_str())
                .collect();
            let absent = [StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED];
            let create = ehr.send(&ehr.request("POST", &format!("/{ty}")).json(&serde_json::json!({}))).status;
            assert_eq!(!absent.contains(&create), codes.contains(&"create"), "{vendor:?}: create {ty} is {create}");
            let search = ehr.get(&format!("/{ty}?_id=x")).status;
            assert_eq!(
                !absent.contains(&search),
                codes.contains(&"search-type"),
                "{vendor:?}: search {ty} is {search}"
            );
            let history = ehr.get(&format!("/{ty}/_history")).status;
            assert_eq!(!absent.contains(&history), codes.contains(&"history-type"), "{vendor:?}: {ty} is {history}");
        }
    }
}

#[test]
fn pages_together_are_the_whole() {
    for vendor in Vendor::ALL {
        let ehr = ehr(vendor);
        let query = format!("/Observation?patient={}&category=vital-signs,laboratory,survey", ehr.patient());
        let mut whole = ids(&ehr.all(&format!("{query}&_count=200")));
        let mut pages = ids(&ehr.all(&format!("{query}&_count=7")));
        assert!(whole.len() > 40);
        if vendor == Vendor::Oracle {
            assert!(pages.len() > whole.len(), "Oracle's pages overlap");
        }
        whole.sort();
        pages.sort();
        pages.dedup();
        assert_eq!(pages, whole, "{vendor:?}");
    }
}

#[test]
fn calls_are_counted_by_method_and_interaction() {
    let ehr = ehr(Vendor::Generic);
    let patient = ehr.patient();
    ehr.get(&format!("/Patient/{patient}"));
    ehr.get(&format!("/Observation?patient={patient}"));
    ehr.get("/%00/x");
    assert_eq!(ehr.counters.get("fhir:GET Patient"), 1);
    assert_eq!(ehr.counters.get("fhir:read Patient"), 1);
    assert_eq!(ehr.counters.get("fhir:search-type Observation"), 1);
    assert_eq!(ehr.counters.get("fhir:GET other"), 1);
}

#[test]
fn encounters_are_the_patients_latest_first() {
    let ehr = ehr(Vendor::Epic);
    let patient = ehr.patient();
    let encounters = ehr.server.encounters(&patient);
    let all = ehr.all(&format!("/Encounter?patient={patient}"));
    assert_eq!(encounters.len(), all.len());
    let start = |id: &str| ehr.get(&format!("/Encounter/{id}")).json()["period"]["start"].clone().to_string();
    let first = encounters.first().map(|id| start(id));
    let last = encounters.last().map(|id| start(id));
    assert!(first > last);
}

#[test]
fn dot_segments_are_walked_as_http_stacks_do() {
    let ehr = ehr(Vendor::Generic);
    let patient = ehr.patient();
    for path in ["/Patient/../Condition", "/Patient/%2e%2E/Condition", "/./Condition/"] {
        let answer = ehr.get(&format!("{path}?patient={patient}"));
        assert_eq!(answer.matches()[0]["resourceType"], "Condition", "{path}");
    }
}

#[test]
fn what_is_no_request_is_refused_and_nothing_breaks() {
    for vendor in Vendor::ALL {
        let ehr = ehr(vendor);
        for (method, path) in [
            ("GET", "//"),
            ("GET", "/Patient//"),
            ("GET", "/%ff%fe"),
            ("GET", "/../../.."),
            ("POST", "/Patient/_search/x"),
            ("TRACE", "/Patient"),
            ("GET", "/Observation?_count=99999999999999999999999"),
            ("GET", "/Observation?patient=x&category=survey&_count=-1"),
            ("GET", "/Patient/$match"),
            ("PUT", "/"),
            ("GET", "/?_getpages=x&_getpagesoffset=18446744073709551615"),
            ("GET", "/?sessionID="),
            ("GET", "/Observation?patient=x&category=survey&pageContext=zz&cursor=zz"),
        ] {
            let answer = ehr.send(&ehr.request(method, path));
            let pages = path.contains("pageContext") && matches!(vendor, Vendor::Epic | Vendor::Generic);
            assert!(answer.status.is_client_error() || pages, "{vendor:?}: {method} {path} is {}", answer.status);
        }
    }
}
