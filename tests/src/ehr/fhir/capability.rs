//! CapabilityStatements, made from the catalog. The authorization server adds `rest.security`.

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::{
    Asked, House,
    catalog::{self, TypeRule},
    everything,
    fault::Fault,
    params,
    reply::Reply,
    vendors,
};
use crate::ehr::contract::Vendor;

pub fn metadata(house: &House, asked: &Asked) -> Result<Reply, Fault> {
    if house.vendor == Vendor::Epic && !vendors::asks_for_json(asked) {
        return Ok(vendors::epic::metadata_xml(house));
    }
    if !vendors::accepts_json(asked) {
        return Err(Fault::Unacceptable);
    }
    Ok(Reply::fhir(StatusCode::OK, statement(house)))
}

fn statement(house: &House) -> Value {
    let mut members = Map::new();
    members.insert("resourceType".to_owned(), json!("CapabilityStatement"));
    members.insert("status".to_owned(), json!("active"));
    members.insert("date".to_owned(), json!("2026-08-14"));
    members.insert("kind".to_owned(), json!("instance"));
    let about = match house.vendor {
        Vendor::Epic => {
            json!({"software": {"name": "Epic", "version": "May 2026", "releaseDate": "2026-05-11"}, "format": ["xml", "json"]})
        }
        Vendor::Oracle => json!({
            "name": "OracleHealthCapabilityStatement",
            "publisher": "Oracle Health",
            "format": ["json", "application/fhir+json"],
            "patchFormat": ["application/json-patch+json"],
        }),
        Vendor::Athena => json!({
            "publisher": "athenahealth",
            "software": {"name": "athenahealth FHIR Server"},
            "format": ["json", "application/json", "application/json+fhir", "application/fhir+json"],
        }),
        Vendor::AthenaPractice => json!({
            "software": {"name": "HAPI FHIR Server", "version": "7.4.0"},
            "format": ["application/fhir+json", "json"],
        }),
        Vendor::Generic => json!({
            "software": {"name": "simulated-ehr"},
            "format": ["application/fhir+json", "json"],
            "patchFormat": ["application/json-patch+json"],
        }),
    };
    if let Value::Object(about) = about {
        members.extend(about);
    }
    members.insert("fhirVersion".to_owned(), json!("4.0.1"));
    members.insert("implementation".to_owned(), json!({"description": house.vendor.text(), "url": house.base}));
    let resources: Vec<Value> = catalog::rules(house.vendor).iter().map(|rule| resource(house, rule)).collect();
    let mut rest = json!({"mode": "server", "resource": resources});
    let system: &[&str] = match house.vendor {
        Vendor::Oracle => &["batch"],
        Vendor::Generic => &["batch", "transaction", "history-system"],
        Vendor::Epic | Vendor::Athena | Vendor::AthenaPractice => &[],
    };
    if let (Some(rest), false) = (rest.as_object_mut(), system.is_empty()) {
        rest.insert("interaction".to_owned(), codes(system));
    }
    members.insert("rest".to_owned(), json!([rest]));
    Value::Object(members)
}

fn codes(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"code": name})).collect()
}

fn resource(house: &House, rule: &TypeRule) -> Value {
    let interactions: Vec<&str> = [
        ('c', "create"),
        ('r', "read"),
        ('h', "vread"),
        ('s', "search-type"),
        ('u', "update"),
        ('p', "patch"),
        ('d', "delete"),
        ('h', "history-instance"),
        ('h', "history-type"),
    ]
    .into_iter()
    .filter(|(letter, _)| rule.can(*letter))
    .map(|(_, name)| name)
    .collect();
    let mut entry = json!({"type": rule.name, "interaction": codes(&interactions)});
    let Some(members) = entry.as_object_mut() else { return entry };
    if house.vendor == Vendor::Generic {
        members.insert("versioning".to_owned(), json!("versioned-update"));
        members.insert("readHistory".to_owned(), json!(true));
        members.insert("updateCreate".to_owned(), json!(true));
        members.insert("conditionalCreate".to_owned(), json!(rule.can('+')));
        members.insert("conditionalUpdate".to_owned(), json!(rule.can('+')));
        members.insert("conditionalDelete".to_owned(), json!(if rule.can('+') { "single" } else { "not-supported" }));
    }
    if rule.can('s') {
        let (include, revinclude): (&[&str], &[&str]) = match house.vendor {
            Vendor::Oracle => (&[], &["Provenance:target"]),
            _ => (&["*"], &["Provenance:target"]),
        };
        members.insert("searchInclude".to_owned(), json!(include));
        members.insert("searchRevInclude".to_owned(), json!(revinclude));
        let known: Vec<Value> = params::of(rule.name)
            .filter(|param| rule.knows(param.name))
            .map(|param| json!({"name": param.name, "type": param.kind.text()}))
            .chain([json!({"name": "_count", "type": "number"})])
            .collect();
        members.insert("searchParam".to_owned(), json!(known));
    }
    if rule.name == "Patient" && everything::served(house.vendor) {
        members.insert(
            "operation".to_owned(),
            json!([{"name": "everything", "definition": "http://hl7.org/fhir/OperationDefinition/Patient-everything"}]),
        );
    }
    entry
}
