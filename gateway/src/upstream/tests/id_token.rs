use std::sync::{Arc, Mutex};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use mantel_adapters::{
    profile::Profile,
    smart::{
        claims::ClaimFault,
        discovery::{Endpoints, parse_smart_configuration, resolve},
    },
};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::{keys::RSA, support::*};
use crate::{
    clock::Timestamp,
    upstream::{
        Jwks, JwksError, SiteLink,
        id_token::{Expected, IdTokenError, verify},
    },
};

const NOW: Timestamp = Timestamp(1_767_225_600_000);

fn rsa() -> EncodingKey {
    EncodingKey::from_rsa_pem(RSA.as_bytes()).unwrap()
}

fn jwk(key: &EncodingKey, alg: Algorithm, kid: &str) -> Value {
    let mut jwk = Jwk::from_encoding_key(key, alg).unwrap();
    jwk.common.key_id = Some(kid.into());
    serde_json::to_value(jwk).unwrap()
}

/// An EHR that identifies users.
struct Bench {
    ehr: Ehr,
    keys: Arc<Mutex<Vec<Value>>>,
    link: SiteLink,
    endpoints: Endpoints,
    jwks: Jwks,
}

impl Bench {
    /// `without_jwks`: discovery names no `jwks_uri`.
    async fn new(without_jwks: bool, change: impl FnOnce(&mut Profile, &Ehr)) -> Self {
        let keys = Arc::new(Mutex::new(vec![jwk(&rsa(), Algorithm::RS256, "k1")]));
        let served = keys.clone();
        let ehr = Ehr::start(move |call| {
            let origin = format!("https://{}", call.header("host").unwrap());
            match call.path.as_str() {
                "/keys" => Reply::json(200, &json!({ "keys": *served.lock().unwrap() })),
                "/oauth2/.well-known/openid-configuration" => Reply::json(
                    200,
                    &json!({ "issuer": format!("{origin}/oauth2"), "jwks_uri": format!("{origin}/keys") }),
                ),
                "/liar/.well-known/openid-configuration" => Reply::json(
                    200,
                    &json!({ "issuer": format!("{origin}/oauth2"), "jwks_uri": format!("{origin}/keys") }),
                ),
                "/astray/.well-known/openid-configuration" => Reply::json(
                    200,
                    &json!({ "issuer": format!("{origin}/astray"), "jwks_uri": "https://elsewhere.example.org/keys" }),
                ),
                _ => Reply::status(404),
            }
        })
        .await;
        let site = ehr.site_with(|profile| change(profile, &ehr));
        let link = link(site);
        let mut document = json!({
            "issuer": ehr.url("/fhir/r4"),
            "authorization_endpoint": ehr.url("/oauth2/authorize"),
            "token_endpoint": ehr.url("/oauth2/token"),
        });
        if !without_jwks {
            document["jwks_uri"] = ehr.url("/keys").as_str().into();
        }
        let (smart, _) = parse_smart_configuration(document.to_string().as_bytes(), &link.site.fhir_base).unwrap();
        let endpoints = resolve(&link.site.fhir_base, &link.site.profile, Some(&smart), None).unwrap();
        Self { ehr, keys, link, endpoints, jwks: Jwks::new(Handle::current()) }
    }

    async fn standard() -> Self {
        Self::new(false, |_, _| {}).await
    }

    fn claims(&self) -> Value {
        let now = NOW.seconds();
        json!({
            "iss": self.ehr.url("/fhir/r4"), "aud": "client", "sub": "u1", "nonce": "n", "iat": now, "exp": now + 300,
            "fhirUser": "Practitioner/1",
        })
    }

    fn token(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut claims = self.claims();
        change(&mut claims);
        sign("k1", &claims)
    }

    async fn verify(&self, token: &str) -> Result<String, IdTokenError> {
        let expected = Expected { client_id: "client", nonce: Some("n"), now: NOW };
        verify(&self.jwks, &self.link, &self.endpoints, token, expected).await.map(|claims| claims.sub)
    }
}

fn sign(kid: &str, claims: &Value) -> String {
    let header = Header { kid: Some(kid.into()), ..Header::new(Algorithm::RS256) };
    jsonwebtoken::encode(&header, claims, &rsa()).unwrap()
}

#[tokio::test]
async fn a_good_token_gives_its_claims_and_the_keys_are_kept() {
    let bench = Bench::standard().await;
    for _ in 0..3 {
        assert_eq!(bench.verify(&bench.token(|_| {})).await.unwrap(), "u1");
    }
    assert_eq!(bench.ehr.paths(), ["/keys"]);
}

#[tokio::test]
async fn each_claim_that_is_wrong_is_found() {
    let bench = Bench::standard().await;
    let now = NOW.seconds();
    let remove = |claims: &mut Value, name: &str| drop(claims.as_object_mut().unwrap().remove(name));
    type Change<'a> = Box<dyn FnOnce(&mut Value) + 'a>;
    let table: Vec<(Change<'_>, IdTokenError)> = vec![
        (Box::new(|c| c["iss"] = "https://evil.example.org".into()), ClaimFault::Issuer.into()),
        (Box::new(|c| c["iss"] = format!("{}/", c["iss"].as_str().unwrap()).into()), ClaimFault::Issuer.into()),
        (Box::new(|c| c["aud"] = "other".into()), ClaimFault::Audience.into()),
        (Box::new(|c| c["aud"] = json!(["other", "another"])), ClaimFault::Audience.into()),
        (Box::new(|c| c["azp"] = "other".into()), ClaimFault::AuthorizedParty.into()),
        (Box::new(|c| c["exp"] = (now - 61).into()), ClaimFault::Expired.into()),
        (Box::new(|c| c["iat"] = (now + 61).into()), ClaimFault::IssuedInFuture.into()),
        (Box::new(|c| c["nonce"] = "another".into()), ClaimFault::Nonce.into()),
        (Box::new(|c| remove(c, "nonce")), ClaimFault::Nonce.into()),
        (Box::new(|c| remove(c, "exp")), IdTokenError::Claims),
        (Box::new(|c| remove(c, "iss")), IdTokenError::Claims),
        (Box::new(|c| remove(c, "aud")), IdTokenError::Claims),
        (Box::new(|c| remove(c, "sub")), IdTokenError::Claims),
    ];
    for (index, (change, expected)) in table.into_iter().enumerate() {
        assert_eq!(bench.verify(&bench.token(change)).await.unwrap_err(), expected, "case {index}");
    }
    let within_skew = bench.token(|c| (c["exp"], c["iat"]) = ((now - 59).into(), (now + 59).into()));
    assert!(bench.verify(&within_skew).await.is_ok());
    let several = bench.token(|c| (c["aud"], c["azp"]) = (json!(["client", "other"]), "client".into()));
    assert!(bench.verify(&several).await.is_ok());
}

#[tokio::test]
async fn forged_and_broken_tokens_are_refused() {
    let bench = Bench::standard().await;
    let good = bench.token(|_| {});
    let (head, rest) = good.split_once('.').unwrap();
    let (_, signature) = rest.split_once('.').unwrap();
    let other_claims = bench.token(|claims| claims["sub"] = "u2".into());
    let other_body = other_claims.split('.').nth(1).unwrap();
    let with_alg = |alg: &str| {
        use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
        let head = URL_SAFE_NO_PAD.encode(json!({ "alg": alg, "kid": "k1" }).to_string());
        format!("{head}.{rest}")
    };
    let mut header = Header { kid: Some("k1".into()), ..Header::new(Algorithm::RS256) };
    header.crit = Some(vec!["exp".into()]);
    let critical = jsonwebtoken::encode(&header, &bench.claims(), &rsa()).unwrap();
    let hmac = jsonwebtoken::encode(
        &Header { kid: Some("k1".into()), ..Header::new(Algorithm::HS256) },
        &bench.claims(),
        &EncodingKey::from_secret(RSA.as_bytes()),
    )
    .unwrap();
    let table = [
        (format!("{head}.{other_body}.{signature}"), IdTokenError::Signature),
        (with_alg("none"), IdTokenError::Algorithm),
        (with_alg("RS512"), IdTokenError::Algorithm),
        (with_alg("ES256"), IdTokenError::NoKey),
        (hmac, IdTokenError::Algorithm),
        (critical, IdTokenError::Critical),
        (format!("{head}.{rest}.more"), IdTokenError::Malformed),
        (head.to_owned(), IdTokenError::Malformed),
        (String::new(), IdTokenError::Malformed),
        (format!("{}{good}", "a".repeat(70_000)), IdTokenError::Malformed),
    ];
    for (token, expected) in table {
        let shown: String = token.chars().take(60).collect();
        assert_eq!(bench.verify(&token).await.unwrap_err(), expected, "{shown}");
    }
}

#[tokio::test]
async fn an_elliptic_curve_key_serves_and_one_for_encryption_does_not() {
    let bench = Bench::standard().await;
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let key = EncodingKey::from_ec_der(pair.to_pkcs8v1().unwrap().as_ref());
    let token = |kid: &str| {
        let header = Header { kid: Some(kid.into()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, &bench.claims(), &key).unwrap()
    };
    let mut for_encryption = jwk(&key, Algorithm::ES256, "enc");
    for_encryption["use"] = "enc".into();
    let unknown = json!({ "kty": "OKP2", "crv": "X", "x": "AA", "kid": "odd" });
    bench.keys.lock().unwrap().extend([jwk(&key, Algorithm::ES256, "sig"), for_encryption, unknown]);
    assert!(bench.verify(&token("sig")).await.is_ok());
    assert_eq!(bench.verify(&token("enc")).await.unwrap_err(), IdTokenError::NoKey);
}

#[tokio::test]
async fn a_new_key_is_fetched_once_and_invented_ones_cause_no_storm() {
    let bench = Bench::standard().await;
    assert!(bench.verify(&bench.token(|_| {})).await.is_ok());
    bench.keys.lock().unwrap().push(jwk(&rsa(), Algorithm::RS256, "k2"));
    let new = sign("k2", &bench.claims());
    assert_eq!(bench.verify(&new).await.unwrap_err(), IdTokenError::NoKey, "within a minute of a fetch none follows");
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_secs(60)).await;
    tokio::time::resume();
    assert!(bench.verify(&new).await.is_ok());
    for invented in ["x", "y", "z"] {
        assert_eq!(bench.verify(&sign(invented, &bench.claims())).await.unwrap_err(), IdTokenError::NoKey);
    }
    assert_eq!(bench.ehr.paths(), ["/keys", "/keys"]);
}

#[tokio::test]
async fn a_jku_is_not_followed() {
    let bench = Bench::standard().await;
    let evil = Ehr::start(ok).await;
    let header =
        Header { kid: Some("k1".into()), jku: Some(evil.url("/keys").to_string()), ..Header::new(Algorithm::RS256) };
    let token = jsonwebtoken::encode(&header, &bench.claims(), &rsa()).unwrap();
    assert!(bench.verify(&token).await.is_ok(), "the pinned keys verify it");
    assert_eq!(evil.connections(), 0);
}

#[tokio::test]
async fn keys_come_from_the_pinned_issuer_where_discovery_names_none() {
    let bench = Bench::new(true, |profile, _| profile.id_token.issuer = "{authorize_base}".into()).await;
    let issuer = bench.ehr.url("/oauth2");
    assert!(bench.verify(&bench.token(|claims| claims["iss"] = issuer.as_str().into())).await.is_ok());
    assert_eq!(bench.ehr.paths(), ["/oauth2/.well-known/openid-configuration", "/keys"]);
}

#[tokio::test]
async fn an_openid_configuration_is_believed_only_for_its_own_issuer_and_hosts() {
    for (path, expected) in [("/liar", "another issuer"), ("/astray", "elsewhere.example.org")] {
        let bench = Bench::new(true, |profile, ehr| profile.id_token.issuer = ehr.url(path).to_string()).await;
        let error = bench.verify(&bench.token(|_| {})).await.unwrap_err();
        assert!(matches!(error, IdTokenError::Keys(_)) && error.to_string().contains(expected), "{path}: {error}");
        assert!(!bench.ehr.paths().contains(&"/keys".to_owned()));
    }
}

#[tokio::test]
async fn a_pattern_for_issuers_takes_path_segments_only() {
    let bench = Bench::new(false, |profile, ehr| {
        profile.id_token.issuer = format!("{}/tenants/*/oidc/", ehr.origin());
        profile.id_token.jwks = ehr.url("/keys").to_string();
    })
    .await;
    let origin = bench.ehr.origin();
    for (iss, fits) in [
        (format!("{origin}/tenants/ec2458f2/oidc/"), true),
        (format!("{origin}/tenants//oidc/"), false),
        (format!("{origin}/tenants/../oidc/"), false),
        (format!("{origin}.evil.org/tenants/a/oidc/"), false),
    ] {
        let verified = bench.verify(&bench.token(|claims| claims["iss"] = iss.as_str().into())).await;
        assert_eq!(verified.is_ok(), fits, "{iss}: {verified:?}");
    }
}

#[tokio::test]
async fn keys_without_a_pinned_place_are_not_looked_for() {
    let bench = Bench::new(true, |profile, _| profile.id_token.issuer = "https://ehr.example.org/t/*".into()).await;
    let error = bench.verify(&bench.token(|_| {})).await.unwrap_err();
    assert_eq!(error, IdTokenError::Keys(JwksError::NoPlace));
    assert_eq!(bench.ehr.connections(), 0);
}
