//! Who calls the token endpoint: authentication as the record says, and in no other way.

use std::sync::PoisonError;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use percent_encoding::percent_decode_str;
use serde_json::Value;

use crate::ehr::{
    auth::{
        AuthServer,
        client::{Client, ClientAuth, ClientKeys},
        places::Profile,
        refusal::Refusal,
    },
    contract::Vendor,
    jwt::{Unverified, kind_of},
    web::{Call, Form},
};

const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

impl AuthServer {
    /// The app, authenticated; with it the id that was claimed if it is not.
    pub async fn authenticate(
        &self,
        call: &Call,
        form: &Form,
        profile: Profile,
    ) -> Result<Client, (Refusal, Option<String>)> {
        let basic = call.header(http::header::AUTHORIZATION).filter(|value| value.starts_with("Basic "));
        let (secret, assertion) = (form.get("client_secret"), form.get("client_assertion"));
        if [basic.is_some(), secret.is_some(), assertion.is_some()].iter().filter(|sent| **sent).count() > 1 {
            return Err((Refusal::InvalidRequest("two ways of authentication at once"), None));
        }
        let claimed = match (basic, assertion) {
            (Some(value), _) => basic_id(value),
            (None, Some(jwt)) => Unverified::parse(jwt).ok().and_then(|jwt| jwt.text_claim("sub").map(str::to_owned)),
            (None, None) => form.get("client_id").map(str::to_owned),
        };
        let claimed = claimed.or_else(|| form.get("client_id").map(str::to_owned));
        let refuse = |why: &str| (Refusal::InvalidClient(why.to_owned()), claimed.clone());
        let client = claimed.as_ref().and_then(|id| self.state().clients.get(id).cloned());
        let client = client.ok_or_else(|| refuse("unknown client_id"))?;
        if form.get("client_id").is_some_and(|id| id != client.client_id) {
            return Err(refuse("client_id in the body is another"));
        }
        if client.overridden != (profile == Profile::Override) && self.rules.vendor == Vendor::Epic {
            return Err(refuse("not this client's token endpoint"));
        }
        match &client.auth {
            ClientAuth::None if basic.is_some() || secret.is_some() || assertion.is_some() => {
                return Err(refuse("a public client has nothing to authenticate with"));
            }
            ClientAuth::None => {}
            ClientAuth::ClientSecretBasic { secret: known } => {
                let value = basic.ok_or_else(|| refuse("registered for client_secret_basic; none was sent"))?;
                if self.rules.vendor == Vendor::Epic && form.get("client_id").is_some() {
                    let refusal = Refusal::InvalidRequest("client_id in the body beside Basic");
                    return Err((refusal, claimed.clone()));
                }
                let encoded_only = self.rules.vendor == Vendor::Epic;
                if !basic_matches(value, &client.client_id, known, encoded_only) {
                    return Err(refuse("Basic: wrong, or its parts are not form-encoded"));
                }
            }
            ClientAuth::ClientSecretPost { secret: known } => {
                if secret != Some(known.as_str()) || form.get("client_id").is_none() {
                    return Err(refuse("registered for client_secret_post; client_id or client_secret is wrong"));
                }
            }
            ClientAuth::PrivateKeyJwt { keys } => {
                let jwt = assertion.ok_or_else(|| refuse("registered for private_key_jwt; no assertion was sent"))?;
                if form.get("client_assertion_type") != Some(JWT_BEARER) {
                    return Err(refuse("client_assertion_type is not jwt-bearer"));
                }
                self.check_assertion(call, &client, keys, jwt, profile).await.map_err(|why| refuse(&why))?;
            }
        }
        Ok(client)
    }

    async fn check_assertion(
        &self,
        call: &Call,
        client: &Client,
        keys: &ClientKeys,
        compact: &str,
        profile: Profile,
    ) -> Result<(), String> {
        let jwt = Unverified::parse(compact).map_err(|fault| fault.to_string())?;
        let alg = jwt.text_header("alg").unwrap_or_default();
        let algorithms: &[&str] = match self.rules.vendor {
            Vendor::Epic | Vendor::Athena => &["RS256", "RS384", "RS512", "ES256", "ES384"],
            _ => &["RS384", "ES384"],
        };
        if !algorithms.contains(&alg) {
            return Err(format!("alg {alg:?}; expected one of {}", algorithms.join(", ")));
        }
        let (kty, _) = kind_of(alg).ok_or("unknown alg")?;
        if self.rules.vendor == Vendor::Epic && kty == "EC" && matches!(keys, ClientKeys::Jwks(_)) {
            return Err("uploaded EC keys are refused; EC only by JWKS URL".into());
        }
        if jwt.text_header("typ") != Some("JWT") {
            return Err("typ is not JWT".into());
        }
        if jwt.header.contains_key("crit") {
            return Err("crit names an extension that is not understood".into());
        }
        let registered = match keys {
            ClientKeys::JwksUrl(url) => Some(url.as_str()),
            ClientKeys::Jwks(_) => None,
        };
        if jwt.header.contains_key("jku") && jwt.text_header("jku") != registered {
            return Err("jku is not the registered URL".into());
        }
        let kid = jwt.text_header("kid").ok_or("kid is missing or no string")?;
        let id = Some(client.client_id.as_str());
        if jwt.text_claim("iss") != id || jwt.text_claim("sub") != id {
            return Err("iss and sub must both be the client_id".into());
        }
        let expected = self.places.token(call.host, profile);
        let audience = match jwt.claims.get("aud") {
            Some(Value::String(one)) => *one == expected,
            Some(Value::Array(all)) => all.iter().any(|one| one.as_str() == Some(expected.as_str())),
            _ => false,
        };
        if !audience {
            return Err(format!("aud is not {expected}"));
        }
        let until = self.check_times(&jwt, call.now / 1000)?;
        let jti = jwt.text_claim("jti").filter(|jti| !jti.is_empty()).ok_or("jti is missing or no string")?;
        if jti.chars().count() > 151 {
            return Err("jti is longer than 151".into());
        }
        let key = self.find_key(keys, kid, kty, call.now).await?;
        jwt.verify(alg, &key).map_err(|fault| fault.to_string())?;
        let mut state = self.state();
        let place = (client.client_id.clone(), jti.to_owned());
        if state.assertions.get(&place).is_some_and(|until| *until > call.now) {
            return Err("jti was used before".into());
        }
        state.assertions.insert(place, until.saturating_mul(1000).saturating_add(60_000));
        Ok(())
    }

    /// `exp`, in seconds.
    fn check_times(&self, jwt: &Unverified, now: i64) -> Result<i64, String> {
        // Epic gives no leeway; the others a minute.
        let (leeway, epic) = if self.rules.vendor == Vendor::Epic { (0, true) } else { (60, false) };
        let time = |name: &str| match jwt.claims.get(name) {
            None => Ok(None),
            Some(value) => value.as_i64().map(Some).ok_or_else(|| format!("{name} is no whole number")),
        };
        let exp = time("exp")?.ok_or("exp is missing")?;
        if exp <= now.saturating_sub(leeway) {
            return Err("exp has passed".into());
        }
        if exp.saturating_sub(now) > 300 + leeway {
            return Err("exp is more than 5 minutes ahead".into());
        }
        for name in ["nbf", "iat"] {
            let Some(value) = time(name)? else { continue };
            if value > now.saturating_add(leeway) {
                return Err(format!("{name} is in the future"));
            }
            if epic && exp.saturating_sub(value) > 300 {
                return Err(format!("exp is more than 5 minutes after {name}"));
            }
        }
        Ok(exp)
    }

    async fn find_key(&self, keys: &ClientKeys, kid: &str, kty: &str, now: i64) -> Result<Value, String> {
        let url = match keys {
            ClientKeys::Jwks(set) => return the_one_key(set, kid, kty),
            ClientKeys::JwksUrl(url) => url,
        };
        let cached = self.key_sets.lock().unwrap_or_else(PoisonError::into_inner).get(url).cloned();
        if let Some((fetched, set)) = cached
            && fetched + self.rules.jwks_cache > now
        {
            let found = the_one_key(&set, kid, kty);
            if found.is_ok() || !self.rules.jwks_refetch {
                return found;
            }
        }
        let set = self
            .fetcher
            .key_set(url)
            .await
            .map_err(|fault| format!("the key set {url} could not be read: {fault:#}"))?;
        let found = the_one_key(&set, kid, kty);
        self.key_sets.lock().unwrap_or_else(PoisonError::into_inner).insert(url.clone(), (now, set));
        found
    }
}

fn the_one_key(set: &Value, kid: &str, kty: &str) -> Result<Value, String> {
    let keys = set.get("keys").and_then(Value::as_array).ok_or("the key set has no keys")?;
    if keys.len() > 100 {
        return Err("the key set has more than 100 keys".into());
    }
    let text = |key: &Value, name: &str| key.get(name).and_then(Value::as_str).map(str::to_owned);
    if keys.iter().any(|key| key.get("d").is_some()) {
        return Err("the key set has a private key in it".into());
    }
    let mut fitting =
        keys.iter().filter(|key| text(key, "kid").as_deref() == Some(kid) && text(key, "kty").as_deref() == Some(kty));
    match (fitting.next(), fitting.next()) {
        (Some(key), None) => Ok(key.clone()),
        (None, _) => Err(format!("no {kty} key with this kid")),
        _ => Err("two keys with this kid".into()),
    }
}

fn basic_parts(value: &str) -> Option<(String, String)> {
    let decoded = STANDARD.decode(value.strip_prefix("Basic ")?.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (id, secret) = text.split_once(':')?;
    Some((id.to_owned(), secret.to_owned()))
}

fn basic_id(value: &str) -> Option<String> {
    basic_parts(value).map(|(id, _)| form_decode(&id))
}

fn form_decode(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

/// RFC 6749 §2.3.1 form-encodes both parts first. Epic insists; most servers take them raw as well.
fn basic_matches(value: &str, id: &str, secret: &str, encoded_only: bool) -> bool {
    let Some((sent_id, sent_secret)) = basic_parts(value) else { return false };
    let encoded = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~*+%".contains(&b));
    let by_form = form_decode(&sent_id) == id && form_decode(&sent_secret) == secret;
    if encoded_only {
        return by_form && encoded(&sent_id) && encoded(&sent_secret);
    }
    by_form || sent_id == id && sent_secret == secret
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_form_encoded_secrets_pass_where_that_is_demanded() {
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        assert!(basic_matches(&basic("app:a%2Bb%3Ac+d"), "app", "a+b:c d", true));
        assert!(!basic_matches(&basic("app:a+b:c d"), "app", "a+b:c d", true));
        assert!(basic_matches(&basic("app:a+b:c d"), "app", "a+b:c d", false));
        assert!(!basic_matches(&basic("app:other"), "app", "a+b:c d", false));
    }
}
