//! A storm: gateways over one store before the simulated EHRs, apps that read all the while, and everything
//! that can go wrong around them (`custody.md`, "How it is proven"). What it cost is then read from the EHRs'
//! own ledgers.
//!
//! Calm, then faults, then calm again until the last doubt has ended: a refresh whose outcome is unknown is
//! waited out for a minute.

mod account;
mod faults;
mod journal;
mod login;
mod report;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, future::join_all, stream};
use tokio::{
    sync::{Mutex, watch},
    task::JoinSet,
    time::{Instant, sleep},
};

use self::{
    account::Account,
    faults::Storm,
    journal::{Journal, What},
    login::{Callers, Login, Read},
};
pub use self::{journal::FaultKind, report::Report};
use crate::{
    custody::interrupt::Die,
    ehr::{auth::client::Persona, contract::Vendor},
    harness::{
        Ehr, Gateway,
        app::App,
        cluster::{Cluster, Hospital, Node, Plan, StoreKind, clock_library},
        connections,
        postgres::Postgres,
    },
};

pub struct Options {
    pub gateways: usize,
    /// Else SQLite.
    pub postgres: bool,
    pub seconds: u64,
    pub seed: u64,
    pub faults: Vec<FaultKind>,
    /// At each EHR, each with two apps.
    pub patients: usize,
    /// Tells on stderr how far it is.
    pub progress: bool,
    /// Where the gateways' logs are copied to at the end.
    pub logs: Option<PathBuf>,
}

/// Seconds that access tokens live.
const LIFETIME: u64 = 10;
/// Where the refresh token dies with the access token: longer than any fault, so that few are lost to that.
const LIFETIME_OF_ALL: u64 = 30;
/// Before the faults.
const CALM: Duration = Duration::from_secs(LIFETIME + 4);
/// After the faults everything works within that, but for what is in doubt.
const RECOVERY: Duration = Duration::from_secs(10);
/// And so long a doubt may last: a minute, what is left of the old token, and the try itself.
const SETTLED: Duration = Duration::from_secs(60 + LIFETIME + 15);

/// How often a timer and a write to the disk are timed.
const PROBE: Duration = Duration::from_millis(250);
/// Milliseconds that both together take on a machine that is at its limit.
const SLOW: i64 = 1250;

/// # Errors
/// When the world does not start; what goes wrong in the storm is in the report.
pub async fn run(options: &Options) -> Result<Report> {
    ensure!((1..=10).contains(&options.patients), "{} patients, expected 1 to 10", options.patients);
    let say = |text: &str| {
        if options.progress {
            eprintln!("storm: {text}");
        }
    };
    let store = if options.postgres { StoreKind::Postgres(Postgres::start().await?) } else { StoreKind::Sqlite };
    let clocks = options.faults.contains(&FaultKind::Clock);
    ensure!(!clocks || clock_library().is_some(), "`faketime` is missing: tests/run.sh --install installs it");
    let plan = Plan {
        small_disks: options.faults.contains(&FaultKind::Disk),
        own_clocks: clocks,
        ..Plan::new(options.gateways, store, ehrs())
    };
    let mut cluster = Cluster::start(plan).await?;
    let (stop, mut nodes) = (watch::Sender::new(false), std::mem::take(&mut cluster.nodes));
    let callers = Arc::new(Callers {
        front: cluster.front.address(),
        gateways: nodes.iter().map(|node| node.address).collect(),
        http: connections(),
        die: Die::new(options.seed),
        stop,
        wrong: RwLock::default(),
    });
    for node in &mut nodes {
        node.gateway.wait_ready(Duration::from_secs(10)).await?;
    }
    let nodes = Arc::new(Mutex::new(nodes));
    let logins = launch_all(&cluster, &callers, options.patients).await?;
    say(&format!("{} logins", logins.len()));

    let mut readers = JoinSet::new();
    let began = Instant::now();
    for login in logins.iter().flat_map(|login| [login, login]) {
        let login = login.clone();
        readers.spawn(async move { login.live().await });
    }
    let journal = Arc::new(Journal::default());
    readers.spawn(watch_machine(journal.clone(), callers.stop.subscribe()));
    sleep(CALM).await;
    let mut violations = calm(&logins);

    say("it begins");
    let cluster = Arc::new(cluster);
    let storm = Arc::new(Storm {
        cluster: cluster.clone(),
        nodes: nodes.clone(),
        journal: journal.clone(),
        kinds: options.faults.clone(),
        seed: options.seed,
        end: Instant::now() + Duration::from_secs(options.seconds),
        troubles: std::sync::Mutex::default(),
    });
    storm.clone().rage().await;
    violations.extend(storm.troubles.lock().unwrap_or_else(PoisonError::into_inner).drain(..));

    say("it is over");
    for (number, node) in nodes.lock().await.iter_mut().enumerate() {
        if node.gateway.has_ended()? {
            violations.push(format!("gateway {number} ended by itself: {}", last_line(&node.gateway)?));
            node.gateway.launch()?;
        }
    }
    let over = Instant::now();
    let mut left = all_work(&logins, over + RECOVERY).await;
    let recovered = over.elapsed();
    let in_doubt = left.len();
    let known = doubts(&nodes.lock().await).await;
    if in_doubt > known {
        let names: Vec<String> =
            left.iter().map(|(login, how)| format!("{} {} {how:?}", login.site, login.username)).collect();
        violations.push(format!(
            "{in_doubt} logins did not work {RECOVERY:?} after the faults, and {known} grants were in doubt: {}",
            names.join("\n    ")
        ));
    }
    say(&format!("{in_doubt} logins wait for the end of a doubt, and others will when their old token ends"));
    // While its old access token lives, a grant in doubt serves as any other.
    let mut doubtful = known;
    while doubtful > 0 && over.elapsed() < SETTLED {
        sleep(Duration::from_millis(500)).await;
        doubtful = doubts(&nodes.lock().await).await;
    }
    left = all_work(&logins, Instant::now() + RECOVERY).await;
    let settled = over.elapsed();
    for (login, how) in &left {
        violations.push(format!("does not work at the end: {}", describe(login, how)));
    }
    if doubtful > 0 {
        violations.push(format!("{doubtful} grants are in doubt {settled:?} after the faults"));
    }
    let took = began.elapsed();
    callers.stop.send_replace(true);
    while readers.join_next().await.is_some() {}

    if let Some(logs) = &options.logs {
        keep_logs(&nodes.lock().await, logs)?;
    }
    let mut account = Account::default();
    for hospital in cluster.hospitals.values() {
        let own: Vec<&Login> = logins.iter().map(AsRef::as_ref).filter(|login| login.site == hospital.name).collect();
        account.add(hospital, &own, &journal, i64::try_from(lifetime(hospital) * 1000)?);
    }
    violations.append(&mut account.violations);
    violations.append(&mut callers.wrong.write().unwrap_or_else(PoisonError::into_inner));
    let served: u64 = account.lines.iter().map(|line| line.served).sum();
    Ok(Report {
        title: format!(
            "storm: {} gateway{} over {}, {} logins, {} s of faults, seed {}",
            options.gateways,
            if options.gateways == 1 { "" } else { "s" },
            if options.postgres { "PostgreSQL" } else { "SQLite" },
            logins.len(),
            options.seconds,
            options.seed
        ),
        faults: journal.counts(),
        account,
        reads_per_second: f64::from(u32::try_from(served)?) / took.as_secs_f64(),
        recovered: Some(recovered).filter(|_| in_doubt <= known),
        in_doubt: known,
        settled: Some(settled).filter(|_| left.is_empty() && doubtful == 0),
        violations,
    })
}

/// Each vendor as usual and as strict as it can be.
fn ehrs() -> Vec<Ehr> {
    let both = |vendor| [Ehr::new(vendor), Ehr::strict(vendor)];
    let tuned = |ehr: Ehr| match ehr.options.vendor {
        // Two refreshes in a minute are too many there, and lifetimes are seconds here.
        Vendor::Oracle => ehr.switch("min_refresh_interval=1").site("tokens.min_refresh_interval = \"1s\""),
        Vendor::Athena => ehr.switch("token_requests_per_minute=100000"),
        _ => ehr,
    };
    Vendor::ALL.into_iter().flat_map(both).map(tuned).collect()
}

fn lifetime(hospital: &Hospital) -> u64 {
    match hospital.ehr.auth.rules.vendor {
        Vendor::AthenaPractice => LIFETIME_OF_ALL,
        _ => LIFETIME,
    }
}

async fn launch_all(cluster: &Cluster, callers: &Arc<Callers>, patients: usize) -> Result<Vec<Arc<Login>>> {
    let mut people = Vec::new();
    for hospital in cluster.hospitals.values() {
        let ehr = &hospital.ehr;
        ehr.auth.set_lifetime(Some(lifetime(hospital)));
        let users = ehr.auth.users().into_iter().filter(|user| user.persona == Persona::Patient);
        for user in users.take(patients) {
            let mark = ehr.mark(&user.fhir_id).with_context(|| format!("no mark of {}", user.username))?;
            people.push((hospital.name.clone(), user.username.clone(), user.fhir_id.clone(), mark));
        }
    }
    let launches = people.into_iter().flat_map(|person| [(person.clone(), false), (person, true)]);
    stream::iter(launches)
        .map(|(person, secret)| async move {
            let base = cluster.base(&person.0);
            let app = if secret { App::with_secret(&base).await? } else { App::at(&base).await? };
            Ok(Arc::new(Login::new(callers.clone(), person, app).await?))
        })
        .buffer_unordered(8)
        .try_collect()
        .await
}

/// A machine that is busy with something else is no fault of the gateway's.
async fn watch_machine(journal: Arc<Journal>, mut stop: watch::Receiver<bool>) {
    let Ok(place) = tempfile::tempdir() else { return };
    let file = place.path().join("probe");
    loop {
        let from = journal::now();
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = sleep(PROBE) => {}
        }
        let file = file.clone();
        let written = tokio::task::spawn_blocking(move || {
            let mut file = std::fs::File::create(file)?;
            file.write_all(&[0; 4096])?;
            file.sync_all()
        });
        let _ = written.await;
        if journal::now() - from > SLOW {
            journal.note(What::MachineSlow, from);
        }
    }
}

/// While nothing is wrong, everything is served.
fn calm(logins: &[Arc<Login>]) -> Vec<String> {
    use std::sync::atomic::Ordering::Relaxed;
    let mut violations = Vec::new();
    for login in logins {
        let reads = &login.reads;
        let failed = [&reads.later, &reads.no_ehr, &reads.theirs, &reads.unheard];
        let failed: u64 = failed.iter().map(|count| count.load(Relaxed)).sum();
        let logouts = login.logouts.read().unwrap_or_else(PoisonError::into_inner).len();
        if failed > 0 || logouts > 0 {
            violations.push(format!(
                "{failed} reads failed and {logouts} logouts came before anything was wrong: {}",
                describe(login, &Read::Unheard)
            ));
        }
    }
    violations
}

/// Asks for all until each was served, or the time is over; those that were not are left.
async fn all_work(logins: &[Arc<Login>], until: Instant) -> Vec<(Arc<Login>, Read)> {
    let tries = logins.iter().map(|login| async move {
        loop {
            // A read may lead to a new launch, which has no end of its own.
            let how = tokio::time::timeout_at(until, login.read()).await.unwrap_or(Read::Unheard);
            if how == Read::Served {
                return None;
            }
            if Instant::now() >= until {
                return Some((login.clone(), how));
            }
            sleep(Duration::from_millis(250)).await;
        }
    });
    join_all(tries).await.into_iter().flatten().collect()
}

fn describe(login: &Login, how: &Read) -> String {
    let trouble = login.trouble.read().unwrap_or_else(PoisonError::into_inner);
    format!("{} {} {} {how:?}, last heard: {trouble}", login.site, login.app.client_id, login.username)
}

fn last_line(gateway: &Gateway) -> Result<String> {
    Ok(gateway.log("events.log")?.lines().last().unwrap_or_default().to_owned())
}

fn keep_logs(nodes: &[Node], to: &Path) -> Result<()> {
    for (number, node) in nodes.iter().enumerate() {
        for name in ["events.log", "access.log"] {
            std::fs::copy(node.gateway.log_file(name), to.join(format!("{number}-{name}")))?;
        }
    }
    Ok(())
}

/// How many grants are in doubt, as the gateways count them.
async fn doubts(nodes: &[Node]) -> usize {
    let asked = nodes.iter().map(|node| in_doubt(&node.gateway));
    let counts = join_all(asked).await;
    counts.into_iter().filter_map(Result::ok).fold(0, usize::max)
}

async fn in_doubt(gateway: &Gateway) -> Result<usize> {
    let count = gateway.metric("mantel_grants{state=\"in_doubt\"}").await?;
    // A count of grants is a whole number far below 2^32.
    Ok(format!("{count:.0}").parse()?)
}
