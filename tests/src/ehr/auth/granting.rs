//! Which scopes an app gets of those that it asked for, and how the answer spells them.

use crate::ehr::{
    auth::{
        client::Client,
        places::{Base, Host},
        rules::{OddScopes, Rules},
        scope::{Dialect, Scope, all_covered},
    },
    contract::Vendor,
};

/// The whole request fails for its scopes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeRefusal {
    /// One is not ticked, or not known.
    Unticked,
    TooMany,
    /// Nothing is left of them.
    NothingLeft,
    /// `patient/…` without `launch` or `launch/patient`.
    PatientWithoutLaunch,
    /// `fhirUser`, where that breaks the sign-in.
    FhirUser,
}

/// Athena's sentence for a scope that is not ticked.
pub const ATHENA_POLICY: &str = "Policy evaluation failed for this request, please check the policy configurations.";

const FREE: [&str; 6] = ["openid", "fhirUser", "profile", "launch", "launch/patient", "launch/encounter"];

/// The scopes of an authorization request that are in question at all; who signs in decides on the rest.
pub fn judge(rules: &Rules, client: &Client, base: Base, asked: &str) -> Result<Vec<Scope>, ScopeRefusal> {
    let words: Vec<&str> = asked.split_ascii_whitespace().collect();
    if words.len() > rules.max_scopes {
        return Err(ScopeRefusal::TooMany);
    }
    let picky = matches!(rules.vendor, Vendor::Athena | Vendor::AthenaPractice);
    let mut kept: Vec<Scope> = Vec::new();
    for word in &words {
        let fitting = fitting(rules, client, base, word);
        let whole = match (Scope::parse_as(word, base.legacy), fitting.as_slice()) {
            (Some(asked), [one]) => asked == *one,
            _ => false,
        };
        if picky && !whole {
            return Err(ScopeRefusal::Unticked);
        }
        for scope in fitting {
            if !kept.contains(&scope) {
                kept.push(scope);
            }
        }
    }
    if rules.vendor == Vendor::AthenaPractice {
        let patient = kept.iter().filter_map(Scope::resource).any(|scope| scope.context == "patient");
        if patient && !kept.iter().any(|scope| scope.is("launch") || scope.is("launch/patient")) {
            return Err(ScopeRefusal::PatientWithoutLaunch);
        }
        if rules.fhir_user_fails && kept.iter().any(|scope| scope.is("fhirUser")) {
            return Err(ScopeRefusal::FhirUser);
        }
    }
    // Epic takes a request without scopes, and Oracle gives a token that opens nothing.
    let empty_fails = !matches!(rules.vendor, Vendor::Epic | Vendor::Oracle);
    if kept.is_empty() && empty_fails { Err(ScopeRefusal::NothingLeft) } else { Ok(kept) }
}

/// What the record leaves of one word.
fn fitting(rules: &Rules, client: &Client, base: Base, word: &str) -> Vec<Scope> {
    let ticked = client.ticked();
    let all = ticked.is_empty();
    let Some(scope) = Scope::parse_as(word, base.legacy) else { return Vec::new() };
    let resource = match &scope {
        Scope::Plain(text) => {
            let free = FREE.contains(&text.as_str());
            let refresh = matches!(text.as_str(), "offline_access" | "online_access");
            let known = match rules.vendor {
                // Providers have no patient to pick there.
                Vendor::Oracle if text == "launch/patient" && base.host == Host::Main => false,
                Vendor::Oracle | Vendor::Epic | Vendor::Generic if free => true,
                _ => all && (free || refresh) || ticked.contains(&scope),
            };
            return if known { vec![scope] } else { Vec::new() };
        }
        Scope::Resource(resource) => resource,
    };
    let record = record_dialect(rules, client, base);
    let wrong = match rules.vendor {
        Vendor::Oracle => {
            resource.kind == "*" || resource.query.is_some() || resource.v1 != (record != Some(Dialect::V2))
        }
        Vendor::AthenaPractice if resource.query.is_some() => true,
        _ => !rules.v2_scopes && !resource.v1,
    };
    if wrong || resource.kind == "*" && !rules.wildcards {
        return Vec::new();
    }
    if all {
        return vec![scope];
    }
    let mut fitting: Vec<Scope> = Vec::new();
    for narrowed in ticked.iter().filter_map(Scope::resource).filter_map(|t| resource.within(t)).map(Scope::Resource) {
        if !fitting.contains(&narrowed) {
            fitting.push(narrowed);
        }
    }
    fitting
}

/// The dialect of the app record; none: as it is asked.
fn record_dialect(rules: &Rules, client: &Client, base: Base) -> Option<Dialect> {
    if base.legacy {
        return Some(Dialect::V1Lowercase);
    }
    let by_switch = rules.record_v1.map(|v1| if v1 { Dialect::V1 } else { Dialect::V2 });
    let usual = (rules.vendor == Vendor::Oracle).then_some(Dialect::V1);
    by_switch.or(client.dialect).or(usual)
}

/// Whether this app belongs to Oracle's `smart-v2` endpoints.
pub fn is_v2_record(rules: &Rules, client: &Client) -> bool {
    record_dialect(rules, client, Base { host: Host::Main, legacy: false }) == Some(Dialect::V2)
}

/// Cuts scopes to who signed in: without a patient there are no `patient/` ones, and `system/` is nobody's.
pub fn settle(scopes: &[Scope], patient: Option<&str>) -> Vec<Scope> {
    let stays = |scope: &&Scope| match scope {
        Scope::Plain(text) => text != "launch/patient" || patient.is_some(),
        Scope::Resource(scope) => match scope.context.as_str() {
            "patient" => patient.is_some(),
            context => context == "user",
        },
    };
    scopes.iter().filter(stays).cloned().collect()
}

/// Whether a grant of these scopes comes with a refresh token.
pub fn has_refresh(rules: &Rules, client: &Client, scopes: &[Scope]) -> bool {
    let asked = |plain: &str| scopes.iter().any(|scope| scope.is(plain));
    let offline = || Scope::Plain("offline_access".into());
    match rules.vendor {
        // Confidential and registered for it; the request is not what decides.
        Vendor::Epic => !client.auth.is_public() && (asked("offline_access") || client.ticked().contains(&offline())),
        Vendor::Athena | Vendor::AthenaPractice => rules.refresh_unasked || asked("offline_access"),
        Vendor::Oracle | Vendor::Generic => asked("offline_access") || asked("online_access"),
    }
}

/// The `scope` of a token answer.
pub fn spell(rules: &Rules, client: &Client, base: Base, scopes: &[Scope]) -> String {
    let dialect = record_dialect(rules, client, base);
    let mut words: Vec<String> = Vec::new();
    for scope in scopes {
        if rules.hide_offline_access && scope.is("offline_access") {
            continue;
        }
        let word = scope.text(dialect);
        if !words.contains(&word) {
            words.push(word);
        }
    }
    if rules.odd_scopes == OddScopes::Plain {
        return words.join(" ");
    }
    if rules.odd_scopes == OddScopes::OddAndWider {
        words.push(one_more(client, scopes).text(dialect));
    }
    words.reverse();
    if let Some(first) = words.iter().find(|word| word.contains('.')).cloned() {
        // `patient/Immunization.Read patient/Immunization.read`
        words.insert(0, first.replace(".read", ".Read").replace(".write", ".Write"));
    }
    let mut said = words.join(" ");
    said.push(' ');
    said
}

/// One that was not asked: of the record, else of ours.
fn one_more(client: &Client, scopes: &[Scope]) -> Scope {
    let context = scopes.iter().find_map(Scope::resource).map_or("patient", |scope| scope.context.as_str());
    let unasked = |scope: &Scope| scope.resource().is_some() && !all_covered(std::slice::from_ref(scope), scopes);
    let of_record = client.ticked().into_iter().find(unasked);
    of_record
        .or_else(|| Scope::parse(&format!("{context}/BodyStructure.read")))
        .unwrap_or_else(|| Scope::Plain("profile".into()))
}

/// As the FHIR half hears it: types in FHIR's own case.
pub fn for_fhir(scopes: &[Scope]) -> Vec<String> {
    scopes.iter().map(|scope| scope.text(None)).collect()
}
