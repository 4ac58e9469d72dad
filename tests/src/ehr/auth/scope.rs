//! SMART scopes as an EHR sees them: parsed, compared with what an app record has ticked, and written in
//! the dialect of the record.

use serde::Deserialize;

/// How an app record spells resource scopes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    V1,
    V2,
    /// `patient/observation.read`, on Oracle's legacy base.
    V1Lowercase,
}

/// The permissions of a scope, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions(u8);

impl Permissions {
    const LETTERS: [char; 5] = ['c', 'r', 'u', 'd', 's'];
    const READ: Self = Self(0b10010);
    const WRITE: Self = Self(0b01101);
    const ALL: Self = Self(0b11111);

    fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// `cruds` in this order, none twice, at least one.
    fn parse_v2(text: &str) -> Option<Self> {
        let mut bits = 0;
        let mut rest = Self::LETTERS.iter().enumerate();
        for letter in text.chars() {
            let (at, _) = rest.find(|(_, known)| **known == letter)?;
            bits |= 1 << at;
        }
        (bits != 0).then_some(Self(bits))
    }

    fn text_v2(self) -> String {
        Self::LETTERS.iter().enumerate().filter(|(at, _)| self.0 & (1 << at) != 0).map(|(_, letter)| *letter).collect()
    }

    /// The smallest v1 word that holds all of these.
    fn text_v1(self) -> &'static str {
        if Self::READ.contains(self) {
            "read"
        } else if Self::WRITE.contains(self) {
            "write"
        } else {
            "*"
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceScope {
    /// `patient`, `user` or `system`.
    pub context: String,
    /// A FHIR type or `*`.
    pub kind: String,
    pub permissions: Permissions,
    pub query: Option<String>,
    pub v1: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    Resource(ResourceScope),
    /// `openid`, `launch/patient`, `offline_access` …
    Plain(String),
}

impl Scope {
    /// None: malformed, or a type that FHIR does not know.
    pub fn parse(text: &str) -> Option<Self> {
        Self::parse_as(text, false)
    }

    /// With `lowercase`, types are lower case and only v1 is known.
    pub fn parse_as(text: &str, lowercase: bool) -> Option<Self> {
        let Some((context, rest)) = text.split_once('/') else {
            return (!text.is_empty()).then(|| Self::Plain(text.to_owned()));
        };
        if context == "launch" {
            return Some(Self::Plain(text.to_owned()));
        }
        if !matches!(context, "patient" | "user" | "system") {
            return None;
        }
        let (kind, permission) = rest.split_once('.')?;
        let (permission, query) = match permission.split_once('?') {
            Some((permission, query)) => (permission, Some(query.to_owned())),
            None => (permission, None),
        };
        let v1 = match permission {
            "read" => Some(Permissions::READ),
            "write" => Some(Permissions::WRITE),
            "*" => Some(Permissions::ALL),
            _ => None,
        };
        if v1.is_some() && query.is_some() || v1.is_none() && lowercase {
            return None;
        }
        let kind = match kind {
            "*" => "*",
            kind if lowercase => TYPES.split_whitespace().find(|known| known.to_ascii_lowercase() == kind)?,
            kind => TYPES.split_whitespace().find(|known| *known == kind)?,
        };
        let permissions = v1.or_else(|| Permissions::parse_v2(permission))?;
        Some(Self::Resource(ResourceScope {
            context: context.to_owned(),
            kind: kind.to_owned(),
            permissions,
            query,
            v1: v1.is_some(),
        }))
    }

    pub fn is(&self, plain: &str) -> bool {
        matches!(self, Self::Plain(text) if text == plain)
    }

    pub fn resource(&self) -> Option<&ResourceScope> {
        match self {
            Self::Resource(scope) => Some(scope),
            Self::Plain(_) => None,
        }
    }

    /// As a token answer says it; `None` for the dialect means as it was asked.
    pub fn text(&self, dialect: Option<Dialect>) -> String {
        let scope = match self {
            Self::Plain(text) => return text.clone(),
            Self::Resource(scope) => scope,
        };
        let v1 = match dialect {
            None => scope.v1,
            Some(dialect) => dialect != Dialect::V2,
        };
        let kind = match dialect {
            Some(Dialect::V1Lowercase) => scope.kind.to_ascii_lowercase(),
            _ => scope.kind.clone(),
        };
        if v1 {
            return format!("{}/{kind}.{}", scope.context, scope.permissions.text_v1());
        }
        let query = scope.query.as_deref().map(|query| format!("?{query}")).unwrap_or_default();
        format!("{}/{kind}.{}{query}", scope.context, scope.permissions.text_v2())
    }
}

impl ResourceScope {
    /// What a record that has ticked `ticked` leaves of this: same context, the narrower type, the common
    /// permissions, and a query of either.
    pub fn within(&self, ticked: &Self) -> Option<Self> {
        let kind = match (self.kind.as_str(), ticked.kind.as_str()) {
            (asked, "*") => asked,
            ("*", ticked) => ticked,
            (asked, ticked) if asked == ticked => asked,
            _ => return None,
        };
        let permissions = self.permissions.both(ticked.permissions);
        let query = match (&self.query, &ticked.query) {
            (Some(asked), Some(ticked)) if asked != ticked => return None,
            (asked, ticked) => asked.clone().or_else(|| ticked.clone()),
        };
        let some = self.context == ticked.context && permissions != Permissions(0);
        some.then(|| Self { context: self.context.clone(), kind: kind.to_owned(), permissions, query, v1: self.v1 })
    }

    /// Whether all of this lies within `other`.
    pub fn covered_by(&self, other: &Self) -> bool {
        self.context == other.context
            && (other.kind == "*" || other.kind == self.kind)
            && other.permissions.contains(self.permissions)
            && (other.query.is_none() || other.query == self.query)
    }
}

/// Whether every scope of `asked` lies within `granted`.
pub fn all_covered(asked: &[Scope], granted: &[Scope]) -> bool {
    asked.iter().all(|scope| match scope {
        Scope::Plain(_) => granted.contains(scope),
        Scope::Resource(scope) => granted.iter().filter_map(Scope::resource).any(|other| scope.covered_by(other)),
    })
}

/// R4's resource types.
const TYPES: &str = "Account ActivityDefinition AdverseEvent AllergyIntolerance Appointment AppointmentResponse \
    AuditEvent Basic Binary BiologicallyDerivedProduct BodyStructure Bundle CapabilityStatement CarePlan CareTeam \
    CatalogEntry ChargeItem ChargeItemDefinition Claim ClaimResponse ClinicalImpression CodeSystem Communication \
    CommunicationRequest CompartmentDefinition Composition ConceptMap Condition Consent Contract Coverage \
    CoverageEligibilityRequest CoverageEligibilityResponse DetectedIssue Device DeviceDefinition DeviceMetric \
    DeviceRequest DeviceUseStatement DiagnosticReport DocumentManifest DocumentReference \
    EffectEvidenceSynthesis Encounter Endpoint EnrollmentRequest EnrollmentResponse EpisodeOfCare \
    EventDefinition Evidence EvidenceVariable ExampleScenario ExplanationOfBenefit FamilyMemberHistory Flag Goal \
    GraphDefinition Group GuidanceResponse HealthcareService ImagingStudy Immunization ImmunizationEvaluation \
    ImmunizationRecommendation ImplementationGuide InsurancePlan Invoice Library Linkage List Location Measure \
    MeasureReport Media Medication MedicationAdministration MedicationDispense MedicationKnowledge \
    MedicationRequest MedicationStatement MedicinalProduct MedicinalProductAuthorization \
    MedicinalProductContraindication MedicinalProductIndication MedicinalProductIngredient \
    MedicinalProductInteraction MedicinalProductManufactured MedicinalProductPackaged \
    MedicinalProductPharmaceutical MedicinalProductUndesirableEffect MessageDefinition MessageHeader \
    MolecularSequence NamingSystem NutritionOrder Observation ObservationDefinition OperationDefinition \
    OperationOutcome Organization OrganizationAffiliation Parameters Patient PaymentNotice \
    PaymentReconciliation Person PlanDefinition Practitioner PractitionerRole Procedure Provenance Questionnaire \
    QuestionnaireResponse RelatedPerson RequestGroup ResearchDefinition ResearchElementDefinition ResearchStudy \
    ResearchSubject RiskAssessment RiskEvidenceSynthesis Schedule SearchParameter ServiceRequest Slot Specimen \
    SpecimenDefinition StructureDefinition StructureMap Subscription Substance SubstanceNucleicAcid \
    SubstancePolymer SubstanceProtein SubstanceReferenceInformation SubstanceSourceMaterial \
    SubstanceSpecification SupplyDelivery SupplyRequest Task TerminologyCapabilities TestReport TestScript \
    ValueSet VerificationResult VisionPrescription";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammar_of_2_2() {
        for (text, v1, v2) in [
            ("patient/Observation.read", "patient/Observation.read", "patient/Observation.rs"),
            ("user/*.*", "user/*.*", "user/*.cruds"),
            ("patient/Condition.cud", "patient/Condition.write", "patient/Condition.cud"),
            ("patient/Condition.r", "patient/Condition.read", "patient/Condition.r"),
            ("patient/Condition.rs?category=a|b", "patient/Condition.read", "patient/Condition.rs?category=a|b"),
            ("launch/patient", "launch/patient", "launch/patient"),
        ] {
            let scope = Scope::parse(text).unwrap();
            assert_eq!(scope.text(None), text);
            assert_eq!(scope.text(Some(Dialect::V1)), v1);
            assert_eq!(scope.text(Some(Dialect::V2)), v2);
        }
        for bad in [
            "patient/Observation.sr",
            "patient/Observation.rr",
            "patient/Observation.",
            "patient/observation.rs",
            "Patient/Observation.rs",
            "patient/Observation.read?category=x",
            "patient/Nothing.rs",
            "",
        ] {
            assert_eq!(Scope::parse(bad), None, "{bad}");
        }
        assert_eq!(
            Scope::parse_as("patient/observation.read", true).unwrap().text(Some(Dialect::V1Lowercase)),
            "patient/observation.read"
        );
        assert_eq!(Scope::parse_as("patient/observation.rs", true), None);
    }

    #[test]
    fn a_record_narrows_what_is_asked() {
        let within = |asked: &str, ticked: &str| {
            let (asked, ticked) = (Scope::parse(asked).unwrap(), Scope::parse(ticked).unwrap());
            asked.resource()?.within(ticked.resource()?).map(|scope| Scope::Resource(scope).text(None))
        };
        assert_eq!(within("patient/*.rs", "patient/Goal.rs").as_deref(), Some("patient/Goal.rs"));
        assert_eq!(within("patient/Goal.cruds", "patient/Goal.rs").as_deref(), Some("patient/Goal.rs"));
        assert_eq!(within("patient/Goal.rs", "patient/*.rs?a=b").as_deref(), Some("patient/Goal.rs?a=b"));
        assert_eq!(within("patient/Goal.rs", "user/Goal.rs"), None);
        assert_eq!(within("patient/Goal.rs", "patient/Goal.cud"), None);
    }
}
