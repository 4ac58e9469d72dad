//! A gateway is stopped (SIGSTOP) after it has asked an EHR for new tokens, for longer than its lease is respected,
//! and goes on.

use std::time::Duration;

use mantel_tests::{
    ehr::{
        contract::Vendor,
        faults::{Fault, FaultKind},
    },
    harness::{
        Ehr,
        cluster::{Cluster, Plan, StoreKind},
        postgres::Postgres,
    },
};
use tokio::time::{Instant, timeout};

use super::login::{LOOK, Login, REFRESH, SOON, events, unharmed};

/// `custody::machine::LEASE_TTL`
const LEASE: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_to_a_stopped_gateway_is_taken_when_it_goes_on() {
    // Burns each refresh token.
    let burning = Ehr { name: "burning".into(), ..Ehr::strict(Vendor::Epic) };
    // Repeats its answers: there who takes the lease over may ask again at once.
    let lenient = Ehr { name: "lenient".into(), ..Ehr::new(Vendor::Generic) }.site("tokens.reuse_grace = \"60s\"");
    let server = Postgres::shared().await.unwrap();
    let cluster = Cluster::start(Plan::new(3, StoreKind::Postgres(server), vec![burning, lenient])).await.unwrap();
    let [a, b, c] = cluster.nodes.as_slice() else { panic!("three gateways were asked for") };
    let [burning, lenient] = ["burning", "lenient"].map(|name| &cluster.hospital(name).unwrap().ehr);
    let burnt = Login::at(&cluster, "burning", Some(2)).await;
    let lent = Login::at(&cluster, "lenient", Some(2)).await;
    // The gateways' own clock has to reach the tokens' end.
    tokio::time::sleep(Duration::from_secs(2)).await;
    for ehr in [burning, lenient] {
        ehr.counters.reset();
        ehr.faults.add(Fault::new(REFRESH, FaultKind::Hold).times(1));
    }
    let stopped = [burnt.reading(a), lent.reading(a)];
    burning.faults.wait_holds(1).await;
    lenient.faults.wait_holds(1).await;
    a.gateway.stop().unwrap();
    let began = Instant::now();
    // Whoever asks next waits longer; the answers to the first lie in its sockets.
    lenient.faults.add(Fault::new(REFRESH, FaultKind::Hold).times(1));
    for ehr in [burning, lenient] {
        ehr.faults.release();
        while ehr.grants()[0].refreshes == 0 {
            assert!(began.elapsed() < SOON, "{:?}", ehr.grants());
            tokio::time::sleep(LOOK).await;
        }
    }

    let waiting = [burnt.reading(b), burnt.reading(c)];
    let taking_over = lent.reading(b);
    timeout(LEASE + SOON, lenient.faults.wait_holds(2)).await.unwrap_or_else(|_| panic!("{}", events(b)));
    assert!(began.elapsed() >= LEASE, "taken over after {:?}", began.elapsed());
    let lease = |event| format!("mantel_refresh_leases_total{{event=\"{event}\"}}");
    assert_eq!(b.gateway.metric(&lease("taken_over")).await.unwrap(), 1.0, "{}", events(b));
    for (caller, node) in waiting.into_iter().zip([b, c]) {
        let answer = caller.await.unwrap().unwrap();
        let grants = burning.grants();
        assert!(answer.is_held_back(), "{}\n{grants:?}\n{}\n{}", answer.status, events(node), events(a));
    }
    assert_eq!(burning.counters.get(REFRESH), 1, "what was sent may have burnt the token");

    a.gateway.resume().unwrap();
    burnt.served_by(&[a, b, c], SOON).await;
    // The lease is another's, whose request is still under way: the generation is what counts.
    lent.served_by(&[a, c], SOON).await;
    assert_eq!(lenient.counters.get(REFRESH), 2);
    lenient.faults.release();
    lent.served_by(&[b], SOON).await;
    for caller in stopped.into_iter().chain([taking_over]) {
        let answer = caller.await.unwrap().unwrap();
        assert!(answer.status == 200 || answer.is_held_back(), "{} {}", answer.status, answer.text());
    }
    let dropped = "mantel_refreshes_total{outcome=\"dropped\",vendor=\"generic\"}";
    assert_eq!(b.gateway.metric(dropped).await.unwrap(), 1.0, "{}", events(b));
    let store = cluster.store.as_ref().unwrap();
    let grants = "SELECT string_agg(state || ' ' || generation, ', ') FROM grants";
    assert_eq!(store.server.query(&store.database, grants).await.unwrap(), "live 2, live 2");
    assert_eq!(burning.counters.get(REFRESH), 1);
    unharmed(burning);
}
