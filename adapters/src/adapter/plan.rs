//! The conformant plan: the request as it is, less what the profile says.

use bytes::Bytes;
use http::{HeaderValue, Method, header::CONTENT_TYPE};

use super::{
    Answer, Plan, PlanContext, Unplannable,
    headers::{Placeholders, base_name, fhir_headers, set_parameters},
};
use crate::{
    fhir::interaction::{Interaction, Request},
    smart::launch,
};

const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");

/// Parameters that only shape a searchset: a searchset of one is the same without them.
const VOID_FOR_ONE: [&str; 5] = ["_count", "_sort", "_total", "_contained", "_containedType"];

/// Parameters that a read understands too.
const FIT_FOR_READ: [&str; 3] = ["_format", "_pretty", "_elements"];

/// Plans a judged request by the profile alone.
///
/// # Errors
/// Where the vendor has no way to answer it.
pub fn plan(request: &Request, interaction: &Interaction, context: PlanContext<'_>) -> Result<Plan, Unplannable> {
    let profile = context.profile;
    let placeholders = Placeholders { client_id: Some(context.client_id), tenant: context.tenant };
    let mut plan = match interaction {
        Interaction::SearchType { .. } | Interaction::SearchSystem | Interaction::SearchCompartment { .. } => {
            search(Search::read(request), interaction, context)?
        }
        _ => Plan { requests: vec![request.clone()], answer: Answer::Pass, inspect: false },
    };
    for request in &mut plan.requests {
        fhir_headers(&mut request.headers, profile, placeholders)?;
        // A CapabilityStatement is the same for all tenants, and is read before one is known.
        if !profile.query.is_empty() && *interaction != Interaction::Capabilities {
            let mut search = Search::read(request);
            set_parameters(&mut search.parameters, profile, placeholders)?;
            *request = search.write();
        }
    }
    Ok(plan)
}

fn search(mut search: Search, interaction: &Interaction, context: PlanContext<'_>) -> Result<Plan, Unplannable> {
    let profile = context.profile;
    if !profile.search.post {
        search.as_get();
    }
    let Some(resource_type) = searched_type(interaction) else {
        return Ok(Plan { requests: vec![search.write()], answer: Answer::Pass, inspect: false });
    };
    if resource_type == "Patient"
        && let Some(read) = patient_by_id(&mut search, context)?
    {
        return Ok(Plan { requests: vec![read], answer: Answer::WrapAsSearchset, inspect: false });
    }
    let fan_out = profile.fan_out.get(resource_type).filter(|fan_out| {
        let given = |name: &String| search.parameters.iter().any(|(given, _)| base_name(given) == name);
        !fan_out.values.is_empty() && !given(&fan_out.parameter) && !fan_out.unless.iter().any(given)
    });
    let Some(fan_out) = fan_out else {
        return Ok(Plan { requests: vec![search.write()], answer: Answer::Pass, inspect: false });
    };
    let requests =
        fan_out.values.iter().map(|value| search.with(&fan_out.parameter, value).write()).collect::<Vec<_>>();
    let answer = if requests.len() == 1 { Answer::Pass } else { Answer::Merge };
    Ok(Plan { requests, answer, inspect: false })
}

fn searched_type(interaction: &Interaction) -> Option<&str> {
    match interaction {
        Interaction::SearchType { resource_type } => Some(resource_type),
        Interaction::SearchCompartment { resource_type, .. } => resource_type.as_deref(),
        _ => None,
    }
}

/// `Patient?patient=X` is no search of FHIR R4 (Epic and HAPI answer 400), yet apps send it; where a
/// vendor has no `Patient?_id=X` either, both are a read.
fn patient_by_id(search: &mut Search, context: PlanContext<'_>) -> Result<Option<Request>, Unplannable> {
    let by_id = context.profile.search.by_id;
    let misnamed = take_misnamed(&mut search.parameters)?;
    if !misnamed && by_id {
        return Ok(None);
    }
    let ids = search.parameters.iter().filter(|(name, _)| name == "_id").map(|(_, value)| value).collect::<Vec<_>>();
    let [id] = ids[..] else { return Ok(None) };
    let set_by_us = |name: &str| context.profile.query.keys().any(|set| base_name(name).eq_ignore_ascii_case(set));
    let plain = launch::is_id(id)
        && search.parameters.iter().all(|(name, _)| {
            name == "_id"
                || VOID_FOR_ONE.contains(&name.as_str())
                || FIT_FOR_READ.contains(&name.as_str())
                || set_by_us(name)
        });
    if plain && search.path.len() == 1 {
        let mut read = search.clone();
        read.path.push(id.clone());
        read.as_get();
        read.parameters.retain(|(name, _)| FIT_FOR_READ.contains(&name.as_str()) || set_by_us(name));
        return Ok(Some(read.write()));
    }
    if by_id {
        return Ok(None);
    }
    Err(Unplannable {
        status: 422,
        code: "not-supported",
        reason: "This EHR answers a search of patients by id only for one id and without further criteria".into(),
    })
}

/// Turns `patient=` of a search of patients into `_id=`; tells whether there was one.
fn take_misnamed(parameters: &mut Vec<(String, String)>) -> Result<bool, Unplannable> {
    let is_misnamed = |name: &str| matches!(name, "patient" | "patient:Patient");
    let mut ids = Vec::new();
    for (_, value) in parameters.iter().filter(|(name, _)| is_misnamed(name)) {
        let id = launch::id(&serde_json::Value::String(value.clone()), "Patient").ok().flatten().ok_or_else(|| {
            let reason = "`patient` in a search of patients: expected one id or `Patient/id`".into();
            Unplannable { status: 400, code: "value", reason }
        })?;
        ids.push(id);
    }
    let Some(id) = ids.first().cloned() else { return Ok(false) };
    let others = parameters.iter().filter(|(name, _)| name == "_id").map(|(_, value)| value);
    if ids.iter().chain(others).any(|other| *other != id) {
        let reason = "`patient` and `_id` in one search name different patients".into();
        return Err(Unplannable { status: 400, code: "value", reason });
    }
    parameters.retain(|(name, _)| !is_misnamed(name) && name != "_id");
    parameters.insert(0, ("_id".into(), id));
    Ok(true)
}

/// A request whose parameters are in one place: of a POST's query and form, vendors read one or the
/// other (Epic the form until 2026, the query since).
#[derive(Clone)]
struct Search {
    request: Request,
    path: Vec<String>,
    parameters: Vec<(String, String)>,
    /// POSTed as a form, or a GET.
    form: bool,
}

impl Search {
    fn read(request: &Request) -> Self {
        let mut request = request.clone();
        let mut path = std::mem::take(&mut request.path);
        let mut parameters = std::mem::take(&mut request.query);
        let form = request.method == Method::POST && path.last().is_some_and(|last| last == "_search");
        if form {
            path.pop();
            parameters.extend(form_urlencoded::parse(&request.body).into_owned());
            request.body = Bytes::new();
        }
        Self { request, path, parameters, form }
    }

    fn as_get(&mut self) {
        if self.form {
            self.form = false;
            self.request.method = Method::GET;
            self.request.headers.remove(CONTENT_TYPE);
        }
    }

    fn with(&self, name: &str, value: &str) -> Self {
        let mut search = self.clone();
        search.parameters.push((name.to_owned(), value.to_owned()));
        search
    }

    fn write(mut self) -> Request {
        self.request.path = self.path;
        if self.form {
            self.request.path.push("_search".into());
            let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(&self.parameters).finish();
            self.request.body = body.into();
            self.request.headers.insert(CONTENT_TYPE, FORM);
        } else {
            self.request.query = self.parameters;
        }
        self.request
    }
}
