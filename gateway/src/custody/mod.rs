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
//! `machine` and, of refused tokens, `deaths` decide; `outcome` is the table of ends; `lease` and `refresh` carry out; the
//! rest is here.

mod budget;
mod deaths;
mod entry;
mod flights;
mod lease;
mod machine;
mod outages;
mod outcome;
mod refresh;
mod replay;
mod spill;
mod suspects;
mod usage;
mod wheel;

use std::{cmp::Reverse, sync::Arc, time::Duration};

use async_trait::async_trait;
use mantel_adapters::{
    profile::{Meaning, TokenPolicy},
    site::{RegistrationId, SiteId, VendorId},
};
use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    budget::Budget,
    deaths::{HOUR, Realm, Refusals, Suspected},
    machine::Cause,
    outcome::RefreshOutcome,
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
    clock::{Instant, SharedClock},
    entropy::SharedEntropy,
    replicas::Replicas,
    secret::Secret,
    store::{BootId, EndReason, Grant, GrantFacts, GrantId, GrantState, SharedStore},
};

/// An EHR's access token, and the generation of the grant that it belongs to.
#[derive(Clone, Debug)]
pub struct Bearer {
    pub token: Arc<Secret<String>>,
    pub generation: i64,
}

/// Why there is no bearer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CustodyFault {
    /// The user must authorise again.
    Ended(EndReason),
    /// We, the store or the EHR cannot serve at present: never the user's fault.
    Unavailable { retry_after: Duration },
    /// Our registration at the EHR is wrong: an alarm, and the grant lives.
    Misconfigured { retry_after: Duration },
    /// The EHR holds the grant back until the user acts there.
    Suspended { retry_after: Duration },
    /// The EHR refuses this registration's refresh tokens in numbers: an alarm, and the grants live.
    Suspect { retry_after: Duration },
}

impl CustodyFault {
    fn of(cause: Cause, retry_after: Duration) -> Self {
        match cause {
            Cause::Misconfigured => Self::Misconfigured { retry_after },
            Cause::Suspended => Self::Suspended { retry_after },
            // Any renewal may end it before.
            Cause::Suspect => Self::Suspect { retry_after: retry_after.min(RELIEF) },
            Cause::Presumed => Self::Unavailable { retry_after: retry_after.min(RELIEF) },
            Cause::Passing | Cause::Store | Cause::Elsewhere => Self::Unavailable { retry_after },
        }
    }
}

/// What an EHR's token endpoint answered to a refresh.
#[derive(Clone, Debug)]
pub enum RefreshAnswer {
    Tokens {
        access: Secret<String>,
        /// None: the old one stays good (RFC 6749, 6).
        refresh: Option<Secret<String>>,
        /// `expires_in`.
        lifetime: Option<Duration>,
        scope: Option<String>,
        id_token: Option<Secret<String>>,
    },
    Refused {
        meaning: Meaning,
        retry_after: Option<Duration>,
        /// For the log: status and error code, nothing of the request.
        detail: String,
    },
    /// Certainly not sent: no connection was made.
    NotSent,
    /// Sent, or perhaps sent, and not answered as a token endpoint answers.
    Unknown,
}

/// An EHR's token endpoint.
#[async_trait]
pub trait TokenEndpoint: Send + Sync {
    async fn refresh(&self, grant: &Grant, refresh_token: &Secret<String>, scope: Option<&str>) -> RefreshAnswer;
}

/// `session_max` and `session_idle` of an app whose custody is a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    pub max: Duration,
    pub idle: Duration,
}

/// How a grant is kept.
#[derive(Clone, Debug)]
pub struct GrantPolicy {
    pub vendor: VendorId,
    /// Its `refresh_lifetime` only where the app says `keep_alive`.
    pub tokens: TokenPolicy,
    /// Only where the grant is to end by them.
    pub session: Option<SessionLimits>,
    /// How long an unused grant is refreshed where its refresh token dies with the access token
    /// (`session_idle`).
    pub cold_for: Duration,
}

/// The configuration's word on grants, by their site, registration and fingerprint.
pub trait Policies: Send + Sync {
    /// None: its site or registration is no longer configured.
    fn of(&self, grant: &Grant) -> Option<GrantPolicy>;

    /// What bounds the refreshes of a grant that nobody waits for.
    fn budget(&self, grant: &Grant) -> Budget {
        Budget { shared_by: grant.site.as_str().into(), at_once: AT_ONCE, per_minute: None }
    }

    /// What a refresh that was answered with `scope` changes in what the grant is about.
    fn learnt(&self, grant: &Grant, scope: &str) -> Option<GrantFacts>;
}

/// What happens to an answer in the spill: a closed set of labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SpillEvent {
    /// The store did not take it; it is durable in the spill.
    Spilled,
    /// The store has it now.
    Replayed,
    /// Its grant had moved on or ended.
    Dropped,
    /// It cannot be read, or the store does not know its grant: it was moved aside.
    Bad,
}

impl SpillEvent {
    pub const ALL: [Self; 4] = [Self::Spilled, Self::Replayed, Self::Dropped, Self::Bad];

    pub const fn text(self) -> &'static str {
        match self {
            Self::Spilled => "spilled",
            Self::Replayed => "replayed",
            Self::Dropped => "dropped",
            Self::Bad => "bad",
        }
    }
}

/// What is counted.
pub trait CustodyEvents: Send + Sync {
    fn refresh(&self, vendor: &VendorId, site: &SiteId, outcome: RefreshOutcome);
    /// Custody ended a grant.
    fn ended(&self, grant: &Grant, reason: EndReason);
    /// A refresh, here or elsewhere, changed what the grant is about; its new bearer is served from now on.
    fn changed(&self, grant: &Grant);
    /// A registration became suspect at a site, or is not any more.
    fn suspect(&self, registration: &RegistrationId, site: &SiteId, suspect: bool);
    /// A request joined a flight that was under way.
    fn joined(&self);
    /// The store did not take an EHR's answer: it is kept in memory and tried again.
    fn kept(&self);
    fn spill(&self, event: SpillEvent);
    /// Answers that are in the spill and not in the store.
    fn spill_depth(&self, answers: usize);
    /// Leases that changed hands.
    fn lease(&self, mark: LeaseMark);
}

/// A lease that changed hands while its owner was at work, or seemed to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseMark {
    /// This process lost it to another, which saw it stand still.
    Lost,
    /// This process took it over.
    TakenOver,
}

impl LeaseMark {
    pub const ALL: [Self; 2] = [Self::Lost, Self::TakenOver];

    pub const fn text(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::TakenOver => "taken_over",
        }
    }
}

pub struct CustodyContext {
    pub store: SharedStore,
    pub endpoint: Arc<dyn TokenEndpoint>,
    pub clock: SharedClock,
    pub entropy: SharedEntropy,
    /// The control runtime: flights and the wheel run there, whoever asked.
    pub handle: Handle,
    /// This process, the owner of its leases, and the others.
    pub replicas: Replicas,
    pub events: Arc<dyn CustodyEvents>,
    pub policies: Arc<dyn Policies>,
    /// A token request's own deadline, whoever waits for it.
    pub token_timeout: Duration,
    /// Where an answer goes that the store does not take. None: it is kept in memory, and lost with the process.
    pub spill: Option<Spill>,
}

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

/// What nobody used for so long is forgotten; the store knows it.
const FORGET_AFTER: Duration = Duration::from_secs(30 * 60);
const TIDY_EVERY: Duration = Duration::from_secs(60);

/// Grants read at once after a start.
const PAGE: u32 = 500;

/// A flight that is under way is looked for so often.
const LOOKS: u32 = 200;
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// What a caller is told whose own deadline came first.
const SOON: Duration = Duration::from_secs(1);

/// Refreshes of one site under way that nobody waits for, where nothing else is said: an EHR that answers within a second
/// renews a hundred thousand grants in an hour.
const AT_ONCE: usize = 32;

/// When to ask again where another grant's renewal may help.
const RELIEF: Duration = Duration::from_secs(30);

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

    // ---- what happens though nobody asks ---------------------------------------------------------------

    async fn turn(self: Arc<Self>) {
        let mut tidy = tokio::time::interval(TIDY_EVERY);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                mut due = self.wheel.due() => {
                    // Who comes first gets the room that there is.
                    due.sort_by_cached_key(|id| Reverse(self.table.get(*id).map(|entry| entry.last_use())));
                    for id in due {
                        self.wake(id).await;
                    }
                }
                due = self.budgets.due() => {
                    for id in due {
                        self.wake(id).await;
                    }
                }
                _ = tidy.tick() => self.table.tidy(FORGET_AFTER, self.now()),
            }
        }
    }

    async fn wake(self: &Arc<Self>, id: GrantId) {
        let entry = match self.known(id).await {
            Ok(entry) => entry,
            Err(CustodyFault::Ended(_)) => return,
            Err(_) => return self.wheel.set_if_none(id, self.now() + Duration::from_secs(5)),
        };
        let now = self.now();
        let mut room = None;
        if let Some(used) = entry.would_fly(now) {
            room = self.budgets.ask(&entry.budget, id, used, now);
            if room.is_none() {
                return;
            }
        }
        let (action, flight) = entry.step(Event::Woken, now);
        match action {
            Action::Fly => {
                let room = room.unwrap_or_else(|| self.budgets.begin(&entry.budget, now));
                drop(self.start_in(&entry, flight, Job::Refresh, room));
            }
            Action::End(reason) => drop(self.start(&entry, flight, Job::End(reason))),
            Action::Sleep(at) => self.wheel.set(id, Some(at)),
            _ => {}
        }
    }

    /// Reads the store after a start, and whenever a process has come or gone: its share is another's then.
    async fn share(self: Arc<Self>) {
        let mut changes = self.context.replicas.changes();
        let mut among: Option<Vec<BootId>> = None;
        loop {
            let living: Vec<_> = changes.borrow_and_update().iter().map(|replica| replica.boot).collect();
            // What the others say of themselves moves no share.
            if among.as_ref() != Some(&living) {
                self.read_all().await;
                among = Some(living);
            }
            let changed = self.stop.run_until_cancelled(changes.changed()).await;
            if !matches!(changed, Some(Ok(()))) {
                return;
            }
        }
    }

    /// Finds the grants that must not wait for their next use: doubtful ones, those that end by time, those
    /// whose refresh token dies with the access token.
    async fn read_all(&self) {
        let (mut after, mut failures) = (None, 0);
        loop {
            let page = tokio::select! {
                () = self.stop.cancelled() => return,
                page = self.context.store.grants_after(after, PAGE) => page,
            };
            match page {
                Ok(page) => {
                    let Some(last) = page.last() else { return };
                    after = Some(last.id);
                    failures = 0;
                    for grant in &page {
                        self.note(grant);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the grants cannot be read; trying again");
                    failures += 1;
                    let wait = Cause::Store.wait(failures, None, u32::MAX);
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        () = tokio::time::sleep(wait) => {}
                    }
                }
            }
        }
    }

    fn note(&self, grant: &Grant) {
        if !self.context.replicas.first_for(grant.id) {
            return;
        }
        let now = self.now();
        // Its turn is set when the store has its answer.
        if self.overlaid(grant).is_some() {
            return;
        }
        let policy = self.context.policies.of(grant);
        let (rules, state) = entry::read(grant, policy.as_ref(), self.among(grant.id), self.context.clock.now(), now);
        let wake = if state.needs_wheel(&rules) { state.next_wake(&rules, now) } else { state.keep_by() };
        if let Some(at) = wake {
            self.wheel.set_if_none(grant.id, at);
        }
    }
}

#[cfg(test)]
mod tests;
