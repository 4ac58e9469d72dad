//! Documents of our own making: paging links, merged and wrapped searchsets, outcomes, CapabilityStatements; and
//! the table of operations.
#![allow(clippy::unwrap_used, clippy::panic)]

use mantel_adapters::fhir::{
    capability::{OurEndpoints, minimal, trim, union},
    interaction::parse_target,
    links::{JudgedSearch, LinkBinder, Need, canonical, need, unbind},
    merge::merge,
    operations::{Level, Needs, OPERATIONS, PatientRule, find, simple_parameters},
    outcome::{OperationOutcome, Severity},
    rewrite::Bases,
    types::is_resource_type,
    wrap::searchset,
};
use serde_json::{Value, json};

const CALLED: &str = "https://mantel.example/fhir/r4";

fn bases() -> Bases {
    Bases::new(["https://ehr.example/r4"], CALLED).unwrap()
}

fn observations_of_1() -> JudgedSearch {
    JudgedSearch { resource_type: Some("Observation".into()), patient: Some("1".into()), required: vec![] }
}

#[test]
fn which_links_need_a_binding() {
    let cases = [
        ("/Observation?patient=1&_count=50&cursor=x", Need::Nothing),
        ("/Observation?subject=Patient%2F1&page=2", Need::Nothing),
        ("/Observation/?patient=https://ehr.example/r4/Patient/1", Need::Nothing),
        ("/Observation?sessionID=12-BED0", Need::Binding),
        ("/Observation?cursor=abc", Need::Binding),
        ("?_getpages=1", Need::Binding),
        ("/Condition?patient=1", Need::Binding),
        ("/Observation?patient=2", Need::Binding),
        ("/Observation?patient=1,2", Need::Binding),
        ("/Observation?patient=1&subject=2", Need::Binding),
        ("/Observation?patient=1&patient.name=x", Need::Binding),
        ("/Observation/%2e%2e?patient=1", Need::Binding),
        ("/bulkstatus/7", Need::Binding),
    ];
    for (link, expected) in cases {
        assert_eq!(need(link, &observations_of_1(), &bases()), expected, "{link}");
    }
    let by_user = JudgedSearch { resource_type: Some("Observation".into()), ..JudgedSearch::default() };
    assert_eq!(need("/Observation?cursor=abc", &by_user, &bases()), Need::Nothing);
    let with_query = JudgedSearch { required: vec![("category".into(), "laboratory".into())], ..by_user };
    assert_eq!(need("/Observation?cursor=abc", &with_query, &bases()), Need::Binding);
    assert_eq!(need("/Observation?category=laboratory&cursor=abc", &with_query, &bases()), Need::Nothing);
    assert_eq!(need("/Observation?patient=1", &JudgedSearch::default(), &bases()), Need::Binding);
}

#[test]
fn a_bound_link_comes_back_as_it_went_out() {
    let mut seen = Vec::new();
    let mut binder = LinkBinder::new(observations_of_1(), |canonical: &str| {
        seen.push(canonical.to_owned());
        "MAC".into()
    });
    // Opaque tokens keep their bytes; a binding that was there is none.
    let url =
        binder.link("https://ehr.example/r4/Observation/?_page_token=Cjj3YoKE%2BmJ%2F&_mantel=forged#f", &bases());
    assert_eq!(url, format!("{CALLED}/Observation/?_page_token=Cjj3YoKE%2BmJ%2F&_mantel=MAC#f"));
    assert_eq!(
        binder.link("https://ehr.example/r4/Observation?patient=1", &bases()),
        format!("{CALLED}/Observation?patient=1")
    );
    assert_eq!(binder.link("https://ehr.example/r4/job/1", &bases()), format!("{CALLED}/job/1?_mantel=MAC"));
    assert_eq!(binder.link("https://other.example/x", &bases()), "https://other.example/x");
    assert_eq!(binder.link("https://ehr.example/r4/x?a=%zz", &bases()), format!("{CALLED}/x?a=%zz"));

    let (rest, mac) = unbind("_page_token=Cjj3YoKE%2BmJ%2F&_mantel=MAC");
    assert_eq!((rest.as_deref(), mac.as_deref()), (Some("_page_token=Cjj3YoKE%2BmJ%2F"), Some("MAC")));
    // A client that encodes anew changes nothing of what the MAC is over.
    let (path, query) = parse_target("/Observation", Some("_page_token=Cjj3YoKE%2bmJ/&_mantel=MAC")).unwrap();
    assert_eq!(canonical(&path, &query), seen[0]);
    assert_eq!(unbind("_mantel=a&_mantel=b"), (None, None));
    assert_eq!(unbind("a=1"), (Some("a=1".into()), None));
}

fn part(entries: &Value, next: Option<&str>) -> Vec<u8> {
    let mut links = vec![json!({"relation": "self", "url": "https://ehr.example/r4/x"})];
    links.extend(next.map(|url| json!({"relation": "next", "url": url})));
    json!({"resourceType": "Bundle", "type": "searchset", "total": 7, "link": links, "entry": entries})
        .to_string()
        .into_bytes()
}

fn observation(id: &str, mode: &str) -> Value {
    json!({"resource": {"resourceType": "Observation", "id": id}, "search": {"mode": mode}})
}

#[test]
fn merged_searchsets_have_each_resource_once() {
    let outcome = json!({"resource": {"resourceType": "OperationOutcome", "issue": [{"severity": "warning", "code": "4119"}]}, "search": {"mode": "outcome"}});
    let one = part(&json!([observation("a", "match"), observation("b", "include"), outcome]), None);
    let two = part(
        &json!([observation("a", "match"), observation("b", "match"), outcome, {"resource": {"resourceType": "Basic"}}]),
        None,
    );
    let empty = br#"{"resourceType":"Bundle","type":"searchset","total":0}"#;
    let merged = merge(&[&one, &two, empty], "https://ehr.example/r4/Observation?patient=1").unwrap();
    let bundle: Value = serde_json::from_slice(&merged.bundle).unwrap();
    assert!(merged.next.is_empty());
    assert_eq!(bundle["total"], 3);
    assert_eq!(bundle["link"], json!([{"relation": "self", "url": "https://ehr.example/r4/Observation?patient=1"}]));
    assert_eq!(
        bundle["entry"],
        json!([observation("a", "match"), observation("b", "match"), outcome, outcome, {"resource": {"resourceType": "Basic"}}])
    );
}

#[test]
fn what_is_missing_from_a_merge_is_told() {
    let one = part(&json!([observation("a", "match")]), Some("https://ehr.example/r4/x?page=2"));
    let refused = br#"{"resourceType":"OperationOutcome","issue":[]}"#;
    let merged = merge(&[&one, refused], "s").unwrap();
    assert_eq!(merged.next, ["https://ehr.example/r4/x?page=2"]);
    let bundle: Value = serde_json::from_slice(&merged.bundle).unwrap();
    assert_eq!(bundle.get("total"), None);
    assert_eq!(bundle["entry"][1]["search"]["mode"], "outcome");
    assert!(merge(&[br#"{"resourceType":"Patient"}"#], "s").is_err());
    assert!(merge(&[br#"{"resourceType":"Bundle","type":"batch-response"}"#], "s").is_err());
    assert!(merge(&[b"<html>"], "s").is_err());
    let none = merge(&[], "s").unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&none.bundle).unwrap()["total"], 0);
}

#[test]
fn merged_entries_keep_their_bytes() {
    let body = br#"{"resourceType":"Bundle","type":"searchset","entry":[{"resource":{"resourceType":"Observation","id":"a","valueQuantity":{"value":1.00}}}]}"#;
    let merged = merge(&[body], "s").unwrap();
    assert!(String::from_utf8(merged.bundle).unwrap().contains(r#"{"value":1.00}"#));
}

#[test]
fn a_read_becomes_a_searchset() {
    let patient = br#"{"resourceType":"Patient","id":"1","x":1.00}"#;
    let one =
        searchset(Some(patient), "https://ehr.example/r4/Patient/1", "https://ehr.example/r4/Patient?_id=1").unwrap();
    assert_eq!(
        String::from_utf8(one).unwrap(),
        r#"{"resourceType":"Bundle","type":"searchset","total":1,"link":[{"relation":"self","url":"https://ehr.example/r4/Patient?_id=1"}],"entry":[{"fullUrl":"https://ehr.example/r4/Patient/1","resource":{"resourceType":"Patient","id":"1","x":1.00},"search":{"mode":"match"}}]}"#
    );
    let none: Value = serde_json::from_slice(&searchset(None, "", "s").unwrap()).unwrap();
    assert_eq!((&none["total"], none.get("entry")), (&json!(0), None));
    assert!(searchset(Some(b"{"), "", "").is_err());
}

#[test]
fn outcomes() {
    let outcome = OperationOutcome::error("forbidden", "Condition was asked for: the grant has no scope for it.")
        .coded("scope-missing")
        .with_id("0193-x")
        .with_diagnostics("d")
        .at("Bundle.entry[2]");
    let json: Value = serde_json::from_slice(&outcome.to_json()).unwrap();
    assert_eq!(
        json,
        json!({
            "resourceType": "OperationOutcome",
            "id": "0193-x",
            "issue": [{
                "severity": "error",
                "code": "forbidden",
                "details": {
                    "coding": [{"system": "urn:mantel:outcome", "code": "scope-missing"}],
                    "text": "Condition was asked for: the grant has no scope for it.",
                },
                "diagnostics": "d",
                "expression": ["Bundle.entry[2]"],
            }],
        })
    );
    let plain: Value =
        serde_json::from_slice(&OperationOutcome::new(Severity::Warning, "throttled", "t").with_id("no id").to_json())
            .unwrap();
    assert_eq!(
        plain,
        json!({"resourceType": "OperationOutcome", "issue": [{"severity": "warning", "code": "throttled", "details": {"text": "t"}}]})
    );
}

fn endpoints() -> OurEndpoints {
    OurEndpoints {
        base: CALLED.into(),
        description: "General Hospital".into(),
        version: "1.2.3".into(),
        date: "2026-11-01T00:00:00Z".into(),
        authorize: Some("https://mantel.example/oauth/authorize".into()),
        token: Some("https://mantel.example/oauth/token".into()),
        register: None,
        manage: Some("https://mantel.example/manage".into()),
        introspect: None,
        revoke: None,
    }
}

#[test]
fn a_trimmed_capability_statement_is_ours() {
    let upstream = json!({
        "resourceType": "CapabilityStatement", "url": "https://ehr.example/r4/metadata", "fhirVersion": "4.0.1", "publisher": "EHR",
        "implementation": {"url": "https://ehr.example/r4"}, "implementationGuide": ["http://hl7.org/fhir/us/core|5"],
        "messaging": [{}], "contained": [{"resourceType": "Patient"}],
        "rest": [{
            "mode": "server",
            "security": {"extension": [{"url": "http://DSTU2/fhir-registry", "valueUri": "https://ehr.example/authorize"}]},
            "interaction": [{"code": "transaction"}, {"code": "odd"}],
            "operation": [{"name": "export", "definition": "d"}, {"name": "purge-all"}],
            "resource": [
                {"type": "Patient", "interaction": [{"code": "read"}, {"code": "merge"}], "searchParam": [{"name": "_id", "type": "token"}],
                 "operation": [{"name": "$everything", "definition": "d"}, {"name": "merge"}, {"name": "lastn"}], "x": 1},
                {"type": "EHRThing", "interaction": [{"code": "read"}]},
            ],
        }],
    });
    let ours = trim(&upstream, &endpoints());
    let text = ours.to_string();
    for foreign in
        ["ehr.example", "purge", "merge", "odd", "EHRThing", "lastn", "messaging", "contained", "publisher", "\"x\""]
    {
        assert!(!text.contains(foreign), "{foreign}: {text}");
    }
    assert_eq!(ours["implementation"]["url"], CALLED);
    assert_eq!(ours["implementationGuide"], upstream["implementationGuide"]);
    let rest = &ours["rest"][0];
    assert_eq!(rest["interaction"], json!([{"code": "batch"}, {"code": "transaction"}]));
    assert_eq!(rest["operation"], json!([{"name": "export", "definition": "d"}]));
    assert_eq!(
        rest["resource"],
        json!([{"type": "Patient", "searchParam": [{"name": "_id", "type": "token"}], "interaction": [{"code": "read"}], "operation": [{"name": "$everything", "definition": "d"}]}])
    );
    assert_eq!(rest["security"]["service"][0]["coding"][0]["code"], "SMART-on-FHIR");
    assert_eq!(
        rest["security"]["extension"][0],
        json!({"url": "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris", "extension": [
            {"url": "authorize", "valueUri": "https://mantel.example/oauth/authorize"},
            {"url": "token", "valueUri": "https://mantel.example/oauth/token"},
            {"url": "manage", "valueUri": "https://mantel.example/manage"},
        ]})
    );
}

#[test]
fn hl7s_and_nonsensical_statements_are_trimmed() {
    for name in ["CapabilityStatement-example", "CapabilityStatement-phr"] {
        let path = format!("{}/tests/fixtures/fhir/official/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let upstream: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let ours = trim(&upstream, &endpoints());
        assert_eq!(
            ours["rest"][0]["resource"].as_array().unwrap().len(),
            upstream["rest"][0]["resource"].as_array().unwrap().len()
        );
    }
    for odd in
        [json!(null), json!([]), json!({"rest": []}), json!({"rest": [{"mode": "client"}]}), json!({"rest": "x"})]
    {
        let ours = trim(&odd, &endpoints());
        assert_eq!(
            (ours["resourceType"].as_str(), ours["rest"][0].get("resource")),
            (Some("CapabilityStatement"), None)
        );
    }
    let least = minimal(&endpoints(), &["Patient", "Nothing"]);
    assert_eq!(
        least["rest"][0]["resource"],
        json!([{"type": "Patient", "interaction": [{"code": "read"}, {"code": "search-type"}]}])
    );
}

#[test]
fn the_uniform_base_announces_what_any_site_can() {
    let site = |resources: Value| trim(&json!({"rest": [{"mode": "server", "resource": resources}]}), &endpoints());
    let one = site(
        json!([{"type": "Patient", "interaction": [{"code": "read"}], "searchParam": [{"name": "_id"}], "readHistory": false}]),
    );
    let two = site(json!([
        {"type": "Condition", "interaction": [{"code": "read"}]},
        {"type": "Patient", "interaction": [{"code": "read"}, {"code": "search-type"}], "searchParam": [{"name": "name"}], "readHistory": true, "profile": "p"},
    ]));
    assert_eq!(
        union(&[one, two], &endpoints())["rest"][0]["resource"],
        json!([
            {"type": "Condition", "interaction": [{"code": "read"}]},
            {"type": "Patient", "readHistory": true, "searchParam": [{"name": "_id"}, {"name": "name"}], "interaction": [{"code": "read"}, {"code": "search-type"}], "profile": "p"},
        ])
    );
}

#[test]
fn operations_are_a_closed_table() {
    assert_eq!(
        find("everything", Some("Patient"), true).map(|operation| operation.patient),
        Some(PatientRule::UrlIsPatient)
    );
    assert_eq!(find("everything", Some("Patient"), false), None);
    assert_eq!(find("everything", Some("Practitioner"), true), None);
    assert_eq!(find("validate", Some("Observation"), false).map(|operation| operation.needs), Some(Needs::OnType("c")));
    assert_eq!(
        find("docref", Some("DocumentReference"), false).map(|operation| operation.patient),
        Some(PatientRule::Parameter("patient"))
    );
    assert!(find("export", None, false).is_some_and(|operation| operation.system_only));
    for unknown in ["graphql", "process-message", "merge", "meta-add", "closure", ""] {
        assert_eq!(find(unknown, None, false), None);
        assert_eq!(find(unknown, Some("Patient"), true), None);
    }
    for operation in OPERATIONS {
        assert!(operation.types.iter().all(|name| is_resource_type(name)), "{}", operation.name);
        assert!(operation.level != Level::System || operation.types.is_empty());
        let (Needs::OnAll(letters) | Needs::OnType(letters)) = operation.needs;
        assert!(!letters.is_empty() && letters.bytes().all(|letter| b"cruds".contains(&letter)));
        // Each is found, and as itself.
        let resource_type = (operation.level != Level::System).then(|| *operation.types.first().unwrap_or(&"Patient"));
        let found = find(operation.name, resource_type, operation.level == Level::Instance).unwrap();
        assert_eq!(found, operation);
    }
}

#[test]
fn posted_parameters_are_judged_like_those_of_a_get() {
    let body = json!({"resourceType": "Parameters", "parameter": [
        {"name": "patient", "valueId": "1"}, {"name": "on-demand", "valueBoolean": true}, {"name": "subject", "valueReference": {"reference": "Patient/1", "display": "x"}},
    ]});
    let pairs = simple_parameters(body.to_string().as_bytes()).unwrap();
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(pairs, [("patient", "1"), ("on-demand", "true"), ("subject", "Patient/1")]);
    for odd in [
        json!({"name": "x", "resource": {"resourceType": "Patient"}}),
        json!({"name": "x", "part": []}),
        json!({"name": "x", "valueString": "1", "valueId": "2"}),
        json!({"name": "x", "valueIdentifier": {"value": "1"}}),
        json!({"name": "x", "valueReference": {"identifier": {"value": "1"}}}),
        json!({"name": "x"}),
        json!("x"),
    ] {
        let body = json!({"resourceType": "Parameters", "parameter": [odd]});
        assert!(simple_parameters(body.to_string().as_bytes()).is_err(), "{body}");
    }
    assert!(simple_parameters(b"{\"resourceType\":\"Patient\"}").is_err());
    assert_eq!(simple_parameters(b"{\"resourceType\":\"Parameters\"}"), Ok(vec![]));
}
