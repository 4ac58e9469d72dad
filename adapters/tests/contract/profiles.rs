//! What the built-in profiles say, and that nothing in them is wrong.

use std::time::Duration;

use mantel_adapters::{
    adapter::discovery_headers,
    profile::{Pkce, Profile, Wildcards},
    registry,
    smart::discovery::audience,
};

use crate::support::{VENDORS, profile, profiles};

#[test]
fn there_are_five_and_each_has_its_adapter() {
    let profiles = profiles();
    assert_eq!(profiles.keys().map(String::as_str).collect::<Vec<_>>(), VENDORS);
    for (vendor, profile) in profiles {
        assert!(registry::adapter(&profile.adapter).is_some(), "{vendor}");
        assert!(profile.errors.values().all(|rule| rule.error.is_some() || rule.contains.is_some()), "{vendor}");
    }
}

#[test]
fn pkce_is_sent_to_all_and_nothing_discards_a_refresh_token() {
    for (vendor, profile) in profiles() {
        assert_eq!(profile.pkce, Pkce::S256, "{vendor}");
        assert_eq!(profile.tokens.reuse_grace, Duration::ZERO, "{vendor}");
        assert!(profile.nonce, "{vendor}");
    }
}

/// When a token falls due, after the clamp to 40 % that custody applies.
#[test]
fn tokens_are_refreshed_in_time() {
    let due = |profile: &Profile, lifetime: u64| {
        let before = profile.tokens.refresh_before.min(Duration::from_secs(lifetime).mul_f64(0.4));
        lifetime - before.as_secs()
    };
    for (vendor, lifetime, expected) in [
        ("epic", 300, 180),
        ("epic", 3600, 3300),
        ("oracle", 570, 480),
        ("athena", 3600, 3300),
        ("athena-practice", 3600, 3000),
        ("generic", 3600, 3300),
    ] {
        assert_eq!(due(&profile(vendor), lifetime), expected, "{vendor}, {lifetime} s");
    }
}

#[test]
fn differences() {
    struct Row {
        vendor: &'static str,
        lifetime: u64,
        min_interval: u64,
        scope_on_refresh: bool,
        dies: bool,
        wildcards: Wildcards,
        audience: &'static str,
    }
    let base = "https://ehr.example/emr/fhir/r4";
    let rows = [
        Row {
            vendor: "generic",
            lifetime: 3600,
            min_interval: 0,
            scope_on_refresh: false,
            dies: false,
            wildcards: Wildcards::Keep,
            audience: base,
        },
        Row {
            vendor: "epic",
            lifetime: 3600,
            min_interval: 0,
            scope_on_refresh: false,
            dies: false,
            wildcards: Wildcards::Expand,
            audience: base,
        },
        Row {
            vendor: "oracle",
            lifetime: 570,
            min_interval: 60,
            scope_on_refresh: false,
            dies: false,
            wildcards: Wildcards::Expand,
            audience: base,
        },
        Row {
            vendor: "athena",
            lifetime: 3600,
            min_interval: 0,
            scope_on_refresh: true,
            dies: false,
            wildcards: Wildcards::Expand,
            audience: base,
        },
        Row {
            vendor: "athena-practice",
            lifetime: 3600,
            min_interval: 0,
            scope_on_refresh: false,
            dies: true,
            wildcards: Wildcards::Keep,
            audience: "https://ehr.example/emr",
        },
    ];
    assert_eq!(rows.len(), VENDORS.len());
    for row in rows {
        let profile = profile(row.vendor);
        let tokens = &profile.tokens;
        assert_eq!(tokens.assume_lifetime.as_secs(), row.lifetime, "{}", row.vendor);
        assert_eq!(tokens.min_refresh_interval.as_secs(), row.min_interval, "{}", row.vendor);
        assert_eq!(tokens.send_scope_on_refresh, row.scope_on_refresh, "{}", row.vendor);
        assert_eq!(tokens.dies_with_access, row.dies, "{}", row.vendor);
        assert_eq!(profile.scopes.wildcards, row.wildcards, "{}", row.vendor);
        assert_eq!(audience(&profile, base).as_deref(), Some(row.audience), "{}", row.vendor);
    }
}

#[test]
fn discovery_asks_for_json_and_names_the_client_at_epic_alone() {
    for (vendor, profile) in profiles() {
        let headers = discovery_headers(&profile, Some("the-client"));
        assert!(headers["accept"].to_str().unwrap().starts_with("application/json"), "{vendor}");
        let client = headers.get("epic-client-id").map(|value| value.to_str().unwrap());
        assert_eq!(client, (vendor == "epic").then_some("the-client"), "{vendor}");
        assert_eq!(discovery_headers(&profile, None).get("epic-client-id"), None, "{vendor}");
    }
}
