//! A grant, a request in one line, and the verdict in one line.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mantel::{
    clock::Timestamp,
    config::{App, Config, Site, Sources, load},
    error::{Error, Kind},
    proxy::judge::{Authorized, Case, Judged, Mode, Pending, bases, judge},
    session::Session,
    store::GrantId,
};
use mantel_adapters::{
    fhir::{
        interaction::{Interaction, Request, body_kind, bundle_kind, classify, encode_target, parse_target},
        rewrite::Bases,
    },
    smart::{launch::LaunchContext, scope::ScopeSet},
};

/// The patient in context, and another.
pub const OURS: &str = "p1";
pub const EHR: &str = "https://ehr.example/r4";
pub const SITE: &str = "https://mantel.example/sites/one/fhir/r4";
pub const UNIFORM: &str = "https://mantel.example/fhir/r4";

/// What the EHR says of its token.
#[derive(Clone, Copy, Debug)]
pub enum Ehr {
    /// Nothing, or nothing readable.
    Silent,
    /// The same scopes as ours.
    Same,
    Says(&'static str),
}

pub struct World {
    pub session: Arc<Session>,
    pub app: Arc<App>,
    pub site: Arc<Site>,
    pub bases: Arc<Bases>,
    pub inspect: bool,
}

impl World {
    pub fn new(scopes: &str, ehr: Ehr) -> Self {
        Self::with(Setting::Plain, scopes, ehr)
    }

    pub fn with(setting: Setting, scopes: &str, ehr: Ehr) -> Self {
        let config = config(setting);
        let site = config.sites.values().next().unwrap().clone();
        let app = config.apps.values().next().unwrap().clone();
        let bases = bases(&site, config.urls()).unwrap();
        let upstream = match ehr {
            Ehr::Silent => None,
            Ehr::Same => Some(scopes),
            Ehr::Says(text) => Some(text),
        };
        let session = Session {
            registration: "viewer-general".parse().unwrap(),
            fingerprint: String::new(),
            grant: GrantId(uuid::Uuid::from_u128(1)),
            app: "viewer".parse().unwrap(),
            site: "one".parse().unwrap(),
            enforced: Arc::new(ScopeSet::parse(scopes).unwrap()),
            upstream: upstream.map(|text| Arc::new(ScopeSet::parse(text).unwrap())),
            context: LaunchContext { patient: Some(OURS.into()), ..LaunchContext::default() },
            tenant: None,
            fhir_user: Some("Practitioner/me".into()),
            ehr_launch: true,
            expires: Timestamp(0),
        };
        Self { session: Arc::new(session), app, site, bases, inspect: false }
    }

    pub fn without_patient(mut self) -> Self {
        Arc::get_mut(&mut self.session).unwrap().context.patient = None;
        self
    }

    pub fn standalone(mut self) -> Self {
        Arc::get_mut(&mut self.session).unwrap().ehr_launch = false;
        self
    }

    pub fn case(&self) -> Case<'_> {
        Case { session: &self.session, app: &self.app, site: &self.site, bases: &self.bases, inspect: self.inspect }
    }

    pub fn judge(&self, sent: &Sent) -> Result<Judged, Error> {
        let (request, interaction) = sent.classify();
        judge(&self.case(), request, interaction)
    }

    pub fn authorized(&self, line: &str) -> Authorized {
        match self.judge(&Sent::new(line)) {
            Ok(Judged::Forward(authorized)) => authorized,
            Ok(_) => panic!("{line}: not forwarded at once"),
            Err(error) => panic!("{line}: {error}"),
        }
    }

    pub fn read_first(&self, sent: &Sent) -> Pending {
        match self.judge(sent) {
            Ok(Judged::ReadFirst { then, .. }) => *then,
            Ok(_) => panic!("{sent:?}: forwarded"),
            Err(error) => panic!("{sent:?}: {error}"),
        }
    }

    /// `stream`, `inspect` or `read-first` with the target (and form) as it may be sent, or the status of the refusal.
    pub fn verdict(&self, sent: &Sent) -> String {
        match self.judge(sent) {
            Ok(Judged::Forward(authorized)) => described(&authorized),
            Ok(Judged::ReadFirst { read, .. }) => format!("read-first {}", target(&read)),
            Ok(Judged::Bundle(_)) => "bundle".into(),
            Err(error) => status(&error).to_string(),
        }
    }
}

pub fn described(authorized: &Authorized) -> String {
    let mode = match authorized.mode() {
        Mode::Stream => "stream",
        Mode::Inspect(_) => "inspect",
    };
    format!("{mode} {}", target(authorized))
}

fn target(authorized: &Authorized) -> String {
    let request = authorized.request();
    let target = encode_target(request);
    let is_form = request.path.last().is_some_and(|last| last == "_search");
    let form = if is_form { format!(" {}", String::from_utf8_lossy(&request.body)) } else { String::new() };
    format!("{}{form}", target.trim_start_matches('/'))
}

pub fn status(error: &Error) -> u16 {
    match error.kind {
        Kind::BadRequest => 400,
        Kind::Forbidden => 403,
        Kind::NotFound => 404,
        Kind::MethodNotAllowed => 405,
        Kind::NotAcceptable => 406,
        Kind::TooLarge => 413,
        Kind::UnsupportedMediaType => 415,
        other => panic!("{other:?}: {error} {:?}", error.internal),
    }
}

/// A request.
#[derive(Clone, Debug)]
pub struct Sent {
    line: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Sent {
    /// `GET Observation?patient=p1`
    pub fn new(line: &str) -> Self {
        Self { line: line.into(), headers: HeaderMap::new(), body: Bytes::new() }
    }

    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        self
    }

    pub fn body(mut self, content_type: &str, body: &str) -> Self {
        self.body = body.to_owned().into();
        self.header("content-type", content_type)
    }

    pub fn json(self, body: &str) -> Self {
        self.body("application/fhir+json", body)
    }

    pub fn form(self, body: &str) -> Self {
        self.body("application/x-www-form-urlencoded", body)
    }

    pub fn classify(&self) -> (Request, Interaction) {
        let (method, url) = self.line.split_once(' ').unwrap();
        let (path, query) = url.split_once('?').map_or((url, None), |(path, query)| (path, Some(query)));
        let (path, query) = parse_target(path, query).unwrap();
        let method: Method = method.parse().unwrap();
        let content_type = self.headers.get("content-type").map(|value| value.to_str().unwrap());
        let mut kind = body_kind(content_type, self.body.is_empty());
        if path.is_empty() && !self.body.is_empty() {
            kind = mantel_adapters::fhir::interaction::BodyKind::Bundle(bundle_kind(&self.body).unwrap());
        }
        let interaction = classify(&method, &path, &query, &self.headers, kind)
            .unwrap_or_else(|fault| panic!("{}: {fault}", self.line));
        let request = Request { method, path, query, headers: self.headers.clone(), body: self.body.clone() };
        (request, interaction)
    }
}

/// How the one app and the one site are configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    Plain,
    AppInspects,
    SiteInspects,
    Picker,
}

/// Each setting's configuration is read once.
fn config(setting: Setting) -> &'static Config {
    static READ: [OnceLock<Config>; 4] = [const { OnceLock::new() }; 4];
    READ[setting as usize].get_or_init(|| {
        let always = "inspect = \"always\"\n";
        let (app, site) = match setting {
            Setting::Plain => ("", ""),
            Setting::AppInspects => (always, ""),
            Setting::SiteInspects => ("", always),
            Setting::Picker => ("", "standalone_patient = \"picker\"\n"),
        };
        let text = format!(
            r#"
            [server]
            sandbox = true
            public_url = "https://mantel.example"
            behind_proxy = ["127.0.0.1"]
            [store]
            url = "sqlite::memory:"
            seal = [{{ id = "one", file = "seal" }}]
            [vendors.any]
            adapter = "generic"
            [registrations.any]
            vendor = "any"
            apps = ["viewer"]
            use = ["ehr-launch", "standalone"]
            client_id = "mantel"
            client_auth = {{ method = "none" }}
            scopes = ["launch"]
            [apps.viewer]
            client_auth = {{ method = "none" }}
            grants = ["authorization_code"]
            redirect_uris = ["https://viewer.example/callback"]
            launch_url = "https://viewer.example/launch"
            scopes = ["launch"]
            sites = ["*"]
            consent = "never"
            {app}
            [sites.one]
            vendor = "any"
            name = "One"
            fhir_base_url = "{EHR}"
            link_bases = ["https://other.ehr.example/r4"]
            registrations = ["any"]
            {site}
            "#
        );
        let root = PathBuf::from("/etc/mantel");
        let files = [(root.join("mantel.toml"), text.into_bytes()), (root.join("seal"), (1..=32).collect())];
        let sources = Sources { paths: vec![root], environment: Vec::new(), files: Arc::new(BTreeMap::from(files)) };
        load(&sources).unwrap_or_else(|faults| panic!("{faults}")).config
    })
}

/// One row of a table: scopes, what the EHR says, request, verdict.
pub type Row = (&'static str, Ehr, &'static str, &'static str);

pub fn check(rows: &[Row]) {
    let mut wrong = Vec::new();
    for (scopes, ehr, line, expected) in rows {
        let found = World::new(scopes, *ehr).verdict(&Sent::new(line));
        if found != *expected {
            wrong.push(format!("{scopes} · {ehr:?} · {line}\n    expected {expected}\n    found    {found}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}
