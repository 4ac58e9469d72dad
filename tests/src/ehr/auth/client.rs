//! Apps as they are filed with the EHR.

use std::collections::HashSet;

use anyhow::{Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::ehr::{
    auth::scope::{Dialect, Scope},
    contract::Vendor,
};

/// An app record.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    pub client_id: String,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub auth: ClientAuth,
    /// Compared byte for byte.
    #[serde(default)]
    pub redirect_uris: Vec<String>,
    /// Where the EHR opens the app; the app is offered on the EHR's home page if there is one.
    #[serde(default)]
    pub launch_url: Option<String>,
    /// What is ticked; empty: everything is.
    #[serde(default)]
    pub scopes: Vec<String>,
    #[serde(default = "Use::all")]
    pub uses: Vec<Use>,
    /// The scope version of the record. Oracle takes v1 for granted, the others answer as they are asked.
    #[serde(default)]
    pub dialect: Option<Dialect>,
    /// Oracle: whom the app is registered for; none: both.
    #[serde(default)]
    pub persona: Option<Persona>,
    /// Epic: the record has other endpoints than the site, told to whom sends `Epic-Client-ID`.
    #[serde(default)]
    pub overridden: bool,
    /// Epic: whether the hospital has mapped a user to a backend app.
    #[serde(default = "yes")]
    pub user_mapped: bool,
    #[serde(default)]
    pub post_logout_redirect_uris: Vec<String>,
}

const fn yes() -> bool {
    true
}

/// How an app authenticates at the token endpoint; only as registered.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
pub enum ClientAuth {
    #[default]
    None,
    ClientSecretBasic {
        secret: String,
    },
    ClientSecretPost {
        secret: String,
    },
    PrivateKeyJwt {
        #[serde(flatten)]
        keys: ClientKeys,
    },
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientKeys {
    JwksUrl(String),
    /// A key set, uploaded.
    Jwks(Value),
}

impl ClientAuth {
    pub const fn is_public(&self) -> bool {
        matches!(self, Self::None)
    }

    const fn text(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::ClientSecretBasic { .. } => "client_secret_basic",
            Self::ClientSecretPost { .. } => "client_secret_post",
            Self::PrivateKeyJwt { .. } => "private_key_jwt",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Use {
    EhrLaunch,
    Standalone,
    Backend,
}

impl Use {
    fn all() -> Vec<Self> {
        vec![Self::EhrLaunch, Self::Standalone, Self::Backend]
    }
}

/// Oracle's two publics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Persona {
    Provider,
    Patient,
}

impl Persona {
    pub const fn text(self) -> &'static str {
        match self {
            Self::Provider => "provider",
            Self::Patient => "patient",
        }
    }
}

impl Client {
    /// A record with everything ticked.
    pub fn new(client_id: &str, auth: ClientAuth, redirect_uris: &[&str]) -> Self {
        Self {
            client_id: client_id.to_owned(),
            name: client_id.to_owned(),
            auth,
            redirect_uris: redirect_uris.iter().map(|uri| (*uri).to_owned()).collect(),
            launch_url: None,
            scopes: Vec::new(),
            uses: Use::all(),
            dialect: None,
            persona: None,
            overridden: false,
            user_mapped: true,
            post_logout_redirect_uris: Vec::new(),
        }
    }

    pub fn title(&self) -> &str {
        if self.name.is_empty() { &self.client_id } else { &self.name }
    }

    pub fn ticked(&self) -> Vec<Scope> {
        self.scopes.iter().filter_map(|text| Scope::parse(text)).collect()
    }

    /// # Errors
    /// When the vendor's portal would not take this record.
    pub fn check(&self, vendor: Vendor) -> Result<()> {
        ensure!(!self.client_id.is_empty(), "an app record needs a client_id");
        let given = self.auth.text();
        let expected: &[&str] = match vendor {
            Vendor::Oracle => &["none", "client_secret_basic", "private_key_jwt"],
            Vendor::AthenaPractice => &["none", "client_secret_basic"],
            _ => &["none", "client_secret_basic", "client_secret_post", "private_key_jwt"],
        };
        ensure!(
            expected.contains(&given),
            "app {}: {} takes {}; given {given}",
            self.client_id,
            vendor.text(),
            expected.join(", ")
        );
        for text in &self.scopes {
            ensure!(Scope::parse(text).is_some(), "app {}: {text} is no scope", self.client_id);
        }
        let unlike = self.redirect_uris.iter().collect::<HashSet<_>>().len();
        ensure!(unlike == self.redirect_uris.len(), "app {}: a redirect URI is listed twice", self.client_id);
        // athena has two- and three-legged registrations, never both in one.
        let system = self.scopes.iter().any(|text| text.starts_with("system/"));
        let user = self.scopes.iter().any(|text| text.starts_with("patient/") || text.starts_with("user/"));
        ensure!(
            vendor != Vendor::Athena || !(system && user),
            "app {}: athena's registrations have system/ scopes or patient/ and user/ ones, not both",
            self.client_id
        );
        Ok(())
    }
}
