//! The parsers, by the forms of `fixtures/scopes.json` and what EHRs write beside them.

use mantel_adapters::{
    fhir::types::{RESOURCE_TYPES, canonical, is_resource_type},
    smart::scope::{Asked, Context, Coverage, LaunchScope, MalformedKind, Permissions, Scope, ScopeSet, Syntax},
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    forms: Vec<Form>,
}

#[derive(Deserialize)]
struct Form {
    scope: String,
    form: String,
    meaning: String,
    smart: bool,
}

#[test]
fn every_form_is_told_apart() {
    let fixture: Fixture = serde_json::from_str(include_str!("../fixtures/scopes.json")).unwrap();
    assert_eq!(fixture.forms.len(), 51);
    for Form { scope, form, meaning, smart } in fixture.forms {
        let asked = Asked::parse(&scope);
        if !smart {
            assert!(asked.is_empty(), "{scope:?} is not SMART: {meaning}");
            continue;
        }
        assert!(asked.malformed().is_empty(), "{scope:?}");
        let [written] = asked.written() else { panic!("{scope:?} is one scope") };
        assert_eq!(written.text, scope);
        let syntax = match form.as_str() {
            "v1" => Some(Syntax::V1),
            "v2" => Some(Syntax::V2),
            _ => None,
        };
        assert_eq!(written.dialect, syntax, "{scope:?}");
        let permissions = match meaning.as_str() {
            "read+search" | "all types, read+search" => Permissions::READ | Permissions::SEARCH,
            "create+update+delete" | "v1 .write" => Permissions::CREATE | Permissions::UPDATE | Permissions::DELETE,
            "all" => Permissions::ALL,
            "read, vread" => Permissions::READ,
            "search" => Permissions::SEARCH,
            _ => continue,
        };
        assert!(matches!(&written.scope, Scope::Resource(known) if known.permissions == permissions), "{scope:?}");
    }
}

#[test]
fn queries_are_compared_decoded_and_without_order() {
    let query = |text: &str| match Scope::parse(&format!("patient/Observation.rs?{text}")) {
        Ok(Scope::Resource(scope)) => scope.query.unwrap(),
        other => panic!("{text:?}: {other:?}"),
    };
    assert_eq!(query("category=a%7Cb&code=c"), query("code=c&category=a|b"));
    assert_eq!(query("code=a%20b"), query("code=a+b"));
    assert_ne!(query("code=a&code=b"), query("code=a"));
    assert_eq!(query("category=a%7Cb").as_str(), "category=a%7Cb");
    assert_eq!(query("code:in=http://example.org/vs").pairs()[0].0, "code:in");
    for broken in ["", "a", "a=", "=b", "a=b&", "a=%zz", "a=%C3", "a=%00", "a=%", "a b=c", "a?=b"] {
        assert!(Scope::parse(&format!("patient/Observation.rs?{broken}")).is_err(), "{broken:?}");
    }
}

#[test]
fn extensions_are_uris_or_private_names_but_none_of_the_gateways() {
    for token in ["https://example.org/scopes/x", "urn:example:x", "__app", "email"] {
        assert_eq!(Scope::parse(token), Ok(Scope::Extension(token.to_owned())));
    }
    for token in ["__site", "__fhir_base", "__scopes_refused"] {
        assert_eq!(Scope::parse(token).unwrap_err().kind, MalformedKind::Reserved, "{token}");
        assert!(ScopeSet::parse_lenient(token).set.is_empty(), "{token}");
    }
    for token in ["__", "https://", "http:x", ":x", "1a://x", "urn:", "x y", "a\"b", "a\\b", "é"] {
        assert!(Scope::parse(token).is_err(), "{token:?}");
    }
    let uri = "http://smarthealthit.org/fhir/scopes/patient/Observation.rs";
    assert_eq!(Scope::parse(uri).unwrap().to_string(), "patient/Observation.rs");
    assert_eq!(Scope::parse("http://openid.net/specs/openid-connect-core-1_0#openid"), Ok(Scope::OpenId));
}

#[test]
fn launch_scopes() {
    let other = |resource_type: &str, role: Option<&str>| {
        Scope::Launch(LaunchScope::Other { resource_type: resource_type.into(), role: role.map(str::to_owned) })
    };
    assert_eq!(Scope::parse("launch/patient"), Ok(Scope::Launch(LaunchScope::Patient)));
    assert_eq!(Scope::parse("launch/patient?role=urn:r"), Ok(other("Patient", Some("urn:r"))));
    assert_eq!(Scope::parse("launch/imagingstudy"), Ok(other("ImagingStudy", None)));
    assert_eq!(Scope::parse("launch/imagingstudy?role=urn:r").unwrap().to_string(), "launch/imagingstudy?role=urn:r");
    for token in [
        "launch/",
        "launch/Patient",
        "launch/nothing",
        "launch/list?role=",
        "launch/list?x=y",
        "launch/list?role=a&role=b",
    ] {
        assert_eq!(Scope::parse(token).unwrap_err().kind, MalformedKind::Launch, "{token}");
    }
}

#[test]
fn asked_scopes_keep_their_order_and_come_once() {
    let asked = Asked::parse("  openid patient/Patient.read  openid nonsense patient/Observation.rs ");
    let texts: Vec<_> = asked.written().iter().map(|written| written.text.as_str()).collect();
    assert_eq!(texts, ["openid", "patient/Patient.read", "patient/Observation.rs"]);
    assert_eq!(asked.malformed()[0].token, "nonsense");
    let stored: Asked = serde_json::from_value(serde_json::to_value(&asked).unwrap()).unwrap();
    assert_eq!(stored.written(), asked.written());
}

#[test]
fn a_flood_of_scopes_is_bounded() {
    let many: Vec<_> = (0..5_000).map(|number| format!("__{number}")).collect();
    let asked = Asked::parse(&many.join(" "));
    assert_eq!((asked.written().len(), asked.malformed().len()), (1024, 1));
    let many: Vec<_> = (0..100).map(|number| format!("patient/*.rs?category={number}")).collect();
    let asked = Asked::parse(&many.join(" "));
    assert_eq!(asked.written().len(), 8);
    assert!(asked.malformed().iter().all(|malformed| malformed.kind == MalformedKind::TooMany));
    let lenient = ScopeSet::parse_lenient(&many.join(" "));
    assert_eq!((lenient.set.resources().count(), lenient.unreadable.len()), (8, 92));
    let many: Vec<_> = (0..5_000).map(|number| format!("__{number}")).collect();
    let lenient = ScopeSet::parse_lenient(&many.join(" "));
    assert_eq!((lenient.set.words().count(), lenient.unreadable.len()), (2048, 1), "and known to be cut short");
}

#[test]
fn ehrs_may_write_as_they_like_but_get_no_more_for_it() {
    for (written, read) in [
        ("patient/Immunization.Read PATIENT/immunization.READ", "patient/Immunization.rs"),
        ("patient/observation.read user/*.*", "patient/Observation.rs user/*.cruds"),
        ("user/DiagnosticReport.search user/DiagnosticReport.Create", "user/DiagnosticReport.cs"),
        ("patient/Observation.sr", "patient/Observation.rs"),
        ("patient/Observation.read?category=a", "patient/Observation.rs?category=a"),
        ("OpenID fhiruser LAUNCH/Patient Offline_Access", "launch/patient openid fhirUser offline_access"),
        ("launch/List?role=urn:Role", "launch/list?role=urn:Role"),
        ("openid\tpatient/Patient.r \n", "openid patient/Patient.r"),
        ("http://smarthealthit.org/fhir/scopes/patient/Patient.r", "patient/Patient.r"),
    ] {
        let lenient = ScopeSet::parse_lenient(written);
        assert_eq!(lenient.set.to_string(), read, "{written}");
        assert!(lenient.foreign.is_empty() && lenient.unreadable.is_empty(), "{written}");
    }
}

#[test]
fn what_an_ehr_writes_unreadably_grants_nothing() {
    let lenient =
        ScopeSet::parse_lenient("launch openid PATIENT.READ Patient.search Patient.Read (STU3) Patient.Read (R4)");
    assert_eq!(lenient.set.to_string(), "launch openid");
    assert_eq!(lenient.foreign, ["Patient.Read"]);
    assert_eq!(lenient.unreadable, ["PATIENT.READ", "Patient.search", "Patient.Read"]);
    for unreadable in [
        "patient/Observation.rs?",
        "patient/Observation.rs?a",
        "patient/Observation.rx",
        "patient/.read",
        "api:oemr",
        "patient/Observation",
    ] {
        let lenient = ScopeSet::parse_lenient(unreadable);
        assert!(lenient.set.is_empty(), "{unreadable}");
        assert_eq!(lenient.unreadable, [unreadable]);
    }
    let lenient =
        ScopeSet::parse_lenient("user/ProcedureRequest.Read patient/Patient.Read (STU3) patient/Observation.read (R4)");
    assert_eq!(lenient.set.to_string(), "patient/Observation.rs");
    assert_eq!(lenient.foreign, ["user/ProcedureRequest.Read", "patient/Patient.Read"]);
    assert!(lenient.unreadable.is_empty());
}

#[test]
fn permits_unites_what_covers_and_denies_what_is_missing() {
    let set =
        ScopeSet::parse("patient/*.r patient/Observation.s?category=a patient/Observation.us?category=b").unwrap();
    let permits = |resource_type, needed| set.permits(Context::Patient, resource_type, needed);
    assert_eq!(permits("Observation", Permissions::READ), Coverage::Yes);
    assert_eq!(permits("Condition", Permissions::READ), Coverage::Yes);
    assert_eq!(permits("Condition", Permissions::SEARCH), Coverage::No);
    assert_eq!(permits("Observation", Permissions::NONE), Coverage::No);
    assert_eq!(set.permits(Context::User, "Observation", Permissions::READ), Coverage::No);
    let queries = |needed| match permits("Observation", needed) {
        Coverage::Constrained(queries) => queries.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        other => format!("{other:?}"),
    };
    assert_eq!(queries(Permissions::SEARCH), "category=a category=b");
    assert_eq!(queries(Permissions::SEARCH | Permissions::READ), "category=a category=b");
    assert_eq!(queries(Permissions::SEARCH | Permissions::UPDATE), "category=b");
    assert_eq!(queries(Permissions::DELETE | Permissions::SEARCH), "No");
}

#[test]
fn a_grant_can_store_its_set() {
    let text = "launch openid patient/*.rs patient/Observation.cruds patient/Observation.r?category=a%7Cb";
    let set = ScopeSet::parse(text).unwrap();
    assert_eq!(serde_json::to_value(&set).unwrap(), text);
    assert_eq!(serde_json::from_value::<ScopeSet>(text.into()).unwrap(), set);
    assert!(serde_json::from_value::<ScopeSet>("patient/Observation.sr".into()).is_err());
}

#[test]
fn the_types_of_r4() {
    assert!(RESOURCE_TYPES.is_sorted());
    assert!(is_resource_type("Observation") && !is_resource_type("observation") && !is_resource_type("DomainResource"));
    assert_eq!(canonical("imagingstudy"), Some("ImagingStudy"));
    assert_eq!(canonical("procedurerequest"), None);
}
