//! One measurement, in a process of its own: memory that another one has used and given back would hide in it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant as Wall},
};

use anyhow::{Context as _, Result, bail, ensure};
use async_trait::async_trait;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use mantel::{
    clock::{Clock, Instant, SharedClock, SystemClock, Timestamp},
    config::{SealKey, StoreConfig, StoreUrl},
    custody::{
        Custody, CustodyContext, CustodyEvents, GrantPolicy, LeaseMark, Policies, RefreshAnswer, RefreshOutcome,
        SpillEvent, TokenEndpoint, Wheel,
    },
    entropy::{SharedEntropy, SystemEntropy, uuid4},
    replicas::Replicas,
    secret::{Secret, TokenHash},
    session::Bearers,
    store::{
        AccessToken, BootId, EndReason, Grant, GrantFacts, NewTokens, Redeemed, RefreshToken, ReplicaFacts, SharedStore,
    },
    telemetry::Metrics,
};
use mantel_adapters::{
    profile::TokenPolicy,
    site::{RegistrationId, SiteId, VendorId},
    smart::launch::LaunchContext,
};
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, sync::Notify};

use super::system::{anonymous, own_time, written};
use crate::custody::grants::{self, Kind, Opened, code_hash, id_of};

#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    #[arg(long)]
    pub store: String,
    #[arg(long)]
    pub grants: u32,
    #[command(subcommand)]
    pub what: What,
}

#[derive(clap::Subcommand, Clone, Copy, Debug)]
pub enum What {
    /// Stores the grants, each with an app's session
    Fill,
    /// Starts custody over them
    Start {
        /// Where each must be looked at though nobody asks
        #[arg(long)]
        turning: bool,
    },
    /// Uses each once, and then again and again
    Warm,
    /// Refreshes expired ones
    Refresh {
        /// From the so-manieth grant
        #[arg(long)]
        first: u32,
        #[arg(long)]
        count: u32,
        #[arg(long)]
        at_once: usize,
    },
    /// Turns of a wheel without a store
    Turns,
}

/// What one measurement found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Found {
    Filled { seconds: f64 },
    Started { open_seconds: f64, read_seconds: f64, bytes_each: f64 },
    Warm { bytes_each: f64, session_bytes_each: f64, one_ns: f64, all_ns: f64, two_threads_ns: f64 },
    Refreshed { seconds: f64, commits: Option<u64>, written_bytes: u64, write_calls: u64 },
    Turned { set_ns: f64, move_ns: f64, take_ns: f64 },
}

pub(super) const LIFETIME: Duration = Duration::from_secs(3600);
/// Operations that are put to the store at once where it is not measured.
const BUSY: usize = 256;
const PATIENCE: Duration = Duration::from_secs(60);

/// # Errors
/// If the store does not serve, or custody does not do what is measured.
pub async fn measure(arguments: &Arguments) -> Result<Found> {
    let Arguments { store, grants, what } = arguments;
    match *what {
        What::Fill => fill(&open(store).await?, *grants).await,
        What::Start { turning } => Ok(start(store, *grants, turning, Duration::ZERO).await?.found),
        What::Warm => warm(start(store, *grants, false, Duration::ZERO).await?, *grants).await,
        What::Refresh { first, count, at_once } => {
            // To a clock that is ahead all tokens have expired.
            let started = start(store, *grants, false, 2 * LIFETIME).await?;
            refresh(&started, first..first.saturating_add(count), at_once).await
        }
        What::Turns => turns(*grants).await,
    }
}

async fn open(url: &str) -> Result<Opened> {
    let url = match url.strip_prefix("sqlite://") {
        Some(path) => StoreUrl::Sqlite(Some(path.into())),
        None if url.starts_with("postgres") => StoreUrl::Postgres(url.into()),
        None => bail!("{url:?} is no store; expected sqlite:///path or postgres://…"),
    };
    let seal = vec![SealKey { id: "bench".into(), bytes: Secret::new([7; 32]) }];
    grants::open(&StoreConfig { url, seal, spill: None }).await
}

// ---- the grants --------------------------------------------------------------------------------------

/// As long as real ones: a JWT of 1 kB, an opaque refresh token, the scopes of a chart viewer.
fn access(number: u32, count: i64) -> String {
    format!("{number}.{count}.{:a>1000}", "")
}

fn refresh_token(number: u32, count: i64) -> String {
    format!("{number}.{count}.{:r>300}", "")
}

const SCOPES: &str = "launch/patient openid fhirUser offline_access patient/Patient.rs patient/Observation.rs \
                      patient/Condition.rs patient/MedicationRequest.rs patient/AllergyIntolerance.rs patient/Encounter.rs";

fn kind() -> Result<Kind> {
    let facts = GrantFacts {
        asked: SCOPES.into(),
        reported: SCOPES.into(),
        enforced: SCOPES.into(),
        upstream: Some(SCOPES.into()),
        context: LaunchContext { patient: Some("eq081-VQEgP8drUUqCWzHfw3".into()), ..LaunchContext::default() },
        fhir_user: Some("Practitioner/e3MBXCOmcoLKl7ayLD51AWA3".into()),
        ..GrantFacts::default()
    };
    Ok(Kind {
        app: "viewer".parse().context("an id")?,
        site: "epic".parse().context("an id")?,
        registration: "viewer-epic".parse().context("an id")?,
        fingerprint: "epic|client|/oauth/callback/viewer-epic".into(),
        facts,
    })
}

fn app_token(number: u32) -> TokenHash {
    TokenHash::of(&format!("mtl_at_{number}"))
}

async fn fill(opened: &Opened, count: u32) -> Result<Found> {
    let (kind, now, began) = (kind()?, SystemClock.now(), Wall::now());
    let (kind, store) = (&kind, &opened.store);
    stream::iter(0..count)
        .map(Ok::<_, anyhow::Error>)
        .try_for_each_concurrent(BUSY, |number| async move {
            let mut tokens = grants::tokens(access(number, 1), refresh_token(number, 1), now, LIFETIME);
            tokens.scope = Some(SCOPES.into());
            let grant = kind.grant(number, tokens);
            grants::create(store, &grant).await?;
            let tokens = NewTokens {
                access: AccessToken {
                    hash: app_token(number),
                    grant: grant.id,
                    reported: SCOPES.into(),
                    enforced: SCOPES.into(),
                    expires: now.after(LIFETIME),
                },
                refresh: Some(RefreshToken {
                    hash: TokenHash::of(&format!("mtl_rt_{number}")),
                    expires: now.after(24 * LIFETIME),
                }),
            };
            let redeemed = store.redeem_code(code_hash(grant.id), &tokens, now).await?;
            ensure!(matches!(redeemed, Redeemed::Now(_)), "a new code was not redeemed: {redeemed:?}");
            Ok(())
        })
        .await?;
    let seconds = began.elapsed().as_secs_f64();
    opened.store.close().await;
    Ok(Found::Filled { seconds })
}

// ---- custody over them -------------------------------------------------------------------------------

struct Started {
    opened: Opened,
    custody: Custody,
    found: Found,
}

async fn start(url: &str, count: u32, turning: bool, ahead: Duration) -> Result<Started> {
    let (before, began) = (anonymous()?, Wall::now());
    let opened = open(url).await?;
    let open_seconds = began.elapsed().as_secs_f64();
    let words = Arc::new(Words::new(u64::from(count), turning)?);
    let entropy: SharedEntropy = Arc::new(SystemEntropy::new());
    let custody = Custody::new(CustodyContext {
        store: opened.store.clone(),
        endpoint: words.clone(),
        clock: clock(ahead),
        replicas: replicas(&opened.store).await?,
        entropy,
        handle: Handle::current(),
        events: words.clone(),
        policies: words.clone(),
        token_timeout: PATIENCE,
        spill: None,
    });
    // Each grant that is read at the start is judged by its policy once.
    tokio::time::timeout(PATIENCE, words.all.notified()).await.context("not all grants were read")?;
    let read_seconds = began.elapsed().as_secs_f64() - open_seconds;
    let bytes_each = grown(before, count)?;
    Ok(Started { opened, custody, found: Found::Started { open_seconds, read_seconds, bytes_each } })
}

/// This process alone, as at the start of a gateway.
async fn replicas(store: &SharedStore) -> Result<Replicas> {
    let (metrics, me) = (Metrics::new()?, BootId(uuid4(&SystemEntropy::new())));
    let clock = clock(Duration::ZERO);
    Ok(Replicas::join(store.clone(), clock, metrics, me, Arc::new(ReplicaFacts::default()), PATIENCE).await?)
}

fn grown(before: u64, count: u32) -> Result<f64> {
    Ok(anonymous()?.saturating_sub(before) as f64 / f64::from(count))
}

fn clock(ahead: Duration) -> SharedClock {
    Arc::new(Ahead(ahead))
}

struct Ahead(Duration);

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        SystemClock.now().after(self.0)
    }
}

async fn warm(started: Started, count: u32) -> Result<Found> {
    let Started { opened, custody, .. } = started;
    let before = anonymous()?;
    stream::iter(0..count)
        .map(|number| custody.bearer(id_of(number), Instant::now() + PATIENCE))
        .buffer_unordered(BUSY)
        .try_for_each(|_| std::future::ready(Ok(())))
        .await
        .map_err(|fault| anyhow::anyhow!("a fresh grant has no bearer: {fault:?}"))?;
    let bytes_each = grown(before, count)?;

    let again = 10 * count;
    let one_ns = ask(&custody, again, |_| 0)?;
    let all_ns = ask(&custody, again, |turn| turn.wrapping_mul(7919) % count)?;
    let two_threads_ns = two_threads(&custody, again, count)?;

    let before = anonymous()?;
    let bearers = Bearers::new(opened.store.clone(), clock(Duration::ZERO), replicas(&opened.store).await?);
    let bearers_ref = &bearers;
    stream::iter(0..count)
        .map(Ok::<_, anyhow::Error>)
        .try_for_each_concurrent(BUSY, |number| async move {
            bearers_ref.load(app_token(number), |_| ()).await?.context("an app's token is unknown")?;
            Ok(())
        })
        .await?;
    let session_bytes_each = grown(before, count)?;
    custody.shutdown().await;
    opened.store.close().await;
    Ok(Found::Warm { bytes_each, session_bytes_each, one_ns, all_ns, two_threads_ns })
}

/// Nanoseconds a bearer, of the thread's own time: fresh ones are given without waiting.
fn ask(custody: &Custody, times: u32, which: impl Fn(u32) -> u32) -> Result<f64> {
    let ids: Vec<_> = (0..times).map(|turn| id_of(which(turn))).collect();
    let deadline = Instant::now() + PATIENCE;
    let began = own_time()?;
    for id in ids {
        let Some(Ok(_)) = custody.bearer(id, deadline).now_or_never() else {
            bail!("a fresh grant has no bearer, or it was waited for")
        };
    }
    Ok((own_time()? - began).as_nanos() as f64 / f64::from(times))
}

/// The same by two threads at once, on the same grants.
fn two_threads(custody: &Custody, times: u32, count: u32) -> Result<f64> {
    let ask = || ask(custody, times, |turn| turn.wrapping_mul(7919) % count);
    std::thread::scope(|scope| {
        let threads = [scope.spawn(ask), scope.spawn(ask)];
        let mut sum = 0.0;
        for thread in threads {
            sum += thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok(sum / 2.0)
    })
}

async fn refresh(started: &Started, which: std::ops::Range<u32>, at_once: usize) -> Result<Found> {
    let Started { opened, custody, .. } = started;
    let (before, commits, began) = (written()?, opened.commits(), Wall::now());
    stream::iter(which)
        .map(Ok::<_, anyhow::Error>)
        .try_for_each_concurrent(at_once, |number| async move {
            match custody.bearer(id_of(number), Instant::now() + PATIENCE).await {
                Ok(bearer) if bearer.generation > 1 => Ok(()),
                other => bail!("grant {number} was not refreshed: {other:?}"),
            }
        })
        .await?;
    let (seconds, after) = (began.elapsed().as_secs_f64(), written()?);
    let commits = opened.commits().zip(commits).map(|(after, before)| after - before);
    custody.shutdown().await;
    opened.store.close().await;
    Ok(Found::Refreshed {
        seconds,
        commits,
        written_bytes: after.bytes - before.bytes,
        write_calls: after.calls - before.calls,
    })
}

async fn turns(count: u32) -> Result<Found> {
    let wheel = Wheel::default();
    // In the past, so that all are due; in no order.
    let now = Instant::now();
    let at = |number: u32, turn: u32| {
        now.checked_sub(Duration::from_micros(u64::from(number.wrapping_mul(7919).wrapping_add(turn) % 1_000_000)))
    };
    let mut spent = [0.0; 2];
    for (turn, spent) in (0..).zip(&mut spent) {
        let began = own_time()?;
        for number in 0..count {
            wheel.set(id_of(number), at(number, turn * 500_000));
        }
        *spent = (own_time()? - began).as_nanos() as f64 / f64::from(count);
    }
    let began = own_time()?;
    let mut taken = 0;
    while taken < count as usize {
        taken += wheel.due().await.len();
    }
    let take_ns = (own_time()? - began).as_nanos() as f64 / f64::from(count);
    let [set_ns, move_ns] = spent;
    Ok(Found::Turned { set_ns, move_ns, take_ns })
}

// ---- what custody asks -------------------------------------------------------------------------------

/// An EHR in memory that answers at once, and one policy for all.
struct Words {
    policy: GrantPolicy,
    asked: AtomicU64,
    expected: u64,
    all: Notify,
}

impl Words {
    fn new(expected: u64, turning: bool) -> Result<Self> {
        let tokens = TokenPolicy { dies_with_access: turning, ..TokenPolicy::default() };
        let vendor = "epic".parse().context("an id")?;
        let policy = GrantPolicy { vendor, tokens, keep_alive: false, session: None, cold_for: LIFETIME };
        Ok(Self { policy, asked: AtomicU64::new(0), expected, all: Notify::new() })
    }
}

impl Policies for Words {
    fn of(&self, _: &Grant) -> Option<GrantPolicy> {
        if self.asked.fetch_add(1, Ordering::Relaxed) + 1 == self.expected {
            self.all.notify_one();
        }
        Some(self.policy.clone())
    }

    fn learnt(&self, _: &Grant, _: &str) -> Option<GrantFacts> {
        None
    }
}

#[async_trait]
impl TokenEndpoint for Words {
    async fn refresh(&self, grant: &Grant, _: &Secret<String>, _: Option<&str>) -> RefreshAnswer {
        let Ok(number) = grants::number_of(grant.id) else { return RefreshAnswer::NotSent };
        RefreshAnswer::Tokens {
            access: access(number, grant.generation + 1).into(),
            refresh: Some(refresh_token(number, grant.generation + 1).into()),
            lifetime: Some(LIFETIME),
            refresh_lifetime: None,
            scope: Some(SCOPES.into()),
            id_token: None,
        }
    }
}

impl CustodyEvents for Words {
    fn refresh(&self, _: &VendorId, _: &SiteId, _: RefreshOutcome) {}

    fn ended(&self, _: &Grant, _: EndReason) {}

    fn changed(&self, _: &Grant) {}

    fn suspect(&self, _: &RegistrationId, _: &SiteId, _: bool) {}

    fn joined(&self) {}

    fn kept(&self) {}

    fn lease(&self, _: LeaseMark) {}

    fn spill(&self, _: SpillEvent) {}

    fn spill_depth(&self, _: usize) {}
}
