//! What SREs see: metrics, health, access log, spans.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use mantel_tests::{
    ehr::contract::Vendor,
    harness::{Ehr, World, app::App, get, read},
};
use tokio::net::TcpListener;

#[tokio::test]
async fn metrics_count_requests_calls_grants_and_launches() {
    let world = World::start([Ehr::new(Vendor::Oracle)]).await.unwrap();
    let gateway = &world.gateway;
    let base = gateway.site_base(Vendor::Oracle);
    let tokens = App::at(&base).await.unwrap().launch(world.ehr(Vendor::Oracle)).await.unwrap();
    let patient = format!("{base}/Patient/{}", tokens.text("patient"));
    assert_eq!(read(&patient, tokens.access()).await.unwrap().status, 200);
    assert_eq!(read(&format!("{base}/Immunization"), tokens.access()).await.unwrap().status, 403);
    for (line, value) in [
        (r#"mantel_requests_total{interaction="read",outcome="ok",vendor="oracle"}"#, 1.0),
        (r#"mantel_requests_total{interaction="search-type",outcome="app",vendor="oracle"}"#, 1.0),
        (r#"mantel_site_requests_total{outcome="ok",site="oracle"}"#, 1.0),
        (r#"mantel_upstream_calls_total{call="token",outcome="ok",vendor="oracle"}"#, 1.0),
        (r#"mantel_upstream_calls_total{call="fhir",outcome="ok",vendor="oracle"}"#, 1.0),
        (r#"mantel_launches_total{step="token_given",vendor="oracle"}"#, 1.0),
        (r#"mantel_grants{state="live"}"#, 1.0),
        (r#"mantel_request_seconds_count{interaction="read",vendor="oracle"}"#, 1.0),
    ] {
        assert_eq!(gateway.metric(line).await.unwrap(), value, "{line}");
    }
    for path in ["live", "ready"] {
        assert_eq!(get(&format!("{}/health/{path}", gateway.admin), &[]).await.unwrap().status, 200);
    }
    assert_eq!(get(&format!("{}/elsewhere", gateway.admin), &[]).await.unwrap().status, 404);
}

/// A rate over a series that is absent until its first event misses that one, and an alert on it never fires.
#[tokio::test]
async fn what_is_rare_is_counted_from_zero() {
    let world = World::start([Ehr::new(Vendor::Oracle)]).await.unwrap();
    let exposition = get(&format!("{}/metrics", world.gateway.admin), &[]).await.unwrap().text();
    for line in [
        r#"mantel_spill_answers_total{event="spilled"} 0"#,
        r#"mantel_spill_answers_total{event="bad"} 0"#,
        r#"mantel_refresh_leases_total{event="lost"} 0"#,
        r#"mantel_refreshes_total{outcome="lost_rotation",vendor="oracle"} 0"#,
        r#"mantel_refreshes_total{outcome="misconfigured",vendor="oracle"} 0"#,
        r#"mantel_grants_ended_total{reason="dead",vendor="oracle"} 0"#,
        r#"mantel_registration_suspect{registration="viewer-oracle",site="oracle"} 0"#,
        r#"mantel_registration_suspected_total{registration="viewer-oracle",site="oracle"} 0"#,
        r#"mantel_launches_total{step="at_ehr",vendor="oracle"} 0"#,
        r#"mantel_launches_total{step="refused",vendor="none"} 0"#,
    ] {
        assert!(exposition.lines().any(|known| known == line), "{line}: {exposition}");
    }
}

#[tokio::test]
async fn the_access_log_has_a_line_for_each_request_and_names_no_patient() {
    let mut world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let base = world.gateway.site_base(Vendor::Generic);
    let tokens = App::at(&base).await.unwrap().launch(world.ehr(Vendor::Generic)).await.unwrap();
    let answer = read(&format!("{base}/Patient/{}", tokens.text("patient")), tokens.access()).await.unwrap();
    let id = answer.header("x-request-id").unwrap().to_owned();
    // A clean end writes what is buffered.
    assert_eq!(world.gateway.terminate().await.unwrap(), Some(0));
    let log = world.gateway.log("access.log").unwrap();
    let line = log.lines().find(|line| line.contains(&id)).expect("no line for the request");
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        (line["action"].as_str(), line["resource_type"].as_str(), line["status"].as_u64(), line["outcome"].as_str()),
        (Some("read"), Some("Patient"), Some(200), Some("ok"))
    );
    assert!(line["grant"].is_string() && line["took_us"].as_u64().unwrap() >= line["ehr_us"].as_u64().unwrap());
    assert!(!log.contains(tokens.text("patient")), "a patient id is in the access log");
}

/// A collector that keeps what it is sent.
async fn collector() -> (String, Arc<Mutex<Vec<(String, Bytes)>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let kept = Arc::new(Mutex::new(Vec::new()));
    let sink = kept.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let sink = sink.clone();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let sink = sink.clone();
                    async move {
                        let media = request.headers().get("content-type").and_then(|value| value.to_str().ok());
                        let what = format!("{} {}", request.uri().path(), media.unwrap_or_default());
                        let body = request.into_body().collect().await?.to_bytes();
                        sink.lock().unwrap().push((what, body));
                        Ok::<_, hyper::Error>(http::Response::new(Full::new(Bytes::new())))
                    }
                });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    (address, kept)
}

#[tokio::test]
async fn spans_reach_a_collector_and_name_no_patient() {
    let (address, kept) = collector().await;
    let telemetry = format!("[telemetry]\notlp = \"{address}\"\nsample_percent = 100\n");
    let mut world = World::start_with([Ehr::new(Vendor::Generic)], &telemetry).await.unwrap();
    let base = world.gateway.site_base(Vendor::Generic);
    let tokens = App::at(&base).await.unwrap().launch(world.ehr(Vendor::Generic)).await.unwrap();
    read(&format!("{base}/Patient/{}", tokens.text("patient")), tokens.access()).await.unwrap();
    // The end sends what is left.
    assert_eq!(world.gateway.terminate().await.unwrap(), Some(0));
    let kept = kept.lock().unwrap();
    assert!(!kept.is_empty(), "no spans came: {}", world.gateway.log("events.log").unwrap());
    let holds = |body: &Bytes, text: &str| body.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(kept.iter().all(|(what, _)| what == "/v1/traces application/x-protobuf"), "{:?}", kept[0].0);
    assert!(kept.iter().any(|(_, body)| holds(body, "mantel.interaction")), "no span of a FHIR request");
    for canary in [tokens.text("patient"), tokens.access(), tokens.refresh()] {
        assert!(kept.iter().all(|(_, body)| !holds(body, canary)), "a span tells what it must not");
    }
}

#[tokio::test]
async fn a_lost_collector_costs_no_request() {
    let telemetry = "[telemetry]\notlp = \"http://127.0.0.1:1\"\nsample_percent = 100\n";
    let world = World::start_with([Ehr::new(Vendor::Generic)], telemetry).await.unwrap();
    let base = world.gateway.site_base(Vendor::Generic);
    let tokens = App::at(&base).await.unwrap().launch(world.ehr(Vendor::Generic)).await.unwrap();
    let answer = read(&format!("{base}/Patient/{}", tokens.text("patient")), tokens.access()).await.unwrap();
    assert_eq!(answer.status, 200);
}
