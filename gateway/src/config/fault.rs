//! What is wrong in a configuration, and where: one line each, never with a secret in it.

use std::{fmt, sync::Arc, time::Duration};

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The profiles that come with the binary.
    BuiltIn { line: usize },
    /// A file of the operator's; no line where the file as a whole is meant.
    File { path: Arc<str>, line: Option<usize> },
    /// A variable of the environment.
    Environment(String),
    /// Written nowhere.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn { line } => write!(f, "built-in vendors.toml:{line}"),
            Self::File { path, line: Some(line) } => write!(f, "{path}:{line}"),
            Self::File { path, line: None } => f.write_str(path),
            Self::Environment(variable) => f.write_str(variable),
            Self::Default => f.write_str("default"),
        }
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    pub origin: Origin,
    /// The dotted key; empty where a file as a whole is at fault.
    pub key: String,
    pub given: String,
    pub expected: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "given {}, expected {}", self.given, self.expected)
    }
}

/// All faults of a configuration, by file and line. Displayed as one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn new(mut faults: Vec<Fault>) -> Self {
        faults.sort();
        faults.dedup();
        Self(faults)
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Fault> {
        self.0.iter()
    }

    pub const fn len(&self) -> usize {
        self.0.len()
    }

    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.0 {
            writeln!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// What an operator should know although it is allowed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    pub origin: Origin,
    pub key: String,
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)
    }
}

/// A value as a message may show it: quoted, on one line, short, without the password of a URL.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 80;
    let open = match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 <= at => {
            format!("{}…{}", text.get(..scheme + 3).unwrap_or_default(), text.get(at..).unwrap_or_default())
        }
        _ => text.to_owned(),
    };
    match open.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", open.get(..end).unwrap_or_default()),
        None => format!("{open:?}"),
    }
}

/// A duration as people write it, in days at most: `90d`, `1h 30m`.
pub(super) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let parts = [
        (seconds / 86_400, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
        (u64::from(duration.subsec_millis()), "ms"),
    ];
    let written: Vec<String> =
        parts.iter().filter(|(number, _)| *number > 0).map(|(number, unit)| format!("{number}{unit}")).collect();
    if written.is_empty() { "0s".into() } else { written.join(" ") }
}

/// ` did you mean "x"?` with the known name that is nearest, if one is near.
pub(super) fn did_you_mean<'n>(given: &str, known: impl IntoIterator<Item = &'n str>) -> Option<String> {
    // Names are at most 63 long; a longer text is no slip of the pen, and the distance costs a square.
    if given.chars().count() > 80 {
        return None;
    }
    let bound = (given.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|name| (distance(given, name), name))
        .filter(|(distance, _)| *distance <= bound)
        .min()
        .map(|(_, name)| format!("did you mean {name:?}?"))
}

/// Optimal string alignment: insertions, deletions, substitutions, and neighbours swapped.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.to_lowercase().chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    let mut last = None;
    for (i, l) in left.to_lowercase().chars().enumerate() {
        let mut next = vec![i + 1];
        for (j, r) in right.iter().enumerate() {
            let at = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
            let mut best = (at(&row, j) + usize::from(l != *r)).min(at(&row, j + 1) + 1).min(at(&next, j) + 1);
            let swapped = j.checked_sub(1).filter(|k| last == Some(*r) && right.get(*k) == Some(&l));
            if let Some(k) = swapped {
                best = best.min(at(&before, k) + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
        last = Some(l);
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_name() {
        let known = ["epic", "oracle", "athena", "generic"];
        assert_eq!(did_you_mean("epci", known).as_deref(), Some("did you mean \"epic\"?"));
        assert_eq!(did_you_mean("athenna", known).as_deref(), Some("did you mean \"athena\"?"));
        assert_eq!(did_you_mean("Oracle", known).as_deref(), Some("did you mean \"oracle\"?"));
        assert_eq!(did_you_mean("meditech", known), None);
        assert_eq!(did_you_mean("", known), None);
    }

    #[test]
    fn spans_read_back_as_they_were() {
        assert_eq!(span(Duration::from_secs(90 * 86_400)), "90d");
        assert_eq!(span(Duration::ZERO), "0s");
        for millis in [1, 999, 1500, 61_000, 90_061_001] {
            let duration = Duration::from_millis(millis);
            assert_eq!(humantime::parse_duration(&span(duration)).unwrap(), duration);
        }
    }

    #[test]
    fn what_is_shown_is_short_and_keeps_no_password() {
        assert_eq!(shown("postgres://u:p@db/x"), "\"postgres://…@db/x\"");
        assert_eq!(shown("a\nb"), "\"a\\nb\"");
        assert!(shown(&"ä".repeat(500)).chars().count() < 90);
    }
}
