//! Checks that look at several tables at once.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mantel_adapters::profile::RefreshScope;

use super::{
    fault::span,
    layers::KeyPath,
    model::{App, AppGrant, Config, CustodyMode, Registration, Site, Use},
    reader::Context,
    scopes,
};

/// Below this, an app without a refresh token would send its user to log in again within one visit.
const SHORT_LIVED: Duration = Duration::from_secs(15 * 60);

pub(super) fn check(context: &Context<'_>, config: &Config) {
    for registration in config.registrations.values() {
        check_registration(context, config, registration);
    }
    for app in config.apps.values() {
        check_app(context, config, app);
    }
    ambiguous_issuers(context, config);
}

fn check_registration(context: &Context<'_>, config: &Config, registration: &Registration) {
    let path = KeyPath::of(&["registrations", registration.id.as_str()]);
    if !config.sites.values().any(|site| site.registrations.contains(&registration.id)) {
        context.note(&path, "no site lists this registration: it is never used");
    }
    let backend = registration.uses.contains(&Use::Backend);
    for app in registration.apps.iter().filter_map(|app| config.apps.get(app)) {
        let app_path = KeyPath::of(&["apps", app.id.as_str()]);
        if registration.uses.contains(&Use::EhrLaunch) && app.launch_url.is_none() && !has(context, app, "launch_url") {
            let expected =
                format!("where an EHR launch opens the app, since {:?} is for ehr-launch", registration.id.as_str());
            context.fault(&app_path.key("launch_url"), "nothing", expected);
        }
        let credentials = app.grants.contains(&AppGrant::ClientCredentials);
        if credentials && registration.apps.len() > 1 {
            let expected = format!(
                "authorization_code alone: the registration {:?} serves other apps too, and the EHR's token would be theirs as well",
                registration.id.as_str()
            );
            context.fault(&app_path.key("grants"), "\"client_credentials\"", expected);
        }
        if backend && !credentials {
            let text = format!("for backend use, but the app {:?} has no grant client_credentials", app.id.as_str());
            context.note(&path.key("use"), text);
        }
        if !registration.uses.is_subset(&[Use::Backend].into()) && !app.grants.contains(&AppGrant::AuthorizationCode) {
            let text =
                format!("for users' launches, but the app {:?} has no grant authorization_code", app.id.as_str());
            context.note(&path.key("use"), text);
        }
    }
    if backend && !registration.scopes.set().is_empty() && !scopes::has_system(&registration.scopes) {
        context.note(&path.key("scopes"), "for backend use, but no scope of system/ is ticked");
    }
}

fn has(context: &Context<'_>, app: &App, key: &'static str) -> bool {
    context.tree.places.exact(&KeyPath::of(&["apps", app.id.as_str(), key])).is_some()
}

fn check_app(context: &Context<'_>, config: &Config, app: &App) {
    let path = KeyPath::of(&["apps", app.id.as_str()]);
    let sites: Vec<&Arc<Site>> = config.sites.values().filter(|site| config.permits(app, site)).collect();
    let registered = |site: &Site| {
        let own = |id| config.registrations.get(id).is_some_and(|registration| registration.apps.contains(&app.id));
        site.registrations.iter().any(own)
    };
    let sites: Vec<&Arc<Site>> = sites.into_iter().filter(|site| registered(site)).collect();
    if sites.is_empty() {
        context.note(&path, "no registration serves this app at any of its sites: it can be launched nowhere");
    }
    if app.grants.contains(&AppGrant::ClientCredentials)
        && !sites.iter().any(|site| config.registration(&app.id, site, Use::Backend).is_some())
    {
        context.note(
            &path.key("grants"),
            "client_credentials, but no registration is for backend use at any of its sites",
        );
    }
    let offline = scopes::asks_refresh(&app.scopes);
    if app.custody == CustodyMode::AsAsked && !offline && app.grants.contains(&AppGrant::AuthorizationCode) {
        let short = sites.iter().find(|site| {
            site.profile.tokens.assume_lifetime < SHORT_LIVED && site.profile.tokens.refresh_scope != RefreshScope::None
        });
        if let Some(site) = short {
            let text = format!(
                "access tokens of the site {:?} live {}, and the app asks for no refresh: custody = \"session\" keeps its sessions whole",
                site.id.as_str(),
                span(site.profile.tokens.assume_lifetime)
            );
            context.note(&path.key("custody"), text);
        }
    }
}

/// One `iss` at several sites of an app: `/launch/{app}` cannot tell which is meant.
fn ambiguous_issuers(context: &Context<'_>, config: &Config) {
    let mut by_iss: BTreeMap<String, Vec<&Arc<Site>>> = BTreeMap::new();
    for site in config.sites.values() {
        let mut spellings: Vec<String> = site.iss_aliases.iter().map(|iss| normal(iss)).collect();
        spellings.push(normal(site.fhir_base.as_str()));
        spellings.sort();
        spellings.dedup();
        for iss in spellings {
            by_iss.entry(iss).or_default().push(site);
        }
    }
    for sites in by_iss.values().filter(|sites| sites.len() > 1) {
        for app in config.apps.values() {
            let launched =
                |site: &Site| config.permits(app, site) && config.registration(&app.id, site, Use::EhrLaunch).is_some();
            let names: Vec<String> =
                sites.iter().filter(|site| launched(site)).map(|site| format!("{:?}", site.id.as_str())).collect();
            if names.len() > 1 {
                let text = format!(
                    "one iss fits the sites {}: file /launch/{}/SITE at each EHR in the place of /launch/{}",
                    names.join(", "),
                    app.id,
                    app.id
                );
                context.note(&KeyPath::of(&["apps", app.id.as_str()]), text);
            }
        }
    }
}

/// As `iss` is compared (vendors.md, trap 30): scheme and host without case, one slash at the end or none.
fn normal(iss: &str) -> String {
    let url = url::Url::parse(iss).map_or_else(|_| iss.to_owned(), String::from);
    url.strip_suffix('/').map(str::to_owned).unwrap_or(url)
}
