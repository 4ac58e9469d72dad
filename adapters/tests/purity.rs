//! `mantel-adapters` is values in, values out: no IO, clock or randomness, and nothing that brings them.

mod source;

use std::{collections::BTreeSet, path::Path};

use source::{Named, paths, sources};

/// What reaches the world, by the beginning of a path.
const WORLD: &[&[&str]] = &[
    &["std", "env"],
    &["std", "fs"],
    &["std", "net"],
    &["std", "os"],
    &["std", "process"],
    &["std", "thread"],
    &["std", "*"],
    &["std", "io", "stdin"],
    &["std", "io", "stdout"],
    &["std", "io", "stderr"],
    &["std", "hash", "RandomState"],
];

/// Names that mean it wherever they stand.
const NAMES: &[&str] = &[
    "SystemTime",
    "Instant",
    "tokio",
    "hyper",
    "hyper_util",
    "rand",
    "getrandom",
    "aws_lc_rs",
    "sqlx",
    "println",
    "print",
    "eprintln",
    "eprint",
    "dbg",
    "RandomState",
    "thread_rng",
];

/// Pure crates: parsing, formatting, types. One more needs a reason in its review.
const DEPENDENCIES: &[&str] = &[
    "bytes",
    "form_urlencoded",
    "http",
    "humantime",
    "memchr",
    "percent-encoding",
    "serde",
    "serde_json",
    "thiserror",
    "url",
];

fn world(text: &str) -> Vec<(usize, String)> {
    let reaches = |named: &Named| {
        // `super::…` and `crate::…` begin at home: a module of ours may have any name.
        let own = named.segments.first().is_some_and(|first| matches!(first.as_str(), "crate" | "super" | "self"));
        WORLD.iter().any(|path| named.starts_with(path))
            || (!own && named.segments.iter().any(|segment| NAMES.contains(&segment.as_str())))
    };
    paths(text).iter().filter(|named| reaches(named)).map(|named| (named.line, named.text())).collect()
}

#[test]
fn no_source_reaches_the_world() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut lines = Vec::new();
    for (file, text) in sources(&src) {
        let below = Path::new("adapters/src").join(file.strip_prefix(&src).unwrap());
        lines.extend(world(&text).iter().map(|(line, path)| format!("{}:{line}: {path}", below.display())));
    }
    assert!(lines.is_empty(), "IO, a clock or randomness in the adapters:\n{}", lines.join("\n"));
}

#[test]
fn what_reaches_the_world_is_seen() {
    let bad = "use std::{collections::BTreeMap, fs, net::{IpAddr, TcpStream}};\n\
               use std::time::{Duration, Instant};\n\
               fn f() { std::process::exit(1); }\n\
               fn g() { let _ = std::env::var(\"X\"); println!(\"x\"); }\n\
               async fn h() { tokio::spawn(async {}); }\n\
               use std::*;\n\
               // std::fs::read\n\
               const TEXT: &str = \"std::fs::read\";\n";
    let lines: Vec<usize> = world(bad).iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [1, 1, 1, 2, 3, 4, 4, 5, 6]);
    let good = "use std::{borrow::Cow, fmt, time::Duration};\nfn f(it: crate::rand::Thing) {}\n";
    assert_eq!(world(good), []);
}

#[test]
fn only_pure_crates_are_depended_on() {
    let manifest = include_str!("../Cargo.toml").parse::<toml_edit::DocumentMut>().unwrap();
    let names = |table: &toml_edit::Item| -> BTreeSet<String> {
        table.as_table_like().unwrap().iter().map(|(name, _)| name.to_owned()).collect()
    };
    let allowed: BTreeSet<String> = DEPENDENCIES.iter().map(|name| (*name).to_owned()).collect();
    let given = names(&manifest["dependencies"]);
    assert_eq!(given, allowed, "[dependencies] of adapters/Cargo.toml, and the list that this test allows");
    for table in ["build-dependencies", "target", "features"] {
        assert!(manifest.get(table).is_none(), "adapters/Cargo.toml has [{table}], expected none");
    }
    // A build script is IO at build time.
    assert!(!Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs").exists());
}
