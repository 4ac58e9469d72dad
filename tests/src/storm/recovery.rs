//! After the faults: everything works within ten seconds, but for what is in doubt, by name; and when the doubts
//! are over, that works too.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures_util::future::join_all;
use sqlx::{Row as _, SqlitePool, sqlite::SqliteConnectOptions};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

use super::{
    journal::{self, Event, Journal, What},
    login::{Login, Read},
};
use crate::harness::cluster::{Cluster, Node};

/// Everything works within that, but for what is in doubt.
const RECOVERY: Duration = Duration::from_secs(10);

/// A late winner is looked for as long (`custody.md`, "Unknown outcomes"), and the old token lives at most as long
/// as all do.
fn doubts_last(lifetime: Duration) -> Duration {
    Duration::from_secs(60) + lifetime + RECOVERY
}

/// After the faults.
pub struct After<'a> {
    pub cluster: &'a Cluster,
    pub nodes: &'a Mutex<Vec<Node>>,
    pub logins: &'a [Arc<Login>],
    pub journal: &'a Journal,
    pub violations: Vec<String>,
    /// Of all access tokens.
    pub longest_life: Duration,
}

pub struct Aftermath {
    /// None: something did not work in time, and no doubt explains it.
    pub recovered: Option<Duration>,
    /// Logins that did not work for a doubt.
    pub in_doubt: usize,
    /// None: something did not work in the end.
    pub settled: Option<Duration>,
    pub violations: Vec<String>,
}

impl After<'_> {
    /// # Errors
    /// When the store cannot be asked.
    pub async fn watch(mut self, say: &impl Fn(&str)) -> Result<Aftermath> {
        let (over, over_at) = (Instant::now(), journal::now());
        // Whoever waits for the end of one of these, or for a new login after it.
        let known = self.doubts(over_at).await?;
        let (mut served, mut left) = all_work(self.logins.to_vec(), over + RECOVERY).await;
        // A machine that did nothing meanwhile gives no gateway its ten seconds.
        let lost = machine_lost(&self.journal.events(), over_at, journal::now());
        if !lost.is_zero() && !unexplained(&names(&left), &known).is_empty() {
            let logins = left.into_iter().map(|one| one.login).collect();
            let late;
            (late, left) = all_work(logins, Instant::now() + lost).await;
            served.extend(late);
        }
        let unexplained = unexplained(&names(&left), &known);
        let took: Vec<_> =
            served.iter().map(|(login, at)| (login.site.as_str(), login.app.client_id.as_str(), *at - over)).collect();
        let recovered = longest(&took, &names(&left), &known);
        for (site, app, count) in &unexplained {
            let mut names = left.iter().filter(|one| one.login.site == *site && one.login.app.client_id == *app);
            self.violations.push(format!(
                "{count} logins of {app} at {site} did not work {RECOVERY:?} after the faults, and no doubt explains \
                 it; one of {}",
                names.by_ref().map(describe).collect::<Vec<_>>().join("; ")
            ));
        }
        let in_doubt = left.len();
        say(&format!("{in_doubt} logins wait for the end of a doubt, and others will when their old token ends"));
        // While its old access token lives, a grant in doubt serves as any other.
        let longest = doubts_last(self.longest_life);
        let mut doubtful = self.doubts(over_at).await?;
        while !doubtful.is_empty() && over.elapsed() < longest {
            sleep(Duration::from_millis(500)).await;
            doubtful = self.doubts(over_at).await?;
        }
        let (_, left) = all_work(self.logins.to_vec(), Instant::now() + RECOVERY).await;
        let settled = over.elapsed();
        self.violations.extend(left.iter().map(|one| format!("does not work at the end: {}", describe(one))));
        if !doubtful.is_empty() {
            self.violations.push(format!("{doubtful:?} are in doubt {longest:?} after the faults"));
        }
        Ok(Aftermath {
            recovered: Some(recovered).filter(|_| unexplained.is_empty()),
            in_doubt,
            settled: Some(settled).filter(|_| left.is_empty() && doubtful.is_empty()),
            violations: self.violations,
        })
    }

    async fn doubts(&self, begun_by: i64) -> Result<Doubts> {
        doubts(self.cluster, &self.nodes.lock().await, begun_by).await
    }
}

fn names(left: &[Left]) -> Vec<(&str, &str)> {
    left.iter().map(|one| (one.login.site.as_str(), one.login.app.client_id.as_str())).collect()
}

/// How many grants are in doubt: by site and app, as the store has them.
pub type Doubts = BTreeMap<(String, String), usize>;

/// A login that does not work.
pub struct Left {
    pub login: Arc<Login>,
    pub how: Read,
}

/// Which of them no doubt explains: of each app at each site, so many as there are more than doubts.
fn unexplained(left: &[(&str, &str)], doubts: &Doubts) -> Vec<(String, String, usize)> {
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for (site, app) in left {
        *counts.entry(((*site).to_owned(), (*app).to_owned())).or_default() += 1;
    }
    let beyond = |(key, count): ((String, String), usize)| {
        let more = count.saturating_sub(doubts.get(&key).copied().unwrap_or(0));
        (more > 0).then_some((key.0, key.1, more))
    };
    counts.into_iter().filter_map(beyond).collect()
}

/// How long it took until all worked that had no doubt: of each app at each site, so many of the slowest are left out
/// as there are doubts, `left` first.
fn longest(took: &[(&str, &str, Duration)], left: &[(&str, &str)], doubts: &Doubts) -> Duration {
    let mut slowest: BTreeMap<(&str, &str), Vec<Duration>> = BTreeMap::new();
    for (site, app, time) in took {
        slowest.entry((*site, *app)).or_default().push(*time);
    }
    let of_app = |((site, app), mut times): ((&str, &str), Vec<Duration>)| {
        times.sort_unstable();
        let doubtful = doubts.get(&(site.to_owned(), app.to_owned())).copied().unwrap_or(0);
        let left = left.iter().filter(|one| **one == (site, app)).count();
        times.into_iter().rev().nth(doubtful.saturating_sub(left))
    };
    slowest.into_iter().filter_map(of_app).max().unwrap_or_default()
}

/// Asks for all until each was served, or the time is over; when each was, and those that were not.
async fn all_work(logins: Vec<Arc<Login>>, until: Instant) -> (Vec<(Arc<Login>, Instant)>, Vec<Left>) {
    let tries = logins.into_iter().map(|login| async move {
        loop {
            // A read may lead to a new launch, which has no end of its own.
            let how = tokio::time::timeout_at(until, login.read()).await.unwrap_or(Read::Unheard);
            if how == Read::Served {
                return Ok((login, Instant::now()));
            }
            if Instant::now() >= until {
                return Err(Left { login, how });
            }
            sleep(Duration::from_millis(250)).await;
        }
    });
    let (mut served, mut left) = (Vec::new(), Vec::new());
    for end in join_all(tries).await {
        match end {
            Ok(one) => served.push(one),
            Err(one) => left.push(one),
        }
    }
    (served, left)
}

/// The grants whose refresh had begun by then and has no outcome yet. `nodes`: of the cluster.
///
/// # Errors
/// When the store does not answer.
async fn doubts(cluster: &Cluster, nodes: &[Node], begun_by: i64) -> Result<Doubts> {
    let sql = format!(
        "SELECT site, app, count(*) FROM grants WHERE state = 'in_doubt' AND doubt_since <= {begun_by} GROUP BY site, app"
    );
    let mut found = Doubts::new();
    if let Some(store) = &cluster.store {
        for line in store.server.query(&store.database, &sql).await?.lines() {
            let [site, app, count] = *line.split('|').collect::<Vec<_>>() else { continue };
            found.insert((site.to_owned(), app.to_owned()), count.parse()?);
        }
        return Ok(found);
    }
    let node = nodes.first().context("there is no gateway")?;
    let file = node.gateway.dir().join("mantel.db");
    let pool = SqlitePool::connect_with(SqliteConnectOptions::new().filename(file).read_only(true)).await?;
    for row in sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&pool).await? {
        let count: i64 = row.try_get(2)?;
        found.insert((row.try_get(0)?, row.try_get(1)?), usize::try_from(count)?);
    }
    pool.close().await;
    Ok(found)
}

/// For how long of a stretch the machine itself did nothing: that is no time in which a gateway could recover.
fn machine_lost(events: &[Event], from: i64, until: i64) -> Duration {
    let lost = events
        .iter()
        .filter(|event| event.what == What::MachineSlow && event.overlaps(from, until))
        .map(|event| event.until.unwrap_or(until).min(until) - event.from.max(from))
        .sum::<i64>();
    Duration::from_millis(u64::try_from(lost).unwrap_or(0))
}

pub fn describe(left: &Left) -> String {
    let Left { login, how } = left;
    let trouble = login.trouble.read().unwrap_or_else(PoisonError::into_inner);
    format!("{} {} {} {how:?}, last heard: {trouble}", login.site, login.app.client_id, login.username)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doubts(known: &[(&str, &str, usize)]) -> Doubts {
        known.iter().map(|(site, app, count)| (((*site).into(), (*app).into()), *count)).collect()
    }

    #[test]
    fn what_does_not_work_needs_a_doubt_of_its_own() {
        let left = [("epic", "viewer"), ("epic", "viewer"), ("epic", "server-app")];
        assert_eq!(unexplained(&left, &doubts(&[("epic", "viewer", 2), ("epic", "server-app", 1)])), []);
        let beyond = unexplained(&left, &doubts(&[("epic", "viewer", 1), ("oracle", "server-app", 5)]));
        assert_eq!(beyond, [("epic".into(), "server-app".into(), 1), ("epic".into(), "viewer".into(), 1)]);
    }

    #[test]
    fn recovery_takes_as_long_as_the_slowest_without_a_doubt() {
        let took = [1, 2, 9].map(|seconds| ("epic", "viewer", Duration::from_secs(seconds)));
        let seconds = |left: &[_], known: &[_]| longest(&took, left, &doubts(known)).as_secs();
        assert_eq!(seconds(&[], &[]), 9);
        assert_eq!(seconds(&[], &[("oracle", "viewer", 3)]), 9, "another's doubt");
        assert_eq!(seconds(&[], &[("epic", "viewer", 1)]), 2);
        assert_eq!(seconds(&[("epic", "viewer")], &[("epic", "viewer", 1)]), 9, "it is the one that is left");
    }
}
