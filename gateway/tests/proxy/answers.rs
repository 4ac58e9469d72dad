//! Answers: URLs moved, errors told, nonsense and silence survived.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use super::{
    ehr::{Ehr, Reply},
    gateway::{Covers, Gateway, PATIENT, PUBLIC, SITE, Setup, UNIFORM, USER},
};

fn observation(base: &str) -> Value {
    json!({
        "resourceType": "Observation",
        "id": "o1",
        "subject": {"reference": format!("{base}/Patient/p1")},
        "performer": [{"reference": "Practitioner/1"}],
        "note": [{"text": format!("see {base}/Patient/p1")}],
        "meta": {"profile": [format!("{base}/StructureDefinition/x")]},
    })
}

#[tokio::test]
async fn urls_move_to_the_base_that_was_called() {
    let ehr = Ehr::naming_itself(|base, _| {
        Reply::fhir(200, &observation(base))
            .and("content-location", &format!("{base}/Observation/o1/_history/1"))
            .and("link", &format!("<{base}/Observation?page=2>; rel=next"))
    })
    .await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&USER).await;
    for base in [SITE, UNIFORM] {
        let answer = client.get(&format!("{base}/Observation/o1")).await;
        let body = answer.json();
        assert_eq!(body["subject"]["reference"], format!("{PUBLIC}{base}/Patient/p1"));
        assert_eq!(body["performer"][0]["reference"], "Practitioner/1");
        assert_eq!(body["note"][0]["text"], format!("see {}/Patient/p1", ehr.base()), "narrative is nobody's link");
        assert_eq!(body["meta"]["profile"][0], format!("{}/StructureDefinition/x", ehr.base()), "a name, no link");
        let location = format!("{PUBLIC}{base}/Observation/o1/_history/1");
        assert_eq!(answer.header("content-location"), Some(location.as_str()));
        assert_eq!(answer.header("link"), Some(format!("<{PUBLIC}{base}/Observation?page=2>; rel=next").as_str()));
        assert_eq!(answer.header("x-intermediary"), Some("mantel"));
    }
}

#[tokio::test]
async fn what_is_no_fhir_passes_as_it_is() {
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let sent = bytes.clone();
    let ehr = Ehr::start(move |_| Reply::with(200, &[("content-type", "application/pdf")], sent.clone())).await;
    let gateway = Gateway::start(&ehr).await;
    let accept = [("accept", "application/pdf")];
    let answer = gateway.client(&USER).await.send(Method::GET, &format!("{SITE}/Binary/b1"), &accept, "").await;
    assert_eq!(answer.body.as_deref(), Some(bytes.as_slice()));
    assert_eq!(answer.header("content-type"), Some("application/pdf"));
    assert_eq!(answer.header("content-length"), Some("100000"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(answer.header("x-intermediary"), None);
    assert_eq!(ehr.calls()[0].header("accept"), Some("application/pdf"));
}

#[tokio::test]
async fn a_401_is_replayed_once_with_a_new_token() {
    let ehr = Ehr::start(|call| match call.bearer() {
        "ehr-token-1" => Reply::status(401),
        _ => Reply::fhir(201, &json!({"resourceType": "Observation", "id": "new"})),
    })
    .await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&USER).await;
    let body = json!({"resourceType": "Observation", "status": "final", "code": {"text": "x"}});
    let answer = client.post(&format!("{SITE}/Observation"), &body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let calls = ehr.calls();
    assert_eq!(calls.iter().map(|call| call.bearer()).collect::<Vec<_>>(), ["ehr-token-1", "ehr-token-2"]);
    assert_eq!(calls[0].body, calls[1].body, "the EHR refused it unread");
    assert_eq!(gateway.refreshes(), 1);
}

#[tokio::test]
async fn a_401_that_stays_is_that_resources_refusal() {
    let ehr = Ehr::start(|_| Reply::status(401)).await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&USER).await;
    client.get(&format!("{SITE}/Observation/o1")).await.refused(403, "forbidden");
    assert_eq!((ehr.calls().len(), gateway.refreshes()), (2, 1), "replayed exactly once");
    client.get(&format!("{SITE}/Observation/o1")).await.refused(403, "forbidden");
    assert_eq!((ehr.calls().len(), gateway.refreshes()), (3, 1), "at most one forced refresh a minute");
}

#[tokio::test]
async fn nonsense_is_a_502_and_the_next_request_works() {
    let ehr = Ehr::start(|call| match call.below() {
        "/Patient/page" => Reply::html(200),
        "/Patient/error-page" => Reply::html(500),
        "/Patient/not-found-page" => Reply::html(404),
        "/Patient/unnamed-page" => Reply::with(200, &[], "<html><body>hello</body></html>"),
        "/Patient/disguised-page" => {
            Reply::with(200, &[("content-type", "application/fhir+json")], "<!DOCTYPE html><html></html>")
        }
        "/Patient/failed" => Reply::status(500),
        "/Patient/utf16" => Reply::with(200, &[("content-type", "application/json")], &b"\xff\xfe{\0}\0"[..]),
        "/Patient/encoded" => {
            Reply::with(200, &[("content-type", "application/json"), ("content-encoding", "br")], "x")
        }
        "/Patient/away" => Reply::status(302).and("location", "https://elsewhere.example/login"),
        "/Patient/away-too" => Reply::status(302).and("location", "/api/r4/../../admin"),
        _ => Reply::fhir(200, &json!({"resourceType": "Patient", "id": "p1"})),
    })
    .await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&USER).await;
    for id in [
        "page",
        "error-page",
        "not-found-page",
        "unnamed-page",
        "disguised-page",
        "failed",
        "utf16",
        "encoded",
        "away",
        "away-too",
    ] {
        let answer = client.get(&format!("{SITE}/Patient/{id}")).await;
        assert_eq!((answer.status, &answer.json()["resourceType"]), (502, &json!("OperationOutcome")), "{id}");
        assert_eq!(client.get(&format!("{SITE}/Patient/p1")).await.status, 200, "after {id}");
    }
}

#[tokio::test]
async fn a_redirect_within_the_base_is_passed_and_not_followed() {
    let ehr = Ehr::naming_itself(|base, _| Reply::status(307).and("location", &format!("{base}/Patient/p2"))).await;
    let gateway = Gateway::start(&ehr).await;
    let answer = gateway.client(&USER).await.get(&format!("{SITE}/Patient/p1")).await;
    assert_eq!(answer.status, 307);
    assert_eq!(answer.header("location"), Some(format!("{PUBLIC}{SITE}/Patient/p2").as_str()));
    assert_eq!(ehr.calls().len(), 1);
}

#[tokio::test]
async fn half_a_body_breaks_off_and_the_next_request_works() {
    let ehr = Ehr::start(|call| match call.below() {
        "/Observation/half" => Reply::CutBody("{\"resourceType\":\"Observation\",\"id\":\"half\",\"status\":"),
        _ => Reply::fhir(
            200,
            &json!({"resourceType": "Observation", "id": "o1", "subject": {"reference": "Patient/p1"}}),
        ),
    })
    .await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&USER).await;
    let half = client.get(&format!("{SITE}/Observation/half")).await;
    assert_eq!((half.status, half.body), (200, None), "an app must not take it for whole");
    assert_eq!(client.get(&format!("{SITE}/Observation/o1")).await.status, 200);
    // What is inspected has not left yet.
    let patient = gateway.client(&PATIENT).await;
    patient.get(&format!("{SITE}/Observation/half")).await.refused(502, "transient");
    assert_eq!(patient.get(&format!("{SITE}/Observation/o1")).await.status, 200);
}

#[tokio::test]
async fn a_closed_connection_is_told_and_only_reads_are_tried_again() {
    let ehr = Ehr::start(|_| Reply::Cut).await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&USER).await;
    client.get(&format!("{SITE}/Patient/p1")).await.refused(502, "transient");
    assert_eq!(ehr.calls().len(), 2);
    let body = json!({"resourceType": "Observation", "status": "final", "code": {"text": "x"}});
    let text = client.post(&format!("{SITE}/Observation"), &body).await.refused(502, "transient");
    assert!(text.contains("unknown"), "{text}");
    assert_eq!(ehr.calls().len(), 3, "a POST is never sent twice");
}

#[tokio::test]
async fn silence_is_a_504_and_of_a_post_the_outcome_is_unknown() {
    let ehr = Ehr::start(|_| Reply::Silence).await;
    let setup = Setup { upstream_wait: Duration::from_millis(100), ..Setup::default() };
    let gateway = Gateway::with(&ehr, setup).await;
    let client = gateway.client(&USER).await;
    let text = client.get(&format!("{SITE}/Patient/p1")).await.refused(504, "timeout");
    assert!(!text.contains("unknown"), "{text}");
    let body = json!({"resourceType": "Observation", "status": "final", "code": {"text": "x"}});
    let text = client.post(&format!("{SITE}/Observation"), &body).await.refused(504, "timeout");
    assert!(text.contains("unknown"), "{text}");
    assert_eq!(ehr.calls().len(), 2);
}

#[tokio::test]
async fn an_ehr_that_is_not_there_is_a_502() {
    let ehr = Ehr::start(|_| Reply::status(200)).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = Ehr { origin: format!("http://{closed}"), ..ehr };
    let gateway = Gateway::start(&gone).await;
    let answer = gateway.client(&USER).await.get(&format!("{SITE}/Patient/p1")).await;
    assert!(answer.refused(502, "transient").contains("nothing was sent"));
}

#[tokio::test]
async fn errors_come_as_the_ehrs_own_outcome_without_its_servers() {
    let ehr = Ehr::naming_itself(|base, call| match call.below() {
        "/Patient/invalid" => Reply::fhir(
            422,
            &json!({"resourceType": "OperationOutcome", "issue": [{
                "severity": "error", "code": "business-rule",
                "details": {"text": format!("see {base}/Patient/1 on http://fhir01:8080/x")},
            }]}),
        ),
        "/Patient/foreign" => Reply::with(403, &[("content-type", "application/json")], "{\"message\":\"not ticked\"}"),
        "/Patient/empty" => Reply::status(403),
        "/Patient/busy" => Reply::status(429).and("retry-after", "7"),
        "/Patient/busy-too" => Reply::status(429),
        "/Patient/down" => Reply::status(503).and("retry-after", "9"),
        _ => Reply::status(404),
    })
    .await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&USER).await;
    let text = client.get(&format!("{SITE}/Patient/invalid")).await.refused(422, "business-rule");
    assert!(text.contains(&format!("see {PUBLIC}{SITE}/Patient/1 on [a URL of the EHR]")), "{text}");
    assert!(client.get(&format!("{SITE}/Patient/foreign")).await.refused(403, "forbidden").contains("not ticked"));
    client.get(&format!("{SITE}/Patient/empty")).await.refused(403, "forbidden");
    client.get(&format!("{SITE}/Patient/nothing")).await.refused(404, "not-found");
    for (id, status, wait) in [("busy", 429, "7"), ("busy-too", 429, "10"), ("down", 503, "9")] {
        let answer = client.get(&format!("{SITE}/Patient/{id}")).await;
        assert_eq!((answer.status, answer.header("retry-after")), (status, Some(wait)), "{id}");
    }
}

#[tokio::test]
async fn an_empty_403_of_epic_is_explained() {
    let ehr = Ehr::start(|_| Reply::status(403)).await;
    let gateway = Gateway::with(&ehr, Setup { vendor: "epic", ..Setup::default() }).await;
    let answer = gateway
        .client(&Covers { scopes: "user/Condition.rs", ..USER })
        .await
        .get(&format!("{SITE}/Condition/c1"))
        .await;
    assert!(answer.refused(403, "forbidden").contains("not enabled in the application's record"));
}

#[tokio::test]
async fn head_and_304_have_no_body() {
    let ehr = Ehr::start(|call| match call.header("if-none-match") {
        Some(_) => Reply::status(304).and("etag", "W/\"1\""),
        None => Reply::fhir(200, &json!({"resourceType": "Patient", "id": "p1"})),
    })
    .await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&USER).await;
    let head = client.send(Method::HEAD, &format!("{SITE}/Patient/p1"), &[], "").await;
    assert_eq!((head.status, head.body.as_deref(), head.header("content-length")), (200, Some(&b""[..]), None));
    assert_eq!(ehr.calls()[0].method, Method::HEAD);
    let same = client.send(Method::GET, &format!("{SITE}/Patient/p1"), &[("if-none-match", "W/\"1\"")], "").await;
    assert_eq!((same.status, same.header("etag")), (304, Some("W/\"1\"")));
}

#[tokio::test]
async fn an_html_document_is_one_only_where_it_was_asked_for() {
    let ehr = Ehr::start(|_| Reply::html(200)).await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&USER).await;
    let target = format!("{SITE}/Binary/b1");
    let asked = client.send(Method::GET, &target, &[("accept", "text/html")], "").await;
    assert_eq!((asked.status, asked.header("content-security-policy")), (200, Some("sandbox")));
    client.get(&target).await.refused(502, "transient");
}

#[tokio::test]
async fn a_searchset_of_binaries_is_rewritten_whatever_it_is_called() {
    let ehr = Ehr::naming_itself(|base, _| {
        let bundle = json!({"resourceType": "Bundle", "entry": [{"fullUrl": format!("{base}/Binary/1")}]});
        Reply::with(200, &[("content-type", "application/json")], bundle.to_string())
    })
    .await;
    let gateway = Gateway::start(&ehr).await;
    let bundle = gateway.client(&USER).await.get(&format!("{SITE}/Binary?_id=1")).await.json();
    assert_eq!(bundle["entry"][0]["fullUrl"], format!("{PUBLIC}{SITE}/Binary/1"));
}
