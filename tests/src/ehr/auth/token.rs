//! The token endpoint.

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use crate::ehr::{
    auth::{
        ATHENA_PRACTICE, AuthServer, SESSION_IDLE, Turn,
        client::{Client, ClientAuth, Persona, Use},
        granting::{has_refresh, spell},
        places::{Base, Host, Profile},
        refusal::Refusal,
        rules::{AccessForm, RefreshLife},
        scope::{Scope, all_covered},
        state::{AccessToken, End, Grant, RefreshToken, Request, State},
    },
    contract::{Rotation, Vendor},
    jwt::{random, s256},
    web::{Call, Form, Reply, empty, json as json_reply},
};

/// A refusal, and the grant that it is about.
type Refused = (Refusal, Option<u64>);
type Issued = Result<Map<String, Value>, Refused>;

impl AuthServer {
    pub async fn token(&self, call: &Call, profile: Profile) -> Reply {
        let answer = self.token_answer(call, profile).await;
        self.dress(call, answer)
    }

    async fn token_answer(&self, call: &Call, profile: Profile) -> Reply {
        let epic = self.rules.vendor == Vendor::Epic;
        if call.method != Method::POST && !epic {
            return empty(StatusCode::METHOD_NOT_ALLOWED);
        }
        if call.method != Method::POST || !call.has_form_body() || call.query.is_some() {
            let refusal = Refusal::InvalidRequest("expected a POST of a form, and nothing in the query");
            return self.refuse(call, &refusal, None, None);
        }
        if let Some(refusal) = self.over_budget(call.now) {
            return self.refuse(call, &refusal, None, None);
        }
        let form = call.form();
        if form.repeated().is_some() {
            return self.refuse(call, &Refusal::InvalidRequest("a parameter is there twice"), None, None);
        }
        let grant_type = form.get("grant_type");
        if !matches!(grant_type, Some("authorization_code" | "refresh_token" | "client_credentials")) {
            let refusal = match grant_type {
                None => Refusal::InvalidRequest("grant_type is missing"),
                Some(_) => Refusal::UnsupportedGrantType,
            };
            return self.refuse(call, &refusal, None, None);
        }
        let client = match self.authenticate(call, &form, profile).await {
            Ok(client) => client,
            Err((refusal, claimed)) => return self.refuse(call, &refusal, claimed.as_deref(), None),
        };
        let issued = match grant_type {
            Some("authorization_code") => self.redeem_code(call, &form, &client),
            Some("refresh_token") => self.refresh(call, &form, &client),
            _ => self.client_credentials(call, &form, &client),
        };
        match issued {
            Ok(members) => json_reply(StatusCode::OK, &Value::Object(members)),
            Err((refusal, grant)) => self.refuse(call, &refusal, Some(&client.client_id), grant),
        }
    }

    /// athenaOne counts token requests in each full minute.
    fn over_budget(&self, now: i64) -> Option<Refusal> {
        let budget = self.rules.token_requests_per_minute?;
        let mut state = self.state();
        let minute = now / 60_000;
        if state.minute.0 != minute {
            state.minute = (minute, 0);
        }
        state.minute.1 += 1;
        let left = u64::try_from(60 - now / 1000 % 60).unwrap_or(60);
        (state.minute.1 > budget).then_some(Refusal::TooOften(left))
    }

    fn redeem_code(&self, call: &Call, form: &Form, client: &Client) -> Issued {
        let refuse = |why: &'static str| (Refusal::code(why), None);
        let text = form.get("code").ok_or((Refusal::InvalidRequest("code is missing"), None))?;
        let mut state = self.state();
        let code = state.codes.get_mut(text).ok_or_else(|| refuse("unknown code"))?;
        if code.request.client_id != client.client_id {
            return Err(refuse("another app's code"));
        }
        if let Some(grant) = code.used {
            // RFC 6749 §4.1.2: SHOULD revoke what it was exchanged for.
            if let Some(record) = state.grants.get_mut(&grant) {
                record.reuses += 1;
            }
            if self.rules.reuse_ends_grant || self.rules.vendor == Vendor::Generic {
                state.end(grant, End::Reuse);
            }
            return Err(refuse("the code was used before"));
        }
        let request = code.request.clone();
        // A code is good for one attempt: it is marked used before the rest is checked.
        code.used = Some(0);
        if request.until <= call.now {
            return Err(refuse("the code has expired"));
        }
        let same = match form.get("redirect_uri") {
            Some(uri) => request.redirect_uri_given && uri == request.redirect_uri,
            None => !request.redirect_uri_given,
        };
        if !same {
            return Err(refuse("redirect_uri is not that of the authorization request"));
        }
        check_verifier(&request, form.get("code_verifier")).map_err(refuse)?;
        let grant = Grant {
            client_id: client.client_id.clone(),
            base: request.base,
            user: request.user.clone(),
            patient: request.patient.clone(),
            scopes: request.scopes.clone(),
            session: request.session.clone(),
            generation: 0,
            started: call.now,
            last_refresh: None,
            last_used: call.now,
            access_until: 0,
            refreshes: 0,
            reuses: 0,
            suspended: false,
            ended: None,
        };
        let id = state.new_grant(grant);
        if let Some(code) = state.codes.get_mut(text) {
            code.used = Some(id);
        }
        let mut answer = self.issue(&mut state, id, client, &request.scopes, call.now);
        if has_refresh(&self.rules, client, &request.scopes) {
            answer.insert("refresh_token".into(), self.new_refresh(&mut state, id, 0).into());
            self.tell_refresh_end(&mut answer, &state, id, call.now);
        }
        drop(state);
        self.add_context(&mut answer, &request, client, call.now);
        Ok(answer)
    }

    fn refresh(&self, call: &Call, form: &Form, client: &Client) -> Issued {
        let text = form.get("refresh_token").ok_or((Refusal::InvalidRequest("refresh_token is missing"), None))?;
        let mut state = self.state();
        let token = state.refresh.get_mut(text).ok_or((Refusal::refresh("unknown refresh token"), None))?;
        let (id, spent) = (token.grant, token.spent);
        token.presented.push(call.now);
        let grant = state.grants.get_mut(&id).ok_or((Refusal::refresh("its grant is gone"), None))?;
        if grant.client_id != client.client_id {
            return Err((Refusal::refresh("another app's refresh token"), None));
        }
        let refuse = |why: &'static str| (Refusal::refresh(why), Some(id));
        if spent {
            grant.reuses += 1;
            if self.rules.reuse_ends_grant {
                state.end(id, End::Reuse);
            }
            return Err(refuse("the refresh token was used before"));
        }
        let online = grant.has("online_access") && !grant.has("offline_access");
        let session = grant.session.clone();
        note_active(&mut state, session.as_ref(), form, call.now);
        if online && !state.session_alive(session.as_ref(), call.now, SESSION_IDLE) {
            state.end(id, End::SessionEnded);
            let refusal = Refusal::InvalidGrant { oracle: "online-access-session-ended", why: "the session is over" };
            return Err((refusal, Some(id)));
        }
        let grant = state.grants.get_mut(&id).ok_or((Refusal::refresh("its grant is gone"), None))?;
        if grant.ended.is_some() {
            return Err(refuse("the grant has ended"));
        }
        if grant.suspended {
            return Err(refuse("the grant is suspended"));
        }
        if self.refresh_until(grant) <= call.now {
            return Err(refuse("the refresh token has expired"));
        }
        if let Some(last) = grant.last_refresh
            && last + self.rules.min_refresh_interval > call.now
        {
            let left = last + self.rules.min_refresh_interval - call.now;
            return Err((Refusal::TooOften(u64::try_from(left / 1000 + 1).unwrap_or(60)), Some(id)));
        }
        let scopes = self.narrowed(form, client, grant)?;
        grant.last_refresh = Some(call.now);
        grant.last_used = call.now;
        grant.refreshes += 1;
        let (base, patient, generation) = (grant.base, grant.patient.clone(), grant.generation);
        let mut answer = self.issue(&mut state, id, client, &scopes, call.now);
        if self.rules.rotation != Rotation::Fixed {
            if let Some(token) = state.refresh.get_mut(text) {
                token.spent = true;
            }
            let next = self.new_refresh(&mut state, id, generation + 1);
            answer.insert("refresh_token".into(), next.into());
        }
        self.tell_refresh_end(&mut answer, &state, id, call.now);
        // Epic and Oracle say no context at a refresh; the others do.
        if !matches!(self.rules.vendor, Vendor::Epic | Vendor::Oracle) {
            answer.extend(patient.map(|patient| ("patient".to_owned(), patient.into())));
            self.add_tenant(&mut answer, base);
        }
        Ok(answer)
    }

    /// Until when a grant's refresh token may be used, in milliseconds since 1970.
    pub(super) fn refresh_until(&self, grant: &Grant) -> i64 {
        match self.rules.refresh_life {
            RefreshLife::Total(life) => grant.started.saturating_add(life),
            RefreshLife::Idle(life) => grant.last_used.saturating_add(life),
            RefreshLife::WithAccess => grant.access_until,
        }
    }

    fn tell_refresh_end(&self, answer: &mut Map<String, Value>, state: &State, id: u64, now: i64) {
        if let Some(grant) = state.grants.get(&id).filter(|_| self.rules.tells_refresh_end) {
            answer.insert("refresh_expires_in".into(), ((self.refresh_until(grant) - now) / 1000).into());
        }
    }

    /// The scopes of a refresh request: within the grant's.
    fn narrowed(&self, form: &Form, client: &Client, grant: &Grant) -> Result<Vec<Scope>, Refused> {
        let Some(asked) = form.get("scope") else {
            if self.rules.scope_needed_on_refresh {
                return Err((Refusal::InvalidScope("athena wants the scopes repeated at a refresh"), None));
            }
            return Ok(grant.scopes.clone());
        };
        let spelled = spell(&self.rules, client, grant.base, &grant.scopes);
        let words: Vec<&str> = asked.split_ascii_whitespace().collect();
        let said: Vec<&str> = spelled.split_ascii_whitespace().collect();
        if said.iter().all(|ours| words.contains(ours)) && words.iter().all(|word| said.contains(word)) {
            return Ok(grant.scopes.clone());
        }
        let covered = |scope: &Scope| all_covered(std::slice::from_ref(scope), &grant.scopes);
        let mut narrowed = Vec::new();
        for word in words {
            match Scope::parse_as(word, grant.base.legacy) {
                Some(scope) if covered(&scope) => narrowed.push(scope),
                // Spelled as we spelled it, it is no fault, whatever it looks like.
                _ if said.contains(&word) => {}
                _ => return Err((Refusal::InvalidScope("wider than the grant"), None)),
            }
        }
        Ok(narrowed)
    }

    fn client_credentials(&self, call: &Call, form: &Form, client: &Client) -> Issued {
        let by_key = matches!(client.auth, ClientAuth::PrivateKeyJwt { .. });
        let by_secret = self.rules.vendor == Vendor::Oracle && !client.auth.is_public();
        if !(by_key || by_secret) {
            return Err((Refusal::InvalidClient("backend apps authenticate with an assertion".into()), None));
        }
        if !client.uses.contains(&Use::Backend) {
            return Err((Refusal::UnauthorizedClient("the app is not registered as a backend app"), None));
        }
        if self.rules.vendor == Vendor::Epic && !client.user_mapped {
            return Err((Refusal::UnauthorizedClient("no user is mapped to this backend app"), None));
        }
        let base = Base { host: call.host, legacy: false };
        let asked = form.get("scope").unwrap_or_default();
        let judged = crate::ehr::auth::granting::judge(&self.rules, client, base, asked);
        let system = |scope: &Scope| scope.resource().is_some_and(|scope| scope.context == "system");
        let scopes: Vec<Scope> = judged.unwrap_or_default().into_iter().filter(system).collect();
        if scopes.is_empty() {
            return Err((Refusal::InvalidScope("no system scope is left"), None));
        }
        let grant = Grant {
            client_id: client.client_id.clone(),
            base,
            user: None,
            patient: None,
            scopes: scopes.clone(),
            session: None,
            generation: 0,
            started: call.now,
            last_refresh: None,
            last_used: call.now,
            access_until: 0,
            refreshes: 0,
            reuses: 0,
            suspended: false,
            ended: None,
        };
        let mut state = self.state();
        let id = state.new_grant(grant);
        Ok(self.issue(&mut state, id, client, &scopes, call.now))
    }

    /// An access token, and what every answer says of it.
    fn issue(&self, state: &mut State, id: u64, client: &Client, scopes: &[Scope], now: i64) -> Map<String, Value> {
        state.sweep(now);
        let lifetime = self.access_lifetime();
        let until = now.saturating_add(i64::try_from(lifetime).unwrap_or(i64::MAX).saturating_mul(1000));
        let base = state.grants.get(&id).map(|grant| grant.base);
        let base = base.unwrap_or(Base { host: Host::Main, legacy: false });
        let text = self.mint(client, base, scopes, now, until);
        state.access.insert(text.clone(), AccessToken { grant: id, scopes: scopes.to_vec(), until });
        if let Some(grant) = state.grants.get_mut(&id) {
            grant.access_until = until;
        }
        let lower = self.rules.vendor == Vendor::Epic && self.by_turns(Turn::LowerCaseBearer);
        let mut answer = Map::new();
        answer.insert("access_token".into(), text.into());
        answer.insert("token_type".into(), if lower { "bearer" } else { "Bearer" }.into());
        answer.insert("expires_in".into(), lifetime.into());
        answer.insert("scope".into(), spell(&self.rules, client, base, scopes).into());
        answer
    }

    fn mint(&self, client: &Client, base: Base, scopes: &[Scope], now: i64, until: i64) -> String {
        let jwt = match self.rules.access_form {
            AccessForm::Opaque => false,
            AccessForm::Jwt => true,
            AccessForm::ByTurns => self.by_turns(Turn::JwtToken),
        };
        let opaque = random::<48>();
        if !jwt {
            return opaque;
        }
        let mut claims = json!({
            "iss": self.places.discovery_issuer(base.host),
            "aud": self.places.fhir_base(base),
            "client_id": client.client_id,
            "iat": now / 1000,
            "exp": until / 1000,
            "jti": opaque,
            "scope": spell(&self.rules, client, base, scopes),
            // Real ones carry enough to reach 2 KB.
            "epc": random::<1024>(),
        });
        if let Some(tenant) = self.tenant() {
            let name = if self.rules.vendor == Vendor::Athena { "ah_practice" } else { "tenant" };
            claims[name] = tenant.into();
        }
        self.keys.access.sign(&claims, &Value::Null).unwrap_or(opaque)
    }

    fn new_refresh(&self, state: &mut State, grant: u64, generation: u64) -> String {
        let text = random::<48>();
        state.refresh.insert(text.clone(), RefreshToken { grant, generation, presented: Vec::new(), spent: false });
        if let Some(grant) = state.grants.get_mut(&grant) {
            grant.generation = generation;
        }
        text
    }

    /// The id_token, and what the vendor tells of the launch.
    fn add_context(&self, answer: &mut Map<String, Value>, request: &Request, client: &Client, now: i64) {
        let vendor = self.rules.vendor;
        let asked = |plain: &str| request.scopes.iter().any(|scope| scope.is(plain));
        let named = asked("openid").then(|| self.id_token(request, client, now)).flatten();
        let identified = named.is_some() && asked("fhirUser");
        answer.extend(named.map(|jwt| ("id_token".to_owned(), jwt.into())));
        let launch = request.launch.as_ref();
        // Seen at Oracle: a patient's standalone launch names nobody, and `fhirUser` has to do.
        let silent = vendor == Vendor::Oracle && self.rules.strict && identified && request.base.host == Host::Patients;
        if let Some(patient) = request.patient.as_ref().filter(|_| !silent) {
            answer.insert("patient".into(), patient.clone().into());
            if vendor == Vendor::Epic {
                answer.insert("__epic.dstu2.patient".into(), format!("T{}", s256(patient)).into());
            }
        }
        if let Some(launch) = launch {
            answer.extend(launch.encounter.clone().map(|id| ("encounter".to_owned(), id.into())));
            answer.extend(launch.intent.clone().map(|intent| ("intent".to_owned(), intent.into())));
            answer.extend(launch.fhir_context.clone().map(|context| ("fhirContext".to_owned(), context)));
        }
        if let Some(launch) = launch.filter(|_| vendor == Vendor::Epic) {
            for name in ["location", "loginDepartment", "appointment"] {
                answer.insert(name.into(), format!("e{}", s256(&format!("{name}{}", launch.session))).into());
            }
        }
        let style = match vendor {
            Vendor::Epic => launch.is_some(),
            Vendor::AthenaPractice => false,
            _ => launch.is_some() || request.patient.is_some(),
        };
        if style {
            let banner = launch.is_none_or(|launch| launch.need_patient_banner);
            let banner = if self.rules.banner_as_string { banner.to_string().into() } else { Value::Bool(banner) };
            answer.insert("need_patient_banner".into(), banner);
            answer.insert("smart_style_url".into(), self.places.style(request.base.host).into());
        }
        if vendor == Vendor::Epic {
            answer.insert("state".into(), request.state.clone().into());
        }
        if vendor == Vendor::Oracle {
            if let Some(user) = &request.user {
                answer.insert("user".into(), user.fhir_id.clone().into());
                answer.insert("username".into(), user.username.clone().into());
            }
            if asked("online_access") {
                answer.insert("active_ttl".into(), (SESSION_IDLE / 1000).into());
            }
        }
        self.add_tenant(answer, request.base);
    }

    fn add_tenant(&self, answer: &mut Map<String, Value>, base: Base) {
        match self.rules.vendor {
            Vendor::Oracle => answer.insert("tenant".into(), self.places.tenant().into()),
            Vendor::Athena => answer.insert("ah_practice".into(), ATHENA_PRACTICE.into()),
            Vendor::Generic => answer.insert("tenant".into(), self.places.origin(base.host).into()),
            Vendor::Epic | Vendor::AthenaPractice => None,
        };
    }

    fn id_token(&self, request: &Request, client: &Client, now: i64) -> Option<String> {
        let user = request.user.as_ref()?;
        let seconds = now / 1000;
        let lifetime = match self.rules.vendor {
            Vendor::Epic => 300,
            Vendor::Oracle => 600,
            _ => 3600,
        };
        let subject = match self.rules.vendor {
            Vendor::Epic => user.fhir_id.clone(),
            Vendor::Oracle => user.username.clone(),
            _ => s256(&user.username),
        };
        let mut claims = json!({
            "aud": client.client_id,
            "exp": seconds + lifetime,
            "iat": seconds,
            "iss": self.places.issuer(request.base.host),
            "sub": subject,
        });
        if request.scopes.iter().any(|scope| scope.is("fhirUser")) {
            claims["fhirUser"] = format!("{}/{}", self.places.fhir_base(request.base), user.reference()).into();
        }
        if self.rules.vendor == Vendor::Oracle {
            claims["name"] = user.name.clone().into();
        }
        if user.persona == Persona::Provider && self.rules.vendor == Vendor::Oracle {
            claims["profile"] = claims["fhirUser"].clone();
        }
        if let Some(nonce) = &request.nonce {
            claims["nonce"] = nonce.clone().into();
        }
        if let Some(members) = claims.as_object_mut() {
            members.retain(|_, value| !value.is_null());
        }
        self.keys.id_token.sign(&claims, &Value::Null).ok()
    }
}

/// RFC 7636 §4.6; a verifier without a challenge is a downgrade that somebody else made.
fn check_verifier(request: &Request, verifier: Option<&str>) -> Result<(), &'static str> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    match (&request.challenge, verifier) {
        (None, None) => Ok(()),
        (None, Some(_)) => Err("a code_verifier without a code_challenge"),
        (Some(_), None) => Err("code_verifier is missing"),
        (Some(challenge), Some(verifier)) => {
            let formed = (43..=128).contains(&verifier.len()) && verifier.bytes().all(allowed);
            if formed && s256(verifier) == *challenge {
                Ok(())
            } else {
                Err("code_verifier does not fit the challenge")
            }
        }
    }
}

/// Oracle's `active_at`: seconds since the user's last act.
fn note_active(state: &mut State, session: Option<&String>, form: &Form, now: i64) {
    let seconds = form.get("active_at").and_then(|text| text.parse::<u32>().ok());
    let session = session.and_then(|id| state.sessions.get_mut(id));
    if let (Some(seconds), Some(session)) = (seconds, session) {
        session.last_act = session.last_act.max(now - i64::from(seconds) * 1000);
    }
}
