//! Custody: keeping an EHR's tokens alive, sealed and single.
//!
//! ```text
//! bearer() ── fresh ──────────────────────────────► the bearer, from memory
//!     │  due ───► the bearer, and a flight ─┐
//!     │  expired ─► waits for the flight ◄──┤   one per grant, on the control runtime
//!     wheel ── warm and due ────────────────┘
//!                  intent ─► token request ─► store ─► memory ─► who waits
//! ```
//!
//! `machine` and, of refused tokens, `deaths` decide; `outcome` is the table of ends; `lease`, `refresh` and `ending` carry
//! out; `unasked` is what happens by itself, `ports` what custody says to others and asks of them.

mod budget;
mod deaths;
mod ending;
mod entry;
mod flights;
mod lease;
mod machine;
mod outages;
mod outcome;
mod ports;
mod refresh;
mod replay;
mod rules;
mod spill;
mod suspects;
mod unasked;
mod usage;
mod wheel;

use std::{sync::Arc, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    budget::Budget,
    deaths::{HOUR, Realm, Refusals, Suspected},
    machine::Cause,
    outcome::RefreshOutcome,
    ports::{
        Bearer, CustodyContext, CustodyEvents, CustodyFault, GrantPolicy, LeaseMark, Policies, RefreshAnswer,
        SessionLimits, SpillEvent, TokenEndpoint,
    },
    spill::{Spill, SpillFault, SpillKeys},
    wheel::Wheel,
};
use self::{
    budget::{Budgets, Room},
    entry::{Among, Entry, Flight, Table},
    flights::{Flights, Seat},
    machine::{Action, Event},
    outages::Outages,
    refresh::Job,
    replay::Pending,
    suspects::Suspects,
};
use crate::{
    clock::Instant,
    store::{EndReason, Grant, GrantId, GrantState},
};

/// A flight's end, for each who waits. No bearer: another process is at it, which is waited for by asking again.
type Flown = Result<Option<Bearer>, CustodyFault>;

/// An entry and the number of its flight.
type FlightKey = (GrantId, u64);

/// Custody of all grants in this process.
#[derive(Clone)]
pub struct Custody(Arc<Inner>);

struct Inner {
    context: CustodyContext,
    table: Table,
    flights: Flights<FlightKey, Flown>,
    wheel: Wheel,
    suspects: Suspects,
    pending: Pending,
    budgets: Budgets,
    outages: Outages,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A flight that is under way is looked for so often.
const LOOKS: u32 = 200;
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// What a caller is told whose own deadline came first.
const SOON: Duration = Duration::from_secs(1);

impl Custody {
    /// Starts the wheel, which reads the store for grants that need it though nobody asks.
    pub fn new(mut context: CustodyContext) -> Self {
        let flights = Flights::new(context.handle.clone());
        let spill = context.spill.take();
        for _ in 0..spill.as_ref().map_or(0, |spill| spill.bad) {
            context.events.spill(SpillEvent::Bad);
        }
        let inner = Arc::new(Inner {
            context,
            table: Table::new(),
            flights,
            wheel: Wheel::default(),
            suspects: Suspects::default(),
            pending: Pending::new(spill),
            budgets: Budgets::default(),
            outages: Outages::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let handle = &inner.context.handle;
        inner.tasks.spawn_on(inner.clone().turn(), handle);
        inner.tasks.spawn_on(inner.clone().share(), handle);
        if inner.context.store.shared() {
            inner.tasks.spawn_on(inner.clone().note_uses(), handle);
            inner.tasks.spawn_on(inner.clone().hear_of_deaths(), handle);
        }
        inner.tasks.spawn_on(inner.clone().try_suspects(), handle);
        inner.tasks.spawn_on(inner.clone().replay(), handle);
        inner.tell_depth();
        Self(inner)
    }

    /// Tries once to give the store what an earlier process left in the spill. What stays is tried again and
    /// again; until then its grants are served from it, and not refreshed.
    pub async fn recover(&self) {
        self.0.replay_round().await;
    }

    /// Whether the store has all that an earlier process left in the spill.
    pub fn recovered(&self) -> bool {
        self.0.recovered()
    }

    /// The EHR's bearer for a grant. A fresh one comes from memory; an expired one is waited for until
    /// `deadline`, which ends the waiting, never the refresh.
    ///
    /// # Errors
    /// [`CustodyFault::Ended`] only where the user must authorise again.
    pub async fn bearer(&self, grant: GrantId, deadline: Instant) -> Result<Bearer, CustodyFault> {
        let now = self.0.now();
        self.0.is_told(now)?;
        if let Some(bearer) = self.0.table.get(grant).and_then(|entry| entry.fresh(now)) {
            return Ok(bearer);
        }
        let asked = async {
            let entry = self.0.known(grant).await?;
            match self.0.ask(&entry, Event::Asked).await? {
                Some(bearer) => Ok(bearer),
                None => Err(CustodyFault::Unavailable { retry_after: SOON }),
            }
        };
        in_time(deadline, asked).await
    }

    /// After an upstream 401 to the bearer of `generation`: another bearer to try once, or none where the
    /// refusal is that resource's and the grant lives.
    ///
    /// # Errors
    /// As [`Self::bearer`].
    pub async fn refused(
        &self,
        grant: GrantId,
        generation: i64,
        deadline: Instant,
    ) -> Result<Option<Bearer>, CustodyFault> {
        self.0.is_told(self.0.now())?;
        let asked = async {
            let entry = self.0.known(grant).await?;
            let current = generation >= entry.generation();
            match self.0.ask(&entry, Event::Refused { current }).await? {
                // The refresh came to nothing and the old bearer was refused: nobody can tell more now.
                Some(bearer) if bearer.generation <= generation => Err(CustodyFault::Unavailable { retry_after: SOON }),
                other => Ok(other),
            }
        };
        in_time(deadline, asked).await
    }

    /// Takes up a grant as the store has it: a new one, or one whose generation has moved on.
    pub fn adopt(&self, grant: &Grant) {
        self.0.adopt(grant);
    }

    /// A grant as somebody else has just read it from the store: if its generation is newer than what is known
    /// here, no older bearer is served with it.
    pub fn seen(&self, grant: &Grant) {
        let known = self.0.table.get(grant.id).filter(|entry| entry.generation() < grant.generation);
        if let Some(entry) = known {
            self.0.renew(&entry, grant, grant.tokens.received.until(self.0.context.clock.now()), self.0.now());
        }
    }

    /// Forgets a grant that has ended. A flight under way finds that out from the store.
    pub fn forget(&self, grant: GrantId) {
        self.0.forget(grant);
    }

    /// Starts nothing more of its own and waits for the flights under way: what an EHR answers is stored.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.0.flights.landed().await;
        if !self.0.pending.is_empty() {
            // What the store does not take now waits in the spill for the next start.
            self.0.replay_round().await;
        }
    }
}

async fn in_time<T>(
    deadline: Instant,
    asked: impl Future<Output = Result<T, CustodyFault>>,
) -> Result<T, CustodyFault> {
    let late = Err(CustodyFault::Unavailable { retry_after: SOON });
    tokio::time::timeout_at(deadline, asked).await.unwrap_or(late)
}

impl Inner {
    fn now(&self) -> Instant {
        self.context.clock.monotonic()
    }

    /// Whether this process knows which grants have ended elsewhere (`custody.md`, "Ended means ended").
    fn is_told(&self, now: Instant) -> Result<(), CustodyFault> {
        if self.context.replicas.stale(now) {
            return Err(CustodyFault::Unavailable { retry_after: SOON });
        }
        Ok(())
    }

    fn among(&self, id: GrantId) -> Among {
        Among { shared: self.context.store.shared(), first: self.context.replicas.first_for(id) }
    }

    /// Takes up a grant's newer generation.
    fn renew(&self, entry: &Entry, grant: &Grant, age: Duration, now: Instant) {
        // Before its bearer is served: what the EHR confines may have changed with it.
        if entry.is_about_else(grant) {
            self.context.events.changed(grant);
        }
        entry.renew(grant, self.context.policies.of(grant).as_ref(), self.among(grant.id), age, now);
        self.wheel.set(grant.id, entry.next_wake(now));
    }

    /// The entry of a grant, from the store if need be.
    async fn known(&self, id: GrantId) -> Result<Arc<Entry>, CustodyFault> {
        for _ in 0..5 {
            let before = self.table.mark(id);
            if let Some(entry) = self.table.get(id) {
                return Ok(entry);
            }
            let entry = self.read(id).await?;
            if !self.table.removed_since(id, before) {
                return Ok(entry);
            }
            // It ended while it was read.
            self.table.remove(id);
        }
        Err(CustodyFault::Unavailable { retry_after: SOON })
    }

    async fn read(&self, id: GrantId) -> Result<Arc<Entry>, CustodyFault> {
        match self.context.store.grant(id).await {
            Ok(Some(Grant { state: GrantState::Ended { reason, .. }, .. })) => Err(CustodyFault::Ended(reason)),
            Ok(Some(grant)) => Ok(self.adopt(&grant)),
            // What the store has forgotten ended long ago.
            Ok(None) => Err(CustodyFault::Ended(EndReason::Expired)),
            Err(error) => {
                tracing::warn!(grant = %id, %error, "a grant cannot be read");
                Err(CustodyFault::Unavailable { retry_after: SOON })
            }
        }
    }

    fn adopt(&self, grant: &Grant) -> Arc<Entry> {
        let (now, wall) = (self.now(), self.context.clock.now());
        let overlaid = self.overlaid(grant);
        let grant = overlaid.as_ref().map_or(grant, |(grant, _)| grant);
        let policy = self.context.policies.of(grant);
        let among = self.among(grant.id);
        let (rules, mut state) = entry::read(grant, policy.as_ref(), among, wall, now);
        if overlaid.is_some() {
            Self::hold_for_replay(&mut state);
        }
        let budget = self.budgets.known(self.context.policies.budget(grant));
        let entry = self.table.enter(Entry::new(grant, budget, self.outages.of(&grant.site), rules, state, wall, now));
        if entry.generation() < grant.generation {
            let age = grant.tokens.received.until(wall);
            match overlaid {
                Some(_) => entry.keep(grant, policy.as_ref(), among, age, now),
                None => self.renew(&entry, grant, age, now),
            }
        } else {
            self.wheel.set(grant.id, entry.next_wake(now));
        }
        if let Some((_, kept)) = &overlaid {
            self.overlay_settled(&entry, kept);
        }
        entry
    }

    fn forget(&self, id: GrantId) {
        self.table.remove(id);
        self.wheel.set(id, None);
        self.suspects.ended(id);
    }

    /// Puts an event to the machine and does what it says. None: the EHR's refusal stands.
    async fn ask(self: &Arc<Self>, entry: &Arc<Entry>, event: Event) -> Result<Option<Bearer>, CustodyFault> {
        for _ in 0..LOOKS {
            let now = self.now();
            let (action, flight) = entry.step(event, now);
            let seat = match action {
                Action::Serve => return Ok(entry.alive(now)),
                Action::ServeAndFly => {
                    drop(self.start(entry, flight, Job::Refresh));
                    return Ok(entry.alive(now));
                }
                Action::Fly => Some(self.start(entry, flight, Job::Refresh)),
                Action::End(reason) => Some(self.start(entry, flight, Job::End(reason))),
                Action::Join => self.flights.find(&(entry.id, flight.number)).inspect(|_| self.context.events.joined()),
                // Back to the machine, which lets it fly now.
                Action::Unavailable { cause: Cause::Passing, .. } if entry.press(now) => continue,
                Action::Unavailable { cause, after } => {
                    // A refused bearer may have brought its next try forward.
                    if matches!(event, Event::Refused { .. }) {
                        self.wheel.set(entry.id, entry.next_wake(now));
                    }
                    return Err(CustodyFault::of(cause, after.max(SOON)));
                }
                Action::Over(reason) => return Err(CustodyFault::Ended(reason)),
                Action::Theirs | Action::TakeOver | Action::Watch(_) | Action::Sleep(_) | Action::Rest => {
                    return Ok(None);
                }
            };
            if let Some(seat) = seat {
                let flown = seat.answer().await.unwrap_or(Err(CustodyFault::Unavailable { retry_after: SOON }))?;
                if flown.is_some() {
                    entry.touch(self.now());
                    return Ok(flown);
                }
            }
            // It has landed since the step, and the next one says something else; or its starter lost the processor
            // after its own step, and it is not on the board yet.
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        Err(CustodyFault::Unavailable { retry_after: SOON })
    }

    fn start(self: &Arc<Self>, entry: &Arc<Entry>, flight: Flight, job: Job) -> Seat<Flown> {
        let room = self.budgets.begin(&entry.budget, self.now());
        self.start_in(entry, flight, job, room)
    }

    fn start_in(self: &Arc<Self>, entry: &Arc<Entry>, flight: Flight, job: Job, room: Room) -> Seat<Flown> {
        self.wheel.set(entry.id, None);
        let (inner, entry) = (self.clone(), entry.clone());
        self.flights.join((entry.id, flight.number), || inner.fly(entry, job, flight, room))
    }
}

#[cfg(test)]
mod tests;
