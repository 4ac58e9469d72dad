use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use url::Url;

use super::support::*;
use crate::upstream::{FetchError, FetchLimits, Fetched, SiteLink, fetch};

const LIMITS: FetchLimits = FetchLimits { size: 1000, total: Duration::from_secs(10), plain_http: false };

async fn run(link: &SiteLink, url: &Url) -> Result<Fetched, FetchError> {
    fetch(&link.client, &link.gate.auth, url, &HeaderMap::new(), &LIMITS).await
}

fn site(call: &Call) -> Reply {
    match call.path.as_str() {
        "/loop" => Reply::redirect("/loop"),
        "/1" => Reply::redirect("/2"),
        "/2" => Reply::redirect("3"),
        "/3" => Reply::redirect("/4?x=1"),
        "/nowhere" => Reply::status(302),
        "/missing" => Reply::with(404, &[], "no"),
        "/long" => Reply::with(200, &[], vec![b'x'; 1001]),
        "/endless" => Reply::Chunks(1_000_000, Bytes::from_static(&[b'x'; 1000])),
        "/cut" => Reply::CutBody("half"),
        _ => ok(call),
    }
}

#[tokio::test]
async fn redirects_are_followed_within_the_origin_three_times() {
    let ehr = Ehr::start(site).await;
    let link = ehr.link();
    assert_eq!(run(&link, &ehr.url("/1")).await.unwrap().body, "{}");
    assert_eq!(ehr.paths(), ["/1", "/2", "/3", "/4?x=1"]);
    for path in ["/loop", "/nowhere"] {
        assert_eq!(run(&link, &ehr.url(path)).await.unwrap_err(), FetchError::Redirects, "{path}");
    }
    assert_eq!(ehr.paths().iter().filter(|path| *path == "/loop").count(), 4);
}

#[tokio::test]
async fn no_redirect_leads_to_another_origin() {
    let other = Ehr::start(ok).await;
    let clear = Ehr::speaking(Speaks::Clear, ok).await;
    let targets = [other.url("/").to_string(), clear.url("/").to_string(), "//example.org/x".into()];
    for target in targets {
        let to = target.clone();
        let ehr = Ehr::start(move |_| Reply::redirect(&to)).await;
        let lost = run(&ehr.link(), &ehr.url("/")).await.unwrap_err();
        assert!(matches!(lost, FetchError::OtherOrigin(_)), "{target}: {lost}");
    }
    assert_eq!((other.connections(), clear.connections()), (0, 0));
}

#[tokio::test]
async fn size_is_bounded_with_and_without_a_length() {
    let ehr = Ehr::start(site).await;
    let link = ehr.link();
    for path in ["/long", "/endless"] {
        assert_eq!(run(&link, &ehr.url(path)).await.unwrap_err(), FetchError::TooLarge(1000), "{path}");
    }
}

#[tokio::test]
async fn other_statuses_are_answers_and_broken_ones_are_not() {
    let ehr = Ehr::start(site).await;
    let link = ehr.link();
    let answer = run(&link, &ehr.url("/missing")).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.body.as_ref()), (404, b"no".as_slice()));
    assert_eq!(run(&link, &ehr.url("/cut")).await.unwrap_err(), FetchError::Broken);
}

#[tokio::test]
async fn only_https_without_credentials_is_fetched() {
    let ehr = Ehr::start(site).await;
    let clear = Ehr::speaking(Speaks::Clear, site).await;
    let link = ehr.link();
    let mut with_user = ehr.url("/");
    with_user.set_username("user").unwrap();
    for url in [with_user, clear.url("/"), Url::parse("ftp://example.org/").unwrap()] {
        assert!(matches!(run(&link, &url).await.unwrap_err(), FetchError::NotHttps(_)), "{url}");
    }
    assert_eq!((ehr.connections(), clear.connections()), (0, 0));
    let limits = FetchLimits { plain_http: true, ..LIMITS };
    let answer = fetch(&link.client, &link.gate.auth, &clear.url("/"), &HeaderMap::new(), &limits).await;
    assert_eq!(answer.unwrap().status, 200);
}

#[tokio::test]
async fn a_fragment_is_not_sent_and_no_encoding_is_asked_for() {
    let ehr = Ehr::start(site).await;
    run(&ehr.link(), &ehr.url("/a?b=c#d")).await.unwrap();
    let call = &ehr.calls()[0];
    assert_eq!((call.path.as_str(), call.header("accept-encoding")), ("/a?b=c", Some("identity")));
}

#[tokio::test]
async fn what_trickles_is_cut_off() {
    let ehr = Ehr::start(|call| if call.path == "/stall" { Reply::Stall("{") } else { ok(call) }).await;
    let link = ehr.link();
    run(&link, &ehr.url("/")).await.unwrap();
    tokio::time::pause();
    let lost = run(&link, &ehr.url("/stall")).await.unwrap_err();
    assert_eq!(lost, FetchError::TooSlow(LIMITS.total));
}
