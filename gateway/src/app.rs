//! The composition root: from a checked configuration to a running gateway.

mod collector;
mod operator;
mod registrar;
mod registrations;
mod voice;

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures_util::future::join_all;
use mantel_adapters::{
    profile::{Meaning, Place},
    smart::{scope::ScopeSet, token::meaning},
};
use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use self::{operator::Operator, registrar::Registrar, voice::ProcessVoice};
use crate::{
    admin::{
        Admin,
        commands::Commands,
        socket::{AdminSocket, LONGEST_PATH},
    },
    clock::{SharedClock, SteadyClock, SystemClock},
    config::{Config, CustodyMode},
    custody::{
        Budget, Custody, CustodyContext, CustodyEvents, GrantPolicy, LeaseMark, Policies, RefreshAnswer,
        RefreshOutcome, SessionLimits, Spill, SpillEvent, SpillFault, TokenEndpoint,
    },
    edge::{
        listen::{self, Settings},
        service::Worker,
        stack::ControlStack,
        tls,
    },
    entropy::{self, SharedEntropy, SystemEntropy},
    oauth::OAuth,
    proxy::{Pages, Proxy, ProxyContext, Statements},
    replicas::Replicas,
    secret::Secret,
    session::{Bearers, Mint, Signer},
    store::{
        self, BootId, EndReason, Grant, GrantFacts, GrantId, GrantState, Revocation, Schema, SharedStore, StoreError,
        rotation::SealRotation, sealing::Sealer,
    },
    telemetry::{AccessLog, CustodyLabels, Metrics, traces::Traces},
    upstream::{Client, Clients, Ehrs, RevokeOutcome, Roots, TokenHint, TokenOutcome, refresh_share},
};

/// What a gateway takes from its surroundings; tests hand in their own.
pub struct Ports {
    pub clock: SharedClock,
    pub entropy: SharedEntropy,
    pub roots: Roots,
    /// Where access log lines go.
    pub access_log: Box<dyn std::io::Write + Send>,
    /// What this binary knows of the store's tables; a later one's, in tests of rolling upgrades.
    pub schema: Schema,
}

impl Ports {
    /// The machine's.
    pub fn of_process() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy::new()),
            roots: Roots::native(),
            access_log: Box::new(std::io::stdout()),
            schema: Schema::default(),
        }
    }
}

/// Starts the exporter of spans, if the configuration names a collector.
///
/// # Errors
/// If the exporter cannot be made.
pub fn traces(config: &Config, runtime: Handle) -> anyhow::Result<Option<Traces>> {
    let Some(collector) = &config.telemetry.otlp else { return Ok(None) };
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let carrier = Arc::new(collector::Collector::new()?);
    #[allow(clippy::cast_precision_loss, reason = "0 to 100")]
    let share = config.telemetry.sample_percent as f64 / 100.0;
    Traces::start(collector.as_str(), share, carrier, runtime).map(Some)
}

/// A gateway that serves. Dropped without [`Running::stop`], it goes on until its runtime ends.
pub struct Running {
    pub address: SocketAddr,
    pub admin_address: SocketAddr,
    stop: CancellationToken,
    /// For what must outlive the data plane: admin answers until the end.
    end: CancellationToken,
    edge: JoinHandle<anyhow::Result<()>>,
    custody: Custody,
    replicas: Replicas,
    store: SharedStore,
    log: Arc<AccessLog>,
}

impl Running {
    /// Cancelled when the gateway stops: by [`Running::stop`], or from outside.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Serves until [`Running::stopping`] is cancelled, lets requests in work end, then custody's
    /// flights: what an EHR answers is stored. At last the store is closed.
    ///
    /// # Errors
    /// If the data plane failed.
    pub async fn until_stopped(self) -> anyhow::Result<()> {
        let mut edge = self.edge;
        let served = tokio::select! {
            biased;
            // Without a data plane there is nothing to wait for.
            served = &mut edge => { self.stop.cancel(); served },
            () = self.stop.cancelled() => edge.await,
        };
        self.custody.shutdown().await;
        self.replicas.leave().await;
        self.store.close().await;
        self.log.flush();
        self.end.cancel();
        served.context("the data plane ended early")?
    }

    /// Stops, and waits for the end.
    ///
    /// # Errors
    /// If the data plane failed.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.until_stopped().await
    }
}

/// Starts a gateway on the runtime that calls: it becomes the control runtime, which carries custody,
/// the store, the authorization server and the admin listener.
///
/// # Errors
/// What keeps it from serving, in words for its operator.
pub async fn start(config: Config, ports: Ports) -> anyhow::Result<Running> {
    let mut begun = Begun::default();
    let started = begin(config, ports, &mut begun).await;
    if started.is_err() {
        begun.undo().await;
    }
    started
}

/// What a start has begun that others see, or that must be ended in order.
#[derive(Default)]
struct Begun {
    store: Option<SharedStore>,
    replicas: Option<Replicas>,
    custody: Option<Custody>,
}

impl Begun {
    /// After a start that was refused: the other processes must not wait for the silence of this one, and what it has
    /// asked of the store is answered before that is closed.
    async fn undo(self) {
        if let Some(custody) = self.custody {
            custody.shutdown().await;
        }
        if let Some(replicas) = self.replicas {
            replicas.leave().await;
        }
        if let Some(store) = self.store {
            store.close().await;
        }
    }
}

async fn begin(config: Config, ports: Ports, begun: &mut Begun) -> anyhow::Result<Running> {
    // Once in a process; whoever came first chose the same.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();

    let Ports { clock, entropy, roots, access_log, schema } = ports;
    let handle = Handle::current();
    let metrics = Metrics::new()?;
    let steady = Arc::new(SteadyClock::new(clock, metrics.clone()));
    let clock: SharedClock = steady.clone();
    let sealer = Arc::new(Sealer::new(&config.store.seal)?);
    let spill = match &config.store.spill {
        None => None,
        Some(directory) => Some(Spill::open(directory, sealer.clone()).context("store.spill cannot be used")?),
    };
    let unreadable = spill.as_ref().map(Spill::refused).unwrap_or_default();
    let pages = Arc::new(Pages::new(sealer.clone()));
    let store = store::open(&config.store.url, sealer.clone(), &schema).await.context("the store cannot be opened")?;
    begun.store = Some(store.clone());
    let boot = BootId(entropy::uuid4(&*entropy));
    let rotation = Arc::new(SealRotation::new(store.clone(), sealer));
    let spilled = spill.as_ref().map(|spill| Ok::<_, SpillFault>((spill.id(&*entropy)?, spill.keys())));
    let spilled = spilled.transpose().context("store.spill cannot be used")?;
    let voice = Arc::new(ProcessVoice { rotation: rotation.clone(), spill: spilled, registrar: OnceLock::new() });
    let admin_socket = match config.admin_socket() {
        Some(path) if path.as_os_str().len() + 16 > LONGEST_PATH => {
            tracing::warn!(path = %path.display(), "server.admin_socket: the path is too long for a socket: commands \
                cannot reach this process");
            None
        }
        Some(path) => Some(AdminSocket::bind(&path).await?),
        None => None,
    };
    let listener = listen::bind(config.server.listen).await?;
    let admin_listener = listen::bind(config.server.admin_listen).await?;
    let (address, admin_address) = (listener.local_addr()?, admin_listener.local_addr()?);
    let tls = match &config.server.tls {
        None => None,
        Some(files) => Some(Arc::new(ArcSwap::new(tls::server_config(&files.cert, &files.key)?))),
    };
    let log = Arc::new(AccessLog::start(access_log, metrics.clone())?);

    let max_stale = config.server.max_stale;
    let timeouts = config.server.timeouts.clone();
    let ehrs = Arc::new(Ehrs::new(roots, &timeouts, handle.clone(), clock.clone(), entropy.clone(), metrics.clone()));
    ehrs.take_on(&config).map_err(|faults| {
        anyhow::anyhow!(
            "the configuration cannot be used: {}",
            faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        )
    })?;
    metrics.take_on(&config, clock.now().seconds());
    metrics.begin(
        &config,
        CustodyLabels {
            refreshes: &RefreshOutcome::ALL.map(RefreshOutcome::text),
            ends: &EndReason::ALL.map(EndReason::text),
            leases: &LeaseMark::ALL.map(LeaseMark::text),
            spill: &SpillEvent::ALL.map(SpillEvent::text),
        },
    );
    let traced = config.telemetry.otlp.is_some();
    let workers = config.server.workers.unwrap_or_else(cores);
    let settings = Settings {
        limits: config.server.limits.clone(),
        timeouts: timeouts.clone(),
        tls,
        proxies: config.server.behind_proxy.clone(),
        metrics: metrics.clone(),
    };
    // A store in trouble tells nothing, and keeps no process from serving what the spill has.
    let latest = store.see_time(clock.now()).await.unwrap_or_else(|_| clock.now());
    metrics.clock_behind_store(clock.now().until(latest));
    if clock.now().until(latest) > SLIGHTLY {
        tracing::warn!(
            seconds = clock.now().until(latest).as_secs(),
            "the machine's clock is behind the latest time that the store has seen: it was set back while no gateway \
             ran, or a gateway's clock is ahead; what has its end in the store ends later by that"
        );
    }
    let changed = registrations::changed(&store, &config, clock.now()).await;
    let config = Arc::new(ArcSwap::from_pointee(config));

    let replicas = Replicas::join(store.clone(), clock.clone(), metrics.clone(), boot, voice.clone(), max_stale)
        .await
        .context("this process may not serve from the store")?;
    begun.replicas = Some(replicas.clone());
    let bearers = Arc::new(Bearers::new(store.clone(), clock.clone(), replicas.clone()));
    let signer = Signer::start(store.clone(), clock.clone()).await?;
    let words = Arc::new(Words {
        config: config.clone(),
        ehrs: ehrs.clone(),
        metrics: metrics.clone(),
        bearers: bearers.clone(),
    });
    let custody = Custody::new(CustodyContext {
        store: store.clone(),
        endpoint: words.clone(),
        clock: clock.clone(),
        entropy: entropy.clone(),
        handle: handle.clone(),
        replicas: replicas.clone(),
        events: words.clone(),
        policies: words.clone(),
        token_timeout: timeouts.token,
        spill,
    });
    begun.custody = Some(custody.clone());
    {
        let (bearers, custody) = (bearers.clone(), custody.clone());
        replicas.follow(move |grant| {
            bearers.evict(grant);
            custody.forget(grant);
        });
    }
    for (registration, ago) in &changed {
        custody.registration_changed(registration, *ago);
    }
    // Before readiness, and what can be stored is stored before a start is refused.
    custody.recover().await;
    if !unreadable.is_empty() {
        anyhow::bail!("store.spill: {unreadable}");
    }
    let oauth = Arc::new(OAuth {
        store: store.clone(),
        clock: clock.clone(),
        entropy: entropy.clone(),
        mint: Mint { entropy: entropy.clone(), clock: clock.clone() },
        signer: signer.clone(),
        bearers: bearers.clone(),
        custody: custody.clone(),
        ehrs: ehrs.clone(),
        metrics: metrics.clone(),
    });

    let registrar = Arc::new(Registrar::new(config.clone(), custody.clone(), clock.clone(), replicas.clone()));
    // It is the only one that sets it.
    let _ = voice.registrar.set(registrar.clone());

    let statements = Statements::new(ehrs.clone(), metrics.clone(), clock.clone(), handle.clone());
    let (stop, end) = (CancellationToken::new(), CancellationToken::new());
    let admin = Arc::new(Admin {
        metrics: metrics.clone(),
        store: store.clone(),
        custody: custody.clone(),
        clock: steady,
        latest,
        stop: stop.clone(),
    });
    tokio::spawn(admin.serve(admin_listener, end.clone()));
    tokio::spawn(registrar.clone().hear(stop.clone()));
    if let Some(socket) = admin_socket {
        let grants = Operator {
            store: store.clone(),
            clock: clock.clone(),
            entropy: entropy.clone(),
            custody: custody.clone(),
            words: words.clone(),
        };
        let commands =
            Commands { rotation, live: replicas.present(), grants: Arc::new(grants), registrations: registrar };
        tokio::spawn(socket.serve(Arc::new(commands), stop.clone()));
    }
    let chores = Chores { store: store.clone(), signer, words, clock: clock.clone(), metrics: metrics.clone() };
    tokio::spawn(chores.run(stop.clone()));

    let make = {
        let (config, custody, ehrs, metrics, log) = (config.clone(), custody.clone(), ehrs, metrics, log.clone());
        let stack = ControlStack::new(oauth);
        Arc::new(move || Worker {
            config: config.clone(),
            proxy: Proxy::new(ProxyContext {
                bearers: bearers.clone(),
                custody: custody.clone(),
                ehrs: ehrs.clone(),
                clients: Clients::default(),
                clock: clock.clone(),
                metrics: metrics.clone(),
                statements: statements.clone(),
                pages: pages.clone(),
                control: handle.clone(),
                timeouts: timeouts.clone(),
            }),
            stack: stack.clone(),
            control: handle.clone(),
            metrics: metrics.clone(),
            traced,
            lines: std::sync::Mutex::new(log.lines()),
            clock: clock.clone(),
            entropy: entropy.clone(),
        })
    };
    let edge = tokio::spawn(listen::serve(listener, workers, make, settings, stop.clone()));
    tracing::info!(%address, %admin_address, workers, "serving");
    Ok(Running { address, admin_address, stop, end, edge, custody, replicas, store, log })
}

/// Clocks that are kept by NTP differ by less.
const SLIGHTLY: Duration = Duration::from_secs(5);

/// Data-plane workers: one a core.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// What custody asks of the configuration and the EHRs, and tells the metrics and the sessions.
struct Words {
    config: Arc<ArcSwap<Config>>,
    ehrs: Arc<Ehrs>,
    metrics: Arc<Metrics>,
    bearers: Arc<Bearers>,
}

impl Policies for Words {
    fn of(&self, grant: &Grant) -> Option<GrantPolicy> {
        let config = self.config.load();
        let site = config.sites.get(&grant.site)?;
        config.registrations.get(&grant.registration)?.client_of(&grant.fingerprint)?;
        let app = config.apps.get(&grant.app)?;
        let online = grant.facts.reported.split(' ').any(|word| word == "online_access");
        let session = (online || (grant.facts.session && app.custody == CustodyMode::Session))
            .then_some(SessionLimits { max: app.session_max, idle: app.session_idle });
        Some(GrantPolicy {
            vendor: site.vendor.clone(),
            tokens: site.profile.tokens.clone(),
            keep_alive: app.keep_alive,
            session,
            cold_for: app.session_idle,
        })
    }

    fn budget(&self, grant: &Grant) -> Budget {
        let config = self.config.load();
        let registration = config.registrations.get(&grant.registration);
        let (Some(site), Some(registration)) = (config.sites.get(&grant.site), registration) else {
            return Budget { shared_by: grant.site.as_str().into(), at_once: 1, per_minute: None };
        };
        let client_id = registration.client_of(&grant.fingerprint).map_or("", |(client_id, _)| client_id);
        let (shared_by, at_once) = refresh_share(site, client_id);
        let limits = &site.profile.budget;
        let per_minute = [limits.refreshes_per_minute, limits.per_minute].into_iter().flatten().min();
        Budget { shared_by: shared_by.into(), at_once, per_minute }
    }

    /// What the EHR's token can do may change with each refresh, and with it whether the EHR confines.
    fn learnt(&self, grant: &Grant, scope: &str) -> Option<GrantFacts> {
        let lenient = ScopeSet::parse_lenient(scope);
        let upstream = lenient.unreadable.is_empty().then(|| lenient.set.to_string());
        (upstream != grant.facts.upstream).then(|| GrantFacts { upstream, ..grant.facts.clone() })
    }
}

#[async_trait]
impl TokenEndpoint for Words {
    async fn refresh(&self, grant: &Grant, refresh_token: &Secret<String>, scope: Option<&str>) -> RefreshAnswer {
        let config = self.config.load_full();
        let (Some(site), Some(registration)) =
            (config.sites.get(&grant.site), config.registrations.get(&grant.registration))
        else {
            return RefreshAnswer::NotSent;
        };
        let Some((client_id, auth)) = registration.client_of(&grant.fingerprint) else { return RefreshAnswer::NotSent };
        match self.ehrs.refresh(site, Client { client_id, auth }, refresh_token, scope).await {
            TokenOutcome::Answer(mut answer) => {
                site.adapter.normalise_token(&mut answer);
                RefreshAnswer::Tokens {
                    access: Secret::new(std::mem::take(&mut answer.access_token)),
                    refresh: answer.refresh_token.take().map(Secret::new),
                    lifetime: answer.expires_in.map(Duration::from_secs),
                    refresh_lifetime: answer.refresh_expires_in.map(Duration::from_secs),
                    scope: answer.scope.take(),
                    id_token: answer.id_token.take().map(Secret::new),
                }
            }
            TokenOutcome::Refused(refusal) => {
                let (mut meaning, rule) = meaning(&site.profile, Place::Refresh, &refusal.error);
                // Ours is the fault until our time is right: it must cost no login.
                if refusal.untimely && meaning == Meaning::Dead {
                    meaning = Meaning::Misconfigured;
                }
                RefreshAnswer::Refused {
                    meaning,
                    retry_after: refusal.retry_after,
                    detail: format!("status {}, rule {}", refusal.error.status, rule.unwrap_or("none")),
                }
            }
            TokenOutcome::NotSent(reason) => {
                tracing::warn!(grant = %grant.id, site = %grant.site, %reason, "a refresh was not sent");
                RefreshAnswer::NotSent
            }
            TokenOutcome::Unknown(reason) => {
                tracing::warn!(grant = %grant.id, site = %grant.site, reason, "a refresh was sent and not answered");
                RefreshAnswer::Unknown
            }
        }
    }
}

impl CustodyEvents for Words {
    fn refresh(
        &self,
        vendor: &mantel_adapters::site::VendorId,
        _site: &mantel_adapters::site::SiteId,
        outcome: RefreshOutcome,
    ) {
        self.metrics.refresh(vendor, outcome.text());
    }

    fn ended(&self, grant: &Grant, reason: EndReason) {
        self.bearers.evict(grant.id);
        if let Some(site) = self.config.load().sites.get(&grant.site) {
            self.metrics.grant_ended(&site.vendor, reason.text());
        }
    }

    fn changed(&self, grant: &Grant) {
        self.bearers.renew(grant.id);
    }

    fn suspect(
        &self,
        registration: &mantel_adapters::site::RegistrationId,
        site: &mantel_adapters::site::SiteId,
        suspect: bool,
    ) {
        self.metrics.suspect(registration, site, suspect);
    }

    fn joined(&self) {
        self.metrics.refresh_joined();
    }

    fn kept(&self) {
        self.metrics.store_fault();
    }

    fn lease(&self, mark: LeaseMark) {
        self.metrics.lease(mark.text());
    }

    fn spill(&self, event: SpillEvent) {
        self.metrics.spill(event.text());
    }

    fn spill_depth(&self, answers: usize) {
        self.metrics.spill_depth(answers);
    }
}

/// What is done now and then.
struct Chores {
    store: SharedStore,
    signer: Arc<Signer>,
    words: Arc<Words>,
    clock: SharedClock,
    metrics: Arc<Metrics>,
}

/// Revocations at one go.
const BATCH: u32 = 32;

/// Who takes revocations has so long to carry them out, before another process may: more than any call takes.
const TAKEN: Duration = Duration::from_secs(100);

impl Chores {
    async fn run(self, stop: CancellationToken) {
        let mut revoke = tokio::time::interval(Duration::from_secs(1));
        let mut sweep = tokio::time::interval(Duration::from_secs(60));
        let mut keys = tokio::time::interval(Duration::from_secs(600));
        for interval in [&mut revoke, &mut sweep, &mut keys] {
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        loop {
            let done = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = revoke.tick() => self.revoke().await,
                _ = sweep.tick() => self.sweep().await,
                _ = keys.tick() => self.signer.refresh().await,
            };
            if let Err(error) = done {
                self.metrics.store_fault();
                tracing::warn!(%error, "a chore of the store is put off");
            }
        }
    }

    async fn sweep(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let latest = self.store.see_time(now).await?;
        self.metrics.clock_behind_store(now.until(latest));
        self.store.sweep(now).await.map(drop)
    }

    /// Revokes at the EHRs what has ended here (`custody.md`, "Ended means ended").
    async fn revoke(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let due = self.store.take_revocations(now, now.after(TAKEN), BATCH).await?;
        // Side by side: an EHR that hangs must not keep the others' waiting.
        let settled = due.iter().map(|revocation| async {
            let again = self.revoke_one(revocation).await.map(|after| self.clock.now().after(after));
            self.store.settle_revocation(revocation.id, again).await
        });
        join_all(settled).await.into_iter().collect()
    }

    /// When to try again; none: it is done, or cannot be.
    async fn revoke_one(&self, revocation: &Revocation) -> Option<Duration> {
        let config = self.words.config.load_full();
        let site = config.sites.get(&revocation.site)?;
        let registration = config.registrations.get(&revocation.registration)?;
        // The row that the store wrote as it ended a grant bears the grant's id.
        let grant = self.store.grant(GrantId(revocation.id)).await.ok().flatten();
        // Who we were when the token was given: another client may not revoke it.
        let client = match revocation.fingerprint.as_ref().or(grant.as_ref().map(|grant| &grant.fingerprint)) {
            None => Client::from(&**registration),
            Some(fingerprint) => {
                let (client_id, auth) = registration.client_of(fingerprint)?;
                Client { client_id, auth }
            }
        };
        // Its user has just authorised anew: where a revocation takes the whole authorization, it would take
        // the new one too.
        let superseded =
            grant.is_some_and(|grant| matches!(grant.state, GrantState::Ended { reason: EndReason::Superseded, .. }));
        if superseded && !site.profile.revoke_per_token {
            return None;
        }
        // A shared registration's other apps must not lose their tokens with this one's.
        if registration.apps.len() > 1 && !site.profile.revoke_per_token {
            return None;
        }
        let hint = if revocation.hint == "access_token" { TokenHint::Access } else { TokenHint::Refresh };
        let backoff = Duration::from_secs(30).saturating_mul(1 << revocation.attempts.clamp(0, 7));
        match self.words.ehrs.revoke(site, client, &revocation.token, hint).await {
            RevokeOutcome::Revoked | RevokeOutcome::NotOffered => None,
            RevokeOutcome::Refused { status, retry_after } if status.is_server_error() || status.as_u16() == 429 => {
                Some(retry_after.unwrap_or(backoff))
            }
            RevokeOutcome::Refused { status, .. } => {
                tracing::warn!(site = %site.id, status = status.as_u16(), "the EHR refused to revoke a token");
                None
            }
            RevokeOutcome::NotSent(_) | RevokeOutcome::Unknown(_) => (revocation.attempts < 50).then_some(backoff),
        }
    }
}
