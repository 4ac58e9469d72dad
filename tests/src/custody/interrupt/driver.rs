//! The parent: plays the EHR, starts the process, kills it at an instant that it chooses, and keeps account.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tokio::sync::watch;

use super::{
    account::{Account, Cut, Report},
    count::{Evidence, Stored},
    endpoint::{Die, Endpoint, Moment},
    told::{Held, Line},
};

pub(super) const APP: &str = "viewer";
pub(super) const SITE: &str = "epic";
pub(super) const REGISTRATION: &str = "viewer-epic";

/// What is to be done.
pub struct Options {
    /// This program.
    pub program: PathBuf,
    /// Where configuration, store and log are kept.
    pub directory: PathBuf,
    /// `store.url`; none: SQLite in the directory.
    pub store: Option<String>,
    /// Living logins at each start.
    pub logins: u32,
    pub in_flight: u32,
    /// It goes on until both are reached.
    pub kills: u32,
    pub interrupted: u64,
    pub seed: u64,
    /// The last process is told that a minute has passed, in the place of waiting for it.
    pub ahead: bool,
    /// A line on standard error now and then.
    pub progress: bool,
}

/// The longest time that the EHR takes before it acts, and again before it answers.
const PAUSE: Duration = Duration::from_millis(12);
/// A life is ended by then, though its moment has not come: before the wheel finds the first new tokens due.
const LONGEST_LIFE: Duration = Duration::from_secs(2);
const START: Duration = Duration::from_secs(60);
/// Beyond the minute that a late winner is waited for.
const SETTLED: Duration = Duration::from_secs(300);
const AHEAD: u64 = 61;

/// When a process is killed.
#[derive(Clone, Copy, Debug)]
enum Aim {
    /// So long after it is ready.
    Time(Duration),
    /// At the so-manieth request, answer, or line that tells of an answer.
    Arrival(u64),
    Answer(u64),
    Receipt(u64),
}

impl Aim {
    fn choose(die: &Die) -> Self {
        // Some refreshes first, so that all callers are at different points.
        let count = 60 + die.roll(200);
        match die.roll(8) {
            0..4 => Self::Time(Duration::from_millis(150 + die.roll(500))),
            4 => Self::Arrival(count),
            5 => Self::Answer(count),
            _ => Self::Receipt(count),
        }
    }
}

/// The process that runs now, and who may kill it: whoever sees its moment come.
#[derive(Default)]
struct Target(Mutex<Option<Aimed>>);

struct Aimed {
    child: Child,
    aim: Option<Aim>,
    killed: Option<Instant>,
}

impl Target {
    fn get(&self) -> MutexGuard<'_, Option<Aimed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts down to the moment that is aimed at.
    fn saw(&self, which: impl FnOnce(&mut Aim) -> Option<&mut u64>) {
        if let Some(aimed) = &mut *self.get()
            && let Some(left) = aimed.aim.as_mut().and_then(which)
        {
            *left -= 1;
            if *left == 0 {
                aimed.kill();
            }
        }
    }

    fn moment(&self, moment: Moment) {
        self.saw(|aim| match (aim, moment) {
            (Aim::Arrival(left), Moment::Arrived) | (Aim::Answer(left), Moment::Answered) => Some(left),
            _ => None,
        });
    }
}

impl Aimed {
    fn kill(&mut self) {
        self.aim = None;
        // What the EHR does after this instant it does though nobody listens.
        self.killed.get_or_insert_with(Instant::now);
        let _ = self.child.kill();
    }
}

/// The reading thread holds the target until the process has gone, so the target's own end would come too late.
impl Drop for Driver<'_> {
    fn drop(&mut self) {
        if let Some(aimed) = &mut *self.target.get() {
            aimed.kill();
            let _ = aimed.child.wait();
        }
    }
}

/// What one process told.
#[derive(Default)]
pub(super) struct Life {
    pub(super) held: BTreeMap<u32, (i64, Held)>,
    /// Who waits.
    waits: BTreeMap<u32, i64>,
    received: BTreeSet<(u32, i64)>,
    pub(super) shared: Vec<(u32, i64)>,
    pub(super) failed: Vec<(u32, String)>,
    /// A line that was not this program's.
    odd: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Starts,
    Works,
    Settled,
    Ended,
}

/// # Errors
/// If a process does not start, or does not end as it should.
pub async fn run(options: &Options) -> Result<Report> {
    let target = Arc::new(Target::default());
    let told = target.clone();
    let endpoint = Endpoint::start(options.seed, PAUSE, move |moment| told.moment(moment)).await?;
    write_config(options, endpoint.origin())?;
    let mut driver = Driver {
        options,
        endpoint,
        target,
        die: Die::new(options.seed.wrapping_add(1)),
        opened: 0,
        account: Account::default(),
    };
    let mut before: Option<Killed> = None;
    let began = Instant::now();
    while driver.account.kills < options.kills || driver.account.interrupted() < options.interrupted {
        let killed = driver.live(before.take()).await?;
        before = Some(killed);
        if options.progress && driver.account.kills.is_multiple_of(10) {
            let (kills, interrupted) = (driver.account.kills, driver.account.interrupted());
            eprintln!("{:>6} s  {kills} kills, {interrupted} interrupted refreshes", began.elapsed().as_secs());
        }
    }
    driver.settle(before).await
}

struct Driver<'a> {
    options: &'a Options,
    endpoint: Endpoint,
    target: Arc<Target>,
    die: Die,
    opened: u32,
    account: Account,
}

/// A life that was ended, to be judged by what the next one finds.
struct Killed {
    number: u32,
    life: Life,
    at: Instant,
    aimed: bool,
}

impl Driver<'_> {
    /// One process, from its start to its end by `kill -9`.
    async fn live(&mut self, before: Option<Killed>) -> Result<Killed> {
        let number = self.account.kills + 1;
        let (life, mut stage) = self.start(number, &[])?;
        reach(&mut stage, Stage::Works, START).await.with_context(|| self.log())?;
        let aim = Aim::choose(&self.die);
        self.judge(before, &life)?;
        if let Some(aimed) = &mut *self.target.get() {
            aimed.aim = Some(aim);
        }
        self.go()?;
        let longest = if let Aim::Time(after) = aim { after } else { LONGEST_LIFE };
        if tokio::time::timeout(longest, stage.wait_for(|stage| *stage == Stage::Ended)).await.is_err()
            && let Some(aimed) = &mut *self.target.get()
        {
            aimed.kill();
        }
        reach(&mut stage, Stage::Ended, START).await?;
        let Some(mut aimed) = self.target.get().take() else { bail!("the process is gone") };
        let status = aimed.child.wait()?;
        let Some(at) = aimed.killed else { bail!("the process ended by itself with {status}: {}", self.log()) };
        self.endpoint.quiet().await?;
        self.account.kills += 1;
        let life = std::mem::take(&mut *life.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(odd) = life.odd {
            bail!("the process said {odd:?}");
        }
        Ok(Killed { number, life, at, aimed: !matches!(aim, Aim::Time(_)) })
    }

    /// The last process: it lives until all doubts have ended.
    async fn settle(mut self, before: Option<Killed>) -> Result<Report> {
        let mut further = vec!["--settle".to_owned()];
        if self.options.ahead {
            further.extend(["--ahead".to_owned(), AHEAD.to_string()]);
        }
        let (life, mut stage) = self.start(self.account.kills + 1, &further)?;
        reach(&mut stage, Stage::Works, START).await.with_context(|| self.log())?;
        self.judge(before, &life)?;
        self.go()?;
        reach(&mut stage, Stage::Ended, SETTLED).await.with_context(|| self.log())?;
        let Some(mut aimed) = self.target.get().take() else { bail!("the process is gone") };
        let status = aimed.child.wait()?;
        if !status.success() {
            bail!("the last process ended with {status}: {}", self.log());
        }
        self.endpoint.quiet().await?;
        let life = std::mem::take(&mut *life.lock().unwrap_or_else(PoisonError::into_inner));
        let account = std::mem::take(&mut self.account);
        Ok(account.close(&life, &self.endpoint.ledger()))
    }

    fn start(&mut self, number: u32, further: &[String]) -> Result<(Arc<Mutex<Life>>, watch::Receiver<Stage>)> {
        // Lost logins are replaced, as people sign in again.
        let wanted = self.options.logins + u32::try_from(self.account.ended.len())?;
        self.endpoint.open(self.opened..wanted);
        self.opened = wanted;
        self.endpoint.set_life(number);
        let mut child = Command::new(&self.options.program)
            .arg("victim")
            .arg("--config")
            .arg(&self.options.directory)
            .args(["--logins", &wanted.to_string(), "--in-flight", &self.options.in_flight.to_string()])
            .args(further)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::options().create(true).append(true).open(self.log_file())?)
            .spawn()
            .context("the process does not start")?;
        let lines = child.stdout.take().context("the process has no output")?;
        *self.target.get() = Some(Aimed { child, aim: None, killed: None });
        let (life, (stage, reached)) = (Arc::<Mutex<Life>>::default(), watch::channel(Stage::Starts));
        let (target, kept) = (self.target.clone(), life.clone());
        // A thread of its own, so that a busy EHR does not hold up the pipe.
        std::thread::spawn(move || listen(lines, &kept, &target, &stage));
        Ok((life, reached))
    }

    /// Lets the process begin its work.
    fn go(&self) -> Result<()> {
        let mut target = self.target.get();
        let input = target.as_mut().and_then(|aimed| aimed.child.stdin.as_mut()).context("the process has no input")?;
        input.write_all(b"go\n").context("the process has gone")
    }

    fn log_file(&self) -> PathBuf {
        self.options.directory.join("victim.log")
    }

    fn log(&self) -> String {
        let text = std::fs::read_to_string(self.log_file()).unwrap_or_default();
        text.lines().rev().take(5).collect::<Vec<_>>().join("; ")
    }

    /// Which refreshes the life before was cut in, by what this one found.
    fn judge(&mut self, before: Option<Killed>, now: &Mutex<Life>) -> Result<()> {
        let now = now.lock().unwrap_or_else(PoisonError::into_inner);
        let ledger = self.endpoint.ledger();
        if let Some(Killed { number, life, at, aimed }) = before {
            for (login, (generation, held)) in &life.held {
                let (after, state) =
                    now.held.get(login).with_context(|| format!("login {login} is not in the store"))?;
                // What was shared in this life, and by it begun anew, is judged by its last refresh.
                let current = life.shared.iter().rev().find(|(other, _)| other == login);
                let begun = current.map_or(*generation, |(_, shared)| *shared);
                let was = if begun == *generation { held.clone() } else { Held::Live };
                let stored = match (after - begun, &was, state) {
                    (0, was, state) if was == state => Stored::Same,
                    (0, _, Held::InDoubt { .. }) => Stored::Intent,
                    (0, _, _) => continue,
                    (1, _, Held::Live) => Stored::Next,
                    _ => {
                        self.account.wrong(format!(
                            "login {login}: generation {begun} {was:?} before a kill, {after} {state:?} after it"
                        ));
                        continue;
                    }
                };
                let request = ledger.get(login).and_then(|it| {
                    it.requests.iter().rfind(|it| it.life == number && i64::from(it.presented) == begun)
                });
                let evidence = Evidence {
                    waits: life.waits.contains_key(login),
                    request,
                    received: life.received.contains(&(*login, begun)),
                    stored,
                    killed: at,
                };
                let last = matches!(was, Held::InDoubt { .. });
                if let Some(instant) = evidence.instant() {
                    self.account.cut(*login, begun, Cut { instant, last, aimed });
                }
            }
            self.account.check_life(&life, &now.held);
        }
        self.account.check_held(&now.held, &ledger);
        Ok(())
    }
}

async fn reach(stage: &mut watch::Receiver<Stage>, wanted: Stage, within: Duration) -> Result<()> {
    let reached = tokio::time::timeout(within, stage.wait_for(|stage| *stage >= wanted)).await;
    match *reached.context("the process is too slow")?? {
        Stage::Ended if wanted != Stage::Ended => bail!("the process ended at its start"),
        _ => Ok(()),
    }
}

/// Reads until the process has gone: a pipe keeps what a killed process has written.
fn listen(lines: ChildStdout, life: &Mutex<Life>, target: &Target, stage: &watch::Sender<Stage>) {
    for line in BufReader::new(lines).lines() {
        let Ok(text) = line else { break };
        let Ok(line) = text.parse::<Line>() else {
            life.lock().unwrap_or_else(PoisonError::into_inner).odd = Some(text);
            continue;
        };
        if matches!(line, Line::Received { .. }) {
            target.saw(|aim| if let Aim::Receipt(left) = aim { Some(left) } else { None });
        }
        let mut life = life.lock().unwrap_or_else(PoisonError::into_inner);
        match line {
            Line::Held { number, generation, held } => {
                life.held.insert(number, (generation, held));
            }
            Line::Ready => drop(stage.send_replace(Stage::Works)),
            Line::Settled => drop(stage.send_replace(Stage::Settled)),
            Line::Asked { number, generation } => {
                life.waits.insert(number, generation);
            }
            Line::Received { number, generation } => {
                life.received.insert((number, generation));
            }
            Line::Shared { number, generation } => {
                life.waits.remove(&number);
                life.shared.push((number, generation));
            }
            Line::Ended { number, .. } => {
                life.waits.remove(&number);
            }
            Line::Failed { number, fault } => {
                life.waits.remove(&number);
                life.failed.push((number, fault));
            }
        }
    }
    stage.send_replace(Stage::Ended);
}

fn write_config(options: &Options, ehr: &str) -> Result<()> {
    let directory: &Path = &options.directory;
    std::fs::create_dir_all(directory)?;
    std::fs::write(directory.join("seal"), std::array::from_fn::<u8, 32, _>(|n| n as u8))?;
    let store = options.store.as_deref().unwrap_or("sqlite://mantel.db");
    // An eighth of a site's exchanges may be token requests.
    let concurrency = (options.in_flight + 24) * 8;
    let text = format!(
        r#"[server]
public_url = "http://127.0.0.1:1"
listen = "127.0.0.1:1"
admin_listen = "127.0.0.1:1"
sandbox = true

[store]
url = "{store}"
seal = [{{ id = "test", file = "seal" }}]

[sites.{SITE}]
vendor = "epic"
name = "An EHR"
fhir_base_url = "{ehr}/fhir"
registrations = ["{REGISTRATION}"]
allow_private = true
limits = {{ concurrency = {concurrency} }}

[registrations.{REGISTRATION}]
vendor = "epic"
apps = ["{APP}"]
use = ["standalone"]
client_id = "a-client"
client_auth = {{ method = "client_secret_basic", secret = "a-secret-of-this-test" }}
scopes = ["patient/Patient.rs", "offline_access"]

[apps.{APP}]
name = "Chart viewer"
client_auth = {{ method = "none" }}
redirect_uris = ["http://127.0.0.1:1/callback"]
scopes = ["patient/Patient.rs", "offline_access"]
sites = ["*"]
consent = "never"
"#
    );
    std::fs::write(directory.join("mantel.toml"), text)?;
    Ok(())
}
