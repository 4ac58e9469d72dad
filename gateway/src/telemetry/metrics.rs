//! The metrics, all of them, in one table. Label sets are closed: vendors, sites and apps come from
//! the configuration, everything else is an enum.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use mantel_adapters::{
    fhir::interaction::InteractionKind,
    site::{RegistrationId, SiteId, VendorId},
};
use prometheus::{
    Encoder as _, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use crate::{
    clock::{ClockWatch, Step},
    config::Config,
    error::Side,
};

/// How a request ended, by whose fault it was if it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// 2xx, 3xx.
    Ok,
    /// Refused or malformed: the app's to mend.
    App,
    Gateway,
    Ehr,
    /// The client went away before the answer was complete.
    Cancelled,
}

impl Outcome {
    pub const ALL: [Self; 5] = [Self::Ok, Self::App, Self::Gateway, Self::Ehr, Self::Cancelled];

    pub const fn text(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::App => "app",
            Self::Gateway => "gateway",
            Self::Ehr => "ehr",
            Self::Cancelled => "cancelled",
        }
    }
}

impl Outcome {
    /// By the status alone: an answer that was passed on as it came.
    pub const fn of_status(status: u16) -> Self {
        match status {
            400..=499 => Self::App,
            500.. => Self::Ehr,
            _ => Self::Ok,
        }
    }
}

impl From<Side> for Outcome {
    fn from(side: Side) -> Self {
        match side {
            Side::App => Self::App,
            Side::Gateway => Self::Gateway,
            Side::Ehr => Self::Ehr,
        }
    }
}

/// What an EHR is called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    Fhir,
    Token,
    Discovery,
    Jwks,
    Revoke,
}

impl Call {
    pub const ALL: [Self; 5] = [Self::Fhir, Self::Token, Self::Discovery, Self::Jwks, Self::Revoke];

    pub const fn text(self) -> &'static str {
        match self {
            Self::Fhir => "fhir",
            Self::Token => "token",
            Self::Discovery => "discovery",
            Self::Jwks => "jwks",
            Self::Revoke => "revoke",
        }
    }
}

/// How a call to an EHR ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallOutcome {
    /// 2xx, 3xx.
    Ok,
    /// 4xx.
    Refused,
    /// 5xx, or nonsense.
    Failed,
    /// 429.
    Throttled,
    /// No connection: nothing was sent.
    NotSent,
    /// Cut after something was sent.
    Cut,
    TimedOut,
}

impl CallOutcome {
    pub const ALL: [Self; 7] =
        [Self::Ok, Self::Refused, Self::Failed, Self::Throttled, Self::NotSent, Self::Cut, Self::TimedOut];

    pub const fn text(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Throttled => "throttled",
            Self::NotSent => "not_sent",
            Self::Cut => "cut",
            Self::TimedOut => "timed_out",
        }
    }

    pub const fn of_status(status: u16) -> Self {
        match status {
            429 => Self::Throttled,
            400..=499 => Self::Refused,
            500.. => Self::Failed,
            _ => Self::Ok,
        }
    }
}

/// How far launches come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LaunchMark {
    Opened,
    AtEhr,
    Returned,
    TokenGiven,
    Refused,
}

impl LaunchMark {
    pub const ALL: [Self; 5] = [Self::Opened, Self::AtEhr, Self::Returned, Self::TokenGiven, Self::Refused];

    pub const fn text(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::AtEhr => "at_ehr",
            Self::Returned => "returned",
            Self::TokenGiven => "token_given",
            Self::Refused => "refused",
        }
    }
}

/// How custody calls what it counts.
#[derive(Clone, Copy, Debug)]
pub struct CustodyLabels<'l> {
    pub refreshes: &'l [&'static str],
    pub ends: &'l [&'static str],
    pub leases: &'l [&'static str],
    pub spill: &'l [&'static str],
}

/// Buckets in seconds: from a memory hit to an EHR's slowest search.
const SECONDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// Label of what belongs to no vendor: unknown tokens, our own pages.
const NO_VENDOR: &str = "none";

/// A vendor's or site's series for one interaction, looked up once when a configuration is taken on,
/// so that a request touches no map and makes no string.
#[derive(Clone)]
pub struct RequestSeries {
    by_outcome: [IntCounter; Outcome::ALL.len()],
    seconds: Histogram,
    ehr_seconds: Histogram,
}

impl RequestSeries {
    /// `ehr`: the part of `whole` that was spent waiting for the EHR.
    pub fn observe(&self, outcome: Outcome, whole: Duration, ehr: Duration) {
        self.by_outcome[outcome as usize].inc();
        self.seconds.observe(whole.as_secs_f64());
        if !ehr.is_zero() {
            self.ehr_seconds.observe(ehr.as_secs_f64());
        }
    }
}

struct Prepared {
    requests: BTreeMap<VendorId, Vec<RequestSeries>>,
    sites: BTreeMap<SiteId, [IntCounter; Outcome::ALL.len()]>,
}

/// The registry and the handles into it. One for the process.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    request_ehr_seconds: HistogramVec,
    site_requests: IntCounterVec,
    upstream: IntCounterVec,
    upstream_seconds: HistogramVec,
    refreshes: IntCounterVec,
    refresh_joins: IntCounter,
    leases: IntCounterVec,
    grants: IntGaugeVec,
    grants_ended: IntCounterVec,
    suspect: IntGaugeVec,
    suspected: IntCounterVec,
    launches: IntCounterVec,
    oauth: IntCounterVec,
    store_faults: IntCounter,
    replicas: IntGauge,
    ends_polled: Gauge,
    spill_answers: IntCounterVec,
    spill_depth: IntGauge,
    clock_steps: IntCounterVec,
    clock_ahead: Gauge,
    clock_ehr_ahead: Gauge,
    clock_behind_store: Gauge,
    config_loaded: IntGauge,
    log_dropped: IntCounter,
    connections: IntGauge,
    unclaimed: Vec<RequestSeries>,
    prepared: ArcSwap<Prepared>,
}

impl Metrics {
    /// # Errors
    /// Only if the table below names a metric twice.
    pub fn new() -> Result<Arc<Self>, prometheus::Error> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| -> Result<IntCounterVec, prometheus::Error> {
            let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok(vec)
        };
        let histograms = |name: &str, help: &str, labels: &[&str]| -> Result<HistogramVec, prometheus::Error> {
            let vec = HistogramVec::new(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok(vec)
        };
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let one = IntCounter::new(name, help)?;
            registry.register(Box::new(one.clone()))?;
            Ok(one)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let one = IntGauge::new(name, help)?;
            registry.register(Box::new(one.clone()))?;
            Ok(one)
        };

        let seconds = |name: &str, help: &str| -> Result<Gauge, prometheus::Error> {
            let one = Gauge::new(name, help)?;
            registry.register(Box::new(one.clone()))?;
            Ok(one)
        };

        let requests = counters(
            "mantel_requests_total",
            "FHIR requests of apps, by vendor, interaction and outcome (ok, or whose fault: app, gateway, ehr).",
            &["vendor", "interaction", "outcome"],
        )?;
        let request_seconds = histograms(
            "mantel_request_seconds",
            "Seconds from a FHIR request's head to its answer's head.",
            &["vendor", "interaction"],
        )?;
        let request_ehr_seconds = histograms(
            "mantel_request_ehr_seconds",
            "The part of it that was spent waiting for the EHR.",
            &["vendor", "interaction"],
        )?;
        let grants = IntGaugeVec::new(Opts::new("mantel_grants", "Grants in the store, by state."), &["state"])?;
        registry.register(Box::new(grants.clone()))?;
        let suspect = IntGaugeVec::new(
            Opts::new(
                "mantel_registration_suspect",
                "1 while an EHR refuses a registration's refresh tokens in numbers: its grants are not ended.",
            ),
            &["registration", "site"],
        )?;
        registry.register(Box::new(suspect.clone()))?;
        let metrics = Self {
            site_requests: counters(
                "mantel_site_requests_total",
                "FHIR requests by site and outcome.",
                &["site", "outcome"],
            )?,
            upstream: counters(
                "mantel_upstream_calls_total",
                "Calls to EHRs, by vendor, what for, and outcome.",
                &["vendor", "call", "outcome"],
            )?,
            upstream_seconds: histograms(
                "mantel_upstream_seconds",
                "Seconds from sending a call to an EHR to its answer's head.",
                &["vendor", "call"],
            )?,
            refreshes: counters(
                "mantel_refreshes_total",
                "Refreshes of EHR tokens, by vendor and outcome.",
                &["vendor", "outcome"],
            )?,
            refresh_joins: counter("mantel_refresh_joins_total", "Callers that joined a refresh in flight.")?,
            leases: counters(
                "mantel_refresh_leases_total",
                "Leases of refreshes that changed hands: lost to another process, taken over from one.",
                &["event"],
            )?,
            grants,
            grants_ended: counters(
                "mantel_grants_ended_total",
                "Grants that ended, by vendor and reason.",
                &["vendor", "reason"],
            )?,
            suspect,
            suspected: counters(
                "mantel_registration_suspected_total",
                "How often a registration became suspect at a site.",
                &["registration", "site"],
            )?,
            launches: counters(
                "mantel_launches_total",
                "Launches by vendor and the step they reached.",
                &["vendor", "step"],
            )?,
            oauth: counters(
                "mantel_oauth_requests_total",
                "Requests to the authorization server, by endpoint and status class.",
                &["endpoint", "status"],
            )?,
            store_faults: counter("mantel_store_faults_total", "Operations that the store failed.")?,
            replicas: gauge(
                "mantel_replicas",
                "Gateway processes on the store that show themselves, this one among them.",
            )?,
            ends_polled: seconds(
                "mantel_ends_poll_age_seconds",
                "Seconds since the grants that ended at other processes were last read.",
            )?,
            spill_answers: counters(
                "mantel_spill_answers_total",
                "Answers of EHRs that the store did not take, by what became of them.",
                &["event"],
            )?,
            spill_depth: gauge("mantel_spill_depth", "Answers that are in the spill and not in the store.")?,
            clock_steps: counters(
                "mantel_clock_steps_total",
                "Steps of the machine's clock by more than two seconds, by direction.",
                &["direction"],
            )?,
            clock_ahead: seconds(
                "mantel_clock_ahead_seconds",
                "Seconds by which the machine's clock is ahead of the time by which records end here.",
            )?,
            clock_ehr_ahead: seconds(
                "mantel_clock_ehr_ahead_seconds",
                "Seconds by which the clock of the EHR that answered last was ahead of the time that EHRs are told.",
            )?,
            clock_behind_store: seconds(
                "mantel_clock_behind_store_seconds",
                "Seconds by which the time here is behind the latest that any process has shown in the store.",
            )?,
            config_loaded: gauge(
                "mantel_config_loaded_timestamp_seconds",
                "When the configuration in force was loaded (Unix time).",
            )?,
            log_dropped: counter(
                "mantel_access_log_dropped_total",
                "Access log lines that were dropped, since the writer was behind.",
            )?,
            connections: gauge("mantel_connections", "Open client connections.")?,
            unclaimed: Vec::new(),
            prepared: ArcSwap::from_pointee(Prepared { requests: BTreeMap::new(), sites: BTreeMap::new() }),
            requests,
            request_seconds,
            request_ehr_seconds,
            registry,
        };
        metrics.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let unclaimed = metrics.series(NO_VENDOR);
        Ok(Arc::new(Self { unclaimed, ..metrics }))
    }

    fn series(&self, vendor: &str) -> Vec<RequestSeries> {
        InteractionKind::ALL
            .into_iter()
            .map(|kind| RequestSeries {
                by_outcome: Outcome::ALL
                    .map(|outcome| self.requests.with_label_values(&[vendor, kind.text(), outcome.text()])),
                seconds: self.request_seconds.with_label_values(&[vendor, kind.text()]),
                ehr_seconds: self.request_ehr_seconds.with_label_values(&[vendor, kind.text()]),
            })
            .collect()
    }

    /// Prepares the series of a configuration; those of sites that are gone are removed.
    pub fn take_on(&self, config: &Config, loaded_at_seconds: i64) {
        let before = self.prepared.load();
        let vendors = config.sites.values().map(|site| site.vendor.clone());
        let requests = vendors.map(|vendor| (vendor.clone(), self.series(vendor.as_str()))).collect();
        let sites = config
            .sites
            .keys()
            .map(|site| {
                let by =
                    Outcome::ALL.map(|outcome| self.site_requests.with_label_values(&[site.as_str(), outcome.text()]));
                (site.clone(), by)
            })
            .collect();
        for gone in before.sites.keys().filter(|site| !config.sites.contains_key(*site)) {
            for outcome in Outcome::ALL {
                // Absent already: nothing to remove.
                let _ = self.site_requests.remove_label_values(&[gone.as_str(), outcome.text()]);
            }
        }
        self.prepared.store(Arc::new(Prepared { requests, sites }));
        self.config_loaded.set(loaded_at_seconds);
    }

    /// Begins the series of rare events at zero: a rate over one that is absent until its first event misses that one.
    pub fn begin(&self, config: &Config, custody: CustodyLabels<'_>) {
        let vendors: std::collections::BTreeSet<_> = config.sites.values().map(|site| site.vendor.as_str()).collect();
        for (family, labels) in [(&self.refreshes, custody.refreshes), (&self.grants_ended, custody.ends)] {
            for vendor in &vendors {
                labels.iter().for_each(|label| drop(family.with_label_values(&[vendor, label])));
            }
        }
        for (family, labels) in [(&self.leases, custody.leases), (&self.spill_answers, custody.spill)] {
            labels.iter().for_each(|label| drop(family.with_label_values(&[label])));
        }
        for site in config.sites.values() {
            for registration in &site.registrations {
                let labels = [registration.as_str(), site.id.as_str()];
                self.suspect.with_label_values(&labels);
                self.suspected.with_label_values(&labels);
            }
        }
        for vendor in vendors.into_iter().chain([NO_VENDOR]) {
            LaunchMark::ALL.iter().for_each(|mark| drop(self.launches.with_label_values(&[vendor, mark.text()])));
        }
    }

    /// One FHIR request of an app, done.
    pub fn request(
        &self,
        site: Option<(&VendorId, &SiteId)>,
        kind: InteractionKind,
        outcome: Outcome,
        whole: Duration,
        ehr: Duration,
    ) {
        let prepared = self.prepared.load();
        let series = site.and_then(|(vendor, _)| prepared.requests.get(vendor)).unwrap_or(&self.unclaimed);
        if let Some(series) = series.get(kind as usize) {
            series.observe(outcome, whole, ehr);
        }
        if let Some(counters) = site.and_then(|(_, site)| prepared.sites.get(site)) {
            counters[outcome as usize].inc();
        }
    }

    pub fn upstream(&self, vendor: &VendorId, call: Call, outcome: CallOutcome, took: Duration) {
        self.upstream.with_label_values(&[vendor.as_str(), call.text(), outcome.text()]).inc();
        self.upstream_seconds.with_label_values(&[vendor.as_str(), call.text()]).observe(took.as_secs_f64());
    }

    /// `outcome` is the name of custody's `RefreshOutcome`.
    pub fn refresh(&self, vendor: &VendorId, outcome: &'static str) {
        self.refreshes.with_label_values(&[vendor.as_str(), outcome]).inc();
    }

    pub fn refresh_joined(&self) {
        self.refresh_joins.inc();
    }

    /// `event` is the name of custody's `LeaseMark`.
    pub fn lease(&self, event: &'static str) {
        self.leases.with_label_values(&[event]).inc();
    }

    /// `reason` is the name of an `EndReason`.
    pub fn grant_ended(&self, vendor: &VendorId, reason: &'static str) {
        self.grants_ended.with_label_values(&[vendor.as_str(), reason]).inc();
    }

    /// A registration became suspect at a site, or is not any more.
    pub fn suspect(&self, registration: &RegistrationId, site: &SiteId, suspect: bool) {
        let labels = [registration.as_str(), site.as_str()];
        self.suspect.with_label_values(&labels).set(i64::from(suspect));
        if suspect {
            self.suspected.with_label_values(&labels).inc();
        }
    }

    /// Live, in doubt, ended.
    pub fn grants(&self, counts: [u64; 3]) {
        for (state, count) in ["live", "in_doubt", "ended"].into_iter().zip(counts) {
            self.grants.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    pub fn launch(&self, vendor: Option<&VendorId>, mark: LaunchMark) {
        self.launches.with_label_values(&[vendor.map_or(NO_VENDOR, VendorId::as_str), mark.text()]).inc();
    }

    /// `endpoint` is the route's own name, never a path.
    pub fn oauth(&self, endpoint: &'static str, status: u16) {
        let class = match status {
            0..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            500.. => "5xx",
        };
        self.oauth.with_label_values(&[endpoint, class]).inc();
    }

    pub fn store_fault(&self) {
        self.store_faults.inc();
    }

    pub fn replicas(&self, live: usize) {
        self.replicas.set(i64::try_from(live).unwrap_or(i64::MAX));
    }

    /// How long ago the grants that ended elsewhere were last read.
    pub fn ends_polled(&self, age: Duration) {
        self.ends_polled.set(age.as_secs_f64());
    }

    /// `event` is the name of custody's `SpillEvent`.
    pub fn spill(&self, event: &'static str) {
        self.spill_answers.with_label_values(&[event]).inc();
    }

    pub fn spill_depth(&self, answers: usize) {
        self.spill_depth.set(i64::try_from(answers).unwrap_or(i64::MAX));
    }

    /// How far the latest time that the store has seen is ahead of ours.
    pub fn clock_behind_store(&self, by: Duration) {
        self.clock_behind_store.set(by.as_secs_f64());
    }

    pub fn log_dropped(&self) {
        self.log_dropped.inc();
    }

    pub fn connection_opened(&self) {
        self.connections.inc();
    }

    pub fn connection_closed(&self) {
        self.connections.dec();
    }

    /// The exposition, in Prometheus' text format.
    ///
    /// # Errors
    /// If a collector gives an inconsistent family.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::with_capacity(64 << 10);
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

impl ClockWatch for Metrics {
    fn stepped(&self, step: Step) {
        self.clock_steps.with_label_values(&[step.text()]).inc();
    }

    fn ahead(&self, seconds: f64) {
        self.clock_ahead.set(seconds);
    }

    fn ehr_ahead(&self, seconds: f64) {
        self.clock_ehr_ahead.set(seconds);
    }
}
