//! Targets and interactions.
#![allow(clippy::unwrap_used, clippy::panic)]

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use mantel_adapters::fhir::interaction::{
    BodyKind, BundleFault, BundleKind, ClassifyFault, Interaction, InteractionKind, Request, TargetFault, body_kind,
    bundle_kind, classify, encode_target, parse_query, parse_target,
};
use proptest::prelude::*;

fn kind(method: &str, target: &str, body: BodyKind) -> Result<Interaction, ClassifyFault> {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let (path, query) = parse_target(path, query).unwrap();
    classify(&method.parse().unwrap(), &path, &query, &HeaderMap::new(), body)
}

#[test]
fn every_interaction_of_r4() {
    use BodyKind::{Bundle, Empty, Form, Other, Patch, Resource};
    use InteractionKind as K;
    let cases = [
        ("GET", "/metadata", Empty, K::Capabilities),
        ("HEAD", "/Patient/1", Empty, K::Read),
        ("GET", "/Patient/1/", Empty, K::Read),
        ("GET", "/Patient/1/_history/2", Empty, K::VRead),
        ("POST", "/Patient", Resource, K::Create),
        ("POST", "/Binary", Other, K::Create),
        ("PUT", "/Patient/1", Resource, K::Update),
        ("PUT", "/Patient?identifier=a|b", Resource, K::Update),
        ("PATCH", "/Patient/1", Patch, K::Patch),
        ("PATCH", "/Patient?identifier=a", Resource, K::Patch),
        ("DELETE", "/Patient/1", Empty, K::Delete),
        ("DELETE", "/Patient?identifier=a", Empty, K::Delete),
        ("GET", "/Observation?patient=1", Empty, K::SearchType),
        ("GET", "/Observation", Empty, K::SearchType),
        ("POST", "/Observation/_search", Form, K::SearchType),
        ("GET", "/Patient/1/Observation?code=x", Empty, K::SearchType),
        ("POST", "/Patient/1/Observation/_search", Form, K::SearchType),
        ("GET", "/Patient/1/*", Empty, K::SearchSystem),
        ("GET", "?_type=Patient", Empty, K::SearchSystem),
        ("POST", "/_search", Form, K::SearchSystem),
        ("GET", "/Patient/1/_history", Empty, K::HistoryInstance),
        ("GET", "/Patient/_history", Empty, K::HistoryType),
        ("GET", "/_history", Empty, K::HistorySystem),
        ("GET", "/Patient/1/$everything", Empty, K::Operation),
        ("POST", "/Patient/$match", Resource, K::Operation),
        ("GET", "/$export", Empty, K::Operation),
        ("POST", "", Bundle(BundleKind::Batch), K::Batch),
        ("POST", "/", Bundle(BundleKind::Transaction), K::Transaction),
        ("GET", "?_getpages=1", Empty, K::Page),
        ("GET", "/Observation?sessionID=1&_mantel=x", Empty, K::Page),
        ("GET", "/bulkstatus/7?_mantel=x", Empty, K::Page),
    ];
    for (method, target, body, expected) in cases {
        let found = kind(method, target, body).unwrap_or_else(|fault| panic!("{method} {target}: {fault}"));
        assert_eq!(found.kind(), expected, "{method} {target}");
    }
    let seen: std::collections::BTreeSet<_> = cases.iter().map(|case| case.3).collect();
    assert_eq!(seen.len(), InteractionKind::ALL.len());
}

#[test]
fn what_an_interaction_names() {
    let found = kind("GET", "/Patient/1/Observation", BodyKind::Empty).unwrap();
    assert_eq!(
        found,
        Interaction::SearchCompartment {
            compartment: "Patient".into(),
            id: "1".into(),
            resource_type: Some("Observation".into())
        }
    );
    assert_eq!((found.resource_type(), found.id()), (Some("Observation"), None));
    let found = kind("POST", "/Patient/1/$everything", BodyKind::Empty).unwrap();
    assert_eq!((found.resource_type(), found.id()), (Some("Patient"), Some("1")));
    let mut headers = HeaderMap::new();
    headers.insert("if-none-exist", HeaderValue::from_static("identifier=1"));
    let found = classify(&Method::POST, &["Patient".into()], &[], &headers, BodyKind::Resource);
    assert_eq!(found, Ok(Interaction::Create { resource_type: "Patient".into(), conditional: true }));
}

#[test]
fn what_is_no_interaction() {
    use BodyKind::{Bundle, Empty, Form, Other, Resource};
    let cases = [
        ("GET", "/patient/1", Empty, 404),
        ("GET", "/oauth2/token", Empty, 404),
        ("GET", "/Patient/1/Nothing", Empty, 404),
        ("GET", "/Observation/1/Patient", Empty, 404),
        ("GET", "/Patient/1/_history/2/3", Empty, 404),
        ("GET", "/Patient/1/Observation/2", Empty, 404),
        ("GET", "/Patient/$", Empty, 404),
        ("GET", "/Patient/$$everything", Empty, 404),
        ("GET", "/Patient/a_b", Empty, 400),
        ("GET", "/Patient/_search", Empty, 405),
        ("GET", "/Patient/ö", Empty, 400),
        ("PUT", "/Patient/a%20b", Resource, 400),
        ("GET", "/Patient/1?access_token=x", Empty, 400),
        ("POST", "/Patient/1", Resource, 405),
        ("TRACE", "/Patient/1", Empty, 405),
        ("DELETE", "/Patient/1/_history", Empty, 405),
        ("POST", "/metadata", Resource, 405),
        ("POST", "?_getpages=1&_mantel=x", Form, 415),
        ("DELETE", "/Patient?_mantel=x", Empty, 204),
        ("PUT", "/Patient", Resource, 412),
        ("DELETE", "/Patient?_format=json", Empty, 412),
        ("DELETE", "/Patient?identifier=", Empty, 412),
        ("POST", "/Patient", Other, 415),
        ("POST", "/Patient", Empty, 415),
        ("POST", "", Resource, 415),
        ("POST", "/Patient/_search", Resource, 415),
        ("PUT", "", Bundle(BundleKind::Batch), 405),
    ];
    for (method, target, body, status) in cases {
        // A DELETE with a binding is a conditional delete, and never a page.
        match kind(method, target, body) {
            Ok(found) => assert_eq!((status, found.kind()), (204, InteractionKind::Delete), "{method} {target}"),
            Err(fault) => assert_eq!(fault.status(), status, "{method} {target}: {fault}"),
        }
    }
    for name in ["x-http-method-override", "x-http-method", "x-method-override"] {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static("DELETE"));
        let found = classify(&Method::GET, &["Patient".into(), "1".into()], &[], &headers, BodyKind::Empty);
        assert_eq!(found, Err(ClassifyFault::MethodOverride(name)));
    }
}

#[test]
fn targets_are_decoded_strictly() {
    let cases = [
        ("/Patient//1", TargetFault::EmptySegment),
        ("//", TargetFault::EmptySegment),
        ("/Patient/1//", TargetFault::EmptySegment),
        ("/Patient/..", TargetFault::DotSegment),
        ("/./Patient", TargetFault::DotSegment),
        ("/Patient/%2e%2E/x", TargetFault::DotSegment),
        ("/Patient%2F1", TargetFault::EncodedSlash),
        ("/Patient/..%5cx", TargetFault::EncodedSlash),
        ("/Patient\\1", TargetFault::EncodedSlash),
        ("/Patient/%252e", TargetFault::EncodedTwice),
        ("/Patient/%00", TargetFault::Control),
        ("/Patient/%0d%0a", TargetFault::Control),
        ("/Patient/%4", TargetFault::Percent),
        ("/Patient/%zz", TargetFault::Percent),
        ("/Patient/%+1", TargetFault::Percent),
        ("/Patient/%ff", TargetFault::Utf8),
    ];
    for (path, fault) in cases {
        assert_eq!(parse_target(path, None), Err(fault), "{path}");
    }
    assert_eq!(parse_target("/Patient", Some("a=%00")), Err(TargetFault::Control));
    assert_eq!(parse_target("/Patient", Some("a%=1")), Err(TargetFault::Percent));
    assert_eq!(parse_target("", None), Ok((vec![], vec![])));
    assert_eq!(parse_target("/", Some("")), Ok((vec![], vec![])));
    let pairs =
        |pairs: &[(&str, &str)]| -> Vec<_> { pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect() };
    assert_eq!(
        parse_query("code=http%3A%2F%2Floinc.org%7C1&code=a+b&&x&date=ge2020%2B1"),
        Ok(pairs(&[("code", "http://loinc.org|1"), ("code", "a b"), ("x", ""), ("date", "ge2020+1")]))
    );
}

fn request(path: &[&str], query: &[(&str, &str)]) -> Request {
    Request {
        method: Method::GET,
        path: path.iter().map(|text| (*text).to_owned()).collect(),
        query: query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
    }
}

#[test]
fn targets_are_encoded_for_strict_and_odd_servers() {
    let encoded = |path: &[&str], query: &[(&str, &str)]| encode_target(&request(path, query));
    assert_eq!(
        encoded(
            &["Observation"],
            &[("ah-practice", "Organization/a-1.Practice-195900"), ("code", "http://loinc.org|8480-6,x")]
        ),
        "/Observation?ah-practice=Organization/a-1.Practice-195900&code=http://loinc.org%7C8480-6,x"
    );
    assert_eq!(encoded(&["Patient", "1", "$everything"], &[]), "/Patient/1/$everything");
    assert_eq!(
        encoded(&["Patient"], &[("name:exact", "Zoë & +"), ("-x", "")]),
        "/Patient?name:exact=Zo%C3%AB%20%26%20%2B&-x="
    );
    assert_eq!(encoded(&[], &[("_getpages", "a#b")]), "?_getpages=a%23b");
    assert_eq!(encoded(&["Patient", "1", "*"], &[]), "/Patient/1/*");
}

#[test]
fn bodies_are_told_by_their_media_type() {
    let cases = [
        (None, true, BodyKind::Empty),
        (None, false, BodyKind::Other),
        (Some("application/fhir+json; charset=utf-8"), false, BodyKind::Resource),
        (Some("Application/JSON"), false, BodyKind::Resource),
        (Some("application/fhir+xml"), false, BodyKind::Resource),
        (Some("application/x-www-form-urlencoded"), true, BodyKind::Form),
        (Some("application/json-patch+json"), false, BodyKind::Patch),
        (Some("application/pdf"), false, BodyKind::Other),
        (Some("text/plain"), true, BodyKind::Empty),
    ];
    for (content_type, is_empty, expected) in cases {
        assert_eq!(body_kind(content_type, is_empty), expected, "{content_type:?}");
    }
}

#[test]
fn bundles_sent_to_the_base() {
    let transaction = include_bytes!("fixtures/fhir/official/Bundle-bundle-transaction.json");
    assert_eq!(bundle_kind(transaction), Ok(BundleKind::Transaction));
    assert_eq!(bundle_kind(br#"{"type":"batch","resourceType":"Bundle"}"#), Ok(BundleKind::Batch));
    assert_eq!(
        bundle_kind(br#"{"resourceType":"Bundle","type":"searchset"}"#),
        Err(BundleFault::Type("searchset".into()))
    );
    assert_eq!(bundle_kind(br#"{"resourceType":"Bundle"}"#), Err(BundleFault::Type("absent".into())));
    assert_eq!(bundle_kind(br#"{"resourceType":"Patient"}"#), Err(BundleFault::NotABundle("Patient".into())));
    for twice in [
        &br#"{"resourceType":"Bundle","type":"batch","type":"transaction"}"#[..],
        br#"{"resourceType":"Bundle","type":"batch"}{"#,
        // serde would read a list as the members in their order.
        br#"["Bundle","batch"]"#,
        b"<Bundle/>",
        b"",
    ] {
        assert_eq!(bundle_kind(twice), Err(BundleFault::Malformed));
    }
}

proptest! {
    /// What is judged is what the EHR reads: encoding and decoding again changes nothing.
    #[test]
    fn targets_survive_encoding(
        path in prop::collection::vec("[^%/\\\\\\p{C}]{1,8}", 0..4),
        query in prop::collection::vec(("[^\\p{C}]{1,8}", "[^\\p{C}]{0,12}"), 0..4),
    ) {
        prop_assume!(path.iter().all(|segment| segment != "." && segment != ".."));
        let mut request = request(&[], &[]);
        request.path = path.clone();
        request.query = query.clone();
        let target = encode_target(&request);
        let (raw_path, raw_query) = target.split_once('?').map_or((target.as_str(), None), |(path, query)| (path, Some(query)));
        prop_assert_eq!(parse_target(raw_path, raw_query), Ok((path, query)));
    }

    #[test]
    fn no_target_makes_it_panic(path in "[/%.\\\\a-zA-Z0-9$_+ -]{0,30}", query in ".{0,30}") {
        if let Ok((path, query)) = parse_target(&path, Some(&query)) {
            for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
                let _ = classify(&method, &path, &query, &HeaderMap::new(), BodyKind::Resource);
            }
            prop_assert!(path.iter().all(|segment| !segment.is_empty() && !segment.contains(['/', '\\'])));
        }
    }
}
