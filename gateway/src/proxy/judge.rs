//! The judge: may this request of an app be forwarded, in which form, and what of the answer may leave?
//! (`guard.md`, "The judge"; SMART App Launch 2.2, "Scopes and Launch Context".)
//!
//! The EHR's token is assumed wider than the grant, so nothing is left to the EHR but what it says it
//! confines. What cannot be decided is refused, and a refusal is decided before the EHR is asked, so it tells
//! nothing of whether data exist.
//!
//! ```text
//! Request + Interaction ── judge ──▶ Forward(Authorized)        Stream: pass the answer as it comes
//!                                    │                          Inspect: show each resource to the Inspection
//!                                    ├▶ ReadFirst             read the current version, Pending::finish, send
//!                                    └▶ Bundle                  each entry one of these, or refused
//! ```
//!
//! Pure: no IO, no clock. Only this module makes an [`Authorized`].
//!
//! Known limits, all on the side of refusing. Under `patient/`, where the EHR does not confine: Binaries and types
//! whose resources do not say whose they are; writes to what is nobody's (a Medication, a Practitioner); creating
//! Patients; conditional update, patch and delete; patches other than JSON Patch. `Patient.link` opens nothing:
//! a linked record is another patient's until its own id is in context.

mod accept;
mod bundle;
mod grounds;
mod inspection;
mod operation;
mod parameters;
mod patch;
mod refusal;
mod search;
mod writes;
mod written;

use std::sync::Arc;

use http::{HeaderMap, Method};
use mantel_adapters::{
    fhir::{
        compartment::local_reference,
        interaction::{Interaction, Request},
        links::JudgedSearch,
        rewrite::{Bases, InvalidBase},
    },
    profile::StandalonePatient,
    smart::scope::{Permissions, Scope},
};

use self::grounds::Way;
pub use self::{
    bundle::{BundleEntry, EntryJudgement, JudgedBundle},
    inspection::{Inspection, not_found},
    writes::Pending,
};
use crate::{
    config::{App, Base, Inspect, Site, Urls},
    error::{Error, Kind, Result},
    session::Session,
};

/// What a judgement rests on.
#[derive(Clone, Copy)]
pub struct Case<'a> {
    pub session: &'a Arc<Session>,
    pub app: &'a App,
    pub site: &'a Site,
    /// Every spelling of the server's base that a reference may have: see [`bases`].
    pub bases: &'a Arc<Bases>,
    /// The plan calls for inspection, whatever the grant says (`Plan::inspect`).
    pub inspect: bool,
}

impl Case<'_> {
    /// The patient in context, if it is an id: a missing context denies.
    fn patient(&self) -> Option<&str> {
        grounds::patient(self.session)
    }

    fn always_inspects(&self) -> bool {
        self.inspect || self.app.inspect == Inspect::Always || self.site.inspect == Inspect::Always
    }

    /// Whether the EHR's token can be for another patient than the context's: the user chose it here.
    fn patient_was_picked(&self) -> bool {
        !self.session.ehr_launch && self.site.profile.standalone_patient == StandalonePatient::Picker
    }
}

/// The bases under which absolute references of requests and answers mean this site: the EHR's own, those that it
/// answers with, the site's and the uniform one of ours. Made once for a site and a configuration.
///
/// # Errors
/// A base that is no URL.
pub fn bases(site: &Site, urls: Urls<'_>) -> Result<Arc<Bases>, InvalidBase> {
    let ours = [urls.fhir(&Base::Site(site.id.clone())), urls.fhir(&Base::Uniform)];
    let from = std::iter::once(&site.fhir_base_text).chain(&site.link_bases).chain(&ours);
    Bases::new(from, &site.fhir_base_text).map(Arc::new)
}

/// How an answer leaves.
#[derive(Clone)]
pub enum Mode {
    /// Nothing in it can be outside the grant.
    Stream,
    /// Each resource is shown to the inspection before its bytes leave.
    Inspect(Arc<Inspection>),
}

impl Mode {
    pub fn inspects(&self) -> bool {
        matches!(self, Self::Inspect(_))
    }
}

/// A request that may be forwarded: the proof that the forward path demands. Only the judge makes one.
pub struct Authorized {
    request: Request,
    interaction: Interaction,
    mode: Mode,
    searched: Option<JudgedSearch>,
}

impl Authorized {
    /// As it is to be planned: not always as it came.
    pub fn request(&self) -> &Request {
        &self.request
    }

    pub fn interaction(&self) -> &Interaction {
        &self.interaction
    }

    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// Of a search: what a paging link must say by itself, or be bound to.
    pub fn searched(&self) -> Option<&JudgedSearch> {
        self.searched.as_ref()
    }

    pub fn into_parts(self) -> (Request, Interaction, Mode, Option<JudgedSearch>) {
        (self.request, self.interaction, self.mode, self.searched)
    }

    fn stream(mut request: Request, interaction: Interaction) -> Self {
        if matches!(request.method, Method::GET | Method::HEAD) {
            request.body = bytes::Bytes::new();
        }
        Self { request, interaction, mode: Mode::Stream, searched: None }
    }

    /// # Errors
    /// Where the app takes no JSON, or asks for a mere count.
    fn inspect(mut request: Request, interaction: Interaction, inspection: Inspection) -> Result<Self> {
        if matches!(interaction, Interaction::Page) {
            accept::make_whole(&mut request)?;
        } else {
            accept::make_inspectable(&mut request)?;
        }
        if request.method == Method::GET {
            request.body = bytes::Bytes::new();
        }
        Ok(Self { request, interaction, mode: Mode::Inspect(Arc::new(inspection)), searched: None })
    }
}

/// What becomes of a request that is not refused.
pub enum Judged {
    Forward(Authorized),
    /// The EHR does not confine this write: the current version is read and judged first. If it cannot be read,
    /// whatever the reason, the answer is [`not_found`].
    ReadFirst {
        read: Authorized,
        then: Box<Pending>,
    },
    Bundle(JudgedBundle),
}

/// Judges one request. `request` is what [`mantel_adapters::fhir::interaction::classify`] took for `interaction`, with
/// the body buffered (a Binary that is no FHIR JSON or XML may stream beside it).
///
/// # Errors
/// Why it is refused, in words that say which scope it needs and nothing of what exists.
pub fn judge(case: &Case<'_>, request: Request, interaction: Interaction) -> Result<Judged> {
    refuse_smuggling(&request.headers, &request.query)?;
    match &interaction {
        Interaction::Capabilities => Ok(Judged::Forward(Authorized::stream(request, interaction))),
        Interaction::Read { .. } | Interaction::VRead { .. } | Interaction::HistoryInstance { .. } => {
            by_id(case, request, interaction).map(Judged::Forward)
        }
        Interaction::HistoryType { .. } | Interaction::HistorySystem => {
            history(case, request, interaction).map(Judged::Forward)
        }
        Interaction::SearchType { .. } | Interaction::SearchSystem | Interaction::SearchCompartment { .. } => {
            search::judge(case, request, interaction).map(Judged::Forward)
        }
        Interaction::Create { .. }
        | Interaction::Update { .. }
        | Interaction::Patch { .. }
        | Interaction::Delete { .. } => writes::judge(case, request, interaction),
        Interaction::Operation { .. } => operation::judge(case, request, interaction).map(Judged::Forward),
        Interaction::Batch | Interaction::Transaction => judge_bundle(case, &request).map(Judged::Bundle),
        Interaction::Page => Err(Error::app(
            Kind::Forbidden,
            "This paging link is not one that this grant was given, or it was changed: search again.",
        )),
    }
}

/// Judges a batch or transaction entry by entry. In a transaction one refused entry refuses all.
///
/// # Errors
/// The Bundle is malformed, or a transaction has a refused entry.
pub fn judge_bundle(case: &Case<'_>, request: &Request) -> Result<JudgedBundle> {
    bundle::judge(case, request)
}

/// Judges a page whose binding was checked: it is the judged search's, of this grant. `resource_type`: what was
/// searched for, none for several types; `inspected`: the first answer's mode.
///
/// # Errors
/// Where the token in hand does not cover the search (any more: a refresh may narrow it).
pub fn judge_page(
    case: &Case<'_>,
    request: Request,
    resource_type: Option<&str>,
    inspected: bool,
) -> Result<Authorized> {
    refuse_smuggling(&request.headers, &request.query)?;
    let streams = match resource_type {
        Some(name) => {
            let ways = grounds::ways(case, name, Permissions::SEARCH)?;
            ways.iter().any(|way| matches!(way, Way::Open | Way::Confined))
        }
        None => grounds::is_open_for_all(case, Permissions::SEARCH),
    };
    let searched = JudgedSearch {
        resource_type: resource_type.map(str::to_owned),
        patient: case.patient().map(str::to_owned),
        required: Vec::new(),
    };
    let page = if streams && !inspected && !case.always_inspects() {
        Authorized::stream(request, Interaction::Page)
    } else {
        let inspection = Inspection::of_search(case, resource_type);
        Authorized::inspect(request, Interaction::Page, inspection)?
    };
    Ok(Authorized { searched: Some(searched), ..page })
}

/// Far above any search; each may cost a look at all types.
const MOST_PARAMETERS: usize = 256;

/// Whatever a server could take for another method, or for a token, than what is judged.
fn refuse_smuggling(headers: &HeaderMap, parameters: &[(String, String)]) -> Result<()> {
    const OVERRIDES: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];
    if OVERRIDES.into_iter().any(|name| headers.contains_key(name)) {
        return Err(Error::app(
            Kind::BadRequest,
            "A header that overrides the method is refused: send the method itself.",
        ));
    }
    if parameters.len() > MOST_PARAMETERS {
        let text = format!("The request has more than {MOST_PARAMETERS} parameters: send fewer.");
        return Err(Error::app(Kind::BadRequest, text));
    }
    for (name, _) in parameters {
        let name = name.trim();
        if name.eq_ignore_ascii_case("access_token") {
            let text = "access_token in the URL or form is refused: send it in the Authorization header.";
            return Err(Error::app(Kind::BadRequest, text));
        }
        if name.eq_ignore_ascii_case("_method") || name.eq_ignore_ascii_case("x-http-method-override") {
            let text = "A parameter that overrides the method is refused: send the method itself.";
            return Err(Error::app(Kind::BadRequest, text));
        }
    }
    Ok(())
}

fn by_id(case: &Case<'_>, request: Request, interaction: Interaction) -> Result<Authorized> {
    let (Some(resource_type), Some(id)) = (interaction.resource_type(), interaction.id()) else {
        return Err(Error::internal("a read without type and id"));
    };
    if matches!(interaction, Interaction::Read { .. }) && is_own_user(case, resource_type, id) {
        return Ok(Authorized::stream(request, interaction));
    }
    let ways = grounds::ways(case, resource_type, Permissions::READ)?;
    refuse_other_patient(case, &ways, resource_type, id)?;
    let streams = ways.iter().any(|way| matches!(way, Way::Open | Way::Confined));
    if streams && !case.always_inspects() {
        return Ok(Authorized::stream(request, interaction));
    }
    let inspection = Inspection::of_instance(case, resource_type, Some(id), Permissions::READ);
    Authorized::inspect(request, interaction, inspection)
}

/// `openid fhirUser` permits reading one's own resource, whatever else is granted (conformance.md A9).
fn is_own_user(case: &Case<'_>, resource_type: &str, id: &str) -> bool {
    let scopes = &case.session.enforced;
    let identified = scopes.has(&Scope::OpenId) && (scopes.has(&Scope::FhirUser) || scopes.has(&Scope::Profile));
    let own = case.session.fhir_user.as_deref().and_then(|text| local_reference(text, case.bases));
    identified && own.is_some_and(|own| own.resource_type == resource_type && own.id == id)
}

/// Under `patient/`, another Patient's id is refused before the EHR is asked: that tells nothing of it.
fn refuse_other_patient(case: &Case<'_>, ways: &[Way], resource_type: &str, id: &str) -> Result<()> {
    let by_patient_only = ways.iter().all(Way::is_patients);
    if resource_type == "Patient" && by_patient_only && case.patient() != Some(id) {
        return Err(Error::app(
            Kind::Forbidden,
            "This token's patient/ scopes cover the patient in context and no other Patient; another one needs user/Patient.",
        ));
    }
    Ok(())
}

fn history(case: &Case<'_>, request: Request, interaction: Interaction) -> Result<Authorized> {
    let streams = match interaction.resource_type() {
        Some(name) => {
            let ways = grounds::ways(case, name, Permissions::SEARCH)?;
            ways.iter().any(|way| matches!(way, Way::Open | Way::Confined))
        }
        None => {
            grounds::require_all(case, Permissions::SEARCH)?;
            grounds::is_stream_for_all(case, Permissions::SEARCH)
        }
    };
    if !streams {
        return Err(Error::app(
            Kind::Forbidden,
            "The history of a type or of the whole server cannot be confined to one patient: it needs user/ or system/ scopes without a query.",
        ));
    }
    search::refuse_touching(case, interaction.resource_type(), &request.query)?;
    if case.always_inspects() {
        let inspection = Inspection::of_search(case, interaction.resource_type());
        return Authorized::inspect(request, interaction, inspection);
    }
    Ok(Authorized::stream(request, interaction))
}
