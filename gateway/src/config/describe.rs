//! What a configuration resolves to, for `mantel check`: per site and app, and where each value is from.

use std::fmt::Write as _;

use mantel_adapters::profile::DiscoverySource;

use super::{
    database::Database,
    fault::{Origin, shown, span},
    layers::KeyPath,
    load::Loaded,
    model::{
        App, AppAuth, AppGrant, AppKeys, ClientAuth, Config, Consent, CustodyMode, Inspect, KeyState, Persona, Publish,
        Registration, Site, SitePattern, StoreUrl, Use,
    },
    urls::Urls,
};

const USES: [(Use, &str); 3] =
    [(Use::EhrLaunch, "ehr-launch"), (Use::Standalone, "standalone"), (Use::Backend, "backend")];

impl Loaded {
    /// What each site, registration and app resolves to, and where each value was written. No secrets.
    pub fn describe(&self) -> String {
        let mut page = Page { loaded: self, text: String::new() };
        page.server();
        for registration in self.config.registrations.values() {
            page.registration(registration);
        }
        for site in self.config.sites.values() {
            page.site(site);
        }
        for app in self.config.apps.values() {
            page.app(app);
        }
        page.text
    }
}

struct Page<'l> {
    loaded: &'l Loaded,
    text: String,
}

impl Page<'_> {
    fn config(&self) -> &Config {
        &self.loaded.config
    }

    fn head(&mut self, kind: &str, name: &str, path: &KeyPath) {
        let origin = self.loaded.provenance.places.near(path);
        let _ = writeln!(self.text, "\n{kind} {name}    [{origin}]");
    }

    fn line(&mut self, key: &str, value: &str, origin: Option<&Origin>) {
        let width = 34;
        let _ = match origin {
            Some(origin) => writeln!(self.text, "  {key:width$} {value}    [{origin}]"),
            None => writeln!(self.text, "  {key:width$} {value}"),
        };
    }

    /// A value that the key at the path was written for, or else has by default.
    fn value(&mut self, path: &KeyPath, key: &str, value: &str) {
        let path = key.split('.').fold(path.clone(), |path, key| path.key(key));
        let origin = self.loaded.provenance.places.exact(&path).cloned().unwrap_or(Origin::Default);
        self.line(key, value, Some(&origin));
    }

    fn server(&mut self) {
        let path = KeyPath::of(&["server"]);
        let _ = writeln!(self.text, "server");
        let server = &self.loaded.config.server;
        self.value(&path, "public_url", &server.public_url);
        self.value(&path, "listen", &server.listen.to_string());
        self.value(&path, "admin_listen", &server.admin_listen.to_string());
        let socket = self.loaded.config.admin_socket();
        self.value(&path, "admin_socket", &socket.map_or_else(|| "none".to_owned(), |path| path.display().to_string()));
        let tls = server.tls.as_ref().map_or_else(|| "none".to_owned(), |tls| tls.cert.display().to_string());
        self.value(&path, "tls", &tls);
        let proxies: Vec<String> = server.behind_proxy.iter().map(ToString::to_string).collect();
        self.value(&path, "behind_proxy", &list(&proxies));
        self.value(&path, "workers", &server.workers.map_or_else(|| "cores".to_owned(), |workers| workers.to_string()));
        self.value(&path, "max_stale", &span(server.max_stale));
        self.bounds(&path);
        if server.sandbox {
            self.value(&path, "sandbox", "true: literal secrets and plain http are taken");
        }
        let store = &self.loaded.config.store;
        let url = match &store.url {
            StoreUrl::Sqlite(None) => "SQLite in memory".to_owned(),
            StoreUrl::Sqlite(Some(file)) => format!("SQLite {}", file.display()),
            StoreUrl::Postgres(url) => postgres(url.expose()),
        };
        let ids: Vec<String> = store.seal.iter().map(|key| key.id.clone()).collect();
        self.text.push_str("\nstore\n");
        let path = KeyPath::of(&["store"]);
        self.value(&path, "url", &url);
        self.value(
            &path,
            "seal",
            &match ids.as_slice() {
                [_] => list(&ids),
                _ => format!(
                    "{}; the first one writes once every live process holds it (`mantel keys list`)",
                    list(&ids)
                ),
            },
        );
        let spill = store.spill.as_ref().map_or_else(|| "none: in memory".to_owned(), |it| it.display().to_string());
        self.value(&path, "spill", &spill);
        for set in self.loaded.config.keys.values() {
            let path = KeyPath::of(&["keys", set.id.as_str()]);
            self.head("keys", set.id.as_str(), &path);
            self.value(&path, "alg", &format!("{:?}", set.alg));
            let count = |state| set.keys.iter().filter(|key| key.state == state).count();
            let states = format!(
                "{} publish, {} sign, {} retired",
                count(KeyState::Publish),
                count(KeyState::Sign),
                count(KeyState::Retired)
            );
            self.value(&path, "private", &states);
            let url = Urls::new(&server.public_url).keys(&set.id);
            self.line("published at", &url, None);
        }
    }

    fn bounds(&mut self, path: &KeyPath) {
        let (limits, timeouts) = (&self.loaded.config.server.limits, &self.loaded.config.server.timeouts);
        let limits = [
            ("limits.body", limits.body),
            ("limits.bundle", limits.bundle),
            ("limits.inspected", limits.inspected),
            ("limits.head", limits.head),
            ("limits.site_concurrency", limits.site_concurrency),
            ("limits.connections", limits.connections),
        ];
        let timeouts = [
            ("timeouts.header", timeouts.header),
            ("timeouts.handshake", timeouts.handshake),
            ("timeouts.connect", timeouts.connect),
            ("timeouts.upstream", timeouts.upstream),
            ("timeouts.idle", timeouts.idle),
            ("timeouts.token", timeouts.token),
            ("timeouts.custody", timeouts.custody),
            ("timeouts.drain", timeouts.drain),
        ];
        for (key, limit) in limits {
            self.value(path, key, &limit.to_string());
        }
        for (key, timeout) in timeouts {
            self.value(path, key, &span(timeout));
        }
    }

    fn registration(&mut self, registration: &Registration) {
        let path = KeyPath::of(&["registrations", registration.id.as_str()]);
        self.head("registration", registration.id.as_str(), &path);
        self.value(&path, "vendor", registration.vendor.as_str());
        let apps: Vec<String> = registration.apps.iter().map(ToString::to_string).collect();
        self.value(&path, "apps", &list(&apps));
        self.value(&path, "use", &uses(|usage| registration.uses.contains(&usage)));
        self.value(&path, "client_id", &shown(&registration.client_id));
        self.value(&path, "client_auth", &client_auth(&registration.auth));
        self.value(&path, "scopes", &registration.scopes.set().to_string());
        let previous: Vec<String> = registration.previous.iter().map(|old| shown(&old.client_id)).collect();
        self.value(&path, "previous", &list(&previous));
        let publish = if registration.publish == Publish::Url { "url" } else { "uploaded" };
        self.value(&path, "publish", publish);
        let urls = Urls::new(&self.loaded.config.server.public_url);
        self.line("callback to file", &urls.callback(&registration.id), None);
        if registration.uses.contains(&Use::EhrLaunch) {
            for app in &registration.apps {
                self.line("launch URL to file", &urls.launch(app), None);
            }
        }
    }

    fn site(&mut self, site: &Site) {
        let path = KeyPath::of(&["sites", site.id.as_str()]);
        self.head("site", site.id.as_str(), &path);
        self.value(&path, "name", &shown(&site.name));
        self.value(&path, "vendor", site.vendor.as_str());
        self.value(&path, "fhir_base_url", &site.fhir_base_text);
        self.value(&path, "aliases.iss", &list(&site.iss_aliases));
        self.value(&path, "link_bases", &list(&site.link_bases));
        let persona = match site.persona {
            None => "none",
            Some(Persona::Patient) => "patient",
            Some(Persona::Provider) => "provider",
        };
        self.value(&path, "persona", persona);
        self.value(&path, "tenant", site.tenant.as_deref().unwrap_or("none"));
        self.value(&path, "tags", &list(&site.tags.iter().cloned().collect::<Vec<_>>()));
        self.value(&path, "frame_origins", &list(&site.frame_origins));
        self.value(&path, "tls", &tls(site));
        self.value(&path, "allow_private", if site.allow_private { "true" } else { "false" });
        self.value(&path, "inspect", inspect(site.inspect));
        self.line("concurrent requests", &site.concurrency.to_string(), None);
        self.line("endpoints are found by", &endpoints(site), None);
        self.profile(site);
        let names: Vec<String> = site.registrations.iter().map(ToString::to_string).collect();
        self.value(&path, "registrations", &list(&names));
        let config = &self.loaded.config;
        for app in config.apps.values() {
            let resolved = if config.permits(app, site) { resolved(config, app, site) } else { "not its site".into() };
            self.line(&format!("app {}", app.id), &resolved, None);
        }
    }

    fn profile(&mut self, site: &Site) {
        let node = self.loaded.provenance.profiles.get(&site.id);
        let Ok(values) = serde_json::to_value(&*site.profile) else { return };
        let mut rows = Vec::new();
        leaves(&values, &mut Vec::new(), &mut rows);
        for (keys, value) in rows {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            match value {
                Some(value) => {
                    let origin = node.map_or(Origin::Default, |node| node.origin(&keys));
                    self.line(&keys.join("."), &value, Some(&origin));
                }
                None => self.line(&keys.join("."), "none", None),
            }
        }
    }

    fn app(&mut self, app: &App) {
        let path = KeyPath::of(&["apps", app.id.as_str()]);
        self.head("app", app.id.as_str(), &path);
        self.value(&path, "name", &shown(&app.name));
        self.value(&path, "client_auth", &app_auth(&app.auth));
        let grants: Vec<&str> = app
            .grants
            .iter()
            .map(|grant| match grant {
                AppGrant::AuthorizationCode => "authorization_code",
                AppGrant::ClientCredentials => "client_credentials",
            })
            .collect();
        self.value(&path, "grants", &grants.join(", "));
        self.value(&path, "redirect_uris", &list(&app.redirect_uris));
        self.value(&path, "launch_url", app.launch_url.as_deref().unwrap_or("none"));
        self.value(&path, "origins", &list(&app.origins));
        self.value(&path, "scopes", &app.scopes.set().to_string());
        self.value(
            &path,
            "required_scopes",
            if app.required_scopes.is_empty() { "none".into() } else { app.required_scopes.join(" ") }.as_str(),
        );
        let sites: Vec<String> = app
            .sites
            .iter()
            .map(|pattern| match pattern {
                SitePattern::All => "*".to_owned(),
                SitePattern::Id(id) => id.to_string(),
                SitePattern::Tag(tag) => format!("tag:{tag}"),
            })
            .collect();
        self.value(&path, "sites", &list(&sites));
        let consent = match app.consent {
            Consent::Never => "never",
            Consent::Once => "once",
            Consent::Always => "always",
        };
        self.value(&path, "consent", consent);
        self.value(&path, "custody", if app.custody == CustodyMode::Session { "session" } else { "as-asked" });
        self.value(&path, "introspect", if app.introspect { "true" } else { "false" });
        self.value(&path, "inspect", inspect(app.inspect));
        self.value(&path, "keep_alive", if app.keep_alive { "true" } else { "false" });
        let durations = [
            ("session_max", app.session_max),
            ("session_idle", app.session_idle),
            ("access_lifetime", app.access_lifetime),
            ("refresh_lifetime", app.refresh_lifetime),
        ];
        for (key, duration) in durations {
            self.value(&path, key, &span(duration));
        }
        self.value(&path, "post_logout_redirect_uris", &list(&app.post_logout_redirect_uris));
        let sites: Vec<_> =
            self.config().sites.values().filter(|site| self.config().permits(app, site)).cloned().collect();
        for site in sites {
            let resolved = resolved(self.config(), app, &site);
            self.line(&format!("at site {}", site.id), &resolved, None);
        }
    }
}

fn list(items: &[String]) -> String {
    if items.is_empty() { "none".into() } else { items.join(", ") }
}

fn uses(has: impl Fn(Use) -> bool) -> String {
    USES.iter().filter(|(usage, _)| has(*usage)).map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
}

/// Which registration serves each use.
fn resolved(config: &Config, app: &App, site: &Site) -> String {
    let found = USES.iter().filter_map(|(usage, name)| {
        config.registration(&app.id, site, *usage).map(|registration| format!("{name} by {}", registration.id))
    });
    let found: Vec<String> = found.collect();
    if found.is_empty() { "no registration".into() } else { found.join(", ") }
}

fn endpoints(site: &Site) -> String {
    let sources = site.profile.discovery.iter().map(|source| match source {
        DiscoverySource::SmartConfiguration => "smart-configuration",
        DiscoverySource::CapabilityStatement => "capability-statement",
        DiscoverySource::Configuration => "configuration",
    });
    let hosts = &site.profile.auth_hosts;
    let also = if hosts.is_empty() { String::new() } else { format!(" or {}", hosts.join(", ")) };
    let own = site.fhir_base.host_str().unwrap_or_default();
    format!("{}; taken without an operator's word on {own}{also}", sources.collect::<Vec<_>>().join(", then "))
}

fn tls(site: &Site) -> String {
    let ca = site.tls.ca.as_ref().map(|ca| format!("ca {}", ca.display()));
    let client = site.tls.client.as_ref().map(|(cert, _)| format!("client certificate {}", cert.display()));
    list(&ca.into_iter().chain(client).collect::<Vec<_>>())
}

const fn inspect(inspect: Inspect) -> &'static str {
    match inspect {
        Inspect::Auto => "auto",
        Inspect::Always => "always",
    }
}

fn client_auth(auth: &ClientAuth) -> String {
    match auth {
        ClientAuth::None => "none".into(),
        ClientAuth::SecretBasic { .. } => "client_secret_basic".into(),
        ClientAuth::SecretPost { .. } => "client_secret_post".into(),
        ClientAuth::PrivateKeyJwt { keys } => format!("private_key_jwt with the keys {keys}"),
    }
}

fn app_auth(auth: &AppAuth) -> String {
    match auth {
        AppAuth::None => "none".into(),
        AppAuth::SecretBasic { secrets } => format!("client_secret_basic, {} in force", secrets.len()),
        AppAuth::SecretPost { secrets } => format!("client_secret_post, {} in force", secrets.len()),
        AppAuth::PrivateKeyJwt(AppKeys::Url(url)) => format!("private_key_jwt with the keys at {url}"),
        AppAuth::PrivateKeyJwt(AppKeys::Set(_)) => "private_key_jwt with the keys configured".into(),
    }
}

/// Host and database; neither user, password nor parameters.
fn postgres(url: &str) -> String {
    let database = url::Url::parse(url).ok().and_then(|url| Database::of(&url).ok());
    database.map_or_else(|| "PostgreSQL".into(), |database| database.text())
}

/// The values of a profile, dotted; what is not set has no row, and an empty table no value.
fn leaves(value: &serde_json::Value, at: &mut Vec<String>, rows: &mut Vec<(Vec<String>, Option<String>)>) {
    match value {
        serde_json::Value::Null => {}
        serde_json::Value::Object(table) if table.is_empty() => rows.push((at.clone(), None)),
        serde_json::Value::Object(table) => {
            for (key, value) in table {
                at.push(key.clone());
                leaves(value, at, rows);
                at.pop();
            }
        }
        other => rows.push((at.clone(), Some(other.to_string()))),
    }
}
