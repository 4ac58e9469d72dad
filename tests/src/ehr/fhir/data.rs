//! Synthetic patients, dressed for one vendor: its ids, its addresses, its marks.

use std::{
    collections::{BTreeMap, HashMap},
    sync::LazyLock,
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::{
    ids::{self, Place},
    store::{Store, Verb},
};
use crate::ehr::contract::Vendor;

/// When the first of the loaded records was last changed; each next one a minute later.
pub const LOADED: i64 = 1_780_272_000_000;

macro_rules! files {
    ($($name:literal),* $(,)?) => { [$(include_str!(concat!("../../../data/patients/", $name, ".ndjson"))),*] };
}

/// Patients come first: an owner is known before what it owns; documents before the Binaries they name.
static FILES: [&str; 18] = files![
    "Patient",
    "Organization",
    "Practitioner",
    "RelatedPerson",
    "Encounter",
    "Condition",
    "AllergyIntolerance",
    "CareTeam",
    "Goal",
    "CarePlan",
    "MedicationRequest",
    "Immunization",
    "Procedure",
    "Observation",
    "DiagnosticReport",
    "ImagingStudy",
    "DocumentReference",
    "Binary",
];

static SOURCE: LazyLock<Result<Vec<Value>, String>> = LazyLock::new(|| {
    FILES
        .iter()
        .flat_map(|file| file.lines())
        .map(|line| serde_json::from_str(line).map_err(|error| format!("embedded patients: {error}")))
        .collect()
});

/// Loads all records as `vendor` would hold them below `base`.
///
/// # Errors
/// When the embedded records are no JSON, have no id, or two would get the same one.
pub fn load(vendor: Vendor, base: &str) -> anyhow::Result<Store> {
    let source = SOURCE.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    let names = names(vendor, source)?;
    let documents: HashMap<String, &Value> = source
        .iter()
        .filter(|resource| type_of(resource) == "Binary")
        .map(|resource| (key(resource), resource))
        .collect();
    let mut store = Store::new(vendor, base);
    let mut patients = 0;
    let mut now = LOADED;
    for resource in source {
        let (ty, id) = (type_of(resource), names.get(&key(resource)).context("a record without a name")?);
        let mut dressed = resource.clone();
        if vendor == Vendor::Athena {
            inline(&mut dressed, &documents);
        }
        rename(&mut dressed, &names, base);
        categorize(&mut dressed, vendor);
        if ty == "Patient" {
            patients += 1;
            store.set_mark(id, format!("{}-patient-{patients:02}", vendor.text()));
        }
        store.write(ty, id, dressed, Verb::Post, now);
        now += 60_000;
    }
    merge(&mut store, vendor, now);
    Ok(store)
}

fn type_of(resource: &Value) -> &str {
    resource.get("resourceType").and_then(Value::as_str).unwrap_or_default()
}

fn key(resource: &Value) -> String {
    format!("{}/{}", type_of(resource), resource.get("id").and_then(Value::as_str).unwrap_or_default())
}

/// `Type/id` in the source to this vendor's id.
fn names(vendor: Vendor, source: &[Value]) -> anyhow::Result<HashMap<String, String>> {
    let mut counts = BTreeMap::<&str, u64>::new();
    let mut names = HashMap::new();
    let mut taken = std::collections::HashSet::new();
    for (serial, resource) in (0..).zip(source) {
        let ty = type_of(resource);
        let id = resource.get("id").and_then(Value::as_str).context("a record without an id")?;
        let nth = counts.entry(ty).or_default();
        let name = ids::style(vendor, Place { ty, source: id, nth: *nth, serial });
        *nth += 1;
        if !taken.insert(format!("{ty}/{name}")) {
            bail!("two records of type {ty} would both be {name}");
        }
        names.insert(key(resource), name);
    }
    Ok(names)
}

/// References become this vendor's; what an attachment names is absolute, as EHRs write it.
fn rename(value: &mut Value, names: &HashMap<String, String>, base: &str) {
    match value {
        Value::Object(members) => {
            for (member, inner) in members {
                let Value::String(text) = inner else {
                    rename(inner, names, base);
                    continue;
                };
                let Some(name) = names.get(text.as_str()) else { continue };
                let ty = text.split('/').next().unwrap_or_default();
                match member.as_str() {
                    "reference" => *text = format!("{ty}/{name}"),
                    "url" => *text = format!("{base}/{ty}/{name}"),
                    _ => {}
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, names, base)),
        _ => {}
    }
}

/// athenaOne sends documents inside the DocumentReference (`vendors.md` §3).
fn inline(resource: &mut Value, documents: &HashMap<String, &Value>) {
    let Some(contents) = resource.get_mut("content").and_then(Value::as_array_mut) else { return };
    for attachment in contents.iter_mut().filter_map(|content| content.get_mut("attachment")?.as_object_mut()) {
        let document = attachment.get("url").and_then(Value::as_str).and_then(|url| documents.get(url));
        if let Some(data) = document.and_then(|binary| binary.get("data")).cloned() {
            attachment.shift_remove("url");
            attachment.insert("data".to_owned(), data);
        }
    }
}

/// US Core's categories, which Synthea of 2019 did not write; Epic's CarePlans have one that it can be asked for.
fn categorize(resource: &mut Value, vendor: Vendor) {
    let category = match type_of(resource) {
        "Condition" => {
            let active = resource.pointer("/clinicalStatus/coding/0/code").and_then(Value::as_str) == Some("active");
            let code = if active { "problem-list-item" } else { "encounter-diagnosis" };
            json!({"coding": [{"system": "http://terminology.hl7.org/CodeSystem/condition-category", "code": code}]})
        }
        "CarePlan" if vendor == Vendor::Epic => {
            json!({"coding": [{"system": "http://snomed.info/sct", "code": "38717003", "display": "Longitudinal care plan"}]})
        }
        _ => return,
    };
    if let Some(members) = resource.as_object_mut()
        && let Some(categories) = members.entry("category").or_insert_with(|| json!([])).as_array_mut()
    {
        categories.push(category);
    }
}

/// One patient was entered twice: Epic redirects, Oracle shows the inactive record (`vendors.md` B, Epic 10; §2).
fn merge(store: &mut Store, vendor: Vendor, now: i64) {
    let Some(survivor) = store.ids("Patient").next().map(str::to_owned) else { return };
    let from = ids::fresh(vendor, "Patient", 0);
    match vendor {
        Vendor::Epic => store.set_merged(&from, &survivor),
        Vendor::Oracle => {
            let record = json!({
                "resourceType": "Patient",
                "active": false,
                "name": [{"use": "official", "family": "Entered", "given": ["Twice"]}],
                "link": [{"other": {"reference": format!("Patient/{survivor}")}, "type": "replaced-by"}],
            });
            store.write("Patient", &from, record, Verb::Post, now);
            store.set_merged(&from, &survivor);
        }
        Vendor::Athena | Vendor::AthenaPractice | Vendor::Generic => {}
    }
}
