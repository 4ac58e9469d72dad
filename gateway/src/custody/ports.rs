//! What custody speaks of with those who ask it, and what it asks of them.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use mantel_adapters::{
    profile::{Meaning, TokenPolicy},
    site::{RegistrationId, SiteId, VendorId},
};
use tokio::runtime::Handle;

use super::{Spill, budget::Budget, machine::Cause, outcome::RefreshOutcome};
use crate::{
    clock::SharedClock,
    entropy::SharedEntropy,
    replicas::Replicas,
    secret::Secret,
    store::{EndReason, Grant, GrantFacts, SharedStore},
};

/// Refreshes of one site under way that nobody waits for, where nothing else is said: an EHR that answers within a second
/// renews a hundred thousand grants in an hour.
pub(super) const AT_ONCE: usize = 32;

/// When to ask again where another grant's renewal may help.
const RELIEF: Duration = Duration::from_secs(30);

/// An EHR's access token, and the generation of the grant that it belongs to.
#[derive(Clone, Debug)]
pub struct Bearer {
    pub token: Arc<Secret<String>>,
    pub generation: i64,
}

/// Why there is no bearer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CustodyFault {
    /// The user must authorise again.
    Ended(EndReason),
    /// We, the store or the EHR cannot serve at present: never the user's fault.
    Unavailable { retry_after: Duration },
    /// Our registration at the EHR is wrong: an alarm, and the grant lives.
    Misconfigured { retry_after: Duration },
    /// The EHR holds the grant back until the user acts there.
    Suspended { retry_after: Duration },
    /// The EHR refuses this registration's refresh tokens in numbers: an alarm, and the grants live.
    Suspect { retry_after: Duration },
}

impl CustodyFault {
    pub(super) fn of(cause: Cause, retry_after: Duration) -> Self {
        match cause {
            Cause::Misconfigured => Self::Misconfigured { retry_after },
            Cause::Suspended => Self::Suspended { retry_after },
            // Any renewal may end it before.
            Cause::Suspect => Self::Suspect { retry_after: retry_after.min(RELIEF) },
            Cause::Presumed => Self::Unavailable { retry_after: retry_after.min(RELIEF) },
            Cause::Passing | Cause::Store | Cause::Elsewhere => Self::Unavailable { retry_after },
        }
    }
}

/// What an EHR's token endpoint answered to a refresh.
#[derive(Clone, Debug)]
pub enum RefreshAnswer {
    Tokens {
        access: Secret<String>,
        /// None: the old one stays good (RFC 6749, 6).
        refresh: Option<Secret<String>>,
        /// `expires_in`.
        lifetime: Option<Duration>,
        /// When the refresh token ends, where the EHR says so.
        refresh_lifetime: Option<Duration>,
        scope: Option<String>,
        id_token: Option<Secret<String>>,
    },
    Refused {
        meaning: Meaning,
        retry_after: Option<Duration>,
        /// For the log: status and error code, nothing of the request.
        detail: String,
    },
    /// Certainly not sent: no connection was made.
    NotSent,
    /// Sent, or perhaps sent, and not answered as a token endpoint answers.
    Unknown,
}

/// An EHR's token endpoint.
#[async_trait]
pub trait TokenEndpoint: Send + Sync {
    async fn refresh(&self, grant: &Grant, refresh_token: &Secret<String>, scope: Option<&str>) -> RefreshAnswer;
}

/// `session_max` and `session_idle` of an app whose custody is a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    pub max: Duration,
    pub idle: Duration,
}

/// How a grant is kept.
#[derive(Clone, Debug)]
pub struct GrantPolicy {
    pub vendor: VendorId,
    pub tokens: TokenPolicy,
    /// It is refreshed for its refresh token's sake though nobody uses it.
    pub keep_alive: bool,
    /// Only where the grant is to end by them.
    pub session: Option<SessionLimits>,
    /// How long an unused grant is refreshed where its refresh token dies with the access token
    /// (`session_idle`).
    pub cold_for: Duration,
}

/// The configuration's word on grants, by their site, registration and fingerprint.
pub trait Policies: Send + Sync {
    /// None: its site or registration is no longer configured.
    fn of(&self, grant: &Grant) -> Option<GrantPolicy>;

    /// What bounds the refreshes of a grant that nobody waits for.
    fn budget(&self, grant: &Grant) -> Budget {
        Budget { shared_by: grant.site.as_str().into(), at_once: AT_ONCE, per_minute: None }
    }

    /// What a refresh that was answered with `scope` changes in what the grant is about.
    fn learnt(&self, grant: &Grant, scope: &str) -> Option<GrantFacts>;
}

/// What happens to an answer in the spill: a closed set of labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SpillEvent {
    /// The store did not take it; it is durable in the spill.
    Spilled,
    /// The store has it now.
    Replayed,
    /// Its grant had moved on or ended.
    Dropped,
    /// It cannot be read, or the store does not know its grant: it was moved aside.
    Bad,
}

impl SpillEvent {
    pub const ALL: [Self; 4] = [Self::Spilled, Self::Replayed, Self::Dropped, Self::Bad];

    pub const fn text(self) -> &'static str {
        match self {
            Self::Spilled => "spilled",
            Self::Replayed => "replayed",
            Self::Dropped => "dropped",
            Self::Bad => "bad",
        }
    }
}

/// What is counted.
pub trait CustodyEvents: Send + Sync {
    fn refresh(&self, vendor: &VendorId, site: &SiteId, outcome: RefreshOutcome);
    /// Custody ended a grant.
    fn ended(&self, grant: &Grant, reason: EndReason);
    /// A refresh, here or elsewhere, changed what the grant is about; its new bearer is served from now on.
    fn changed(&self, grant: &Grant);
    /// A registration became suspect at a site, or is not any more.
    fn suspect(&self, registration: &RegistrationId, site: &SiteId, suspect: bool);
    /// A request joined a flight that was under way.
    fn joined(&self);
    /// The store did not take an EHR's answer: it is kept in memory and tried again.
    fn kept(&self);
    fn spill(&self, event: SpillEvent);
    /// Answers that are in the spill and not in the store.
    fn spill_depth(&self, answers: usize);
    /// Leases that changed hands.
    fn lease(&self, mark: LeaseMark);
}

/// A lease that changed hands while its owner was at work, or seemed to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseMark {
    /// This process lost it to another, which saw it stand still.
    Lost,
    /// This process took it over.
    TakenOver,
}

impl LeaseMark {
    pub const ALL: [Self; 2] = [Self::Lost, Self::TakenOver];

    pub const fn text(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::TakenOver => "taken_over",
        }
    }
}

pub struct CustodyContext {
    pub store: SharedStore,
    pub endpoint: Arc<dyn TokenEndpoint>,
    pub clock: SharedClock,
    pub entropy: SharedEntropy,
    /// The control runtime: flights and the wheel run there, whoever asked.
    pub handle: Handle,
    /// This process, the owner of its leases, and the others.
    pub replicas: Replicas,
    pub events: Arc<dyn CustodyEvents>,
    pub policies: Arc<dyn Policies>,
    /// A token request's own deadline, whoever waits for it.
    pub token_timeout: Duration,
    /// Where an answer goes that the store does not take. None: it is kept in memory, and lost with the process.
    pub spill: Option<Spill>,
}
