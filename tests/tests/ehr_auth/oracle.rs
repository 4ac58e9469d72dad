//! `vendors.md` part B, Oracle 1–7.

use http::StatusCode;
use mantel_tests::ehr::{
    auth::{
        client::{Client, ClientAuth, Persona},
        scope::Dialect,
    },
    contract::Vendor,
    jwt::Unverified,
    simulator::LaunchOrder,
};
use serde_json::Value;

use crate::kit::*;

fn error_uri(page: &mantel_tests::ehr::visitor::Page) -> String {
    page.redirect_param("error_uri").unwrap_or_else(|| panic!("no error_uri in {:?}", page.redirect()))
}

#[tokio::test]
async fn ehr_launch_of_a_provider() {
    for strict in [false, true] {
        let ehr = ehr(Vendor::Oracle, strict, |_| {}).await;
        let app = App::new("public", &ehr.fhir_base)
            .await
            .asking("launch openid fhirUser online_access user/Patient.read patient/Patient.read");
        let back = app.launched(&ehr.launch(&order("public", &ehr)).unwrap()).await;
        let answer = app.redeem(&back.redirect_param("code").unwrap()).await.ok();
        assert!(answer.header("cerner-correlation-id").is_some());
        let body = answer.json();
        assert_eq!(body["expires_in"], 570);
        assert_eq!((&body["need_patient_banner"], body["encounter"].as_str()), (&Value::Bool(false), Some("enc-1")));
        assert_eq!(body["tenant"], "ec2458f2-1e24-41c8-b71b-0e701af7583d");
        assert_eq!(body["active_ttl"], 1800);
        assert_eq!(
            answer.scopes(),
            ["fhirUser", "launch", "online_access", "openid", "patient/Patient.read", "user/Patient.read"]
        );
        assert_eq!(Unverified::parse(&answer.text("access_token")).unwrap().text_header("alg"), Some("ES256"));
        // The id_token's issuer is not discovery's, and ends in a slash; its configuration is below it.
        let configuration = get(&format!("{}/.well-known/smart-configuration", ehr.fhir_base), &[]).await.json();
        let jwt = answer.text("id_token");
        let claims = verified(&jwt, configuration["jwks_uri"].as_str().unwrap()).await;
        let issuer = claims["iss"].as_str().unwrap();
        assert!(issuer.ends_with('/') && configuration["issuer"] != issuer);
        let own = get(&format!("{}.well-known/openid-configuration", issuer), &[]).await.ok().json();
        assert_eq!(own["issuer"], issuer);
        assert!(
            configuration["grant_types_supported"].as_array().unwrap().iter().all(|grant| grant != "refresh_token")
        );
    }
}

#[tokio::test]
async fn patients_have_another_host_and_the_wrong_persona_is_sent_back() {
    let ehr = ehr(Vendor::Oracle, false, |options| {
        options.clients.push(Client { persona: Some(Persona::Patient), ..client("patients", ClientAuth::None) });
        options.clients.push(Client { persona: Some(Persona::Provider), ..client("providers", ClientAuth::None) });
    })
    .await;
    let base = ehr.patient_base().unwrap().to_owned();
    assert_ne!(base, ehr.fhir_base);
    let (id, username) = patient(&ehr);
    let app = App::new("patients", &base).await;
    assert!(app.at.authorize.contains("/personas/patient/"));
    let answer = app.launch(&username).await;
    assert_eq!(answer.text("patient"), id);
    let token = answer.text("access_token");
    assert_eq!(app.read(&format!("/Patient/{id}"), &token).await.status, StatusCode::OK);
    // On the other host it opens nothing.
    let providers = App::new("providers", &ehr.fhir_base).await;
    assert_eq!(providers.read(&format!("/Patient/{id}"), &token).await.status, StatusCode::UNAUTHORIZED);
    // A patient cannot sign in among the providers.
    let (mut visitor, page) = providers.open(&[]).await;
    assert_eq!(visitor.sign_in(&page, &username).await.unwrap().status, StatusCode::UNAUTHORIZED);
    for (client_id, app) in [("providers", &app), ("patients", &providers)] {
        let (_, page) = app.open(&[("client_id", client_id)]).await;
        assert_eq!(page.redirect_param("error").as_deref(), Some("unauthorized_client"));
        assert!(error_uri(&page).contains("client-persona-mismatch"));
        assert_eq!(page.redirect_param("state").as_deref(), Some("af0ifjsldkj"));
        assert_eq!(page.redirect_param("error_description"), None);
    }
    // The other host's base as aud.
    let (_, page) = app.open(&[("aud", &ehr.fhir_base)]).await;
    assert!(error_uri(&page).contains("client-persona-mismatch"));
}

#[tokio::test]
async fn v2_records_belong_to_smart_v2() {
    let ehr = ehr(Vendor::Oracle, false, |options| {
        options.clients.push(Client { dialect: Some(Dialect::V2), ..client("v2", ClientAuth::None) });
    })
    .await;
    let mut app = App::new("v2", &ehr.fhir_base).await.asking("openid user/Patient.rs user/Observation.read");
    assert!(error_uri(&app.open(&[]).await.1).contains("unknown-tenant"));
    let (_, v1_at_v2) = {
        let mut other = App::new("public", &ehr.fhir_base).await;
        other.at.authorize = other.at.authorize.replace("smart-v1", "smart-v2");
        other.open(&[]).await
    };
    assert!(error_uri(&v1_at_v2).contains("unknown-tenant"));
    app.at.authorize = app.at.authorize.replace("smart-v1", "smart-v2");
    app.at.token = app.at.token.replace("smart-v1", "smart-v2");
    // v1 scopes are dropped without a word.
    assert_eq!(app.launch(&clinician(&ehr)).await.scopes(), ["openid", "user/Patient.rs"]);
}

#[tokio::test]
async fn scopes_are_dropped_without_a_word() {
    let ehr = ehr(Vendor::Oracle, false, |_| {}).await;
    let app = App::new("public", &ehr.fhir_base).await.asking(
        "openid fhirUser launch/patient user/*.read user/Nothing.read user/patient.read user/Patient.rs \
         user/Observation.rs?category=laboratory user/Goal.read",
    );
    assert_eq!(app.launch(&clinician(&ehr)).await.scopes(), ["fhirUser", "openid", "user/Goal.read"]);
    // Nothing left: a token that opens nothing; for a backend app an error.
    let app = app.asking("openid user/*.read");
    assert_eq!(app.launch(&clinician(&ehr)).await.scopes(), ["openid"]);
    let backend = App::new("key", &ehr.fhir_base).await;
    let answer = backend.token(&[("grant_type", "client_credentials"), ("scope", "system/*.read")]).await;
    assert_eq!(answer.error(), (400, "invalid_scope".into()));
    assert!(answer.text("error_uri").contains("empty-scopes"));
    let many = "user/Patient.read ".repeat(101);
    let (_, page) = app.open(&[("scope", many.trim())]).await;
    assert!(error_uri(&page).contains("too-many-scopes"));
}

#[tokio::test]
async fn aud_is_needed_and_may_end_in_a_slash() {
    let ehr = ehr(Vendor::Oracle, true, |_| {}).await;
    let app = App::new("public", &ehr.fhir_base).await.asking("openid user/Patient.read");
    let slash = format!("{}/", ehr.fhir_base);
    assert_eq!(app.open(&[("aud", &slash)]).await.1.status, StatusCode::OK);
    for changes in [
        &[("aud", "")][..],
        &[("aud", "http://other/r4")],
        &[("state", "")],
        &[("code_challenge", ""), ("code_challenge_method", "")],
    ] {
        let (_, page) = app.open(changes).await;
        assert_eq!(page.redirect_param("error").as_deref(), Some("invalid_request"), "{changes:?}");
    }
    // Without strict, PKCE is not demanded; and redirect_uri may be left out, and is then absent at the token.
    let lenient = crate::kit::ehr(Vendor::Oracle, false, |_| {}).await;
    let app = App::new("public", &lenient.fhir_base).await.asking("openid user/Patient.read");
    let (mut visitor, page) = app.open(&[("redirect_uri", "")]).await;
    let consent = visitor.sign_in(&page, &clinician(&lenient)).await.unwrap();
    let back = visitor.press(&consent, "approve", &[]).await.unwrap();
    let code = back.redirect_param("code").unwrap();
    let mut pairs = app.redemption(&code);
    pairs.retain(|(name, _)| *name != "redirect_uri");
    app.token(&pairs).await.ok();
}

#[tokio::test]
async fn refresh_keeps_the_first_token_and_is_throttled() {
    let ehr = ehr(Vendor::Oracle, true, |_| {}).await;
    let app = App::new("secret", &ehr.fhir_base).await.asking("openid fhirUser offline_access user/Patient.read");
    let first = app.launch(&clinician(&ehr)).await.text("refresh_token");
    for _ in 0..2 {
        let answer = app.refresh(&first).await.ok();
        for absent in ["refresh_token", "patient", "id_token"] {
            assert!(answer.json().get(absent).is_none(), "{absent}");
        }
        let again = app.refresh(&first).await;
        assert_eq!(again.status, StatusCode::TOO_MANY_REQUESTS);
        let wait: i64 = again.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&wait));
        ehr.advance(wait * 1000);
    }
    // Idle for three months.
    ehr.advance(91 * 24 * 3_600_000);
    let dead = app.refresh(&first).await;
    assert_eq!(dead.error(), (400, "invalid_grant".into()));
    assert!(dead.json().get("error_description").is_none());
    assert!(dead.header("cerner-correlation-id").is_some());
}

#[tokio::test]
async fn online_access_ends_with_the_session() {
    let ehr = ehr(Vendor::Oracle, false, |_| {}).await;
    let app = App::new("public", &ehr.fhir_base).await.asking("openid online_access user/Patient.read");
    let username = clinician(&ehr);
    let refresh = app.launch(&username).await.text("refresh_token");
    // active_at keeps the session: 25 minutes twice, and nobody is idle for 30.
    for _ in 0..2 {
        ehr.advance(25 * 60_000);
        app.token(&[("grant_type", "refresh_token"), ("refresh_token", &refresh), ("active_at", "10")]).await.ok();
    }
    ehr.advance(25 * 60_000);
    assert_eq!(ehr.auth.end_sessions(Some(&username)), 1);
    let over = app.refresh(&refresh).await;
    assert_eq!(over.error(), (400, "invalid_grant".into()));
    assert!(over.text("error_uri").contains("online-access-session-ended"));
    // And by idleness.
    let refresh = app.launch(&username).await.text("refresh_token");
    ehr.advance(31 * 60_000);
    assert_eq!(app.refresh(&refresh).await.error(), (400, "invalid_grant".into()));
}

#[tokio::test]
async fn a_suspended_grant_is_healed_by_a_visit_to_the_error_uri() {
    let ehr = ehr(Vendor::Oracle, true, |_| {}).await;
    let app = App::new("secret", &ehr.fhir_base).await.asking("openid offline_access user/Patient.read");
    let refresh = app.launch(&clinician(&ehr)).await.text("refresh_token");
    assert_eq!(ehr.suspend_grants(None), 1);
    let refused = app.refresh(&refresh).await;
    assert_eq!(refused.error(), (400, "invalid_grant".into()));
    let uri = refused.text("error_uri");
    assert!(
        uri.starts_with(&format!(
            "{}/errors/urn%3Acerner%3Aerror%3Aauthorization-server%3Aoauth2%3Atoken%3A",
            ehr.origin
        )),
        "{uri}"
    );
    assert!(uri.contains("client=secret&tenant=ec2458f2-"));
    get(&uri, &[]).await.ok();
    app.refresh(&refresh).await.ok();
}

#[tokio::test]
async fn client_errors_are_401_and_named_in_the_error_uri() {
    let ehr = ehr(Vendor::Oracle, false, |_| {}).await;
    let app = App::new("secret", &ehr.fhir_base).await.asking("openid user/Patient.read");
    let bad =
        post_form(&app.at.token, &[("authorization", "Basic bm86bm8=")], &[("grant_type", "refresh_token")]).await;
    assert_eq!(bad.error(), (401, "invalid_client".into()));
    assert!(bad.text("error_uri").contains("invalid-authorization-header"));
    let code = app.code(&clinician(&ehr)).await;
    app.redeem(&code).await.ok();
    let twice = app.redeem(&code).await;
    assert!(twice.text("error_uri").contains("code-invalid-or-expired"));
    // The token endpoint of 2024, without the host.
    let old =
        format!("{}/tenants/ec2458f2-1e24-41c8-b71b-0e701af7583d/protocols/oauth2/profiles/smart-v1/token", ehr.origin);
    assert_eq!(post_form(&old, &[], &[("grant_type", "x")]).await.text("error"), "unsupported_grant_type");
    // Revocation and introspection.
    let answer = app.launch(&clinician(&ehr)).await;
    let header = app.basic_header(true);
    let auth = [("authorization", header.as_str())];
    let token = answer.text("access_token");
    let info = format!("{}/tokeninfo", ehr.origin);
    assert_eq!(post_form(&info, &auth, &[("token", &token)]).await.ok().json()["active"], true);
    let revoke = format!("{old}/revoke");
    post_form(&revoke, &auth, &[("token", &token)]).await.ok();
    assert_eq!(post_form(&info, &auth, &[("token", &token)]).await.ok().json()["active"], false);
}

#[tokio::test]
async fn strict_has_a_legacy_base_that_knows_lower_case_only() {
    let ehr = ehr(Vendor::Oracle, true, |_| {}).await;
    let base = ehr.fhir_base.replace("/r4/", "/legacy/r4/");
    let app = App::new("public", &base).await.asking("openid user/patient.read user/Patient.read user/observation.rs");
    let answer = app.launch(&clinician(&ehr)).await;
    assert_eq!(answer.scopes(), ["openid", "user/patient.read"]);
    let token = answer.text("access_token");
    app.read(&format!("/Patient/{}", patient(&ehr).0), &token).await.ok();
    let (_, facts) = ehr.auth.facts(&token, ehr.now()).unwrap();
    assert_eq!(facts.scopes, ["openid", "user/Patient.read"], "the FHIR half hears FHIR's own spelling");
    let scopes = get(&format!("{base}/.well-known/smart-configuration"), &[]).await.json()["scopes_supported"].clone();
    assert!(scopes.as_array().unwrap().iter().any(|scope| scope == "user/observation.read"));
    let launch = ehr.launch(&LaunchOrder { legacy: true, ..order("public", &ehr) }).unwrap();
    assert_eq!(launch.iss, base);
}

#[tokio::test]
async fn a_strict_patient_is_named_by_fhir_user_only() {
    let ehr = ehr(Vendor::Oracle, true, |_| {}).await;
    let base = ehr.patient_base().unwrap().to_owned();
    let (id, username) = patient(&ehr);
    let app = App::new("public", &base).await;
    let answer = app.launch(&username).await;
    assert!(answer.json().get("patient").is_none());
    let jwt = Unverified::parse(&answer.text("id_token")).unwrap();
    assert_eq!(jwt.text_claim("fhirUser"), Some(format!("{base}/Patient/{id}").as_str()));
    // Who cannot read that is told.
    let answer = app.asking("launch/patient patient/Patient.read").launch(&username).await;
    assert_eq!(answer.text("patient"), id);
}
