//! `[keys]` and `[registrations]`: what was filed at vendors' portals.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mantel_adapters::site::{KeySetId, RegistrationId, VendorId};

use super::{
    fault::shown,
    model::{
        AssertionAlg, AssertionKey, ClientAuth, KeySet, KeyState, PreviousRegistration, Publish, Registration, Use,
    },
    profiles::{NAME, Vendors},
    reader::{Context, Given, Table, choose, table},
    scopes, secrets,
};

/// A shared registration's consent at the EHR was given to Mantel, not to the app: it needs a page of
/// our own, which is not there yet (`guard.md`, "Scope of a token").
pub(super) const HAS_CONSENT_PAGE: bool = false;

pub(super) type KeySets = BTreeMap<KeySetId, Arc<KeySet>>;
pub(super) type Registrations = BTreeMap<RegistrationId, Arc<Registration>>;

pub(super) fn read_keys(context: &Context<'_>) -> (KeySets, BTreeSet<String>) {
    let top = context.top("keys");
    let declared = top.entries().map(|(name, _)| name.to_owned()).collect();
    let sets = top.entries().filter_map(|(name, given)| {
        let id = name.parse::<KeySetId>().map_err(|_| context.fault(&given.path, shown(name), NAME)).ok();
        let table = table(context, &given, "a table with alg and private")?;
        let set = key_set(&table, id?);
        table.finish();
        set.map(|set| (set.id.clone(), Arc::new(set)))
    });
    (sets.collect(), declared)
}

fn key_set(table: &Table<'_>, id: KeySetId) -> Option<KeySet> {
    let context = table.context;
    let algs = [("RS384", AssertionAlg::RS384), ("ES384", AssertionAlg::ES384)];
    if !table.has("alg") {
        table.missing("alg", "RS384, or ES384 where the vendor fetches our keys");
    }
    let alg = table.choice("alg", &algs).map(|alg| alg.value);
    let each = "{ file = \"path\", state = \"sign\" } (or env)";
    let Some(entries) = table.tables("private", each) else {
        if !table.has("private") {
            table.missing("private", &format!("a list, each {each}"));
        }
        return None;
    };
    let mut ders = Vec::new();
    let mut keys = Vec::new();
    let mut signing = 0;
    let mut faulty = false;
    for entry in &entries {
        let states = [("publish", KeyState::Publish), ("sign", KeyState::Sign), ("retired", KeyState::Retired)];
        let state = entry.choice("state", &states).map(|state| state.value);
        if !entry.has("state") {
            entry.missing("state", "one of \"publish\", \"sign\", \"retired\"");
        }
        signing += usize::from(state == Some(KeyState::Sign));
        faulty |= state.is_none();
        let Some(bytes) = secrets::referred(entry) else { continue };
        let Some((alg, pem)) = alg.zip(secrets::text_of(context, &entry.path, &bytes)) else { continue };
        match secrets::assertion_key(alg, pem.expose().as_bytes()) {
            Ok(der) if ders.contains(&der) => {
                context.fault(&entry.path, "a key that the set holds already", "each key once: its kid is unique");
            }
            Ok(der) => {
                ders.push(der);
                keys.extend(state.map(|state| AssertionKey { pem, state }));
            }
            Err(given) => {
                let expected = match alg {
                    AssertionAlg::RS384 => "an RSA key of at least 2048 bits in PEM, for RS384",
                    AssertionAlg::ES384 => "a key on the curve P-384 in PEM, for ES384",
                };
                context.fault(&entry.path, given, expected);
            }
        }
    }
    entries.into_iter().for_each(Table::finish);
    if signing != 1 && !faulty {
        context.fault(&table.at("private"), format!("{signing} keys that sign"), "exactly one with state = \"sign\"");
    }
    Some(KeySet { id, alg: alg?, keys })
}

pub(super) struct Known<'k> {
    pub vendors: &'k Vendors,
    pub vendor_names: &'k BTreeSet<String>,
    pub keys: &'k KeySets,
    pub key_names: &'k BTreeSet<String>,
    pub app_names: &'k BTreeSet<String>,
}

pub(super) fn read(context: &Context<'_>, known: &Known<'_>) -> (Registrations, BTreeSet<String>) {
    let top = context.top("registrations");
    let declared = top.entries().map(|(name, _)| name.to_owned()).collect();
    let registrations = top.entries().filter_map(|(name, given)| {
        let id = name.parse::<RegistrationId>().map_err(|_| context.fault(&given.path, shown(name), NAME)).ok();
        let table = table(context, &given, "a table with vendor, apps, use, client_id, client_auth and scopes")?;
        let registration = registration(&table, known, id);
        table.finish();
        registration.map(|registration| (registration.id.clone(), Arc::new(registration)))
    });
    (registrations.collect(), declared)
}

fn registration(table: &Table<'_>, known: &Known<'_>, id: Option<RegistrationId>) -> Option<Registration> {
    let context = table.context;
    let vendor = vendor(table, known);
    let profile = vendor.as_ref().and_then(|vendor| known.vendors.get(vendor)).map(|vendor| &vendor.profile);
    let apps = apps(table, known);
    let uses = uses(table);
    let client_id = table.required("client_id", "the client id that the vendor gave out");
    let publish = table.choice("publish", &[("url", Publish::Url), ("uploaded", Publish::Uploaded)]);
    let publish = publish.map_or(Publish::Url, |publish| publish.value);
    let auth = auth(table, known, publish);

    if !table.has("scopes") {
        table.missing("scopes", "the scopes that were ticked at the vendor's portal");
    }
    let texts = table.texts("scopes", "a scope").unwrap_or_default();
    let scopes = scopes::ticked(context, &texts, profile.map(|profile| &profile.scopes));
    let previous = previous(table, known, publish, client_id.as_ref());

    let is_epic = profile.is_some_and(|profile| profile.adapter == "epic");
    if is_epic && matches!(auth, Some(ClientAuth::None)) {
        let text = "Epic gives no refresh token to public clients: users authorise again when the access token ends; file a confidential client";
        context.note(&table.at("client_auth"), text);
    }
    let backend = uses.contains(&Use::Backend);
    if backend && matches!(auth, Some(ClientAuth::None)) {
        let expected = "private_key_jwt or a secret: client_credentials is for confidential clients";
        context.fault(&table.at("client_auth"), "method \"none\"", expected);
    }
    let is_athena = profile.is_some_and(|profile| profile.adapter == "athena");
    if is_athena && backend && uses.len() > 1 {
        let text = "athenahealth registers an app for users or as a backend, never both: file two";
        context.note(&table.at("use"), text);
    }
    Some(Registration {
        id: id?,
        vendor: vendor?,
        apps,
        uses,
        client_id: client_id?.value,
        auth: auth?,
        scopes,
        previous,
        publish,
    })
}

fn vendor(table: &Table<'_>, known: &Known<'_>) -> Option<VendorId> {
    let vendor = table.required("vendor", "the name of a vendor")?;
    if !known.vendor_names.contains(&vendor.value) {
        table.context.unknown(&vendor.path, &vendor, "a vendor", known.vendor_names.iter().map(String::as_str));
    }
    vendor.parse().ok()
}

fn apps(table: &Table<'_>, known: &Known<'_>) -> BTreeSet<mantel_adapters::site::AppId> {
    let context = table.context;
    let apps = table.texts("apps", "the name of an app");
    if !table.has("apps") || apps.as_ref().is_some_and(Vec::is_empty) {
        let given = if table.has("apps") { "an empty list" } else { "nothing" };
        context.fault(&table.at("apps"), given, "the apps that this registration serves");
    }
    let apps = apps.unwrap_or_default();
    for app in &apps {
        if !known.app_names.contains(&app.value) {
            context.unknown(&app.path, app, "an app", known.app_names.iter().map(String::as_str));
        }
    }
    if apps.len() > 1 && !HAS_CONSENT_PAGE {
        let given = format!("{} apps", apps.len());
        context.fault(
            &table.at("apps"),
            given,
            "one: a shared registration needs Mantel's consent page, not there yet",
        );
    }
    apps.iter().filter_map(|app| app.parse().ok()).collect()
}

fn uses(table: &Table<'_>) -> BTreeSet<Use> {
    let context = table.context;
    let choices = [("ehr-launch", Use::EhrLaunch), ("standalone", Use::Standalone), ("backend", Use::Backend)];
    let expected = "\"ehr-launch\", \"standalone\" or \"backend\"";
    let uses = table.texts("use", expected);
    if !table.has("use") || uses.as_ref().is_some_and(Vec::is_empty) {
        let given = if table.has("use") { "an empty list" } else { "nothing" };
        context.fault(&table.at("use"), given, format!("at least one of {expected}"));
    }
    let uses = uses.unwrap_or_default();
    uses.iter().filter_map(|text| choose(context, text, &choices)).map(|given| given.value).collect()
}

const AUTH: &str = "{ method = \"private_key_jwt\", keys = \"…\" } or another method";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    None,
    Basic,
    Post,
    Jwt,
}

fn auth(table: &Table<'_>, known: &Known<'_>, publish: Publish) -> Option<ClientAuth> {
    if !table.has("client_auth") {
        table.missing("client_auth", AUTH);
    }
    let auth = table.table("client_auth", AUTH)?;
    let methods = [
        ("none", Method::None),
        ("client_secret_basic", Method::Basic),
        ("client_secret_post", Method::Post),
        ("private_key_jwt", Method::Jwt),
    ];
    if !auth.has("method") {
        auth.missing("method", "private_key_jwt, client_secret_basic, client_secret_post or none");
    }
    let method = auth.choice("method", &methods)?.value;
    let read = match method {
        Method::None => Some(ClientAuth::None),
        Method::Basic => secrets::client_secret(&auth, "secret").map(|secret| ClientAuth::SecretBasic { secret }),
        Method::Post => secrets::client_secret(&auth, "secret").map(|secret| ClientAuth::SecretPost { secret }),
        Method::Jwt => signed(&auth, known, publish),
    };
    for (key, of) in [("secret", matches!(method, Method::Basic | Method::Post)), ("keys", method == Method::Jwt)] {
        if !of && auth.value(key).is_some() {
            auth.context.fault(&auth.at(key), "a key of another method", "only what this method needs");
        }
    }
    auth.finish();
    read
}

fn signed(auth: &Table<'_>, known: &Known<'_>, publish: Publish) -> Option<ClientAuth> {
    let context = auth.context;
    let keys = auth.required("keys", "the name of a key set in [keys]")?;
    if !known.key_names.contains(&keys.value) {
        context.unknown(&keys.path, &keys, "a key set", known.key_names.iter().map(String::as_str));
    }
    let id = keys.parse::<KeySetId>().ok()?;
    let elliptic = known.keys.get(&id).is_some_and(|set| set.alg == AssertionAlg::ES384);
    if elliptic && publish == Publish::Uploaded {
        let given = format!("{}, a set for ES384", shown(&keys));
        context.fault(&keys.path, given, "a set for RS384: EC keys are taken only where the vendor fetches them");
    }
    Some(ClientAuth::PrivateKeyJwt { keys: id })
}

fn previous(
    table: &Table<'_>,
    known: &Known<'_>,
    publish: Publish,
    current: Option<&Given<String>>,
) -> Vec<PreviousRegistration> {
    let entries = table.tables("previous", "{ client_id = \"…\", client_auth = … }").unwrap_or_default();
    let previous = entries.into_iter().filter_map(|entry| {
        let client_id = entry.required("client_id", "the client id that grants still remember");
        let auth = auth(&entry, known, publish);
        if let (Some(old), Some(current)) = (&client_id, current)
            && old.value == current.value
        {
            table.context.refuse(old, "another client id than the registration has now");
        }
        entry.finish();
        Some(PreviousRegistration { client_id: client_id?.value, auth: auth? })
    });
    previous.collect()
}
