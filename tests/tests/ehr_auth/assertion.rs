//! private_key_jwt, rule by rule.

use http::StatusCode;
use mantel_tests::ehr::{
    auth::client::{ClientAuth, ClientKeys},
    contract::Vendor,
    jwt::{SigningKey, random},
    server::{Options, Running, start},
};
use serde_json::{Value, json};

use crate::kit::*;

const TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

async fn backend(app: &App, assertion: &str) -> Answer {
    let pairs = [
        ("grant_type", "client_credentials"),
        ("scope", "system/Patient.read"),
        ("client_assertion_type", TYPE),
        ("client_assertion", assertion),
    ];
    post_form(&app.at.token, &[], &pairs).await
}

async fn refused(ehr: &Running, app: &App, assertion: &str, why: &str) {
    let answer = backend(app, assertion).await;
    assert_eq!(answer.text("error"), "invalid_client");
    let given = last_refusal(ehr);
    assert!(given.contains(why), "refused because {given:?}, expected {why:?}");
}

#[tokio::test]
async fn every_rule_is_checked() {
    for vendor in [Vendor::Epic, Vendor::Oracle, Vendor::Athena, Vendor::Generic] {
        let ehr = ehr(vendor, true, |_| {}).await;
        let app = App::new("key", &ehr.fhir_base).await;
        let now = jiff::Timestamp::now().as_second();
        let with = |changes: Value| app.assertion(key(), &changes);
        backend(&app, &with(json!({}))).await.ok();
        backend(&app, &with(json!({"aud": [app.at.token]}))).await.ok();
        for (changes, why) in [
            (json!({"iss": "other"}), "iss and sub"),
            (json!({"aud": format!("{}/", app.at.token)}), "aud"),
            (json!({"aud": ehr.fhir_base}), "aud"),
            (json!({"aud": null}), "aud"),
            (json!({"exp": null}), "exp is missing"),
            (json!({"exp": "soon"}), "exp is no whole number"),
            (json!({"exp": now - 120}), "exp has passed"),
            (json!({"exp": now + 900}), "5 minutes ahead"),
            (json!({"iat": now + 200}), "iat is in the future"),
            (json!({"nbf": now + 200}), "nbf is in the future"),
            (json!({"jti": null}), "jti"),
            (json!({"jti": 5}), "jti"),
            (json!({"jti": "j".repeat(152)}), "151"),
        ] {
            refused(&ehr, &app, &with(changes), why).await;
        }
        // The same assertion again; a retry needs a new jti.
        let once = with(json!({}));
        backend(&app, &once).await.ok();
        refused(&ehr, &app, &once, "jti was used before").await;
        let claims = json!({"iss": "key", "sub": "key", "aud": app.at.token, "jti": random::<9>(), "exp": now + 100});
        for (header, why) in [
            (json!({"typ": "JWS"}), "typ"),
            (json!({"crit": ["b64"]}), "crit"),
            (json!({"jku": "https://app.test/keys"}), "jku"),
            (json!({"kid": 7}), "kid"),
            (json!({"kid": "two"}), "no RSA key"),
            (json!({"alg": "none"}), "alg"),
            (json!({"alg": "HS256"}), "alg"),
            (json!({"alg": "ES384"}), ""),
        ] {
            refused(&ehr, &app, &key().sign(&claims, &header).unwrap(), why).await;
        }
        let stranger = SigningKey::generate("RS384").unwrap().with_kid("one");
        refused(&ehr, &app, &stranger.sign(&claims, &Value::Null).unwrap(), "signature does not match").await;
        let no_type = [
            ("grant_type", "client_credentials"),
            ("client_assertion", &*with(json!({}))),
            ("client_assertion_type", "x"),
        ];
        assert_eq!(post_form(&app.at.token, &[], &no_type).await.text("error"), "invalid_client");
    }
}

#[tokio::test]
async fn epic_gives_no_leeway_and_takes_uploaded_rsa_keys_only() {
    let elliptic = SigningKey::generate("ES384").unwrap();
    let ehr = ehr(Vendor::Epic, false, |options| {
        options.clients.push(client("ec", ClientAuth::PrivateKeyJwt { keys: keys_of(&elliptic) }));
    })
    .await;
    let now = jiff::Timestamp::now().as_second();
    let app = App::new("key", &ehr.fhir_base).await;
    refused(&ehr, &app, &app.assertion(key(), &json!({"iat": now - 200})), "after iat").await;
    refused(&ehr, &app, &app.assertion(key(), &json!({"iat": now + 30})), "iat is in the future").await;
    let app = App::new("ec", &ehr.fhir_base).await;
    refused(&ehr, &app, &app.assertion(&elliptic, &json!({})), "uploaded EC keys").await;
}

#[tokio::test]
async fn key_sets_are_fetched_and_kept() {
    // Another EHR's key set does for an app's: EC keys by URL.
    let publisher = start(Options::new(Vendor::Generic)).await.unwrap();
    let url = publisher.auth.places.jwks(publisher.auth.places.host(None));
    for (vendor, refetches) in [(Vendor::Epic, false), (Vendor::Generic, true)] {
        let keys = ClientKeys::JwksUrl(url.clone());
        let ehr = ehr(vendor, false, |options| {
            options.clients.push(client("url", ClientAuth::PrivateKeyJwt { keys }));
        })
        .await;
        let app = App::new("url", &ehr.fhir_base).await;
        let before = publisher.counters.get("jwks");
        for _ in 0..3 {
            refused(&ehr, &app, &app.assertion(key(), &json!({})), "no RSA key with this kid").await;
        }
        let fetched = publisher.counters.get("jwks") - before;
        assert_eq!(fetched, if refetches { 3 } else { 1 }, "{vendor:?}");
        ehr.auth.forget_key_sets();
        refused(&ehr, &app, &app.assertion(key(), &json!({})), "no RSA key").await;
        assert_eq!(publisher.counters.get("jwks") - before, fetched + 1);
        // A blocked fetch is invalid_client, and the EHR does not say why.
        ehr.auth
            .register(client(
                "url",
                ClientAuth::PrivateKeyJwt { keys: ClientKeys::JwksUrl("http://127.0.0.1:1/".into()) },
            ))
            .unwrap();
        refused(&ehr, &app, &app.assertion(key(), &json!({})), "could not be read").await;
    }
}

#[tokio::test]
async fn secrets_are_no_way_into_backend_services() {
    let ehr = ehr(Vendor::Generic, false, |_| {}).await;
    let app = App::new("secret", &ehr.fhir_base).await;
    let answer = app.token(&[("grant_type", "client_credentials"), ("scope", "system/Patient.read")]).await;
    assert_eq!(answer.error(), (401, "invalid_client".into()));
    let app = App::new("key", &ehr.fhir_base).await;
    for scope in ["", "patient/Patient.read", "openid offline_access"] {
        let answer = app.token(&[("grant_type", "client_credentials"), ("scope", scope)]).await;
        assert_eq!(answer.error(), (400, "invalid_scope".into()), "{scope}");
    }
    let answer = app.token(&[("grant_type", "client_credentials"), ("scope", "system/Patient.rs")]).await;
    assert_eq!(answer.status, StatusCode::OK);
}
