//! A process's connection to a store that it shares, for tests: counted, cut, frozen.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use mantel_adapters::site::{RegistrationId, SiteId};
use tokio::sync::watch;
use uuid::Uuid;

use super::*;

/// While it lives, paused time does not run ahead whenever all tasks wait for the store's threads: tokio
/// holds it as long as a blocking task runs.
pub struct HeldTime {
    _until_dropped: std::sync::mpsc::Sender<()>,
}

impl HeldTime {
    pub fn hold() -> Self {
        let (held, dropped) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || dropped.recv());
        Self { _until_dropped: held }
    }
}

/// Operations under way on all links: time passes only while there are none.
#[derive(Clone, Default)]
pub struct Busy(Arc<AtomicUsize>);

impl Busy {
    /// Waits until nothing is under way but what waits for time, or for a gate.
    pub async fn settle(&self) {
        let mut calm = 0;
        while calm < 20 {
            tokio::task::yield_now().await;
            calm = if self.0.load(Ordering::SeqCst) == 0 { calm + 1 } else { 0 };
        }
    }

    /// Lets time pass, with room for what is due on the way.
    pub async fn pass(&self, time: Duration) {
        let until = tokio::time::Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            if left.is_zero() {
                return;
            }
            tokio::time::advance(left.min(Duration::from_millis(100))).await;
            self.settle().await;
        }
    }
}

pub struct Link {
    store: Arc<dyn Store>,
    busy: Busy,
    frozen: watch::Sender<bool>,
    freezes: Mutex<Option<&'static str>>,
    failing: Mutex<BTreeSet<&'static str>>,
    unanswered: Mutex<BTreeSet<&'static str>>,
    slow: Mutex<BTreeMap<&'static str, Duration>>,
    counts: Mutex<BTreeMap<&'static str, usize>>,
}

struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Link {
    pub fn new(store: Arc<dyn Store>, busy: Busy) -> Self {
        Self {
            store,
            busy,
            frozen: watch::Sender::new(false),
            freezes: Mutex::default(),
            failing: Mutex::default(),
            unanswered: Mutex::default(),
            slow: Mutex::default(),
            counts: Mutex::default(),
        }
    }

    /// SIGSTOP, or `kill -9` if it is never undone.
    pub fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }

    /// SIGSTOP while the next one of these is at the store, which does it.
    pub fn freeze_in(&self, operation: &'static str) {
        *self.freezes.lock().unwrap() = Some(operation);
    }

    pub fn fail(&self, operation: &'static str) {
        self.failing.lock().unwrap().insert(operation);
    }

    /// The store does it, and its answer is lost.
    pub fn fail_after(&self, operation: &'static str) {
        self.unanswered.lock().unwrap().insert(operation);
    }

    /// The store takes so long for it.
    pub fn slow(&self, operation: &'static str, by: Duration) {
        self.slow.lock().unwrap().insert(operation, by);
    }

    pub fn mend(&self) {
        self.failing.lock().unwrap().clear();
        self.unanswered.lock().unwrap().clear();
    }

    pub fn count(&self, operation: &str) -> usize {
        self.counts.lock().unwrap().get(operation).copied().unwrap_or(0)
    }

    pub fn forget_counts(&self) {
        self.counts.lock().unwrap().clear();
    }

    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        self.counts.lock().unwrap().clone()
    }

    async fn run<T>(&self, name: &'static str, work: impl Future<Output = StoreResult<T>> + Send) -> StoreResult<T> {
        self.thawed().await;
        *self.counts.lock().unwrap().entry(name).or_default() += 1;
        if self.failing.lock().unwrap().contains(name) {
            return Err(StoreError::Unavailable("a test".into()));
        }
        if self.freezes.lock().unwrap().take_if(|operation| *operation == name).is_some() {
            self.freeze(true);
        }
        let slow = self.slow.lock().unwrap().get(name).copied();
        if let Some(by) = slow {
            tokio::time::sleep(by).await;
        }
        self.busy.0.fetch_add(1, Ordering::SeqCst);
        let running = Running(&self.busy.0);
        let answer = work.await;
        drop(running);
        // What was answered meanwhile reaches the process when it goes on.
        self.thawed().await;
        if self.unanswered.lock().unwrap().contains(name) {
            return Err(StoreError::Unavailable("a test".into()));
        }
        answer
    }

    async fn thawed(&self) {
        let _ = self.frozen.subscribe().wait_for(|frozen| !frozen).await;
    }
}

macro_rules! links {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Store for Link {
            fn shared(&self) -> bool {
                true
            }

            $(async fn $name(&self, $($argument: $type),*) -> StoreResult<$answer> {
                self.run(stringify!($name), self.store.$name($($argument),*)).await
            })*
        }
    };
}

links! {
    fn keep_ehr_launch(ours: TokenHash, launch: &EhrLaunch) -> ();
    fn take_ehr_launch(ours: TokenHash, now: Timestamp) -> Option<EhrLaunch>;
    fn open_launch(launch: &Launch) -> ();
    fn launch(id: LaunchId, now: Timestamp) -> Option<Launch>;
    fn advance_launch(from: LaunchStep, launch: &Launch) -> bool;
    fn return_launch(state: TokenHash, now: Timestamp) -> Option<Launch>;
    fn create_grant(grant: &Grant, code: TokenHash, record: &Code, launch: LaunchId) -> ();
    fn code(code: TokenHash, now: Timestamp) -> Option<Code>;
    fn redeem_code(code: TokenHash, tokens: &NewTokens, now: Timestamp) -> Redeemed;
    fn access_token(token: TokenHash, now: Timestamp) -> Option<(AccessToken, Grant)>;
    fn refresh_token(token: TokenHash, now: Timestamp) -> Option<Presented>;
    fn rotate_app_token(
        presented: TokenHash, tokens: &NewTokens, successor: &SealedSuccessor, grace: Duration, now: Timestamp
    ) -> Rotated;
    fn successor_used(token: TokenHash) -> ();
    fn token_owner(token: TokenHash) -> Option<Grant>;
    fn grant(id: GrantId) -> Option<Grant>;
    fn end_grant(
        id: GrantId, reason: EndReason, consumed: Option<i64>, revocations: &[Revocation], now: Timestamp
    ) -> bool;
    fn note_use(uses: &[(GrantId, Timestamp)]) -> ();
    fn last_use(id: GrantId) -> Option<Timestamp>;
    fn grants_after(after: Option<GrantId>, limit: u32) -> Vec<Grant>;
    fn count_grants() -> [u64; 3];
    fn begin_refresh(id: GrantId, generation: i64, owner: BootId, now: Timestamp) -> Begun;
    fn take_over(id: GrantId, seen: Lease, owner: BootId, now: Timestamp) -> Begun;
    fn beat(id: GrantId, owner: BootId, fence: i64) -> bool;
    fn finish_refresh(
        id: GrantId, consumed: i64, tokens: &EhrTokens, facts: Option<&GrantFacts>, now: Timestamp
    ) -> Finished;
    fn abandon_refresh(id: GrantId, consumed: i64, owner: BootId) -> ();
    fn retry_in_doubt(id: GrantId, generation: i64, owner: BootId, now: Timestamp) -> Option<i64>;
    fn ended_since(since: i64) -> (i64, Vec<GrantId>);
    fn show_replica(me: BootId, facts: &ReplicaFacts, gone_before: Timestamp, now: Timestamp) -> Vec<Replica>;
    fn forget_replica(boot: BootId) -> ();
    fn seal_keys() -> Vec<KnownSealKey>;
    fn announce_seal_key(id: &str, proof: &[u8]) -> ();
    fn promote_seal_key(id: &str) -> bool;
    fn reseal(table: SealedTable, after: &[u8], limit: u32) -> Resealed;
    fn seal_usage() -> SealUsage;
    fn retire_seal_key(id: &str) -> Retired;
    fn see_registration(registration: &RegistrationId, facts: &[&[u8]], now: Timestamp) -> Option<Timestamp>;
    fn live_grants_of(registration: &RegistrationId, at_most: u32) -> u64;
    fn subject(site: &SiteId, ehr_subject: &str, candidate: &str) -> String;
    fn remember_jti(issuer: &str, jti: &str, until: Timestamp) -> bool;
    fn signing_keys() -> Vec<SigningKey>;
    fn add_signing_key(key: &SigningKey, unless_younger_than: Timestamp) -> Vec<SigningKey>;
    fn add_revocations(revocations: &[Revocation]) -> ();
    fn take_revocations(now: Timestamp, again: Timestamp, limit: u32) -> Vec<Revocation>;
    fn settle_revocation(id: Uuid, again: Option<Timestamp>) -> ();
    fn sweep(now: Timestamp) -> u64;
    fn see_time(now: Timestamp) -> Timestamp;
    fn ping() -> ();
}
