//! Vendors' profiles: `extends`, the operator's changes, the sites' overrides, and where each value is from.

use std::collections::{BTreeMap, BTreeSet};

use figment::{
    error::Kind,
    value::{Dict, Value},
};
use mantel_adapters::{
    profile::{DiscoverySource, Profile},
    site::VendorId,
};

use super::{
    fault::{Origin, shown},
    layers::{KeyPath, REPLACED_WHOLE, Step},
    profile_checks::{self, Checks},
    reader::{Context, Table, described, number_text, one_of, table},
};

/// A profile's values, each with its place. Lists are values.
#[derive(Clone)]
pub(super) enum Node {
    Value(Value, Origin),
    Table(BTreeMap<String, Node>),
}

impl Node {
    fn of(context: &Context<'_>, path: &KeyPath, value: &Value) -> Self {
        match value {
            Value::Dict(_, dict) => Self::table(context, path, dict),
            other => Self::Value(other.clone(), context.tree.places.near(path)),
        }
    }

    fn table(context: &Context<'_>, path: &KeyPath, dict: &Dict) -> Self {
        Self::Table(dict.iter().map(|(key, value)| (key.clone(), Self::of(context, &path.key(key), value))).collect())
    }

    /// Lays `upper` upon this one. Named rules are replaced whole, other tables key by key.
    fn overlay(&mut self, upper: &Self) {
        self.overlay_at(upper, &mut Vec::new());
    }

    fn overlay_at<'k>(&mut self, upper: &'k Self, at: &mut Vec<&'k str>) {
        let is_rule = matches!(at.as_slice(), [table, _] if REPLACED_WHOLE.contains(table));
        match (self, upper) {
            (Self::Table(lower), Self::Table(upper)) if !is_rule => {
                for (key, value) in upper {
                    at.push(key);
                    match lower.get_mut(key) {
                        Some(below) => below.overlay_at(value, at),
                        None => drop(lower.insert(key.clone(), value.clone())),
                    }
                    at.pop();
                }
            }
            (below, upper) => *below = upper.clone(),
        }
    }

    fn value(&self) -> Value {
        match self {
            Self::Value(value, _) => value.clone(),
            Self::Table(table) => {
                Value::from(table.iter().map(|(key, node)| (key.clone(), node.value())).collect::<Dict>())
            }
        }
    }

    /// Where the value at these keys was written.
    pub fn origin(&self, keys: &[&str]) -> Origin {
        match (self, keys) {
            (Self::Value(_, origin), _) => origin.clone(),
            (Self::Table(table), [first, rest @ ..]) => {
                table.get(*first).map_or(Origin::Default, |node| node.origin(rest))
            }
            (Self::Table(_), []) => Origin::Default,
        }
    }
}

/// A vendor: what it says itself, upon what it extends.
pub(super) struct Vendor {
    pub profile: Profile,
    pub node: Node,
}

pub(super) type Vendors = BTreeMap<VendorId, Vendor>;

/// The keys of a profile.
pub(super) fn keys() -> Vec<String> {
    match serde_json::to_value(Profile::default()) {
        Ok(serde_json::Value::Object(keys)) => keys.into_iter().map(|(key, _)| key).collect(),
        _ => Vec::new(),
    }
}

/// Reads all vendors. `declared` are the names that are there, faulty or not.
pub(super) fn read(context: &Context<'_>) -> (Vendors, BTreeSet<String>) {
    let top = context.top("vendors");
    let declared: BTreeSet<String> = top.entries().map(|(name, _)| name.to_owned()).collect();
    let mut own = BTreeMap::new();
    for (name, given) in top.entries() {
        let id = match name.parse::<VendorId>() {
            Ok(id) => id,
            Err(_) => {
                context.fault(&given.path, shown(name), NAME);
                continue;
            }
        };
        let Some(vendor) = table(context, &given, "a table with a vendor's profile") else { continue };
        let extends = vendor.text("extends", "the name of a vendor");
        if let Some(extends) = extends.as_ref().filter(|extends| !declared.contains(&extends.value)) {
            context.unknown(&extends.path, extends, "a vendor", declared.iter().map(String::as_str));
        }
        let mut dict = vendor.dict().cloned().unwrap_or_default();
        dict.remove("extends");
        let own_keys = checked(context, &vendor.path, dict, &["extends"]);
        own.insert(id, (extends.filter(|extends| declared.contains(&extends.value)), own_keys));
    }
    let vendors = own.keys().filter_map(|id| {
        let mut chain = vec![id];
        let mut at = id;
        while let Some((Some(extends), _)) = own.get(at) {
            let Some((next, _)) = extends.parse::<VendorId>().ok().and_then(|next| own.get_key_value(&next)) else {
                break;
            };
            if chain.contains(&next) {
                // Told at the vendors of the circle, not at those that lead into it.
                if next == id {
                    context.refuse(extends, "a vendor that does not extend this one in turn");
                }
                return None;
            }
            chain.push(next);
            at = next;
        }
        let mut node = Node::Table(BTreeMap::new());
        for (_, keys) in chain.into_iter().rev().filter_map(|id| own.get(id)) {
            node.overlay(keys);
        }
        Some((id.clone(), Vendor { profile: profile_of(context, &node, "vendors", id.as_str())?, node }))
    });
    (vendors.collect(), declared)
}

pub(super) const NAME: &str = "a name of 1 to 63 of a-z, 0-9 and -";

/// A site's profile: its vendor's with its own keys laid upon it.
pub(super) fn of_site(context: &Context<'_>, vendor: &Vendor, site: &Table<'_>, id: &str) -> Option<(Profile, Node)> {
    let mut node = vendor.node.clone();
    node.overlay(&own_of_site(context, site));
    let profile = profile_of(context, &node, "sites", id)?;
    let only_configured = profile.discovery == [DiscoverySource::Configuration];
    if only_configured && (profile.endpoints.authorize.is_none() || profile.endpoints.token.is_none()) {
        let expected = "endpoints.authorize and endpoints.token too, where discovery is the configuration alone";
        context.fault(&site.at("discovery"), "[\"configuration\"]", expected);
    }
    Some((profile, node))
}

/// The site's own keys of the profile, checked even where its vendor is unknown.
pub(super) fn own_of_site(context: &Context<'_>, site: &Table<'_>) -> Node {
    let known = keys();
    let mut dict = site.dict().cloned().unwrap_or_default();
    dict.retain(|key, _| known.contains(key));
    checked(context, &site.path, dict, &[])
}

fn profile_of(context: &Context<'_>, node: &Node, level: &str, id: &str) -> Option<Profile> {
    match node.value().deserialize::<Profile>() {
        Ok(profile) => Some(profile),
        Err(error) => {
            // Each layer alone was right: only a fault of ours leads here, and it must not go by in silence.
            let text = error.to_string().lines().collect::<Vec<_>>().join(" ");
            context.fault(&KeyPath::of(&[level, id]), "layers that do not fit together", text);
            None
        }
    }
}

/// A profile's keys as one table says them; what is faulty is told and taken out.
fn checked(context: &Context<'_>, path: &KeyPath, dict: Dict, beside: &[&str]) -> Node {
    let mut value = Value::from(dict);
    let mut cut = BTreeSet::new();
    let profile = loop {
        match value.deserialize::<Profile>() {
            Ok(profile) => break profile,
            Err(error) => {
                if !amend(context, path, &mut value, &error, &mut cut, beside) {
                    break Profile::default();
                }
            }
        }
    };
    let node = Node::of(context, path, &value);
    if let Value::Dict(_, dict) = &value {
        profile_checks::check(&Checks { context, path, dict }, &profile);
    }
    node
}

/// Tells one fault of serde's and cuts it out of the value (or turns a variable's number into a text);
/// `false` if nothing was found to cut.
fn amend(
    context: &Context<'_>,
    base: &KeyPath,
    value: &mut Value,
    error: &figment::Error,
    cut: &mut BTreeSet<KeyPath>,
    beside: &[&str],
) -> bool {
    let mut path = located(base, value, &error.path);
    if let Kind::UnknownField(name, _) = &error.kind
        && path.0.last() != Some(&Step::Key(name.clone()))
    {
        path = path.key(name);
    }
    let relative: Vec<Step> = path.0.iter().skip(base.0.len()).cloned().collect();
    let at = find(value, &relative).cloned();
    let given = at.as_ref().map_or_else(|| "nothing".to_owned(), described);
    let path = as_written(path, cut);
    match &error.kind {
        Kind::MissingField(name) => {
            let missing = path.key(name);
            // What was cut a moment ago has been told already.
            if !cut.contains(&missing) {
                context.fault(&missing, "nothing", "this key, without which the table says nothing");
            }
        }
        Kind::UnknownField(name, known) => {
            let known: Vec<&str> =
                known.iter().copied().chain(beside.iter().copied().filter(|_| relative.len() == 1)).collect();
            context.fault(&path, "an unknown key", one_of(name, "a known key", known));
        }
        Kind::UnknownVariant(name, known) => {
            context.fault(&path, shown(name), one_of(name, "one of the choices", known.iter().copied()));
        }
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => {
            if let Some(Value::Num(..) | Value::Bool(..)) = &at
                && expected.contains("string")
                && context.tree.places.is_environment(&path)
            {
                let text = match &at {
                    Some(Value::Num(_, number)) => number_text(*number),
                    Some(Value::Bool(_, flag)) => flag.to_string(),
                    _ => return false,
                };
                return replace(value, &relative, Value::from(text));
            }
            context.fault(&path, given, in_words(expected));
        }
        Kind::Message(text) => {
            let expected = text.rsplit_once(": expected ").map_or(text.as_str(), |(_, expected)| expected);
            context.fault(&path, given, expected.lines().collect::<Vec<_>>().join(" "));
        }
        other => context.fault(&path, given, other.to_string().lines().collect::<Vec<_>>().join(" ")),
    }
    cut.insert(path);
    remove(value, &relative)
}

/// The path with the number that a list's item had before others were cut.
fn as_written(path: KeyPath, cut: &BTreeSet<KeyPath>) -> KeyPath {
    let (Some(Step::Index(index)), Some(list)) = (path.0.last(), path.parent()) else { return path };
    let mut written = *index;
    for before in cut.iter().filter(|before| before.parent().as_ref() == Some(&list)) {
        if matches!(before.0.last(), Some(Step::Index(gone)) if *gone <= written) {
            written += 1;
        }
    }
    list.index(written)
}

/// serde's words in an operator's.
fn in_words(expected: &str) -> String {
    match expected.trim() {
        "a boolean" => "true or false".into(),
        "a sequence" => "a list".into(),
        text if text.starts_with("enum ") => "a string".into(),
        "u16" | "u32" | "u64" => "a whole number".into(),
        text if text.starts_with("struct ") || text.starts_with("a map") || text.starts_with("map") => "a table".into(),
        text => text.lines().collect::<Vec<_>>().join(" "),
    }
}

fn located(base: &KeyPath, value: &Value, keys: &[String]) -> KeyPath {
    let mut path = base.clone();
    let mut at = Some(value);
    for key in keys {
        let (step, next) = match (at, key.parse::<usize>()) {
            (Some(Value::Array(_, values)), Ok(index)) => (Step::Index(index), values.get(index)),
            (Some(Value::Dict(_, dict)), _) => (Step::Key(key.clone()), dict.get(key)),
            _ => (Step::Key(key.clone()), None),
        };
        path = path.then(step);
        at = next;
    }
    path
}

fn find<'v>(value: &'v Value, steps: &[Step]) -> Option<&'v Value> {
    steps.iter().try_fold(value, |at, step| match (at, step) {
        (Value::Dict(_, dict), Step::Key(key)) => dict.get(key),
        (Value::Array(_, values), Step::Index(index)) => values.get(*index),
        _ => None,
    })
}

fn find_mut<'v>(value: &'v mut Value, steps: &[Step]) -> Option<&'v mut Value> {
    steps.iter().try_fold(value, |at, step| match (at, step) {
        (Value::Dict(_, dict), Step::Key(key)) => dict.get_mut(key),
        (Value::Array(_, values), Step::Index(index)) => values.get_mut(*index),
        _ => None,
    })
}

fn replace(value: &mut Value, steps: &[Step], by: Value) -> bool {
    find_mut(value, steps).map(|at| *at = by).is_some()
}

/// Cuts the innermost part of the path that is there.
fn remove(value: &mut Value, steps: &[Step]) -> bool {
    for end in (1..=steps.len()).rev() {
        let (Some(last), Some(above)) = (steps.get(end - 1), steps.get(..end - 1)) else { continue };
        let gone = match (find_mut(value, above), last) {
            (Some(Value::Dict(_, dict)), Step::Key(key)) => dict.remove(key).is_some(),
            (Some(Value::Array(_, values)), Step::Index(index)) if *index < values.len() => {
                values.remove(*index);
                true
            }
            _ => false,
        };
        if gone {
            return true;
        }
    }
    false
}
