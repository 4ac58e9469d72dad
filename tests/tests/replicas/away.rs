//! PostgreSQL is away from all gateways, under load.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use futures_util::future::join_all;
use mantel_tests::{
    ehr::{
        contract::Vendor,
        faults::{Fault, FaultKind},
    },
    harness::{
        Ehr,
        cluster::{Cluster, Node, Plan, StoreKind},
        postgres::Postgres,
        wire::Conduct,
    },
};
use tokio::time::{Instant, sleep, sleep_until};

use super::login::{LOOK, Login, REFRESH, SOON, events, unharmed};

/// Seconds.
const ENDING: u64 = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_fresh_is_served_without_the_store_and_all_recovers() {
    let server = Postgres::shared().await.unwrap();
    let ehrs = vec![Ehr::strict(Vendor::Epic)];
    let cluster = Cluster::start(Plan::new(3, StoreKind::Postgres(server), ehrs)).await.unwrap();
    let [a, b, c] = cluster.nodes.as_slice() else { panic!("three gateways were asked for") };
    let (ehr, wire) = (&cluster.hospital("epic-strict").unwrap().ehr, &cluster.store.as_ref().unwrap().wire);
    let at = |lifetime| Login::at(&cluster, "epic-strict", lifetime);
    let (fresh, flying, expired) = (at(None).await, at(Some(2)).await, at(Some(2)).await);
    sleep(Duration::from_secs(2)).await;
    ehr.counters.reset();
    let ending = at(Some(ENDING)).await;
    let launched = Instant::now();
    for node in [a, b, c] {
        for login in [&fresh, &ending] {
            assert_eq!(login.read(node).await.status, 200);
        }
    }
    ehr.faults.add(Fault::new(REFRESH, FaultKind::Hold).times(1));
    let caller = flying.reading(a);
    ehr.faults.wait_held(1).await;
    assert!(
        launched.elapsed() < Duration::from_secs(ENDING) * 3 / 5,
        "due before the trouble: the machine is too slow"
    );

    let load = Load::default();
    let trouble = async {
        wire.conduct(Conduct::Cut);
        let cut = Instant::now();
        ehr.faults.release();
        let answer = caller.await.unwrap().unwrap();
        assert_eq!(answer.status, 200, "its new token is in the spill: {}\n{}", answer.text(), events(a));
        assert_eq!((spilled(a, "spilled").await, spilled(a, "replayed").await, files(a)), (1.0, 0.0, 1));
        assert_eq!(flying.read(a).await.status, 200);
        // What the others cannot look up is none's fault.
        for (login, node) in [(&flying, b), (&expired, a), (&expired, b), (&expired, c)] {
            let answer = login.read(node).await;
            assert!(answer.is_held_back(), "{} {}", answer.status, answer.text());
        }
        let answer = fresh.refresh_at(b, fresh.tokens.refresh()).await;
        let error = answer.json().unwrap()["error"].clone();
        assert_eq!((answer.status.as_u16(), error), (503, "temporarily_unavailable".into()));
        sleep_until(launched + Duration::from_secs(ENDING)).await;
        for node in [a, b, c] {
            let answer = ending.read(node).await;
            assert!(answer.is_held_back(), "{} {}", answer.status, answer.text());
            assert!(!node.gateway.is_ready().await);
        }
        assert_eq!(ehr.counters.get(REFRESH), 1, "nothing is sent without an intent in the store");
        assert!(cut.elapsed() > Duration::from_secs(3), "{:?}", cut.elapsed());
        wire.open();
        let opened = Instant::now();
        let logins = [&fresh, &flying, &expired, &ending];
        join_all(logins.map(|login| async move { login.served_by(&[a, b, c], SOON).await })).await;
        for node in [a, b, c] {
            while !node.gateway.is_ready().await {
                assert!(opened.elapsed() < SOON, "{}", events(node));
                sleep(LOOK).await;
            }
        }
        load.stop.store(true, Relaxed);
    };
    tokio::join!(load.on(&fresh, [a, b, c]), trouble);
    assert_eq!((spilled(a, "replayed").await, files(a)), (1.0, 0), "{}", events(a));
    assert_eq!(ehr.counters.get(REFRESH), 3, "one for each that had ended");
    fresh.app.refresh(fresh.tokens.refresh()).await.unwrap();
    unharmed(ehr);
}

/// What ended elsewhere could not be heard any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_may_have_ended_is_served_for_max_stale_and_no_longer() {
    const MAX_STALE: Duration = Duration::from_secs(5);
    let server = Postgres::shared().await.unwrap();
    let plan = Plan::new(3, StoreKind::Postgres(server), vec![Ehr::new(Vendor::Generic)]);
    let mut cluster = Cluster::start(plan).await.unwrap();
    for node in &mut cluster.nodes {
        node.gateway.set_environment("MANTEL_SERVER__MAX_STALE", "5s");
        node.replace().unwrap();
    }
    for node in &mut cluster.nodes {
        node.gateway.wait_ready(Duration::from_secs(30)).await.unwrap();
    }
    let login = Login::at(&cluster, "generic", None).await;
    let all: Vec<_> = cluster.nodes.iter().collect();
    login.served_by(&all, SOON).await;
    let wire = &cluster.store.as_ref().unwrap().wire;
    wire.conduct(Conduct::Cut);
    let cut = Instant::now();
    join_all(all.iter().map(|node| async {
        loop {
            let asked = cut.elapsed();
            let answer = login.read(node).await;
            if answer.status != 200 {
                assert!(answer.is_held_back(), "{} {}", answer.status, answer.text());
                // It last heard the others at most one poll before the cut.
                assert!(cut.elapsed() > MAX_STALE - Duration::from_secs(1), "after {:?}", cut.elapsed());
                return;
            }
            assert!(asked < MAX_STALE + Duration::from_secs(1), "served {asked:?} after the cut");
            sleep(LOOK).await;
        }
    }))
    .await;
    wire.open();
    login.served_by(&all, SOON).await;
}

/// Reads of what is fresh, all the while, by each gateway.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    served: AtomicU64,
}

impl Load {
    async fn on(&self, login: &Login, nodes: [&Node; 3]) {
        join_all(nodes.map(|node| async move {
            while !self.stop.load(Relaxed) {
                let answer = login.read(node).await;
                assert_eq!(answer.status, 200, "{}\n{}", answer.text(), events(node));
                self.served.fetch_add(1, Relaxed);
                sleep(Duration::from_millis(20)).await;
            }
        }))
        .await;
        assert!(self.served.load(Relaxed) > 100, "{} reads are no load", self.served.load(Relaxed));
    }
}

async fn spilled(node: &Node, event: &str) -> f64 {
    node.gateway.metric(&format!("mantel_spill_answers_total{{event=\"{event}\"}}")).await.unwrap()
}

/// Answers in a gateway's spill.
fn files(node: &Node) -> usize {
    let files = fs::read_dir(node.gateway.dir().join("spill")).unwrap();
    files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|it| it == "answer")).count()
}
