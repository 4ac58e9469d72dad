//! A storm: gateways over one store before the simulated EHRs, apps that read all the while, and everything
//! that can go wrong around them (`custody.md`, "How it is proven"). What it cost is then read from the EHRs'
//! own ledgers.
//!
//! Calm, then faults, then calm again until the last doubt has ended: a refresh whose outcome is unknown is
//! waited out for a minute.

mod account;
#[cfg(test)]
mod account_tests;
mod faults;
mod journal;
mod login;
mod recovery;
mod report;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{
    sync::{Mutex, watch},
    task::JoinSet,
    time::{Instant, sleep},
};

use self::{
    account::{Account, Books, Habits, Line, Past},
    faults::Storm,
    journal::{Event, Journal, What},
    login::{Callers, Crowd, Login, Read},
    recovery::{After, Aftermath, Left, describe},
};
pub use self::{journal::FaultKind, report::Report};
use crate::{
    custody::interrupt::Die,
    ehr::{
        auth::{client::Persona, rules::RefreshLife},
        contract::{Rotation, Vendor},
        fhir::BEYOND,
        jwt::s256,
    },
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
/// Before the faults: each token is renewed once.
const CALM: Duration = Duration::from_secs(LIFETIME + 4);
/// All read at the same moment, so often.
const HERD: Duration = Duration::from_secs(4);

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
        crowd: Crowd::default(),
        herd: watch::Sender::new(0),
        stop,
        wrong: RwLock::default(),
    });
    for node in &mut nodes {
        node.gateway.wait_ready(Duration::from_secs(10)).await?;
    }
    let nodes = Arc::new(Mutex::new(nodes));
    for hospital in cluster.hospitals.values() {
        hospital.wire.follow(refresh_request);
    }
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
    readers.spawn(drive_herd(callers.clone()));
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
        busy: std::sync::Mutex::default(),
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
    let after = After {
        cluster: &cluster,
        nodes: &nodes,
        logins: &logins,
        journal: &journal,
        violations,
        longest_life: Duration::from_secs(LIFETIME_OF_ALL),
    };
    let Aftermath { recovered, in_doubt, settled, mut violations } = after.watch(&say).await?;
    let took = began.elapsed();
    callers.stop.send_replace(true);
    while readers.join_next().await.is_some() {}

    if let Some(logs) = &options.logs {
        keep_logs(&nodes.lock().await, logs)?;
        std::fs::write(logs.join("faults.log"), journal.text())?;
    }
    let events = journal.events();
    let mut account = Account::default();
    for hospital in cluster.hospitals.values() {
        let own: Vec<&Login> = logins.iter().map(AsRef::as_ref).filter(|login| login.site == hospital.name).collect();
        reckon(&mut account, hospital, &own, &events, cluster.store.is_none())?;
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
        at_once: callers.crowd.most(),
        recovered,
        in_doubt,
        settled,
        violations,
    })
}

fn reckon(account: &mut Account, hospital: &Hospital, own: &[&Login], events: &[Event], one_disk: bool) -> Result<()> {
    let rules = &hospital.ehr.auth.rules;
    let sum = |of: fn(&login::Reads) -> &std::sync::atomic::AtomicU64| -> u64 {
        own.iter().map(|login| of(&login.reads).load(Relaxed)).sum()
    };
    let line = Line {
        site: hospital.name.clone(),
        logins: own.len(),
        served: sum(|reads| &reads.served),
        later: sum(|reads| &reads.later),
        no_ehr: sum(|reads| &reads.no_ehr),
        busy: sum(|reads| &reads.busy),
        theirs: sum(|reads| &reads.theirs),
        unheard: sum(|reads| &reads.unheard),
        ..Line::default()
    };
    let pasts: Vec<Past<'_>> = own
        .iter()
        .map(|login| Past {
            username: &login.username,
            client_id: format!("{}-at-{}", login.app.client_id, login.site),
            patient: &login.patient,
            logouts: login.logouts.read().unwrap_or_else(PoisonError::into_inner).clone(),
        })
        .collect();
    let books = Books {
        site: &hospital.name,
        habits: Habits {
            rotates: rules.rotation != Rotation::Fixed,
            dies: rules.refresh_life == RefreshLife::WithAccess,
            lifetime: i64::try_from(lifetime(hospital) * 1000)?,
        },
        grants: &hospital.ehr.grants(),
        exchanges: &hospital.wire.exchanges(),
        beyond: hospital.ehr.counters.get(BEYOND),
        events,
        one_disk,
    };
    account.add(line, books.judge(&pasts));
    Ok(())
}

/// The refresh token's digest, of what is sent to a token endpoint in one piece.
fn refresh_request(piece: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(piece).ok()?;
    let (_, form) = text.rsplit_once("\r\n\r\n")?;
    let token = form_urlencoded::parse(form.as_bytes()).find(|(name, _)| name == "refresh_token")?.1;
    Some(s256(&token))
}

/// Now and then all ask at the same moment.
async fn drive_herd(callers: Arc<Callers>) {
    let mut stop = callers.stop.subscribe();
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = sleep(HERD) => callers.herd.send_modify(|count| *count += 1),
        }
    }
}

/// Each vendor as usual and as strict as it can be.
fn ehrs() -> Vec<Ehr> {
    let both = |vendor| [Ehr::new(vendor), Ehr::strict(vendor)];
    let tuned = |ehr: Ehr| match ehr.options.vendor {
        // Two refreshes in a minute are too many there, and lifetimes are seconds here.
        Vendor::Oracle => ehr.switch("min_refresh_interval=1").site("tokens.min_refresh_interval = \"1s\""),
        Vendor::Athena => ehr.switch("token_requests_per_minute=100000"),
        // Burns each refresh token as the strict one does, and forgives that one comes twice.
        Vendor::Epic if !ehr.options.strict => ehr.switch("rotation=rolling"),
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
    let mut violations = Vec::new();
    for login in logins {
        let reads = &login.reads;
        let failed = [&reads.later, &reads.no_ehr, &reads.theirs, &reads.unheard];
        let failed: u64 = failed.iter().map(|count| count.load(Relaxed)).sum();
        let logouts = login.logouts.read().unwrap_or_else(PoisonError::into_inner).len();
        if failed > 0 || logouts > 0 {
            violations.push(format!(
                "{failed} reads failed and {logouts} logouts came before anything was wrong: {}",
                describe(&Left { login: login.clone(), how: Read::Unheard })
            ));
        }
    }
    violations
}

fn last_line(gateway: &Gateway) -> Result<String> {
    Ok(gateway.log("events.log")?.lines().last().unwrap_or_default().to_owned())
}

fn keep_logs(nodes: &[Node], to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for (number, node) in nodes.iter().enumerate() {
        for name in ["events.log", "access.log"] {
            std::fs::copy(node.gateway.log_file(name), to.join(format!("{number}-{name}")))?;
        }
    }
    Ok(())
}
