//! What a storm cost, from the EHRs' own ledgers and the wires': each loss by its cause, and what has none.
//!
//! Nothing here is near enough: what is compared was noted in this process, by one clock, before and after it was
//! done; and where a gateway may take its time, the bound is the product's own.

use std::collections::BTreeMap;

use super::{
    journal::{Concern, Event, What},
    login::{GRACE, Logout},
};
use crate::{
    ehr::auth::state::{GrantView, RefreshView},
    harness::wire::{Exchange, Passage},
};

/// A store that takes an answer no faster is as good as away, and the answer goes to the spill
/// (`custody/replay.rs`, `PATIENCE`).
const PATIENCE: i64 = 3_000;

/// And after that, where both were away, until both are asked again (`custody/refresh.rs`, `store_answer`).
const ASKED_AGAIN: i64 = 5_000;

/// An answer that is written to a healthy disk is durable within that.
const WRITTEN: i64 = 1_000;

/// So long after an unknown outcome the one try is made, by the earliest (`custody.md`, "Unknown outcomes").
const DOUBT: i64 = 60_000;

/// The longest backoff after a passing trouble.
const BACKOFF: i64 = 60_000;

/// A token falls due at 60 % of its life, by the earliest (`custody/machine.rs`, `due_after`), and instants in
/// the store are whole milliseconds.
const DUE: (i64, i64) = (3, 5);
const ROUNDING: i64 = 5;

/// Why the outcome of a refresh is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// The answer was swallowed on purpose.
    Swallowed,
    /// The connection to the EHR was cut before the answer had come through.
    CutOff,
    /// The process was killed before the answer was durable.
    Killed,
}

/// Why a login is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The EHR had rotated, its answer never became durable here, and the one try after a minute was refused.
    Lost(Loss),
    /// The one try after an unknown outcome had no known outcome either.
    LostTwice(Loss),
    /// The refresh token died with the access token, while the EHR could not be asked.
    DiedWithAccess,
    /// The app repeated its own refresh after the 30 s in which that is taken for a lost answer.
    RepeatedLate,
    /// The app gave up a refresh of its own that a gateway had, which was stopped or waited for the store, went on
    /// with the answer to its repetition, and the first was then a token that had been used.
    Overtaken,
}

impl Cause {
    pub const fn text(self) -> &'static str {
        match self {
            Self::Lost(Loss::Swallowed) => "rotated, and the answer was swallowed",
            Self::Lost(Loss::CutOff) => "rotated, and the connection was cut",
            Self::Lost(Loss::Killed) => "rotated, and the gateway was killed before that was durable",
            Self::LostTwice(_) => "the one try after an unknown outcome was cut as well",
            Self::DiedWithAccess => "the refresh token died with the access token, while the EHR could not be asked",
            Self::RepeatedLate => "the app heard nothing for 30 s, and repeated its own refresh after that",
            Self::Overtaken => "the app's own refresh was held up in a gateway while its repetition was answered",
        }
    }
}

/// One EHR's line of the report.
#[derive(Clone, Debug, Default)]
pub struct Line {
    pub site: String,
    pub logins: usize,
    pub refreshes: u64,
    pub served: u64,
    pub later: u64,
    pub no_ehr: u64,
    pub busy: u64,
    pub theirs: u64,
    pub unheard: u64,
    /// Refresh tokens that came twice, after a loss.
    pub tried_again: u64,
    pub logouts: u64,
}

/// How an EHR keeps its refresh tokens.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// They are burnt at each use.
    pub rotates: bool,
    /// They die with the access token.
    pub dies: bool,
    /// Of access tokens, in milliseconds.
    pub lifetime: i64,
}

/// What one EHR and the way to it know.
pub struct Books<'a> {
    pub site: &'a str,
    pub habits: Habits,
    pub grants: &'a [GrantView],
    /// The refresh requests that came to its wire, by the digest of their refresh token.
    pub exchanges: &'a [Exchange],
    /// How often a bearer asked for another patient's record.
    pub beyond: u64,
    /// What went wrong, of all that did.
    pub events: &'a [Event],
    /// Where the gateways' spill lies on the disk that the store is on.
    pub one_disk: bool,
}

/// A login, as the account needs it.
pub struct Past<'a> {
    pub username: &'a str,
    /// At the EHR.
    pub client_id: String,
    pub patient: &'a str,
    pub logouts: Vec<Logout>,
}

/// What one EHR's books say.
#[derive(Debug, Default)]
pub struct Findings {
    pub refreshes: u64,
    pub tried_again: u64,
    pub logouts: BTreeMap<Cause, u64>,
    pub violations: Vec<String>,
}

/// Of the whole storm.
#[derive(Debug, Default)]
pub struct Account {
    pub lines: Vec<Line>,
    pub logouts: BTreeMap<Cause, u64>,
    pub violations: Vec<String>,
}

impl Account {
    pub fn add(&mut self, mut line: Line, findings: Findings) {
        line.refreshes = findings.refreshes;
        line.tried_again = findings.tried_again;
        line.logouts = findings.logouts.values().sum();
        self.lines.push(line);
        for (cause, count) in findings.logouts {
            *self.logouts.entry(cause).or_default() += count;
        }
        self.violations.extend(findings.violations);
    }
}

impl Books<'_> {
    pub fn judge(&self, logins: &[Past<'_>]) -> Findings {
        let mut findings = Findings::default();
        for grant in self.grants {
            findings.refreshes += grant.refreshes;
            self.paces(grant, &mut findings);
            self.uses(grant, &mut findings);
        }
        if self.beyond > 0 {
            findings.violations.push(format!("{}: {} bearers asked for another's record", self.site, self.beyond));
        }
        for login in logins {
            for logout in &login.logouts {
                let grant = self.current(login, logout);
                match self.cause(logout, grant) {
                    Some(cause) => *findings.logouts.entry(cause).or_default() += 1,
                    None => findings.violations.push(format!(
                        "{} {} {}: logged out without a cause; {logout:?} {grant:?}; sent: {:?}",
                        self.site,
                        login.client_id,
                        login.username,
                        grant.map(|grant| self.last_exchanges(grant))
                    )),
                }
            }
        }
        findings
    }

    /// The EHR's grant of a login: the last that began before its end. A launch that broke off left others.
    fn current(&self, login: &Past<'_>, logout: &Logout) -> Option<&GrantView> {
        self.grants
            .iter()
            .filter(|grant| grant.patient.as_deref() == Some(login.patient) && grant.client_id == login.client_id)
            .filter(|grant| (logout.since..=logout.at).contains(&grant.started))
            .max_by_key(|grant| grant.started)
    }

    /// No refresh token comes twice where it is burnt, but for one try after a loss.
    fn uses(&self, grant: &GrantView, findings: &mut Findings) {
        if !self.habits.rotates {
            return;
        }
        for token in &grant.refresh_tokens {
            let [first, second, more @ ..] = token.presented.as_slice() else { continue };
            let site = self.site;
            if !more.is_empty() {
                let times = token.presented.len();
                findings.violations.push(format!("{site}: a refresh token came {times} times; {grant:?}"));
            }
            findings.tried_again += 1;
            let sent = self.exchanges_of(token);
            if sent.first().and_then(|exchange| self.loss(exchange)).is_none() {
                findings.violations.push(format!(
                    "{site}: a refresh token came at {first} and again at {second}, and nothing was cut; sent: {sent:?}; {grant:?}"
                ));
            } else if second - self.intended(*first) < DOUBT - WRITTEN {
                findings.violations.push(format!(
                    "{site}: a refresh token came again after {} ms, before its doubt was over; {grant:?}",
                    second - first
                ));
            }
        }
    }

    /// When the intent of a request was recorded that came to the EHR then, by the earliest: what was held up on its
    /// way was recorded before that.
    fn intended(&self, came: i64) -> i64 {
        let holds = |event: &&Event| match &event.what {
            What::Stopped(_) | What::MachineSlow => true,
            What::EhrSilent(site) | What::EhrSlow(site) => site == self.site,
            what => what.concern() == Concern::Store,
        };
        let near = |event: &&Event| event.overlaps(came - WRITTEN, came);
        self.events.iter().filter(holds).filter(near).map(|event| event.from).fold(came, i64::min)
    }

    /// One refresh for each lifetime, whatever goes wrong: none is asked for before the token is due.
    fn paces(&self, grant: &GrantView, findings: &mut Findings) {
        let mut asked: Vec<i64> = grant.refresh_tokens.iter().flat_map(|token| &token.presented).copied().collect();
        asked.sort_unstable();
        // What has died with its access token is refused, and asked for once more before that is believed.
        asked.retain(|at| !self.habits.dies || *at < grant.access_until);
        let due = self.habits.lifetime * DUE.0 / DUE.1 - ROUNDING;
        for pair in asked.windows(2) {
            let [first, second] = *pair else { continue };
            if second - first < due {
                findings.violations.push(format!(
                    "{}: refreshed at {first} and again {} ms later; {grant:?}; sent: {:?}",
                    self.site,
                    second - first,
                    self.last_exchanges(grant)
                ));
            }
        }
    }

    fn cause(&self, logout: &Logout, grant: Option<&GrantView>) -> Option<Cause> {
        if let Some(cause) = grant.and_then(|grant| self.end_at_ehr(logout, grant)) {
            return Some(cause);
        }
        // It was rotated after the first try, and replayed before the last was answered.
        if logout.tried_for > GRACE {
            return Some(Cause::RepeatedLate);
        }
        let overtaken = logout.unheard.iter().any(|attempt| {
            self.events.iter().any(|event| {
                let held = match event.what {
                    What::Stopped(place) => attempt.gateway.is_none_or(|gateway| gateway == place),
                    _ => event.what.concern() == Concern::Store,
                };
                let went_on = event.until.is_some_and(|on| (attempt.until..=logout.at).contains(&on));
                held && event.from <= attempt.until && went_on
            })
        });
        overtaken.then_some(Cause::Overtaken)
    }

    fn end_at_ehr(&self, logout: &Logout, grant: &GrantView) -> Option<Cause> {
        let newest = grant.refresh_tokens.iter().max_by_key(|token| token.presented.last().copied())?;
        let refused = newest.presented.get(1).is_some_and(|again| *again <= logout.at);
        let sent: Vec<&Exchange> =
            self.exchanges_of(newest).into_iter().filter(|exchange| exchange.sent <= logout.at).collect();
        if self.habits.rotates
            && refused
            && let Some(loss) = sent.first().and_then(|first| self.loss(first))
        {
            return Some(Cause::Lost(loss));
        }
        if self.habits.dies && grant.access_until <= logout.at && self.kept_from_asking(grant) {
            return Some(Cause::DiedWithAccess);
        }
        let last = sent.last()?;
        let loss = self.loss(last)?;
        // The try before it, whose outcome was unknown too, may never have come to the wire.
        let before = last.sent - DOUBT;
        let known = sent.iter().any(|earlier| earlier.sent <= before && self.loss(earlier).is_some());
        // The try may have been put off, by a backoff of a minute at most (`custody/machine.rs`, `Cause::backoff`).
        let earliest = before - self.habits.lifetime - BACKOFF;
        let unsent =
            || self.events.iter().any(|event| (earliest..=before).contains(&event.from) && self.breaks_off(event));
        (known || unsent()).then_some(Cause::LostTwice(loss))
    }

    /// Whether the EHR could not be asked at some time between the token's being due and its end, so that it was
    /// not, or that what it answered is not known.
    fn kept_from_asking(&self, grant: &GrantView) -> bool {
        let due = grant.access_until - self.habits.lifetime + self.habits.lifetime * DUE.0 / DUE.1;
        self.events.iter().any(|event| self.concerns(event) && event.overlaps(due, grant.access_until))
            // What was asked for last time gave it this life, and nobody knows.
            || grant
                .refresh_tokens
                .iter()
                .flat_map(|token| self.exchanges_of(token))
                .any(|exchange| exchange.sent >= grant.access_until - 2 * self.habits.lifetime && self.loss(exchange).is_some())
    }

    /// Why the outcome of this request is not known to custody; none: it is.
    fn loss(&self, exchange: &Exchange) -> Option<Loss> {
        let (at, how) = exchange.end?;
        match how {
            Passage::Swallowed => Some(Loss::Swallowed),
            Passage::Cut => {
                let cut = |event: &Event| event.what == What::EhrCut(self.site.to_owned()) && event.overlaps(at, at);
                self.events.iter().any(cut).then_some(Loss::CutOff)
            }
            Passage::HungUp | Passage::Answered => {
                self.events.iter().any(|event| self.kills(event, exchange.sent, at)).then_some(Loss::Killed)
            }
        }
    }

    /// Whether a process was killed that had sent a request, before the answer, which came then, had to be durable.
    fn kills(&self, event: &Event, sent: i64, answered: i64) -> bool {
        let What::Killed(place) = event.what else { return false };
        if event.from < sent {
            return false;
        }
        let mut ready = answered;
        for held in self.events.iter().filter(|held| held.overlaps(answered, event.from)) {
            let store_too = || {
                self.one_disk
                    || self.events.iter().any(|other| {
                        let from = held.from.max(answered);
                        other.what.concern() == Concern::Store && other.overlaps(from, held.until.unwrap_or(event.from))
                    })
            };
            let blocks = match held.what {
                What::Stopped(stopped) => stopped == place,
                What::DiskFull(full) => full == place && store_too(),
                What::MachineSlow => true,
                _ => false,
            };
            if blocks {
                ready = ready.max(held.until.unwrap_or(event.from).min(event.from));
            }
        }
        let again = if ready > answered { ASKED_AGAIN } else { 0 };
        event.from <= ready + PATIENCE + again + WRITTEN
    }

    /// Whether a request may have been begun and never have come to the wire.
    fn breaks_off(&self, event: &Event) -> bool {
        match &event.what {
            What::Killed(_) => true,
            What::EhrCut(site) | What::EhrSilent(site) => site == self.site,
            _ => false,
        }
    }

    fn concerns(&self, event: &Event) -> bool {
        match event.what.concern() {
            Concern::Ehr(site) => site == self.site,
            Concern::Gateway(_) | Concern::Store | Concern::Machine => true,
        }
    }

    fn exchanges_of(&self, token: &RefreshView) -> Vec<&Exchange> {
        self.exchanges.iter().filter(|exchange| exchange.name == token.digest).collect()
    }

    /// For a violation's line.
    fn last_exchanges(&self, grant: &GrantView) -> Vec<&Exchange> {
        let all: Vec<&Exchange> = grant.refresh_tokens.iter().flat_map(|token| self.exchanges_of(token)).collect();
        all.iter().rev().take(4).rev().copied().collect()
    }
}
