//! What outlives a process: one trait, one contract suite, two engines.
//!
//! There is no generic get, put or transaction. Each method is one atomic operation that may be
//! retried: after an error the caller does not know whether it took place, and calling it again does
//! no harm. What was acknowledged is never lost.

#[cfg(test)]
pub mod link;
mod model;
pub mod postgres;
mod records;
pub mod rotation;
mod schema;
mod seal_keys;
pub mod sealing;
pub mod sqlite;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
pub use model::*;
pub use schema::{STEPS, Schema, Step};
pub use seal_keys::*;

pub(crate) use self::records::{TokensIn, TokensOut};
use self::sealing::Sealer;
use crate::{clock::Timestamp, config::StoreUrl, secret::TokenHash};

/// Why the store did not do as it was told.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Away, locked, slow. The outcome is unknown.
    #[error("the store does not answer: {0}")]
    Unavailable(String),
    /// Others wrote the same records first, each time that it was tried. Nothing was written.
    #[error("the store is too busy with the same records: {0}")]
    Contended(String),
    /// Disk full or read-only. Nothing was written.
    #[error("the store takes no writes: {0}")]
    ReadOnly(String),
    /// A record or a schema that we did not write, or that was changed.
    #[error("what the store holds cannot be used: {0}")]
    Corrupt(String),
    /// A record sealed by a key that the configuration does not name. Never *dead*.
    #[error(
        "records of the store are sealed by the key {0:?}, which `store.seal` does not name: add {{ id = {0:?}, file = … }} \
         to that list, behind its first key"
    )]
    UnknownSealKey(String),
    /// The database asks for a newer binary.
    #[error("{0}")]
    Incompatible(String),
}

impl StoreError {
    /// The same, and where it arose.
    fn within(self, place: &str) -> Self {
        let named = |text: String| format!("{place}: {text}");
        match self {
            Self::Unavailable(text) => Self::Unavailable(named(text)),
            Self::Contended(text) => Self::Contended(named(text)),
            Self::ReadOnly(text) => Self::ReadOnly(named(text)),
            Self::Corrupt(text) => Self::Corrupt(named(text)),
            Self::Incompatible(text) => Self::Incompatible(named(text)),
            Self::UnknownSealKey(id) => Self::UnknownSealKey(id),
        }
    }
}

pub type StoreResult<T> = Result<T, StoreError>;

pub type SharedStore = Arc<dyn Store>;

/// Opens the store that a configuration names, as a binary of that schema would.
///
/// # Errors
/// As [`sqlite::Sqlite::open`] and [`postgres::Postgres::open`].
pub async fn open(url: &StoreUrl, sealer: Arc<Sealer>, schema: &Schema) -> StoreResult<SharedStore> {
    Ok(match url {
        StoreUrl::Sqlite(path) => Arc::new(sqlite::Sqlite::open_with(path.as_deref(), sealer, schema).await?),
        StoreUrl::Postgres(url) => Arc::new(postgres::Postgres::open_with(url, sealer, schema).await?),
    })
}

/// The store's operations.
#[async_trait]
pub trait Store: Send + Sync {
    /// Whether other gateway processes may work on the same store. Where none can, whoever else holds a lease
    /// is dead.
    fn shared(&self) -> bool;

    // ---- launches ----

    /// Keeps an EHR's `launch` under the hash of ours.
    async fn keep_ehr_launch(&self, ours: TokenHash, launch: &EhrLaunch) -> StoreResult<()>;

    /// Takes it, once.
    async fn take_ehr_launch(&self, ours: TokenHash, now: Timestamp) -> StoreResult<Option<EhrLaunch>>;

    async fn open_launch(&self, launch: &Launch) -> StoreResult<()>;

    async fn launch(&self, id: LaunchId, now: Timestamp) -> StoreResult<Option<Launch>>;

    /// Stores `launch`, if the stored one still stands at `from`. False: somebody took the step before.
    async fn advance_launch(&self, from: LaunchStep, launch: &Launch) -> StoreResult<bool>;

    /// Takes the step `AtEhr → Returned` of the launch with that EHR `state`, once.
    async fn return_launch(&self, state: TokenHash, now: Timestamp) -> StoreResult<Option<Launch>>;

    // ---- grants, codes and tokens of ours ----

    /// Stores a grant with its code, moves the launch to `Done`, and ends the grants that it takes the
    /// place of (equal app, site, subject and patient).
    async fn create_grant(&self, grant: &Grant, code: TokenHash, record: &Code, launch: LaunchId) -> StoreResult<()>;

    async fn code(&self, code: TokenHash, now: Timestamp) -> StoreResult<Option<Code>>;

    /// Redeems a code, once: a second use ends the grant.
    async fn redeem_code(&self, code: TokenHash, tokens: &NewTokens, now: Timestamp) -> StoreResult<Redeemed>;

    /// An access token that has not expired, of a grant that has not ended. Why there is none may be learnt
    /// by [`Self::token_owner`].
    async fn access_token(&self, token: TokenHash, now: Timestamp) -> StoreResult<Option<(AccessToken, Grant)>>;

    /// Looks at a refresh token of ours without using it up. Superseded ones are found too, and those of
    /// ended grants: look at the grant's state.
    async fn refresh_token(&self, token: TokenHash, now: Timestamp) -> StoreResult<Option<Presented>>;

    /// Exchanges a refresh token of ours. `successor` is what a repeat within `grace` gets again.
    async fn rotate_app_token(
        &self,
        presented: TokenHash,
        tokens: &NewTokens,
        successor: &SealedSuccessor,
        grace: Duration,
        now: Timestamp,
    ) -> StoreResult<Rotated>;

    /// Notes that `token`, a refresh token of ours or an access token that was given with one, was used:
    /// the grace of that refresh token's predecessor is over.
    async fn successor_used(&self, token: TokenHash) -> StoreResult<()>;

    /// Which grant a token of ours, access or refresh, belongs to: for revocation and introspection.
    async fn token_owner(&self, token: TokenHash) -> StoreResult<Option<Grant>>;

    async fn grant(&self, id: GrantId) -> StoreResult<Option<Grant>>;

    /// Ends a grant, its tokens and codes, raises the change counter and writes the revocations to the
    /// outbox. `consumed`: only if its generation is still this. False: it had ended, or moved on.
    ///
    /// The EHR's tokens are forgotten: an ended grant is found with empty ones. Where the store ends a grant
    /// by itself (a replay, a new authorization in its place) it writes one revocation of the grant's own
    /// refresh token, else access token; who carries it out asks the profile whether it may.
    async fn end_grant(
        &self,
        id: GrantId,
        reason: EndReason,
        consumed: Option<i64>,
        revocations: &[Revocation],
        now: Timestamp,
    ) -> StoreResult<bool>;

    /// Notes when grants were used by this process: another might end them for idleness.
    async fn note_use(&self, uses: &[(GrantId, Timestamp)]) -> StoreResult<()>;

    /// The latest use that any process has noted.
    async fn last_use(&self, id: GrantId) -> StoreResult<Option<Timestamp>>;

    /// Live and doubtful grants, for the wheel after a start, in pages by id.
    async fn grants_after(&self, after: Option<GrantId>, limit: u32) -> StoreResult<Vec<Grant>>;

    /// How many grants are live, in doubt, ended.
    async fn count_grants(&self) -> StoreResult<[u64; 3]>;

    // ---- custody ----

    /// Takes the lease and records the intent, in one statement; only if the generation is still this.
    /// `Lost` says who holds it; with a lease of `owner`'s own, an earlier call of this process took it.
    async fn begin_refresh(&self, id: GrantId, generation: i64, owner: BootId, now: Timestamp) -> StoreResult<Begun>;

    /// Takes over from an owner whose lease has stood still, as it was seen: what is ours then is an intent
    /// without a result, and its fence the next one. `Lost`: it did not stand still, or somebody was faster.
    async fn take_over(&self, id: GrantId, seen: Lease, owner: BootId, now: Timestamp) -> StoreResult<Begun>;

    /// Shows that the owner lives. False: the lease is not ours any more.
    async fn beat(&self, id: GrantId, owner: BootId, fence: i64) -> StoreResult<bool>;

    /// Stores an answer by compare-and-set on the generation that it consumed, whoever holds the lease.
    async fn finish_refresh(
        &self,
        id: GrantId,
        consumed: i64,
        tokens: &EhrTokens,
        facts: Option<&GrantFacts>,
        now: Timestamp,
    ) -> StoreResult<Finished>;

    /// Clears the intent of a refresh that was certainly not answered with tokens. Of the one try after an
    /// unknown outcome: that it was made; the doubt stays.
    async fn abandon_refresh(&self, id: GrantId, consumed: i64, owner: BootId) -> StoreResult<()>;

    /// Notes that the one try after an unknown outcome is made now, under a lease of its own: its fence. None:
    /// it was made before.
    async fn retry_in_doubt(
        &self,
        id: GrantId,
        generation: i64,
        owner: BootId,
        now: Timestamp,
    ) -> StoreResult<Option<i64>>;

    /// The counter that each ended grant raises, and the grants that ended after `since`. With
    /// `i64::MAX`: the counter alone, to begin with.
    async fn ended_since(&self, since: i64) -> StoreResult<(i64, Vec<GrantId>)>;

    // ---- the processes ----

    /// Raises this process's beat and says what it holds; all that have shown themselves, this one too.
    /// Those last seen before `gone_before` are taken off the list.
    async fn show_replica(
        &self,
        me: BootId,
        facts: &ReplicaFacts,
        gone_before: Timestamp,
        now: Timestamp,
    ) -> StoreResult<Vec<Replica>>;

    /// Takes a process that stops off the list.
    async fn forget_replica(&self, boot: BootId) -> StoreResult<()>;

    // ---- seal keys ----

    /// The seal keys that the store knows.
    async fn seal_keys(&self) -> StoreResult<Vec<KnownSealKey>>;

    /// Says that whoever starts from now on must hold this key; again where it was retired.
    async fn announce_seal_key(&self, id: &str, proof: &[u8]) -> StoreResult<()>;

    /// Says that whoever starts from now on writes with this key, which was announced. False: it was not.
    async fn promote_seal_key(&self, id: &str) -> StoreResult<bool>;

    /// Seals anew, by the key that writes here, at most `limit` records of a table that another has sealed,
    /// behind the record `after` (empty: from the beginning).
    async fn reseal(&self, table: SealedTable, after: &[u8], limit: u32) -> StoreResult<Resealed>;

    /// What is sealed by which key.
    async fn seal_usage(&self) -> StoreResult<SealUsage>;

    /// Says that a key is not needed any more, if no record is sealed by it.
    async fn retire_seal_key(&self, id: &str) -> StoreResult<Retired>;

    // ---- registrations ----

    /// Notes what a registration is (`facts`: client id, authentication, keys; kept as a keyed hash). Since
    /// when it is that, if it was ever anything else.
    async fn see_registration(
        &self,
        registration: &mantel_adapters::site::RegistrationId,
        facts: &[&[u8]],
        now: Timestamp,
    ) -> StoreResult<Option<Timestamp>>;

    /// How many live and doubtful grants a registration has, counted up to `at_most`.
    async fn live_grants_of(
        &self,
        registration: &mantel_adapters::site::RegistrationId,
        at_most: u32,
    ) -> StoreResult<u64>;

    // ---- the rest ----

    /// Our `sub` for an EHR's subject at a site: the first `candidate` that was stored.
    async fn subject(
        &self,
        site: &mantel_adapters::site::SiteId,
        ehr_subject: &str,
        candidate: &str,
    ) -> StoreResult<String>;

    /// Remembers an assertion's `jti` until `until`; false if it was there.
    async fn remember_jti(&self, issuer: &str, jti: &str, until: Timestamp) -> StoreResult<bool>;

    /// Our signing keys, newest first.
    async fn signing_keys(&self) -> StoreResult<Vec<SigningKey>>;

    /// Adds a key, unless one younger than `unless_younger_than` is there; the keys then.
    async fn add_signing_key(&self, key: &SigningKey, unless_younger_than: Timestamp) -> StoreResult<Vec<SigningKey>>;

    /// Adds revocations of tokens whose grant has ended or moved on already. One that is there stays.
    async fn add_revocations(&self, revocations: &[Revocation]) -> StoreResult<()>;

    /// Takes revocations that are due, at most `limit`: nobody else is given them before `again`, when they are
    /// due once more unless they have been settled.
    async fn take_revocations(&self, now: Timestamp, again: Timestamp, limit: u32) -> StoreResult<Vec<Revocation>>;

    /// Done, or to be tried again at a time.
    async fn settle_revocation(&self, id: uuid::Uuid, again: Option<Timestamp>) -> StoreResult<()>;

    /// Forgets what has expired some hours ago; how many records.
    async fn sweep(&self, now: Timestamp) -> StoreResult<u64>;

    /// Shows this process's time: the latest that any has shown, or this.
    async fn see_time(&self, now: Timestamp) -> StoreResult<Timestamp>;

    /// Answers if reads and writes work.
    async fn ping(&self) -> StoreResult<()>;

    /// Does what is queued, takes no more, and lets the database go: what comes later is refused as
    /// unavailable.
    async fn close(&self) {}
}
