//! Where an EHR returns a browser to: its code becomes a grant, and the browser goes back to the app
//! with a code of ours (conformance B4–B6).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode, header};
use mantel_adapters::{
    profile::{Meaning, Pkce, Place},
    site::RegistrationId,
    smart::{
        claims::{self, FhirUser, IdTokenClaims},
        error::told_app,
        scope::{Asked, ScopeSet},
        token::{TokenAnswer, meaning},
        translate::{AnswerFacts, Granted, report},
    },
};

use super::{
    Call, OAuth,
    authorize::ReturnTo,
    cookies,
    fault::{Code, PageFault},
    forward::{app_of, return_to},
    frame_origins,
    params::Params,
    redirect,
};
use crate::{
    config::{App, Base, CustodyMode, Registration, Site},
    entropy,
    secret::{Secret, TokenHash},
    session::mint::CODE_LIFETIME,
    store::{self, EhrHalf, EhrTokens, EndReason, Grant, GrantFacts, GrantId, GrantState, Launch, RefreshEnd},
    telemetry::metrics::LaunchMark,
    upstream::{CodeGrant, TokenOutcome},
};

pub(super) async fn callback(
    oauth: &OAuth,
    call: &Call,
    registration: &str,
    site: Option<&str>,
) -> Result<Response<Bytes>, PageFault> {
    let query = call.request.uri().query().unwrap_or_default();
    let (params, fault) = Params::parse_with_faults(query.as_bytes());
    // The state before anything else (BCP §4.7): without it nobody here began this.
    let launch = match params.get("state") {
        Some(state) => oauth.store.return_launch(TokenHash::of(state), oauth.clock.now()).await?,
        None => None,
    };
    let Some((launch, ehr)) = launch.and_then(|launch| launch.ehr.clone().map(|ehr| (launch, ehr))) else {
        return Err(PageFault::new(
            StatusCode::BAD_REQUEST,
            "This sign-in is not known here",
            "The EHR sent you back without the `state` of a sign-in that is in work here: it was used before, is older than 15 minutes, or was begun elsewhere. Please go back to the app and start again.",
        ));
    };
    // Path and state must agree before the code is used: mix-up (RFC 9700 §4.4).
    let agrees = registration.parse::<RegistrationId>().is_ok_and(|id| id == ehr.registration)
        && site.is_none_or(|site| site == ehr.site.as_str());
    if !agrees {
        return Err(PageFault::new(
            StatusCode::BAD_REQUEST,
            "This answer came to the wrong address",
            "The EHR's answer belongs to a sign-in at another EHR. It was not used. Please go back to the app and start again.",
        )
        .because(format!("mix-up: launch {} returned at another registration's path", launch.id)));
    }
    let ancestors = frame_origins(&call.config, &Base::Site(ehr.site.clone()));
    if !cookies::holds(call.request.headers(), &launch) {
        let fault = PageFault::new(
            StatusCode::BAD_REQUEST,
            "This sign-in was begun in another browser",
            "Your browser does not hold the cookie that this sign-in was bound to, so it cannot be finished here. Please go back to the app and start again.",
        )
        .because(format!("launch {} returned in a browser without its cookie", launch.id));
        return Ok(fault.into_response(&call.request_id, &ancestors));
    }
    let mut response = match returned(oauth, call, &launch, &ehr, &params, fault.is_some()).await {
        Ok(response) => response,
        Err(refusal) => {
            oauth.metrics.launch(None, LaunchMark::Refused);
            refusal.into_response(&call.request_id, &return_to(&call.config, &launch), &ancestors)
        }
    };
    if let Some(cookie) = cookies::release(launch.id) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

/// Why no grant was made.
enum Refusal {
    /// The app is told at once.
    Redirect(Code, String),
    /// The user is told first, and leads the app's error back by a link.
    Page { code: Code, title: &'static str, explanation: String },
}

impl Refusal {
    /// `frame_ancestors`: who may show the page; an EHR's launch lives in its frame.
    fn into_response(self, request_id: &str, back: &ReturnTo<'_>, frame_ancestors: &[String]) -> Response<Bytes> {
        match self {
            Self::Redirect(code, description) => back.error(code, &description),
            Self::Page { code, title, explanation } => {
                let url = back.error_url(code, &explanation);
                PageFault {
                    way_on: Some(("Back to the app", url)),
                    ..PageFault::new(StatusCode::OK, title, explanation)
                }
                .into_response(request_id, frame_ancestors)
            }
        }
    }
}

impl From<store::StoreError> for Refusal {
    fn from(error: store::StoreError) -> Self {
        tracing::error!(%error, "a launch could not be stored");
        Self::Redirect(Code::TemporarilyUnavailable, "The gateway cannot store the authorization at present.".into())
    }
}

async fn returned(
    oauth: &OAuth,
    call: &Call,
    launch: &Launch,
    ehr: &EhrHalf,
    params: &Params,
    faulty: bool,
) -> Result<Response<Bytes>, Refusal> {
    let ours = |why: &str| Refusal::Redirect(Code::ServerError, why.to_owned());
    let app = app_of(&call.config, launch).map_err(|_| ours("The app is not registered any more."))?;
    let site = call.config.sites.get(&ehr.site).ok_or_else(|| ours("The EHR is not configured any more."))?;
    let registration = call
        .config
        .registrations
        .get(&ehr.registration)
        .ok_or_else(|| ours("The app's registration at the EHR is gone."))?;
    oauth.metrics.launch(Some(&site.vendor), LaunchMark::Returned);
    let refuse = |code: Code, why: &str| Refusal::Redirect(code, why.to_owned());

    let found = oauth.ehrs.endpoints(site, &registration.client_id).await.map_err(|error| {
        tracing::warn!(request = call.request_id, site = %site.id, %error, "a launch came back and the EHR's endpoints are unknown");
        refuse(Code::TemporarilyUnavailable, "The EHR's token endpoint cannot be found at present.")
    })?;
    // RFC 9207: who answers, where it says so or has announced to.
    match (params.get("iss"), &found.endpoints.issuer) {
        (Some(iss), Some(issuer)) if iss != issuer => {
            return Err(refuse(Code::ServerError, "The answer came from another authorization server than was asked."));
        }
        (None, _) if found.endpoints.iss_parameter => {
            return Err(refuse(Code::ServerError, "The EHR announces `iss` and did not send it."));
        }
        _ => {}
    }
    if let Some(error) = params.get("error") {
        let told = told_app(&site.profile, error, params.get("error_description"), params.get("error_uri"));
        tracing::warn!(
            request = call.request_id, site = %site.id, registration = %registration.id, error = short(error), alarm = told.alarm,
            "the EHR refused an authorization"
        );
        return Err(refuse(told.code, told.description));
    }
    let code = match (params.get("code"), faulty) {
        (Some(code), false) => Secret::from(code),
        _ => return Err(refuse(Code::ServerError, "The EHR's answer holds neither a code nor an error.")),
    };
    let answer = exchange(oauth, call, site, registration, ehr, &code).await?;
    let answered = oauth.clock.now();
    let claims = identity(oauth, call, site, registration, ehr, &answer).await?;
    let grant = judged(oauth, call, launch, ehr, app, site, registration, &answer, claims.as_ref(), answered).await?;
    let (code, hash) = oauth.mint.once();
    let record = store::Code {
        grant: grant.id,
        app: app.id.clone(),
        base: launch.base.clone(),
        redirect_uri: launch.request.redirect_uri.clone(),
        code_challenge: launch.request.code_challenge.clone(),
        nonce: launch.request.nonce.clone(),
        expires: oauth.clock.now().after(CODE_LIFETIME),
        redeemed: false,
    };
    let (counter, _) = oauth.store.ended_since(i64::MAX).await?;
    oauth.store.create_grant(&grant, hash, &record, launch.id).await?;
    oauth.custody.adopt(&grant);
    drop_superseded(oauth, call, counter, site).await;
    tracing::info!(request = call.request_id, app = %app.id, site = %site.id, launch = %launch.id, grant = %grant.id, "a grant was made");
    Ok(redirect::to(&return_to(&call.config, launch).code_url(code.expose())))
}

/// The grants that this one took the place of end in the store; their sessions must not live on in
/// memory (`guard.md`, "Scope of a token": its old tokens die).
async fn drop_superseded(oauth: &OAuth, call: &Call, counter: i64, site: &Site) {
    let ended = match oauth.store.ended_since(counter).await {
        Ok((_, ended)) => ended,
        Err(error) => {
            tracing::error!(request = call.request_id, %error, "superseded grants may be served until their tokens expire");
            return;
        }
    };
    for id in ended {
        // Without a look at the reason too: what has ended is served by nobody.
        oauth.bearers.evict(id);
        oauth.custody.forget(id);
        if let Ok(Some(Grant { state: GrantState::Ended { reason: EndReason::Superseded, .. }, .. })) =
            oauth.store.grant(id).await
        {
            oauth.metrics.grant_ended(&site.vendor, EndReason::Superseded.text());
        }
    }
}

async fn exchange(
    oauth: &OAuth,
    call: &Call,
    site: &Arc<Site>,
    registration: &Registration,
    ehr: &EhrHalf,
    code: &Secret<String>,
) -> Result<TokenAnswer, Refusal> {
    // Without a challenge before it a verifier must be refused (RFC 9700 §4.8.2).
    let verifier = (site.profile.pkce == Pkce::S256).then_some(&ehr.code_verifier);
    let grant = CodeGrant { code, redirect_uri: &ehr.redirect_uri, verifier };
    match oauth.ehrs.exchange_code(site, registration, grant).await {
        TokenOutcome::Answer(mut answer) => {
            site.adapter.normalise_token(&mut answer);
            Ok(*answer)
        }
        TokenOutcome::Refused(refusal) => {
            let (meaning, rule) = meaning(&site.profile, Place::Code, &refusal.error);
            tracing::warn!(
                request = call.request_id, site = %site.id, registration = %registration.id, status = refusal.error.status,
                error = refusal.error.error.as_deref().map(short), rule, ?meaning,
                "the EHR refused to exchange its code"
            );
            Err(match meaning {
                Meaning::Passing => {
                    Refusal::Redirect(Code::TemporarilyUnavailable, "The EHR's token endpoint fails at present.".into())
                }
                Meaning::Misconfigured | Meaning::Dead | Meaning::Suspended => {
                    Refusal::Redirect(Code::ServerError, "The EHR did not exchange its code for a token.".into())
                }
            })
        }
        TokenOutcome::NotSent(reason) => {
            tracing::warn!(request = call.request_id, site = %site.id, %reason, "the EHR's token endpoint was not reached");
            Err(Refusal::Redirect(
                Code::TemporarilyUnavailable,
                "The EHR's token endpoint cannot be reached at present.".into(),
            ))
        }
        TokenOutcome::Unknown(reason) => {
            tracing::warn!(request = call.request_id, site = %site.id, reason, "the EHR's token endpoint gave no usable answer");
            Err(Refusal::Redirect(
                Code::TemporarilyUnavailable,
                "The EHR's token endpoint gave no usable answer.".into(),
            ))
        }
    }
}

/// The EHR's id_token, believed only as the profile pins it.
async fn identity(
    oauth: &OAuth,
    call: &Call,
    site: &Arc<Site>,
    registration: &Registration,
    ehr: &EhrHalf,
    answer: &TokenAnswer,
) -> Result<Option<IdTokenClaims>, Refusal> {
    let Some(token) = &answer.id_token else { return Ok(None) };
    match oauth.ehrs.identity(site, &registration.client_id, token, ehr.nonce.as_deref()).await {
        Ok(claims) => Ok(Some(claims)),
        Err(error) => {
            tracing::warn!(request = call.request_id, site = %site.id, %error, "the EHR's id_token is not believed");
            Err(Refusal::Redirect(Code::ServerError, "The EHR's id_token could not be verified.".into()))
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "the launch's two halves, what the EHR said, and when")]
async fn judged(
    oauth: &OAuth,
    call: &Call,
    launch: &Launch,
    ehr: &EhrHalf,
    app: &App,
    site: &Arc<Site>,
    registration: &Registration,
    answer: &TokenAnswer,
    claims: Option<&IdTokenClaims>,
    answered: crate::clock::Timestamp,
) -> Result<Grant, Refusal> {
    let asked = Asked::parse(&launch.request.scope);
    let mut context = answer.context.clone();
    context.patient = claims::patient(answer, claims, &site.profile.patient_from, &site.fhir_base);
    // The practice at athena is ours to know; `tenant` for the app is what the EHR said.
    let tenant = context.tenant.clone().or_else(|| site.tenant.clone());
    let ehr_launch = launch.ehr_launch.is_some();
    if ehr_launch {
        // Advertised, so always answered (conformance A3).
        context.need_patient_banner.get_or_insert(true);
        context.smart_style_url.get_or_insert_with(|| call.config.urls().style());
    }
    let fhir_user = claims
        .and_then(|claims| claims.fhir_user.as_deref())
        .and_then(|text| FhirUser::parse(text, &site.fhir_base))
        .filter(|user| user.here)
        .map(|user| format!("{}/{}", user.resource_type, user.id));
    let facts = AnswerFacts {
        has_refresh_token: answer.refresh_token.is_some(),
        has_id_token: claims.is_some(),
        has_fhir_user: fhir_user.is_some(),
        ..AnswerFacts::from_context(&context)
    };
    let granted = report(&asked, &ehr.asked, answer.scope.as_deref(), &facts);
    refusals(app, site, &asked, &granted)?;

    let sub = match claims {
        None => None,
        Some(claims) => {
            let candidate = entropy::uuid4(&*oauth.entropy).to_string();
            // An issuer and a subject: Oracle has several identity providers behind one site.
            Some(oauth.store.subject(&site.id, &format!("{} {}", claims.iss, claims.sub), &candidate).await?)
        }
    };
    let told_refresh = granted.reported.split(' ').any(|word| matches!(word, "offline_access" | "online_access"));
    let session = app.custody == CustodyMode::Session && !told_refresh;
    Ok(Grant {
        id: GrantId(entropy::uuid7(&*oauth.entropy, oauth.clock.now())),
        app: app.id.clone(),
        site: site.id.clone(),
        registration: registration.id.clone(),
        fingerprint: registration.fingerprint(),
        created: oauth.clock.now(),
        state: GrantState::Live,
        generation: 1,
        facts: GrantFacts {
            asked: launch.request.scope.clone(),
            reported: granted.reported,
            enforced: granted.enforced.to_string(),
            upstream: granted.upstream.map(|upstream| upstream.to_string()),
            refused: granted.refused.iter().filter_map(|refused| serde_json::to_value(refused).ok()).collect(),
            context,
            tenant,
            fhir_user,
            sub,
            ehr_launch,
            session,
            unknown: serde_json::Map::new(),
        },
        tokens: EhrTokens {
            access: Secret::new(answer.access_token.clone()),
            // Kept only if the app asked for it, or the operator wants it for custody (`custody.md`).
            refresh: answer.refresh_token.clone().filter(|_| told_refresh || session).map(Secret::new),
            received: answered,
            lifetime: answer.expires_in.map_or(site.profile.tokens.assume_lifetime, Duration::from_secs),
            refresh_end: answer.refresh_expires_in.map(Duration::from_secs).map(RefreshEnd::said),
            scope: answer.scope.clone(),
            id_token: answer.id_token.clone().map(Secret::new),
        },
    })
}

fn refusals(app: &App, site: &Site, asked: &Asked, granted: &Granted) -> Result<(), Refusal> {
    if granted.needs_patient {
        return Err(Refusal::Page {
            code: Code::AccessDenied,
            title: "No patient was chosen",
            explanation: format!(
                "{} asks for one patient's records, and {} named no patient. Please open {} from the patient's chart in the EHR.",
                app.name, site.name, app.name
            ),
        });
    }
    let missing: Vec<_> =
        app.required_scopes.iter().map(String::as_str).filter(|scope| !is_granted(scope, granted)).collect();
    if !missing.is_empty() {
        return Err(Refusal::Page {
            code: Code::InvalidScope,
            title: "The app would not work with this account",
            explanation: format!(
                "{} needs permissions that {} did not give: {}. They may be switched off in the hospital's record of the app, or your account may lack them.",
                app.name,
                site.name,
                missing.join(", ")
            ),
        });
    }
    if granted.reported.is_empty() {
        return Err(Refusal::Redirect(Code::AccessDenied, "The EHR granted none of the scopes asked for.".into()));
    }
    if granted.lost_all_data(asked) {
        return Err(Refusal::Page {
            code: Code::AccessDenied,
            title: "The EHR gives the app no data",
            explanation: format!(
                "{} signed you in, but granted {} none of the data it asked for. Most often the app's record at the EHR lacks these scopes, or was made for the other version of SMART scopes.",
                site.name, app.name
            ),
        });
    }
    Ok(())
}

/// By meaning and not by spelling: an app that requires `patient/Patient.rs` may have asked in v1.
fn is_granted(required: &str, granted: &Granted) -> bool {
    granted.reported.split(' ').any(|told| told == required)
        || ScopeSet::parse(required).is_ok_and(|required| granted.enforced.covers(&required))
}

/// An EHR's error code for the log: short, of the characters that codes have.
fn short(code: &str) -> &str {
    let end =
        code.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))).unwrap_or(code.len()).min(40);
    code.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use mantel_adapters::smart::{scope::ScopeSet, translate::Granted};

    use super::is_granted;

    #[test]
    fn required_scopes_are_met_by_what_they_mean() {
        let granted = Granted {
            reported: "openid patient/Patient.read patient/Observation.rs".into(),
            enforced: ScopeSet::parse("openid patient/Patient.rs patient/Observation.rs").unwrap(),
            upstream: None,
            refused: Vec::new(),
            needs_patient: false,
        };
        for (required, met) in [
            ("patient/Patient.read", true),
            ("patient/Patient.rs", true),
            ("patient/Observation.r", true),
            ("openid", true),
            ("patient/Observation.cruds", false),
            ("user/Patient.rs", false),
            ("fhirUser", false),
        ] {
            assert_eq!(is_granted(required, &granted), met, "{required}");
        }
    }
}
