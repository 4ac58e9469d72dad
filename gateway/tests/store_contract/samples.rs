//! Records to work with. What is secret in them is a canary: the dump test looks for it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use mantel::{
    clock::Timestamp,
    config::Base,
    secret::TokenHash,
    store::{
        AccessToken, AppRequest, BootId, Code, EhrHalf, EhrLaunch, EhrTokens, Grant, GrantFacts, GrantId, GrantState,
        Launch, LaunchId, LaunchStep, NewTokens, RefreshEnd, RefreshToken, Revocation, Store,
    },
};
use mantel_adapters::{
    profile::ScopePolicy,
    smart::{
        launch::LaunchContext,
        scope::Asked,
        translate::{Allowed, AskOptions, Request, Ticked, ask},
    },
};
use serde_json::json;
use uuid::Uuid;

pub const NOW: Timestamp = Timestamp(1_800_000_000_000);

pub const fn at(seconds: i64) -> Timestamp {
    Timestamp(NOW.0 + seconds * 1000)
}

/// In each secret that a store is given.
pub const CANARY: &str = "canary-7f3a9c51";

/// A number that no other call has had, in this process or another.
pub fn fresh() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    (u64::from(std::process::id()) << 24) + NEXT.fetch_add(1, Ordering::Relaxed)
}

pub fn uuid() -> Uuid {
    Uuid::from_u64_pair(0x0190_0000_0000_7000, 0x8000_0000_0000_0000 | fresh())
}

pub fn boot() -> BootId {
    BootId(uuid())
}

pub fn hash(text: &str) -> TokenHash {
    TokenHash::of(text)
}

/// The hash of a token that no other call has had.
pub fn token() -> TokenHash {
    hash(&format!("token {}", fresh()))
}

pub fn launch() -> Launch {
    Launch {
        id: LaunchId(uuid()),
        step: LaunchStep::Opened,
        app: "viewer".parse().unwrap(),
        base: Base::Site("general".parse().unwrap()),
        request: AppRequest {
            redirect_uri: "https://viewer.example/callback".into(),
            scope: "launch/patient patient/*.rs".into(),
            state: format!("state-{CANARY}"),
            nonce: Some("n".into()),
            code_challenge: "challenge".into(),
            organization: None,
        },
        browser: None,
        ehr: None,
        ehr_launch: Some(("general".parse().unwrap(), format!("launch-{CANARY}").into())),
        created: NOW,
        expires: at(600),
    }
}

/// The same launch, sent to the EHR with that `state`.
pub fn at_ehr(mut launch: Launch, state: TokenHash) -> Launch {
    launch.step = LaunchStep::AtEhr;
    launch.browser = Some(hash("cookie"));
    launch.ehr = Some(EhrHalf {
        site: "general".parse().unwrap(),
        registration: "viewer-epic".parse().unwrap(),
        state,
        code_verifier: format!("verifier-{CANARY}").into(),
        nonce: Some("ehr nonce".into()),
        redirect_uri: "https://gateway.example/oauth/callback/viewer-epic".into(),
        asked: asked("launch/patient patient/Patient.rs"),
    });
    launch
}

/// What an EHR is asked for an app's scopes, all of them ticked.
fn asked(scope: &str) -> Request {
    let words: Vec<_> = scope.split(' ').collect();
    ask(
        &Asked::parse(scope),
        &Allowed::parse(&words).unwrap(),
        &Ticked::parse(&words).unwrap(),
        &ScopePolicy::default(),
        AskOptions::default(),
    )
}

pub fn ehr_launch() -> EhrLaunch {
    EhrLaunch {
        app: "viewer".parse().unwrap(),
        site: "general".parse().unwrap(),
        launch: format!("launch-{CANARY}").into(),
        expires: at(300),
    }
}

pub fn ehr_tokens(number: u32) -> EhrTokens {
    EhrTokens {
        access: format!("access-{CANARY}-{number}").into(),
        refresh: Some(format!("refresh-{CANARY}-{number}").into()),
        received: at(i64::from(number)),
        lifetime: Duration::from_secs(300),
        refresh_end: Some(RefreshEnd { after: Duration::from_secs(86_400), fixed: false }),
        scope: Some("patient/Patient.rs".into()),
        id_token: Some(format!("id-{CANARY}").into()),
    }
}

/// A live grant of a subject and patient of its own.
pub fn grant() -> Grant {
    let n = fresh();
    Grant {
        id: GrantId(uuid()),
        app: "viewer".parse().unwrap(),
        site: "general".parse().unwrap(),
        registration: "viewer-epic".parse().unwrap(),
        fingerprint: "epic|client|/oauth/callback/viewer-epic".into(),
        created: NOW,
        state: GrantState::Live,
        generation: 1,
        facts: GrantFacts {
            asked: "patient/*.rs".into(),
            context: LaunchContext { patient: Some(format!("patient-{CANARY}-{n}")), ..LaunchContext::default() },
            fhir_user: Some(format!("Practitioner/{CANARY}")),
            sub: Some(format!("sub-{CANARY}-{n}")),
            refused: vec![json!({"scope": "patient/X.rs", "by": "ehr"})],
            ..GrantFacts::default()
        },
        tokens: ehr_tokens(1),
    }
}

pub fn code(grant: &Grant) -> Code {
    Code {
        grant: grant.id,
        app: grant.app.clone(),
        base: Base::Uniform,
        redirect_uri: "https://viewer.example/callback".into(),
        code_challenge: "challenge".into(),
        nonce: Some(format!("nonce-{CANARY}")),
        expires: at(60),
        redeemed: false,
    }
}

pub fn new_tokens(grant: GrantId) -> NewTokens {
    NewTokens {
        access: AccessToken {
            hash: token(),
            grant,
            reported: "patient/*.rs".into(),
            enforced: "patient/*.rs".into(),
            expires: at(3600),
        },
        refresh: Some(RefreshToken { hash: token(), expires: at(90 * 24 * 3600) }),
    }
}

pub fn revocation() -> Revocation {
    Revocation {
        id: uuid(),
        site: "general".parse().unwrap(),
        registration: "viewer-epic".parse().unwrap(),
        fingerprint: Some("epic|client|/oauth/callback/viewer-epic".into()),
        token: format!("refresh-{CANARY}").into(),
        hint: "refresh_token".into(),
        attempts: 0,
        not_before: NOW,
    }
}

/// Stores a grant; its code.
pub async fn store_grant(store: &dyn Store, grant: &Grant) -> TokenHash {
    let launch = launch();
    store.open_launch(&launch).await.unwrap();
    let hash = token();
    store.create_grant(grant, hash, &code(grant), launch.id).await.unwrap();
    hash
}

/// Stores a new grant.
pub async fn stored_grant(store: &dyn Store) -> Grant {
    let grant = grant();
    store_grant(store, &grant).await;
    grant
}

/// Stores a new grant and redeems its code: the app's first tokens.
pub async fn with_tokens(store: &dyn Store) -> (Grant, NewTokens) {
    let grant = grant();
    let code = store_grant(store, &grant).await;
    let tokens = new_tokens(grant.id);
    assert!(matches!(store.redeem_code(code, &tokens, NOW).await.unwrap(), mantel::store::Redeemed::Now(_)));
    (grant, tokens)
}
