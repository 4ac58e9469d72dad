//! A CapabilityStatement: `oauth-uris`, and what the server can do.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use url::Url;

use super::{DiscoveryFault, Oddity, endpoint};
use crate::smart::json;

const OAUTH_URIS: &str = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris";
const OAUTH_URIS_TAIL: &str = "/fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris";

/// What is used of a CapabilityStatement of FHIR R4.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CapabilityFacts {
    pub authorize: Option<Url>,
    pub token: Option<Url>,
    /// As published, if absolute.
    pub token_text: Option<String>,
    pub revoke: Option<Url>,
    pub introspect: Option<Url>,
    pub manage: Option<Url>,
    pub register: Option<Url>,
    pub fhir_version: String,
    /// Media types or `json`, `xml`.
    pub formats: Vec<String>,
    pub resources: BTreeMap<String, ResourceFacts>,
    /// `batch`, `transaction`, `search-system`, `history-system`.
    pub system_interactions: BTreeSet<String>,
    /// Names of operations at the root, without `$`.
    pub system_operations: BTreeSet<String>,
    pub oddities: Vec<Oddity>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceFacts {
    /// FHIR's codes: `read`, `search-type` …
    pub interactions: BTreeSet<String>,
    pub search_params: BTreeSet<String>,
    pub search_includes: BTreeSet<String>,
    pub search_rev_includes: BTreeSet<String>,
    /// Names without `$`.
    pub operations: BTreeSet<String>,
    pub supported_profiles: BTreeSet<String>,
}

/// Reads a CapabilityStatement that was fetched for `base`. Endpoints may be absent: an open server
/// has none.
///
/// # Errors
/// Another FHIR version is refused: its base is not the one that was meant.
pub fn parse_capability_statement(body: &[u8], base: &Url) -> Result<CapabilityFacts, DiscoveryFault> {
    let parsed = json::parse(body)?;
    let Value::Object(document) = &parsed.value else {
        return Err(DiscoveryFault::NotObject { found: json::kind(&parsed.value) });
    };
    let mut facts = CapabilityFacts { fhir_version: version(document)?, ..CapabilityFacts::default() };
    if parsed.byte_order_mark {
        facts.oddities.push(Oddity::ByteOrderMark);
    }
    if facts.fhir_version != "4.0.1" {
        facts.oddities.push(Oddity::FhirVersion(facts.fhir_version.clone()));
    }
    facts.formats = strings(document.get("format")).collect();
    let servers = objects(document.get("rest")).filter(|rest| text(rest, "mode").is_none_or(|mode| mode == "server"));
    for rest in servers {
        if let Some(Value::Object(security)) = rest.get("security") {
            oauth_uris(security, base, &mut facts)?;
        }
        facts.system_interactions.extend(codes(rest, "interaction", "code"));
        facts.system_operations.extend(codes(rest, "operation", "name"));
        for resource in objects(rest.get("resource")) {
            if let Some(name) = text(resource, "type") {
                add(resource, facts.resources.entry(name.to_owned()).or_default());
            }
        }
    }
    Ok(facts)
}

fn version(document: &Map<String, Value>) -> Result<String, DiscoveryFault> {
    let clip = |text: &str| text.chars().take(40).collect::<String>();
    let found = clip(text(document, "fhirVersion").unwrap_or_default());
    match text(document, "resourceType") {
        Some("CapabilityStatement") if found == "4.0" || found.starts_with("4.0.") => Ok(found),
        Some("CapabilityStatement" | "Conformance") => Err(DiscoveryFault::WrongFhirVersion { found }),
        other => Err(DiscoveryFault::WrongResourceType { found: clip(other.unwrap_or_default()) }),
    }
}

/// The extension under its right URL wins; one under a wrong URL is read where the right one is missing.
fn oauth_uris(security: &Map<String, Value>, base: &Url, facts: &mut CapabilityFacts) -> Result<(), DiscoveryFault> {
    let named = |extension: &&Map<String, Value>| text(extension, "url") == Some(OAUTH_URIS);
    let misnamed = |extension: &&Map<String, Value>| {
        text(extension, "url").is_some_and(|url| url != OAUTH_URIS && url.ends_with(OAUTH_URIS_TAIL))
    };
    let extensions = || objects(security.get("extension"));
    if extensions().any(|extension| misnamed(&extension)) {
        facts.oddities.push(Oddity::MisnamedExtension);
    }
    let mut chosen = extensions().filter(named).collect::<Vec<_>>();
    if chosen.is_empty() {
        chosen = extensions().filter(misnamed).collect();
    }
    for uri in chosen.into_iter().flat_map(|extension| objects(extension.get("extension"))) {
        oauth_uri(uri, base, facts)?;
    }
    Ok(())
}

fn oauth_uri(uri: &Map<String, Value>, base: &Url, facts: &mut CapabilityFacts) -> Result<(), DiscoveryFault> {
    let Some(name) = text(uri, "url").and_then(|name| {
        ["authorize", "token", "revoke", "introspect", "manage", "register"].into_iter().find(|known| *known == name)
    }) else {
        return Ok(());
    };
    let Some(value) = ["valueUri", "valueUrl", "valueString"].iter().find_map(|member| text(uri, member)) else {
        facts.oddities.push(Oddity::EmptyMember(name));
        return Ok(());
    };
    let essential = matches!(name, "authorize" | "token");
    let (url, relative) = match endpoint(name, value, base) {
        Ok(found) => found,
        Err(fault) if essential => return Err(fault),
        Err(fault) => {
            facts.oddities.push(Oddity::EndpointDropped { name, fault });
            return Ok(());
        }
    };
    if relative {
        facts.oddities.push(Oddity::RelativeEndpoint(name));
    }
    let place = match name {
        "authorize" => &mut facts.authorize,
        "token" => &mut facts.token,
        "revoke" => &mut facts.revoke,
        "introspect" => &mut facts.introspect,
        "manage" => &mut facts.manage,
        _ => &mut facts.register,
    };
    match place {
        // Two servers that claim the same role: sending a code to the wrong one gives it away.
        Some(other) if *other != url => return Err(DiscoveryFault::AmbiguousEndpoint(name)),
        _ => *place = Some(url),
    }
    if name == "token" && !relative {
        facts.token_text = Some(value.to_owned());
    }
    Ok(())
}

fn add(resource: &Map<String, Value>, facts: &mut ResourceFacts) {
    facts.interactions.extend(codes(resource, "interaction", "code"));
    facts.search_params.extend(codes(resource, "searchParam", "name"));
    facts.operations.extend(codes(resource, "operation", "name"));
    facts.search_includes.extend(strings(resource.get("searchInclude")));
    facts.search_rev_includes.extend(strings(resource.get("searchRevInclude")));
    facts.supported_profiles.extend(strings(resource.get("supportedProfile")));
}

fn text<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    object.get(name).and_then(Value::as_str)
}

fn objects(value: Option<&Value>) -> impl Iterator<Item = &Map<String, Value>> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object)
}

fn strings(value: Option<&Value>) -> impl Iterator<Item = String> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(str::to_owned)
}

fn codes<'a>(object: &'a Map<String, Value>, list: &str, name: &'a str) -> impl Iterator<Item = String> + 'a {
    objects(object.get(list))
        .filter_map(move |item| text(item, name))
        .map(|code| code.trim_start_matches('$').to_owned())
}
