//! What was cut, what it cost, and whether anything went wrong that must not.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use super::{
    count::Instant,
    driver::Life,
    endpoint::{Login, Request},
    told::Held,
};

/// A refresh that was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) instant: Instant,
    /// It was the one try after an unknown outcome.
    pub(super) last: bool,
    /// The kill was aimed at such an instant.
    pub(super) aimed: bool,
}

#[derive(Default)]
pub(super) struct Account {
    pub(super) kills: u32,
    /// By login and generation: at most two, the second one the one try.
    cuts: BTreeMap<(u32, i64), Vec<Cut>>,
    /// Logins that the store has ended, with reason and generation.
    pub(super) ended: BTreeMap<u32, (String, i64)>,
    wrong: Vec<String>,
}

/// Faults are told so often; beyond it only counted.
const TOLD: usize = 20;

impl Account {
    pub(super) fn interrupted(&self) -> u64 {
        self.cuts.values().map(|cuts| cuts.len() as u64).sum()
    }

    pub(super) fn cut(&mut self, login: u32, generation: i64, cut: Cut) {
        self.cuts.entry((login, generation)).or_default().push(cut);
    }

    pub(super) fn wrong(&mut self, what: String) {
        self.wrong.push(what);
    }

    /// What was shared was durable before.
    pub(super) fn check_life(&mut self, life: &Life, after: &BTreeMap<u32, (i64, Held)>) {
        for (login, generation) in &life.shared {
            if after.get(login).is_none_or(|(stored, _)| stored < generation) {
                self.wrong(format!("login {login}: generation {generation} was shared and is not stored"));
            }
        }
        for (login, fault) in &life.failed {
            self.wrong(format!("login {login}: a caller was told {fault}"));
        }
    }

    /// A grant that is not in doubt has the EHR's living token.
    pub(super) fn check_held(&mut self, held: &BTreeMap<u32, (i64, Held)>, ledger: &BTreeMap<u32, Login>) {
        for (number, (generation, state)) in held {
            let Some(login) = ledger.get(number) else { continue };
            let ahead = i64::from(login.current) - generation;
            match state {
                Held::Live if ahead == 0 && !login.ended => {}
                Held::InDoubt { .. } if ahead == 0 || ahead == 1 => {}
                Held::Ended { reason } => {
                    if reason != "lost_rotation" {
                        self.wrong(format!("login {number} ended as {reason}"));
                    }
                    self.ended.insert(*number, (reason.clone(), *generation));
                }
                _ => self.wrong(format!(
                    "login {number}: {state:?} with generation {generation}, and the EHR is at {}{}",
                    login.current,
                    if login.ended { ", ended" } else { "" }
                )),
            }
        }
    }

    /// How often each token was presented: once, and once more only where that was cut after it was sent.
    fn check_uses(&mut self, ledger: &BTreeMap<u32, Login>) {
        for (number, login) in ledger {
            let mut uses: BTreeMap<u32, Vec<&Request>> = BTreeMap::new();
            for request in &login.requests {
                uses.entry(request.presented).or_default().push(request);
            }
            for (token, uses) in uses {
                let cuts = self.cuts.get(&(*number, i64::from(token))).map_or(&[][..], Vec::as_slice);
                let allowed = 1 + usize::from(cuts.iter().any(|cut| cut.instant.sent() && !cut.last));
                if uses.len() > allowed {
                    self.wrong(format!("login {number}: refresh token {token} was presented {} times", uses.len()));
                }
            }
        }
    }

    pub(super) fn close(mut self, last: &Life, ledger: &BTreeMap<u32, Login>) -> Report {
        for (login, fault) in &last.failed {
            self.wrong(format!("login {login}: after all a caller was told {fault}"));
        }
        self.check_held(&last.held, ledger);
        self.check_uses(ledger);
        for (login, (generation, held)) in &last.held {
            if matches!(held, Held::InDoubt { .. }) {
                self.wrong(format!("login {login}: generation {generation} is in doubt after all"));
            }
        }
        let mut rows: BTreeMap<Instant, Row> = Instant::ALL.map(|instant| (instant, Row::new(instant))).into();
        let mut needless = 0;
        let mut by_chance = [0, 0];
        let [chance, chance_lost] = &mut by_chance;
        for ((login, generation), cuts) in &self.cuts {
            for cut in cuts {
                *chance += u64::from(!cut.aimed);
                if let Some(row) = rows.get_mut(&cut.instant) {
                    row.interrupted += 1;
                    row.last_tries += u64::from(cut.last);
                }
            }
            if self.ended.get(login).is_none_or(|(_, ended)| ended != generation) {
                continue;
            }
            // The one that burnt the token; else the one try that was cut.
            let cause = cuts.iter().find(|cut| cut.instant.burnt()).or_else(|| cuts.iter().find(|cut| cut.last));
            match cause {
                Some(cut) => {
                    *chance_lost += u64::from(!cut.aimed);
                    if let Some(row) = rows.get_mut(&cut.instant) {
                        row.lost += 1;
                        row.lost_by_last_try += u64::from(cut.last);
                    }
                }
                None => self.wrong.push(format!("login {login} was lost for nothing: {cuts:?}")),
            }
            if ledger.get(login).is_some_and(|login| i64::from(login.current) == *generation) {
                needless += 1;
            }
        }
        let known = |login: &u32, generation: &i64| self.cuts.contains_key(&(*login, *generation));
        let unknown: Vec<_> =
            self.ended.iter().filter(|(login, (_, at))| !known(login, at)).map(|(login, _)| *login).collect();
        for login in unknown {
            self.wrong.push(format!("login {login} ended, and no refresh of it was cut"));
        }
        Report {
            kills: self.kills,
            interrupted: self.interrupted(),
            renewed: ledger.values().map(|login| u64::from(login.current - 1)).sum(),
            logins: ledger.len() as u64,
            lost: self.ended.len() as u64,
            alive_at_the_ehr: needless,
            by_chance,
            rows: rows.into_values().collect(),
            wrong_count: self.wrong.len() as u64,
            wrong: self.wrong.into_iter().take(TOLD).collect(),
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub kills: u32,
    /// Refreshes that were cut.
    pub interrupted: u64,
    /// Refreshes that the EHR carried out in all.
    pub renewed: u64,
    pub logins: u64,
    pub lost: u64,
    /// Of those, how many had a token at the EHR that was never burnt.
    pub alive_at_the_ehr: u64,
    /// Cut by kills that were aimed at nothing, and lost by those.
    pub by_chance: [u64; 2],
    pub rows: Vec<Row>,
    pub wrong_count: u64,
    /// What must not have been: the first few.
    pub wrong: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub instant: Instant,
    pub interrupted: u64,
    /// Of those, the one try after an unknown outcome.
    pub last_tries: u64,
    pub lost: u64,
    pub lost_by_last_try: u64,
}

impl Row {
    const fn new(instant: Instant) -> Self {
        Self { instant, interrupted: 0, last_tries: 0, lost: 0, lost_by_last_try: 0 }
    }
}

impl Report {
    /// Of an instant.
    pub fn row(&self, instant: Instant) -> Row {
        self.rows.iter().find(|row| row.instant == instant).cloned().unwrap_or(Row::new(instant))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_kill = self.interrupted as f64 / f64::from(self.kills.max(1));
        writeln!(f, "{} kills, {} interrupted refreshes ({per_kill:.1} a kill)", self.kills, self.interrupted)?;
        writeln!(f, "{} refreshes at the EHR, {} logins in all, {} lost\n", self.renewed, self.logins, self.lost)?;
        writeln!(
            f,
            "  {:<28} {:>11} {:>11}   {:>20} {:>11}",
            "cut", "refreshes", "logins lost", "in the one try", "lost"
        )?;
        for row in &self.rows {
            let (first, lost) = (row.interrupted - row.last_tries, row.lost - row.lost_by_last_try);
            let (tries, lost_tries) = (row.last_tries, row.lost_by_last_try);
            writeln!(f, "  {:<28} {first:>11} {lost:>11}   {tries:>20} {lost_tries:>11}", row.instant)?;
        }
        let sum = |of: fn(&Row) -> u64| self.rows.iter().map(of).sum::<u64>();
        let (first, lost) = (sum(|row| row.interrupted - row.last_tries), sum(|row| row.lost - row.lost_by_last_try));
        let (tries, lost_tries) = (sum(|row| row.last_tries), sum(|row| row.lost_by_last_try));
        writeln!(f, "  {:<28} {first:>11} {lost:>11}   {tries:>20} {lost_tries:>11}", "sum")?;
        let [chance, chance_lost] = self.by_chance;
        writeln!(f, "\nby kills at random times alone: {chance} refreshes cut, {chance_lost} logins lost")?;
        writeln!(f, "{} lost whose token lived on at the EHR", self.alive_at_the_ehr)?;
        writeln!(f, "{} things that must not be", self.wrong_count)?;
        for wrong in &self.wrong {
            writeln!(f, "  {wrong}")?;
        }
        Ok(())
    }
}
