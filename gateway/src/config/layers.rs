//! The layers of a configuration, lowest first: the built-in `vendors.toml`, the operator's files, the
//! environment; and for each value the place where it was written.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use figment::{
    Figment, Metadata, Profile, Provider,
    value::{Dict, Map, Value},
};
use toml_edit::{Document, Item, TableLike};

use super::{
    fault::{Fault, Note, Origin},
    sources::Sources,
};

const BUILT_IN: &str = include_str!("../../../vendors.toml");

/// What a variable's name begins with; `__` parts the keys.
const PREFIX: &str = "MANTEL_";

/// Tables whose entries have names of `[a-z0-9-]`: in a variable `_` stands for `-` there.
const NAMED: [&str; 5] = ["vendors", "keys", "registrations", "sites", "apps"];

/// Deeper than any key; what walks the tree is recursive.
const DEEPEST: usize = 24;

/// One step of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// A dotted key: `sites.general-hospital.registrations[0]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KeyPath(pub Vec<Step>);

impl KeyPath {
    pub fn of(keys: &[&str]) -> Self {
        Self(keys.iter().map(|key| Step::Key((*key).to_owned())).collect())
    }

    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.then(Step::Key(key.to_owned()))
    }

    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.then(Step::Index(index))
    }

    #[must_use]
    pub fn then(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    pub fn parent(&self) -> Option<Self> {
        let (_, above) = self.0.split_last()?;
        Some(Self(above.to_vec()))
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => {
                    let bare = !key.is_empty()
                        && key.len() <= 128
                        && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
                    let dot = if n == 0 { "" } else { "." };
                    if bare { write!(f, "{dot}{key}")? } else { write!(f, "{dot}{}", super::fault::shown(key))? }
                }
            }
        }
        Ok(())
    }
}

/// One layer: its values, and the place of each key.
struct Layer {
    name: String,
    /// To what its relative file names are relative.
    directory: PathBuf,
    environment: bool,
    values: Dict,
    places: BTreeMap<KeyPath, Origin>,
}

impl Provider for &Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

/// All layers as one.
pub(super) struct Tree {
    pub root: Dict,
    pub places: Places,
}

/// Where each key was written.
pub(super) struct Places {
    /// Lowest first.
    layers: Vec<Layered>,
    main: Origin,
}

struct Layered {
    directory: PathBuf,
    environment: bool,
    places: BTreeMap<KeyPath, Origin>,
}

impl Places {
    /// Where exactly this key was written; the highest layer's word counts.
    pub fn exact(&self, path: &KeyPath) -> Option<&Origin> {
        self.layers.iter().rev().find_map(|layer| layer.places.get(path))
    }

    /// Where the key, or else the nearest table around it, was written.
    pub fn near(&self, path: &KeyPath) -> Origin {
        let mut at = path.clone();
        loop {
            if let Some(origin) = self.exact(&at) {
                return origin.clone();
            }
            match at.parent() {
                Some(above) => at = above,
                None => return self.main.clone(),
            }
        }
    }

    fn layer(&self, path: &KeyPath) -> Option<(usize, &Layered)> {
        self.layers.iter().enumerate().rev().find(|(_, layer)| layer.places.contains_key(path))
    }

    pub fn is_environment(&self, path: &KeyPath) -> bool {
        self.layer(path).is_some_and(|(_, layer)| layer.environment)
    }

    /// To what a file named there is relative.
    pub fn directory(&self, path: &KeyPath) -> PathBuf {
        self.layer(path).map(|(_, layer)| layer.directory.clone()).unwrap_or_default()
    }

    /// Which layer last wrote the table as such; the environment only amends single keys.
    fn written_by(&self, path: &KeyPath) -> usize {
        let mut files = self.layers.iter().enumerate().rev().filter(|(_, layer)| !layer.environment);
        files.find(|(_, layer)| layer.places.contains_key(path)).map_or(0, |(index, _)| index)
    }
}

/// Reads the layers and lays them upon each other.
pub(super) fn read(sources: &Sources, faults: &mut Vec<Fault>, notes: &mut Vec<Note>) -> Tree {
    let mut layers = vec![file_layer("built-in vendors.toml", None, BUILT_IN.as_bytes(), faults)];
    let mut main = Origin::Default;
    for path in &sources.paths {
        for file in files_of(path, sources, faults) {
            let name = display(&file);
            main = Origin::File { path: Arc::from(name.as_str()), line: None };
            match sources.files.read(&file) {
                Ok(bytes) => layers.push(file_layer(&name, Some(&file), &bytes, faults)),
                Err(error) => faults.push(unreadable(&name, &error, "a file that can be read")),
            }
        }
    }
    let named = layers.iter().flat_map(|layer| variables_in(&layer.values)).collect();
    layers.push(environment_layer(&sources.environment, &named, notes));

    let figment = layers.iter().fold(Figment::new(), |figment, layer| figment.merge(layer));
    let mut root = figment.extract::<Dict>().unwrap_or_default();
    let layers = layers.into_iter().map(|Layer { directory, environment, places, .. }| Layered {
        directory,
        environment,
        places,
    });
    let places = Places { layers: layers.collect(), main };
    replace_named_rules(&mut root, &places);
    Tree { root, places }
}

fn display(path: &Path) -> String {
    let text = path.display().to_string();
    text.strip_prefix("./").map(str::to_owned).unwrap_or(text)
}

fn unreadable(name: &str, error: &io::Error, expected: &str) -> Fault {
    Fault {
        origin: Origin::File { path: Arc::from(name), line: None },
        key: String::new(),
        given: format!("what cannot be read ({})", error.kind()),
        expected: expected.to_owned(),
    }
}

/// The files that a path stands for, lowest first.
fn files_of(path: &Path, sources: &Sources, faults: &mut Vec<Fault>) -> Vec<PathBuf> {
    let files = &sources.files;
    let directory = if files.is_directory(path) {
        path.to_owned()
    } else if path.file_name().is_some_and(|name| name == "mantel.toml") {
        path.parent().unwrap_or(Path::new("")).to_owned()
    } else {
        return vec![path.to_owned()];
    };
    // `is_directory("")` and `list("")` mean nothing to the system.
    let directory = if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory };
    let entries = match files.list(&directory) {
        Ok(entries) => entries,
        Err(error) => {
            faults.push(unreadable(&display(path), &error, "a configuration directory or file"));
            return Vec::new();
        }
    };
    let has = |name: &str| entries.iter().find(|entry| entry.file_name().is_some_and(|file| file == name)).cloned();
    let mut found: Vec<PathBuf> = has("vendors.toml").into_iter().collect();
    let sites = directory.join("sites.d");
    if files.is_directory(&sites) {
        match files.list(&sites) {
            // Hidden ones are what editors and mounted ConfigMaps leave there.
            Ok(mut entries) => {
                entries.retain(|file| {
                    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                    name.ends_with(".toml") && !name.starts_with('.')
                });
                entries.sort();
                found.extend(entries);
            }
            Err(error) => faults.push(unreadable(&display(&sites), &error, "a directory of sites")),
        }
    }
    found.extend(has("mantel.toml"));
    if found.is_empty() || (!files.is_directory(path) && has("mantel.toml").is_none()) {
        faults.push(Fault {
            origin: Origin::File { path: Arc::from(display(path).as_str()), line: None },
            key: String::new(),
            given: "no configuration there".into(),
            expected: "a mantel.toml, or a directory that holds one".into(),
        });
        return Vec::new();
    }
    found
}

fn file_layer(name: &str, file: Option<&Path>, bytes: &[u8], faults: &mut Vec<Fault>) -> Layer {
    let path: Arc<str> = Arc::from(name);
    let origin = |line: Option<usize>| match (file, line) {
        (None, line) => Origin::BuiltIn { line: line.unwrap_or(1) },
        (Some(_), line) => Origin::File { path: path.clone(), line },
    };
    let mut layer = Layer {
        name: name.to_owned(),
        directory: file.and_then(Path::parent).unwrap_or(Path::new("")).to_owned(),
        environment: false,
        values: Dict::new(),
        places: BTreeMap::new(),
    };
    let mut refuse = |line, given: String, expected: &str| {
        faults.push(Fault { origin: origin(line), key: String::new(), given, expected: expected.to_owned() });
    };
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let line = 1 + bytes.iter().take(error.valid_up_to()).filter(|byte| **byte == b'\n').count();
            refuse(Some(line), "bytes that are not UTF-8".into(), "TOML, in UTF-8");
            return layer;
        }
    };
    let lines = Lines::of(text);
    if let Some(line) = too_deep(text) {
        refuse(Some(line), "a key of too many parts".into(), "no table deeper than the keys go");
        return layer;
    }
    match Document::parse(text) {
        Ok(document) => {
            let mut walk = Walk { place: &|line| origin(Some(line)), lines: &lines, places: &mut layer.places };
            layer.values = walk.table(&KeyPath::default(), document.as_table());
        }
        // Only the message: the error's own display quotes the line, which may hold a secret.
        Err(error) => {
            let line = error.span().map(|span| lines.at(span.start));
            let message = error.message().lines().map(str::trim).collect::<Vec<_>>().join("; ");
            refuse(line, "what is no TOML".into(), &format!("TOML ({message})"));
        }
    }
    layer
}

/// Dotted keys nest without a bound in the parser, and dropping its tree is recursive.
fn too_deep(text: &str) -> Option<usize> {
    const DOTS: usize = 500;
    let dots = |line: &str| line.split(['"', '\'']).step_by(2).map(|bare| bare.matches('.').count()).sum::<usize>();
    text.lines().position(|line| dots(line) > DOTS).map(|line| line + 1)
}

/// Offsets of the lines of a text.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(std::iter::once(0).chain(memchr::memchr_iter(b'\n', text.as_bytes()).map(|end| end + 1)).collect())
    }

    fn at(&self, offset: usize) -> usize {
        self.0.partition_point(|start| *start <= offset).max(1)
    }
}

/// From TOML's tree to figment's, noting places.
struct Walk<'w> {
    place: &'w dyn Fn(usize) -> Origin,
    lines: &'w Lines,
    places: &'w mut BTreeMap<KeyPath, Origin>,
}

impl Walk<'_> {
    fn table(&mut self, at: &KeyPath, table: &dyn TableLike) -> Dict {
        if at.0.len() > DEEPEST {
            return Dict::new();
        }
        let mut dict = Dict::new();
        for (key, item) in table.iter() {
            let path = at.key(key);
            if let Some(span) = table.key(key).and_then(toml_edit::Key::span) {
                self.places.insert(path.clone(), (self.place)(self.lines.at(span.start)));
            }
            if let Some(value) = self.item(&path, item) {
                dict.insert(key.to_owned(), value);
            }
        }
        dict
    }

    fn item(&mut self, at: &KeyPath, item: &Item) -> Option<Value> {
        if let Some(tables) = item.as_array_of_tables() {
            let tables = tables.iter().enumerate().map(|(n, table)| {
                let path = at.index(n);
                self.note(&path, table.span());
                Value::from(self.table(&path, table))
            });
            return Some(Value::from(tables.collect::<Vec<_>>()));
        }
        if let Some(table) = item.as_table() {
            return Some(Value::from(self.table(at, table)));
        }
        item.as_value().map(|value| self.value(at, value))
    }

    fn value(&mut self, at: &KeyPath, value: &toml_edit::Value) -> Value {
        use toml_edit::Value as Toml;
        match value {
            Toml::String(text) => Value::from(text.value().as_str()),
            Toml::Integer(number) => Value::from(*number.value()),
            Toml::Float(number) => Value::from(*number.value()),
            Toml::Boolean(flag) => Value::from(*flag.value()),
            Toml::Datetime(date) => Value::from(date.value().to_string()),
            Toml::Array(values) => {
                let values = values.iter().enumerate().map(|(n, value)| {
                    let path = at.index(n);
                    self.note(&path, value.span());
                    if path.0.len() > DEEPEST { Value::from("") } else { self.value(&path, value) }
                });
                Value::from(values.collect::<Vec<_>>())
            }
            Toml::InlineTable(table) => Value::from(self.table(at, table)),
        }
    }

    fn note(&mut self, path: &KeyPath, span: Option<std::ops::Range<usize>>) {
        if let Some(span) = span {
            self.places.insert(path.clone(), (self.place)(self.lines.at(span.start)));
        }
    }
}

/// The variables that files name as `{ env = "…" }`: those are no keys, whatever they are called.
fn variables_in(values: &Dict) -> Vec<String> {
    fn walk(value: &Value, into: &mut Vec<String>) {
        match value {
            Value::Dict(_, dict) => {
                into.extend(dict.get("env").and_then(Value::as_str).map(str::to_owned));
                dict.values().for_each(|value| walk(value, into));
            }
            Value::Array(_, values) => values.iter().for_each(|value| walk(value, into)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    values.values().for_each(|value| walk(value, &mut found));
    found
}

fn environment_layer(variables: &[(String, String)], named: &BTreeSet<String>, notes: &mut Vec<Note>) -> Layer {
    let mut layer = Layer {
        name: "environment".into(),
        directory: PathBuf::new(),
        environment: true,
        values: Dict::new(),
        places: BTreeMap::new(),
    };
    for (variable, text) in variables {
        let Some(rest) = variable.strip_prefix(PREFIX).filter(|_| !named.contains(variable)) else { continue };
        // Every key stands in a table. Kubernetes gives `MANTEL_PORT` and the like to all pods beside
        // a Service that is named mantel: those must not keep the gateway from starting.
        if !rest.contains("__") {
            notes.push(Note {
                origin: Origin::Environment(variable.clone()),
                key: String::new(),
                text: format!("names no key and is left aside; a key's variable has the form {PREFIX}TABLE__KEY"),
            });
            continue;
        }
        let mut keys: Vec<String> = rest.split("__").map(str::to_ascii_lowercase).collect();
        if keys.len() > DEEPEST {
            continue;
        }
        let is_named = keys.first().is_some_and(|table| NAMED.contains(&table.as_str()));
        if let Some(name) = keys.get_mut(1).filter(|_| is_named) {
            *name = name.replace('_', "-");
        }
        let place = |_| Origin::Environment(variable.clone());
        let path = KeyPath::of(&keys.iter().map(String::as_str).collect::<Vec<_>>());
        let mut walk = Walk { place: &place, lines: &Lines(vec![0]), places: &mut layer.places };
        let value = variable_value(text, &path, &mut walk);
        for n in 1..=path.0.len() {
            let above = KeyPath(path.0.iter().take(n).cloned().collect());
            layer.places.entry(above).or_insert_with(|| place(0));
        }
        insert(&mut layer.values, &keys, value);
    }
    layer
}

/// A variable's text as TOML has it (a number, a list, `true`), else as a string: `00123` stays one.
fn variable_value(text: &str, path: &KeyPath, walk: &mut Walk<'_>) -> Value {
    let text_of_value = format!("value = {text}");
    match Document::parse(text_of_value.as_str()) {
        Ok(document) if document.as_table().iter().count() == 1 => {
            document.get("value").and_then(|item| walk.item(path, item)).unwrap_or_else(|| Value::from(text))
        }
        _ => Value::from(text),
    }
}

fn insert(dict: &mut Dict, keys: &[String], value: Value) {
    match keys {
        [] => {}
        [last] => {
            dict.insert(last.clone(), value);
        }
        [first, rest @ ..] => {
            let inner = dict.entry(first.clone()).or_insert_with(|| Value::from(Dict::new()));
            if !matches!(inner, Value::Dict(..)) {
                *inner = Value::from(Dict::new());
            }
            if let Value::Dict(_, inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

/// The tables of a profile whose entries are replaced whole: a key of the old rule that stayed behind
/// would narrow the new one unseen.
pub(super) const REPLACED_WHOLE: [&str; 2] = ["errors", "fan_out"];

fn replace_named_rules(root: &mut Dict, places: &Places) {
    for level in ["vendors", "sites"] {
        let Some(Value::Dict(_, entries)) = root.get_mut(level) else { continue };
        for (entry, value) in entries.iter_mut() {
            let Value::Dict(_, keys) = value else { continue };
            for table in REPLACED_WHOLE {
                let Some(Value::Dict(_, rules)) = keys.get_mut(table) else { continue };
                for (name, rule) in rules.iter_mut() {
                    let Value::Dict(_, rule) = rule else { continue };
                    let path = KeyPath::of(&[level, entry, table, name]);
                    let writer = places.written_by(&path);
                    rule.retain(|key, _| places.layer(&path.key(key)).is_none_or(|(layer, _)| layer >= writer));
                }
            }
        }
    }
}
