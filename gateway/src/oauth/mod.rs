//! The authorization server: SMART App Launch 2.2 towards apps.
//!
//! ```text
//! app ── authorize ──► Launch (stored, bound to the browser by a cookie)
//!          continue ──► organization page, if several fit ──► EHR's authorization endpoint
//! EHR ── callback ──► code exchanged, id_token checked, scopes reported ──► Grant ──► app, with our code
//! app ── token ─────► our tokens and the launch context
//! EHR ── launch/{app} ► app's launch URL, with our base as `iss` and a `launch` of ours
//! ```

mod authorize;
mod callback;
mod client_auth;
mod cookies;
mod documents;
mod entry;
mod fault;
mod forward;
mod pages;
mod params;
mod redirect;
mod token;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use mantel_adapters::site::{KeySetId, SiteId, VendorId};

use self::fault::{Code, JsonFault, PageFault};
use crate::{
    clock::SharedClock,
    config::{Base, Config},
    custody::Custody,
    entropy::SharedEntropy,
    session::{Bearers, Mint, Signer},
    store::{EndReason, Grant, SharedStore},
    telemetry::Metrics,
    upstream::{Ehrs, keys},
};

/// One request to the authorization server or its pages.
pub struct Call {
    /// The snapshot that serves it whole.
    pub config: Arc<Config>,
    pub request: Request<Bytes>,
    pub request_id: String,
}

/// The authorization server, and what it stands on.
pub struct OAuth {
    pub store: SharedStore,
    pub clock: SharedClock,
    pub entropy: SharedEntropy,
    pub mint: Mint,
    pub signer: Arc<Signer>,
    pub bearers: Arc<Bearers>,
    pub custody: Custody,
    pub ehrs: Arc<Ehrs>,
    pub metrics: Arc<Metrics>,
}

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Route<'a> {
    SmartConfiguration(Base),
    OpenIdConfiguration,
    Jwks,
    Keys(&'a str),
    StyleDocument,
    StyleSheet,
    Authorize(Base),
    Token(Base),
    Continue(&'a str),
    Again(&'a str),
    Callback { registration: &'a str, site: Option<&'a str> },
    Launch { app: &'a str, site: Option<&'a str> },
    Unknown,
}

impl Route<'_> {
    const fn name(&self) -> &'static str {
        match self {
            Self::SmartConfiguration(_) => "smart-configuration",
            Self::OpenIdConfiguration => "openid-configuration",
            Self::Jwks => "jwks",
            Self::Keys(_) => "keys",
            Self::StyleDocument | Self::StyleSheet => "style",
            Self::Authorize(_) => "authorize",
            Self::Token(_) => "token",
            Self::Continue(_) => "continue",
            Self::Again(_) => "again",
            Self::Callback { .. } => "callback",
            Self::Launch { .. } => "launch",
            Self::Unknown => "unknown",
        }
    }
}

fn route(path: &str) -> Route<'_> {
    let segments: Vec<_> = path.split('/').skip(1).collect();
    let site = |text: &str| text.parse::<SiteId>().map(Base::Site);
    match segments.as_slice() {
        ["fhir", "r4", ".well-known", "smart-configuration"] => Route::SmartConfiguration(Base::Uniform),
        ["sites", id, "fhir", "r4", ".well-known", "smart-configuration"] => {
            site(id).map_or(Route::Unknown, Route::SmartConfiguration)
        }
        [".well-known", "openid-configuration"] => Route::OpenIdConfiguration,
        ["oauth", "jwks"] => Route::Jwks,
        ["oauth", "authorize"] => Route::Authorize(Base::Uniform),
        ["sites", id, "oauth", "authorize"] => site(id).map_or(Route::Unknown, Route::Authorize),
        ["oauth", "token"] => Route::Token(Base::Uniform),
        ["sites", id, "oauth", "token"] => site(id).map_or(Route::Unknown, Route::Token),
        ["oauth", "continue", launch] => Route::Continue(launch),
        ["oauth", "again", launch] => Route::Again(launch),
        ["oauth", "callback", registration] => Route::Callback { registration, site: None },
        ["oauth", "callback", registration, site] => Route::Callback { registration, site: Some(site) },
        ["launch", app] => Route::Launch { app, site: None },
        ["launch", app, site] => Route::Launch { app, site: Some(site) },
        ["keys", file] => file.strip_suffix(".json").map_or(Route::Unknown, Route::Keys),
        ["style", "v1.json"] => Route::StyleDocument,
        ["style", "page.css"] => Route::StyleSheet,
        _ => Route::Unknown,
    }
}

/// Whether a GET of this path changes nothing, so that a HEAD may be played as one: a scanner's HEAD
/// must not use up a callback's `state` or an EHR's `launch`.
pub fn only_reads(path: &str) -> bool {
    match route(path) {
        Route::Authorize(_)
        | Route::Token(_)
        | Route::Continue(_)
        | Route::Again(_)
        | Route::Callback { .. }
        | Route::Launch { .. } => false,
        Route::SmartConfiguration(_)
        | Route::OpenIdConfiguration
        | Route::Jwks
        | Route::Keys(_)
        | Route::StyleDocument
        | Route::StyleSheet
        | Route::Unknown => true,
    }
}

/// The name of the endpoint that serves a path: for metrics and logs.
pub fn endpoint(path: &str) -> &'static str {
    route(path).name()
}

impl OAuth {
    /// Serves one request.
    pub async fn serve(&self, call: Call) -> Response<Bytes> {
        let path = call.request.uri().path().to_owned();
        let route = route(&path);
        let get = call.request.method() == Method::GET;
        let post = call.request.method() == Method::POST;
        let id = &call.request_id;
        let site_known = |base: &Base| match base {
            Base::Uniform => true,
            Base::Site(site) => call.config.sites.contains_key(site),
        };
        match route {
            Route::SmartConfiguration(base) if get && site_known(&base) => {
                documents::public(&documents::smart_configuration(&call.config, &base), 300)
            }
            Route::OpenIdConfiguration if get => documents::public(&documents::openid_configuration(&call.config), 300),
            Route::Jwks if get => documents::key_set(&self.signer.jwks()),
            Route::Keys(name) if get => match name.parse::<KeySetId>().ok().and_then(|id| call.config.keys.get(&id)) {
                Some(set) => match keys::public_set(set) {
                    Ok(set) => documents::key_set(&set),
                    Err(error) => JsonFault::internal(error).into_response(id),
                },
                None => not_found(id),
            },
            Route::StyleDocument if get => documents::style_document(),
            Route::StyleSheet if get => documents::style_sheet(),
            Route::Authorize(base) if (get || post) && site_known(&base) => {
                let ancestors = frame_origins(&call.config, &base);
                finish(authorize::authorize(self, &call, base).await, id, &ancestors)
            }
            Route::Token(base) if post && site_known(&base) => match token::token(self, &call, &base).await {
                Ok(response) => response,
                Err(fault) => fault.into_response(id),
            },
            Route::Token(base) => {
                let text = "The token endpoint takes POST, at a base that is configured.";
                let status = if site_known(&base) { StatusCode::METHOD_NOT_ALLOWED } else { StatusCode::NOT_FOUND };
                let mut response = JsonFault { status, ..JsonFault::new(Code::InvalidRequest, text) }.into_response(id);
                if status == StatusCode::METHOD_NOT_ALLOWED {
                    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
                }
                response
            }
            Route::Continue(launch) if get => {
                let ancestors = self.launch_ancestors(&call.config, launch).await;
                finish(forward::go_on(self, &call, launch).await, id, &ancestors)
            }
            Route::Again(launch) if get => finish(forward::again(self, &call, launch).await, id, &[]),
            Route::Callback { registration, site } if get => {
                finish(callback::callback(self, &call, registration, site).await, id, &[])
            }
            Route::Launch { app, site } if get => {
                let ancestors = entry::frame_origins(&call);
                finish(entry::launch(self, &call, app, site).await, id, &ancestors)
            }
            _ => not_found(id),
        }
    }

    /// Pages of a launch may be framed by its site's EHR, which is known once the site is.
    async fn launch_ancestors(&self, config: &Config, launch: &str) -> Vec<String> {
        let Ok(id) = launch.parse() else { return Vec::new() };
        match self.store.launch(crate::store::LaunchId(id), self.clock.now()).await {
            Ok(Some(launch)) => match (&launch.ehr_launch, &launch.base) {
                (Some((site, _)), _) => frame_origins(config, &Base::Site(site.clone())),
                (None, base) => frame_origins(config, base),
            },
            _ => Vec::new(),
        }
    }

    /// Drops a grant that the store has ended from this process's memory.
    fn forget(&self, grant: &Grant, reason: EndReason, vendor: &VendorId) {
        self.bearers.evict(grant.id);
        self.custody.forget(grant.id);
        self.metrics.grant_ended(vendor, reason.text());
    }
}

fn frame_origins(config: &Config, base: &Base) -> Vec<String> {
    match base {
        Base::Uniform => Vec::new(),
        Base::Site(site) => config.sites.get(site).map(|site| site.frame_origins.clone()).unwrap_or_default(),
    }
}

fn finish(result: Result<Response<Bytes>, PageFault>, id: &str, frame_ancestors: &[String]) -> Response<Bytes> {
    result.unwrap_or_else(|fault| fault.into_response(id, frame_ancestors))
}

fn not_found(id: &str) -> Response<Bytes> {
    PageFault::new(
        StatusCode::NOT_FOUND,
        "There is nothing here",
        "This address, with this method, is none of the gateway's.",
    )
    .into_response(id, &[])
}

/// Whether the body is a form (parameters of the media type do not matter).
fn is_form(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|media| media.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded"))
}
