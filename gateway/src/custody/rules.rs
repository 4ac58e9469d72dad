//! What a grant is refreshed by, and the times that follow for its access token.

use std::time::Duration;

use mantel_adapters::profile::TokenPolicy;

use crate::clock::Instant;

/// Lifetimes beyond it are not believed; nothing is lost by renewing once a year.
pub(super) const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// So long a grant is left to the process that is first to refresh it.
const LAG: Duration = Duration::from_secs(5);

/// So long before its refresh token's end a grant is kept alive, or a tenth of that token's life: an EHR may be away.
const KEPT_BEFORE: Duration = Duration::from_secs(24 * 3600);

/// What a grant's profile and app say, before anything is learnt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    pub refresh_before: Duration,
    pub min_interval: Duration,
    pub assume_lifetime: Duration,
    pub reuse_grace: Duration,
    /// An unused grant is refreshed all the same until it was unused for so long: where its refresh
    /// token dies with the access token.
    pub cold_for: Option<Duration>,
    /// From receipt until an unused grant is refreshed for its refresh token's sake (`keep_alive`).
    pub keep_after: Option<Duration>,
    /// The grant ends when it was unused for so long.
    pub session_idle: Option<Duration>,
    /// Other processes may work on the same grant.
    pub shared: bool,
    /// Another process is first to refresh it.
    pub yields: bool,
}

impl Rules {
    pub fn new(policy: &TokenPolicy, session_idle: Duration, session: bool) -> Self {
        Self {
            refresh_before: policy.refresh_before,
            min_interval: policy.min_refresh_interval,
            assume_lifetime: policy.assume_lifetime,
            reuse_grace: policy.reuse_grace,
            cold_for: policy.dies_with_access.then_some(session_idle),
            keep_after: policy.refresh_lifetime.map(|lifetime| lifetime - KEPT_BEFORE.min(lifetime / 10)),
            session_idle: session.then_some(session_idle),
            shared: false,
            yields: false,
        }
    }

    /// The lifetime to go by: none, zero and the absurd are replaced.
    pub fn lifetime(&self, said: Option<Duration>) -> Duration {
        said.filter(|said| !said.is_zero()).unwrap_or(self.assume_lifetime).min(LONGEST)
    }

    /// From receipt until the token falls due: `refresh_before` its end, but not before 60 % of its life; a
    /// little later where another process is first, so that there is its answer to find.
    fn due_after(&self, lifetime: Duration) -> Duration {
        let before = self.refresh_before.min(lifetime * 2 / 5);
        let behind = if self.yields { LAG.min(before / 4) } else { Duration::ZERO };
        lifetime - before + behind
    }

    /// From receipt until a 401 forces a refresh.
    pub fn min_interval(&self, lifetime: Duration) -> Duration {
        self.min_interval.min(lifetime / 2)
    }
}

/// Where an access token stands. Instants are of the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// When this process got it: from the EHR, or from the store.
    pub received: Instant,
    pub due: Instant,
    pub expires: Instant,
    /// Until then no 401 forces a refresh.
    pub settled: Instant,
    /// When it is refreshed though nobody uses it.
    pub keep_by: Option<Instant>,
}

impl Times {
    /// Of a token that is `age` old now.
    pub fn new(rules: &Rules, lifetime: Duration, age: Duration, now: Instant) -> Self {
        let lifetime = lifetime.min(LONGEST);
        Self {
            received: now,
            due: now + rules.due_after(lifetime).saturating_sub(age),
            expires: now + lifetime.saturating_sub(age),
            settled: now + rules.min_interval(lifetime).saturating_sub(age),
            keep_by: rules.keep_after.map(|after| now + after.min(LONGEST).saturating_sub(age)),
        }
    }
}
