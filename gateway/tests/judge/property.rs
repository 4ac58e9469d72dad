//! The judge against a slow reference: whatever an EHR answers, nothing outside the grant leaves, and an honest
//! request is answered with all that is granted.

use mantel::proxy::judge::{Judged, Mode};
use mantel_adapters::fhir::inspect::{Ending, Inspector};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::setup::{Ehr, Sent, World};

const TYPES: [&str; 4] = ["Observation", "Condition", "Patient", "Practitioner"];

/// All that there is.
fn world() -> Vec<Value> {
    let mut all = vec![json!({"resourceType": "Practitioner", "id": "x1"})];
    for patient in ["p1", "p2"] {
        all.push(json!({"resourceType": "Patient", "id": patient}));
        for (number, category) in ["laboratory", "vital-signs"].into_iter().enumerate() {
            all.push(json!({"resourceType": "Observation", "id": format!("o{number}-{patient}"),
                "subject": {"reference": format!("Patient/{patient}")},
                "category": [{"coding": [{"code": category}]}]}));
        }
        all.push(json!({"resourceType": "Condition", "id": format!("c-{patient}"),
            "subject": {"reference": format!("Patient/{patient}")}}));
    }
    all
}

fn is_of(resource: &Value, patient: &str) -> bool {
    match resource["resourceType"].as_str().unwrap() {
        "Practitioner" => true,
        "Patient" => resource["id"] == *patient,
        _ => resource["subject"]["reference"] == format!("Patient/{patient}"),
    }
}

/// One scope as it is drawn.
#[derive(Clone, Debug)]
struct Token {
    context: &'static str,
    name: &'static str,
    permissions: &'static str,
    laboratory: bool,
}

impl Token {
    fn text(&self) -> String {
        let query = if self.laboratory { "?category=laboratory" } else { "" };
        format!("{}/{}.{}{query}", self.context, self.name, self.permissions)
    }

    /// The obviously right reading of a scope.
    fn permits(&self, letter: char, resource: &Value, patient: Option<&str>) -> bool {
        let covers_type = self.name == "*" || resource["resourceType"] == self.name;
        let covers_patient = self.context != "patient" || patient.is_some_and(|patient| is_of(resource, patient));
        let covers_query = !self.laboratory || resource["category"][0]["coding"][0]["code"] == "laboratory";
        covers_type && covers_patient && covers_query && self.permissions.contains(letter)
    }
}

fn token() -> impl Strategy<Value = Token> {
    let contexts = prop_oneof![3 => Just("patient"), 1 => Just("user"), 1 => Just("system")];
    let names = prop::sample::select(vec!["*", "Observation", "Condition", "Patient", "Practitioner"]);
    let permissions = prop::sample::select(vec!["r", "s", "rs", "cud", "cruds"]);
    (contexts, names, permissions, prop::bool::weighted(0.2)).prop_map(|(context, name, permissions, laboratory)| {
        // Only of these is it a query that can be decided.
        Token { context, name, permissions, laboratory: laboratory && name == "Observation" }
    })
}

fn text(tokens: &[Token]) -> String {
    tokens.iter().map(Token::text).collect::<Vec<_>>().join(" ")
}

/// Parameters that choose a patient, well and badly.
const SELECTORS: [&str; 13] = [
    "",
    "patient=p1",
    "patient=p2",
    "patient=Patient/p1",
    "subject=Patient/p1",
    "subject=Patient/p2",
    "subject:Patient=p2",
    "_id=p1",
    "_id=p2",
    "patient=p1,p2",
    "patient=p1&subject=Patient/p2",
    "performer=Patient/p2",
    "patient=https://ehr.example/r4/Patient/p1",
];

/// What a stream can hold: what the EHR says it confines its token to, or all of the type.
fn streamed<'r>(all: &'r [Value], name: &str, upstream: Option<&[Token]>) -> Vec<&'r Value> {
    let shows = |resource: &&Value| match upstream {
        None => true,
        Some(tokens) => {
            tokens.iter().any(|token| ['r', 's'].iter().any(|letter| token.permits(*letter, resource, Some("p1"))))
        }
    };
    all.iter().filter(|resource| resource["resourceType"] == name).filter(shows).collect()
}

fn inspected(mode: &Mode, resources: &[&Value], bundle: bool) -> Vec<Value> {
    let Mode::Inspect(inspection) = mode else { panic!() };
    let entries: Vec<Value> = resources.iter().map(|resource| json!({"resource": resource})).collect();
    let text = if bundle {
        json!({"resourceType": "Bundle", "type": "searchset", "entry": entries}).to_string()
    } else {
        resources[0].to_string()
    };
    let mut out = bytes::BytesMut::new();
    let mut inspector = Inspector::new(inspection.watch());
    inspector.push(text.as_bytes(), &mut out).unwrap();
    match inspector.finish(&mut out).unwrap() {
        Ending::Withheld => Vec::new(),
        Ending::Passed => vec![serde_json::from_slice(&out).unwrap()],
        Ending::Bundle { .. } => {
            let passed: Value = serde_json::from_slice(&out).unwrap();
            let entries = passed["entry"].as_array().cloned().unwrap_or_default();
            entries.into_iter().map(|entry| entry["resource"].clone()).collect()
        }
    }
}

/// Scopes are texts with static lifetimes in the tables; here they are drawn.
fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reads_show_what_the_scopes_say(
        ours in prop::collection::vec(token(), 0..4),
        upstream in prop::option::of(prop::collection::vec(token(), 0..4)),
        has_patient in prop::bool::weighted(0.9),
        chosen in 0..9_usize,
    ) {
        let all = world();
        let resource = &all[chosen];
        let (name, id) = (resource["resourceType"].as_str().unwrap(), resource["id"].as_str().unwrap());
        let ehr = upstream.as_deref().map_or(Ehr::Silent, |tokens| Ehr::Says(leak(text(tokens))));
        let mut world = World::new(&text(&ours), ehr);
        if !has_patient {
            world = world.without_patient();
        }
        let patient = has_patient.then_some("p1");
        let allowed = ours.iter().any(|token| token.permits('r', resource, patient));
        let open = ours.iter().any(|token| token.context != "patient" && token.permits('r', resource, patient));
        let shown = match world.judge(&Sent::new(&format!("GET {name}/{id}"))) {
            Err(_) => false,
            Ok(Judged::Forward(authorized)) => match authorized.mode() {
                Mode::Stream if open => true,
                // The EHR decides; it shows what it said it grants.
                Mode::Stream => streamed(&all, name, upstream.as_deref()).contains(&resource),
                mode => !inspected(mode, &[resource], false).is_empty(),
            },
            Ok(_) => panic!(),
        };
        let hidden_by_ehr = allowed && !open && !shown && !streamed(&all, name, upstream.as_deref()).contains(&resource);
        prop_assert!(shown == allowed || hidden_by_ehr, "{} / {:?} / {}/{}", text(&ours), ehr, name, id);
    }

    #[test]
    fn searches_show_what_the_scopes_say(
        ours in prop::collection::vec(token(), 0..4),
        upstream in prop::option::of(prop::collection::vec(token(), 0..4)),
        has_patient in prop::bool::weighted(0.9),
        name in prop::sample::select(TYPES.to_vec()),
        selector in prop::sample::select(SELECTORS.to_vec()),
    ) {
        let all = world();
        let ehr = upstream.as_deref().map_or(Ehr::Silent, |tokens| Ehr::Says(leak(text(tokens))));
        let mut world = World::new(&text(&ours), ehr);
        if !has_patient {
            world = world.without_patient();
        }
        let patient = has_patient.then_some("p1");
        let permits = |resource: &Value, letters: &[char]| {
            ours.iter().any(|token| letters.iter().any(|letter| token.permits(*letter, resource, patient)))
        };
        // All that the EHR has: it ignores every parameter.
        let hostile: Vec<&Value> = all.iter().collect();
        let line = format!("GET {name}?{selector}");
        let judged = world.judge(&Sent::new(&line));
        let of_type = all.iter().filter(|resource| resource["resourceType"] == name);
        let open = ours.iter().any(|token| {
            token.context != "patient" && !token.laboratory && (token.name == "*" || token.name == name)
                && token.permissions.contains('s')
        });
        let granted: Vec<&Value> = of_type.filter(|resource| permits(resource, &['s'])).collect();
        match judged {
            Ok(Judged::Forward(authorized)) => {
                let shown: Vec<Value> = match authorized.mode() {
                    Mode::Stream if open => continue_with(&all, name),
                    Mode::Stream => streamed(&all, name, upstream.as_deref()).into_iter().cloned().collect(),
                    mode => inspected(mode, &hostile, true),
                };
                for resource in &shown {
                    let letters: &[char] = if resource["resourceType"] == name { &['s', 'r'] } else { &['r'] };
                    prop_assert!(permits(resource, letters), "{}: {resource} leaves for {}", line, text(&ours));
                }
                // Where the answer streams, the EHR may show less by a query of its own.
                let by_ehr = matches!(authorized.mode(), Mode::Stream) && !open;
                for resource in granted.iter().filter(|_| !by_ehr) {
                    prop_assert!(shown.contains(resource), "{}: {resource} is withheld from {}", line, text(&ours));
                }
                if !open && patient.is_some() && !ours.iter().any(|token| token.context != "patient") && name != "Practitioner" {
                    let query = &authorized.request().query;
                    let is_choice = |parameter: &str| {
                        if name == "Patient" { parameter == "_id" } else { matches!(parameter, "patient" | "subject") }
                    };
                    let chosen = query.iter().filter(|(parameter, _)| is_choice(parameter));
                    let chosen: Vec<&str> = chosen.map(|(_, value)| value.as_str()).collect();
                    prop_assert!(matches!(chosen.as_slice(), ["p1" | "Patient/p1"]), "{} became {:?}", line, query);
                }
            }
            Ok(_) => panic!(),
            Err(_) => {
                // An honest search is refused only where nothing is granted.
                let honest = matches!(selector, "" | "patient=p1") && name != "Patient" || selector == "_id=p1" && name == "Patient";
                let some = !granted.is_empty();
                prop_assert!(!(honest && some), "{} is refused to {}", line, text(&ours));
            }
        }
    }
}

fn continue_with(all: &[Value], name: &str) -> Vec<Value> {
    all.iter().filter(|resource| resource["resourceType"] == name).cloned().collect()
}
