//! PKCE (RFC 7636), S256 only. Hashing is the caller's: this crate has no cryptography.

use std::fmt;

/// Why a PKCE parameter is refused. Never holds the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PkceFault {
    #[error("code_challenge is missing: PKCE is required of every app")]
    Missing,
    #[error("code_challenge_method is missing or not `S256`")]
    Method,
    #[error("code_challenge is no SHA-256 in base64url: expected 43 characters without padding")]
    Challenge,
    #[error("code_verifier is malformed: expected 43 to 128 of A-Z, a-z, 0-9, -, ., _ and ~")]
    Verifier,
}

/// `code_verifier` (RFC 7636 §4.1).
#[derive(Clone, PartialEq, Eq)]
pub struct CodeVerifier(String);

impl CodeVerifier {
    /// # Errors
    /// [`PkceFault::Verifier`]
    pub fn parse(text: &str) -> Result<Self, PkceFault> {
        let unreserved = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
        if (43..=128).contains(&text.len()) && text.bytes().all(unreserved) {
            Ok(Self(text.to_owned()))
        } else {
            Err(PkceFault::Verifier)
        }
    }

    /// A verifier of 43 characters, from 32 random bytes.
    pub fn from_random(bytes: [u8; 32]) -> Self {
        Self(base64url(&bytes))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The S256 challenge of this verifier.
    pub fn challenge(&self, sha256: impl FnOnce(&[u8]) -> [u8; 32]) -> CodeChallenge {
        CodeChallenge::from_digest(&sha256(self.0.as_bytes()))
    }
}

impl fmt::Debug for CodeVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CodeVerifier(…)")
    }
}

/// `code_challenge` of method S256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeChallenge(String);

impl CodeChallenge {
    /// Checks the two parameters of an authorization request. No method means `plain` (RFC 7636 §4.3),
    /// which SMART 2.2 forbids.
    ///
    /// # Errors
    /// What is missing or malformed.
    pub fn parse(challenge: Option<&str>, method: Option<&str>) -> Result<Self, PkceFault> {
        let challenge = challenge.filter(|text| !text.is_empty()).ok_or(PkceFault::Missing)?;
        if method != Some("S256") {
            return Err(PkceFault::Method);
        }
        let alphabet = challenge.len() == 43 && challenge.bytes().all(|b| BASE64URL.contains(&b));
        // 43 characters are 258 bits: the last two must be zero, or no digest has this form.
        let whole =
            challenge.bytes().last().and_then(|b| BASE64URL.iter().position(|c| *c == b)).is_some_and(|v| v % 4 == 0);
        if alphabet && whole { Ok(Self(challenge.to_owned())) } else { Err(PkceFault::Challenge) }
    }

    pub fn from_digest(digest: &[u8; 32]) -> Self {
        Self(base64url(digest))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the verifier is the one that this challenge was made of.
    pub fn is_met_by(&self, verifier: &CodeVerifier, sha256: impl FnOnce(&[u8]) -> [u8; 32]) -> bool {
        let given = verifier.challenge(sha256);
        // Both are 43 bytes; all are compared, so that time tells nothing of how far they agree.
        let difference = self.0.bytes().zip(given.0.bytes()).fold(0, |all, (a, b)| all | (a ^ b));
        self.0.len() == given.0.len() && difference == 0
    }
}

const BASE64URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

fn base64url(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..=chunk.len() {
            let sextet = bits >> (18 - 6 * index) & 63;
            text.extend(usize::try_from(sextet).ok().and_then(|sextet| BASE64URL.get(sextet)).map(|b| char::from(*b)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7636, appendix B: the octets of the verifier, and of its SHA-256.
    const OCTETS: [u8; 32] = [
        116, 24, 223, 180, 151, 153, 224, 37, 79, 250, 96, 125, 216, 173, 187, 186, 22, 212, 37, 77, 105, 214, 191,
        240, 91, 88, 5, 88, 83, 132, 141, 121,
    ];
    const DIGEST: [u8; 32] = [
        19, 211, 30, 150, 26, 26, 216, 236, 47, 22, 177, 12, 76, 152, 46, 8, 118, 168, 120, 173, 109, 241, 68, 86, 110,
        225, 137, 74, 203, 112, 249, 195,
    ];

    #[test]
    fn the_example_of_the_rfc() {
        let verifier = CodeVerifier::from_random(OCTETS);
        assert_eq!(verifier.as_str(), "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
        let sha256 = |bytes: &[u8]| {
            assert_eq!(bytes, b"dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
            DIGEST
        };
        let challenge = verifier.challenge(sha256);
        assert_eq!(challenge.as_str(), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
        let published = CodeChallenge::parse(Some(challenge.as_str()), Some("S256")).unwrap();
        assert!(published.is_met_by(&verifier, sha256));
        assert!(!published.is_met_by(&verifier, |_| OCTETS));
    }

    #[test]
    fn what_is_not_s256_is_refused() {
        let good = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
        let cases = [
            (None, Some("S256"), PkceFault::Missing),
            (Some(""), Some("S256"), PkceFault::Missing),
            (Some(good), None, PkceFault::Method),
            (Some(good), Some("plain"), PkceFault::Method),
            (Some(good), Some("s256"), PkceFault::Method),
            (Some("E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM="), Some("S256"), PkceFault::Challenge),
            (Some("E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw+cM"), Some("S256"), PkceFault::Challenge),
            (Some("E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cN"), Some("S256"), PkceFault::Challenge),
        ];
        for (challenge, method, fault) in cases {
            assert_eq!(CodeChallenge::parse(challenge, method), Err(fault), "{challenge:?} {method:?}");
        }
    }

    #[test]
    fn verifiers_have_the_length_and_alphabet_of_the_rfc() {
        let ok = |text: &str| CodeVerifier::parse(text).is_ok();
        assert!(ok(&"a".repeat(43)) && ok(&"~".repeat(128)));
        assert!(!ok(&"a".repeat(42)) && !ok(&"a".repeat(129)) && !ok(&" ".repeat(43)) && !ok(&"é".repeat(43)));
    }

    #[test]
    fn a_verifier_is_not_shown() {
        assert_eq!(format!("{:?}", CodeVerifier::from_random(OCTETS)), "CodeVerifier(…)");
    }
}
