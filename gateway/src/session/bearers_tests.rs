//! What is in memory is served only while this process knows what has ended elsewhere.

use uuid::Uuid;

use super::*;
use crate::{
    clock::TestClock,
    config::{Base, SealKey},
    secret::Secret,
    store::{
        BootId, Code, EhrTokens, EndReason, GrantFacts, LaunchId, NewTokens, Redeemed, ReplicaFacts, Store as _,
        link::{Busy, HeldTime, Link},
        sealing::Sealer,
        sqlite::Sqlite,
    },
    telemetry::Metrics,
};

const START: Timestamp = Timestamp(1_800_000_000_000);

struct World {
    store: Arc<Sqlite>,
    link: Arc<Link>,
    bearers: Arc<Bearers>,
    grant: Grant,
    token: TokenHash,
    busy: Busy,
    _time: HeldTime,
}

/// A session of a grant, and a process that shares the store.
async fn world() -> World {
    let key = SealKey { id: "k".into(), bytes: Secret::new([1; 32]) };
    let store = Arc::new(Sqlite::open(None, Arc::new(Sealer::new(&[key]).unwrap())).await.unwrap());
    let (busy, time) = (Busy::default(), HeldTime::hold());
    let link = Arc::new(Link::new(store.clone(), busy.clone()));
    let clock = Arc::new(TestClock::new(START));
    let (boot, facts, stale) = (BootId(Uuid::from_u128(1)), ReplicaFacts::default(), Duration::from_secs(60));
    let metrics = Metrics::new().unwrap();
    let replicas = Replicas::join(link.clone(), clock.clone(), metrics, boot, Arc::new(facts), stale).await.unwrap();
    let bearers = Arc::new(Bearers::new(link.clone(), clock, replicas.clone()));
    let evicts = bearers.clone();
    replicas.follow(move |grant| evicts.evict(grant));
    let grant = Grant {
        id: GrantId(Uuid::from_u128(2)),
        app: "viewer".parse().unwrap(),
        site: "general".parse().unwrap(),
        registration: "viewer-epic".parse().unwrap(),
        fingerprint: "epic|client|/oauth/callback/viewer-epic".into(),
        created: START,
        state: GrantState::Live,
        generation: 1,
        facts: GrantFacts::default(),
        tokens: EhrTokens {
            access: "access-1".into(),
            refresh: None,
            received: START,
            lifetime: Duration::from_secs(3600),
            refresh_end: None,
            scope: None,
            id_token: None,
        },
    };
    let (code, token) = (TokenHash::of("code"), TokenHash::of("token"));
    let record = Code {
        grant: grant.id,
        app: grant.app.clone(),
        base: Base::Uniform,
        redirect_uri: String::new(),
        code_challenge: String::new(),
        nonce: None,
        expires: START.after(Duration::from_secs(60)),
        redeemed: false,
    };
    store.create_grant(&grant, code, &record, LaunchId(Uuid::nil())).await.unwrap();
    let access = AccessToken {
        hash: token,
        grant: grant.id,
        reported: String::new(),
        enforced: String::new(),
        expires: START.after(Duration::from_secs(3600)),
    };
    let tokens = NewTokens { access, refresh: None };
    assert!(matches!(store.redeem_code(code, &tokens, START).await.unwrap(), Redeemed::Now(_)));
    World { store, link, bearers, grant, token, busy, _time: time }
}

#[tokio::test(start_paused = true)]
async fn what_is_ended_elsewhere_is_forgotten_and_not_brought_back() {
    let World { store, bearers, grant, token, busy, _time, .. } = world().await;
    let seen = std::sync::Mutex::new(Vec::new());
    for _ in 0..2 {
        let session = bearers.load(token, |grant| seen.lock().unwrap().push(grant.id)).await.unwrap();
        assert_eq!(session.unwrap().grant, grant.id);
    }
    assert_eq!(*seen.lock().unwrap(), [grant.id], "only what is read is shown");
    store.end_grant(grant.id, EndReason::Logout, None, &[], START).await.unwrap();
    busy.pass(Duration::from_millis(300)).await;
    assert!(bearers.cached(token).is_none());
    assert!(bearers.load(token, |_| panic!("it has ended")).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn without_word_of_ends_no_session_is_served() {
    let World { link, bearers, token, busy, _time, .. } = world().await;
    bearers.load(token, |_| {}).await.unwrap().unwrap();
    link.fail("ended_since");
    busy.pass(Duration::from_secs(59)).await;
    assert!(bearers.cached(token).is_some());
    busy.pass(Duration::from_secs(2)).await;
    assert!(bearers.cached(token).is_none());
    assert!(matches!(bearers.load(token, |_| {}).await, Err(StoreError::Unavailable(_))));
    link.mend();
    busy.pass(Duration::from_secs(1)).await;
    assert!(bearers.cached(token).is_some());
    assert!(bearers.load(token, |_| {}).await.unwrap().is_some());
}
