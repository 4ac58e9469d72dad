//! Two minutes of storm: one on SQLite, and one of three gateways on PostgreSQL. The README says how to run an hour.

use std::path::Path;

use clap::ValueEnum as _;
use mantel_tests::storm::{FaultKind, Options, run};

async fn a_minute(name: &str, gateways: usize, postgres: bool) {
    // For whoever asks why it failed.
    let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("storm-{name}"));
    let report = run(&Options {
        gateways,
        postgres,
        seconds: 60,
        seed: 1,
        faults: FaultKind::value_variants().to_vec(),
        patients: 5,
        progress: false,
        logs: Some(logs.clone()),
    })
    .await
    .unwrap();
    let logs = logs.display();
    assert_eq!(report.violations, [""; 0], "{report}\nthe gateways' logs are in {logs}");
    // There was one.
    let mut faults = vec!["gateway killed", "gateway stopped", "disk full", "clock an hour off", "answers to be lost"];
    faults.extend(["EHR cut off", "EHR silent", "EHR slow"]);
    if postgres {
        faults.extend(["database restarted", "store cut off", "store silent"]);
    }
    for fault in faults {
        assert!(report.faults.contains_key(fault), "{fault} is missing: {report}");
    }
    assert!(report.at_once >= 100, "{report}");
    for line in &report.account.lines {
        assert!(line.refreshes > 0 && line.served > 0, "nothing at {}: {report}", line.site);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minute_on_sqlite() {
    a_minute("sqlite", 1, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minute_of_three_gateways_on_postgresql() {
    a_minute("postgres", 3, true).await;
}
