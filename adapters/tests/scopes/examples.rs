//! The 36 worked examples of `conformance.md` C5, row by row. `O` is Observation; `?lab`, `?vitals` are categories.

use mantel_adapters::{
    profile::ScopePolicy,
    smart::{
        scope::{Context, Coverage, Permissions},
        translate::{AnswerFacts, AskOptions, By, GrantKind, Refused, report},
    },
};

use super::{ALL, LOWERCASE, V1, V1_EXPAND, V2, V2_EXPAND, all_facts, asked_of, exchange, long};

struct Example {
    number: u8,
    asks: &'static str,
    policy: ScopePolicy,
    /// What the registration lists.
    ticked: &'static str,
    /// What goes to the EHR.
    sent: &'static str,
    /// What the EHR answers.
    grants: Option<&'static str>,
    told: &'static str,
}

const TYPES: &str = "launch/patient patient/Patient.rs patient/O.rs patient/Condition.rs";

/// Rows that are one exchange: asked, sent, granted, told. The rest have tests of their own below.
#[rustfmt::skip]
fn examples() -> Vec<Example> {
    let row = |number, asks, policy, ticked, sent, grants, told| Example { number, asks, policy, ticked, sent, grants: Some(grants), told };
    let v2 = |number, asks, sent, grants, told| row(number, asks, V2, ALL, sent, grants, told);
    let v1 = |number, asks, sent, grants, told| row(number, asks, V1, ALL, sent, grants, told);
    vec![
        v2(1, "patient/O.read", "launch/patient patient/O.rs", "patient/O.rs", "patient/O.read"),
        v2(2, "patient/O.write", "launch/patient patient/O.cud", "patient/O.cud", "patient/O.write"),
        v2(3, "patient/O.*", "launch/patient patient/O.cruds", "patient/O.cruds", "patient/O.*"),
        v2(4, "patient/O.*", "launch/patient patient/O.cruds", "patient/O.rs", "patient/O.read"),
        v2(5, "patient/O.*", "launch/patient patient/O.cruds", "patient/O.crs", "patient/O.read"),
        v2(6, "patient/O.write", "launch/patient patient/O.cud", "patient/O.cu", ""),
        v2(7, "patient/O.read", "launch/patient patient/O.rs", "patient/O.r", ""),
        v1(8, "patient/O.rs", "launch/patient patient/O.read", "patient/O.read", "patient/O.rs"),
        v1(9, "patient/Patient.r", "launch/patient patient/Patient.read", "patient/Patient.read", "patient/Patient.r"),
        v1(10, "patient/O.s", "launch/patient patient/O.read", "patient/O.read", "patient/O.s"),
        v1(11, "patient/O.cu", "launch/patient patient/O.write", "patient/O.write", "patient/O.cu"),
        v1(12, "patient/O.cruds", "launch/patient patient/O.*", "patient/O.read", "patient/O.rs"),
        v2(13, "patient/O.cruds", "launch/patient patient/O.cruds", "patient/O.rs patient/O.cud", "patient/O.cruds"),
        v2(14, "patient/O.r patient/O.s", "launch/patient patient/O.rs", "patient/O.rs", "patient/O.r patient/O.s"),
        v2(15, "patient/*.read", "launch/patient patient/*.rs", "patient/Patient.rs patient/O.rs", "patient/Patient.read patient/O.read"),
        row(15, "patient/*.read", V2_EXPAND, TYPES, "launch/patient patient/Condition.rs patient/O.rs patient/Patient.rs",
            "patient/Patient.rs patient/O.rs", "patient/Patient.read patient/O.read"),
        v2(16, "patient/O.rs", "launch/patient patient/O.rs", "patient/*.rs", "patient/O.rs"),
        v2(17, "patient/*.rs patient/O.cruds", "launch/patient patient/*.rs patient/O.cruds", "patient/*.rs patient/O.cruds", "patient/*.rs patient/O.cruds"),
        v2(18, "patient/O.rs?lab", "launch/patient patient/O.rs?lab", "patient/O.rs?lab", "patient/O.rs?lab"),
        v1(19, "patient/O.rs?lab", "launch/patient patient/O.read", "patient/O.read", "patient/O.rs?lab"),
        v2(20, "patient/O.rs", "launch/patient patient/O.rs", "patient/O.rs?lab patient/O.rs?vitals", "patient/O.rs?lab patient/O.rs?vitals"),
        v2(21, "patient/O.read", "launch/patient patient/O.rs", "patient/O.rs?lab", ""),
        v2(22, "patient/O.rs?lab", "launch/patient patient/O.rs?lab",
            "patient/O.rs?category=http://terminology.hl7.org/CodeSystem/observation-category%7Claboratory", "patient/O.rs?lab"),
        row(24, "patient/O.read", LOWERCASE, ALL, "launch/patient patient/observation.read", "patient/observation.read", "patient/O.read"),
        v2(26, "patient/O.read patient/Condition.rs", "launch/patient patient/Condition.rs patient/O.rs",
            "patient/Condition.rs patient/O.rs", "patient/O.read patient/Condition.rs"),
        v1(26, "patient/O.read patient/Condition.rs", "launch/patient patient/Condition.read patient/O.read",
            "patient/Condition.read patient/O.read", "patient/O.read patient/Condition.rs"),
        // Oracle: no `.*`, silent about what it drops.
        row(12, "patient/O.cruds", V1_EXPAND, "patient/O.cruds", "patient/O.read patient/O.write", "patient/O.read", "patient/O.rs"),
    ]
}

#[test]
fn each_exchange_is_asked_and_told_as_the_table_says() {
    for example in examples() {
        let Example { number, asks, policy, ticked, sent, grants, told } = example;
        let (asked, request) = asked_of(asks, &policy, ticked, AskOptions::default());
        assert_eq!(request.text, long(sent), "sent in row {number}");
        let granted = report(&asked, &request, grants.map(long).as_deref(), &all_facts());
        assert_eq!(granted.reported, long(told), "told in row {number}");
        assert_eq!(told.is_empty(), granted.lost_all_data(&asked), "row {number}");
    }
}

/// What the notes of rows 9, 10, 11 and 19 say is refused here though the EHR's token could do it.
#[test]
fn rows_9_10_11_19_what_was_rounded_up_upstream_is_enforced_here() {
    let permits = |asks, grants, resource_type, permission| {
        let granted = exchange(asks, &V1, ALL, Some(grants), AskOptions::default());
        granted.enforced.permits(Context::Patient, resource_type, permission)
    };
    let row_9 = |permission| permits("patient/Patient.r", "patient/Patient.read", "Patient", permission);
    assert_eq!((row_9(Permissions::READ), row_9(Permissions::SEARCH)), (Coverage::Yes, Coverage::No));
    let row_10 = |permission| permits("patient/O.s", "patient/O.read", "Observation", permission);
    assert_eq!((row_10(Permissions::READ), row_10(Permissions::SEARCH)), (Coverage::No, Coverage::Yes));
    let row_11 = |permission| permits("patient/O.cu", "patient/O.write", "Observation", permission);
    assert_eq!((row_11(Permissions::UPDATE), row_11(Permissions::DELETE)), (Coverage::Yes, Coverage::No));
    let Coverage::Constrained(queries) =
        permits("patient/O.rs?lab", "patient/O.read", "Observation", Permissions::READ)
    else {
        panic!("row 19 grants only laboratory results")
    };
    let values: Vec<_> = queries.iter().flat_map(|query| query.pairs()).collect();
    let laboratory = "http://terminology.hl7.org/CodeSystem/observation-category|laboratory";
    assert_eq!(values, [&("category".to_owned(), laboratory.to_owned())]);
}

#[test]
fn rows_23_24_25_malformed_tokens_are_dropped_and_nothing_left_is_invalid_scope() {
    for token in [
        "patient/O.sr",
        "patient/O.dus",
        "patient/O.rr",
        "patient/O.",
        "patient/O.readwrite",
        "patient/observation.rs",
        "Patient/O.rs",
        "patient/O.read?lab",
    ] {
        for policy in [V1, V2, LOWERCASE] {
            let (asked, request) = asked_of(token, &policy, ALL, AskOptions::default());
            assert!(asked.is_empty() && request.is_empty(), "{token}");
            assert_eq!(request.text, "", "{token}");
            let (_, request) = asked_of(&format!("{token} user/O.rs"), &policy, ALL, AskOptions::default());
            assert_eq!(request.upstream.to_string(), "user/Observation.rs", "{token}");
        }
    }
}

#[test]
fn rows_27_28_29_a_refresh_scope_is_told_when_custody_holds_a_refresh_token() {
    let told = |asks, grants: &str, has_refresh_token| {
        let (asked, request) = asked_of(asks, &V2, ALL, AskOptions::default());
        let facts = AnswerFacts { has_refresh_token, ..all_facts() };
        report(&asked, &request, Some(&long(grants)), &facts)
    };
    let asks = "launch/patient patient/O.rs offline_access";
    let without = told(asks, "launch/patient patient/O.rs offline_access", false);
    assert_eq!(without.reported, long("launch/patient patient/O.rs"));
    assert_eq!(without.refused, [Refused { scope: "offline_access".into(), by: By::Ehr }]);
    assert_eq!(told(asks, "launch/patient patient/O.rs", true).reported, long(asks));
    let online = "launch/patient patient/O.rs online_access";
    assert_eq!(told(online, "launch/patient patient/O.rs offline_access", true).reported, long(online));
    assert_eq!(told("patient/O.rs", "patient/O.rs offline_access", true).reported, long("patient/O.rs"));
}

#[test]
fn row_30_what_the_ehr_adds_is_neither_told_nor_permitted() {
    let options = AskOptions { ehr_launch: true, ..AskOptions::default() };
    let answer = Some("launch user/O.rs launch/patient patient/Patient.rs");
    let granted = exchange("launch user/O.rs", &V2, ALL, answer, options);
    assert_eq!(granted.reported, long("launch user/O.rs"));
    assert_eq!(granted.enforced.permits(Context::Patient, "Patient", Permissions::READ), Coverage::No);
    assert!(granted.upstream.unwrap().has_context(Context::Patient), "the judge must know what the token can do");
}

#[test]
fn row_31_patient_scopes_wait_for_a_patient() {
    let (asked, request) = asked_of("patient/O.rs", &V2, ALL, AskOptions::default());
    assert_eq!(request.text, long("launch/patient patient/O.rs"));
    let without = AnswerFacts { has_patient: false, ..all_facts() };
    let granted = report(&asked, &request, Some(&long("patient/O.rs")), &without);
    assert!(granted.needs_patient);
    assert_eq!((granted.reported.as_str(), granted.enforced.has_resources()), ("", false));
    let granted = report(&asked, &request, Some(&long("patient/O.rs")), &all_facts());
    assert_eq!((granted.reported, granted.needs_patient), (long("patient/O.rs"), false));
}

#[test]
fn row_32_no_system_scope_in_a_code_flow() {
    let (_, request) = asked_of("system/*.rs", &V2, ALL, AskOptions::default());
    assert!(request.is_empty());
    assert_eq!(request.refused, [Refused { scope: "system/*.rs".into(), by: By::Registration }]);
}

#[test]
fn row_33_only_system_scopes_for_client_credentials() {
    let options = AskOptions { grant: GrantKind::ClientCredentials, ..AskOptions::default() };
    let (_, request) = asked_of("patient/*.rs openid offline_access", &V2, ALL, options);
    assert!(request.is_empty());
    let (_, request) = asked_of("patient/*.rs openid offline_access system/O.rs", &V2, ALL, options);
    assert_eq!(request.text, long("system/O.rs"));
}

#[test]
fn row_36_other_launch_context_is_told_when_it_came() {
    let asks = "launch/imagingstudy launch/list?role=https://example.org/role patient/O.rs";
    let (asked, request) = asked_of(asks, &V2, ALL, AskOptions::default());
    assert_eq!(report(&asked, &request, None, &all_facts()).reported, long(asks));
    let facts = AnswerFacts { contexts: all_facts().contexts[..1].to_vec(), ..all_facts() };
    let granted = report(&asked, &request, Some(&long(asks)), &facts);
    assert_eq!(granted.reported, long("launch/imagingstudy patient/O.rs"));
    assert_eq!(granted.refused, [Refused { scope: "launch/list?role=https://example.org/role".into(), by: By::Ehr }]);
}
