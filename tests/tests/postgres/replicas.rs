//! Two gateways on one database, at each isolation level.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::{join, join_all};
use mantel::store::{
    Begun, EndReason, Finished, Grant, GrantId, GrantState, Redeemed, Rotated, SealedSuccessor, Store, StoreError,
    postgres::Postgres,
};

use super::{database, each_serializable, open, store_contract::samples::*};

/// Runs a test at each isolation level, on two stores over one database.
macro_rules! on_two {
    ($($name:ident),*) => {
        mod read_committed {
            $(#[tokio::test]
            async fn $name() {
                let url = super::database().await;
                super::$name(&super::open(&url).await, &super::open(&url).await).await;
            })*
        }
        mod serializable {
            $(#[tokio::test]
            async fn $name() {
                let url = super::each_serializable(&super::database().await);
                super::$name(&super::open(&url).await, &super::open(&url).await).await;
            })*
        }
    };
}

on_two!(
    one_begins,
    one_answer_is_stored,
    one_redeems,
    one_rotates,
    one_grant_for_one_identity,
    one_adds_a_signing_key,
    one_of_two_sees_a_registration_change,
    no_end_is_missed_by_a_poll,
    what_ends_each_other_is_settled
);

/// Two that start at once with different keys for a registration that nobody has seen: whoever comes second sees that it
/// is another.
async fn one_of_two_sees_a_registration_change(a: &Postgres, b: &Postgres) {
    let see = async |store: &Postgres, name: &str, facts: &str, when| {
        store.see_registration(&name.parse().unwrap(), &[facts.as_bytes()], at(when)).await.unwrap()
    };
    for n in 0..20 {
        let name = format!("viewer-{n}");
        let (ours, theirs) = join(see(a, &name, "key a", 10), see(b, &name, "key b", 10)).await;
        assert_eq!([ours, theirs].into_iter().flatten().collect::<Vec<_>>(), [at(10)]);
        // And again, as who brings the next key meets one that has the last still.
        let (ours, theirs) = join(see(a, &name, "key c", 20), see(b, &name, "key c", 20)).await;
        assert_eq!([ours, theirs], [Some(at(20)); 2]);
    }
}

async fn state(store: &Postgres, id: GrantId) -> GrantState {
    store.grant(id).await.unwrap().unwrap().state
}

async fn one_begins(a: &Postgres, b: &Postgres) {
    for _ in 0..5 {
        let grant = stored_grant(a).await;
        let begin = |store| join_all((0..20).map(move |_| begin(store, grant.id)));
        let (ours, theirs) = join(begin(a), begin(b)).await;
        let won = ours.iter().chain(&theirs).filter(|it| matches!(it, Begun::Won { .. })).count();
        assert_eq!(won, 1);
    }
}

async fn begin(store: &Postgres, id: GrantId) -> Begun {
    store.begin_refresh(id, 1, boot(), NOW).await.unwrap()
}

async fn one_answer_is_stored(a: &Postgres, b: &Postgres) {
    for _ in 0..5 {
        let grant = stored_grant(a).await;
        let finish = async |store: &Postgres, number| {
            store.finish_refresh(grant.id, 1, &ehr_tokens(number), None, NOW).await.unwrap()
        };
        // Two answers, and each of them from two: a flight and its spill.
        let (one, two) = join(join(finish(a, 2), finish(b, 2)), join(finish(a, 3), finish(b, 3))).await;
        let stored = |it: &Finished| matches!(it, Finished::Stored(grant) if grant.generation == 2);
        assert!(stored(&one.0) == stored(&one.1) && stored(&two.0) == stored(&two.1), "{one:?} {two:?}");
        assert_ne!(stored(&one.0), stored(&two.0), "{one:?} {two:?}");
    }
}

async fn one_redeems(a: &Postgres, b: &Postgres) {
    for _ in 0..5 {
        let grant = grant();
        let code = store_grant(a, &grant).await;
        let redeem = async |store: &Postgres| store.redeem_code(code, &new_tokens(grant.id), NOW).await.unwrap();
        let redeemed = join_all([a, b, a, b].map(redeem)).await;
        assert_eq!(redeemed.iter().filter(|it| matches!(it, Redeemed::Now(_))).count(), 1);
        assert!(matches!(state(b, grant.id).await, GrantState::Ended { reason: EndReason::CodeReplay, .. }));
    }
}

async fn one_rotates(a: &Postgres, b: &Postgres) {
    for _ in 0..5 {
        let (grant, tokens) = with_tokens(a).await;
        let presented = tokens.refresh.as_ref().unwrap().hash;
        let sealed = SealedSuccessor("the successor".into());
        let rotate = async |store: &Postgres| {
            let (next, grace) = (new_tokens(grant.id), Duration::from_secs(30));
            store.rotate_app_token(presented, &next, &sealed, grace, NOW).await.unwrap()
        };
        let rotated = join_all([a, b, a, b].map(rotate)).await;
        assert_eq!(rotated.iter().filter(|it| matches!(it, Rotated::Now(_))).count(), 1);
        assert_eq!(rotated.iter().filter(|it| matches!(it, Rotated::Again { .. })).count(), 3);
        assert_eq!(state(b, grant.id).await, GrantState::Live);
    }
}

/// Two authorizations of one user that end at the same time: one takes the other's place.
async fn one_grant_for_one_identity(a: &Postgres, b: &Postgres) {
    let first = stored_grant(a).await;
    let again = || Grant { id: grant().id, ..first.clone() };
    for _ in 0..5 {
        let grants: Vec<_> = (0..6).map(|_| again()).collect();
        let made = grants.iter().zip([a, b].into_iter().cycle()).map(|(grant, store)| store_grant(store, grant));
        join_all(made).await;
        let [live, doubtful, _] = a.count_grants().await.unwrap();
        assert_eq!((live, doubtful), (1, 0));
    }
    assert_eq!(b.count_grants().await.unwrap(), [1, 0, 30]);
}

async fn one_adds_a_signing_key(a: &Postgres, b: &Postgres) {
    let key = |n: u32| mantel::store::SigningKey {
        kid: format!("k{n}"),
        pkcs8: mantel::secret::Secret::new(vec![7; 32]),
        created: at(100),
    };
    let keys: Vec<_> = (0..10).map(key).collect();
    let added = keys.iter().zip([a, b].into_iter().cycle()).map(|(key, store)| store.add_signing_key(key, at(0)));
    let lists: Vec<_> = join_all(added).await.into_iter().map(Result::unwrap).collect();
    assert!(lists.iter().all(|list| list.len() == 1 && list[0].kid == lists[0][0].kid));
}

/// Numbers follow the order of commits: who polls by the last number seen is told of each end.
async fn no_end_is_missed_by_a_poll(a: &Postgres, b: &Postgres) {
    let mut grants = Vec::new();
    for _ in 0..60 {
        grants.push(stored_grant(a).await.id);
    }
    let (mut since, _) = b.ended_since(i64::MAX).await.unwrap();
    let ends = grants.iter().zip([a, b].into_iter().cycle()).map(|(id, store)| async move {
        assert!(store.end_grant(*id, EndReason::Revoked, None, &[revocation()], NOW).await.unwrap());
    });
    let mut seen = BTreeSet::new();
    let mut ends = std::pin::pin!(join_all(ends));
    let mut done = false;
    while !done {
        done = futures_util::poll!(ends.as_mut()).is_ready();
        let (counter, ids) = b.ended_since(since).await.unwrap();
        assert_eq!(counter - since, i64::try_from(ids.len()).unwrap(), "the counter belongs to the list");
        since = counter;
        for id in ids {
            assert!(seen.insert(id), "told twice");
        }
    }
    assert_eq!(seen, grants.iter().copied().collect());
}

/// A replay, a revocation, a refresh and a new authorization at once: no deadlock that is not resolved, and the
/// grant has ended by one of them.
async fn what_ends_each_other_is_settled(a: &Postgres, b: &Postgres) {
    for _ in 0..5 {
        let (grant, first) = with_tokens(a).await;
        let presented = first.refresh.as_ref().unwrap().hash;
        let sealed = SealedSuccessor("the successor".into());
        let second = new_tokens(grant.id);
        let grace = Duration::from_secs(30);
        a.rotate_app_token(presented, &second, &sealed, grace, NOW).await.unwrap();
        let (thiefs, answer) = (new_tokens(grant.id), ehr_tokens(2));
        let replay = b.rotate_app_token(presented, &thiefs, &sealed, grace, at(60));
        let revoke = a.end_grant(grant.id, EndReason::Revoked, None, &[], NOW);
        let finish = b.finish_refresh(grant.id, 1, &answer, None, NOW);
        let used = a.successor_used(second.access.hash);
        let other = Grant { id: super::store_contract::samples::grant().id, ..grant.clone() };
        let (replay, revoke, finish, used, _) = tokio::join!(replay, revoke, finish, used, store_grant(b, &other));
        assert!(matches!(replay.unwrap(), Rotated::Replayed(_) | Rotated::Ended(_)));
        assert!(matches!(finish.unwrap(), Finished::Stored(_) | Finished::Ended(_)));
        revoke.unwrap();
        used.unwrap();
        assert!(matches!(state(a, grant.id).await, GrantState::Ended { .. }));
        assert_eq!(state(a, other.id).await, GrantState::Live);
    }
}

/// A caller on another runtime, and one who hangs up, interrupt nothing.
#[tokio::test]
async fn a_caller_who_hangs_up_interrupts_nothing() {
    let store = open(&database().await).await;
    let grant = grant();
    let (hash, record, launch) = (token(), code(&grant), launch());
    {
        let mut made = std::pin::pin!(store.create_grant(&grant, hash, &record, launch.id));
        assert!(futures_util::poll!(made.as_mut()).is_pending());
    }
    store.close().await;
    let again = store.grant(grant.id).await;
    assert!(matches!(again, Err(StoreError::Unavailable(text)) if text.contains("closed")));
}
