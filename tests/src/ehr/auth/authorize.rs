//! The authorization endpoint: everything about the request is checked before anybody signs in.

use http::{Method, StatusCode};

use crate::ehr::{
    auth::{
        AuthServer, PATIENCE,
        client::{Client, Persona, Use},
        granting::{ATHENA_POLICY, ScopeRefusal, is_v2_record, judge},
        places::{Base, Host, Profile},
        state::{LaunchContext, Request},
    },
    contract::Vendor,
    jwt::random,
    pages,
    web::{Call, Form, Reply, empty, page, redirect, with_query},
};

/// What Epic says to every faulty request.
pub const EPIC_SENTENCE: &str = "Something went wrong trying to authorize the client. Please try logging in again.";

/// A fault that goes back to the app.
struct Fault {
    error: &'static str,
    why: &'static str,
    /// Oracle's word, after `oauth2:`.
    oracle: &'static str,
}

const fn invalid(why: &'static str) -> Fault {
    Fault { error: "invalid_request", why, oracle: "grant:invalid-request" }
}

impl AuthServer {
    pub fn authorize(&self, call: &Call, profile: Profile, persona: Option<Persona>) -> Reply {
        let url_length =
            self.places.origin(call.host).len() + call.path.len() + call.query.as_ref().map_or(0, String::len);
        if url_length >= self.rules.max_authorize_url {
            self.note("authorize", None, "404", "the URL is too long");
            return empty(StatusCode::NOT_FOUND);
        }
        if call.method != Method::GET && call.method != Method::POST {
            return empty(StatusCode::METHOD_NOT_ALLOWED);
        }
        let form = call.form();
        let client = form.get("client_id").and_then(|id| self.state().clients.get(id).cloned());
        let (Some(client), true) = (client, call.method == Method::GET || call.has_form_body()) else {
            return self.stuck(None, "unknown client_id, or the body is no form");
        };
        let redirect_uri = match form.get("redirect_uri") {
            Some(uri) if client.redirect_uris.iter().any(|known| self.same_redirect(known, uri)) => uri.to_owned(),
            // The one that is registered, then.
            None if self.rules.vendor == Vendor::Oracle && client.redirect_uris.len() == 1 => {
                client.redirect_uris.first().cloned().unwrap_or_default()
            }
            _ => return self.stuck(Some(&client), "redirect_uri is not byte for byte a registered one"),
        };
        match self.check(call, &form, &client, profile, persona) {
            Ok(checked) => self.begin(call, &form, &client, redirect_uri, profile, checked),
            Err(fault) if self.rules.vendor == Vendor::Epic && fault.error != "invalid_launch_token" => {
                self.stuck(Some(&client), fault.why)
            }
            Err(fault) => self.send_back(call, &client, &redirect_uri, form.get("state"), &fault, persona),
        }
    }

    fn begin(
        &self,
        call: &Call,
        form: &Form,
        client: &Client,
        redirect_uri: String,
        profile: Profile,
        checked: Checked,
    ) -> Reply {
        let launch = checked.launch;
        let request = Request {
            client_id: client.client_id.clone(),
            base: checked.base,
            profile,
            redirect_uri,
            redirect_uri_given: form.get("redirect_uri").is_some(),
            state: form.get("state").unwrap_or_default().to_owned(),
            challenge: form.get("code_challenge").map(str::to_owned),
            nonce: form.get("nonce").map(str::to_owned),
            scopes: checked.scopes,
            user: launch.as_ref().map(|launch| launch.user.clone()),
            session: launch.as_ref().map(|launch| launch.session.clone()),
            patient: launch.as_ref().and_then(|launch| launch.patient.clone()),
            launch,
            until: call.now + PATIENCE,
        };
        if request.launch.is_some() {
            // The clinician is signed in already, and the EHR's administrators have consented.
            return self.send_code(request, call.now);
        }
        let transaction = random::<24>();
        self.state().requests.insert(transaction.clone(), request);
        page(StatusCode::OK, pages::sign_in(self, &transaction, client, None))
    }

    /// All but who asks and where the answer goes.
    fn check(
        &self,
        call: &Call,
        form: &Form,
        client: &Client,
        profile: Profile,
        persona: Option<Persona>,
    ) -> Result<Checked, Fault> {
        if form.repeated().is_some() {
            return Err(invalid("a parameter is there twice"));
        }
        if form.get("response_type") != Some("code") {
            let error = "unsupported_response_type";
            return Err(Fault { error, why: "response_type is not code", oracle: "grant:unsupported-response-type" });
        }
        if form.get("state").is_none() {
            return Err(invalid("state is missing"));
        }
        let base = self.check_audience(call, form)?;
        self.check_record(client, base, profile, persona)?;
        self.check_challenge(form)?;
        let asked = form.get("scope").unwrap_or_default();
        let words: Vec<&str> = asked.split_ascii_whitespace().collect();
        if self.rules.nonce_required && words.contains(&"openid") && form.get("nonce").is_none() {
            return Err(invalid("openid needs a nonce"));
        }
        let launching = form.get("launch").is_some();
        if launching != words.contains(&"launch") {
            return Err(invalid("the scope launch and the parameter launch go together"));
        }
        if self.rules.vendor == Vendor::Epic && call.method == Method::POST && !launching {
            return Err(invalid("POST is for EHR launches"));
        }
        let needed = if launching { Use::EhrLaunch } else { Use::Standalone };
        if !client.uses.contains(&needed) {
            let why = "the app is not registered for this kind of launch";
            return Err(Fault { error: "unauthorized_client", why, oracle: "grant:denied-by-server" });
        }
        let scopes = judge(&self.rules, client, base, asked).map_err(|refusal| self.scope_fault(refusal))?;
        let launch = form.get("launch").map(|token| self.redeem_launch(token, client, base, call.now)).transpose()?;
        Ok(Checked { base, scopes, launch })
    }

    /// `aud` names one of our bases, byte for byte (Oracle allows a slash at its end).
    fn check_audience(&self, call: &Call, form: &Form) -> Result<Base, Fault> {
        let aud = form.get("aud").ok_or_else(|| invalid("aud is missing"))?;
        let base = self.places.base_of_audience(aud).ok_or_else(|| invalid("aud is not this EHR's FHIR base"))?;
        if base.host != call.host && self.places.origin(Host::Main) != self.places.origin(call.host) {
            return Err(persona_mismatch());
        }
        Ok(base)
    }

    /// What Oracle's records fix: the persona and the scope version; and Epic's overrides.
    fn check_record(
        &self,
        client: &Client,
        base: Base,
        profile: Profile,
        persona: Option<Persona>,
    ) -> Result<(), Fault> {
        if let Some(persona) = persona {
            let of_host = match base.host {
                Host::Main => Persona::Provider,
                Host::Patients => Persona::Patient,
            };
            if persona != of_host || client.persona.is_some_and(|registered| registered != persona) {
                return Err(persona_mismatch());
            }
            if is_v2_record(&self.rules, client) != (profile == Profile::SmartV2) {
                let why = "the app's scope version belongs to the other of smart-v1 and smart-v2";
                return Err(Fault { error: "invalid_request", why, oracle: "grant:unknown-tenant" });
            }
        }
        if self.rules.vendor == Vendor::Epic && client.overridden != (profile == Profile::Override) {
            return Err(invalid("not this client's authorization endpoint"));
        }
        Ok(())
    }

    fn check_challenge(&self, form: &Form) -> Result<(), Fault> {
        let Some(challenge) = form.get("code_challenge") else {
            if self.rules.pkce_required || form.get("code_challenge_method").is_some() {
                return Err(invalid("code_challenge is missing"));
            }
            return Ok(());
        };
        if form.get("code_challenge_method") != Some("S256") {
            return Err(invalid("code_challenge_method is not S256"));
        }
        let base64url = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if challenge.len() != 43 || !challenge.bytes().all(base64url) {
            return Err(invalid("code_challenge is not 43 base64url characters"));
        }
        Ok(())
    }

    /// Once, by the app that was launched, at the base that it was launched from.
    fn redeem_launch(&self, token: &str, client: &Client, base: Base, now: i64) -> Result<LaunchContext, Fault> {
        let found = self.state().launches.remove(token);
        let fitting =
            found.filter(|launch| launch.until > now && launch.client_id == client.client_id && launch.base == base);
        fitting.ok_or(Fault {
            error: if self.rules.vendor == Vendor::Epic { "invalid_launch_token" } else { "invalid_request" },
            why: "launch is unknown, used, expired, or another app's or base's",
            oracle: "grant:invalid-launch-code",
        })
    }

    fn scope_fault(&self, refusal: ScopeRefusal) -> Fault {
        let oracle = "grant:denied-by-server";
        match refusal {
            ScopeRefusal::Unticked if self.rules.vendor == Vendor::Athena => {
                Fault { error: "access_denied", why: ATHENA_POLICY, oracle }
            }
            ScopeRefusal::Unticked => {
                Fault { error: "invalid_scope", why: "a scope is not ticked or not known", oracle }
            }
            ScopeRefusal::TooMany => {
                Fault { error: "invalid_scope", why: "too many scopes", oracle: "grant:too-many-scopes" }
            }
            ScopeRefusal::NothingLeft => Fault { error: "invalid_scope", why: "no scope is left", oracle },
            ScopeRefusal::PatientWithoutLaunch => {
                Fault { error: "invalid_scope", why: "patient scopes need launch or launch/patient", oracle }
            }
            ScopeRefusal::FhirUser => Fault { error: "invalid_client", why: "Public key not found", oracle },
        }
    }

    /// Oracle compares the path strictly, and lets the app add to the query.
    fn same_redirect(&self, known: &str, sent: &str) -> bool {
        let bare = |uri: &str| uri.split('?').next().unwrap_or_default().to_owned();
        known == sent || self.rules.vendor == Vendor::Oracle && !known.contains('?') && bare(sent) == known
    }

    /// A page at the EHR; nothing goes back to the app.
    fn stuck(&self, client: Option<&Client>, why: &str) -> Reply {
        self.note("authorize", client.map(|client| client.client_id.as_str()), "page", why);
        let (status, text) = match self.rules.vendor {
            Vendor::Epic => (StatusCode::OK, EPIC_SENTENCE),
            _ => {
                (StatusCode::BAD_REQUEST, "The app that sent you here is not known to this EHR, or its address is not.")
            }
        };
        page(status, pages::message(self, "Sign-in is not possible", text))
    }

    fn send_back(
        &self,
        call: &Call,
        client: &Client,
        to: &str,
        state: Option<&str>,
        fault: &Fault,
        persona: Option<Persona>,
    ) -> Reply {
        self.note("authorize", Some(&client.client_id), fault.error, fault.why);
        let oracle = self.rules.vendor == Vendor::Oracle;
        let uri = oracle.then(|| {
            let persona = persona.map(Persona::text);
            self.oracle_error_uri(call, fault.oracle, persona, Some(&client.client_id), None)
        });
        let mut pairs = vec![("error", fault.error)];
        match &uri {
            Some(uri) => pairs.push(("error_uri", uri)),
            None => pairs.push(("error_description", fault.why)),
        }
        pairs.extend(state.map(|state| ("state", state)));
        redirect(StatusCode::FOUND, &with_query(to, &pairs))
    }

    /// The user, or the EHR's policy, said no.
    pub fn send_denial(&self, call: &Call, request: &Request) -> Reply {
        let client = self.state().clients.get(&request.client_id).cloned();
        let Some(client) = client else { return self.stuck(None, "the app is no longer registered") };
        let why = "The resource owner denied the request.";
        let fault = Fault { error: "access_denied", why, oracle: "grant:denied-by-resource-owner" };
        let persona = request.user.as_ref().map(|user| user.persona);
        self.send_back(call, &client, &request.redirect_uri, Some(&request.state), &fault, persona)
    }
}

struct Checked {
    base: Base,
    scopes: Vec<crate::ehr::auth::scope::Scope>,
    launch: Option<LaunchContext>,
}

const fn persona_mismatch() -> Fault {
    Fault {
        error: "unauthorized_client",
        why: "the app is registered for the other persona, or came to the other's endpoint",
        oracle: "grant:client-persona-mismatch",
    }
}
