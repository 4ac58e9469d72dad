//! From the sign-in page to the code.

use http::{
    Method, StatusCode,
    header::{LOCATION, SET_COOKIE},
};

use crate::ehr::{
    auth::{
        AuthServer, PASSWORD, PATIENCE, SESSION_COOKIE, Turn,
        client::{Client, Persona},
        granting::settle,
        places::Host,
        scope::Scope,
        state::{Code, Request},
    },
    contract::Vendor,
    jwt::random,
    pages,
    web::{Call, Reply, empty, page, redirect, with_header, with_query},
};

impl AuthServer {
    /// `transaction`, `username`, `password`.
    pub fn sign_in(&self, call: &Call) -> Reply {
        let form = call.form();
        let Some((transaction, request, client)) = self.under_way(call) else { return self.lost() };
        let user = form.get("username").and_then(|name| self.user(name)).cloned();
        let fits = |persona: Persona| match request.base.host {
            Host::Patients => persona == Persona::Patient,
            Host::Main => self.rules.vendor != Vendor::Oracle || persona == Persona::Provider,
        };
        let user = user.filter(|user| form.get("password") == Some(PASSWORD) && fits(user.persona));
        let Some(user) = user else {
            let again = pages::sign_in(self, &transaction, &client, Some("Unknown name or wrong password."));
            return page(StatusCode::UNAUTHORIZED, again);
        };
        let mut state = self.state();
        let session = self.new_session(&mut state, &user, call.now);
        let Some(request) = state.requests.get_mut(&transaction) else {
            drop(state);
            return self.lost();
        };
        request.patient = (user.persona == Persona::Patient).then(|| user.fhir_id.clone());
        request.session = Some(session.clone());
        request.user = Some(user);
        let request = request.clone();
        drop(state);
        let next = if self.picks_patient(&request) {
            pages::select_patient(self, &transaction, &client, form.get("search"))
        } else {
            pages::consent(self, &transaction, &client, &request)
        };
        with_header(page(StatusCode::OK, next), SET_COOKIE, &cookie(&session))
    }

    /// A clinician outside the EHR, asked for a patient, where the EHR has a page for that.
    fn picks_patient(&self, request: &Request) -> bool {
        let provider = request.user.as_ref().is_some_and(|user| user.persona == Persona::Provider);
        let asked = request.scopes.iter().any(|scope| match scope {
            Scope::Plain(text) => text == "launch/patient",
            Scope::Resource(scope) => scope.context == "patient",
        });
        provider && asked && request.patient.is_none() && self.rules.provider_picker
    }

    /// `transaction`, and `patient`, or `search` to list others.
    pub fn select_patient(&self, call: &Call) -> Reply {
        let form = call.form();
        let Some((transaction, request, client)) = self.under_way(call) else { return self.lost() };
        if !self.picks_patient(&request) {
            return self.lost();
        }
        let chosen = form.get("patient").filter(|id| self.patients().iter().any(|patient| patient.id == *id));
        let Some(chosen) = chosen else {
            return page(StatusCode::OK, pages::select_patient(self, &transaction, &client, form.get("search")));
        };
        let mut state = self.state();
        let Some(request) = state.requests.get_mut(&transaction) else {
            drop(state);
            return self.lost();
        };
        request.patient = Some(chosen.to_owned());
        let request = request.clone();
        drop(state);
        page(StatusCode::OK, pages::consent(self, &transaction, &client, &request))
    }

    /// `transaction`, `decision` = `approve` or `deny`; with `selection`, only the ticked ones of `scope` stay.
    pub fn consent(&self, call: &Call) -> Reply {
        let form = call.form();
        let Some((transaction, request, _)) = self.under_way(call) else { return self.lost() };
        if request.user.is_none() || self.picks_patient(&request) {
            return self.lost();
        }
        let mut request = request;
        match form.get("decision") {
            Some("approve") => {}
            Some("deny") => {
                self.state().requests.remove(&transaction);
                return self.send_denial(call, &request);
            }
            _ => return self.lost(),
        }
        if form.get("selection").is_some() {
            request
                .scopes
                .retain(|scope| scope.resource().is_none() || form.all("scope").any(|kept| kept == scope.text(None)));
        }
        // Whoever takes it out is the one who goes on: a form that is sent twice gives one code.
        if self.state().requests.remove(&transaction).is_none() {
            return self.lost();
        }
        self.send_code(request, call.now)
    }

    /// Back to the app, with a code that is good once.
    pub fn send_code(&self, mut request: Request, now: i64) -> Reply {
        request.scopes = settle(&request.scopes, request.patient.as_deref());
        let code = if self.rules.vendor == Vendor::Epic && self.by_turns(Turn::LongCode) {
            // Epic's codes may be long, and look like JWTs.
            format!("eyJhbGciOiJSUzI1NiJ9.{}.{}", random::<300>(), random::<256>())
        } else {
            random::<32>()
        };
        let issuer = self.places.issuer(request.base.host);
        let mut pairs = vec![("code", code.as_str()), ("state", request.state.as_str())];
        if self.rules.vendor == Vendor::Generic {
            // RFC 9207
            pairs.push(("iss", &issuer));
        }
        let to = with_query(&request.redirect_uri, &pairs);
        request.until = now + PATIENCE;
        let code_record = Code { request, used: None };
        self.state().codes.insert(code, code_record);
        redirect(StatusCode::FOUND, &to)
    }

    fn under_way(&self, call: &Call) -> Option<(String, Request, Client)> {
        let form = call.form();
        if call.method != Method::POST {
            return None;
        }
        let transaction = form.get("transaction")?;
        let state = self.state();
        let request = state.requests.get(transaction).filter(|request| request.until > call.now)?.clone();
        let client = state.clients.get(&request.client_id)?.clone();
        Some((transaction.to_owned(), request, client))
    }

    fn lost(&self) -> Reply {
        page(
            StatusCode::BAD_REQUEST,
            pages::message(
                self,
                "This sign-in is over",
                "It took too long, or was finished before. Open the app again.",
            ),
        )
    }

    /// Signs in at the EHR itself, for its home page.
    pub fn sign_in_at_home(&self, call: &Call) -> Reply {
        let form = call.form();
        let user = form.get("username").and_then(|name| self.user(name));
        let Some(user) = user.filter(|_| form.get("password") == Some(PASSWORD)).cloned() else {
            return page(StatusCode::UNAUTHORIZED, pages::home_sign_in(self, Some("Unknown name or wrong password.")));
        };
        let session = self.new_session(&mut self.state(), &user, call.now);
        let mut answer = empty(StatusCode::SEE_OTHER);
        answer.headers_mut().insert(LOCATION, http::HeaderValue::from_static("/"));
        with_header(answer, SET_COOKIE, &cookie(&session))
    }
}

fn cookie(session: &str) -> String {
    format!("{SESSION_COOKIE}={session}; Path=/; HttpOnly; SameSite=Lax")
}
