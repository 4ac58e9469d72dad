//! The authorization endpoint: the app's request is checked whole before anything else happens, then
//! stored, and the browser bound to it (conformance A5; `guard.md`, "The browser").

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Response, StatusCode, header};
use mantel_adapters::{site::SiteId, smart::scope::Asked};

use super::{
    Call, OAuth, cookies,
    fault::{Code, PageFault},
    params::{Params, ParamsFault},
    redirect,
};
use crate::{
    config::{App, AppGrant, Base, Config},
    entropy,
    secret::TokenHash,
    store::{AppRequest, Launch, LaunchId, LaunchStep},
    telemetry::metrics::LaunchMark,
};

/// From the app's request until it has its code: a user signs in, perhaps with a second factor.
const LAUNCH_LIFETIME: Duration = Duration::from_secs(15 * 60);

/// Where an app's errors go: nobody else may say this of a redirect URI than [`trusted`].
pub(super) struct ReturnTo<'a> {
    pub uri: &'a str,
    pub state: Option<&'a str>,
    pub issuer: &'a str,
}

impl ReturnTo<'_> {
    /// RFC 6749 §4.1.2.1, with RFC 9207's `iss`.
    pub fn error(&self, code: Code, description: &str) -> Response<Bytes> {
        redirect::to(&self.error_url(code, description))
    }

    pub fn error_url(&self, code: Code, description: &str) -> String {
        // Names of apps and sites may hold what RFC 6749 §4.1.2.1 does not allow there.
        let description = super::fault::description(description);
        let mut pairs = vec![("error", code.text()), ("error_description", description.as_str())];
        pairs.extend(self.state.map(|state| ("state", state)));
        pairs.push(("iss", self.issuer));
        redirect::with_query(self.uri, &pairs)
    }

    pub fn code_url(&self, code: &str) -> String {
        let mut pairs = vec![("code", code)];
        pairs.extend(self.state.map(|state| ("state", state)));
        pairs.push(("iss", self.issuer));
        redirect::with_query(self.uri, &pairs)
    }
}

pub(super) async fn authorize(oauth: &OAuth, call: &Call, path_base: Base) -> Result<Response<Bytes>, PageFault> {
    let posted = call.request.method() == Method::POST;
    if posted && !is_form(call) {
        return Err(PageFault::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "The app's request cannot be read",
            "A posted authorization request must be application/x-www-form-urlencoded.",
        ));
    }
    let encoded =
        if posted { &call.request.body()[..] } else { call.request.uri().query().unwrap_or_default().as_bytes() };
    let (params, fault) = Params::parse_with_faults(encoded);
    let (app, redirect_uri) = trusted(&call.config, &params)?;
    let issuer = call.config.urls().issuer();
    let back = ReturnTo { uri: redirect_uri, state: params.get("state"), issuer };
    let (base, request) = match checked(&call.config, &app, &params, fault, path_base, redirect_uri) {
        Ok(checked) => checked,
        Err((code, description)) => {
            tracing::debug!(request = call.request_id, app = %app.id, code = code.text(), "an authorization request was refused");
            oauth.metrics.launch(None, LaunchMark::Refused);
            return Ok(back.error(code, &description));
        }
    };
    let ehr_launch = match (params.get("launch"), &base) {
        (None, _) => None,
        (Some(_), Base::Uniform) => {
            return Ok(back.error(
                Code::InvalidRequest,
                "`launch` came with the uniform base; an EHR launch names its site's base in `iss`.",
            ));
        }
        (Some(handle), Base::Site(site)) => {
            let taken = oauth.store.take_ehr_launch(TokenHash::of(handle), oauth.clock.now()).await?;
            match taken.filter(|taken| taken.app == app.id && taken.site == *site) {
                Some(taken) => Some((taken.site, taken.launch)),
                None => return Ok(back.error(
                    Code::InvalidRequest,
                    "`launch` is unknown, used, expired, or of another app or site: open the app from the EHR again.",
                )),
            }
        }
    };
    let now = oauth.clock.now();
    let (cookie, browser) = oauth.mint.once();
    let launch = Launch {
        id: LaunchId(entropy::uuid4(&*oauth.entropy)),
        step: LaunchStep::Opened,
        app: app.id.clone(),
        base,
        request,
        browser: Some(browser),
        ehr: None,
        ehr_launch,
        created: now,
        expires: now.after(LAUNCH_LIFETIME),
    };
    oauth.store.open_launch(&launch).await?;
    oauth.metrics.launch(None, LaunchMark::Opened);
    tracing::info!(request = call.request_id, app = %app.id, launch = %launch.id, "a launch was opened");
    // Proved by one redirect to ourselves, before the EHR's login. 303 turns a POST into a GET: with
    // 307 a browser would post the request on to the EHR.
    let mut response = redirect::to(&format!("/oauth/continue/{}", launch.id));
    if let Some(cookie) = cookies::bind(launch.id, &cookie) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

/// The app, and its redirect URI byte for byte as registered: before that there is no redirect
/// (RFC 6749 §4.1.2.1; RFC 9700 §2.1), else anybody's page could be opened with our name behind it.
fn trusted<'a>(config: &Config, params: &'a Params) -> Result<(Arc<App>, &'a str), PageFault> {
    let fault =
        |explanation: String| PageFault::new(StatusCode::BAD_REQUEST, "This app is not set up here", explanation);
    let client = params.get("client_id").ok_or_else(|| {
        fault("The request names no `client_id`, or more than one. Please tell the app's maker.".into())
    })?;
    let app = config.apps.values().find(|app| app.id.as_str() == client).ok_or_else(|| {
        fault(
            "The request's `client_id` is of no app that is registered with this gateway. Please tell the app's maker."
                .into(),
        )
    })?;
    let uri = params.get("redirect_uri").ok_or_else(|| {
        fault("The request names no `redirect_uri`, or more than one. Please tell the app's maker.".into())
    })?;
    if app.redirect_uris.iter().any(|registered| same_redirect(registered, uri)) {
        Ok((app.clone(), uri))
    } else {
        Err(fault(format!(
            "The request's `redirect_uri` is none of those that {} has registered, byte for byte. Please tell the app's maker.",
            app.name
        )))
    }
}

/// Byte-equal; of loopback addresses any port (RFC 8252 §7.3).
fn same_redirect(registered: &str, given: &str) -> bool {
    if registered == given {
        return true;
    }
    let without_port = |text: &str| {
        let host_end =
            ["http://127.0.0.1", "http://[::1]"].iter().find(|host| text.starts_with(**host)).map(|host| host.len())?;
        let rest = text.get(host_end..)?;
        let rest = match rest.strip_prefix(':') {
            Some(port) => {
                let end = port.find(|c: char| !c.is_ascii_digit()).unwrap_or(port.len());
                port.get(..end)?.parse::<u16>().ok()?;
                port.get(end..)?
            }
            None => rest,
        };
        (rest.is_empty() || rest.starts_with(['/', '?']))
            .then(|| format!("{}{rest}", text.get(..host_end).unwrap_or_default()))
    };
    matches!((without_port(registered), without_port(given)), (Some(a), Some(b)) if a == b)
}

type Refusal = (Code, String);

fn checked(
    config: &Config,
    app: &App,
    params: &Params,
    fault: Option<ParamsFault>,
    path_base: Base,
    redirect_uri: &str,
) -> Result<(Base, AppRequest), Refusal> {
    let invalid = |description: String| (Code::InvalidRequest, description);
    if let Some(fault) = fault {
        return Err(invalid(fault.to_string()));
    }
    let need = |name: &str| params.get(name).ok_or_else(|| invalid(format!("`{name}` is missing.")));
    match need("response_type")? {
        "code" => {}
        _ => return Err((Code::UnsupportedResponseType, "`response_type` must be `code`.".into())),
    }
    if !app.grants.contains(&AppGrant::AuthorizationCode) {
        return Err((Code::UnauthorizedClient, "The app is not registered for the authorization code grant.".into()));
    }
    let state = need("state")?;
    let aud = params
        .get("aud")
        .or_else(|| params.get("resource"))
        .ok_or_else(|| invalid("`aud` is missing: expected the FHIR base that the app wants to use.".into()))?;
    let base = base_of(config, aud, path_base)?;
    let challenge = need("code_challenge")?;
    // Absent means `plain` (RFC 7636 §4.3), and that is refused.
    if params.get("code_challenge_method") != Some("S256") {
        return Err(invalid("`code_challenge_method` must be `S256`.".into()));
    }
    if challenge.len() != 43 || !challenge.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
        return Err(invalid("`code_challenge` must be the base64url form of a SHA-256 hash: 43 characters.".into()));
    }
    let scope = need("scope")?;
    if Asked::parse(scope).is_empty() {
        return Err((Code::InvalidScope, "`scope` holds no scope that SMART App Launch knows.".into()));
    }
    if params.get("prompt") == Some("none") {
        return Err((Code::LoginRequired, "`prompt=none` cannot be served: the EHR asks its user.".into()));
    }
    let request = AppRequest {
        redirect_uri: redirect_uri.to_owned(),
        scope: scope.to_owned(),
        state: state.to_owned(),
        nonce: params.get("nonce").map(ToOwned::to_owned),
        code_challenge: challenge.to_owned(),
        organization: params.get("organization").map(ToOwned::to_owned),
    };
    Ok((base, request))
}

/// `aud` is a FHIR base of ours, one trailing slash tolerated, and it picks the site. A site's own
/// endpoint serves that site's base alone: otherwise a page for one hospital could lead to another's.
fn base_of(config: &Config, aud: &str, path_base: Base) -> Result<Base, Refusal> {
    let urls = config.urls();
    let aud = aud.strip_suffix('/').unwrap_or(aud);
    let expected = urls.fhir(&path_base);
    if aud == expected {
        return Ok(path_base);
    }
    let site = aud
        .strip_prefix(urls.public)
        .and_then(|path| path.strip_prefix("/sites/"))
        .and_then(|rest| rest.strip_suffix("/fhir/r4"))
        .and_then(|site| site.parse::<SiteId>().ok())
        .filter(|site| config.sites.contains_key(site));
    match (path_base, site) {
        (Base::Uniform, Some(site)) => Ok(Base::Site(site)),
        _ => Err((Code::InvalidRequest, format!("`aud` is no FHIR base of this server: expected {expected}."))),
    }
}

fn is_form(call: &Call) -> bool {
    super::is_form(call.request.headers())
}

#[cfg(test)]
mod tests {
    use super::{Code, ReturnTo, same_redirect};

    #[test]
    fn errors_hold_only_what_a_description_may() {
        let back = ReturnTo { uri: "com.example.app:/cb?x=1", state: Some("s&1"), issuer: "https://g.example" };
        assert_eq!(
            back.error_url(Code::AccessDenied, "Spital \"Zürich\""),
            "com.example.app:/cb?x=1&error=access_denied&error_description=Spital+%27Z%3Frich%27&state=s%261&iss=https%3A%2F%2Fg.example"
        );
    }

    #[test]
    fn redirect_uris_are_compared_byte_for_byte_but_for_loopback_ports() {
        for (registered, given, same) in [
            ("https://a.example/cb", "https://a.example/cb", true),
            ("https://a.example/cb", "https://a.example/cb/", false),
            ("https://a.example/cb", "https://a.example:443/cb", false),
            ("https://a.example/cb", "https://A.example/cb", false),
            ("http://127.0.0.1/cb", "http://127.0.0.1:51004/cb", true),
            ("http://127.0.0.1:1/cb", "http://127.0.0.1:51004/cb", true),
            ("http://[::1]/cb", "http://[::1]:9/cb", true),
            ("http://127.0.0.1/cb", "http://127.0.0.1:51004/cb2", false),
            ("http://127.0.0.1/cb", "http://127.0.0.1:x/cb", false),
            ("http://127.0.0.1/cb", "http://127.0.0.1.evil.example/cb", false),
            ("http://127.0.0.1/cb", "http://127.0.0.1@evil.example/cb", false),
            ("http://127.0.0.1/cb", "http://127.0.0.1:99999/cb", false),
            ("http://localhost/cb", "http://localhost:99/cb", false),
            ("com.example.app:/cb", "com.example.app:/cb", true),
            ("com.example.app:/cb", "com.example.app:/cb?x", false),
        ] {
            assert_eq!(same_redirect(registered, given), same, "{registered} {given}");
        }
    }
}
