//! Real exchanges, `fixtures/scopes.json`: what an EHR answered to a request, and what an app is told of it.

use mantel_adapters::smart::{
    scope::{Asked, Scope, ScopeSet},
    translate::{Allowed, AnswerFacts, AskOptions, GrantKind, Ticked, ask, report},
};
use serde::Deserialize;

use super::{ALL, V1, V2, all_facts};

#[derive(Deserialize)]
struct Fixture {
    exchanges: Vec<Exchange>,
}

#[derive(Deserialize)]
struct Exchange {
    vendor: String,
    requested: String,
    granted: Option<String>,
}

/// What is told where it is not the request itself, in the fixture's order.
const TOLD_OTHERWISE: [(usize, &str); 9] = [
    // Oracle drops v1 scopes of an app that is registered for v2; `.search` and `.create` are no scopes.
    (4, "fhirUser launch openid profile"),
    (5, "launch/patient openid fhirUser"),
    // No SMART scope, so nothing that an app can ask for.
    (11, ""),
    (12, "system/Patient.read system/Encounter.read"),
    (15, ""),
    (18, "patient/*.read launch/patient offline_access"),
    (19, "openid offline_access fhirUser patient/AllergyIntolerance.read patient/CarePlan.read patient/Condition.read"),
    (
        21,
        "launch/patient patient/Observation.rs?category=http://terminology.hl7.org/CodeSystem/observation-category|laboratory patient/Observation.rs?category=http://terminology.hl7.org/CodeSystem/observation-category|vital-signs",
    ),
    (24, ""),
];

/// Where the answer had no refresh token, whatever its scope said.
const WITHOUT_REFRESH_TOKEN: [usize; 2] = [4, 5];

fn exchanges() -> Vec<Exchange> {
    serde_json::from_str::<Fixture>(include_str!("../fixtures/scopes.json")).unwrap().exchanges
}

fn options(requested: &str) -> AskOptions {
    let backend = requested.starts_with("system/") || requested.starts_with("athena/service");
    let grant = if backend { GrantKind::ClientCredentials } else { GrantKind::AuthorizationCode };
    let ehr_launch = requested.split(' ').any(|token| token == "launch");
    AskOptions { grant, ehr_launch, ..AskOptions::default() }
}

#[test]
fn each_exchange_is_told_in_the_apps_words() {
    let exchanges = exchanges();
    assert_eq!(exchanges.len(), 25);
    let all: Vec<_> = ALL.split_whitespace().collect();
    let (allowed, ticked) = (Allowed::parse(&all).unwrap(), Ticked::parse(&all).unwrap());
    for (index, Exchange { vendor, requested, granted }) in exchanges.iter().enumerate() {
        let asked = Asked::parse(requested);
        // What is told does not depend on how it was asked.
        for policy in [V1, V2] {
            let request = ask(&asked, &allowed, &ticked, &policy, options(requested));
            // Refused whole, with an error and without a token.
            let Some(granted) = granted else { continue };
            let has_refresh_token = !WITHOUT_REFRESH_TOKEN.contains(&index);
            let facts = AnswerFacts { has_refresh_token, ..all_facts() };
            let told = report(&asked, &request, Some(granted), &facts);
            let expected = TOLD_OTHERWISE.iter().find(|(number, _)| *number == index).map(|(_, told)| *told);
            let expected = expected.map_or_else(|| asked.to_string(), str::to_owned);
            assert_eq!(told.reported, expected, "{index}: {vendor}");

            let asked_for = asked.set();
            let read = ScopeSet::parse_lenient(granted).set;
            for scope in told.enforced.resources().map(Scope::Resource) {
                assert!(asked_for.covers_scope(&scope) && read.covers_scope(&scope), "{index}: {vendor}: {scope}");
            }
        }
    }
}

#[test]
fn oracles_silence_is_not_mistaken_for_a_grant() {
    let exchange = &exchanges()[4];
    let all: Vec<_> = ALL.split_whitespace().collect();
    let asked = Asked::parse(&exchange.requested);
    let request =
        ask(&asked, &Allowed::parse(&all).unwrap(), &Ticked::parse(&all).unwrap(), &V1, options(&exchange.requested));
    let told = report(&asked, &request, exchange.granted.as_deref(), &all_facts());
    assert!(told.lost_all_data(&asked));
    assert_eq!(told.refused.len(), 9, "each readable resource scope, by name");
}
