//! What we publish of ourselves: smart-configuration (SMART 2.2, "Conformance"), openid-configuration
//! (OpenID Connect Discovery), the keys of our id_tokens and of our client assertions, styles.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    config::{AppAuth, Base, Config, Use},
    session::signer::JWKS_MAX_AGE,
};

/// The default style document (`smart_style_url`): new content gets a new URL.
const STYLE: &str = r##"{"color_background":"#f5f6f8","color_error":"#8a3b00","color_highlight":"#0b5fa5","color_modal_backdrop":"","color_success":"#1d6b34","color_text":"#1c2733","dim_border_radius":"6px","dim_font_size":"16px","dim_spacing_size":"16px","font_family_body":"system-ui, sans-serif","font_family_heading":"system-ui, sans-serif"}"##;

/// `{base}/.well-known/smart-configuration`.
pub fn smart_configuration(config: &Config, base: &Base) -> Value {
    let urls = config.urls();
    let mut document = json!({
        "issuer": urls.issuer(),
        "jwks_uri": urls.jwks(),
        "authorization_endpoint": urls.authorize(base),
        "token_endpoint": urls.token(base),
        "grant_types_supported": ["authorization_code"],
        "response_types_supported": ["code"],
        "code_challenge_methods_supported": ["S256"],
        "scopes_supported": scopes(),
        "capabilities": capabilities(config, base),
        "authorization_response_iss_parameter_supported": true,
    });
    let mut methods = vec!["client_secret_basic"];
    if config.apps.values().any(|app| matches!(app.auth, AppAuth::SecretPost { .. })) {
        methods.push("client_secret_post");
    }
    document["token_endpoint_auth_methods_supported"] = json!(methods);
    document
}

/// Part of what works here; the rest depends on the registration at each EHR (SMART 2.2 allows a part).
fn scopes() -> Vec<&'static str> {
    vec![
        "openid",
        "fhirUser",
        "launch",
        "launch/patient",
        "launch/encounter",
        "offline_access",
        "patient/*.rs",
        "patient/*.read",
        "user/*.rs",
        "user/*.read",
    ]
}

fn capabilities(config: &Config, base: &Base) -> Vec<&'static str> {
    let mut capabilities = vec![
        "authorize-post",
        "client-public",
        "client-confidential-symmetric",
        "sso-openid-connect",
        "context-banner",
        "context-style",
        "context-standalone-patient",
        "permission-offline",
        "permission-patient",
        "permission-user",
        "permission-v1",
        "permission-v2",
    ];
    // An EHR's `iss` names one site: the uniform base knows no EHR launch.
    let usable = |usage| match base {
        Base::Uniform => usage == Use::Standalone,
        Base::Site(site) => config.sites.get(site).is_some_and(|site| {
            let mut registrations = site.registrations.iter().filter_map(|id| config.registrations.get(id));
            registrations.any(|registration| registration.uses.contains(&usage))
        }),
    };
    if usable(Use::Standalone) {
        capabilities.push("launch-standalone");
    }
    if usable(Use::EhrLaunch) {
        capabilities.extend(["launch-ehr", "context-ehr-patient", "context-ehr-encounter"]);
    }
    capabilities
}

/// `{issuer}/.well-known/openid-configuration`.
pub fn openid_configuration(config: &Config) -> Value {
    let urls = config.urls();
    json!({
        "issuer": urls.issuer(),
        "authorization_endpoint": urls.authorize(&Base::Uniform),
        "token_endpoint": urls.token(&Base::Uniform),
        "jwks_uri": urls.jwks(),
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "scopes_supported": ["openid", "fhirUser"],
        "claims_supported": ["iss", "sub", "aud", "exp", "iat", "nonce", "fhirUser"],
        "code_challenge_methods_supported": ["S256"],
    })
}

/// A public JSON document that may be kept for a while.
pub fn public(body: &impl serde::Serialize, seconds: u64) -> Response<Bytes> {
    match serde_json::to_vec(body) {
        Ok(body) => cached(Bytes::from(body), "application/json", seconds),
        Err(error) => {
            tracing::error!(%error, "a document could not be written");
            Response::builder().status(StatusCode::INTERNAL_SERVER_ERROR).body(Bytes::new()).unwrap_or_default()
        }
    }
}

/// A key set: kept no longer than keys are published before they sign.
pub fn key_set(body: &impl serde::Serialize) -> Response<Bytes> {
    public(body, JWKS_MAX_AGE.as_secs())
}

pub fn style_document() -> Response<Bytes> {
    cached(Bytes::from_static(STYLE.as_bytes()), "application/json", 86_400)
}

pub fn style_sheet() -> Response<Bytes> {
    cached(Bytes::from_static(super::pages::STYLE_SHEET.as_bytes()), "text/css; charset=utf-8", 3600)
}

fn cached(body: Bytes, media_type: &'static str, seconds: u64) -> Response<Bytes> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    if let Ok(value) = HeaderValue::from_str(&format!("public, max-age={seconds}")) {
        response.headers_mut().insert(header::CACHE_CONTROL, value);
    }
    response
}
