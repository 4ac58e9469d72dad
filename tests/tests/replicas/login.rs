//! A login, and what each of several gateways makes of it.

use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use mantel_tests::{
    ehr::server::Running,
    harness::{
        Answer,
        app::{App, Tokens},
        cluster::{Cluster, Node},
        read,
    },
};
use tokio::{task::JoinHandle, time::Instant};

pub const REFRESH: &str = "token:refresh_token";

/// After a trouble's end everything works again by itself.
pub const SOON: Duration = Duration::from_secs(10);

/// From the answer that ended a grant until the last gateway refuses it.
const ENDED_WITHIN: Duration = Duration::from_secs(1);

/// Between two looks at other processes: there is nothing to await but what they answer.
pub const LOOK: Duration = Duration::from_millis(100);

pub struct Login {
    pub app: App,
    pub tokens: Tokens,
    url: String,
}

impl Login {
    /// One whose first access token at the EHR lives so many seconds; those after it live as long as the vendor's.
    pub async fn at(cluster: &Cluster, site: &str, lifetime: Option<u64>) -> Self {
        let ehr = &cluster.hospital(site).unwrap().ehr;
        // Without an identity none takes the place of the one before.
        let app = App::at(&cluster.base(site)).await.unwrap();
        let app = app.asking("launch/patient offline_access patient/Patient.read");
        ehr.auth.set_lifetime(lifetime);
        let tokens = app.launch(ehr).await.unwrap();
        ehr.auth.set_lifetime(None);
        let url = format!("{}/Patient/{}", app.base, tokens.text("patient"));
        Self { app, tokens, url }
    }

    /// A read by one gateway.
    pub async fn read(&self, by: &Node) -> Answer {
        self.read_with(by, self.tokens.access()).await
    }

    pub async fn read_with(&self, by: &Node, access: &str) -> Answer {
        read(&by.own(&self.url), access).await.unwrap()
    }

    /// The same, while the test goes on.
    pub fn reading(&self, by: &Node) -> JoinHandle<anyhow::Result<Answer>> {
        let (url, token) = (by.own(&self.url), self.tokens.access().to_owned());
        tokio::spawn(async move { read(&url, &token).await })
    }

    pub async fn refresh_at(&self, by: &Node, token: &str) -> Answer {
        let pairs = [("grant_type", "refresh_token"), ("refresh_token", token)];
        self.app.post_to(&by.own(&self.app.token), &pairs).await.unwrap()
    }

    /// Each of these gateways serves it, within that time; until then it is told to come again.
    pub async fn served_by(&self, nodes: &[&Node], within: Duration) {
        let until = Instant::now() + within;
        join_all(nodes.iter().map(|node| async {
            loop {
                let answer = self.read(node).await;
                if answer.status == 200 {
                    return;
                }
                assert!(answer.is_held_back(), "{} {:?} {}", answer.status, answer.headers, answer.text());
                assert!(Instant::now() < until, "after {within:?}: {}\n{}", answer.text(), events(node));
                tokio::time::sleep(LOOK).await;
            }
        }))
        .await;
    }
}

/// The id of the newest grant at a site.
pub async fn newest_grant(cluster: &Cluster, site: &str) -> String {
    let store = cluster.store.as_ref().unwrap();
    let ids = format!("SELECT encode(id, 'hex') FROM grants WHERE site = '{site}' ORDER BY id DESC LIMIT 1");
    let id = store.server.query(&store.database, &ids).await.unwrap();
    assert_eq!(id.len(), 32, "{id:?} is no grant's");
    id
}

/// Served until the end is known, and refused in time.
pub async fn refused_soon(login: &Login, node: &Node, access: &str, ended: Instant, how: &str) {
    loop {
        let asked = ended.elapsed();
        let answer = login.read_with(node, access).await;
        if answer.status == 401 {
            return;
        }
        assert_eq!(answer.status, 200, "{how}: {}", answer.text());
        assert!(asked < ENDED_WITHIN, "{how}: served {asked:?} after its end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[track_caller]
pub fn is_invalid_grant(answer: &Answer) {
    assert_eq!((answer.status.as_u16(), &answer.json().unwrap()["error"]), (400, &"invalid_grant".into()));
}

/// What a gateway logged.
pub fn events(node: &Node) -> String {
    node.gateway.log("events.log").unwrap()
}

/// The sum over gateways of a metric.
pub async fn sum(nodes: &[Node], metric: &str) -> f64 {
    try_join_all(nodes.iter().map(|node| node.gateway.metric(metric))).await.unwrap().into_iter().sum()
}

/// No grant has ended at the EHR, and no refresh token came to it a second time.
#[track_caller]
pub fn unharmed(ehr: &Running) {
    for grant in ehr.grants() {
        assert_eq!((grant.reuses, grant.ended), (0, None), "{grant:?}");
        assert!(grant.refresh_tokens.iter().all(|token| token.uses <= 1), "{grant:?}");
    }
}
