//! The README is held to the code: its configuration loads, its commands exist, its metrics are those
//! that are registered.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
};
use base64::Engine as _;
use mantel::config::{Sources, load};

const README: &str = include_str!("../../README.md");
const METRICS: &str = include_str!("../src/telemetry/metrics.rs");
const ROOT: &str = "/etc/mantel";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The fenced blocks of a language.
fn blocks(language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut block: Option<(bool, String)> = None;
    for line in README.lines() {
        match (line.strip_prefix("```"), block.take()) {
            (Some(opened), None) => block = Some((opened == language, String::new())),
            (Some(_), Some((wanted, text))) => found.extend(wanted.then_some(text)),
            (None, Some((wanted, text))) => block = Some((wanted, text + line + "\n")),
            (None, None) => {}
        }
    }
    assert!(block.is_none(), "a block is not closed");
    found
}

/// What stands between single backticks, outside of blocks.
fn spans() -> Vec<&'static str> {
    let mut within = false;
    let prose = README.lines().filter(|line| {
        let fence = line.starts_with("```");
        within ^= fence;
        !within && !fence
    });
    prose.flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// The lines of shell blocks, and spans that are commands.
fn commands() -> Vec<String> {
    let lines = blocks("sh").into_iter().flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>());
    lines.chain(spans().into_iter().map(str::to_owned)).collect()
}

#[test]
fn its_configuration_loads_without_a_fault_or_note() {
    let mut files = BTreeMap::new();
    for block in blocks("toml") {
        let name = block.lines().next().and_then(|line| line.strip_prefix("# ")).unwrap_or_default().to_owned();
        assert!(name.ends_with(".toml"), "a block begins with the name of its file: {block}");
        assert!(files.insert(Path::new(ROOT).join(&name), block.into_bytes()).is_none(), "{name} stands twice");
    }
    assert!(files.len() >= 3, "mantel.toml, a site and a vendor: {:?}", files.keys());

    let tls = rcgen::generate_simple_self_signed(["gateway.example.org".to_owned()]).unwrap();
    let rsa = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = rsa.as_der().unwrap();
    let base64 = base64::prelude::BASE64_STANDARD.encode(der.as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{base64}\n-----END PRIVATE KEY-----\n");
    for (name, content) in [
        ("tls.crt", tls.cert.pem().into_bytes()),
        ("tls.key", tls.signing_key.serialize_pem().into_bytes()),
        ("keys/seal-2026-11", (1..=32).collect()),
        ("sites.d/../keys/epic-2026-11.pem", pem.into_bytes()),
    ] {
        files.insert(Path::new(ROOT).join(name), content);
    }
    let sources = Sources { paths: vec![PathBuf::from(ROOT)], environment: Vec::new(), files: Arc::new(files) };
    let loaded = load(&sources).unwrap_or_else(|faults| panic!("{faults}"));
    let notes: Vec<String> = loaded.notes.iter().map(ToString::to_string).collect();
    assert_eq!(notes, Vec::<String>::new());
    // What was read is what the page shows, not an empty configuration.
    assert_eq!((loaded.config.sites.len(), loaded.config.apps.len()), (1, 1));
}

#[test]
fn its_binaries_exist() {
    let mut seen = 0;
    for command in commands().iter().filter(|command| command.starts_with("cargo run ")) {
        let mut words = command.split(' ').skip_while(|word| *word != "--bin");
        let name = words.nth(1).unwrap_or_else(|| panic!("no --bin in {command}"));
        let source = repository().join("tests/src/bin").join(name).with_extension("rs");
        assert!(source.is_file(), "{command}: no binary {name}");
        seen += 1;
    }
    assert!(seen >= 2, "the sandbox and the simulated EHR");
}

#[test]
fn its_scripts_and_links_exist() {
    let scripts = ["tests/run.sh", ".ci/run"];
    for script in scripts {
        assert!(commands().iter().any(|command| command == script), "the README names {script}");
        let mode = fs::metadata(repository().join(script)).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{script} is executable");
    }
    for link in README.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        assert!(link.starts_with("https://") || repository().join(link).exists(), "no {link}");
    }
}

#[test]
fn its_options_of_the_test_script_exist() {
    let script = fs::read_to_string(repository().join("tests/run.sh")).unwrap();
    for option in ["--unit", "--no-browser"] {
        assert!(README.contains(option) && script.contains(&format!("{option})")), "{option}");
    }
}

#[test]
fn its_commands_of_mantel_exist() {
    let mut seen = BTreeSet::new();
    for command in commands() {
        let Some(rest) = command.strip_prefix("mantel ") else { continue };
        let name = rest.split(' ').next().unwrap();
        if !seen.insert(name.to_owned()) {
            continue;
        }
        let help = Command::new(env!("CARGO_BIN_EXE_mantel")).args([name, "--help"]).output().unwrap();
        assert!(help.status.success(), "{command}: {}", String::from_utf8_lossy(&help.stderr));
        let text = String::from_utf8(help.stdout).unwrap();
        for option in rest.split(' ').filter(|word| word.starts_with("--")) {
            assert!(text.contains(option), "{command}: no {option} in\n{text}");
        }
    }
    assert!(seen.contains("check") && seen.contains("serve"), "{seen:?}");
}

/// The names that the table of metrics registers.
fn registered() -> BTreeSet<&'static str> {
    METRICS.split('"').skip(1).step_by(2).filter(|text| text.starts_with("mantel_")).collect()
}

#[test]
fn its_table_of_metrics_is_the_registered_one() {
    let rows = README.lines().filter_map(|line| line.strip_prefix("| `mantel_"));
    let told: BTreeSet<String> =
        rows.filter_map(|row| row.split('`').next()).map(|name| format!("mantel_{name}")).collect();
    assert_eq!(told, registered().into_iter().map(str::to_owned).collect());
    // What is rendered comes from the same table: the source was read right.
    let rendered = String::from_utf8(mantel::telemetry::Metrics::new().unwrap().render().unwrap()).unwrap();
    let families = rendered.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let unknown: Vec<&str> =
        families.filter(|name| name.starts_with("mantel_") && !registered().contains(name)).collect();
    assert_eq!(unknown, Vec::<&str>::new());
}

#[test]
fn its_alerts_use_registered_metrics() {
    let alerts = blocks("promql").concat();
    let words = alerts.split(|c: char| c != '_' && !c.is_ascii_alphanumeric());
    let used: BTreeSet<&str> = words.filter(|word| word.starts_with("mantel_")).collect();
    assert!(used.len() >= 3, "{used:?}");
    let unknown: Vec<&&str> = used
        .iter()
        .filter(|name| {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            !registered().contains(family.unwrap_or(name))
        })
        .collect();
    assert!(unknown.is_empty(), "not registered: {unknown:?}");
}
