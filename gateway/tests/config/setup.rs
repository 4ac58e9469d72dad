//! Configurations in memory.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
    signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::Engine as _;
use mantel::config::{Faults, Loaded, Sources, load};

pub const ROOT: &str = "/etc/mantel";

pub fn pem(der: &[u8]) -> String {
    format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        base64::prelude::BASE64_STANDARD.encode(der)
    )
}

pub static RSA: LazyLock<String> = LazyLock::new(|| {
    let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
    pem(der.as_ref())
});

pub static EC: LazyLock<String> = LazyLock::new(|| {
    let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    pem(key.to_pkcs8v1().unwrap().as_ref())
});

static TLS: LazyLock<(String, String)> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(["gateway.example.org".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
});

/// Files and an environment.
#[derive(Clone, Default)]
pub struct Setup {
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    pub environment: Vec<(String, String)>,
}

impl Setup {
    pub fn file(mut self, name: &str, content: impl AsRef<[u8]>) -> Self {
        self.files.insert(Path::new(ROOT).join(name), content.as_ref().to_vec());
        self
    }

    pub fn set(mut self, variable: &str, value: &str) -> Self {
        self.environment.push((variable.to_owned(), value.to_owned()));
        self
    }

    /// With a text replaced that must be there, once.
    pub fn with(mut self, name: &str, old: &str, new: &str) -> Self {
        let content = self.files.get_mut(&Path::new(ROOT).join(name)).unwrap();
        let text = String::from_utf8(content.clone()).unwrap();
        assert_eq!(text.matches(old).count(), 1, "{old:?} in {name}");
        *content = text.replace(old, new).into_bytes();
        self
    }

    pub fn load(&self) -> Result<Loaded, Faults> {
        load(&Sources {
            paths: vec![PathBuf::from(ROOT)],
            environment: self.environment.clone(),
            files: Arc::new(self.files.clone()),
        })
    }

    /// The faults, without the directory that all share.
    pub fn faults(&self) -> Vec<String> {
        match self.load() {
            Ok(_) => Vec::new(),
            Err(faults) => faults.iter().map(|fault| fault.to_string().replace("/etc/mantel/", "")).collect(),
        }
    }

    pub fn notes(&self) -> Vec<String> {
        let loaded = self.load().unwrap_or_else(|faults| panic!("{faults}"));
        loaded.notes.iter().map(|note| note.to_string().replace("/etc/mantel/", "")).collect()
    }
}

/// `design.md`'s example, with the keys that it names.
pub fn example() -> Setup {
    Setup::default()
        .file("vendors.toml", include_str!("../fixtures/config/example/vendors.toml"))
        .file("mantel.toml", include_str!("../fixtures/config/example/mantel.toml"))
        .file("sites.d/general-hospital.toml", include_str!("../fixtures/config/example/sites.d/general-hospital.toml"))
        .file("tls.crt", &TLS.0)
        .file("tls.key", &TLS.1)
        .file("keys/seal-2026-11", (1..=32).collect::<Vec<u8>>())
        .file("sites.d/../keys/epic-2026-11.pem", RSA.as_str())
}

pub const SITE: &str = "sites.d/general-hospital.toml";
