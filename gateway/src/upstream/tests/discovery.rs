use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use mantel_adapters::profile::DiscoverySource;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::support::*;
use crate::upstream::{
    Discovery, DiscoveryError, SiteLink,
    discovery::{DISCOVERY_FAILURE_TTL, DISCOVERY_TTL},
};

const SMART: &str = "/fhir/r4/.well-known/smart-configuration";
const METADATA: &str = "/fhir/r4/metadata";

fn smart(origin: &str) -> Value {
    json!({
        "issuer": format!("{origin}/fhir/r4"),
        "jwks_uri": format!("{origin}/keys"),
        "authorization_endpoint": format!("{origin}/oauth2/authorize"),
        "token_endpoint": format!("{origin}/oauth2/token"),
        "capabilities": ["launch-ehr"],
        "code_challenge_methods_supported": ["S256"],
    })
}

fn metadata(origin: &str) -> Value {
    json!({
        "resourceType": "CapabilityStatement",
        "fhirVersion": "4.0.1",
        "rest": [{ "mode": "server", "security": { "extension": [{
            "url": "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris",
            "extension": [
                { "url": "authorize", "valueUri": format!("{origin}/old/authorize") },
                { "url": "token", "valueUri": format!("{origin}/old/token") },
            ],
        }] } }],
    })
}

/// The origin by which the EHR was called.
fn origin(call: &Call) -> String {
    format!("https://{}", call.header("host").unwrap())
}

fn both(call: &Call) -> Reply {
    match call.path.as_str() {
        SMART => Reply::json(200, &smart(&origin(call))),
        METADATA => Reply::json(200, &metadata(&origin(call))),
        _ => Reply::status(404),
    }
}

fn discovery() -> Discovery {
    Discovery::new(Handle::current())
}

#[tokio::test]
async fn the_smart_configuration_is_asked_first_and_for_json() {
    let ehr = Ehr::start(both).await;
    let found = discovery().find(&ehr.link(), "client").await.unwrap();
    assert_eq!(found.endpoints.token, ehr.url("/oauth2/token"));
    assert!(!found.changed);
    assert_eq!(ehr.paths(), [SMART], "one source was enough");
    assert!(ehr.calls()[0].header("accept").unwrap().starts_with("application/json"));
}

#[tokio::test]
async fn headers_of_the_profile_are_sent_and_part_clients() {
    let ehr = Ehr::start(both).await;
    let site = ehr.site_with(|profile| {
        profile.headers.discovery.insert("Epic-Client-ID".into(), "{client_id}".into());
    });
    let (link, discovery) = (link(site), discovery());
    for client in ["one", "two", "one"] {
        discovery.find(&link, client).await.unwrap();
    }
    let named: Vec<_> = ehr.calls().iter().map(|call| call.header("epic-client-id").unwrap().to_owned()).collect();
    assert_eq!(named, ["one", "two"]);
}

#[tokio::test]
async fn metadata_is_asked_when_the_first_is_missing_in_whatever_way() {
    for missing in ["404", "html", "nonsense", "cut"] {
        let ehr = Ehr::start(move |call| match (call.path.as_str(), missing) {
            (SMART, "404") => Reply::status(404),
            (SMART, "html") => Reply::with(200, &[("content-type", "text/html")], "<!DOCTYPE html><html></html>"),
            (SMART, "nonsense") => Reply::json(200, &json!({ "token_endpoint": 7 })),
            (SMART, _) => Reply::Cut,
            _ => both(call),
        })
        .await;
        let found = discovery().find(&ehr.link(), "client").await.unwrap();
        assert_eq!(found.endpoints.token, ehr.url("/old/token"), "{missing}");
        assert_eq!(ehr.paths(), [SMART, METADATA], "{missing}");
    }
}

#[tokio::test]
async fn endpoints_that_are_configured_need_no_fetching() {
    let ehr = Ehr::start(both).await;
    let site = ehr.site_with(|profile| {
        profile.discovery = vec![DiscoverySource::Configuration];
        profile.endpoints.authorize = Some("https://login.example.org/authorize".into());
        profile.endpoints.token = Some("https://login.example.org/token".into());
    });
    let found = discovery().find(&link(site), "client").await.unwrap();
    assert_eq!(found.endpoints.token.as_str(), "https://login.example.org/token", "the operator's word needs no other");
    assert_eq!(ehr.connections(), 0);
}

#[tokio::test]
async fn many_ask_at_once_and_one_call_is_made() {
    let ehr = Ehr::start(both).await;
    let (link, discovery) = (ehr.link(), discovery());
    let all = futures_util::future::join_all((0..50).map(|_| discovery.find(&link, "client"))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(ehr.calls().len(), 1);
}

#[tokio::test]
async fn where_no_source_has_anything_each_reason_is_told_and_kept_a_while() {
    let ehr = Ehr::start(|_| Reply::status(503)).await;
    let (link, discovery) = (ehr.link(), discovery());
    let error = discovery.find(&link, "client").await.unwrap_err();
    let DiscoveryError::NotFound { tried, .. } = &error else { panic!("{error}") };
    let sources: Vec<_> = tried.iter().map(|tried| tried.source).collect();
    assert_eq!(sources, [DiscoverySource::SmartConfiguration, DiscoverySource::CapabilityStatement]);
    assert_eq!(discovery.find(&link, "client").await.unwrap_err(), error);
    assert_eq!(ehr.calls().len(), 2, "not asked again at once");
    advance(DISCOVERY_FAILURE_TTL).await;
    discovery.find(&link, "client").await.unwrap_err();
    assert_eq!(ehr.calls().len(), 4);
}

#[tokio::test]
async fn endpoints_on_a_strange_host_are_held_until_it_is_confirmed() {
    let ehr = Ehr::start(|call| {
        let mut document = smart(&origin(call));
        document["token_endpoint"] = "https://elsewhere.example.org/token".into();
        Reply::json(200, &document)
    })
    .await;
    let discovery = discovery();
    let error = discovery.find(&ehr.link(), "client").await.unwrap_err();
    assert!(matches!(error, DiscoveryError::Held { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("elsewhere.example.org") && text.contains("auth_hosts"), "{text}");
    // The operator's confirmation counts at once, whatever is cached.
    let confirmed = ehr.site_with(|profile| profile.auth_hosts = vec!["elsewhere.example.org".into()]);
    let found = discovery.find(&link(confirmed), "client").await.unwrap();
    assert_eq!(found.endpoints.token.host_str(), Some("elsewhere.example.org"));
}

/// Lets the clock run on while no exchange is under way.
async fn advance(by: std::time::Duration) {
    tokio::time::pause();
    tokio::time::advance(by).await;
    tokio::time::resume();
}

async fn token(discovery: &Discovery, link: &SiteLink) -> (String, bool) {
    let found = discovery.find(link, "client").await.unwrap();
    (found.endpoints.token.path().to_owned(), found.changed)
}

#[tokio::test]
async fn a_change_is_flagged_and_the_old_serves_until_it_is_known() {
    let moved = Arc::new(AtomicBool::new(false));
    let now = moved.clone();
    let ehr = Ehr::start(move |call| {
        let mut document = smart(&origin(call));
        if now.load(Ordering::SeqCst) {
            document["token_endpoint"] = format!("{}/oauth3/token", origin(call)).into();
        }
        Reply::json(200, &document)
    })
    .await;
    let (link, discovery) = (ehr.link(), discovery());
    assert_eq!(token(&discovery, &link).await, ("/oauth2/token".into(), false));
    moved.store(true, Ordering::SeqCst);
    assert_eq!(token(&discovery, &link).await, ("/oauth2/token".into(), false), "fresh for an hour");
    advance(DISCOVERY_TTL).await;
    assert_eq!(token(&discovery, &link).await, ("/oauth2/token".into(), false), "stale while it is looked for");
    eventually(async || token(&discovery, &link).await == ("/oauth3/token".into(), true)).await;
    assert_eq!(ehr.calls().len(), 2);
}

#[tokio::test]
async fn what_is_forgotten_is_looked_for_anew() {
    let ehr = Ehr::start(both).await;
    let (link, discovery) = (ehr.link(), discovery());
    discovery.find(&link, "client").await.unwrap();
    discovery.forget(&link.site.id);
    discovery.find(&link, "client").await.unwrap();
    assert_eq!(ehr.calls().len(), 2);
}
