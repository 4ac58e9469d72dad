//! An EHR that rotates and burns refresh tokens, a store, and time that moves only when it is told to.

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use mantel_adapters::{
    profile::{Meaning, TokenPolicy},
    site::{RegistrationId, SiteId, VendorId},
};
use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use crate::{
    clock::{Clock as _, Instant, SharedClock, TestClock, Timestamp},
    config::{Base, SealKey},
    custody::{
        Bearer, Custody, CustodyContext, CustodyEvents, CustodyFault, GrantPolicy, LeaseMark, Policies, RefreshAnswer,
        RefreshOutcome, SessionLimits, Spill, SpillEvent, TokenEndpoint,
    },
    entropy::{SharedEntropy, SystemEntropy, uuid4, uuid7},
    replicas::Replicas,
    secret::{Secret, TokenHash},
    store::{
        BootId, Code, EhrTokens, EndReason, Grant, GrantFacts, GrantId, GrantState, LaunchId, ReplicaFacts, Revocation,
        SharedStore, Store as _, link::HeldTime, sealing::Sealer, sqlite::Sqlite,
    },
    telemetry::Metrics,
};

/// Lets time pass in steps of a second, each with room for what is due.
pub async fn pass(seconds: u64) {
    for _ in 0..seconds {
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }
}

pub fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What the EHR does with the next request.
pub enum Reply {
    /// As its tokens' state says.
    Fair,
    Answer(RefreshAnswer),
    /// Renews, and the answer is lost.
    Lost,
    /// Waits until it is told to go on as the given one.
    Gate(oneshot::Receiver<Reply>),
    Never,
    Panic,
}

pub fn refuse(meaning: Meaning) -> Reply {
    Reply::Answer(RefreshAnswer::Refused { meaning, retry_after: None, detail: "400 test".into() })
}

#[derive(Clone, Copy)]
pub enum End {
    /// Put off by each use.
    After(Duration),
    /// Whatever is done.
    At(Instant),
}

pub fn tokens(access: String, refresh: String, lifetime: Duration) -> RefreshAnswer {
    RefreshAnswer::Tokens {
        access: access.into(),
        refresh: Some(refresh.into()),
        lifetime: Some(lifetime),
        refresh_lifetime: None,
        scope: None,
        id_token: None,
    }
}

#[derive(Clone)]
pub struct Call {
    pub at: Instant,
    pub token: String,
}

/// A token endpoint that burns each refresh token at its use.
pub struct Ehr {
    lifetime: Duration,
    replies: Mutex<VecDeque<Reply>>,
    /// What it says of its refresh tokens' end.
    pub ends: Mutex<Option<End>>,
    /// How many times it has renewed: the good refresh token has that number.
    renewed: Mutex<u32>,
    pub calls: watch::Sender<Vec<Call>>,
}

impl Ehr {
    pub fn next(&self, reply: Reply) {
        self.replies.lock().unwrap().push_back(reply);
    }

    /// These, in the place of what was to come.
    pub fn only(&self, replies: impl IntoIterator<Item = Reply>) {
        *self.replies.lock().unwrap() = replies.into_iter().collect();
    }

    /// The next request waits; what it is told then, it does.
    pub fn gate(&self) -> oneshot::Sender<Reply> {
        let (open, gate) = oneshot::channel();
        self.next(Reply::Gate(gate));
        open
    }

    pub fn calls(&self) -> usize {
        self.calls.borrow().len()
    }

    pub async fn called(&self, times: usize) {
        self.calls.subscribe().wait_for(|calls| calls.len() >= times).await.unwrap();
    }

    pub fn fair(&self, token: &str) -> RefreshAnswer {
        let mut renewed = self.renewed.lock().unwrap();
        if token != format!("refresh-{renewed}") {
            return RefreshAnswer::Refused { meaning: Meaning::Dead, retry_after: None, detail: "burnt".into() };
        }
        *renewed += 1;
        let mut answer = tokens(format!("access-{renewed}"), format!("refresh-{renewed}"), self.lifetime);
        if let RefreshAnswer::Tokens { refresh_lifetime, .. } = &mut answer {
            *refresh_lifetime = self.ends.lock().unwrap().map(|end| match end {
                End::After(lifetime) => lifetime,
                End::At(at) => at - Instant::now(),
            });
        }
        answer
    }
}

#[async_trait]
impl TokenEndpoint for Ehr {
    async fn refresh(&self, _grant: &Grant, refresh_token: &Secret<String>, _scope: Option<&str>) -> RefreshAnswer {
        let token = refresh_token.expose().clone();
        self.calls.send_modify(|calls| calls.push(Call { at: Instant::now(), token: token.clone() }));
        let mut reply = self.replies.lock().unwrap().pop_front().unwrap_or(Reply::Fair);
        if let Reply::Gate(gate) = reply {
            reply = gate.await.unwrap_or(Reply::Fair);
        }
        match reply {
            Reply::Fair | Reply::Gate(_) => self.fair(&token),
            Reply::Answer(answer) => answer,
            Reply::Lost => {
                self.fair(&token);
                RefreshAnswer::Unknown
            }
            Reply::Never => std::future::pending().await,
            Reply::Panic => panic!("a bug in the token client"),
        }
    }
}

#[derive(Clone, Default)]
pub struct Counted {
    pub refreshes: BTreeMap<RefreshOutcome, usize>,
    pub ended: Vec<EndReason>,
    pub suspect: Vec<(String, bool)>,
    pub joined: usize,
    pub kept: usize,
    pub changed: usize,
    pub leases: BTreeMap<&'static str, usize>,
    pub spill: BTreeMap<SpillEvent, usize>,
    pub spill_depth: usize,
}

#[derive(Default)]
pub struct Counter(pub watch::Sender<Counted>);

impl Counter {
    pub fn counted(&self) -> Counted {
        self.0.borrow().clone()
    }
}

impl CustodyEvents for Counter {
    fn refresh(&self, vendor: &VendorId, _site: &SiteId, outcome: RefreshOutcome) {
        assert_eq!(vendor.as_str(), "epic");
        self.0.send_modify(|counted| *counted.refreshes.entry(outcome).or_default() += 1);
    }

    fn changed(&self, _grant: &Grant) {
        self.0.send_modify(|counted| counted.changed += 1);
    }

    fn ended(&self, _grant: &Grant, reason: EndReason) {
        self.0.send_modify(|counted| counted.ended.push(reason));
    }

    fn suspect(&self, _registration: &RegistrationId, site: &SiteId, suspect: bool) {
        self.0.send_modify(|counted| counted.suspect.push((site.to_string(), suspect)));
    }

    fn joined(&self) {
        self.0.send_modify(|counted| counted.joined += 1);
    }

    fn lease(&self, mark: LeaseMark) {
        self.0.send_modify(|counted| *counted.leases.entry(mark.text()).or_default() += 1);
    }

    fn kept(&self) {
        self.0.send_modify(|counted| counted.kept += 1);
    }

    fn spill(&self, event: SpillEvent) {
        self.0.send_modify(|counted| *counted.spill.entry(event).or_default() += 1);
    }

    fn spill_depth(&self, answers: usize) {
        self.0.send_modify(|counted| counted.spill_depth = answers);
    }
}

pub struct Profile(pub Mutex<GrantPolicy>);

impl Policies for Profile {
    fn of(&self, _grant: &Grant) -> Option<GrantPolicy> {
        Some(self.0.lock().unwrap().clone())
    }

    fn learnt(&self, grant: &Grant, scope: &str) -> Option<GrantFacts> {
        Some(GrantFacts { upstream: Some(scope.to_owned()), ..grant.facts.clone() })
    }
}

/// Any boot's surroundings: what outlives it.
pub struct World {
    pub custody: Custody,
    pub store: Arc<Sqlite>,
    pub ehr: Arc<Ehr>,
    pub counter: Arc<Counter>,
    pub profile: Arc<Profile>,
    pub clock: Arc<TestClock>,
    pub entropy: SharedEntropy,
    pub boot: BootId,
    pub spill: Option<PathBuf>,
    _time: HeldTime,
}

pub fn sealer() -> Arc<Sealer> {
    let key = SealKey { id: "k".into(), bytes: Secret::new([1; 32]) };
    Arc::new(Sealer::new(&[key]).unwrap())
}

pub async fn alone(store: SharedStore, clock: SharedClock, boot: BootId) -> Replicas {
    let metrics = Metrics::new().unwrap();
    Replicas::join(store, clock, metrics, boot, Arc::new(ReplicaFacts::default()), secs(60)).await.unwrap()
}

pub const START: Timestamp = Timestamp(1_800_000_000_000);

pub fn epic() -> TokenPolicy {
    TokenPolicy { refresh_before: secs(300), ..TokenPolicy::default() }
}

/// Stores a grant whose tokens have just come.
pub async fn store_grant(store: &Sqlite, id: GrantId, tokens: EhrTokens) -> Grant {
    let grant = Grant {
        id,
        app: "viewer".parse().unwrap(),
        site: "general".parse().unwrap(),
        registration: "viewer-epic".parse().unwrap(),
        fingerprint: "epic|client|/oauth/callback/viewer-epic".into(),
        created: tokens.received,
        state: GrantState::Live,
        generation: 1,
        facts: GrantFacts::default(),
        tokens,
    };
    let code = Code {
        grant: id,
        app: grant.app.clone(),
        base: Base::Uniform,
        redirect_uri: String::new(),
        code_challenge: String::new(),
        nonce: None,
        expires: grant.created,
        redeemed: false,
    };
    store.create_grant(&grant, TokenHash::of(&id.to_string()), &code, LaunchId(Uuid::nil())).await.unwrap();
    grant
}

impl World {
    /// An EHR of that access token lifetime, and a profile.
    pub async fn new(lifetime: u64, tokens: TokenPolicy) -> Self {
        Self::on(None, lifetime, tokens).await
    }

    pub async fn on(database: Option<&Path>, lifetime: u64, tokens: TokenPolicy) -> Self {
        Self::with(database, lifetime, tokens, secs(60), None).await
    }

    /// One with a database file and a spill, in that directory.
    pub async fn spilling(directory: &Path, lifetime: u64, tokens: TokenPolicy) -> Self {
        let spill = directory.join("spill");
        Self::with(Some(&directory.join("mantel.db")), lifetime, tokens, secs(60), Some(spill)).await
    }

    /// One whose token requests never end by themselves: a process that is killed does nothing more.
    pub async fn to_be_killed(lifetime: u64) -> Self {
        Self::with(None, lifetime, epic(), secs(1_000_000), None).await
    }

    async fn with(
        database: Option<&Path>,
        lifetime: u64,
        tokens: TokenPolicy,
        token_timeout: Duration,
        spill: Option<PathBuf>,
    ) -> Self {
        let time = HeldTime::hold();
        let store = Arc::new(Sqlite::open(database, sealer()).await.unwrap());
        let ehr = Arc::new(Ehr {
            lifetime: secs(lifetime),
            replies: Mutex::default(),
            ends: Mutex::default(),
            renewed: Mutex::new(1),
            calls: watch::Sender::default(),
        });
        let vendor = "epic".parse().unwrap();
        let policy = GrantPolicy { vendor, tokens, keep_alive: false, session: None, cold_for: secs(1800) };
        let profile = Arc::new(Profile(Mutex::new(policy)));
        let (clock, entropy): (_, SharedEntropy) = (Arc::new(TestClock::new(START)), Arc::new(SystemEntropy::new()));
        let counter = Arc::new(Counter::default());
        let boot = BootId(uuid4(&*entropy));
        let context = CustodyContext {
            store: store.clone(),
            endpoint: ehr.clone(),
            clock: clock.clone(),
            entropy: entropy.clone(),
            handle: tokio::runtime::Handle::current(),
            replicas: alone(store.clone(), clock.clone(), boot).await,
            events: counter.clone(),
            policies: profile.clone(),
            token_timeout,
            spill: spill.as_deref().map(|directory| Spill::open(directory, sealer()).unwrap()),
        };
        Self { custody: Custody::new(context), store, ehr, counter, profile, clock, entropy, boot, spill, _time: time }
    }

    /// Another life of the process: nothing is left but the store, the spill and the EHR.
    pub async fn reboot(&mut self) {
        // The one that was killed may have tasks that still hold its directory: what was on the disk is found.
        self.spill = self.spill.take().map(|before| {
            let directory = before.with_extension(uuid4(&*self.entropy).to_string());
            std::fs::create_dir(&directory).unwrap();
            for file in std::fs::read_dir(before).unwrap().map(Result::unwrap).filter(|it| it.path().is_file()) {
                std::fs::copy(file.path(), directory.join(file.file_name())).unwrap();
            }
            directory
        });
        self.custody.0.stop.cancel();
        self.boot = BootId(uuid4(&*self.entropy));
        self.counter = Arc::new(Counter::default());
        self.custody = Custody::new(CustodyContext {
            store: self.store.clone() as SharedStore,
            endpoint: self.ehr.clone(),
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
            handle: tokio::runtime::Handle::current(),
            replicas: alone(self.store.clone(), self.clock.clone(), self.boot).await,
            events: self.counter.clone(),
            policies: self.profile.clone(),
            token_timeout: secs(60),
            spill: self.spill.as_deref().map(|directory| Spill::open(directory, sealer()).unwrap()),
        });
    }

    /// The answers in the spill's directory, and what was set aside from it.
    pub fn spilled(&self) -> [Vec<PathBuf>; 2] {
        let spill = self.spill.clone().unwrap();
        [spill.clone(), spill.join("bad")].map(|directory| {
            let Ok(files) = std::fs::read_dir(directory) else { return Vec::new() };
            let files = files.map(|it| it.unwrap().path());
            files.filter(|it| it.to_string_lossy().contains(".answer")).collect()
        })
    }

    pub fn session(&self, max: u64, idle: u64) {
        self.profile.0.lock().unwrap().session = Some(SessionLimits { max: secs(max), idle: secs(idle) });
    }

    /// A new grant, stored and taken up, with the EHR's first tokens.
    pub async fn grant(&self) -> GrantId {
        self.grant_with(Some("refresh-1")).await
    }

    pub async fn grant_with(&self, refresh: Option<&str>) -> GrantId {
        let id = GrantId(uuid7(&*self.entropy, START));
        let tokens = EhrTokens {
            access: "access-1".into(),
            refresh: refresh.map(Secret::from),
            received: self.clock.now(),
            lifetime: self.ehr.lifetime,
            refresh_end: None,
            scope: None,
            id_token: None,
        };
        self.custody.adopt(&store_grant(&self.store, id, tokens).await);
        id
    }

    /// As an app's request asks, with the usual patience.
    pub async fn bearer(&self, grant: GrantId) -> Result<Bearer, CustodyFault> {
        self.custody.bearer(grant, Instant::now() + secs(20)).await
    }

    /// The access token that an app's request is served with.
    pub async fn access(&self, grant: GrantId) -> String {
        self.bearer(grant).await.unwrap().token.expose().clone()
    }

    pub async fn refused(&self, grant: GrantId, generation: i64) -> Result<Option<Bearer>, CustodyFault> {
        self.custody.refused(grant, generation, Instant::now() + secs(20)).await
    }

    pub async fn stored(&self, grant: GrantId) -> Grant {
        self.store.grant(grant).await.unwrap().unwrap()
    }

    /// What is to be revoked at the EHR.
    pub async fn revocations(&self) -> Vec<Revocation> {
        self.store.take_revocations(self.now(), self.now().after(secs(60)), 10).await.unwrap()
    }

    pub fn counted(&self) -> Counted {
        self.counter.counted()
    }

    pub async fn until(&self, is: impl FnMut(&Counted) -> bool) {
        self.counter.0.subscribe().wait_for(is).await.unwrap();
    }

    pub async fn until_outcome(&self, outcome: RefreshOutcome) {
        self.until(|counted| counted.refreshes.contains_key(&outcome)).await;
        // Counted before it has landed: whoever asks next finds it landed.
        self.landed().await;
    }

    /// Waits until no flight is under way.
    pub async fn landed(&self) {
        while !self.custody.0.flights.is_empty() {
            tokio::task::yield_now().await;
        }
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

/// Runs a statement beside the store.
pub async fn tell(database: &Path, statement: &'static str) {
    let mut beside = SqliteConnectOptions::new().filename(database).connect().await.unwrap();
    sqlx::query(statement).execute(&mut beside).await.unwrap();
    beside.close().await.unwrap();
}

/// Holds the database's lock, as a backup or a stuck disk does, until it is dropped.
pub async fn hold(database: &Path) -> sqlx::SqliteConnection {
    let mut beside = SqliteConnectOptions::new().filename(database).connect().await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut beside).await.unwrap();
    beside
}
