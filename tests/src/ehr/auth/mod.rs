//! The authorization server.
//!
//! [`places`] says where a vendor has what, [`rules`] how it behaves. A launch goes through [`authorize`]
//! (the request is checked), [`steps`] (the user signs in, picks a patient, consents) and [`token`]; what is
//! remembered meanwhile is in [`state`].

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::Value;

use crate::ehr::{
    contract::{TokenFacts, Vendor},
    fhir::{PatientSummary, PersonSummary},
    jwt::SigningKey,
};
use client::{Client, Persona};
use fetch::Fetcher;
use places::Places;
use rules::Rules;
use state::{Session, State, User};

pub mod authorize;
pub mod client;
pub mod client_auth;
pub mod discovery;
pub mod fetch;
pub mod granting;
pub mod manage;
pub mod places;
pub mod refusal;
pub mod rules;
pub mod scope;
pub mod state;
pub mod steps;
pub mod token;

/// Milliseconds that an authorization request, its code or a launch token may wait.
pub const PATIENCE: i64 = 5 * 60_000;
/// A session without an act of its user ends after these milliseconds.
pub const SESSION_IDLE: i64 = 30 * 60_000;
/// Everybody's password.
pub const PASSWORD: &str = "demo";
/// athenaOne's practice, as its token answers name it.
pub const ATHENA_PRACTICE: &str = "a-1.Practice-195900";
/// The cookie of somebody signed in at the EHR.
pub const SESSION_COOKIE: &str = "ehr_session";

/// The EHR's own keys: RSA for id_tokens, EC for access tokens.
pub struct Keys {
    pub id_token: SigningKey,
    pub access: SigningKey,
}

/// Why something was refused; real EHRs say less, so that tests and app teams find it here.
#[derive(Clone, Debug, Serialize)]
pub struct Refused {
    pub at: &'static str,
    pub client_id: Option<String>,
    pub error: String,
    pub why: String,
}

pub struct AuthServer {
    pub rules: Rules,
    pub places: Places,
    keys: Keys,
    users: BTreeMap<String, User>,
    patients: Vec<PatientSummary>,
    state: Mutex<State>,
    refused: Mutex<VecDeque<Refused>>,
    fetcher: Fetcher,
    /// Key sets of apps, when they were fetched.
    key_sets: Mutex<HashMap<String, (i64, Value)>>,
    /// Seconds; 0: the rules' own.
    lifetime: AtomicU64,
    turns: [AtomicU64; 3],
}

/// What Epic does one way and the other in turn.
#[derive(Clone, Copy, Debug)]
enum Turn {
    LongCode,
    JwtToken,
    LowerCaseBearer,
}

impl AuthServer {
    pub fn new(
        rules: Rules,
        places: Places,
        patients: Vec<PatientSummary>,
        practitioners: &[PersonSummary],
        fetcher: Fetcher,
    ) -> Result<Self> {
        let mut users = BTreeMap::new();
        let people = practitioners
            .iter()
            .map(|person| (&person.id, &person.name, Persona::Provider))
            .chain(patients.iter().map(|patient| (&patient.id, &patient.name, Persona::Patient)));
        for (id, name, persona) in people {
            let plain = username(name);
            let mut username = plain.clone();
            let mut number = 2;
            while users.contains_key(&username) {
                username = format!("{plain}{number}");
                number += 1;
            }
            let user = User { username: username.clone(), name: name.clone(), persona, fhir_id: id.clone() };
            users.insert(username, user);
        }
        let keys = Keys { id_token: SigningKey::generate("RS256")?, access: SigningKey::generate("ES256")? };
        Ok(Self {
            rules,
            places,
            keys,
            users,
            patients,
            state: Mutex::default(),
            refused: Mutex::default(),
            fetcher,
            key_sets: Mutex::default(),
            lifetime: AtomicU64::new(0),
            turns: Default::default(),
        })
    }

    pub fn register(&self, client: Client) -> Result<()> {
        client.check(self.rules.vendor)?;
        self.state().clients.insert(client.client_id.clone(), client);
        Ok(())
    }

    pub fn user(&self, username: &str) -> Option<&User> {
        self.users.get(username)
    }

    /// Those who can sign in, clinicians first.
    pub fn users(&self) -> Vec<&User> {
        let mut users: Vec<&User> = self.users.values().collect();
        users.sort_by_key(|user| user.persona == Persona::Patient);
        users
    }

    pub fn patients(&self) -> &[PatientSummary] {
        &self.patients
    }

    pub fn any_clinician(&self) -> Result<&User> {
        match self.users().into_iter().find(|user| user.persona == Persona::Provider) {
            Some(user) => Ok(user),
            None => bail!("this EHR has no Practitioner who could launch an app"),
        }
    }

    /// What a live bearer token opens.
    pub fn facts(&self, token: &str, now: i64) -> Option<(places::Base, TokenFacts)> {
        let state = self.state();
        let (grant, access) = state.bearer(token, now)?;
        let facts = TokenFacts {
            client_id: grant.client_id.clone(),
            scopes: granting::for_fhir(&access.scopes),
            patient: grant.patient.clone(),
            fhir_user: grant.user.as_ref().map(User::reference),
            tenant: self.tenant(),
        };
        Some((grant.base, facts))
    }

    pub fn tenant(&self) -> Option<String> {
        match self.rules.vendor {
            Vendor::Oracle => Some(self.places.tenant().to_owned()),
            Vendor::Athena => Some(ATHENA_PRACTICE.to_owned()),
            _ => None,
        }
    }

    pub fn set_lifetime(&self, seconds: Option<u64>) {
        self.lifetime.store(seconds.unwrap_or(0), Relaxed);
    }

    fn access_lifetime(&self) -> u64 {
        match self.lifetime.load(Relaxed) {
            0 => self.rules.access_lifetime,
            set => set,
        }
    }

    pub fn new_session(&self, state: &mut State, user: &User, now: i64) -> String {
        let id = crate::ehr::jwt::random::<24>();
        state.sessions.insert(id.clone(), Session { username: user.username.clone(), last_act: now, ended: false });
        id
    }

    /// The user of a live session, who has just acted.
    pub fn act(&self, session: &str, now: i64) -> Option<User> {
        let mut state = self.state();
        let session = state.sessions.get_mut(session)?;
        if session.ended || session.last_act + SESSION_IDLE <= now {
            return None;
        }
        session.last_act = now;
        self.user(&session.username).cloned()
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn forget_key_sets(&self) {
        self.key_sets.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub fn refused(&self) -> Vec<Refused> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn note(&self, at: &'static str, client_id: Option<&str>, error: &str, why: &str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() == 200 {
            refused.pop_front();
        }
        refused.push_back(Refused {
            at,
            client_id: client_id.map(str::to_owned),
            error: error.to_owned(),
            why: why.to_owned(),
        });
    }

    pub fn forget_refused(&self) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// True every other time.
    fn by_turns(&self, what: Turn) -> bool {
        let [code, token, bearer] = &self.turns;
        let turn = match what {
            Turn::LongCode => code,
            Turn::JwtToken => token,
            Turn::LowerCaseBearer => bearer,
        };
        turn.fetch_add(1, Relaxed).is_multiple_of(2)
    }
}

/// `Dr. Grace Hopper` → `dr.grace.hopper`
fn username(name: &str) -> String {
    let words = name.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join(".")
}
