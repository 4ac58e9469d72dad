//! Reads, version reads and histories.

use http::{StatusCode, header};
use serde_json::{Value, json};

use super::{
    Asked, House, State,
    access::{Need, Permit},
    catalog::{self, TypeRule},
    date,
    fault::Fault,
    paging,
    reply::{self, Body, Reply},
    store::Version,
    vendors,
};
use crate::ehr::contract::Vendor;

/// Counts bearers that asked for a record of somebody else.
pub const BEYOND: &str = "fhir:another's";

pub fn read(house: &House, state: &State, asked: &Asked, rule: &TypeRule, id: &str) -> Result<Reply, Fault> {
    let permit = asked.access.permit(rule.name, Need::Read).ok_or_else(|| Fault::NoScope(rule.name.to_owned()))?;
    if let (Vendor::Epic, "Patient", Some(into)) = (house.vendor, rule.name, state.store.merged_into(id)) {
        return Err(match permit.confined_to() {
            Some(patient) if patient != into => hidden(rule, id),
            _ => Fault::Merged { into: into.to_owned() },
        });
    }
    let version = seen(house, state, &permit, rule, id)?;
    let reply = present(house, asked, rule, id, version)?;
    Ok(if house.vendor == Vendor::Athena {
        // As recorded: a Location on a read.
        reply.with("location", format!("{}/{}/{id}", house.base, rule.name))
    } else {
        reply
    })
}

pub fn vread(
    house: &House,
    state: &State,
    asked: &Asked,
    rule: &TypeRule,
    id: &str,
    version: &str,
) -> Result<Reply, Fault> {
    let permit = asked.access.permit(rule.name, Need::Read).ok_or_else(|| Fault::NoScope(rule.name.to_owned()))?;
    let versions = state.store.history(rule.name, id);
    let named = version.parse::<u64>().ok().and_then(|number| versions.iter().find(|known| known.number == number));
    let named = named.ok_or_else(|| missing(rule, id))?;
    match &named.resource {
        Some(resource) if permit.admits(&state.store, &house.base, resource) => present(house, asked, rule, id, named),
        Some(_) => Err(hidden(rule, id)),
        None if visible(house, state, &permit, versions) => Err(gone(rule, id)),
        None => Err(hidden(rule, id)),
    }
}

/// The newest version, if the bearer may see it.
pub fn seen<'a>(
    house: &House,
    state: &'a State,
    permit: &Permit,
    rule: &TypeRule,
    id: &str,
) -> Result<&'a Version, Fault> {
    let versions = state.store.history(rule.name, id);
    let newest = versions.last().ok_or_else(|| missing(rule, id))?;
    match &newest.resource {
        Some(resource) if permit.admits(&state.store, &house.base, resource) => Ok(newest),
        None if visible(house, state, permit, versions) => Err(gone(rule, id)),
        _ => {
            house.counters.count(BEYOND);
            Err(hidden(rule, id))
        }
    }
}

/// A deleted record is judged by what it last was.
fn visible(house: &House, state: &State, permit: &Permit, versions: &[Version]) -> bool {
    let last = versions.iter().rev().find_map(|version| version.resource.as_ref());
    last.is_some_and(|resource| permit.admits(&state.store, &house.base, resource))
}

fn missing(rule: &TypeRule, id: &str) -> Fault {
    Fault::NotFound { ty: rule.name.to_owned(), id: id.to_owned() }
}

fn hidden(rule: &TypeRule, id: &str) -> Fault {
    Fault::Hidden { ty: rule.name.to_owned(), id: id.to_owned() }
}

fn gone(rule: &TypeRule, id: &str) -> Fault {
    Fault::Gone { ty: rule.name.to_owned(), id: id.to_owned() }
}

/// A version as the answer to a read.
fn present(house: &House, asked: &Asked, rule: &TypeRule, id: &str, version: &Version) -> Result<Reply, Fault> {
    let Some(resource) = &version.resource else { return Err(gone(rule, id)) };
    let plain = matches!(house.vendor, Vendor::Generic | Vendor::AthenaPractice);
    if plain && unchanged(asked, version) {
        return Ok(versioned(house, Reply::empty(StatusCode::NOT_MODIFIED), version));
    }
    if rule.name == "Binary" && !vendors::asks_for_json(asked) {
        let (content_type, bytes) =
            reply::raw_binary(resource).ok_or_else(|| Fault::Invalid("the Binary holds no base64".to_owned()))?;
        let reply = Reply::new(StatusCode::OK, Body::Other(Some(content_type), bytes));
        return Ok(versioned(house, reply, version));
    }
    let control =
        |name: &str| asked.pairs.iter().find(|(key, _)| plain && key == name).map(|(_, value)| value.as_str());
    let elements: Vec<String> = control("_elements").into_iter().flat_map(super::params::alternatives).collect();
    let shaped = paging::shape(resource, control("_summary"), &elements);
    Ok(versioned(house, Reply::fhir(StatusCode::OK, shaped), version))
}

/// `If-None-Match`, and only without it `If-Modified-Since` (RFC 9110 §13.2.2).
fn unchanged(asked: &Asked, version: &Version) -> bool {
    if let Some(tags) = asked.header(header::IF_NONE_MATCH.as_str()) {
        return tags.split(',').any(|tag| tag.trim() == "*" || bare_tag(tag) == version.number.to_string());
    }
    asked
        .header(header::IF_MODIFIED_SINCE.as_str())
        .and_then(date::parse_http)
        .is_some_and(|since| version.modified / 1000 * 1000 <= since)
}

/// The version number inside `W/"3"`.
pub fn bare_tag(tag: &str) -> &str {
    let tag = tag.trim();
    tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"')
}

/// What a vendor tells about a version in headers.
pub fn versioned(house: &House, reply: Reply, version: &Version) -> Reply {
    let modified = date::http(version.modified);
    match house.vendor {
        // As recorded; no cache and no client knows this header.
        Vendor::Epic => reply.with("e-tag", (52_864_727 + version.number).to_string()),
        Vendor::Athena => reply.with("last-modified", modified),
        Vendor::Oracle | Vendor::AthenaPractice | Vendor::Generic => {
            reply.with("etag", version.etag()).with("last-modified", modified)
        }
    }
}

pub fn history(house: &House, state: &State, asked: &Asked, rule: &TypeRule, id: &str) -> Result<Reply, Fault> {
    let permit = asked.access.permit(rule.name, Need::Read).ok_or_else(|| Fault::NoScope(rule.name.to_owned()))?;
    match seen(house, state, &permit, rule, id) {
        Ok(_) | Err(Fault::Gone { .. }) => {}
        Err(fault) => return Err(fault),
    }
    let mut entries = Vec::new();
    collect(house, state, &permit, rule, id, &mut entries);
    Ok(bundle(house, asked, &format!("{}/{id}/_history", rule.name), entries))
}

pub fn type_history(house: &House, state: &State, asked: &Asked, rule: &TypeRule) -> Result<Reply, Fault> {
    let permit = asked.access.permit(rule.name, Need::Search).ok_or_else(|| Fault::NoScope(rule.name.to_owned()))?;
    let mut entries = Vec::new();
    for id in state.store.ids(rule.name) {
        collect(house, state, &permit, rule, id, &mut entries);
    }
    Ok(bundle(house, asked, &format!("{}/_history", rule.name), entries))
}

/// The history of all types that the token opens; none: refused.
pub fn system_history(house: &House, state: &State, asked: &Asked) -> Result<Reply, Fault> {
    let mut entries = Vec::new();
    let mut open = false;
    for rule in catalog::rules(house.vendor) {
        let Some(permit) = asked.access.permit(rule.name, Need::Search) else { continue };
        open = true;
        for id in state.store.ids(rule.name) {
            collect(house, state, &permit, rule, id, &mut entries);
        }
    }
    if open { Ok(bundle(house, asked, "_history", entries)) } else { Err(Fault::NoScope("any type".to_owned())) }
}

/// The versions of one record that the bearer may see, as history entries with their times.
fn collect(
    house: &House,
    state: &State,
    permit: &Permit,
    rule: &TypeRule,
    id: &str,
    entries: &mut Vec<(i64, u64, Value)>,
) {
    let versions = state.store.history(rule.name, id);
    for version in versions {
        let shown = match &version.resource {
            Some(resource) => permit.admits(&state.store, &house.base, resource),
            None => visible(house, state, permit, versions),
        };
        if shown {
            entries.push((version.modified, version.number, history_entry(house, rule, id, version)));
        }
    }
}

fn history_entry(house: &House, rule: &TypeRule, id: &str, version: &Version) -> Value {
    let ty = rule.name;
    let url = if version.verb == super::store::Verb::Post { ty.to_owned() } else { format!("{ty}/{id}") };
    let status = match version.verb {
        super::store::Verb::Post => "201 Created",
        super::store::Verb::Delete => "204 No Content",
        _ => "200 OK",
    };
    let mut entry = json!({
        "fullUrl": format!("{}/{ty}/{id}", house.base),
        "request": {"method": version.verb.text(), "url": url},
        "response": {"status": status, "etag": version.etag(), "lastModified": date::instant(version.modified)},
    });
    if let (Some(members), Some(resource)) = (entry.as_object_mut(), &version.resource) {
        members.insert("resource".to_owned(), resource.as_ref().clone());
    }
    entry
}

/// Newest first; `_since` and `_count` cut.
fn bundle(house: &House, asked: &Asked, path: &str, mut entries: Vec<(i64, u64, Value)>) -> Reply {
    let value = |name: &str| asked.pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    if let Some(since) = value("_since").and_then(date::parse) {
        entries.retain(|(modified, _, _)| *modified >= since.from);
    }
    entries.sort_by_key(|(modified, number, _)| std::cmp::Reverse((*modified, *number)));
    let total = entries.len();
    if let Some(count) = value("_count").and_then(|text| text.parse().ok()) {
        entries.truncate(count);
    }
    let entries: Vec<Value> = entries.into_iter().map(|(_, _, entry)| entry).collect();
    let url = paging::link(house, path, &asked.pairs);
    let bundle = json!({
        "resourceType": "Bundle",
        "type": "history",
        "total": total,
        "link": [{"relation": "self", "url": url}],
        "entry": entries,
    });
    Reply::fhir(StatusCode::OK, bundle)
}
