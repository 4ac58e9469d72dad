//! Three gateways with nothing wrong between them: what one does the others know, and none does it twice.

use std::time::Duration;

use futures_util::future::join_all;
use mantel_tests::{
    ehr::{
        auth::state::End,
        contract::Vendor,
        faults::{Fault, FaultKind},
    },
    harness::{
        CALLBACK, Ehr, app,
        cluster::{Cluster, Plan, StoreKind},
        postgres::Postgres,
    },
};
use tokio::time::Instant;

use super::{
    deaths::deaths_are_rationed_over_all_gateways_and_service_resumes_by_itself,
    login::{LOOK, Login, REFRESH, SOON, events, is_invalid_grant, newest_grant, refused_soon, sum, unharmed},
};

/// On gateways that they share: most of them wait, for a minute at most.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_gateways_are_one() {
    let hospital = |name: &str| Ehr { name: name.into(), ..Ehr::strict(Vendor::Epic) };
    let ehrs = vec![
        hospital("crowded"),
        hospital("slow").site("tokens.reuse_grace = \"60s\""),
        Ehr { name: "wheel".into(), ..Ehr::new(Vendor::Athena) },
        // Where nothing can be revoked: it serves on, so who refuses what has ended is the gateway.
        Ehr::new(Vendor::Epic),
        Ehr { name: "ending".into(), ..Ehr::new(Vendor::Generic) },
        Ehr { name: "refusing".into(), ..Ehr::new(Vendor::Generic) },
    ];
    let server = Postgres::shared().await.unwrap();
    let cluster = Cluster::start(Plan::new(3, StoreKind::Postgres(server), ehrs)).await.unwrap();
    tokio::join!(
        a_crowd_at_expiry_causes_one_refresh(&cluster),
        a_slow_ehr_is_asked_once(&cluster),
        what_is_due_is_renewed_by_one_of_them(&cluster),
        an_end_wins_over_a_refresh_under_way(&cluster),
        deaths_are_rationed_over_all_gateways_and_service_resumes_by_itself(&cluster),
        async {
            // One EHR plays for both, and its lifetimes are set for one launch at a time.
            what_ends_at_one_ends_at_all(&cluster).await;
            a_lost_answer_is_repeated_by_any_and_a_thief_is_noticed(&cluster).await;
        },
    );
}

async fn a_crowd_at_expiry_causes_one_refresh(cluster: &Cluster) {
    const CALLERS: usize = 50;
    let ehr = &cluster.hospital("crowded").unwrap().ehr;
    let login = Login::at(cluster, "crowded", Some(2)).await;
    // The gateways' own clock has to reach the token's end.
    tokio::time::sleep(Duration::from_secs(2)).await;
    ehr.counters.reset();
    ehr.faults.add(Fault::new(REFRESH, FaultKind::Hold).times(1));
    let callers: Vec<_> =
        cluster.nodes.iter().flat_map(|node| (0..CALLERS).map(|_| login.reading(node)).collect::<Vec<_>>()).collect();
    ehr.faults.wait_held(1).await;
    // At each gateway one began a flight and the others joined it.
    let joined = cluster.nodes.len() * (CALLERS - 1);
    let until = Instant::now() + Duration::from_secs(15);
    while sum(&cluster.nodes, "mantel_refresh_joins_total").await < joined as f64 {
        assert!(Instant::now() < until, "they wait for nothing: {}", events(&cluster.nodes[0]));
        tokio::time::sleep(LOOK).await;
    }
    assert_eq!(ehr.counters.get(REFRESH), 1, "before the answer");
    ehr.faults.release();
    for caller in callers {
        let answer = caller.await.unwrap().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(ehr.counters.get(REFRESH), 1);
    unharmed(ehr);
}

/// Its answer takes longer than a lease lives without a beat (10 s), and than a caller waits (20 s).
async fn a_slow_ehr_is_asked_once(cluster: &Cluster) {
    const SLOW: Duration = Duration::from_secs(30);
    let hospital = cluster.hospital("slow").unwrap();
    // Due at 60 % of it; the old token serves on, and ends long before the answer.
    let login = Login::at(cluster, "slow", Some(5)).await;
    let launched = Instant::now();
    let (ehr, store) = (&hospital.ehr, cluster.store.as_ref().unwrap());
    ehr.counters.reset();
    ehr.faults.add(Fault::new(REFRESH, FaultKind::Slow { ms: u64::try_from(SLOW.as_millis()).unwrap() }).times(1));
    let rotated = || ehr.grants().iter().any(|grant| grant.generation > 0);
    join_all(cluster.nodes.iter().map(|node| async {
        loop {
            let waits = !rotated();
            let answer = login.read(node).await;
            assert!(answer.status == 200 || answer.is_held_back(), "{} {}", answer.status, answer.text());
            if !waits && answer.status == 200 {
                return;
            }
            assert!(launched.elapsed() < SLOW * 2, "{}\n{}", answer.text(), events(node));
            tokio::time::sleep(LOOK).await;
        }
    }))
    .await;
    assert!(launched.elapsed() > SLOW, "it was not slow");
    assert_eq!(ehr.counters.get(REFRESH), 1);
    unharmed(ehr);
    // Who takes the lease over would send the old token again at once, where the vendor is said to repeat its answer:
    // beats kept all others from it.
    let beats = store.server.query(&store.database, "SELECT max(beat) FROM grants").await.unwrap();
    assert!(beats.parse::<u64>().unwrap() >= 5, "{beats} beats");
    assert_eq!(sum(&cluster.nodes, "mantel_refresh_leases_total{event=\"taken_over\"}").await, 0.0);
}

/// Grants in use at all of them, which nobody asks for any more: the wheel of due grants is shared.
async fn what_is_due_is_renewed_by_one_of_them(cluster: &Cluster) {
    /// So many that by chance alone none of three is left without (3 in 10,000 times).
    const GRANTS: usize = 23;
    /// Seconds; due at 60 % of it, and for who is not first a tenth later.
    const LIFETIME: u64 = 20;
    let ehr = &cluster.hospital("wheel").unwrap().ehr;
    let mut logins = Vec::new();
    for _ in 0..GRANTS {
        logins.push(Login::at(cluster, "wheel", Some(LIFETIME)).await);
    }
    let reads = async || {
        let reads = logins.iter().flat_map(|login| cluster.nodes.iter().map(|node| login.read(node)));
        for answer in join_all(reads).await {
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    };
    reads().await;
    assert_eq!(ehr.counters.get(REFRESH), 0, "due before all was ready: the machine is too slow");
    tokio::time::sleep(Duration::from_secs(LIFETIME)).await;
    assert_eq!(ehr.counters.get(REFRESH), u64::try_from(GRANTS).unwrap());
    reads().await;
    assert_eq!(ehr.counters.get(REFRESH), u64::try_from(GRANTS).unwrap());
    unharmed(ehr);
    let renewed = "mantel_refreshes_total{outcome=\"renewed\",vendor=\"athena\"}";
    for node in &cluster.nodes {
        assert!(node.gateway.metric(renewed).await.unwrap() > 0.0, "one did the work of three");
    }
}

/// An end by whoever asked for it at the first gateway.
async fn what_ends_at_one_ends_at_all(cluster: &Cluster) {
    let [first, others @ ..] = cluster.nodes.as_slice() else { panic!("no gateway") };
    let ehr = &cluster.hospital("epic").unwrap().ehr;
    for how in ["a code came twice", "a refresh token came twice", "an operator ended it"] {
        let login = Login::at(cluster, "epic", None).await;
        let app = &login.app;
        let mut tokens = login.tokens.clone();
        let mut again = Vec::new();
        match how {
            "a code came twice" => {
                let back = app.authorize(&mut app::visitor(), ehr, &[]).await.unwrap();
                let code = app.code(&back).unwrap();
                tokens = app.redeem(&code).await.unwrap();
                again = vec![
                    ("grant_type", "authorization_code".to_owned()),
                    ("redirect_uri", CALLBACK.to_owned()),
                    ("code", code),
                    ("code_verifier", app.verifier.clone()),
                ];
            }
            "a refresh token came twice" => {
                let old = login.tokens.refresh().to_owned();
                let second = app.refresh(&old).await.unwrap();
                tokens = app.refresh(second.refresh()).await.unwrap();
                again = vec![("grant_type", "refresh_token".to_owned()), ("refresh_token", old)];
            }
            _ => {}
        }
        // Each serves it from memory from now on.
        for node in &cluster.nodes {
            for _ in 0..2 {
                let answer = login.read_with(node, tokens.access()).await;
                assert_eq!(answer.status, 200, "{how}: {}", answer.text());
            }
        }
        if again.is_empty() {
            let (done, text) =
                first.gateway.tell(&["grants", "end", &newest_grant(cluster, "epic").await]).await.unwrap();
            assert!(done, "{text}");
        } else {
            let pairs: Vec<(&str, &str)> = again.iter().map(|(name, value)| (*name, value.as_str())).collect();
            is_invalid_grant(&app.post_to(&first.own(&app.token), &pairs).await.unwrap());
        }
        let ended = Instant::now();
        let refused = login.read_with(first, tokens.access()).await;
        assert_eq!(refused.status, 401, "{how}: {}", refused.text());
        join_all(others.iter().map(|node| refused_soon(&login, node, tokens.access(), ended, how))).await;
        for node in &cluster.nodes {
            is_invalid_grant(&login.refresh_at(node, tokens.refresh()).await);
        }
    }
}

/// The end of a grant while another gateway's request for its next tokens is under way.
async fn an_end_wins_over_a_refresh_under_way(cluster: &Cluster) {
    let [a, b, c] = cluster.nodes.as_slice() else { panic!("three gateways were asked for") };
    let ehr = &cluster.hospital("ending").unwrap().ehr;
    let login = Login::at(cluster, "ending", Some(2)).await;
    // The gateways' own clock has to reach the token's end.
    tokio::time::sleep(Duration::from_secs(2)).await;
    ehr.counters.reset();
    ehr.faults.add(Fault::new(REFRESH, FaultKind::Hold).times(1));
    // For good: what is revoked there later is not the old token.
    ehr.faults.add(Fault::new("revoke", FaultKind::Status { status: 400 }).times(1));
    let sender = login.reading(a);
    ehr.faults.wait_held(1).await;
    let watcher = login.reading(c);
    let (done, text) = b.gateway.tell(&["grants", "end", &newest_grant(cluster, "ending").await]).await.unwrap();
    assert!(done, "{text}");
    let ended = Instant::now();
    assert_eq!(login.read(b).await.status, 401);
    let watcher = watcher.await.unwrap().unwrap();
    assert_eq!(watcher.status, 401, "{}", watcher.text());
    let until = ended + SOON;
    while ehr.counters.get("revoke") == 0 {
        assert!(Instant::now() < until, "{}", events(b));
        tokio::time::sleep(LOOK).await;
    }
    let grant = || ehr.grants().pop().unwrap();
    assert_eq!((grant().refreshes, grant().ended), (0, None), "{:?}", grant());
    ehr.faults.release();
    let sender = sender.await.unwrap().unwrap();
    assert_eq!(sender.status, 401, "{}", sender.text());
    let until = Instant::now() + SOON;
    while grant().ended.is_none() {
        assert!(Instant::now() < until, "its new tokens live on: {:?}\n{}", grant(), events(a));
        tokio::time::sleep(LOOK).await;
    }
    assert_eq!((grant().refreshes, grant().ended, grant().access_tokens_alive), (1, Some(End::Revoked), 0));
    for node in [a, b, c] {
        is_invalid_grant(&login.refresh_at(node, login.tokens.refresh()).await);
    }
    assert_eq!((ehr.counters.get(REFRESH), ehr.counters.get("revoke")), (1, 2));
}

/// Our own refresh tokens.
async fn a_lost_answer_is_repeated_by_any_and_a_thief_is_noticed(cluster: &Cluster) {
    let [a, b, c] = cluster.nodes.as_slice() else { panic!("three gateways were asked for") };
    let (login, late) = (Login::at(cluster, "epic", None).await, Login::at(cluster, "epic", None).await);
    let old = login.tokens.refresh();
    // Whichever gateway rotates it, its answer does not arrive.
    cluster.front.lose_answers("grant_type=refresh_token", 1);
    assert!(login.app.try_refresh(&[("refresh_token", old)]).await.is_err(), "the answer arrived");
    assert_eq!(cluster.front.seen().lost, 1);
    let given = join_all([a, b, c].map(|node| login.refresh_at(node, old))).await;
    let given: Vec<_> = given.iter().map(|answer| app::tokens(answer).unwrap()).collect();
    assert_ne!(given[0].refresh(), old);
    assert!(
        given.iter().all(|tokens| tokens.refresh() == given[0].refresh()),
        "each gateway has a successor of its own"
    );
    for (node, tokens) in [b, c, a].into_iter().zip(&given) {
        let answer = login.read_with(node, tokens.access()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    // The successor is in use: who comes with the old one now has stolen it, or was robbed.
    let next = app::tokens(&login.refresh_at(b, given[0].refresh()).await).unwrap();
    for node in [a, c] {
        assert_eq!(login.read_with(node, next.access()).await.status, 200);
    }
    is_invalid_grant(&login.refresh_at(c, old).await);
    let ended = Instant::now();
    join_all([a, b].map(|node| refused_soon(&login, node, next.access(), ended, "a thief"))).await;
    for node in [a, b, c] {
        is_invalid_grant(&login.refresh_at(node, next.refresh()).await);
    }

    // The grace is over after 30 s, by any gateway.
    let rotated = app::tokens(&late.refresh_at(a, late.tokens.refresh()).await).unwrap();
    tokio::time::sleep(Duration::from_secs(31)).await;
    is_invalid_grant(&late.refresh_at(b, late.tokens.refresh()).await);
    is_invalid_grant(&late.refresh_at(c, rotated.refresh()).await);
}
