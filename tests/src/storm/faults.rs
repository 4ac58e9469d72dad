//! What goes wrong: several tracks side by side, each a loop of pauses and faults by a die of its own, so that
//! faults of different kinds meet.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    sync::Mutex,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::journal::{FaultKind, Journal, Place, What};
use crate::{
    custody::interrupt::Die,
    harness::{
        cluster::{Cluster, Node},
        get,
        postgres::Stop,
        wire::{Conduct, Wire},
    },
};

/// Longer than a lease that nobody renews is respected (10 s).
const BEYOND_LEASE: Duration = Duration::from_secs(12);

/// So long a process may go by what it last read of its clock (`harness/cluster.rs`, `FAKETIME_CACHE_DURATION`).
const CLOCK_READ: Duration = Duration::from_secs(1);

/// A refresh request, as its form begins.
const REFRESH: &str = "grant_type=refresh_token";

pub struct Storm {
    pub cluster: Arc<Cluster>,
    pub nodes: Arc<Mutex<Vec<Node>>>,
    pub journal: Arc<Journal>,
    pub kinds: Vec<FaultKind>,
    pub seed: u64,
    pub end: Instant,
    /// Gateways that are being killed, are stopped, or whose clock is off: one that starts with a wrong clock cannot
    /// know that, and is another test's (`e2e/clock.rs`).
    pub busy: std::sync::Mutex<BTreeSet<Place>>,
    /// What kept a track from doing its work.
    pub troubles: std::sync::Mutex<Vec<String>>,
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl Storm {
    /// Until the end; all is whole again when this returns, but for what gateways have to do by themselves.
    pub async fn rage(self: Arc<Self>) {
        let mut tracks = JoinSet::new();
        let has = |kind: FaultKind| self.kinds.contains(&kind);
        let die = |track: u64| Die::new(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ track);
        if has(FaultKind::Kill) || has(FaultKind::Stop) {
            tracks.spawn(self.clone().track(self.clone().gateways(die(1))));
            if self.nodes.lock().await.len() > 1 {
                // Two of several may be away at once.
                tracks.spawn(self.clone().track(self.clone().gateways(die(7))));
            }
        }
        if has(FaultKind::Ehr) || has(FaultKind::LostAnswer) {
            // Two, so that two EHRs may be away at once.
            tracks.spawn(self.clone().track(self.clone().ehrs(die(2))));
            tracks.spawn(self.clone().track(self.clone().ehrs(die(3))));
        }
        if self.cluster.store.is_some() && (has(FaultKind::Database) || has(FaultKind::Store)) {
            tracks.spawn(self.clone().track(self.clone().store(die(4))));
        }
        if has(FaultKind::Disk) {
            tracks.spawn(self.clone().track(self.clone().disks(die(5))));
        }
        if has(FaultKind::Clock) {
            tracks.spawn(self.clone().track(self.clone().clocks(die(6))));
        }
        while tracks.join_next().await.is_some() {}
    }

    async fn track(self: Arc<Self>, work: impl Future<Output = Result<()>>) {
        if let Err(trouble) = work.await {
            let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
            troubles.push(format!("{trouble:#}"));
        }
    }

    /// Whether there is time for another fault after a pause.
    async fn pause(&self, die: &Die, least: Duration, more: Duration) -> bool {
        let until = Instant::now() + least + die.within(more);
        tokio::time::sleep_until(until.min(self.end)).await;
        Instant::now() < self.end
    }

    /// How long a fault lasts: not beyond the end.
    async fn last(&self, die: &Die, least: Duration, more: Duration) {
        tokio::time::sleep_until((Instant::now() + least + die.within(more)).min(self.end)).await;
    }

    async fn gateways(self: Arc<Self>, die: Die) -> Result<()> {
        let kinds: Vec<FaultKind> =
            self.kinds.iter().copied().filter(|kind| matches!(kind, FaultKind::Kill | FaultKind::Stop)).collect();
        let count = u64::try_from(self.nodes.lock().await.len())?;
        while self.pause(&die, millis(1000), millis(3000)).await {
            let place = usize::try_from(die.roll(count))?;
            if !self.busy().insert(place) {
                continue;
            }
            let struck = match choose(&die, &kinds) {
                Some(FaultKind::Kill) => self.kill(&die, place).await,
                _ => self.stop(&die, place, count > 1).await,
            };
            self.busy().remove(&place);
            struck?;
        }
        Ok(())
    }

    async fn kill(&self, die: &Die, place: Place) -> Result<()> {
        let begun = self.journal.begin(What::Killed(place));
        self.with(place, |node| node.gateway.kill()).await?;
        sleep(die.within(millis(1500))).await;
        self.with(place, |node| node.gateway.launch()).await?;
        self.wait_ready(place).await?;
        self.journal.end(begun);
        Ok(())
    }

    async fn stop(&self, die: &Die, place: Place, several: bool) -> Result<()> {
        let begun = self.journal.begin(What::Stopped(place));
        self.with(place, |node| node.gateway.stop()).await?;
        let least = if several && die.roll(3) == 0 { BEYOND_LEASE } else { millis(500) };
        self.last(die, least, millis(2500)).await;
        self.with(place, |node| node.gateway.resume()).await?;
        self.journal.end(begun);
        Ok(())
    }

    fn busy(&self) -> std::sync::MutexGuard<'_, BTreeSet<Place>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn with<T>(&self, place: Place, work: impl FnOnce(&mut Node) -> Result<T>) -> Result<T> {
        let mut nodes = self.nodes.lock().await;
        work(nodes.get_mut(place).with_context(|| format!("there is no gateway {place}"))?)
    }

    /// Starts it again when it ends, as its service manager would: its store or disk may be away. After a while
    /// it is left alone.
    async fn wait_ready(&self, place: Place) -> Result<()> {
        let ready = self.with(place, |node| Ok(format!("{}/health/ready", node.gateway.admin))).await?;
        for _ in 0..200 {
            if get(&ready, &[]).await.is_ok_and(|answer| answer.status == 200) {
                break;
            }
            let again = |node: &mut Node| if node.gateway.has_ended()? { node.gateway.launch() } else { Ok(()) };
            self.with(place, again).await?;
            sleep(millis(50)).await;
        }
        Ok(())
    }

    async fn ehrs(self: Arc<Self>, die: Die) -> Result<()> {
        let hospitals: Vec<_> = self.cluster.hospitals.values().collect();
        while self.pause(&die, millis(300), millis(1200)).await {
            let Some(hospital) = choose(&die, &hospitals) else { continue };
            let site = || hospital.name.clone();
            let lose = self.kinds.contains(&FaultKind::LostAnswer)
                && (die.roll(4) == 0 || !self.kinds.contains(&FaultKind::Ehr));
            if lose {
                let begun = self.journal.begin(What::AnswersLost(site()));
                hospital.wire.lose_answers(REFRESH, 1 + die.roll(2));
                self.last(&die, millis(1000), millis(3000)).await;
                hospital.wire.lose_answers(REFRESH, 0);
                self.journal.end(begun);
                continue;
            }
            let (what, conduct) = match die.roll(3) {
                0 => (What::EhrCut(site()), Conduct::Cut),
                1 => (What::EhrSilent(site()), Conduct::Silent),
                _ => (What::EhrSlow(site()), Conduct::Carry(millis(100 + die.roll(400)))),
            };
            self.disturb(&die, what, &hospital.wire, conduct).await;
        }
        Ok(())
    }

    async fn store(self: Arc<Self>, die: Die) -> Result<()> {
        let Some(store) = &self.cluster.store else { return Ok(()) };
        let kinds: Vec<FaultKind> =
            self.kinds.iter().copied().filter(|kind| matches!(kind, FaultKind::Database | FaultKind::Store)).collect();
        while self.pause(&die, millis(2000), millis(4000)).await {
            if choose(&die, &kinds) == Some(&FaultKind::Database) {
                if die.roll(3) == 0 {
                    let begun = self.journal.begin(What::DatabasePaused);
                    store.server.pause()?;
                    self.last(&die, millis(500), millis(2500)).await;
                    store.server.resume()?;
                    self.journal.end(begun);
                    continue;
                }
                let how = choose(&die, &[Stop::Fast, Stop::Immediate, Stop::Kill]).copied().unwrap_or(Stop::Kill);
                let begun = self.journal.begin(What::DatabaseRestarted);
                store.server.restart(how).await?;
                self.journal.end(begun);
                continue;
            }
            let (what, conduct) = match die.roll(3) {
                0 => (What::StoreCut, Conduct::Cut),
                1 => (What::StoreSilent, Conduct::Silent),
                _ => (What::StoreSlow, Conduct::Carry(millis(20 + die.roll(200)))),
            };
            self.disturb(&die, what, &store.wire, conduct).await;
        }
        Ok(())
    }

    async fn disturb(&self, die: &Die, what: What, wire: &Wire, conduct: Conduct) {
        let begun = self.journal.begin(what);
        wire.conduct(conduct);
        self.last(die, millis(300), millis(1700)).await;
        wire.open();
        self.journal.end(begun);
    }

    async fn disks(self: Arc<Self>, die: Die) -> Result<()> {
        while self.pause(&die, millis(3000), millis(5000)).await {
            let (place, begun) = {
                let nodes = self.nodes.lock().await;
                let place = usize::try_from(die.roll(u64::try_from(nodes.len())?))?;
                let begun = self.journal.begin(What::DiskFull(place));
                // It may be killed at this moment.
                let _ = nodes.get(place).map(Node::fill_disk);
                (place, begun)
            };
            self.last(&die, millis(500), millis(2500)).await;
            if let Some(node) = self.nodes.lock().await.get(place) {
                // A process that was started meanwhile has no limit.
                let _ = node.free_disk();
            }
            self.journal.end(begun);
        }
        Ok(())
    }

    /// An hour off, either way, and right again, which is a step as well.
    async fn clocks(self: Arc<Self>, die: Die) -> Result<()> {
        while self.pause(&die, millis(2000), millis(4000)).await {
            let place = usize::try_from(die.roll(u64::try_from(self.nodes.lock().await.len())?))?;
            if !self.busy().insert(place) {
                continue;
            }
            let hour = if die.roll(2) == 0 { 3600 } else { -3600 };
            let begun = self.journal.begin(What::ClockOff(place));
            self.with(place, |node| node.set_clock(hour)).await?;
            self.last(&die, millis(2000), millis(6000)).await;
            self.with(place, |node| node.set_clock(0)).await?;
            sleep(CLOCK_READ).await;
            self.busy().remove(&place);
            self.journal.end(begun);
        }
        Ok(())
    }
}

fn choose<'a, T>(die: &Die, all: &'a [T]) -> Option<&'a T> {
    all.get(usize::try_from(die.roll(u64::try_from(all.len()).ok()?)).ok()?)
}
