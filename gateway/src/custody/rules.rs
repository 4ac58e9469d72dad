//! What a grant is refreshed by, and the times that follow for its access token.

use std::time::Duration;

use mantel_adapters::profile::TokenPolicy;

use crate::{
    clock::{Instant, Timestamp},
    store::{EhrTokens, RefreshEnd},
};

/// Lifetimes beyond it are not believed; nothing is lost by renewing once a year.
pub(super) const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// So long a grant is left to the process that is first to refresh it.
const LAG: Duration = Duration::from_secs(5);

/// So long before its refresh token's end a grant is kept alive, or a tenth of that token's life: an EHR may be away.
const KEPT_BEFORE: Duration = Duration::from_secs(24 * 3600);

/// Nearer ends are not gone by: who says so would be asked all the time.
const KEPT_FOR: Duration = Duration::from_secs(10);

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
    /// An unused grant is refreshed for its refresh token's sake.
    pub keep_alive: bool,
    /// How long a refresh token lives from its last use, where the EHR does not say it.
    pub refresh_lifetime: Option<Duration>,
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
            keep_alive: false,
            refresh_lifetime: policy.refresh_lifetime,
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
            keep_by: None,
        }
    }

    /// With what is known of the end of the refresh token, which is `age` old now.
    #[must_use]
    pub fn keeping(self, rules: &Rules, said: Option<RefreshEnd>, age: Duration) -> Self {
        let lifetime = match said {
            // It ends whatever is done.
            Some(RefreshEnd { fixed: true, .. }) => None,
            Some(RefreshEnd { after, .. }) => Some(after),
            None => rules.refresh_lifetime,
        };
        let by = lifetime.map(|lifetime| {
            let after = lifetime.saturating_sub(KEPT_BEFORE.min(lifetime / 10)).clamp(KEPT_FOR, LONGEST);
            self.received + after.saturating_sub(age)
        });
        Self {
            // A refresh token that ends before its access token is used before that.
            due: by.filter(|_| said.is_some()).map_or(self.due, |by| by.min(self.due)),
            keep_by: by.filter(|_| rules.keep_alive),
            ..self
        }
    }
}

/// When a grant's refresh token ends after an answer that says this of it, or nothing.
pub(super) fn refresh_end(
    old: &EhrTokens,
    said: Option<Duration>,
    rotated: bool,
    policy: &TokenPolicy,
    now: Timestamp,
) -> Option<RefreshEnd> {
    let elapsed = old.received.until(now);
    let left = old.refresh_end.map(|end| end.after.saturating_sub(elapsed));
    match (said, left) {
        // Put off, it is as far away as before, else nearer by what has passed: the middle between the two tells.
        (Some(after), Some(left)) => Some(RefreshEnd { after, fixed: after < left + elapsed / 2 }),
        (Some(after), None) => Some(RefreshEnd::said(after)),
        // The old one stays, and nothing is said: by the profile its use puts its end off, or nothing does.
        (None, Some(left)) if !rotated && policy.refresh_lifetime.is_none() => {
            Some(RefreshEnd { after: left, fixed: true })
        }
        (None, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whether_a_use_puts_the_end_off_is_seen_by_how_far_it_is_away() {
        let secs = Duration::from_secs;
        let old = |refresh_end| EhrTokens {
            access: "a".into(),
            refresh: Some("r".into()),
            received: Timestamp(1_000_000),
            lifetime: secs(300),
            refresh_end,
            scope: None,
            id_token: None,
        };
        let end = |after, fixed| Some(RefreshEnd { after: secs(after), fixed });
        let (unknown, nominal) =
            (TokenPolicy::default(), TokenPolicy { refresh_lifetime: Some(secs(9000)), ..TokenPolicy::default() });
        // 200 s later.
        for (before, said, rotated, policy, expected) in [
            (None, None, false, &unknown, None),
            (None, Some(1800), true, &unknown, end(1800, false)),
            (end(1800, false), Some(1800), true, &unknown, end(1800, false)),
            (end(1800, false), Some(1600), true, &unknown, end(1600, true)),
            // Rounded, and the answer took its time.
            (end(1800, false), Some(1601), false, &unknown, end(1601, true)),
            (end(1800, true), Some(1800), false, &unknown, end(1800, false)),
            // Nothing more is said: of the same token, it stands.
            (end(1800, false), None, false, &unknown, end(1600, true)),
            (end(1800, false), None, true, &unknown, None),
            (end(1800, false), None, false, &nominal, None),
            (end(100, false), None, false, &unknown, end(0, true)),
        ] {
            let said = said.map(secs);
            let found = refresh_end(&old(before), said, rotated, policy, Timestamp(1_200_000));
            assert_eq!(found, expected, "{before:?} {said:?} {rotated}");
        }
    }

    #[test]
    fn no_end_that_is_said_makes_a_time_that_cannot_be_reckoned_with() {
        let rules = Rules { keep_alive: true, ..Rules::new(&TokenPolicy::default(), Duration::ZERO, false) };
        let now = Instant::now();
        let times = Times::new(&rules, Duration::from_secs(300), Duration::ZERO, now);
        for (after, age) in [(Duration::MAX, Duration::ZERO), (Duration::ZERO, Duration::MAX)] {
            let kept = times.keeping(&rules, Some(RefreshEnd::said(after)), age);
            assert!(kept.keep_by.is_some_and(|at| at >= now), "{after:?}");
        }
        let kept = times.keeping(&rules, Some(RefreshEnd::said(Duration::from_secs(1))), Duration::ZERO);
        assert_eq!((kept.due, kept.keep_by), (now + KEPT_FOR, Some(now + KEPT_FOR)));
    }

    #[test]
    fn a_refresh_token_that_ends_first_is_used_before_that() {
        let secs = Duration::from_secs;
        let (rules, now) = (Rules::new(&TokenPolicy::default(), Duration::ZERO, false), Instant::now());
        let times = Times::new(&rules, secs(3600), Duration::ZERO, now);
        let due = |end| times.keeping(&rules, end, secs(10)).due - now;
        assert_eq!(due(Some(RefreshEnd::said(secs(1800)))), secs(1610));
        assert_eq!(due(Some(RefreshEnd::said(secs(7200)))), secs(3300));
        assert_eq!(due(Some(RefreshEnd { after: secs(1800), fixed: true })), secs(3300), "it gains nothing");
        assert_eq!(due(None), secs(3300));
    }
}
