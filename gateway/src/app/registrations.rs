//! Which registrations changed lately (`custody.md`: within an hour of a change no refresh token is believed to be dead
//! at its first refusal).

use std::time::Duration;

use mantel_adapters::site::RegistrationId;

use crate::{
    clock::Timestamp,
    config::{ClientAuth, Config, KeyState, Registration},
    store::SharedStore,
};

/// Who we are at the vendor: a change of any of it can be a mistake. The store keeps a keyed hash.
fn facts<'c>(config: &'c Config, registration: &'c Registration) -> Vec<&'c [u8]> {
    let mut facts = vec![registration.vendor.as_str().as_bytes(), registration.client_id.as_bytes()];
    match &registration.auth {
        ClientAuth::None => facts.push(b"none"),
        ClientAuth::SecretBasic { secret } => facts.extend([b"basic".as_slice(), secret.expose().as_bytes()]),
        ClientAuth::SecretPost { secret } => facts.extend([b"post".as_slice(), secret.expose().as_bytes()]),
        ClientAuth::PrivateKeyJwt { keys } => {
            facts.extend([b"jwt".as_slice(), keys.as_str().as_bytes()]);
            let set = config.keys.get(keys).into_iter().flat_map(|set| &set.keys);
            facts.extend(set.filter(|key| key.state == KeyState::Sign).map(|key| key.pem.expose().as_bytes()));
        }
    }
    facts
}

/// Registrations that are not what they were when they were last seen, and since when.
pub(super) async fn changed(store: &SharedStore, config: &Config, now: Timestamp) -> Vec<(RegistrationId, Duration)> {
    let mut changed = Vec::new();
    for registration in config.registrations.values() {
        match store.see_registration(&registration.id, &facts(config, registration), now).await {
            Ok(Some(since)) => changed.push((registration.id.clone(), since.until(now))),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(registration = %registration.id, %error, "whether it has changed is not known: taken as changed");
                changed.push((registration.id.clone(), Duration::ZERO));
            }
        }
    }
    changed
}
