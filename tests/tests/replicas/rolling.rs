//! Three gateways go from version N to N + 1 and back, one after the other, under load.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use futures_util::future::join_all;
use mantel_tests::{
    ehr::contract::Vendor,
    harness::{
        Ehr,
        app::{self, App, Tokens},
        cluster::{Cluster, Plan, StoreKind},
        postgres::Postgres,
        read,
    },
};

/// An app at work with its grant.
struct Session {
    app: App,
    tokens: Tokens,
    url: String,
    answered: AtomicU64,
}

impl Session {
    /// Reads, and renews its own tokens now and then, until it is told to stop. A gateway that goes away may cost an
    /// answer, which is asked again; none may say that the grant is no more.
    async fn work(&self, stop: &AtomicBool) -> Tokens {
        let mut tokens = self.tokens.clone();
        for turn in 1_u64.. {
            if let Ok(answer) = read(&self.url, tokens.access()).await {
                assert!(matches!(answer.status.as_u16(), 200 | 503), "{} {}", answer.status, answer.text());
                self.answered.fetch_add(u64::from(answer.status == 200), Relaxed);
            }
            if turn.is_multiple_of(10)
                && let Ok(answer) = self.app.try_refresh(&[("refresh_token", tokens.refresh())]).await
            {
                assert!(matches!(answer.status.as_u16(), 200 | 503), "{} {}", answer.status, answer.text());
                tokens = app::tokens(&answer).unwrap_or(tokens);
            }
            if stop.load(Relaxed) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokens
    }
}

/// What all of it is about, and the database beside it.
struct Load {
    sessions: Vec<Session>,
    server: Postgres,
    database: String,
}

impl Load {
    async fn ask(&self, sql: &str) -> String {
        self.server.query(&self.database, sql).await.unwrap()
    }

    /// How often the EHR's tokens were renewed, of the grant with the fewest.
    async fn renewed(&self) -> i64 {
        self.ask("SELECT min(generation) FROM grants").await.parse().unwrap()
    }

    /// Waits until each app has had further answers, and each grant new tokens from its EHR.
    async fn go_on(&self) {
        let before: Vec<u64> = self.sessions.iter().map(|it| it.answered.load(Relaxed)).collect();
        let renewed = self.renewed().await;
        let answered = || self.sessions.iter().zip(&before).all(|(it, before)| it.answered.load(Relaxed) > before + 20);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while !answered() || self.renewed().await == renewed {
            assert!(tokio::time::Instant::now() < deadline, "an app, or a grant, goes on no more");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Each gateway in turn: out of the front, ended as an orchestrator ends it, started as the other version.
async fn roll(cluster: &mut Cluster, binary: &str, load: &Load) {
    let all: Vec<_> = cluster.nodes.iter().map(|node| node.address).collect();
    for number in 0..all.len() {
        cluster
            .front
            .lead_to(all.iter().enumerate().filter(|(other, _)| *other != number).map(|(_, address)| *address));
        let gateway = &mut cluster.nodes[number].gateway;
        assert_eq!(gateway.terminate().await.unwrap(), Some(0), "{}", gateway.log("events.log").unwrap());
        gateway.set_binary(binary).unwrap();
        gateway.launch().unwrap();
        gateway.wait_ready(Duration::from_secs(30)).await.unwrap();
        cluster.front.lead_to(all.iter().copied());
        load.go_on().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deploy_is_rolled_out_and_back_under_load() {
    // Each refresh token of the EHRs is good for one use, and a second one ends the authorization.
    let hospital = |name: &str| Ehr { name: name.into(), ..Ehr::strict(Vendor::Epic).switch("access_lifetime=3") };
    let ehrs = ["north", "south"].map(hospital).into();
    let server = Postgres::shared().await.unwrap();
    let mut cluster = Cluster::start(Plan::new(3, StoreKind::Postgres(server.clone()), ehrs)).await.unwrap();
    let mut sessions = Vec::new();
    for name in ["north", "south"] {
        let (base, hospital) = (cluster.base(name), cluster.hospital(name).unwrap());
        for app in [App::at(&base).await.unwrap(), App::with_secret(&base).await.unwrap()] {
            let tokens = app.launch(&hospital.ehr).await.unwrap();
            let url = format!("{base}/Patient/{}", tokens.text("patient"));
            sessions.push(Session { app, tokens, url, answered: AtomicU64::new(0) });
        }
    }
    let database = cluster.store.as_ref().unwrap().database.clone();
    let load = Load { sessions, server, database };
    let steps = async || load.ask("SELECT max(version) FROM _sqlx_migrations").await.parse::<i64>().unwrap();
    let before = steps().await;

    let stop = AtomicBool::new(false);
    let (tokens, ()) = tokio::join!(join_all(load.sessions.iter().map(|session| session.work(&stop))), async {
        load.go_on().await;
        roll(&mut cluster, "mantel-next", &load).await;
        roll(&mut cluster, "mantel", &load).await;
        stop.store(true, Relaxed);
    });
    // The next version's step was taken, and this one serves beside and after it.
    assert_eq!(steps().await, before + 1);
    let states =
        "SELECT string_agg(state || '=' || n, ' ') FROM (SELECT state, count(*) AS n FROM grants GROUP BY state) s";
    let states = load.ask(states).await;
    assert!(!states.contains("ended"), "{states}");
    for (session, tokens) in load.sessions.iter().zip(tokens) {
        let tokens = session.app.refresh(tokens.refresh()).await.unwrap();
        let answer = read(&session.url, tokens.access()).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}
