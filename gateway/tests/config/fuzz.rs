//! No configuration makes the loader panic, and no fault is more than a line.

use proptest::prelude::*;

use crate::setup::{SITE, Setup, example};

const FILES: [&str; 3] = ["vendors.toml", SITE, "mantel.toml"];

/// What takes the place of a token or comes after it.
const PIECES: [&str; 24] = [
    "0",
    "-1",
    "9223372036854775807",
    "1e308",
    "nan",
    "true",
    "\"\"",
    "\"x\"",
    "\"*\"",
    "\"https://[\"",
    "\"http://localhost\"",
    "[]",
    "[1, \"a\", {}]",
    "{}",
    "{ env = \"NONE\" }",
    "{ file = \"..\" }",
    "1979-05-27",
    "\"9999999999999999y\"",
    "'''\n'''",
    "\"\\u0000\"",
    "\n[sites.x]\n",
    "= 1\n",
    "\"ä\\n🦀\"",
    "#",
];

#[derive(Clone, Debug)]
enum Change {
    /// One token becomes another piece.
    Replace(usize, &'static str),
    Insert(usize, &'static str),
    /// A line goes, or comes twice.
    Drop(usize),
    Twice(usize),
    /// A byte anywhere.
    Byte(usize, u8),
}

fn change() -> impl Strategy<Value = Change> {
    let piece = proptest::sample::select(&PIECES[..]);
    prop_oneof![
        4 => (any::<usize>(), piece.clone()).prop_map(|(at, piece)| Change::Replace(at, piece)),
        2 => (any::<usize>(), piece).prop_map(|(at, piece)| Change::Insert(at, piece)),
        1 => any::<usize>().prop_map(Change::Drop),
        1 => any::<usize>().prop_map(Change::Twice),
        1 => (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
    ]
}

/// The ranges of words, strings and numbers.
fn tokens(text: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut start = None;
    let mut quoted = false;
    for (at, byte) in text.bytes().enumerate() {
        let inside = quoted || byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'"' | b'.' | b':');
        quoted ^= byte == b'"';
        match (inside, start) {
            (true, None) => start = Some(at),
            (false, Some(from)) => {
                found.push((from, at));
                start = None;
            }
            _ => {}
        }
    }
    found
}

fn apply(content: Vec<u8>, change: &Change) -> Vec<u8> {
    let Ok(text) = String::from_utf8(content.clone()) else { return content };
    let lines: Vec<&str> = text.lines().collect();
    match change {
        Change::Replace(at, piece) | Change::Insert(at, piece) => {
            let tokens = tokens(&text);
            let Some((from, to)) = tokens.get(at % tokens.len().max(1)) else { return content };
            let from = if matches!(change, Change::Replace(..)) { *from } else { *to };
            format!("{}{piece}{}", &text[..from], &text[*to..]).into_bytes()
        }
        Change::Drop(at) | Change::Twice(at) => {
            let chosen = at % lines.len().max(1);
            let times = if matches!(change, Change::Drop(_)) { 0 } else { 2 };
            let lines = lines
                .iter()
                .enumerate()
                .flat_map(|(n, line)| std::iter::repeat_n(*line, if n == chosen { times } else { 1 }));
            lines.collect::<Vec<_>>().join("\n").into_bytes()
        }
        Change::Byte(at, byte) => {
            let mut content = content;
            let length = content.len().max(1);
            if let Some(place) = content.get_mut(at % length) {
                *place = *byte;
            }
            content
        }
    }
}

fn holds(setup: &Setup) -> Result<(), TestCaseError> {
    match setup.load() {
        Ok(loaded) => prop_assert!(!loaded.describe().is_empty()),
        Err(faults) => {
            prop_assert!(!faults.is_empty());
            prop_assert_eq!(faults.to_string().lines().count(), faults.len());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_change_of_a_valid_configuration_panics(changes in proptest::collection::vec((0..3_usize, change()), 1..6)) {
        let mut setup = example();
        for (file, change) in &changes {
            let path = std::path::Path::new(crate::setup::ROOT).join(FILES[*file]);
            let content = setup.files.remove(&path).unwrap_or_default();
            setup.files.insert(path, apply(content, change));
        }
        holds(&setup)?;
    }

    #[test]
    fn no_variable_panics(
        keys in proptest::collection::vec(
            proptest::sample::select(vec!["SERVER", "SITES", "VENDORS", "APPS", "GENERAL_HOSPITAL", "EPIC", "TOKENS", "ERRORS", "BURNT", "VIEWER", "", "X", "SCOPES", "STATUS"]),
            1..5,
        ),
        value in prop_oneof![proptest::sample::select(&PIECES[..]).prop_map(str::to_owned), any::<String>()],
    ) {
        holds(&example().set(&format!("MANTEL_{}", keys.join("__")), &value))?;
    }
}
