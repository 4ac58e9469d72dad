//! Where vendors part ways: what a search must have, how an error reads, which headers an answer wears.
//!
//! The numbers are points of `vendors.md` part B.

pub mod athena;
pub mod epic;
pub mod generic;
pub mod oracle;
pub mod practice;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde_json::Value;

use super::{
    Asked, House, State,
    catalog::TypeRule,
    fault::Fault,
    params,
    reply::{Body, Reply},
    search::Question,
};
use crate::ehr::contract::{FhirAnswer, Vendor};

/// The parameters that steer an answer rather than select resources.
pub const fn controls(vendor: Vendor) -> &'static [&'static str] {
    match vendor {
        Vendor::Epic => &["_count", "_include", "_revinclude"],
        Vendor::Oracle => &["_count", "_include", "_revinclude", "pageContext"],
        Vendor::Athena => &["_count", "_include", "_revinclude", "_sort", "cursor"],
        Vendor::AthenaPractice | Vendor::Generic => {
            &["_count", "_include", "_revinclude", "_sort", "_summary", "_elements", "_has"]
        }
    }
}

/// How many matches a page holds.
pub fn page_size(house: &House, question: &Question) -> usize {
    let (default, most) = match (house.vendor, question.ty.as_str()) {
        (Vendor::Oracle, "Patient") => (20, 100),
        (Vendor::Oracle, "Observation") => (50, 200),
        (Vendor::Oracle, _) => (50, 100),
        (Vendor::Epic, _) => (100, 1000),
        _ => (50, 250),
    };
    let most = house.page_size.map_or(most, |size| size.min(most)).max(1);
    // Oracle: `_count` is void beside `_id`.
    let asked = question.count.filter(|_| house.vendor != Vendor::Oracle || !question.has("_id"));
    asked.unwrap_or(default).clamp(1, most)
}

/// Refuses, or changes, a search as this vendor does before it looks at any record.
pub fn examine(house: &House, asked: &Asked, rule: &TypeRule, question: &mut Question) -> Result<(), Fault> {
    match house.vendor {
        Vendor::Epic => epic::examine(house, rule, question),
        Vendor::Oracle => oracle::examine(house, asked, rule, question),
        Vendor::Athena => athena::examine(house, rule, question),
        Vendor::AthenaPractice | Vendor::Generic => Ok(()),
    }?;
    if rule.name == "Patient" && !house.patient_by_id && question.has("_id") {
        return Err(match house.vendor {
            Vendor::Epic => epic::required("Not enough information to match a patient.", "_id"),
            _ => Fault::Parameter { name: "_id".to_owned(), reason: "_id is not supported".to_owned() },
        });
    }
    Ok(())
}

/// Whether any one combination is complete.
pub fn complete(question: &Question, combinations: &[&[&str]]) -> bool {
    combinations.is_empty() || combinations.iter().any(|names| names.iter().all(|name| question.has(name)))
}

/// The most patients that one search may be about (Epic 8, Oracle 10).
const fn most_patients(vendor: Vendor) -> usize {
    match vendor {
        Vendor::Epic => 100,
        Vendor::Oracle => 1000,
        Vendor::Athena | Vendor::AthenaPractice | Vendor::Generic => usize::MAX,
    }
}

/// Refuses a search that names too many patients.
pub fn named(house: &House, question: &Question) -> Result<(), Fault> {
    let names: &[&str] = if question.ty == "Patient" { &["_id"] } else { &["patient", "subject"] };
    let count: usize =
        names.iter().flat_map(|name| question.values(name)).map(|value| params::alternatives(value).count()).sum();
    if count > most_patients(house.vendor) { Err(Fault::TooMany) } else { Ok(()) }
}

/// Refuses an answer with too many patients.
pub fn limit(house: &House, ty: &str, found: usize) -> Result<(), Fault> {
    if ty == "Patient" && found > most_patients(house.vendor) { Err(Fault::TooMany) } else { Ok(()) }
}

/// The issues that travel in a searchset's own outcome entry.
pub fn notes(house: &House, question: &Question, found: usize) -> Vec<Value> {
    match house.vendor {
        Vendor::Epic => epic::notes(question, found),
        Vendor::Oracle | Vendor::Athena | Vendor::AthenaPractice | Vendor::Generic => question.notes.clone(),
    }
}

/// A fault in the vendor's words.
pub fn fault(house: &House, fault: &Fault) -> Reply {
    match house.vendor {
        Vendor::Epic => epic::fault(house, fault),
        Vendor::Oracle => oracle::fault(house, fault),
        Vendor::Athena => athena::fault(fault),
        Vendor::AthenaPractice => practice::fault(house, fault),
        Vendor::Generic => generic::fault(fault),
    }
}

/// The answer outside of the FHIR base: another tenant's, or no service at all.
pub fn elsewhere(house: &House) -> Reply {
    match house.vendor {
        Vendor::Oracle => oracle::other_tenant(),
        _ => fault(house, &Fault::UnknownPath),
    }
}

/// Whether a request may be answered in FHIR JSON; `_format` beats `Accept` (R4 http, "Content Types").
pub fn accepts_json(asked: &Asked) -> bool {
    if let Some((_, format)) = asked.pairs.iter().find(|(name, _)| name == "_format") {
        return is_json(format);
    }
    let accepted = asked.headers.get_all(header::ACCEPT);
    let mut ranges = accepted
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .peekable();
    if ranges.peek().is_none() {
        return true;
    }
    ranges.any(|range| {
        let media = range.split(';').next().unwrap_or_default().trim();
        let refused = range.split(';').skip(1).any(|part| matches!(part.trim(), "q=0" | "q=0.0"));
        !refused && (matches!(media, "*/*" | "application/*") || is_json(media))
    })
}

/// Whether a FHIR representation is asked for by name: else a Binary comes as what it is.
pub fn asks_for_json(asked: &Asked) -> bool {
    let format = asked.pairs.iter().find(|(name, _)| name == "_format").map(|(_, format)| format.as_str());
    let accept = asked.header(header::ACCEPT.as_str());
    format
        .or(accept)
        .is_some_and(|text| text.split(',').any(|range| is_json(range.split(';').next().unwrap_or_default().trim())))
}

fn is_json(media: &str) -> bool {
    // A plus that a client did not encode arrives as a blank.
    matches!(
        media.replace(' ', "+").as_str(),
        "json" | "text/json" | "application/json" | "application/fhir+json" | "application/json+fhir"
    )
}

/// The whole answer, in the headers that this vendor's answers wear.
pub fn dress(house: &House, state: &mut State, asked: &Asked, reply: Reply) -> FhirAnswer {
    state.answered += 1;
    let serial = state.answered;
    let (content_type, body) = match reply.body {
        Body::Empty => (None, Bytes::new()),
        Body::Other(content_type, bytes) => (content_type, bytes),
        Body::Fhir(resource) => {
            let media = match house.vendor {
                Vendor::Epic => epic::media(asked),
                Vendor::Oracle => oracle::media(serial),
                Vendor::AthenaPractice => "application/fhir+json;charset=UTF-8",
                Vendor::Athena | Vendor::Generic => "application/fhir+json; charset=utf-8",
            };
            (Some(media.to_owned()), Bytes::from(resource.to_string()))
        }
    };
    let mut headers = HeaderMap::new();
    match house.vendor {
        Vendor::Epic => epic::headers(&mut headers),
        Vendor::Oracle => oracle::headers(&mut headers, serial),
        Vendor::Athena => athena::headers(&mut headers, serial),
        Vendor::AthenaPractice => {
            set(&mut headers, "x-powered-by", "HAPI FHIR 7.4.0 REST Server (FHIR Server; FHIR 4.0.1/R4)")
        }
        Vendor::Generic => set(&mut headers, "x-request-id", &format!("generic-{serial}")),
    }
    if !reply.cors {
        let names: Vec<HeaderName> =
            headers.keys().filter(|name| name.as_str().starts_with("access-control-")).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }
    if let Some(value) = content_type.and_then(|text| HeaderValue::try_from(text).ok()) {
        headers.insert(header::CONTENT_TYPE, value);
    }
    for (name, value) in reply.headers {
        headers.insert(name, value);
    }
    let mut answer = FhirAnswer::new(body);
    *answer.status_mut() = reply.status;
    *answer.headers_mut() = headers;
    answer
}

/// Adds a header; a value that no header can hold is left out.
pub fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.append(HeaderName::from_static(name), value);
    }
}
