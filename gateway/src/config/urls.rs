//! Our own addresses, made in one place. All derive from the configured public URL, never from a
//! request's `Host`.

use mantel_adapters::site::{AppId, KeySetId, RegistrationId, SiteId};

/// The addresses below a public URL.
#[derive(Clone, Copy, Debug)]
pub struct Urls<'a> {
    pub public: &'a str,
}

/// Which base of ours an app speaks to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Base {
    /// Whichever site the grant belongs to.
    Uniform,
    Site(SiteId),
}

impl<'a> Urls<'a> {
    pub const fn new(public: &'a str) -> Self {
        Self { public }
    }

    /// The FHIR base, without a trailing slash.
    pub fn fhir(self, base: &Base) -> String {
        format!("{}{}", self.public, Self::fhir_path(base))
    }

    /// Its path.
    pub fn fhir_path(base: &Base) -> String {
        match base {
            Base::Uniform => "/fhir/r4".to_owned(),
            Base::Site(site) => format!("/sites/{site}/fhir/r4"),
        }
    }

    pub fn authorize(self, base: &Base) -> String {
        self.oauth(base, "authorize")
    }

    pub fn token(self, base: &Base) -> String {
        self.oauth(base, "token")
    }

    fn oauth(self, base: &Base, name: &str) -> String {
        match base {
            Base::Uniform => format!("{}/oauth/{name}", self.public),
            Base::Site(site) => format!("{}/sites/{site}/oauth/{name}", self.public),
        }
    }

    pub fn jwks(self) -> String {
        format!("{}/oauth/jwks", self.public)
    }

    /// The issuer of our id_tokens, one for all bases.
    pub const fn issuer(self) -> &'a str {
        self.public
    }

    /// Where an EHR returns a browser to.
    pub fn callback(self, registration: &RegistrationId) -> String {
        format!("{}/oauth/callback/{registration}", self.public)
    }

    pub fn launch(self, app: &AppId) -> String {
        format!("{}/launch/{app}", self.public)
    }

    pub fn keys(self, set: &KeySetId) -> String {
        format!("{}/keys/{set}.json", self.public)
    }

    pub fn style(self) -> String {
        format!("{}/style/v1.json", self.public)
    }
}
