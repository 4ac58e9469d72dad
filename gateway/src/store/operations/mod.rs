//! The store's operations, in SQL that both engines speak.
//!
//! Each engine includes this module by its path and names, beside it, its `Connection` and `Row`, its `fault`s, its
//! `DIALECT`, the list of its `TABLES`, how it is `locking` rows, and its `Backend`, whose `engine` runs an operation
//! in one transaction, what cannot wait with `write_first`, and whose `SHARED` says whether other processes may work on the same store.
//!
//! With several writers a transaction sees what others commit between its statements (READ COMMITTED), or is
//! refused and run again (SERIALIZABLE). So what is read to be written ends with `locking!()`, or the write itself
//! says in its WHERE what it builds upon; an operation may be run again from its beginning. Rows are locked in
//! one order: code, grant, counter, the grant's tokens, outbox.

mod custody;
mod grants;
mod launches;
mod misc;
pub(super) mod opening;
mod registrations;
mod replicas;
pub(super) mod seal;
mod tokens;

use std::time::Duration;

use async_trait::async_trait;
use mantel_adapters::site::{RegistrationId, SiteId};
use zeroize::Zeroizing;

use self::{
    custody::{Beginning, Finishing},
    grants::{NewGrant, Revoke},
    launches::NewLaunch,
    tokens::{Redeeming, Rotating, Rotation},
};
use super::{Backend, Connection, DIALECT, Row, TABLES, fault, locking};
use crate::{
    clock::Timestamp,
    secret::{Secret, TokenHash},
    store::{
        records::{self, GrantRow},
        *,
    },
};

impl Backend {
    fn opened(&self, row: Option<GrantRow>) -> StoreResult<Option<Grant>> {
        row.map(|row| row.open(&self.sealer)).transpose()
    }

    fn boxed(&self, row: &GrantRow) -> StoreResult<Box<Grant>> {
        row.open(&self.sealer).map(Box::new)
    }

    fn begun(&self, beginning: Beginning) -> StoreResult<Begun> {
        Ok(match beginning {
            Beginning::Won { fence } => Begun::Won { fence },
            Beginning::Lost(lease) => Begun::Lost(lease),
            Beginning::InDoubt { since, retried } => Begun::InDoubt { since, retried },
            Beginning::Moved(row) => Begun::Moved(self.boxed(&row)?),
            Beginning::Ended(reason) => Begun::Ended(reason),
        })
    }

    fn new_launch(&self, launch: &Launch) -> StoreResult<NewLaunch> {
        Ok(NewLaunch {
            id: launch.id,
            step: launch.step,
            ehr_state: launch.ehr.as_ref().map(|ehr| ehr.state),
            expires: launch.expires,
            body: records::seal_launch(&self.sealer, launch)?,
        })
    }

    fn sealed(&self, revocations: &[Revocation]) -> StoreResult<Vec<(Revocation, Vec<u8>)>> {
        let seal = |it: &Revocation| Ok((it.clone(), records::seal_revocation(&self.sealer, it)?));
        revocations.iter().map(seal).collect()
    }

    fn keys(&self, rows: Vec<misc::KeyColumns>) -> StoreResult<Vec<SigningKey>> {
        let open = |(format, kid, created, sealed): misc::KeyColumns| {
            records::readable("signing_keys", format)?;
            let pkcs8 = self.sealer.open(records::key_place(&kid), &sealed)?;
            Ok(SigningKey { pkcs8: Secret::new(pkcs8.to_vec()), created: Timestamp(created), kid })
        };
        let (total, mut keys) = (rows.len(), Vec::new());
        let mut fault = None;
        for row in rows {
            match open(row) {
                Ok(key) => keys.push(key),
                Err(error) => {
                    tracing::error!(%error, "a signing key cannot be read: it neither signs nor is published");
                    fault = Some(error);
                }
            }
        }
        // Where others are left they serve; to make a new one because none can be read would hide the fault.
        match fault {
            Some(error) if keys.is_empty() && total > 0 => Err(error),
            _ => Ok(keys),
        }
    }
}

/// A record of a list, if it can be read; else it is told, and passed over.
fn readable<T>(table: &'static str, opened: StoreResult<T>) -> Option<T> {
    opened.map_err(|error| tracing::error!(table, %error, "a record cannot be read and is passed over")).ok()
}

/// Runs an operation of a family: its arguments move into the task that owns the connection, cloned where it is
/// run again.
macro_rules! on {
    ($self:ident.$engine:ident, $($family:ident)::+($($argument:expr),*)) => {
        $self.engine.$engine(move |on| Box::pin($($family)::+(on, $($argument),*)))
    };
}

#[async_trait]
impl Store for Backend {
    fn shared(&self) -> bool {
        Self::SHARED
    }

    async fn keep_ehr_launch(&self, ours: TokenHash, launch: &EhrLaunch) -> StoreResult<()> {
        let body = records::seal_ehr_launch(&self.sealer, ours, launch)?;
        let expires = launch.expires;
        on!(self.write, launches::keep_ehr(ours, expires, body)).await
    }

    async fn take_ehr_launch(&self, ours: TokenHash, now: Timestamp) -> StoreResult<Option<EhrLaunch>> {
        let Some((format, expires, body)) = on!(self.write, launches::take_ehr(ours)).await? else { return Ok(None) };
        let launch = records::open_ehr_launch(&self.sealer, ours, format, expires, &body)?;
        Ok(Some(launch).filter(|launch| launch.expires > now))
    }

    async fn open_launch(&self, launch: &Launch) -> StoreResult<()> {
        let launch = self.new_launch(launch)?;
        on!(self.write, launches::open(launch)).await
    }

    async fn launch(&self, id: LaunchId, now: Timestamp) -> StoreResult<Option<Launch>> {
        let row = on!(self.read, launches::by_id(id, now)).await?;
        row.map(|row| row.open(&self.sealer)).transpose()
    }

    async fn advance_launch(&self, from: LaunchStep, launch: &Launch) -> StoreResult<bool> {
        let launch = self.new_launch(launch)?;
        on!(self.write, launches::advance(from, launch)).await
    }

    async fn return_launch(&self, state: TokenHash, now: Timestamp) -> StoreResult<Option<Launch>> {
        let row = on!(self.write, launches::returned(state, now)).await?;
        row.map(|row| row.open(&self.sealer)).transpose()
    }

    async fn create_grant(&self, grant: &Grant, code: TokenHash, record: &Code, launch: LaunchId) -> StoreResult<()> {
        // Sealed and named by one key: re-sealing finds the name by the seal.
        let sealer = self.sealer.fixed();
        let new = NewGrant {
            facts: records::seal_facts(&sealer, grant.id, &grant.facts)?,
            tokens: records::seal_tokens(&sealer, grant.id, &grant.tokens, None)?,
            identity: records::identity(&sealer, grant.app.as_str(), grant.site.as_str(), &grant.facts),
            grant: grant.clone(),
            code,
            code_expires: record.expires,
            code_body: records::seal_code(&sealer, code, record)?,
            launch,
        };
        self.engine.write(move |on| Box::pin(async move { grants::create(on, &sealer, new).await })).await
    }

    async fn code(&self, code: TokenHash, now: Timestamp) -> StoreResult<Option<Code>> {
        let row = on!(self.read, tokens::code(code, now)).await?;
        row.map(|row| row.open(&self.sealer, code)).transpose()
    }

    async fn redeem_code(&self, code: TokenHash, tokens: &NewTokens, now: Timestamp) -> StoreResult<Redeemed> {
        let (sealer, tokens) = (self.sealer.clone(), tokens.clone());
        let redeeming = self
            .engine
            .write(move |on| Box::pin(async move { tokens::redeem(on, &sealer, code, tokens, now).await }))
            .await?;
        Ok(match redeeming {
            Redeeming::Now(row) => Redeemed::Now(self.boxed(&row)?),
            Redeeming::Replayed(id) => Redeemed::Replayed(id),
            Redeeming::Unknown => Redeemed::Unknown,
            Redeeming::Ended(reason) => Redeemed::Ended(reason),
        })
    }

    async fn access_token(&self, token: TokenHash, now: Timestamp) -> StoreResult<Option<(AccessToken, Grant)>> {
        let Some((token, row)) = on!(self.read, tokens::access(token, now)).await? else { return Ok(None) };
        Ok(Some((token, row.open(&self.sealer)?)))
    }

    async fn refresh_token(&self, token: TokenHash, now: Timestamp) -> StoreResult<Option<Presented>> {
        let Some((expires, row)) = on!(self.read, tokens::refresh(token, now)).await? else { return Ok(None) };
        Ok(Some(Presented { grant: self.boxed(&row)?, expires: Timestamp(expires) }))
    }

    async fn rotate_app_token(
        &self,
        presented: TokenHash,
        tokens: &NewTokens,
        successor: &SealedSuccessor,
        grace: Duration,
        now: Timestamp,
    ) -> StoreResult<Rotated> {
        let with = Rotation {
            presented,
            tokens: tokens.clone(),
            successor: successor.clone(),
            grace_until: now.after(grace),
            now,
        };
        let sealer = self.sealer.clone();
        let rotating =
            self.engine.write(move |on| Box::pin(async move { tokens::rotate(on, &sealer, with).await })).await?;
        Ok(match rotating {
            Rotating::Now(row) => Rotated::Now(self.boxed(&row)?),
            Rotating::Again { grant, successor } => Rotated::Again { grant: self.boxed(&grant)?, successor },
            Rotating::Replayed(id) => Rotated::Replayed(id),
            Rotating::Unknown => Rotated::Unknown,
            Rotating::Ended(reason) => Rotated::Ended(reason),
        })
    }

    async fn successor_used(&self, token: TokenHash) -> StoreResult<()> {
        on!(self.write, tokens::used(token)).await
    }

    async fn token_owner(&self, token: TokenHash) -> StoreResult<Option<Grant>> {
        self.opened(on!(self.read, tokens::owner(token)).await?)
    }

    async fn grant(&self, id: GrantId) -> StoreResult<Option<Grant>> {
        self.opened(on!(self.read, grants::by_id(id)).await?)
    }

    async fn end_grant(
        &self,
        id: GrantId,
        reason: EndReason,
        consumed: Option<i64>,
        revocations: &[Revocation],
        now: Timestamp,
    ) -> StoreResult<bool> {
        let these = Revoke::These(self.sealed(revocations)?);
        let sealer = self.sealer.clone();
        self.engine
            .write_first(move |on| {
                Box::pin(async move { grants::end(on, &sealer, id, reason, consumed, these, now).await })
            })
            .await
    }

    async fn grants_after(&self, after: Option<GrantId>, limit: u32) -> StoreResult<Vec<Grant>> {
        let mut after = after.map_or([0; 16].to_vec(), |id| id.0.as_bytes().to_vec());
        loop {
            let rows = on!(self.read, grants::after(after, limit)).await?;
            // One record that cannot be read must not keep the others from being refreshed.
            let opened: Vec<Grant> = rows.iter().filter_map(|row| readable("grants", row.open(&self.sealer))).collect();
            match rows.into_iter().last() {
                // An empty page would say that there are no more.
                Some(last) if opened.is_empty() => after = last.id,
                _ => return Ok(opened),
            }
        }
    }

    async fn note_use(&self, uses: &[(GrantId, Timestamp)]) -> StoreResult<()> {
        let mut uses = uses.to_vec();
        // In one order for all, so that no two wait for each other.
        uses.sort_unstable();
        on!(self.write, grants::note_use(uses)).await
    }

    async fn last_use(&self, id: GrantId) -> StoreResult<Option<Timestamp>> {
        on!(self.read, grants::last_use(id)).await
    }

    async fn count_grants(&self) -> StoreResult<[u64; 3]> {
        on!(self.read, grants::count()).await
    }

    async fn begin_refresh(&self, id: GrantId, generation: i64, owner: BootId, now: Timestamp) -> StoreResult<Begun> {
        self.begun(on!(self.write, custody::begin(id, generation, owner, now)).await?)
    }

    async fn take_over(&self, id: GrantId, seen: Lease, owner: BootId, _now: Timestamp) -> StoreResult<Begun> {
        self.begun(on!(self.write, custody::take_over(id, seen, owner)).await?)
    }

    async fn beat(&self, id: GrantId, owner: BootId, fence: i64) -> StoreResult<bool> {
        on!(self.write_first, custody::beat(id, owner, fence)).await
    }

    async fn finish_refresh(
        &self,
        id: GrantId,
        consumed: i64,
        tokens: &EhrTokens,
        facts: Option<&GrantFacts>,
        _now: Timestamp,
    ) -> StoreResult<Finished> {
        let (sealer, tokens, facts) = (self.sealer.fixed(), tokens.clone(), facts.cloned());
        let finishing = self
            .engine
            .write_first(move |on| {
                Box::pin(async move { custody::finish(on, &sealer, id, consumed, &tokens, facts.as_ref()).await })
            })
            .await?;
        Ok(match finishing {
            Finishing::Stored(row) => Finished::Stored(self.boxed(&row)?),
            Finishing::Moved(row) => Finished::Moved(self.boxed(&row)?),
            Finishing::Ended(reason) => Finished::Ended(reason),
        })
    }

    async fn abandon_refresh(&self, id: GrantId, consumed: i64, owner: BootId) -> StoreResult<()> {
        on!(self.write_first, custody::abandon(id, consumed, owner)).await
    }

    async fn retry_in_doubt(
        &self,
        id: GrantId,
        generation: i64,
        owner: BootId,
        now: Timestamp,
    ) -> StoreResult<Option<i64>> {
        on!(self.write, custody::retry(id, generation, owner, now)).await
    }

    async fn ended_since(&self, since: i64) -> StoreResult<(i64, Vec<GrantId>)> {
        on!(self.read, grants::ended_since(since)).await
    }

    async fn show_replica(
        &self,
        me: BootId,
        facts: &ReplicaFacts,
        gone_before: Timestamp,
        now: Timestamp,
    ) -> StoreResult<Vec<Replica>> {
        let facts = facts.clone();
        on!(self.write, replicas::show(me, facts, gone_before, now)).await
    }

    async fn forget_replica(&self, boot: BootId) -> StoreResult<()> {
        on!(self.write, replicas::forget(boot)).await
    }

    async fn see_registration(
        &self,
        registration: &RegistrationId,
        facts: &[&[u8]],
        now: Timestamp,
    ) -> StoreResult<Option<Timestamp>> {
        let parts = [&[registration.as_str().as_bytes()], facts].concat();
        let facts = self.sealer.names("registration", &parts);
        let registration = registration.as_str().to_owned();
        on!(self.write, registrations::see(registration, facts, now)).await
    }

    async fn live_grants_of(&self, registration: &RegistrationId, at_most: u32) -> StoreResult<u64> {
        let registration = registration.as_str().to_owned();
        on!(self.read, registrations::live_grants(registration, at_most)).await
    }

    async fn subject(&self, site: &SiteId, ehr_subject: &str, candidate: &str) -> StoreResult<String> {
        let names = records::subject_names(&self.sealer, site.as_str(), ehr_subject);
        if let Some(sub) = on!(self.read, misc::known_subject(names)).await? {
            return Ok(sub);
        }
        let (sealer, site, candidate) = (self.sealer.clone(), site.clone(), candidate.to_owned());
        let ehr_subject = ehr_subject.to_owned();
        self.engine
            .write(move |on| {
                Box::pin(async move { misc::new_subject(on, &sealer, &site, &ehr_subject, candidate).await })
            })
            .await
    }

    async fn remember_jti(&self, issuer: &str, jti: &str, until: Timestamp) -> StoreResult<bool> {
        let hash = TokenHash::of(&format!("{}|{issuer}|{jti}", issuer.len())).0;
        on!(self.write, misc::remember_jti(hash, until)).await
    }

    async fn signing_keys(&self) -> StoreResult<Vec<SigningKey>> {
        self.keys(on!(self.read, misc::signing_keys()).await?)
    }

    async fn add_signing_key(&self, key: &SigningKey, unless_younger_than: Timestamp) -> StoreResult<Vec<SigningKey>> {
        let plain = Zeroizing::new(key.pkcs8.expose().clone());
        let sealed = self.sealer.seal(records::key_place(&key.kid), plain)?;
        let (kid, created) = (key.kid.clone(), key.created);
        self.keys(on!(self.write, misc::add_signing_key(kid, created, sealed, unless_younger_than)).await?)
    }

    async fn add_revocations(&self, revocations: &[Revocation]) -> StoreResult<()> {
        let sealed = self.sealed(revocations)?;
        on!(self.write, misc::add_revocations(sealed)).await
    }

    async fn take_revocations(&self, now: Timestamp, again: Timestamp, limit: u32) -> StoreResult<Vec<Revocation>> {
        let rows = on!(self.write, misc::take_revocations(now, again, limit)).await?;
        // Taken, one that cannot be read is out of the way of the others until it is due again.
        Ok(rows.iter().filter_map(|row| readable("outbox", row.open(&self.sealer))).collect())
    }

    async fn settle_revocation(&self, id: uuid::Uuid, again: Option<Timestamp>) -> StoreResult<()> {
        on!(self.write, misc::settle_revocation(id, again)).await
    }

    async fn seal_keys(&self) -> StoreResult<Vec<KnownSealKey>> {
        on!(self.read, seal::known()).await
    }

    async fn announce_seal_key(&self, id: &str, proof: &[u8]) -> StoreResult<()> {
        let (id, proof) = (id.to_owned(), proof.to_vec());
        on!(self.write, seal::announce(id, proof)).await
    }

    async fn promote_seal_key(&self, id: &str) -> StoreResult<bool> {
        let id = id.to_owned();
        on!(self.write, seal::promote(id)).await
    }

    async fn reseal(&self, table: SealedTable, after: &[u8], limit: u32) -> StoreResult<Resealed> {
        self.reseal_some(table, after, limit).await
    }

    async fn seal_usage(&self) -> StoreResult<SealUsage> {
        self.usage().await
    }

    async fn retire_seal_key(&self, id: &str) -> StoreResult<Retired> {
        self.retire_unused(id).await
    }

    async fn sweep(&self, now: Timestamp) -> StoreResult<u64> {
        on!(self.write, misc::sweep(now)).await
    }

    async fn see_time(&self, now: Timestamp) -> StoreResult<Timestamp> {
        on!(self.write, misc::see_time(now)).await
    }

    async fn ping(&self) -> StoreResult<()> {
        on!(self.write, misc::ping()).await?;
        on!(self.read, grants::ended_since(i64::MAX)).await.map(drop)
    }

    async fn close(&self) {
        self.engine.close().await;
    }
}
