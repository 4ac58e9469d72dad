//! Bad input to the authorization server: a page before the redirect URI is trusted, a redirect after.

use mantel_tests::{
    ehr::{contract::Vendor, visitor::Visitor},
    harness::{
        CALLBACK, Ehr, World,
        app::{App, visitor},
        get, post_form,
    },
};

#[tokio::test]
async fn authorization_requests() {
    let world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let base = world.gateway.site_base(Vendor::Generic);
    let app = App::at(&base).await.unwrap();
    // Never a redirect: the redirect URI is nobody's, or not to be believed.
    for change in [
        ("client_id", ""),
        ("client_id", "nobody"),
        ("redirect_uri", ""),
        ("redirect_uri", "http://127.0.0.1:1/callback/"),
        ("redirect_uri", "https://evil.example/callback"),
    ] {
        let page = Visitor::new().get(&app.url(&[change]).unwrap()).await.unwrap();
        assert_eq!(page.status, 400, "{change:?}: {}", page.text());
        assert!(page.header("content-type").unwrap().starts_with("text/html"), "{change:?}");
        assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"), "{change:?}");
    }
    let uniform = world.gateway.uniform_base();
    for (change, error) in [
        (("response_type", "token"), "unsupported_response_type"),
        (("response_type", ""), "invalid_request"),
        (("scope", ""), "invalid_request"),
        (("scope", "nonsense patient/Patient.rr"), "invalid_scope"),
        (("aud", ""), "invalid_request"),
        (("aud", "https://elsewhere.example/fhir"), "invalid_request"),
        (("aud", uniform.as_str()), "invalid_request"),
        (("code_challenge", ""), "invalid_request"),
        (("code_challenge", "short"), "invalid_request"),
        (("code_challenge_method", ""), "invalid_request"),
        (("code_challenge_method", "plain"), "invalid_request"),
        (("launch", "unknown"), "invalid_request"),
    ] {
        let page = visitor().get(&app.url(&[change]).unwrap()).await.unwrap();
        assert_eq!(page.status, 303, "{change:?}: {}", page.text());
        assert!(page.redirect().unwrap().as_str().starts_with(CALLBACK), "{change:?}");
        assert_eq!(page.redirect_param("error").as_deref(), Some(error), "{change:?}");
        assert_eq!(page.redirect_param("state").as_deref(), Some(app.state.as_str()), "{change:?}");
        assert_eq!(page.redirect_param("code"), None, "{change:?}");
    }
    let repeated = format!("{}&scope=launch", app.url(&[]).unwrap());
    let page = visitor().get(&repeated).await.unwrap();
    assert_eq!(page.redirect_param("error").as_deref(), Some("invalid_request"));
    // By POST the same, and never with 307: a browser would send the form on to the EHR.
    let query = app.url(&[]).unwrap();
    let pairs: Vec<_> = url::Url::parse(&query).unwrap().query_pairs().into_owned().collect();
    let pairs: Vec<_> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let posted = post_form(&app.authorize, &[], &pairs).await.unwrap();
    assert_eq!(posted.status, 303);
    assert!(posted.header("location").unwrap().starts_with("/oauth/continue/"));
}

#[tokio::test]
async fn a_browser_without_the_cookie_goes_no_further() {
    let world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let app = App::at(&world.gateway.site_base(Vendor::Generic)).await.unwrap();
    let opened = get(&app.url(&[]).unwrap(), &[]).await.unwrap();
    let cookie = opened.header("set-cookie").unwrap();
    for attribute in ["__Host-", "Secure", "HttpOnly", "SameSite=None", "Partitioned", "Path=/"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    let next = format!("{}{}", world.gateway.public, opened.header("location").unwrap());
    let page = get(&next, &[]).await.unwrap();
    assert_eq!(page.status, 400);
    assert!(page.text().contains("/oauth/again/"), "{}", page.text());
    // Another browser's callback: the state alone is not enough.
    let mut first = visitor().stop_at(&format!("{}/oauth/callback", world.gateway.public));
    let back = app.authorize(&mut first, world.ehr(Vendor::Generic), &[]).await.unwrap();
    assert!(back.path().starts_with("/oauth/callback/"), "{back}");
    let stolen = get(back.as_str(), &[]).await.unwrap();
    assert_eq!(stolen.status, 400);
    assert_eq!(world.ehr(Vendor::Generic).counters.get("token:authorization_code"), 0);
}

#[tokio::test]
async fn launch_entries() {
    let world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let entry = format!("{}/launch/viewer", world.gateway.public);
    let iss = &world.ehr(Vendor::Generic).fhir_base;
    world.ehr(Vendor::Generic).counters.reset();
    for (query, holds) in [
        ("launch=x".to_owned(), "iss"),
        (format!("iss={iss}"), "launch"),
        ("iss=https://evil.example/fhir&launch=x".to_owned(), "no EHR"),
        (format!("iss={iss}&iss={iss}&launch=x"), "more than once"),
    ] {
        let page = get(&format!("{entry}?{query}"), &[]).await.unwrap();
        assert_eq!(page.status, 400, "{query}");
        assert!(page.text().contains(holds), "{query}: {}", page.text());
    }
    assert_eq!(world.ehr(Vendor::Generic).counters.all(), Default::default(), "an unknown iss made a request");
    let unknown = get(&format!("{}/launch/nobody?iss={iss}&launch=x", world.gateway.public), &[]).await.unwrap();
    assert_eq!(unknown.status, 400);
}

#[tokio::test]
async fn token_requests() {
    let world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let app = App::at(&world.gateway.site_base(Vendor::Generic)).await.unwrap();
    type Case<'a> = (&'a [(&'a str, &'a str)], u16, &'a str);
    let cases: [Case<'_>; 6] = [
        (&[], 400, "invalid_request"),
        (&[("grant_type", "password"), ("client_id", "viewer")], 400, "unsupported_grant_type"),
        (&[("grant_type", "authorization_code"), ("client_id", "nobody"), ("code", "x")], 401, "invalid_client"),
        (
            &[("grant_type", "authorization_code"), ("client_id", "viewer"), ("code", "x"), ("redirect_uri", CALLBACK)],
            400,
            "invalid_grant",
        ),
        (&[("grant_type", "refresh_token"), ("client_id", "viewer"), ("refresh_token", "x")], 400, "invalid_grant"),
        (&[("grant_type", "refresh_token"), ("grant_type", "refresh_token")], 400, "invalid_request"),
    ];
    for (pairs, status, error) in cases {
        let answer = post_form(&app.token, &[("origin", mantel_tests::harness::ORIGIN)], pairs).await.unwrap();
        assert_eq!(
            (answer.status.as_u16(), answer.json().unwrap()["error"].as_str()),
            (status, Some(error)),
            "{pairs:?}"
        );
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(
            answer.header("access-control-allow-origin"),
            Some(mantel_tests::harness::ORIGIN),
            "a script must see why"
        );
    }
    for verifier in ["", "wrong-wrong-wrong-wrong-wrong-wrong-wrong-wrong", "short"] {
        let back = app.authorize(&mut visitor(), world.ehr(Vendor::Generic), &[]).await.unwrap();
        let code = app.code(&back).unwrap();
        let answer = app.exchange(&[("code", &code), ("code_verifier", verifier)]).await.unwrap();
        assert_eq!(
            (answer.status.as_u16(), answer.json().unwrap()["error"].as_str()),
            (400, Some("invalid_grant")),
            "{verifier}"
        );
    }
}
