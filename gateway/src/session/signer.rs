//! Our id_tokens (OpenID Connect Core, SMART "scopes and launch context"): RS256, one issuer for all
//! bases. The key is made at the first start, sealed in the store, shared by replicas, changed every
//! 90 days; an old one stays published for a day.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jsonwebtoken::{
    Algorithm, EncodingKey, Header,
    jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash},
};
use serde_json::{Map, Value};

use crate::{
    clock::{SharedClock, Timestamp},
    error::Error,
    secret::Secret,
    store::{SharedStore, SigningKey, StoreError},
};

/// A new key after so long.
const CHANGE_AFTER: Duration = Duration::from_secs(90 * 24 * 3600);
/// An old key is published for so long after its last use.
const PUBLISHED_AFTER: Duration = Duration::from_secs(24 * 3600);
/// A new key is published so long before it signs, so that no cache lacks it (JWKS `max-age` is below).
const PUBLISHED_BEFORE: Duration = Duration::from_secs(3600);
/// How long an app may keep the key set.
pub const JWKS_MAX_AGE: Duration = Duration::from_secs(900);
/// Lifetime of an id_token: it is read once, after the launch.
const ID_TOKEN_LIFETIME: Duration = Duration::from_secs(300);

struct Usable {
    created: Timestamp,
    key: EncodingKey,
    public: Jwk,
}

/// Signs id_tokens.
pub struct Signer {
    store: SharedStore,
    clock: SharedClock,
    keys: ArcSwap<Vec<Usable>>,
}

/// What an id_token says; the issuer and times are the signer's.
pub struct Identity<'a> {
    pub subject: &'a str,
    pub audience: &'a str,
    pub nonce: Option<&'a str>,
    /// Absolute, below the site's base.
    pub fhir_user: Option<&'a str>,
}

impl Signer {
    /// Loads the keys, and makes the first one.
    ///
    /// # Errors
    /// If the store does not serve.
    pub async fn start(store: SharedStore, clock: SharedClock) -> Result<Arc<Self>, StoreError> {
        let signer = Self { store, clock, keys: ArcSwap::from_pointee(Vec::new()) };
        signer.refresh().await?;
        Ok(Arc::new(signer))
    }

    /// Loads what other replicas made, and makes a new key when the newest is too old.
    ///
    /// # Errors
    /// If the store does not serve.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let mut stored = self.store.signing_keys().await?;
        let due = now.before(CHANGE_AFTER);
        if stored.iter().all(|key| key.created < due) {
            let fresh = tokio::task::spawn_blocking(move || make(now))
                .await
                .map_err(|_| StoreError::Unavailable("the maker of keys ended early".into()))?
                .map_err(StoreError::Corrupt)?;
            stored = self.store.add_signing_key(&fresh, due).await?;
        }
        let keys = stored.iter().map(usable).collect::<Result<Vec<_>, _>>().map_err(StoreError::Corrupt)?;
        self.keys.store(Arc::new(keys));
        Ok(())
    }

    /// The public keys, for `/oauth/jwks`.
    pub fn jwks(&self) -> JwkSet {
        let now = self.clock.now();
        let keys = self.keys.load();
        let signing = signing(&keys, now).map(|key| key.created);
        let kept =
            |key: &&Usable| Some(key.created) >= signing || key.created >= now.before(CHANGE_AFTER + PUBLISHED_AFTER);
        JwkSet { keys: keys.iter().filter(kept).map(|key| key.public.clone()).collect() }
    }

    /// An id_token.
    ///
    /// # Errors
    /// If there is no key, which [`Signer::start`] prevents, or it cannot sign.
    pub fn id_token(&self, issuer: &str, identity: &Identity<'_>) -> Result<String, Error> {
        let (now, told) = (self.clock.now(), self.clock.civil());
        let keys = self.keys.load();
        let key = signing(&keys, now).ok_or_else(|| Error::internal("no key signs id_tokens"))?;
        let mut header = Header::new(Algorithm::RS256);
        header.kid.clone_from(&key.public.common.key_id);
        let mut claims = Map::new();
        claims.insert("iss".into(), issuer.into());
        claims.insert("sub".into(), identity.subject.into());
        claims.insert("aud".into(), identity.audience.into());
        claims.insert("iat".into(), told.seconds().into());
        claims.insert("exp".into(), told.after(ID_TOKEN_LIFETIME).seconds().into());
        if let Some(nonce) = identity.nonce {
            claims.insert("nonce".into(), nonce.into());
        }
        if let Some(user) = identity.fhir_user {
            claims.insert("fhirUser".into(), user.into());
        }
        let claims = readable_by_atob(claims);
        jsonwebtoken::encode(&header, &claims, &key.key)
            .map_err(|error| Error::internal(format!("signing failed: {error}")))
    }
}

/// The newest key that has been published long enough, else the only one there is.
fn signing(keys: &[Usable], now: Timestamp) -> Option<&Usable> {
    keys.iter().find(|key| key.created <= now.before(PUBLISHED_BEFORE)).or_else(|| keys.last())
}

fn make(now: Timestamp) -> Result<SigningKey, String> {
    let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|_| "no RSA key could be made")?;
    let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| "the new RSA key cannot be written")?;
    let mut key = SigningKey { kid: String::new(), pkcs8: Secret::new(der.as_ref().to_vec()), created: now };
    key.kid = usable(&key)?.public.common.key_id.unwrap_or_default();
    Ok(key)
}

fn usable(stored: &SigningKey) -> Result<Usable, String> {
    let pem = Secret::new(format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        STANDARD.encode(stored.pkcs8.expose())
    ));
    let key = EncodingKey::from_rsa_pem(pem.expose().as_bytes()).map_err(|error| format!("signing key: {error}"))?;
    let mut public = Jwk::from_encoding_key(&key, Algorithm::RS256).map_err(|error| format!("signing key: {error}"))?;
    let kid = public.thumbprint(ThumbprintHash::SHA256).map_err(|error| format!("signing key: {error}"))?;
    public.common.key_id = Some(kid);
    public.common.public_key_use = Some(PublicKeyUse::Signature);
    Ok(Usable { created: stored.created, key, public })
}

/// `fhirclient` 2.6 reads the payload with a plain `atob` in browsers, which knows no `-` and `_`
/// (conformance A9). A spare claim is lengthened until neither occurs.
fn readable_by_atob(mut claims: Map<String, Value>) -> Map<String, Value> {
    for length in 0..64 {
        let text = Value::Object(claims.clone()).to_string();
        let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        if !encoded.contains(['-', '_']) {
            break;
        }
        // First in the object, so that it shifts everything behind it.
        claims.shift_remove("_");
        claims.shift_insert(0, "_".into(), "0".repeat(length).into());
    }
    claims
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_survive_a_plain_atob() {
        for seed in 0..200 {
            let mut claims = Map::new();
            claims.insert("iss".into(), "https://gateway.example.org".into());
            claims.insert("nonce".into(), format!("~?>{seed}~~??>>").into());
            let padded = readable_by_atob(claims.clone());
            let text = Value::Object(padded.clone()).to_string();
            let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
            // A nonce of such characters at all three alignments cannot be helped; one that can, is.
            if !encoded.contains(['-', '_']) {
                assert_eq!(padded["nonce"], claims["nonce"]);
            }
        }
        let mut plain = Map::new();
        plain.insert("sub".into(), "a>b".into());
        let encoded =
            base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(Value::Object(readable_by_atob(plain)).to_string());
        assert!(!encoded.contains(['-', '_']), "{encoded}");
    }
}
