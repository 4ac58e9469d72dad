//! One simulated EHR: its two halves, its portal, its clock and its faults.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed};

use anyhow::{Context, Result};
use http::{
    Method, StatusCode,
    header::{ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, HOST, RETRY_AFTER},
};
use serde::Deserialize;
use serde_json::Value;

use crate::ehr::{
    auth::{
        AuthServer, PATIENCE, SESSION_COOKIE,
        client::{Client, Persona},
        fetch::Fetcher,
        places::{Base, Endpoint, Host, Places},
        refusal::{Refusal, html_fault, inner_fault},
        rules::Rules,
        state::{LaunchContext, User},
    },
    contract::{Behaviour, Counters, FhirCall, TokenFacts, Vendor},
    faults::{FaultKind, Faults},
    fhir::FhirServer,
    jwt::random,
    pages,
    web::{Call, Reply, any_origin, echo_origin, empty, json, page, redirect, reply, with_header, with_query},
};

/// athenaPractice answers 429 to more calls than this at once.
const PRACTICE_CALLS_AT_ONCE: usize = 30;

pub struct Simulator {
    pub auth: AuthServer,
    pub faults: Faults,
    pub counters: Counters,
    main: FhirServer,
    /// Oracle's host for patients: data of its own.
    patients: Option<FhirServer>,
    /// Milliseconds that the EHR's clock is ahead of ours.
    ahead: AtomicI64,
    fhir_calls: AtomicUsize,
}

/// Who opens which app on whom.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LaunchOrder {
    pub client_id: String,
    /// Whose session; none: any clinician's.
    pub username: Option<String>,
    pub patient: Option<String>,
    pub encounter: Option<String>,
    pub intent: Option<String>,
    pub fhir_context: Option<Value>,
    pub need_patient_banner: Option<bool>,
    /// Oracle: from the patients' host.
    pub patient_host: bool,
    /// Oracle, strict: from the legacy base.
    pub legacy: bool,
}

/// A launch, ready to be opened.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Launch {
    pub iss: String,
    pub launch: String,
    /// The app's launch URL with both; none if it has none.
    pub url: Option<String>,
}

impl Simulator {
    /// `patients`: Oracle's origin for patients; none: derived.
    pub fn new(
        behaviour: &Behaviour,
        patients: Option<String>,
        fhir_user_fails: bool,
        ca: Option<&[u8]>,
    ) -> Result<Self> {
        let counters = Counters::default();
        let main = FhirServer::new(behaviour.clone(), counters.clone())?;
        let rules = Rules::new(behaviour, fhir_user_fails);
        let places =
            Places::new(behaviour.vendor, behaviour.strict, &behaviour.origin, patients, &main.fhir_base_path());
        let patients = if behaviour.vendor == Vendor::Oracle {
            let origin = places.origin(Host::Patients).to_owned();
            Some(FhirServer::new(Behaviour { origin, ..behaviour.clone() }, counters.clone())?)
        } else {
            None
        };
        let auth = AuthServer::new(rules, places, main.patients(), &main.practitioners(), Fetcher::new(ca)?)?;
        let (ahead, fhir_calls) = (AtomicI64::new(0), AtomicUsize::new(0));
        Ok(Self { auth, faults: Faults::default(), counters, main, patients, ahead, fhir_calls })
    }

    /// Milliseconds since 1970, by the EHR's clock.
    pub fn now(&self) -> i64 {
        jiff::Timestamp::now().as_millisecond() + self.ahead.load(Relaxed)
    }

    pub fn advance(&self, milliseconds: i64) {
        self.ahead.fetch_add(milliseconds, Relaxed);
    }

    /// The code of the tag that all data of this patient carries, at either host.
    pub fn mark(&self, patient: &str) -> Option<String> {
        self.main.mark(patient)
    }

    fn fhir(&self, host: Host) -> &FhirServer {
        self.patients.as_ref().filter(|_| host == Host::Patients).unwrap_or(&self.main)
    }

    /// A launch token as the EHR's home page makes it.
    pub fn launch(&self, order: &LaunchOrder) -> Result<Launch> {
        let auth = &self.auth;
        let user = match &order.username {
            Some(name) => auth.user(name).with_context(|| format!("nobody here is called {name}"))?,
            None => auth.any_clinician()?,
        };
        let host = if order.patient_host { Host::Patients } else { Host::Main };
        let base = Base { host, legacy: order.legacy };
        anyhow::ensure!(auth.places.bases().contains(&base), "this EHR has no such FHIR base");
        let mut state = auth.state();
        let client = state.clients.get(&order.client_id).cloned();
        let client = client.with_context(|| format!("no app is registered as {:?}", order.client_id))?;
        let now = self.now();
        let session = auth.new_session(&mut state, user, now);
        // Epic's are long; Oracle's are UUIDs.
        let launch = match auth.rules.vendor {
            Vendor::Epic => format!("{}.{}", random::<48>(), random::<48>()),
            Vendor::Oracle => crate::ehr::auth::refusal::uuid(),
            _ => random::<24>(),
        };
        let own = (user.persona == Persona::Patient).then(|| user.fhir_id.clone());
        let context = LaunchContext {
            client_id: client.client_id.clone(),
            base,
            user: user.clone(),
            session,
            patient: order.patient.clone().or(own),
            encounter: order.encounter.clone(),
            intent: order.intent.clone(),
            fhir_context: order.fhir_context.clone(),
            need_patient_banner: order.need_patient_banner.unwrap_or(false),
            until: now + PATIENCE,
        };
        state.launches.insert(launch.clone(), context);
        drop(state);
        let iss = auth.places.fhir_base(base);
        let url = client.launch_url.map(|url| with_query(&url, &[("iss", &iss), ("launch", &launch)]));
        Ok(Launch { iss, launch, url })
    }

    /// The name under which a call is counted, and at which faults strike.
    fn name(&self, call: &Call, endpoint: Endpoint<'_>) -> String {
        match endpoint {
            Endpoint::Discovery(_) => "discovery".into(),
            Endpoint::Metadata(_) => "metadata".into(),
            Endpoint::Fhir(_, rest) => {
                format!("fhir:{} {}", call.method, rest.split('/').nth(1).unwrap_or_default())
            }
            Endpoint::Authorize(..) => "authorize".into(),
            Endpoint::Token(_) => {
                let known = match call.form().get("grant_type") {
                    Some("authorization_code") => "authorization_code",
                    Some("refresh_token") => "refresh_token",
                    Some("client_credentials") => "client_credentials",
                    _ => "other",
                };
                format!("token:{known}")
            }
            Endpoint::Introspect => "introspect".into(),
            Endpoint::Revoke => "revoke".into(),
            Endpoint::Jwks => "jwks".into(),
            Endpoint::OpenId => "openid-configuration".into(),
            Endpoint::ErrorPage(_) => "error-page".into(),
            Endpoint::Style => "style".into(),
            Endpoint::Unknown => "unknown".into(),
            Endpoint::Logout | Endpoint::Manage | Endpoint::SignIn | Endpoint::SelectPatient | Endpoint::Consent => {
                "page".into()
            }
            Endpoint::Home | Endpoint::Portal | Endpoint::Launch | Endpoint::Control(_) => "portal".into(),
        }
    }

    /// Answers one call, faults included.
    pub async fn serve(&self, parts: http::request::Parts, body: bytes::Bytes) -> Outcome {
        let name = parts.headers.get(HOST).and_then(|value| value.to_str().ok());
        let host = self.auth.places.host(name);
        let mut call = Call {
            method: parts.method,
            host,
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().map(str::to_owned),
            headers: parts.headers,
            body,
            now: 0,
        };
        let endpoint = self.auth.places.route(host, &call.path);
        if let Endpoint::Control(what) = endpoint {
            return Outcome::Answer(self.control(&call, what));
        }
        let name = self.name(&call, endpoint);
        // The FHIR half counts its own.
        if !matches!(endpoint, Endpoint::Fhir(..) | Endpoint::Metadata(_)) {
            self.counters.count(name.as_str());
        }
        let target = match &call.query {
            Some(query) => format!("{}?{query}", call.path),
            None => call.path.clone(),
        };
        let _running = matches!(endpoint, Endpoint::Fhir(..)).then(|| self.running());
        let mut end = Outcome::Answer as fn(Reply) -> Outcome;
        let mut instead = None;
        for fault in self.faults.take(&name, &target) {
            match fault {
                FaultKind::Slow { ms } => tokio::time::sleep(std::time::Duration::from_millis(ms)).await,
                FaultKind::Hold => self.faults.hold().await,
                FaultKind::Reset => end = Outcome::Cut,
                FaultKind::LostAnswer => end = |_| Outcome::Dropped,
                other => instead = Some(other),
            }
        }
        call.now = self.now();
        let endpoint = self.auth.places.route(host, &call.path);
        match instead {
            Some(fault) => {
                self.count_instead(&call, endpoint);
                Outcome::Answer(self.fault_answer(&call, &fault))
            }
            None => end(self.answer(&call, endpoint).await),
        }
    }

    /// The FHIR half counts what it hears of; the rest is counted here.
    fn count_instead(&self, call: &Call, endpoint: Endpoint<'_>) {
        match endpoint {
            Endpoint::Fhir(..) => self.counters.count(self.name(call, endpoint)),
            Endpoint::Metadata(_) => self.counters.count(format!("fhir:{} metadata", call.method)),
            _ => {}
        }
    }

    fn fault_answer(&self, call: &Call, fault: &FaultKind) -> Reply {
        let status = |code: u16| StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        match fault {
            FaultKind::Status { status: code } => empty(status(*code)),
            FaultKind::Html { status: code } => html_fault(status(*code)),
            FaultKind::TooMany { retry_after } => {
                let answer = reply(StatusCode::TOO_MANY_REQUESTS, "text/plain", "System Rate Limit Exceeded");
                match retry_after {
                    Some(seconds) => with_header(answer, RETRY_AFTER, &seconds.to_string()),
                    None => answer,
                }
            }
            FaultKind::Inner => json(StatusCode::INTERNAL_SERVER_ERROR, &inner_fault()),
            _ => {
                let answer = self.auth.refuse(call, &Refusal::refresh("burnt by a scripted fault"), None, None);
                self.auth.dress(call, answer)
            }
        }
    }

    async fn answer(&self, call: &Call, endpoint: Endpoint<'_>) -> Reply {
        let auth = &self.auth;
        let fhir = matches!(endpoint, Endpoint::Fhir(..) | Endpoint::Metadata(_));
        if call.method == Method::OPTIONS && !fhir {
            return self.preflight(call, endpoint);
        }
        match endpoint {
            Endpoint::Discovery(base) => auth.smart_configuration(call, base).unwrap_or_else(|| self.elsewhere(call)),
            Endpoint::Metadata(base) => auth.with_security(call, base, self.ask_fhir(call, base, "/metadata")),
            Endpoint::Fhir(base, rest) => self.limited_fhir(call, base, rest),
            Endpoint::Authorize(profile, persona) => auth.authorize(call, profile, persona),
            Endpoint::Token(profile) => auth.token(call, profile).await,
            Endpoint::Introspect => auth.introspect(call).await,
            Endpoint::Revoke => auth.revoke(call).await,
            Endpoint::Jwks => auth.key_set(),
            Endpoint::OpenId => auth.openid_configuration(call.host),
            Endpoint::Logout => auth.sign_out(call),
            Endpoint::Manage => auth.manage(call),
            Endpoint::ErrorPage(instance) => auth.error_page(instance),
            Endpoint::SignIn if call.form().get("home").is_some() => auth.sign_in_at_home(call),
            Endpoint::SignIn => auth.sign_in(call),
            Endpoint::SelectPatient => auth.select_patient(call),
            Endpoint::Consent => auth.consent(call),
            Endpoint::Style => style(),
            Endpoint::Home => self.home(call),
            Endpoint::Portal => self.portal(call),
            Endpoint::Launch => self.open_app(call),
            Endpoint::Control(_) | Endpoint::Unknown => self.elsewhere(call),
        }
    }

    fn preflight(&self, call: &Call, endpoint: Endpoint<'_>) -> Reply {
        let answer = empty(StatusCode::NO_CONTENT);
        let token = matches!(endpoint, Endpoint::Token(_) | Endpoint::Revoke | Endpoint::Introspect);
        let vendor = self.auth.rules.vendor;
        // athena's token endpoints have no CORS that works.
        if token && matches!(vendor, Vendor::Athena | Vendor::AthenaPractice) {
            return answer;
        }
        let answer = with_header(answer, ACCESS_CONTROL_ALLOW_METHODS, "GET, OPTIONS, POST");
        let answer = with_header(answer, ACCESS_CONTROL_ALLOW_HEADERS, "Content-Type, Authorization");
        if vendor == Vendor::Generic { echo_origin(call, answer) } else { any_origin(answer) }
    }

    /// Practice and Flow take 30 calls at once.
    fn limited_fhir(&self, call: &Call, base: Base, rest: &str) -> Reply {
        let calls = self.fhir_calls.load(Relaxed);
        if self.auth.rules.vendor == Vendor::AthenaPractice && calls > PRACTICE_CALLS_AT_ONCE {
            self.count_instead(call, Endpoint::Fhir(base, rest));
            return reply(StatusCode::TOO_MANY_REQUESTS, "text/plain", "System Rate Limit Exceeded");
        }
        self.ask_fhir(call, base, rest)
    }

    /// Counts a FHIR call as running until the guard is dropped.
    fn running(&self) -> Running<'_> {
        self.fhir_calls.fetch_add(1, Relaxed);
        Running(&self.fhir_calls)
    }

    fn ask_fhir(&self, call: &Call, base: Base, rest: &str) -> Reply {
        // A token opens the base that it was issued for, and no other.
        let token = call.bearer().and_then(|bearer| self.auth.facts(bearer, call.now));
        let token = token.filter(|(issued_for, _)| *issued_for == base).map(|(_, facts)| facts);
        self.fhir(base.host).handle(fhir_call(call, rest, token))
    }

    /// Where this vendor has nothing.
    fn elsewhere(&self, call: &Call) -> Reply {
        self.fhir(call.host).elsewhere(fhir_call(call, &call.path, None))
    }

    fn signed_in(&self, call: &Call) -> Option<User> {
        call.cookie(SESSION_COOKIE).and_then(|session| self.auth.act(&session, call.now))
    }

    fn home(&self, call: &Call) -> Reply {
        let Some(user) = self.signed_in(call) else {
            return page(StatusCode::OK, pages::home_sign_in(&self.auth, None));
        };
        let form = call.form();
        let chosen = form.get("patient");
        let patient = self.auth.patients().iter().find(|patient| Some(patient.id.as_str()) == chosen);
        let apps = self.auth.state().clients.values().filter(|client| client.launch_url.is_some()).cloned().collect();
        let encounters = patient.map(|patient| self.main.encounters(&patient.id)).unwrap_or_default();
        page(StatusCode::OK, pages::home(&self.auth, &pages::Home { user: &user, apps, patient, encounters }))
    }

    /// From the home page's form: the app at the top, or inside the EHR's page.
    fn open_app(&self, call: &Call) -> Reply {
        let form = call.form();
        if call.method != Method::POST || self.signed_in(call).is_none() {
            return redirect(StatusCode::SEE_OTHER, "/");
        }
        if form.get("frame").is_some() {
            let mut pairs = vec![("frame", "1")];
            for name in ["client_id", "patient", "encounter"] {
                pairs.extend(form.get(name).map(|value| (name, value)));
            }
            return redirect(StatusCode::SEE_OTHER, &with_query("/portal", &pairs));
        }
        match self.ordered(call) {
            Ok((_, url)) => redirect(StatusCode::SEE_OTHER, &url),
            Err(reason) => page(StatusCode::BAD_REQUEST, pages::message(&self.auth, "No launch", &reason.to_string())),
        }
    }

    fn portal(&self, call: &Call) -> Reply {
        if self.signed_in(call).is_none() {
            return redirect(StatusCode::SEE_OTHER, "/");
        }
        match self.ordered(call) {
            Ok((client, url)) => page(StatusCode::OK, pages::framed(&self.auth, client.title(), &url)),
            Err(reason) => page(StatusCode::BAD_REQUEST, pages::message(&self.auth, "No launch", &reason.to_string())),
        }
    }

    fn ordered(&self, call: &Call) -> Result<(Client, String)> {
        let (form, user) = (call.form(), self.signed_in(call).context("nobody is signed in")?);
        let order = LaunchOrder {
            client_id: form.get("client_id").unwrap_or_default().to_owned(),
            username: Some(user.username),
            patient: form.get("patient").map(str::to_owned),
            encounter: form.get("encounter").map(str::to_owned),
            ..LaunchOrder::default()
        };
        let client = self.auth.state().clients.get(&order.client_id).cloned();
        let launch = self.launch(&order)?;
        Ok((client.context("no such app")?, launch.url.context("the app has no launch URL")?))
    }
}

fn fhir_call(call: &Call, path: &str, token: Option<TokenFacts>) -> FhirCall {
    FhirCall {
        method: call.method.clone(),
        path: path.to_owned(),
        query: call.query.clone(),
        headers: call.headers.clone(),
        body: call.body.clone(),
        token,
        now: call.now,
    }
}

/// How a call ends.
pub enum Outcome {
    Answer(Reply),
    /// The connection is aborted in the middle of this.
    Cut(Reply),
    /// The connection is closed without an answer.
    Dropped,
}

/// A FHIR call that is running.
struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn style() -> Reply {
    let style = serde_json::json!({
        "color_background": "#edeae3", "color_error": "#9e2d2d", "color_highlight": "#69b5ce",
        "color_modal_backdrop": "", "color_success": "#498e49", "color_text": "#303030",
        "dim_border_radius": "6px", "dim_font_size": "13px", "dim_spacing_size": "20px",
        "font_family_body": "Georgia, Times, 'Times New Roman', serif",
        "font_family_heading": "'HelveticaNeue-Light', Helvetica, Arial, sans-serif"
    });
    any_origin(json(StatusCode::OK, &style))
}
