//! Whose a resource is, by type: R4's CompartmentDefinition/patient with the elements behind its search
//! parameters, and what is held of the types that are not in it.

use super::Class;

/// R4's CompartmentDefinition/patient (4.0.1): per type the search parameters, and the element of each.
pub(super) const PATIENT_COMPARTMENT: &[(&str, &[(&str, &str)])] = &[
    ("Account", &[("subject", "subject")]),
    ("AdverseEvent", &[("subject", "subject")]),
    ("AllergyIntolerance", &[("patient", "patient"), ("recorder", "recorder"), ("asserter", "asserter")]),
    ("Appointment", &[("actor", "participant.actor")]),
    ("AppointmentResponse", &[("actor", "actor")]),
    ("AuditEvent", &[("patient", "agent.who"), ("patient", "entity.what")]),
    ("Basic", &[("patient", "subject"), ("author", "author")]),
    ("BodyStructure", &[("patient", "patient")]),
    ("CarePlan", &[("patient", "subject"), ("performer", "activity.detail.performer")]),
    ("CareTeam", &[("patient", "subject"), ("participant", "participant.member")]),
    ("ChargeItem", &[("subject", "subject")]),
    ("Claim", &[("patient", "patient"), ("payee", "payee.party")]),
    ("ClaimResponse", &[("patient", "patient")]),
    ("ClinicalImpression", &[("subject", "subject")]),
    ("Communication", &[("subject", "subject"), ("sender", "sender"), ("recipient", "recipient")]),
    (
        "CommunicationRequest",
        &[("subject", "subject"), ("sender", "sender"), ("recipient", "recipient"), ("requester", "requester")],
    ),
    ("Composition", &[("subject", "subject"), ("author", "author"), ("attester", "attester.party")]),
    ("Condition", &[("patient", "subject"), ("asserter", "asserter")]),
    ("Consent", &[("patient", "patient")]),
    (
        "Coverage",
        &[
            ("policy-holder", "policyHolder"),
            ("subscriber", "subscriber"),
            ("beneficiary", "beneficiary"),
            ("payor", "payor"),
        ],
    ),
    ("CoverageEligibilityRequest", &[("patient", "patient")]),
    ("CoverageEligibilityResponse", &[("patient", "patient")]),
    ("DetectedIssue", &[("patient", "patient")]),
    ("DeviceRequest", &[("subject", "subject"), ("performer", "performer")]),
    ("DeviceUseStatement", &[("subject", "subject")]),
    ("DiagnosticReport", &[("subject", "subject")]),
    ("DocumentManifest", &[("subject", "subject"), ("author", "author"), ("recipient", "recipient")]),
    ("DocumentReference", &[("subject", "subject"), ("author", "author")]),
    ("Encounter", &[("subject", "subject")]),
    ("EnrollmentRequest", &[("subject", "candidate")]),
    ("EpisodeOfCare", &[("patient", "patient")]),
    ("ExplanationOfBenefit", &[("patient", "patient"), ("payee", "payee.party")]),
    ("FamilyMemberHistory", &[("patient", "patient")]),
    ("Flag", &[("patient", "subject")]),
    ("Goal", &[("patient", "subject")]),
    ("Group", &[("member", "member.entity")]),
    ("ImagingStudy", &[("patient", "subject")]),
    ("Immunization", &[("patient", "patient")]),
    ("ImmunizationEvaluation", &[("patient", "patient")]),
    ("ImmunizationRecommendation", &[("patient", "patient")]),
    ("Invoice", &[("subject", "subject"), ("patient", "subject"), ("recipient", "recipient")]),
    ("List", &[("subject", "subject"), ("source", "source")]),
    ("MeasureReport", &[("patient", "subject")]),
    ("Media", &[("subject", "subject")]),
    ("MedicationAdministration", &[("patient", "subject"), ("performer", "performer.actor"), ("subject", "subject")]),
    ("MedicationDispense", &[("subject", "subject"), ("patient", "subject"), ("receiver", "receiver")]),
    ("MedicationRequest", &[("subject", "subject")]),
    ("MedicationStatement", &[("subject", "subject")]),
    ("MolecularSequence", &[("patient", "patient")]),
    ("NutritionOrder", &[("patient", "patient")]),
    ("Observation", &[("subject", "subject"), ("performer", "performer")]),
    ("Patient", &[("link", "link.other")]),
    ("Person", &[("patient", "link.target")]),
    ("Procedure", &[("patient", "subject"), ("performer", "performer.actor")]),
    ("Provenance", &[("patient", "target")]),
    ("QuestionnaireResponse", &[("subject", "subject"), ("author", "author")]),
    ("RelatedPerson", &[("patient", "patient")]),
    ("RequestGroup", &[("subject", "subject"), ("participant", "action.participant")]),
    ("ResearchSubject", &[("individual", "individual")]),
    ("RiskAssessment", &[("subject", "subject")]),
    ("Schedule", &[("actor", "actor")]),
    ("ServiceRequest", &[("subject", "subject"), ("performer", "performer")]),
    ("Specimen", &[("subject", "subject")]),
    ("SupplyDelivery", &[("patient", "patient")]),
    ("SupplyRequest", &[("subject", "deliverTo")]),
    ("Task", &[("patient", "for"), ("focus", "focus")]),
    ("VisionPrescription", &[("patient", "patient")]),
];

/// What is held of the types that the compartment does not have, and of the three that are judged otherwise
/// than by it. Types that are named nowhere are refused: a donor's tissue, payments for several patients, messages,
/// containers of other resources, and what another system is told of a patient say nothing to decide by.
pub(super) fn other(resource_type: &str) -> Option<Class> {
    match resource_type {
        // In R4 a Patient is also in the compartments of those that it links to. A link may name a record that
        // was merged by mistake; the id alone counts here.
        "Patient" => Some(Class::Patient),
        // A Group names its other members.
        "Group" => Some(Class::Members),
        // Implanted devices have a patient (US Core), those on a shelf have none.
        "Device" => Some(Class::Device),
        "Binary" => Some(Class::Binary),
        // Who, where and with what care is given.
        "Endpoint"
        | "HealthcareService"
        | "InsurancePlan"
        | "Location"
        | "Organization"
        | "OrganizationAffiliation"
        | "Practitioner"
        | "PractitionerRole" => Some(Class::Shared),
        // What is given, and its descriptions.
        "CatalogEntry"
        | "DeviceDefinition"
        | "Medication"
        | "MedicationKnowledge"
        | "MedicinalProduct"
        | "MedicinalProductAuthorization"
        | "MedicinalProductContraindication"
        | "MedicinalProductIndication"
        | "MedicinalProductIngredient"
        | "MedicinalProductInteraction"
        | "MedicinalProductManufactured"
        | "MedicinalProductPackaged"
        | "MedicinalProductPharmaceutical"
        | "MedicinalProductUndesirableEffect"
        | "ObservationDefinition"
        | "SpecimenDefinition"
        | "Substance"
        | "SubstanceNucleicAcid"
        | "SubstancePolymer"
        | "SubstanceProtein"
        | "SubstanceReferenceInformation"
        | "SubstanceSourceMaterial"
        | "SubstanceSpecification" => Some(Class::Shared),
        // Definitions and knowledge.
        "ActivityDefinition"
        | "CapabilityStatement"
        | "ChargeItemDefinition"
        | "CodeSystem"
        | "CompartmentDefinition"
        | "ConceptMap"
        | "EffectEvidenceSynthesis"
        | "EventDefinition"
        | "Evidence"
        | "EvidenceVariable"
        | "ExampleScenario"
        | "GraphDefinition"
        | "ImplementationGuide"
        | "Library"
        | "Measure"
        | "MessageDefinition"
        | "NamingSystem"
        | "OperationDefinition"
        | "PlanDefinition"
        | "Questionnaire"
        | "ResearchDefinition"
        | "ResearchElementDefinition"
        | "ResearchStudy"
        | "RiskEvidenceSynthesis"
        | "SearchParameter"
        | "StructureDefinition"
        | "StructureMap"
        | "TerminologyCapabilities"
        | "TestScript"
        | "ValueSet" => Some(Class::Shared),
        // A free or taken time, without saying by whom it was taken.
        "Slot" => Some(Class::Shared),
        // What a server has to say of a request.
        "OperationOutcome" => Some(Class::Shared),
        _ => None,
    }
}

/// The search parameters that choose the patient, the one that is added to a search first.
pub(super) const PATIENT_PARAMETERS: &[(&str, &[&str])] = &[
    ("Account", &["patient", "subject"]),
    ("AdverseEvent", &["subject"]),
    ("AllergyIntolerance", &["patient"]),
    ("Appointment", &["patient", "actor"]),
    ("AppointmentResponse", &["patient", "actor"]),
    ("AuditEvent", &["patient"]),
    ("Basic", &["patient", "subject"]),
    ("BodyStructure", &["patient"]),
    ("CarePlan", &["patient", "subject"]),
    ("CareTeam", &["patient", "subject"]),
    ("ChargeItem", &["patient", "subject"]),
    ("Claim", &["patient"]),
    ("ClaimResponse", &["patient"]),
    ("ClinicalImpression", &["patient", "subject"]),
    ("Communication", &["patient", "subject"]),
    ("CommunicationRequest", &["patient", "subject"]),
    ("Composition", &["patient", "subject"]),
    ("Condition", &["patient", "subject"]),
    ("Consent", &["patient"]),
    ("Coverage", &["patient", "beneficiary"]),
    ("CoverageEligibilityRequest", &["patient"]),
    ("CoverageEligibilityResponse", &["patient"]),
    ("DetectedIssue", &["patient"]),
    ("Device", &["patient"]),
    ("DeviceRequest", &["patient", "subject"]),
    ("DeviceUseStatement", &["patient", "subject"]),
    ("DiagnosticReport", &["patient", "subject"]),
    ("DocumentManifest", &["patient", "subject"]),
    ("DocumentReference", &["patient", "subject"]),
    ("Encounter", &["patient", "subject"]),
    ("EnrollmentRequest", &["patient", "subject"]),
    ("EpisodeOfCare", &["patient"]),
    ("ExplanationOfBenefit", &["patient"]),
    ("FamilyMemberHistory", &["patient"]),
    ("Flag", &["patient", "subject"]),
    ("Goal", &["patient", "subject"]),
    ("Group", &["member"]),
    ("ImagingStudy", &["patient", "subject"]),
    ("Immunization", &["patient"]),
    ("ImmunizationEvaluation", &["patient"]),
    ("ImmunizationRecommendation", &["patient"]),
    ("Invoice", &["patient", "subject"]),
    ("List", &["patient", "subject"]),
    ("MeasureReport", &["patient", "subject"]),
    ("Media", &["patient", "subject"]),
    ("MedicationAdministration", &["patient", "subject"]),
    ("MedicationDispense", &["patient", "subject"]),
    ("MedicationRequest", &["patient", "subject"]),
    ("MedicationStatement", &["patient", "subject"]),
    ("MolecularSequence", &["patient"]),
    ("NutritionOrder", &["patient"]),
    ("Observation", &["patient", "subject"]),
    ("Patient", &["_id"]),
    ("Person", &["patient"]),
    ("Procedure", &["patient", "subject"]),
    ("Provenance", &["patient"]),
    ("QuestionnaireResponse", &["patient", "subject"]),
    ("RelatedPerson", &["patient"]),
    ("RequestGroup", &["patient", "subject"]),
    ("ResearchSubject", &["patient", "individual"]),
    ("RiskAssessment", &["patient", "subject"]),
    ("Schedule", &["actor"]),
    ("ServiceRequest", &["patient", "subject"]),
    ("Specimen", &["patient", "subject"]),
    ("SupplyDelivery", &["patient"]),
    ("SupplyRequest", &["subject"]),
    ("Task", &["patient", "subject"]),
    ("VisionPrescription", &["patient"]),
];
