//! What a token opens: its scopes as the EHR granted them, in whatever spelling.

use serde_json::Value;

use super::{compartment, params, search::Matcher, store::Store};
use crate::ehr::contract::{TokenFacts, Vendor};

/// What an interaction needs (SMART 2.2, "Scopes for requesting FHIR Resources").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Create,
    Read,
    Update,
    Delete,
    Search,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Context {
    Patient,
    User,
    System,
}

#[derive(Clone, Debug)]
struct Grant {
    context: Context,
    /// `*`, or a type in any case.
    ty: String,
    needs: Vec<Need>,
    query: Vec<(String, String)>,
}

/// A token's grants.
#[derive(Clone, Debug, Default)]
pub struct Access {
    vendor: Option<Vendor>,
    grants: Vec<Grant>,
    patient: Option<String>,
    pub tenant: Option<String>,
}

impl Access {
    pub fn of(vendor: Vendor, token: &TokenFacts) -> Self {
        let own_record =
            token.patient.is_some() && token.fhir_user.as_deref().is_some_and(|user| user.starts_with("Patient/"));
        Self {
            vendor: Some(vendor),
            grants: token
                .scopes
                .iter()
                .flat_map(|scopes| scopes.split_ascii_whitespace())
                .filter_map(|scope| parse(scope, own_record))
                .collect(),
            patient: token.patient.clone(),
            tenant: token.tenant.clone(),
        }
    }

    /// The ways in which this token opens a type; none: it does not.
    pub fn permit(&self, ty: &str, need: Need) -> Option<Permit> {
        // athenaOne's documents travel inline; Binary is for systems (`vendors.md` §3).
        let system_only = self.vendor == Some(Vendor::Athena) && ty == "Binary";
        let lanes: Vec<Lane> = self
            .grants
            .iter()
            .filter(|grant| grant.ty == "*" || grant.ty.eq_ignore_ascii_case(ty))
            .filter(|grant| grant.needs.contains(&need))
            .filter(|grant| !system_only || grant.context == Context::System)
            .filter_map(|grant| {
                let patient = match grant.context {
                    Context::Patient => Some(self.patient.clone()?),
                    Context::User | Context::System => None,
                };
                Some(Lane { patient, query: grant.query.clone() })
            })
            .collect();
        (!lanes.is_empty()).then_some(Permit { lanes })
    }
}

#[derive(Clone, Debug)]
struct Lane {
    patient: Option<String>,
    query: Vec<(String, String)>,
}

/// Proof that a type is open, and for which of its resources.
#[derive(Clone, Debug)]
pub struct Permit {
    lanes: Vec<Lane>,
}

impl Permit {
    /// The one patient this permit is about, if it is about one.
    pub fn confined_to(&self) -> Option<&str> {
        let first = self.lanes.first()?.patient.as_deref()?;
        self.lanes.iter().all(|lane| lane.patient.as_deref() == Some(first)).then_some(first)
    }

    pub fn admits(&self, store: &Store, base: &str, resource: &Value) -> bool {
        let ty = resource.get("resourceType").and_then(Value::as_str).unwrap_or_default();
        self.lanes.iter().any(|lane| {
            let within = match &lane.patient {
                None => true,
                Some(patient) => {
                    compartment::is_shared(ty) || store.owners(resource).iter().any(|owner| owner == patient)
                }
            };
            within
                && lane.query.iter().all(|(name, value)| {
                    params::compile(base, ty, name, value)
                        .is_ok_and(|test| Matcher { store, base }.holds(&test, ty, resource, None))
                })
        })
    }
}

/// Reads `patient/Observation.rs?category=…`, `user/*.read`, `patient/Immunization.Read` and Epic's old
/// `Patient.read`, whose context is the user's. What is no resource scope is none here.
fn parse(scope: &str, own_record: bool) -> Option<Grant> {
    let (head, query) = match scope.split_once('?') {
        Some((head, query)) => (head, url::form_urlencoded::parse(query.as_bytes()).into_owned().collect()),
        None => (scope, Vec::new()),
    };
    let (context, rest) = match head.split_once('/') {
        Some(("patient", rest)) => (Context::Patient, rest),
        Some(("user", rest)) => (Context::User, rest),
        Some(("system", rest)) => (Context::System, rest),
        Some(_) => return None,
        None if own_record => (Context::Patient, head),
        None => (Context::User, head),
    };
    let (ty, action) = rest.split_once('.')?;
    let legacy = !head.contains('/');
    let needs = match action.to_ascii_lowercase().as_str() {
        "read" if legacy => vec![Need::Read],
        "search" => vec![Need::Search],
        "read" => vec![Need::Read, Need::Search],
        "write" => vec![Need::Create, Need::Update, Need::Delete],
        "*" => vec![Need::Create, Need::Read, Need::Update, Need::Delete, Need::Search],
        letters => letters.chars().map(letter).collect::<Option<Vec<_>>>()?,
    };
    (!ty.is_empty() && !needs.is_empty()).then(|| Grant { context, ty: ty.to_owned(), needs, query })
}

const fn letter(letter: char) -> Option<Need> {
    match letter {
        'c' => Some(Need::Create),
        'r' => Some(Need::Read),
        'u' => Some(Need::Update),
        'd' => Some(Need::Delete),
        's' => Some(Need::Search),
        _ => None,
    }
}
