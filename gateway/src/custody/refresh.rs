//! One flight, from the intent to who waits: the order is the promise. The intent is durable before the
//! request; the answer is durable before memory has it, and in memory before anybody sees it.

use std::{panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use mantel_adapters::profile::Meaning;

use super::{
    CustodyFault, Flown, GrantPolicy, Inner, RefreshAnswer, SOON, SpillEvent,
    budget::Room,
    entry::{self, Entry, Flight, Unsent},
    machine::{Cause, Doubt, Event, Rules},
    outcome::{Answer, Attempt, Caller, Next, RefreshOutcome, Row, Stored, row},
    replay::{Kept, PATIENCE},
    rules::refresh_end,
    spill,
};
use crate::{
    clock::Instant,
    secret::Secret,
    store::{EhrTokens, EndReason, Finished, Grant, GrantFacts, GrantState, StoreError, StoreResult},
};

/// What a flight is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Job {
    Refresh,
    End(EndReason),
}

/// How a flight ended.
pub(super) enum Landing {
    /// The store has these tokens now; `age`: since the EHR gave them.
    Renewed {
        grant: Box<Grant>,
        age: Duration,
    },
    /// The spill has these tokens, and not the store; `grant` is as the store has it.
    Spilled {
        grant: Box<Grant>,
        kept: Box<Kept>,
        age: Duration,
    },
    Held {
        cause: Cause,
        retry_after: Option<Duration>,
        caller: Caller,
    },
    Doubtful {
        doubt: Doubt,
        caller: Caller,
    },
    /// Another process is at it, and nobody waits here: to be looked at again then.
    Watching(Instant),
    /// It was to be ended, and another process served it so long ago that it is not idle.
    Used(Instant),
    Ended(EndReason),
}

/// What a flight knows of its grant.
pub(super) struct Case {
    pub grant: Grant,
    pub flight: Flight,
    policy: GrantPolicy,
    pub rules: Rules,
    refresh: Secret<String>,
}

/// A store operation that may be repeated is repeated so often, before its trouble is passed on.
pub(super) const STORE_TRIES: u32 = 3;

impl Inner {
    /// `room`: for a call to the EHR.
    pub(super) async fn fly(self: Arc<Self>, entry: Arc<Entry>, job: Job, flight: Flight, room: Room) -> Flown {
        let mut airborne = Airborne { inner: &self, entry: &entry, landed: false };
        let landing = match job {
            Job::Refresh => self.refresh(&entry, flight, room).await,
            Job::End(reason) => self.end(&entry, reason, flight.generation).await,
        };
        airborne.landed = true;
        self.land(&entry, flight, landing)
    }

    /// Memory, then who waits.
    fn land(&self, entry: &Entry, flight: Flight, landing: Landing) -> Flown {
        let now = self.now();
        let (event, caller) = match landing {
            Landing::Renewed { grant, age } => {
                self.renew(entry, &grant, age, now);
                return entry.alive(now).map(Some).ok_or(CustodyFault::Unavailable { retry_after: SOON });
            }
            Landing::Spilled { grant, kept, age } => {
                self.show(entry, &grant, *kept, age);
                return entry.alive(now).map(Some).ok_or(CustodyFault::Unavailable { retry_after: SOON });
            }
            Landing::Held { cause, retry_after, caller } => {
                let mut die = [0; 4];
                self.context.entropy.fill(&mut die);
                (Event::Held { cause, retry_after, die: u32::from_le_bytes(die) }, caller)
            }
            Landing::Doubtful { doubt, caller } => (Event::Doubtful(doubt), caller),
            Landing::Watching(until) => {
                entry.end_of_flight(flight, Event::Watching(until), now);
                self.wheel.set(entry.id, entry.next_wake(now));
                return Ok(None);
            }
            Landing::Used(at) => {
                entry.touch(at);
                (Event::UsedElsewhere, Caller::Old)
            }
            Landing::Ended(reason) => (Event::Ended(reason), Caller::Ended(reason)),
        };
        match event {
            Event::Ended(_) => drop(entry.step(event, now)),
            _ => entry.end_of_flight(flight, event, now),
        }
        let wake = entry.next_wake(now);
        // Who asks may be served before the wheel comes round.
        let again = [wake, entry.ask_again(now)].into_iter().flatten().min();
        let after = again.map_or(SOON, |at| at.saturating_duration_since(now).max(SOON));
        self.wheel.set(entry.id, wake);
        match caller {
            Caller::Ended(reason) => {
                self.forget(entry.id);
                Err(CustodyFault::Ended(reason))
            }
            Caller::Old | Caller::New => {
                entry.alive(now).map(Some).ok_or(CustodyFault::Unavailable { retry_after: after })
            }
            Caller::Unavailable => Err(match event {
                Event::Held { cause, .. } => CustodyFault::of(cause, after),
                _ => CustodyFault::Unavailable { retry_after: after },
            }),
        }
    }

    // ---- before the request ----------------------------------------------------------------------------

    async fn refresh(&self, entry: &Entry, flight: Flight, room: Room) -> Landing {
        let mut room = Some(room);
        let case = match self.case(entry, flight).await {
            Ok(case) => case,
            Err(landing) => return landing,
        };
        if let Some(landing) = self.denied(entry, &case) {
            return landing;
        }
        let intent = match self.intend(entry, &case, &mut room).await {
            Ok(intent) => intent,
            Err(landing) => return landing,
        };
        if let Err(landing) = self.holds(entry, &case, &intent).await {
            return landing;
        }
        // From here on a request may be behind it.
        entry.set_unsent(case.grant.generation, None);
        let beating = self.beating(&case, &intent);
        if let Some(room) = &mut room {
            room.call();
        }
        let (began, mut attempt) = (self.now(), intent.attempt);
        loop {
            let sent = self.now();
            let mut answer = self.send(&case).await;
            let taken = match self.weigh(entry, &case, attempt, sent, &mut answer).await {
                Ok(taken) => taken,
                Err(landing) => return landing,
            };
            let row = row(taken, attempt, entry.alive(self.now()).is_some());
            let in_grace = began.elapsed() < case.rules.reuse_grace;
            if row.next == Next::Doubt && in_grace {
                // The vendor repeats its answer: the old token is tried again at once.
                self.count(&case, row.counted);
                attempt = Attempt::InGrace;
                continue;
            }
            let mut landing = self.settle(entry, &case, row, answer, began).await;
            if let Landing::Spilled { kept, .. } = &mut landing {
                kept.beating = beating;
            }
            return landing;
        }
    }

    /// The grant as the store has it now, if it is still to be refreshed.
    async fn case(&self, entry: &Entry, flight: Flight) -> Result<Case, Landing> {
        let grant = match self.context.store.grant(entry.id).await {
            Ok(Some(grant)) => grant,
            Ok(None) => return Err(Landing::Ended(EndReason::Expired)),
            Err(error) => return Err(self.store_away(entry, &error)),
        };
        if let GrantState::Ended { reason, .. } = grant.state {
            return Err(Landing::Ended(reason));
        }
        // What is in the spill must be in the store before it is consumed.
        if self.overlaid(&grant).is_some() {
            return Err(self.held(entry, Cause::Store, None));
        }
        let policy = self.context.policies.of(&grant);
        // The entry may know newer tokens by now, and nothing was decided about those.
        if grant.generation > flight.generation {
            if let Some(policy) = &policy {
                self.context.events.refresh(&policy.vendor, &grant.site, RefreshOutcome::Moved);
            }
            return Err(self.moved(grant));
        }
        let Some(policy) = policy else {
            tracing::error!(grant = %grant.id, site = %grant.site, registration = %grant.registration,
                "a grant's site or registration is not configured: it cannot be refreshed");
            return Err(self.held(entry, Cause::Misconfigured, None));
        };
        let Some(refresh) = grant.tokens.refresh.clone() else {
            return Err(self.held(entry, Cause::Passing, None));
        };
        let rules = entry::rules(Some(&policy), self.among(entry.id));
        Ok(Case { grant, flight, policy, rules, refresh })
    }

    // ---- the request and its answer --------------------------------------------------------------------

    async fn send(&self, case: &Case) -> RefreshAnswer {
        let scope = case.grant.tokens.scope.as_deref().filter(|_| case.policy.tokens.send_scope_on_refresh);
        let call = AssertUnwindSafe(self.context.endpoint.refresh(&case.grant, &case.refresh, scope)).catch_unwind();
        match tokio::time::timeout(self.context.token_timeout, call).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => {
                tracing::error!(grant = %case.grant.id, "the token request panicked: its outcome is unknown");
                RefreshAnswer::Unknown
            }
            Err(_) => RefreshAnswer::Unknown,
        }
    }

    async fn settle(&self, entry: &Entry, case: &Case, row: Row, answer: RefreshAnswer, began: Instant) -> Landing {
        let (received, wall) = (self.now(), self.context.clock.now());
        let retry_after = match answer {
            RefreshAnswer::Tokens { access, refresh, lifetime, refresh_lifetime, scope, id_token } => {
                let old = &case.grant.tokens;
                let refresh_end = refresh_end(old, refresh_lifetime, refresh.is_some(), &case.policy.tokens, wall);
                let facts = scope.as_deref().and_then(|scope| self.context.policies.learnt(&case.grant, scope));
                let tokens = EhrTokens {
                    access,
                    refresh: refresh.or_else(|| old.refresh.clone()),
                    received: wall,
                    lifetime: case.rules.lifetime(lifetime),
                    refresh_end,
                    scope: scope.or_else(|| old.scope.clone()),
                    id_token: id_token.or_else(|| old.id_token.clone()),
                };
                return self.store_answer(entry, case, &tokens, facts.as_ref(), received).await;
            }
            RefreshAnswer::Refused { meaning, retry_after, detail } => {
                report(&case.grant, meaning, &detail);
                retry_after
            }
            RefreshAnswer::NotSent | RefreshAnswer::Unknown => None,
        };
        self.count(case, row.counted);
        match row.stored {
            Stored::End(reason) => return self.end_dead(entry, case, reason).await,
            Stored::Abandoned => self.abandon(entry, case).await,
            // None of its answers was tokens: those went above.
            Stored::Intent | Stored::Answer => {}
        }
        if let Next::Backoff(cause) = row.next {
            return Landing::Held { cause, retry_after, caller: row.caller };
        }
        let doubt = Doubt::new(&case.rules, entry.serves_until(), received.saturating_duration_since(began), received);
        Landing::Doubtful { doubt, caller: row.caller }
    }

    /// Makes the EHR's answer durable, however long that takes: it may be the only live token there is. That is
    /// in the store; or, where that fails, at once in the spill.
    async fn store_answer(
        &self,
        entry: &Entry,
        case: &Case,
        tokens: &EhrTokens,
        facts: Option<&GrantFacts>,
        received: Instant,
    ) -> Landing {
        let Case { grant, .. } = case;
        let (mut failures, mut kept) = (0_u32, None::<Kept>);
        let finished = loop {
            let finish = self.context.store.finish_refresh(grant.id, grant.generation, tokens, facts, tokens.received);
            let mut finish = pin!(finish);
            let answer = match tokio::time::timeout(PATIENCE, &mut finish).await {
                Ok(answer) => answer,
                // It may have it all the same: the same call again does no harm.
                Err(_) if self.pending.spill.is_some() => Err(StoreError::Unavailable("it takes too long".into())),
                Err(_) => {
                    entry.step(Event::Kept, self.now());
                    self.context.events.kept();
                    finish.await
                }
            };
            let error = match answer {
                Ok(finished) => break finished,
                Err(error) => error,
            };
            tracing::error!(grant = %grant.id, %error, failures, "the store does not take an EHR's answer: it is kept");
            self.context.events.kept();
            if kept.is_none() {
                let answer = spill::Answer {
                    grant: grant.id,
                    consumed: grant.generation,
                    site: grant.site.clone(),
                    registration: grant.registration.clone(),
                    tokens: tokens.clone(),
                    facts: facts.cloned(),
                };
                kept = self.spill(&answer, received).await;
            }
            if let Some(kept) = kept.take_if(|kept| kept.shareable()) {
                self.count(case, RefreshOutcome::Renewed);
                let age = self.now().saturating_duration_since(received);
                return Landing::Spilled { grant: Box::new(grant.clone()), kept: Box::new(kept), age };
            }
            entry.step(Event::Kept, self.now());
            let wait = Duration::from_millis(100).saturating_mul(1 << failures.min(6));
            tokio::time::sleep(wait.min(Duration::from_secs(5))).await;
            failures = failures.saturating_add(1);
        };
        let (landing, event) = match finished {
            Finished::Stored(grant) => {
                self.count(case, RefreshOutcome::Renewed);
                let age = self.now().saturating_duration_since(received);
                (Landing::Renewed { grant, age }, SpillEvent::Replayed)
            }
            Finished::Moved(current) => {
                self.count(case, RefreshOutcome::Dropped);
                // A vendor that repeats its answer gave both the same tokens.
                if current.tokens.access != tokens.access && current.tokens.refresh != tokens.refresh {
                    // Reported; there is nobody else to tell.
                    let _ = self.revoke_later(grant, tokens).await;
                }
                (self.moved(*current), SpillEvent::Dropped)
            }
            Finished::Ended(reason) => {
                self.count(case, RefreshOutcome::Dropped);
                let _ = self.revoke_later(grant, tokens).await;
                (Landing::Ended(reason), SpillEvent::Dropped)
            }
        };
        if let Some(kept) = kept {
            self.taken_off(&kept, event).await;
        }
        landing
    }

    /// Clears the intent of a request that was certainly not answered with tokens.
    async fn abandon(&self, entry: &Entry, case: &Case) {
        let Case { grant, .. } = case;
        let abandoned = self
            .insist(|| self.context.store.abandon_refresh(grant.id, grant.generation, self.context.replicas.me()))
            .await;
        if let Err(error) = &abandoned {
            tracing::warn!(grant = %grant.id, %error, "an intent could not be cleared; it is cleared with the next");
        }
        entry.set_unsent(grant.generation, abandoned.is_err().then_some(Unsent::Intent));
    }

    // ---- helps -----------------------------------------------------------------------------------------

    /// Repeats an operation that may be repeated, a few times, at short distance.
    pub(super) async fn insist<T, F>(&self, operation: impl Fn() -> F) -> StoreResult<T>
    where
        F: Future<Output = StoreResult<T>>,
    {
        let mut tries = 1;
        loop {
            match operation().await {
                Err(_) if tries < STORE_TRIES => {
                    tokio::time::sleep(Duration::from_millis(50 << tries)).await;
                    tries += 1;
                }
                other => return other,
            }
        }
    }

    pub(super) fn count(&self, case: &Case, outcome: RefreshOutcome) {
        self.context.events.refresh(&case.policy.vendor, &case.grant.site, outcome);
    }

    pub(super) fn moved(&self, grant: Grant) -> Landing {
        let age = grant.tokens.received.until(self.context.clock.now());
        Landing::Renewed { grant: Box::new(grant), age }
    }

    pub(super) fn old(&self, entry: &Entry) -> Caller {
        if entry.alive(self.now()).is_some() { Caller::Old } else { Caller::Unavailable }
    }

    pub(super) fn held(&self, entry: &Entry, cause: Cause, retry_after: Option<Duration>) -> Landing {
        Landing::Held { cause, retry_after, caller: self.old(entry) }
    }

    pub(super) fn store_away(&self, entry: &Entry, error: &StoreError) -> Landing {
        tracing::warn!(grant = %entry.id, %error, "the store does not answer: a refresh waits");
        self.held(entry, Cause::Store, None)
    }
}

pub(super) const fn kind(answer: &RefreshAnswer) -> Answer {
    match answer {
        RefreshAnswer::Tokens { .. } => Answer::Tokens,
        RefreshAnswer::Refused { meaning, .. } => Answer::Refused(*meaning),
        RefreshAnswer::NotSent => Answer::NotSent,
        RefreshAnswer::Unknown => Answer::Unknown,
    }
}

fn report(grant: &Grant, meaning: Meaning, detail: &str) {
    let (id, site, registration) = (grant.id, &grant.site, &grant.registration);
    match meaning {
        Meaning::Misconfigured => {
            tracing::error!(grant = %id, %site, %registration, detail, "an EHR refuses our registration");
        }
        Meaning::Dead | Meaning::Suspended | Meaning::Passing => {
            tracing::warn!(grant = %id, %site, ?meaning, detail, "an EHR refused a refresh");
        }
    }
}

/// A flight that ends without landing (a panic, a runtime that stops) leaves the grant free to be tried
/// again; what the store holds of it says how.
struct Airborne<'a> {
    inner: &'a Inner,
    entry: &'a Entry,
    landed: bool,
}

impl Drop for Airborne<'_> {
    fn drop(&mut self) {
        if !self.landed {
            let now = self.inner.now();
            self.entry.step(Event::Held { cause: Cause::Passing, retry_after: None, die: u32::MAX }, now);
            self.inner.wheel.set(self.entry.id, self.entry.next_wake(now));
        }
    }
}
