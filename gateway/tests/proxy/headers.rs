//! Allow-lists both ways.

use http::Method;
use serde_json::json;

use super::{
    ehr::{Ehr, Reply},
    gateway::{Gateway, SITE, Setup, USER},
};

fn patient() -> Reply {
    Reply::fhir(200, &json!({"resourceType": "Patient", "id": "p1"}))
}

#[tokio::test]
async fn only_listed_headers_go_up() {
    let ehr = Ehr::start(|_| patient()).await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&USER).await;
    let given = [
        ("cookie", "a=b"),
        ("forwarded", "for=1.2.3.4"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-real-ip", "1.2.3.4"),
        ("origin", "https://viewer.example.org"),
        ("referer", "https://viewer.example.org/x"),
        ("range", "bytes=0-1"),
        ("te", "trailers"),
        ("x-request-id", "the-apps-own"),
        ("epic-client-id", "another"),
        ("proxy-authorization", "Basic eA=="),
        ("accept", "application/json"),
        ("accept-language", "de"),
        ("if-none-match", "W/\"1\""),
        ("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("prefer", "return=minimal"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ];
    assert_eq!(client.send(Method::GET, &format!("{SITE}/Patient/p1"), &given, "").await.status, 200);
    let calls = ehr.calls();
    let mut names: Vec<&str> = calls[0].headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    let expected = [
        "accept",
        "accept-encoding",
        "accept-language",
        "authorization",
        "host",
        "if-modified-since",
        "if-none-match",
        "prefer",
        "traceparent",
        "user-agent",
        "x-request-id",
    ];
    assert_eq!(names, expected);
    assert_eq!(calls[0].bearer(), "ehr-token-1");
    assert_eq!(calls[0].header("accept"), Some("application/fhir+json"));
    assert_eq!(calls[0].header("x-request-id"), Some("request-1"));
    assert!(ehr.base().contains(calls[0].header("host").unwrap()));
}

#[tokio::test]
async fn a_header_that_overrides_the_method_is_refused() {
    let ehr = Ehr::start(|_| patient()).await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&USER).await;
    for name in ["x-http-method-override", "x-http-method", "x-method-override"] {
        let answer = client.send(Method::GET, &format!("{SITE}/Patient/p1"), &[(name, "DELETE")], "").await;
        answer.refused(400, "invalid");
    }
    assert_eq!(ehr.calls().len(), 0);
}

#[tokio::test]
async fn the_profiles_headers_and_parameters_replace_the_apps() {
    let ehr = Ehr::start(|_| patient()).await;
    let site = r#"
        tenant = "t1"
        headers = { fhir = { "X-Practice" = "{tenant}", "Accept" = "application/json+fhir" } }
        query = { practice = "{tenant}" }
    "#;
    let gateway = Gateway::with(&ehr, Setup { site: site.into(), ..Setup::default() }).await;
    let client = gateway.client(&USER).await;
    let given = [("x-practice", "another"), ("accept", "*/*")];
    client.send(Method::GET, &format!("{SITE}/Patient/p1?practice=another&Practice=third"), &given, "").await;
    let call = &ehr.calls()[0];
    assert_eq!(call.below(), "/Patient/p1?practice=t1");
    assert_eq!(call.header("x-practice"), Some("t1"));
    assert_eq!(call.header("accept"), Some("application/json+fhir"));
}

#[tokio::test]
async fn only_listed_headers_come_down() {
    let ehr = Ehr::start(|_| {
        patient()
            .and("set-cookie", "session=1")
            .and("server", "Microsoft-IIS/10.0")
            .and("x-powered-by", "ASP.NET")
            .and("access-control-allow-origin", "*")
            .and("via", "1.1 internal-proxy")
            .and("digest", "sha-256=x")
            .and("accept-ranges", "bytes")
            .and("etag", "W/\"7\"")
            .and("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")
    })
    .await;
    let gateway = Gateway::start(&ehr).await;
    let answer = gateway.client(&USER).await.get(&format!("{SITE}/Patient/p1")).await;
    let mut names: Vec<&str> = answer.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    let expected = ["content-type", "date", "etag", "last-modified", "transfer-encoding", "x-intermediary"];
    assert_eq!(names, expected);
    assert_eq!(answer.header("etag"), Some("W/\"7\""), "FHIR's version id");
    assert_eq!(answer.header("content-type"), Some("application/fhir+json; charset=utf-8"));
}

#[tokio::test]
async fn formats_are_chosen_by_parameter_before_accept() {
    let ehr = Ehr::start(|call| match call.header("accept") {
        Some("application/fhir+xml") => {
            Reply::with(200, &[("content-type", "application/fhir+xml")], "<Patient xmlns=\"http://hl7.org/fhir\"/>")
        }
        _ => patient(),
    })
    .await;
    let gateway = Gateway::start(&ehr).await;
    let client = gateway.client(&USER).await;
    let accept = |text: &'static str| [("accept", text)];
    let xml =
        client.send(Method::GET, &format!("{SITE}/Patient/p1?_format=xml"), &accept("application/json"), "").await;
    assert_eq!((xml.status, xml.header("content-type")), (200, Some("application/fhir+xml")));
    let json =
        client.send(Method::GET, &format!("{SITE}/Patient/p1?_format=json"), &accept("application/fhir+xml"), "").await;
    assert_eq!(json.json()["id"], "p1");
    assert_eq!(ehr.targets(), ["/Patient/p1", "/Patient/p1"]);
    client
        .send(Method::GET, &format!("{SITE}/Patient/p1"), &accept("text/turtle"), "")
        .await
        .refused(406, "not-supported");
    let body = [("content-type", "text/csv")];
    client.send(Method::POST, &format!("{SITE}/Patient"), &body, "a,b").await.refused(415, "not-supported");
    assert_eq!(ehr.calls().len(), 2);
}
