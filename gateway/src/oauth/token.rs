//! The token endpoint (conformance A6–A8). The EHR is not asked here: its tokens are custody's, and an
//! app's refresh never fails for an EHR's passing trouble.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode};
use mantel_adapters::smart::{
    pkce::{CodeChallenge, CodeVerifier},
    scope::ScopeSet,
    translate::narrow,
};
use serde_json::{Map, Value, json};

use super::{
    Call, OAuth,
    client_auth::{self, VerifiedApp},
    fault::{self, Code, JsonFault},
    forward::sha256,
    params::Params,
};
use crate::{
    clock::Timestamp,
    config::{App, AppGrant, Base, Config, CustodyMode, Site},
    secret::TokenHash,
    session::{
        mint::{Minted, Order},
        signer::Identity,
    },
    store::{EndReason, Grant, GrantState, Redeemed, Rotated, sealing},
    telemetry::metrics::LaunchMark,
};

/// A lost answer may be asked for again for so long (`custody.md`, "Our own tokens").
const GRACE: Duration = Duration::from_secs(30);

pub(super) async fn token(oauth: &OAuth, call: &Call, base: &Base) -> Result<Response<Bytes>, JsonFault> {
    if !super::is_form(call.request.headers()) {
        return Err(JsonFault::new(Code::InvalidRequest, "The body must be application/x-www-form-urlencoded."));
    }
    let form = Params::parse(call.request.body())?;
    let client = client_auth::client(&call.config, call.request.headers(), &form)?;
    let grant_type =
        form.get("grant_type").ok_or_else(|| JsonFault::new(Code::InvalidRequest, "`grant_type` is missing."))?;
    let body = match grant_type {
        "authorization_code" => {
            let client = client.ok_or_else(|| {
                JsonFault::new(Code::InvalidClient, "The request shows no client: a public app sends `client_id`.")
            })?;
            by_code(oauth, call, &client, &form, base).await?
        }
        "refresh_token" => by_refresh(oauth, call, client, &form, base).await?,
        _ => {
            return Err(JsonFault::new(
                Code::UnsupportedGrantType,
                "`grant_type` must be `authorization_code` or `refresh_token`.",
            ));
        }
    };
    Ok(fault::json(StatusCode::OK, &Value::Object(body)))
}

fn invalid_grant(why: &str) -> JsonFault {
    JsonFault::new(Code::InvalidGrant, why)
}

/// Why a grant has ended, and what its user can do: the app shows it.
fn ended(reason: EndReason) -> JsonFault {
    invalid_grant(match reason {
        EndReason::Dead | EndReason::LostRotation | EndReason::Expired => {
            "The EHR's authorization has ended: the user must sign in again (from the EHR, if the app was opened there)."
        }
        EndReason::CodeReplay | EndReason::RefreshReplay => {
            "A code or refresh token of this authorization was used twice, so that it was ended: the user must sign in again."
        }
        EndReason::Superseded => "A newer authorization has taken this one's place.",
        EndReason::Revoked | EndReason::Logout | EndReason::Operator | EndReason::SessionEnded => {
            "This authorization was ended: the user must sign in again."
        }
    })
}

async fn by_code(
    oauth: &OAuth,
    call: &Call,
    client: &VerifiedApp,
    form: &Params,
    base: &Base,
) -> Result<Map<String, Value>, JsonFault> {
    let app = client.app();
    if !app.grants.contains(&AppGrant::AuthorizationCode) {
        return Err(JsonFault::new(
            Code::UnauthorizedClient,
            "The app is not registered for the authorization code grant.",
        ));
    }
    let missing = |name: &str| JsonFault::new(Code::InvalidRequest, format!("`{name}` is missing."));
    let hash = TokenHash::of(form.get("code").ok_or_else(|| missing("code"))?);
    let redirect_uri = form.get("redirect_uri").ok_or_else(|| missing("redirect_uri"))?;
    let unknown = || invalid_grant("The code is unknown or expired.");
    let code = oauth.store.code(hash, oauth.clock.now()).await?.ok_or_else(unknown)?;
    if code.app != app.id {
        return Err(unknown());
    }
    if code.redirect_uri != redirect_uri {
        return Err(invalid_grant("`redirect_uri` is not the one that the code was issued for."));
    }
    if code.base != *base && *base != Base::Uniform {
        return Err(invalid_grant(
            "The code was issued for another base; use the token endpoint of that base's smart-configuration.",
        ));
    }
    let met = form.get("code_verifier").and_then(|text| CodeVerifier::parse(text).ok()).is_some_and(|verifier| {
        CodeChallenge::parse(Some(&code.code_challenge), Some("S256"))
            .is_ok_and(|challenge| challenge.is_met_by(&verifier, sha256))
    });
    if !met {
        return Err(invalid_grant("`code_verifier` is missing or does not fit the challenge (RFC 7636 §4.6)."));
    }
    let grant = oauth.store.grant(code.grant).await?.ok_or_else(unknown)?;
    if let GrantState::Ended { reason, .. } = grant.state {
        return Err(ended(reason));
    }
    let site = still_served(&call.config, app, &grant)?;
    let minted = mint(oauth, app, &grant, &grant.facts.reported, &grant.facts.enforced)?;
    match oauth.store.redeem_code(hash, &minted.stored, oauth.clock.now()).await? {
        Redeemed::Now(grant) => {
            oauth.metrics.launch(Some(&site.vendor), LaunchMark::TokenGiven);
            answer(oauth, &call.config, &grant, &minted, &grant.facts.reported, Some(code.nonce.as_deref()))
        }
        Redeemed::Replayed(id) => {
            tracing::warn!(request = call.request_id, grant = %id, "a code was used twice: the grant was ended");
            oauth.forget(&grant, EndReason::CodeReplay, &site.vendor);
            Err(ended(EndReason::CodeReplay))
        }
        Redeemed::Ended(reason) => Err(ended(reason)),
        Redeemed::Unknown => Err(unknown()),
    }
}

async fn by_refresh(
    oauth: &OAuth,
    call: &Call,
    client: Option<VerifiedApp>,
    form: &Params,
    base: &Base,
) -> Result<Map<String, Value>, JsonFault> {
    let presented =
        form.get("refresh_token").ok_or_else(|| JsonFault::new(Code::InvalidRequest, "`refresh_token` is missing."))?;
    let hash = TokenHash::of(presented);
    let unknown = || invalid_grant("The refresh token is unknown or expired.");
    let found = oauth.store.refresh_token(hash, oauth.clock.now()).await?.ok_or_else(unknown)?;
    let client = match client {
        Some(client) => client,
        None => client_auth::public_by_token(&call.config, &found.grant.app)?,
    };
    let app = client.app();
    if found.grant.app != app.id {
        return Err(unknown());
    }
    if let Base::Site(site) = base
        && *site != found.grant.site
    {
        return Err(unknown());
    }
    let grant = &*found.grant;
    if let GrantState::Ended { reason, .. } = grant.state {
        return Err(ended(reason));
    }
    let site = still_served(&call.config, app, grant)?;
    let (reported, enforced) = match form.get("scope") {
        None => (grant.facts.reported.clone(), grant.facts.enforced.clone()),
        Some(scope) => {
            let whole = ScopeSet::parse(&grant.facts.enforced)
                .map_err(|_| JsonFault::internal("a grant's scopes cannot be read"))?;
            let narrowed = narrow(&grant.facts.reported, &whole, scope).map_err(|wider| {
                // A scope's query is a search: its values are nobody's to repeat.
                let (scope, query) =
                    wider.scope.split_once('?').map_or((&*wider.scope, ""), |(scope, _)| (scope, "?…"));
                let text = format!("`scope` asks for more than was granted: {scope}{query}.");
                JsonFault::new(Code::InvalidScope, text)
            })?;
            (narrowed.reported, narrowed.enforced.to_string())
        }
    };
    let mut minted = mint(oauth, app, grant, &reported, &enforced)?;
    // The end stays where it was: rotation does not prolong a login (RFC 9700 §4.14.2).
    let successor = match (&minted.refresh, &mut minted.stored.refresh) {
        (Some(token), Some(record)) => {
            record.expires = found.expires;
            sealing::seal_successor(presented, token.expose())
        }
        // The EHR's own is gone.
        _ => return Err(ended(EndReason::Expired)),
    };
    match oauth.store.rotate_app_token(hash, &minted.stored, &successor, GRACE, oauth.clock.now()).await? {
        Rotated::Now(grant) => answer(oauth, &call.config, &grant, &minted, &reported, None),
        Rotated::Again { grant, successor } => {
            let same = sealing::open_successor(presented, &successor).ok_or_else(unknown)?;
            minted.refresh = Some(same);
            answer(oauth, &call.config, &grant, &minted, &reported, None)
        }
        Rotated::Replayed(id) => {
            tracing::warn!(request = call.request_id, grant = %id, "a refresh token was used twice: the grant was ended");
            oauth.forget(grant, EndReason::RefreshReplay, &site.vendor);
            Err(ended(EndReason::RefreshReplay))
        }
        Rotated::Ended(reason) => Err(ended(reason)),
        Rotated::Unknown => Err(unknown()),
    }
}

/// The site of a grant that the configuration still serves. Where it does not, the FHIR road answers 401:
/// a new token would only lead there again. The grant itself lives, since an operator may have slipped.
fn still_served<'a>(config: &'a Config, app: &App, grant: &Grant) -> Result<&'a Arc<Site>, JsonFault> {
    let listed = |site: &&Arc<Site>| {
        let registration = config.registrations.get(&grant.registration);
        config.permits(app, site) && registration.is_some_and(|it| it.client_of(&grant.fingerprint).is_some())
    };
    config.sites.get(&grant.site).filter(listed).ok_or_else(|| {
        invalid_grant(
            "This EHR, or the app's registration there, is not configured here any more: the user must sign in again.",
        )
    })
}

/// When custody ends a grant however much it is used.
fn session_end(app: &App, grant: &Grant) -> Option<Timestamp> {
    let online = grant.facts.reported.split(' ').any(|word| word == "online_access");
    let session = online || (grant.facts.session && app.custody == CustodyMode::Session);
    session.then(|| grant.created.after(app.session_max))
}

/// New tokens for a grant: never longer than we can honour them (`custody.md`, "What the app sees").
fn mint(oauth: &OAuth, app: &App, grant: &Grant, reported: &str, enforced: &str) -> Result<Minted, JsonFault> {
    let mut lifetime = app.access_lifetime;
    let upstream = (grant.tokens.refresh.is_none())
        .then(|| (grant.tokens.received.after(grant.tokens.lifetime), EndReason::Expired));
    let session = session_end(app, grant).map(|end| (end, EndReason::SessionEnded));
    for (end, reason) in upstream.into_iter().chain(session) {
        lifetime = lifetime.min(oauth.clock.now().until(end));
        if lifetime < Duration::from_secs(1) {
            return Err(ended(reason));
        }
    }
    let told_refresh = grant.facts.reported.split(' ').any(|word| matches!(word, "offline_access" | "online_access"));
    let refreshable = told_refresh && grant.tokens.refresh.is_some();
    Ok(oauth.mint.tokens(&Order {
        grant: grant.id,
        reported,
        enforced,
        access_lifetime: lifetime,
        refresh_lifetime: refreshable.then_some(app.refresh_lifetime),
    }))
}

/// The token answer: the launch context comes each time (E4, E23). `nonce`: this is the first answer.
fn answer(
    oauth: &OAuth,
    config: &Config,
    grant: &Grant,
    minted: &Minted,
    reported: &str,
    nonce: Option<Option<&str>>,
) -> Result<Map<String, Value>, JsonFault> {
    let facts = &grant.facts;
    let site_base = config.urls().fhir(&Base::Site(grant.site.clone()));
    let mut body = Map::new();
    body.insert("access_token".into(), minted.access.expose().as_str().into());
    body.insert("token_type".into(), "Bearer".into());
    body.insert("expires_in".into(), minted.expires_in.as_secs().into());
    body.insert("scope".into(), reported.into());
    if let Some(refresh) = &minted.refresh {
        body.insert("refresh_token".into(), refresh.expose().as_str().into());
    }
    match serde_json::to_value(&facts.context) {
        Ok(Value::Object(context)) => body.extend(context),
        _ => return Err(JsonFault::internal("a launch context cannot be written")),
    }
    let has = |word: &str| reported.split(' ').any(|told| told == word);
    if let (Some(nonce), Some(sub)) = (nonce, &facts.sub)
        && has("openid")
    {
        let fhir_user =
            facts.fhir_user.as_deref().filter(|_| has("fhirUser")).map(|user| format!("{site_base}/{user}"));
        let identity = Identity { subject: sub, audience: grant.app.as_str(), nonce, fhir_user: fhir_user.as_deref() };
        let id_token = oauth.signer.id_token(config.urls().issuer(), &identity).map_err(JsonFault::internal)?;
        body.insert("id_token".into(), id_token.into());
    }
    body.insert("__site".into(), grant.site.as_str().into());
    body.insert("__fhir_base".into(), site_base.into());
    if !facts.refused.is_empty() {
        body.insert("__scopes_refused".into(), json!(facts.refused));
    }
    Ok(body)
}
