//! The hospitals of the sandbox: what each of them is, and what was filed there for an app.

use crate::ehr::{
    auth::client::{Client, ClientAuth, Persona, Use},
    auth::scope::Dialect,
    contract::{Switches, Vendor},
    jwt::random,
    server::Options,
};

/// One EHR, with a name of its own below `localhost`: only direct children of it are strangers to each other.
#[derive(Clone, Copy, Debug)]
pub struct Hospital {
    pub vendor: Vendor,
    pub host: &'static str,
    /// What a person calls it.
    pub name: &'static str,
    /// The product it runs.
    pub product: &'static str,
    pub sites: &'static [SitePlan],
}

/// A FHIR base of a hospital, for one public.
#[derive(Clone, Copy, Debug)]
pub struct SitePlan {
    pub id: &'static str,
    pub name: &'static str,
    /// Set where the vendor keeps patients and clinicians apart.
    pub persona: Option<Persona>,
    pub uses: &'static [Use],
}

const BOTH: &[Use] = &[Use::EhrLaunch, Use::Standalone];

pub const HOSPITALS: [Hospital; 5] = [
    Hospital {
        vendor: Vendor::Epic,
        host: "epic.localhost",
        name: "Riverside General Hospital",
        product: "Epic",
        sites: &[SitePlan { id: "epic", name: "Riverside General Hospital", persona: None, uses: BOTH }],
    },
    Hospital {
        vendor: Vendor::Oracle,
        host: "oracle.localhost",
        name: "Lakeside Medical Center",
        product: "Oracle Health",
        sites: &[
            SitePlan {
                id: "oracle",
                name: "Lakeside Medical Center (clinicians)",
                persona: Some(Persona::Provider),
                // A clinician who comes from outside is asked for no patient there.
                uses: &[Use::EhrLaunch],
            },
            SitePlan {
                id: "oracle-patients",
                name: "Lakeside Medical Center",
                persona: Some(Persona::Patient),
                uses: &[Use::Standalone],
            },
        ],
    },
    Hospital {
        vendor: Vendor::Athena,
        host: "athena.localhost",
        name: "Oakwood Family Practice",
        product: "athenaOne",
        sites: &[SitePlan { id: "athena", name: "Oakwood Family Practice", persona: None, uses: BOTH }],
    },
    Hospital {
        vendor: Vendor::AthenaPractice,
        host: "athenapractice.localhost",
        name: "Hillcrest Clinic",
        product: "athenaPractice",
        sites: &[SitePlan { id: "athena-practice", name: "Hillcrest Clinic", persona: None, uses: BOTH }],
    },
    Hospital {
        vendor: Vendor::Generic,
        host: "generic.localhost",
        name: "Harbor Community Hospital",
        product: "any SMART on FHIR server",
        sites: &[SitePlan { id: "generic", name: "Harbor Community Hospital", persona: None, uses: BOTH }],
    },
];

/// What the demo app reads, and so what is ticked for it.
const TYPES: [&str; 7] =
    ["Patient", "Condition", "Observation", "MedicationRequest", "AllergyIntolerance", "Encounter", "Practitioner"];

impl Hospital {
    pub fn options(&self, port: u16, strict: bool, fast: bool) -> Options {
        let switches = Switches {
            access_lifetime: fast.then(|| self.fast_lifetime()),
            // Else a clinician who signs in there comes back without a patient.
            provider_picker: (self.vendor == Vendor::Epic).then_some(true),
            ..Switches::default()
        };
        Options { strict, port, host: Some(self.host.to_owned()), switches, ..Options::new(self.vendor) }
    }

    /// Seconds. Oracle refuses two refreshes within a minute, and a token falls due at 60 % of its life.
    const fn fast_lifetime(&self) -> u64 {
        match self.vendor {
            Vendor::Oracle => 120,
            _ => 30,
        }
    }

    /// How the app's record there spells scopes.
    const fn v1(&self) -> bool {
        matches!(self.vendor, Vendor::Athena | Vendor::AthenaPractice)
    }

    /// Whether the portal has `Procedure` ticked: where it has not, the demo shows a scope being refused.
    const fn has_procedures(&self) -> bool {
        !matches!(self.vendor, Vendor::Epic | Vendor::Athena)
    }

    /// The scopes that are ticked at the vendor's portal.
    pub fn scopes(&self, plan: &SitePlan) -> Vec<String> {
        let mut scopes: Vec<String> = ["openid", "fhirUser", "offline_access"].map(str::to_owned).into();
        if plan.uses.contains(&Use::EhrLaunch) {
            scopes.push("launch".into());
        }
        if plan.uses.contains(&Use::Standalone) {
            scopes.push("launch/patient".into());
        }
        let suffix = if self.v1() { "read" } else { "rs" };
        let types = TYPES.into_iter().chain(self.has_procedures().then_some("Procedure"));
        scopes.extend(types.map(|kind| format!("patient/{kind}.{suffix}")));
        scopes
    }
}

/// What was filed at a vendor's portal for one app at one site; both sides of it are made of this.
#[derive(Clone, Debug)]
pub struct Filing {
    pub hospital: Hospital,
    pub plan: SitePlan,
    pub app: String,
    /// The name of Mantel's registration.
    pub id: String,
    pub client_id: String,
    pub secret: String,
}

impl Filing {
    pub fn new(hospital: Hospital, plan: SitePlan, app: &str) -> Self {
        let id = format!("{app}-{}", plan.id);
        Self { hospital, plan, app: app.to_owned(), client_id: format!("{id}-client"), secret: random::<24>(), id }
    }

    /// The EHR's record. `title` is what its pages call the app.
    pub fn client(&self, title: &str, gateway: &str) -> Client {
        let auth = ClientAuth::ClientSecretBasic { secret: self.secret.clone() };
        let callback = format!("{gateway}/oauth/callback/{}", self.id);
        let launched = self.plan.uses.contains(&Use::EhrLaunch);
        Client {
            name: title.to_owned(),
            launch_url: launched.then(|| format!("{gateway}/launch/{}", self.app)),
            scopes: self.hospital.scopes(&self.plan),
            uses: self.plan.uses.to_vec(),
            dialect: Some(if self.hospital.v1() { Dialect::V1 } else { Dialect::V2 }),
            persona: self.plan.persona,
            ..Client::new(&self.client_id, auth, &[&callback])
        }
    }
}
