//! Keys that sign our client assertions, and the JWK set that publishes them.
//!
//! A set's keys are in order: those in state `publish` are shown so that vendors' caches know them
//! before they sign, the first in state `sign` signs, `retired` ones are shown until the last assertion
//! that they signed has expired.

use std::{collections::BTreeMap, sync::Arc};

use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use jsonwebtoken::{
    Algorithm, EncodingKey, Header,
    jwk::{Jwk, PublicKeyUse, ThumbprintHash},
};
use mantel_adapters::site::KeySetId;
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use serde::Serialize;
use serde_json::{Value, json};

use crate::config::{AssertionAlg, AssertionKey, KeySet, KeyState};

/// A key that cannot be used. Says nothing of its content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    #[error("keys.{set}: key {index} is no {alg} key: expected a PEM file with {expected}")]
    Unusable { set: KeySetId, index: usize, alg: &'static str, expected: &'static str },
    #[error("keys.{set}: no key has `state = \"sign\"`")]
    NoneSigns { set: KeySetId },
}

/// A private key and its public half.
pub struct SigningKey {
    alg: Algorithm,
    key: EncodingKey,
    public: Jwk,
    kid: String,
}

/// Signing failed: the key is not usable after all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the assertion could not be signed: {0}")]
pub struct SigningFault(String);

impl SigningKey {
    /// The JWK thumbprint (RFC 7638): the same on every replica, another for another key.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    pub(super) fn sign(&self, claims: &impl Serialize) -> Result<String, SigningFault> {
        let mut header = Header::new(self.alg);
        header.typ = Some("JWT".into());
        header.kid = Some(self.kid.clone());
        jsonwebtoken::encode(&header, claims, &self.key).map_err(|error| SigningFault(error.to_string()))
    }

    fn read(alg: AssertionAlg, key: &AssertionKey) -> Option<Self> {
        let (alg, key) = match alg {
            AssertionAlg::RS384 => (Algorithm::RS384, rsa(key)?),
            AssertionAlg::ES384 => (Algorithm::ES384, p384(key)?),
        };
        let mut public = Jwk::from_encoding_key(&key, alg).ok()?;
        let kid = public.thumbprint(ThumbprintHash::SHA256).ok()?;
        public.common.key_id = Some(kid.clone());
        public.common.public_key_use = Some(PublicKeyUse::Signature);
        let read = Self { alg, key, public, kid };
        // Finds what parsing does not: another curve, an RSA key of less than 2048 bits.
        read.sign(&json!({})).ok()?;
        Some(read)
    }
}

fn rsa(key: &AssertionKey) -> Option<EncodingKey> {
    EncodingKey::from_rsa_pem(key.pem.expose().as_bytes()).ok()
}

/// PKCS#8, or SEC1 (`BEGIN EC PRIVATE KEY`, what openssl writes), which jsonwebtoken does not read.
fn p384(key: &AssertionKey) -> Option<EncodingKey> {
    let der = PrivateKeyDer::from_pem_slice(key.pem.expose().as_bytes()).ok()?;
    let pair = match &der {
        PrivateKeyDer::Sec1(der) => {
            EcdsaKeyPair::from_private_key_der(&ECDSA_P384_SHA384_FIXED_SIGNING, der.secret_sec1_der())
        }
        PrivateKeyDer::Pkcs8(der) => EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, der.secret_pkcs8_der()),
        _ => return None,
    };
    let pkcs8 = pair.ok()?.to_pkcs8v1().ok()?;
    Some(EncodingKey::from_ec_der(pkcs8.as_ref()))
}

/// A key set, read.
pub struct SigningSet {
    signer: SigningKey,
    published: Value,
}

impl SigningSet {
    pub fn read(set: &KeySet) -> Result<Self, KeyFault> {
        let mut signer = None;
        let mut published = Vec::new();
        for (index, key) in set.keys.iter().enumerate() {
            let read = SigningKey::read(set.alg, key).ok_or_else(|| unusable(set, index))?;
            published.push(public_jwk(&read).ok_or_else(|| unusable(set, index))?);
            if key.state == KeyState::Sign && signer.is_none() {
                signer = Some(read);
            }
        }
        let signer = signer.ok_or_else(|| KeyFault::NoneSigns { set: set.id.clone() })?;
        Ok(Self { signer, published: json!({ "keys": published }) })
    }

    /// The key that signs.
    pub const fn signer(&self) -> &SigningKey {
        &self.signer
    }

    /// What `/keys/{name}.json` answers: all keys, public members only.
    pub const fn published(&self) -> &Value {
        &self.published
    }
}

fn unusable(set: &KeySet, index: usize) -> KeyFault {
    let (alg, expected) = match set.alg {
        AssertionAlg::RS384 => ("RS384", "an RSA private key of at least 2048 bits, PKCS#8 or PKCS#1"),
        AssertionAlg::ES384 => ("ES384", "an EC private key on P-384, PKCS#8 or SEC1"),
    };
    KeyFault::Unusable { set: set.id.clone(), index, alg, expected }
}

fn public_jwk(key: &SigningKey) -> Option<Value> {
    let mut jwk = serde_json::to_value(&key.public).ok()?;
    jwk.as_object_mut()?.insert("key_ops".into(), json!(["verify"]));
    Some(jwk)
}

/// The JWK set that publishes a key set.
pub fn public_set(set: &KeySet) -> Result<Value, KeyFault> {
    SigningSet::read(set).map(|read| read.published)
}

/// All key sets of a snapshot.
#[derive(Default)]
pub struct SigningSets(BTreeMap<KeySetId, Arc<SigningSet>>);

impl SigningSets {
    /// All sets, or all faults.
    pub fn read(sets: &BTreeMap<KeySetId, Arc<KeySet>>) -> Result<Self, Vec<KeyFault>> {
        let mut read = BTreeMap::new();
        let mut faults = Vec::new();
        for (id, set) in sets {
            match SigningSet::read(set) {
                Ok(set) => {
                    read.insert(id.clone(), Arc::new(set));
                }
                Err(fault) => faults.push(fault),
            }
        }
        if faults.is_empty() { Ok(Self(read)) } else { Err(faults) }
    }

    pub fn get(&self, id: &KeySetId) -> Option<&Arc<SigningSet>> {
        self.0.get(id)
    }
}
