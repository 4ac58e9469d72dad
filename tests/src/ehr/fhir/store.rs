//! A simulated EHR's records, every version of them, in memory.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{compartment, date, ids};
use crate::ehr::contract::Vendor;

/// The system of the tag that says whose a resource is, so that a test sees another patient's data.
pub const MARK_SYSTEM: &str = "urn:mantel:simulated-ehr:patient";

/// What made a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Post,
    Put,
    Patch,
    Delete,
}

impl Verb {
    pub const fn text(self) -> &'static str {
        match self {
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Version {
    pub number: u64,
    /// Milliseconds since 1970.
    pub modified: i64,
    pub verb: Verb,
    /// None: deleted.
    pub resource: Option<Arc<Value>>,
}

impl Version {
    pub fn etag(&self) -> String {
        format!("W/\"{}\"", self.number)
    }
}

/// A cheap copy, so that a transaction can be undone: resources are shared.
#[derive(Clone)]
pub struct Store {
    vendor: Vendor,
    base: String,
    shelves: BTreeMap<String, Shelf>,
    marks: BTreeMap<String, String>,
    /// Binary id to the patients whose documents name it.
    binaries: HashMap<String, Vec<String>>,
    merged: BTreeMap<String, String>,
    created: u64,
}

#[derive(Clone, Default)]
struct Shelf {
    order: Vec<String>,
    records: HashMap<String, Vec<Version>>,
}

impl Store {
    pub fn new(vendor: Vendor, base: &str) -> Self {
        Self {
            vendor,
            base: base.to_owned(),
            shelves: BTreeMap::new(),
            marks: BTreeMap::new(),
            binaries: HashMap::new(),
            merged: BTreeMap::new(),
            created: 0,
        }
    }

    pub fn set_mark(&mut self, patient: &str, mark: String) {
        self.marks.insert(patient.to_owned(), mark);
    }

    /// The code of the tag that every resource of this patient carries.
    pub fn mark(&self, patient: &str) -> Option<&str> {
        self.marks.get(patient).map(String::as_str)
    }

    pub fn set_merged(&mut self, from: &str, into: &str) {
        self.merged.insert(from.to_owned(), into.to_owned());
    }

    pub fn merged_into(&self, patient: &str) -> Option<&str> {
        self.merged.get(patient).map(String::as_str)
    }

    pub fn merged(&self) -> Option<(&str, &str)> {
        self.merged.first_key_value().map(|(from, into)| (from.as_str(), into.as_str()))
    }

    pub fn types(&self) -> impl Iterator<Item = &str> {
        self.shelves.keys().map(String::as_str)
    }

    pub fn history(&self, ty: &str, id: &str) -> &[Version] {
        self.shelves.get(ty).and_then(|shelf| shelf.records.get(id)).map_or(&[], Vec::as_slice)
    }

    /// The newest version, deleted or not.
    pub fn newest(&self, ty: &str, id: &str) -> Option<&Version> {
        self.history(ty, id).last()
    }

    pub fn live(&self, ty: &str, id: &str) -> Option<&Arc<Value>> {
        self.newest(ty, id).and_then(|version| version.resource.as_ref())
    }

    /// All that live, in the order in which they came.
    pub fn all<'a>(&'a self, ty: &str) -> impl Iterator<Item = (&'a str, &'a Version, &'a Arc<Value>)> + use<'a> {
        self.shelves.get(ty).into_iter().flat_map(|shelf| {
            shelf.order.iter().filter_map(|id| {
                let version = shelf.records.get(id)?.last()?;
                Some((id.as_str(), version, version.resource.as_ref()?))
            })
        })
    }

    pub fn ids<'a>(&'a self, ty: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        self.shelves.get(ty).into_iter().flat_map(|shelf| shelf.order.iter().map(String::as_str))
    }

    /// The patients a resource belongs to.
    pub fn owners(&self, resource: &Value) -> Vec<String> {
        let mut owners = compartment::patients(&self.base, resource);
        if resource.get("resourceType").and_then(Value::as_str) == Some("Binary") {
            let id = resource.get("id").and_then(Value::as_str).unwrap_or_default();
            let context = resource.pointer("/securityContext/reference").and_then(Value::as_str);
            if let Some(("Patient", patient)) = context.and_then(|text| compartment::local(&self.base, text)) {
                owners.push(patient.to_owned());
            }
            owners.extend(self.binaries.get(id).into_iter().flatten().cloned());
        }
        owners
    }

    pub fn next_id(&mut self, ty: &str) -> String {
        self.created += 1;
        ids::fresh(self.vendor, ty, self.created)
    }

    /// Writes a new version under `id`, which need not exist yet.
    pub fn write(&mut self, ty: &str, id: &str, mut resource: Value, verb: Verb, now: i64) -> Version {
        let number = self.next_number(ty, id);
        if let Some(members) = resource.as_object_mut() {
            members.insert("id".to_owned(), json!(id));
        }
        let owners = self.owners(&resource);
        self.stamp(&mut resource, &owners, number, now);
        if ty == "DocumentReference" {
            for url in compartment::collect(&resource, "content.attachment.url") {
                if let Some(("Binary", binary)) = url.as_str().and_then(|text| compartment::local(&self.base, text)) {
                    self.binaries.entry(binary.to_owned()).or_default().extend(owners.iter().cloned());
                }
            }
        }
        self.push(ty, id, Version { number, modified: now, verb, resource: Some(Arc::new(resource)) })
    }

    pub fn delete(&mut self, ty: &str, id: &str, now: i64) -> Version {
        let number = self.next_number(ty, id);
        self.push(ty, id, Version { number, modified: now, verb: Verb::Delete, resource: None })
    }

    fn next_number(&self, ty: &str, id: &str) -> u64 {
        let first = u64::from(self.vendor != Vendor::Oracle);
        self.newest(ty, id).map_or(first, |version| version.number + 1)
    }

    fn push(&mut self, ty: &str, id: &str, version: Version) -> Version {
        let shelf = self.shelves.entry(ty.to_owned()).or_default();
        if !shelf.records.contains_key(id) {
            shelf.order.push(id.to_owned());
        }
        shelf.records.entry(id.to_owned()).or_default().push(version.clone());
        version
    }

    /// Epic tells neither version nor date, athenaOne no version.
    fn stamp(&self, resource: &mut Value, owners: &[String], number: u64, now: i64) {
        let Some(members) = resource.as_object_mut() else { return };
        let meta = members.entry("meta").or_insert_with(|| json!({}));
        let Some(meta) = meta.as_object_mut() else { return };
        meta.shift_remove("versionId");
        meta.shift_remove("lastUpdated");
        if self.vendor != Vendor::Epic {
            meta.insert("lastUpdated".to_owned(), json!(date::instant(now)));
            if self.vendor != Vendor::Athena {
                meta.insert("versionId".to_owned(), json!(number.to_string()));
            }
        }
        let Some(tags) = meta.entry("tag").or_insert_with(|| json!([])).as_array_mut() else { return };
        tags.retain(|tag| tag.get("system").and_then(Value::as_str) != Some(MARK_SYSTEM));
        for owner in owners {
            if let Some(mark) = self.marks.get(owner) {
                tags.push(json!({"system": MARK_SYSTEM, "code": mark}));
            }
        }
    }
}
