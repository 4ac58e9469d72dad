//! The little of JOSE that an EHR needs: signing its own tokens, and checking an app's assertion. Written
//! here on purpose, so that a fault in the gateway's JOSE library cannot hide.

use anyhow::{Context, Result, anyhow, bail, ensure};
use aws_lc_rs::{
    digest, rand, rsa,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED,
        ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_2048_8192_SHA256,
        RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RsaEncoding,
        RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
    },
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Map, Value, json};

/// A JWT in its parts, signature not yet checked.
#[derive(Debug)]
pub struct Unverified {
    pub header: Map<String, Value>,
    pub claims: Map<String, Value>,
    signing_input: String,
    signature: Vec<u8>,
}

impl Unverified {
    pub fn parse(compact: &str) -> Result<Self> {
        let mut parts = compact.split('.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            bail!("a JWT has three parts");
        };
        let object = |part: &str, what: &str| -> Result<Map<String, Value>> {
            let bytes = URL_SAFE_NO_PAD.decode(part).with_context(|| format!("{what}: not base64url"))?;
            serde_json::from_slice(&bytes).with_context(|| format!("{what}: not a JSON object"))
        };
        Ok(Self {
            header: object(header, "header")?,
            claims: object(claims, "claims")?,
            signing_input: format!("{header}.{claims}"),
            signature: URL_SAFE_NO_PAD.decode(signature).context("signature: not base64url")?,
        })
    }

    pub fn text_header(&self, name: &str) -> Option<&str> {
        self.header.get(name).and_then(Value::as_str)
    }

    pub fn text_claim(&self, name: &str) -> Option<&str> {
        self.claims.get(name).and_then(Value::as_str)
    }

    /// # Errors
    /// When the key does not fit the algorithm, or did not sign this.
    pub fn verify(&self, alg: &str, jwk: &Value) -> Result<()> {
        let part = |name: &str| -> Result<Vec<u8>> {
            let text = jwk.get(name).and_then(Value::as_str).with_context(|| format!("key has no {name}"))?;
            URL_SAFE_NO_PAD.decode(text).with_context(|| format!("key's {name}: not base64url"))
        };
        let message = self.signing_input.as_bytes();
        let checked = match kind_of(alg) {
            Some(("RSA", _)) => {
                let parameters: &RsaParameters = match alg {
                    "RS256" => &RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &RSA_PKCS1_2048_8192_SHA384,
                    _ => &RSA_PKCS1_2048_8192_SHA512,
                };
                let key = RsaPublicKeyComponents { n: part("n")?, e: part("e")? };
                key.verify(parameters, message, &self.signature)
            }
            Some(("EC", curve)) => {
                ensure!(jwk.get("crv").and_then(Value::as_str) == Some(curve), "{alg} needs a key on {curve}");
                let point = [vec![4], part("x")?, part("y")?].concat();
                let algorithm = if alg == "ES256" { &ECDSA_P256_SHA256_FIXED } else { &ECDSA_P384_SHA384_FIXED };
                UnparsedPublicKey::new(algorithm, point).verify(message, &self.signature)
            }
            _ => bail!("algorithm {alg} is not supported"),
        };
        checked.map_err(|_| anyhow!("signature does not match"))
    }
}

/// `kty` and curve that an algorithm works with.
pub fn kind_of(alg: &str) -> Option<(&'static str, &'static str)> {
    match alg {
        "RS256" | "RS384" | "RS512" => Some(("RSA", "")),
        "ES256" => Some(("EC", "P-256")),
        "ES384" => Some(("EC", "P-384")),
        _ => None,
    }
}

enum Secret {
    Rsa(rsa::KeyPair),
    Ec(EcdsaKeyPair),
}

/// A key that signs: the EHR's own, or a test app's.
pub struct SigningKey {
    secret: Secret,
    alg: &'static str,
    kid: String,
}

impl SigningKey {
    /// A fresh key for `RS256`, `RS384`, `ES256` or `ES384`.
    pub fn generate(alg: &'static str) -> Result<Self> {
        let secret = match alg {
            "RS256" | "RS384" => Secret::Rsa(rsa::KeyPair::generate(KeySize::Rsa2048)?),
            "ES256" => Secret::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?),
            "ES384" => Secret::Ec(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING)?),
            other => bail!("cannot sign with {other}; expected RS256, RS384, ES256 or ES384"),
        };
        let mut key = Self { secret, alg, kid: String::new() };
        // With `+`, `/` and `=` in it, as Epic's have: a kid is no token of some alphabet.
        let fingerprint = digest::digest(&digest::SHA256, key.public_jwk().to_string().as_bytes());
        key.kid = STANDARD.encode(fingerprint);
        Ok(key)
    }

    #[must_use]
    pub fn with_kid(mut self, kid: &str) -> Self {
        kid.clone_into(&mut self.kid);
        self
    }

    pub fn kid(&self) -> &str {
        &self.kid
    }

    pub fn alg(&self) -> &'static str {
        self.alg
    }

    /// The public half, bare (no certificate).
    pub fn public_jwk(&self) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match &self.secret {
            Secret::Rsa(pair) => {
                let public = pair.public_key();
                let (n, e) = (public.modulus(), public.exponent());
                json!({"kty": "RSA", "use": "sig", "alg": self.alg, "kid": self.kid,
                    "n": text(n.big_endian_without_leading_zero()), "e": text(e.big_endian_without_leading_zero())})
            }
            Secret::Ec(pair) => {
                let point = pair.public_key().as_ref();
                let (x, y) = point.get(1..).map(|p| p.split_at(p.len() / 2)).unwrap_or_default();
                let crv = if self.alg == "ES256" { "P-256" } else { "P-384" };
                json!({"kty": "EC", "use": "sig", "alg": self.alg, "kid": self.kid, "crv": crv, "x": text(x), "y": text(y)})
            }
        }
    }

    /// A compact JWT with this key's `alg` and `kid`; `extra` header members replace ours.
    pub fn sign(&self, claims: &Value, extra: &Value) -> Result<String> {
        let mut header = Map::new();
        header.insert("alg".into(), self.alg.into());
        header.insert("kid".into(), self.kid.clone().into());
        header.insert("typ".into(), "JWT".into());
        for (name, value) in extra.as_object().into_iter().flatten() {
            header.insert(name.clone(), value.clone());
        }
        let input = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(serde_json::to_vec(&header)?),
            URL_SAFE_NO_PAD.encode(serde_json::to_vec(claims)?)
        );
        let random = rand::SystemRandom::new();
        let signature = match &self.secret {
            Secret::Rsa(pair) => {
                let encoding: &'static dyn RsaEncoding =
                    if self.alg == "RS256" { &RSA_PKCS1_SHA256 } else { &RSA_PKCS1_SHA384 };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &random, input.as_bytes(), &mut signature)?;
                signature
            }
            Secret::Ec(pair) => pair.sign(&random, input.as_bytes())?.as_ref().to_vec(),
        };
        Ok(format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// `N` random bytes as base64url.
pub fn random<const N: usize>() -> String {
    let mut bytes = [0; N];
    // aws-lc's generator does not fail once it is seeded; were it to, nothing here is a secret of anyone's.
    let _ = rand::fill(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// `BASE64URL(SHA256(text))`: PKCE's S256.
pub fn s256(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_verifies_and_what_is_changed_does_not() {
        for alg in ["RS256", "RS384", "ES256", "ES384"] {
            let key = SigningKey::generate(alg).unwrap();
            let jwt = key.sign(&json!({"sub": "me"}), &Value::Null).unwrap();
            let read = Unverified::parse(&jwt).unwrap();
            assert_eq!(read.text_claim("sub"), Some("me"));
            read.verify(alg, &key.public_jwk()).unwrap();
            let other = SigningKey::generate(alg).unwrap();
            assert!(read.verify(alg, &other.public_jwk()).is_err(), "{alg}: another key");
            let [header, _, signature] = jwt.split('.').collect::<Vec<_>>().try_into().unwrap();
            let forged = format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode(r#"{"sub":"you"}"#));
            assert!(Unverified::parse(&forged).unwrap().verify(alg, &key.public_jwk()).is_err(), "{alg}: other claims");
        }
    }

    #[test]
    fn rfc_7636_appendix_b() {
        assert_eq!(s256("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn rfc_7515_appendix_a_2() {
        let jwt = concat!(
            "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.",
            "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
        );
        let key = json!({"kty": "RSA", "e": "AQAB", "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"});
        Unverified::parse(jwt).unwrap().verify("RS256", &key).unwrap();
    }

    #[test]
    fn rfc_7515_appendix_a_3() {
        let jwt = concat!(
            "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.",
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
        );
        let key = json!({"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"});
        Unverified::parse(jwt).unwrap().verify("ES256", &key).unwrap();
    }
}
