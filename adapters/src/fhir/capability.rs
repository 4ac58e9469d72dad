//! Our CapabilityStatement: an EHR's, trimmed to what passes the gateway.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{
    operations::{self, OPERATIONS},
    types::is_resource_type,
};

/// What a base of ours announces besides what its EHR can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OurEndpoints {
    /// Without a slash at its end.
    pub base: String,
    /// What the implementation is called: the site's name.
    pub description: String,
    /// The gateway's version.
    pub version: String,
    /// When it was made: a FHIR dateTime.
    pub date: String,
    /// The six of `oauth-uris`; each the same string as in the smart-configuration, absent where absent there.
    pub authorize: Option<String>,
    pub token: Option<String>,
    pub register: Option<String>,
    pub manage: Option<String>,
    pub introspect: Option<String>,
    pub revoke: Option<String>,
}

/// Interactions of a type, and of the whole system, that pass.
const ON_TYPES: [&str; 9] =
    ["read", "vread", "update", "patch", "delete", "history-instance", "history-type", "create", "search-type"];
const ON_SYSTEM: [&str; 4] = ["transaction", "batch", "search-system", "history-system"];

/// Members of `rest.resource` that pass as they are; `interaction` and `operation` pass in part.
const RESOURCE_MEMBERS: [&str; 14] = [
    "profile",
    "supportedProfile",
    "documentation",
    "versioning",
    "readHistory",
    "updateCreate",
    "conditionalCreate",
    "conditionalRead",
    "conditionalUpdate",
    "conditionalDelete",
    "referencePolicy",
    "searchInclude",
    "searchRevInclude",
    "searchParam",
];

/// An EHR's statement as ours: what is not an R4 server's is left out, operations that would be refused too, and
/// security is ours. Batches are played entry by entry where the EHR takes none, so they always are among it.
pub fn trim(upstream: &Value, ours: &OurEndpoints) -> Value {
    let rest = upstream.get("rest").and_then(Value::as_array).and_then(|all| {
        all.iter().find(|rest| rest.get("mode").and_then(Value::as_str).is_none_or(|mode| mode == "server"))
    });
    let resources: Vec<Value> = list(rest, "resource").iter().filter_map(resource).collect();
    let mut interactions: BTreeSet<&str> = codes(rest).into_iter().filter(|code| ON_SYSTEM.contains(code)).collect();
    interactions.insert("batch");
    let operations = passing_operations(rest, None);
    statement(ours, list(Some(upstream), "implementationGuide"), &resources, &interactions, operations)
}

/// A statement for a base whose EHR's cannot be had: reads and searches of these types.
pub fn minimal(ours: &OurEndpoints, resource_types: &[&str]) -> Value {
    let resource = |name: &&str| json!({"type": name, "interaction": [{"code": "read"}, {"code": "search-type"}]});
    let resources: Vec<Value> = resource_types.iter().filter(|name| is_resource_type(name)).map(resource).collect();
    statement(ours, &[], &resources, &BTreeSet::from(["batch"]), Vec::new())
}

/// One statement for several sites, of trimmed ones: whatever any of them can.
pub fn union(sites: &[Value], ours: &OurEndpoints) -> Value {
    let mut resources: Vec<Value> = Vec::new();
    let mut interactions = BTreeSet::from(["batch"]);
    let mut guides: Vec<Value> = Vec::new();
    let mut operations: Vec<Value> = Vec::new();
    for site in sites {
        let rest = site.pointer("/rest/0");
        interactions.extend(codes(rest));
        add(&mut operations, list(rest, "operation"), Some("name"));
        add(&mut guides, list(Some(site), "implementationGuide"), None);
        for resource in list(rest, "resource") {
            let same = |other: &&mut Value| other.get("type") == resource.get("type");
            match resources.iter_mut().find(same) {
                Some(known) => unite(known, resource),
                None => resources.push(resource.clone()),
            }
        }
    }
    resources.sort_by(|one, other| text(one, "type").cmp(&text(other, "type")));
    statement(ours, &guides, &resources, &interactions, operations)
}

fn text<'a>(value: &'a Value, member: &str) -> Option<&'a str> {
    value.get(member).and_then(Value::as_str)
}

fn list<'a>(value: Option<&'a Value>, member: &str) -> &'a [Value] {
    value.and_then(|value| value.get(member)).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn codes(of: Option<&Value>) -> Vec<&str> {
    list(of, "interaction").iter().filter_map(|interaction| text(interaction, "code")).collect()
}

/// Adds what is not there yet, told apart by a member or as a whole.
fn add(known: &mut Vec<Value>, more: &[Value], key: Option<&str>) {
    let same = |one: &Value, other: &Value| key.map_or_else(|| one == other, |key| one.get(key) == other.get(key));
    for item in more {
        if !known.iter().any(|other| same(other, item)) {
            known.push(item.clone());
        }
    }
}

fn unite(known: &mut Value, other: &Value) {
    let Some(known) = known.as_object_mut() else { return };
    for (member, value) in other.as_object().into_iter().flatten() {
        let place = known.entry(member.clone()).or_insert_with(|| value.clone());
        match (member.as_str(), place, value) {
            ("interaction", Value::Array(all), Value::Array(more)) => add(all, more, Some("code")),
            ("searchParam" | "operation", Value::Array(all), Value::Array(more)) => add(all, more, Some("name")),
            (_, Value::Array(all), Value::Array(more)) => add(all, more, None),
            (_, flag @ Value::Bool(false), Value::Bool(true)) => *flag = Value::Bool(true),
            _ => {}
        }
    }
}

fn passing_operations(of: Option<&Value>, resource_type: Option<&str>) -> Vec<Value> {
    let passes = |operation: &&Value| {
        let Some(name) = text(operation, "name") else { return false };
        let name = name.strip_prefix('$').unwrap_or(name);
        match resource_type {
            Some(_) => [false, true].into_iter().any(|has_id| operations::find(name, resource_type, has_id).is_some()),
            // Some servers list operations of types here.
            None => OPERATIONS.iter().any(|known| known.name == name),
        }
    };
    list(of, "operation")
        .iter()
        .filter(passes)
        .map(|operation| pick(operation, &["name", "definition", "documentation"]))
        .collect()
}

fn pick(from: &Value, members: &[&str]) -> Value {
    let kept = members.iter().filter_map(|name| Some(((*name).to_owned(), from.get(*name)?.clone())));
    Value::Object(kept.collect())
}

fn resource(upstream: &Value) -> Option<Value> {
    let name = text(upstream, "type").filter(|name| is_resource_type(name))?;
    let mut ours = Map::new();
    ours.insert("type".into(), name.into());
    for member in RESOURCE_MEMBERS {
        if let Some(value) = upstream.get(member) {
            ours.insert(member.into(), value.clone());
        }
    }
    let interactions: Vec<Value> = codes(Some(upstream))
        .into_iter()
        .filter(|code| ON_TYPES.contains(code))
        .map(|code| json!({ "code": code }))
        .collect();
    if !interactions.is_empty() {
        ours.insert("interaction".into(), interactions.into());
    }
    let operations = passing_operations(Some(upstream), Some(name));
    if !operations.is_empty() {
        ours.insert("operation".into(), operations.into());
    }
    Some(Value::Object(ours))
}

fn statement(
    ours: &OurEndpoints,
    guides: &[Value],
    resources: &[Value],
    interactions: &BTreeSet<&str>,
    operations: Vec<Value>,
) -> Value {
    let mut rest = json!({
        "mode": "server",
        "security": security(ours),
        "resource": resources,
        "interaction": interactions.iter().map(|code| json!({ "code": code })).collect::<Vec<_>>(),
    });
    // R4 has no empty lists.
    if let Some(members) = rest.as_object_mut() {
        members.retain(|_, value| value.as_array().is_none_or(|items| !items.is_empty()));
        if !operations.is_empty() {
            members.insert("operation".into(), operations.into());
        }
    }
    let mut statement = json!({
        "resourceType": "CapabilityStatement",
        "url": format!("{}/metadata", ours.base),
        "status": "active",
        "date": ours.date,
        "kind": "instance",
        "software": { "name": "Mantel", "version": ours.version },
        "implementation": { "description": ours.description, "url": ours.base },
        "fhirVersion": "4.0.1",
        "format": ["application/fhir+json", "json"],
        "rest": [rest],
    });
    if let (Some(members), false) = (statement.as_object_mut(), guides.is_empty()) {
        members.insert("implementationGuide".into(), guides.to_vec().into());
    }
    statement
}

/// The security that SMART App Launch 1.0 clients look for (`oauth-uris`).
fn security(ours: &OurEndpoints) -> Value {
    let uris: Vec<Value> = [
        ("authorize", &ours.authorize),
        ("token", &ours.token),
        ("register", &ours.register),
        ("manage", &ours.manage),
        ("introspect", &ours.introspect),
        ("revoke", &ours.revoke),
    ]
    .into_iter()
    .filter_map(|(name, uri)| Some(json!({ "url": name, "valueUri": uri.as_ref()? })))
    .collect();
    json!({
        "cors": true,
        "service": [{
            "coding": [{
                "system": "http://terminology.hl7.org/CodeSystem/restful-security-service",
                "code": "SMART-on-FHIR",
            }],
            "text": "OAuth2 using SMART-on-FHIR profile (see http://docs.smarthealthit.org)",
        }],
        "extension": [{
            "url": "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris",
            "extension": uris,
        }],
    })
}
