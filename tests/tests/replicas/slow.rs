//! PostgreSQL answers one gateway ten seconds late: too late for each operation.

use std::{fs, time::Duration};

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
use tokio::time::{Instant, sleep};

use super::login::{LOOK, Login, REFRESH, SOON, events, unharmed};

const SLOW: Duration = Duration::from_secs(10);

async fn spilled(node: &Node, event: &str) -> f64 {
    node.gateway.metric(&format!("mantel_spill_answers_total{{event=\"{event}\"}}")).await.unwrap()
}

fn answers(node: &Node) -> usize {
    let files = fs::read_dir(node.gateway.dir().join("spill")).unwrap();
    files.filter(|it| it.as_ref().unwrap().path().to_string_lossy().contains(".answer")).count()
}

/// `killed`: with `kill -9` in the middle of it.
async fn slow_by_ten_seconds(killed: bool) {
    let server = Postgres::shared().await.unwrap();
    let ehrs = vec![Ehr::strict(Vendor::Epic)];
    let mut cluster = Cluster::start(Plan::new(1, StoreKind::Postgres(server), ehrs)).await.unwrap();
    let at = |lifetime| Login::at(&cluster, "epic-strict", lifetime);
    let [fresh, expired, flying] = [at(None).await, at(Some(2)).await, at(Some(2)).await];
    let node = &cluster.nodes[0];
    let (ehr, wire) = (&cluster.hospital("epic-strict").unwrap().ehr, &cluster.store.as_ref().unwrap().wire);
    assert_eq!(fresh.read(node).await.status, 200);
    sleep(Duration::from_secs(2)).await;
    ehr.faults.add(Fault::new(REFRESH, FaultKind::Hold).times(1));
    let waiting = flying.reading(node);
    ehr.faults.wait_held(1).await;
    ehr.counters.reset();
    wire.conduct(Conduct::Carry(SLOW));
    ehr.faults.release();
    let answer = waiting.await.unwrap().unwrap();
    assert_eq!(answer.status, 200, "its new token is in the spill: {}\n{}", answer.text(), events(node));
    assert_eq!((spilled(node, "spilled").await, answers(node)), (1.0, 1));
    for login in [&fresh, &flying] {
        let asked = Instant::now();
        assert_eq!(login.read(node).await.status, 200);
        assert!(asked.elapsed() < SLOW / 5, "{:?}: from memory", asked.elapsed());
    }
    let answer = expired.read(node).await;
    assert!(answer.is_held_back(), "{} {}", answer.status, answer.text());
    let answer = fresh.refresh_at(node, fresh.tokens.refresh()).await;
    let error = answer.json().unwrap()["error"].clone();
    assert_eq!((answer.status.as_u16(), error), (503, "temporarily_unavailable".into()));
    assert!(!node.gateway.is_ready().await);
    assert_eq!(ehr.counters.get(REFRESH), 0, "nothing is sent without an intent in the store");

    if killed {
        cluster.nodes[0].gateway.kill().unwrap();
        assert_eq!(answers(&cluster.nodes[0]), 1);
    }
    let wire = &cluster.store.as_ref().unwrap().wire;
    wire.open();
    if killed {
        // What hung in the wire is of the dead process.
        wire.reset_all();
        cluster.nodes[0].gateway.launch().unwrap();
        cluster.nodes[0].gateway.wait_ready(Duration::from_secs(20)).await.unwrap();
    }
    let (node, opened) = (&cluster.nodes[0], Instant::now());
    for login in [&fresh, &flying, &expired] {
        login.served_by(&[node], SOON + SLOW).await;
    }
    while answers(node) > 0 || !node.gateway.is_ready().await {
        assert!(opened.elapsed() < SOON + SLOW, "{}", events(node));
        sleep(LOOK).await;
    }
    assert_eq!(spilled(node, "replayed").await, 1.0, "{}", events(node));
    let ehr = &cluster.hospital("epic-strict").unwrap().ehr;
    assert_eq!(ehr.counters.get(REFRESH), 1, "of the one that had ended");
    assert!(ehr.expire_access_tokens() >= 3);
    for login in [&fresh, &flying, &expired] {
        login.served_by(&[node], SOON).await;
        login.app.refresh(login.tokens.refresh()).await.unwrap();
    }
    unharmed(ehr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_ten_seconds_late_costs_no_login() {
    slow_by_ten_seconds(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_with_a_kill_in_the_middle_of_it() {
    slow_by_ten_seconds(true).await;
}
