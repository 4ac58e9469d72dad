//! The same requests at every vendor, and what each of them is sent.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use mantel_adapters::{
    adapter::{Answer, Plan, PlanContext, Unplannable, encode_query},
    fhir::interaction::{Interaction, Request},
    profile::Profile,
};

use crate::support::{VENDORS, adapter, profile};

const TENANT: &str = "Organization/a-1.Practice-195900";

fn get(path: &[&str], query: &[(&str, &str)]) -> Request {
    Request {
        method: Method::GET,
        path: path.iter().map(|segment| (*segment).to_owned()).collect(),
        query: query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
    }
}

fn post_search(resource_type: &str, query: &[(&str, &str)], form: &'static str) -> Request {
    let mut request = get(&[resource_type, "_search"], query);
    request.method = Method::POST;
    request.body = Bytes::from_static(form.as_bytes());
    request.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    request
}

fn search(resource_type: &str) -> Interaction {
    Interaction::SearchType { resource_type: resource_type.into() }
}

fn planned(vendor: &str, profile: &Profile, request: &Request, interaction: &Interaction) -> Result<Plan, Unplannable> {
    let context = PlanContext { profile, tenant: Some(TENANT), client_id: "our-client", patient: Some("1") };
    adapter(vendor).plan(request, interaction, context)
}

/// `METHOD path?query body` of each request.
fn shown(plan: &Plan) -> Vec<String> {
    let show = |request: &Request| {
        let query = encode_query(&request.query);
        let mark = if query.is_empty() { "" } else { "?" };
        let body = String::from_utf8(request.body.to_vec()).unwrap();
        let blank = if body.is_empty() { "" } else { " " };
        format!("{} {}{mark}{query}{blank}{body}", request.method, request.path.join("/"))
    };
    plan.requests.iter().map(show).collect()
}

/// What athena's profile adds to each request.
fn added(vendor: &str) -> &'static str {
    if vendor == "athena" { "ah-practice=Organization/a-1.Practice-195900" } else { "" }
}

fn with(path: &str, query: &str, vendor: &str) -> String {
    let all = [query, added(vendor)].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("&");
    if all.is_empty() { path.to_owned() } else { format!("{path}?{all}") }
}

#[test]
fn a_read_is_a_read_everywhere() {
    let read = Interaction::Read { resource_type: "Condition".into(), id: "7".into() };
    for vendor in VENDORS {
        let plan = planned(vendor, &profile(vendor), &get(&["Condition", "7"], &[]), &read).unwrap();
        assert_eq!(shown(&plan), [with("GET Condition/7", "", vendor)], "{vendor}");
        assert_eq!((plan.answer, plan.inspect), (Answer::Pass, false), "{vendor}");
    }
}

#[test]
fn a_search_is_sent_with_what_the_profile_adds() {
    let query = [("patient", "1"), ("clinical-status", "active")];
    for vendor in VENDORS {
        let plan = planned(vendor, &profile(vendor), &get(&["Condition"], &query), &search("Condition")).unwrap();
        assert_eq!(shown(&plan), [with("GET Condition", "patient=1&clinical-status=active", vendor)], "{vendor}");
        assert_eq!(plan.answer, Answer::Pass, "{vendor}");
    }
}

#[test]
fn observations_without_a_category_are_fanned_out_where_one_is_demanded() {
    let expected = |vendor: &str| match vendor {
        "epic" => (15, Answer::Merge),
        "oracle" => (7, Answer::Merge),
        _ => (1, Answer::Pass),
    };
    for vendor in VENDORS {
        let profile = profile(vendor);
        let request = get(&["Observation"], &[("patient", "1"), ("_count", "50")]);
        let plan = planned(vendor, &profile, &request, &search("Observation")).unwrap();
        assert_eq!((plan.requests.len(), plan.answer), expected(vendor), "{vendor}");
        if let Some(fan_out) = profile.fan_out.get("Observation") {
            let queries = plan.requests.iter().map(|request| encode_query(&request.query)).collect::<Vec<_>>();
            let each = fan_out.values.iter().map(|value| format!("patient=1&_count=50&category={value}"));
            assert_eq!(queries, each.collect::<Vec<_>>(), "{vendor}");
        }
        for narrow in [("category", "laboratory"), ("category:not", "x"), ("code", "http://loinc.org|1"), ("_id", "9")]
        {
            let request = get(&["Observation"], &[("patient", "1"), narrow]);
            let plan = planned(vendor, &profile, &request, &search("Observation")).unwrap();
            assert_eq!((plan.requests.len(), plan.answer), (1, Answer::Pass), "{vendor} {narrow:?}");
        }
    }
}

#[test]
fn one_added_criterion_needs_no_merge() {
    let request = get(&["MedicationRequest"], &[("patient", "1")]);
    let plan = planned("athena", &profile("athena"), &request, &search("MedicationRequest")).unwrap();
    let intents = "proposal,plan,order,original-order,reflex-order,filler-order,instance-order,option";
    assert_eq!(shown(&plan), [with("GET MedicationRequest", &format!("patient=1&intent={intents}"), "athena")]);
    assert_eq!(plan.answer, Answer::Pass);
}

#[test]
fn posted_searches_have_their_criteria_in_one_place() {
    let request = || post_search("Condition", &[("patient", "1")], "code=a%7Cb&_count=5");
    for vendor in VENDORS {
        let plan = planned(vendor, &profile(vendor), &request(), &search("Condition")).unwrap();
        let expected = match vendor {
            "athena" => with("GET Condition", "patient=1&code=a%7Cb&_count=5", vendor),
            _ => "POST Condition/_search patient=1&code=a%7Cb&_count=5".to_owned(),
        };
        assert_eq!(shown(&plan), [expected], "{vendor}");
        let typed = plan.requests[0].headers.contains_key(header::CONTENT_TYPE);
        assert_eq!(typed, vendor != "athena", "{vendor}");
    }
}

#[test]
fn posted_searches_fan_out_too() {
    let mut profile = profile("epic");
    let request = post_search("Observation", &[], "patient=1");
    let plan = planned("epic", &profile, &request, &search("Observation")).unwrap();
    assert_eq!(shown(&plan)[0], "POST Observation/_search patient=1&category=laboratory");
    profile.search.post = false;
    let plan = planned("epic", &profile, &request, &search("Observation")).unwrap();
    assert_eq!(shown(&plan)[0], "GET Observation?patient=1&category=laboratory");
}

#[test]
fn patient_by_patient_is_a_read_everywhere() {
    for vendor in VENDORS {
        for value in ["1", "Patient/1"] {
            let request = get(&["Patient"], &[("patient", value), ("_count", "10"), ("_elements", "name")]);
            let plan = planned(vendor, &profile(vendor), &request, &search("Patient")).unwrap();
            assert_eq!(shown(&plan), [with("GET Patient/1", "_elements=name", vendor)], "{vendor}");
            assert_eq!(plan.answer, Answer::WrapAsSearchset, "{vendor}");
        }
        // What a read cannot say is a search by id.
        let request = get(&["Patient"], &[("_revinclude", "Provenance:target"), ("patient", "1")]);
        let plan = planned(vendor, &profile(vendor), &request, &search("Patient")).unwrap();
        assert_eq!(shown(&plan), [with("GET Patient", "_id=1&_revinclude=Provenance:target", vendor)], "{vendor}");
    }
}

#[test]
fn patient_by_id_is_a_read_where_the_profile_says_so() {
    for vendor in VENDORS {
        let mut profile = profile(vendor);
        let request = get(&["Patient"], &[("_id", "1")]);
        let plan = planned(vendor, &profile, &request, &search("Patient")).unwrap();
        assert_eq!(shown(&plan), [with("GET Patient", "_id=1", vendor)], "{vendor}");

        profile.search.by_id = false;
        let plan = planned(vendor, &profile, &request, &search("Patient")).unwrap();
        assert_eq!(shown(&plan), [with("GET Patient/1", "", vendor)], "{vendor}");
        assert_eq!(plan.answer, Answer::WrapAsSearchset, "{vendor}");
        let posted = planned(vendor, &profile, &post_search("Patient", &[], "_id=1"), &search("Patient")).unwrap();
        assert_eq!(shown(&posted), shown(&plan), "{vendor}");

        for query in
            [[("_id", "1"), ("name", "x")], [("_id", "1,2"), ("_count", "1")], [("_id", "1"), ("_summary", "count")]]
        {
            let refused = planned(vendor, &profile, &get(&["Patient"], &query), &search("Patient")).unwrap_err();
            assert_eq!((refused.status, refused.code), (422, "not-supported"), "{vendor} {query:?}");
        }
        // A search by name has nothing to do with it.
        let plan = planned(vendor, &profile, &get(&["Patient"], &[("name", "x")]), &search("Patient")).unwrap();
        assert_eq!(plan.answer, Answer::Pass, "{vendor}");
    }
}

#[test]
fn two_patients_in_one_search_are_refused() {
    for vendor in VENDORS {
        for query in [
            [("patient", "1"), ("_id", "2")],
            [("patient", "1"), ("patient", "2")],
            [("patient", "1/../2"), ("_count", "1")],
        ] {
            let refused =
                planned(vendor, &profile(vendor), &get(&["Patient"], &query), &search("Patient")).unwrap_err();
            assert_eq!((refused.status, refused.code), (400, "value"), "{vendor} {query:?}");
        }
    }
}

#[test]
fn an_app_cannot_choose_the_practice() {
    let profile = profile("athena");
    let request = get(
        &["Condition"],
        &[("ah-practice", "Organization/a-1.Practice-1"), ("patient", "1"), ("AH-PRACTICE:x", "2")],
    );
    let plan = planned("athena", &profile, &request, &search("Condition")).unwrap();
    assert_eq!(shown(&plan), [with("GET Condition", "patient=1", "athena")]);
    let posted = post_search("Condition", &[("ah-practice", "1")], "patient=1&ah-practice=2");
    let plan = planned("athena", &profile, &posted, &search("Condition")).unwrap();
    assert_eq!(shown(&plan), [with("GET Condition", "patient=1", "athena")]);
    // Also on further pages, and never without a practice.
    let page = planned("athena", &profile, &get(&["Condition"], &[("cursor", "c")]), &Interaction::Page).unwrap();
    assert_eq!(shown(&page), [with("GET Condition", "cursor=c", "athena")]);
    let context = PlanContext { profile: &profile, tenant: None, client_id: "c", patient: None };
    let refused = adapter("athena").plan(&get(&["Condition"], &[]), &search("Condition"), context).unwrap_err();
    assert_eq!(refused.status, 422);
    let metadata = adapter("athena").plan(&get(&["metadata"], &[]), &Interaction::Capabilities, context).unwrap();
    assert_eq!(shown(&metadata), ["GET metadata"]);
}

#[test]
fn headers_of_the_profile_replace_the_apps() {
    let mut profile = profile("epic");
    profile.headers.fhir.insert("X-Client".into(), "{client_id}".into());
    let read = Interaction::Read { resource_type: "Binary".into(), id: "1".into() };
    let accept = |sent: Option<&'static str>| {
        let mut request = get(&["Binary", "1"], &[]);
        request.headers.insert("x-client", HeaderValue::from_static("theirs"));
        if let Some(sent) = sent {
            request.headers.insert(header::ACCEPT, HeaderValue::from_static(sent));
        }
        let plan = planned("epic", &profile, &request, &read).unwrap();
        assert_eq!(plan.requests[0].headers["x-client"], "our-client");
        plan.requests[0].headers[header::ACCEPT].to_str().unwrap().to_owned()
    };
    assert_eq!(accept(None), "application/fhir+json");
    assert_eq!(accept(Some("*/*")), "application/fhir+json");
    assert_eq!(accept(Some("application/pdf")), "application/pdf");
}

#[test]
fn epic_drops_criteria_beside_an_id_so_the_answer_is_inspected() {
    for vendor in VENDORS {
        let inspect = |query: &[(&str, &str)]| {
            let request = get(&["Observation"], query);
            planned(vendor, &profile(vendor), &request, &search("Observation")).unwrap().inspect
        };
        assert_eq!(inspect(&[("_id", "9"), ("patient", "1")]), vendor == "epic", "{vendor}");
        assert!(!inspect(&[("_id", "9"), ("_count", "1")]), "{vendor}");
        assert!(!inspect(&[("patient", "1"), ("category", "laboratory")]), "{vendor}");
    }
    let posted = post_search("Observation", &[("patient", "1")], "_id=9");
    assert!(planned("epic", &profile("epic"), &posted, &search("Observation")).unwrap().inspect);
}

#[test]
fn a_body_that_is_no_search_is_left_alone() {
    let mut request = get(&["Observation"], &[]);
    request.method = Method::POST;
    request.body = Bytes::from_static(b"{\"resourceType\":\"Observation\"}");
    let create = Interaction::Create { resource_type: "Observation".into(), conditional: false };
    for vendor in VENDORS {
        let plan = planned(vendor, &profile(vendor), &request, &create).unwrap();
        assert_eq!(plan.requests[0].body, request.body, "{vendor}");
        assert_eq!(plan.requests.len(), 1, "{vendor}");
    }
}
