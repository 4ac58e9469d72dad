//! New codes and tokens of ours: opaque, 256 random bits, with a prefix that secret scanners know. The
//! store keeps their hashes only (`custody.md`, "Our own tokens").

use std::time::Duration;

use crate::{
    clock::SharedClock,
    entropy::{self, SharedEntropy},
    secret::{Secret, TokenHash},
    store::{AccessToken, GrantId, NewTokens, RefreshToken},
};

pub const ACCESS_PREFIX: &str = "mtl_at_";
pub const REFRESH_PREFIX: &str = "mtl_rt_";

/// A code lives so long: the app redeems it at once (RFC 6749 §4.1.2 allows ten minutes).
pub const CODE_LIFETIME: Duration = Duration::from_secs(60);

/// Makes codes and tokens.
#[derive(Clone)]
pub struct Mint {
    pub entropy: SharedEntropy,
    pub clock: SharedClock,
}

/// What an app is told once, and what the store keeps of it.
pub struct Minted {
    pub access: Secret<String>,
    pub refresh: Option<Secret<String>>,
    pub stored: NewTokens,
    pub expires_in: Duration,
}

/// What the new tokens are for.
pub struct Order<'a> {
    pub grant: GrantId,
    pub reported: &'a str,
    pub enforced: &'a str,
    pub access_lifetime: Duration,
    /// None: the app gets no refresh token.
    pub refresh_lifetime: Option<Duration>,
}

impl Mint {
    /// A value that is used once in a URL: code, launch handle, cookie.
    pub fn once(&self) -> (Secret<String>, TokenHash) {
        let value = entropy::token(&*self.entropy, "");
        let hash = TokenHash::of(value.expose());
        (value, hash)
    }

    pub fn tokens(&self, order: &Order<'_>) -> Minted {
        let now = self.clock.now();
        let access = entropy::token(&*self.entropy, ACCESS_PREFIX);
        let refresh = order.refresh_lifetime.map(|_| entropy::token(&*self.entropy, REFRESH_PREFIX));
        let stored = NewTokens {
            access: AccessToken {
                hash: TokenHash::of(access.expose()),
                grant: order.grant,
                reported: order.reported.to_owned(),
                enforced: order.enforced.to_owned(),
                expires: now.after(order.access_lifetime),
            },
            refresh: refresh.as_ref().zip(order.refresh_lifetime).map(|(token, lifetime)| RefreshToken {
                hash: TokenHash::of(token.expose()),
                expires: now.after(lifetime),
            }),
        };
        Minted { access, refresh, stored, expires_in: order.access_lifetime }
    }
}
