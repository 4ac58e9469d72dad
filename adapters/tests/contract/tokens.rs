//! Every token answer in the fixtures, and what each error means to its vendor's profile.

use mantel_adapters::{
    profile::{Meaning, Place},
    smart::{
        error::{OAuthErrorCode, told_app},
        token::{TokenAnswer, TokenErrorKind, meaning, parse_answer, parse_introspection},
    },
};
use serde_json::json;

use crate::support::{Recorded, adapter, assert_covered, json as document, profile};

enum Expect {
    /// Lifetime, whether a refresh token came, patient, tenant.
    Answer(Option<u64>, bool, Option<&'static str>, Option<&'static str>),
    /// Kind, error code, where it came up, meaning, the rule that gave it.
    Error(TokenErrorKind, Option<&'static str>, Place, Meaning, Option<&'static str>),
    /// Expiry of the token, and its patient.
    Introspection(Option<u64>, Option<&'static str>),
    /// Read by another test.
    Elsewhere,
}
use Expect::{Answer, Elsewhere, Error, Introspection};
use Meaning::{Dead, Misconfigured, Passing};
use TokenErrorKind::{Duplicate, Empty, Html, Malformed, OAuth};

fn table() -> Vec<(&'static str, &'static str, Expect)> {
    const PRACTICE: Option<&str> = Some("Organization/a-1.Practice-195900");
    const TENANT: Option<&str> = Some("ec2458f2-1e24-41c8-b71b-0e701af7583d");
    const EPIC_PATIENT: Option<&str> = Some("eq081-VQEgP8drUUqCWzHfw3");
    let ok = |expires_in| Answer(expires_in, false, Some("1"), None);
    vec![
        ("athena-ehr-launch", "athena", Answer(Some(3600), true, Some("a-195900.E-1234"), PRACTICE)),
        (
            "athena-error-invalid-grant",
            "athena",
            Error(OAuth, Some("invalid_grant"), Place::Refresh, Dead, Some("burnt")),
        ),
        (
            "athena-error-invalid-scope",
            "athena",
            Error(OAuth, Some("invalid_scope"), Place::Refresh, Misconfigured, None),
        ),
        ("athena-error-okta-json", "athena", Error(OAuth, Some("invalid_client"), Place::Refresh, Misconfigured, None)),
        (
            "athena-flow-session-create",
            "athena-practice",
            Error(Malformed("access_token"), None, Place::Code, Passing, None),
        ),
        ("athena-system", "athena", Answer(Some(3600), false, None, None)),
        (
            "eclinicalworks-error-access-denied",
            "generic",
            Error(OAuth, Some("access_denied"), Place::Refresh, Passing, None),
        ),
        (
            "eclinicalworks-error-invalid-client",
            "generic",
            Error(OAuth, Some("invalid_client"), Place::Refresh, Misconfigured, None),
        ),
        (
            "eclinicalworks-error-invalid-grant",
            "generic",
            Error(OAuth, Some("invalid_grant"), Place::Refresh, Dead, Some("burnt")),
        ),
        (
            "eclinicalworks-error-invalid-request",
            "generic",
            Error(OAuth, Some("invalid_request"), Place::Refresh, Misconfigured, None),
        ),
        (
            "eclinicalworks-error-unsupported-grant-type",
            "generic",
            Error(OAuth, Some("unsupported_grant_type"), Place::Backend, Misconfigured, None),
        ),
        ("eclinicalworks-system", "generic", Answer(Some(300), false, None, None)),
        ("epic-ehr-launch-string-banner", "epic", Answer(Some(3600), true, Some("eRp.HuKDlKB8MhAkzHFthQQ3"), None)),
        (
            "epic-ehr-launch",
            "epic",
            Answer(Some(3240), false, Some("T1wI5bk8n1YVgvWk9D05BmRV0Pi3ECImNSK8DKyKltsMB"), None),
        ),
        (
            "epic-error-invalid-client",
            "epic",
            Error(OAuth, Some("invalid_client"), Place::Refresh, Misconfigured, None),
        ),
        ("epic-error-invalid-grant-null", "epic", Error(OAuth, Some("invalid_grant"), Place::Code, Dead, Some("code"))),
        (
            "epic-error-unauthorized-client",
            "epic",
            Error(OAuth, Some("unauthorized_client"), Place::Backend, Misconfigured, None),
        ),
        ("epic-introspect", "epic", Introspection(Some(1_782_220_871), EPIC_PATIENT)),
        ("epic-refresh-without-new-refresh-token", "epic", Answer(Some(3240), false, None, None)),
        ("epic-refresh", "epic", Answer(Some(3600), true, EPIC_PATIENT, None)),
        ("epic-standalone-patient", "epic", Answer(Some(3600), true, EPIC_PATIENT, None)),
        ("flatiron-introspect", "generic", Introspection(Some(1_766_793_628), None)),
        ("launch-and-callback", "generic", Elsewhere),
        (
            "meditech-error-invalid-client",
            "generic",
            Error(OAuth, Some("invalid_client"), Place::Backend, Misconfigured, None),
        ),
        (
            "meditech-error-unauthorized-client",
            "generic",
            Error(OAuth, Some("unauthorized_client"), Place::Backend, Misconfigured, None),
        ),
        ("odd-bom", "generic", ok(Some(3600))),
        ("odd-duplicate-members", "generic", Error(Duplicate, None, Place::Refresh, Passing, None)),
        ("odd-empty-400", "generic", Error(Empty, None, Place::Refresh, Misconfigured, None)),
        ("odd-error-with-200", "generic", Error(OAuth, Some("invalid_grant"), Place::Refresh, Dead, Some("burnt"))),
        ("odd-expires-in-string", "generic", ok(Some(3600))),
        ("odd-form-encoded-200", "generic", Answer(Some(3600), false, None, None)),
        ("odd-html-200", "generic", Error(Html, None, Place::Refresh, Passing, None)),
        ("odd-html-502", "generic", Error(Html, None, Place::Refresh, Passing, None)),
        ("odd-no-expires-in", "generic", ok(None)),
        ("odd-no-scope", "generic", ok(Some(3600))),
        ("odd-patient-number", "generic", Answer(Some(3600), false, Some("12724066"), None)),
        ("odd-patient-reference", "generic", Answer(Some(3600), false, Some("12724066"), None)),
        ("odd-scope-array", "generic", ok(Some(3600))),
        ("odd-text-plain-json", "generic", ok(Some(3600))),
        ("oracle-ehr-launch", "oracle", Answer(Some(570), false, Some("12724070"), TENANT)),
        ("oracle-error-code-expired", "oracle", Error(OAuth, Some("invalid_grant"), Place::Code, Dead, Some("code"))),
        (
            "oracle-error-invalid-client",
            "oracle",
            Error(OAuth, Some("invalid_client"), Place::Refresh, Misconfigured, None),
        ),
        (
            "oracle-error-refresh-session-ended",
            "oracle",
            Error(OAuth, Some("invalid_grant"), Place::Refresh, Dead, Some("burnt")),
        ),
        ("oracle-openid", "oracle", Answer(Some(570), false, None, None)),
        ("oracle-provider-minimal", "oracle", Answer(Some(570), false, None, None)),
        ("oracle-refresh", "oracle", Answer(Some(570), false, None, None)),
        ("oracle-standalone-patient", "oracle", Answer(Some(570), true, Some("12724066"), TENANT)),
        ("smart-ig-2.2-full", "generic", Answer(Some(3600), true, Some("123"), Some("tenant-a"))),
    ]
}

fn answer(vendor: &str, name: &str) -> TokenAnswer {
    let recorded = Recorded::read("tokens", &format!("{name}.json"));
    let mut answer = parse_answer(recorded.status, recorded.header("content-type"), &recorded.body).unwrap();
    adapter(vendor).normalise_token(&mut answer);
    answer
}

#[test]
fn every_answer_has_its_expected_result() {
    let rows = table();
    let files = rows.iter().map(|(name, ..)| format!("{name}.json")).collect::<Vec<_>>();
    assert_covered("tokens", files.iter().map(String::as_str));
    for (name, vendor, expected) in rows {
        if matches!(expected, Elsewhere) {
            continue;
        }
        let recorded = Recorded::read("tokens", &format!("{name}.json"));
        let parsed = parse_answer(recorded.status, recorded.header("content-type"), &recorded.body);
        match (parsed, expected) {
            (Ok(_), Answer(expires_in, refresh_token, patient, tenant)) => {
                let answer = answer(vendor, name);
                assert_eq!(answer.expires_in, expires_in, "{name}");
                assert_eq!(answer.refresh_token.is_some(), refresh_token, "{name}");
                assert_eq!(answer.context.patient.as_deref(), patient, "{name}");
                assert_eq!(answer.context.tenant.as_deref(), tenant, "{name}");
                assert_eq!(answer.token_type, "Bearer", "{name}");
            }
            (Err(error), Error(kind, code, place, means, rule)) => {
                assert_eq!((error.kind, error.error.as_deref()), (kind, code), "{name}");
                assert_eq!(meaning(&profile(vendor), place, &error), (means, rule), "{name}");
            }
            (_, Introspection(exp, patient)) => {
                let found = parse_introspection(&recorded.body).unwrap();
                assert!(found.active && found.scope.is_some(), "{name}");
                assert_eq!((found.exp, found.patient.as_deref()), (exp, patient), "{name}");
            }
            (parsed, _) => panic!("{name}: {parsed:?}"),
        }
    }
}

#[test]
fn scopes_come_as_they_were_sent() {
    for (name, expected) in [
        ("epic-ehr-launch", Some("openid Patient.read Patient.search ")),
        ("odd-scope-array", Some("patient/Patient.read launch/patient")),
        ("odd-no-scope", None),
    ] {
        assert_eq!(answer("generic", name).scope.as_deref(), expected, "{name}");
    }
}

#[test]
fn banners_are_booleans() {
    for (name, expected) in
        [("epic-ehr-launch-string-banner", Some(false)), ("oracle-ehr-launch", Some(true)), ("epic-ehr-launch", None)]
    {
        assert_eq!(answer("generic", name).context.need_patient_banner, expected, "{name}");
    }
}

#[test]
fn the_context_of_smart_2_2_is_told_whole() {
    let context = serde_json::to_value(answer("generic", "smart-ig-2.2-full").context).unwrap();
    let sent = document("tokens", "smart-ig-2.2-full.json");
    for member in ["patient", "encounter", "fhirContext", "need_patient_banner", "smart_style_url", "intent", "tenant"]
    {
        assert_eq!(context[member], sent["response"]["body"][member], "{member}");
    }
    let epic = serde_json::to_value(answer("epic", "epic-ehr-launch").context).unwrap();
    assert_eq!(epic["__epic.dstu2.patient"], json!("T1wI5bk8n1YVgvWk9D05BmRV0Pi3ECImNSK8DKyKltsMB"));
    assert_eq!((&epic["location"], &epic["state"]), (&json!(null), &json!(null)), "no parameter of SMART");
}

/// The same answers, to each vendor's profile: what kills a grant here is an alarm there.
#[test]
fn meanings_differ_by_vendor() {
    const UNMAPPED: &str = r#"{"expires_in":0,"error":"invalid_client","error_description":"Refresh token could not be mapped to the original authorization request. User must re-authenticate."}"#;
    const INNER: &str = r#"{"expires_in":0,"error":"invalid_client","error_description":"An unexpected error has occurred. Please try this operation again later."}"#;
    const GRANT: &str = r#"{"error":"invalid_grant"}"#;
    const TENANT: &str = r#"{"error":"invalid_grant","error_uri":"https://authorization.cerner.com/errors/urn%3Acerner%3Aerror%3Aauthorization-server%3Aoauth2%3Atoken%3Ainvalid-tenant/instances/1"}"#;
    let rows = [
        ("generic", 401, GRANT, Dead),
        ("epic", 400, GRANT, Dead),
        ("oracle", 400, GRANT, Dead),
        ("athena", 400, GRANT, Dead),
        ("athena-practice", 400, GRANT, Dead),
        ("athena-practice", 400, UNMAPPED, Dead),
        ("athena", 400, UNMAPPED, Misconfigured),
        ("epic", 400, UNMAPPED, Misconfigured),
        ("athena-practice", 500, INNER, Passing),
        ("athena-practice", 500, UNMAPPED, Passing),
        ("athena-practice", 400, INNER, Misconfigured),
        ("epic", 500, GRANT, Passing),
        ("generic", 503, GRANT, Passing),
        ("epic", 429, GRANT, Passing),
        ("generic", 429, GRANT, Passing),
        ("oracle", 400, TENANT, Misconfigured),
        ("generic", 400, r#"{"error":"temporarily_unavailable"}"#, Passing),
        ("generic", 403, "<html><body>blocked</body></html>", Passing),
        ("generic", 404, "not here", Misconfigured),
    ];
    for (vendor, status, body, expected) in rows {
        let error = parse_answer(status, Some("application/json"), body.as_bytes()).unwrap_err();
        let profile = profile(vendor);
        let (means, rule) = meaning(&profile, Place::Refresh, &error);
        assert_eq!(means, expected, "{vendor} {status} {body} by {rule:?}");
    }
}

/// An operator's rule beside the built-in ones: the more exact one wins, in whatever order they stand.
#[test]
fn the_most_exact_rule_wins() {
    let mut profile = profile("oracle");
    let held =
        r#"{"error":"invalid_grant","error_uri":"https://authorization.cerner.com/errors/Held-Back/instances/1"}"#;
    let error = parse_answer(400, None, held.as_bytes()).unwrap_err();
    assert_eq!(meaning(&profile, Place::Refresh, &error), (Dead, Some("burnt")));
    let rule = "means = \"suspended\"\ncontains = \"held-back\"";
    for name in ["a", "z"] {
        profile.errors.insert(name.into(), toml_edit::de::from_str(rule).unwrap());
        assert_eq!(meaning(&profile, Place::Refresh, &error), (Meaning::Suspended, Some(name)));
        profile.errors.remove(name);
    }
}

/// Without a rule nothing is dead, whatever the code.
#[test]
fn no_grant_ends_without_a_rule() {
    let bare = mantel_adapters::profile::Profile::default();
    for code in OAuthErrorCode::ALL {
        for status in [200, 400, 401, 403, 500] {
            let body = format!(r#"{{"error":"{code}"}}"#);
            let error = parse_answer(status, None, body.as_bytes()).unwrap_err();
            let (means, rule) = meaning(&bare, Place::Refresh, &error);
            assert!(means != Dead && rule.is_none(), "{status} {code}");
        }
    }
}

#[test]
fn callbacks_tell_the_app_what_it_can_act_on() {
    let callbacks = document("tokens", "launch-and-callback.json");
    let errors =
        callbacks["callbacks"].as_array().unwrap().iter().filter(|callback| callback["query"]["error"].is_string());
    let told = errors.map(|callback| {
        let vendor = match callback["vendor"].as_str().unwrap() {
            "athenahealth" => "athena",
            vendor => vendor,
        };
        let query = &callback["query"];
        let told = told_app(
            &profile(vendor),
            query["error"].as_str().unwrap(),
            query["error_description"].as_str(),
            query["error_uri"].as_str(),
        );
        (vendor.to_owned(), told.code, told.alarm)
    });
    let expected = [
        ("oracle".to_owned(), OAuthErrorCode::AccessDenied, false),
        ("epic".to_owned(), OAuthErrorCode::ServerError, true),
        ("athena".to_owned(), OAuthErrorCode::AccessDenied, false),
    ];
    assert_eq!(told.collect::<Vec<_>>(), expected);

    let policy = "Policy evaluation failed for this request, please check the policy configurations.";
    let unticked = told_app(&profile("athena"), "access_denied", Some(policy), None);
    assert_eq!((unticked.code, unticked.alarm), (OAuthErrorCode::AccessDenied, true));
    let persona = "https://authorization.cerner.com/errors/urn%3Acerner%3A…client-persona-mismatch/instances/1";
    assert!(told_app(&profile("oracle"), "access_denied", None, Some(persona)).alarm);
}

#[test]
fn athena_names_the_practice_in_several_ways() {
    for (body, expected) in [
        (r#"{"access_token":"a","ah_practice":"Organization/a-1.Practice-12"}"#, Some("Organization/a-1.Practice-12")),
        (r#"{"access_token":"a","ah_practice":"a-1.Practice-12"}"#, Some("Organization/a-1.Practice-12")),
        (r#"{"access_token":"a","ah_practice":12}"#, Some("Organization/a-1.Practice-12")),
        (r#"{"access_token":"a","patient":"a-12.E-9"}"#, Some("Organization/a-1.Practice-12")),
        (r#"{"access_token":"a","patient":"a-12.E-9","ah_practice":"13"}"#, Some("Organization/a-1.Practice-13")),
        (r#"{"access_token":"a","ah_practice":"Organization/a-1.Practice-1&x=2"}"#, None),
        (r#"{"access_token":"a","patient":"12"}"#, None),
    ] {
        let mut answer = parse_answer(200, None, body.as_bytes()).unwrap();
        adapter("athena").normalise_token(&mut answer);
        assert_eq!(answer.context.tenant.as_deref(), expected, "{body}");
    }
}
