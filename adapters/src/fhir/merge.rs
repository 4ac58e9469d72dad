//! Several searchsets as one: the answer to a search that a vendor takes only in parts.

use std::{borrow::Cow, collections::HashMap};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::compartment::{Unreadable, is_object};

/// What came of the parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The searchset, in JSON. It has no `next`; a `total` only where `next` is empty and no part was refused.
    pub bundle: Vec<u8>,
    /// The parts' own further pages, as the EHR named them: they are to be fetched and merged too, else the
    /// answer is not the whole one.
    pub next: Vec<String>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(rename = "resourceType", borrow)]
    resource_type: Cow<'a, str>,
    #[serde(rename = "type", default, borrow)]
    kind: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    link: Vec<Link<'a>>,
    #[serde(default, borrow)]
    entry: Vec<&'a RawValue>,
}

#[derive(Deserialize, Serialize)]
struct Link<'a> {
    #[serde(default)]
    relation: Cow<'a, str>,
    #[serde(default)]
    url: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(rename = "fullUrl", default, borrow)]
    full_url: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    resource: Option<Resource<'a>>,
    #[serde(default, borrow)]
    search: Option<Search<'a>>,
}

#[derive(Deserialize)]
struct Resource<'a> {
    #[serde(rename = "resourceType", borrow)]
    resource_type: Cow<'a, str>,
    #[serde(default, borrow)]
    id: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Search<'a> {
    #[serde(default, borrow)]
    mode: Option<Cow<'a, str>>,
}

#[derive(Serialize)]
struct Searchset<'a> {
    #[serde(rename = "resourceType")]
    resource_type: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<usize>,
    link: [Link<'a>; 1],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    entry: Vec<Kept<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Kept<'a> {
    AsItCame(&'a RawValue),
    Outcome { resource: &'a RawValue, search: Mode },
}

#[derive(Serialize)]
struct Mode {
    mode: &'static str,
}

/// Merges searchsets; each resource stands once, as a match if any part has it as one. OperationOutcomes among
/// the entries all stay. A part that is an OperationOutcome itself becomes such an entry, so that the app sees
/// that the answer may not be whole.
pub fn merge(parts: &[&[u8]], self_url: &str) -> Result<Merged, Unreadable> {
    let mut entries: Vec<Kept<'_>> = Vec::new();
    let mut places: HashMap<String, (usize, bool)> = HashMap::new();
    let mut next = Vec::new();
    let (mut matches, mut is_whole) = (0, true);
    for bytes in parts {
        let part: Part<'_> = read(bytes)?;
        if part.resource_type == "OperationOutcome" {
            is_whole = false;
            let resource = serde_json::from_slice(bytes).map_err(|_| Unreadable)?;
            entries.push(Kept::Outcome { resource, search: Mode { mode: "outcome" } });
            continue;
        }
        if part.resource_type != "Bundle" || part.kind.as_deref() != Some("searchset") {
            return Err(Unreadable);
        }
        next.extend(part.link.into_iter().filter(|link| link.relation == "next").map(|link| link.url.into_owned()));
        for raw in part.entry {
            let entry: Entry<'_> = read(raw.get().as_bytes())?;
            let is_match = entry.is_match();
            let Some(key) = entry.key() else {
                matches += usize::from(is_match);
                entries.push(Kept::AsItCame(raw));
                continue;
            };
            match places.get_mut(&key) {
                None => {
                    places.insert(key, (entries.len(), is_match));
                    matches += usize::from(is_match);
                    entries.push(Kept::AsItCame(raw));
                }
                Some((place, was_match)) if is_match && !*was_match => {
                    *was_match = true;
                    matches += 1;
                    if let Some(kept) = entries.get_mut(*place) {
                        *kept = Kept::AsItCame(raw);
                    }
                }
                Some(_) => {}
            }
        }
    }
    let searchset = Searchset {
        resource_type: "Bundle",
        kind: "searchset",
        total: (is_whole && next.is_empty()).then_some(matches),
        link: [Link { relation: "self".into(), url: self_url.into() }],
        entry: entries,
    };
    let bundle = serde_json::to_vec(&searchset).map_err(|_| Unreadable)?;
    Ok(Merged { bundle, next })
}

fn read<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, Unreadable> {
    if !is_object(text) {
        return Err(Unreadable);
    }
    serde_json::from_slice(text).map_err(|_| Unreadable)
}

impl Entry<'_> {
    fn is_outcome(&self) -> bool {
        let mode = self.search.as_ref().and_then(|search| search.mode.as_deref());
        mode == Some("outcome")
            || self.resource.as_ref().is_some_and(|resource| resource.resource_type == "OperationOutcome")
    }

    fn is_match(&self) -> bool {
        let mode = self.search.as_ref().and_then(|search| search.mode.as_deref());
        !self.is_outcome() && mode != Some("include")
    }

    /// By what the same resource is known again; `None`: an outcome, or a resource without a name.
    fn key(&self) -> Option<String> {
        if self.is_outcome() {
            return None;
        }
        match self.resource.as_ref() {
            Some(Resource { resource_type, id: Some(id) }) => Some(format!("{resource_type}/{id}")),
            _ => self.full_url.as_ref().map(|url| url.clone().into_owned()),
        }
    }
}
