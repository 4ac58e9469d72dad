//! What holds for every request, registration, answer and kind of vendor.
//!
//! Wider and narrower are judged here by points: (context, type, permission, category of the resource), read off the
//! strings by a small parser of this file's own, so that a slip in the library's own algebra shows.

use std::collections::BTreeSet;

use mantel_adapters::{
    profile::{Dialect, RefreshScope, ScopePolicy, Wildcards},
    smart::{
        scope::{Asked, Context, Coverage, LaunchScope, Permissions, Scope, ScopeSet},
        translate::{Allowed, AnswerFacts, AskOptions, GrantKind, Granted, Request, Ticked, ask, narrow, report},
    },
};
use proptest::{collection::vec, prelude::*, sample::select};

use super::all_facts;

const TYPES: [&str; 4] = ["Condition", "Observation", "Patient", "Task"];
const LETTERS: [char; 5] = ['c', 'r', 'u', 'd', 's'];
/// The category of a resource; none of the queries matches the last.
const CATEGORIES: [&str; 3] = ["a", "b", "-"];

type Point = (String, &'static str, char, &'static str);

/// What a scope string in v1 or v2, with types in any case, permits.
fn points(text: &str) -> BTreeSet<Point> {
    let mut found = BTreeSet::new();
    for token in text.split(' ') {
        let Some((context, rest)) = token.split_once('/') else { continue };
        if context == "launch" {
            continue;
        }
        let (head, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (name, word) = head.split_once('.').unwrap();
        let letters = match word {
            "read" => "rs",
            "write" => "cud",
            "*" => "cruds",
            other => other,
        };
        let types = TYPES.into_iter().filter(|known| name == "*" || known.eq_ignore_ascii_case(name));
        for (resource_type, letter) in types.flat_map(|known| letters.chars().map(move |letter| (known, letter))) {
            let matching = CATEGORIES.into_iter().filter(|category| match query {
                "" => true,
                "category=a" | "category=%61" => *category == "a",
                "category=b" => *category == "b",
                "code=x" => false,
                other => panic!("{other}"),
            });
            found.extend(matching.map(|category| (context.to_owned(), resource_type, letter, category)));
        }
    }
    found
}

fn permitted(set: &ScopeSet) -> BTreeSet<Point> {
    points(&set.to_string())
}

fn resource() -> impl Strategy<Value = String> {
    let context = select(vec!["patient", "user", "system"]);
    let name = select(vec!["*", "Condition", "Observation", "Observation", "Patient", "Task"]);
    let v1 = select(vec!["read", "write", "*"]).prop_map(str::to_owned);
    let letters = (1_u8..32).prop_map(|bits| {
        LETTERS
            .into_iter()
            .enumerate()
            .filter(|(index, _)| bits & (1 << index) != 0)
            .map(|(_, letter)| letter)
            .collect::<String>()
    });
    let query = prop_oneof![
        4 => Just(""),
        1 => select(vec!["?category=a", "?category=%61", "?category=b", "?code=x"]),
    ];
    let common = prop_oneof![Just("rs".to_owned()), letters];
    let v2 = (common, query).prop_map(|(letters, query)| format!("{letters}{query}"));
    (context, name, prop_oneof![v1, v2]).prop_map(|(context, name, word)| format!("{context}/{name}.{word}"))
}

fn word() -> impl Strategy<Value = String> {
    let words = [
        "launch",
        "launch/patient",
        "launch/encounter",
        "launch/list?role=https://example.org/role",
        "launch/imagingstudy",
    ];
    let identity =
        ["openid", "fhirUser", "profile", "offline_access", "online_access", "email", "__app", "https://example.org/x"];
    select([words.as_slice(), identity.as_slice()].concat()).prop_map(str::to_owned)
}

fn scopes(most: usize) -> impl Strategy<Value = Vec<String>> {
    vec(prop_oneof![3 => resource(), 1 => word()], 0..most)
}

fn policy() -> impl Strategy<Value = ScopePolicy> {
    let dialect = select(vec![Dialect::V1, Dialect::V2, Dialect::V1Lowercase]);
    let wildcards = select(vec![Wildcards::Keep, Wildcards::Expand]);
    (dialect, wildcards, any::<bool>()).prop_map(|(dialect, wildcards, queries)| ScopePolicy {
        dialect,
        wildcards,
        queries,
    })
}

fn options() -> impl Strategy<Value = AskOptions> {
    let refresh = select(vec![RefreshScope::OfflineAccess, RefreshScope::OnlineAccess, RefreshScope::None]);
    let grant = prop_oneof![4 => Just(GrantKind::AuthorizationCode), 1 => Just(GrantKind::ClientCredentials)];
    (grant, refresh, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(grant, refresh_scope, wants_refresh_for_custody, ehr_launch, picker)| AskOptions {
            grant,
            refresh_scope,
            wants_refresh_for_custody,
            ehr_launch,
            picker,
        },
    )
}

/// Facts at random.
fn facts() -> impl Strategy<Value = AnswerFacts> {
    (any::<[bool; 5]>(), any::<bool>()).prop_map(|([refresh, patient, encounter, id_token, user], contexts)| {
        AnswerFacts {
            has_refresh_token: refresh,
            has_patient: patient,
            has_encounter: encounter,
            has_id_token: id_token,
            has_fhir_user: user,
            contexts: if contexts { all_facts().contexts } else { Vec::new() },
        }
    })
}

#[derive(Clone, Debug)]
struct Case {
    asked: Vec<String>,
    allowed: Vec<String>,
    ticked: Vec<String>,
    policy: ScopePolicy,
    options: AskOptions,
    facts: AnswerFacts,
}

impl Case {
    fn asked(&self) -> Asked {
        Asked::parse(&self.asked.join(" "))
    }

    fn request(&self) -> Request {
        let allowed = Allowed::parse(&self.allowed).unwrap();
        ask(&self.asked(), &allowed, &Ticked::parse(&self.ticked).unwrap(), &self.policy, self.options)
    }

    fn report(&self, answer: Option<&str>) -> Granted {
        report(&self.asked(), &self.request(), answer, &self.facts)
    }
}

fn case() -> impl Strategy<Value = Case> {
    let wide = || {
        vec!["patient/*.*".to_owned(), "user/*.*".into(), "system/*.*".into(), "launch".into(), "offline_access".into()]
    };
    let allowed = prop_oneof![Just(wide()), scopes(12)];
    let ticked = prop_oneof![
        1 => Just(wide()),
        1 => Just(TYPES.iter().flat_map(|name| ["patient", "user", "system"].map(|context| format!("{context}/{name}.rs"))).collect()),
        2 => scopes(16),
    ];
    (scopes(8), allowed, ticked, policy(), options(), facts()).prop_map(
        |(asked, allowed, ticked, policy, options, facts)| Case { asked, allowed, ticked, policy, options, facts },
    )
}

/// What an EHR may answer: anything, or what it was asked for in any of the dialects' spellings.
fn answer() -> impl Strategy<Value = Option<String>> {
    let odd = [
        "Patient.read",
        "Patient.Read (STU3)",
        "user/ProcedureRequest.Read",
        "PATIENT/OBSERVATION.READ",
        "api:oemr",
        "",
    ];
    let token = prop_oneof![6 => resource(), 2 => word(), 1 => select(odd.to_vec()).prop_map(str::to_owned)];
    prop_oneof![1 => Just(None), 6 => vec(token, 0..10).prop_map(|tokens| Some(tokens.join(" ")))]
}

/// A scope string of an EHR as points; unreadable tokens are none.
fn answered(text: &str) -> BTreeSet<Point> {
    let smart = |token: &&str| {
        ["patient/", "user/", "system/"].iter().any(|context| token.to_ascii_lowercase().starts_with(context))
    };
    let tokens = text.split_whitespace().filter(smart).map(|token| match token {
        "PATIENT/OBSERVATION.READ" => "patient/Observation.read",
        other => other,
    });
    points(&tokens.collect::<Vec<_>>().join(" "))
}

/// What was asked as `user/` for the picker counts for `patient/`.
fn as_patient(points: &BTreeSet<Point>) -> BTreeSet<Point> {
    let user = points.iter().filter(|(context, ..)| context == "user");
    let as_patient = user.map(|(_, name, letter, category)| ("patient".to_owned(), *name, *letter, *category));
    points.iter().filter(|(context, ..)| context != "patient").cloned().chain(as_patient).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn printing_and_parsing_give_the_same(scopes in scopes(12)) {
        let text = scopes.join(" ");
        let set = ScopeSet::parse(&text).unwrap();
        prop_assert_eq!(&ScopeSet::parse(&set.to_string()).unwrap(), &set);
        prop_assert_eq!(&ScopeSet::parse_lenient(&set.to_string()).set, &set);
        prop_assert_eq!(permitted(&set), points(&text));
        prop_assert_eq!(&Asked::parse(&text).set(), &set);
        prop_assert_eq!(Asked::parse(&Asked::parse(&text).to_string()), Asked::parse(&text));
    }

    #[test]
    fn no_text_makes_the_parsers_fall(text in "\\PC*", token in "(patient|launch|PATIENT)/[a-zA-Z*]{0,5}\\.?[a-z*]{0,4}(\\?[a-z%=&]{0,6})?") {
        for text in [&text, &token] {
            let asked = Asked::parse(text);
            prop_assert_eq!(Asked::parse(&asked.to_string()).set(), asked.set());
            let lenient = ScopeSet::parse_lenient(text).set;
            prop_assert_eq!(&ScopeSet::parse(&lenient.to_string()).unwrap(), &lenient);
        }
    }

    #[test]
    fn a_set_permits_exactly_its_points(scopes in scopes(8)) {
        let text = scopes.join(" ");
        let set = ScopeSet::parse(&text).unwrap();
        let points = points(&text);
        for (context, known) in [(Context::Patient, "patient"), (Context::User, "user"), (Context::System, "system")] {
            for resource_type in TYPES {
                for letter in LETTERS {
                    let permission = Permissions::ALL.iter().find(|one| one.to_string() == letter.to_string()).unwrap();
                    let has = |category| points.contains(&(known.to_owned(), resource_type, letter, category));
                    match set.permits(context, resource_type, permission) {
                        Coverage::Yes => prop_assert!(has("-")),
                        Coverage::No => prop_assert!(!has("a") && !has("b") && !has("-")),
                        Coverage::Constrained(queries) => {
                            prop_assert!(!has("-"));
                            for category in ["a", "b"] {
                                let named = queries.iter().any(|query| query.pairs()[0].1 == category);
                                prop_assert_eq!(named, has(category));
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn sets_meet_in_nothing_that_one_of_them_lacks(one in scopes(8), other in scopes(8)) {
        let (one, other) = (ScopeSet::parse(&one.join(" ")).unwrap(), ScopeSet::parse(&other.join(" ")).unwrap());
        let both = one.intersect(&other);
        prop_assert!(one.covers(&both) && other.covers(&both));
        prop_assert_eq!(permitted(&both), permitted(&other.intersect(&one)));
        let common: BTreeSet<_> = permitted(&one).intersection(&permitted(&other)).cloned().collect();
        prop_assert!(permitted(&both).is_subset(&common));
        prop_assert_eq!(permitted(&one.intersect(&one)), permitted(&one));
    }

    /// Nothing is asked that is not ticked, in the vendor's dialect, each token once; and the text says what the set says.
    #[test]
    fn what_is_asked_is_ticked_and_sayable(case in case()) {
        let request = case.request();
        let ticked = ScopeSet::parse(&case.ticked.join(" ")).unwrap();
        prop_assert!(ticked.covers(&request.upstream), "{} of {}", request.text, ticked);
        prop_assert!(points(&request.text).is_subset(&points(&case.ticked.join(" "))));
        prop_assert_eq!(points(&request.text), permitted(&request.upstream));
        let tokens: Vec<_> = request.text.split(' ').filter(|token| !token.is_empty()).collect();
        prop_assert_eq!(tokens.iter().collect::<BTreeSet<_>>().len(), tokens.len());
        for token in tokens.iter().filter(|token| ["patient/", "user/", "system/"].iter().any(|context| token.starts_with(context))) {
            let v1 = [".read", ".write", ".*"].iter().any(|word| token.ends_with(word));
            prop_assert_eq!(v1, case.policy.dialect != Dialect::V2, "{}", token);
            prop_assert!(!token.contains('*') || case.policy.wildcards == Wildcards::Keep, "{}", token);
            prop_assert!(!token.contains('?') || case.policy.queries && case.policy.dialect == Dialect::V2, "{}", token);
            let lower = case.policy.dialect == Dialect::V1Lowercase;
            prop_assert!(!lower || !token.bytes().any(|byte| byte.is_ascii_uppercase()), "{}", token);
            prop_assert_eq!(token.starts_with("system/"), case.options.grant == GrantKind::ClientCredentials);
        }
        prop_assert!(!request.upstream.has(&Scope::Launch(LaunchScope::Ehr)) || case.options.ehr_launch);
    }

    /// No type and context is asked for that the app did not ask for, save the picker's own read.
    #[test]
    fn what_is_asked_upstream_was_asked_by_the_app(case in case()) {
        let request = case.request();
        let mut asked = points(&case.asked.join(" "));
        if request.picker() {
            asked = as_patient(&asked).into_iter().chain(asked.into_iter().map(|(context, name, letter, category)| {
                (if context == "patient" { "user".to_owned() } else { context }, name, letter, category)
            })).chain(points("user/Patient.rs")).collect();
        }
        // Rounded up: the words of v1, and what lies around a query.
        let around = |point: &Point| asked.iter().any(|(context, name, letter, _)| {
            let read = |letter: char| letter == 'r' || letter == 's';
            let near = *letter == point.2 || case.policy.dialect != Dialect::V2 && read(*letter) == read(point.2);
            *context == point.0 && *name == point.1 && near
        });
        let queries = case.asked.iter().any(|token| token.contains("code=x"));
        prop_assert!(queries || points(&request.text).iter().all(around), "{} for {:?}", request.text, case.asked);
    }

    /// Reported ⊆ asked ∩ granted by the EHR ∩ allowed to the app ∩ ticked; and what is enforced is what was told.
    #[test]
    fn what_is_told_is_never_wider(case in case(), answer in answer()) {
        let request = case.request();
        let granted = case.report(answer.as_deref());
        let told = points(&granted.reported);
        prop_assert_eq!(&permitted(&granted.enforced), &told);
        prop_assert_eq!(&Asked::parse(&granted.reported).set(), &granted.enforced);
        prop_assert!(Asked::parse(&granted.reported).malformed().is_empty());
        prop_assert!(told.is_subset(&points(&case.asked.join(" "))), "{} of {:?}", granted.reported, case.asked);
        prop_assert!(told.is_subset(&points(&case.allowed.join(" "))));
        let in_app_contexts = |points| if request.picker() { as_patient(&points) } else { points };
        let by_ehr = answer.as_deref().map_or_else(|| points(&request.text), answered);
        prop_assert!(told.is_subset(&in_app_contexts(by_ehr)), "{} of {:?}", granted.reported, answer);
        prop_assert!(told.is_subset(&in_app_contexts(points(&case.ticked.join(" ")))));
        prop_assert!(case.facts.has_patient || !granted.enforced.has_context(Context::Patient));
        for word in granted.enforced.words() {
            prop_assert!(case.asked.contains(&word.to_string()) && case.allowed.contains(&word.to_string()), "{}", word);
        }
        let tokens: Vec<_> = granted.reported.split(' ').collect();
        prop_assert_eq!(tokens.iter().collect::<BTreeSet<_>>().len(), tokens.len(), "each token once");
    }

    /// Granted whole is echoed byte for byte, in the app's order, whatever the dialect in between.
    #[test]
    fn what_is_granted_whole_is_echoed(asked in vec(resource(), 1..6), policy in policy(), picker in any::<bool>(), keep in any::<bool>()) {
        let policy = if keep { ScopePolicy { wildcards: Wildcards::Keep, ..policy } } else { policy };
        let wide = ["patient/*.*", "user/*.*"].map(str::to_owned).to_vec();
        let options = AskOptions { picker, ..AskOptions::default() };
        let case = Case { asked, allowed: wide.clone(), ticked: wide, policy, options, facts: all_facts() };
        let request = case.request();
        let askable = |token: &String| !token.starts_with("system/")
            && (!token.contains("/*.") || case.policy.wildcards == Wildcards::Keep);
        let mut expected: Vec<_> = case.asked.iter().filter(|token| askable(token)).cloned().collect();
        let mut seen = BTreeSet::new();
        expected.retain(|token| seen.insert(token.clone()));
        let expected = expected.join(" ");
        // As requested, said or not said.
        for answer in [None, Some(request.text.as_str())] {
            let told = case.report(answer).reported;
            if case.policy.wildcards == Wildcards::Keep {
                prop_assert_eq!(&told, &expected);
            } else {
                // A wildcard beside its types is told as these types.
                prop_assert!(expected.split(' ').all(|token| told.split(' ').any(|known| known == token)), "{} in {}", expected, told);
            }
        }
    }

    /// More asked or more granted never means less told, by meaning.
    #[test]
    fn translation_is_monotone(case in case(), more in resource(), answer in vec(resource(), 0..8), extra in resource()) {
        let answer = answer.join(" ");
        let wider_answer = format!("{answer} {extra}");
        let told = |case: &Case, answer: &str| points(&case.report(Some(answer)).reported);
        let few = told(&case, &answer);
        prop_assert!(few.is_subset(&told(&case, &wider_answer)));
        let asked = case.asked.iter().cloned().chain([more]).collect();
        let wider = Case { asked, ..case.clone() };
        // A patient scope brings the picker into play and with it other contexts upstream.
        if wider.request().picker() == case.request().picker() {
            prop_assert!(permitted(&case.request().upstream).is_subset(&permitted(&wider.request().upstream)));
            prop_assert!(few.is_subset(&told(&wider, &answer)));
        }
    }

    #[test]
    fn what_is_refused_and_what_is_told_make_up_what_was_asked(case in case(), answer in answer()) {
        let granted = case.report(answer.as_deref());
        let refused: Vec<_> = granted.refused.iter().map(|refused| refused.scope.as_str()).collect();
        for word in case.asked().written().iter().filter(|written| written.dialect.is_none()) {
            prop_assert_ne!(refused.contains(&word.text.as_str()), granted.enforced.has(&word.scope), "{}", word.text);
        }
        let touched = |letter: char, token: &str| points(token).into_iter().filter(move |point| point.2 == letter);
        for written in case.asked().written().iter().filter(|written| written.dialect.is_some() && !written.text.contains("code=x")) {
            let head = |text: &str| text.split('.').next().unwrap().to_owned();
            for letter in LETTERS {
                if touched(letter, &written.text).next().is_none() {
                    continue;
                }
                let told = points(&granted.reported);
                let some_told = touched(letter, &written.text).any(|point| told.contains(&point));
                let some_refused = refused.iter().any(|token| {
                    head(token) == head(&written.text) && touched(letter, token).next().is_some()
                });
                let by_code = granted.reported.contains("code=x");
                prop_assert!(some_told || some_refused || by_code, "{} of {}: {} {:?}", letter, written.text, granted.reported, refused);
            }
        }
    }

    #[test]
    fn a_narrowed_token_is_within_its_grant(case in case(), answer in answer(), asked in scopes(4)) {
        let granted = case.report(answer.as_deref());
        let all = narrow(&granted.reported, &granted.enforced, &granted.reported).unwrap();
        prop_assert_eq!((&all.reported, &all.enforced), (&granted.reported, &granted.enforced));
        let asked = asked.join(" ");
        if let Ok(narrowed) = narrow(&granted.reported, &granted.enforced, &asked) {
            prop_assert!(granted.enforced.covers(&narrowed.enforced));
            prop_assert!(points(&narrowed.reported).is_subset(&points(&granted.reported)));
        } else {
            prop_assert!(!granted.enforced.covers(&Asked::parse(&asked).set()));
        }
    }
}
