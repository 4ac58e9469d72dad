//! What goes to an EHR, vendor by vendor.

use mantel_adapters::{
    profile::{Dialect, RefreshScope, ScopePolicy, Wildcards},
    smart::{
        scope::{Asked, Context, Coverage, Permissions},
        translate::{Allowed, AnswerFacts, AskOptions, By, Refused, Request, ScopeFault, Ticked, ask, report},
    },
};

use super::{ALL, V1, V1_EXPAND, V2, V2_EXPAND, all_facts, allowed, asked_of, exchange, long, ticked};

fn refused(request: &Request) -> Vec<(&str, By)> {
    request.refused.iter().map(|refused| (refused.scope.as_str(), refused.by)).collect()
}

#[test]
fn athena_is_asked_for_nothing_that_is_not_ticked() {
    let ticks = "launch/patient openid fhirUser offline_access patient/Patient.read patient/O.read";
    let asks = "launch/patient launch/encounter openid fhirUser profile offline_access patient/*.read patient/Condition.read user/O.read";
    let (_, request) = asked_of(asks, &V1_EXPAND, ticks, AskOptions::default());
    assert_eq!(request.text, long("launch/patient openid fhirUser offline_access patient/O.read patient/Patient.read"));
    let expected = [("profile", By::Registration), ("patient/Condition.read", By::Registration)];
    assert_eq!(refused(&request)[..2], expected);
    assert_eq!(refused(&request)[2], ("user/Observation.read", By::Registration));
}

#[test]
fn an_app_asks_for_no_more_than_it_is_allowed() {
    let asked = Asked::parse("openid patient/Observation.cruds patient/Condition.rs");
    let may = allowed("patient/*.rs");
    let request = ask(&asked, &may, &ticked(ALL), &V2, AskOptions::default());
    assert_eq!(request.text, "launch/patient patient/Condition.rs patient/Observation.rs");
    assert_eq!(refused(&request), [("openid", By::Registration), ("patient/Observation.cud", By::Registration)]);
    let granted = report(&asked, &request, Some("openid patient/*.cruds"), &all_facts());
    assert_eq!(granted.reported, "patient/Observation.rs patient/Condition.rs");
}

#[test]
fn a_wildcard_of_the_registration_is_not_sent_where_there_are_none() {
    let (asked, request) =
        asked_of("user/*.rs user/O.rs", &V2_EXPAND, "user/*.rs user/Patient.rs", AskOptions::default());
    assert_eq!(request.text, long("user/O.rs user/Patient.rs"));
    let granted = report(&asked, &request, Some("user/*.rs"), &all_facts());
    assert_eq!(granted.reported, long("user/Patient.rs user/O.rs"), "and not told, though the EHR says it");
    let (_, request) = asked_of("user/*.rs", &V2_EXPAND, "user/*.rs", AskOptions::default());
    assert!(request.is_empty());
    assert_eq!(refused(&request), [("user/*.rs", By::Vendor)]);
}

#[test]
fn what_v1_rounds_up_stays_within_the_ticks() {
    let (_, request) = asked_of("user/O.r user/Condition.c", &V1, "user/O.r user/Condition.cud", AskOptions::default());
    assert_eq!(request.text, "user/Condition.write");
    assert_eq!(refused(&request), [("user/Observation.r", By::Vendor)]);
    let (_, request) = asked_of("user/O.crs", &V1, "user/O.cruds", AskOptions::default());
    assert_eq!(request.text, long("user/O.*"));
    let (_, request) = asked_of("user/O.crs", &V1_EXPAND, "user/O.cruds", AskOptions::default());
    assert_eq!(request.text, long("user/O.read user/O.write"));
}

#[test]
fn queries_are_widened_where_the_vendor_takes_none_like_them() {
    let sent = |asks, policy, ticks| asked_of(asks, &policy, ticks, AskOptions::default()).1;
    assert_eq!(sent("user/O.rs?lab", V2, ALL).text, long("user/O.rs?lab"));
    assert_eq!(sent("user/O.rs?code=a", V2, ALL).text, long("user/O.rs"), "vendors that take queries take `category`");
    assert_eq!(sent("user/O.rs?lab", V2_EXPAND, "user/O.rs").text, long("user/O.rs"));
    assert_eq!(sent("user/O.rs?lab user/O.rs?vitals", V1, ALL).text, long("user/O.read"));
    let narrow = sent("user/O.rs", V2_EXPAND, "user/O.rs?lab");
    assert!(narrow.is_empty(), "only laboratory results are ticked, and that cannot be said");
    assert_eq!(sent("user/O.rs", V2, "user/O.rs?lab").text, long("user/O.rs?lab"));
}

#[test]
fn launch_goes_with_an_ehr_launch_and_only_then() {
    let ehr = AskOptions { ehr_launch: true, ..AskOptions::default() };
    let (_, request) = asked_of("launch openid patient/O.rs", &V2, ALL, ehr);
    assert_eq!(request.text, long("launch openid patient/O.rs"));
    // fhirclient adds `launch` only if no scope contains that word.
    let (asked, request) = asked_of("launch/patient patient/O.rs", &V2, "launch patient/O.rs", ehr);
    assert_eq!(request.text, long("launch patient/O.rs"));
    let granted = report(&asked, &request, Some(&long("launch patient/O.rs")), &all_facts());
    assert_eq!(granted.reported, long("launch/patient patient/O.rs"), "the context came with the launch");
    let (_, request) = asked_of("launch patient/O.rs", &V2, "patient/O.rs", ehr);
    assert_eq!(
        (request.text.as_str(), refused(&request)),
        (&*long("patient/O.rs"), vec![("launch", By::Registration)])
    );
    let (_, request) = asked_of("launch patient/O.rs", &V2, ALL, AskOptions::default());
    assert_eq!(
        (request.text.as_str(), refused(&request)),
        (&*long("launch/patient patient/O.rs"), vec![("launch", By::Ehr)])
    );
    let (_, request) = asked_of("openid user/O.rs", &V2, ALL, AskOptions::default());
    assert_eq!(request.text, long("openid user/O.rs"), "no patient, none asked for");
}

#[test]
fn refresh_scopes_follow_the_profile_and_the_ticks() {
    let sent = |asks, ticks: &str, refresh_scope, wants_refresh_for_custody| {
        let options = AskOptions { refresh_scope, wants_refresh_for_custody, ..AskOptions::default() };
        asked_of(&format!("{asks} user/O.rs"), &V2, &format!("{ticks} user/O.rs"), options)
            .1
            .text
            .replace(&long(" user/O.rs"), "")
    };
    let (offline, online, none) = (RefreshScope::OfflineAccess, RefreshScope::OnlineAccess, RefreshScope::None);
    let both = "openid offline_access online_access";
    assert_eq!(sent("openid offline_access", both, offline, false), "openid offline_access");
    assert_eq!(sent("openid online_access", both, offline, false), "openid online_access");
    assert_eq!(sent("openid online_access", "openid offline_access", offline, false), "openid offline_access");
    assert_eq!(sent("openid offline_access", "openid online_access", online, false), "openid online_access");
    assert_eq!(sent("openid offline_access", both, none, false), "openid");
    assert_eq!(sent("openid", both, offline, false), "openid");
    assert_eq!(sent("openid", both, offline, true), "openid offline_access");
    assert_eq!(sent("openid", "openid", offline, true), "openid");
}

#[test]
fn a_refresh_token_for_custody_alone_is_no_offline_access() {
    let options = AskOptions { wants_refresh_for_custody: true, ..AskOptions::default() };
    let granted = exchange("openid user/O.rs", &V2, ALL, Some("openid offline_access user/O.rs"), options);
    assert_eq!(granted.reported, long("openid user/O.rs"));
}

#[test]
fn with_our_own_picker_patient_scopes_are_asked_as_user_scopes() {
    let options = AskOptions { picker: true, ..AskOptions::default() };
    let ticks = "openid launch/patient user/Patient.read user/O.read user/Condition.read";
    let (asked, request) = asked_of("launch/patient openid patient/O.rs user/Condition.rs", &V1_EXPAND, ticks, options);
    assert_eq!(request.text, long("openid user/Condition.read user/O.read user/Patient.read"));
    assert!(request.picker());
    let answer = long("openid user/Condition.read user/O.read user/Patient.read");
    let granted = report(&asked, &request, Some(&answer), &all_facts());
    assert_eq!(granted.reported, long("launch/patient openid patient/O.rs user/Condition.rs"));
    let permits = |context, resource_type| granted.enforced.permits(context, resource_type, Permissions::READ);
    assert_eq!(permits(Context::Patient, "Observation"), Coverage::Yes);
    for (context, resource_type) in [
        (Context::User, "Observation"),
        (Context::User, "Patient"),
        (Context::Patient, "Patient"),
        (Context::Patient, "Condition"),
    ] {
        assert_eq!(permits(context, resource_type), Coverage::No, "{context}/{resource_type}");
    }
    assert_eq!(granted.upstream.unwrap().to_string(), long("openid user/Condition.rs user/O.rs user/Patient.rs"));

    let cancelled = report(&asked, &request, Some(&answer), &AnswerFacts { has_patient: false, ..all_facts() });
    assert_eq!((cancelled.reported.as_str(), cancelled.needs_patient), ("openid user/Condition.rs", true));
    let by_user = |scope: &str| Refused { scope: long(scope), by: By::User };
    assert_eq!(cancelled.refused, [by_user("launch/patient"), by_user("patient/O.rs")]);
}

#[test]
fn our_own_picker_needs_its_reads_ticked() {
    let options = AskOptions { picker: true, ..AskOptions::default() };
    let (_, request) = asked_of(
        "launch/patient patient/O.rs user/O.rs",
        &V2_EXPAND,
        "launch/patient patient/O.rs user/O.rs user/Patient.r",
        options,
    );
    assert_eq!(request.text, long("user/O.rs"));
    let expected = [("launch/patient", By::Registration), ("patient/Observation.rs", By::Registration)];
    assert_eq!(refused(&request), expected);
    let (_, request) = asked_of("openid user/O.rs", &V2_EXPAND, "openid user/O.rs user/Patient.rs", options);
    assert_eq!((request.text.as_str(), request.picker()), (&*long("openid user/O.rs"), false));
}

#[test]
fn a_vendors_own_words_go_with_each_request() {
    let ticks = "launch/patient sandbox patient/*.rs";
    let (asked, request) = asked_of("patient/*.read sandbox", &V1, ticks, AskOptions::default());
    assert_eq!(request.text, "launch/patient patient/*.read sandbox");
    let granted = report(&asked, &request, Some("launch/patient patient/*.read sandbox"), &all_facts());
    assert_eq!(granted.reported, "patient/*.read");
    assert!(granted.upstream.is_some(), "our own word is no riddle");
}

#[test]
fn the_ehrs_own_token_is_known_only_if_all_of_it_could_be_read() {
    let upstream = |answer| exchange("user/O.rs", &V2, ALL, answer, AskOptions::default()).upstream;
    assert_eq!(upstream(Some("user/O.rs user/ReviewCollection.write")).unwrap().to_string(), long("user/O.rs"));
    assert_eq!(upstream(Some("user/O.rs Observation.Read")), None);
    assert_eq!(upstream(None), None);
    let granted = exchange("user/O.rs", &V2, ALL, None, AskOptions::default());
    assert_eq!(granted.reported, long("user/O.rs"), "absent means as requested");
}

#[test]
fn what_is_refused_says_the_missing_part_in_the_apps_words() {
    let granted = exchange(
        "user/O.* user/Condition.cruds user/*.rs",
        &V2,
        ALL,
        Some("user/O.rs user/Condition.rs"),
        AskOptions::default(),
    );
    assert_eq!(granted.reported, long("user/O.read user/Condition.rs"));
    let refused: Vec<_> = granted.refused.iter().map(|refused| refused.scope.clone()).collect();
    assert_eq!(refused, [long("user/O.write"), "user/Condition.cud".into()], "the wildcard was told type by type");
    let json = serde_json::to_value(&granted.refused).unwrap();
    assert_eq!(json[0], serde_json::json!({ "scope": "user/Observation.write", "by": "ehr" }));
}

#[test]
fn a_request_survives_being_stored() {
    let (asked, request) = asked_of("launch/patient openid patient/O.rs?lab", &V1, ALL, AskOptions::default());
    let stored: Request = serde_json::from_value(serde_json::to_value(&request).unwrap()).unwrap();
    assert_eq!(stored, request);
    let answer = long("launch/patient openid patient/O.read");
    let (before, after) =
        (report(&asked, &request, Some(&answer), &all_facts()), report(&asked, &stored, Some(&answer), &all_facts()));
    assert_eq!(before, after);
}

#[test]
fn faults_of_a_registration_come_all_at_once() {
    let faults =
        Ticked::parse(&["patient/Observaton.rs", "Patient/Observation.rs", "openid", "offline-access", "patient/*.sr"]);
    assert_eq!(faults.unwrap_err().len(), 4);
    let faults = Allowed::parse(&["sandbox", "patient/Observation.rs", "launch/Patient"]).unwrap_err();
    assert!(faults.iter().all(|fault| matches!(fault, ScopeFault::Malformed(_))) && faults.len() == 2);
}

#[test]
fn a_registration_is_checked_against_what_its_vendor_can_say() {
    let ticks = ticked("patient/*.rs patient/O.rs patient/Binary.r patient/O.rs?lab");
    let policy = |dialect, wildcards, queries| ScopePolicy { dialect, wildcards, queries };
    let faults = |policy| {
        ticks
            .check(&policy)
            .iter()
            .map(ToString::to_string)
            .map(|text| text[1..].split('`').next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert!(faults(policy(Dialect::V2, Wildcards::Keep, true)).is_empty());
    assert_eq!(faults(policy(Dialect::V2, Wildcards::Expand, true)), ["patient/*.rs"]);
    assert_eq!(faults(policy(Dialect::V2, Wildcards::Keep, false)), [long("patient/O.rs?lab")]);
    assert_eq!(
        faults(policy(Dialect::V1, Wildcards::Keep, true)),
        ["patient/Binary.r".to_owned(), long("patient/O.rs?lab")]
    );
}

#[test]
fn as_few_scopes_as_possible_are_sent() {
    let sent = |asks| asked_of(asks, &V2, ALL, AskOptions::default()).1.text;
    assert_eq!(sent("user/O.r user/*.rs user/O.rs?lab user/O.s"), "user/*.rs");
    assert_eq!(sent("user/O.c user/O.rs user/O.r?lab"), long("user/O.crs"));
}

#[test]
fn each_asked_scope_is_told_with_its_own_permissions_only() {
    let granted = exchange("user/O.c user/O.rs", &V2, ALL, Some("user/O.cr"), AskOptions::default());
    assert_eq!(granted.reported, long("user/O.c user/O.r"));
}
