//! The EHRs as the control plane and custody speak to them: by site and registration, with discovery,
//! keys, client authentication and metrics in one place.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use mantel_adapters::{site::SiteId, smart::claims::IdTokenClaims};
use tokio::runtime::Handle;

use super::{
    Client, ClientContext, Clients, CodeGrant, Discovered, Discovery, DiscoveryError, Gates, Identities, Jwks,
    KeyFault, Prover, RevokeOutcome, Roots, SigningSets, SiteLink, TlsFault, TokenClient, TokenHint, TokenOutcome,
    id_token::{self, Expected, IdTokenError},
    token::NotSentReason,
};
use crate::{
    clock::SharedClock,
    config::{Config, Registration, Site, Timeouts},
    entropy::SharedEntropy,
    secret::Secret,
    telemetry::{
        Metrics,
        metrics::{Call, CallOutcome},
    },
};

/// What a snapshot needs of the outside and lacks.
#[derive(Debug, thiserror::Error)]
pub enum TakeOnFault {
    #[error(transparent)]
    Key(KeyFault),
    #[error("site {0}: {1}")]
    Tls(SiteId, TlsFault),
}

/// What a process keeps of all its EHRs. Shared by all workers.
pub struct Ehrs {
    identities: Identities,
    /// By site, as the snapshot in force has it.
    contexts: ArcSwap<BTreeMap<SiteId, Arc<ClientContext>>>,
    signing: ArcSwap<SigningSets>,
    gates: Gates,
    clients: Clients,
    discovery: Discovery,
    jwks: Jwks,
    clock: SharedClock,
    entropy: SharedEntropy,
    metrics: Arc<Metrics>,
    within: Duration,
}

impl Ehrs {
    /// `runtime`: the control plane's, which carries fetches and token requests.
    pub fn new(
        roots: Roots,
        timeouts: &Timeouts,
        runtime: Handle,
        clock: SharedClock,
        entropy: SharedEntropy,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            identities: Identities::new(roots, Some(hyper_util::client::proxy::matcher::Matcher::from_env()), timeouts),
            contexts: ArcSwap::default(),
            signing: ArcSwap::default(),
            gates: Gates::default(),
            clients: Clients::default(),
            discovery: Discovery::new(runtime.clone()),
            jwks: Jwks::new(runtime),
            clock,
            entropy,
            metrics,
            within: timeouts.token,
        }
    }

    /// Takes over a snapshot: its key sets and TLS files are read; with a fault the old ones stay.
    ///
    /// # Errors
    /// All faults at once.
    pub fn take_on(&self, config: &Config) -> Result<(), Vec<TakeOnFault>> {
        let mut faults = Vec::new();
        let mut contexts = BTreeMap::new();
        for (id, site) in &config.sites {
            match self.identities.of(site) {
                Ok(context) => {
                    contexts.insert(id.clone(), context);
                }
                Err(fault) => faults.push(TakeOnFault::Tls(id.clone(), fault)),
            }
        }
        match SigningSets::read(&config.keys) {
            Ok(sets) if faults.is_empty() => {
                self.signing.store(Arc::new(sets));
                self.gates.apply(config);
                let live: Vec<_> = contexts.values().cloned().collect();
                self.contexts.store(Arc::new(contexts));
                self.clients.retain(&live);
                Ok(())
            }
            Ok(_) => Err(faults),
            Err(keys) => {
                faults.extend(keys.into_iter().map(TakeOnFault::Key));
                Err(faults)
            }
        }
    }

    /// What a worker's own client for a site is made of.
    pub fn context(&self, site: &SiteId) -> Option<Arc<ClientContext>> {
        self.contexts.load().get(site).cloned()
    }

    /// The site's budget: one in the process, never one a worker.
    pub fn gate(&self, site: &Site, client_id: &str) -> Arc<super::SiteGate> {
        self.gates.of(site, Some(client_id))
    }

    /// The site's authorization server.
    ///
    /// # Errors
    /// If it cannot be found, or its endpoints are held.
    pub async fn endpoints(&self, site: &Arc<Site>, client_id: &str) -> Result<Arc<Discovered>, DiscoveryError> {
        let link = self.link(site, client_id).ok_or(DiscoveryError::BrokenOff)?;
        let started = self.clock.monotonic();
        let found = self.discovery.find(&link, client_id).await;
        let took = started.elapsed();
        // A look-up in memory is no call.
        if took > Duration::from_millis(1) {
            let outcome = if found.is_ok() { CallOutcome::Ok } else { CallOutcome::Failed };
            self.metrics.upstream(&site.vendor, Call::Discovery, outcome, took);
        }
        found
    }

    pub async fn exchange_code(
        &self,
        site: &Arc<Site>,
        registration: &Registration,
        grant: CodeGrant<'_>,
    ) -> TokenOutcome {
        self.token(site, registration.into(), async |client| client.exchange_code(grant).await).await
    }

    /// Refreshes once. What an outcome means for the grant is custody's to say.
    pub async fn refresh(
        &self,
        site: &Arc<Site>,
        client: Client<'_>,
        token: &Secret<String>,
        scope: Option<&str>,
    ) -> TokenOutcome {
        self.token(site, client, async |client| client.refresh(token, scope).await).await
    }

    async fn token(
        &self,
        site: &Arc<Site>,
        client: Client<'_>,
        ask: impl AsyncFnOnce(TokenClient<'_>) -> TokenOutcome,
    ) -> TokenOutcome {
        let Some(link) = self.link(site, client.client_id) else {
            return TokenOutcome::NotSent(NotSentReason::TooSlow);
        };
        let found = match self.discovery.find(&link, client.client_id).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(site = %site.id, %error, "a token request found no endpoint");
                return TokenOutcome::NotSent(NotSentReason::TooSlow);
            }
        };
        let keys = self.signing.load_full();
        let prover = Prover { keys: &keys, clock: &*self.clock, entropy: &*self.entropy };
        let started = self.clock.monotonic();
        let outcome =
            ask(TokenClient { link: &link, endpoints: &found.endpoints, client, prover, within: self.within }).await;
        self.metrics.upstream(&site.vendor, Call::Token, call_outcome(&outcome), started.elapsed());
        outcome
    }

    /// Revokes a token at the EHR.
    pub async fn revoke(
        &self,
        site: &Arc<Site>,
        client: Client<'_>,
        token: &Secret<String>,
        hint: TokenHint,
    ) -> RevokeOutcome {
        let Some(link) = self.link(site, client.client_id) else {
            return RevokeOutcome::NotSent(NotSentReason::TooSlow);
        };
        let Ok(found) = self.discovery.find(&link, client.client_id).await else {
            return RevokeOutcome::NotSent(NotSentReason::TooSlow);
        };
        let keys = self.signing.load_full();
        let prover = Prover { keys: &keys, clock: &*self.clock, entropy: &*self.entropy };
        TokenClient { link: &link, endpoints: &found.endpoints, client, prover, within: self.within }
            .revoke(token, hint)
            .await
    }

    /// The claims of the EHR's id_token, believed as the profile pins them.
    ///
    /// # Errors
    /// The first check that fails.
    pub async fn identity(
        &self,
        site: &Arc<Site>,
        client_id: &str,
        token: &str,
        nonce: Option<&str>,
    ) -> Result<IdTokenClaims, IdTokenError> {
        let link = self.link(site, client_id).ok_or(IdTokenError::NoKey)?;
        let found = self.discovery.find(&link, client_id).await.map_err(|_| IdTokenError::NoKey)?;
        let expected = Expected { client_id, nonce, now: self.clock.civil() };
        id_token::verify(&self.jwks, &link, &found.endpoints, token, expected).await
    }

    fn link(&self, site: &Arc<Site>, client_id: &str) -> Option<SiteLink> {
        let context = self.context(&site.id)?;
        Some(SiteLink { site: site.clone(), client: self.clients.of(&context), gate: self.gate(site, client_id) })
    }
}

const fn call_outcome(outcome: &TokenOutcome) -> CallOutcome {
    match outcome {
        TokenOutcome::Answer(_) => CallOutcome::Ok,
        TokenOutcome::Refused(refusal) => CallOutcome::of_status(refusal.error.status),
        TokenOutcome::NotSent(_) => CallOutcome::NotSent,
        TokenOutcome::Unknown(_) => CallOutcome::Cut,
    }
}
