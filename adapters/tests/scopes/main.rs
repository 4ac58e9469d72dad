//! Scopes, both ways: the worked examples of `conformance.md` C5, real exchanges, and properties.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod ask;
mod examples;
mod exchanges;
mod forms;
mod properties;
mod refresh;

use mantel_adapters::{
    profile::{Dialect, ScopePolicy, Wildcards},
    smart::{
        scope::Asked,
        translate::{Allowed, AnswerFacts, AskOptions, DeliveredContext, Granted, Request, Ticked, ask, report},
    },
};

const V1: ScopePolicy = ScopePolicy { dialect: Dialect::V1, wildcards: Wildcards::Keep, queries: false };
const V2: ScopePolicy = ScopePolicy { dialect: Dialect::V2, wildcards: Wildcards::Keep, queries: true };
const V1_EXPAND: ScopePolicy = ScopePolicy { dialect: Dialect::V1, wildcards: Wildcards::Expand, queries: false };
const V2_EXPAND: ScopePolicy = ScopePolicy { dialect: Dialect::V2, wildcards: Wildcards::Expand, queries: false };
const LOWERCASE: ScopePolicy =
    ScopePolicy { dialect: Dialect::V1Lowercase, wildcards: Wildcards::Keep, queries: false };

const LAB: &str = "?category=http://terminology.hl7.org/CodeSystem/observation-category|laboratory";
const VITALS: &str = "?category=http://terminology.hl7.org/CodeSystem/observation-category|vital-signs";

/// Every word and every resource scope.
const ALL: &str = "launch launch/patient launch/encounter launch/imagingstudy launch/list?role=https://example.org/role \
                   openid fhirUser profile offline_access online_access email \
                   patient/*.cruds user/*.cruds system/*.cruds";

/// Of Observation and Patient in the examples' shorthand.
fn long(text: &str) -> String {
    text.replace("/O.", "/Observation.").replace("?lab", LAB).replace("?vitals", VITALS)
}

fn list(text: &str) -> Vec<String> {
    long(text).split(' ').map(str::to_owned).collect()
}

fn ticked(text: &str) -> Ticked {
    Ticked::parse(&list(text)).unwrap()
}

fn allowed(text: &str) -> Allowed {
    Allowed::parse(&list(text)).unwrap()
}

/// Everything came.
fn all_facts() -> AnswerFacts {
    AnswerFacts {
        has_refresh_token: true,
        has_patient: true,
        has_encounter: true,
        has_id_token: true,
        has_fhir_user: true,
        contexts: vec![
            DeliveredContext { resource_type: "ImagingStudy".into(), role: None },
            DeliveredContext { resource_type: "List".into(), role: Some("https://example.org/role".into()) },
        ],
    }
}

/// Asks for everything that is allowed and ticked without limit.
fn asked_of(text: &str, policy: &ScopePolicy, ticks: &str, options: AskOptions) -> (Asked, Request) {
    let asked = Asked::parse(&long(text));
    let request = ask(&asked, &allowed(ALL), &ticked(ticks), policy, options);
    (asked, request)
}

fn exchange(text: &str, policy: &ScopePolicy, ticks: &str, answer: Option<&str>, options: AskOptions) -> Granted {
    let (asked, request) = asked_of(text, policy, ticks, options);
    report(&asked, &request, answer.map(long).as_deref(), &all_facts())
}
