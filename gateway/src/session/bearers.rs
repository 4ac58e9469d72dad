//! From an app's bearer to its grant: one look-up in memory, the store only at a miss. What is ended
//! is evicted here within a second (`custody.md`, "Ended means ended").

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mantel_adapters::{
    site::{AppId, RegistrationId, SiteId},
    smart::{launch::LaunchContext, scope::ScopeSet},
};
use moka::{Expiry, sync::Cache};

use crate::{
    clock::{SharedClock, Timestamp},
    replicas::Replicas,
    secret::TokenHash,
    store::{AccessToken, Grant, GrantId, GrantState, SharedStore, StoreError, StoreResult},
};

/// Sessions held in memory: some 2 KB each.
const CAPACITY: u64 = 200_000;
/// Sets of scopes held in memory. An app's users are granted a few different ones, of some kilobytes each.
const SETS: u64 = 10_000;
/// No look-up in the store takes longer.
const LONGEST_LOOKUP: Duration = Duration::from_secs(300);
/// A store that takes a note no faster is in trouble.
const LONGEST_NOTE: Duration = Duration::from_secs(1);

/// A bearer's grant, compiled for the judge.
#[derive(Debug)]
pub struct Session {
    pub grant: GrantId,
    pub app: AppId,
    pub site: SiteId,
    /// By which the app is known at the EHR, and its fingerprint when the grant was made.
    pub registration: RegistrationId,
    pub fingerprint: String,
    /// What the judge enforces: this token's scopes, never wider than the grant's.
    pub enforced: Arc<ScopeSet>,
    /// What the EHR said it granted; none: unknown, so its answers are inspected.
    pub upstream: Option<Arc<ScopeSet>>,
    pub context: LaunchContext,
    pub tenant: Option<String>,
    pub fhir_user: Option<String>,
    pub ehr_launch: bool,
    pub expires: Timestamp,
}

impl Session {
    fn new(token: &AccessToken, grant: &Grant, sets: &Sets) -> Self {
        let facts = &grant.facts;
        Self {
            grant: grant.id,
            app: grant.app.clone(),
            site: grant.site.clone(),
            registration: grant.registration.clone(),
            fingerprint: grant.fingerprint.clone(),
            enforced: sets.of(&token.enforced).unwrap_or_default(),
            upstream: facts.upstream.as_deref().and_then(|text| sets.of(text)),
            context: facts.context.clone(),
            tenant: facts.tenant.clone(),
            fhir_user: facts.fhir_user.clone(),
            ehr_launch: facts.ehr_launch,
            expires: token.expires,
        }
    }
}

/// Parsed scopes by their text: equal ones are held once.
struct Sets(Cache<String, Arc<ScopeSet>>);

impl Sets {
    fn of(&self, text: &str) -> Option<Arc<ScopeSet>> {
        if let Some(set) = self.0.get(text) {
            return Some(set);
        }
        let set = Arc::new(ScopeSet::parse(text).ok()?);
        self.0.insert(text.to_owned(), set.clone());
        Some(set)
    }
}

struct UntilExpiry(SharedClock);

impl Expiry<TokenHash, Arc<Session>> for UntilExpiry {
    fn expire_after_create(&self, _: &TokenHash, session: &Arc<Session>, _: std::time::Instant) -> Option<Duration> {
        Some(self.0.now().until(session.expires))
    }
}

/// The sessions in memory.
pub struct Bearers {
    store: SharedStore,
    clock: SharedClock,
    replicas: Replicas,
    cache: Cache<TokenHash, Arc<Session>>,
    sets: Sets,
    /// Grants that ended a moment ago: a look-up that was in the store meanwhile must not bring one back.
    ended: Cache<GrantId, ()>,
    /// How often facts have changed: a look-up that was in the store meanwhile may have read the old ones,
    /// by which an answer would stream that must be inspected.
    changes: AtomicU64,
}

impl Bearers {
    pub fn new(store: SharedStore, clock: SharedClock, replicas: Replicas) -> Self {
        let cache = Cache::builder()
            .max_capacity(CAPACITY)
            .expire_after(UntilExpiry(clock.clone()))
            .support_invalidation_closures()
            .build();
        let ended = Cache::builder().max_capacity(CAPACITY).time_to_live(LONGEST_LOOKUP).build();
        Self { store, clock, replicas, cache, sets: Sets(Cache::new(SETS)), ended, changes: AtomicU64::new(0) }
    }

    /// A session in memory, if it is there and lives, and this process knows what has ended elsewhere.
    pub fn cached(&self, token: TokenHash) -> Option<Arc<Session>> {
        if self.replicas.stale(self.clock.monotonic()) {
            return None;
        }
        self.cache.get(&token).filter(|session| session.expires > self.clock.now())
    }

    /// A live session: from memory, else from the store, and `seen` is shown its grant then, before anybody
    /// else is served the session.
    ///
    /// # Errors
    /// If the store does not serve, or has not for so long that grants may have ended unnoticed; that says
    /// nothing of the token.
    pub async fn load(&self, token: TokenHash, seen: impl FnOnce(&Grant)) -> StoreResult<Option<Arc<Session>>> {
        if self.replicas.stale(self.clock.monotonic()) {
            return Err(StoreError::Unavailable("the grants that ended at other processes are not known".into()));
        }
        if let Some(session) = self.cached(token) {
            return Ok(Some(session));
        }
        let changes = self.changes.load(Ordering::Acquire);
        let Some((access, grant)) = self.store.access_token(token, self.clock.now()).await? else { return Ok(None) };
        if matches!(grant.state, GrantState::Ended { .. }) {
            return Ok(None);
        }
        // Its first use ends the grace of the refresh token before it (`custody.md`, "Our own tokens"). Where
        // that cannot be written the grace runs out by itself, and the app's request need not fail or wait for it.
        let noted = tokio::time::timeout(LONGEST_NOTE, self.store.successor_used(token)).await;
        if let Err(error) = noted.unwrap_or_else(|_| Err(StoreError::Unavailable("it takes too long".into()))) {
            tracing::warn!(grant = %grant.id, %error, "the grace of a superseded refresh token is not ended by use");
        }
        seen(&grant);
        let session = Arc::new(Session::new(&access, &grant, &self.sets));
        self.cache.insert(token, session.clone());
        // After the insertion: whoever ends the grant marks it first and evicts then.
        if self.ended.contains_key(&grant.id) {
            self.cache.invalidate(&token);
            return Ok(None);
        }
        // This request goes by what stood when it came, the next one reads anew.
        if self.changes.load(Ordering::Acquire) != changes {
            self.cache.invalidate(&token);
        }
        Ok(Some(session))
    }

    /// Forgets the sessions of a grant that has ended.
    pub fn evict(&self, grant: GrantId) {
        self.ended.insert(grant, ());
        // An error only if closures were not supported.
        let _ = self.cache.invalidate_entries_if(move |_, session| session.grant == grant);
    }

    /// Reads a grant's facts anew at its next use: they have changed.
    pub fn renew(&self, grant: GrantId) {
        self.changes.fetch_add(1, Ordering::Release);
        let _ = self.cache.invalidate_entries_if(move |_, session| session.grant == grant);
    }
}

#[cfg(test)]
#[path = "bearers_tests.rs"]
mod tests;
