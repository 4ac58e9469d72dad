//! From a path to an interaction.

use http::{Method, header};

use super::{
    Asked, Bearer, House, State, batch, capability,
    catalog::{self, TypeRule},
    everything,
    fault::Fault,
    paging, read,
    reply::Reply,
    search, vendors, write,
};
use crate::ehr::contract::Vendor;

/// What a request is counted under: a type, `metadata`, `Bundle` for the base itself, or `other`.
pub fn place(house: &House, asked: &Asked) -> &'static str {
    match asked.path.first().map(String::as_str) {
        None => "Bundle",
        Some("metadata") => "metadata",
        Some(ty) => catalog::rule(house.vendor, ty).map_or("other", |rule| rule.name),
    }
}

pub fn answer(house: &House, state: &mut State, asked: &Asked) -> Result<Reply, Fault> {
    let path: Vec<&str> = asked.path.iter().map(String::as_str).collect();
    if path == ["metadata"] && asked.method == Method::GET {
        return capability::metadata(house, asked);
    }
    match asked.bearer {
        Bearer::Absent => return Err(Fault::NoToken),
        Bearer::Bad => return Err(Fault::BadToken),
        Bearer::Live => {}
    }
    dispatch(house, state, asked)
}

/// An interaction of a bearer who is known; entries of Bundles begin here.
pub fn dispatch(house: &House, state: &mut State, asked: &Asked) -> Result<Reply, Fault> {
    let path: Vec<&str> = asked.path.iter().map(String::as_str).collect();
    let binary_read = matches!(path.as_slice(), ["Binary", _]) && asked.method == Method::GET;
    if !binary_read && !vendors::accepts_json(asked) {
        return Err(Fault::Unacceptable);
    }
    match path.as_slice() {
        [] => root(house, state, asked),
        ["_history"] if asked.method == Method::GET && house.vendor == Vendor::Generic => {
            read::system_history(house, state, asked)
        }
        [ty, rest @ ..] if ty.starts_with(|first: char| first.is_ascii_uppercase()) => {
            let rule = catalog::rule(house.vendor, ty).ok_or_else(|| Fault::UnknownType((*ty).to_owned()))?;
            typed(house, state, asked, rule, rest)
        }
        _ => Err(Fault::UnknownPath),
    }
}

fn root(house: &House, state: &mut State, asked: &Asked) -> Result<Reply, Fault> {
    if asked.entry.is_some() {
        return Err(Fault::Malformed("a Bundle in a Bundle".to_owned()));
    }
    match asked.method {
        Method::GET => paging::resume(house, state, asked).unwrap_or(Err(Fault::Unsupported("search-system"))),
        Method::POST => batch::run(house, state, asked),
        _ => Err(Fault::Unsupported("this method at the base")),
    }
}

fn typed(house: &House, state: &mut State, asked: &Asked, rule: &TypeRule, rest: &[&str]) -> Result<Reply, Fault> {
    let count = |interaction: &str| house.counters.count(format!("fhir:{interaction} {}", rule.name));
    let method = asked.method.as_str();
    let conditional = rule.can('+');
    match (method, rest) {
        ("GET", []) => {
            count("search-type");
            if house.vendor == Vendor::Athena {
                vendors::athena::practice(asked)?;
            }
            match paging::resume(house, state, asked) {
                Some(page) => page,
                None => search::search(house, state, asked, rule, None),
            }
        }
        ("POST", ["_search"]) => {
            count("search-type");
            if house.vendor == Vendor::Athena {
                vendors::athena::practice(asked)?;
            }
            search::search(house, state, asked, rule, None)
        }
        ("POST", []) => {
            count("create");
            write::create(house, state, asked, rule)
        }
        ("PUT", []) if conditional => {
            count("update");
            write::update_where(house, state, asked, rule)
        }
        ("PATCH", []) if conditional => {
            count("patch");
            write::patch_where(house, state, asked, rule)
        }
        ("DELETE", []) if conditional => {
            count("delete");
            write::delete_where(house, state, asked, rule)
        }
        ("GET", ["_history"]) if rule.can('h') => {
            count("history-type");
            read::type_history(house, state, asked, rule)
        }
        ("GET" | "POST", [id, "$everything"]) if rule.name == "Patient" && everything::served(house.vendor) => {
            count("$everything");
            everything::everything(house, state, asked, id)
        }
        (_, [.., last]) if last.starts_with('$') => Err(Fault::Unsupported("this operation")),
        ("GET", [id]) => {
            count("read");
            if house.vendor == Vendor::Athena {
                vendors::athena::practice(asked)?;
            }
            read::read(house, state, asked, rule, id)
        }
        ("PUT", [id]) => {
            count("update");
            write::update(house, state, asked, rule, id)
        }
        ("PATCH", [id]) => {
            count("patch");
            write::patch(house, state, asked, rule, id)
        }
        ("DELETE", [id]) => {
            count("delete");
            write::delete(house, state, asked, rule, id)
        }
        ("GET", [id, "_history"]) if rule.can('h') => {
            count("history-instance");
            read::history(house, state, asked, rule, id)
        }
        ("GET", [id, "_history", version]) if rule.can('h') => {
            count("vread");
            read::vread(house, state, asked, rule, id, version)
        }
        ("GET", [patient, ty]) if rule.name == "Patient" && house.vendor == Vendor::Generic && !ty.starts_with('_') => {
            let rule = catalog::rule(house.vendor, ty).ok_or_else(|| Fault::UnknownType((*ty).to_owned()))?;
            house.counters.count(format!("fhir:search-compartment {}", rule.name));
            search::search(house, state, asked, rule, Some(patient))
        }
        ("GET" | "POST" | "PUT" | "PATCH" | "DELETE", _) => Err(Fault::UnknownPath),
        _ => Err(Fault::Unsupported("this method")),
    }
}

/// The media type of a body, less its parameters.
pub fn media(asked: &Asked) -> &str {
    let value = asked.header(header::CONTENT_TYPE.as_str()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}
