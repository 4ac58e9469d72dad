use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::Method;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use mantel_adapters::smart::discovery::{Endpoints, parse_smart_configuration, resolve};
use serde_json::{Map, Value, json};

use super::{
    keys::{RSA, ec_pkcs8, set},
    support::*,
};
use crate::{
    clock::{Clock as _, TestClock, Timestamp},
    config::{AssertionAlg, ClientAuth, KeyState, Timeouts},
    entropy::TestEntropy,
    secret::Secret,
    upstream::{
        ASSERTION_TYPE, Client, CodeGrant, NotSent, Prover, RevokeOutcome, SigningSets, SiteLink, TokenClient,
        TokenHint, TokenOutcome, token::NotSentReason,
    },
};

/// 2026-01-01
const NOW: Timestamp = Timestamp(1_767_225_600_000);

/// One client of a site.
struct Bench {
    link: SiteLink,
    endpoints: Endpoints,
    auth: ClientAuth,
    keys: SigningSets,
    clock: TestClock,
    entropy: TestEntropy,
    client_id: &'static str,
}

impl Bench {
    fn new(ehr: &Ehr, auth: ClientAuth) -> Self {
        let link = ehr.link();
        let document = json!({
            "authorization_endpoint": ehr.url("/authorize"),
            "token_endpoint": ehr.url("/token"),
            "revocation_endpoint": ehr.url("/revoke"),
        });
        let (smart, _) = parse_smart_configuration(document.to_string().as_bytes(), &link.site.fhir_base).unwrap();
        let endpoints = resolve(&link.site.fhir_base, &link.site.profile, Some(&smart), None).unwrap();
        Self {
            link,
            endpoints,
            auth,
            keys: SigningSets::default(),
            clock: TestClock::new(NOW),
            entropy: TestEntropy::new(7),
            client_id: "client",
        }
    }

    fn client(&self) -> TokenClient<'_> {
        TokenClient {
            link: &self.link,
            endpoints: &self.endpoints,
            client: Client { client_id: self.client_id, auth: &self.auth },
            prover: Prover { keys: &self.keys, clock: &self.clock, entropy: &self.entropy },
            within: Timeouts::default().token,
        }
    }

    async fn refresh(&self) -> TokenOutcome {
        self.client().refresh(&"refresh-1".into(), None).await
    }
}

fn answer(_: &Call) -> Reply {
    Reply::json(200, &json!({ "access_token": "at", "token_type": "bearer", "expires_in": 570, "scope": "openid" }))
}

fn secret() -> Secret<String> {
    "s3cret".into()
}

#[tokio::test]
async fn a_code_is_exchanged_with_what_it_is_bound_to() {
    let ehr = Ehr::start(answer).await;
    let bench = Bench::new(&ehr, ClientAuth::None);
    let grant = CodeGrant {
        code: &"c/o+de=".into(),
        redirect_uri: "https://gateway.example.org/oauth/callback/r",
        verifier: Some(&"verifier".into()),
    };
    let outcome = bench.client().exchange_code(grant).await;
    let TokenOutcome::Answer(token) = outcome else { panic!("{outcome:?}") };
    assert_eq!(token.access_token, "at");
    let call = &ehr.calls()[0];
    assert_eq!((call.method.clone(), call.path.as_str()), (Method::POST, "/token"));
    assert_eq!(call.header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(call.header("accept"), Some("application/json"));
    assert_eq!(
        call.form(),
        [
            ("grant_type", "authorization_code"),
            ("code", "c/o+de="),
            ("redirect_uri", "https://gateway.example.org/oauth/callback/r"),
            ("code_verifier", "verifier"),
            ("client_id", "client"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
    );
}

#[tokio::test]
async fn a_refresh_repeats_the_scope_only_where_it_is_told_to() {
    let ehr = Ehr::start(answer).await;
    let bench = Bench::new(&ehr, ClientAuth::None);
    bench.refresh().await;
    bench.client().refresh(&"refresh-1".into(), Some("openid offline_access")).await;
    bench.client().client_credentials("system/*.rs").await;
    let forms: Vec<_> = ehr.calls().iter().map(|call| (call.field("grant_type"), call.field("scope"))).collect();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        forms,
        [
            (some("refresh_token"), None),
            (some("refresh_token"), some("openid offline_access")),
            (some("client_credentials"), some("system/*.rs")),
        ]
    );
}

#[tokio::test]
async fn secrets_go_where_the_registration_says() {
    let ehr = Ehr::start(answer).await;
    let mut basic = Bench::new(&ehr, ClientAuth::SecretBasic { secret: "s:e/c r%".into() });
    basic.client_id = "cli:ent";
    basic.refresh().await;
    Bench::new(&ehr, ClientAuth::SecretPost { secret: secret() }).refresh().await;
    let [by_header, by_form] = ehr.calls().try_into().unwrap();
    let sent = by_header.header("authorization").unwrap().strip_prefix("Basic ").unwrap();
    // RFC 6749 §2.3.1: form-encoded before they are joined.
    assert_eq!(STANDARD.decode(sent).unwrap(), b"cli%3Aent:s%3Ae%2Fc+r%25");
    assert_eq!((by_header.field("client_id"), by_header.field("client_secret")), (None, None));
    assert_eq!(by_form.header("authorization"), None);
    assert_eq!(by_form.field("client_id").as_deref(), Some("client"));
    assert_eq!(by_form.field("client_secret").as_deref(), Some("s3cret"));
}

fn signing(bench: &mut Bench, alg: AssertionAlg, pem: String) -> JwkSet {
    let set = Arc::new(set(alg, [(pem, KeyState::Sign)]));
    bench.auth = ClientAuth::PrivateKeyJwt { keys: set.id.clone() };
    bench.keys = SigningSets::read(&BTreeMap::from([(set.id.clone(), set.clone())])).unwrap();
    serde_json::from_value(bench.keys.get(&set.id).unwrap().published().clone()).unwrap()
}

#[tokio::test]
async fn assertions_verify_with_the_published_keys_and_are_new_for_each_attempt() {
    let ehr = Ehr::start(answer).await;
    for (alg, pem, by) in
        [(AssertionAlg::RS384, RSA.clone(), Algorithm::RS384), (AssertionAlg::ES384, ec_pkcs8(), Algorithm::ES384)]
    {
        let mut bench = Bench::new(&ehr, ClientAuth::None);
        let published = signing(&mut bench, alg, pem);
        let before = ehr.calls().len();
        bench.refresh().await;
        bench.refresh().await;
        let mut ids = Vec::new();
        for call in &ehr.calls()[before..] {
            assert_eq!(call.field("client_assertion_type").as_deref(), Some(ASSERTION_TYPE));
            assert_eq!(call.field("client_id"), None);
            let assertion = call.field("client_assertion").unwrap();
            let head = jsonwebtoken::decode_header(&assertion).unwrap();
            assert_eq!((head.typ.as_deref(), head.alg), (Some("JWT"), by));
            let key = DecodingKey::from_jwk(published.find(&head.kid.unwrap()).unwrap()).unwrap();
            let mut validation = Validation::new(by);
            validation.set_audience(&[ehr.url("/token")]);
            validation.set_required_spec_claims(&["aud", "exp", "iss", "sub"]);
            validation.validate_exp = false;
            let claims = jsonwebtoken::decode::<Map<String, Value>>(&assertion, &key, &validation).unwrap().claims;
            assert_eq!((&claims["iss"], &claims["sub"]), (&json!("client"), &json!("client")));
            let (iat, exp) = (claims["iat"].as_i64().unwrap(), claims["exp"].as_i64().unwrap());
            let now = bench.clock.now().seconds();
            assert!(iat < now && exp > now + 60 && exp - iat <= 240, "{iat} {now} {exp}");
            ids.push(claims["jti"].as_str().unwrap().to_owned());
        }
        assert_eq!(ids.len(), 2);
        assert_ne!(ids[0], ids[1]);
    }
}

/// What an EHR refuses whose time is not ours says nothing of the refresh token, if our time was in what it judged.
#[tokio::test]
async fn a_refusal_of_an_assertion_of_another_time_is_untimely() {
    let table = [(0, false), (-200, false), (200, false), (-300, true), (300, true), (3600, true), (-3600, true)];
    for (off, untimely) in table {
        let theirs = std::time::UNIX_EPOCH + Duration::from_secs((NOW.seconds() + off).try_into().unwrap());
        let date = httpdate::fmt_http_date(theirs);
        let ehr = Ehr::start(move |_| Reply::with(400, &[("date", &date)], r#"{"error":"invalid_grant"}"#)).await;
        let mut bench = Bench::new(&ehr, ClientAuth::None);
        for asserts in [false, true] {
            if asserts {
                signing(&mut bench, AssertionAlg::RS384, RSA.clone());
            }
            let outcome = bench.refresh().await;
            let TokenOutcome::Refused(refusal) = outcome else { panic!("{outcome:?}") };
            assert_eq!(refusal.untimely, untimely && asserts, "{off}");
        }
    }
}

#[tokio::test]
async fn a_key_set_that_is_not_there_means_not_sent() {
    let ehr = Ehr::start(answer).await;
    let bench = Bench::new(&ehr, ClientAuth::PrivateKeyJwt { keys: "gone".parse().unwrap() });
    let outcome = bench.refresh().await;
    assert!(matches!(outcome, TokenOutcome::NotSent(NotSentReason::Auth(_))), "{outcome:?}");
    assert_eq!(ehr.connections(), 0);
}

#[tokio::test]
async fn refusals_are_told_with_their_code_and_wait() {
    let ehr = Ehr::start(|call| match call.field("refresh_token").unwrap().as_str() {
        "dead" => Reply::json(400, &json!({ "error": "invalid_grant", "error_description": null })),
        "busy" => Reply::with(429, &[("retry-after", "17")], ""),
        "broken" => Reply::with(500, &[], "<html>"),
        "broken-off" => Reply::with(503, &[("content-length", "0")], ""),
        _ => Reply::json(200, &json!({ "error": "invalid_client" })),
    })
    .await;
    let bench = Bench::new(&ehr, ClientAuth::None);
    for (token, status, error, wait) in [
        ("dead", 400, Some("invalid_grant"), None),
        ("busy", 429, None, Some(17)),
        ("broken", 500, None, None),
        ("broken-off", 503, None, None),
        ("error-with-200", 200, Some("invalid_client"), None),
    ] {
        let outcome = bench.client().refresh(&token.into(), None).await;
        let TokenOutcome::Refused(refusal) = outcome else { panic!("{token}: {outcome:?}") };
        assert_eq!((refusal.error.status, refusal.error.error.as_deref()), (status, error), "{token}");
        assert_eq!(refusal.retry_after, wait.map(Duration::from_secs), "{token}");
    }
}

#[tokio::test]
async fn nothing_listens_means_not_sent() {
    let ehr = Ehr::start(answer).await;
    let mut bench = Bench::new(&ehr, ClientAuth::None);
    bench.endpoints.token.set_port(Some(closed_port().await)).unwrap();
    let outcome = bench.refresh().await;
    assert!(matches!(outcome, TokenOutcome::NotSent(NotSentReason::Network(NotSent::Connect(_)))), "{outcome:?}");
}

#[tokio::test]
async fn whatever_fails_after_it_left_is_unknown_and_never_repeated() {
    let ehr = Ehr::start(|call| match call.field("refresh_token").unwrap().as_str() {
        "cut" => Reply::Cut,
        "cut-body" => Reply::CutBody("{\"access_token\":"),
        "html" => Reply::with(200, &[("content-type", "text/html")], "<html>blocked</html>"),
        "no-token" => Reply::json(200, &json!({ "token_type": "bearer" })),
        _ => Reply::Chunks(1000, Bytes::from_static(&[b' '; 1000])),
    })
    .await;
    let bench = Bench::new(&ehr, ClientAuth::None);
    for (calls, token) in ["cut", "cut-body", "html", "no-token", "endless"].into_iter().enumerate() {
        let outcome = bench.client().refresh(&token.into(), None).await;
        let TokenOutcome::Unknown(reason) = outcome else { panic!("{token}: {outcome:?}") };
        assert!(!reason.contains("access_token"), "no body in a reason: {reason}");
        assert_eq!(ehr.calls().len(), calls + 1, "{token}");
    }
}

#[tokio::test]
async fn silence_is_unknown_once_the_request_has_left() {
    let ehr = Ehr::start(|call| match call.field("refresh_token").unwrap().as_str() {
        "refresh-1" => answer(call),
        "silent" => Reply::Silence,
        _ => Reply::Stall("{"),
    })
    .await;
    let bench = Bench::new(&ehr, ClientAuth::None);
    for token in ["silent", "stalled"] {
        bench.refresh().await;
        tokio::time::pause();
        let begun = tokio::time::Instant::now();
        let outcome = bench.client().refresh(&token.into(), None).await;
        assert!(matches!(outcome, TokenOutcome::Unknown(_)), "{token}: {outcome:?}");
        let took = begun.elapsed();
        assert!(took >= Duration::from_secs(60) && took < Duration::from_secs(61), "{token}: {took:?}");
        tokio::time::resume();
    }
}

#[tokio::test]
async fn token_requests_use_no_socket_that_the_server_may_be_closing() {
    let ehr = Ehr::start(answer).await;
    let bench = Bench::new(&ehr, ClientAuth::None);
    bench.refresh().await;
    bench.refresh().await;
    assert_eq!(ehr.connections(), 1, "a young socket is used again");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(5)).await;
    tokio::time::resume();
    bench.refresh().await;
    assert_eq!(ehr.connections(), 2);
}

#[tokio::test]
async fn a_redirect_is_not_followed_with_a_token() {
    let other = Ehr::start(answer).await;
    let to = other.url("/token").to_string();
    let ehr = Ehr::start(move |_| Reply::with(307, &[("location", &to)], "")).await;
    let outcome = Bench::new(&ehr, ClientAuth::SecretPost { secret: secret() }).refresh().await;
    let TokenOutcome::Refused(refusal) = outcome else { panic!("{outcome:?}") };
    assert_eq!(refusal.error.status, 307);
    assert_eq!(other.connections(), 0);
}

#[tokio::test]
async fn revocations_name_the_kind_of_token() {
    let ehr = Ehr::start(|call| match call.field("token").unwrap().as_str() {
        "refused" => Reply::with(503, &[("retry-after", "5")], ""),
        "cut" => Reply::Cut,
        _ => Reply::status(200),
    })
    .await;
    let mut bench = Bench::new(&ehr, ClientAuth::None);
    let outcome = bench.client().revoke(&"rt".into(), TokenHint::Refresh).await;
    assert!(matches!(outcome, RevokeOutcome::Revoked), "{outcome:?}");
    let call = &ehr.calls()[0];
    assert_eq!((call.path.as_str(), call.field("token_type_hint").as_deref()), ("/revoke", Some("refresh_token")));
    let outcome = bench.client().revoke(&"refused".into(), TokenHint::Access).await;
    assert!(
        matches!(outcome, RevokeOutcome::Refused { status, retry_after: Some(wait) } if status == 503 && wait.as_secs() == 5)
    );
    let outcome = bench.client().revoke(&"cut".into(), TokenHint::Access).await;
    assert!(matches!(outcome, RevokeOutcome::Unknown(_)), "{outcome:?}");
    bench.endpoints.revoke = None;
    let outcome = bench.client().revoke(&"rt".into(), TokenHint::Access).await;
    assert!(matches!(outcome, RevokeOutcome::NotOffered), "{outcome:?}");
}

#[tokio::test]
async fn no_outcome_shows_what_was_sent() {
    let ehr = Ehr::start(|_| Reply::Cut).await;
    let bench = Bench::new(&ehr, ClientAuth::SecretPost { secret: secret() });
    let shown = format!("{:?}", bench.refresh().await);
    assert!(!shown.contains("refresh-1") && !shown.contains("s3cret"), "{shown}");
}
