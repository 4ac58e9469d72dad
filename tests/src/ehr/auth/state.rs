//! What the EHR remembers.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use serde_json::Value;

use crate::ehr::{
    auth::{
        client::{Client, Persona},
        places::{Base, Profile},
        scope::Scope,
    },
    jwt::s256,
};

/// Somebody who can sign in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub username: String,
    pub name: String,
    pub persona: Persona,
    /// Id of the Patient or Practitioner.
    pub fhir_id: String,
}

impl User {
    pub fn reference(&self) -> String {
        let kind = match self.persona {
            Persona::Patient => "Patient",
            Persona::Provider => "Practitioner",
        };
        format!("{kind}/{}", self.fhir_id)
    }
}

/// Somebody's being signed in.
#[derive(Clone, Debug)]
pub struct Session {
    pub username: String,
    pub last_act: i64,
    pub ended: bool,
}

/// What an EHR launch token stands for.
#[derive(Clone, Debug)]
pub struct LaunchContext {
    pub client_id: String,
    pub base: Base,
    pub user: User,
    pub session: String,
    pub patient: Option<String>,
    pub encounter: Option<String>,
    pub intent: Option<String>,
    pub fhir_context: Option<Value>,
    pub need_patient_banner: bool,
    pub until: i64,
}

/// A checked authorization request, and how far its user has come.
#[derive(Clone, Debug)]
pub struct Request {
    pub client_id: String,
    pub base: Base,
    pub profile: Profile,
    pub redirect_uri: String,
    /// Oracle: the request may leave it out, and then so must the token request.
    pub redirect_uri_given: bool,
    pub state: String,
    pub challenge: Option<String>,
    pub nonce: Option<String>,
    pub scopes: Vec<Scope>,
    pub launch: Option<LaunchContext>,
    pub user: Option<User>,
    pub session: Option<String>,
    pub patient: Option<String>,
    pub until: i64,
}

#[derive(Clone, Debug)]
pub struct Code {
    pub request: Request,
    /// The grant that it was exchanged for.
    pub used: Option<u64>,
}

/// Why a grant is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// A spent refresh token or code was used again.
    Reuse,
    Revoked,
    /// The session that `online_access` hung on is over.
    SessionEnded,
    /// By control.
    Killed,
}

#[derive(Clone, Debug)]
pub struct Grant {
    pub client_id: String,
    pub base: Base,
    pub user: Option<User>,
    pub patient: Option<String>,
    pub scopes: Vec<Scope>,
    pub session: Option<String>,
    /// Of the newest refresh token; 0 for the first.
    pub generation: u64,
    pub started: i64,
    pub last_refresh: Option<i64>,
    pub last_used: i64,
    /// When the newest access token ends.
    pub access_until: i64,
    pub refreshes: u64,
    pub reuses: u64,
    pub suspended: bool,
    pub ended: Option<End>,
}

impl Grant {
    pub fn has(&self, plain: &str) -> bool {
        self.scopes.iter().any(|scope| scope.is(plain))
    }
}

#[derive(Clone, Debug)]
pub struct AccessToken {
    pub grant: u64,
    pub scopes: Vec<Scope>,
    pub until: i64,
}

#[derive(Clone, Debug)]
pub struct RefreshToken {
    pub grant: u64,
    pub generation: u64,
    /// When it was presented, refused or not.
    pub presented: Vec<i64>,
    pub spent: bool,
}

/// What tests and the control address see of a grant. No token.
#[derive(Clone, Debug, Serialize)]
pub struct GrantView {
    pub id: u64,
    pub client_id: String,
    pub username: Option<String>,
    pub patient: Option<String>,
    /// Milliseconds since 1970, as are all of these.
    pub started: i64,
    /// When the newest access token ends.
    pub access_until: i64,
    pub generation: u64,
    pub refreshes: u64,
    /// How often a spent refresh token of it was used.
    pub reuses: u64,
    /// By generation.
    pub refresh_tokens: Vec<RefreshView>,
    pub access_tokens_alive: usize,
    pub suspended: bool,
    pub ended: Option<End>,
}

/// A refresh token, without the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RefreshView {
    /// By which it is known where it passed ([`s256`]).
    pub digest: String,
    pub generation: u64,
    /// How often it was presented, refused or not.
    pub uses: u64,
    /// When, in milliseconds since 1970 by the EHR's clock.
    pub presented: Vec<i64>,
    pub spent: bool,
}

#[derive(Default)]
pub struct State {
    pub clients: BTreeMap<String, Client>,
    pub launches: HashMap<String, LaunchContext>,
    pub requests: HashMap<String, Request>,
    pub codes: HashMap<String, Code>,
    pub grants: BTreeMap<u64, Grant>,
    pub access: HashMap<String, AccessToken>,
    pub refresh: HashMap<String, RefreshToken>,
    pub sessions: HashMap<String, Session>,
    /// (client, jti) of assertions, until they expire.
    pub assertions: HashMap<(String, String), i64>,
    /// Oracle: instances of errors about a grant.
    pub errors: HashMap<String, u64>,
    /// The minute now running, and its token requests.
    pub minute: (i64, u32),
    last_grant: u64,
    issued: u64,
}

impl State {
    pub fn new_grant(&mut self, grant: Grant) -> u64 {
        self.last_grant += 1;
        self.grants.insert(self.last_grant, grant);
        self.last_grant
    }

    /// Ends a grant once; what ended it first stays its reason.
    pub fn end(&mut self, id: u64, why: End) {
        if let Some(grant) = self.grants.get_mut(&id) {
            grant.ended.get_or_insert(why);
            self.access.retain(|_, token| token.grant != id);
        }
    }

    /// The live grant and token behind a bearer.
    pub fn bearer(&self, token: &str, now: i64) -> Option<(&Grant, &AccessToken)> {
        let access = self.access.get(token).filter(|access| access.until > now)?;
        let grant = self.grants.get(&access.grant).filter(|grant| grant.ended.is_none())?;
        Some((grant, access))
    }

    pub fn session_alive(&self, id: Option<&String>, now: i64, idle: i64) -> bool {
        id.and_then(|id| self.sessions.get(id)).is_some_and(|session| !session.ended && session.last_act + idle > now)
    }

    /// Forgets what time has ended, now and then, so that a long load test does not grow without bound.
    pub fn sweep(&mut self, now: i64) {
        self.issued += 1;
        if !self.issued.is_multiple_of(4096) {
            return;
        }
        self.access.retain(|_, token| token.until > now);
        self.requests.retain(|_, request| request.until > now);
        self.launches.retain(|_, launch| launch.until > now);
        self.codes.retain(|_, code| code.request.until > now);
        self.assertions.retain(|_, until| *until > now);
    }

    pub fn view(&self, now: i64) -> Vec<GrantView> {
        let mut alive: HashMap<u64, usize> = HashMap::new();
        for token in self.access.values().filter(|token| token.until > now) {
            *alive.entry(token.grant).or_default() += 1;
        }
        let mut refresh: HashMap<u64, Vec<RefreshView>> = HashMap::new();
        for (text, token) in &self.refresh {
            let RefreshToken { grant, generation, ref presented, spent } = *token;
            let (digest, uses) = (s256(text), presented.len() as u64);
            let view = RefreshView { digest, generation, uses, presented: presented.clone(), spent };
            refresh.entry(grant).or_default().push(view);
        }
        refresh.values_mut().for_each(|tokens| tokens.sort_by_key(|token| token.generation));
        let view = |(id, grant): (&u64, &Grant)| GrantView {
            id: *id,
            client_id: grant.client_id.clone(),
            username: grant.user.as_ref().map(|user| user.username.clone()),
            patient: grant.patient.clone(),
            started: grant.started,
            access_until: grant.access_until,
            generation: grant.generation,
            refreshes: grant.refreshes,
            reuses: grant.reuses,
            refresh_tokens: refresh.get(id).cloned().unwrap_or_default(),
            access_tokens_alive: alive.get(id).copied().unwrap_or(0),
            suspended: grant.suspended,
            ended: grant.ended,
        };
        self.grants.iter().map(view).collect()
    }
}
