//! From layers to the checked snapshot.

use std::collections::BTreeMap;

use figment::value::Value;
use mantel_adapters::site::SiteId;

use super::{
    apps, cross,
    fault::{Faults, Note},
    layers::{self, KeyPath, Places},
    model::Config,
    profiles::{self, Node},
    reader::{Context, one_of},
    registrations, server, sites,
    sources::Sources,
};

/// A configuration without faults.
pub struct Loaded {
    pub config: Config,
    /// What an operator should know although it is allowed.
    pub notes: Vec<Note>,
    pub provenance: Provenance,
}

/// Where each value was written.
pub struct Provenance {
    pub(super) places: Places,
    pub(super) profiles: BTreeMap<SiteId, Node>,
}

const TABLES: [&str; 8] = ["server", "telemetry", "store", "vendors", "keys", "registrations", "sites", "apps"];

/// Reads and checks a configuration whole.
///
/// # Errors
///
/// All faults at once, each with its place.
pub fn load(sources: &Sources) -> Result<Loaded, Faults> {
    let (mut faults, mut notes) = (Vec::new(), Vec::new());
    let tree = layers::read(sources, &mut faults, &mut notes);
    let sandbox = match tree.root.get("server") {
        Some(Value::Dict(_, server)) => matches!(server.get("sandbox"), Some(Value::Bool(_, true))),
        _ => false,
    };
    let context = Context::new(&tree, sources, sandbox, faults, notes);
    for key in tree.root.keys().filter(|key| !TABLES.contains(&key.as_str())) {
        context.fault(&KeyPath::of(&[key]), "an unknown key", one_of(key, "a known table", TABLES));
    }

    let server = server::read(&context);
    let telemetry = server::read_telemetry(&context);
    let store = server::read_store(&context);
    let (vendors, vendor_names) = profiles::read(&context);
    let (keys, key_names) = registrations::read_keys(&context);
    let app_names = apps::names(&context);
    let known = registrations::Known {
        vendors: &vendors,
        vendor_names: &vendor_names,
        keys: &keys,
        key_names: &key_names,
        app_names: &app_names,
    };
    let (registrations, registration_names) = registrations::read(&context, &known);
    let known = sites::Known {
        server: &server,
        vendors: &vendors,
        vendor_names: &vendor_names,
        registrations: &registrations,
        registration_names: &registration_names,
    };
    let sites = sites::read(&context, &known);
    let apps = apps::read(&context, &sites, &registrations);
    // What a faulty store hides from the rest is nothing: the checks go on without it.
    let store = store.unwrap_or(super::model::StoreConfig {
        url: super::model::StoreUrl::Sqlite(None),
        seal: Vec::new(),
        spill: None,
    });
    let config = Config { server, telemetry, store, keys, registrations, sites: sites.sites, apps };
    cross::check(&context, &config);

    let (faults, notes) = context.finish();
    if !faults.is_empty() {
        return Err(Faults::new(faults));
    }
    Ok(Loaded { config, notes, provenance: Provenance { places: tree.places, profiles: sites.nodes } })
}
