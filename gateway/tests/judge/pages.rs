//! Pages whose binding was checked.

use http::{Method, header::IF_NONE_MATCH};
use mantel::proxy::judge::judge_page;
use mantel_adapters::fhir::interaction::{Interaction, Request};

use crate::setup::{Ehr, Ehr::*, Setting, World, described, status};

fn page() -> Request {
    let mut headers = http::HeaderMap::new();
    headers.insert(IF_NONE_MATCH, "W/\"1\"".parse().unwrap());
    let query = vec![("_getpages".to_owned(), "abc".to_owned()), ("_summary".to_owned(), "count".to_owned())];
    Request { method: Method::HEAD, path: Vec::new(), query, headers, body: bytes::Bytes::new() }
}

#[test]
fn pages_are_judged_as_the_search_that_they_continue() {
    let rows: [(&str, Ehr, Option<&str>, bool, &str); 11] = [
        ("user/Observation.rs", Silent, Some("Observation"), false, "stream"),
        ("user/Observation.rs", Silent, Some("Observation"), true, "inspect"),
        ("user/Observation.rs", Silent, Some("Condition"), false, "403"),
        ("user/Observation.rs", Silent, None, false, "inspect"),
        ("user/*.rs", Silent, None, false, "stream"),
        ("patient/Observation.rs", Same, Some("Observation"), false, "stream"),
        ("patient/Observation.rs", Same, Some("Observation"), true, "inspect"),
        // The EHR's scopes may have become fewer or unreadable since.
        ("patient/Observation.rs", Silent, Some("Observation"), false, "inspect"),
        // So may the token's.
        ("patient/Observation.r", Same, Some("Observation"), false, "403"),
        ("patient/Observation.rs?category=a", Same, Some("Observation"), false, "inspect"),
        ("patient/*.rs", Same, None, false, "inspect"),
    ];
    for (scopes, ehr, resource_type, inspected, expected) in rows {
        let world = World::new(scopes, ehr);
        let found = match judge_page(&world.case(), page(), resource_type, inspected) {
            Ok(authorized) => {
                assert_eq!(*authorized.interaction(), Interaction::Page);
                assert_eq!(authorized.request().query, page().query, "what only the EHR understands stays");
                described(&authorized).split_whitespace().next().unwrap().to_owned()
            }
            Err(error) => status(&error).to_string(),
        };
        assert_eq!(found, expected, "{scopes} {ehr:?} {resource_type:?} {inspected}");
    }
    let world = World::with(Setting::SiteInspects, "user/*.rs", Same);
    let authorized = judge_page(&world.case(), page(), Some("Observation"), false).unwrap();
    assert!(authorized.mode().inspects());
    assert_eq!(authorized.request().method, Method::GET);
    assert!(!authorized.request().headers.contains_key(IF_NONE_MATCH));
}

#[test]
fn a_page_without_its_patient_is_refused() {
    let world = World::new("patient/Observation.rs", Same).without_patient();
    assert!(judge_page(&world.case(), page(), Some("Observation"), false).is_err());
}
