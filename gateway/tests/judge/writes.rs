//! Create, update, patch, delete.

use http::header::IF_MATCH;
use mantel::{
    error::Kind,
    proxy::judge::{Judged, Mode},
};

use crate::setup::{Ehr, Ehr::*, Sent, Setting, World, described};

const OURS: &str = r#"{"resourceType":"Observation","id":"1","status":"final","category":[{"coding":[{"code":"laboratory"}]}],"subject":{"reference":"Patient/p1"}}"#;
const OTHERS: &str = r#"{"resourceType":"Observation","id":"1","status":"final","subject":{"reference":"Patient/p2"}}"#;

fn observation(members: &str) -> String {
    format!(r#"{{"resourceType":"Observation","id":"1","status":"final"{members}}}"#)
}

#[test]
fn bodies_are_judged() {
    let absolute = observation(r#","subject":{"reference":"https://mantel.example/fhir/r4/Patient/p1"}"#);
    let performer_only = observation(r#","performer":[{"reference":"Patient/p1"}]"#);
    let other_performed_by_ours =
        observation(r#","subject":{"reference":"Patient/p2"},"performer":[{"reference":"Patient/p1"}]"#);
    let ours_performed_by_other =
        observation(r#","subject":{"reference":"Patient/p1"},"performer":[{"reference":"Patient/p2"}]"#);
    let logical = observation(
        r#","subject":{"type":"Patient","identifier":{"value":"1"}},"performer":[{"reference":"Patient/p1"}]"#,
    );
    let conditional = observation(r#","subject":{"reference":"Patient?identifier=1"}"#);
    let uuid = observation(r#","subject":{"reference":"urn:uuid:61ebe359-bfdc-4613-8bf2-c5e300945f0a"}"#);
    let twice = observation(r#","subject":{"reference":"Patient/p1"},"subject":{"reference":"Patient/p2"}"#);
    let twice_inside = observation(r#","subject":{"reference":"Patient/p1","reference":"Patient/p2"}"#);
    let contained = observation(r##","subject":{"reference":"#a"},"contained":[{"resourceType":"Patient","id":"a"}]"##);
    let contained_other = observation(
        r#","subject":{"reference":"Patient/p1"},"contained":[{"resourceType":"Condition","id":"a","subject":{"reference":"Patient/p2"}}]"#,
    );
    let elsewhere = observation(r#","subject":{"reference":"https://elsewhere.example/Patient/p1"}"#);
    let none = observation("");
    let rows: [(&str, Ehr, &str, &str, &str); 46] = [
        ("user/Observation.c", Silent, "POST Observation", OTHERS, "stream Observation"),
        ("user/Observation.c", Silent, "POST Observation", r#"{"resourceType":"Patient"}"#, "400"),
        ("user/Observation.c", Silent, "POST Observation", "[]", "400"),
        (
            "user/Observation.c",
            Silent,
            "POST Observation",
            r#"{"resourceType":"Observation","resourceType":"Patient"}"#,
            "400",
        ),
        ("user/Observation.u", Silent, "POST Observation", OURS, "403"),
        ("user/Observation.rs", Silent, "POST Observation", OURS, "403"),
        ("patient/Observation.c", Silent, "POST Observation", OURS, "inspect Observation"),
        ("patient/Observation.c", Same, "POST Observation", OURS, "stream Observation"),
        ("patient/Observation.c", Says("patient/Observation.cruds"), "POST Observation", OURS, "inspect Observation"),
        ("patient/Observation.cud", Silent, "POST Observation", &absolute, "inspect Observation"),
        ("patient/Observation.c", Silent, "POST Observation", OTHERS, "403"),
        ("patient/Observation.c", Same, "POST Observation", OTHERS, "403"),
        ("patient/Observation.c", Same, "POST Observation", &performer_only, "403"),
        ("patient/Observation.c", Same, "POST Observation", &other_performed_by_ours, "403"),
        ("patient/Observation.c", Same, "POST Observation", &ours_performed_by_other, "403"),
        ("patient/Observation.c", Same, "POST Observation", &logical, "403"),
        ("patient/Observation.c", Same, "POST Observation", &conditional, "403"),
        ("patient/Observation.c", Same, "POST Observation", &uuid, "403"),
        ("patient/Observation.c", Same, "POST Observation", &twice, "403"),
        ("patient/Observation.c", Same, "POST Observation", &twice_inside, "403"),
        ("patient/Observation.c", Same, "POST Observation", &contained, "403"),
        ("patient/Observation.c", Same, "POST Observation", &contained_other, "403"),
        ("patient/Observation.c", Same, "POST Observation", &elsewhere, "403"),
        ("patient/Observation.c", Same, "POST Observation", &none, "403"),
        ("patient/*.c", Same, "POST Patient", r#"{"resourceType":"Patient","id":"p1"}"#, "403"),
        ("patient/*.c", Silent, "POST Patient", r#"{"resourceType":"Patient"}"#, "403"),
        ("patient/*.c", Silent, "POST Medication", r#"{"resourceType":"Medication"}"#, "403"),
        ("patient/*.c", Same, "POST Medication", r#"{"resourceType":"Medication"}"#, "stream Medication"),
        ("patient/*.c", Silent, "POST Binary", r#"{"resourceType":"Binary"}"#, "403"),
        ("patient/Observation.c?category=laboratory", Same, "POST Observation", OURS, "inspect Observation"),
        ("patient/Observation.c?category=vital-signs", Same, "POST Observation", OURS, "403"),
        ("user/Observation.c?category=laboratory", Same, "POST Observation", OURS, "inspect Observation"),
        ("user/Observation.c?category=laboratory", Same, "POST Observation", OTHERS, "403"),
        // Updates: the current version first, where the EHR does not confine.
        ("user/Observation.u", Silent, "PUT Observation/1", OTHERS, "stream Observation/1"),
        ("user/Observation.u", Silent, "PUT Observation/2", OTHERS, "400"),
        ("user/Observation.c", Silent, "PUT Observation/1", OTHERS, "403"),
        ("patient/Observation.u", Silent, "PUT Observation/1", OURS, "read-first Observation/1"),
        ("patient/Observation.u", Same, "PUT Observation/1", OURS, "stream Observation/1"),
        ("patient/Observation.u", Silent, "PUT Observation/1", OTHERS, "403"),
        ("patient/Observation.u", Same, "PUT Observation/1", OTHERS, "403"),
        (
            "patient/Patient.u",
            Silent,
            "PUT Patient/p1",
            r#"{"resourceType":"Patient","id":"p1"}"#,
            "read-first Patient/p1",
        ),
        ("patient/Patient.u", Same, "PUT Patient/p2", r#"{"resourceType":"Patient","id":"p2"}"#, "403"),
        ("patient/Patient.u", Same, "PUT Patient/p1", r#"{"resourceType":"Patient","id":"p2"}"#, "400"),
        ("patient/Observation.u?category=laboratory", Same, "PUT Observation/1", OURS, "read-first Observation/1"),
        ("user/Observation.u?category=laboratory", Same, "PUT Observation/1", OURS, "read-first Observation/1"),
        ("patient/*.u", Silent, "PUT Medication/1", r#"{"resourceType":"Medication","id":"1"}"#, "403"),
    ];
    for (scopes, ehr, line, body, expected) in rows {
        let world = World::new(scopes, ehr);
        assert_eq!(world.verdict(&Sent::new(line).json(body)), expected, "{scopes} {ehr:?} {line} {body}");
    }
}

#[test]
fn only_json_can_be_judged_by_content() {
    let xml = r#"<?xml version="1.0"?><Observation xmlns="http://hl7.org/fhir"/>"#;
    let rows = [
        ("user/Observation.cu", "POST Observation", "application/fhir+xml", xml, "stream Observation"),
        ("user/Observation.cu", "POST Observation", "application/fhir+xml", "<Patient/>", "400"),
        ("user/Observation.cu", "POST Observation", "text/xml", "<!DOCTYPE x []><Observation/>", "400"),
        ("patient/Observation.cu", "POST Observation", "application/fhir+xml", xml, "415"),
        ("user/Binary.c", "POST Binary", "image/png", "…", "stream Binary"),
        ("user/Observation.u", "PATCH Observation/1", "application/xml-patch+xml", "<diff/>", "stream Observation/1"),
    ];
    for (scopes, line, content_type, body, expected) in rows {
        let world = World::new(scopes, Same);
        assert_eq!(world.verdict(&Sent::new(line).body(content_type, body)), expected, "{line} {body}");
    }
}

#[test]
fn patches_leave_the_owner_alone() {
    let rows = [
        (r#"[{"op":"replace","path":"/status","value":"final"}]"#, "read-first Observation/1"),
        (r#"[{"op":"add","path":"/note/-","value":{"text":"Patient/p2"}}]"#, "read-first Observation/1"),
        (r#"[{"op":"replace","path":"/subject/reference","value":"Patient/p2"}]"#, "403"),
        (r#"[{"op":"replace","path":"/subject","value":{"reference":"Patient/p2"}}]"#, "403"),
        (r#"[{"op":"remove","path":"/subject"}]"#, "403"),
        (r#"[{"op":"add","path":"/performer/0","value":{"reference":"Patient/p2"}}]"#, "403"),
        (r#"[{"op":"replace","path":"","value":{}}]"#, "403"),
        (r#"[{"op":"replace","path":"/","value":{}}]"#, "403"),
        (r#"[{"op":"replace","path":"/id","value":"2"}]"#, "403"),
        (r#"[{"op":"add","path":"/contained","value":[]}]"#, "403"),
        (r#"[{"op":"add","path":"/_subject","value":{}}]"#, "403"),
        (r#"[{"op":"replace","path":"/resourceType","value":"Patient"}]"#, "403"),
        (r#"[{"op":"copy","from":"/focus/0","path":"/subject"}]"#, "403"),
        (r#"[{"op":"replace","path":"/status","path":"/subject","value":{}}]"#, "403"),
        (r#"[{"op":"replace","path":"/status"},{"op":"replace","path":"/subject"}]"#, "403"),
        (r#"[{"op":"replace","path":"subject"}]"#, "403"),
        (r#"[["replace","/status"]]"#, "403"),
        (r#"{"op":"replace","path":"/status"}"#, "403"),
        ("", "403"),
    ];
    let world = World::new("patient/Observation.u", Silent);
    for (patch, expected) in rows {
        let sent = Sent::new("PATCH Observation/1").body("application/json-patch+json", patch);
        assert_eq!(world.verdict(&sent), expected, "{patch}");
    }
    let moved = Sent::new("PATCH Observation/1")
        .body("application/json-patch+json", r#"[{"op":"replace","path":"/subject","value":{}}]"#);
    assert_eq!(World::new("patient/Observation.u", Same).verdict(&moved), "403");
    assert_eq!(World::new("user/Observation.u", Silent).verdict(&moved), "stream Observation/1");
    let fhirpath = Sent::new("PATCH Observation/1").json(r#"{"resourceType":"Parameters"}"#);
    assert_eq!(world.verdict(&fhirpath), "415");
    let status = Sent::new("PATCH Observation/1").body("application/json-patch+json", "[]");
    assert_eq!(World::new("patient/Observation.u?category=laboratory", Same).verdict(&status), "403");
}

#[test]
fn deletes() {
    let rows = [
        ("user/Observation.d", Silent, "DELETE Observation/1", "stream Observation/1"),
        ("user/Observation.cu", Silent, "DELETE Observation/1", "403"),
        ("patient/Observation.d", Silent, "DELETE Observation/1", "read-first Observation/1"),
        ("patient/Observation.d", Same, "DELETE Observation/1", "stream Observation/1"),
        ("patient/*.d", Same, "DELETE Patient/p2", "403"),
        ("patient/*.d", Silent, "DELETE Binary/1", "403"),
        ("patient/*.d", Silent, "DELETE Organization/1", "403"),
    ];
    for (scopes, ehr, line, expected) in rows {
        assert_eq!(World::new(scopes, ehr).verdict(&Sent::new(line)), expected, "{scopes} {line}");
    }
}

#[test]
fn conditional_forms_are_searches_too() {
    let rows = [
        ("user/Observation.cs", Silent, "POST Observation", "identifier=1", "stream Observation"),
        ("user/Observation.c", Silent, "POST Observation", "identifier=1", "403"),
        ("patient/Observation.c", Same, "POST Observation", "identifier=1", "403"),
        ("patient/Observation.cs", Same, "POST Observation", "identifier=1", "stream Observation"),
        ("patient/Observation.cs", Silent, "POST Observation", "identifier=1", "inspect Observation"),
        ("patient/Observation.cs", Same, "POST Observation", "subject=Patient/p2", "403"),
        ("patient/Observation.cs", Silent, "POST Observation", "_id=7", "403"),
        ("patient/Observation.cs", Silent, "POST Observation", "_has:Provenance:target:agent=1", "403"),
        ("patient/Observation.cs", Silent, "POST Observation", "", "400"),
    ];
    for (scopes, ehr, line, condition, expected) in rows {
        let sent = Sent::new(line).json(OURS).header("if-none-exist", condition);
        assert_eq!(World::new(scopes, ehr).verdict(&sent), expected, "{scopes} {condition}");
    }
    let sent = Sent::new("POST Observation").json(OURS).header("if-none-exist", "?identifier=a%7C1");
    let Ok(Judged::Forward(authorized)) = World::new("patient/Observation.cs", Silent).judge(&sent) else { panic!() };
    assert_eq!(authorized.request().headers["if-none-exist"], "identifier=a%7C1&patient=p1");

    let rows = [
        ("user/Observation.us", Silent, "PUT Observation?identifier=1", "stream Observation?identifier=1"),
        ("user/Observation.u", Silent, "PUT Observation?identifier=1", "403"),
        ("patient/Observation.us", Same, "PUT Observation?identifier=1", "stream Observation?identifier=1&patient=p1"),
        ("patient/Observation.us", Silent, "PUT Observation?identifier=1", "403"),
        ("patient/Observation.us", Same, "PUT Observation?patient=p2", "403"),
    ];
    for (scopes, ehr, line, expected) in rows {
        assert_eq!(World::new(scopes, ehr).verdict(&Sent::new(line).json(OURS)), expected, "{scopes} {line}");
    }
    let rows = [
        ("user/Observation.ds", Silent, "DELETE Observation?patient=p2", "stream Observation?patient=p2"),
        ("user/Observation.d", Silent, "DELETE Observation?patient=p2", "403"),
        ("patient/Observation.ds", Same, "DELETE Observation?code=1", "stream Observation?code=1&patient=p1"),
        ("patient/Observation.ds", Silent, "DELETE Observation?code=1", "403"),
        ("patient/Observation.ds", Same, "DELETE Observation?subject=Patient/p2", "403"),
    ];
    for (scopes, ehr, line, expected) in rows {
        assert_eq!(World::new(scopes, ehr).verdict(&Sent::new(line)), expected, "{scopes} {line}");
    }
}

#[test]
fn a_condition_that_only_a_create_has_goes_nowhere_else() {
    let sent = put().header("if-none-exist", "patient=p2");
    let Ok(Judged::Forward(authorized)) = World::new("patient/Observation.us", Same).judge(&sent) else { panic!() };
    assert!(!authorized.request().headers.contains_key("if-none-exist"));
}

fn put() -> Sent {
    Sent::new("PUT Observation/1").json(OURS)
}

#[test]
fn a_write_is_bound_to_the_version_that_was_judged() {
    let world = World::new("patient/Observation.u", Silent);
    let authorized = world.read_first(&put()).finish(OURS.as_bytes(), Some("W/\"7\"")).unwrap();
    assert_eq!(authorized.request().headers[IF_MATCH], "W/\"7\"");
    assert_eq!(described(&authorized), "inspect Observation/1");

    let with_version = OURS.replace("\"status\"", "\"meta\":{\"versionId\":\"8\"},\"status\"");
    let authorized = world.read_first(&put()).finish(with_version.as_bytes(), None).unwrap();
    assert_eq!(authorized.request().headers[IF_MATCH], "W/\"8\"");

    let own = put().header("if-match", "W/\"3\"");
    let authorized = world.read_first(&own).finish(OURS.as_bytes(), Some("W/\"7\"")).unwrap();
    assert_eq!(authorized.request().headers[IF_MATCH], "W/\"3\"");

    for loose in ["*", "W/\"3\", W/\"7\""] {
        let authorized = world.read_first(&put().header("if-match", loose)).finish(OURS.as_bytes(), Some("W/\"7\""));
        assert_eq!(authorized.unwrap().request().headers[IF_MATCH], "W/\"7\"");
    }
    for etag in [None, Some(""), Some("*")] {
        let error = world.read_first(&put()).finish(OURS.as_bytes(), etag).err().unwrap();
        assert_eq!(error.kind, Kind::Forbidden);
    }
}

#[test]
fn what_is_not_ours_now_is_as_if_it_were_not_there() {
    let not_found = mantel::proxy::judge::not_found();
    let other_id = OURS.replace("\"id\":\"1\"", "\"id\":\"2\"");
    let other_type = r#"{"resourceType":"Condition","id":"1","subject":{"reference":"Patient/p1"}}"#;
    let performed = observation(r#","subject":{"reference":"Patient/p2"},"performer":[{"reference":"Patient/p1"}]"#);
    for current in [OTHERS, &other_id, other_type, &performed, "{}", "<Observation/>", ""] {
        let world = World::new("patient/Observation.ud", Silent);
        for sent in [put(), Sent::new("DELETE Observation/1")] {
            let error = world.read_first(&sent).finish(current.as_bytes(), Some("W/\"7\"")).err().unwrap();
            assert_eq!((error.kind, &error.public), (Kind::NotFound, &not_found.public), "{current}");
        }
    }
    // Outside the query before, inside after.
    let world = World::new("user/Observation.u?category=laboratory", Silent);
    let before = OURS.replace("laboratory", "vital-signs");
    assert_eq!(world.read_first(&put()).finish(before.as_bytes(), Some("W/\"7\"")).err().unwrap().kind, Kind::NotFound);
    assert!(world.read_first(&put()).finish(OURS.as_bytes(), Some("W/\"7\"")).is_ok());
}

#[test]
fn the_reading_is_a_plain_one() {
    let world = World::new("patient/Observation.d", Silent);
    let Ok(Judged::ReadFirst { read, .. }) = world.judge(&Sent::new("DELETE Observation/1?_format=json")) else {
        panic!()
    };
    assert_eq!(read.request().method, http::Method::GET);
    assert!(read.request().query.is_empty() && read.request().body.is_empty());
    assert_eq!(read.request().headers.len(), 1);
    assert!(matches!(read.mode(), Mode::Inspect(inspection) if inspection.is_by_id()));
}

#[test]
fn an_operator_can_have_open_writes_inspected() {
    let world = World::with(Setting::AppInspects, "user/Observation.u", Silent);
    assert_eq!(world.verdict(&put()), "inspect Observation/1");
}
