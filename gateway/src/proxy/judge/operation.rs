//! Operations: those of the table, each as it is tied to the patient there.

use http::Method;
use mantel_adapters::{
    fhir::{
        compartment::{Class, class},
        interaction::{Interaction, Request},
        operations::{self, Needs, Operation, PatientRule},
    },
    smart::scope::{Context, Coverage, Permissions, ScopeSet},
};

use super::{
    Authorized, Case, Inspection, grounds,
    grounds::Way,
    parameters::{Naming, Pairs, bind_patient, refuse_odd_names, refuse_odd_spelling},
    refusal,
    refusal::{forbidden, malformed},
    refuse_smuggling, search, written,
};
use crate::error::{Error, Kind, Result};

pub(super) fn judge(case: &Case<'_>, request: Request, interaction: Interaction) -> Result<Authorized> {
    let Interaction::Operation { name, resource_type, id } = &interaction else {
        return Err(Error::internal("no operation"));
    };
    let Some(operation) = operations::find(name, resource_type.as_deref(), id.is_some()) else {
        return Err(forbidden(
            "This operation is not among those that pass here, at this place: use reads and searches.",
        ));
    };
    if request.method != Method::POST && !operation.get {
        return Err(Error::app(Kind::MethodNotAllowed, "This operation is called by POST."));
    }
    let reach = reach(case, operation, resource_type.as_deref())?;
    let (resource_type, id) = (resource_type.clone().unwrap_or_default(), id.clone());
    match reach {
        Reach::Open => open(case, operation, &resource_type, request, interaction),
        Reach::Patient { confined } => {
            by_patient(case, operation, confined, &resource_type, id.as_deref(), request, interaction)
        }
    }
}

enum Reach {
    Open,
    Patient { confined: bool },
}

/// By which scopes the operation is permitted. A scope's query permits none: what an operation answers is not what the
/// query speaks of. `$lastn` is a search and is judged as one.
fn reach(case: &Case<'_>, operation: &Operation, resource_type: Option<&str>) -> Result<Reach> {
    let scopes = &case.session.enforced;
    let letters = match operation.needs {
        Needs::OnType(letters) | Needs::OnAll(letters) => letters,
    };
    let needed = permissions(letters)?;
    let covered = |context| match operation.needs {
        Needs::OnType(_) => scopes.permits(context, resource_type.unwrap_or_default(), needed) == Coverage::Yes,
        Needs::OnAll(_) => covers_all(scopes, context, needed),
    };
    if covered(Context::System) || !operation.system_only && covered(Context::User) {
        return Ok(Reach::Open);
    }
    let named = match operation.needs {
        Needs::OnType(_) => resource_type.unwrap_or_default(),
        Needs::OnAll(_) => "*",
    };
    if operation.system_only {
        return Err(forbidden("This operation is for backend services: it needs system/*.rs."));
    }
    if !covered(Context::Patient) {
        return Err(refusal::not_covered(scopes, named, needed));
    }
    if case.patient().is_none() {
        return Err(refusal::no_patient(named, needed));
    }
    let confined = match operation.needs {
        Needs::OnType(_) => grounds::streams(case, named, needed),
        Needs::OnAll(_) => grounds::is_stream_for_all(case, needed),
    };
    Ok(Reach::Patient { confined })
}

fn covers_all(scopes: &ScopeSet, context: Context, needed: Permissions) -> bool {
    let mut types = mantel_adapters::fhir::types::RESOURCE_TYPES.iter();
    types.all(|name| scopes.permits(context, name, needed) == Coverage::Yes)
}

/// The letters of the table, which are few and ours.
fn permissions(letters: &str) -> Result<Permissions> {
    letters.chars().try_fold(Permissions::NONE, |sum, letter| match letter {
        'c' => Ok(sum | Permissions::CREATE),
        'r' => Ok(sum | Permissions::READ),
        'u' => Ok(sum | Permissions::UPDATE),
        'd' => Ok(sum | Permissions::DELETE),
        's' => Ok(sum | Permissions::SEARCH),
        _ => Err(Error::internal("an operation's permissions are no letters of cruds")),
    })
}

fn open(
    case: &Case<'_>,
    operation: &Operation,
    resource_type: &str,
    request: Request,
    interaction: Interaction,
) -> Result<Authorized> {
    if operation.patient == PatientRule::Search {
        let parameters = parameters(&request)?;
        search::refuse_touching(case, Some(resource_type), &parameters)?;
        search::includes(case, &parameters)?;
    }
    if case.always_inspects() && operation.patient != PatientRule::Nobody && !operation.system_only {
        return Authorized::inspect(
            request,
            interaction,
            Inspection::of_search(case, searched(operation, resource_type)),
        );
    }
    Ok(Authorized::stream(request, interaction))
}

/// The type whose search permission opens what the operation answers.
fn searched<'t>(operation: &Operation, resource_type: &'t str) -> Option<&'t str> {
    matches!(operation.needs, Needs::OnType(_)).then_some(resource_type)
}

fn by_patient(
    case: &Case<'_>,
    operation: &Operation,
    confined: bool,
    resource_type: &str,
    id: Option<&str>,
    mut request: Request,
    interaction: Interaction,
) -> Result<Authorized> {
    let patient = case.patient().unwrap_or_default();
    match operation.patient {
        PatientRule::Refused => {
            return Err(forbidden(
                "This operation cannot be confined to the patient in context: it needs user/ scopes.",
            ));
        }
        // Definitions and codes: nothing of it is anybody's.
        PatientRule::Nobody => return Ok(Authorized::stream(request, interaction)),
        PatientRule::UrlIsPatient if id != Some(patient) => return Err(refusal::other_patient()),
        PatientRule::UrlIsPatient => {
            let given = parameters(&request)?;
            check(&given, resource_type)?;
            bind_patient(resource_type, given, patient, Naming::Path, case.bases)?;
        }
        PatientRule::UrlBelongs => {
            let given = parameters(&request)?;
            check(&given, resource_type)?;
            if operation.name == "meta" && !confined {
                return Err(forbidden("$meta says nothing of whose a resource is: read the resource."));
            }
            bind_patient(resource_type, given, patient, Naming::Path, case.bases)?;
        }
        PatientRule::Parameter(name) => {
            let given = parameters(&request)?;
            check(&given, resource_type)?;
            let bound = bind_patient(resource_type, given.clone(), patient, Naming::Parameter, case.bases)?;
            if !given.iter().any(|(given, _)| given == name) || bound.len() > given.len() {
                return Err(forbidden(
                    "Under patient/ scopes this operation must name the patient in context in its patient or subject parameter.",
                ));
            }
        }
        PatientRule::Search => {
            let given = parameters(&request)?;
            let count = given.len();
            let allowed = search::of_type(case, resource_type, &given, Naming::Parameter)?;
            if request.method == Method::POST && allowed.parameters.len() != count {
                return Err(forbidden(
                    "Under patient/ scopes a POST of this operation must name the patient in context itself.",
                ));
            }
            if request.method != Method::POST {
                request.query = allowed.parameters;
            }
            if allowed.streams && confined {
                return Ok(Authorized::stream(request, interaction));
            }
        }
        PatientRule::Body => {
            let says_whose =
                matches!(class(resource_type), Class::Patient | Class::Compartment(_) | Class::Members | Class::Device);
            if id.is_some() && !confined || says_whose && !written::is_own(&request.body, patient, case.bases) {
                return Err(forbidden(
                    "Under patient/ scopes a resource is validated on its type, sent by itself, and must be the patient's in context.",
                ));
            }
        }
    }
    let way_streams = confined
        && grounds::ways(case, resource_type, Permissions::READ).is_ok_and(|ways| ways.iter().any(Way::streams));
    if way_streams && !case.always_inspects() {
        return Ok(Authorized::stream(request, interaction));
    }
    Authorized::inspect(request, interaction, Inspection::of_search(case, searched(operation, resource_type)))
}

fn check(parameters: &[(String, String)], resource_type: &str) -> Result<()> {
    refuse_odd_names(parameters)?;
    refuse_odd_spelling(&[resource_type], parameters)
}

/// The parameters of query and body.
fn parameters(request: &Request) -> Result<Pairs> {
    let mut all = request.query.clone();
    if request.method == Method::POST && !request.body.is_empty() {
        let body = operations::simple_parameters(&request.body).map_err(|_| {
            malformed(
                "The operation's body is no Parameters with simple values, in JSON: expected names with a value each.",
            )
        })?;
        all.extend(body);
    }
    refuse_smuggling(&request.headers, &all)?;
    Ok(all)
}
