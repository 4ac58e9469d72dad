//! Search parameters: which exist, where they look, and what a value of one means.

use serde_json::Value;

use super::{
    compartment,
    date::{self, Prefix, Range},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Token,
    Reference,
    Date,
    Text,
}

impl Kind {
    pub const fn text(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Reference => "reference",
            Self::Date => "date",
            Self::Text => "string",
        }
    }
}

pub struct Param {
    pub name: &'static str,
    pub kind: Kind,
    pub paths: &'static [&'static str],
}

const fn token(name: &'static str, paths: &'static [&'static str]) -> Param {
    Param { name, kind: Kind::Token, paths }
}

const fn reference(name: &'static str, paths: &'static [&'static str]) -> Param {
    Param { name, kind: Kind::Reference, paths }
}

const fn date(name: &'static str, paths: &'static [&'static str]) -> Param {
    Param { name, kind: Kind::Date, paths }
}

const fn text(name: &'static str, paths: &'static [&'static str]) -> Param {
    Param { name, kind: Kind::Text, paths }
}

const PATIENT: Param = reference("patient", &["patient"]);
const PATIENT_OF_SUBJECT: Param = reference("patient", &["subject"]);
const SUBJECT: Param = reference("subject", &["subject"]);
const ENCOUNTER: Param = reference("encounter", &["encounter"]);
const CATEGORY: Param = token("category", &["category"]);
const CODE: Param = token("code", &["code"]);
const STATUS: Param = token("status", &["status"]);
const TYPE: Param = token("type", &["type"]);
const CLINICAL_STATUS: Param = token("clinical-status", &["clinicalStatus"]);
const VERIFICATION_STATUS: Param = token("verification-status", &["verificationStatus"]);
const NAME: Param = text("name", &["name"]);
const FAMILY: Param = text("family", &["name.family"]);
const GIVEN: Param = text("given", &["name.given"]);
const GENDER: Param = token("gender", &["gender"]);
const ACTIVE: Param = token("active", &["active"]);

/// What every type has.
static COMMON: [Param; 6] = [
    token("_id", &["id"]),
    date("_lastUpdated", &[]),
    token("_tag", &["meta.tag"]),
    token("_profile", &["meta.profile"]),
    token("_security", &["meta.security"]),
    token("identifier", &["identifier"]),
];

static PATIENTS: [Param; 14] = [
    NAME,
    FAMILY,
    GIVEN,
    GENDER,
    ACTIVE,
    date("birthdate", &["birthDate"]),
    date("death-date", &["deceasedDateTime"]),
    token("telecom", &["telecom"]),
    token("phone", &["telecom"]),
    token("email", &["telecom"]),
    text("address-city", &["address.city"]),
    text("address-postalcode", &["address.postalCode"]),
    reference("general-practitioner", &["generalPractitioner"]),
    reference("link", &["link.other"]),
];

static PRACTITIONERS: [Param; 5] = [NAME, FAMILY, GIVEN, GENDER, ACTIVE];
static ORGANIZATIONS: [Param; 4] = [NAME, TYPE, ACTIVE, text("address-city", &["address.city"])];
static RELATED_PERSONS: [Param; 4] = [PATIENT, NAME, ACTIVE, token("relationship", &["relationship"])];

static OBSERVATIONS: [Param; 12] = [
    PATIENT_OF_SUBJECT,
    SUBJECT,
    CATEGORY,
    CODE,
    STATUS,
    ENCOUNTER,
    date("date", &["effectiveDateTime", "effectivePeriod"]),
    date("issued", &["issued"]),
    reference("performer", &["performer"]),
    token("value-concept", &["valueCodeableConcept"]),
    token("combo-code", &["code", "component.code"]),
    token("component-code", &["component.code"]),
];

static CONDITIONS: [Param; 11] = [
    PATIENT_OF_SUBJECT,
    SUBJECT,
    CATEGORY,
    CODE,
    CLINICAL_STATUS,
    VERIFICATION_STATUS,
    ENCOUNTER,
    date("onset-date", &["onsetDateTime", "onsetPeriod"]),
    date("abatement-date", &["abatementDateTime", "abatementPeriod"]),
    date("recorded-date", &["recordedDate"]),
    reference("asserter", &["asserter"]),
];

static ALLERGIES: [Param; 9] = [
    PATIENT,
    CATEGORY,
    CODE,
    TYPE,
    CLINICAL_STATUS,
    VERIFICATION_STATUS,
    token("criticality", &["criticality"]),
    date("date", &["recordedDate"]),
    reference("recorder", &["recorder"]),
];

static MEDICATION_REQUESTS: [Param; 11] = [
    PATIENT_OF_SUBJECT,
    SUBJECT,
    STATUS,
    CATEGORY,
    ENCOUNTER,
    token("intent", &["intent"]),
    token("code", &["medicationCodeableConcept"]),
    date("authoredon", &["authoredOn"]),
    date("date", &["authoredOn"]),
    reference("requester", &["requester"]),
    reference("medication", &["medicationReference"]),
];

static IMMUNIZATIONS: [Param; 5] = [
    PATIENT,
    STATUS,
    date("date", &["occurrenceDateTime"]),
    token("vaccine-code", &["vaccineCode"]),
    reference("performer", &["performer.actor"]),
];

static PROCEDURES: [Param; 8] = [
    PATIENT_OF_SUBJECT,
    SUBJECT,
    STATUS,
    CATEGORY,
    CODE,
    ENCOUNTER,
    date("date", &["performedDateTime", "performedPeriod"]),
    reference("performer", &["performer.actor"]),
];

static ENCOUNTERS: [Param; 9] = [
    PATIENT_OF_SUBJECT,
    SUBJECT,
    STATUS,
    TYPE,
    token("class", &["class"]),
    date("date", &["period"]),
    token("reason-code", &["reasonCode"]),
    reference("practitioner", &["participant.individual"]),
    reference("service-provider", &["serviceProvider"]),
];

static REPORTS: [Param; 9] = [
    PATIENT_OF_SUBJECT,
    SUBJECT,
    CATEGORY,
    CODE,
    STATUS,
    ENCOUNTER,
    date("date", &["effectiveDateTime", "effectivePeriod"]),
    date("issued", &["issued"]),
    reference("result", &["result"]),
];

static CARE_PLANS: [Param; 8] = [
    PATIENT_OF_SUBJECT,
    SUBJECT,
    CATEGORY,
    STATUS,
    ENCOUNTER,
    token("intent", &["intent"]),
    date("date", &["period"]),
    reference("goal", &["goal"]),
];

static CARE_TEAMS: [Param; 6] =
    [PATIENT_OF_SUBJECT, SUBJECT, CATEGORY, STATUS, ENCOUNTER, reference("participant", &["participant.member"])];

static GOALS: [Param; 6] = [
    PATIENT_OF_SUBJECT,
    SUBJECT,
    CATEGORY,
    token("lifecycle-status", &["lifecycleStatus"]),
    date("start-date", &["startDate"]),
    date("target-date", &["target.dueDate"]),
];

static DOCUMENTS: [Param; 10] = [
    PATIENT_OF_SUBJECT,
    SUBJECT,
    CATEGORY,
    TYPE,
    STATUS,
    date("date", &["date"]),
    date("period", &["context.period"]),
    reference("encounter", &["context.encounter"]),
    reference("author", &["author"]),
    reference("custodian", &["custodian"]),
];

static IMAGING_STUDIES: [Param; 5] = [PATIENT_OF_SUBJECT, SUBJECT, STATUS, ENCOUNTER, date("started", &["started"])];

static ANSWERS: [Param; 6] = [
    PATIENT_OF_SUBJECT,
    SUBJECT,
    STATUS,
    ENCOUNTER,
    date("authored", &["authored"]),
    token("questionnaire", &["questionnaire"]),
];

static PROVENANCES: [Param; 1] = [reference("target", &["target"])];
static BASICS: [Param; 4] = [PATIENT_OF_SUBJECT, SUBJECT, CODE, reference("author", &["author"])];
static NOTHING: [Param; 0] = [];

/// The parameters of one type, besides the common ones.
fn own(ty: &str) -> &'static [Param] {
    match ty {
        "Patient" => &PATIENTS,
        "Practitioner" => &PRACTITIONERS,
        "Organization" | "Location" => &ORGANIZATIONS,
        "RelatedPerson" => &RELATED_PERSONS,
        "Observation" => &OBSERVATIONS,
        "Condition" => &CONDITIONS,
        "AllergyIntolerance" => &ALLERGIES,
        "MedicationRequest" => &MEDICATION_REQUESTS,
        "Immunization" => &IMMUNIZATIONS,
        "Procedure" => &PROCEDURES,
        "Encounter" => &ENCOUNTERS,
        "DiagnosticReport" => &REPORTS,
        "CarePlan" => &CARE_PLANS,
        "CareTeam" => &CARE_TEAMS,
        "Goal" => &GOALS,
        "DocumentReference" => &DOCUMENTS,
        "ImagingStudy" => &IMAGING_STUDIES,
        "QuestionnaireResponse" => &ANSWERS,
        "Provenance" => &PROVENANCES,
        "Basic" => &BASICS,
        _ => &NOTHING,
    }
}

pub fn of(ty: &str) -> impl Iterator<Item = &'static Param> {
    COMMON.iter().chain(own(ty))
}

pub fn find(ty: &str, name: &str) -> Option<&'static Param> {
    of(ty).find(|param| param.name == name)
}

/// A search criterion, ready to be held against resources.
#[derive(Clone, Debug)]
pub enum Test {
    Token {
        paths: &'static [&'static str],
        wanted: Vec<Wanted>,
        not: bool,
    },
    Text {
        paths: &'static [&'static str],
        wanted: Vec<String>,
        how: How,
    },
    Date {
        paths: &'static [&'static str],
        wanted: Vec<(Prefix, Range)>,
    },
    Updated(Vec<(Prefix, Range)>),
    Reference {
        paths: &'static [&'static str],
        wanted: Vec<(Option<String>, String)>,
    },
    Missing {
        paths: &'static [&'static str],
        missing: bool,
    },
    /// `subject:Patient.family=…`
    Chain {
        paths: &'static [&'static str],
        ty: Option<String>,
        name: String,
        value: String,
    },
    /// `_has:Observation:patient:code=…`
    Has {
        ty: String,
        through: &'static [&'static str],
        name: String,
        value: String,
    },
}

/// `code`, `system|code`, `system|` or `|code`.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub system: Option<String>,
    pub code: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Starts,
    Exact,
    Contains,
}

#[derive(Clone, Debug)]
pub enum Bad {
    Unknown,
    Value(String),
}

/// Reads `name[:modifier]=value` for a type.
pub fn compile(base: &str, ty: &str, name: &str, value: &str) -> Result<Test, Bad> {
    // Each step of a chain can fan out; no app needs more of them.
    if name.matches('.').count() > 3 || name.matches("_has:").count() > 2 {
        return Err(Bad::Value("the chain is too long".to_owned()));
    }
    if let Some(rest) = name.strip_prefix("_has:") {
        return has(rest, value);
    }
    if let Some((head, tail)) = name.split_once('.') {
        let (head, target) = head.split_once(':').map_or((head, None), |(head, ty)| (head, Some(ty.to_owned())));
        let param = find(ty, head).filter(|param| param.kind == Kind::Reference).ok_or(Bad::Unknown)?;
        return Ok(Test::Chain { paths: param.paths, ty: target, name: tail.to_owned(), value: value.to_owned() });
    }
    let (name, modifier) = name.split_once(':').map_or((name, None), |(name, modifier)| (name, Some(modifier)));
    let param = find(ty, name).ok_or(Bad::Unknown)?;
    let paths = param.paths;
    if modifier == Some("missing") {
        let missing = value.parse().map_err(|_| Bad::Value(format!("{name}:missing takes true or false")))?;
        return Ok(Test::Missing { paths, missing });
    }
    match (param.kind, modifier) {
        (Kind::Token, None | Some("not")) => {
            Ok(Test::Token { paths, wanted: alternatives(value).map(wanted).collect(), not: modifier.is_some() })
        }
        (Kind::Text, None | Some("exact" | "contains")) => {
            let how = match modifier {
                None => How::Starts,
                Some("exact") => How::Exact,
                Some(_) => How::Contains,
            };
            Ok(Test::Text { paths, wanted: alternatives(value).collect(), how })
        }
        (Kind::Date, None) => {
            let wanted = alternatives(value)
                .map(|text| {
                    let (prefix, rest) = Prefix::split(&text);
                    date::parse(rest)
                        .map(|range| (prefix, range))
                        .ok_or_else(|| Bad::Value(format!("{name} is no date")))
                })
                .collect::<Result<_, _>>()?;
            Ok(if name == "_lastUpdated" { Test::Updated(wanted) } else { Test::Date { paths, wanted } })
        }
        (Kind::Reference, modifier) => {
            let ty = match modifier {
                Some(ty) if !ty.starts_with(|first: char| first.is_ascii_uppercase()) => {
                    return Err(Bad::Value(format!("{name} has no modifier {ty}")));
                }
                Some(ty) => Some(ty.to_owned()),
                None => (name == "patient").then(|| "Patient".to_owned()),
            };
            Ok(Test::Reference {
                paths,
                wanted: alternatives(value).map(|text| target(base, &text, ty.as_deref())).collect(),
            })
        }
        (_, Some(modifier)) => Err(Bad::Value(format!("{name} has no modifier {modifier}"))),
    }
}

fn has(rest: &str, value: &str) -> Result<Test, Bad> {
    let mut parts = rest.splitn(3, ':');
    let (ty, through, name) = match (parts.next(), parts.next(), parts.next()) {
        (Some(ty), Some(through), Some(name)) => (ty, through, name),
        _ => return Err(Bad::Value("_has takes a type, a reference and a parameter".to_owned())),
    };
    let param = find(ty, through).filter(|param| param.kind == Kind::Reference).ok_or(Bad::Unknown)?;
    Ok(Test::Has { ty: ty.to_owned(), through: param.paths, name: name.to_owned(), value: value.to_owned() })
}

/// The comma-separated alternatives of a value; `\,` is a comma.
pub fn alternatives(value: &str) -> impl Iterator<Item = String> {
    let mut found = vec![String::new()];
    let mut escaped = false;
    for letter in value.chars() {
        match (letter, escaped, found.last_mut()) {
            ('\\', false, _) => {
                escaped = true;
                continue;
            }
            (',', false, _) => found.push(String::new()),
            (other, _, Some(last)) => last.push(other),
            (_, _, None) => {}
        }
        escaped = false;
    }
    found.into_iter().filter(|text| !text.is_empty())
}

fn wanted(text: String) -> Wanted {
    match text.split_once('|') {
        None => Wanted { system: None, code: Some(text) },
        Some((system, code)) => {
            Wanted { system: Some(system.to_owned()), code: (!code.is_empty()).then(|| code.to_owned()) }
        }
    }
}

fn target(base: &str, text: &str, ty: Option<&str>) -> (Option<String>, String) {
    match compartment::local(base, text) {
        Some((ty, id)) => (Some(ty.to_owned()), id.to_owned()),
        None => (ty.map(str::to_owned), text.to_owned()),
    }
}

/// The moment or period that a value tells.
pub fn range(value: &Value) -> Option<Range> {
    match value {
        Value::String(text) => date::parse(text),
        Value::Object(period) => {
            let start = period.get("start").and_then(Value::as_str).and_then(date::parse);
            let end = period.get("end").and_then(Value::as_str).and_then(date::parse);
            (start.is_some() || end.is_some()).then(|| Range {
                from: start.map_or(i64::MIN, |range| range.from),
                to: end.map_or(i64::MAX, |range| range.to),
            })
        }
        _ => None,
    }
}
