//! `vendors.md` part B, athenaOne 2–7.

use http::StatusCode;
use mantel_tests::ehr::{
    auth::client::{Client, ClientAuth},
    contract::{Rotation, Vendor},
};

use crate::kit::*;

#[tokio::test]
async fn standalone_launch_and_discovery() {
    let ehr = ehr(Vendor::Athena, false, |_| {}).await;
    let app = App::new("secret", &ehr.fhir_base).await;
    let answer = app.launch(&patient(&ehr).1).await;
    assert_eq!(answer.json()["ah_practice"], "a-1.Practice-195900");
    assert_eq!(answer.json()["expires_in"], 3600);
    let configuration = get(&format!("{}/.well-known/smart-configuration", ehr.fhir_base), &[]).await.json();
    assert!(configuration.get("scopes_supported").is_none());
    assert_eq!(configuration["token_endpoint_auth_methods"], configuration["token_endpoint_auth_methods_supported"]);
    assert!(configuration["grant_types_supported"].as_array().unwrap().iter().all(|grant| grant != "refresh_token"));
    // The issuer is another host, and still answers.
    let issuer = configuration["issuer"].as_str().unwrap();
    assert!(!issuer.starts_with(&ehr.origin), "{issuer}");
    let claims = verified(&answer.text("id_token"), configuration["jwks_uri"].as_str().unwrap()).await;
    assert_eq!(claims["iss"], issuer);
    assert_eq!(get(&format!("{issuer}/.well-known/openid-configuration"), &[]).await.ok().json()["issuer"], issuer);
    // Two oauth-uris in /metadata, the first under a wrong URL.
    let metadata = get(&format!("{}/metadata", ehr.fhir_base), &[]).await.ok().json();
    let extensions = metadata["rest"][0]["security"]["extension"].as_array().unwrap().clone();
    assert_eq!(extensions.len(), 2);
    assert!(extensions[0]["url"].as_str().unwrap().starts_with("http://DSTU2/"));
    assert_eq!(answer.header("access-control-allow-origin"), None, "its token endpoint has no CORS");
}

#[tokio::test]
async fn openid_needs_a_nonce_and_every_scope_a_tick() {
    let ehr = ehr(Vendor::Athena, false, |options| {
        let scopes = ["openid", "launch/patient", "patient/Patient.read"].map(String::from).to_vec();
        options.clients.push(Client { scopes, ..client("ticked", ClientAuth::None) });
    })
    .await;
    let app = App::new("ticked", &ehr.fhir_base).await.asking("openid launch/patient patient/Patient.read");
    assert_eq!(app.open(&[("nonce", "")]).await.1.redirect_param("error").as_deref(), Some("invalid_request"));
    app.launch(&patient(&ehr).1).await;
    for more in
        ["fhirUser", "patient/Patient.cud", "patient/Goal.read", "patient/*.read", "system/Patient.read", "nonsense"]
    {
        let (_, page) = app.open(&[("scope", &format!("{} {more}", app.scopes))]).await;
        assert_eq!(page.redirect_param("error").as_deref(), Some("access_denied"), "{more}");
        assert_eq!(
            page.redirect_param("error_description").as_deref(),
            Some("Policy evaluation failed for this request, please check the policy configurations.")
        );
    }
    // A registration is 2- or 3-legged, never both.
    let both = Client {
        scopes: vec!["system/Patient.read".into(), "user/Patient.read".into()],
        ..client("both", ClientAuth::None)
    };
    assert!(ehr.auth.register(both).is_err());
}

#[tokio::test]
async fn refresh_repeats_the_scopes_and_its_end_is_fixed() {
    for rotation in [Rotation::Fixed, Rotation::Rolling, Rotation::Sliding] {
        let ehr = ehr(Vendor::Athena, false, |options| options.switches.rotation = Some(rotation)).await;
        let app = App::new("secret", &ehr.fhir_base).await;
        let answer = app.launch(&patient(&ehr).1).await;
        let (refresh, scope) = (answer.text("refresh_token"), answer.text("scope"));
        assert_eq!(app.refresh(&refresh).await.error(), (400, "invalid_scope".into()));
        let send = async |token: &str, scope: &str| {
            app.token(&[("grant_type", "refresh_token"), ("refresh_token", token), ("scope", scope)]).await
        };
        assert_eq!(send(&refresh, "patient/Goal.read").await.error(), (400, "invalid_scope".into()));
        ehr.advance(50 * 24 * 3_600_000);
        let next = send(&refresh, &scope).await.ok();
        assert_eq!(next.scopes(), answer.scopes());
        let next = next.json()["refresh_token"].as_str().map_or(refresh.clone(), str::to_owned);
        assert_eq!(next == refresh, rotation == Rotation::Fixed);
        // Never extended, whatever the mode.
        ehr.advance(50 * 24 * 3_600_000);
        let dead = send(&next, &scope).await;
        assert_eq!(
            dead.json(),
            serde_json::json!({"error": "invalid_grant", "error_description": "The refresh token is invalid or expired."})
        );
        assert_eq!(dead.status, StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn no_refresh_token_without_offline_access() {
    let ehr = ehr(Vendor::Athena, false, |_| {}).await;
    let app = App::new("secret", &ehr.fhir_base).await.asking("openid launch/patient patient/Patient.read");
    assert!(app.launch(&patient(&ehr).1).await.json().get("refresh_token").is_none());
}

#[tokio::test]
async fn strict_has_no_smart_configuration_no_wildcards_v1_and_a_day() {
    let ehr = ehr(Vendor::Athena, true, |_| {}).await;
    assert_eq!(
        get(&format!("{}/.well-known/smart-configuration", ehr.fhir_base), &[]).await.status,
        StatusCode::NOT_FOUND
    );
    // By /metadata, then.
    let app = App::new("secret", &ehr.fhir_base).await.asking("launch/patient patient/Patient.read");
    for scope in ["launch/patient patient/*.read", "launch/patient patient/Patient.rs"] {
        assert_eq!(app.open(&[("scope", scope)]).await.1.redirect_param("error").as_deref(), Some("access_denied"));
    }
    // A refresh token that nobody asked for, and no scope is needed to use it.
    let refresh = app.launch(&patient(&ehr).1).await.text("refresh_token");
    ehr.advance(23 * 3_600_000);
    app.refresh(&refresh).await.ok();
    ehr.advance(2 * 3_600_000);
    assert_eq!(app.refresh(&refresh).await.error(), (400, "invalid_grant".into()));
}

#[tokio::test]
async fn the_201st_token_request_of_a_minute_is_one_too_many() {
    let ehr = ehr(Vendor::Athena, false, |_| {}).await;
    let app = App::new("public", &ehr.fhir_base).await;
    let url = app.at.token.clone();
    // From the start of a minute by the EHR's clock, so that it does not turn meanwhile.
    ehr.advance(60_000 - ehr.now() % 60_000);
    for _ in 0..200 {
        assert_eq!(post_form(&url, &[], &[("grant_type", "x")]).await.error(), (400, "unsupported_grant_type".into()));
    }
    let blocked = post_form(&url, &[], &[("grant_type", "x")]).await;
    assert_eq!(blocked.status, StatusCode::TOO_MANY_REQUESTS);
    let wait: i64 = blocked.header("retry-after").unwrap().parse().unwrap();
    ehr.advance(wait * 1000);
    assert_eq!(post_form(&url, &[], &[("grant_type", "x")]).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn revocation_and_introspection_take_the_client() {
    let ehr = ehr(Vendor::Athena, false, |_| {}).await;
    let app = App::new("secret", &ehr.fhir_base).await;
    let answer = app.launch(&patient(&ehr).1).await;
    let (refresh, header) = (answer.text("refresh_token"), app.basic_header(false));
    let auth = [("authorization", header.as_str())];
    let introspect = format!("{}/oauth2/v1/introspect", ehr.origin);
    assert_eq!(post_form(&introspect, &auth, &[("token", &refresh)]).await.ok().json()["active"], true);
    let bearer = format!("Bearer {}", answer.text("access_token"));
    assert_eq!(
        post_form(&introspect, &[("authorization", &bearer)], &[("token", &refresh)]).await.status,
        StatusCode::UNAUTHORIZED
    );
    post_form(&format!("{}/oauth2/v1/revoke", ehr.origin), &auth, &[("token", &refresh)]).await.ok();
    assert_eq!(post_form(&introspect, &auth, &[("token", &refresh)]).await.ok().json()["active"], false);
    // Its access tokens went along.
    assert_eq!(app.read("/Patient/1", &answer.text("access_token")).await.status, StatusCode::UNAUTHORIZED);
}
