//! Many grants of one registration at one EHR, which answers each by its own tokens or all alike.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use mantel_adapters::profile::{Meaning, TokenPolicy};
use tokio::sync::watch;

use super::world::{Call, Counted, Counter, Profile, START, alone, sealer, secs, store_grant, tokens};
use crate::{
    clock::{Clock as _, Instant, TestClock},
    custody::{Bearer, Custody, CustodyContext, CustodyFault, GrantPolicy, RefreshAnswer, TokenEndpoint},
    entropy::{SharedEntropy, SystemEntropy, uuid4, uuid7},
    secret::Secret,
    store::{BootId, EhrTokens, Grant, GrantId, GrantState, Store as _, link::HeldTime, sqlite::Sqlite},
};

/// An EHR whose refresh tokens are `{grant}.{n}`, each good once.
pub struct Hospital {
    lifetime: Duration,
    /// How long each answer takes.
    pub takes: Mutex<Duration>,
    renewed: Mutex<BTreeMap<GrantId, u32>>,
    /// Answers everybody so.
    pub all: Mutex<Option<RefreshAnswer>>,
    dead: Mutex<BTreeSet<GrantId>>,
    /// Fails for these alone.
    ill: Mutex<BTreeSet<GrantId>>,
    pub calls: watch::Sender<Vec<(GrantId, Call)>>,
    in_flight: AtomicUsize,
    pub most_in_flight: AtomicUsize,
}

pub fn dead() -> RefreshAnswer {
    RefreshAnswer::Refused { meaning: Meaning::Dead, retry_after: None, detail: "400 invalid_grant".into() }
}

pub fn failing() -> RefreshAnswer {
    RefreshAnswer::Refused { meaning: Meaning::Passing, retry_after: None, detail: "503".into() }
}

impl Hospital {
    pub fn says(&self, answer: Option<RefreshAnswer>) {
        *self.all.lock().unwrap() = answer;
    }

    pub fn buries(&self, grant: GrantId) {
        self.dead.lock().unwrap().insert(grant);
    }

    pub fn ails(&self, grant: GrantId) {
        self.ill.lock().unwrap().insert(grant);
    }

    pub fn calls(&self) -> usize {
        self.calls.borrow().len()
    }

    pub async fn called(&self, times: usize) {
        self.calls.subscribe().wait_for(|calls| calls.len() >= times).await.unwrap();
    }

    fn answer(&self, grant: GrantId, token: &str) -> RefreshAnswer {
        if let Some(answer) = &*self.all.lock().unwrap() {
            return answer.clone();
        }
        if self.ill.lock().unwrap().contains(&grant) {
            return failing();
        }
        let mut renewed = self.renewed.lock().unwrap();
        let n = renewed.entry(grant).or_insert(1);
        if self.dead.lock().unwrap().contains(&grant) || token != format!("{grant}.{n}") {
            return dead();
        }
        *n += 1;
        tokens(format!("access {grant}.{n}"), format!("{grant}.{n}"), self.lifetime)
    }
}

#[async_trait]
impl TokenEndpoint for Hospital {
    async fn refresh(&self, grant: &Grant, refresh_token: &Secret<String>, _scope: Option<&str>) -> RefreshAnswer {
        let call = Call { at: Instant::now(), token: refresh_token.expose().clone() };
        self.calls.send_modify(|calls| calls.push((grant.id, call)));
        let now = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_in_flight.fetch_max(now, Ordering::SeqCst);
        let takes = *self.takes.lock().unwrap();
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        self.answer(grant.id, refresh_token.expose())
    }
}

pub struct Town {
    pub custody: Custody,
    pub store: Arc<Sqlite>,
    pub hospital: Arc<Hospital>,
    pub counter: Arc<Counter>,
    pub profile: Arc<Profile>,
    clock: Arc<TestClock>,
    entropy: SharedEntropy,
    _time: HeldTime,
}

impl Town {
    pub async fn new(lifetime: u64, tokens: TokenPolicy) -> Self {
        let time = HeldTime::hold();
        let store = Arc::new(Sqlite::open(None, sealer()).await.unwrap());
        let hospital = Arc::new(Hospital {
            lifetime: secs(lifetime),
            takes: Mutex::default(),
            renewed: Mutex::default(),
            all: Mutex::default(),
            dead: Mutex::default(),
            ill: Mutex::default(),
            calls: watch::Sender::default(),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
        });
        let vendor = "epic".parse().unwrap();
        let policy = GrantPolicy { vendor, tokens, keep_alive: false, session: None, cold_for: secs(1800) };
        let profile = Arc::new(Profile(Mutex::new(policy)));
        let (clock, entropy): (_, SharedEntropy) = (Arc::new(TestClock::new(START)), Arc::new(SystemEntropy::new()));
        let counter = Arc::new(Counter::default());
        let custody = custody(&store, &hospital, &clock, &entropy, &counter, &profile).await;
        Self { custody, store, hospital, counter, profile, clock, entropy, _time: time }
    }

    /// Another life of the process.
    pub async fn reboot(&mut self) {
        self.custody.0.stop.cancel();
        self.counter = Arc::new(Counter::default());
        self.custody =
            custody(&self.store, &self.hospital, &self.clock, &self.entropy, &self.counter, &self.profile).await;
    }

    pub async fn grants(&self, count: usize) -> Vec<GrantId> {
        let mut grants = Vec::new();
        for _ in 0..count {
            grants.push(self.grant().await);
        }
        grants
    }

    async fn grant(&self) -> GrantId {
        let id = GrantId(uuid7(&*self.entropy, START));
        let tokens = EhrTokens {
            access: format!("access {id}.1").into(),
            refresh: Some(format!("{id}.1").into()),
            received: self.clock.now(),
            lifetime: self.hospital.lifetime,
            refresh_end: None,
            scope: None,
            id_token: None,
        };
        self.custody.adopt(&store_grant(&self.store, id, tokens).await);
        id
    }

    pub async fn bearer(&self, grant: GrantId) -> Result<Bearer, CustodyFault> {
        self.custody.bearer(grant, Instant::now() + secs(20)).await
    }

    pub async fn state(&self, grant: GrantId) -> GrantState {
        self.store.grant(grant).await.unwrap().unwrap().state
    }

    pub fn counted(&self) -> Counted {
        self.counter.0.borrow().clone()
    }

    pub async fn until(&self, is: impl FnMut(&Counted) -> bool) {
        self.counter.0.subscribe().wait_for(is).await.unwrap();
        self.landed().await;
    }

    /// Gives what is under way room to go on, to the store and back.
    pub async fn settle(&self) {
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
        // The store answers after whatever was asked of it before.
        self.store.ping().await.unwrap();
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
    }

    /// Waits until no flight is under way.
    pub async fn landed(&self) {
        while !self.custody.0.flights.is_empty() {
            tokio::task::yield_now().await;
        }
    }
}

async fn custody(
    store: &Arc<Sqlite>,
    hospital: &Arc<Hospital>,
    clock: &Arc<TestClock>,
    entropy: &SharedEntropy,
    counter: &Arc<Counter>,
    profile: &Arc<Profile>,
) -> Custody {
    Custody::new(CustodyContext {
        store: store.clone(),
        endpoint: hospital.clone(),
        clock: clock.clone(),
        entropy: entropy.clone(),
        handle: tokio::runtime::Handle::current(),
        replicas: alone(store.clone(), clock.clone(), BootId(uuid4(&**entropy))).await,
        events: counter.clone(),
        policies: profile.clone(),
        token_timeout: secs(60),
        spill: None,
    })
}
