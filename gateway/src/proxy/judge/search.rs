//! Searches: by type, over the whole server, in a compartment, and conditions that are searches too.

use http::{HeaderValue, Method, header::CONTENT_TYPE};
use mantel_adapters::{
    fhir::{
        compartment::{Class, class, patient_parameters},
        interaction::{Interaction, Request, encode_pairs, parse_query},
        links::JudgedSearch,
        types::is_resource_type,
    },
    smart::scope::{Permissions, ScopeQuery},
};

use super::{
    Authorized, Case, Inspection, accept,
    grounds::{self, Way},
    parameters::{
        Include, Naming, Pairs, Touch, bind_patient, include, names_patient, refuse_odd_names, refuse_odd_spelling,
        refuse_other_references, split, touches,
    },
    refusal,
    refusal::{forbidden, malformed},
    refuse_smuggling,
};
use crate::error::{Error, Result};

const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");

/// A search as it may be sent.
pub(super) struct Allowed {
    pub(super) parameters: Pairs,
    pub(super) judged: JudgedSearch,
    pub(super) streams: bool,
}

pub(super) fn judge(case: &Case<'_>, mut request: Request, interaction: Interaction) -> Result<Authorized> {
    let is_form = request.method == Method::POST;
    let parameters = take_parameters(&mut request, is_form)?;
    refuse_smuggling(&request.headers, &parameters)?;
    let mut allowed = match &interaction {
        Interaction::SearchType { resource_type } => {
            refuse_foreign_types(resource_type, &parameters)?;
            of_type(case, resource_type, &parameters, Naming::Parameter)?
        }
        Interaction::SearchCompartment { compartment, id, resource_type } => {
            in_compartment(case, compartment, id, resource_type.as_deref(), parameters)?
        }
        Interaction::SearchSystem => match types_of(&parameters)? {
            Some(types) => of_types(case, &types, parameters)?,
            None => of_all(case, parameters)?,
        },
        _ => return Err(Error::internal("no search")),
    };
    let streams = allowed.streams && !case.always_inspects();
    let by_format = if streams {
        false
    } else {
        accept::shape(&mut allowed.parameters)?;
        accept::take_format(&mut allowed.parameters)?
    };
    if by_format {
        request.headers.remove(http::header::ACCEPT);
    }
    put_parameters(&mut request, allowed.parameters, is_form);
    let resource_type = allowed.judged.resource_type.clone();
    let authorized = if streams {
        Authorized::stream(request, interaction)
    } else {
        Authorized::inspect(request, interaction, Inspection::of_search(case, resource_type.as_deref()))?
    };
    Ok(Authorized { searched: Some(allowed.judged), ..authorized })
}

/// The parameters of query and form in one place: of the two, vendors ignore one.
fn take_parameters(request: &mut Request, is_form: bool) -> Result<Pairs> {
    let mut parameters = std::mem::take(&mut request.query);
    let body = std::mem::take(&mut request.body);
    if is_form {
        let unreadable = || malformed("The form is no application/x-www-form-urlencoded text.");
        let text = std::str::from_utf8(&body).map_err(|_| unreadable())?;
        parameters.extend(parse_query(text).map_err(|_| unreadable())?);
    }
    Ok(parameters)
}

fn put_parameters(request: &mut Request, parameters: Pairs, is_form: bool) {
    if is_form {
        request.body = encode_pairs(&parameters).into();
        request.headers.insert(CONTENT_TYPE, FORM);
    } else {
        request.query = parameters;
    }
}

/// The types of a search over the whole server; `None`: all.
fn types_of(parameters: &[(String, String)]) -> Result<Option<Vec<String>>> {
    let is_type = |name: &str| split(name).0.eq_ignore_ascii_case("_type");
    let given: Vec<_> = parameters.iter().filter(|(name, _)| is_type(name)).cloned().collect();
    let [(name, value)] = given.as_slice() else {
        return if given.is_empty() { Ok(None) } else { Err(malformed("_type stands twice: expected _type=A,B.")) };
    };
    let types: Vec<String> = value.split(',').map(str::to_owned).collect();
    if name != "_type" || types.iter().any(|name| !is_resource_type(name)) {
        return Err(malformed(
            "_type is malformed: expected resource types of FHIR R4, as in _type=Condition,Observation.",
        ));
    }
    Ok(Some(types))
}

/// A `_type` besides the path's could be what some server goes by.
fn refuse_foreign_types(resource_type: &str, parameters: &[(String, String)]) -> Result<()> {
    let foreign = |(name, value): &(String, String)| {
        split(name).0.eq_ignore_ascii_case("_type") && (name != "_type" || value != resource_type)
    };
    if parameters.iter().any(foreign) {
        return Err(malformed("_type names another type than the path: expected one of the two."));
    }
    Ok(())
}

fn in_compartment(
    case: &Case<'_>,
    compartment: &str,
    id: &str,
    resource_type: Option<&str>,
    mut parameters: Pairs,
) -> Result<Allowed> {
    let names_ours = compartment == "Patient" && case.patient() == Some(id);
    let naming = if names_ours { Naming::Path } else { Naming::Parameter };
    let types = match resource_type {
        Some(name) => {
            refuse_foreign_types(name, &parameters)?;
            vec![name.to_owned()]
        }
        None => match types_of(&parameters)? {
            Some(types) => types,
            None => {
                grounds::require_all(case, Permissions::SEARCH)?;
                let open = grounds::is_open_for_all(case, Permissions::SEARCH);
                if !open && !names_ours {
                    return Err(not_our_compartment(compartment));
                }
                refuse_touching(case, None, &parameters)?;
                if !open && let Some(patient) = case.patient() {
                    for (_, value) in &parameters {
                        refuse_other_references(value, patient, case.bases)?;
                    }
                }
                let streams = open && includes(case, &parameters)?;
                let judged = JudgedSearch { patient: patient_of(case, open), ..JudgedSearch::default() };
                return Ok(Allowed { parameters, judged, streams });
            }
        },
    };
    let mut streams = true;
    let mut required = Pairs::new();
    let mut limited = false;
    for name in &types {
        let ways = grounds::ways(case, name, Permissions::SEARCH)?;
        let open = ways.contains(&Way::Open);
        // The id in the path would be looked up; another patient's compartment is never ours to search.
        let may_name = ways.iter().any(|way| !way.is_patients() || compartment != "Patient" && way.streams());
        if !open && !names_ours && !may_name {
            return Err(not_our_compartment(compartment));
        }
        let allowed = of_type(case, name, &parameters, naming)?;
        parameters = allowed.parameters;
        streams &= allowed.streams;
        limited |= !open;
        required.extend(allowed.judged.required);
    }
    let judged =
        JudgedSearch { resource_type: resource_type.map(str::to_owned), patient: patient_of(case, !limited), required };
    Ok(Allowed { parameters, judged, streams })
}

fn patient_of(case: &Case<'_>, open: bool) -> Option<String> {
    if open { None } else { case.patient().map(str::to_owned) }
}

fn not_our_compartment(compartment: &str) -> Error {
    if compartment == "Patient" {
        refusal::other_patient()
    } else {
        forbidden(
            "This token opens what is one patient's or of one kind: search the type itself, not another compartment.",
        )
    }
}

/// Several types by name.
fn of_types(case: &Case<'_>, types: &[String], parameters: Pairs) -> Result<Allowed> {
    if let [one] = types {
        let mut allowed = of_type(case, one, &parameters, Naming::Parameter)?;
        // A link of this search names no type in its path.
        allowed.judged.resource_type = Some(one.clone());
        return Ok(allowed);
    }
    let unsayable = || forbidden("A search over several types cannot be held to a scope's query: search each type.");
    let mut confined = Vec::new();
    for name in types {
        let ways = grounds::ways(case, name, Permissions::SEARCH)?;
        match ways.first() {
            Some(Way::Open) => {}
            Some(Way::Patient(queries)) if !queries.is_empty() => return Err(unsayable()),
            Some(way) if way.is_patients() && has_patient(name) => confined.push(name.as_str()),
            Some(way) if way.is_patients() => {}
            _ => return Err(unsayable()),
        }
    }
    let naming = match confined.split_first() {
        None => Naming::Path,
        Some(_) if confined.len() < types.len() => {
            return Err(forbidden(
                "Only some of the types are confined to the patient in context: search those that are not by themselves.",
            ));
        }
        Some((first, rest)) => {
            let common = patient_parameters(first)
                .iter()
                .find(|name| rest.iter().all(|other| patient_parameters(other).contains(name)));
            Naming::Named(common.ok_or_else(|| {
                forbidden("These types have no common parameter for the patient in context: search each type.")
            })?)
        }
    };
    let mut streams = includes(case, &parameters)?;
    let mut parameters = parameters;
    for name in types {
        refuse_odd_spelling(&[name], &parameters)?;
        let limited = !grounds::streams(case, name, Permissions::SEARCH);
        streams &= !limited;
        refuse_touching(case, Some(name), &parameters)?;
    }
    if let (Naming::Named(_), Some(patient)) = (naming, case.patient()) {
        refuse_odd_names(&parameters)?;
        for name in &confined {
            parameters = bind_patient(name, parameters, patient, Naming::Path, case.bases)?;
        }
        if let Some(first) = confined.first() {
            parameters = bind_patient(first, parameters, patient, naming, case.bases)?;
        }
    }
    let judged = JudgedSearch { patient: patient_of(case, confined.is_empty()), ..JudgedSearch::default() };
    Ok(Allowed { parameters, judged, streams })
}

fn of_all(case: &Case<'_>, parameters: Pairs) -> Result<Allowed> {
    grounds::require_all(case, Permissions::SEARCH)?;
    if !grounds::is_open_for_all(case, Permissions::SEARCH) {
        return Err(forbidden(
            "A search over all types cannot be confined to the patient in context: name types in _type, or search each type.",
        ));
    }
    refuse_odd_spelling(&[], &parameters)?;
    refuse_touching(case, None, &parameters)?;
    let streams = includes(case, &parameters)?;
    Ok(Allowed { parameters, judged: JudgedSearch::default(), streams })
}

/// Whether resources of that type have a patient by whom they are searched.
fn has_patient(resource_type: &str) -> bool {
    matches!(class(resource_type), Class::Patient | Class::Compartment(_) | Class::Members | Class::Device)
}

/// One type: by the way that fits the parameters.
pub(super) fn of_type(
    case: &Case<'_>,
    resource_type: &str,
    parameters: &[(String, String)],
    naming: Naming,
) -> Result<Allowed> {
    let mut ways = grounds::ways(case, resource_type, Permissions::SEARCH)?;
    let names_ours = naming == Naming::Path
        || case.patient().is_some_and(|patient| names_patient(resource_type, parameters, patient, case.bases));
    if !names_ours {
        // What is not about the patient in context is tried by the other scopes first.
        ways.sort_by_key(Way::is_patients);
    }
    let mut refused = None;
    for way in ways {
        match by_way(case, resource_type, &way, parameters.to_vec(), naming) {
            Ok(allowed) => return Ok(allowed),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| refusal::not_covered(&case.session.enforced, resource_type, Permissions::SEARCH)))
}

fn by_way(case: &Case<'_>, resource_type: &str, way: &Way, parameters: Pairs, naming: Naming) -> Result<Allowed> {
    refuse_odd_spelling(&[resource_type], &parameters)?;
    refuse_touching(case, Some(resource_type), &parameters)?;
    let streams = includes(case, &parameters)? && way.streams();
    let mut parameters = parameters;
    let mut patient = None;
    if way.is_patients() {
        let ours = case.patient().ok_or_else(|| refusal::no_patient(resource_type, Permissions::SEARCH))?;
        refuse_odd_names(&parameters)?;
        if has_patient(resource_type) {
            parameters = bind_patient(resource_type, parameters, ours, naming, case.bases)?;
            patient = Some(ours.to_owned());
        } else {
            for (_, value) in &parameters {
                refuse_other_references(value, ours, case.bases)?;
            }
        }
    }
    let mut required = match way {
        Way::Patient(queries) | Way::Constrained(queries) => {
            refuse_odd_names(&parameters)?;
            constrain(&mut parameters, queries)?
        }
        Way::Open | Way::Confined => Pairs::new(),
    };
    // Further pages include as the first one did: a link that does not say so is bound.
    required.extend(parameters.iter().filter(|(name, _)| matches!(split(name).0, "_include" | "_revinclude")).cloned());
    let judged = JudgedSearch { resource_type: Some(resource_type.to_owned()), patient, required };
    Ok(Allowed { parameters, judged, streams })
}

/// Holds a search to a scope's queries, so that what is outside is not even counted; answers what further pages must
/// repeat.
fn constrain(parameters: &mut Pairs, queries: &[ScopeQuery]) -> Result<Pairs> {
    let Some(first) = queries.first() else { return Ok(Pairs::new()) };
    if let Some(query) = queries.iter().find(|query| query.pairs().iter().all(|pair| parameters.contains(pair))) {
        return Ok(query.pairs().to_vec());
    }
    let wanted = if queries.len() == 1 {
        first.pairs().to_vec()
    } else {
        let singles: Option<Vec<_>> = queries.iter().map(single).collect();
        let singles = singles.filter(|pairs| pairs.iter().all(|(name, _)| Some(*name) == single(first).map(|it| it.0)));
        let Some(pairs) = singles else {
            return Err(forbidden(
                "This token's scopes for the type have several queries that no one search can say: search by the parameters of one of them.",
            ));
        };
        let values: Vec<&str> = pairs.iter().map(|(_, value)| *value).collect();
        vec![(pairs.first().map(|(name, _)| (*name).to_owned()).unwrap_or_default(), values.join(","))]
    };
    for (name, value) in &wanted {
        let allowed: Vec<&str> = value.split(',').collect();
        let within =
            |(given, value): &(String, String)| given == name && value.split(',').all(|it| allowed.contains(&it));
        if !parameters.iter().any(within) {
            parameters.push((name.clone(), value.clone()));
        }
    }
    let repeated = |(name, value): &(String, String)| {
        wanted.iter().any(|(wanted, allowed)| {
            wanted == name && value.split(',').all(|it| allowed.split(',').any(|allowed| allowed == it))
        })
    };
    Ok(parameters.iter().filter(|pair| repeated(pair)).cloned().collect())
}

fn single(query: &ScopeQuery) -> Option<(&str, &str)> {
    match query.pairs() {
        [(name, value)] => Some((name, value)),
        _ => None,
    }
}

/// What is asked about types must be covered whole: what is held back of an answer still shows in which hits there
/// are, and in their order.
///
/// # Errors
/// A parameter touches a type that is covered in part only, or not at all.
pub(super) fn refuse_touching(
    case: &Case<'_>,
    resource_type: Option<&str>,
    parameters: &[(String, String)],
) -> Result<()> {
    for (name, value) in parameters {
        for touch in touches(name, value)? {
            let (touched, covered) = match &touch {
                Touch::Own => {
                    let covered = resource_type.map_or_else(
                        || grounds::is_stream_for_all(case, Permissions::SEARCH),
                        |name| grounds::streams(case, name, Permissions::SEARCH),
                    );
                    (resource_type, covered)
                }
                Touch::Type(name) => (Some(name.as_str()), grounds::streams(case, name, Permissions::SEARCH)),
                Touch::Any => (None, grounds::is_stream_for_all(case, Permissions::SEARCH)),
            };
            if !covered {
                return Err(refusal::touches(known_name(name), touched));
            }
        }
    }
    Ok(())
}

/// The name as it is told: not what the app may have put into it.
fn known_name(name: &str) -> &'static str {
    match split(name).0 {
        "_has" => "_has",
        "_sort" => "_sort",
        "_text" => "_text",
        "_content" => "_content",
        "_list" => "_list",
        "_filter" => "_filter",
        "_query" => "_query",
        _ => "with a chain",
    }
}

/// Judges what is included; tells whether all of it is open, so that nothing needs inspection.
///
/// # Errors
/// A type that may not be read, or a wildcard that is not covered.
pub(super) fn includes(case: &Case<'_>, parameters: &[(String, String)]) -> Result<bool> {
    let mut open = true;
    for (name, value) in parameters {
        match include(name, value)? {
            None => {}
            Some(Include::Type(name)) => {
                open &= grounds::ways(case, &name, Permissions::READ)?.contains(&Way::Open);
            }
            Some(Include::Unnamed) => open &= grounds::is_open_for_all(case, Permissions::READ),
            Some(Include::Everything) if grounds::is_open_for_all(case, Permissions::READ) => {}
            Some(Include::Everything) => {
                return Err(forbidden(
                    "A wildcard in _include or _revinclude needs user/*.r or system/*.r: name what to include.",
                ));
            }
        }
    }
    Ok(open)
}

/// A condition (`If-None-Exist`, conditional references) counts as a search. Answers its parameters as they may be
/// sent, and whether the EHR alone can be left to decide it.
///
/// # Errors
/// The search would be refused, or shows by its effect what is held back.
pub(super) fn condition(case: &Case<'_>, resource_type: &str, text: &str) -> Result<Allowed> {
    let text = text.strip_prefix('?').unwrap_or(text);
    let parameters = parse_query(text).map_err(|_| malformed("A condition is no query: expected parameter=value&…"))?;
    refuse_smuggling(&http::HeaderMap::new(), &parameters)?;
    if parameters.is_empty() {
        return Err(malformed("A condition has no criteria: expected parameter=value&…"));
    }
    let allowed = of_type(case, resource_type, &parameters, Naming::Parameter)?;
    // Epic drops all others besides `_id`, the patient too.
    if !allowed.streams
        && resource_type != "Patient"
        && allowed.parameters.iter().any(|(name, _)| split(name).0 == "_id")
    {
        return Err(forbidden("A condition with _id tells whether that id exists: leave it out."));
    }
    Ok(allowed)
}
