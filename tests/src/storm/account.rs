//! What a storm cost, from the EHRs' own ledgers: each loss by its cause, and what has none.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, atomic::Ordering::Relaxed},
};

use super::{
    journal::{Journal, Loss},
    login::{GRACE, Login, Logout},
};
use crate::{
    ehr::{
        auth::{rules::RefreshLife, state::GrantView},
        contract::Rotation,
    },
    harness::cluster::Hospital,
};

/// Why a login is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The EHR had rotated, and its answer never became durable here.
    Lost(Loss),
    /// The refresh token died with the access token, while the EHR could not be asked.
    DiedWithAccess,
    /// The app repeated its own refresh after the 30 s in which that is taken for a lost answer.
    RepeatedLate,
}

impl Cause {
    pub const fn text(self) -> &'static str {
        match self {
            Self::Lost(loss) => loss.text(),
            Self::DiedWithAccess => "died with the access token",
            Self::RepeatedLate => "repeated by the app after its 30 s",
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

#[derive(Debug, Default)]
pub struct Account {
    pub lines: Vec<Line>,
    pub logouts: BTreeMap<Cause, u64>,
    pub violations: Vec<String>,
}

impl Account {
    pub fn add(&mut self, hospital: &Hospital, logins: &[&Login], journal: &Journal, lifetime: i64) {
        let grants = hospital.ehr.grants();
        let rules = &hospital.ehr.auth.rules;
        let mut ledger = Ledger {
            site: &hospital.name,
            rotates: rules.rotation != Rotation::Fixed,
            dies: rules.refresh_life == RefreshLife::WithAccess,
            lifetime,
            journal,
            swallowed: hospital.wire.lost_at(),
            violations: Vec::new(),
        };
        let mut line = Line { site: hospital.name.clone(), logins: logins.len(), ..Line::default() };
        let mut losses = BTreeMap::new();
        for grant in &grants {
            line.refreshes += grant.refreshes;
            ledger.paces(grant);
            if let Some(loss) = ledger.uses(grant) {
                line.tried_again += 1;
                losses.insert(grant.id, loss);
            }
        }
        for login in logins {
            let count = |count: &std::sync::atomic::AtomicU64| count.load(Relaxed);
            line.served += count(&login.reads.served);
            line.later += count(&login.reads.later);
            line.no_ehr += count(&login.reads.no_ehr);
            line.busy += count(&login.reads.busy);
            line.theirs += count(&login.reads.theirs);
            line.unheard += count(&login.reads.unheard);
            for logout in login.logouts.read().unwrap_or_else(PoisonError::into_inner).iter() {
                line.logouts += 1;
                let grant = current(&grants, login, logout);
                let loss = grant.and_then(|grant| losses.get(&grant.id).copied());
                match ledger.cause(login, logout, grant, loss) {
                    Some(cause) => *self.logouts.entry(cause).or_default() += 1,
                    None => ledger.violations.push(format!(
                        "{} {}: logged out without a cause; {logout:?} {grant:?}",
                        login.site, login.username
                    )),
                }
            }
        }
        self.violations.append(&mut ledger.violations);
        self.lines.push(line);
    }
}

/// The EHR's grant of a login: the last that began before its end. A launch that broke off left others.
fn current<'a>(grants: &'a [GrantView], login: &Login, logout: &Logout) -> Option<&'a GrantView> {
    grants
        .iter()
        .filter(|grant| grant.patient.as_deref() == Some(login.patient.as_str()))
        .filter(|grant| grant.client_id == format!("{}-at-{}", login.app.client_id, login.site))
        .filter(|grant| (logout.since..=logout.at).contains(&grant.started))
        .max_by_key(|grant| grant.started)
}

struct Ledger<'a> {
    site: &'a str,
    rotates: bool,
    dies: bool,
    /// Of access tokens, in milliseconds.
    lifetime: i64,
    journal: &'a Journal,
    swallowed: Vec<i64>,
    violations: Vec<String>,
}

impl Ledger<'_> {
    /// No refresh token comes twice where it is burnt, but for one try after a loss.
    fn uses(&mut self, grant: &GrantView) -> Option<Loss> {
        if !self.rotates {
            return None;
        }
        let mut found = None;
        for token in &grant.refresh_tokens {
            let [first, second, more @ ..] = token.presented.as_slice() else { continue };
            if !more.is_empty() {
                let times = token.presented.len();
                self.violations.push(format!("{}: a refresh token came {times} times; {grant:?}", self.site));
            }
            match self.journal.loss(self.site, *first, &mut self.swallowed) {
                Some(loss) => found = Some(loss),
                None => self.violations.push(format!(
                    "{}: a refresh token came at {first} and again at {second}, and nothing was cut; {grant:?}",
                    self.site
                )),
            }
        }
        found
    }

    /// One refresh for each lifetime, where nothing was wrong.
    fn paces(&mut self, grant: &GrantView) {
        let mut asked: Vec<i64> = grant.refresh_tokens.iter().flat_map(|token| &token.presented).copied().collect();
        asked.sort_unstable();
        for pair in asked.windows(2) {
            let [first, second] = *pair else { continue };
            // Due at 60 % of it, by the earliest.
            if second - first < self.lifetime / 2 && !self.journal.disturbed(self.site, first, second) {
                self.violations.push(format!(
                    "{}: refreshed at {first} and again {} ms later, and nothing was wrong; {grant:?}",
                    self.site,
                    second - first
                ));
            }
        }
    }

    fn cause(&self, login: &Login, logout: &Logout, grant: Option<&GrantView>, loss: Option<Loss>) -> Option<Cause> {
        if let Some(loss) = loss {
            return Some(Cause::Lost(loss));
        }
        if let Some(grant) = grant.filter(|_| self.dies)
            && grant.access_until <= logout.at
            && self.journal.disturbed(&login.site, grant.access_until - self.lifetime, grant.access_until)
        {
            return Some(Cause::DiedWithAccess);
        }
        (logout.tried_for >= GRACE).then_some(Cause::RepeatedLate)
    }
}
