//! Changing seal keys.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use futures_util::future::join_all;
use mantel::{
    config::SealKey,
    secret::Secret,
    store::{
        EndReason, Finished, GrantFacts, GrantState, LaunchStep, Replica, Retired, SealKeyState, SealedTable,
        SharedStore, SigningKey, StoreError, StoreResult, rotation::SealRotation, sealing::Sealer,
    },
};

use super::samples::*;

/// Seal keys, each by its id and the byte that it consists of.
pub type Keys<'a> = &'a [(&'a str, u8)];

/// A database that processes come to and leave, each with keys of its own.
#[async_trait(?Send)]
pub trait Database {
    /// Opens it, as one process at a time does.
    async fn open(&self, sealer: Arc<Sealer>) -> StoreResult<SharedStore>;
    /// Leaves it.
    async fn close(&self, store: SharedStore);
}

pub fn sealer(keys: Keys<'_>) -> Arc<Sealer> {
    let keys: Vec<_> =
        keys.iter().map(|(id, byte)| SealKey { id: (*id).into(), bytes: Secret::new([*byte; 32]) }).collect();
    Arc::new(Sealer::new(&keys).unwrap())
}

const OLD: Keys<'static> = &[("old", 1)];
const BOTH: Keys<'static> = &[("new", 2), ("old", 1)];
const NEW: Keys<'static> = &[("new", 2)];

/// Opens it, and writes with the first key, being the only process.
async fn open(database: &impl Database, keys: Keys<'_>) -> SharedStore {
    let sealer = sealer(keys);
    let store = database.open(sealer.clone()).await.unwrap();
    let rotation = SealRotation::new(store.clone(), sealer.clone());
    for beat in 1..=3 {
        rotation.beat(&[Replica { boot: boot(), beat, facts: rotation.facts() }]).await.unwrap();
    }
    assert_eq!(sealer.writes_with(), sealer.prefers());
    store
}

/// Which keys have sealed something.
async fn in_use(store: &SharedStore) -> Vec<String> {
    store.seal_usage().await.unwrap().into_keys().collect()
}

/// Seals everything anew; how many records, by table.
async fn reseal(store: &SharedStore) -> Vec<(SealedTable, u64)> {
    let mut done = Vec::new();
    for table in SealedTable::ALL {
        let (mut after, mut count) = (Some(Vec::new()), 0);
        while let Some(from) = after {
            let some = store.reseal(table, &from, 3).await.unwrap();
            assert_eq!(some.unreadable, Vec::<String>::new());
            count += some.resealed;
            after = some.next;
        }
        done.push((table, count));
    }
    done
}

fn signing_key() -> SigningKey {
    SigningKey { kid: format!("kid-{}", fresh()), pkcs8: Secret::new(b"a key".to_vec()), created: NOW }
}

pub async fn all_is_sealed_anew(database: &impl Database) {
    let store = open(database, OLD).await;
    let mut grants = Vec::new();
    for _ in 0..7 {
        grants.push(with_tokens(&*store).await.0);
    }
    let ended = stored_grant(&*store).await;
    store.end_grant(ended.id, EndReason::Logout, None, &[revocation()], NOW).await.unwrap();
    let (ehr_launch_hash, code, opened) = (token(), token(), launch());
    store.keep_ehr_launch(ehr_launch_hash, &ehr_launch()).await.unwrap();
    store.open_launch(&opened).await.unwrap();
    let (site, state) = ("general".parse().unwrap(), token());
    assert!(store.advance_launch(LaunchStep::Opened, &at_ehr(opened.clone(), state)).await.unwrap());
    let pending = grant();
    store.create_grant(&pending, code, &super::samples::code(&pending), opened.id).await.unwrap();
    let sub = store.subject(&site, "somebody", "the sub").await.unwrap();
    let key = signing_key();
    store.add_signing_key(&key, NOW).await.unwrap();
    assert_eq!(in_use(&store).await, ["old"]);
    database.close(store).await;

    let store = open(database, BOTH).await;
    assert_eq!(store.subject(&site, "somebody", "another").await.unwrap(), sub);
    let done = reseal(&store).await;
    // 7 with tokens, one ended, one pending; each was made with a launch and a code of its own.
    let expected = [
        (SealedTable::Grants, 9),
        (SealedTable::Launches, 9),
        (SealedTable::EhrLaunches, 1),
        (SealedTable::Codes, 9),
        (SealedTable::Subjects, 1),
        (SealedTable::Outbox, 1),
        (SealedTable::SigningKeys, 1),
    ];
    assert_eq!(done, expected);
    assert_eq!(in_use(&store).await, ["new"]);
    assert!(reseal(&store).await.iter().all(|(_, count)| *count == 0), "what is done is found done");
    assert_eq!(store.retire_seal_key("old").await.unwrap(), Retired::Yes);
    assert_eq!(store.retire_seal_key("old").await.unwrap(), Retired::Yes);
    database.close(store).await;

    // The old key is not needed for anything.
    let store = open(database, NEW).await;
    for grant in &grants {
        let found = store.grant(grant.id).await.unwrap().unwrap();
        assert_eq!((&found.tokens.refresh, &found.facts), (&grant.tokens.refresh, &grant.facts));
    }
    assert!(matches!(store.grant(ended.id).await.unwrap().unwrap().state, GrantState::Ended { .. }));
    assert!(store.take_ehr_launch(ehr_launch_hash, NOW).await.unwrap().is_some());
    assert_eq!(store.code(code, NOW).await.unwrap().unwrap().grant, pending.id);
    assert_eq!(store.launch(opened.id, NOW).await.unwrap().unwrap().request, opened.request);
    assert_eq!(store.subject(&site, "somebody", "another").await.unwrap(), sub);
    assert_eq!(store.take_revocations(NOW, at(100), 10).await.unwrap().len(), 1);
    assert!(store.signing_keys().await.unwrap()[0].pkcs8 == key.pkcs8);
    // And the same user's new authorization finds the old one, by the new name.
    let renewed = mantel::store::Grant { id: grant().id, ..grants[0].clone() };
    store_grant(&*store, &renewed).await;
    let state = store.grant(grants[0].id).await.unwrap().unwrap().state;
    assert!(matches!(state, GrantState::Ended { reason: EndReason::Superseded, .. }));
    database.close(store).await;
}

pub async fn no_refresh_is_overwritten(database: &impl Database) {
    let store = open(database, OLD).await;
    let mut grants = Vec::new();
    for _ in 0..40 {
        grants.push(stored_grant(&*store).await);
    }
    database.close(store).await;
    let store = open(database, BOTH).await;
    // Each grant is refreshed again and again while all is sealed anew again and again.
    let refreshed = AtomicBool::new(false);
    let sealing = async {
        let mut sealed = 0;
        while !refreshed.load(Ordering::Relaxed) {
            sealed += reseal(&store).await.iter().map(|(_, count)| count).sum::<u64>();
        }
        sealed + reseal(&store).await.iter().map(|(_, count)| count).sum::<u64>()
    };
    let refreshing = async {
        let each = grants.iter().map(|grant| async {
            for generation in 1..=5_i64 {
                let tokens = ehr_tokens(u32::try_from(generation).unwrap() + 1);
                let finished = store.finish_refresh(grant.id, generation, &tokens, None, NOW).await.unwrap();
                assert!(matches!(finished, Finished::Stored(_)), "{finished:?}");
            }
        });
        join_all(each).await;
        refreshed.store(true, Ordering::Relaxed);
    };
    let (sealed, ()) = tokio::join!(sealing, refreshing);
    assert!(sealed >= 40, "the launches and codes at least: {sealed}");
    for grant in &grants {
        let found = store.grant(grant.id).await.unwrap().unwrap();
        assert_eq!((found.generation, found.tokens.refresh), (6, ehr_tokens(6).refresh));
    }
    assert_eq!(in_use(&store).await, ["new"]);
    database.close(store).await;
}

pub async fn what_is_begun_is_sealed_and_named_by_one_key(database: &impl Database) {
    let store = open(database, BOTH).await;
    let site = "general".parse().unwrap();
    let callers = (0..20).map(|n| {
        let (store, site) = (store.clone(), &site);
        async move { store.subject(site, "somebody", &format!("sub {n}")).await.unwrap() }
    });
    let subs: BTreeSet<String> = join_all(callers).await.into_iter().collect();
    assert_eq!(subs.len(), 1, "{subs:?}");
    let usage = store.seal_usage().await.unwrap();
    assert_eq!(usage["new"][&SealedTable::Subjects], 1);
    database.close(store).await;
}

pub async fn a_key_that_is_needed_is_not_retired(database: &impl Database) {
    let store = open(database, OLD).await;
    stored_grant(&*store).await;
    database.close(store).await;
    let store = open(database, BOTH).await;
    stored_grant(&*store).await;
    // A grant, its launch and its code each.
    assert_eq!(store.retire_seal_key("old").await.unwrap(), Retired::Sealed(3));
    reseal(&store).await;
    assert_eq!(store.retire_seal_key("new").await.unwrap(), Retired::Sealed(6));
    assert_eq!(store.retire_seal_key("other").await.unwrap(), Retired::Unknown);
    assert!(!store.promote_seal_key("other").await.unwrap());
    assert_eq!(store.retire_seal_key("old").await.unwrap(), Retired::Yes);
    assert!(!store.promote_seal_key("old").await.unwrap(), "a retired key writes again only if it is announced");
    let states: Vec<_> = store.seal_keys().await.unwrap().into_iter().map(|key| (key.id, key.state)).collect();
    assert_eq!(states, [("new".into(), SealKeyState::Writing), ("old".into(), SealKeyState::Retired)]);
    database.close(store).await;
    // Listed first again, the old key is taken up again.
    let store = open(database, &[("old", 1), ("new", 2)]).await;
    let states: Vec<_> = store.seal_keys().await.unwrap().into_iter().map(|key| key.state).collect();
    assert_eq!(states, [SealKeyState::Held, SealKeyState::Writing]);
    database.close(store).await;
}

pub async fn who_lacks_a_key_is_refused(database: &impl Database) {
    let refused = |keys: Keys<'static>| async move {
        match database.open(sealer(keys)).await {
            Ok(_) => panic!("it was opened with {keys:?}"),
            Err(error) => error,
        }
    };
    let store = open(database, OLD).await;
    stored_grant(&*store).await;
    database.close(store).await;
    let told = refused(NEW).await;
    assert!(matches!(&told, StoreError::UnknownSealKey(id) if id == "old"), "{told}");
    assert!(told.to_string().contains("`store.seal`"), "{told}");
    let told = refused(&[("old", 9), ("new", 2)]).await;
    assert!(matches!(&told, StoreError::Corrupt(text) if text.contains("\"old\"")), "{told}");
    let store = open(database, BOTH).await;
    reseal(&store).await;
    database.close(store).await;
    // Until it is retired it is needed: somebody may write with it yet.
    let told = refused(NEW).await;
    assert!(matches!(&told, StoreError::UnknownSealKey(id) if id == "old"), "{told}");
    let told = refused(OLD).await;
    assert!(matches!(&told, StoreError::UnknownSealKey(id) if id == "new"), "{told}");
    let store = open(database, BOTH).await;
    assert_eq!(store.retire_seal_key("old").await.unwrap(), Retired::Yes);
    database.close(store).await;
    let store = open(database, NEW).await;
    database.close(store).await;
    // Its name cannot be given to another.
    let told = refused(&[("new", 2), ("old", 9)]).await;
    assert!(matches!(&told, StoreError::Corrupt(text) if text.contains("\"old\"")), "{told}");
}

pub async fn a_sealed_answer_takes_its_name_along(database: &impl Database) {
    let store = open(database, OLD).await;
    let old = stored_grant(&*store).await;
    database.close(store).await;
    let store = open(database, BOTH).await;
    // An answer that changes what the grant is about seals both columns by the new key: nothing is left to be
    // sealed anew, and the grant must be found by its new name.
    let facts = GrantFacts { upstream: Some("patient/Patient.rs".into()), ..old.facts.clone() };
    store.finish_refresh(old.id, 1, &ehr_tokens(2), Some(&facts), NOW).await.unwrap();
    reseal(&store).await;
    store.retire_seal_key("old").await.unwrap();
    database.close(store).await;
    let store = open(database, NEW).await;
    let renewed = mantel::store::Grant { id: grant().id, ..old.clone() };
    store_grant(&*store, &renewed).await;
    let state = store.grant(old.id).await.unwrap().unwrap().state;
    assert!(matches!(state, GrantState::Ended { reason: EndReason::Superseded, .. }));
    database.close(store).await;
}

/// Stopped for so long that the others count it as gone; they have retired its key meanwhile, and it goes on.
pub async fn who_was_away_writes_nothing_by_a_retired_key(database: &impl Database) {
    let store = open(database, NEW).await;
    let grant = stored_grant(&*store).await;
    database.close(store).await;
    let sealer = sealer(&[("old", 1), ("new", 2)]);
    let store = database.open(sealer.clone()).await.unwrap();
    let rotation = SealRotation::new(store.clone(), sealer.clone());
    let look = async |beat| rotation.beat(&[Replica { boot: boot(), beat, facts: rotation.facts() }]).await.unwrap();
    for beat in 1..=3 {
        look(beat).await;
    }
    assert_eq!(sealer.writes_with(), "old");
    assert!(store.promote_seal_key("new").await.unwrap());
    assert_eq!(store.retire_seal_key("old").await.unwrap(), Retired::Yes);

    let (opened, another) = (launch(), super::samples::grant());
    let refused = [
        store.keep_ehr_launch(token(), &ehr_launch()).await,
        store.open_launch(&opened).await,
        store.create_grant(&another, token(), &super::samples::code(&another), opened.id).await,
        store.add_revocations(&[revocation()]).await,
        store.add_signing_key(&signing_key(), NOW).await.map(drop),
        store.finish_refresh(grant.id, 1, &ehr_tokens(2), None, NOW).await.map(drop),
        store.end_grant(grant.id, EndReason::Logout, None, &[revocation()], NOW).await.map(drop),
    ];
    for (n, outcome) in refused.into_iter().enumerate() {
        assert!(matches!(&outcome, Err(StoreError::Unavailable(text)) if text.contains("\"old\"")), "{n}: {outcome:?}");
    }
    // Subjects are named by the key that all agree on.
    store.subject(&"general".parse().unwrap(), "somebody", "the sub").await.unwrap();
    assert_eq!(in_use(&store).await, ["new"]);
    let found = store.grant(grant.id).await.unwrap().unwrap();
    assert_eq!((found.generation, found.state), (1, GrantState::Live), "all or nothing");

    // It sees at its next look what has become of its key.
    look(4).await;
    assert_eq!(sealer.writes_with(), "new");
    let finished = store.finish_refresh(grant.id, 1, &ehr_tokens(2), None, NOW).await.unwrap();
    assert!(matches!(finished, Finished::Stored(_)));
    assert_eq!(in_use(&store).await, ["new"]);
    database.close(store).await;
    let store = open(database, NEW).await;
    assert_eq!(store.grant(grant.id).await.unwrap().unwrap().tokens.access, ehr_tokens(2).access);
    database.close(store).await;
}
