//! Gateways on one store whose machines' clocks differ.

use mantel_tests::{
    ehr::contract::Vendor,
    harness::{
        Ehr,
        cluster::{Cluster, Plan, StoreKind, clock_library},
        postgres::Postgres,
    },
};

use super::login::{Login, REFRESH, unharmed};

/// One machine is stepped by an hour, the other is not: what either gives serves at both, and the EHR notices
/// nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_whose_clock_is_stepped_serves_with_the_others() {
    assert!(clock_library().is_some(), "`faketime` is missing: tests/run.sh --install installs it");
    let server = Postgres::shared().await.unwrap();
    let ehrs = vec![Ehr::strict(Vendor::Epic)];
    let plan = Plan { own_clocks: true, ..Plan::new(2, StoreKind::Postgres(server), ehrs) };
    let cluster = Cluster::start(plan).await.unwrap();
    let [stepped, right] = cluster.nodes.as_slice() else { panic!("two gateways were asked for") };
    let ehr = &cluster.hospital("epic-strict").unwrap().ehr;
    let mut login = Login::at(&cluster, "epic-strict", None).await;
    for seconds in [3600, -3600, 0] {
        stepped.set_clock(seconds).unwrap();
        stepped.clock_seen(seconds).await.unwrap();
        for by in [stepped, right] {
            let answer = login.refresh_at(by, login.tokens.refresh()).await;
            assert_eq!(answer.status, 200, "{seconds}: {}", answer.text());
            login.tokens = mantel_tests::harness::app::tokens(&answer).unwrap();
            for node in [stepped, right] {
                let answer = login.read(node).await;
                assert_eq!(answer.status, 200, "{seconds}: {}", answer.text());
            }
        }
        let behind = right.gateway.metric("mantel_clock_behind_store_seconds").await.unwrap();
        assert!(behind < 5.0, "{behind}");
    }
    // Their EHR's tokens are refreshed once, by whichever.
    ehr.counters.reset();
    ehr.expire_access_tokens();
    for node in [stepped, right] {
        assert_eq!(login.read(node).await.status, 200);
    }
    assert_eq!(ehr.counters.get(REFRESH), 1);
    unharmed(ehr);
}
