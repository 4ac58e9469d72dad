//! A storm's figures, as they are printed.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::account::{Account, Line};

#[derive(Debug)]
pub struct Report {
    pub title: String,
    /// How often each fault struck.
    pub faults: BTreeMap<&'static str, usize>,
    pub account: Account,
    pub reads_per_second: f64,
    /// Requests under way at the same time, at most.
    pub at_once: usize,
    /// From the end of the faults until every login that was not in doubt worked.
    pub recovered: Option<Duration>,
    /// Logins whose refresh had an unknown outcome then.
    pub in_doubt: usize,
    /// And until all of these had ended well or been counted.
    pub settled: Option<Duration>,
    /// What must not be.
    pub violations: Vec<String>,
}

/// More of the same tell nothing.
const SHOWN: usize = 20;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        let faults: Vec<String> = self.faults.iter().map(|(name, count)| format!("{name} {count}")).collect();
        writeln!(f, "faults: {}", if faults.is_empty() { "none".to_owned() } else { faults.join(", ") })?;
        writeln!(
            f,
            "{:<24}{:>7}{:>10}{:>8}{:>6}{:>8}{:>5}{:>5}{:>9}{:>10}{:>8}",
            "site", "logins", "refreshes", "reads", "503", "502/504", "429", "403", "unheard", "one try", "lost"
        )?;
        let lines = &self.account.lines;
        let mut all = Line { site: "all".into(), ..Default::default() };
        for line in lines {
            all.logins += line.logins;
            all.refreshes += line.refreshes;
            all.served += line.served;
            all.later += line.later;
            all.no_ehr += line.no_ehr;
            all.busy += line.busy;
            all.theirs += line.theirs;
            all.unheard += line.unheard;
            all.tried_again += line.tried_again;
            all.logouts += line.logouts;
        }
        for line in lines.iter().chain([&all]) {
            writeln!(
                f,
                "{:<24}{:>7}{:>10}{:>8}{:>6}{:>8}{:>5}{:>5}{:>9}{:>10}{:>8}",
                line.site,
                line.logins,
                line.refreshes,
                line.served,
                line.later,
                line.no_ehr,
                line.busy,
                line.theirs,
                line.unheard,
                line.tried_again,
                line.logouts
            )?;
        }
        writeln!(f, "reads served: {:.0}/s; requests at once: up to {}", self.reads_per_second, self.at_once)?;
        let seconds =
            |time: Option<Duration>| time.map_or("never".into(), |time| format!("{:.1} s", time.as_secs_f64()));
        writeln!(
            f,
            "after the faults: all works in {}, but for {} in doubt, settled in {}",
            seconds(self.recovered),
            self.in_doubt,
            seconds(self.settled)
        )?;
        if self.account.logouts.is_empty() {
            writeln!(f, "logins lost: none")?;
        }
        for (cause, count) in &self.account.logouts {
            writeln!(f, "logins lost: {count}, {}", cause.text())?;
        }
        for violation in self.violations.iter().take(SHOWN) {
            writeln!(f, "VIOLATION {violation}")?;
        }
        match self.violations.len() {
            0 => writeln!(f, "no violation"),
            count => writeln!(f, "{count} violations"),
        }
    }
}
