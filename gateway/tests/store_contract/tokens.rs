use std::time::Duration;

use futures_util::future::join_all;
use mantel::{
    secret::TokenHash,
    store::{
        EndReason, Grant, GrantState, LaunchStep, NewTokens, Redeemed, Rotated, SealedSuccessor, Store,
        sealing::{open_successor, seal_successor},
    },
};
use serde_json::json;

use super::samples::*;

const GRACE: Duration = Duration::from_secs(30);

fn same(one: &Grant, other: &Grant) {
    assert_eq!(format!("{one:?}"), format!("{other:?}"));
    assert_eq!(one.tokens.access, other.tokens.access);
    assert_eq!(one.tokens.refresh, other.tokens.refresh);
    assert_eq!(one.tokens.id_token, other.tokens.id_token);
}

pub async fn state(store: &dyn Store, grant: &Grant) -> GrantState {
    store.grant(grant.id).await.unwrap().unwrap().state
}

async fn ended_by(store: &dyn Store, grant: &Grant, expected: EndReason) {
    let state = state(store, grant).await;
    assert!(matches!(state, GrantState::Ended { reason, .. } if reason == expected), "{state:?}");
}

fn sealed(text: &str) -> SealedSuccessor {
    SealedSuccessor(text.into())
}

async fn rotate(store: &dyn Store, presented: TokenHash, tokens: &NewTokens, seconds: i64) -> Rotated {
    store.rotate_app_token(presented, tokens, &sealed("the successor"), GRACE, at(seconds)).await.unwrap()
}

fn refresh_of(tokens: &NewTokens) -> TokenHash {
    tokens.refresh.as_ref().unwrap().hash
}

pub async fn a_grant_comes_back_whole(store: &dyn Store) {
    let mut grant = grant();
    grant.facts.context.need_patient_banner = Some(true);
    grant.facts.context.extensions.insert("__epic".into(), json!({"a": 1}));
    let launch = launch();
    store.open_launch(&launch).await.unwrap();
    store.create_grant(&grant, token(), &code(&grant), launch.id).await.unwrap();
    same(&store.grant(grant.id).await.unwrap().unwrap(), &grant);
    assert_eq!(store.launch(launch.id, NOW).await.unwrap().unwrap().step, LaunchStep::Done);
    assert!(store.grant(super::samples::grant().id).await.unwrap().is_none());
}

pub async fn a_grant_made_twice_is_made_once(store: &dyn Store) {
    let (grant, hash, launch) = (grant(), token(), launch());
    store.open_launch(&launch).await.unwrap();
    for _ in 0..2 {
        store.create_grant(&grant, hash, &code(&grant), launch.id).await.unwrap();
    }
    assert_eq!(store.count_grants().await.unwrap(), [1, 0, 0]);
}

pub async fn a_new_authorization_takes_the_place(store: &dyn Store) {
    let (old, tokens) = with_tokens(store).await;
    let mut stays = grant();
    stays.facts.context.patient = old.facts.context.patient.clone();
    let mut unknown = grant();
    unknown.facts.sub = None;
    let mut nobody = unknown.clone();
    nobody.id = grant().id;
    for other in [&stays, &unknown, &nobody] {
        store_grant(store, other).await;
    }
    let new = Grant { id: grant().id, tokens: ehr_tokens(2), ..old.clone() };
    store_grant(store, &new).await;
    ended_by(store, &old, EndReason::Superseded).await;
    assert!(store.access_token(tokens.access.hash, NOW).await.unwrap().is_none());
    for living in [&stays, &unknown, &nobody, &new] {
        assert_eq!(state(store, living).await, GrantState::Live);
    }
    let revocations = store.take_revocations(NOW, at(60), 10).await.unwrap();
    assert_eq!(revocations.len(), 1);
    assert_eq!(Some(&revocations[0].token), old.tokens.refresh.as_ref());
}

pub async fn a_code_is_found_until_it_expires(store: &dyn Store) {
    let grant = grant();
    let hash = store_grant(store, &grant).await;
    let found = store.code(hash, at(59)).await.unwrap().unwrap();
    assert_eq!(format!("{found:?}"), format!("{:?}", code(&grant)));
    assert!(store.code(hash, at(60)).await.unwrap().is_none());
    assert!(store.code(token(), NOW).await.unwrap().is_none());
}

pub async fn one_redeems_and_the_rest_end_the_grant(store: &dyn Store) {
    let grant = grant();
    let hash = store_grant(store, &grant).await;
    let offers: Vec<_> = (0..50).map(|_| new_tokens(grant.id)).collect();
    let got = join_all(offers.iter().map(|tokens| store.redeem_code(hash, tokens, NOW))).await;
    let count = |is: fn(&Redeemed) -> bool| got.iter().filter(|got| is(got.as_ref().unwrap())).count();
    assert_eq!(count(|got| matches!(got, Redeemed::Now(_))), 1);
    assert_eq!(count(|got| matches!(got, Redeemed::Replayed(_))), 49);
    ended_by(store, &grant, EndReason::CodeReplay).await;
    for tokens in &offers {
        assert!(store.access_token(tokens.access.hash, NOW).await.unwrap().is_none());
    }
    assert_eq!(store.take_revocations(NOW, at(60), 10).await.unwrap().len(), 1);
    assert!(store.code(hash, at(3600)).await.unwrap().unwrap().redeemed, "a used code is remembered");
}

pub async fn redeeming_may_be_repeated(store: &dyn Store) {
    let grant = grant();
    let (hash, tokens) = (store_grant(store, &grant).await, new_tokens(grant.id));
    for _ in 0..2 {
        assert!(matches!(store.redeem_code(hash, &tokens, NOW).await.unwrap(), Redeemed::Now(_)));
    }
    assert_eq!(state(store, &grant).await, GrantState::Live);
}

pub async fn an_expired_code_is_unknown(store: &dyn Store) {
    let grant = grant();
    let hash = store_grant(store, &grant).await;
    let tokens = new_tokens(grant.id);
    assert!(matches!(store.redeem_code(hash, &tokens, at(60)).await.unwrap(), Redeemed::Unknown));
    assert!(matches!(store.redeem_code(token(), &tokens, NOW).await.unwrap(), Redeemed::Unknown));
    assert_eq!(state(store, &grant).await, GrantState::Live);
}

pub async fn a_code_of_an_ended_grant_says_why(store: &dyn Store) {
    let grant = grant();
    let hash = store_grant(store, &grant).await;
    assert!(store.end_grant(grant.id, EndReason::Logout, None, &[], NOW).await.unwrap());
    let redeemed = store.redeem_code(hash, &new_tokens(grant.id), NOW).await.unwrap();
    assert!(matches!(redeemed, Redeemed::Ended(EndReason::Logout)));
}

pub async fn an_access_token_opens_its_grant(store: &dyn Store) {
    let (grant, tokens) = with_tokens(store).await;
    let (token_found, found) = store.access_token(tokens.access.hash, at(3599)).await.unwrap().unwrap();
    assert_eq!(token_found, tokens.access);
    same(&found, &grant);
    assert!(store.access_token(tokens.access.hash, at(3600)).await.unwrap().is_none());
    assert!(store.access_token(token(), NOW).await.unwrap().is_none());
    assert!(store.access_token(refresh_of(&tokens), NOW).await.unwrap().is_none(), "a refresh token opens nothing");
    store.end_grant(grant.id, EndReason::Revoked, None, &[], NOW).await.unwrap();
    assert!(store.access_token(tokens.access.hash, NOW).await.unwrap().is_none());
    assert!(matches!(
        store.token_owner(tokens.access.hash).await.unwrap().unwrap().state,
        GrantState::Ended { reason: EndReason::Revoked, .. }
    ));
}

pub async fn rotation_gives_new_tokens(store: &dyn Store) {
    let (grant, first) = with_tokens(store).await;
    let second = new_tokens(grant.id);
    let presented = store.refresh_token(refresh_of(&first), NOW).await.unwrap().unwrap();
    assert_eq!(presented.grant.id, grant.id);
    assert!(matches!(rotate(store, refresh_of(&first), &second, 0).await, Rotated::Now(_)));
    let third = new_tokens(grant.id);
    assert!(matches!(rotate(store, refresh_of(&second), &third, 1).await, Rotated::Now(_)));
    // Access tokens of each generation live to their own end.
    for tokens in [&first, &second, &third] {
        assert!(store.access_token(tokens.access.hash, at(2)).await.unwrap().is_some());
        assert!(store.refresh_token(refresh_of(tokens), at(2)).await.unwrap().is_some());
    }
    assert!(store.refresh_token(token(), NOW).await.unwrap().is_none());
    let end = at(90 * 24 * 3600);
    assert!(store.refresh_token(refresh_of(&third), end).await.unwrap().is_none());
    assert!(matches!(rotate(store, refresh_of(&third), &new_tokens(grant.id), 90 * 24 * 3600).await, Rotated::Unknown));
    assert!(matches!(rotate(store, token(), &new_tokens(grant.id), 2).await, Rotated::Unknown));
}

pub async fn a_lost_answer_is_given_again(store: &dyn Store) {
    let (grant, first) = with_tokens(store).await;
    let (second, again) = (new_tokens(grant.id), new_tokens(grant.id));
    let kept = seal_successor("mtl_rt_first", "mtl_rt_second");
    store.rotate_app_token(refresh_of(&first), &second, &kept, GRACE, NOW).await.unwrap();
    let other = seal_successor("mtl_rt_first", "mtl_rt_other");
    let repeated = store.rotate_app_token(refresh_of(&first), &again, &other, GRACE, at(30)).await.unwrap();
    let Rotated::Again { successor, .. } = repeated else { panic!("{repeated:?}") };
    assert_eq!(open_successor("mtl_rt_first", &successor).unwrap().expose(), "mtl_rt_second");
    assert!(store.access_token(again.access.hash, at(30)).await.unwrap().is_some());
    assert!(store.refresh_token(refresh_of(&again), at(30)).await.unwrap().is_none(), "one successor, no second");
    assert!(matches!(rotate(store, refresh_of(&second), &new_tokens(grant.id), 31).await, Rotated::Now(_)));
}

pub async fn the_grace_ends_with_its_time(store: &dyn Store) {
    let (grant, first) = with_tokens(store).await;
    rotate(store, refresh_of(&first), &new_tokens(grant.id), 0).await;
    assert!(matches!(rotate(store, refresh_of(&first), &new_tokens(grant.id), 31).await, Rotated::Replayed(_)));
    ended_by(store, &grant, EndReason::RefreshReplay).await;
    assert_eq!(store.take_revocations(at(31), at(60), 10).await.unwrap().len(), 1);
}

pub async fn the_grace_ends_with_the_successors_use(store: &dyn Store) {
    let (grant, first) = with_tokens(store).await;
    let second = new_tokens(grant.id);
    rotate(store, refresh_of(&first), &second, 0).await;
    store.successor_used(refresh_of(&second)).await.unwrap();
    assert!(matches!(rotate(store, refresh_of(&first), &new_tokens(grant.id), 1).await, Rotated::Replayed(_)));
}

pub async fn the_grace_ends_with_its_access_tokens_use(store: &dyn Store) {
    let (grant, first) = with_tokens(store).await;
    let (second, again) = (new_tokens(grant.id), new_tokens(grant.id));
    rotate(store, refresh_of(&first), &second, 0).await;
    // That the older access token is used tells nothing of the successor.
    store.successor_used(first.access.hash).await.unwrap();
    assert!(matches!(rotate(store, refresh_of(&first), &again, 1).await, Rotated::Again { .. }));
    store.successor_used(again.access.hash).await.unwrap();
    assert!(matches!(rotate(store, refresh_of(&first), &new_tokens(grant.id), 2).await, Rotated::Replayed(_)));
}

pub async fn the_grace_is_for_one_generation(store: &dyn Store) {
    let (grant, first) = with_tokens(store).await;
    let second = new_tokens(grant.id);
    rotate(store, refresh_of(&first), &second, 0).await;
    rotate(store, refresh_of(&second), &new_tokens(grant.id), 1).await;
    assert!(matches!(rotate(store, refresh_of(&first), &new_tokens(grant.id), 2).await, Rotated::Replayed(_)));
    ended_by(store, &grant, EndReason::RefreshReplay).await;
}

pub async fn one_rotates_among_many(store: &dyn Store) {
    let (grant, first) = with_tokens(store).await;
    let offers: Vec<_> = (0..50).map(|_| new_tokens(grant.id)).collect();
    let got = join_all(offers.iter().map(|tokens| rotate(store, refresh_of(&first), tokens, 0))).await;
    assert_eq!(got.iter().filter(|got| matches!(got, Rotated::Now(_))).count(), 1);
    assert_eq!(got.iter().filter(|got| matches!(got, Rotated::Again { .. })).count(), 49);
    assert_eq!(state(store, &grant).await, GrantState::Live);
}

pub async fn a_thief_ends_the_grant(store: &dyn Store) {
    let (grant, stolen) = with_tokens(store).await;
    let thiefs = new_tokens(grant.id);
    assert!(matches!(rotate(store, refresh_of(&stolen), &thiefs, 0).await, Rotated::Now(_)));
    store.successor_used(thiefs.access.hash).await.unwrap();
    let owner = rotate(store, refresh_of(&stolen), &new_tokens(grant.id), 5).await;
    assert!(matches!(owner, Rotated::Replayed(id) if id == grant.id));
    assert!(matches!(
        rotate(store, refresh_of(&thiefs), &new_tokens(grant.id), 6).await,
        Rotated::Ended(EndReason::RefreshReplay)
    ));
    assert!(store.access_token(thiefs.access.hash, at(6)).await.unwrap().is_none());
}

pub async fn rotating_may_be_repeated(store: &dyn Store) {
    let (grant, first) = with_tokens(store).await;
    let second = new_tokens(grant.id);
    for seconds in [0, 40] {
        assert!(matches!(rotate(store, refresh_of(&first), &second, seconds).await, Rotated::Now(_)));
    }
    assert_eq!(state(store, &grant).await, GrantState::Live);
}

pub async fn a_refresh_without_rotation_adds_a_token(store: &dyn Store) {
    let (grant, first) = with_tokens(store).await;
    for _ in 0..2 {
        let narrowed = NewTokens { refresh: None, ..new_tokens(grant.id) };
        assert!(matches!(rotate(store, refresh_of(&first), &narrowed, 0).await, Rotated::Now(_)));
        assert!(store.access_token(narrowed.access.hash, NOW).await.unwrap().is_some());
    }
}

pub async fn an_owner_is_found_by_any_token(store: &dyn Store) {
    let (grant, tokens) = with_tokens(store).await;
    for hash in [tokens.access.hash, refresh_of(&tokens)] {
        assert_eq!(store.token_owner(hash).await.unwrap().unwrap().id, grant.id);
    }
    assert!(store.token_owner(token()).await.unwrap().is_none());
}

pub async fn what_a_later_version_knows_survives(store: &dyn Store) {
    let mut grant = grant();
    grant.facts.unknown.insert("from_the_future".into(), json!([1, 2]));
    store_grant(store, &grant).await;
    let facts = store.grant(grant.id).await.unwrap().unwrap().facts;
    store.finish_refresh(grant.id, 1, &ehr_tokens(2), Some(&facts), NOW).await.unwrap();
    let facts = store.grant(grant.id).await.unwrap().unwrap().facts;
    assert_eq!(facts.unknown.get("from_the_future"), Some(&json!([1, 2])));
}
