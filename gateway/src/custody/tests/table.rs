//! The one table of outcomes: written down for people, and held row by row for each vendor's error map.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use figment::{
    Figment,
    providers::{Format as _, Toml},
};
use mantel_adapters::{
    profile::{ErrorRule, Meaning, Place, Profile, TokenPolicy},
    smart::token::{meaning, parse_answer},
};

use super::world::*;
use crate::{
    custody::{
        CustodyFault, RefreshAnswer,
        machine::Cause,
        outcome::{ANSWERS, ATTEMPTS, Answer, Attempt, Caller, Next, Row, Stored, row},
    },
    store::{GrantId, GrantState},
};

/// The vendors that are built in.
fn vendors() -> BTreeMap<String, Profile> {
    let text = include_str!("../../../../vendors.toml");
    Figment::from(Toml::string(text)).extract_inner("vendors").unwrap()
}

// ---- for people ----------------------------------------------------------------------------------------

const WRITTEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/custody/OUTCOMES.md");

const HEAD: &str = "# What comes of a refresh

Written by the test `the_table_is_written_down` from `outcome.rs` and `vendors.toml`; `MANTEL_WRITE_DOCS=1 cargo test -p mantel --lib the_table_is_written_down` writes it anew.

Each end of a token request is one row: what was answered, which request it was, and whether the old access token still serves, give what who waits is told, what is stored, what `mantel_refreshes_total` counts, and when the next try is. Before any end the store is read again: where another process has moved on, its tokens are served and nothing ends.

";

const fn answer(answer: Answer) -> &'static str {
    match answer {
        Answer::Tokens => "tokens",
        Answer::Refused(Meaning::Dead) => "refused: *dead*, and believed",
        Answer::Presumed => "refused: *dead*, not believed yet",
        Answer::Suspect => "refused: *dead*, of a suspect registration",
        Answer::Refused(Meaning::Passing) => "refused: *passing*",
        Answer::Refused(Meaning::Misconfigured) => "refused: *misconfigured*",
        Answer::Refused(Meaning::Suspended) => "refused: *suspended*",
        Answer::NotSent => "not sent",
        Answer::Unknown => "unknown: sent, or perhaps sent",
    }
}

const fn attempt(attempt: Attempt) -> &'static str {
    match attempt {
        Attempt::First => "an ordinary one",
        Attempt::InGrace => "after an unknown outcome, within `reuse_grace`",
        Attempt::Last => "after an unknown outcome, the one try left",
    }
}

fn caller(caller: Caller) -> String {
    match caller {
        Caller::New => "the new bearer".into(),
        Caller::Old => "the old bearer".into(),
        Caller::Unavailable => "503, `Retry-After`".into(),
        Caller::Ended(reason) => format!("401, `{}`", reason.text()),
    }
}

fn stored(stored: Stored) -> String {
    match stored {
        Stored::Answer => "the answer, by the generation it consumed".into(),
        Stored::Abandoned => "the intent is cleared".into(),
        Stored::Intent => "the intent stays".into(),
        Stored::End(reason) => format!("the end, `{}`", reason.text()),
    }
}

fn next(next: Next) -> String {
    match next {
        Next::WhenDue => "when the new token falls due".into(),
        Next::Backoff(Cause::Presumed) => "after a renewal at that site, or 10 min after the first refusal".into(),
        Next::Backoff(Cause::Suspect) => "one grant after 1, 2, 4, 8, 15 … min; after a renewal all".into(),
        Next::Backoff(cause @ Cause::Passing) => {
            let most = |attempts| cause.wait(attempts, None, u32::MAX).as_secs();
            let askers = cause.askers_wait(u32::MAX, None, u32::MAX).as_secs();
            format!(
                "within {} s, doubling to {} s, but {askers} s for who asks where the EHR works or nobody else tries; not \
                 before `Retry-After`",
                most(0),
                most(u32::MAX)
            )
        }
        Next::Backoff(cause) => {
            let most = |attempts| cause.wait(attempts, None, u32::MAX).as_secs();
            format!("within {} s, doubling to {} s; not before `Retry-After`", most(0), most(u32::MAX))
        }
        Next::Doubt => {
            "within `reuse_grace` at once; else when the old bearer has ended, or after 60 s: the later".into()
        }
        Next::Never => "never".into(),
    }
}

fn told(place: Option<Place>) -> &'static str {
    match place {
        None => "anywhere",
        Some(Place::Authorize) => "authorize",
        Some(Place::Code) => "code",
        Some(Place::Refresh) => "refresh",
        Some(Place::Backend) => "backend",
        Some(Place::Fhir) => "FHIR",
    }
}

fn document() -> String {
    let mut text = HEAD.to_owned();
    text.push_str("| answer | request | old bearer | who waits is told | stored | counted | next try |\n");
    text.push_str("|---|---|---|---|---|---|---|\n");
    for of in ANSWERS {
        // Requests that come to the same are one row.
        let mut rows: Vec<(Vec<Attempt>, &str, Row)> = Vec::new();
        // The one try is believed, unless its registration is suspect.
        for by in ATTEMPTS.into_iter().filter(|by| (of, *by) != (Answer::Presumed, Attempt::Last)) {
            let both = [true, false].map(|alive| row(of, by, alive));
            let these = match both {
                [alive, dead] if alive == dead => vec![("", alive)],
                [alive, dead] => vec![("serves", alive), ("is over", dead)],
            };
            for (old, row) in these {
                match rows.iter_mut().find(|(_, known, same)| *known == old && *same == row) {
                    Some((attempts, ..)) => attempts.push(by),
                    None => rows.push((vec![by], old, row)),
                }
            }
        }
        for (attempts, old, row) in rows {
            let all = attempts.len() == ATTEMPTS.len();
            let by =
                if all { "any".to_owned() } else { attempts.into_iter().map(attempt).collect::<Vec<_>>().join("; ") };
            let Row { caller: who, stored: what, counted, next: when } = row;
            let (who, what, counted, when) = (caller(who), stored(what), counted.text(), next(when));
            writeln!(text, "| {} | {by} | {old} | {who} | {what} | `{counted}` | {when} |", answer(of)).unwrap();
        }
    }
    text.push_str(
        "\n## What an error answer means\n\nBy the vendor's rules, the most exact first; they are the keys of \
         `errors` in a profile. A status of 408, 425, 429 or 5xx is matched only by a rule that names it.\n\n\
         | vendor | rule | at | status | `error` | contains | means |\n|---|---|---|---|---|---|---|\n",
    );
    for (vendor, profile) in vendors() {
        for (name, rule) in &profile.errors {
            let ErrorRule { means, at, status, error, contains } = rule;
            let status = status.map_or_else(|| "any".to_owned(), |status| status.to_string());
            let or_any = |text: &Option<String>| text.as_ref().map_or_else(|| "any".to_owned(), |it| format!("`{it}`"));
            let means = serde_json::to_value(means).unwrap();
            writeln!(
                text,
                "| {vendor} | {name} | {} | {status} | {} | {} | *{}* |",
                told(*at),
                or_any(error),
                or_any(contains),
                means.as_str().unwrap()
            )
            .unwrap();
        }
    }
    text.push_str(
        "\nWithout a rule nothing is dead: 408, 425, 429, 5xx, an HTML page, `server_error` and \
         `temporarily_unavailable` are *passing*, everything else is *misconfigured*. A 2xx without a usable token \
         and without an error code is an unknown outcome.\n",
    );
    text
}

#[test]
fn the_table_is_written_down() {
    let text = document();
    if std::env::var_os("MANTEL_WRITE_DOCS").is_some() {
        std::fs::write(WRITTEN, &text).unwrap();
    }
    let written = std::fs::read_to_string(WRITTEN).unwrap_or_default();
    assert!(written == text, "{WRITTEN} is not what the code says: MANTEL_WRITE_DOCS=1 writes it anew");
}

// ---- row by row ------------------------------------------------------------------------------------------

/// An answer of a vendor's token endpoint.
#[derive(Clone, Debug)]
struct Said {
    what: String,
    status: u16,
    body: String,
    /// What the vendor's map, or what stands for it, says.
    means: Meaning,
    rule: Option<String>,
}

/// What each rule of a vendor matches at a refresh, and what no rule does.
fn sayings(profile: &Profile) -> Vec<Said> {
    let rules = profile.errors.iter().filter(|(_, rule)| rule.at.is_none_or(|at| at == Place::Refresh));
    let mut sayings: Vec<Said> = rules
        .map(|(name, rule)| {
            let code = rule.error.as_deref().unwrap_or("invalid_grant");
            let text = rule.contains.as_deref().unwrap_or_default();
            Said {
                what: format!("rule {name}"),
                status: rule.status.unwrap_or(400),
                body: format!(r#"{{"error":"{code}","error_description":"It says {text}."}}"#),
                means: rule.means,
                rule: Some(name.clone()),
            }
        })
        .collect();
    let others = [
        ("500 without a body", 500, "", Meaning::Passing),
        ("502 with a page", 502, "<html>Bad Gateway</html>", Meaning::Passing),
        ("503 invalid_grant", 503, r#"{"error":"invalid_grant"}"#, Meaning::Passing),
        ("429", 429, "", Meaning::Passing),
        ("400 temporarily_unavailable", 400, r#"{"error":"temporarily_unavailable"}"#, Meaning::Passing),
        ("401 unauthorized_client", 401, r#"{"error":"unauthorized_client"}"#, Meaning::Misconfigured),
        ("400 invalid_scope", 400, r#"{"error":"invalid_scope"}"#, Meaning::Misconfigured),
        ("403 without a body", 403, "", Meaning::Misconfigured),
    ];
    sayings.extend(others.map(|(what, status, body, means)| Said {
        what: what.into(),
        status,
        body: body.into(),
        means,
        rule: None,
    }));
    sayings
}

/// The answer as the token client reads it.
fn read(profile: &Profile, said: &Said) -> RefreshAnswer {
    let error = parse_answer(said.status, Some("application/json"), said.body.as_bytes()).unwrap_err();
    let (means, rule) = meaning(profile, Place::Refresh, &error);
    assert_eq!((means, rule), (said.means, said.rule.as_deref()), "{}", said.what);
    RefreshAnswer::Refused { meaning: means, retry_after: None, detail: said.what.clone() }
}

const LIFETIME: u64 = 300;

/// A refresh that is about to be answered: where the asker stands.
struct Scene {
    world: World,
    grant: GrantId,
    alive: bool,
    /// Requests before the one in question.
    before: usize,
}

impl Scene {
    /// Plays until the next request is that attempt.
    async fn new(tokens: &TokenPolicy, attempt: Attempt, alive: bool) -> Self {
        let mut tokens = tokens.clone();
        // Nothing is asked of the EHR before its time.
        tokens.dies_with_access = false;
        tokens.reuse_grace = if attempt == Attempt::InGrace { secs(30) } else { Duration::ZERO };
        let world = World::new(LIFETIME, tokens).await;
        let grant = world.grant().await;
        let lost = || world.ehr.next(Reply::Answer(RefreshAnswer::Unknown));
        let before = match (attempt, alive) {
            (Attempt::First, _) => 0,
            (Attempt::InGrace, _) => {
                lost();
                1
            }
            (Attempt::Last, true) => {
                // A refresh that a 401 forced, so that the old token's end is not waited for.
                lost();
                tokio::time::advance(secs(LIFETIME / 2 - 40)).await;
                assert!(world.refused(grant, 1).await.is_err());
                tokio::time::advance(secs(59)).await;
                1
            }
            (Attempt::Last, false) => {
                lost();
                tokio::time::advance(secs(LIFETIME - 1)).await;
                assert!(world.bearer(grant).await.is_ok());
                world.until_outcome(crate::custody::RefreshOutcome::InDoubt).await;
                tokio::time::advance(secs(59)).await;
                1
            }
        };
        if attempt != Attempt::Last {
            tokio::time::advance(secs(if alive { LIFETIME - 10 } else { LIFETIME })).await;
        }
        Self { world, grant, alive, before }
    }

    /// What who asks is told once the answer has come.
    async fn plays(&self, answer: RefreshAnswer) -> Result<String, CustodyFault> {
        self.world.ehr.next(Reply::Answer(answer));
        if self.before == 1 && self.world.ehr.calls() == 1 {
            tokio::time::advance(secs(1)).await;
        }
        let first = self.world.bearer(self.grant).await;
        self.world.ehr.called(self.before + 1).await;
        self.world.landed().await;
        // While the old token serves, the refresh is behind: what came of it shows to the next.
        let told = if self.alive { self.world.bearer(self.grant).await } else { first };
        told.map(|bearer| bearer.token.expose().clone())
    }
}

async fn hold(what: &str, scene: &Scene, told: Result<String, CustodyFault>, row: Row) {
    let Scene { world, grant, .. } = scene;
    match (row.caller, &told) {
        (Caller::New, Ok(token)) => assert_eq!(token, "access-new", "{what}"),
        (Caller::Old, Ok(token)) => assert_eq!(token, "access-1", "{what}"),
        (Caller::Ended(reason), Err(CustodyFault::Ended(given))) => assert_eq!(*given, reason, "{what}"),
        (Caller::Unavailable, Err(fault)) => {
            let fits = match row.next {
                Next::Backoff(Cause::Misconfigured) => matches!(fault, CustodyFault::Misconfigured { .. }),
                Next::Backoff(Cause::Suspended) => matches!(fault, CustodyFault::Suspended { .. }),
                _ => matches!(fault, CustodyFault::Unavailable { .. }),
            };
            assert!(fits, "{what}: {fault:?}");
        }
        (expected, told) => panic!("{what}: {told:?} where the table has {expected:?}"),
    }
    let now = world.stored(*grant).await;
    match row.stored {
        Stored::Answer => assert_eq!((now.state, now.generation), (GrantState::Live, 2), "{what}"),
        // Of the last try it clears only that it was made.
        Stored::Abandoned if scene.before > 0 => {
            assert!(matches!(now.state, GrantState::InDoubt { retried: false, .. }), "{what}: {:?}", now.state);
        }
        Stored::Abandoned => assert_eq!(now.state, GrantState::Live, "{what}"),
        Stored::Intent => assert!(matches!(now.state, GrantState::InDoubt { .. }), "{what}: {:?}", now.state),
        Stored::End(reason) => {
            assert!(matches!(now.state, GrantState::Ended { reason: stored, .. } if stored == reason), "{what}");
        }
    }
    assert!(world.counted().refreshes.contains_key(&row.counted), "{what}: {:?}", world.counted().refreshes);
    let ended = matches!(row.stored, Stored::End(_));
    assert_eq!(world.counted().ended.len(), usize::from(ended), "{what}");
    let calls = world.ehr.calls();
    // The longest that the table lets it wait; a grant that nobody uses would wait for its use.
    let longest = match row.next {
        Next::Backoff(cause) => cause.wait(0, None, u32::MAX).as_secs() + 1,
        Next::Doubt => LIFETIME,
        Next::WhenDue | Next::Never => 0,
    };
    if longest > 0 {
        world.ehr.next(Reply::Never);
        tokio::time::advance(secs(longest)).await;
        let _ = tokio::time::timeout(Duration::ZERO, world.bearer(*grant)).await;
        world.ehr.called(calls + 1).await;
    } else {
        assert_eq!(world.ehr.calls(), calls, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_row_holds_for_each_vendors_error_map() {
    let mut seen = std::collections::BTreeSet::new();
    for (vendor, profile) in vendors() {
        for said in sayings(&profile) {
            let answer = read(&profile, &said);
            for attempt in ATTEMPTS {
                for alive in [true, false] {
                    let what = format!("{vendor}, {}, {attempt:?}, alive {alive}", said.what);
                    let row = row(Answer::Refused(said.means), attempt, alive);
                    seen.insert(format!("{:?} {attempt:?} {alive}", said.means));
                    let scene = Scene::new(&profile.tokens, attempt, alive).await;
                    let told = scene.plays(answer.clone()).await;
                    hold(&what, &scene, told, row).await;
                }
            }
        }
    }
    // No built-in rule says *suspended*: an operator's may.
    assert_eq!(seen.len(), 3 * 3 * 2, "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn each_row_holds_that_no_error_map_has_a_say_in() {
    let tokens = RefreshAnswer::Tokens {
        access: "access-new".into(),
        refresh: Some("refresh-new".into()),
        lifetime: Some(secs(3600)),
        refresh_lifetime: None,
        scope: None,
        id_token: None,
    };
    let suspended =
        RefreshAnswer::Refused { meaning: Meaning::Suspended, retry_after: None, detail: "an operator's".into() };
    for (answer, of) in [
        (tokens, Answer::Tokens),
        (RefreshAnswer::NotSent, Answer::NotSent),
        (RefreshAnswer::Unknown, Answer::Unknown),
        (suspended, Answer::Refused(Meaning::Suspended)),
    ] {
        for attempt in ATTEMPTS {
            for alive in [true, false] {
                let scene = Scene::new(&epic(), attempt, alive).await;
                let told = scene.plays(answer.clone()).await;
                hold(&format!("{of:?}, {attempt:?}, alive {alive}"), &scene, told, row(of, attempt, alive)).await;
            }
        }
    }
}
