//! Several processes on one store and one EHR.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use mantel_adapters::profile::TokenPolicy;

use super::{
    link::{Busy, Link},
    world::*,
};
use crate::{
    clock::Instant,
    custody::{Bearer, Custody, CustodyContext, CustodyFault, RefreshOutcome},
    entropy::uuid4,
    store::{BootId, GrantId},
};

/// One gateway process.
pub struct Node {
    pub custody: Custody,
    pub link: Arc<Link>,
    pub counter: Arc<Counter>,
    pub boot: BootId,
}

pub struct Many {
    /// The store and the EHR; its own custody does nothing.
    pub world: World,
    pub nodes: Vec<Node>,
    busy: Busy,
}

const STEP: Duration = Duration::from_millis(100);

impl Many {
    pub async fn new(processes: usize, lifetime: u64, tokens: TokenPolicy) -> Self {
        let world = World::new(lifetime, tokens).await;
        world.custody.0.stop.cancel();
        let mut many = Self { world, nodes: Vec::new(), busy: Busy::default() };
        for _ in 0..processes {
            many.start();
        }
        many.settle().await;
        many
    }

    /// Starts a process.
    pub fn start(&mut self) {
        let link = Arc::new(Link::new(self.world.store.clone(), self.busy.clone()));
        let (counter, boot) = (Arc::new(Counter::default()), BootId(uuid4(&*self.world.entropy)));
        let custody = Custody::new(CustodyContext {
            store: link.clone(),
            endpoint: self.world.ehr.clone(),
            clock: self.world.clock.clone(),
            entropy: self.world.entropy.clone(),
            handle: tokio::runtime::Handle::current(),
            boot,
            events: counter.clone(),
            policies: self.world.profile.clone(),
            // Longer than a doubt waits, so that a test can have both at the EHR.
            token_timeout: secs(100),
        });
        self.nodes.push(Node { custody, link, counter, boot });
    }

    /// Waits until nothing is under way but what waits for time, or for the EHR.
    pub async fn settle(&self) {
        let mut calm = 0;
        while calm < 20 {
            tokio::task::yield_now().await;
            calm = if self.busy.load(Ordering::SeqCst) == 0 { calm + 1 } else { 0 };
        }
    }

    pub async fn pass(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            tokio::time::advance(STEP.min(until - Instant::now())).await;
            self.settle().await;
        }
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
