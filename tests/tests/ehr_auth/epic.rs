//! `vendors.md` part B, Epic 1–6.

use http::{Method, StatusCode};
use mantel_tests::ehr::{
    auth::client::{Client, ClientAuth},
    contract::{Rotation, Vendor},
    jwt::Unverified,
};
use serde_json::Value;

use crate::kit::*;

const SENTENCE: &str = "Something went wrong trying to authorize the client. Please try logging in again.";

#[tokio::test]
async fn standalone_launch_of_a_patient() {
    for strict in [false, true] {
        let ehr = ehr(Vendor::Epic, strict, |_| {}).await;
        let (id, username) = patient(&ehr);
        let app = App::new("secret", &ehr.fhir_base).await;
        let answer = app.launch(&username).await;
        assert_eq!(answer.header("content-type"), Some("application/json; charset=utf-8"));
        assert_eq!(answer.header("cache-control"), Some("no-cache, no-store,no-store"));
        assert_eq!(answer.header("pragma"), Some("no-cache"));
        let body = answer.json();
        assert_eq!(body["patient"], id.as_str());
        assert_eq!(body["expires_in"], if strict { 300 } else { 3600 });
        assert!(body["__epic.dstu2.patient"].is_string() && body["refresh_token"].is_string());
        assert_eq!(body["state"], "af0ifjsldkj");
        // Order and case changed, one twice, a blank at the end.
        let scope = answer.text("scope");
        assert!(scope.ends_with(' '), "{scope:?}");
        assert!(scope.contains("patient/Observation.Read") && scope.contains("patient/Observation.read"), "{scope}");
        let claims =
            verified(&answer.text("id_token"), ehr.auth.places.jwks(ehr.auth.places.host(None)).as_str()).await;
        assert_eq!(claims["iss"], format!("{}/interconnect-fhir-oauth/oauth2", ehr.origin));
        assert_eq!(claims["fhirUser"], format!("{}/Patient/{id}", ehr.fhir_base));
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 300);
        assert_eq!((claims["nonce"].as_str(), claims["aud"].as_str()), (Some("n-0S6_WzA2Mj"), Some("secret")));
        let read = app.read(&format!("/Patient/{id}"), &answer.text("access_token")).await;
        assert_eq!(read.status, StatusCode::OK);
        assert_eq!(app.read("/Patient/1", "no-such-token").await.status, StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test]
async fn ehr_launch_with_all_extras() {
    let ehr = ehr(Vendor::Epic, false, |_| {}).await;
    let app =
        App::new("key", &ehr.fhir_base).await.asking("launch openid fhirUser user/Patient.read patient/Patient.read");
    let launch = ehr.launch(&order("key", &ehr)).unwrap();
    assert_eq!(launch.iss, ehr.fhir_base);
    let back = app.launched(&launch).await;
    let answer = app.redeem(&back.redirect_param("code").unwrap()).await.ok();
    let body = answer.json();
    assert_eq!(body["need_patient_banner"], "false", "a string");
    assert_eq!(body["encounter"], "enc-1");
    for extra in ["location", "appointment", "loginDepartment", "patient"] {
        assert!(body[extra].is_string(), "{extra}");
    }
    assert!(body.get("refresh_token").is_none(), "offline_access was not asked");
    assert_eq!(get(body["smart_style_url"].as_str().unwrap(), &[]).await.ok().json()["dim_font_size"], "13px");
    // Once.
    let again = app.launched(&launch).await;
    assert_eq!(again.redirect_param("error").as_deref(), Some("invalid_launch_token"));
}

#[tokio::test]
async fn discovery_knows_overridden_clients_by_their_header() {
    let ehr = ehr(Vendor::Epic, false, |options| {
        options.clients.push(Client { overridden: true, ..client("other", ClientAuth::None) });
    })
    .await;
    let url = format!("{}/.well-known/smart-configuration", ehr.fhir_base);
    let plain = get(&url, &[]).await.ok();
    let told = get(&url, &[("epic-client-id", "other")]).await.ok();
    assert_ne!(plain.text("token_endpoint"), told.text("token_endpoint"));
    assert_eq!(get(&url, &[("epic-client-id", "public")]).await.ok().json(), plain.json());
    // At the endpoints of others it is nobody.
    let mut app = App::new("other", &ehr.fhir_base).await;
    let (_, page) = app.open(&[]).await;
    assert!(page.text().contains(SENTENCE));
    app.at = Endpoints { authorize: told.text("authorization_endpoint"), token: told.text("token_endpoint") };
    app.launch(&patient(&ehr).1).await;
    // And without Accept, /metadata is XML.
    let metadata = format!("{}/metadata", ehr.fhir_base);
    let xml = get(&metadata, &[]).await.ok();
    assert!(xml.header("content-type").unwrap().contains("xml"));
    let text = String::from_utf8(xml.body.to_vec()).unwrap();
    assert!(text.contains(&format!(r#"<valueUri value="{}"/>"#, plain.text("authorization_endpoint"))), "{text}");
    let json = get(&metadata, &[("accept", "application/fhir+json")]).await.ok().json();
    assert_eq!(json["rest"][0]["security"]["service"][0]["coding"][0]["code"], "SMART-on-FHIR");
}

#[tokio::test]
async fn faulty_requests_get_the_sentence_and_no_redirect() {
    let ehr = ehr(Vendor::Epic, true, |_| {}).await;
    let app = App::new("secret", &ehr.fhir_base).await;
    let slash = format!("{}/", ehr.fhir_base);
    let faults: [&[(&str, &str)]; 12] = [
        &[("client_id", "nobody")],
        &[("redirect_uri", "http://app.test/Callback")],
        &[("redirect_uri", "")],
        &[("aud", "")],
        &[("aud", &slash)],
        &[("response_type", "token")],
        &[("state", "")],
        // PKCE is demanded when strict, and S256 always.
        &[("code_challenge", ""), ("code_challenge_method", "")],
        &[("code_challenge_method", "plain")],
        &[("code_challenge", "short")],
        // launch and its scope go together.
        &[("launch", "abc")],
        &[("scope", "launch openid")],
    ];
    for fault in faults {
        let (_, page) = app.open(fault).await;
        assert_eq!(page.status, StatusCode::OK, "{fault:?}");
        assert!(page.text().contains(SENTENCE), "{fault:?}: {}", page.text());
        assert_eq!(page.header("x-frame-options"), Some("sameorigin"));
    }
    // A parameter that is there twice.
    let twice = format!("{}&state=other", app.url(&[]));
    assert!(String::from_utf8_lossy(&get(&twice, &[]).await.body).contains(SENTENCE));
    // POST is for EHR launches; and only as a form.
    let pairs = app.request(&[]);
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let posted = post_form(&app.at.authorize, &[], &pairs).await;
    assert!(String::from_utf8_lossy(&posted.body).contains(SENTENCE));
    // Long URLs break.
    let (_, page) = app.open(&[("state", &"s".repeat(2000))]).await;
    assert_eq!(page.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn without_strict_pkce_is_optional_but_what_is_sent_is_checked() {
    let ehr = ehr(Vendor::Epic, false, |_| {}).await;
    let app = App::new("secret", &ehr.fhir_base).await;
    const NONE: [(&str, &str); 2] = [("code_challenge", ""), ("code_challenge_method", "")];
    let code = |changes: &'static [(&'static str, &'static str)]| {
        let (app, username) = (&app, patient(&ehr).1);
        async move {
            let (mut visitor, page) = app.open(changes).await;
            let consent = visitor.sign_in(&page, &username).await.unwrap();
            visitor.press(&consent, "approve", &[]).await.unwrap().redirect_param("code").unwrap()
        }
    };
    let pairs = |code: &str| {
        [
            ("grant_type", "authorization_code".to_owned()),
            ("code", code.to_owned()),
            ("redirect_uri", CALLBACK.to_owned()),
        ]
    };
    let send = |pairs: Vec<(&'static str, String)>| {
        let app = &app;
        async move {
            let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
            app.token(&pairs).await
        }
    };
    send(pairs(&code(&NONE).await).to_vec()).await.ok();
    // A verifier that nobody challenged, none where one was, a wrong one.
    let mut with_verifier = pairs(&code(&NONE).await).to_vec();
    with_verifier.push(("code_verifier", app.verifier.clone()));
    assert_eq!(send(with_verifier).await.error(), (400, "invalid_grant".into()));
    assert_eq!(send(pairs(&code(&[]).await).to_vec()).await.error(), (400, "invalid_grant".into()));
    let mut wrong = pairs(&code(&[]).await).to_vec();
    wrong.push(("code_verifier", "w".repeat(43)));
    assert_eq!(send(wrong).await.error(), (400, "invalid_grant".into()));
}

#[tokio::test]
async fn token_errors_are_400_with_a_null_description() {
    let ehr = ehr(Vendor::Epic, true, |_| {}).await;
    let username = patient(&ehr).1;
    let app = App::new("secret", &ehr.fhir_base).await;
    let is = |answer: &Answer, error: &str| {
        assert_eq!(answer.error(), (400, error.to_owned()), "{}", last_refusal(&ehr));
        assert_eq!(answer.json()["error_description"], Value::Null);
        assert!(answer.json().as_object().unwrap().contains_key("error_description"));
    };
    // invalid_request: JSON, GET, query string, a parameter twice, two authentications.
    let header = app.basic_header(true);
    let json =
        call(Method::POST, &app.at.token, &[("content-type", "application/json"), ("authorization", &header)], "{}")
            .await;
    is(&json, "invalid_request");
    is(&get(&app.at.token, &[]).await, "invalid_request");
    let query = format!("{}?grant_type=refresh_token", app.at.token);
    is(&post_form(&query, &[("authorization", &header)], &[("grant_type", "refresh_token")]).await, "invalid_request");
    is(&app.token(&[("grant_type", "refresh_token"), ("grant_type", "refresh_token")]).await, "invalid_request");
    is(&app.token(&[("grant_type", "refresh_token"), ("client_secret", "x")]).await, "invalid_request");
    is(&app.token(&[("grant_type", "password")]).await, "unsupported_grant_type");
    // Basic must be form-encoded, and the client_id is not in the body too.
    let code = app.code(&username).await;
    let raw = app.basic_header(false);
    is(&post_form(&app.at.token, &[("authorization", &raw)], &app.redemption(&code)).await, "invalid_client");
    let mut both = app.redemption(&code);
    both.push(("client_id", "secret"));
    is(&app.token(&both).await, "invalid_request");
    // The code still works, once; a second use ends the grant.
    let first = app.redeem(&code).await.ok();
    is(&app.redeem(&code).await, "invalid_grant");
    assert_eq!(app.read("/Patient/1", &first.text("access_token")).await.status, StatusCode::UNAUTHORIZED);
    is(&app.refresh(&first.text("refresh_token")).await, "invalid_grant");
    // Another redirect_uri, another app's code.
    let code = app.code(&username).await;
    let mut elsewhere = app.redemption(&code);
    elsewhere.retain(|(name, _)| *name != "redirect_uri");
    is(&app.token(&elsewhere).await, "invalid_grant");
    let code = app.code(&username).await;
    let mut public = App::new("public", &ehr.fhir_base).await;
    public.verifier.clone_from(&app.verifier);
    is(&public.redeem(&code).await, "invalid_grant");
}

#[tokio::test]
async fn backend_apps_need_a_user() {
    let ehr = ehr(Vendor::Epic, false, |options| {
        options.clients.retain(|client| client.client_id != "key");
        let auth = ClientAuth::PrivateKeyJwt { keys: keys_of(key()) };
        options.clients.push(Client { user_mapped: false, ..client("key", auth) });
    })
    .await;
    let app = App::new("key", &ehr.fhir_base).await;
    let pairs = [("grant_type", "client_credentials"), ("scope", "system/Patient.read")];
    assert_eq!(app.token(&pairs).await.error(), (400, "unauthorized_client".into()));
    let auth = ClientAuth::PrivateKeyJwt { keys: keys_of(key()) };
    ehr.auth.register(client("key", auth)).unwrap();
    let answer = app.token(&pairs).await.ok();
    assert!(answer.json().get("refresh_token").is_none());
    let (_, facts) = ehr.auth.facts(&answer.text("access_token"), ehr.now()).unwrap();
    assert_eq!(facts.scopes, ["system/Patient.read"]);
}

#[tokio::test]
async fn tokens_are_opaque_and_jwts_by_turns() {
    let ehr = ehr(Vendor::Epic, false, |_| {}).await;
    let app = App::new("secret", &ehr.fhir_base).await;
    let first = app.launch(&patient(&ehr).1).await;
    let mut jwts = 0;
    for _ in 0..6 {
        let token = app.refresh(&first.text("refresh_token")).await.ok().text("access_token");
        if Unverified::parse(&token).is_ok() {
            assert!(token.len() > 1800, "{}", token.len());
            jwts += 1;
        }
    }
    assert!((1..6).contains(&jwts), "{jwts} of 6");
}

#[tokio::test]
async fn scopes_are_mixed_with_the_app_record() {
    let ehr = ehr(Vendor::Epic, false, |options| {
        options.switches.odd_scopes = Some(true);
        options.switches.hide_offline_access = Some(true);
        let scopes = ["patient/Patient.rs", "patient/Observation.rs", "patient/Goal.read"].map(String::from).to_vec();
        options
            .clients
            .push(Client { scopes, ..client("ticked", ClientAuth::ClientSecretPost { secret: "x".into() }) });
    })
    .await;
    let app = App::new("ticked", &ehr.fhir_base)
        .await
        .asking("openid offline_access launch/patient patient/Patient.read patient/Condition.read");
    let code = app.code(&patient(&ehr).1).await;
    let mut pairs = app.redemption(&code);
    pairs.extend([("client_id", "ticked"), ("client_secret", "x")]);
    let answer = post_form(&app.at.token, &[], &pairs).await.ok();
    let scopes = answer.scopes();
    assert!(scopes.contains(&"patient/Patient.read".to_owned()), "{scopes:?}");
    assert!(!scopes.iter().any(|scope| scope.contains("Condition")), "not ticked: {scopes:?}");
    assert!(scopes.iter().any(|s| s.contains("Observation")), "one more than asked: {scopes:?}");
    assert!(!scopes.contains(&"offline_access".to_owned()));
}

#[tokio::test]
async fn a_v1_record_answers_v1_and_strict_knows_no_wildcards() {
    let v1 = ehr(Vendor::Epic, false, |options| options.switches.record_v1 = Some(true)).await;
    let app = App::new("secret", &v1.fhir_base).await.asking("launch/patient patient/Patient.rs patient/*.rs");
    let scopes = app.launch(&patient(&v1).1).await.scopes();
    assert!(
        scopes.contains(&"patient/Patient.read".to_owned()) && !scopes.iter().any(|s| s.ends_with(".rs")),
        "{scopes:?}"
    );
    assert!(scopes.contains(&"patient/*.read".to_owned()));
    let strict = ehr(Vendor::Epic, true, |_| {}).await;
    let app = App::new("secret", &strict.fhir_base).await.asking("launch/patient patient/Patient.rs patient/*.rs");
    let scopes = app.launch(&patient(&strict).1).await.scopes();
    assert!(!scopes.iter().any(|scope| scope.contains('*')), "{scopes:?}");
}

#[tokio::test]
async fn providers_outside_the_ehr_have_no_patient_unless_the_hospital_has_a_picker() {
    let none = ehr(Vendor::Epic, false, |_| {}).await;
    let app = App::new("secret", &none.fhir_base)
        .await
        .asking("openid launch/patient patient/Patient.read user/Patient.read");
    let answer = app.launch(&clinician(&none)).await;
    assert!(answer.json().get("patient").is_none());
    assert_eq!(answer.scopes(), ["openid", "user/Patient.Read", "user/Patient.read"]);
    let picker = ehr(Vendor::Epic, false, |options| options.switches.provider_picker = Some(true)).await;
    let app = App::new("secret", &picker.fhir_base).await;
    let (mut visitor, page) = app.open(&[]).await;
    let list = visitor.sign_in(&page, &clinician(&picker)).await.unwrap();
    let id = patient(&picker).0;
    let consent = visitor.press(&list, &format!("patient-{id}"), &[]).await.unwrap();
    let code = visitor.press(&consent, "approve", &[]).await.unwrap().redirect_param("code").unwrap();
    assert_eq!(app.redeem(&code).await.ok().text("patient"), id);
}

#[tokio::test]
async fn refresh_modes() {
    for (rotation, strict) in
        [(Rotation::Fixed, false), (Rotation::Rolling, false), (Rotation::Rolling, true), (Rotation::Sliding, true)]
    {
        let ehr = ehr(Vendor::Epic, strict, |options| options.switches.rotation = Some(rotation)).await;
        let app = App::new("secret", &ehr.fhir_base).await;
        let first = app.launch(&patient(&ehr).1).await.text("refresh_token");
        let answer = app.refresh(&first).await.ok();
        for context in ["patient", "id_token", "encounter"] {
            assert!(answer.json().get(context).is_none(), "{context} at a refresh");
        }
        if rotation == Rotation::Fixed {
            assert!(answer.json().get("refresh_token").is_none());
            app.refresh(&first).await.ok();
            assert_eq!((ehr.grants()[0].refreshes, ehr.grants()[0].reuses), (2, 0));
            continue;
        }
        let second = answer.text("refresh_token");
        assert_eq!(ehr.grants()[0].generation, 1);
        assert_eq!(app.refresh(&first).await.error(), (400, "invalid_grant".into()));
        assert_eq!(ehr.grants()[0].reuses, 1);
        let tokens: Vec<(u64, u64, bool)> =
            ehr.grants()[0].refresh_tokens.iter().map(|token| (token.generation, token.uses, token.spent)).collect();
        assert_eq!(tokens, [(0, 2, true), (1, 0, false)]);
        // Strict: the reuse ended the grant.
        assert_eq!(app.refresh(&second).await.status == StatusCode::OK, !strict);
    }
}

#[tokio::test]
async fn a_sliding_token_gets_a_new_end_and_a_rolling_one_keeps_the_first() {
    const DAYS_60: i64 = 60 * 24 * 3_600_000;
    for (rotation, lives) in [(Rotation::Rolling, false), (Rotation::Sliding, true)] {
        let ehr = ehr(Vendor::Epic, false, |options| options.switches.rotation = Some(rotation)).await;
        let app = App::new("secret", &ehr.fhir_base).await;
        let first = app.launch(&patient(&ehr).1).await.text("refresh_token");
        ehr.advance(DAYS_60);
        let second = app.refresh(&first).await.ok().text("refresh_token");
        ehr.advance(DAYS_60);
        assert_eq!(app.refresh(&second).await.status == StatusCode::OK, lives, "{rotation:?}");
    }
}

#[tokio::test]
async fn public_clients_never_get_a_refresh_token() {
    let ehr = ehr(Vendor::Epic, false, |_| {}).await;
    let app = App::new("public", &ehr.fhir_base).await;
    assert!(app.launch(&patient(&ehr).1).await.json().get("refresh_token").is_none());
}

#[tokio::test]
async fn introspection_takes_the_bearer_and_tells_a_refresh_tokens_end() {
    let ehr = ehr(Vendor::Epic, false, |_| {}).await;
    let app = App::new("secret", &ehr.fhir_base).await;
    let (id, username) = patient(&ehr);
    let answer = app.launch(&username).await;
    let url = format!("{}/interconnect-fhir-oauth/oauth2/introspect", ehr.origin);
    let bearer = format!("Bearer {}", answer.text("access_token"));
    let refresh = answer.text("refresh_token");
    let told = post_form(&url, &[("authorization", &bearer)], &[("token", &refresh)]).await.ok().json();
    assert_eq!((&told["active"], &told["patient"]), (&Value::Bool(true), &Value::String(id)));
    assert!(told["exp"].as_i64().unwrap() > jiff::Timestamp::now().as_second() + 80 * 86_400);
    let basic = app.basic_header(true);
    let by_basic = post_form(&url, &[("authorization", &basic)], &[("token", &refresh)]).await;
    assert_eq!(by_basic.status, StatusCode::UNAUTHORIZED);
    let other = post_form(&url, &[("authorization", &bearer)], &[("token", "unknown")]).await.ok();
    assert_eq!(other.json(), serde_json::json!({"active": false}));
    // Not announced.
    let announced = get(&format!("{}/.well-known/smart-configuration", ehr.fhir_base), &[]).await.json();
    assert!(announced.get("introspection_endpoint").is_none() && announced.get("revocation_endpoint").is_none());
}
