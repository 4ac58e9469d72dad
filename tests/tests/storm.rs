//! Two minutes of storm: the README's hours, a minute of each.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed test panics")]

use std::{path::Path, process::Command};

const README: &str = include_str!("../../README.md");

/// The arguments of the README's storms, each with its number of gateways.
fn storms() -> Vec<Vec<&'static str>> {
    let (_, rest) = README.split_once("## Custody in a storm").unwrap();
    let (_, rest) = rest.split_once("```sh\n").unwrap();
    let (block, _) = rest.split_once("\n```").unwrap();
    let arguments = block.lines().filter_map(|line| line.strip_prefix("cargo run --release --bin storm -- "));
    arguments.map(|line| line.split(' ').collect()).collect()
}

fn a_minute(place: usize, faults: &[&str]) {
    let mut arguments = storms().remove(place);
    let hour = arguments.iter().position(|argument| *argument == "3600").unwrap();
    assert_eq!(arguments[hour - 1], "--seconds");
    arguments[hour] = "60";
    // For whoever asks why it failed.
    let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("storm-{place}"));
    let ran = Command::new(env!("CARGO_BIN_EXE_storm"))
        .args(arguments)
        .args(["--seed", "1", "--logs"])
        .arg(&logs)
        .output()
        .unwrap();
    let report = String::from_utf8(ran.stdout).unwrap();
    let told = format!("{report}{}\nlogs: {}", String::from_utf8_lossy(&ran.stderr), logs.display());
    assert!(ran.status.success() && report.ends_with("\nno violation\n"), "{told}");
    // There was one.
    for fault in ["gateway killed", "gateway stopped", "disk full", "clock an hour off", "answers to be lost"] {
        assert!(report.contains(fault), "{fault} is missing: {told}");
    }
    for fault in faults {
        assert!(report.contains(fault), "{fault} is missing: {told}");
    }
    let rows: Vec<Vec<&str>> = report.lines().map(|line| line.split_whitespace().collect()).collect();
    let all = rows.iter().find(|row| row.first() == Some(&"all")).unwrap();
    let [refreshes, reads] = [all[2], all[3]].map(|figure| figure.parse::<u64>().unwrap());
    assert!(refreshes >= 500 && reads >= 5_000, "{told}");
}

#[test]
fn a_minute_on_sqlite() {
    a_minute(0, &["EHR cut off", "EHR silent", "EHR slow"]);
}

#[test]
fn a_minute_of_three_gateways_on_postgresql() {
    assert_eq!(storms().len(), 2);
    a_minute(1, &["EHR cut off", "database restarted", "store cut off", "store silent"]);
}
