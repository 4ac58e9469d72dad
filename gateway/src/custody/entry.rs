//! A grant in memory: the bearer that is served, beside the machine's state.

use std::{
    collections::{HashMap, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;

use super::{
    Bearer, GrantPolicy,
    machine::{Action, Doubt, Event, Rules, State, Times},
    outages::Outage,
    usage,
};
use crate::{
    clock::{Instant, Timestamp},
    secret::Secret,
    store::{Grant, GrantId, GrantState},
};

/// What a fresh request needs, and nothing else.
struct Held {
    /// Shared with who is served: to copy a kilobyte, and to wipe the copy, would be most of a fresh request's cost.
    token: Arc<Secret<String>>,
    generation: i64,
    due: Instant,
    expires: Instant,
}

pub(super) struct Entry {
    pub id: GrantId,
    /// The budget that its refreshes share.
    pub budget: Arc<str>,
    /// What is known of its site.
    pub outage: Arc<Outage>,
    held: ArcSwap<Held>,
    /// Last use in nanoseconds since `born`, plus one; zero: none.
    used: AtomicU64,
    born: Instant,
    /// Of what the grant is about, as the bearer's generation has it: a change of it is told.
    about: AtomicU64,
    guts: Mutex<Guts>,
}

/// What the store may hold of ours though nothing was sent for it: its answer was lost, or it could not be cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unsent {
    /// Of a first request; or of one that was answered, and not with tokens.
    Intent,
    /// Of the one try after an unknown outcome, with the time that it was recorded with.
    Try(Timestamp),
}

struct Guts {
    state: State,
    rules: Rules,
    /// Numbers the flights of this entry: the key of the one under way.
    flight: u64,
    /// When its use was last noted in the store.
    noted: Option<Instant>,
    intent: Option<KnownIntent>,
    /// Of the grant's generation.
    unsent: Option<(i64, Unsent)>,
}

/// How old an intent was when this process first knew of it: from then on it ages by the monotonic clock. A wall
/// clock that is set back would make a doubt last as long as it is behind.
struct KnownIntent {
    since: Timestamp,
    age: Duration,
    at: Instant,
}

/// What a step says of the flight that it starts or that is under way.
#[derive(Clone, Copy)]
pub(super) struct Flight {
    /// The key of it, for its grant.
    pub number: u64,
    /// Which tokens were looked at: newer ones need what was decided of these no more.
    pub generation: i64,
}

/// A grant's rules and state as the store has it.
pub(super) fn read(
    grant: &Grant,
    policy: Option<&GrantPolicy>,
    among: Among,
    wall: Timestamp,
    now: Instant,
) -> (Rules, State) {
    let rules = rules(policy, among);
    let lifetime = rules.lifetime(Some(grant.tokens.lifetime));
    let times = Times::new(&rules, lifetime, age(&rules, lifetime, grant.tokens.received, wall), now);
    let times = times.keeping(&rules, grant.tokens.refresh_end, grant.tokens.received.until(wall));
    let mut state = State::new(times, grant.tokens.refresh.is_some());
    if let GrantState::InDoubt { since, .. } = grant.state {
        state.doubt = Some(Doubt::new(&rules, times.expires, since.until(wall), now));
    }
    state.session_ends = policy
        .and_then(|policy| policy.session)
        .map(|session| now + session.max.saturating_sub(grant.created.until(wall)));
    (rules, state)
}

/// Clocks that are kept by NTP differ by less.
const SLIGHTLY: Duration = Duration::from_secs(5);

/// How old tokens are that the store has. Those that came after now did so by a clock that is ahead of ours, or
/// before ours was set back and this process started: nobody knows how long they live. They are served, and a 401 to
/// them is believed.
fn age(rules: &Rules, lifetime: Duration, received: Timestamp, wall: Timestamp) -> Duration {
    if wall.until(received) > SLIGHTLY { rules.min_interval(lifetime) } else { received.until(wall) }
}

/// This process's place among those that may work on a grant.
#[derive(Clone, Copy)]
pub(super) struct Among {
    /// There may be others.
    pub shared: bool,
    /// It is first to do what nobody asks for.
    pub first: bool,
}

pub(super) fn rules(policy: Option<&GrantPolicy>, among: Among) -> Rules {
    let rules = match policy {
        Some(policy) => {
            let idle = policy.session.map_or(policy.cold_for, |session| session.idle);
            let rules = Rules::new(&policy.tokens, idle, policy.session.is_some());
            Rules { keep_alive: policy.keep_alive, ..rules }
        }
        // A grant whose registration is gone is served while its token lives.
        None => Rules::new(&mantel_adapters::profile::TokenPolicy::default(), Duration::ZERO, false),
    };
    let session_idle = match among.shared {
        true => rules.session_idle.map(usage::shared_idle),
        false => rules.session_idle,
    };
    Rules { shared: among.shared, yields: !among.first, session_idle, ..rules }
}

impl Entry {
    pub(super) fn new(
        grant: &Grant,
        budget: Arc<str>,
        outage: Arc<Outage>,
        rules: Rules,
        state: State,
        wall: Timestamp,
        now: Instant,
    ) -> Self {
        let intent = match grant.state {
            GrantState::InDoubt { since, .. } => Some(KnownIntent { since, age: since.until(wall), at: now }),
            _ => None,
        };
        Self {
            id: grant.id,
            budget,
            outage,
            held: ArcSwap::from_pointee(Held::of(grant, &state.times)),
            used: AtomicU64::new(0),
            born: now,
            about: AtomicU64::new(about(grant)),
            guts: Mutex::new(Guts { state, rules, flight: 0, noted: None, intent, unsent: None }),
        }
    }

    /// The bearer, if it is fresh: no lock, no store.
    pub(super) fn fresh(&self, now: Instant) -> Option<Bearer> {
        let held = self.held.load();
        (now < held.due).then(|| {
            self.touch(now);
            held.bearer()
        })
    }

    /// The bearer, if it lives.
    pub(super) fn alive(&self, now: Instant) -> Option<Bearer> {
        let held = self.held.load();
        (now < held.expires).then(|| held.bearer())
    }

    /// Whether the grant is about something else than this entry knew; now it knows.
    pub(super) fn is_about_else(&self, grant: &Grant) -> bool {
        let now = about(grant);
        self.about.swap(now, Ordering::Relaxed) != now
    }

    pub(super) fn generation(&self) -> i64 {
        self.held.load().generation
    }

    pub(super) fn touch(&self, now: Instant) {
        let nanos = u64::try_from(now.saturating_duration_since(self.born).as_nanos()).unwrap_or(u64::MAX - 1);
        self.used.fetch_max(nanos + 1, Ordering::Relaxed);
    }

    /// How old the intent of that time is.
    pub(super) fn age_of_intent(&self, since: Timestamp, wall: Timestamp, now: Instant) -> Duration {
        let mut guts = self.guts();
        match &guts.intent {
            Some(known) if known.since == since => known.age + now.saturating_duration_since(known.at),
            _ => {
                let age = since.until(wall);
                guts.intent = Some(KnownIntent { since, age, at: now });
                age
            }
        }
    }

    /// One step of the machine, and the flight that it speaks of.
    pub(super) fn step(&self, event: Event, now: Instant) -> (Action, Flight) {
        let mut guts = self.guts();
        let Guts { state, rules, flight, .. } = &mut *guts;
        let action = state.step(rules, event, now);
        if matches!(action, Action::Fly | Action::ServeAndFly | Action::End(_)) {
            *flight += 1;
        }
        if state.ended.is_some() {
            self.held.store(Arc::new(Held {
                token: Arc::new(Secret::from("")),
                generation: i64::MAX,
                due: now,
                expires: now,
            }));
        }
        // Under the lock: nothing newer is taken up between the two.
        (action, Flight { number: *flight, generation: self.held.load().generation })
    }

    /// A step by the end of a flight, unless newer tokens have come meanwhile, about which it says nothing.
    pub(super) fn end_of_flight(&self, flight: Flight, event: Event, now: Instant) {
        let mut guts = self.guts();
        let Guts { state, rules, flight: number, .. } = &mut *guts;
        if flight.number == *number && flight.generation == self.held.load().generation {
            state.step(rules, event, now);
        }
    }

    /// New tokens, stored before: from now on they are served. `age`: since the EHR's answer.
    pub(super) fn renew(&self, grant: &Grant, policy: Option<&GrantPolicy>, among: Among, age: Duration, now: Instant) {
        self.take(grant, policy, among, age, now, |times, refreshable| Event::Renewed { times, refreshable });
    }

    /// The same for new tokens that are durable in the spill and not in the store.
    pub(super) fn keep(&self, grant: &Grant, policy: Option<&GrantPolicy>, among: Among, age: Duration, now: Instant) {
        self.take(grant, policy, among, age, now, |times, refreshable| Event::Spilled { times, refreshable });
    }

    fn take(
        &self,
        grant: &Grant,
        policy: Option<&GrantPolicy>,
        among: Among,
        age: Duration,
        now: Instant,
        event: impl FnOnce(Times, bool) -> Event,
    ) {
        let mut guts = self.guts();
        // Read before newer ones came.
        if grant.generation < self.held.load().generation {
            return;
        }
        guts.rules = rules(policy, among);
        let times = Times::new(&guts.rules, guts.rules.lifetime(Some(grant.tokens.lifetime)), age, now);
        let times = times.keeping(&guts.rules, grant.tokens.refresh_end, age);
        let Guts { state, rules, .. } = &mut *guts;
        state.step(rules, event(times, grant.tokens.refresh.is_some()), now);
        if state.ended.is_none() {
            self.held.store(Arc::new(Held::of(grant, &times)));
        }
    }

    pub(super) fn unsent(&self, generation: i64) -> Option<Unsent> {
        self.guts().unsent.filter(|(of, _)| *of == generation).map(|(_, unsent)| unsent)
    }

    pub(super) fn set_unsent(&self, generation: i64, unsent: Option<Unsent>) {
        self.guts().unsent = unsent.map(|unsent| (generation, unsent));
    }

    /// Whether it may be tried for one who asks though its backoff lasts; then its backoff is over.
    pub(super) fn press(&self, now: Instant) -> bool {
        let mut guts = self.guts();
        let Guts { state, rules, .. } = &mut *guts;
        let pressed = state.pressable(now).is_some_and(|failed| self.outage.admits(failed, now));
        if pressed {
            state.step(rules, Event::Pressed, now);
        }
        pressed
    }

    /// When it may help to ask for it again, if its backoff keeps it from being refreshed.
    pub(super) fn ask_again(&self, now: Instant) -> Option<Instant> {
        self.guts().state.hold.map(|hold| hold.askers).filter(|at| now < *at)
    }

    /// Whether the wheel would start a refresh now, and the last use.
    pub(super) fn would_fly(&self, now: Instant) -> Option<Instant> {
        let guts = self.guts();
        let mut state = guts.state;
        let flies = state.step(&guts.rules, Event::Woken, now) == Action::Fly;
        flies.then(|| state.last_use())
    }

    pub(super) fn last_use(&self) -> Instant {
        self.guts().state.last_use()
    }

    pub(super) fn next_wake(&self, now: Instant) -> Option<Instant> {
        let guts = self.guts();
        guts.state.next_wake(&guts.rules, now)
    }

    /// After what disuse it ends, if that could be its end now: its session has its time still.
    pub(super) fn idle_limit(&self, now: Instant) -> Option<Duration> {
        let guts = self.guts();
        guts.rules.session_idle.filter(|_| guts.state.session_ends.is_none_or(|end| now < end))
    }

    /// How long ago it was used, if other processes are to be told: it was since they were, and that is a while ago.
    pub(super) fn to_be_noted(&self, now: Instant) -> Option<Duration> {
        let guts = self.guts();
        let (idle, used) = (guts.rules.session_idle?, guts.state.used?);
        let due = guts.noted.is_none_or(|noted| noted < used && noted + usage::noted_every(idle) <= now);
        due.then(|| now.saturating_duration_since(used))
    }

    pub(super) fn noted(&self, now: Instant) {
        self.guts().noted = Some(now);
    }

    pub(super) fn serves_until(&self) -> Instant {
        self.guts().state.serves_until()
    }

    fn forgettable(&self, unused_for: Duration, now: Instant) -> bool {
        let guts = self.guts();
        guts.state.forgettable(&guts.rules, unused_for, now)
    }

    /// The machine's state is whole after each step, so a panic elsewhere spoils nothing.
    fn guts(&self) -> MutexGuard<'_, Guts> {
        let mut guts = self.guts.lock().unwrap_or_else(PoisonError::into_inner);
        let used = self.used.load(Ordering::Relaxed);
        if used > 0 {
            guts.state.used = Some(self.born + Duration::from_nanos(used - 1));
        }
        guts
    }
}

/// A digest of a grant's facts, for this process alone.
fn about(grant: &Grant) -> u64 {
    let mut hasher = DefaultHasher::new();
    // Facts that cannot be written are those that nobody could have stored.
    serde_json::to_vec(&grant.facts).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

impl Held {
    fn of(grant: &Grant, times: &Times) -> Self {
        Self {
            token: Arc::new(grant.tokens.access.clone()),
            generation: grant.generation,
            due: times.due,
            expires: times.expires,
        }
    }

    fn bearer(&self) -> Bearer {
        Bearer { token: self.token.clone(), generation: self.generation }
    }
}

/// The grants in memory, in shards so that workers do not meet.
pub(super) struct Table {
    shards: [Shard; SHARDS],
}

const SHARDS: usize = 64;

/// So many removals of a shard are remembered by name.
const REMEMBERED: usize = 128;

type Shard = RwLock<Inside>;

#[derive(Default)]
struct Inside {
    entries: HashMap<GrantId, Arc<Entry>>,
    /// Counts what was removed: who read the store before and enters after would bring an ended grant back.
    removed: usize,
    /// The last of it. By the count alone the end of one grant would disturb others that are being read.
    last: VecDeque<GrantId>,
}

fn read_lock(shard: &Shard) -> RwLockReadGuard<'_, Inside> {
    shard.read().unwrap_or_else(PoisonError::into_inner)
}

fn write_lock(shard: &Shard) -> RwLockWriteGuard<'_, Inside> {
    shard.write().unwrap_or_else(PoisonError::into_inner)
}

/// A moment in the life of a shard.
#[derive(Clone, Copy)]
pub(super) struct Mark(usize);

impl Table {
    pub(super) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| Shard::default()) }
    }

    fn shard(&self, id: GrantId) -> &Shard {
        // The last byte of a UUID is random in each version.
        let [.., last] = id.0.into_bytes();
        let [first, ..] = &self.shards;
        self.shards.get(usize::from(last) % SHARDS).unwrap_or(first)
    }

    pub(super) fn get(&self, id: GrantId) -> Option<Arc<Entry>> {
        read_lock(self.shard(id)).entries.get(&id).cloned()
    }

    /// The entry that stands: the one that was there before, else this.
    pub(super) fn enter(&self, entry: Entry) -> Arc<Entry> {
        write_lock(self.shard(entry.id)).entries.entry(entry.id).or_insert_with(|| Arc::new(entry)).clone()
    }

    pub(super) fn remove(&self, id: GrantId) {
        let mut inside = write_lock(self.shard(id));
        inside.entries.remove(&id);
        inside.removed = inside.removed.wrapping_add(1);
        if inside.last.len() == REMEMBERED {
            inside.last.pop_front();
        }
        inside.last.push_back(id);
    }

    /// To be taken before the store is read.
    pub(super) fn mark(&self, id: GrantId) -> Mark {
        Mark(read_lock(self.shard(id)).removed)
    }

    /// Whether a grant was removed since, or may have been.
    pub(super) fn removed_since(&self, id: GrantId, mark: Mark) -> bool {
        let inside = read_lock(self.shard(id));
        let since = inside.removed.wrapping_sub(mark.0);
        since > inside.last.len() || inside.last.iter().rev().take(since).any(|removed| *removed == id)
    }

    /// The entries of which there is something to say, with that.
    pub(super) fn all<T>(&self, of: impl Fn(&Entry) -> Option<T>) -> Vec<(Arc<Entry>, T)> {
        let mut found = Vec::new();
        for shard in &self.shards {
            found.extend(read_lock(shard).entries.values().filter_map(|entry| Some((entry.clone(), of(entry)?))));
        }
        found
    }

    /// Forgets what was not used for long, so that memory is bounded by the grants in use.
    pub(super) fn tidy(&self, unused_for: Duration, now: Instant) {
        for shard in &self.shards {
            write_lock(shard).entries.retain(|_, entry| !entry.forgettable(unused_for, now));
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| read_lock(shard).entries.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    /// All of one shard: the last byte decides.
    fn id(number: u128) -> GrantId {
        GrantId(Uuid::from_u128(number << 8))
    }

    #[test]
    fn the_end_of_a_grant_disturbs_no_other() {
        let table = Table::new();
        let mark = table.mark(id(0));
        assert!(!table.removed_since(id(0), mark));
        for other in 1..=REMEMBERED as u128 {
            table.remove(id(other));
        }
        assert!(!table.removed_since(id(0), mark));
        assert!(table.removed_since(id(1), mark));
        let later = table.mark(id(1));
        assert!(!table.removed_since(id(1), later), "that was before");
        table.remove(id(0));
        assert!(table.removed_since(id(0), later));
        assert!(!table.removed_since(id(1), later));
    }

    #[test]
    fn what_is_no_longer_remembered_may_have_been_any() {
        let table = Table::new();
        let mark = table.mark(id(0));
        for other in 1..=1 + REMEMBERED as u128 {
            table.remove(id(other));
        }
        assert!(table.removed_since(id(0), mark));
    }
}
