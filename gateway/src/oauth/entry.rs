//! What an EHR opens: `/launch/{app}?iss=…&launch=…` (SMART 2.2, "Launch App: EHR Launch"). The EHR's
//! `launch` stays here; the app gets one of ours, for our base.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use mantel_adapters::site::{AppId, SiteId};

use super::{Call, OAuth, fault::PageFault, params::Params, redirect};
use crate::{
    config::{Base, Config, Site, Use},
    secret::Secret,
    store::EhrLaunch,
};

/// From the EHR's click until the app asks for authorization: some redirects, no person.
const HANDLE_LIFETIME: Duration = Duration::from_secs(5 * 60);

pub(super) async fn launch(
    oauth: &OAuth,
    call: &Call,
    app: &str,
    site: Option<&str>,
) -> Result<Response<Bytes>, PageFault> {
    let bad = |explanation: String| PageFault::new(StatusCode::BAD_REQUEST, "The app could not be opened", explanation);
    let params = Params::parse(call.request.uri().query().unwrap_or_default().as_bytes())
        .map_err(|fault| bad(format!("The EHR's launch cannot be read: {fault}.")))?;
    let app = app
        .parse::<AppId>()
        .ok()
        .and_then(|id| call.config.apps.get(&id))
        .ok_or_else(|| bad("This address names no app that is registered with this gateway.".into()))?;
    let launch_url = app
        .launch_url
        .as_deref()
        .ok_or_else(|| bad(format!("{} is not set up to be opened from an EHR.", app.name)))?;
    let iss =
        params.get("iss").ok_or_else(|| bad("The EHR's launch names no `iss`: expected its FHIR base.".into()))?;
    let ehr_launch = params.get("launch").ok_or_else(|| bad("The EHR's launch carries no `launch`.".into()))?;
    let site = site_of(&call.config, iss, site, &app.id).map_err(bad)?;
    if !call.config.permits(app, site) || call.config.registration(&app.id, site, Use::EhrLaunch).is_none() {
        return Err(bad(format!("{} is not registered for being opened from {}.", app.name, site.name)));
    }
    to_app(oauth, &call.config, &app.id, launch_url, &site.id, Secret::from(ehr_launch)).await
}

/// To the app's own launch URL, with `launch` of ours in the place of the EHR's.
pub(super) async fn to_app(
    oauth: &OAuth,
    config: &Config,
    app: &AppId,
    launch_url: &str,
    site: &SiteId,
    ehr_launch: Secret<String>,
) -> Result<Response<Bytes>, PageFault> {
    let (handle, hash) = oauth.mint.once();
    let kept = EhrLaunch {
        app: app.clone(),
        site: site.clone(),
        launch: ehr_launch,
        expires: oauth.clock.now().after(HANDLE_LIFETIME),
    };
    oauth.store.keep_ehr_launch(hash, &kept).await?;
    let iss = config.urls().fhir(&Base::Site(site.clone()));
    Ok(redirect::to(&redirect::with_query(launch_url, &[("iss", &iss), ("launch", handle.expose())])))
}

/// Who may frame what is said of this launch: the EHRs that `iss` may mean.
pub(super) fn frame_origins(call: &Call) -> Vec<String> {
    let query = call.request.uri().query().unwrap_or_default();
    let Ok(params) = Params::parse(query.as_bytes()) else { return Vec::new() };
    let Some(wanted) = params.get("iss").and_then(canonical) else { return Vec::new() };
    let sites = call.config.sites.values().filter(|site| is_base(site, &wanted));
    sites.flat_map(|site| site.frame_origins.iter().cloned()).collect()
}

fn is_base(site: &Site, wanted: &str) -> bool {
    let bases = std::iter::once(&site.fhir_base_text).chain(&site.iss_aliases);
    bases.filter_map(|base| canonical(base)).any(|base| base == wanted)
}

/// The site whose FHIR base, or alias, `iss` is: scheme and host without case, one trailing slash
/// ignored, the path by case (`vendors.md` C 30). Nothing is fetched for one that is unknown.
fn site_of<'a>(config: &'a Config, iss: &str, named: Option<&str>, app: &AppId) -> Result<&'a Site, String> {
    let wanted = canonical(iss).ok_or("`iss` is no URL.")?;
    let mut sites: Vec<_> = config.sites.values().filter(|site| is_base(site, &wanted)).collect();
    if let Some(named) = named {
        let named: SiteId = named.parse().map_err(|_| "This address names no site.".to_owned())?;
        sites.retain(|site| site.id == named);
    }
    if sites.len() > 1 {
        sites.retain(|site| config.registration(app, site, Use::EhrLaunch).is_some());
    }
    match sites.as_slice() {
        [site] => Ok(site),
        [] => Err("`iss` is the FHIR base of no EHR that is configured here.".into()),
        _ => Err("`iss` fits several sites: the EHR must open /launch/{app}/{site}.".into()),
    }
}

fn canonical(url: &str) -> Option<String> {
    let url = url::Url::parse(url).ok()?;
    let text = url.as_str();
    Some(text.strip_suffix('/').unwrap_or(text).to_owned())
}
