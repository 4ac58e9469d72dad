//! The lease: one refresh at a time among processes (`custody.md`, "One refresh at a time, everywhere").
//!
//! ```text
//! intent ── won ─────────────────────────────► the request, and beats while it works
//!    ▲ └── lost to another ─► watch ─ moved ──► its answer
//!    │                          │
//!    └── each third of a TTL ───┤
//!                               └ stood still ► doubt ─ may act ─► take over ─► the request
//! ```
//!
//! A lease only spares the EHR a second request. What holds a grant together is the generation: an answer is
//! stored by what it consumed, whoever holds the lease by then.

use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;

use super::{
    Inner, LeaseMark,
    budget::Room,
    entry::{Entry, Unsent},
    machine::{Action, Cause, Doubt, Event, LATE_WINNER, LEASE_TTL, patience},
    outcome::{Attempt, RefreshOutcome},
    refresh::{Case, Landing},
};
use crate::{
    clock::{Instant, Timestamp},
    store::{Begun, EndReason, GrantState, Lease},
};

/// Three beats in a lease's life: one may be late, one may be lost.
const BEAT: Duration = Duration::from_secs(LEASE_TTL.as_secs() / 3);

/// Between looks at a grant that another process is at: soon at first, since most refreshes take less than a
/// second, then so often as who waits would notice.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LAST_LOOK: Duration = Duration::from_millis(500);

/// A store that is too slow for so many has no request sent by it.
const LOOKS_AT_LEASE: u32 = 3;

/// Leave to send, recorded.
pub(super) struct Intent {
    pub attempt: Attempt,
    /// When it was asked for.
    asked: Instant,
    /// Of the lease; none: there was no telling.
    fence: Option<i64>,
    /// What stays in the store if nothing is sent.
    unsent: Option<Unsent>,
}

/// An intent without a result.
#[derive(Clone, Copy)]
struct Unfinished {
    since: Timestamp,
    retried: bool,
}

impl Inner {
    fn shared(&self) -> bool {
        self.context.store.shared()
    }

    /// Records the intent; nothing is sent unless that is durable. Waits while another process is at it, without the
    /// room of a call; where nobody waits here, the wheel does.
    pub(super) async fn intend(&self, entry: &Entry, case: &Case, room: &mut Option<Room>) -> Result<Intent, Landing> {
        let grant = &case.grant;
        let give_up = self.now() + self.context.token_timeout + LATE_WINNER + LEASE_TTL;
        let mut unfinished = match grant.state {
            GrantState::InDoubt { since, retried } => Some(Unfinished { since, retried }),
            _ => None,
        };
        let mut distance = FIRST_LOOK;
        while self.now() < give_up {
            let asked = self.now();
            room.get_or_insert_with(|| self.budgets.begin(&entry.budget, asked));
            let wall = self.context.clock.now();
            let begun =
                self.context.store.begin_refresh(grant.id, grant.generation, self.context.replicas.me(), wall).await;
            let lease = match begun {
                Ok(Begun::Won { fence }) => {
                    entry.age_of_intent(wall, wall, self.now());
                    let unsent = Some(Unsent::Intent);
                    return Ok(Intent { attempt: Attempt::First, asked, fence: Some(fence), unsent });
                }
                Ok(Begun::Lost(lease)) => lease,
                Ok(Begun::Moved(grant)) => {
                    self.count(case, RefreshOutcome::Moved);
                    return Err(self.moved(*grant));
                }
                Ok(Begun::Ended(reason)) => return Err(Landing::Ended(reason)),
                Ok(Begun::InDoubt { .. }) => return Err(self.held(entry, Cause::Elsewhere, None)),
                Err(error) => {
                    // It may have been written, and no request is behind it; behind one that was there before, there may be.
                    if unfinished.is_none() {
                        entry.set_unsent(grant.generation, Some(Unsent::Intent));
                    }
                    self.count(case, RefreshOutcome::StoreAway);
                    return Err(self.store_away(entry, &error));
                }
            };
            let until = match self.living(entry, lease, unfinished)? {
                Some(until) => until,
                // An earlier request of this process, or of one that does not show itself: no result came of it.
                None => {
                    if lease.owner == self.context.replicas.me()
                        && entry.unsent(grant.generation) == Some(Unsent::Intent)
                    {
                        // Anew, not with its old time: whoever takes over reckons the doubt from that.
                        let abandoned =
                            self.insist(|| self.context.store.abandon_refresh(grant.id, grant.generation, lease.owner));
                        if let Err(error) = abandoned.await {
                            return Err(self.store_away(entry, &error));
                        }
                        entry.set_unsent(grant.generation, None);
                        unfinished = None;
                        continue;
                    }
                    let known = match unfinished {
                        Some(known) => known,
                        None => self.look(entry, case).await?,
                    };
                    match self.doubt(entry, case, lease, known).await? {
                        Doubtful::Act(intent) => return Ok(intent),
                        Doubtful::Wait(until) => until,
                    }
                }
            };
            *room = None;
            let until = until.min(self.now() + BEAT);
            if !self.flights.waited_for(&(entry.id, case.flight.number)) {
                return Err(Landing::Watching(until));
            }
            unfinished = Some(self.watch(entry, case, until, &mut distance).await?);
        }
        Err(self.held(entry, Cause::Elsewhere, None))
    }

    /// Until when a lease must be watched, since its owner may be at work. None: nobody is.
    fn living(&self, entry: &Entry, lease: Lease, known: Option<Unfinished>) -> Result<Option<Instant>, Landing> {
        if lease.owner == self.context.replicas.me() {
            return Ok(None);
        }
        // A request of another's may be behind what the store holds now.
        entry.set_unsent(entry.generation(), None);
        let patience = patience(self.shared(), known.is_some_and(|it| it.retried));
        match entry.step(Event::Contested { lease, patience }, self.now()).0 {
            Action::Watch(until) => Ok(Some(until)),
            Action::Over(reason) => Err(Landing::Ended(reason)),
            _ => Ok(None),
        }
    }

    /// Looks at the store until a time: the winner's answer is there as soon as it is stored.
    async fn watch(
        &self,
        entry: &Entry,
        case: &Case,
        until: Instant,
        distance: &mut Duration,
    ) -> Result<Unfinished, Landing> {
        loop {
            let now = self.now();
            let next = (now + *distance).min(until);
            tokio::select! {
                () = self.stop.cancelled() => return Err(self.held(entry, Cause::Elsewhere, None)),
                () = tokio::time::sleep_until(next) => {}
            }
            let unfinished = self.look(entry, case).await?;
            if next >= until {
                return Ok(unfinished);
            }
            *distance = distance.saturating_mul(2).min(LAST_LOOK);
        }
    }

    /// What has become of a grant that another process is at.
    async fn look(&self, entry: &Entry, case: &Case) -> Result<Unfinished, Landing> {
        let grant = match self.context.store.grant(entry.id).await {
            Ok(Some(grant)) => grant,
            Ok(None) => return Err(Landing::Ended(EndReason::Expired)),
            Err(error) => return Err(self.store_away(entry, &error)),
        };
        match grant.state {
            GrantState::Ended { reason, .. } => Err(Landing::Ended(reason)),
            _ if grant.generation != case.grant.generation => {
                self.count(case, RefreshOutcome::Moved);
                Err(self.moved(grant))
            }
            GrantState::InDoubt { since, retried } => Ok(Unfinished { since, retried }),
            // Its request came to nothing: what keeps it from the EHR will keep us, for a moment at least.
            GrantState::Live => Err(self.held(entry, Cause::Passing, None)),
        }
    }

    /// After an unknown outcome: whether the old refresh token may be tried now. `lease`: ours, or one that was
    /// seen to stand still; it is taken over only to act.
    async fn doubt(&self, entry: &Entry, case: &Case, lease: Lease, known: Unfinished) -> Result<Doubtful, Landing> {
        let (now, wall) = (self.now(), self.context.clock.now());
        let age = entry.age_of_intent(known.since, wall, now);
        let doubt = Doubt::new(&case.rules, entry.serves_until(), age, now);
        if !doubt.in_grace(now) && now < doubt.try_at {
            return if doubt.look_at <= now {
                Ok(Doubtful::Wait(doubt.try_at))
            } else {
                Err(Landing::Doubtful { doubt, caller: self.old(entry) })
            };
        }
        let mut fence = lease.fence;
        let Unfinished { mut retried, .. } = known;
        if !retried
            && !doubt.in_grace(now)
            && let Some(landing) = self.spared(entry, case)
        {
            return Err(landing);
        }
        if lease.owner != self.context.replicas.me() {
            match self.context.store.take_over(entry.id, lease, self.context.replicas.me(), wall).await {
                Ok(Begun::InDoubt { retried: by_now, .. }) => (fence, retried) = (fence.saturating_add(1), by_now),
                Ok(Begun::Ended(reason)) => return Err(Landing::Ended(reason)),
                Ok(Begun::Moved(grant)) => {
                    self.count(case, RefreshOutcome::Moved);
                    return Err(self.moved(*grant));
                }
                // It showed itself after all, or somebody was faster.
                Ok(Begun::Lost(_) | Begun::Won { .. }) => return Ok(Doubtful::Wait(now + BEAT)),
                Err(error) => return Err(self.store_away(entry, &error)),
            }
            tracing::warn!(grant = %entry.id, from = %lease.owner, "a refresh was taken over from a process that does not show itself");
            self.context.events.lease(LeaseMark::TakenOver);
        }
        if doubt.in_grace(now) {
            let intent = Intent { attempt: Attempt::InGrace, asked: now, fence: Some(fence), unsent: None };
            return Ok(Doubtful::Act(intent));
        }
        let grant = &case.grant;
        let noted_at = match entry.unsent(grant.generation) {
            // Recorded, and never sent.
            Some(Unsent::Try(noted)) => noted,
            _ => wall,
        };
        if retried && noted_at == wall {
            self.count(case, RefreshOutcome::LostRotation);
            return Err(self.end_dead(entry, case, EndReason::LostRotation).await);
        }
        let noted = self
            .insist(|| {
                self.context.store.retry_in_doubt(grant.id, grant.generation, self.context.replicas.me(), noted_at)
            })
            .await;
        let unsent = Some(Unsent::Try(noted_at));
        match noted {
            Ok(Some(fence)) => {
                Ok(Doubtful::Act(Intent { attempt: Attempt::Last, asked: now, fence: Some(fence), unsent }))
            }
            Ok(None) => Err(self.held(entry, Cause::Elsewhere, None)),
            Err(error) => {
                entry.set_unsent(grant.generation, unsent);
                Err(self.store_away(entry, &error))
            }
        }
    }

    /// Whether this process still holds the lease, if it took long from asking for leave to having it: it may have been
    /// stopped there, and another have taken over and spent the refresh token.
    pub(super) async fn holds(&self, entry: &Entry, case: &Case, intent: &Intent) -> Result<(), Landing> {
        let Some(fence) = intent.fence.filter(|_| self.shared()) else { return Ok(()) };
        let (id, me) = (case.grant.id, self.context.replicas.me());
        let (mut asked, mut looks) = (intent.asked, 0);
        // A lease that was raised so long ago at most is nobody else's yet.
        while self.now().saturating_duration_since(asked) >= BEAT * 2 {
            if looks == LOOKS_AT_LEASE || self.stop.is_cancelled() {
                entry.set_unsent(case.grant.generation, intent.unsent);
                return Err(self.held(entry, Cause::Store, None));
            }
            (asked, looks) = (self.now(), looks + 1);
            match self.insist(|| self.context.store.beat(id, me, fence)).await {
                Ok(true) => {}
                Ok(false) => {
                    self.look(entry, case).await?;
                    return Err(self.held(entry, Cause::Elsewhere, None));
                }
                Err(error) => {
                    entry.set_unsent(case.grant.generation, intent.unsent);
                    return Err(self.store_away(entry, &error));
                }
            }
        }
        Ok(())
    }

    /// Shows, until what it returns is dropped, that this process is at a grant. A beat that fails stops
    /// nothing: the answer is taken whoever holds the lease.
    pub(super) fn beating(&self, case: &Case, intent: &Intent) -> Option<AbortOnDropHandle<()>> {
        let fence = intent.fence.filter(|_| self.shared())?;
        let (store, events, boot) =
            (self.context.store.clone(), self.context.events.clone(), self.context.replicas.me());
        let (id, generation) = (case.grant.id, case.grant.generation);
        let beats = async move {
            loop {
                tokio::time::sleep(BEAT).await;
                match store.beat(id, boot, fence).await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => tracing::warn!(grant = %id, %error, "a beat of a refresh under way failed"),
                }
            }
            // Either our own answer has just been stored, or the lease is another's.
            let current = store.grant(id).await;
            if matches!(current, Ok(Some(grant)) if grant.generation == generation && matches!(grant.state, GrantState::InDoubt { .. }))
            {
                tracing::warn!(grant = %id, "a refresh under way was taken over by another process");
                events.lease(LeaseMark::Lost);
            }
        };
        Some(AbortOnDropHandle::new(self.context.handle.spawn(beats)))
    }
}

/// What is to be done about an unfinished refresh.
enum Doubtful {
    Act(Intent),
    /// Look again until then.
    Wait(Instant),
}
