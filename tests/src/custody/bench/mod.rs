//! Custody and its store at size: memory, time at the start, the wheel, writes, refreshes a second, and what a fresh
//! bearer costs. Each part runs in a process of its own.

mod part;
mod system;

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use self::part::Found;
pub use self::part::{Arguments, measure};

pub struct Options {
    /// This program.
    pub program: PathBuf,
    pub directory: PathBuf,
    /// As in `store.url`; none: SQLite in the directory.
    pub store: Option<String>,
    pub grants: u32,
    /// By each number of refreshes at once.
    pub refreshes: u32,
}

/// Refreshes at once.
const AT_ONCE: [u32; 4] = [1, 16, 64, 256];
/// What a group is compared with is measured so long.
const RAW: Duration = Duration::from_secs(2);

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    pub name: String,
    pub value: f64,
    pub unit: &'static str,
    /// At most, or at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Figure {
    fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, goal: None }
    }

    fn goal(self, goal: Goal) -> Self {
        Self { goal: Some(goal), ..self }
    }

    /// Whether it is as it should be; none: nothing was said.
    pub fn met(&self) -> Option<bool> {
        self.goal.map(|goal| match goal {
            Goal::AtMost(most) => self.value <= most,
            Goal::AtLeast(least) => self.value >= least,
        })
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub grants: u32,
    pub figures: Vec<Figure>,
}

impl Report {
    pub fn figure(&self, name: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.name == name)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} grants\n", self.grants)?;
        for figure in &self.figures {
            let Figure { name, value, unit, goal } = figure;
            let digits = if *value < 10.0 { 2 } else { 0 };
            write!(f, "  {name:<52} {value:>10.digits$} {unit:<10}")?;
            match goal {
                Some(Goal::AtMost(most)) => write!(f, " goal at most {most}")?,
                Some(Goal::AtLeast(least)) => write!(f, " goal at least {least}")?,
                None => {}
            }
            f.write_str(if figure.met() == Some(false) { ": MISSED\n" } else { "\n" })?;
        }
        Ok(())
    }
}

/// # Errors
/// If a part fails, or there are too few grants for the refreshes.
pub async fn run(options: &Options) -> Result<Report> {
    let kinds = u32::try_from(AT_ONCE.len())?;
    if options.grants < options.refreshes.saturating_mul(kinds) {
        bail!("{} grants are too few for {kinds} times {} refreshes", options.grants, options.refreshes);
    }
    let database = options.directory.join("mantel.db");
    let sqlite = options.store.is_none();
    let store = options.store.clone().unwrap_or_else(|| format!("sqlite://{}", database.display()));
    let bench = Bench { options, store };
    let each = f64::from(options.grants);
    let mut figures = Vec::new();

    let Found::Filled { seconds } = bench.part(&["fill"]).await? else { bail!("another part") };
    figures.push(Figure::new("logins stored (grant, code, tokens)", each / seconds, "/s"));
    if sqlite {
        figures.push(Figure::new("store, on disk", size(&database)? as f64 / each, "B/grant"));
    }
    for (further, name, most) in [
        (&["start"][..], "memory, cold", Some(1024.0)),
        (&["start", "--turning"], "memory, cold and on the wheel", Some(1024.0)),
    ] {
        let found = bench.part(further).await?;
        let Found::Started { open_seconds, read_seconds, bytes_each } = found else { bail!("another part") };
        if further.len() == 1 {
            figures.push(Figure::new("start: opening the store", open_seconds * 1000.0, "ms"));
            figures.push(Figure::new("start: reading all grants, beside serving", read_seconds * 1000.0, "ms"));
        }
        let figure = Figure::new(name, bytes_each, "B/grant");
        figures.push(match most {
            Some(most) => figure.goal(Goal::AtMost(most)),
            None => figure,
        });
    }
    let Found::Warm { bytes_each, session_bytes_each, one_ns, all_ns, two_threads_ns } = bench.part(&["warm"]).await?
    else {
        bail!("another part")
    };
    figures.push(Figure::new("memory, warm", bytes_each, "B/grant"));
    figures.push(Figure::new("memory, an app's session beside it", session_bytes_each, "B/grant"));
    let both = bytes_each + session_bytes_each;
    figures.push(Figure::new("memory, warm with its session", both, "B/grant").goal(Goal::AtMost(4096.0)));
    figures.push(Figure::new("fresh bearer, one grant", one_ns, "ns").goal(Goal::AtMost(1000.0)));
    figures.push(Figure::new("fresh bearer, all grants in turn", all_ns, "ns").goal(Goal::AtMost(1000.0)));
    figures.push(Figure::new("fresh bearer, two threads at once", two_threads_ns, "ns").goal(Goal::AtMost(1000.0)));
    let Found::Turned { set_ns, move_ns, take_ns } = bench.part(&["turns"]).await? else { bail!("another part") };
    figures.push(Figure::new("wheel: a turn set", set_ns, "ns"));
    figures.push(Figure::new("wheel: a turn moved", move_ns, "ns"));
    figures.push(Figure::new("wheel: a turn taken", take_ns, "ns"));
    let before = if sqlite { Some(system::raw_commits(&options.directory, RAW).await?) } else { None };
    let rate = bench.refreshes(&mut figures).await?;
    if let Some(before) = before {
        // Before and after, since others may use the disk as well.
        let raw = f64::midpoint(before, system::raw_commits(&options.directory, RAW).await?);
        figures.push(Figure::new("commits of one statement, by SQLite alone", raw, "/s"));
        figures.push(Figure::new("refreshes for each of those commits", rate / raw, ""));
    }
    Ok(Report { grants: options.grants, figures })
}

struct Bench<'a> {
    options: &'a Options,
    store: String,
}

impl Bench<'_> {
    async fn part(&self, what: &[&str]) -> Result<Found> {
        let output = tokio::process::Command::new(&self.options.program)
            .args(["part", "--store", &self.store, "--grants", &self.options.grants.to_string()])
            .args(what)
            .output()
            .await?;
        if !output.status.success() {
            bail!("{what:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        serde_json::from_slice(&output.stdout).with_context(|| format!("{what:?} printed no figures"))
    }

    /// With the rate of the most at once.
    async fn refreshes(&self, figures: &mut Vec<Figure>) -> Result<f64> {
        let (mut first, mut fastest) = (0, 0.0);
        for at_once in AT_ONCE {
            // Alone each waits for two commits: a few tell enough.
            let count = if at_once == 1 { self.options.refreshes / 20 } else { self.options.refreshes }.max(1);
            let (from, many, beside) = (first.to_string(), count.to_string(), at_once.to_string());
            first += count;
            let what = ["refresh", "--first", &from, "--count", &many, "--at-once", &beside];
            let found = self.part(&what).await?;
            let Found::Refreshed { seconds, commits, written_bytes, write_calls } = found else {
                bail!("another part")
            };
            let each = f64::from(count);
            let rate = Figure::new(format!("refreshes, {at_once} at once"), each / seconds, "/s");
            let last = AT_ONCE.last() == Some(&at_once);
            fastest = rate.value;
            figures.push(if last && commits.is_some() { rate.goal(Goal::AtLeast(1000.0)) } else { rate });
            if let (Some(commits), true) = (commits, last || at_once == 1) {
                let name = |what: &str| format!("{what}, {at_once} at once");
                figures.push(Figure::new(name("  commits (waits for the disk)"), commits as f64 / each, "/refresh"));
                figures.push(Figure::new(name("  written"), written_bytes as f64 / each, "B/refresh"));
                figures.push(Figure::new(name("  write calls"), write_calls as f64 / each, "/refresh"));
            }
        }
        Ok(fastest)
    }
}

/// Of a database with its log.
fn size(database: &Path) -> Result<u64> {
    let mut bytes = std::fs::metadata(database)?.len();
    if let Ok(log) = std::fs::metadata(database.with_extension("db-wal")) {
        bytes += log.len();
    }
    Ok(bytes)
}
