//! Several processes on one store and one EHR.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use mantel_adapters::profile::TokenPolicy;

use super::world::*;
use crate::{
    clock::Instant,
    custody::{Bearer, Custody, CustodyContext, CustodyFault, RefreshOutcome},
    entropy::uuid4,
    replicas::{Replicas, Voice},
    store::{
        BootId, GrantId, ReplicaFacts,
        link::{Busy, Link},
    },
    telemetry::Metrics,
};

/// One gateway process.
pub struct Node {
    pub custody: Custody,
    pub link: Arc<Link>,
    pub counter: Arc<Counter>,
    pub replicas: Replicas,
}

/// What a process tells the others.
#[derive(Default)]
struct Told(OnceLock<Custody>);

impl Voice for Told {
    fn facts(&self) -> ReplicaFacts {
        let deaths = self.0.get().map(Custody::deaths_seen).unwrap_or_default();
        ReplicaFacts { deaths, ..ReplicaFacts::default() }
    }
}

pub struct Many {
    /// The store and the EHR; its own custody does nothing.
    pub world: World,
    pub nodes: Vec<Node>,
    busy: Busy,
}

impl Many {
    pub async fn new(processes: usize, lifetime: u64, tokens: TokenPolicy) -> Self {
        let world = World::new(lifetime, tokens).await;
        world.custody.0.stop.cancel();
        let mut many = Self { world, nodes: Vec::new(), busy: Busy::default() };
        for _ in 0..processes {
            many.start().await;
        }
        // Each has seen the others then.
        many.pass(secs(2)).await;
        many
    }

    /// Starts a process.
    pub async fn start(&mut self) {
        let link = Arc::new(Link::new(self.world.store.clone(), self.busy.clone()));
        let (counter, boot) = (Arc::new(Counter::default()), BootId(uuid4(&*self.world.entropy)));
        let (clock, metrics) = (self.world.clock.clone(), Metrics::new().unwrap());
        let told = Arc::new(Told::default());
        let replicas = Replicas::join(link.clone(), clock, metrics, boot, told.clone(), secs(60));
        let replicas = replicas.await.unwrap();
        let custody = Custody::new(CustodyContext {
            store: link.clone(),
            endpoint: self.world.ehr.clone(),
            clock: self.world.clock.clone(),
            entropy: self.world.entropy.clone(),
            handle: tokio::runtime::Handle::current(),
            replicas: replicas.clone(),
            events: counter.clone(),
            policies: self.world.profile.clone(),
            // Longer than a doubt waits, so that a test can have both at the EHR.
            token_timeout: secs(100),
            spill: None,
        });
        let _ = told.0.set(custody.clone());
        let evicts = custody.clone();
        replicas.follow(move |grant| evicts.forget(grant));
        self.nodes.push(Node { custody, replicas, link, counter });
    }

    pub async fn settle(&self) {
        self.busy.settle().await;
    }

    pub async fn pass(&self, time: Duration) {
        self.busy.pass(time).await;
    }

    /// As an app's request that waits longer than any EHR.
    pub fn ask(
        &self,
        node: usize,
        grant: GrantId,
    ) -> impl Future<Output = Result<Bearer, CustodyFault>> + Send + use<> {
        let custody = self.nodes[node].custody.clone();
        async move { custody.bearer(grant, Instant::now() + secs(100)).await }
    }

    /// The access token that is served without waiting.
    pub async fn access(&self, node: usize, grant: GrantId) -> String {
        self.ask(node, grant).await.unwrap().token.expose().clone()
    }

    /// Asks, and lets others go on; the answer is awaited later.
    pub async fn asked(&self, node: usize, grant: GrantId) -> tokio::task::JoinHandle<Result<Bearer, CustodyFault>> {
        let asked = tokio::spawn(self.ask(node, grant));
        self.settle().await;
        asked
    }

    /// The process that is first to refresh a grant.
    pub fn first(&self, grant: GrantId) -> usize {
        self.nodes.iter().position(|node| node.replicas.first_for(grant)).unwrap()
    }

    pub fn calls(&self) -> usize {
        self.world.ehr.calls()
    }

    pub fn outcomes(&self, outcome: RefreshOutcome) -> usize {
        self.nodes.iter().filter_map(|node| node.counted().refreshes.get(&outcome).copied()).sum()
    }

    pub fn leases(&self, mark: &str) -> usize {
        self.nodes.iter().filter_map(|node| node.counted().leases.get(mark).copied()).sum()
    }

    pub fn ended(&self) -> usize {
        self.nodes.iter().map(|node| node.counted().ended.len()).sum()
    }
}

impl Node {
    pub fn counted(&self) -> Counted {
        self.counter.counted()
    }

    /// `kill -9`.
    pub fn kill(&self) {
        self.link.freeze(true);
        self.custody.0.stop.cancel();
    }
}
