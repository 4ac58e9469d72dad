//! smart-configuration, openid-configuration, and what `/metadata` says of security.

use bytes::Bytes;
use http::{StatusCode, header::CONTENT_TYPE};
use serde_json::{Value, json};

use crate::ehr::{
    auth::{
        AuthServer,
        client::Persona,
        places::{Base, Host, Profile},
    },
    contract::{FhirAnswer, Vendor},
    web::{Call, Reply, any_origin, json},
};

/// What Oracle and others list; enough types to see that scopes are listed one by one.
const LISTED: [&str; 12] = [
    "AllergyIntolerance",
    "CarePlan",
    "Condition",
    "DiagnosticReport",
    "DocumentReference",
    "Encounter",
    "Goal",
    "Immunization",
    "MedicationRequest",
    "Observation",
    "Patient",
    "Procedure",
];

impl AuthServer {
    /// None where the vendor has no such document.
    pub fn smart_configuration(&self, call: &Call, base: Base) -> Option<Reply> {
        let served = self.rules.smart_configuration;
        served.then(|| any_origin(json(StatusCode::OK, &self.smart_document(call, base))))
    }

    fn smart_document(&self, call: &Call, base: Base) -> Value {
        let places = &self.places;
        let host = base.host;
        let persona = persona_of(host);
        let profile = self.profile_told(call);
        let (authorize, token) = (places.authorize(host, profile, persona), places.token(host, profile));
        let (issuer, jwks) = (places.discovery_issuer(host), places.jwks(host));
        match self.rules.vendor {
            Vendor::Epic => json!({
                "authorization_endpoint": authorize,
                "token_endpoint": token,
                "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic", "private_key_jwt"],
                "scopes_supported": ["epic.scanning.dmsusername", "fhirUser", "launch", "openid", "profile"],
                "response_types_supported": ["code"],
                "capabilities": capabilities(&["context-ehr-patient", "context-ehr-encounter", "context-standalone-patient"]),
                "grant_types_supported": epic_grants(),
                "code_challenge_methods_supported": ["S256"],
                "issuer": issuer,
                "jwks_uri": jwks,
            }),
            Vendor::Oracle => {
                let mut scopes: Vec<String> =
                    ["fhirUser", "launch", "offline_access", "online_access", "openid"].map(String::from).to_vec();
                if host == Host::Patients {
                    scopes.push("launch/patient".into());
                }
                let contexts: &[&str] =
                    if host == Host::Patients { &["patient"] } else { &["patient", "user", "system"] };
                for (context, kind) in contexts.iter().flat_map(|c| LISTED.iter().map(move |kind| (c, kind))) {
                    if base.legacy {
                        scopes.push(format!("{context}/{}.read", kind.to_ascii_lowercase()));
                    } else {
                        scopes.push(format!("{context}/{kind}.read"));
                        scopes.push(format!("{context}/{kind}.rs"));
                    }
                }
                let mut contexts = vec!["context-ehr-patient", "permission-online"];
                contexts.push(match host {
                    Host::Main => "context-ehr-encounter",
                    Host::Patients => "context-standalone-patient",
                });
                json!({
                    "issuer": issuer,
                    "authorization_endpoint": authorize,
                    "token_endpoint": token,
                    "revocation_endpoint": places.revoke(host),
                    "token_endpoint_auth_methods_supported": ["client_secret_basic", "private_key_jwt"],
                    "token_endpoint_auth_signing_alg_values_supported": ["RS384", "ES384"],
                    "jwks_uri": jwks,
                    "grant_types_supported": ["authorization_code", "client_credentials"],
                    "scopes_supported": scopes,
                    "response_types_supported": ["code"],
                    "management_endpoint": places.manage(host, persona),
                    "introspection_endpoint": places.introspect(host),
                    "capabilities": capabilities(&contexts),
                    "code_challenge_methods_supported": ["S256"],
                })
            }
            Vendor::Athena => {
                let methods =
                    ["client_secret_basic", "client_secret_post", "client_secret_jwt", "private_key_jwt", "none"];
                json!({
                    "jwks_uri": jwks,
                    "code_challenge_methods_supported": ["S256"],
                    "revocation_endpoint": places.revoke(host),
                    "introspection_endpoint": places.introspect(host),
                    "authorization_endpoint": authorize,
                    "grant_types_supported": ["authorization_code", "client_credentials"],
                    "capabilities": capabilities(&["context-ehr-patient", "context-ehr-encounter", "context-standalone-patient", "health-cards"]),
                    "token_endpoint_auth_methods_supported": methods,
                    "response_types_supported": ["code", "token", "id_token", "code id_token", "code token", "id_token token", "code id_token token"],
                    "issuer": issuer,
                    "token_endpoint_auth_methods": methods,
                    "token_endpoint": token,
                })
            }
            Vendor::AthenaPractice | Vendor::Generic => json!({
                "issuer": issuer,
                "jwks_uri": jwks,
                "authorization_endpoint": authorize,
                "token_endpoint": token,
                "revocation_endpoint": places.revoke(host),
                "introspection_endpoint": places.introspect(host),
                "management_endpoint": places.manage(host, persona),
                "grant_types_supported": ["authorization_code", "client_credentials"],
                "code_challenge_methods_supported": ["S256"],
                "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "private_key_jwt"],
                "token_endpoint_auth_signing_alg_values_supported": ["RS384", "ES384"],
                "authorization_response_iss_parameter_supported": self.rules.vendor == Vendor::Generic,
                "response_types_supported": ["code"],
                "scopes_supported": ["openid", "fhirUser", "launch", "launch/patient", "launch/encounter", "offline_access",
                    "online_access", "patient/*.rs", "user/*.rs", "patient/*.read", "user/*.read"],
                "capabilities": capabilities(&["context-ehr-patient", "context-ehr-encounter", "context-standalone-patient", "permission-online"]),
            }),
        }
    }

    /// An overridden client hears of its own endpoints only if it says who it is.
    fn profile_told(&self, call: &Call) -> Profile {
        let known = call
            .header("Epic-Client-ID")
            .is_some_and(|id| self.state().clients.get(id).is_some_and(|client| client.overridden));
        if self.rules.vendor == Vendor::Epic && known { Profile::Override } else { Profile::Usual }
    }

    pub fn openid_configuration(&self, host: Host) -> Reply {
        let places = &self.places;
        let mut document = json!({
            "issuer": places.issuer(host),
            "jwks_uri": places.jwks(host),
            "authorization_endpoint": places.authorize(host, Profile::Usual, persona_of(host)),
            "token_endpoint": places.token(host, Profile::Usual),
            "id_token_signing_alg_values_supported": ["RS256"],
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "response_modes_supported": ["query"],
        });
        if self.rules.vendor == Vendor::Epic {
            document["grant_types_supported"] = epic_grants();
            document["token_endpoint_auth_methods_supported"] =
                json!(["client_secret_post", "client_secret_basic", "private_key_jwt"]);
        } else {
            document["end_session_endpoint"] = json!(format!("{}/sign-out", places.origin(host)));
        }
        any_origin(json(StatusCode::OK, &document))
    }

    pub fn key_set(&self) -> Reply {
        let keys = json!({"keys": [self.keys.id_token.public_jwk(), self.keys.access.public_jwk()]});
        any_origin(json(StatusCode::OK, &keys))
    }

    /// Adds `rest.security` to a CapabilityStatement of the FHIR half.
    pub fn with_security(&self, call: &Call, base: Base, mut answer: FhirAnswer) -> FhirAnswer {
        if answer.status() != StatusCode::OK {
            return answer;
        }
        let kind = answer.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let uris = self.oauth_uris(call, base);
        if kind.contains("json") {
            let Ok(mut statement) = serde_json::from_slice::<Value>(answer.body()) else { return answer };
            let security = self.security(&uris);
            for rest in statement.get_mut("rest").and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(rest) = rest.as_object_mut() {
                    rest.insert("security".into(), security.clone());
                }
            }
            *answer.body_mut() = Bytes::from(statement.to_string());
        } else if kind.contains("xml") {
            let mode = r#"<mode value="server"/>"#;
            let text = String::from_utf8_lossy(answer.body());
            *answer.body_mut() = text.replacen(mode, &format!("{mode}{}", xml_security(&uris)), 1).into();
        }
        answer.headers_mut().remove(http::header::CONTENT_LENGTH);
        answer
    }

    fn oauth_uris(&self, call: &Call, base: Base) -> Vec<(&'static str, String)> {
        let (places, host, persona) = (&self.places, base.host, persona_of(base.host));
        let profile = self.profile_told(call);
        let mut uris =
            vec![("authorize", places.authorize(host, profile, persona)), ("token", places.token(host, profile))];
        // Epic answers introspection, but announces it nowhere.
        if self.rules.vendor != Vendor::Epic {
            let others = [
                ("introspect", places.introspect(host)),
                ("revoke", places.revoke(host)),
                ("manage", places.manage(host, persona)),
            ];
            uris.extend(others.into_iter().filter_map(|(name, url)| url.map(|url| (name, url))));
        }
        uris
    }

    fn security(&self, uris: &[(&'static str, String)]) -> Value {
        let inner: Vec<Value> = uris.iter().map(|(url, value)| json!({"url": url, "valueUri": value})).collect();
        let right = json!({"url": OAUTH_URIS, "extension": inner});
        // athenaOne has two, the first under a wrong URL.
        let extensions = if self.rules.vendor == Vendor::Athena {
            json!([{"url": "http://DSTU2/fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris", "extension": inner}, right])
        } else {
            json!([right])
        };
        json!({"extension": extensions, "cors": true, "service": [{"coding": [{"system": SECURITY_SERVICE, "code": "SMART-on-FHIR"}]}]})
    }
}

const OAUTH_URIS: &str = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris";
const SECURITY_SERVICE: &str = "http://terminology.hl7.org/CodeSystem/restful-security-service";

const fn persona_of(host: Host) -> Persona {
    match host {
        Host::Main => Persona::Provider,
        Host::Patients => Persona::Patient,
    }
}

fn capabilities(contexts: &[&str]) -> Vec<String> {
    let common = [
        "launch-ehr",
        "launch-standalone",
        "client-public",
        "client-confidential-symmetric",
        "client-confidential-asymmetric",
        "context-banner",
        "context-style",
        "permission-offline",
        "permission-patient",
        "permission-user",
        "permission-v1",
        "permission-v2",
        "sso-openid-connect",
        "authorize-post",
    ];
    common.iter().chain(contexts).map(|text| (*text).to_owned()).collect()
}

fn epic_grants() -> Value {
    json!([
        "authorization_code",
        "refresh_token",
        "client_credentials",
        "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "urn:ietf:params:oauth:grant-type:token-exchange"
    ])
}

fn xml_security(uris: &[(&'static str, String)]) -> String {
    let inner: String = uris
        .iter()
        .map(|(url, value)| format!(r#"<extension url="{url}"><valueUri value="{value}"/></extension>"#))
        .collect();
    format!(
        r#"<security><extension url="{OAUTH_URIS}">{inner}</extension><cors value="true"/><service><coding><system value="{SECURITY_SERVICE}"/><code value="SMART-on-FHIR"/></coding></service></security>"#
    )
}
