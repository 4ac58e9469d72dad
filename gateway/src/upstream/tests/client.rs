use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::{legacy::Client, proxy::matcher::Matcher},
    rt::TokioExecutor,
};
use url::Url;

use super::support::*;
use crate::upstream::{
    BodyError, CollectError, Identities, Lane, NotSent, Outgoing, Roots, SendError, UpstreamClient, Waits, collect,
};

async fn fetch_ok(client: &UpstreamClient, lane: &Lane, ehr: &Ehr) {
    let answer = client.send(lane, get(&ehr.url("/x")), &waits()).await.unwrap();
    assert_eq!(collect(answer.into_body(), 100).await.unwrap(), "{}");
}

#[tokio::test]
async fn a_socket_serves_one_request_after_the_other() {
    let ehr = Ehr::start(ok).await;
    let link = ehr.link();
    for _ in 0..5 {
        fetch_ok(&link.client, &link.gate.fhir, &ehr).await;
    }
    assert_eq!((ehr.calls().len(), ehr.connections()), (5, 1));
}

#[tokio::test]
async fn over_http_2_one_socket_serves_many_at_once() {
    let ehr = Ehr::speaking(Speaks::Http2, ok).await;
    let link = ehr.link();
    fetch_ok(&link.client, &link.gate.fhir, &ehr).await;
    futures_util::future::join_all((0..10).map(|_| fetch_ok(&link.client, &link.gate.fhir, &ehr))).await;
    assert_eq!((ehr.calls().len(), ehr.connections()), (11, 1));
}

#[tokio::test]
async fn a_new_socket_resumes_the_tls_session_also_of_another_worker() {
    let ehr = Ehr::start(ok).await;
    let site = ehr.site();
    let context = context(&site);
    for _ in 0..2 {
        fetch_ok(&UpstreamClient::new(&context), &Lane::new(1), &ehr).await;
    }
    assert_eq!((ehr.connections(), ehr.resumed()), (2, 1));
}

#[tokio::test]
async fn equal_tls_files_make_one_identity_and_others_another() {
    let (ehr, other) = (Ehr::start(ok).await, Ehr::start(ok).await);
    let identities = Identities::new(Roots::none(), None, &crate::config::Timeouts::default());
    let first = identities.of(&ehr.site()).unwrap();
    assert!(Arc::ptr_eq(&first, &identities.of(&ehr.site()).unwrap()));
    assert!(!Arc::ptr_eq(&first, &identities.of(&other.site()).unwrap()));
    let public_only = crate::config::Site { allow_private: false, ..ehr.site() };
    assert!(!Arc::ptr_eq(&first, &identities.of(&public_only).unwrap()));
}

#[tokio::test]
async fn a_tls_file_that_cannot_be_used_is_named() {
    let ehr = Ehr::start(ok).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("empty.pem");
    std::fs::write(&path, "nothing").unwrap();
    let identities = Identities::new(Roots::none(), None, &crate::config::Timeouts::default());
    let mut site = ehr.site();
    for ca in [path, folder.path().join("missing.pem")] {
        site.tls.ca = Some(ca.clone());
        let fault = identities.of(&site).err().unwrap();
        assert_eq!(fault.path, ca.display().to_string());
    }
}

#[tokio::test]
async fn a_server_that_nobody_vouches_for_gets_nothing() {
    let (ehr, stranger) = (Ehr::start(ok).await, Ehr::start(ok).await);
    let link = ehr.link();
    let lost = link.client.send(&link.gate.fhir, get(&stranger.url("/")), &waits()).await.err().unwrap();
    assert!(matches!(lost, SendError::NotSent(NotSent::Connect(_))), "{lost}");
    assert!(stranger.calls().is_empty());
}

#[tokio::test]
async fn a_refused_connection_is_not_sent() {
    let ehr = Ehr::start(ok).await;
    let link = ehr.link();
    let mut url = ehr.url("/");
    url.set_port(Some(closed_port().await)).unwrap();
    let lost = link.client.send(&link.gate.fhir, get(&url), &waits()).await.err().unwrap();
    assert!(matches!(lost, SendError::NotSent(NotSent::Connect(_))), "{lost}");
    assert!(!lost.sent());
}

#[tokio::test]
async fn a_private_address_is_dialled_only_where_the_site_allows_it() {
    let ehr = Ehr::start(ok).await;
    let link = link(crate::config::Site { allow_private: false, ..ehr.site() });
    let by_literal = format!("https://127.0.0.1:{}/", ehr.at.port()).parse().unwrap();
    for url in [ehr.url("/"), by_literal] {
        let lost = link.client.send(&link.gate.fhir, get(&url), &waits()).await.err().unwrap();
        assert!(matches!(lost, SendError::NotSent(NotSent::Refused(_))), "{url}: {lost}");
    }
    assert_eq!(ehr.connections(), 0);
}

#[tokio::test]
async fn an_answer_that_never_begins_leaves_the_outcome_unknown() {
    let ehr = Ehr::start(|_| Reply::Cut).await;
    let link = ehr.link();
    let lost = link.client.send(&link.gate.fhir, get(&ehr.url("/")), &waits()).await.err().unwrap();
    assert!(matches!(lost, SendError::Unknown(_)), "{lost}");
    assert_eq!(ehr.calls().len(), 1, "it is not sent twice");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error_and_frees_the_permit() {
    let ehr = Ehr::start(|_| Reply::CutBody("{\"half\":")).await;
    let link = ehr.link();
    let lane = Lane::new(1);
    let answer = link.client.send(&lane, get(&ehr.url("/")), &waits()).await.unwrap();
    assert_eq!(lane.free(), 0, "held until the body's end");
    let lost = collect(answer.into_body(), 1000).await.unwrap_err();
    assert!(matches!(lost, CollectError::Body(BodyError::Broken(_))), "{lost}");
    assert_eq!(lane.free(), 1);
}

#[tokio::test]
async fn a_body_that_nobody_reads_frees_its_permit() {
    let ehr = Ehr::start(|_| Reply::Chunks(3, Bytes::from_static(b"abc"))).await;
    let link = ehr.link();
    let lane = Lane::new(1);
    let answer = link.client.send(&lane, get(&ehr.url("/")), &waits()).await.unwrap();
    drop(answer);
    assert_eq!(lane.free(), 1);
}

#[tokio::test]
async fn silence_before_the_answer_ends_in_time_and_counts_as_sent() {
    let ehr = Ehr::start(|call| if call.path == "/silent" { Reply::Silence } else { ok(call) }).await;
    let link = ehr.link();
    fetch_ok(&link.client, &link.gate.fhir, &ehr).await;
    // With a socket at hand nothing is waited for but the answer.
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    let lost = link.client.send(&link.gate.fhir, get(&ehr.url("/silent")), &waits()).await.err().unwrap();
    assert_eq!(lost, SendError::TimedOut { sent: true });
    assert!(begun.elapsed() >= waits().head);
}

#[tokio::test]
async fn silence_within_the_answer_ends_in_time() {
    let ehr = Ehr::start(|_| Reply::Stall("{")).await;
    let link = ehr.link();
    let answer = link.client.send(&link.gate.fhir, get(&ehr.url("/")), &waits()).await.unwrap();
    let mut body = answer.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "{");
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    let lost = body.frame().await.unwrap().unwrap_err();
    assert!(matches!(lost, BodyError::Idle(_)), "{lost}");
    assert!(begun.elapsed() >= waits().idle);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_permit_in_vain_has_sent_nothing() {
    let site = Ehr::start(ok).await;
    let link = site.link();
    let lane = Lane::new(1);
    let _held = lane.enter().await;
    let short = Waits { head: Duration::from_secs(2), ..waits() };
    let lost = link.client.send(&lane, get(&site.url("/")), &short).await.err().unwrap();
    assert_eq!(lost, SendError::TimedOut { sent: false });
    assert_eq!(site.connections(), 0);
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_its_lack_means_not_sent() {
    let ehr = Ehr::speaking(Speaks::MutualTls, ok).await;
    let with = link(crate::config::Site { tls: ehr.mutual_tls(), ..ehr.site() });
    fetch_ok(&with.client, &with.gate.fhir, &ehr).await;
    let without = ehr.link();
    let lost = without.client.send(&without.gate.fhir, get(&ehr.url("/")), &waits()).await.err().unwrap();
    assert!(matches!(lost, SendError::NotSent(NotSent::ClientCertificate(_))), "{lost}");
    assert_eq!(ehr.calls().len(), 1);
}

/// `{"resourceType":"Patient"}`
const GZIPPED: [u8; 46] = [
    31, 139, 8, 0, 0, 0, 0, 0, 2, 3, 171, 86, 42, 74, 45, 206, 47, 45, 74, 78, 13, 169, 44, 72, 85, 178, 82, 10, 72,
    44, 201, 76, 205, 43, 81, 170, 5, 0, 190, 238, 3, 93, 26, 0, 0, 0,
];

#[tokio::test]
async fn gzip_is_offered_and_undone() {
    let ehr = Ehr::start(|call| {
        assert_eq!(call.header("accept-encoding"), Some("gzip"));
        Reply::with(200, &[("content-encoding", "gzip")], GZIPPED.as_slice())
    })
    .await;
    let link = ehr.link();
    let answer = link.client.send_decoded(&link.gate.fhir, get(&ehr.url("/")), &waits()).await.unwrap();
    assert!(answer.headers().get("content-encoding").is_none());
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, r#"{"resourceType":"Patient"}"#);
}

#[tokio::test]
async fn a_body_is_collected_up_to_its_bound() {
    let ehr = Ehr::start(|call| match call.path.as_str() {
        "/chunks" => Reply::Chunks(10, Bytes::from_static(b"0123456789")),
        _ => Reply::with(200, &[], vec![b'x'; 100]),
    })
    .await;
    let link = ehr.link();
    for path in ["/chunks", "/length"] {
        for (limit, fits) in [(100, true), (99, false)] {
            let answer = link.client.send(&link.gate.fhir, get(&ehr.url(path)), &waits()).await.unwrap();
            let body = collect(answer.into_body(), limit).await;
            assert_eq!(body.is_ok(), fits, "{path}, {limit}");
        }
    }
}

/// A body as an app's would come, from a server that plays it.
async fn incoming(app: &Ehr) -> hyper::body::Incoming {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let url = format!("http://{}/", app.at);
    client.get(url.parse().unwrap()).await.unwrap().into_body()
}

fn post(url: &Url, body: Outgoing) -> Request<Outgoing> {
    Request::post(url.as_str()).body(body).unwrap()
}

#[tokio::test]
async fn bodies_are_sent_whole_whether_they_stream_or_not() {
    let app = Ehr::speaking(Speaks::Clear, |_| Reply::Chunks(3, Bytes::from_static(b"abc"))).await;
    let ehr = Ehr::start(ok).await;
    let link = ehr.link();
    for body in [Outgoing::Stream(incoming(&app).await), Outgoing::Full(Bytes::from_static(b"abcabcabc"))] {
        link.client.send(&link.gate.fhir, post(&ehr.url("/"), body), &waits()).await.unwrap();
    }
    let calls = ehr.calls();
    assert!(calls.iter().all(|call| call.body == "abcabcabc"));
    assert_eq!((calls[0].header("content-length"), calls[1].header("content-length")), (None, Some("9")));
}

#[tokio::test]
async fn the_wait_for_an_answer_begins_with_the_last_byte_of_a_streamed_body() {
    let pause = waits().head - Duration::from_secs(10);
    let app = Ehr::speaking(Speaks::Clear, move |_| Reply::Slow(pause, &["a", "b", "c"])).await;
    let ehr = Ehr::start(ok).await;
    let link = ehr.link();
    fetch_ok(&link.client, &link.gate.fhir, &ehr).await;
    let body = Outgoing::Stream(incoming(&app).await);
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    let lost = link.client.send(&link.gate.fhir, post(&ehr.url("/"), body), &waits()).await.err().unwrap();
    assert_eq!(lost, SendError::TimedOut { sent: true });
    assert!(begun.elapsed() >= 3 * pause + waits().head - Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_proxy_carries_tls_through_and_literals_are_still_judged() {
    let ehr = Ehr::start(ok).await;
    let (at, asked) = proxy(ehr.at).await;
    let matcher = Matcher::builder().https(format!("http://user:pass@{at}")).build();
    let site = crate::config::Site { allow_private: false, ..ehr.site() };
    let identities = Identities::new(Roots::none(), Some(matcher), &crate::config::Timeouts::default());
    let client = UpstreamClient::new(&identities.of(&site).unwrap());
    let lane = Lane::new(1);
    let literal = format!("https://10.0.0.1:{}/", ehr.at.port()).parse().unwrap();
    let lost = client.send(&lane, get(&literal), &waits()).await.err().unwrap();
    assert!(matches!(lost, SendError::NotSent(NotSent::Refused(_))), "{lost}");
    fetch_ok(&client, &lane, &ehr).await;
    let asked = asked.await.unwrap().to_lowercase();
    assert!(asked.starts_with(&format!("connect {NAME}:{} http/1.1\r\n", ehr.at.port())), "{asked}");
    assert!(asked.contains("proxy-authorization: basic "), "{asked}");
}
