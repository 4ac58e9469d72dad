//! The records that outlive a process. Secrets in them are plain here and sealed at rest; tokens of
//! ours are never here, only their hashes.

use std::{collections::BTreeMap, fmt, time::Duration};

use mantel_adapters::{
    site::{AppId, RegistrationId, SiteId},
    smart::{launch::LaunchContext, translate},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{
    clock::Timestamp,
    config::Base,
    secret::{Secret, TokenHash},
};

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

ids! {
    /// An authorization in flight.
    LaunchId;
    /// What a user authorised for one app at one site. Safe to log.
    GrantId;
    /// One life of one gateway process: the owner of leases.
    BootId;
}

// ---- launches -------------------------------------------------------------------------------------

/// Where an authorization in flight stands. A step is taken once: the store compares before it sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LaunchStep {
    /// The app's request was found good; the browser is to show its cookie, the user may be asked for an
    /// organization.
    Opened,
    /// The browser is at the EHR.
    AtEhr,
    /// It has come back; the EHR's code is being exchanged.
    Returned,
    /// The app has its code, or its error.
    Done,
}

impl LaunchStep {
    pub const fn text(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::AtEhr => "at_ehr",
            Self::Returned => "returned",
            Self::Done => "done",
        }
    }
}

/// An authorization in flight: the app's half and the EHR's half.
#[derive(Clone, Debug)]
pub struct Launch {
    pub id: LaunchId,
    pub step: LaunchStep,
    pub app: AppId,
    /// The base whose authorization endpoint was called.
    pub base: Base,
    pub request: AppRequest,
    /// Hash of the cookie that binds the browser.
    pub browser: Option<TokenHash>,
    pub ehr: Option<EhrHalf>,
    /// From an EHR launch: the EHR's own `launch`, and its site.
    pub ehr_launch: Option<(SiteId, Secret<String>)>,
    pub created: Timestamp,
    pub expires: Timestamp,
}

/// The app's authorization request, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppRequest {
    pub redirect_uri: String,
    pub scope: String,
    /// Returned exactly as sent.
    pub state: String,
    pub nonce: Option<String>,
    /// S256.
    pub code_challenge: String,
    /// Which site or organization the request itself names.
    pub organization: Option<String>,
}

/// What was sent to the EHR.
#[derive(Clone, Debug)]
pub struct EhrHalf {
    pub site: SiteId,
    pub registration: RegistrationId,
    /// Hash of the `state` that the EHR returns.
    pub state: TokenHash,
    pub code_verifier: Secret<String>,
    pub nonce: Option<String>,
    /// Byte for byte what the token request repeats.
    pub redirect_uri: String,
    /// What was asked upstream, and what must be remembered of it until the answer comes.
    pub asked: translate::Request,
}

/// An EHR's `launch`, kept until the app returns with ours.
#[derive(Clone, Debug)]
pub struct EhrLaunch {
    pub app: AppId,
    pub site: SiteId,
    pub launch: Secret<String>,
    pub expires: Timestamp,
}

// ---- grants ---------------------------------------------------------------------------------------

/// A grant with the custody of its EHR tokens.
#[derive(Clone, Debug)]
pub struct Grant {
    pub id: GrantId,
    pub app: AppId,
    pub site: SiteId,
    pub registration: RegistrationId,
    /// [`crate::config::Registration::fingerprint`] at the time.
    pub fingerprint: String,
    pub created: Timestamp,
    pub state: GrantState,
    /// Raised by each accepted answer of the EHR; what a refresh consumes and compares.
    pub generation: i64,
    pub facts: GrantFacts,
    pub tokens: EhrTokens,
}

/// What a grant is about. Sealed at rest, since it names the patient.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GrantFacts {
    /// The app's `scope`, as asked.
    pub asked: String,
    /// As reported to the app.
    pub reported: String,
    /// What the judge enforces, canonical.
    pub enforced: String,
    /// What the EHR said it granted, canonical; none: it said nothing readable.
    pub upstream: Option<String>,
    pub refused: Vec<Value>,
    pub context: LaunchContext,
    /// The practice at athena.
    pub tenant: Option<String>,
    /// `Practitioner/123`, relative to the site's base.
    pub fhir_user: Option<String>,
    /// Our `sub` for the EHR's subject.
    pub sub: Option<String>,
    /// Whether it began in an EHR: decides what a dead grant's user is told.
    pub ehr_launch: bool,
    /// Whether the EHR's refresh token is kept for custody only and not reported to the app.
    pub session: bool,
    /// Members that a later version wrote survive a rewrite.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// Names nobody: a grant may stand in a log by mistake.
impl fmt::Debug for GrantFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrantFacts").field("reported", &self.reported).finish_non_exhaustive()
    }
}

/// An EHR's tokens, as its last answer gave them. Sealed at rest.
#[derive(Clone, Debug)]
pub struct EhrTokens {
    pub access: Secret<String>,
    pub refresh: Option<Secret<String>>,
    /// When the answer came, by wall time: for what is loaded after a start.
    pub received: Timestamp,
    /// Learnt from `expires_in`, else the profile's.
    pub lifetime: Duration,
    /// When the refresh token ends, where the EHR says so.
    pub refresh_end: Option<RefreshEnd>,
    /// The last answer's `scope`.
    pub scope: Option<String>,
    /// The id_token, where logout at the EHR needs it.
    pub id_token: Option<Secret<String>>,
}

/// The end of a refresh token, as EHRs tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefreshEnd {
    /// From [`EhrTokens::received`].
    pub after: Duration,
    /// Using it has not put it off: nothing keeps such a grant alive.
    pub fixed: bool,
}

impl RefreshEnd {
    /// As a first answer says it: whether it moves is not known yet.
    pub const fn said(after: Duration) -> Self {
        Self { after, fixed: false }
    }
}

/// The end of a refresh token, as a record has it.
#[derive(Serialize, Deserialize)]
pub(crate) struct StoredEnd {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refresh_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refresh_fixed: Option<bool>,
}

impl From<Option<RefreshEnd>> for StoredEnd {
    fn from(end: Option<RefreshEnd>) -> Self {
        let millis = |end: RefreshEnd| u64::try_from(end.after.as_millis()).unwrap_or(u64::MAX);
        Self { refresh_ms: end.map(millis), refresh_fixed: end.map(|end| end.fixed) }
    }
}

impl From<StoredEnd> for Option<RefreshEnd> {
    fn from(stored: StoredEnd) -> Self {
        let after = Duration::from_millis(stored.refresh_ms?);
        Some(RefreshEnd { after, fixed: stored.refresh_fixed.unwrap_or(false) })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantState {
    Live,
    /// A refresh was begun and its outcome is unknown.
    InDoubt {
        since: Timestamp,
        retried: bool,
    },
    Ended {
        at: Timestamp,
        reason: EndReason,
    },
}

/// Why a grant ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The EHR refused its refresh token.
    Dead,
    /// A refresh whose answer was lost, and the old token was refused.
    LostRotation,
    /// The EHR gave no refresh token and its access token ended.
    Expired,
    /// The app revoked it.
    Revoked,
    /// A code was redeemed twice.
    CodeReplay,
    /// A refresh token of ours was used twice.
    RefreshReplay,
    /// A new authorization took its place.
    Superseded,
    /// `session_idle` or `session_max`.
    SessionEnded,
    Logout,
    Operator,
}

impl EndReason {
    pub const ALL: [Self; 10] = [
        Self::Dead,
        Self::LostRotation,
        Self::Expired,
        Self::Revoked,
        Self::CodeReplay,
        Self::RefreshReplay,
        Self::Superseded,
        Self::SessionEnded,
        Self::Logout,
        Self::Operator,
    ];

    pub const fn text(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::LostRotation => "lost_rotation",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::CodeReplay => "code_replay",
            Self::RefreshReplay => "refresh_replay",
            Self::Superseded => "superseded",
            Self::SessionEnded => "session_ended",
            Self::Logout => "logout",
            Self::Operator => "operator",
        }
    }
}

// ---- our own codes and tokens ----------------------------------------------------------------------

/// An authorization code of ours, by its hash.
#[derive(Clone, Debug)]
pub struct Code {
    pub grant: GrantId,
    pub app: AppId,
    pub base: Base,
    pub redirect_uri: String,
    pub code_challenge: String,
    pub nonce: Option<String>,
    pub expires: Timestamp,
    pub redeemed: bool,
}

/// An access token of ours. Several may live on one grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessToken {
    pub hash: TokenHash,
    pub grant: GrantId,
    /// As reported; narrower than the grant's if a refresh asked so.
    pub reported: String,
    pub enforced: String,
    pub expires: Timestamp,
}

/// A refresh token of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshToken {
    pub hash: TokenHash,
    pub expires: Timestamp,
}

/// What a code or a refresh token is exchanged for.
#[derive(Clone, Debug)]
pub struct NewTokens {
    pub access: AccessToken,
    pub refresh: Option<RefreshToken>,
}

/// A successor, kept for the grace of a lost answer: sealed under a key derived from the presented
/// predecessor, so that only who holds that can open it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedSuccessor(pub Vec<u8>);

#[derive(Debug)]
pub enum Redeemed {
    /// Redeemed now; the tokens are stored.
    Now(Box<Grant>),
    /// Redeemed before: the grant has been ended.
    Replayed(GrantId),
    /// Unknown or expired.
    Unknown,
    /// The grant has ended in the meantime.
    Ended(EndReason),
}

#[derive(Debug)]
pub enum Rotated {
    /// The presented token was current; the new ones are stored.
    Now(Box<Grant>),
    /// It was superseded within the grace and its successor is unused: the same successor again, and a
    /// new access token is stored.
    Again {
        grant: Box<Grant>,
        successor: SealedSuccessor,
    },
    /// It was used twice: the grant has been ended.
    Replayed(GrantId),
    Unknown,
    Ended(EndReason),
}

/// What a presented refresh token belongs to, before it is rotated.
#[derive(Debug)]
pub struct Presented {
    pub grant: Box<Grant>,
    pub expires: Timestamp,
}

// ---- custody ---------------------------------------------------------------------------------------

/// A lease as it was seen; a contender takes over only after it has stood unchanged for the TTL by the
/// contender's own monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub owner: BootId,
    pub fence: i64,
    pub beat: i64,
}

/// Answer of `begin_refresh`: lease and intent are one statement.
#[derive(Debug)]
pub enum Begun {
    /// Lease taken and intent recorded: the request may be sent.
    Won {
        fence: i64,
    },
    /// It is held: by another process, or by an earlier call of this one.
    Lost(Lease),
    /// Taken over: an earlier intent has no result and its owner does not show itself.
    InDoubt {
        since: Timestamp,
        retried: bool,
    },
    /// The generation has moved on: here is what is current.
    Moved(Box<Grant>),
    Ended(EndReason),
}

/// Answer of `finish_refresh`.
#[derive(Debug)]
pub enum Finished {
    /// Durable; this is the grant now.
    Stored(Box<Grant>),
    /// Another answer was stored before; these tokens are to be revoked at the EHR.
    Moved(Box<Grant>),
    /// The grant ended in flight; these tokens are to be revoked at the EHR.
    Ended(EndReason),
}

/// A revocation at an EHR that is still to be done.
#[derive(Clone, Debug)]
pub struct Revocation {
    pub id: Uuid,
    pub site: SiteId,
    pub registration: RegistrationId,
    /// [`Grant::fingerprint`] of the grant that the token was given for: who we were to the EHR. None: written
    /// by a version that did not note it.
    pub fingerprint: Option<String>,
    pub token: Secret<String>,
    /// `refresh_token` or `access_token`.
    pub hint: String,
    pub attempts: i64,
    pub not_before: Timestamp,
}

/// A signing key of ours for id_tokens, sealed at rest.
#[derive(Clone, Debug)]
pub struct SigningKey {
    pub kid: String,
    /// PKCS#8 DER.
    pub pkcs8: Secret<Vec<u8>>,
    pub created: Timestamp,
}

// ---- processes -------------------------------------------------------------------------------------

/// A gateway process as it shows itself to the others. It lives while its beat rises, by the watcher's
/// own monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    pub boot: BootId,
    pub beat: i64,
    pub facts: ReplicaFacts,
}

/// What the other processes must know of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplicaFacts {
    /// Of the binary.
    pub version: String,
    /// The seal keys that it can read: ids, each with the fingerprint of its bytes.
    pub seal_keys: BTreeMap<String, String>,
    /// The id of the one that it writes with.
    pub writes_with: String,
    /// Ids of those that its spill holds records of.
    pub spill_keys: Vec<String>,
    /// The name of its spill, which outlives the process: whoever holds it next knows what is in it. None: it has
    /// none.
    pub spill: Option<Uuid>,
    /// Whom EHRs refuse, as it sees it; the first of them where they are many.
    pub refused: Vec<RefusedClient>,
    /// What it counts of refused refresh tokens.
    pub deaths: Vec<DeathsSeen>,
    /// What operators have told it lately of deaths.
    pub confirmed: Vec<DeathsConfirmed>,
}

/// A client of ours at a site whose refresh tokens the EHR refuses, as one process sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedClient {
    pub registration: RegistrationId,
    pub site: SiteId,
    pub client_id: String,
    /// Grants whose refresh token was refused, and which have not ended.
    pub refused: usize,
    /// Grants that were not tried and wait with them.
    pub waiting: usize,
    /// The EHR's last refusal: its status, and the rule of the profile that it met.
    pub answer: Option<String>,
    /// None: so many are people's fate.
    pub suspect: Option<SuspectClient>,
    /// Until then whoever is refused ends, by an operator's word.
    pub confirmed_until: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuspectClient {
    pub since: Timestamp,
    /// When one of its grants tries next.
    pub next_try: Timestamp,
}

/// What one process has counted of a client of ours at a site, of which deaths are rationed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeathsSeen {
    pub registration: RegistrationId,
    pub site: SiteId,
    /// The registration's, as the grants were made.
    pub fingerprint: String,
    /// Grants whose refresh token was refused: the first of them.
    pub refused: Vec<GrantId>,
    /// How many died besides those.
    pub more: u64,
    /// How many were renewed meanwhile.
    pub renewed: u64,
    /// How often a renewal has ended a suspicion, if one did lately.
    pub freed: u64,
}

/// An operator's word that a registration's refused refresh tokens are dead.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeathsConfirmed {
    pub registration: RegistrationId,
    /// None: at all of its sites.
    pub site: Option<SiteId>,
    pub at: Timestamp,
}
