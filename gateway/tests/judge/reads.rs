//! Reads, versions and histories.

use crate::setup::{Ehr, Ehr::*, Row, Sent, Setting, World, check};

const ROWS: &[Row] = &[
    // user/ and system/: whatever the EHR shows.
    ("user/Observation.rs", Silent, "GET Observation/1", "stream Observation/1"),
    ("user/Observation.r", Silent, "GET Observation/1", "stream Observation/1"),
    ("user/Observation.s", Silent, "GET Observation/1", "403"),
    ("user/Observation.cud", Silent, "GET Observation/1", "403"),
    ("user/*.read", Silent, "GET Binary/1", "stream Binary/1"),
    ("system/*.rs", Silent, "GET Patient/p2", "stream Patient/p2"),
    ("user/Observation.rs", Silent, "GET Condition/1", "403"),
    ("openid fhirUser", Silent, "GET Observation/1", "403"),
    // patient/: by the EHR, or by content.
    ("patient/Observation.rs", Silent, "GET Observation/1", "inspect Observation/1"),
    ("patient/Observation.rs", Same, "GET Observation/1", "stream Observation/1"),
    ("patient/Observation.r", Same, "GET Observation/1", "stream Observation/1"),
    ("patient/Observation.s", Same, "GET Observation/1", "403"),
    ("patient/*.rs", Same, "GET Observation/1", "stream Observation/1"),
    ("patient/Observation.rs", Says("patient/*.rs"), "GET Observation/1", "stream Observation/1"),
    (
        "patient/Observation.rs",
        Says("patient/Observation.rs user/Observation.rs"),
        "GET Observation/1",
        "inspect Observation/1",
    ),
    ("patient/Observation.rs", Says("patient/Observation.rs user/*.c"), "GET Observation/1", "inspect Observation/1"),
    (
        "patient/Observation.rs",
        Says("patient/Observation.rs user/Condition.rs"),
        "GET Observation/1",
        "stream Observation/1",
    ),
    (
        "patient/Observation.rs",
        Says("patient/Observation.rs system/*.rs"),
        "GET Observation/1",
        "inspect Observation/1",
    ),
    ("patient/Observation.rs", Says("patient/Condition.rs"), "GET Observation/1", "inspect Observation/1"),
    ("patient/Observation.rs", Says("user/Observation.rs"), "GET Observation/1", "inspect Observation/1"),
    ("patient/Observation.rs", Says("openid"), "GET Observation/1", "inspect Observation/1"),
    // Narrower than the EHR's token, by permission or query.
    ("patient/Observation.r", Says("patient/Observation.rs"), "GET Observation/1", "inspect Observation/1"),
    ("patient/Observation.rs", Says("patient/Observation.cruds"), "GET Observation/1", "stream Observation/1"),
    ("patient/Observation.rs?category=laboratory", Same, "GET Observation/1", "inspect Observation/1"),
    (
        "patient/Observation.rs?category=laboratory",
        Says("patient/Observation.rs"),
        "GET Observation/1",
        "inspect Observation/1",
    ),
    ("user/Observation.rs?category=laboratory", Silent, "GET Observation/1", "inspect Observation/1"),
    // A query that nobody can decide opens nothing.
    ("patient/Observation.rs?_has:x=1", Silent, "GET Observation/1", "403"),
    ("user/Observation.rs?value-quantity=5", Silent, "GET Observation/1", "403"),
    ("patient/MedicationRequest.rs?code=1", Same, "GET MedicationRequest/1", "403"),
    // The broader of two wins.
    ("patient/Observation.rs user/Observation.rs", Silent, "GET Observation/1", "stream Observation/1"),
    ("patient/Observation.s user/Observation.c", Silent, "GET Observation/1", "403"),
    // Patients: ours and no other, before the EHR is asked.
    ("patient/Patient.rs", Silent, "GET Patient/p1", "inspect Patient/p1"),
    ("patient/Patient.rs", Same, "GET Patient/p1", "stream Patient/p1"),
    ("patient/Patient.rs", Silent, "GET Patient/p2", "403"),
    ("patient/Patient.rs", Same, "GET Patient/p2", "403"),
    ("patient/*.rs", Same, "GET Patient/P1", "403"),
    ("patient/Patient.rs", Same, "GET Patient/p2/_history/1", "403"),
    ("patient/Patient.rs", Same, "GET Patient/p2/_history", "403"),
    // Types that are nobody's pass; those that do not say whose they are do not.
    ("patient/Practitioner.rs", Silent, "GET Practitioner/1", "inspect Practitioner/1"),
    ("patient/*.rs", Same, "GET Organization/1", "stream Organization/1"),
    ("patient/*.rs", Silent, "GET Medication/1", "inspect Medication/1"),
    ("patient/Observation.rs", Silent, "GET Practitioner/1", "403"),
    ("patient/*.rs", Silent, "GET Binary/1", "403"),
    ("patient/*.rs", Same, "GET Binary/1", "stream Binary/1"),
    ("patient/Binary.r", Says("patient/Binary.r user/Binary.r"), "GET Binary/1", "403"),
    ("patient/*.rs", Silent, "GET Bundle/1", "403"),
    ("patient/*.rs", Silent, "GET Parameters/1", "403"),
    // One's own record, whatever else is granted.
    ("openid fhirUser", Silent, "GET Practitioner/me", "stream Practitioner/me"),
    ("openid profile", Silent, "GET Practitioner/me", "stream Practitioner/me"),
    ("openid fhirUser", Silent, "HEAD Practitioner/me", "stream Practitioner/me"),
    ("openid", Silent, "GET Practitioner/me", "403"),
    ("fhirUser", Silent, "GET Practitioner/me", "403"),
    ("openid fhirUser", Silent, "GET Practitioner/other", "403"),
    ("openid fhirUser", Silent, "GET Patient/me", "403"),
    ("openid fhirUser", Silent, "GET Practitioner/me/_history", "403"),
    ("openid fhirUser", Silent, "DELETE Practitioner/me", "403"),
    // Versions and histories.
    ("patient/Observation.r", Silent, "GET Observation/1/_history/2", "inspect Observation/1/_history/2"),
    ("patient/Observation.r", Same, "GET Observation/1/_history", "stream Observation/1/_history"),
    ("patient/Observation.r", Silent, "GET Observation/1/_history", "inspect Observation/1/_history"),
    ("patient/Observation.s", Silent, "GET Observation/1/_history", "403"),
    ("user/Observation.s", Silent, "GET Observation/_history", "stream Observation/_history"),
    ("user/Observation.r", Silent, "GET Observation/_history", "403"),
    ("patient/Observation.rs", Silent, "GET Observation/_history", "403"),
    ("patient/Observation.rs", Same, "GET Observation/_history", "stream Observation/_history"),
    ("user/Observation.rs?category=laboratory", Silent, "GET Observation/_history", "403"),
    ("user/*.rs", Silent, "GET _history", "stream _history"),
    ("user/Observation.rs", Silent, "GET _history", "403"),
    ("patient/*.rs", Silent, "GET _history", "403"),
    ("user/Observation.rs", Silent, "GET Observation/_history?_list=1", "403"),
    // What shapes an answer is taken out where its content decides.
    (
        "patient/Observation.rs",
        Silent,
        "GET Observation/1?_elements=code&_pretty=true",
        "inspect Observation/1?_pretty=true",
    ),
    ("patient/Observation.rs", Silent, "GET Observation/1?_summary=text", "inspect Observation/1"),
    ("patient/Observation.rs", Silent, "GET Observation/1?_summary=count", "403"),
    ("patient/Observation.rs", Same, "GET Observation/1?_elements=code", "stream Observation/1?_elements=code"),
    ("patient/Observation.rs", Silent, "GET Observation/1?_format=json", "inspect Observation/1"),
    ("patient/Observation.rs", Silent, "GET Observation/1?_format=application/fhir+json", "inspect Observation/1"),
    ("patient/Observation.rs", Silent, "GET Observation/1?_format=xml", "406"),
    ("patient/Observation.rs", Silent, "GET Observation/1?_format=json&_format=xml", "406"),
    ("patient/Observation.rs", Same, "GET Observation/1?_format=xml", "stream Observation/1?_format=xml"),
    ("openid", Silent, "GET metadata", "stream metadata"),
    ("user/*.cruds", Silent, "GET ?_getpages=abc", "403"),
];

#[test]
fn reads() {
    check(ROWS);
}

#[test]
fn a_missing_patient_denies() {
    for ehr in [Silent, Same] {
        for line in ["GET Observation/1", "GET Patient/p1", "GET Practitioner/1", "GET Observation?patient=p1"] {
            let world = World::new("patient/*.cruds", ehr).without_patient();
            assert_eq!(world.verdict(&Sent::new(line)), "403", "{line}");
        }
        let world = World::new("patient/*.cruds user/Observation.rs", ehr).without_patient();
        assert_eq!(world.verdict(&Sent::new("GET Observation/1")), "stream Observation/1");
    }
}

#[test]
fn a_patient_chosen_here_is_not_the_one_that_the_ehr_confines_to() {
    let sent = Sent::new("GET Observation/1");
    let launched = World::with(Setting::Picker, "patient/Observation.rs", Same);
    assert_eq!(launched.verdict(&sent), "stream Observation/1");
    assert_eq!(launched.standalone().verdict(&sent), "inspect Observation/1");
    assert_eq!(World::new("patient/Observation.rs", Same).standalone().verdict(&sent), "stream Observation/1");
}

#[test]
fn operators_and_plans_can_demand_inspection() {
    let line = "GET Observation/1";
    for scopes in ["patient/Observation.rs", "user/Observation.rs"] {
        let by_app = World::with(Setting::AppInspects, scopes, Same);
        let by_site = World::with(Setting::SiteInspects, scopes, Same);
        let mut by_plan = World::new(scopes, Same);
        by_plan.inspect = true;
        for world in [by_app, by_site, by_plan] {
            assert_eq!(world.verdict(&Sent::new(line)), "inspect Observation/1");
        }
    }
}

#[test]
fn an_inspected_answer_is_asked_for_whole_in_json() {
    let world = World::new("patient/Observation.rs", Silent);
    let sent = Sent::new("HEAD Observation/1")
        .header("if-none-match", "W/\"1\"")
        .header("if-modified-since", "Mon, 23 Nov 2026 00:00:00 GMT")
        .header("prefer", "respond-async")
        .header("accept-language", "de");
    let Ok(mantel::proxy::judge::Judged::Forward(authorized)) = world.judge(&sent) else { panic!() };
    let request = authorized.request();
    assert_eq!(request.method, http::Method::GET);
    let names: Vec<_> = request.headers.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["accept-language", "accept"]);
    assert_eq!(request.headers["accept"], "application/fhir+json");

    for (accept, expected) in [
        ("application/fhir+json", "inspect Observation/1"),
        ("application/json;q=0.5, application/fhir+xml", "inspect Observation/1"),
        ("text/html, */*;q=0.1", "inspect Observation/1"),
        ("application/fhir+xml", "406"),
        ("application/fhir+xml, */*;q=0", "406"),
        ("text/turtle", "406"),
    ] {
        assert_eq!(world.verdict(&Sent::new("GET Observation/1").header("accept", accept)), expected, "{accept}");
    }
    let streamed = World::new("patient/Observation.rs", Same);
    let sent =
        Sent::new("GET Observation/1").header("accept", "application/fhir+xml").header("if-none-match", "W/\"1\"");
    let Ok(mantel::proxy::judge::Judged::Forward(authorized)) = streamed.judge(&sent) else { panic!() };
    assert_eq!(authorized.request().headers.len(), 2);
}

#[test]
fn a_refusal_names_the_scope_and_nothing_else() {
    let told = |scopes, ehr: Ehr, line: &str| match World::new(scopes, ehr).judge(&Sent::new(line)) {
        Err(error) => error.public,
        Ok(_) => panic!("{line} passed"),
    };
    assert_eq!(
        told("patient/Condition.rs", Silent, "GET Observation/secret-id"),
        "This token's scopes do not cover the request: it needs patient/Observation.r or user/Observation.r."
    );
    assert_eq!(
        told("system/Condition.rs", Silent, "GET Observation?code=secret"),
        "This token's scopes do not cover the request: it needs system/Observation.s."
    );
    // The EHR's answer cannot change what is told: it is never asked.
    let other = told("patient/Patient.rs", Silent, "GET Patient/p2");
    assert_eq!(other, told("patient/Patient.rs", Silent, "GET Patient/no-such-patient"));
    assert!(!other.contains("p2"));
}
