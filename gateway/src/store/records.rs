//! How records look at rest, the same for each engine: which members are sealed and where, and what of
//! a later version's record survives a rewrite.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mantel_adapters::site::{AppId, RegistrationId, SiteId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::*;
use crate::{config::Base, secret::Secret, store::sealing::Place, store::sealing::Sealer};

/// The form of records that this binary writes, and the newest that it reads.
pub(super) const FORMAT: i64 = 1;

pub(super) fn readable(table: &'static str, format: i64) -> StoreResult<()> {
    if format <= FORMAT {
        return Ok(());
    }
    Err(StoreError::Incompatible(format!(
        "a record of {table} has format {format}; this binary reads up to {FORMAT}: run the newer one"
    )))
}

pub(super) fn corrupt(table: &'static str, what: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("{table}: {what}"))
}

pub(super) fn id16(table: &'static str, bytes: &[u8]) -> StoreResult<Uuid> {
    Uuid::from_slice(bytes).map_err(|_| corrupt(table, "an id is not 16 bytes long"))
}

fn name<T: FromStr>(table: &'static str, text: &str) -> StoreResult<T>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error| corrupt(table, error))
}

// ---- grants ------------------------------------------------------------------------------------------

/// A row of `grants`, unopened.
pub(super) struct GrantRow {
    pub id: Vec<u8>,
    pub format: i64,
    pub app: String,
    pub site: String,
    pub registration: String,
    pub fingerprint: String,
    pub created: i64,
    pub state: String,
    pub generation: i64,
    pub doubt_since: Option<i64>,
    pub retried_at: Option<i64>,
    pub ended_at: Option<i64>,
    pub end_reason: Option<String>,
    pub facts: Vec<u8>,
    pub tokens: Option<Vec<u8>>,
}

const GRANTS: &str = "grants";

impl GrantRow {
    pub(super) fn open(&self, sealer: &Sealer) -> StoreResult<Grant> {
        readable(GRANTS, self.format)?;
        let state = self.state()?;
        let tokens = match (&self.tokens, state) {
            (Some(sealed), _) => open_tokens(sealer, &self.id, sealed)?,
            (None, GrantState::Ended { at, .. }) => EhrTokens {
                access: Secret::new(String::new()),
                refresh: None,
                received: at,
                lifetime: Duration::ZERO,
                refresh_end: None,
                scope: None,
                id_token: None,
            },
            (None, _) => return Err(corrupt(GRANTS, "a living grant has no tokens")),
        };
        Ok(Grant {
            id: GrantId(id16(GRANTS, &self.id)?),
            app: name(GRANTS, &self.app)?,
            site: name(GRANTS, &self.site)?,
            registration: name(GRANTS, &self.registration)?,
            fingerprint: self.fingerprint.clone(),
            created: Timestamp(self.created),
            state,
            generation: self.generation,
            facts: sealer.open_json(facts_place(&self.id), &self.facts)?,
            tokens,
        })
    }

    pub(super) fn state(&self) -> StoreResult<GrantState> {
        match (self.state.as_str(), self.doubt_since, self.ended_at, &self.end_reason) {
            ("live", ..) => Ok(GrantState::Live),
            ("in_doubt", Some(since), ..) => {
                Ok(GrantState::InDoubt { since: Timestamp(since), retried: self.retried_at.is_some() })
            }
            ("ended", _, Some(at), Some(reason)) => {
                Ok(GrantState::Ended { at: Timestamp(at), reason: end_reason(reason)? })
            }
            _ => Err(corrupt(GRANTS, "a grant's state cannot be read")),
        }
    }
}

pub(super) fn end_reason(text: &str) -> StoreResult<EndReason> {
    EndReason::ALL
        .into_iter()
        .find(|reason| reason.text() == text)
        .ok_or_else(|| corrupt(GRANTS, format_args!("the end reason {text:?} is unknown")))
}

pub(super) fn facts_place(grant: &[u8]) -> Place<'_> {
    Place { table: GRANTS, column: "facts", id: grant }
}

pub(super) fn tokens_place(grant: &[u8]) -> Place<'_> {
    Place { table: GRANTS, column: "tokens", id: grant }
}

pub(super) fn seal_facts(sealer: &Sealer, grant: GrantId, facts: &GrantFacts) -> StoreResult<Vec<u8>> {
    sealer.seal_json(facts_place(grant.0.as_bytes()), facts)
}

/// An EHR's tokens as they are sealed, here and in the spill.
#[derive(Serialize)]
pub(crate) struct TokensOut<'a> {
    access: &'a str,
    refresh: Option<&'a str>,
    received: Timestamp,
    lifetime_ms: u64,
    #[serde(flatten)]
    refresh_end: StoredEnd,
    scope: Option<&'a str>,
    id_token: Option<&'a str>,
}

impl<'a> From<&'a EhrTokens> for TokensOut<'a> {
    fn from(tokens: &'a EhrTokens) -> Self {
        Self {
            access: tokens.access.expose(),
            refresh: tokens.refresh.as_ref().map(|token| token.expose().as_str()),
            received: tokens.received,
            lifetime_ms: u64::try_from(tokens.lifetime.as_millis()).unwrap_or(u64::MAX),
            refresh_end: tokens.refresh_end.into(),
            scope: tokens.scope.as_deref(),
            id_token: tokens.id_token.as_ref().map(|token| token.expose().as_str()),
        }
    }
}

/// Reads what [`TokensOut`] wrote, whatever stands beside it.
#[derive(Deserialize)]
pub(crate) struct TokensIn {
    access: String,
    refresh: Option<String>,
    received: Timestamp,
    lifetime_ms: u64,
    #[serde(flatten)]
    refresh_end: StoredEnd,
    scope: Option<String>,
    id_token: Option<String>,
}

impl From<TokensIn> for EhrTokens {
    fn from(stored: TokensIn) -> Self {
        Self {
            access: Secret::new(stored.access),
            refresh: stored.refresh.map(Secret::new),
            received: stored.received,
            lifetime: Duration::from_millis(stored.lifetime_ms),
            refresh_end: stored.refresh_end.into(),
            scope: stored.scope,
            id_token: stored.id_token.map(Secret::new),
        }
    }
}

#[derive(Serialize)]
struct TokensRecord<'a> {
    #[serde(flatten)]
    tokens: TokensOut<'a>,
    #[serde(flatten)]
    later: Later<'a>,
}

/// Members of a stored record that only a later version knows, as they were written.
type Later<'a> = BTreeMap<String, &'a RawValue>;

const TOKEN_MEMBERS: [&str; 8] =
    ["access", "refresh", "received", "lifetime_ms", "refresh_ms", "refresh_fixed", "scope", "id_token"];

/// Seals an answer's tokens; `before` is the sealed record whose place it takes.
pub(super) fn seal_tokens(
    sealer: &Sealer,
    grant: GrantId,
    tokens: &EhrTokens,
    before: Option<&[u8]>,
) -> StoreResult<Vec<u8>> {
    let place = tokens_place(grant.0.as_bytes());
    // What cannot be read has nothing that could be kept, and new tokens are not to be lost for it.
    let before = before.and_then(|sealed| sealer.open(place, sealed).ok());
    let mut later =
        before.as_ref().and_then(|plain| serde_json::from_slice::<Later<'_>>(plain).ok()).unwrap_or_default();
    later.retain(|member, _| !TOKEN_MEMBERS.contains(&member.as_str()));
    sealer.seal_json(place, &TokensRecord { tokens: tokens.into(), later })
}

pub(super) fn open_tokens(sealer: &Sealer, grant: &[u8], sealed: &[u8]) -> StoreResult<EhrTokens> {
    let stored: TokensIn = sealer.open_json(tokens_place(grant), sealed)?;
    Ok(stored.into())
}

/// Names whom a grant is for: equal app, site, subject and patient. None if no subject is known.
pub(super) fn identity(sealer: &Sealer, app: &str, site: &str, facts: &GrantFacts) -> Option<Vec<[u8; 32]>> {
    let sub = facts.sub.as_deref()?;
    let (known, patient): (&[u8], _) = match &facts.context.patient {
        Some(patient) => (b"1", patient.as_str()),
        None => (b"0", ""),
    };
    let parts = [app.as_bytes(), site.as_bytes(), sub.as_bytes(), known, patient.as_bytes()];
    Some(sealer.names("grant identity", &parts))
}

// ---- launches ----------------------------------------------------------------------------------------

/// What is sealed of a launch; id, step, EHR state and expiry are columns.
#[derive(Serialize, Deserialize)]
struct LaunchBody {
    app: AppId,
    /// None: the uniform base.
    base: Option<SiteId>,
    request: AppRequest,
    browser: Option<Hash>,
    ehr: Option<EhrHalfBody>,
    ehr_launch: Option<(SiteId, Plain)>,
    created: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct EhrHalfBody {
    site: SiteId,
    registration: RegistrationId,
    state: Hash,
    code_verifier: Plain,
    nonce: Option<String>,
    redirect_uri: String,
    asked: mantel_adapters::smart::translate::Request,
}

const LAUNCHES: &str = "launches";

pub(super) fn launch_place(id: &[u8]) -> Place<'_> {
    Place { table: LAUNCHES, column: "body", id }
}

pub(super) fn seal_launch(sealer: &Sealer, launch: &Launch) -> StoreResult<Vec<u8>> {
    let body = LaunchBody {
        app: launch.app.clone(),
        base: base_out(&launch.base),
        request: launch.request.clone(),
        browser: launch.browser.map(Hash),
        ehr: launch.ehr.as_ref().map(|ehr| EhrHalfBody {
            site: ehr.site.clone(),
            registration: ehr.registration.clone(),
            state: Hash(ehr.state),
            code_verifier: Plain(ehr.code_verifier.clone()),
            nonce: ehr.nonce.clone(),
            redirect_uri: ehr.redirect_uri.clone(),
            asked: ehr.asked.clone(),
        }),
        ehr_launch: launch.ehr_launch.as_ref().map(|(site, launch)| (site.clone(), Plain(launch.clone()))),
        created: launch.created,
    };
    sealer.seal_json(launch_place(launch.id.0.as_bytes()), &body)
}

/// Columns of `launches`, unopened.
pub(super) struct LaunchRow {
    pub id: Vec<u8>,
    pub format: i64,
    pub step: String,
    pub expires: i64,
    pub body: Vec<u8>,
}

impl LaunchRow {
    pub(super) fn open(&self, sealer: &Sealer) -> StoreResult<Launch> {
        readable(LAUNCHES, self.format)?;
        let body: LaunchBody = sealer.open_json(launch_place(&self.id), &self.body)?;
        use LaunchStep::{AtEhr, Done, Opened, Returned};
        let step = [Opened, AtEhr, Returned, Done]
            .into_iter()
            .find(|step| step.text() == self.step)
            .ok_or_else(|| corrupt(LAUNCHES, format_args!("the step {:?} is unknown", self.step)))?;
        Ok(Launch {
            id: LaunchId(id16(LAUNCHES, &self.id)?),
            step,
            app: body.app,
            base: base_in(body.base),
            request: body.request,
            browser: body.browser.map(|hash| hash.0),
            ehr: body.ehr.map(|ehr| EhrHalf {
                site: ehr.site,
                registration: ehr.registration,
                state: ehr.state.0,
                code_verifier: ehr.code_verifier.0,
                nonce: ehr.nonce,
                redirect_uri: ehr.redirect_uri,
                asked: ehr.asked,
            }),
            ehr_launch: body.ehr_launch.map(|(site, launch)| (site, launch.0)),
            created: body.created,
            expires: Timestamp(self.expires),
        })
    }
}

#[derive(Serialize, Deserialize)]
struct EhrLaunchBody {
    app: AppId,
    site: SiteId,
    launch: Plain,
}

pub(super) fn ehr_launch_place(hash: &[u8]) -> Place<'_> {
    Place { table: "ehr_launches", column: "body", id: hash }
}

pub(super) fn seal_ehr_launch(sealer: &Sealer, ours: TokenHash, launch: &EhrLaunch) -> StoreResult<Vec<u8>> {
    let body =
        EhrLaunchBody { app: launch.app.clone(), site: launch.site.clone(), launch: Plain(launch.launch.clone()) };
    sealer.seal_json(ehr_launch_place(&ours.0), &body)
}

pub(super) fn open_ehr_launch(
    sealer: &Sealer,
    ours: TokenHash,
    format: i64,
    expires: i64,
    sealed: &[u8],
) -> StoreResult<EhrLaunch> {
    readable("ehr_launches", format)?;
    let body: EhrLaunchBody = sealer.open_json(ehr_launch_place(&ours.0), sealed)?;
    Ok(EhrLaunch { app: body.app, site: body.site, launch: body.launch.0, expires: Timestamp(expires) })
}

// ---- codes -------------------------------------------------------------------------------------------

#[derive(Serialize, Deserialize)]
struct CodeBody {
    app: AppId,
    base: Option<SiteId>,
    redirect_uri: String,
    code_challenge: String,
    nonce: Option<String>,
}

pub(super) fn code_place(hash: &[u8]) -> Place<'_> {
    Place { table: "codes", column: "body", id: hash }
}

pub(super) fn seal_code(sealer: &Sealer, hash: TokenHash, code: &Code) -> StoreResult<Vec<u8>> {
    let body = CodeBody {
        app: code.app.clone(),
        base: base_out(&code.base),
        redirect_uri: code.redirect_uri.clone(),
        code_challenge: code.code_challenge.clone(),
        nonce: code.nonce.clone(),
    };
    sealer.seal_json(code_place(&hash.0), &body)
}

/// Columns of `codes`, unopened.
pub(super) struct CodeRow {
    pub format: i64,
    pub grant: Vec<u8>,
    pub expires: i64,
    pub redeemed_at: Option<i64>,
    pub body: Vec<u8>,
}

impl CodeRow {
    pub(super) fn open(&self, sealer: &Sealer, hash: TokenHash) -> StoreResult<Code> {
        readable("codes", self.format)?;
        let body: CodeBody = sealer.open_json(code_place(&hash.0), &self.body)?;
        Ok(Code {
            grant: GrantId(id16("codes", &self.grant)?),
            app: body.app,
            base: base_in(body.base),
            redirect_uri: body.redirect_uri,
            code_challenge: body.code_challenge,
            nonce: body.nonce,
            expires: Timestamp(self.expires),
            redeemed: self.redeemed_at.is_some(),
        })
    }
}

// ---- the rest ----------------------------------------------------------------------------------------

#[derive(Serialize, Deserialize)]
struct RevocationBody {
    site: SiteId,
    registration: RegistrationId,
    #[serde(default)]
    fingerprint: Option<String>,
    token: Plain,
    hint: String,
}

pub(super) fn outbox_place(id: &[u8]) -> Place<'_> {
    Place { table: "outbox", column: "body", id }
}

pub(super) fn seal_revocation(sealer: &Sealer, revocation: &Revocation) -> StoreResult<Vec<u8>> {
    let body = RevocationBody {
        site: revocation.site.clone(),
        registration: revocation.registration.clone(),
        fingerprint: revocation.fingerprint.clone(),
        token: Plain(revocation.token.clone()),
        hint: revocation.hint.clone(),
    };
    sealer.seal_json(outbox_place(revocation.id.as_bytes()), &body)
}

/// Columns of `outbox`, unopened.
pub(super) struct OutboxRow {
    pub id: Vec<u8>,
    pub format: i64,
    pub not_before: i64,
    pub attempts: i64,
    pub body: Vec<u8>,
}

impl OutboxRow {
    pub(super) fn open(&self, sealer: &Sealer) -> StoreResult<Revocation> {
        readable("outbox", self.format)?;
        let body: RevocationBody = sealer.open_json(outbox_place(&self.id), &self.body)?;
        Ok(Revocation {
            id: id16("outbox", &self.id)?,
            site: body.site,
            registration: body.registration,
            fingerprint: body.fingerprint,
            token: body.token.0,
            hint: body.hint,
            attempts: self.attempts,
            not_before: Timestamp(self.not_before),
        })
    }
}

/// The revocation that the store itself writes where it ends a grant without being told which tokens
/// (a replay, a successor): one per grant, so that a repeated call writes no second one.
pub(super) fn revocation_of(
    site: &str,
    registration: &str,
    fingerprint: String,
    grant: GrantId,
    tokens: &EhrTokens,
    now: Timestamp,
) -> StoreResult<Revocation> {
    let (token, hint) = match &tokens.refresh {
        Some(refresh) => (refresh, "refresh_token"),
        None => (&tokens.access, "access_token"),
    };
    Ok(Revocation {
        id: grant.0,
        site: name(GRANTS, site)?,
        registration: name(GRANTS, registration)?,
        fingerprint: Some(fingerprint),
        token: token.clone(),
        hint: hint.into(),
        attempts: 0,
        not_before: now,
    })
}

pub(super) fn key_place(kid: &str) -> Place<'_> {
    Place { table: "signing_keys", column: "pkcs8", id: kid.as_bytes() }
}

/// Names an EHR's subject at a site: by each key, the writing one's first.
pub(super) fn subject_names(sealer: &Sealer, site: &str, ehr_subject: &str) -> Vec<[u8; 32]> {
    sealer.names("subject", &[site.as_bytes(), ehr_subject.as_bytes()])
}

pub(super) fn subject_place(name: &[u8]) -> Place<'_> {
    Place { table: "subjects", column: "body", id: name }
}

pub(super) fn proof_place(key: &str) -> Place<'_> {
    Place { table: "seal_keys", column: "proof", id: key.as_bytes() }
}

fn base_out(base: &Base) -> Option<SiteId> {
    match base {
        Base::Uniform => None,
        Base::Site(site) => Some(site.clone()),
    }
}

fn base_in(base: Option<SiteId>) -> Base {
    base.map_or(Base::Uniform, Base::Site)
}

/// A secret inside a record that is sealed as a whole.
struct Plain(Secret<String>);

impl Serialize for Plain {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.0.expose())
    }
}

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(|text| Self(Secret::new(text)))
    }
}

struct Hash(TokenHash);

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&URL_SAFE_NO_PAD.encode(self.0.0))
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        bytes.map(|bytes| Self(TokenHash(bytes))).ok_or_else(|| serde::de::Error::custom("this is no SHA-256"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SealKey;

    fn sealer() -> Sealer {
        Sealer::new(&[SealKey { id: "k".into(), bytes: Secret::new([7; 32]) }]).unwrap()
    }

    #[test]
    fn what_a_later_version_wrote_survives_new_tokens() {
        let (sealer, id) = (sealer(), GrantId(Uuid::from_u128(1)));
        let place = tokens_place(id.0.as_bytes());
        let older = serde_json::json!({
            "access": "a1", "refresh": "r1", "received": 5, "lifetime_ms": 300_000, "scope": null, "id_token": null,
            "sender_constrained": {"jkt": "x", "n": 1.00}
        });
        let before = sealer.seal_json(place, &older).unwrap();
        let mut tokens = open_tokens(&sealer, id.0.as_bytes(), &before).unwrap();
        assert_eq!(tokens.refresh_end, None, "a version before this one wrote it");
        tokens.access = "a2".into();
        tokens.refresh_end = Some(RefreshEnd { after: Duration::from_secs(60), fixed: true });
        let after = seal_tokens(&sealer, id, &tokens, Some(&before)).unwrap();
        let stored: serde_json::Value = sealer.open_json(place, &after).unwrap();
        assert_eq!(stored["access"], "a2");
        assert_eq!(open_tokens(&sealer, id.0.as_bytes(), &after).unwrap().refresh_end, tokens.refresh_end);
        tokens.refresh_end = None;
        let last = seal_tokens(&sealer, id, &tokens, Some(&after)).unwrap();
        assert_eq!(open_tokens(&sealer, id.0.as_bytes(), &last).unwrap().refresh_end, None, "it does not linger");
        assert_eq!(stored["sender_constrained"], older["sender_constrained"]);
    }

    #[test]
    fn a_record_of_a_later_format_is_refused_by_name() {
        assert!(
            matches!(readable("grants", FORMAT + 1), Err(StoreError::Incompatible(text)) if text.contains("grants"))
        );
        assert!(readable("grants", FORMAT).is_ok());
    }
}
