//! Key sets in all the forms that openssl writes.

use std::sync::LazyLock;

use aws_lc_rs::{
    encoding::{AsDer, EcPrivateKeyRfc5915Der, Pkcs8V1Der},
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    },
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jsonwebtoken::EncodingKey;

use crate::{
    config::{AssertionAlg, AssertionKey, KeySet, KeyState},
    upstream::{
        KeyFault,
        keys::{SigningSet, public_set},
    },
};

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn rsa_pkcs8() -> String {
    let pair = aws_lc_rs::rsa::KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    pem("PRIVATE KEY", der.as_ref())
}

/// One RSA key for all tests: making one takes a while.
pub(super) static RSA: LazyLock<String> = LazyLock::new(rsa_pkcs8);

fn rsa_pkcs1() -> String {
    pem("RSA PRIVATE KEY", EncodingKey::from_rsa_pem(RSA.as_bytes()).unwrap().as_bytes())
}

fn pair(curve: &'static EcdsaSigningAlgorithm) -> EcdsaKeyPair {
    EcdsaKeyPair::generate(curve).unwrap()
}

pub(super) fn ec_pkcs8() -> String {
    pem("PRIVATE KEY", pair(&ECDSA_P384_SHA384_FIXED_SIGNING).to_pkcs8v1().unwrap().as_ref())
}

fn sec1(pair: &EcdsaKeyPair) -> String {
    let der: EcPrivateKeyRfc5915Der<'_> = pair.private_key().as_der().unwrap();
    pem("EC PRIVATE KEY", der.as_ref())
}

pub(super) fn set(alg: AssertionAlg, keys: impl IntoIterator<Item = (String, KeyState)>) -> KeySet {
    let keys = keys.into_iter().map(|(pem, state)| AssertionKey { pem: pem.into(), state }).collect();
    KeySet { id: "epic-prod".parse().unwrap(), alg, keys }
}

#[test]
fn every_usual_form_of_a_key_signs() {
    let p384 = pair(&ECDSA_P384_SHA384_FIXED_SIGNING);
    let forms = [
        (AssertionAlg::RS384, RSA.clone()),
        (AssertionAlg::RS384, rsa_pkcs1()),
        (AssertionAlg::ES384, ec_pkcs8()),
        (AssertionAlg::ES384, sec1(&p384)),
        (AssertionAlg::ES384, format!("\n{}", sec1(&p384))),
    ];
    for (alg, key) in forms {
        let form = key.lines().find(|line| line.starts_with("---")).unwrap().to_owned();
        SigningSet::read(&set(alg, [(key, KeyState::Sign)])).unwrap_or_else(|fault| panic!("{alg:?}, {form}: {fault}"));
    }
}

#[test]
fn the_form_of_a_key_does_not_change_its_name() {
    let kid = |pem: String| {
        SigningSet::read(&set(AssertionAlg::RS384, [(pem, KeyState::Sign)])).unwrap().signer().kid().to_owned()
    };
    assert_eq!(kid(RSA.clone()), kid(rsa_pkcs1()));
    assert_eq!(kid(RSA.clone()).len(), 43, "a SHA-256 thumbprint in base64url");
}

#[test]
fn keys_that_cannot_serve_are_refused_by_place_and_without_their_content() {
    let p256 = pair(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let bad = [
        (AssertionAlg::ES384, sec1(&p256)),
        (AssertionAlg::ES384, pem("PRIVATE KEY", p256.to_pkcs8v1().unwrap().as_ref())),
        (AssertionAlg::ES384, RSA.clone()),
        (AssertionAlg::RS384, ec_pkcs8()),
        (AssertionAlg::RS384, "not a key".into()),
        (AssertionAlg::ES384, String::new()),
    ];
    for (alg, key) in bad {
        let good = if alg == AssertionAlg::RS384 { RSA.clone() } else { ec_pkcs8() };
        let fault = SigningSet::read(&set(alg, [(good, KeyState::Sign), (key, KeyState::Publish)])).err().unwrap();
        assert!(matches!(fault, KeyFault::Unusable { index: 1, .. }), "{fault}");
        assert!(fault.to_string().len() < 200, "{fault}");
    }
}

#[test]
fn all_states_are_published_and_the_first_that_signs_does() {
    let keys: Vec<_> = (0..4).map(|_| ec_pkcs8()).collect();
    let states = [KeyState::Retired, KeyState::Publish, KeyState::Sign, KeyState::Sign];
    let set = set(AssertionAlg::ES384, keys.into_iter().zip(states));
    let read = SigningSet::read(&set).unwrap();
    let published = public_set(&set).unwrap();
    assert_eq!(read.published(), &published);
    let keys = published["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 4);
    assert_eq!(keys[2]["kid"], read.signer().kid());
    let mut kids: Vec<_> = keys.iter().map(|key| key["kid"].as_str().unwrap()).collect();
    kids.dedup();
    assert_eq!(kids.len(), 4);
}

#[test]
fn nothing_private_is_published() {
    for (alg, key, members) in [
        (AssertionAlg::RS384, RSA.clone(), ["alg", "e", "key_ops", "kid", "kty", "n", "use"].as_slice()),
        (AssertionAlg::ES384, ec_pkcs8(), ["alg", "crv", "key_ops", "kid", "kty", "use", "x", "y"].as_slice()),
    ] {
        let published = public_set(&set(alg, [(key, KeyState::Sign)])).unwrap();
        let mut names: Vec<_> = published["keys"][0].as_object().unwrap().keys().cloned().collect();
        names.sort();
        assert_eq!(names, members);
        assert_eq!(published["keys"][0]["alg"], format!("{alg:?}"));
    }
}

#[test]
fn a_set_without_a_signing_key_is_refused() {
    let none = set(AssertionAlg::ES384, [(ec_pkcs8(), KeyState::Publish)]);
    assert!(matches!(SigningSet::read(&none).err(), Some(KeyFault::NoneSigns { .. })));
}
