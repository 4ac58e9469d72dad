//! An EHR refuses a whole registration, of which each gateway sees no more than a few grants: together they know.

use std::time::Duration;

use futures_util::future::join_all;
use mantel_tests::{
    ehr::faults::{Fault, FaultKind},
    harness::cluster::{Cluster, Node},
};
use tokio::time::{Instant, sleep};

use super::login::{LOOK, Login, REFRESH, SOON, events, sum};

/// At each gateway. So many deaths are people's fate: `custody::deaths::FEW`.
const FEW: usize = 5;

/// A suspect registration tries one grant after a minute.
const PROBE: Duration = Duration::from_secs(60);

const SUSPECT: &str = "mantel_registration_suspect{registration=\"viewer-refusing\",site=\"refusing\"}";

pub async fn deaths_are_rationed_over_all_gateways_and_service_resumes_by_itself(cluster: &Cluster) {
    let ehr = &cluster.hospital("refusing").unwrap().ehr;
    let mut logins = Vec::new();
    for _ in 0..cluster.nodes.len() * FEW {
        logins.push(Login::at(cluster, "refusing", Some(2)).await);
    }
    // The gateways' own clock has to reach the tokens' end.
    sleep(Duration::from_secs(2)).await;
    ehr.counters.reset();
    // As a blocked fetch of our keys is answered.
    ehr.faults.add(Fault::new(REFRESH, FaultKind::Burnt));
    let served = || logins.iter().zip(cluster.nodes.iter().cycle());
    let none_is_logged_out = async || {
        for answer in join_all(served().map(|(login, node)| login.read(node))).await {
            assert!(answer.is_held_back(), "{} {}", answer.status, answer.text());
        }
    };
    none_is_logged_out().await;
    let refused = Instant::now();
    while sum(&cluster.nodes, SUSPECT).await < 3.0 {
        assert!(refused.elapsed() < SOON, "no alarm: {}", events(&cluster.nodes[0]));
        sleep(LOOK).await;
    }
    none_is_logged_out().await;
    assert_eq!(ehr.counters.get(REFRESH), u64::try_from(logins.len()).unwrap(), "each was tried once");

    ehr.faults.clear();
    // Nobody need do anything.
    while sum(&cluster.nodes, SUSPECT).await > 0.0 {
        assert!(refused.elapsed() < PROBE + SOON, "{}", events(&cluster.nodes[0]));
        sleep(LOOK).await;
    }
    let all: Vec<&Node> = cluster.nodes.iter().collect();
    join_all(logins.iter().map(|login| login.served_by(&all, SOON))).await;
    let suspected = SUSPECT.replace("suspect{", "suspected_total{");
    assert_eq!(sum(&cluster.nodes, &suspected).await, 3.0, "once each");
    let dead = "mantel_grants_ended_total{reason=\"dead\",vendor=\"generic\"}";
    assert_eq!(sum(&cluster.nodes, dead).await, 0.0);
    for grant in ehr.grants() {
        assert_eq!((grant.reuses, grant.ended), (0, None), "{grant:?}");
    }
}
