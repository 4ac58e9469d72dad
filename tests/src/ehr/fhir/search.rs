//! Searches: reading the question, holding it against the records.

use std::sync::Arc;

use http::{Method, header};
use serde_json::Value;

use super::{
    Asked, House, State,
    access::Need,
    catalog::TypeRule,
    compartment::{self, collect},
    fault::Fault,
    paging::{self, View},
    params::{self, Bad, How, Kind, Test, Wanted},
    reply::Reply,
    store::Store,
    vendors,
};
use crate::ehr::contract::Vendor;

/// A search as one vendor understands it.
#[derive(Clone, Debug, Default)]
pub struct Question {
    pub ty: String,
    /// Where it was asked, below the base.
    pub path: String,
    /// What was understood, in its order: the `self` link.
    pub pairs: Vec<(String, String)>,
    pub criteria: Vec<(String, String)>,
    pub includes: Vec<String>,
    pub revincludes: Vec<String>,
    /// Parameter, and whether it descends.
    pub sort: Vec<(String, bool)>,
    pub count: Option<usize>,
    pub summary: Option<String>,
    pub elements: Vec<String>,
    /// Where a page begins: Oracle's `pageContext`, athenaOne's `cursor`.
    pub position: Option<String>,
    pub unknown: Vec<String>,
    /// Issues that travel in an entry of their own.
    pub notes: Vec<Value>,
}

impl Question {
    pub fn has(&self, name: &str) -> bool {
        self.criteria.iter().any(|(key, _)| bare(key) == name)
    }

    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.criteria.iter().filter(move |(key, _)| bare(key) == name).map(|(_, value)| value.as_str())
    }
}

/// A parameter's name without modifier and chain.
pub fn bare(name: &str) -> &str {
    name.split([':', '.']).next().unwrap_or(name)
}

#[derive(Clone, Debug)]
pub struct Hit {
    pub ty: String,
    pub id: String,
    pub resource: Arc<Value>,
    modified: i64,
}

impl Hit {
    /// A resource that came along with others.
    pub fn include(ty: &str, id: &str, resource: &Arc<Value>) -> Self {
        Self { ty: ty.to_owned(), id: id.to_owned(), resource: Arc::clone(resource), modified: 0 }
    }
}

/// `GET Type?…`, `POST Type/_search`.
///
/// `of`: the patient in whose compartment alone is searched (`GET Patient/{id}/Type`).
pub fn search(
    house: &House,
    state: &mut State,
    asked: &Asked,
    rule: &TypeRule,
    of: Option<&str>,
) -> Result<Reply, Fault> {
    if !rule.can('s') {
        return Err(Fault::Unsupported("search-type"));
    }
    let permit = asked.access.permit(rule.name, Need::Search).ok_or_else(|| Fault::NoScope(rule.name.to_owned()))?;
    let pairs = pairs(house, asked)?;
    let mut question = read(house, rule, pairs)?;
    vendors::examine(house, asked, rule, &mut question)?;
    // Most EHRs say so when a patient's token reaches for another patient; a plain server finds nothing.
    if house.vendor != Vendor::Generic
        && let Some(patient) = permit.confined_to()
        && selects_another(house, &question, patient)
    {
        return Err(Fault::Refused);
    }
    if let Some(patient) = of {
        question.path = format!("Patient/{patient}/{}", rule.name);
    }
    let hits = find(house, state, &mut question, |store, resource| {
        permit.admits(store, &house.base, resource)
            && of.is_none_or(|patient| store.owners(resource).iter().any(|owner| owner == patient))
    })?;
    unknown(house, asked, rule, &mut question)?;
    vendors::limit(house, rule.name, hits.len())?;
    let view = View::new(house, asked, question, hits)?;
    Ok(paging::page(house, state, asked, view))
}

/// The live resources of the question's type that `admits` lets through and that meet its criteria.
pub fn find(
    house: &House,
    state: &State,
    question: &mut Question,
    admits: impl Fn(&Store, &Value) -> bool,
) -> Result<Vec<Hit>, Fault> {
    let mut tests = Vec::new();
    for (name, value) in std::mem::take(&mut question.criteria) {
        match params::compile(&house.base, &question.ty, &name, &value) {
            Ok(test) => {
                tests.push(test);
                question.criteria.push((name, value));
            }
            Err(Bad::Unknown) => {
                question.pairs.retain(|(key, _)| *key != name);
                question.unknown.push(name);
            }
            Err(Bad::Value(reason)) => return Err(Fault::Parameter { name, reason }),
        }
    }
    let matcher = Matcher { store: &state.store, base: &house.base };
    let mut hits: Vec<Hit> = state
        .store
        .all(&question.ty)
        .filter(|(id, _, _)| {
            house.vendor != Vendor::Oracle || question.ty != "Patient" || state.store.merged_into(id).is_none()
        })
        .filter(|(_, version, resource)| {
            tests.iter().all(|test| matcher.holds(test, &question.ty, resource, Some(version.modified)))
        })
        .filter(|(_, _, resource)| admits(&state.store, resource))
        .map(|(id, version, resource)| Hit {
            ty: question.ty.clone(),
            id: id.to_owned(),
            resource: Arc::clone(resource),
            modified: version.modified,
        })
        .collect();
    for (name, descending) in question.sort.iter().rev() {
        hits.sort_by_cached_key(|hit| rank(&question.ty, name, hit));
        if *descending {
            hits.reverse();
        }
    }
    Ok(hits)
}

/// Query and body; which of the two counts is the vendor's affair.
fn pairs(house: &House, asked: &Asked) -> Result<Vec<(String, String)>, Fault> {
    if asked.method != Method::POST {
        return Ok(asked.pairs.clone());
    }
    let media = asked.header(header::CONTENT_TYPE.as_str()).unwrap_or_default();
    if !media.starts_with("application/x-www-form-urlencoded") {
        return Err(Fault::MediaType);
    }
    let body: Vec<_> = url::form_urlencoded::parse(&asked.body).into_owned().collect();
    Ok(match house.vendor {
        // Until February 2026 the body was void when there was a query, since then the query is.
        Vendor::Epic if !body.is_empty() && !asked.pairs.is_empty() => {
            if house.strict {
                asked.pairs.clone()
            } else {
                body
            }
        }
        _ => asked.pairs.iter().cloned().chain(body).collect(),
    })
}

/// Sorts parameters into what controls the answer, what selects, and what this vendor has never heard of.
pub fn read(house: &House, rule: &TypeRule, pairs: Vec<(String, String)>) -> Result<Question, Fault> {
    let controls = vendors::controls(house.vendor);
    let mut question = Question { ty: rule.name.to_owned(), path: rule.name.to_owned(), ..Question::default() };
    for (name, value) in pairs {
        let known = controls.contains(&bare(&name));
        match name.as_str() {
            "_format" | "_pretty" | "_total" | "direction" | "_contained" => continue,
            "ah-practice" if house.vendor == Vendor::Athena => continue,
            "pageContext" | "cursor" if known => {
                question.position = Some(value);
                continue;
            }
            "_count" if known => {
                let count = value
                    .parse::<usize>()
                    .map_err(|_| Fault::Parameter { name: name.clone(), reason: "_count takes a number".to_owned() })?;
                question.count = Some(count);
            }
            "_sort" if known => {
                question.sort.extend(params::alternatives(&value).map(|text| match text.strip_prefix('-') {
                    Some(rest) => (rest.to_owned(), true),
                    None => (text, false),
                }))
            }
            "_include" if known => question.includes.push(value.clone()),
            "_revinclude" if known => question.revincludes.push(value.clone()),
            "_summary" if known => question.summary = Some(value.clone()),
            "_elements" if known => question.elements.extend(params::alternatives(&value)),
            _ if rule.knows(bare(&name)) || (name.starts_with("_has:") && known) => {
                if value.is_empty() {
                    continue;
                }
                question.criteria.push((name.clone(), value.clone()));
            }
            // Oracle's own parameters start with a dash, athenaOne's with `ah-`.
            _ if house.vendor == Vendor::Oracle && name.starts_with('-') => {}
            _ if house.vendor == Vendor::Athena && name.starts_with("ah-") => {}
            _ => {
                question.unknown.push(name);
                continue;
            }
        }
        question.pairs.push((name, value));
    }
    Ok(question)
}

/// What a vendor does with parameters that it does not know.
fn unknown(house: &House, asked: &Asked, rule: &TypeRule, question: &mut Question) -> Result<(), Fault> {
    if question.unknown.is_empty() {
        return Ok(());
    }
    let strict = asked.header("prefer").is_some_and(|prefer| prefer.contains("handling=strict"));
    match house.vendor {
        Vendor::Epic => {
            let notes: Vec<_> = question.unknown.iter().map(|name| vendors::epic::unknown_parameter(name)).collect();
            question.notes.splice(0..0, notes);
            Ok(())
        }
        Vendor::Oracle | Vendor::Athena => Ok(()),
        Vendor::Generic if !strict => Ok(()),
        Vendor::Generic | Vendor::AthenaPractice => Err(Fault::UnknownParameters {
            method: if asked.method == Method::POST { "POST" } else { "GET" },
            ty: rule.name.to_owned(),
            names: question.unknown.clone(),
        }),
    }
}

/// Whether any selector of a patient names one besides `patient`.
fn selects_another(house: &House, question: &Question, patient: &str) -> bool {
    let names: &[&str] = if question.ty == "Patient" { &["_id"] } else { &["patient", "subject"] };
    names.iter().any(|name| {
        question.values(name).any(|value| {
            params::alternatives(value).any(|text| {
                let id = compartment::local(&house.base, &text).map_or(text.as_str(), |(_, id)| id);
                id != patient
            })
        })
    })
}

/// Holds criteria against resources.
pub struct Matcher<'a> {
    pub store: &'a Store,
    pub base: &'a str,
}

impl Matcher<'_> {
    /// `modified`: when the version at hand was written; none: look it up.
    pub fn holds(&self, test: &Test, ty: &str, resource: &Value, modified: Option<i64>) -> bool {
        match test {
            Test::Token { paths, wanted, not } => {
                values(resource, paths).any(|value| wanted.iter().any(|wanted| token(value, wanted))) != *not
            }
            Test::Text { paths, wanted, how } => values(resource, paths)
                .any(|value| words(value).iter().any(|word| wanted.iter().any(|wanted| says(word, wanted, *how)))),
            Test::Date { paths, wanted } => values(resource, paths)
                .filter_map(params::range)
                .any(|range| wanted.iter().any(|(prefix, value)| prefix.holds(*value, range))),
            Test::Updated(wanted) => {
                let id = resource.get("id").and_then(Value::as_str).unwrap_or_default();
                let at = modified.or_else(|| self.store.newest(ty, id).map(|version| version.modified)).unwrap_or(0);
                let range = super::date::Range { from: at, to: at + 1 };
                wanted.iter().any(|(prefix, value)| prefix.holds(*value, range))
            }
            Test::Reference { paths, wanted } => self.targets(resource, paths).any(|(ty, id)| {
                wanted.iter().any(|(want, wanted)| wanted == id && want.as_deref().is_none_or(|want| want == ty))
            }),
            Test::Missing { paths, missing } => values(resource, paths).next().is_none() == *missing,
            Test::Chain { paths, ty: want, name, value } => self.targets(resource, paths).any(|(ty, id)| {
                want.as_deref().is_none_or(|want| want == ty)
                    && self.store.live(ty, id).is_some_and(|target| self.satisfies(ty, target, name, value))
            }),
            Test::Has { ty, through, name, value } => {
                let own = resource.get("id").and_then(Value::as_str).unwrap_or_default();
                let own_type = resource.get("resourceType").and_then(Value::as_str).unwrap_or_default();
                self.store.all(ty).any(|(_, _, other)| {
                    self.targets(other, through).any(|(ty, id)| ty == own_type && id == own)
                        && self.satisfies(ty, other, name, value)
                })
            }
        }
    }

    fn satisfies(&self, ty: &str, resource: &Value, name: &str, value: &str) -> bool {
        params::compile(self.base, ty, name, value).is_ok_and(|test| self.holds(&test, ty, resource, None))
    }

    /// The local targets of references.
    pub fn targets<'a>(
        &'a self,
        resource: &'a Value,
        paths: &'a [&'static str],
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        values(resource, paths)
            .filter_map(|value| value.get("reference").and_then(Value::as_str))
            .filter_map(|text| compartment::local(self.base, text))
    }
}

fn values<'a>(resource: &'a Value, paths: &'a [&'static str]) -> impl Iterator<Item = &'a Value> {
    paths.iter().flat_map(move |path| collect(resource, path))
}

/// A code, boolean, Coding, CodeableConcept, Identifier or ContactPoint against `system|code`.
fn token(value: &Value, wanted: &Wanted) -> bool {
    match value {
        // The system of a bare code is implied.
        Value::String(text) => wanted.code.as_deref() == Some(text),
        Value::Bool(truth) => wanted.code.as_deref() == Some(if *truth { "true" } else { "false" }),
        Value::Object(members) => {
            if let Some(codings) = members.get("coding").and_then(Value::as_array) {
                return codings.iter().any(|coding| token(coding, wanted));
            }
            let text = |name: &str| members.get(name).and_then(Value::as_str);
            let code = text("code").or_else(|| text("value"));
            wanted.code.as_deref().is_none_or(|want| code == Some(want))
                && wanted.system.as_deref().is_none_or(|want| text("system").unwrap_or_default() == want)
        }
        _ => false,
    }
}

/// Every string inside a value: the parts of a HumanName.
fn words(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(items) => items.iter().flat_map(words).collect(),
        Value::Object(members) => members.values().flat_map(words).collect(),
        _ => Vec::new(),
    }
}

fn says(word: &str, wanted: &str, how: How) -> bool {
    match how {
        How::Exact => word == wanted,
        How::Starts => fold(word).starts_with(&fold(wanted)),
        How::Contains => fold(word).contains(&fold(wanted)),
    }
}

/// Case and the accents of our patients' names do not count (R4 search, "string").
fn fold(text: &str) -> String {
    text.to_lowercase()
        .chars()
        .map(|letter| match letter {
            'á' => 'a',
            'é' => 'e',
            'í' => 'i',
            'ó' => 'o',
            'ú' | 'ü' => 'u',
            'ñ' => 'n',
            other => other,
        })
        .collect()
}

/// What a resource is sorted by.
fn rank(ty: &str, name: &str, hit: &Hit) -> (i64, String) {
    match name {
        "_lastUpdated" => (hit.modified, String::new()),
        "_id" => (0, hit.id.clone()),
        _ => {
            let Some(param) = params::find(ty, name) else { return (0, String::new()) };
            let mut found = values(&hit.resource, param.paths);
            match param.kind {
                Kind::Date => {
                    (found.filter_map(params::range).map(|range| range.from).min().unwrap_or(i64::MIN), String::new())
                }
                _ => (0, found.next().map(|value| words(value).join(" ")).unwrap_or_default()),
            }
        }
    }
}
