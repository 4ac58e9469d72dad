//! Memory stays flat while a large Bundle streams through the rewriter. A process of its own, since its
//! resident memory is what is measured.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "the other tests use the rest")]

#[path = "proxy/ehr.rs"]
mod ehr;
#[path = "proxy/gateway.rs"]
mod gateway;

use bytes::Bytes;
use ehr::{Ehr, Reply};
use futures_util::{StreamExt as _, stream};
use gateway::{Gateway, PATIENT, SITE, USER};
use http::Method;
use http_body::Frame;
use http_body_util::BodyExt as _;

/// Of some 500 bytes.
fn entry(base: &str, number: usize) -> Bytes {
    let comma = if number == 0 { "" } else { "," };
    format!(
        r#"{comma}{{"fullUrl":"{base}/Observation/{number}","resource":{{"resourceType":"Observation","id":"{number}","status":"final","subject":{{"reference":"{base}/Patient/p1"}},"note":[{{"text":"{}"}}]}},"search":{{"mode":"match"}}}}"#,
        "x".repeat(300)
    )
    .into()
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_hundred_megabytes_stream_in_flat_memory() {
    let ehr = Ehr::naming_itself(|base, _| {
        let count = (100 << 20) / entry(base, 0).len();
        let base = base.to_owned();
        let entries = stream::iter(0..count).map(move |number| entry(&base, number));
        let head = stream::iter([Bytes::from_static(br#"{"resourceType":"Bundle","type":"searchset","entry":["#)]);
        let tail = stream::iter([Bytes::from_static(b"]}")]);
        let body = head.chain(entries).chain(tail).map(|bytes| Ok(Frame::data(bytes)));
        Reply::Stream(Box::pin(body))
    })
    .await;
    let gateway = Gateway::start(&ehr).await;
    for covers in [USER, PATIENT] {
        let client = gateway.client(&covers).await;
        let mut body = client.open(Method::GET, &format!("{SITE}/Observation?patient=p1"), &[], "").await.into_body();
        let before = resident();
        let (mut size, mut most) = (0, before);
        while let Some(frame) = body.frame().await {
            size += frame.unwrap().into_data().unwrap().len();
            if size % (1 << 20) < 32 << 10 {
                most = most.max(resident());
            }
        }
        assert!(size > 90 << 20, "{size} bytes came");
        let grown = most.saturating_sub(before) >> 20;
        assert!(grown < 40, "{grown} MB more in memory");
    }
}
