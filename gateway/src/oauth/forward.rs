//! From a stored, bound launch to the EHR's login: the organization is chosen, where more than one
//! fits, and the browser is sent on.

use std::sync::Arc;

use aws_lc_rs::digest;
use bytes::Bytes;
use http::{Response, StatusCode, header};
use mantel_adapters::{
    profile::{Pkce, StandalonePatient},
    smart::{
        discovery::audience,
        pkce::CodeVerifier,
        scope::Asked,
        translate::{AskOptions, GrantKind, ask},
    },
};
use zeroize::Zeroize as _;

use super::{
    Call, OAuth,
    authorize::ReturnTo,
    cookies, entry,
    fault::{Code, PageFault},
    pages::{self, Choice, Organizations},
    params::Params,
    redirect,
};
use crate::{
    config::{App, Base, Config, CustodyMode, Registration, Site, Use},
    entropy,
    secret::{Secret, TokenHash},
    store::{EhrHalf, Launch, LaunchId, LaunchStep},
    telemetry::metrics::LaunchMark,
};

/// Organizations on one page; more are found by search.
const SHOWN: usize = 25;
/// With fewer, a search field is more to read than the list.
const SEARCHABLE: usize = 8;

/// `GET /oauth/continue/{launch}`: the browser has shown that it keeps the cookie, or has not.
pub(super) async fn go_on(oauth: &OAuth, call: &Call, launch: &str) -> Result<Response<Bytes>, PageFault> {
    let launch = open(oauth, launch).await?;
    if !cookies::holds(call.request.headers(), &launch) {
        return Err(unbound(&launch));
    }
    let app = app_of(&call.config, &launch)?;
    let params = Params::parse(call.request.uri().query().unwrap_or_default().as_bytes())
        .map_err(|fault| PageFault::new(StatusCode::BAD_REQUEST, "This address cannot be read", format!("{fault}.")))?;
    let back = return_to(&call.config, &launch);
    if params.get("cancel").is_some() {
        let mut done = launch.clone();
        done.step = LaunchStep::Done;
        oauth.store.advance_launch(launch.step, &done).await?;
        return Ok(back.error(Code::AccessDenied, "The user cancelled."));
    }
    let usage = if launch.ehr_launch.is_some() { Use::EhrLaunch } else { Use::Standalone };
    let fitting = fitting(&call.config, app, &launch, usage);
    let named = params.get("organization").or(launch.request.organization.as_deref());
    let chosen = match (named, fitting.as_slice()) {
        (_, []) => {
            return Ok(back.error(Code::UnauthorizedClient, "The app has no registration at the EHR behind this base."));
        }
        (None, [only]) => Some(*only),
        (Some(id), _) => fitting.iter().find(|(site, _)| site.id.as_str() == id).copied(),
        (None, _) => None,
    };
    match chosen {
        Some((site, registration)) => to_ehr(oauth, call, launch, app, site, registration, usage).await,
        None => Ok(choose(call, &launch, app, &fitting, params.get("q").unwrap_or_default())),
    }
}

/// `GET /oauth/again/{launch}`: a new launch, in a window of its own where the cookie is not a third
/// party's. The old one is over. What an EHR opened begins at the app once more: the app's memory of
/// its request is the frame's as much as the cookie is, and in the window it would know no `state`.
pub(super) async fn again(oauth: &OAuth, call: &Call, launch: &str) -> Result<Response<Bytes>, PageFault> {
    let old = open(oauth, launch).await?;
    let mut done = old.clone();
    done.step = LaunchStep::Done;
    if !oauth.store.advance_launch(old.step, &done).await? {
        return Err(over());
    }
    let launch_url = app_of(&call.config, &old)?.launch_url.as_deref();
    if let (Some((site, ehr_launch)), Some(launch_url)) = (&old.ehr_launch, launch_url) {
        return entry::to_app(oauth, &call.config, &old.app, launch_url, site, ehr_launch.clone()).await;
    }
    let (cookie, browser) = oauth.mint.once();
    let fresh = Launch {
        id: LaunchId(entropy::uuid4(&*oauth.entropy)),
        step: LaunchStep::Opened,
        browser: Some(browser),
        ..old
    };
    oauth.store.open_launch(&fresh).await?;
    let mut response = redirect::to(&format!("/oauth/continue/{}", fresh.id));
    if let Some(cookie) = cookies::bind(fresh.id, &cookie) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

/// A launch that waits for its browser.
async fn open(oauth: &OAuth, id: &str) -> Result<Launch, PageFault> {
    let id = id.parse().map(LaunchId).map_err(|_| over())?;
    let launch = oauth.store.launch(id, oauth.clock.now()).await?.ok_or_else(over)?;
    match launch.step {
        LaunchStep::Opened => Ok(launch),
        _ => Err(over()),
    }
}

fn over() -> PageFault {
    PageFault::new(
        StatusCode::GONE,
        "This sign-in is over",
        "It was finished, was left for more than 15 minutes, or goes on in another window. Please go back to the app and start again.",
    )
}

/// No cookie: there is no way round the binding, but a way on.
fn unbound(launch: &Launch) -> PageFault {
    PageFault {
        way_on: Some(("Continue in a new window", format!("/oauth/again/{}", launch.id))),
        new_window: true,
        ..PageFault::new(
            StatusCode::BAD_REQUEST,
            "Your browser kept no cookie",
            "Signing in needs a cookie, so that nobody else can finish your sign-in in your place. Your browser did not keep it, \
             most likely since this page is shown inside another site's page. Please continue in a window of its own, or allow cookies for this site.",
        )
    }
}

pub(super) fn app_of<'a>(config: &'a Config, launch: &Launch) -> Result<&'a Arc<App>, PageFault> {
    config.apps.get(&launch.app).ok_or_else(|| {
        PageFault::new(
            StatusCode::GONE,
            "This app is not set up here any more",
            "It was removed while you were signing in.",
        )
    })
}

pub(super) fn return_to<'a>(config: &'a Config, launch: &'a Launch) -> ReturnTo<'a> {
    ReturnTo { uri: &launch.request.redirect_uri, state: Some(&launch.request.state), issuer: config.urls().issuer() }
}

type Fitting<'a> = (&'a Arc<Site>, &'a Arc<Registration>);

/// The sites that the launch may go to: the one it names, or all that a registration resolves for.
fn fitting<'a>(config: &'a Config, app: &App, launch: &Launch, usage: Use) -> Vec<Fitting<'a>> {
    let wanted = match (&launch.ehr_launch, &launch.base) {
        (Some((site, _)), _) | (None, Base::Site(site)) => Some(site),
        (None, Base::Uniform) => None,
    };
    config
        .sites
        .values()
        .filter(|site| wanted.is_none_or(|wanted| *wanted == site.id) && config.permits(app, site))
        .filter_map(|site| Some((site, config.registration(&app.id, site, usage)?)))
        .collect()
}

fn choose(call: &Call, launch: &Launch, app: &App, fitting: &[Fitting<'_>], query: &str) -> Response<Bytes> {
    let action = format!("/oauth/continue/{}", launch.id);
    let needle = query.trim().to_lowercase();
    let mut found: Vec<_> =
        fitting.iter().map(|(site, _)| *site).filter(|site| site.name.to_lowercase().contains(&needle)).collect();
    found.sort_by_key(|site| site.name.to_lowercase());
    let choices = found
        .iter()
        .take(SHOWN)
        .map(|site| Choice {
            name: &site.name,
            detail: detail(site),
            href: redirect::with_query(&action, &[("organization", site.id.as_str())]),
        })
        .collect();
    let cancel = redirect::with_query(&action, &[("cancel", "1")]);
    let template = Organizations {
        app: &app.name,
        query,
        action: &action,
        cancel: &cancel,
        searchable: fitting.len() > SEARCHABLE,
        choices,
        more: found.len().saturating_sub(SHOWN),
    };
    tracing::debug!(request = call.request_id, launch = %launch.id, sites = fitting.len(), "the user is asked for an organization");
    pages::page(StatusCode::OK, &template, &[])
}

/// Two sites of one hospital differ by who signs in.
fn detail(site: &Site) -> String {
    match site.persona {
        Some(crate::config::Persona::Patient) => "For patients".into(),
        Some(crate::config::Persona::Provider) => "For staff".into(),
        None => String::new(),
    }
}

async fn to_ehr(
    oauth: &OAuth,
    call: &Call,
    launch: Launch,
    app: &App,
    site: &Arc<Site>,
    registration: &Registration,
    usage: Use,
) -> Result<Response<Bytes>, PageFault> {
    let back = return_to(&call.config, &launch);
    let profile = &site.profile;
    let asked = Asked::parse(&launch.request.scope);
    let ehr_launch = usage == Use::EhrLaunch;
    let options = AskOptions {
        grant: GrantKind::AuthorizationCode,
        refresh_scope: profile.tokens.refresh_scope,
        wants_refresh_for_custody: app.custody == CustodyMode::Session,
        ehr_launch,
        picker: !ehr_launch && profile.standalone_patient == StandalonePatient::Picker,
    };
    let request = ask(&asked, &app.scopes, &registration.scopes, &profile.scopes, options);
    if request.is_empty() {
        return Ok(back.error(
            Code::InvalidScope,
            "None of the scopes asked for is allowed to the app and ticked in its registration at this EHR.",
        ));
    }
    let found = match oauth.ehrs.endpoints(site, &registration.client_id).await {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(request = call.request_id, site = %site.id, %error, "a launch found no way to the EHR");
            return Ok(back.error(Code::TemporarilyUnavailable, "The EHR's sign-in cannot be found at present."));
        }
    };
    let mut random = [0_u8; 32];
    oauth.entropy.fill(&mut random);
    let verifier = CodeVerifier::from_random(random);
    random.zeroize();
    let state = entropy::uuid4(&*oauth.entropy).to_string();
    let wants_identity = request.text.split(' ').any(|word| word == "openid");
    let nonce = (profile.nonce && wants_identity).then(|| entropy::uuid4(&*oauth.entropy).simple().to_string());
    let redirect_uri = call.config.urls().callback(&registration.id);
    let Some(aud) = audience(profile, &site.fhir_base_text) else {
        tracing::error!(site = %site.id, aud = profile.aud, "the profile's `aud` makes no URL");
        return Ok(back.error(Code::ServerError, "The gateway's configuration of this EHR is not usable."));
    };
    let challenge = verifier.challenge(sha256);
    let mut pairs = vec![
        ("response_type", "code"),
        ("client_id", &registration.client_id),
        ("redirect_uri", &redirect_uri),
        ("scope", &request.text),
        ("state", &state),
        ("aud", &aud),
    ];
    if profile.pkce == Pkce::S256 {
        pairs.extend([("code_challenge", challenge.as_str()), ("code_challenge_method", "S256")]);
    }
    pairs.extend(nonce.as_deref().map(|nonce| ("nonce", nonce)));
    // `launch` exactly as it was received, and only in an EHR launch (SMART 2.2, step 4).
    pairs.extend(launch.ehr_launch.as_ref().map(|(_, launch)| ("launch", launch.expose().as_str())));
    // NextGen's authorization endpoint already has a query.
    let location = redirect::with_query(found.endpoints.authorize.as_str(), &pairs);

    let mut sent = launch.clone();
    sent.step = LaunchStep::AtEhr;
    sent.ehr = Some(EhrHalf {
        site: site.id.clone(),
        registration: registration.id.clone(),
        state: TokenHash::of(&state),
        code_verifier: Secret::new(verifier.as_str().to_owned()),
        nonce,
        redirect_uri: redirect_uri.clone(),
        asked: request,
    });
    if !oauth.store.advance_launch(launch.step, &sent).await? {
        return Err(over());
    }
    oauth.metrics.launch(Some(&site.vendor), LaunchMark::AtEhr);
    Ok(redirect::to(&location))
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0_u8; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}
