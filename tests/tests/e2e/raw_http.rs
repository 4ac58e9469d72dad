//! Bytes that no library would send, and what stands beside the FHIR road.

use http::Method;
use mantel_tests::{
    ehr::contract::Vendor,
    harness::{Ehr, World, app::App, call, get, read},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Sends bytes and reads until the gateway closes.
async fn raw(public: &str, bytes: &str) -> String {
    let address = public.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A peer that refuses early may close while bytes are on their way.
    let _ = stream.write_all(bytes.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

#[tokio::test]
async fn heads_that_are_refused() {
    let world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let base = world.gateway.site_base(Vendor::Generic);
    let ehr = world.ehr(Vendor::Generic);
    let tokens = App::at(&base).await.unwrap().launch(ehr).await.unwrap();
    ehr.counters.reset();
    let public = world.gateway.public.clone();
    let path = format!("{}/Patient/{}", base.strip_prefix(&public).unwrap(), tokens.text("patient"));
    let root = base.strip_prefix(&public).unwrap();
    let more = format!("host: x\r\nauthorization: Bearer {}\r\nconnection: close\r\n", tokens.access());
    let long = "a".repeat(64 << 10);
    let many = (0..200).map(|n| format!("x-{n}: 1\r\n")).collect::<String>();
    for (what, bytes, statuses) in [
        ("absolute form", format!("GET http://evil.example{path} HTTP/1.1\r\n{more}\r\n"), &[400][..]),
        ("authority form", format!("CONNECT evil.example:443 HTTP/1.1\r\n{more}\r\n"), &[400, 405]),
        ("asterisk form", format!("OPTIONS * HTTP/1.1\r\n{more}\r\n"), &[400, 404, 405]),
        ("climbing path", format!("GET {root}/Patient/../Condition HTTP/1.1\r\n{more}\r\n"), &[400]),
        ("encoded climbing path", format!("GET {root}/Patient/%2E%2e/Condition HTTP/1.1\r\n{more}\r\n"), &[400]),
        ("climbing out of the base", format!("GET {root}/../../oauth/token HTTP/1.1\r\n{more}\r\n"), &[400]),
        ("control characters", format!("GET {root}/Patient/1%0d%0a HTTP/1.1\r\n{more}\r\n"), &[400]),
        ("blank in the target", format!("GET {root}/Patient/1 2 HTTP/1.1\r\n{more}\r\n"), &[400]),
        ("oversize header", format!("GET {path} HTTP/1.1\r\n{more}x-long: {long}\r\n\r\n"), &[400, 431]),
        ("oversize target", format!("GET {path}?x={long} HTTP/1.1\r\n{more}\r\n"), &[400, 414, 431]),
        ("too many headers", format!("GET {path} HTTP/1.1\r\n{more}{many}\r\n"), &[400, 431]),
        ("a header with a blank", format!("GET {path} HTTP/1.1\r\n{more}x y: 1\r\n\r\n"), &[400]),
        ("folded header", format!("GET {path} HTTP/1.1\r\n{more}x-a: 1\r\n 2\r\n\r\n"), &[400]),
        (
            "two lengths",
            format!("POST {root} HTTP/1.1\r\n{more}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}}"),
            &[400],
        ),
        ("no length", format!("POST {root} HTTP/1.1\r\n{more}content-length: -1\r\n\r\n{{}}"), &[400]),
        (
            "an unknown transfer coding",
            format!("POST {root} HTTP/1.1\r\n{more}transfer-encoding: gzip\r\n\r\n{{}}"),
            &[400, 501],
        ),
        ("two bearers", format!("GET {path} HTTP/1.1\r\n{more}authorization: Bearer x\r\n\r\n"), &[400, 401]),
        ("unknown method", format!("BREW {path} HTTP/1.1\r\n{more}\r\n"), &[400, 405]),
        ("TRACE", format!("TRACE {path} HTTP/1.1\r\n{more}\r\n"), &[400, 405]),
        ("no HTTP", "\x16\x03\x01\x02\x00\x01\r\n\r\n".to_owned(), &[400]),
        ("another version", format!("GET {path} HTTP/9.9\r\n{more}\r\n"), &[400, 505]),
    ] {
        let answer = raw(&public, &bytes).await;
        assert!(statuses.contains(&status(&answer)), "{what}: {answer}");
        assert!(!answer.contains(tokens.access()), "{what}: the token came back: {answer}");
        assert!(ehr.counters.all().is_empty(), "{what}: {:?}", ehr.counters.all());
    }
    // And it serves on.
    let answer = raw(&public, &format!("GET {path} HTTP/1.1\r\n{more}\r\n")).await;
    assert_eq!(status(&answer), 200, "{answer}");
    let answer = raw(&public, &format!("GET {path} HTTP/1.0\r\n{more}\r\n")).await;
    assert_eq!(status(&answer), 200, "{answer}");
}

#[tokio::test]
async fn a_body_with_two_lengths_smuggles_nothing() {
    let world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let base = world.gateway.site_base(Vendor::Generic);
    let ehr = world.ehr(Vendor::Generic);
    let tokens = App::at(&base).await.unwrap().launch(ehr).await.unwrap();
    ehr.counters.reset();
    let root = base.strip_prefix(&world.gateway.public).unwrap();
    let inner = format!("GET {root}/Patient/{} HTTP/1.1\r\nhost: x\r\n\r\n", tokens.text("patient"));
    let bytes = format!(
        "POST {root}/Patient/_search HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: \
         application/x-www-form-urlencoded\r\ncontent-length: {}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n0\r\n\r\n{inner}",
        tokens.access(),
        5 + inner.len(),
    );
    let answer = raw(&world.gateway.public, &bytes).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert!(ehr.counters.all().keys().all(|name| name != "fhir:GET Patient"), "{:?}", ehr.counters.all());
}

#[tokio::test]
async fn methods() {
    // What is inspected is read whole, and answered without its body.
    let world = World::start([Ehr::new(Vendor::Generic).site("inspect = \"always\"")]).await.unwrap();
    let base = world.gateway.site_base(Vendor::Generic);
    let tokens = App::at(&base).await.unwrap().launch(world.ehr(Vendor::Generic)).await.unwrap();
    let bearer = format!("Bearer {}", tokens.access());
    let headers = [("authorization", bearer.as_str())];
    let own = format!("{base}/Patient/{}", tokens.text("patient"));
    let search = format!("{base}/Condition?patient={}", tokens.text("patient"));
    let whole = read(&search, tokens.access()).await.unwrap();
    let head = call(Method::HEAD, &search, &headers, "").await.unwrap();
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0), "{:?}", head.headers);
    for name in ["content-type", "cache-control"] {
        assert_eq!(head.header(name), whole.header(name), "{name}");
    }
    // What streams is put to the EHR as it came, and the simulated ones know no HEAD.
    let passed = call(Method::HEAD, &own, &headers, "").await.unwrap();
    assert_eq!((passed.status.as_u16(), passed.body.len()), (405, 0));
    let other = call(Method::HEAD, &format!("{base}/Immunization/1"), &headers, "").await.unwrap();
    assert_eq!((other.status.as_u16(), other.body.len()), (403, 0));
    let metadata = call(Method::HEAD, &format!("{base}/metadata"), &[], "").await.unwrap();
    assert_eq!((metadata.status.as_u16(), metadata.body.len()), (200, 0));
    let found = call(Method::HEAD, &format!("{base}/.well-known/smart-configuration"), &[], "").await.unwrap();
    assert_eq!((found.status.as_u16(), found.body.len()), (200, 0));
    for (method, url) in [
        (Method::PUT, format!("{base}/metadata")),
        (Method::from_bytes(b"BREW").unwrap(), own.clone()),
        (Method::TRACE, own.clone()),
        (Method::DELETE, format!("{}/oauth/token", world.gateway.public)),
    ] {
        let answer = call(method.clone(), &url, &headers, "").await.unwrap();
        assert!(matches!(answer.status.as_u16(), 400 | 405), "{method} {url}: {} {}", answer.status, answer.text());
    }
    for path in
        ["/", "/nowhere", "/admin", "/metrics", "/health/ready", "/sites/generic", "/sites/nobody/fhir/r4/metadata"]
    {
        let answer = get(&format!("{}{path}", world.gateway.public), &[]).await.unwrap();
        assert_eq!(answer.status, 404, "{path}: {}", answer.text());
    }
}

#[tokio::test]
async fn the_admin_listener_reads_only() {
    let world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let admin = &world.gateway.admin;
    for path in ["/health/live", "/health/ready", "/metrics"] {
        let answer = get(&format!("{admin}{path}"), &[]).await.unwrap();
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(call(Method::POST, &format!("{admin}{path}"), &[], "").await.unwrap().status, 405, "{path}");
        let head = call(Method::HEAD, &format!("{admin}{path}"), &[], "").await.unwrap();
        assert_eq!((head.status.as_u16(), head.body.len()), (200, 0), "{path}");
    }
    assert_eq!(get(&format!("{admin}/config"), &[]).await.unwrap().status, 404);
    let metrics = get(&format!("{admin}/metrics"), &[]).await.unwrap().text();
    for name in
        ["mantel_requests_total", "mantel_connections", "mantel_config_loaded_timestamp_seconds", "process_open_fds"]
    {
        assert!(metrics.lines().any(|line| line.starts_with(name)), "{name}");
    }
}
