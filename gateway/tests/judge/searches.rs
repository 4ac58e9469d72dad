//! Searches.

use crate::setup::{EHR, Ehr::*, Row, SITE, Sent, UNIFORM, World, check};

const LAB: &str = "patient/Observation.rs?category=laboratory";

const ROWS: &[Row] = &[
    // user/: as it is.
    ("user/Observation.s", Silent, "GET Observation?patient=p2", "stream Observation?patient=p2"),
    ("user/Observation.r", Silent, "GET Observation?patient=p2", "403"),
    ("system/Observation.rs", Silent, "GET Observation", "stream Observation"),
    ("user/Condition.rs", Silent, "GET Observation", "403"),
    // patient/: exactly one patient parameter, ours.
    ("patient/Observation.rs", Silent, "GET Observation", "inspect Observation?patient=p1"),
    ("patient/Observation.rs", Same, "GET Observation", "stream Observation?patient=p1"),
    ("patient/Observation.s", Silent, "GET Observation?code=1", "inspect Observation?code=1&patient=p1"),
    ("patient/Observation.r", Silent, "GET Observation?patient=p1", "403"),
    ("patient/Observation.rs", Silent, "GET Observation?patient=p1&code=1", "inspect Observation?patient=p1&code=1"),
    ("patient/Observation.rs", Silent, "GET Observation?patient=Patient/p1", "inspect Observation?patient=p1"),
    ("patient/Observation.rs", Silent, "GET Observation?subject=Patient/p1", "inspect Observation?subject=Patient/p1"),
    ("patient/Observation.rs", Silent, "GET Observation?subject=p1", "inspect Observation?subject=Patient/p1"),
    ("patient/Observation.rs", Silent, "GET Observation?subject:Patient=p1", "inspect Observation?subject=Patient/p1"),
    ("patient/Observation.rs", Silent, "GET Observation?patient:Patient=p1", "inspect Observation?patient=p1"),
    (
        "patient/Observation.rs",
        Silent,
        "GET Observation?patient=p1&subject=Patient/p1&patient=p1",
        "inspect Observation?patient=p1",
    ),
    (
        "patient/Observation.rs",
        Silent,
        "GET Observation?patient=https://ehr.example/r4/Patient/p1",
        "inspect Observation?patient=p1",
    ),
    (
        "patient/Observation.rs",
        Silent,
        "GET Observation?patient=https://mantel.example/fhir/r4/Patient/p1",
        "inspect Observation?patient=p1",
    ),
    (
        "patient/Observation.rs",
        Silent,
        "GET Observation?patient=https://mantel.example/sites/one/fhir/r4/Patient/p1",
        "inspect Observation?patient=p1",
    ),
    (
        "patient/Observation.rs",
        Silent,
        "GET Observation?patient=https://other.ehr.example/r4/Patient/p1",
        "inspect Observation?patient=p1",
    ),
    (
        "patient/Observation.rs",
        Silent,
        "GET Observation?patient=Patient/p1/_history/3",
        "inspect Observation?patient=p1",
    ),
    // Another patient in any spelling.
    ("patient/Observation.rs", Same, "GET Observation?patient=p2", "403"),
    ("patient/Observation.rs", Same, "GET Observation?patient=Patient/p2", "403"),
    ("patient/Observation.rs", Same, "GET Observation?patient=p1,p2", "403"),
    ("patient/Observation.rs", Same, "GET Observation?patient=p1&patient=p2", "403"),
    ("patient/Observation.rs", Same, "GET Observation?patient=p1&subject=Patient/p2", "403"),
    ("patient/Observation.rs", Same, "GET Observation?subject=Patient/p1,Patient/p2", "403"),
    ("patient/Observation.rs", Same, "GET Observation?subject=Patient/p1,Group/1", "403"),
    ("patient/Observation.rs", Same, "GET Observation?subject:Patient=p2", "403"),
    ("patient/Observation.rs", Same, "GET Observation?patient:Patient=p2", "403"),
    ("patient/Observation.rs", Same, "GET Observation?patient:identifier=mrn|1", "403"),
    ("patient/Observation.rs", Same, "GET Observation?subject:identifier=mrn|1", "403"),
    ("patient/Observation.rs", Same, "GET Observation?patient:missing=true", "403"),
    ("patient/Observation.rs", Same, "GET Observation?patient:not=p1", "403"),
    ("patient/Observation.rs", Same, "GET Observation?patient=", "403"),
    ("patient/Observation.rs", Same, "GET Observation?patient=p1%5C,p2", "403"),
    ("patient/Observation.rs", Same, "GET Observation?patient=P1", "403"),
    ("patient/Observation.rs", Same, "GET Observation?patient=%20p1", "403"),
    ("patient/Observation.rs", Same, "GET Observation?patient=https://ehr.example/r4/Patient/p2", "403"),
    ("patient/Observation.rs", Same, "GET Observation?patient=https://elsewhere.example/Patient/p1", "403"),
    ("patient/Observation.rs", Same, "GET Observation?patient=urn:uuid:1", "403"),
    ("patient/Observation.rs", Same, "GET Observation?performer=Patient/p2", "403"),
    ("patient/Observation.rs", Same, "GET Observation?focus=https://ehr.example/r4/Patient/p2", "403"),
    (
        "patient/Observation.rs",
        Same,
        "GET Observation?performer=Practitioner/1",
        "stream Observation?performer=Practitioner/1&patient=p1",
    ),
    ("patient/Observation.rs", Same, "GET Observation?Patient=p2", "400"),
    ("patient/Observation.rs", Same, "GET Observation?SUBJECT=Patient/p2", "400"),
    ("patient/Observation.rs", Same, "GET Observation?%20patient=p2", "400"),
    ("patient/Observation.rs", Same, "GET Observation?patient%5B%5D=p2", "400"),
    ("patient/AdverseEvent.rs", Same, "GET AdverseEvent", "stream AdverseEvent?subject=Patient/p1"),
    ("patient/AdverseEvent.rs", Same, "GET AdverseEvent?patient=p2", "403"),
    ("patient/AdverseEvent.rs", Same, "GET AdverseEvent?patient=p1", "stream AdverseEvent?subject=Patient/p1"),
    // Other names for the same.
    (
        "patient/Appointment.rs",
        Silent,
        "GET Appointment?actor=Practitioner/1",
        "inspect Appointment?actor=Practitioner/1&patient=p1",
    ),
    ("patient/Appointment.rs", Silent, "GET Appointment?actor=Patient/p1", "inspect Appointment?actor=Patient/p1"),
    ("patient/Appointment.rs", Silent, "GET Appointment?actor=Patient/p2", "403"),
    ("patient/Coverage.rs", Silent, "GET Coverage?beneficiary=Patient/p2", "403"),
    ("patient/Coverage.rs", Silent, "GET Coverage?subscriber=Patient/p2", "403"),
    ("patient/Coverage.rs", Silent, "GET Coverage?beneficiary=Patient/p1", "inspect Coverage?beneficiary=Patient/p1"),
    ("patient/Group.rs", Silent, "GET Group", "inspect Group?member=Patient/p1"),
    ("patient/Device.rs", Silent, "GET Device", "inspect Device?patient=p1"),
    // Patients by id.
    ("patient/Patient.rs", Silent, "GET Patient", "inspect Patient?_id=p1"),
    ("patient/Patient.rs", Same, "GET Patient?name=x", "stream Patient?name=x&_id=p1"),
    ("patient/Patient.rs", Silent, "GET Patient?_id=p1", "inspect Patient?_id=p1"),
    ("patient/Patient.rs", Silent, "GET Patient?patient=p1", "inspect Patient?_id=p1"),
    ("patient/Patient.rs", Silent, "GET Patient?_id=p1,p2", "403"),
    ("patient/Patient.rs", Silent, "GET Patient?_id=p2", "403"),
    ("patient/Patient.rs", Silent, "GET Patient?_id=Patient/p1", "403"),
    ("patient/Patient.rs", Silent, "GET Patient?_id:not=p1", "403"),
    ("patient/Patient.rs", Silent, "GET Patient?_ID=p2", "400"),
    ("patient/Patient.rs", Silent, "GET Patient?patient=p2", "403"),
    ("patient/Patient.rs", Silent, "GET Patient?link=Patient/p2", "403"),
    // What is nobody's, and what does not say whose it is.
    ("patient/Practitioner.rs", Silent, "GET Practitioner?name=x", "inspect Practitioner?name=x"),
    ("patient/*.rs", Same, "GET Location", "stream Location"),
    ("patient/*.rs", Silent, "GET Binary", "403"),
    ("patient/*.rs", Silent, "GET MessageHeader", "403"),
    // Compartments.
    ("patient/Observation.rs", Silent, "GET Patient/p1/Observation?code=1", "inspect Patient/p1/Observation?code=1"),
    ("patient/Observation.rs", Same, "GET Patient/p1/Observation?patient=p1", "stream Patient/p1/Observation"),
    ("patient/Observation.rs", Same, "GET Patient/p2/Observation", "403"),
    ("patient/Observation.rs", Same, "GET Patient/p2/Observation?patient=p1", "403"),
    ("patient/Observation.rs", Same, "GET Patient/p1/Observation?patient=p2", "403"),
    ("patient/Observation.rs", Silent, "GET Patient/p1/Condition", "403"),
    ("patient/*.rs", Silent, "GET Patient/p1/*", "inspect Patient/p1/*"),
    ("patient/*.rs", Silent, "GET Patient/p2/*", "403"),
    ("patient/Observation.rs", Silent, "GET Patient/p1/*", "403"),
    ("patient/Observation.rs", Silent, "GET Patient/p1/*?_type=Observation", "inspect Patient/p1/*?_type=Observation"),
    ("patient/Observation.rs", Silent, "GET Patient/p1/*?_type=Observation,Condition", "403"),
    ("patient/Observation.rs", Silent, "GET Encounter/1/Observation", "403"),
    ("patient/Observation.rs", Same, "GET Encounter/1/Observation", "stream Encounter/1/Observation?patient=p1"),
    ("user/Observation.rs", Silent, "GET Encounter/1/Observation", "stream Encounter/1/Observation"),
    ("user/Observation.rs", Silent, "GET Patient/p2/Observation", "stream Patient/p2/Observation"),
    // The whole server.
    (
        "user/Observation.rs user/Condition.rs",
        Silent,
        "GET ?_type=Observation,Condition",
        "stream ?_type=Observation,Condition",
    ),
    ("user/Observation.rs", Silent, "GET ?_type=Observation,Condition", "403"),
    ("user/Observation.rs", Silent, "GET ?code=1", "403"),
    ("user/*.rs", Silent, "GET ?code=1", "stream ?code=1"),
    ("patient/*.rs", Same, "GET ?code=1", "403"),
    ("patient/*.rs", Silent, "GET ?_type=Observation,Condition", "inspect ?_type=Observation,Condition&patient=p1"),
    (
        "patient/*.rs",
        Same,
        "GET ?_type=Observation,Condition&subject=Patient/p1",
        "stream ?_type=Observation,Condition&patient=p1",
    ),
    ("patient/*.rs", Same, "GET ?_type=Observation,Condition&patient=p2", "403"),
    ("patient/*.rs", Same, "GET ?_type=Observation,Condition&subject=Patient/p2", "403"),
    ("patient/*.rs", Same, "GET ?_type=Observation,Practitioner", "403"),
    ("patient/*.rs", Same, "GET ?_type=Observation,Patient", "403"),
    ("patient/*.rs", Silent, "GET ?_type=Observation", "inspect ?_type=Observation&patient=p1"),
    ("patient/*.rs", Silent, "GET ?_type=Observation&_type=Condition", "400"),
    ("patient/*.rs", Silent, "GET ?_type:not=Observation", "400"),
    ("patient/*.rs", Silent, "GET ?_type=Nonsense", "400"),
    ("patient/*.rs", Silent, "GET ?_TYPE=Observation", "400"),
    ("patient/Observation.rs", Silent, "GET Observation?_type=Condition", "400"),
    // Includes.
    (
        "patient/Observation.rs patient/Encounter.rs",
        Same,
        "GET Observation?_include=Observation:encounter",
        "inspect Observation?_include=Observation:encounter&patient=p1",
    ),
    ("patient/Observation.rs", Same, "GET Observation?_include=Observation:encounter", "403"),
    ("patient/Observation.rs patient/Encounter.s", Same, "GET Observation?_include=Observation:encounter", "403"),
    ("patient/Observation.rs", Same, "GET Observation?_include=Observation:subject:Patient", "403"),
    (
        "patient/Observation.rs patient/Patient.r",
        Same,
        "GET Observation?_include=Observation:subject:Patient",
        "inspect Observation?_include=Observation:subject:Patient&patient=p1",
    ),
    (
        "patient/Observation.rs",
        Same,
        "GET Observation?_include=Observation:performer",
        "inspect Observation?_include=Observation:performer&patient=p1",
    ),
    ("patient/Observation.rs", Same, "GET Observation?_include=*", "403"),
    ("patient/Observation.rs", Same, "GET Observation?_include=Observation:*", "403"),
    ("patient/*.rs", Same, "GET Observation?_revinclude=*", "403"),
    (
        "patient/Observation.rs patient/Provenance.r",
        Same,
        "GET Observation?_revinclude=Provenance:target",
        "inspect Observation?_revinclude=Provenance:target&patient=p1",
    ),
    ("patient/Observation.rs", Same, "GET Observation?_revinclude=Provenance:target", "403"),
    (
        "patient/Observation.rs patient/Provenance.r",
        Same,
        "GET Observation?_revinclude:iterate=Provenance:target",
        "inspect Observation?_revinclude:iterate=Provenance:target&patient=p1",
    ),
    ("patient/Observation.rs", Same, "GET Observation?_include:odd=Observation:encounter", "400"),
    ("patient/Observation.rs", Same, "GET Observation?_include=Observation", "400"),
    ("patient/Observation.rs", Same, "GET Observation?_include=Observation:performer,Observation:encounter", "400"),
    ("patient/Observation.rs", Same, "GET Observation?_INCLUDE=Observation:encounter", "400"),
    ("patient/*.rs", Silent, "GET Observation?_include=Observation:x:Binary", "403"),
    (
        "user/Observation.rs user/Encounter.rs",
        Silent,
        "GET Observation?_include=Observation:encounter",
        "stream Observation?_include=Observation:encounter",
    ),
    ("user/Observation.rs", Silent, "GET Observation?_include=Observation:encounter", "403"),
    (
        "user/Observation.rs",
        Silent,
        "GET Observation?_include=Observation:performer",
        "inspect Observation?_include=Observation:performer",
    ),
    ("user/*.rs", Silent, "GET Observation?_include=*", "stream Observation?_include=*"),
    // What touches other types, or shows what is held back.
    ("patient/Patient.rs", Silent, "GET Patient?_has:Observation:patient:code=1", "403"),
    ("patient/Patient.rs", Same, "GET Patient?_has:Observation:patient:code=1", "403"),
    (
        "patient/Patient.rs patient/Observation.rs",
        Same,
        "GET Patient?_has:Observation:patient:code=1",
        "stream Patient?_has:Observation:patient:code=1&_id=p1",
    ),
    ("patient/Patient.rs patient/Observation.rs", Silent, "GET Patient?_has:Observation:patient:code=1", "403"),
    (
        "user/Patient.rs user/Observation.rs",
        Silent,
        "GET Patient?_has:Observation:patient:code=1",
        "stream Patient?_has:Observation:patient:code=1",
    ),
    ("user/Patient.rs", Silent, "GET Patient?_has:Observation:patient:code=1", "403"),
    (
        "user/Patient.rs user/Observation.rs",
        Silent,
        "GET Patient?_has:Observation:patient:_has:AuditEvent:entity:agent=1",
        "403",
    ),
    ("user/Patient.rs user/Observation.rs", Silent, "GET Patient?_has:Observation:patient:encounter.status=1", "403"),
    ("user/Patient.rs", Silent, "GET Patient?_has:Observation=1", "400"),
    ("user/Patient.rs", Silent, "GET Patient?_has:Nonsense:patient:code=1", "400"),
    ("patient/Practitioner.rs", Silent, "GET Practitioner?_has:Observation:performer:subject=Patient/p2", "403"),
    ("user/Observation.rs", Silent, "GET Observation?patient.name=x", "403"),
    (
        "user/Observation.rs user/Patient.rs",
        Silent,
        "GET Observation?patient.name=x",
        "stream Observation?patient.name=x",
    ),
    ("user/Observation.rs user/Patient.r", Silent, "GET Observation?patient.name=x", "403"),
    (
        "user/Observation.rs user/Practitioner.rs",
        Silent,
        "GET Observation?performer:Practitioner.name=x",
        "stream Observation?performer:Practitioner.name=x",
    ),
    ("user/Observation.rs user/Practitioner.rs", Silent, "GET Observation?performer.name=x", "403"),
    ("user/*.rs", Silent, "GET Observation?performer.name=x", "stream Observation?performer.name=x"),
    ("user/Observation.rs user/Patient.rs", Silent, "GET Observation?patient.organization.name=x", "403"),
    ("patient/Observation.rs patient/Patient.rs", Silent, "GET Observation?patient.name=x", "403"),
    ("patient/Observation.rs patient/Patient.rs", Same, "GET Observation?subject.name=x", "403"),
    ("patient/Observation.rs patient/Encounter.rs", Silent, "GET Observation?encounter.status=x", "403"),
    (
        "patient/Observation.rs patient/Encounter.rs",
        Same,
        "GET Observation?encounter.status=x",
        "stream Observation?encounter.status=x&patient=p1",
    ),
    ("patient/Observation.rs", Silent, "GET Observation?_sort=-date", "403"),
    ("patient/Observation.rs", Same, "GET Observation?_sort=-date", "stream Observation?_sort=-date&patient=p1"),
    ("user/Observation.rs", Silent, "GET Observation?_sort=-date", "stream Observation?_sort=-date"),
    ("user/Observation.rs", Silent, "GET Observation?_sort=patient.name", "403"),
    ("patient/Observation.rs", Silent, "GET Observation?_filter=code%20eq%201", "403"),
    ("patient/Observation.rs", Silent, "GET Observation?_text=x", "403"),
    ("patient/Observation.rs", Silent, "GET Observation?_content=x", "403"),
    ("patient/Observation.rs", Silent, "GET Observation?_list=1", "403"),
    ("patient/Observation.rs", Same, "GET Observation?_list=1", "403"),
    ("patient/Observation.rs", Silent, "GET Observation?_query=x", "403"),
    ("patient/Observation.rs", Same, "GET Observation?_query=x", "403"),
    ("user/Observation.rs", Silent, "GET Observation?_filter=patient.name%20eq%20x", "403"),
    ("patient/Observation.rs", Silent, "GET Observation?_summary=count", "403"),
    ("patient/Observation.rs", Silent, "GET Observation?_summary=COUNT", "403"),
    ("patient/Observation.rs", Silent, "GET Observation?_Summary=count", "400"),
    ("patient/Observation.rs", Same, "GET Observation?_summary=count", "stream Observation?_summary=count&patient=p1"),
    (
        "patient/Observation.rs",
        Silent,
        "GET Observation?_elements=code&_summary=text&_total=accurate",
        "inspect Observation?patient=p1",
    ),
    ("patient/Observation.rs", Silent, "GET Observation?_format=xml", "406"),
    // Queries of scopes.
    (LAB, Silent, "GET Observation", "inspect Observation?patient=p1&category=laboratory"),
    (LAB, Same, "GET Observation?patient=p1&category=laboratory", "inspect Observation?patient=p1&category=laboratory"),
    (
        LAB,
        Silent,
        "GET Observation?category=vital-signs",
        "inspect Observation?category=vital-signs&patient=p1&category=laboratory",
    ),
    (LAB, Silent, "GET Observation?_sort=date", "403"),
    (
        "patient/Observation.rs?category=a patient/Observation.rs?category=b",
        Silent,
        "GET Observation",
        "inspect Observation?patient=p1&category=a,b",
    ),
    (
        "patient/Observation.rs?category=a patient/Observation.rs?category=b",
        Silent,
        "GET Observation?category=b",
        "inspect Observation?category=b&patient=p1",
    ),
    ("patient/Observation.rs?category=a patient/Observation.rs?code=b", Silent, "GET Observation", "403"),
    (
        "patient/Observation.rs?category=a patient/Observation.rs?code=b",
        Silent,
        "GET Observation?code=b",
        "inspect Observation?code=b&patient=p1",
    ),
    (
        "patient/Observation.rs?category=a user/Observation.rs?category=b",
        Silent,
        "GET Observation",
        "inspect Observation?category=b",
    ),
    (
        "patient/Observation.rs?category=a user/Observation.rs?category=b",
        Silent,
        "GET Observation?patient=p1",
        "inspect Observation?patient=p1&category=a",
    ),
    (
        "patient/Observation.rs?category=a user/Observation.rs?category=b",
        Silent,
        "GET Observation?patient=p2",
        "inspect Observation?patient=p2&category=b",
    ),
    (
        "user/Observation.rs?category=a",
        Silent,
        "GET Patient/p2/Observation",
        "inspect Patient/p2/Observation?category=a",
    ),
    ("patient/*.rs?category=a", Silent, "GET ?_type=Observation,Condition", "403"),
    // Tokens and methods in the wrong place.
    ("user/*.cruds", Silent, "GET Observation?_method=DELETE", "400"),
    ("user/*.cruds", Silent, "GET Observation?ACCESS_TOKEN=x", "400"),
];

#[test]
fn searches() {
    assert!(ROWS.len() >= 120);
    check(ROWS);
}

#[test]
fn a_posted_search_is_judged_with_its_form_and_sent_in_one_place() {
    let rows = [
        (
            "patient/Observation.rs",
            "POST Observation/_search",
            "code=1",
            "inspect Observation/_search code=1&patient=p1",
        ),
        (
            "patient/Observation.rs",
            "POST Observation/_search?patient=p1",
            "code=1",
            "inspect Observation/_search patient=p1&code=1",
        ),
        ("patient/Observation.rs", "POST Observation/_search?patient=p1", "patient=p2", "403"),
        ("patient/Observation.rs", "POST Observation/_search?patient=p2", "patient=p1", "403"),
        ("patient/Observation.rs", "POST Observation/_search", "subject=Patient%2Fp2", "403"),
        ("patient/Observation.rs", "POST Observation/_search", "patient=p1&_include=*", "403"),
        (
            "patient/Observation.rs",
            "POST Observation/_search",
            "_format=json",
            "inspect Observation/_search patient=p1",
        ),
        ("patient/Observation.rs", "POST Observation/_search", "_summary=count", "403"),
        (
            "user/Observation.rs",
            "POST Observation/_search?code=1",
            "date=2",
            "stream Observation/_search code=1&date=2",
        ),
        ("user/Observation.rs", "POST Observation/_search", "access_token=x", "400"),
        ("user/Observation.rs", "POST Observation/_search", "_method=delete", "400"),
        ("user/Observation.rs", "POST Observation/_search", "a=%zz", "400"),
        ("patient/*.rs", "POST _search", "_type=Observation", "inspect _search _type=Observation&patient=p1"),
        (
            "patient/Observation.rs",
            "POST Patient/p1/Observation/_search",
            "code=1",
            "inspect Patient/p1/Observation/_search code=1",
        ),
        ("patient/Observation.rs", "POST Patient/p1/Observation/_search", "patient=p2", "403"),
    ];
    for (scopes, line, form, expected) in rows {
        let world = World::new(scopes, Silent);
        assert_eq!(world.verdict(&Sent::new(line).form(form)), expected, "{line} {form}");
    }
}

#[test]
fn parameters_are_bounded() {
    let form = |count: usize| vec!["performer.name=x"; count].join("&");
    let world = World::new("user/*.rs", Silent);
    let verdict = |count| world.verdict(&Sent::new("POST Observation/_search").form(&form(count)));
    assert!(verdict(256).starts_with("stream"));
    assert_eq!(verdict(257), "400");
}

#[test]
fn another_method_in_a_header_is_refused() {
    let world = World::new("user/*.cruds", Silent);
    let (mut request, interaction) = Sent::new("GET Observation").classify();
    request.headers.insert("x-http-method-override", "DELETE".parse().unwrap());
    let error = mantel::proxy::judge::judge(&world.case(), request, interaction).err().unwrap();
    assert_eq!(error.kind, mantel::error::Kind::BadRequest);
}

#[test]
fn absolute_references_mean_this_server_under_each_of_its_bases() {
    let world = World::new("patient/Observation.rs", Silent);
    for base in [EHR, SITE, UNIFORM] {
        let ours = Sent::new(&format!("GET Observation?subject={base}/Patient/p1"));
        assert_eq!(world.verdict(&ours), "inspect Observation?subject=Patient/p1", "{base}");
        let other = Sent::new(&format!("GET Observation?subject={base}/Patient/p2"));
        assert_eq!(world.verdict(&other), "403", "{base}");
    }
}

#[test]
fn what_was_judged_is_told_for_paging_links() {
    let authorized = World::new("patient/Observation.rs?category=laboratory patient/Provenance.rs", Silent)
        .authorized("GET Observation?_revinclude=Provenance:target");
    let judged = authorized.searched().unwrap();
    assert_eq!(judged.resource_type.as_deref(), Some("Observation"));
    assert_eq!(judged.patient.as_deref(), Some("p1"));
    let required: Vec<String> = judged.required.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(required, ["category=laboratory", "_revinclude=Provenance:target"]);

    let open = World::new("user/Observation.rs", Silent).authorized("GET Observation");
    assert_eq!(open.searched().unwrap().patient, None);
}
