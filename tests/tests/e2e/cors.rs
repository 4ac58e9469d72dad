//! What a script in a browser may see: answers and refusals alike, where its origin is registered.

use http::Method;
use mantel_tests::{
    ehr::contract::Vendor,
    harness::{Answer, Ehr, ORIGIN, World, app::App, call, get, post_form},
};

const STRANGER: &str = "https://evil.example";

async fn preflight(url: &str, origin: &str, method: &str) -> Answer {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", method),
        ("access-control-request-headers", "authorization,content-type"),
    ];
    call(Method::OPTIONS, url, &headers, "").await.unwrap()
}

fn allowed(answer: &Answer) -> Option<&str> {
    answer.header("access-control-allow-origin")
}

/// No answer of ours goes with cookies, and none that differs by origin is kept without saying so.
#[track_caller]
fn sound(answer: &Answer, what: &str) {
    assert_eq!(answer.header("access-control-allow-credentials"), None, "{what}");
    let origins = answer.headers.get_all("access-control-allow-origin").iter().count();
    assert!(origins <= 1, "{what}: {:?}", answer.headers);
    if allowed(answer) != Some("*") {
        let vary: Vec<_> = answer.headers.get_all("vary").iter().filter_map(|value| value.to_str().ok()).collect();
        assert!(vary.iter().any(|value| value.to_ascii_lowercase().contains("origin")), "{what}: {vary:?}");
    }
}

#[tokio::test]
async fn preflights() {
    let world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let base = world.gateway.site_base(Vendor::Generic);
    let app = App::at(&base).await.unwrap();
    world.ehr(Vendor::Generic).counters.reset();
    let token = app.token.as_str();
    let revoke = token.replace("/token", "/revoke");
    for (url, methods) in [
        (token.to_owned(), &["POST"][..]),
        (revoke, &["POST"]),
        (format!("{base}/Patient/1"), &["GET", "PUT", "PATCH", "DELETE"]),
        (format!("{base}/Observation?patient=1"), &["GET"]),
        (format!("{base}/Observation/_search"), &["POST"]),
        (world.gateway.uniform_base(), &["POST"]),
    ] {
        for method in methods {
            let answer = preflight(&url, ORIGIN, method).await;
            let what = format!("{method} {url}");
            assert_eq!(answer.status, 204, "{what}");
            assert_eq!(allowed(&answer), Some(ORIGIN), "{what}");
            assert!(answer.header("access-control-allow-methods").unwrap().contains(method), "{what}");
            let headers = answer.header("access-control-allow-headers").unwrap().to_ascii_lowercase();
            for name in ["authorization", "content-type", "if-match", "prefer"] {
                assert!(headers.contains(name), "{what}: {headers}");
            }
            sound(&answer, &what);

            let answer = preflight(&url, STRANGER, method).await;
            assert_eq!(allowed(&answer), None, "{what}");
            assert_eq!(answer.header("access-control-allow-methods"), None, "{what}");
            sound(&answer, &what);
        }
    }
    for url in [
        format!("{base}/.well-known/smart-configuration"),
        format!("{base}/metadata"),
        format!("{}/oauth/jwks", world.gateway.public),
    ] {
        let answer = preflight(&url, STRANGER, "GET").await;
        assert_eq!((answer.status.as_u16(), allowed(&answer)), (204, Some("*")), "{url}");
        sound(&answer, &url);
    }
    // The EHR is not asked.
    assert_eq!(world.ehr(Vendor::Generic).counters.all(), Default::default());
}

#[tokio::test]
async fn answers_and_refusals() {
    let world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let base = world.gateway.site_base(Vendor::Generic);
    let app = App::at(&base).await.unwrap();
    let tokens = app.launch(world.ehr(Vendor::Generic)).await.unwrap();
    let bearer = format!("Bearer {}", tokens.access());
    let own = format!("{base}/Patient/{}", tokens.text("patient"));
    for (url, authorization, status) in [
        (own.clone(), Some(bearer.as_str()), 200),
        (own.clone(), Some("Bearer mtl_at_unknown"), 401),
        (own.clone(), None, 401),
        (format!("{base}/Immunization?patient={}", tokens.text("patient")), Some(&bearer), 403),
        (format!("{base}/Patient/%2e%2e"), Some(&bearer), 400),
        (format!("{base}/Condition/never"), Some(&bearer), 404),
    ] {
        for origin in [ORIGIN, STRANGER] {
            let mut headers = vec![("origin", origin)];
            headers.extend(authorization.map(|value| ("authorization", value)));
            let answer = get(&url, &headers).await.unwrap();
            let what = format!("{origin} {url}");
            assert_eq!(answer.status, status, "{what}: {}", answer.text());
            assert_eq!(allowed(&answer), (origin == ORIGIN).then_some(ORIGIN), "{what}");
            sound(&answer, &what);
            if origin == ORIGIN {
                let exposed = answer.header("access-control-expose-headers").unwrap().to_ascii_lowercase();
                for name in ["www-authenticate", "retry-after", "etag", "location", "x-request-id"] {
                    assert!(exposed.contains(name), "{what}: {exposed}");
                }
            }
        }
    }
    for (pairs, status) in [
        (vec![("grant_type", "refresh_token"), ("refresh_token", tokens.refresh())], 200),
        (vec![("grant_type", "refresh_token"), ("refresh_token", "mtl_rt_unknown")], 400),
        (vec![("grant_type", "authorization_code"), ("client_id", "nobody"), ("code", "x")], 401),
    ] {
        for origin in [STRANGER, ORIGIN] {
            let answer = post_form(&app.token, &[("origin", origin)], &pairs).await.unwrap();
            assert_eq!(answer.status, status, "{}", answer.text());
            assert_eq!(allowed(&answer), (origin == ORIGIN).then_some(ORIGIN), "{origin} {pairs:?}");
            sound(&answer, origin);
        }
    }
    for url in [format!("{base}/.well-known/smart-configuration"), format!("{base}/metadata")] {
        for origin in [ORIGIN, STRANGER, "null"] {
            let answer = get(&url, &[("origin", origin)]).await.unwrap();
            assert_eq!(allowed(&answer), Some("*"), "{url}");
            sound(&answer, &url);
        }
    }
    // `null` is what every sandboxed frame sends: nobody's.
    let answer = get(&own, &[("origin", "null"), ("authorization", &bearer)]).await.unwrap();
    assert_eq!(allowed(&answer), None);
    // Pages are for people, in their own tabs.
    let page = get(&app.url(&[]).unwrap(), &[("origin", ORIGIN)]).await.unwrap();
    assert_eq!(allowed(&page), None);
}
