//! Who may know whom: the order of the rooms in `src/lib.rs`, and the vendors' ignorance of each other.

#[path = "../../adapters/tests/source/mod.rs"]
mod source;

use std::path::{Path, PathBuf};

use source::{Named, module_of, paths, sources};

/// Left knows right, never the reverse. Rooms on one level do not know each other, unless `WITHIN` says so.
const LEVELS: &[&[&str]] = &[
    &["main", "cli"],
    &["app"],
    &["lifecycle"],
    &["edge"],
    &["oauth", "proxy", "admin"],
    &["session", "custody"],
    &["upstream", "replicas"],
    &["store"],
    &["telemetry"],
    &["config", "clock", "entropy", "secret", "error"],
];

/// Among the rooms of one level: (who, whom). A configuration holds secrets; entropy makes them, and
/// identifiers that begin with the time.
const WITHIN: &[(&str, &str)] = &[("config", "secret"), ("entropy", "clock"), ("entropy", "secret")];

/// The library's list of rooms, and the binary, which may know all of them.
const ROOTS: &[&str] = &["lib.rs", "main.rs", "cli.rs"];

fn level(room: &str) -> Option<usize> {
    LEVELS.iter().position(|level| level.contains(&room))
}

/// What is wrong with a source of the room `module[0]`, as (line, why).
fn violations(module: &[String], text: &str) -> Vec<(usize, String)> {
    let Some(room) = module.first() else { return Vec::new() };
    let Some(own) = level(room) else { return vec![(1, format!("{room} is no room of LEVELS"))] };
    let judge = |named: &Named| {
        let absolute = named.absolute(module)?;
        // `pub(in crate)`, `use super as up`: a name for the root would hide what is reached through it.
        let Some(target) = absolute.first() else {
            return (named.segments.len() > 1).then(|| "names the root, not a room".to_owned());
        };
        if target == room || WITHIN.contains(&(room, target)) {
            return None;
        }
        match level(target) {
            None => Some(format!("{} names no room", named.text())),
            Some(other) if other > own => None,
            Some(_) => Some(format!("{room} may not know {target} ({})", named.text())),
        }
    };
    paths(text).iter().filter_map(|named| Some((named.line, judge(named)?))).collect()
}

fn report(found: &[(PathBuf, usize, String)]) {
    let lines: Vec<String> =
        found.iter().map(|(file, line, why)| format!("{}:{line}: {why}", file.display())).collect();
    assert!(lines.is_empty(), "arrows that point left:\n{}", lines.join("\n"));
}

#[test]
fn the_rooms_know_only_what_is_to_their_right() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for (file, text) in sources(&src) {
        let below = file.strip_prefix(&src).unwrap();
        if ROOTS.iter().any(|root| below == Path::new(root)) {
            continue;
        }
        let wrong = violations(&module_of(below), &text);
        found.extend(wrong.into_iter().map(|(line, why)| (Path::new("gateway/src").join(below), line, why)));
    }
    report(&found);
}

#[test]
fn a_vendor_knows_no_other_vendor() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("../adapters/src");
    let mut found = Vec::new();
    for (file, text) in sources(&src.join("vendors")) {
        let below = file.strip_prefix(&src).unwrap();
        let wrong = other_vendors(&module_of(below), &text);
        found.extend(wrong.into_iter().map(|(line, why)| (Path::new("adapters/src").join(below), line, why)));
    }
    report(&found);
}

/// What a vendor's file says of others; `vendors/mod.rs` itself lists them all.
fn other_vendors(module: &[String], text: &str) -> Vec<(usize, String)> {
    let Some(own) = module.get(1) else { return Vec::new() };
    let judge = |named: &Named| {
        let absolute = named.absolute(module)?;
        let other = (absolute.first()? == "vendors").then(|| absolute.get(1)).flatten()?;
        (other != own).then(|| format!("{own} may not know {other}"))
    };
    paths(text).iter().filter_map(|named| Some((named.line, judge(named)?))).collect()
}

fn module(path: &[&str]) -> Vec<String> {
    path.iter().map(|part| (*part).to_owned()).collect()
}

#[test]
fn what_points_left_is_seen() {
    let bad = r##"//! crate::app in a comment is nothing.
/* nor /* crate::edge */ crate::admin here */
use crate::{
    app::Gateway,
    config::{Config, Base as Foundation},
    proxy::{self, body},
};
use super::super::edge as threshold;
const TEXT: &str = "crate::app \" crate::edge";
const RAW: &str = r#"crate::app " crate::edge"#;
const QUOTE: char = '"'; fn life<'a>(it: &'a str) -> &'a str { it }
fn body() { let _ = crate::admin::Admin { road: crate::store::open() }; }
mod tests {
    use super::super::Call;
    use super::super::super::edge::stack;
}
use crate::nowhere::Thing;
use crate::*;
use super::super as root;
fn mine() { self::helper(); super::token(); $crate::app::start!(); }
"##;
    let found = violations(&module(&["oauth", "token"]), bad);
    let lines: Vec<usize> = found.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [4, 6, 6, 8, 12, 15, 17, 18, 19, 20], "{found:#?}");
    assert_eq!(found[0].1, "oauth may not know app (crate::app::Gateway)");
    assert_eq!(found[6].1, "crate::nowhere::Thing names no room");
}

#[test]
fn what_points_right_is_not() {
    let good = "use crate::{session::Launch, store, telemetry::Metrics, error::Side};\nuse super::params;\n";
    assert_eq!(violations(&module(&["oauth", "token"]), good), []);
    assert_eq!(violations(&module(&["config"]), "use crate::secret::Secret;"), []);
}

#[test]
fn rooms_of_one_level_and_unknown_rooms_are_seen() {
    for (room, text) in [
        ("oauth", "use crate::proxy::Forward;"),
        ("custody", "use crate::session::Launch;"),
        ("clock", "use crate::entropy::Entropy;"),
        ("secret", "use crate::config::Config;"),
        ("store", "fn f() -> crate::upstream::Client {}"),
        ("kitchen", ""),
    ] {
        assert_eq!(violations(&module(&[room]), text).len(), 1, "{room}: {text}");
    }
}

#[test]
fn other_vendors_are_seen() {
    let bad = "use super::{athena, epic::quirks};\nuse crate::{vendors::oracle::Oracle, adapter::Adapter};\n";
    let found = other_vendors(&module(&["vendors", "epic"]), bad);
    assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 2], "{found:?}");
    assert_eq!(other_vendors(&module(&["vendors"]), "pub use oracle::Oracle; use self::epic::Epic;"), []);
}
