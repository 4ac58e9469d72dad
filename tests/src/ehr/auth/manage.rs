//! After the launch: introspection, revocation, sign-out, the user's own page, and Oracle's error pages.

use http::{Method, StatusCode, header::SET_COOKIE};
use serde_json::{Map, Value, json};

use crate::ehr::{
    auth::{
        AuthServer, SESSION_COOKIE,
        places::{Base, Profile},
        refusal::Refusal,
        scope::Scope,
        state::{End, Grant, State},
    },
    contract::Vendor,
    pages,
    web::{Call, Reply, empty, json as json_reply, page, redirect, with_header, with_query},
};

impl AuthServer {
    pub async fn introspect(&self, call: &Call) -> Reply {
        let answer = self.introspection(call).await;
        self.dress(call, answer)
    }

    async fn introspection(&self, call: &Call) -> Reply {
        if call.method != Method::POST || !call.has_form_body() {
            return self.refuse(call, &Refusal::InvalidRequest("expected a POST of a form"), None, None);
        }
        let form = call.form();
        let by_bearer = self.rules.vendor != Vendor::Athena;
        let by_client = self.rules.vendor != Vendor::Epic;
        let caller = match call.bearer().filter(|_| by_bearer) {
            Some(bearer) => self.state().bearer(bearer, call.now).map(|(grant, _)| grant.client_id.clone()),
            None if by_client => match self.authenticate(call, &form, Profile::Usual).await {
                Ok(client) => Some(client.client_id),
                Err((refusal, claimed)) => return self.refuse(call, &refusal, claimed.as_deref(), None),
            },
            None => None,
        };
        let Some(caller) = caller else {
            return empty(StatusCode::UNAUTHORIZED);
        };
        let Some(token) = form.get("token") else {
            return self.refuse(call, &Refusal::InvalidRequest("token is missing"), Some(&caller), None);
        };
        let state = self.state();
        let told = self.told(&state, token, call.now).filter(|(grant, _, _)| grant.client_id == caller);
        let body = told.map_or_else(
            || json!({"active": false}),
            |(grant, scopes, until)| self.facts_of(&state, grant, scopes, until),
        );
        json_reply(StatusCode::OK, &body)
    }

    /// Grant, scopes and end (milliseconds) of a live token of either kind.
    fn told<'a>(&self, state: &'a State, token: &str, now: i64) -> Option<(&'a Grant, &'a [Scope], Option<i64>)> {
        if let Some((grant, access)) = state.bearer(token, now) {
            return Some((grant, &access.scopes, Some(access.until)));
        }
        let refresh = state.refresh.get(token).filter(|refresh| !refresh.spent)?;
        let grant = state.grants.get(&refresh.grant).filter(|grant| grant.ended.is_none() && !grant.suspended)?;
        let until = self.refresh_until(grant);
        (until > now).then_some((grant, &grant.scopes, Some(until)))
    }

    fn facts_of(&self, state: &State, grant: &Grant, scopes: &[Scope], until: Option<i64>) -> Value {
        let Base { host, .. } = grant.base;
        let mut facts = Map::new();
        facts.insert("active".into(), true.into());
        let client = state.clients.get(&grant.client_id);
        let scope = client.map(|client| crate::ehr::auth::granting::spell(&self.rules, client, grant.base, scopes));
        facts.extend(scope.map(|scope| ("scope".to_owned(), scope.into())));
        facts.insert("client_id".into(), grant.client_id.clone().into());
        facts.extend(until.map(|until| ("exp".to_owned(), (until / 1000).into())));
        facts.insert("iss".into(), self.places.issuer(host).into());
        facts.extend(grant.patient.clone().map(|patient| ("patient".to_owned(), patient.into())));
        if let Some(user) = &grant.user {
            facts.insert("username".into(), user.username.clone().into());
            facts.insert("sub".into(), user.fhir_id.clone().into());
            let reference = format!("{}/{}", self.places.fhir_base(grant.base), user.reference());
            facts.insert("fhirUser".into(), reference.into());
        }
        Value::Object(facts)
    }

    /// RFC 7009. A refresh token takes its grant along, an access token only itself.
    pub async fn revoke(&self, call: &Call) -> Reply {
        let answer = self.revocation(call).await;
        self.dress(call, answer)
    }

    async fn revocation(&self, call: &Call) -> Reply {
        if call.method != Method::POST || !call.has_form_body() {
            return self.refuse(call, &Refusal::InvalidRequest("expected a POST of a form"), None, None);
        }
        let form = call.form();
        let client = match self.authenticate(call, &form, Profile::Usual).await {
            Ok(client) => client,
            Err((refusal, claimed)) => return self.refuse(call, &refusal, claimed.as_deref(), None),
        };
        let Some(token) = form.get("token") else {
            return self.refuse(call, &Refusal::InvalidRequest("token is missing"), Some(&client.client_id), None);
        };
        let mut state = self.state();
        let found = state.refresh.get(token).map(|refresh| refresh.grant);
        let grant = found.or_else(|| state.access.get(token).map(|access| access.grant));
        let owner = grant.and_then(|id| state.grants.get(&id)).map(|grant| grant.client_id.clone());
        if owner.is_some_and(|owner| owner != client.client_id) {
            drop(state);
            let refusal = Refusal::UnauthorizedClient("another app's token");
            return self.refuse(call, &refusal, Some(&client.client_id), None);
        }
        match found {
            Some(id) => state.end(id, End::Revoked),
            None => {
                state.access.remove(token);
            }
        }
        empty(StatusCode::OK)
    }

    /// Ends the browser's session at the EHR, and with it what hangs on it.
    pub fn sign_out(&self, call: &Call) -> Reply {
        let session = call.cookie(SESSION_COOKIE);
        if let Some(session) = session {
            let mut state = self.state();
            if let Some(session) = state.sessions.get_mut(&session) {
                session.ended = true;
            }
        }
        let form = call.form();
        let back = form.get("post_logout_redirect_uri").filter(|uri| {
            self.state()
                .clients
                .values()
                .any(|client| client.post_logout_redirect_uris.iter().any(|known| known == uri))
        });
        let answer = match back {
            Some(uri) => {
                let state: Vec<(&str, &str)> = form.get("state").map(|state| ("state", state)).into_iter().collect();
                redirect(StatusCode::FOUND, &with_query(uri, &state))
            }
            None => page(StatusCode::OK, pages::message(self, "Signed out", "Your session at this EHR is over.")),
        };
        with_header(answer, SET_COOKIE, &format!("{SESSION_COOKIE}=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax"))
    }

    /// Ends the sessions of one user, or of all. Returns how many.
    pub fn end_sessions(&self, username: Option<&str>) -> usize {
        let mut state = self.state();
        let mut ended = 0;
        for session in state.sessions.values_mut() {
            if !session.ended && username.is_none_or(|name| name == session.username) {
                session.ended = true;
                ended += 1;
            }
        }
        ended
    }

    /// What the user has allowed to which app, to be ended here.
    pub fn manage(&self, call: &Call) -> Reply {
        let user = call.cookie(SESSION_COOKIE).and_then(|session| self.act(&session, call.now));
        let Some(user) = user else {
            let text = "Sign in on this EHR's home page first, then come back.";
            return page(StatusCode::UNAUTHORIZED, pages::message(self, "Apps that you allowed", text));
        };
        let form = call.form();
        let mine = |grant: &Grant| grant.ended.is_none() && grant.user.as_ref() == Some(&user);
        let mut state = self.state();
        let chosen = form.get("end").filter(|_| call.method == Method::POST).and_then(|id| id.parse::<u64>().ok());
        if let Some(id) = chosen.filter(|id| state.grants.get(id).is_some_and(mine)) {
            state.end(id, End::Revoked);
        }
        let grants: Vec<(u64, String)> = state
            .grants
            .iter()
            .filter(|(_, grant)| mine(grant))
            .map(|(id, grant)| (*id, grant.client_id.clone()))
            .collect();
        drop(state);
        page(StatusCode::OK, pages::manage(self, &call.path, &grants))
    }

    /// A visit revives the grant, if it was suspended.
    pub fn error_page(&self, instance: &str) -> Reply {
        let mut state = self.state();
        let id = state.errors.get(instance).copied();
        let grant = id.and_then(|id| state.grants.get_mut(&id));
        let text = match grant {
            Some(grant) if grant.suspended && grant.ended.is_none() => {
                grant.suspended = false;
                "The app may use your data again."
            }
            _ => "There is nothing that you could do about it here. Open the app again.",
        };
        drop(state);
        page(StatusCode::OK, pages::message(self, "An app was refused", text))
    }
}
