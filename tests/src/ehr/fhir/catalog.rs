//! Which types a vendor serves, and how: the tables behind its CapabilityStatement.

use super::params;
use crate::ehr::contract::Vendor;

/// One type at one vendor.
#[derive(Debug)]
pub struct TypeRule {
    pub name: &'static str,
    /// `c`reate, `r`ead, `u`pdate, `p`atch, `d`elete, `s`earch, `h`istory and vread, `+` conditional forms.
    pub can: &'static str,
    pub params: Params,
    /// A search must have all of one of these.
    pub needs: &'static [&'static [&'static str]],
}

#[derive(Clone, Copy, Debug)]
pub enum Params {
    /// Whatever R4 names and this simulator knows.
    All,
    Only(&'static [&'static str]),
}

impl TypeRule {
    pub fn can(&self, what: char) -> bool {
        self.can.contains(what)
    }

    /// Whether a search parameter, less its modifier, is known to this vendor.
    pub fn knows(&self, name: &str) -> bool {
        params::find(self.name, name).is_some()
            && match self.params {
                Params::All => true,
                Params::Only(names) => names.contains(&name),
            }
    }
}

pub fn rules(vendor: Vendor) -> &'static [TypeRule] {
    match vendor {
        Vendor::Epic => &EPIC,
        Vendor::Oracle => &ORACLE,
        Vendor::Athena => &ATHENA,
        Vendor::AthenaPractice => &PRACTICE,
        Vendor::Generic => &GENERIC,
    }
}

pub fn rule(vendor: Vendor, ty: &str) -> Option<&'static TypeRule> {
    rules(vendor).iter().find(|rule| rule.name == ty)
}

const fn only(
    name: &'static str,
    can: &'static str,
    params: &'static [&'static str],
    needs: &'static [&'static [&'static str]],
) -> TypeRule {
    TypeRule { name, can, params: Params::Only(params), needs }
}

const fn all(name: &'static str, can: &'static str) -> TypeRule {
    TypeRule { name, can, params: Params::All, needs: &[] }
}

type Needs = &'static [&'static [&'static str]];

const OF_PATIENT: Needs = &[&["patient"], &["subject"], &["_id"], &["identifier"]];
const SOMEBODY: Needs = &[&["_id"], &["identifier"], &["name"], &["family"], &["given"], &["birthdate"]];
const BY_ID: Needs = &[&["_id"]];

/// As the CapabilityStatement of fhir.epic.com of July 2026 has it, less what this simulator has no data for.
static EPIC: [TypeRule; 22] = [
    only(
        "AllergyIntolerance",
        "crs",
        &[
            "clinical-status",
            "patient",
            "_id",
            "category",
            "code",
            "criticality",
            "date",
            "identifier",
            "recorder",
            "type",
            "verification-status",
        ],
        OF_PATIENT,
    ),
    only("Binary", "rs", &["_id"], BY_ID),
    only(
        "CarePlan",
        "rs",
        &["category", "encounter", "patient", "status", "subject", "_id", "date", "goal", "identifier", "intent"],
        OF_PATIENT,
    ),
    only(
        "CareTeam",
        "rs",
        &["patient", "status", "subject", "_id", "category", "encounter", "identifier", "participant"],
        OF_PATIENT,
    ),
    only(
        "Condition",
        "crs",
        &[
            "abatement-date",
            "category",
            "clinical-status",
            "code",
            "encounter",
            "onset-date",
            "patient",
            "recorded-date",
            "subject",
            "_id",
            "asserter",
            "identifier",
            "verification-status",
        ],
        OF_PATIENT,
    ),
    only(
        "DiagnosticReport",
        "rsu",
        &[
            "category",
            "code",
            "date",
            "identifier",
            "patient",
            "subject",
            "_id",
            "encounter",
            "issued",
            "result",
            "status",
        ],
        OF_PATIENT,
    ),
    only(
        "DocumentReference",
        "crsu",
        &[
            "author",
            "category",
            "date",
            "encounter",
            "patient",
            "period",
            "status",
            "subject",
            "type",
            "_id",
            "custodian",
            "identifier",
        ],
        OF_PATIENT,
    ),
    only(
        "Encounter",
        "rs",
        &[
            "class",
            "date",
            "identifier",
            "patient",
            "subject",
            "_id",
            "practitioner",
            "reason-code",
            "service-provider",
            "status",
            "type",
        ],
        OF_PATIENT,
    ),
    only(
        "Goal",
        "rs",
        &["category", "lifecycle-status", "patient", "start-date", "subject", "_id", "identifier", "target-date"],
        OF_PATIENT,
    ),
    only(
        "ImagingStudy",
        "rs",
        &["identifier", "patient", "subject", "_id", "encounter", "started", "status"],
        OF_PATIENT,
    ),
    only(
        "Immunization",
        "rs",
        &["date", "patient", "status", "_id", "identifier", "performer", "vaccine-code"],
        OF_PATIENT,
    ),
    only("Location", "rs", &["type", "_id", "identifier", "name"], &[]),
    only("Medication", "rs", &["_id"], BY_ID),
    only(
        "MedicationRequest",
        "rs",
        &[
            "category",
            "date",
            "intent",
            "patient",
            "status",
            "subject",
            "_id",
            "authoredon",
            "encounter",
            "identifier",
            "requester",
        ],
        OF_PATIENT,
    ),
    only(
        "Observation",
        "crsu",
        &[
            "category",
            "code",
            "date",
            "issued",
            "patient",
            "subject",
            "_id",
            "combo-code",
            "component-code",
            "encounter",
            "identifier",
            "performer",
            "status",
            "value-concept",
        ],
        OF_PATIENT,
    ),
    only("Organization", "rs", &["_id"], BY_ID),
    only(
        "Patient",
        "crs",
        &[
            "birthdate",
            "family",
            "gender",
            "given",
            "identifier",
            "name",
            "telecom",
            "_id",
            "active",
            "address-city",
            "address-postalcode",
            "death-date",
            "email",
            "general-practitioner",
            "link",
            "phone",
        ],
        SOMEBODY,
    ),
    only("Practitioner", "rs", &["family", "given", "identifier", "name", "_id", "active", "gender"], &[]),
    only(
        "Procedure",
        "crsu",
        &["category", "code", "date", "identifier", "patient", "subject", "_id", "encounter", "performer", "status"],
        OF_PATIENT,
    ),
    only("Provenance", "r", &[], &[]),
    only(
        "QuestionnaireResponse",
        "crs",
        &["encounter", "patient", "subject", "_id", "authored", "identifier", "questionnaire", "status"],
        OF_PATIENT,
    ),
    only("RelatedPerson", "rs", &["patient", "_id", "active", "identifier", "name", "relationship"], OF_PATIENT),
];

const ORACLE_PATIENT: Needs = &[&["patient"], &["subject"], &["_id"], &["encounter"]];

/// As fhir-ehr-code.cerner.com's of August 2026.
static ORACLE: [TypeRule; 21] = [
    only("AllergyIntolerance", "crsu", &["_id", "patient", "clinical-status", "_lastUpdated"], ORACLE_PATIENT),
    only("Binary", "r", &[], &[]),
    only("CarePlan", "rs", &["_id", "date", "patient", "category"], ORACLE_PATIENT),
    only("CareTeam", "rs", &["_id", "category", "encounter", "patient", "status"], ORACLE_PATIENT),
    only(
        "Condition",
        "crsu",
        &["_id", "patient", "encounter", "subject", "clinical-status", "category", "_lastUpdated"],
        ORACLE_PATIENT,
    ),
    only(
        "DiagnosticReport",
        "crs",
        &["_id", "category", "code", "encounter", "patient", "date", "_lastUpdated"],
        ORACLE_PATIENT,
    ),
    only(
        "DocumentReference",
        "crsu",
        &["_id", "patient", "encounter", "period", "type", "category", "date", "_lastUpdated"],
        ORACLE_PATIENT,
    ),
    only(
        "Encounter",
        "crsp",
        &["_id", "patient", "subject", "status", "date", "identifier", "_lastUpdated"],
        &[&["_id"], &["patient"], &["subject"], &["identifier"]],
    ),
    only("Goal", "rs", &["_id", "patient", "target-date"], ORACLE_PATIENT),
    only("Immunization", "crsu", &["_id", "patient", "_lastUpdated", "date"], ORACLE_PATIENT),
    only("Location", "rs", &["_id", "identifier", "name", "type"], &[]),
    only("MedicationRequest", "crsp", &["_id", "patient", "intent", "status", "_lastUpdated"], ORACLE_PATIENT),
    only(
        "Observation",
        "crsu",
        &["_id", "patient", "subject", "category", "code", "date", "_lastUpdated"],
        &[&["patient"], &["subject"], &["_id"]],
    ),
    only(
        "Organization",
        "crs",
        &["_id", "identifier", "type", "name"],
        &[&["_id"], &["identifier"], &["type"], &["name"]],
    ),
    only(
        "Patient",
        "crsp",
        &[
            "_id",
            "identifier",
            "name",
            "given",
            "family",
            "address-postalcode",
            "birthdate",
            "phone",
            "email",
            "gender",
        ],
        &[
            &["_id"],
            &["identifier"],
            &["name"],
            &["given"],
            &["family"],
            &["address-postalcode"],
            &["birthdate"],
            &["phone"],
            &["email"],
        ],
    ),
    only(
        "Practitioner",
        "crs",
        &["_id", "identifier", "given", "family", "name", "active"],
        &[&["_id"], &["identifier"], &["given"], &["family"], &["name"]],
    ),
    only("Procedure", "crs", &["_id", "patient", "subject", "date", "_lastUpdated"], ORACLE_PATIENT),
    only("Provenance", "crs", &["_id", "target"], &[&["_id"], &["target"]]),
    only("QuestionnaireResponse", "rsu", &["_id", "patient"], ORACLE_PATIENT),
    only("RelatedPerson", "crsp", &["_id", "identifier", "patient"], &[&["_id"], &["identifier"], &["patient"]]),
    only("Medication", "r", &[], &[]),
];

const ATHENA_PATIENT: Needs = &[&["patient"], &["_id"]];

/// As api.platform.athenahealth.com's of August 2026: the combinations are its `requiredAnySearchParams`.
static ATHENA: [TypeRule; 20] = [
    only("AllergyIntolerance", "rs", &["patient", "_lastUpdated", "code"], &[&["patient"]]),
    only("Binary", "r", &[], &[]),
    only("CarePlan", "rs", &["patient", "category", "_lastUpdated", "_id"], ATHENA_PATIENT),
    only("CareTeam", "rs", &["patient", "status", "_lastUpdated", "_id"], ATHENA_PATIENT),
    only(
        "Condition",
        "rs",
        &["_id", "patient", "encounter", "_lastUpdated", "code", "category"],
        &[&["encounter"], &["patient"], &["_id"]],
    ),
    only(
        "DiagnosticReport",
        "rs",
        &["_id", "encounter", "patient", "category", "code", "date", "result", "_lastUpdated"],
        ATHENA_PATIENT,
    ),
    only(
        "DocumentReference",
        "rs",
        &["_id", "patient", "category", "type", "date", "encounter", "author", "custodian", "_lastUpdated"],
        ATHENA_PATIENT,
    ),
    only(
        "Encounter",
        "rs",
        &["_id", "patient", "date", "_lastUpdated", "service-provider", "practitioner"],
        ATHENA_PATIENT,
    ),
    only("Goal", "rs", &["patient", "_id", "_lastUpdated"], ATHENA_PATIENT),
    only("Immunization", "rs", &["patient", "date", "status", "_id", "_lastUpdated", "vaccine-code"], ATHENA_PATIENT),
    only("Location", "rs", &["_id"], BY_ID),
    only("Medication", "rs", &["_id"], BY_ID),
    only(
        "MedicationRequest",
        "rs",
        &[
            "patient",
            "intent",
            "status",
            "_id",
            "authoredon",
            "subject",
            "encounter",
            "requester",
            "_lastUpdated",
            "code",
        ],
        ATHENA_PATIENT,
    ),
    only(
        "Observation",
        "rs",
        &["_id", "patient", "date", "category", "code", "encounter", "_lastUpdated"],
        ATHENA_PATIENT,
    ),
    only("Organization", "rs", &["_id"], BY_ID),
    only(
        "Patient",
        "rs",
        &["_id", "identifier", "name", "birthdate", "gender", "family", "given", "_lastUpdated"],
        &[&["_id"], &["identifier"], &["name"], &["family", "birthdate"], &["family", "gender"], &["family", "given"]],
    ),
    only("Practitioner", "rs", &["_id", "identifier"], &[&["_id"], &["identifier"]]),
    only("Procedure", "rs", &["patient", "date", "encounter", "performer", "_id", "_lastUpdated"], ATHENA_PATIENT),
    only(
        "QuestionnaireResponse",
        "crs",
        &["_id", "_lastUpdated", "authored", "encounter", "patient", "questionnaire", "status"],
        ATHENA_PATIENT,
    ),
    only("RelatedPerson", "rs", &["patient", "_lastUpdated", "active", "name", "_id"], ATHENA_PATIENT),
];

/// athenaPractice and athenaFlow read only; what their HAPI knows is R4's.
static PRACTICE: [TypeRule; 18] = [
    all("AllergyIntolerance", "rs"),
    all("Binary", "r"),
    all("CarePlan", "rs"),
    all("CareTeam", "rs"),
    all("Condition", "rs"),
    all("DiagnosticReport", "rs"),
    all("DocumentReference", "rs"),
    all("Encounter", "rs"),
    all("Goal", "rs"),
    all("Immunization", "rs"),
    all("Location", "rs"),
    all("MedicationRequest", "rs"),
    all("Observation", "rs"),
    all("Organization", "rs"),
    all("Patient", "rs"),
    all("Practitioner", "rs"),
    all("Procedure", "rs"),
    all("RelatedPerson", "rs"),
];

/// A plain R4 server does all of it.
static GENERIC: [TypeRule; 24] = [
    all("AllergyIntolerance", "crudpsh+"),
    all("Basic", "crudpsh+"),
    all("Binary", "crudh"),
    all("CarePlan", "crudpsh+"),
    all("CareTeam", "crudpsh+"),
    all("Condition", "crudpsh+"),
    all("DiagnosticReport", "crudpsh+"),
    all("DocumentReference", "crudpsh+"),
    all("Encounter", "crudpsh+"),
    all("Goal", "crudpsh+"),
    all("ImagingStudy", "crudpsh+"),
    all("Immunization", "crudpsh+"),
    all("Location", "crudpsh+"),
    all("Medication", "crudpsh+"),
    all("MedicationRequest", "crudpsh+"),
    all("Observation", "crudpsh+"),
    all("Organization", "crudpsh+"),
    all("Patient", "crudpsh+"),
    all("Practitioner", "crudpsh+"),
    all("Procedure", "crudpsh+"),
    all("Provenance", "crudpsh+"),
    all("QuestionnaireResponse", "crudpsh+"),
    all("RelatedPerson", "crudpsh+"),
    all("ServiceRequest", "crudpsh+"),
];
