//! The example of the design is a whole, valid configuration.

use std::time::Duration;

use mantel::config::{
    AppAuth, AppGrant, AssertionAlg, ClientAuth, Consent, CustodyMode, KeyState, Publish, SitePattern, StoreUrl, Use,
};
use mantel_adapters::{
    profile::{Dialect, Wildcards},
    site::{AppId, SiteId},
};

use crate::setup::{Setup, example};

#[test]
fn it_loads_without_a_note() {
    assert_eq!(example().notes(), Vec::<String>::new());
}

#[test]
fn every_value_arrives() {
    let config = example().load().unwrap_or_else(|faults| panic!("{faults}")).config;
    assert_eq!(config.server.public_url, "https://gateway.example.org");
    assert_eq!(config.server.listen.to_string(), "0.0.0.0:8443");
    assert!(config.server.tls.as_ref().is_some_and(|tls| tls.cert.ends_with("tls.crt")));
    assert!(matches!(&config.store.url, StoreUrl::Sqlite(Some(file)) if file.ends_with("mantel.db")));
    assert_eq!(config.store.seal[0].bytes.expose()[..3], [1, 2, 3]);
    let keys = config.keys.values().next().unwrap();
    assert_eq!((keys.alg, keys.keys[0].state), (AssertionAlg::RS384, KeyState::Sign));

    let site = &config.sites[&"general-hospital".parse::<SiteId>().unwrap()];
    assert_eq!(site.fhir_base_text, "https://ehr.example.org/api/FHIR/R4");
    assert_eq!(site.profile.scopes.dialect, Dialect::V2);
    assert_eq!(site.profile.scopes.wildcards, Wildcards::Expand);
    assert_eq!(site.profile.errors["burnt"].status, Some(400));
    assert_eq!(site.adapter.name(), "epic");

    let app = &config.apps[&"viewer".parse::<AppId>().unwrap()];
    assert!(matches!(app.auth, AppAuth::None));
    assert_eq!(app.grants, [AppGrant::AuthorizationCode].into());
    assert_eq!(app.sites, [SitePattern::All]);
    assert_eq!((app.consent, app.custody), (Consent::Never, CustodyMode::AsAsked));
    assert_eq!((app.access_lifetime, app.session_idle), (Duration::from_secs(3600), Duration::from_secs(1800)));

    let registration = config.registration(&app.id, site, Use::Standalone).unwrap();
    assert!(matches!(&registration.auth, ClientAuth::PrivateKeyJwt { keys } if keys.as_str() == "epic-prod"));
    assert_eq!(registration.publish, Publish::Url);
    assert!(config.registration(&app.id, site, Use::Backend).is_none());
}

#[test]
fn a_hospital_is_four_lines() {
    let site = "[sites.second]\nvendor = \"epic\"\nname = \"Second\"\nfhir_base_url = \"https://second.example.org/fhir/\"\nregistrations = [\"viewer-epic-prod\"]\n";
    let loaded = example().file("sites.d/second.toml", site).load().unwrap_or_else(|faults| panic!("{faults}"));
    let site = &loaded.config.sites[&"second".parse::<SiteId>().unwrap()];
    assert_eq!(site.fhir_base.as_str(), "https://second.example.org/fhir");
    assert_eq!(site.fhir_base_text, "https://second.example.org/fhir/");
}

/// Whatever the binary brings along must be without fault by itself.
#[test]
fn the_built_in_profiles_have_no_fault() {
    let mut setup: Setup = example();
    setup.files.retain(|path, _| !path.ends_with("vendors.toml") && !path.ends_with("general-hospital.toml"));
    assert_eq!(setup.faults(), Vec::<String>::new());
}
