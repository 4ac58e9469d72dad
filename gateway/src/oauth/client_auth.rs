//! Who calls the token endpoint (RFC 6749 §2.3, §3.2.1; SMART "client-confidential-symmetric").

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, StatusCode, header};
use percent_encoding::percent_decode_str;

use super::{
    fault::{Code, JsonFault},
    params::Params,
};
use crate::{
    config::{App, AppAuth, Config, SecretHash},
    secret::{Secret, TokenHash},
};

/// An app that has shown who it is. Only this module makes one.
#[derive(Clone)]
pub struct VerifiedApp(Arc<App>);

impl VerifiedApp {
    pub const fn app(&self) -> &Arc<App> {
        &self.0
    }
}

/// What a request shows of its client.
enum Shown {
    Basic { id: String, secret: Secret<String>, raw_id: String, raw_secret: Secret<String> },
    Post { id: String, secret: Secret<String> },
    Id(String),
    Nothing,
}

/// The client of a token request. None: a request that names no client, which only a public app's
/// refresh may be (fhirclient sends none; the token tells).
///
/// # Errors
/// `invalid_request` for two methods at once, `invalid_client` for the rest.
pub fn client(config: &Config, headers: &HeaderMap, form: &Params) -> Result<Option<VerifiedApp>, JsonFault> {
    let shown = shown(headers, form)?;
    let basic = matches!(shown, Shown::Basic { .. });
    let refuse = |why: &str| JsonFault { basic_challenge: basic, ..refused(why) };
    let find = |id: &str| config.apps.values().find(|app| app.id.as_str() == id).cloned();
    match shown {
        Shown::Nothing => Ok(None),
        Shown::Id(id) => {
            let app = find(&id).ok_or_else(|| refuse("`client_id` names no app that is registered here."))?;
            match app.auth {
                AppAuth::None => Ok(Some(VerifiedApp(app))),
                AppAuth::SecretBasic { .. } => {
                    Err(refuse("This app authenticates with HTTP Basic; no Authorization header came."))
                }
                AppAuth::SecretPost { .. } => {
                    Err(refuse("This app authenticates with `client_secret` in the form; none came."))
                }
                AppAuth::PrivateKeyJwt(_) => {
                    Err(refuse("This app authenticates with a `client_assertion`; none came."))
                }
            }
        }
        Shown::Basic { id, secret, raw_id, raw_secret } => {
            // The RFC encodes both parts as a form does; many clients do not. An id or secret of ours
            // reads the same either way, an app's own might not: both readings are tried.
            let app = find(&id)
                .or_else(|| find(&raw_id))
                .ok_or_else(|| refuse("The Authorization header names no app that is registered here."))?;
            let AppAuth::SecretBasic { secrets } = &app.auth else {
                return Err(refuse("This app does not authenticate with HTTP Basic."));
            };
            if form.get("client_id").is_some_and(|named| named != app.id.as_str()) {
                return Err(refuse("`client_id` and the Authorization header name different apps."));
            }
            if matches(secrets, &secret) | matches(secrets, &raw_secret) {
                Ok(Some(VerifiedApp(app)))
            } else {
                Err(refuse("The client secret is not the app's."))
            }
        }
        Shown::Post { id, secret } => {
            let app = find(&id).ok_or_else(|| refuse("`client_id` names no app that is registered here."))?;
            match &app.auth {
                AppAuth::SecretPost { secrets } if matches(secrets, &secret) => Ok(Some(VerifiedApp(app))),
                AppAuth::SecretPost { .. } => Err(refuse("The client secret is not the app's.")),
                _ => Err(refuse("This app does not authenticate with `client_secret` in the form.")),
            }
        }
    }
}

/// The public app that a refresh token belongs to, where the request named none.
///
/// # Errors
/// `invalid_client` for an app that holds a secret.
pub fn public_by_token(config: &Config, id: &mantel_adapters::site::AppId) -> Result<VerifiedApp, JsonFault> {
    match config.apps.get(id) {
        Some(app) if matches!(app.auth, AppAuth::None) => Ok(VerifiedApp(app.clone())),
        _ => Err(refused("The request shows no client; this app must authenticate.")),
    }
}

fn refused(why: &str) -> JsonFault {
    JsonFault { status: StatusCode::UNAUTHORIZED, ..JsonFault::new(Code::InvalidClient, why) }
}

/// Constant time for each hash; all are looked at.
fn matches(hashes: &[SecretHash], secret: &Secret<String>) -> bool {
    let given = TokenHash::of(secret.expose());
    hashes
        .iter()
        .fold(false, |found, hash| found | aws_lc_rs::constant_time::verify_slices_are_equal(&hash.0, &given.0).is_ok())
}

fn shown(headers: &HeaderMap, form: &Params) -> Result<Shown, JsonFault> {
    let header = headers.get(header::AUTHORIZATION);
    let methods = usize::from(header.is_some())
        + usize::from(form.get("client_secret").is_some())
        + usize::from(form.get("client_assertion").is_some());
    if methods > 1 {
        return Err(JsonFault::new(
            Code::InvalidRequest,
            "The client authenticates in more than one way at once; expected one (RFC 6749 §2.3).",
        ));
    }
    if let Some(value) = header {
        let basic = value
            .to_str()
            .ok()
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"));
        let decoded = basic
            .and_then(|(_, rest)| STANDARD.decode(rest.trim()).ok())
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let fault = || JsonFault {
            basic_challenge: true,
            ..refused("The Authorization header is no HTTP Basic of an id and a secret.")
        };
        let decoded = Secret::new(decoded.ok_or_else(fault)?);
        let (raw_id, raw_secret) = decoded.expose().split_once(':').ok_or_else(fault)?;
        return Ok(Shown::Basic {
            id: form_decoded(raw_id),
            secret: Secret::new(form_decoded(raw_secret)),
            raw_id: raw_id.to_owned(),
            raw_secret: raw_secret.into(),
        });
    }
    Ok(match (form.get("client_id"), form.get("client_secret")) {
        (Some(id), Some(secret)) => Shown::Post { id: id.to_owned(), secret: secret.into() },
        (None, Some(_)) => return Err(refused("`client_secret` came without `client_id`.")),
        (Some(id), None) => Shown::Id(id.to_owned()),
        (None, None) => Shown::Nothing,
    })
}

fn form_decoded(part: &str) -> String {
    let spaced = part.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8().map_or_else(|_| part.to_owned(), Into::into)
}
