use std::collections::{BTreeSet, HashSet};

use tokio::sync::watch;
use uuid::Uuid;

use super::*;
use crate::{config::SealKey, secret::Secret, store::sqlite::Sqlite};

fn sealer(keys: &[(&str, u8)]) -> Sealer {
    let keys: Vec<_> =
        keys.iter().map(|(id, byte)| SealKey { id: (*id).into(), bytes: Secret::new([*byte; 32]) }).collect();
    Sealer::new(&keys).unwrap()
}

fn boot(number: u128) -> BootId {
    BootId(Uuid::from_u128(number))
}

fn replica(number: u128, sealer: &Sealer) -> Replica {
    let facts =
        ReplicaFacts { seal_keys: sealer.held(), writes_with: sealer.writes_with().into(), ..ReplicaFacts::default() };
    Replica { boot: boot(number), beat: 1, facts }
}

const BOTH: [(&str, u8); 2] = [("new", 2), ("old", 1)];
const OLD: [(&str, u8); 1] = [("old", 1)];

// ---- every order of events ---------------------------------------------------------------------------

/// What the store says to all: who has shown itself, and which keys are known.
#[derive(Clone)]
struct World {
    shown: Vec<Replica>,
    known: Vec<KnownSealKey>,
    actors: Vec<Actor>,
}

/// A process, between two of its steps that others can see.
#[derive(Clone)]
struct Actor {
    number: u128,
    keys: &'static [(&'static str, u8)],
    writes: String,
    at: At,
}

#[derive(Clone, Debug)]
enum At {
    /// Has not started.
    Down,
    /// Has shown itself, and not yet read what it must hold.
    Shown,
    /// Serves; so many beats are to come.
    Serves { beats: u8, announced: bool },
    /// Serves, and has looked at the processes in this beat.
    Looked { beats: u8, announced: bool, hindered: bool },
    /// Serves, and is about to write this in the store.
    Acts { beats: u8, step: Step },
    /// Has found that it may not serve, or is done.
    Refused,
}

/// How careful the writer is: the test must be able to fail.
#[derive(Clone, Copy, PartialEq)]
enum Care {
    AsItIs,
    NoSecondLook,
    NoRefusal,
}

impl Actor {
    fn sealer(&self) -> Arc<Sealer> {
        sealer(self.keys).fixed_to(&self.writes).unwrap()
    }

    fn serves(&self) -> bool {
        !matches!(self.at, At::Down | At::Shown | At::Refused)
    }
}

/// Lets one process take its next step. None: it has none.
fn advance(world: &World, who: usize, care: Care) -> Option<World> {
    let mut world = world.clone();
    let mut actor = world.actors[who].clone();
    let own = actor.sealer();
    actor.at = match actor.at {
        At::Down => {
            world.shown.push(replica(actor.number, &own));
            At::Shown
        }
        At::Shown if care != Care::NoRefusal && may_serve(&own, &world.known).is_err() => {
            world.shown.retain(|it| it.boot != boot(actor.number));
            At::Refused
        }
        At::Shown => At::Serves { beats: 4, announced: false },
        At::Serves { beats: 0, .. } | At::Refused => return None,
        At::Serves { beats, announced } => {
            let print = &own.held()[own.prefers()];
            let hindered = !hindrances(own.prefers(), print, &world.shown).is_empty();
            At::Looked { beats: beats - 1, announced, hindered }
        }
        At::Looked { beats, announced, hindered } => {
            let announced = announced || care == Care::NoSecondLook;
            match step(&own, &world.known, hindered, announced) {
                Step::Stay => At::Serves { beats, announced: false },
                Step::LookAgain => At::Serves { beats, announced: true },
                step => At::Acts { beats, step },
            }
        }
        At::Acts { beats, step: Step::Announce } => {
            if !world.known.iter().any(|key| key.id == own.prefers()) {
                let proof = own.prove(own.prefers()).unwrap();
                let id = own.prefers().to_owned();
                world.known.push(KnownSealKey { id, state: SealKeyState::Held, proof });
            }
            At::Serves { beats, announced: true }
        }
        At::Acts { beats, .. } => {
            actor.writes = own.prefers().to_owned();
            At::Serves { beats, announced: false }
        }
    };
    world.actors[who] = actor;
    Some(world)
}

/// What was explored: whether some order of steps lets a record be sealed by a key that a serving process lacks; how
/// many states there were; whether the new key ever wrote.
fn explore(actors: &[Actor], care: Care) -> (bool, usize, bool) {
    let old = sealer(&OLD);
    let known = vec![KnownSealKey { id: "old".into(), state: SealKeyState::Writing, proof: old.prove("old").unwrap() }];
    let shown = actors.iter().filter(|it| it.serves()).map(|it| replica(it.number, &it.sealer())).collect();
    let mut open = vec![World { shown, known, actors: actors.to_vec() }];
    let (mut seen, mut broken, mut wrote) = (HashSet::new(), false, false);
    while let Some(world) = open.pop() {
        let key = format!(
            "{:?} {:?} {:?}",
            world.shown.iter().map(|it| it.boot).collect::<BTreeSet<_>>(),
            world.known.iter().map(|key| &key.id).collect::<Vec<_>>(),
            world.actors.iter().map(|it| (&it.at, &it.writes)).collect::<Vec<_>>()
        );
        if !seen.insert(key) {
            continue;
        }
        let written: BTreeSet<&str> =
            world.actors.iter().filter(|it| it.serves()).map(|it| it.writes.as_str()).collect();
        wrote |= written.contains("new");
        broken |= world.actors.iter().any(|it| it.serves() && written.iter().any(|id| !it.sealer().holds(id)));
        open.extend((0..world.actors.len()).filter_map(|who| advance(&world, who, care)));
    }
    (broken, seen.len(), wrote)
}

fn actor(number: u128, keys: &'static [(&'static str, u8)], at: At) -> Actor {
    Actor { number, keys, writes: "old".into(), at }
}

#[test]
fn in_no_order_of_events_does_a_serving_process_lack_a_key_that_writes() {
    let serving = At::Serves { beats: 4, announced: false };
    // Two that would write with the new key, and one that starts without it at any moment.
    let actors = [actor(1, &BOTH, serving.clone()), actor(2, &BOTH, serving.clone()), actor(3, &OLD, At::Down)];
    let (broken, states, wrote) = explore(&actors, Care::AsItIs);
    assert!(!broken && wrote && states > 500, "{broken} {states} {wrote}");
    // Each half of the care is needed.
    assert!(explore(&actors, Care::NoSecondLook).0);
    assert!(explore(&actors, Care::NoRefusal).0);
    // One that serves without it keeps it from writing.
    let actors = [actor(1, &BOTH, serving.clone()), actor(2, &OLD, serving), actor(3, &BOTH, At::Down)];
    let (broken, _, wrote) = explore(&actors, Care::AsItIs);
    assert!(!broken && !wrote);
}

// ---- over a store ----------------------------------------------------------------------------------------

/// A store that was begun with the old key, and is now read with both.
async fn begun() -> SharedStore {
    let both = Arc::new(sealer(&[("old", 1), ("new", 2)]));
    Arc::new(Sqlite::open(None, both).await.unwrap())
}

fn rotation(store: &SharedStore, keys: &[(&str, u8)]) -> SealRotation {
    let sealer = sealer(keys);
    assert!(sealer.write_with("old"));
    SealRotation::new(store.clone(), Arc::new(sealer))
}

fn shown(number: u128, rotation: &SealRotation) -> Replica {
    Replica { boot: boot(number), beat: 1, facts: rotation.facts() }
}

#[tokio::test]
async fn a_key_writes_two_looks_after_all_hold_it() {
    let store = begun().await;
    let (one, other) = (rotation(&store, &BOTH), rotation(&store, &OLD));
    for _ in 0..3 {
        one.beat(&[shown(1, &one), shown(2, &other)]).await.unwrap();
        assert_eq!(one.sealer().writes_with(), "old");
    }
    let lacks = Hindrance::Lacks { replica: boot(2), key: "new".into() };
    assert_eq!(one.hindrances(&[shown(1, &one), shown(2, &other)]), [lacks]);
    assert_eq!(store.seal_keys().await.unwrap().len(), 1, "nobody is told to hold what some lack");
    // The other one restarts with it.
    let other = rotation(&store, &BOTH);
    let live = [shown(1, &one), shown(2, &other)];
    one.beat(&live).await.unwrap();
    assert_eq!(one.sealer().writes_with(), "old");
    assert!(
        matches!(rotation(&store, &OLD).join().await, Err(crate::store::StoreError::UnknownSealKey(id)) if id == "new")
    );
    one.beat(&live).await.unwrap();
    assert_eq!(one.sealer().writes_with(), "new");
    // Who starts now writes with it at once, whatever it prefers.
    let third = rotation(&store, &[("old", 1), ("new", 2)]);
    third.join().await.unwrap();
    assert_eq!(third.sealer().writes_with(), "new");
}

#[tokio::test]
async fn one_who_starts_between_the_looks_stops_it() {
    let store = begun().await;
    let (one, late) = (rotation(&store, &BOTH), rotation(&store, &OLD));
    one.beat(&[shown(1, &one)]).await.unwrap();
    one.beat(&[shown(1, &one), shown(2, &late)]).await.unwrap();
    one.beat(&[shown(1, &one), shown(2, &late)]).await.unwrap();
    assert_eq!(one.sealer().writes_with(), "old");
    // It has gone: two looks again.
    one.beat(&[shown(1, &one)]).await.unwrap();
    assert_eq!(one.sealer().writes_with(), "old");
    one.beat(&[shown(1, &one)]).await.unwrap();
    assert_eq!(one.sealer().writes_with(), "new");
}

#[tokio::test]
async fn other_bytes_under_its_id_are_no_key() {
    let store = begun().await;
    let (one, other) = (rotation(&store, &BOTH), rotation(&store, &[("old", 1), ("new", 9)]));
    let live = [shown(1, &one), shown(2, &other)];
    for _ in 0..3 {
        one.beat(&live).await.unwrap();
    }
    assert_eq!(one.sealer().writes_with(), "old");
    assert_eq!(one.hindrances(&live), [Hindrance::OtherBytes { replica: boot(2), key: "new".into() }]);
    // And it may not start once the right ones are announced.
    one.beat(&[shown(1, &one)]).await.unwrap();
    let refused = other.join().await;
    assert!(matches!(refused, Err(crate::store::StoreError::Corrupt(text)) if text.contains("\"new\"")));
}

// ---- sealing anew, among processes -----------------------------------------------------------------------

#[tokio::test]
async fn nothing_is_sealed_anew_until_all_write_with_the_new_key() {
    let store = begun().await;
    let (one, other) = (rotation(&store, &BOTH), rotation(&store, &[("old", 1), ("new", 2)]));
    let (looks, live) = watch::channel(vec![shown(1, &one), shown(2, &other)]);
    let mut told = Vec::new();
    let mut tell = |progress| told.push(progress);
    {
        let mut rotating = std::pin::pin!(rotate(&one, live, &mut tell));
        let mut beats = 0;
        loop {
            tokio::select! {
                biased;
                done = &mut rotating => break done.unwrap(),
                () = tokio::task::yield_now() => {}
            }
            beats += 1;
            assert!(beats < 100_000, "it never ends");
            let mut view = vec![shown(1, &one), shown(2, &other)];
            one.beat(&view).await.unwrap();
            match beats {
                ..=4 => {}
                // Restarted with the new key first; then its spill is in the way.
                5..=8 => {
                    other.sealer().write_with("new");
                    view[1].facts.spill_keys = vec!["old".into()];
                }
                _ => {}
            }
            view[0].facts = one.facts();
            view[1].facts.writes_with = other.sealer().writes_with().into();
            looks.send_replace(view);
        }
    }
    let because: Vec<Vec<Hindrance>> = told
        .iter()
        .filter_map(|it| match it {
            Progress::Waiting { hindrances, .. } => Some(hindrances.clone()),
            _ => None,
        })
        .collect();
    let old = || "old".to_owned();
    assert!(because.contains(&vec![Hindrance::Writes { replica: boot(2), key: old() }]), "{because:?}");
    assert!(because.contains(&vec![Hindrance::Spilled { replica: boot(2), key: old() }]), "{because:?}");
    let end = &told[told.len() - 3..];
    assert_eq!(
        end,
        [
            Progress::Writing { key: "new".into(), processes: 2 },
            Progress::Retired { key: old() },
            Progress::Done { writes_with: "new".into(), needed: vec![] }
        ]
    );
}

#[tokio::test]
async fn a_key_stays_while_one_that_went_without_a_word_may_have_spilled_by_it() {
    let store = begun().await;
    let one = rotation(&store, &BOTH);
    let with = |number: u128, writes: &str, spill: Option<u128>, keys: &[&str]| {
        let mut it = replica(number, &sealer(&BOTH));
        it.facts.writes_with = writes.into();
        it.facts.spill = spill.map(Uuid::from_u128);
        it.facts.spill_keys = keys.iter().map(|key| (*key).to_owned()).collect();
        it
    };
    let me = with(1, "new", Some(1), &[]);
    for (gone, left) in [
        (with(2, "old", Some(2), &[]), true),
        (with(2, "new", Some(2), &["old"]), true),
        (with(2, "new", Some(2), &[]), false),
        // It had no spill.
        (with(2, "old", None, &[]), false),
        // This process holds what was its.
        (with(2, "old", Some(1), &["old"]), false),
    ] {
        one.see_gone(std::slice::from_ref(&me), std::slice::from_ref(&gone));
        assert_eq!(one.left_behind("old"), left.then_some(boot(2)), "{:?}", gone.facts);
    }
    for _ in 0..3 {
        one.beat(&[shown(1, &one)]).await.unwrap();
    }
    assert_eq!(one.sealer().writes_with(), "new");
    let rotated = async || {
        let (_looks, live) = watch::channel(vec![shown(1, &one)]);
        let mut told = Vec::new();
        rotate(&one, live, &mut |progress| told.push(progress)).await.unwrap();
        told.split_off(told.len() - 2)
    };
    one.see_gone(&[], &[with(2, "old", Some(2), &[])]);
    let (key, writes_with) = ("old".to_owned(), "new".to_owned());
    assert_eq!(
        rotated().await,
        [
            Progress::Left { key: key.clone(), replica: boot(2) },
            Progress::Done { writes_with: writes_with.clone(), needed: vec![key.clone()] }
        ]
    );
    one.see_gone(&[], &[]);
    assert_eq!(rotated().await, [Progress::Retired { key }, Progress::Done { writes_with, needed: vec![] }]);
}
