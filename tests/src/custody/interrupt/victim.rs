//! The process that is killed: a real store, real custody and the gateway's own token client, and some forty callers
//! that wait for refreshes. It tells each step on its standard output, a line by one write(2): what the pipe has, a
//! killed process has done.

use std::{io::Write as _, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use async_trait::async_trait;
use futures_util::{StreamExt as _, TryStreamExt as _, future::join_all, stream};
use mantel::{
    clock::{Clock, Instant, SharedClock, SystemClock, Timestamp},
    config::{Config, Disk, Sources, load},
    custody::{
        Budget, Custody, CustodyContext, CustodyEvents, CustodyFault, GrantPolicy, LeaseMark, Policies, RefreshAnswer,
        RefreshOutcome, SpillEvent, TokenEndpoint,
    },
    entropy::{SharedEntropy, SystemEntropy, uuid4},
    replicas::Replicas,
    secret::Secret,
    store::{BootId, EndReason, Grant, GrantFacts, GrantState, ReplicaFacts, SharedStore},
    telemetry::{
        Metrics,
        logging::{self, Format},
    },
    upstream::{Client, Ehrs, Roots, TokenOutcome},
};
use mantel_adapters::{
    profile::Place,
    site::{RegistrationId, SiteId, VendorId},
    smart::token::meaning,
};
use tokio::{
    runtime::Handle,
    sync::{Mutex, mpsc},
};

use super::{
    driver::{APP, REGISTRATION, SITE},
    endpoint::{LIFETIME, access_token, refresh_token},
    told::Line,
};
use crate::custody::grants::{self, Kind, id_of, number_of};

/// What the process is started with.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Directory of `mantel.toml`
    #[arg(long)]
    pub config: PathBuf,
    /// Logins 0 to this are to be there
    #[arg(long)]
    pub logins: u32,
    /// Callers that wait at once
    #[arg(long)]
    pub in_flight: usize,
    /// Its wall clock is ahead by so many seconds
    #[arg(long, default_value_t = 0)]
    pub ahead: u64,
    /// No callers: waits until no grant is in doubt, tries every living one, and ends
    #[arg(long)]
    pub settle: bool,
}

/// So long a caller waits.
const PATIENCE: Duration = Duration::from_secs(60);

fn tell(line: &Line) {
    let text = format!("{line}\n");
    // One write, since the text ends the line; a parent that has gone is told nothing.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

struct Ahead(Duration);

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        SystemClock.now().after(self.0)
    }
}

/// # Errors
/// What keeps it from its work.
pub async fn run(arguments: Arguments) -> Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    logging::init(Format::Text, "warn", None)?;
    let sources = Sources { paths: vec![arguments.config.clone()], environment: Vec::new(), files: Arc::new(Disk) };
    let config = Arc::new(load(&sources).map_err(|faults| anyhow!("{faults}"))?.config);
    let store = grants::open(&config.store).await?.store;
    let held = inventory(&store, &config, arguments.logins).await?;
    tell(&Line::Ready);
    // Until the parent has compared what is held with the EHR's ledger, nothing may change.
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    let clock: SharedClock = Arc::new(Ahead(Duration::from_secs(arguments.ahead)));
    let entropy: SharedEntropy = Arc::new(SystemEntropy::new());
    let timeouts = config.server.timeouts.clone();
    let metrics = Metrics::new()?;
    let (me, facts) = (BootId(uuid4(&*entropy)), Arc::new(ReplicaFacts::default()));
    let max_stale = config.server.max_stale;
    let replicas = Replicas::join(store.clone(), clock.clone(), metrics.clone(), me, facts, max_stale).await?;
    let ehrs = Ehrs::new(Roots::none(), &timeouts, Handle::current(), clock.clone(), entropy.clone(), metrics);
    ehrs.take_on(&config).map_err(|_| anyhow!("the EHR's client cannot be made"))?;
    let words = Arc::new(Words { config: config.clone(), ehrs });
    let custody = Custody::new(CustodyContext {
        store: store.clone(),
        endpoint: words.clone(),
        clock,
        replicas: replicas.clone(),
        entropy,
        handle: Handle::current(),
        events: words.clone(),
        policies: words,
        token_timeout: timeouts.token,
        spill: None,
    });
    // As in the gateway: a process that does not hear what the others ended serves nothing after `max_stale`.
    let forgets = custody.clone();
    replicas.follow(move |grant| forgets.forget(grant));
    if arguments.settle {
        return settle(&custody, &store, arguments.logins).await;
    }
    let callers = Callers::new(custody, held);
    join_all((0..arguments.in_flight).map(|_| callers.call())).await;
    Ok(())
}

/// A grant that can be asked for: its number, generation, and when its access token has certainly ended.
type Ripe = (u32, i64, Instant);

/// Tells what the store holds before anything else happens, and creates the logins that are not there yet.
async fn inventory(store: &SharedStore, config: &Config, logins: u32) -> Result<Vec<Ripe>> {
    let kind = kind(config)?;
    let (now, wall) = (Instant::now(), SystemClock.now());
    let (mut after, mut found) = (None, vec![false; usize::try_from(logins)?]);
    let mut ripe = Vec::new();
    loop {
        let page = store.grants_after(after, 1000).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        for grant in &page {
            let number = number_of(grant.id)?;
            tell(&Line::held(number, grant));
            *found.get_mut(usize::try_from(number)?).context("a login that nobody opened")? = true;
            if grant.state == GrantState::Live {
                let left = LIFETIME.saturating_sub(grant.tokens.received.until(wall));
                ripe.push((number, grant.generation, now + left));
            }
        }
    }
    let missing = (0..logins).zip(found).filter(|(_, found)| !found).map(|(number, _)| number);
    let made: Vec<Option<Ripe>> = stream::iter(missing)
        .map(|number| create(store, &kind, number, wall, now))
        .buffer_unordered(200)
        .try_collect()
        .await?;
    ripe.extend(made.into_iter().flatten());
    ripe.sort_by_key(|(_, _, at)| *at);
    Ok(ripe)
}

async fn create(store: &SharedStore, kind: &Kind, number: u32, wall: Timestamp, now: Instant) -> Result<Option<Ripe>> {
    if let Some(grant) = store.grant(id_of(number)).await? {
        tell(&Line::held(number, &grant));
        return Ok(None);
    }
    let received = wall.before(LIFETIME);
    let grant =
        kind.grant(number, grants::tokens(access_token(number, 1), refresh_token(number, 1), received, LIFETIME));
    grants::create(store, &grant).await?;
    tell(&Line::held(number, &grant));
    Ok(Some((number, 1, now)))
}

fn kind(config: &Config) -> Result<Kind> {
    let registration = REGISTRATION.parse().map_err(|_| anyhow!("{REGISTRATION} is no id"))?;
    let filed = config.registrations.get(&registration).context("the registration is missing")?;
    Ok(Kind {
        app: APP.parse().map_err(|_| anyhow!("{APP} is no id"))?,
        site: SITE.parse().map_err(|_| anyhow!("{SITE} is no id"))?,
        fingerprint: filed.fingerprint(),
        registration,
        facts: GrantFacts { reported: "patient/Patient.rs offline_access".into(), ..GrantFacts::default() },
    })
}

// ---- callers -----------------------------------------------------------------------------------------

struct Callers {
    custody: Custody,
    /// Sorted by time, since each goes to the end with the same lifetime.
    next: Mutex<mpsc::UnboundedReceiver<Ripe>>,
    again: mpsc::UnboundedSender<Ripe>,
}

impl Callers {
    fn new(custody: Custody, held: Vec<Ripe>) -> Self {
        let (again, next) = mpsc::unbounded_channel();
        for ripe in held {
            // Nobody closes it: the receiver is ours.
            let _ = again.send(ripe);
        }
        Self { custody, next: Mutex::new(next), again }
    }

    /// Asks for one grant after the other, each after the end of its access token, so that it must be refreshed.
    async fn call(&self) {
        loop {
            let Some((number, generation, at)) = self.next.lock().await.recv().await else { return };
            tokio::time::sleep_until(at).await;
            tell(&Line::Asked { number, generation });
            match self.custody.bearer(id_of(number), Instant::now() + PATIENCE).await {
                Ok(bearer) => {
                    tell(&Line::Shared { number, generation: bearer.generation });
                    let _ = self.again.send((number, bearer.generation, Instant::now() + LIFETIME));
                }
                Err(CustodyFault::Ended(reason)) => tell(&Line::Ended { number, reason: reason.text().into() }),
                Err(fault) => tell(&Line::Failed { number, fault: format!("{fault:?}") }),
            }
        }
    }
}

/// Waits for the end of all doubts, then uses each login that lives.
async fn settle(custody: &Custody, store: &SharedStore, logins: u32) -> Result<()> {
    // Thousands of doubts that end at once may be more than the store's queue takes.
    while store.count_grants().await.map_or(true, |[_, in_doubt, _]| in_doubt > 0) {
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    stream::iter(0..logins)
        .map(Ok::<_, anyhow::Error>)
        .try_for_each_concurrent(40, |number| async move {
            let Some(grant) = store.grant(id_of(number)).await? else { return Ok(()) };
            if !matches!(grant.state, GrantState::Ended { .. })
                && let Err(fault) = custody.bearer(grant.id, Instant::now() + PATIENCE).await
            {
                tell(&Line::Failed { number, fault: format!("{fault:?}") });
            }
            Ok(())
        })
        .await?;
    custody.shutdown().await;
    for number in 0..logins {
        if let Some(grant) = store.grant(id_of(number)).await? {
            tell(&Line::held(number, &grant));
        }
    }
    tell(&Line::Settled);
    Ok(())
}

// ---- what custody asks -------------------------------------------------------------------------------

struct Words {
    config: Arc<Config>,
    ehrs: Ehrs,
}

#[async_trait]
impl TokenEndpoint for Words {
    async fn refresh(&self, grant: &Grant, refresh_token: &Secret<String>, scope: Option<&str>) -> RefreshAnswer {
        let (Some(site), Some(registration)) =
            (self.config.sites.get(&grant.site), self.config.registrations.get(&grant.registration))
        else {
            return RefreshAnswer::NotSent;
        };
        let Some((client_id, auth)) = registration.client_of(&grant.fingerprint) else { return RefreshAnswer::NotSent };
        let outcome = self.ehrs.refresh(site, Client { client_id, auth }, refresh_token, scope).await;
        let generation = grant.generation;
        if let (Ok(number), TokenOutcome::Answer(_)) = (number_of(grant.id), &outcome) {
            tell(&Line::Received { number, generation });
        }
        match outcome {
            TokenOutcome::Answer(mut answer) => RefreshAnswer::Tokens {
                access: Secret::new(std::mem::take(&mut answer.access_token)),
                refresh: answer.refresh_token.take().map(Secret::new),
                lifetime: answer.expires_in.map(Duration::from_secs),
                refresh_lifetime: answer.refresh_expires_in.map(Duration::from_secs),
                scope: answer.scope.take(),
                id_token: None,
            },
            TokenOutcome::Refused(refusal) => RefreshAnswer::Refused {
                meaning: meaning(&site.profile, Place::Refresh, &refusal.error).0,
                retry_after: refusal.retry_after,
                detail: format!("status {}", refusal.error.status),
            },
            TokenOutcome::NotSent(reason) => {
                eprintln!("grant {} was not sent: {reason}", grant.id);
                RefreshAnswer::NotSent
            }
            TokenOutcome::Unknown(reason) => {
                eprintln!("grant {} was sent and not answered: {reason}", grant.id);
                RefreshAnswer::Unknown
            }
        }
    }
}

impl Policies for Words {
    fn of(&self, grant: &Grant) -> Option<GrantPolicy> {
        let site = self.config.sites.get(&grant.site)?;
        Some(GrantPolicy {
            vendor: site.vendor.clone(),
            tokens: site.profile.tokens.clone(),
            keep_alive: false,
            session: None,
            cold_for: Duration::ZERO,
        })
    }

    /// Wide: each kill leaves forty doubts, and hundreds of kills more than a site's usual budget ends in an hour, since
    /// who waits for a dead process's lease keeps a place in it.
    fn budget(&self, grant: &Grant) -> Budget {
        Budget { shared_by: grant.site.as_str().into(), at_once: 1000, per_minute: None }
    }

    fn learnt(&self, _grant: &Grant, _scope: &str) -> Option<GrantFacts> {
        None
    }
}

impl CustodyEvents for Words {
    fn refresh(&self, _vendor: &VendorId, _site: &SiteId, _outcome: RefreshOutcome) {}

    fn ended(&self, grant: &Grant, reason: EndReason) {
        if let Ok(number) = number_of(grant.id) {
            tell(&Line::Ended { number, reason: reason.text().into() });
        }
    }

    fn changed(&self, _grant: &Grant) {}

    fn suspect(&self, _: &RegistrationId, _: &SiteId, _: bool) {}

    fn joined(&self) {}

    fn kept(&self) {}

    fn lease(&self, _: LeaseMark) {}

    fn spill(&self, _: SpillEvent) {}

    fn spill_depth(&self, _: usize) {}
}
