//! `[sites]`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mantel_adapters::{
    profile::{Profile, StandalonePatient, Wildcards},
    registry,
    site::{RegistrationId, SiteId, VendorId},
    smart::translate::ScopeFault,
};
use url::Url;

use super::{
    address,
    fault::shown,
    layers::KeyPath,
    model::{Inspect, Persona, Server, Site, SiteTls},
    profiles::{self, NAME, Node, Vendors},
    reader::{Context, Given, Table, table},
    registrations::Registrations,
    secrets::{self, Pem},
};

pub(super) struct Known<'k> {
    pub server: &'k Server,
    pub vendors: &'k Vendors,
    pub vendor_names: &'k BTreeSet<String>,
    pub registrations: &'k Registrations,
    pub registration_names: &'k BTreeSet<String>,
}

#[derive(Default)]
pub(super) struct Sites {
    pub sites: BTreeMap<SiteId, Arc<Site>>,
    pub nodes: BTreeMap<SiteId, Node>,
    pub declared: BTreeSet<String>,
    pub tags: BTreeSet<String>,
}

pub(super) const INSPECT: [(&str, Inspect); 2] = [("auto", Inspect::Auto), ("always", Inspect::Always)];

pub(super) fn read(context: &Context<'_>, known: &Known<'_>) -> Sites {
    let top = context.top("sites");
    let mut read = Sites::default();
    for (name, given) in top.entries() {
        read.declared.insert(name.to_owned());
        let id = name.parse::<SiteId>().map_err(|_| context.fault(&given.path, shown(name), NAME)).ok();
        let expected = "a table with vendor, name, fhir_base_url and registrations";
        let Some(table) = table(context, &given, expected) else { continue };
        let (tags, site) = site(&table, known, id);
        table.finish_beside(&profiles::keys());
        read.tags.extend(tags);
        if let Some((site, node)) = site {
            read.nodes.insert(site.id.clone(), node);
            read.sites.insert(site.id.clone(), Arc::new(site));
        }
    }
    same_base(context, &read.sites);
    read
}

fn site(table: &Table<'_>, known: &Known<'_>, id: Option<SiteId>) -> (BTreeSet<String>, Option<(Site, Node)>) {
    let context = table.context;
    let vendor_name = table.required("vendor", "the name of a vendor");
    if let Some(vendor) = vendor_name.as_ref().filter(|vendor| !known.vendor_names.contains(&vendor.value)) {
        context.unknown(&vendor.path, vendor, "a vendor", known.vendor_names.iter().map(String::as_str));
    }
    let name = table.required("name", "the name that users read");
    let base = base(table, known.server);
    let registrations = registrations(table, known, vendor_name.as_ref());
    let (iss_aliases, link_bases) = spellings(table);
    let persona = table.choice("persona", &[("patient", Persona::Patient), ("provider", Persona::Provider)]);
    let tenant = table.text("tenant", "a string").map(|tenant| tenant.value);
    let tags = tags(table);
    let frame_origins = frame_origins(table);
    let tls = tls(table);
    let allow_private = table.flag("allow_private").unwrap_or_default();
    let inspect = table.choice("inspect", &INSPECT).map_or(Inspect::Auto, |inspect| inspect.value);
    let concurrency = table.table("limits", "a table of limits").and_then(|limits| {
        let concurrency = limits.number("concurrency", 1..=100_000);
        limits.finish();
        concurrency.and_then(|concurrency| usize::try_from(concurrency).ok())
    });

    let vendor = vendor_name.as_ref().and_then(|name| name.parse::<VendorId>().ok());
    let layers = vendor.as_ref().and_then(|vendor| known.vendors.get(vendor));
    let profile = match (layers, &id) {
        (Some(layers), Some(id)) => profiles::of_site(context, layers, table, id.as_str()),
        _ => {
            // Told even though there is nothing to lay it upon.
            profiles::own_of_site(context, table);
            None
        }
    };
    let persona = persona.map(|persona| persona.value);
    let built = profile.and_then(|(profile, node)| {
        let (base, text) = base?;
        check_persona(table, &profile, &base, persona);
        if !allow_private && address::is_private(&base) {
            context.note(
                &table.at("fhir_base_url"),
                "an address that is not public is dialled only with allow_private = true",
            );
        }
        check_wildcards(table, known, &profile, &registrations);
        if profile.standalone_patient == StandalonePatient::Picker {
            context.note(
                &table.at("standalone_patient"),
                "this version has no patient picker: a standalone launch for patient/ scopes ends with access_denied",
            );
        }
        let budget = profile.budget.concurrent.and_then(|concurrent| usize::try_from(concurrent).ok());
        let site = Site {
            id: id?,
            vendor: vendor?,
            adapter: registry::adapter(&profile.adapter)?,
            profile: Arc::new(profile),
            name: name?.value,
            fhir_base: base,
            fhir_base_text: text,
            registrations,
            iss_aliases,
            link_bases,
            persona,
            tenant,
            tags: tags.clone(),
            frame_origins,
            tls,
            allow_private,
            inspect,
            concurrency: concurrency.or(budget).unwrap_or(known.server.limits.site_concurrency),
        };
        Some((site, node))
    });
    (tags, built)
}

/// The base as a URL without a slash at the end, and as it was written.
fn base(table: &Table<'_>, server: &Server) -> Option<(Url, String)> {
    let context = table.context;
    let text = table.required("fhir_base_url", "the FHIR base of the EHR: an absolute https URL")?;
    let mut url = match address::base(&text, context.sandbox, "a FHIR base") {
        Ok(url) => url,
        Err(expected) => {
            context.refuse(&text, expected);
            return None;
        }
    };
    let ours = !server.public_url.is_empty() && url.origin().ascii_serialization() == server.public_url;
    if ours {
        context.refuse(&text, "a FHIR base of an EHR: this is Mantel's own address");
        return None;
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Some((url, text.value))
}

fn registrations(table: &Table<'_>, known: &Known<'_>, vendor: Option<&Given<String>>) -> Vec<RegistrationId> {
    let context = table.context;
    if !table.has("registrations") {
        table.missing("registrations", "a list of names from [registrations]");
    }
    let names = table.texts("registrations", "the name of a registration").unwrap_or_default();
    let mut ids = Vec::new();
    for name in names {
        if !known.registration_names.contains(&name.value) {
            let names = known.registration_names.iter().map(String::as_str);
            context.unknown(&name.path, &name, "a registration", names);
            continue;
        }
        let Ok(id) = name.parse::<RegistrationId>() else { continue };
        let registered = known.registrations.get(&id).map(|registration| &registration.vendor);
        // A vendor that is unknown has been told; that it differs follows from it.
        let is_known = |name: &str| known.vendor_names.contains(name);
        if let (Some(registered), Some(vendor)) = (registered, vendor)
            && registered.as_str() != vendor.value
            && is_known(registered.as_str())
            && is_known(vendor)
        {
            let given = format!("{}, filed at {:?}", shown(&name), registered.as_str());
            context.fault(&name.path, given, format!("a registration at the site's vendor, {}", shown(vendor)));
        }
        if ids.contains(&id) {
            context.refuse(&name, "each registration once");
        }
        ids.push(id);
    }
    ids
}

fn spellings(table: &Table<'_>) -> (Vec<String>, Vec<String>) {
    let context = table.context;
    let checked = |texts: Option<Vec<Given<String>>>| -> Vec<String> {
        let texts = texts.unwrap_or_default().into_iter().filter_map(|text| match address::spelling(&text) {
            Ok(_) => Some(text.value),
            Err(expected) => {
                context.refuse(&text, expected);
                None
            }
        });
        texts.collect()
    };
    let iss = table.table("aliases", "a table with iss").map(|aliases| {
        let iss = checked(aliases.texts("iss", "a URL"));
        aliases.finish();
        iss
    });
    (iss.unwrap_or_default(), checked(table.texts("link_bases", "a URL")))
}

fn tags(table: &Table<'_>) -> BTreeSet<String> {
    let tags = table.texts("tags", "a tag").unwrap_or_default();
    let tags = tags.into_iter().filter_map(|tag| {
        // A tag stands in no URL, but one form for all names spares a rule.
        let fits = tag.parse::<SiteId>().is_ok();
        if !fits {
            table.context.refuse(&tag, NAME);
        }
        fits.then_some(tag.value)
    });
    tags.collect()
}

fn frame_origins(table: &Table<'_>) -> Vec<String> {
    let origins = table.texts("frame_origins", "an origin").unwrap_or_default();
    let origins = origins.into_iter().filter_map(|origin| match address::frame_origin(&origin) {
        Ok(()) => Some(origin.value),
        Err(expected) => {
            table.context.refuse(&origin, expected);
            None
        }
    });
    origins.collect()
}

fn tls(table: &Table<'_>) -> SiteTls {
    let Some(tls) = table.table("tls", "a table with ca, client_cert and client_key") else {
        return SiteTls::default();
    };
    let ca = secrets::pem_file(&tls, "ca", Pem::Certificates);
    let cert = secrets::pem_file(&tls, "client_cert", Pem::Certificates);
    let key = secrets::pem_file(&tls, "client_key", Pem::PrivateKey);
    for (one, other) in [("client_cert", "client_key"), ("client_key", "client_cert")] {
        if tls.has(one) && !tls.has(other) {
            tls.missing(other, "{ file = \"path\" }, the other half of the client certificate");
        }
    }
    tls.finish();
    SiteTls { ca, client: cert.zip(key) }
}

/// Oracle's hosts tell their persona; at the wrong one every launch fails (`client-persona-mismatch`).
fn check_persona(table: &Table<'_>, profile: &Profile, base: &Url, persona: Option<Persona>) {
    if profile.adapter != "oracle" {
        return;
    }
    let host = base.host_str().unwrap_or_default();
    let says = if host.starts_with("fhir-myrecord") {
        Some((Persona::Patient, "patient"))
    } else if host.starts_with("fhir-ehr") {
        Some((Persona::Provider, "provider"))
    } else {
        None
    };
    match (persona, says) {
        (Some(persona), Some((host_persona, name))) if persona != host_persona => {
            let given = if persona == Persona::Patient { "\"patient\"" } else { "\"provider\"" };
            table.context.fault(
                &table.at("persona"),
                given,
                format!("\"{name}\", which is what the host {host} serves"),
            );
        }
        (None, _) => {
            let text = "no persona: Oracle's hosts and registrations differ for patients and providers";
            table.context.note(&table.path, text);
        }
        _ => {}
    }
}

/// The site may forbid what its vendor allows.
fn check_wildcards(table: &Table<'_>, known: &Known<'_>, profile: &Profile, registrations: &[RegistrationId]) {
    if profile.scopes.wildcards != Wildcards::Expand {
        return;
    }
    for (n, id) in registrations.iter().enumerate() {
        let Some(registration) = known.registrations.get(id) else { continue };
        let keeps = known
            .vendors
            .get(&registration.vendor)
            .is_some_and(|vendor| vendor.profile.scopes.wildcards == Wildcards::Keep);
        let wild = registration
            .scopes
            .check(&profile.scopes)
            .into_iter()
            .find(|fault| matches!(fault, ScopeFault::Wildcard(_)));
        if let (true, Some(fault)) = (keeps, wild) {
            table.context.fault(
                &table.at("registrations").index(n),
                format!("a registration in which {fault}"),
                "each type by its name: this site takes no wildcards",
            );
        }
    }
}

/// Two sites of one base and persona would be told apart by nothing.
fn same_base(context: &Context<'_>, sites: &BTreeMap<SiteId, Arc<Site>>) {
    let mut seen: BTreeMap<(String, Option<&str>), &SiteId> = BTreeMap::new();
    for site in sites.values() {
        let persona = site.persona.map(|persona| if persona == Persona::Patient { "patient" } else { "provider" });
        let base = site.fhir_base.as_str().trim_end_matches('/').to_owned();
        if let Some(first) = seen.insert((base, persona), &site.id) {
            let path = KeyPath::of(&["sites", site.id.as_str(), "fhir_base_url"]);
            let given = format!("{}, the base of {:?}", shown(&site.fhir_base_text), first.as_str());
            context.fault(&path, given, "a base, or a persona, of its own");
        }
    }
}
