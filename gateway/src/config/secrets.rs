//! Secrets and keys: read from where the configuration says, checked, and never shown.

use std::{io, path::PathBuf};

use aws_lc_rs::{
    rsa,
    signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use figment::value::Value;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use super::{
    fault::shown,
    layers::KeyPath,
    model::{AssertionAlg, SecretHash},
    reader::{Context, Given, Table, kind},
};
use crate::secret::{Secret, TokenHash};

const FORM: &str = "{ env = \"NAME\" } or { file = \"path\" }";

/// What a secret's key leads to.
pub(super) enum Source {
    /// Written there as it is, or given by the environment.
    Literal {
        text: String,
        environment: bool,
    },
    Bytes(Secret<Vec<u8>>),
}

/// Reads `{ env = … }`, `{ file = … }` or a literal, of which the caller says what it may be.
pub(super) fn source(context: &Context<'_>, given: &Given<&Value>) -> Option<Source> {
    match given.value {
        Value::String(_, text) => {
            Some(Source::Literal { text: text.clone(), environment: context.tree.places.is_environment(&given.path) })
        }
        Value::Dict(_, dict) => {
            let table = Table::of(context, given.path.clone(), dict);
            let bytes = referred(&table);
            table.finish();
            bytes.map(Source::Bytes)
        }
        other => {
            context.fault(&given.path, kind(other), FORM);
            None
        }
    }
}

/// The bytes that a table's `env` or `file` leads to; further keys are the caller's.
pub(super) fn referred(table: &Table<'_>) -> Option<Secret<Vec<u8>>> {
    let context = table.context;
    let (has_env, has_file) = (table.has("env"), table.has("file"));
    let env = table.text("env", "the name of a variable");
    let file = table.text("file", "the path of a file");
    if has_env == has_file {
        let given = if has_env { "both env and file" } else { "neither env nor file" };
        context.fault(&table.path, given, FORM);
        return None;
    }
    if let Some(name) = env {
        let found = context.sources.environment.iter().find(|(variable, _)| *variable == name.value);
        return match found {
            Some((_, value)) if !value.is_empty() => Some(Secret::new(value.clone().into_bytes())),
            Some(_) => {
                context.fault(&name.path, format!("{}, which is empty", shown(&name)), "a variable that is set");
                None
            }
            None => {
                context.fault(&name.path, format!("{}, which is not set", shown(&name)), "a variable that is set");
                None
            }
        };
    }
    let file = file?;
    let (_, bytes) = read_file(context, &file)?;
    if bytes.expose().is_empty() {
        context.fault(&file.path, format!("{}, which is empty", shown(&file)), "a file that holds the secret");
        return None;
    }
    Some(bytes)
}

/// Reads a file that a key names, relative to the file that the key stands in.
fn read_file(context: &Context<'_>, file: &Given<String>) -> Option<(PathBuf, Secret<Vec<u8>>)> {
    let path = context.tree.places.directory(&file.path).join(&file.value);
    match context.sources.files.read(&path) {
        Ok(bytes) => Some((path, Secret::new(bytes))),
        Err(error) => {
            let why =
                if error.kind() == io::ErrorKind::NotFound { "is not there".into() } else { error.kind().to_string() };
            context.fault(&file.path, format!("{}, which {why}", shown(file)), "a file that can be read");
            None
        }
    }
}

/// A client secret: never a literal outside the sandbox.
pub(super) fn client_secret(table: &Table<'_>, key: &'static str) -> Option<Secret<String>> {
    let context = table.context;
    let Some(given) = table.value(key) else {
        table.missing(key, FORM);
        return None;
    };
    let secret = match source(context, &given)? {
        Source::Literal { text, environment } if environment || context.sandbox => Secret::from(text),
        Source::Literal { .. } => {
            context.fault(&given.path, "a literal", format!("{FORM}: no secret stands in a configuration"));
            return None;
        }
        Source::Bytes(bytes) => text_of(context, &given.path, &bytes)?,
    };
    if secret.expose().is_empty() {
        context.fault(&given.path, "an empty secret", "a secret");
        return None;
    }
    Some(secret)
}

/// Text, less the line's end that editors and `echo` leave.
pub(super) fn text_of(context: &Context<'_>, path: &KeyPath, bytes: &Secret<Vec<u8>>) -> Option<Secret<String>> {
    match std::str::from_utf8(bytes.expose()) {
        Ok(text) => Some(Secret::from(text.trim_end_matches(['\r', '\n']))),
        Err(_) => {
            context.fault(path, "bytes that are not UTF-8", "a secret as text");
            None
        }
    }
}

/// A seal key: 32 bytes as they are, or as base64 or hexadecimal digits.
pub(super) fn seal_key(bytes: &Secret<Vec<u8>>) -> Result<Secret<[u8; 32]>, &'static str> {
    let raw = bytes.expose();
    let text = std::str::from_utf8(raw).map(str::trim).unwrap_or_default();
    // 16 bytes written in hexadecimal are 32 characters as well, and half as hard to guess.
    if text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("32 hexadecimal digits, which are 16 bytes");
    }
    let key = Secret::new(match (raw.len(), text.len()) {
        (32, _) => raw.clone(),
        (_, 64) => hex(text).unwrap_or_default(),
        _ => base64_of(text).unwrap_or_default(),
    });
    match <[u8; 32]>::try_from(key.expose().as_slice()) {
        Ok([first, rest @ ..]) if rest.iter().all(|byte| *byte == first) => Err("the same byte 32 times"),
        Ok(key) => Ok(Secret::new(key)),
        Err(_) => Err("a key of another length"),
    }
}

fn base64_of(text: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let engines = [GeneralPurpose::new(&alphabet::STANDARD, config), GeneralPurpose::new(&alphabet::URL_SAFE, config)];
    engines.iter().find_map(|engine| engine.decode(text).ok())
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    pairs.collect()
}

/// The hash of an app's secret: `sha256:` and 64 hexadecimal digits; in the sandbox the secret itself.
pub(super) fn secret_hash(text: &str, sandbox: bool) -> Option<SecretHash> {
    match text.strip_prefix("sha256:") {
        Some(digits) => <[u8; 32]>::try_from(hex(digits)?).ok().map(SecretHash),
        None if sandbox && !text.is_empty() => Some(SecretHash(TokenHash::of(text).0)),
        None => None,
    }
}

/// An assertion key in PEM, as DER; `Err` says what it is instead of what was expected.
pub(super) fn assertion_key(alg: AssertionAlg, pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| "what is no private key in PEM".to_owned())?;
    let der = key.secret_der();
    let rsa = match &key {
        PrivateKeyDer::Pkcs1(_) => rsa::KeyPair::from_der(der).ok(),
        _ => rsa::KeyPair::from_pkcs8(der).ok(),
    };
    match (alg, rsa) {
        (AssertionAlg::RS384, Some(pair)) if pair.public_modulus_len() < 256 => {
            Err(format!("an RSA key of {} bits", pair.public_modulus_len() * 8))
        }
        (AssertionAlg::RS384, Some(_)) => Ok(key),
        (AssertionAlg::ES384, None)
            if EcdsaKeyPair::from_private_key_der(&ECDSA_P384_SHA384_FIXED_SIGNING, der).is_ok() =>
        {
            Ok(key)
        }
        (AssertionAlg::RS384, None) => Err("a key that is no RSA key".into()),
        (AssertionAlg::ES384, _) => Err("a key that is not on the curve P-384".into()),
    }
}

/// What a PEM file must hold.
#[derive(Clone, Copy)]
pub(super) enum Pem {
    Certificates,
    PrivateKey,
}

/// `{ file = … }` of a PEM file that stays a file: it is read again when it changes.
pub(super) fn pem_file(table: &Table<'_>, key: &'static str, holds: Pem) -> Option<PathBuf> {
    let context = table.context;
    let file = table.table(key, "{ file = \"path\" }")?;
    let named = file.required("file", "the path of a PEM file");
    file.finish();
    let named = named?;
    let (path, bytes) = read_file(context, &named)?;
    let (fits, expected) = match holds {
        Pem::Certificates => {
            let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes.expose()).collect();
            (certificates.is_ok_and(|found| !found.is_empty()), "a PEM file with a certificate")
        }
        Pem::PrivateKey => (PrivateKeyDer::from_pem_slice(bytes.expose()).is_ok(), "a PEM file with a private key"),
    };
    if !fits {
        context.fault(&named.path, format!("{}, which holds none", shown(&named)), expected);
        return None;
    }
    Some(path)
}

/// A file's text as JSON.
pub(super) fn json_file(context: &Context<'_>, file: &Given<String>) -> Option<serde_json::Value> {
    let (_, bytes) = read_file(context, file)?;
    let json = serde_json::from_slice(bytes.expose()).ok();
    if json.is_none() {
        context.fault(&file.path, format!("{}, which holds no JSON", shown(file)), "a file with a JWK set");
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(bytes: &[u8]) -> Result<[u8; 32], &'static str> {
        seal_key(&Secret::new(bytes.to_vec())).map(|key| *key.expose())
    }

    #[test]
    fn seal_keys_come_in_three_forms() {
        let bytes: Vec<u8> = (0..32).collect();
        let hexadecimal: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(seal(&bytes).unwrap().as_slice(), bytes);
        assert_eq!(seal(format!("{hexadecimal}\n").as_bytes()).unwrap().as_slice(), bytes);
        assert_eq!(seal(b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n").unwrap().as_slice(), bytes);
        assert_eq!(seal(b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8").unwrap().as_slice(), bytes);
    }

    #[test]
    fn other_seal_keys_are_refused() {
        let short: &[u8] = &[7; 31];
        for bad in [b"".as_slice(), short, &[0; 32], b"0123456789abcdef0123456789abcdef", &[1; 33], b"c2hvcnQ="] {
            assert!(seal(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn only_hashes_are_taken_outside_the_sandbox() {
        let hash = format!("sha256:{}", "0f".repeat(32));
        assert!(secret_hash(&hash, false).is_some_and(|hash| hash.0 == [15; 32]));
        assert!(secret_hash("sha256:0f", false).is_none());
        assert!(secret_hash("sha256:zz", true).is_none());
        assert!(secret_hash("hunter2", false).is_none());
        assert!(secret_hash("hunter2", true).is_some());
    }
}
