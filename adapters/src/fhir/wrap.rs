//! A read's answer as the searchset that was asked for.

use serde::Serialize;
use serde_json::value::RawValue;

use super::compartment::Unreadable;

#[derive(Serialize)]
struct Searchset<'a> {
    #[serde(rename = "resourceType")]
    resource_type: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    total: u8,
    link: [Link<'a>; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<[Entry<'a>; 1]>,
}

#[derive(Serialize)]
struct Link<'a> {
    relation: &'static str,
    url: &'a str,
}

#[derive(Serialize)]
struct Entry<'a> {
    #[serde(rename = "fullUrl")]
    full_url: &'a str,
    resource: &'a RawValue,
    search: Mode,
}

#[derive(Serialize)]
struct Mode {
    mode: &'static str,
}

/// A searchset of one resource (byte for byte), or of none. `self_url`: the search as it was understood;
/// `full_url`: the resource's.
pub fn searchset(resource: Option<&[u8]>, full_url: &str, self_url: &str) -> Result<Vec<u8>, Unreadable> {
    let resource: Option<&RawValue> = resource.map(serde_json::from_slice).transpose().map_err(|_| Unreadable)?;
    let entry = resource.map(|resource| [Entry { full_url, resource, search: Mode { mode: "match" } }]);
    let searchset = Searchset {
        resource_type: "Bundle",
        kind: "searchset",
        total: u8::from(entry.is_some()),
        link: [Link { relation: "self", url: self_url }],
        entry,
    };
    serde_json::to_vec(&searchset).map_err(|_| Unreadable)
}
