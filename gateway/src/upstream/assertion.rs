//! How we authenticate at a vendor's token endpoint (SMART "Client Authentication", RFC 6749 §2.3.1,
//! RFC 7523).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderValue;
use serde::Serialize;

use super::keys::{SigningFault, SigningSets};
use crate::{
    clock::Clock,
    config::{ClientAuth, PreviousRegistration, Registration},
    entropy::{self, Entropy},
    secret::Secret,
};

/// An assertion lives that long: vendors allow 5 minutes counted by their clock, Epic also from `iat`.
const LIFETIME: i64 = 180;
/// Vendors refuse an `iat` that lies in the future of their clock.
const BACKDATED: i64 = 30;
/// RFC 7523 §2.2.
pub const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// The form that is posted.
pub(super) type Form = form_urlencoded::Serializer<'static, String>;

/// Who we are at a vendor: the current registration, or the one that a grant still remembers.
#[derive(Clone, Copy)]
pub struct Client<'a> {
    pub client_id: &'a str,
    pub auth: &'a ClientAuth,
}

impl<'a> From<&'a Registration> for Client<'a> {
    fn from(registration: &'a Registration) -> Self {
        Self { client_id: &registration.client_id, auth: &registration.auth }
    }
}

impl<'a> From<&'a PreviousRegistration> for Client<'a> {
    fn from(registration: &'a PreviousRegistration) -> Self {
        Self { client_id: &registration.client_id, auth: &registration.auth }
    }
}

/// Why we cannot authenticate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthFault {
    #[error("the key set {0} of the registration is not configured")]
    UnknownKeys(String),
    #[error(transparent)]
    Signing(#[from] SigningFault),
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    iat: i64,
    exp: i64,
    jti: String,
}

/// What is needed to prove who we are.
#[derive(Clone, Copy)]
pub struct Prover<'a> {
    pub keys: &'a SigningSets,
    pub clock: &'a dyn Clock,
    pub entropy: &'a dyn Entropy,
}

impl Prover<'_> {
    /// Adds the client's authentication to a form (`audience`: of an assertion, the token endpoint as
    /// published); the `Authorization` header, if that is its way.
    /// Called for each attempt: a `jti` is used once.
    pub(super) fn authenticate(
        &self,
        client: Client<'_>,
        audience: &str,
        form: &mut Form,
    ) -> Result<Option<HeaderValue>, AuthFault> {
        match client.auth {
            ClientAuth::None => {
                form.append_pair("client_id", client.client_id);
                Ok(None)
            }
            ClientAuth::SecretPost { secret } => {
                form.append_pair("client_id", client.client_id).append_pair("client_secret", secret.expose());
                Ok(None)
            }
            ClientAuth::SecretBasic { secret } => Ok(Some(basic(client.client_id, secret))),
            ClientAuth::PrivateKeyJwt { keys } => {
                let set = self.keys.get(keys).ok_or_else(|| AuthFault::UnknownKeys(keys.to_string()))?;
                let now = self.clock.civil().seconds();
                let assertion = set.signer().sign(&Claims {
                    iss: client.client_id,
                    sub: client.client_id,
                    aud: audience,
                    iat: now - BACKDATED,
                    exp: now + LIFETIME,
                    jti: entropy::uuid4(self.entropy).to_string(),
                })?;
                form.append_pair("client_assertion_type", ASSERTION_TYPE).append_pair("client_assertion", &assertion);
                Ok(None)
            }
        }
    }
}

/// RFC 6749 §2.3.1: both parts are form-encoded first. Epic refuses a secret that is not.
fn basic(client_id: &str, secret: &Secret<String>) -> HeaderValue {
    let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let pair = Secret::new(format!("{}:{}", encode(client_id), encode(secret.expose())));
    let text = Secret::new(format!("Basic {}", STANDARD.encode(pair.expose())));
    // Base64 is always a valid header value.
    let mut value = HeaderValue::from_str(text.expose()).unwrap_or(HeaderValue::from_static("Basic"));
    value.set_sensitive(true);
    value
}
