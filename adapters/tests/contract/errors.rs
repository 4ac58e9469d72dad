//! Every error answer of a FHIR server in the fixtures, as the app sees it.

use mantel_adapters::adapter::{AnswerKind, FhirAnswer, NormalisedError, Severity, fhir_error};

use crate::support::{Recorded, VENDORS, adapter, assert_covered};

use AnswerKind::{Empty, Html, Json, Outcome, Text, XmlOutcome};

/// File, adapter, and status, issue type and kind of the app's answer; none where it is no error.
type Row = (&'static str, &'static str, Option<(u16, &'static str, AnswerKind)>);

const TABLE: [Row; 48] = [
    ("athena-flow-429", "athena-practice", Some((429, "throttled", Text))),
    ("athenahealth-403-outcome-2", "athena", Some((403, "forbidden", Outcome))),
    ("athenahealth-403-outcome", "athena", Some((400, "required", Outcome))),
    ("athenahealth-404-gateway", "athena", Some((404, "not-supported", Text))),
    ("athenahealth-429", "athena", Some((429, "throttled", Json))),
    ("careevolution-403-outcome", "generic", Some((403, "forbidden", Outcome))),
    ("cigna-hapi-500-outcome", "generic", Some((502, "processing", Outcome))),
    ("drchrono-403-outcome", "generic", Some((403, "forbidden", Outcome))),
    ("drchrono-500-outcome-2", "generic", Some((502, "exception", Outcome))),
    ("drchrono-500-outcome", "generic", Some((502, "exception", Outcome))),
    ("eclinicalworks-400-outcome", "generic", Some((400, "processing", Outcome))),
    ("epic-200-searchset-outcome-1", "epic", None),
    ("epic-200-searchset-outcome-2", "epic", None),
    ("epic-200-searchset-outcome-3", "epic", None),
    ("epic-200-searchset-outcome-4", "epic", None),
    ("epic-400-outcome-2", "epic", Some((400, "required", Outcome))),
    ("epic-400-outcome-3", "epic", Some((400, "invalid", Outcome))),
    ("epic-400-outcome-4", "epic", Some((400, "invalid", Outcome))),
    ("epic-400-outcome-5", "epic", Some((400, "value", Outcome))),
    ("epic-400-outcome-6", "epic", Some((400, "invalid", Outcome))),
    ("epic-400-outcome", "epic", Some((400, "business-rule", Outcome))),
    ("epic-401-empty", "epic", Some((401, "login", Empty))),
    ("epic-403-empty", "epic", Some((403, "forbidden", Empty))),
    ("epic-403-outcome-2", "epic", Some((403, "forbidden", Outcome))),
    ("epic-403-outcome", "epic", Some((403, "forbidden", Outcome))),
    ("epic-404-html", "epic", Some((502, "transient", Html))),
    ("epic-410-outcome", "epic", Some((410, "not-found", Outcome))),
    ("epic-breaktheglass-outcome", "epic", Some((403, "suppressed", Outcome))),
    ("epic-session-expired-outcome", "epic", Some((410, "expired", Outcome))),
    ("hapi-404-outcome", "generic", Some((404, "processing", Outcome))),
    ("healthit-gov-sandbox-401-html", "generic", Some((502, "transient", Html))),
    ("iis-503-html", "epic", Some((502, "transient", Html))),
    ("nextgen-enterprise-400-outcome-2", "generic", Some((400, "invalid", Outcome))),
    ("nextgen-enterprise-400-outcome-3", "generic", Some((400, "invalid", Outcome))),
    ("nextgen-enterprise-400-outcome", "generic", Some((400, "invalid", Outcome))),
    ("nextgen-enterprise-403-outcome", "generic", Some((403, "forbidden", Outcome))),
    ("nextgen-enterprise-404-outcome", "generic", Some((404, "not-found", Outcome))),
    ("oracle-401-empty", "oracle", Some((401, "login", Empty))),
    ("oracle-401-json", "oracle", Some((401, "login", Json))),
    ("oracle-403-json", "oracle", Some((403, "forbidden", Json))),
    ("oracle-406-empty", "oracle", Some((406, "not-supported", Empty))),
    ("oracle-409-empty", "oracle", Some((412, "conflict", Empty))),
    ("oracle-422-outcome", "oracle", Some((422, "extension", Outcome))),
    ("oracle-500-outcome", "oracle", Some((422, "required", Outcome))),
    ("oracle-504-cloudfront-html", "oracle", Some((502, "transient", Html))),
    ("soarian-400-outcome", "oracle", Some((400, "structure", Outcome))),
    ("waf-200-html", "generic", Some((502, "exception", Html))),
    ("xml-outcome", "generic", Some((404, "not-found", XmlOutcome))),
];

fn error(vendor: &str, recorded: &Recorded) -> Option<NormalisedError> {
    let answer = FhirAnswer {
        status: recorded.status,
        content_type: recorded.header("content-type"),
        www_authenticate: recorded.header("www-authenticate"),
        body: &recorded.body,
        may_be_html: false,
    };
    fhir_error(adapter(vendor), &answer)
}

fn read(vendor: &str, name: &str) -> NormalisedError {
    error(vendor, &Recorded::read("errors", &format!("{name}.json"))).unwrap_or_else(|| panic!("{name} is no error"))
}

fn given(vendor: &str, status: u16, body: &[u8]) -> NormalisedError {
    let answer = FhirAnswer { status, content_type: None, www_authenticate: None, body, may_be_html: false };
    fhir_error(adapter(vendor), &answer).unwrap()
}

#[test]
fn every_error_has_its_expected_result() {
    let files = TABLE.iter().map(|(name, ..)| format!("{name}.json")).collect::<Vec<_>>();
    assert_covered("errors", files.iter().map(String::as_str));
    for (name, vendor, expected) in TABLE {
        let found = error(vendor, &Recorded::read("errors", &format!("{name}.json")));
        assert_eq!(found.map(|error| (error.status, error.code, error.kind)), expected, "{name}");
    }
}

/// Whatever the vendor and the answer: an app can read it, and internals stay inside.
#[test]
fn every_error_is_fit_for_every_vendors_app() {
    for vendor in VENDORS {
        for (name, ..) in TABLE {
            let Some(error) = error(vendor, &Recorded::read("errors", &format!("{name}.json"))) else { continue };
            assert!((400..600).contains(&error.status), "{vendor} {name}");
            assert!(!error.diagnostics.trim().is_empty(), "{vendor} {name}");
            assert!(!error.issues.is_empty(), "{vendor} {name}");
            let shown = format!("{error:?}");
            for internal in ["<html", "<HTML", "<div", ".cs:line", "authorization.sandboxcerner.com"] {
                assert!(!shown.contains(internal), "{vendor} {name} shows {internal}");
            }
        }
    }
}

#[test]
fn the_gravest_issue_speaks_first() {
    let error = read("epic", "epic-400-outcome-4");
    assert_eq!(
        error.issues.iter().map(|issue| issue.severity).collect::<Vec<_>>(),
        [Severity::Fatal, Severity::Warning, Severity::Warning]
    );
    assert!(error.has_code("59022") && error.has_code("59204"));
    assert!(error.diagnostics.starts_with("Combination of parameters is not valid"), "{}", error.diagnostics);
    assert_eq!(read("epic", "epic-400-outcome-2").diagnostics, "Must have either code or category.");
}

#[test]
fn epics_empty_403_says_what_to_do() {
    let error = read("epic", "epic-403-empty");
    assert_eq!(error.diagnostics, "This API is not enabled in the application's record at Epic");
    assert!(error.has_code("insufficient_scope"));
    // The same answer of another vendor keeps the words of its challenge.
    let generic = read("generic", "epic-403-empty");
    assert!(generic.diagnostics.contains("is not authorized for this service"), "{}", generic.diagnostics);
}

#[test]
fn a_broken_glass_is_known() {
    assert!(read("epic", "epic-breaktheglass-outcome").break_the_glass);
    assert!(!read("epic", "epic-403-outcome").break_the_glass);
}

#[test]
fn oracles_message_is_taken_apart() {
    let error = read("oracle", "oracle-403-json");
    assert!(error.has_code("urn:cerner:error:oauth2:resource-access:insufficient-scopes"));
    assert!(error.has_code("no_scope_for_resource_path"));
    assert_eq!(error.diagnostics, "The scopes that Oracle Health granted do not cover this request");
}

#[test]
fn stack_traces_are_left_out() {
    let error = read("generic", "nextgen-enterprise-400-outcome-2");
    assert_eq!(error.issues.len(), 1);
    assert_eq!(error.diagnostics, "NotImplementedException: The method or operation is not implemented.");
}

#[test]
fn texts_in_latin_1_and_json_strings_are_read() {
    let body = b"{\"message\":\"Identifiants erron\xe9s (SECURITY_INVALID_CREDENTIALS)\",\"id\":401}";
    let error = given("athena-practice", 401, body);
    assert_eq!((error.status, error.code), (401, "login"));
    assert_eq!(error.diagnostics, "Identifiants erronés (SECURITY_INVALID_CREDENTIALS)");
    let gateway = given("athena", 404, b"\"Service not registered with API gateway.\"");
    assert_eq!((gateway.code, gateway.kind), ("not-supported", Json));
    let text = given("athena-practice", 401, b"Not authorized.");
    assert_eq!((text.code, text.diagnostics.as_str()), ("login", "Not authorized."));
}

#[test]
fn html_is_no_answer_unless_the_app_asked_for_a_document() {
    let page = FhirAnswer {
        status: 200,
        content_type: Some("text/html"),
        www_authenticate: None,
        body: b"<!DOCTYPE html><html><body>A letter</body></html>",
        may_be_html: true,
    };
    assert_eq!(fhir_error(adapter("epic"), &page), None);
    let refused = fhir_error(adapter("epic"), &FhirAnswer { status: 404, ..page }).unwrap();
    assert_eq!(refused.status, 502);
    let blocked = fhir_error(adapter("epic"), &FhirAnswer { may_be_html: false, ..page }).unwrap();
    assert_eq!(blocked.status, 502);
    for fragment in ["<h1>Maintenance</h1>", "Maintenance<br>"] {
        let page = FhirAnswer { body: fragment.as_bytes(), may_be_html: false, ..page };
        assert_eq!(fhir_error(adapter("epic"), &page).map(|error| error.kind), Some(Html), "{fragment}");
    }
}

#[test]
fn statuses_are_those_that_an_app_can_act_on() {
    for (upstream, expected) in [
        (400, 400),
        (407, 502),
        (408, 504),
        (418, 418),
        (429, 429),
        (500, 502),
        (501, 501),
        (502, 502),
        (503, 503),
        (504, 504),
        (599, 502),
    ] {
        assert_eq!(given("generic", upstream, b"").status, expected, "{upstream}");
    }
}

#[test]
fn bodies_are_bounded() {
    let error = given("generic", 400, &b"x\n".repeat(100_000));
    assert!(error.diagnostics.len() <= 1000 && !error.diagnostics.contains('\n'));
}
