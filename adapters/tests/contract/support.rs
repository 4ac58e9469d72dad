//! Profiles and fixtures.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use mantel_adapters::{adapter::Adapter, profile::Profile, registry};
use serde::Deserialize;
use serde_json::Value;
use url::Url;

pub const VENDORS: [&str; 5] = ["athena", "athena-practice", "epic", "generic", "oracle"];

#[derive(Deserialize)]
struct Vendors {
    vendors: BTreeMap<String, Profile>,
}

/// The built-in profiles, each over the defaults.
pub fn profiles() -> BTreeMap<String, Profile> {
    let text = fs::read_to_string(root().join("../vendors.toml")).unwrap();
    toml_edit::de::from_str::<Vendors>(&text).unwrap().vendors
}

pub fn profile(vendor: &str) -> Profile {
    profiles().remove(vendor).unwrap_or_else(|| panic!("no profile {vendor}"))
}

pub fn adapter(vendor: &str) -> &'static dyn Adapter {
    registry::adapter(&profile(vendor).adapter).unwrap()
}

pub fn url(text: &str) -> Url {
    Url::parse(text).unwrap()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn folder(kind: &str) -> PathBuf {
    root().join("tests/fixtures").join(kind)
}

pub fn bytes(kind: &str, file: &str) -> Vec<u8> {
    fs::read(folder(kind).join(file)).unwrap_or_else(|error| panic!("{kind}/{file}: {error}"))
}

pub fn json(kind: &str, file: &str) -> Value {
    serde_json::from_slice(&bytes(kind, file)).unwrap()
}

/// Fails where a fixture has no row, or a row no fixture.
pub fn assert_covered<'a>(kind: &str, rows: impl IntoIterator<Item = &'a str>) {
    let rows = rows.into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    let files = fs::read_dir(folder(kind))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect::<BTreeSet<_>>();
    let without_row = files.difference(&rows).collect::<Vec<_>>();
    let without_file = rows.difference(&files).collect::<Vec<_>>();
    assert!(without_row.is_empty() && without_file.is_empty(), "no row: {without_row:?}; no file: {without_file:?}");
}

/// A recorded HTTP answer of `tokens/` or `errors/`.
pub struct Recorded {
    pub status: u16,
    headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Recorded {
    pub fn read(kind: &str, file: &str) -> Self {
        let document = json(kind, file);
        let response = &document["response"];
        let headers = response["headers"].as_object().into_iter().flatten();
        let body = match (&response["text"], &response["body"]) {
            (Value::String(text), _) | (Value::Null, Value::String(text)) => text.clone().into_bytes(),
            (_, body) => serde_json::to_vec(body).unwrap(),
        };
        Self {
            status: u16::try_from(response["status"].as_u64().unwrap()).unwrap(),
            headers: headers
                .filter_map(|(name, value)| Some((name.to_ascii_lowercase(), value.as_str()?.to_owned())))
                .collect(),
            body,
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}
