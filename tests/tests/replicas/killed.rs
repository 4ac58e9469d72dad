//! `kill -9` of a gateway after it has asked an EHR for new tokens: the others take over, by the rule for doubts.

use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use mantel_tests::{
    ehr::{
        contract::Vendor,
        faults::{Fault, FaultKind},
        server::Running,
    },
    harness::{
        Ehr,
        cluster::{Cluster, Node, Plan, StoreKind},
        postgres::Postgres,
    },
};
use tokio::time::Instant;

use super::login::{LOOK, Login, REFRESH, SOON, events, sum};

/// `custody::machine::LEASE_TTL`
const LEASE: Duration = Duration::from_secs(10);

/// `custody::machine::LATE_WINNER`: so long the one try that is left waits for a result.
const DOUBT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_others_take_over_from_a_killed_gateway_and_only_a_burnt_token_costs_a_login() {
    let burning = |name: &str| Ehr { name: name.into(), ..Ehr::strict(Vendor::Epic) };
    let lenient = Ehr { name: "lenient".into(), ..Ehr::new(Vendor::Generic) }.site("tokens.reuse_grace = \"60s\"");
    let ehrs = vec![burning("kept"), burning("burnt"), lenient];
    let server = Postgres::shared().await.unwrap();
    let mut cluster = Cluster::start(Plan::new(3, StoreKind::Postgres(server), ehrs)).await.unwrap();
    let mut logins = Vec::new();
    for name in ["kept", "burnt", "lenient"] {
        logins.push(Login::at(&cluster, name, Some(2)).await);
    }
    // The gateways' own clock has to reach the tokens' end.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ehr = |cluster: &Cluster, name: &str| cluster.hospital(name).unwrap().ehr.ehr.clone();
    let [kept, burnt, lenient] = ["kept", "burnt", "lenient"].map(|name| ehr(&cluster, name));
    for ehr in [&kept, &burnt, &lenient] {
        ehr.counters.reset();
        ehr.faults.add(Fault::new(REFRESH, FaultKind::Hold).times(1));
    }
    let cut: Vec<_> = logins.iter().map(|login| login.reading(&cluster.nodes[0])).collect();
    for ehr in [&kept, &burnt, &lenient] {
        ehr.faults.wait_holds(1).await;
    }
    let sent = Instant::now();
    let killed = &mut cluster.nodes[0].gateway;
    // One EHR rotates, and the answer lies in the socket of a process that will never read it.
    killed.stop().unwrap();
    burnt.faults.release();
    while burnt.grants()[0].refreshes == 0 {
        assert!(sent.elapsed() < SOON, "{:?}", burnt.grants());
        tokio::time::sleep(LOOK).await;
    }
    killed.kill().unwrap();
    for ehr in [&kept, &lenient] {
        // They see their caller gone, and do nothing.
        ehr.faults.wait_free().await;
    }
    for caller in cut {
        assert!(caller.await.unwrap().is_err(), "answered by a dead process");
    }

    let [_, others @ ..] = cluster.nodes.as_slice() else { panic!("no gateway") };
    let doubt = |login, name: &'static str, expected| {
        settled(login, others, &cluster.hospital(name).unwrap().ehr, sent, expected)
    };
    tokio::join!(
        async {
            logins[2].served_by(&others.iter().collect::<Vec<_>>(), LEASE + SOON).await;
            assert!(sent.elapsed() >= LEASE, "taken over after {:?}", sent.elapsed());
            assert_eq!(lenient.counters.get(REFRESH), 2, "the vendor repeats its answer");
        },
        doubt(&logins[0], "kept", StatusCode::OK),
        doubt(&logins[1], "burnt", StatusCode::UNAUTHORIZED),
    );
    let [grant] = <[_; 1]>::try_from(kept.grants()).unwrap();
    assert_eq!((grant.generation, grant.reuses, grant.ended), (1, 0, None), "{grant:?}");
    assert_eq!(sum(others, "mantel_refresh_leases_total{event=\"taken_over\"}").await, 3.0);
    assert_eq!(sum(others, "mantel_grants_ended_total{reason=\"lost_rotation\",vendor=\"epic\"}").await, 1.0);
    let answer = logins[1].refresh_at(&others[0], logins[1].tokens.refresh()).await;
    assert_eq!((answer.status.as_u16(), &answer.json().unwrap()["error"]), (400, &"invalid_grant".into()));
}

/// Asks both all the while, until the doubt is over; until then it is never the user's fault.
async fn settled(login: &Login, nodes: &[Node], ehr: &Running, sent: Instant, expected: StatusCode) {
    join_all(nodes.iter().map(|node| async {
        loop {
            let asked = sent.elapsed();
            let answer = login.read(node).await;
            if answer.status == expected {
                break;
            }
            assert!(answer.is_held_back(), "{} {}", answer.status, answer.text());
            assert!(asked < DOUBT + LEASE + SOON, "after {asked:?}: {}\n{}", answer.text(), events(node));
            if sent.elapsed() < DOUBT - Duration::from_secs(1) {
                assert_eq!(ehr.counters.get(REFRESH), 1, "tried again after {:?}", sent.elapsed());
            }
            tokio::time::sleep(LOOK).await;
        }
        assert!(sent.elapsed() > DOUBT - Duration::from_secs(1), "over after {:?}", sent.elapsed());
    }))
    .await;
    assert_eq!(ehr.counters.get(REFRESH), 2, "tried exactly once more");
}
