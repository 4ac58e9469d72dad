use futures_util::future::join_all;
use mantel::{
    clock::Timestamp,
    store::{EndReason, ReplicaFacts, SigningKey, Store},
};
use mantel_adapters::site::SiteId;

use super::samples::*;

pub async fn a_subject_keeps_its_sub(store: &dyn Store) {
    let (site, other): (SiteId, SiteId) = ("general".parse().unwrap(), "county".parse().unwrap());
    let candidates: Vec<_> = (0..20).map(|n| format!("sub-{n}")).collect();
    let subs = join_all(candidates.iter().map(|it| store.subject(&site, CANARY, it))).await;
    let first = subs[0].clone().unwrap();
    assert!(candidates.contains(&first));
    assert!(subs.iter().all(|sub| *sub.as_ref().unwrap() == first));
    assert_eq!(store.subject(&other, CANARY, "elsewhere").await.unwrap(), "elsewhere");
    assert_eq!(store.subject(&site, "another", "another").await.unwrap(), "another");
}

pub async fn a_jti_is_remembered_once(store: &dyn Store) {
    let taken = join_all((0..20).map(|_| store.remember_jti("app", "jti", at(60)))).await;
    assert_eq!(taken.into_iter().filter(|it| *it.as_ref().unwrap()).count(), 1);
    assert!(store.remember_jti("other", "jti", at(60)).await.unwrap());
    assert!(store.remember_jti("app|j", "ti", at(60)).await.unwrap());
    assert!(store.remember_jti("app", "j|ti", at(60)).await.unwrap());
}

fn key(kid: &str, created: Timestamp) -> SigningKey {
    SigningKey {
        kid: kid.into(),
        pkcs8: mantel::secret::Secret::new(format!("key-{CANARY}-{kid}").into_bytes()),
        created,
    }
}

pub async fn signing_keys_come_newest_first(store: &dyn Store) {
    for (kid, seconds) in [("b", 20), ("a", 10), ("c", 30)] {
        store.add_signing_key(&key(kid, at(seconds)), at(seconds)).await.unwrap();
    }
    let keys = store.signing_keys().await.unwrap();
    assert_eq!(keys.iter().map(|it| it.kid.as_str()).collect::<Vec<_>>(), ["c", "b"], "a had a younger one before it");
    assert_eq!(keys[0].pkcs8, key("c", at(30)).pkcs8);
    assert_eq!(keys[0].created, at(30));
}

pub async fn one_adds_a_signing_key(store: &dyn Store) {
    let keys: Vec<_> = (0..20).map(|n| key(&format!("k{n}"), at(100))).collect();
    let lists = join_all(keys.iter().map(|it| store.add_signing_key(it, at(0)))).await;
    let first = lists[0].as_ref().unwrap();
    assert_eq!(first.len(), 1);
    assert!(lists.iter().all(|list| list.as_ref().unwrap()[0].kid == first[0].kid));
}

pub async fn revocations_are_done_or_tried_again(store: &dyn Store) {
    let grant = stored_grant(store).await;
    let (soon, mut later) = (revocation(), revocation());
    later.not_before = at(10);
    let both = [soon.clone(), later.clone()];
    store.end_grant(grant.id, EndReason::Logout, None, &both, NOW).await.unwrap();
    let due = store.take_revocations(NOW, at(120), 10).await.unwrap();
    assert_eq!(due.len(), 1);
    assert_eq!((due[0].id, &due[0].token, due[0].attempts), (soon.id, &soon.token, 0));
    assert_eq!(due[0].fingerprint, soon.fingerprint);
    // Repeated, it counts once.
    for _ in 0..2 {
        store.settle_revocation(soon.id, Some(at(60))).await.unwrap();
    }
    assert!(store.take_revocations(at(9), at(120), 10).await.unwrap().is_empty());
    let first = store.take_revocations(at(60), at(120), 1).await.unwrap();
    assert_eq!(first[0].id, later.id, "the longest due comes first");
    for _ in 0..2 {
        store.settle_revocation(later.id, None).await.unwrap();
    }
    let due = store.take_revocations(at(60), at(120), 10).await.unwrap();
    assert_eq!((due.len(), due[0].id, due[0].attempts), (1, soon.id, 1));
}

/// However many ask, each is given to one; and again to somebody where that one did not settle it.
pub async fn a_revocation_is_taken_by_one(store: &dyn Store) {
    let all: Vec<_> = (0..40).map(|_| revocation()).collect();
    store.add_revocations(&all).await.unwrap();
    let taken = join_all((0..20).map(|_| store.take_revocations(NOW, at(60), 5))).await;
    let mut ids: Vec<_> = taken.into_iter().flat_map(Result::unwrap).map(|it| it.id).collect();
    ids.sort();
    let mut wanted: Vec<_> = all.iter().map(|it| it.id).collect();
    wanted.sort();
    // Who meets another's choice may be given fewer: what is left is taken next.
    while ids.len() < wanted.len() {
        let rest = store.take_revocations(NOW, at(60), 40).await.unwrap();
        assert!(!rest.is_empty(), "{} of {} were given to anybody", ids.len(), wanted.len());
        ids.extend(rest.iter().map(|it| it.id));
        ids.sort();
    }
    assert_eq!(ids, wanted);
    assert!(store.take_revocations(at(59), at(120), 40).await.unwrap().is_empty());
    assert_eq!(store.take_revocations(at(60), at(120), 100).await.unwrap().len(), 40);
}

pub async fn what_expired_is_forgotten(store: &dyn Store) {
    store.keep_ehr_launch(token(), &ehr_launch()).await.unwrap();
    store.remember_jti("app", "jti", at(60)).await.unwrap();
    let (ended, tokens) = with_tokens(store).await;
    let (lives, _) = with_tokens(store).await;
    store.end_grant(ended.id, EndReason::Logout, None, &[], NOW).await.unwrap();
    assert_eq!(store.sweep(NOW).await.unwrap(), 0);
    // By a clock that is ahead by an hour, or two, nothing is forgotten that may live.
    assert_eq!(store.sweep(at(7200)).await.unwrap(), 0);
    // An EHR's launch, two launches, two access tokens, the jti; codes are remembered for a day more.
    assert_eq!(store.sweep(at(3 * 3600)).await.unwrap(), 6);
    assert!(store.remember_jti("app", "jti", at(4 * 3600)).await.unwrap());
    assert_eq!(store.sweep(at(27 * 3600)).await.unwrap(), 3, "two codes and the jti");
    // The ended grant goes with the last token that points to it.
    assert_eq!(store.sweep(at(40 * 24 * 3600)).await.unwrap(), 0);
    assert!(store.token_owner(tokens.refresh.as_ref().unwrap().hash).await.unwrap().is_some());
    assert_eq!(store.sweep(at(91 * 24 * 3600)).await.unwrap(), 3);
    assert!(store.grant(ended.id).await.unwrap().is_none());
    assert!(store.grant(lives.id).await.unwrap().is_some());
}

pub async fn the_latest_time_is_remembered(store: &dyn Store) {
    for (shown, latest) in [(100, 100), (50, 100), (50, 100), (200, 200)] {
        assert_eq!(store.see_time(at(shown)).await.unwrap(), at(latest));
    }
    store.sweep(at(100)).await.unwrap();
    assert_eq!(store.see_time(at(150)).await.unwrap(), at(200));
    // Once it is swept, time has come to where it was.
    store.sweep(at(3 * 3600)).await.unwrap();
    assert_eq!(store.see_time(at(3 * 3600)).await.unwrap(), at(3 * 3600));
}

pub async fn it_answers(store: &dyn Store) {
    store.ping().await.unwrap();
}

pub async fn replicas_see_each_other(store: &dyn Store) {
    let facts = |key: &str| ReplicaFacts {
        version: "1".into(),
        seal_keys: [("old".to_owned(), "print".to_owned()), (key.to_owned(), "print".to_owned())].into(),
        spill_keys: vec!["old".into()],
        writes_with: key.into(),
        ..ReplicaFacts::default()
    };
    let (one, two) = (boot(), boot());
    store.show_replica(one, &facts("a"), at(-60), at(0)).await.unwrap();
    store.show_replica(two, &facts("b"), at(-60), at(0)).await.unwrap();
    let seen = store.show_replica(one, &facts("c"), at(-60), at(1)).await.unwrap();
    let of = |boot| seen.iter().find(|it| it.boot == boot).unwrap();
    assert_eq!((seen.len(), of(one).beat, of(two).beat), (2, 2, 1));
    assert_eq!((&of(one).facts, &of(two).facts), (&facts("c"), &facts("b")));
    // Who was not seen for long goes; so does who says so.
    let seen = store.show_replica(one, &facts("c"), at(1), at(61)).await.unwrap();
    assert_eq!(seen.iter().map(|it| it.boot).collect::<Vec<_>>(), [one]);
    store.forget_replica(one).await.unwrap();
    let seen = store.show_replica(two, &facts("b"), at(1), at(61)).await.unwrap();
    assert_eq!(seen.iter().map(|it| (it.boot, it.beat)).collect::<Vec<_>>(), [(two, 1)]);
}

pub async fn registrations_are_seen_to_change(store: &dyn Store) {
    let (one, two) = ("viewer-epic".parse().unwrap(), "viewer-oracle".parse().unwrap());
    let see = async |registration, facts: &str, when| {
        store.see_registration(registration, &[b"client".as_slice(), facts.as_bytes()], at(when)).await.unwrap()
    };
    assert_eq!(see(&one, CANARY, 0).await, None, "it was never another");
    assert_eq!(see(&one, CANARY, 10).await, None);
    assert_eq!(see(&two, "key b", 10).await, None);
    assert_eq!(see(&one, "key b", 20).await, Some(at(20)));
    assert_eq!(see(&one, "key b", 30).await, Some(at(20)));
    assert_eq!(see(&two, "key b", 30).await, None);
    assert_eq!(see(&one, CANARY, 40).await, Some(at(40)), "back is a change too");
}

pub async fn grants_of_a_registration_are_counted(store: &dyn Store) {
    let mine = stored_grant(store).await;
    for _ in 0..3 {
        stored_grant(store).await;
    }
    let count = async |at_most| store.live_grants_of(&mine.registration, at_most).await.unwrap();
    assert_eq!((count(6).await, count(3).await), (4, 3));
    assert_eq!(store.live_grants_of(&"another".parse().unwrap(), 6).await.unwrap(), 0);
    store.begin_refresh(mine.id, mine.generation, boot(), NOW).await.unwrap();
    assert_eq!(count(6).await, 4, "a doubtful one lives");
    store.end_grant(mine.id, EndReason::Revoked, None, &[], NOW).await.unwrap();
    assert_eq!(count(6).await, 3);
}

/// More than a group, more than a reader each: all are answered, all are there.
pub async fn a_thousand_writes_at_once(store: &dyn Store) {
    let grants: Vec<_> = (0..1000).map(|_| grant()).collect();
    let launch = launch();
    store.open_launch(&launch).await.unwrap();
    let codes: Vec<_> = grants.iter().map(|grant| (token(), code(grant))).collect();
    let made = grants.iter().zip(&codes).map(|(grant, (hash, code))| store.create_grant(grant, *hash, code, launch.id));
    assert!(join_all(made).await.iter().all(Result::is_ok));
    let found = join_all(grants.iter().map(|grant| store.grant(grant.id))).await;
    assert!(found.iter().all(|it| it.as_ref().unwrap().is_some()));
    assert_eq!(store.count_grants().await.unwrap()[0], 1000);
}
