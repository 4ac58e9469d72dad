//! That the tests' own machinery does what it says: clocks, disks and wires around a gateway.

use std::time::Duration;

use mantel_tests::{
    ehr::contract::Vendor,
    harness::{
        Ehr,
        app::App,
        cluster::{Cluster, Plan, StoreKind, clock_library},
        read,
        wire::Conduct,
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_has_a_clock_a_disk_and_a_network_of_its_own() {
    let plan = Plan {
        small_disks: true,
        own_clocks: true,
        ..Plan::new(1, StoreKind::Sqlite, vec![Ehr::new(Vendor::Generic)])
    };
    let mut cluster = Cluster::start(plan).await.unwrap();
    let base = cluster.base("generic");
    let hospital = cluster.hospital("generic").unwrap();
    let app = App::at(&base).await.unwrap();
    let tokens = app.launch(&hospital.ehr).await.unwrap();
    let url = format!("{base}/Patient/{}", tokens.text("patient"));
    let own = cluster.nodes[0].own(&url);
    for url in [&url, &own] {
        let answer = read(url, tokens.access()).await.unwrap();
        assert_eq!(answer.status, 200, "{url}: {}", answer.text());
    }

    // A clock that is an hour off, either way, ends nothing, and timers go on (`e2e/clock.rs` has the rest).
    assert!(clock_library().is_some(), "`faketime` is missing: tests/run.sh --install installs it");
    for hours in [1, -1, 0] {
        cluster.nodes[0].set_clock(hours * 3600).unwrap();
        cluster.nodes[0].clock_seen(hours * 3600).await.unwrap();
        let answer = read(&own, tokens.access()).await.unwrap();
        assert_eq!(answer.status, 200, "{hours}: {}", answer.text());
    }

    // Nothing new can be stored while the disk is full; what is known serves.
    cluster.nodes[0].fill_disk().unwrap();
    assert_eq!(read(&own, tokens.access()).await.unwrap().status, 200);
    let refused = app.try_refresh(&[("refresh_token", tokens.refresh())]).await.unwrap();
    assert!(refused.status.is_server_error(), "{} {}", refused.status, refused.text());
    cluster.nodes[0].free_disk().unwrap();
    let tokens = app.refresh(tokens.refresh()).await.unwrap();

    let hospital = cluster.hospital("generic").unwrap();
    hospital.wire.conduct(Conduct::Cut);
    let answer = read(&own, tokens.access()).await.unwrap();
    assert_eq!(answer.status, 502, "{}", answer.text());
    hospital.wire.open();

    // Another process on the same files.
    cluster.nodes[0].replace().unwrap();
    cluster.nodes[0].gateway.wait_ready(Duration::from_secs(20)).await.unwrap();
    assert_eq!(read(&url, tokens.access()).await.unwrap().status, 200);
}
