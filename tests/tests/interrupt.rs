//! Ten kills of a process with forty refreshes in flight. The README says how to run hundreds.

use mantel_tests::custody::interrupt::{Instant, Options, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_burnt_token_whose_answer_is_not_durable_costs_a_login() {
    let directory = tempfile::tempdir().unwrap();
    let report = run(&Options {
        program: env!("CARGO_BIN_EXE_interrupt").into(),
        directory: directory.path().to_owned(),
        store: None,
        logins: 2_500,
        in_flight: 40,
        kills: 10,
        interrupted: 0,
        seed: 3,
        // The minute after a doubt is waited for in `e2e/crash.rs`.
        ahead: true,
        progress: false,
    })
    .await
    .unwrap();
    assert_eq!(report.wrong_count, 0, "{report}");
    assert!(report.interrupted >= 200, "{report}");
    for instant in Instant::ALL {
        let row = report.row(instant);
        // Where the EHR has burnt the old token and nothing is durable, nobody can serve; everywhere else all live.
        let (cut, lost) = (row.interrupted - row.last_tries, row.lost - row.lost_by_last_try);
        assert_eq!(lost, if instant.burnt() { cut } else { 0 }, "{instant}: {report}");
    }
    // The instants that are ours to get right were hit.
    for instant in [Instant::BeforeIntent, Instant::IntentNotSent, Instant::ReceivedNotStored, Instant::StoredNotShared]
    {
        assert_ne!(report.row(instant).interrupted, 0, "{instant}: {report}");
    }
}
