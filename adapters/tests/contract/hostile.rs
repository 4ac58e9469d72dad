//! What comes from the network may be anything: no parser panics, and no token is shown.

use mantel_adapters::{
    adapter::{FhirAnswer, fhir_error},
    smart::{
        claims::FhirUser,
        discovery::{parse_capability_statement, parse_openid_configuration, parse_smart_configuration},
        token::{parse_answer, parse_introspection},
    },
};
use proptest::prelude::*;

use crate::support::{VENDORS, adapter, bytes, url};

fn read_by_all(body: &[u8], status: u16) {
    let base = url("https://ehr.example/fhir/r4");
    let _ = parse_smart_configuration(body, &base);
    let _ = parse_openid_configuration(body, &base);
    if let Ok(facts) = parse_capability_statement(body, &base) {
        assert!(facts.fhir_version.starts_with("4.0"));
    }
    let _ = parse_introspection(body);
    for content_type in [None, Some("application/x-www-form-urlencoded"), Some("text/html")] {
        if let Ok(mut answer) = parse_answer(status, content_type, body) {
            assert!(!answer.access_token.is_empty() && answer.access_token.bytes().all(|b| b.is_ascii_graphic()));
            VENDORS.iter().for_each(|vendor| adapter(vendor).normalise_token(&mut answer));
        }
    }
    let challenge = String::from_utf8_lossy(body);
    for vendor in VENDORS {
        let answer =
            FhirAnswer { status, content_type: None, www_authenticate: Some(&challenge), body, may_be_html: false };
        if let Some(error) = fhir_error(adapter(vendor), &answer) {
            assert!((400..600).contains(&error.status) && !error.issues.is_empty() && !error.diagnostics.is_empty());
        }
    }
    let _ = FhirUser::parse(&challenge, &base);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_bytes(body in proptest::collection::vec(any::<u8>(), 0..200), status in 100u16..600) {
        read_by_all(&body, status);
    }

    #[test]
    fn any_text(body in "[\\[\\]{}\":,/<>=&a-cé\u{feff} ]{0,80}", status in 100u16..600) {
        read_by_all(body.as_bytes(), status);
    }

    /// Real documents, cut somewhere, with one byte changed.
    #[test]
    fn damaged_documents(
        (kind, file) in prop_oneof![
            Just(("discovery", "epic.smart-configuration.json")),
            Just(("discovery", "odd-oauth-uris-only.metadata.json")),
            Just(("discovery", "odd-xml-only.metadata.xml")),
            Just(("discovery", "odd-utf16.smart-configuration.txt")),
        ],
        cut in 0.0..1.0f64,
        at in 0.0..1.0f64,
        byte in any::<u8>(),
        status in 100u16..600,
    ) {
        let mut body = bytes(kind, file);
        let place = |share: f64, length: usize| (length as f64 * share) as usize;
        body.truncate(place(cut, body.len()));
        let at = place(at, body.len());
        if let Some(changed) = body.get_mut(at) {
            *changed = byte;
        }
        read_by_all(&body, status);
    }

    /// Whatever an EHR calls its members: neither they nor their values are in what is logged.
    #[test]
    fn nothing_is_shown(value in "[a-z0-9]{12,40}", status in 200u16..600) {
        for name in ["access_token", "refresh_token", "patient", "error_description", "user"] {
            let body = format!(r#"{{"access_token":"t","{name}_":"x","{name}":"{value}"}}"#);
            let shown = match parse_answer(status, None, body.as_bytes()) {
                Ok(answer) => format!("{answer:?}"),
                Err(error) => format!("{error:?} {error}"),
            };
            prop_assert!(!shown.contains(&value), "{}", shown);
        }
    }
}
