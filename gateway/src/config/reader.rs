//! Typed reading of the layers' tree. Each getter notes what is wrong and where; a table that has been
//! read refuses the keys that nobody asked for.

use std::{
    cell::RefCell,
    ops::{Deref, RangeInclusive},
    time::Duration,
};

use figment::value::{Dict, Num, Value};

use super::{
    fault::{Fault, Note, did_you_mean, shown, span},
    layers::{KeyPath, Tree},
    sources::Sources,
};

/// What all readers share.
pub(super) struct Context<'c> {
    pub tree: &'c Tree,
    pub sources: &'c Sources,
    /// Literal secrets and plain HTTP on this machine's own names are taken.
    pub sandbox: bool,
    faults: RefCell<Vec<Fault>>,
    notes: RefCell<Vec<Note>>,
}

impl<'c> Context<'c> {
    pub fn new(tree: &'c Tree, sources: &'c Sources, sandbox: bool, faults: Vec<Fault>, notes: Vec<Note>) -> Self {
        Self { tree, sources, sandbox, faults: RefCell::new(faults), notes: RefCell::new(notes) }
    }

    pub fn fault(&self, path: &KeyPath, given: impl Into<String>, expected: impl Into<String>) {
        self.faults.borrow_mut().push(Fault {
            origin: self.tree.places.near(path),
            key: path.to_string(),
            given: given.into(),
            expected: expected.into(),
        });
    }

    /// The same for a text that may be shown.
    pub fn refuse(&self, given: &Given<String>, expected: impl Into<String>) {
        self.fault(&given.path, shown(given), expected);
    }

    /// A name that nothing has, with the nearest one.
    pub fn unknown<'n>(
        &self,
        path: &KeyPath,
        given: &str,
        expected: &str,
        known: impl IntoIterator<Item = &'n str> + Clone,
    ) {
        self.fault(path, shown(given), one_of(given, expected, known));
    }

    pub fn note(&self, path: &KeyPath, text: impl Into<String>) {
        self.notes.borrow_mut().push(Note {
            origin: self.tree.places.near(path),
            key: path.to_string(),
            text: text.into(),
        });
    }

    pub fn finish(self) -> (Vec<Fault>, Vec<Note>) {
        let mut notes = self.notes.into_inner();
        notes.sort();
        notes.dedup();
        (self.faults.into_inner(), notes)
    }

    /// A table of the top level; empty if it is not there.
    pub fn top(&self, key: &'static str) -> Table<'_> {
        let path = KeyPath::of(&[key]);
        let dict = match self.tree.root.get(key) {
            Some(Value::Dict(_, dict)) => Some(dict),
            Some(other) => {
                self.fault(&path, kind(other), "a table");
                None
            }
            None => None,
        };
        Table { context: self, path, dict, known: RefCell::default() }
    }
}

/// `expected`, then the nearest known name, or else all of them if they are few.
pub(super) fn one_of<'n>(given: &str, expected: &str, known: impl IntoIterator<Item = &'n str> + Clone) -> String {
    if let Some(hint) = did_you_mean(given, known.clone()) {
        return format!("{expected}: {hint}");
    }
    let names: Vec<String> = known.into_iter().map(|name| format!("{name:?}")).collect();
    match names.len() {
        0 => format!("{expected}: none is configured"),
        1..=12 => format!("{expected}: {}", names.join(", ")),
        _ => expected.to_owned(),
    }
}

/// What a value is, without showing it.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(..) | Value::Char(..) => "a string",
        Value::Bool(..) => "a boolean",
        Value::Num(..) => "a number",
        Value::Empty(..) => "nothing",
        Value::Dict(..) => "a table",
        Value::Array(..) => "a list",
    }
}

/// TOML's integers are signed.
fn whole(number: Num) -> Option<u64> {
    number.to_i128().and_then(|number| u64::try_from(number).ok())
}

pub(super) fn number_text(number: Num) -> String {
    match (number.to_i128(), number.to_f64()) {
        (Some(number), _) => number.to_string(),
        (None, Some(number)) => number.to_string(),
        (None, None) => String::new(),
    }
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Given<T> {
    pub value: T,
    pub path: KeyPath,
}

impl<T> Deref for Given<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// A table being read.
pub(super) struct Table<'c> {
    pub context: &'c Context<'c>,
    pub path: KeyPath,
    dict: Option<&'c Dict>,
    known: RefCell<Vec<&'static str>>,
}

impl<'c> Table<'c> {
    pub const fn of(context: &'c Context<'c>, path: KeyPath, dict: &'c Dict) -> Self {
        Self { context, path, dict: Some(dict), known: RefCell::new(Vec::new()) }
    }

    pub const fn dict(&self) -> Option<&'c Dict> {
        self.dict
    }

    pub fn at(&self, key: &str) -> KeyPath {
        self.path.key(key)
    }

    pub fn has(&self, key: &str) -> bool {
        self.dict.is_some_and(|dict| dict.contains_key(key))
    }

    /// The value as it is.
    pub fn value(&self, key: &'static str) -> Option<Given<&'c Value>> {
        self.known.borrow_mut().push(key);
        self.dict?.get(key).map(|value| Given { value, path: self.at(key) })
    }

    /// The names and values of a table whose keys are names.
    pub fn entries(&self) -> impl Iterator<Item = (&'c str, Given<&'c Value>)> {
        let path = self.path.clone();
        self.dict.into_iter().flatten().map(move |(name, value)| (name.as_str(), Given { value, path: path.key(name) }))
    }

    pub fn missing(&self, key: &str, expected: &str) {
        self.context.fault(&self.at(key), "nothing", expected);
    }

    fn string(&self, given: &Given<&'c Value>, expected: &str) -> Option<Given<String>> {
        string(self.context, given, expected)
    }

    pub fn text(&self, key: &'static str, expected: &str) -> Option<Given<String>> {
        self.value(key).and_then(|given| self.string(&given, expected))
    }

    /// A text that must be there and not be empty.
    pub fn required(&self, key: &'static str, expected: &str) -> Option<Given<String>> {
        if !self.has(key) {
            self.missing(key, expected);
        }
        let text = self.text(key, expected)?;
        if text.trim().is_empty() {
            self.context.refuse(&text, expected);
            return None;
        }
        Some(text)
    }

    pub fn choice<T: Copy>(&self, key: &'static str, choices: &[(&'static str, T)]) -> Option<Given<T>> {
        let text = self.text(key, "a string")?;
        choose(self.context, &text, choices)
    }

    pub fn flag(&self, key: &'static str) -> Option<bool> {
        let given = self.value(key)?;
        match given.value {
            Value::Bool(_, flag) => Some(*flag),
            other => {
                self.context.fault(&given.path, described(other), "true or false");
                None
            }
        }
    }

    pub fn number(&self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let given = self.value(key)?;
        let number = match given.value {
            Value::Num(_, number) => whole(*number),
            _ => None,
        };
        if let Some(number) = number.filter(|number| range.contains(number)) {
            return Some(number);
        }
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.context.fault(&given.path, described(given.value), expected);
        None
    }

    /// A size: a number of bytes, or a text like `16 MiB`.
    pub fn size(&self, key: &'static str, range: RangeInclusive<u64>) -> Option<usize> {
        let given = self.value(key)?;
        let bytes = match given.value {
            Value::Num(_, number) => whole(*number),
            Value::String(_, text) => bytes_of(text),
            _ => None,
        };
        if let Some(bytes) = bytes.filter(|bytes| range.contains(bytes)) {
            return usize::try_from(bytes).ok();
        }
        let expected = format!("from {} to {} bytes, as a number or with KiB, MiB or GiB", range.start(), range.end());
        self.context.fault(&given.path, described(given.value), expected);
        None
    }

    pub fn duration(&self, key: &'static str, range: RangeInclusive<Duration>) -> Option<Duration> {
        let (shortest, longest) = (span(*range.start()), span(*range.end()));
        let expected = format!("a duration from {shortest} to {longest}, in a form like 90s, 5m, 1h or 30d");
        let text = self.text(key, &expected)?;
        match humantime::parse_duration(&text) {
            Ok(duration) if range.contains(&duration) => Some(duration),
            _ => {
                self.context.refuse(&text, expected);
                None
            }
        }
    }

    /// A list of texts; faulty ones are left out. A variable may hold a single one without brackets.
    pub fn texts(&self, key: &'static str, expected: &str) -> Option<Vec<Given<String>>> {
        let given = self.value(key)?;
        match given.value {
            Value::Array(_, values) => {
                let items = values.iter().enumerate().map(|(n, value)| Given { value, path: given.path.index(n) });
                Some(items.filter_map(|item| self.string(&item, expected)).collect())
            }
            Value::String(..) if self.context.tree.places.is_environment(&given.path) => {
                Some(self.string(&given, expected).into_iter().collect())
            }
            other => {
                self.context.fault(&given.path, kind(other), format!("a list, each {expected}"));
                None
            }
        }
    }

    pub fn table(&self, key: &'static str, expected: &str) -> Option<Table<'c>> {
        let given = self.value(key)?;
        table(self.context, &given, expected)
    }

    pub fn tables(&self, key: &'static str, expected: &str) -> Option<Vec<Table<'c>>> {
        let given = self.value(key)?;
        let Value::Array(_, values) = given.value else {
            self.context.fault(&given.path, kind(given.value), format!("a list, each {expected}"));
            return None;
        };
        let items = values.iter().enumerate().map(|(n, value)| Given { value, path: given.path.index(n) });
        Some(items.filter_map(|item| table(self.context, &item, expected)).collect())
    }

    /// Refuses what nobody asked for.
    pub fn finish(self) {
        self.finish_beside(&[]);
    }

    /// The same, where a table has further keys that are read otherwise.
    pub fn finish_beside(self, others: &[String]) {
        let known = self.known.into_inner();
        for key in self.dict.into_iter().flat_map(Dict::keys) {
            if known.contains(&key.as_str()) || others.contains(key) {
                continue;
            }
            let names = known.iter().copied().chain(others.iter().map(String::as_str));
            let expected = one_of(key, "a known key", names);
            self.context.fault(&self.path.key(key), "an unknown key", expected);
        }
    }
}

/// A text. A number or a flag that the environment gave is one too: variables have no types.
pub(super) fn string(context: &Context<'_>, given: &Given<&Value>, expected: &str) -> Option<Given<String>> {
    let is_environment = || context.tree.places.is_environment(&given.path);
    let text = match given.value {
        Value::String(_, text) => Some(text.clone()),
        Value::Num(_, number) if is_environment() => Some(number_text(*number)),
        Value::Bool(_, flag) if is_environment() => Some(flag.to_string()),
        _ => None,
    };
    if text.is_none() {
        context.fault(&given.path, described(given.value), expected);
    }
    text.map(|value| Given { value, path: given.path.clone() })
}

pub(super) fn table<'c>(context: &'c Context<'c>, given: &Given<&'c Value>, expected: &str) -> Option<Table<'c>> {
    match given.value {
        Value::Dict(_, dict) => Some(Table::of(context, given.path.clone(), dict)),
        other => {
            // Never shown: a literal secret stands where a table was expected.
            context.fault(&given.path, kind(other), expected);
            None
        }
    }
}

pub(super) fn choose<T: Copy>(
    context: &Context<'_>,
    text: &Given<String>,
    choices: &[(&'static str, T)],
) -> Option<Given<T>> {
    if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text.value) {
        return Some(Given { value: *value, path: text.path.clone() });
    }
    context.unknown(&text.path, text, "one of the choices", choices.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    None
}

/// A value as it may be shown where a string is no secret.
pub(super) fn described(value: &Value) -> String {
    match value {
        Value::String(_, text) => shown(text),
        Value::Num(_, number) => number_text(*number),
        Value::Bool(_, flag) => flag.to_string(),
        other => kind(other).to_owned(),
    }
}

fn bytes_of(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text.get(..digits)?.parse().ok()?;
    let unit: u64 = match text.get(digits..)?.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::bytes_of;

    #[test]
    fn sizes_have_units_of_1024() {
        assert_eq!(bytes_of("16 MiB"), Some(16 << 20));
        assert_eq!(bytes_of("512"), Some(512));
        for bad in ["", "MiB", "1 MB", "-1", "1.5 MiB", "99999999999999999999", "18446744073709551615 GiB"] {
            assert_eq!(bytes_of(bad), None, "{bad:?} was taken");
        }
    }
}
