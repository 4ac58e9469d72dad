//! What an operator's commands do to grants.

use std::sync::Arc;

use async_trait::async_trait;

use super::Words;
use crate::{
    admin::commands::Grants,
    clock::SharedClock,
    custody::{Custody, CustodyEvents as _},
    entropy::{SharedEntropy, uuid7},
    store::{EndReason, GrantId, GrantState, Revocation, SharedStore, StoreError, StoreResult},
};

pub(super) struct Operator {
    pub store: SharedStore,
    pub clock: SharedClock,
    pub entropy: SharedEntropy,
    pub custody: Custody,
    pub words: Arc<Words>,
}

#[async_trait]
impl Grants for Operator {
    async fn end(&self, id: GrantId) -> StoreResult<bool> {
        let now = self.clock.now();
        let grant = match self.store.grant(id).await {
            Ok(Some(grant)) => grant,
            Ok(None) => return Ok(false),
            // A record that cannot be read can be ended all the same: what else could be done with it?
            Err(error @ (StoreError::Corrupt(_) | StoreError::UnknownSealKey(_))) => {
                tracing::error!(grant = %id, %error, "its tokens are not revoked at the EHR");
                self.custody.forget(id);
                self.words.bearers.evict(id);
                return self.store.end_grant(id, EndReason::Operator, None, &[], now).await;
            }
            Err(error) => return Err(error),
        };
        if matches!(grant.state, GrantState::Ended { .. }) {
            return Ok(false);
        }
        let (token, hint) = match &grant.tokens.refresh {
            Some(refresh) => (refresh, "refresh_token"),
            None => (&grant.tokens.access, "access_token"),
        };
        let revocation = Revocation {
            id: uuid7(&*self.entropy, now),
            site: grant.site.clone(),
            registration: grant.registration.clone(),
            token: token.clone(),
            hint: hint.into(),
            fingerprint: Some(grant.fingerprint.clone()),
            attempts: 0,
            not_before: now,
        };
        let ended = self.store.end_grant(id, EndReason::Operator, None, &[revocation], now).await?;
        if ended {
            self.custody.forget(id);
            self.words.ended(&grant, EndReason::Operator);
        }
        Ok(ended)
    }
}
