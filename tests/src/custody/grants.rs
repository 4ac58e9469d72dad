//! Grants by number, in a store of one's own.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use mantel::{
    clock::Timestamp,
    config::{Base, StoreConfig, StoreUrl},
    secret::TokenHash,
    store::{
        Code, EhrTokens, Grant, GrantFacts, GrantId, GrantState, LaunchId, SharedStore, StoreResult,
        postgres::Postgres, sealing::Sealer, sqlite::Sqlite,
    },
};
use mantel_adapters::site::{AppId, RegistrationId, SiteId};
use uuid::Uuid;

/// A store of either engine.
pub struct Opened {
    pub store: SharedStore,
    sqlite: Option<Arc<Sqlite>>,
}

/// Opens a store as a gateway would.
///
/// # Errors
/// If it cannot be opened.
pub async fn open(config: &StoreConfig) -> Result<Opened> {
    let sealer = Arc::new(Sealer::new(&config.seal)?);
    match &config.url {
        StoreUrl::Sqlite(path) => {
            let sqlite = Arc::new(Sqlite::open(path.as_deref(), sealer).await?);
            Ok(Opened { store: sqlite.clone(), sqlite: Some(sqlite) })
        }
        StoreUrl::Postgres(url) => Ok(Opened { store: Arc::new(Postgres::open(url, sealer).await?), sqlite: None }),
    }
}

impl Opened {
    /// Groups that the embedded store has committed.
    pub fn commits(&self) -> Option<u64> {
        self.sqlite.as_ref().map(|sqlite| sqlite.commits())
    }
}

/// The id of grant `number`: the number, and bytes that spread it over custody's shards.
pub fn id_of(number: u32) -> GrantId {
    let spread = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    GrantId(Uuid::from_u64_pair(u64::from(number) + 1, spread.rotate_left(32)))
}

/// # Errors
/// If the id is none of [`id_of`].
pub fn number_of(id: GrantId) -> Result<u32> {
    let (first, _) = id.0.as_u64_pair();
    let number = u32::try_from(first).ok().and_then(|first| first.checked_sub(1));
    number.filter(|number| id_of(*number) == id).with_context(|| format!("{id} is none of this test's grants"))
}

/// What all grants of a test have in common.
pub struct Kind {
    pub app: AppId,
    pub site: SiteId,
    pub registration: RegistrationId,
    pub fingerprint: String,
    pub facts: GrantFacts,
}

impl Kind {
    pub fn grant(&self, number: u32, tokens: EhrTokens) -> Grant {
        Grant {
            id: id_of(number),
            app: self.app.clone(),
            site: self.site.clone(),
            registration: self.registration.clone(),
            fingerprint: self.fingerprint.clone(),
            created: tokens.received,
            state: GrantState::Live,
            generation: 1,
            facts: self.facts.clone(),
            tokens,
        }
    }
}

/// Stores a grant as a login would. Again: it does nothing.
///
/// # Errors
/// If the store does not serve.
pub async fn create(store: &SharedStore, grant: &Grant) -> StoreResult<()> {
    let code = Code {
        grant: grant.id,
        app: grant.app.clone(),
        base: Base::Uniform,
        redirect_uri: String::new(),
        code_challenge: String::new(),
        nonce: None,
        expires: grant.created.after(Duration::from_secs(60)),
        redeemed: false,
    };
    store.create_grant(grant, code_hash(grant.id), &code, LaunchId(Uuid::nil())).await
}

/// The hash of the code that [`create`] stores.
pub fn code_hash(grant: GrantId) -> TokenHash {
    TokenHash::of(&grant.to_string())
}

/// Tokens that were received at `received` and live for `lifetime`.
pub fn tokens(access: String, refresh: String, received: Timestamp, lifetime: Duration) -> EhrTokens {
    EhrTokens {
        access: access.into(),
        refresh: Some(refresh.into()),
        received,
        lifetime,
        refresh_end: None,
        scope: None,
        id_token: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_tell_their_number_and_spread() {
        let shards: std::collections::BTreeSet<u8> =
            (0..64).map(|number| id_of(number).0.into_bytes().last().copied().unwrap() % 64).collect();
        assert!(shards.len() > 32, "{shards:?}");
        for number in [0, 1, 77, u32::MAX - 1] {
            assert_eq!(number_of(id_of(number)).unwrap(), number);
        }
        assert!(number_of(GrantId(Uuid::from_u128(5))).is_err());
    }
}
