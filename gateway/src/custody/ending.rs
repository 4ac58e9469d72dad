//! Ends: of a grant whose refresh token is dead, and by time.

use super::{
    Inner,
    entry::{Entry, Unsent},
    machine::Cause,
    refresh::{Case, Landing, STORE_TRIES},
};
use crate::{
    entropy::uuid7,
    store::{EhrTokens, EndReason, Grant, GrantState, Revocation, StoreError, StoreResult},
};

impl Inner {
    /// Ends a grant whose refresh token is dead, unless the store knows better by now.
    pub(super) async fn end_dead(&self, entry: &Entry, case: &Case, reason: EndReason) -> Landing {
        let (id, generation) = (case.grant.id, case.grant.generation);
        for _ in 0..STORE_TRIES {
            match self.context.store.grant(id).await {
                Ok(None) => return Landing::Ended(EndReason::Expired),
                Ok(Some(Grant { state: GrantState::Ended { reason, .. }, .. })) => return Landing::Ended(reason),
                Ok(Some(current)) if current.generation != generation => return self.moved(current),
                Ok(Some(_)) => {}
                Err(error) => return self.unended(entry, case, reason, &error),
            }
            match self.context.store.end_grant(id, reason, Some(generation), &[], self.context.clock.now()).await {
                Ok(true) => return self.ended(&case.grant, reason),
                // It moved or ended since it was read.
                Ok(false) => {}
                Err(error) => return self.unended(entry, case, reason, &error),
            }
        }
        self.held(entry, Cause::Elsewhere, None)
    }

    pub(super) fn unended(&self, entry: &Entry, case: &Case, reason: EndReason, error: &StoreError) -> Landing {
        // A refusal is behind the intent, and may be asked for again. Where the one try is spent the store has that,
        // and ends the grant by it the next time.
        if reason != EndReason::LostRotation {
            entry.set_unsent(case.grant.generation, Some(Unsent::Intent));
        }
        self.store_away(entry, error)
    }

    /// Ends a grant by time: its session, or a token that cannot be renewed.
    pub(super) async fn end(&self, entry: &Entry, reason: EndReason, generation: i64) -> Landing {
        let grant = match self.context.store.grant(entry.id).await {
            Ok(None) => return Landing::Ended(reason),
            Ok(Some(Grant { state: GrantState::Ended { reason, .. }, .. })) => return Landing::Ended(reason),
            Ok(Some(grant)) => grant,
            Err(error) => return self.store_away(entry, &error),
        };
        if reason == EndReason::Expired && grant.generation > generation {
            return self.moved(grant);
        }
        if reason == EndReason::SessionEnded
            && let Some(landing) = self.used_elsewhere(entry).await
        {
            return landing;
        }
        let (guard, revocations) = match reason {
            // There is nothing left that could be revoked.
            EndReason::Expired => (Some(grant.generation), Vec::new()),
            _ => (None, vec![self.revocation(&grant, &grant.tokens)]),
        };
        let now = self.context.clock.now();
        match self.context.store.end_grant(grant.id, reason, guard, &revocations, now).await {
            Ok(true) => self.ended(&grant, reason),
            // It has moved on or ended since: the next to ask is told.
            Ok(false) => self.held(entry, Cause::Elsewhere, None),
            Err(error) => self.store_away(entry, &error),
        }
    }

    fn ended(&self, grant: &Grant, reason: EndReason) -> Landing {
        tracing::info!(grant = %grant.id, reason = reason.text(), "a grant has ended");
        self.context.events.ended(grant, reason);
        Landing::Ended(reason)
    }

    /// Writes to the outbox that tokens which nobody will use are to be revoked.
    pub(super) async fn revoke_later(&self, grant: &Grant, tokens: &EhrTokens) -> StoreResult<()> {
        let revocation = [self.revocation(grant, tokens)];
        let written = self.insist(|| self.context.store.add_revocations(&revocation)).await;
        if let Err(error) = &written {
            tracing::error!(grant = %grant.id, %error, "tokens that nobody will use are not revoked at the EHR");
        }
        written
    }

    fn revocation(&self, grant: &Grant, tokens: &EhrTokens) -> Revocation {
        let now = self.context.clock.now();
        let (token, hint) = match &tokens.refresh {
            Some(refresh) => (refresh, "refresh_token"),
            None => (&tokens.access, "access_token"),
        };
        Revocation {
            id: uuid7(&*self.context.entropy, now),
            site: grant.site.clone(),
            registration: grant.registration.clone(),
            fingerprint: Some(grant.fingerprint.clone()),
            token: token.clone(),
            hint: hint.to_owned(),
            attempts: 0,
            not_before: now,
        }
    }
}
