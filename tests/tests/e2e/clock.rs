//! The machine's clock is wrong by an hour, in mid-life and at a start, and is set right again: nobody is logged
//! out, and the EHR notices nothing.

use std::time::{Duration, Instant};

use mantel_tests::{
    ehr::{
        auth::client::{Client, ClientAuth, ClientKeys},
        contract::Vendor,
        faults::{Fault, FaultKind},
        visitor::{Page, Visitor},
    },
    harness::{
        APP, Answer, Ehr, SCOPES,
        app::{App, Tokens, through, visitor},
        cluster::{Cluster, Hospital, Plan, StoreKind, clock_library},
        get, read,
    },
};
use url::Url;

use super::registrations::pem;

const REFRESH: &str = "token:refresh_token";
const HOUR: i32 = 3600;
const EPIC: &str = "epic-strict";

async fn world(ehrs: impl IntoIterator<Item = Ehr>) -> Cluster {
    assert!(clock_library().is_some(), "`faketime` is missing: tests/run.sh --install installs it");
    let plan = Plan { own_clocks: true, ..Plan::new(1, StoreKind::Sqlite, ehrs.into_iter().collect()) };
    Cluster::start(plan).await.unwrap()
}

/// The app signs in at Epic with a key: an assertion carries our time.
async fn sign_with_keys(cluster: &mut Cluster) {
    let (public, dir) = (cluster.public.clone(), cluster.nodes[0].gateway.dir().to_owned());
    std::fs::write(dir.join("epic.pem"), pem()).unwrap();
    let site = dir.join(format!("sites.d/{EPIC}.toml"));
    let text = std::fs::read_to_string(&site).unwrap();
    let secret = text.lines().find(|line| line.starts_with("client_auth")).unwrap().to_owned();
    let text = text.replacen(&secret, "client_auth = { method = \"private_key_jwt\", keys = \"epic-test\" }", 1);
    let keys = "\n[keys.epic-test]\nalg = \"RS384\"\nprivate = [{ file = \"../epic.pem\", state = \"sign\" }]\n";
    std::fs::write(&site, text + keys).unwrap();
    let callback = format!("{public}/oauth/callback/{APP}-{EPIC}");
    let auth = ClientAuth::PrivateKeyJwt { keys: ClientKeys::JwksUrl(format!("{public}/keys/epic-test.json")) };
    let client = Client {
        scopes: SCOPES.map(str::to_owned).to_vec(),
        ..Client::new(&format!("{APP}-at-{EPIC}"), auth, &[&callback])
    };
    cluster.hospital(EPIC).unwrap().ehr.auth.register(client).unwrap();
    restart(cluster, None).await;
}

/// Another process, whose machine's clock is so many seconds off.
async fn restart(cluster: &mut Cluster, off: Option<i32>) {
    let node = &mut cluster.nodes[0];
    node.gateway.kill().unwrap();
    if let Some(off) = off {
        node.set_clock(off).unwrap();
    }
    node.gateway.launch().unwrap();
    node.gateway.wait_ready(Duration::from_secs(20)).await.unwrap();
}

async fn readiness(cluster: &Cluster) -> Answer {
    get(&format!("{}/health/ready", cluster.nodes[0].gateway.admin), &[]).await.unwrap()
}

/// An app with its tokens.
struct Login {
    app: App,
    tokens: Tokens,
}

impl Login {
    /// Without an identity, so that none takes the place of the one before.
    async fn at(cluster: &Cluster, hospital: &Hospital) -> Self {
        let app = App::at(&cluster.base(&hospital.name)).await.unwrap();
        let app = app.asking("launch/patient offline_access patient/Patient.read");
        let tokens = app.launch(&hospital.ehr).await.unwrap();
        Self { app, tokens }
    }

    async fn read(&self) -> Answer {
        read(&format!("{}/Patient/{}", self.app.base, self.tokens.text("patient")), self.tokens.access()).await.unwrap()
    }

    #[track_caller]
    fn served(&self, answer: &Answer) {
        assert_eq!(answer.status, 200, "{}: {}", self.app.base, answer.text());
    }

    async fn works(&mut self) {
        self.served(&self.read().await);
        self.tokens = self.app.refresh(self.tokens.refresh()).await.unwrap();
        self.served(&self.read().await);
    }
}

/// An authorization whose user is at the EHR's sign-in.
struct AtEhr {
    app: App,
    visitor: Visitor,
    page: Page,
}

/// One that has come back to the app with a code.
struct Returned {
    app: App,
    back: Url,
}

impl AtEhr {
    async fn begin(cluster: &Cluster, hospital: &Hospital) -> Self {
        let app = App::at(&cluster.base(&hospital.name)).await.unwrap();
        let mut visitor = visitor();
        let page = visitor.get(&app.url(&[]).unwrap()).await.unwrap();
        assert!(page.redirect().is_none(), "{}", page.url);
        Self { app, visitor, page }
    }

    async fn go_on(mut self, hospital: &Hospital) -> Returned {
        let back = through(&mut self.visitor, &hospital.ehr, self.page).await.unwrap();
        Returned { app: self.app, back }
    }
}

impl Returned {
    async fn redeem(self) -> Login {
        let tokens = self.app.redeem(&self.app.code(&self.back).unwrap()).await.unwrap();
        Login { app: self.app, tokens }
    }
}

fn refreshes(hospital: &Hospital) -> u64 {
    hospital.ehr.counters.get(REFRESH)
}

#[track_caller]
fn unharmed(hospital: &Hospital) {
    for grant in hospital.ehr.grants() {
        assert_eq!((grant.reuses, grant.ended), (0, None), "{grant:?}");
    }
}

/// Steps in mid-life, and back.
async fn an_hour_off(seconds: i32) {
    let ehrs = [Ehr::strict(Vendor::Epic), Ehr::strict(Vendor::Oracle), Ehr::new(Vendor::Athena)];
    let mut cluster = world(ehrs).await;
    sign_with_keys(&mut cluster).await;
    let (cluster, node) = (&cluster, &cluster.nodes[0]);
    let hospitals: Vec<_> = cluster.hospitals.values().collect();
    let epic = cluster.hospital(EPIC).unwrap();

    let (mut logins, mut at_ehr, mut returned) = (Vec::new(), Vec::new(), Vec::new());
    for hospital in &hospitals {
        logins.push(Login::at(cluster, hospital).await);
        at_ehr.push(AtEhr::begin(cluster, hospital).await);
    }
    for hospital in &hospitals {
        returned.push(AtEhr::begin(cluster, hospital).await.go_on(hospital).await);
    }
    for (off, by) in [(seconds, seconds), (0, -seconds)] {
        let steps = format!("mantel_clock_steps_total{{direction=\"{}\"}}", if by > 0 { "forward" } else { "back" });
        assert_eq!(node.gateway.metric(&steps).await.unwrap(), 0.0);
        node.set_clock(off).unwrap();
        node.clock_seen(off).await.unwrap();
        assert_eq!(node.gateway.metric(&steps).await.unwrap(), 1.0);
        let said = readiness(cluster).await;
        assert_eq!((said.status.as_u16(), said.text().contains("it was stepped")), (200, off != 0), "{}", said.text());

        // What lives and what is under way goes on, at whichever step it is.
        for login in &mut logins {
            login.works().await;
        }
        for coming in std::mem::take(&mut returned) {
            coming.redeem().await.works().await;
        }
        // The same user: its grant takes the place of the one before.
        for (hospital, coming) in hospitals.iter().zip(std::mem::take(&mut at_ehr)) {
            coming.go_on(hospital).await.redeem().await.works().await;
        }
        // And what begins now.
        for hospital in &hospitals {
            logins.push(Login::at(cluster, hospital).await);
            at_ehr.push(AtEhr::begin(cluster, hospital).await);
            returned.push(AtEhr::begin(cluster, hospital).await.go_on(hospital).await);
        }
        for login in &mut logins {
            login.works().await;
        }
        assert_eq!(hospitals.iter().map(|it| refreshes(it)).collect::<Vec<_>>(), [0; 3], "nothing of an EHR's is due");
    }

    // A refresh at the EHR carries an assertion that it takes, whatever the machine's clock says.
    let mut of_epic: Vec<_> = logins.into_iter().filter(|login| login.app.base.contains(EPIC)).collect();
    for off in [seconds, 0] {
        node.set_clock(off).unwrap();
        node.clock_seen(off).await.unwrap();
        epic.ehr.expire_access_tokens();
        epic.ehr.counters.reset();
        for login in &of_epic {
            login.served(&login.read().await);
            login.served(&login.read().await);
        }
        assert_eq!(refreshes(epic), of_epic.len() as u64, "one for each");
        // A 401 is believed once a minute for a grant.
        of_epic = vec![Login::at(cluster, epic).await];
    }
    hospitals.iter().for_each(|hospital| unharmed(hospital));
    assert!(epic.ehr.auth.refused().is_empty(), "{:?}", epic.ehr.auth.refused());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hour_forward_and_back_again_costs_no_login_and_no_refresh() {
    an_hour_off(HOUR).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hour_back_and_forward_again_costs_no_login_and_no_refresh() {
    an_hour_off(-HOUR).await;
}

/// NTP sets a clock right that was wrong at the start: the first answer of an EHR confirms it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_right_is_believed_with_the_first_answer_of_an_ehr() {
    for off in [HOUR, -HOUR] {
        let mut cluster = world([Ehr::strict(Vendor::Epic)]).await;
        sign_with_keys(&mut cluster).await;
        let login = Login::at(&cluster, cluster.hospital(EPIC).unwrap()).await;
        restart(&mut cluster, Some(off)).await;
        let (node, epic) = (&cluster.nodes[0], cluster.hospital(EPIC).unwrap());
        // By the wrong clock an assertion is refused: that says nothing of the user.
        let mut login = login;
        login.tokens = login.app.refresh(login.tokens.refresh()).await.unwrap();
        epic.ehr.expire_access_tokens();
        // Not even where the EHR names it as a dead refresh token.
        epic.ehr.faults.add(Fault::new(REFRESH, FaultKind::Burnt).times(1));
        let answer = login.read().await;
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert_eq!(epic.ehr.faults.left().len(), 0);
        let outcome = "mantel_refreshes_total{outcome=\"misconfigured\",vendor=\"epic\"}";
        assert_eq!(node.gateway.metric(outcome).await.unwrap(), 1.0);
        assert_eq!(node.gateway.metric("mantel_grants{state=\"live\"}").await.unwrap(), 1.0);
        let ahead = node.gateway.metric("mantel_clock_ehr_ahead_seconds").await.unwrap();
        assert!((ahead + f64::from(off)).abs() < 10.0, "{ahead}");

        node.set_clock(0).unwrap();
        node.clock_seen(-off).await.unwrap();
        let began = Instant::now();
        let new = loop {
            // Whoever signs in now meets the old time once, at most.
            let app = App::at(&cluster.base(EPIC)).await.unwrap();
            match app.launch(&epic.ehr).await {
                Ok(tokens) => break Login { app, tokens },
                Err(error) => assert!(began.elapsed() < Duration::from_secs(20), "{error:#}"),
            }
        };
        new.served(&new.read().await);
        // Its id_token is of the right time.
        let claims = new.tokens.claims().unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert!(claims["iat"].as_u64().unwrap().abs_diff(now) < 60, "{claims}");
        unharmed(epic);
    }
}

/// Any answer of an EHR does, so that the first assertion after the step is right already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_is_witness_enough() {
    let mut cluster = world([Ehr::strict(Vendor::Epic)]).await;
    sign_with_keys(&mut cluster).await;
    let login = Login::at(&cluster, cluster.hospital(EPIC).unwrap()).await;
    restart(&mut cluster, Some(-HOUR)).await;
    let (node, epic) = (&cluster.nodes[0], cluster.hospital(EPIC).unwrap());
    node.set_clock(0).unwrap();
    node.clock_seen(HOUR).await.unwrap();
    login.served(&login.read().await);
    let app = App::at(&cluster.base(EPIC)).await.unwrap();
    let tokens = app.launch(&epic.ehr).await.unwrap();
    Login { app, tokens }.works().await;
    assert!(epic.ehr.auth.refused().is_empty(), "{:?}", epic.ehr.auth.refused());
}

/// The clock was set back while no process ran, and the EHR's token has ended since: how old it is cannot be known,
/// so the EHR's 401 is believed. (Oracle's is not within a minute of a refresh, and the app got 403.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_an_hour_behind_serves_by_the_ehrs_word() {
    let mut cluster = world([Ehr::strict(Vendor::Oracle)]).await;
    let oracle = cluster.hospitals.keys().next().unwrap().clone();
    let ehr = &cluster.hospital(&oracle).unwrap().ehr;
    ehr.auth.set_lifetime(Some(20));
    let login = Login::at(&cluster, cluster.hospital(&oracle).unwrap()).await;
    login.served(&login.read().await);
    ehr.auth.set_lifetime(None);
    // All but the gateway's clock goes on: Oracle refuses a second refresh within a minute.
    ehr.advance(61_000);
    restart(&mut cluster, Some(-HOUR)).await;
    let said = readiness(&cluster).await;
    assert!(said.text().contains("behind the latest that the store had seen"), "{}", said.text());
    login.served(&login.read().await);
    assert_eq!(refreshes(cluster.hospital(&oracle).unwrap()), 1);
    unharmed(cluster.hospital(&oracle).unwrap());
}

/// By a clock that is an hour ahead our access tokens have ended, and are refreshed; nothing is forgotten, so
/// that those of before serve again by the right clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_an_hour_ahead_forgets_nothing() {
    let mut cluster = world([Ehr::strict(Vendor::Epic)]).await;
    let login = Login::at(&cluster, cluster.hospital(EPIC).unwrap()).await;
    let other = Login::at(&cluster, cluster.hospital(EPIC).unwrap()).await;
    restart(&mut cluster, Some(HOUR + 60)).await;
    assert_eq!(login.read().await.status, 401);
    let tokens = login.app.refresh(login.tokens.refresh()).await.unwrap();
    let login = Login { app: login.app, tokens };
    login.served(&login.read().await);
    // The sweep comes with the start, and has been when the time is in the store.
    restart(&mut cluster, Some(0)).await;
    let behind = cluster.nodes[0].gateway.metric("mantel_clock_behind_store_seconds").await.unwrap();
    assert!((f64::from(HOUR)..f64::from(HOUR + 120)).contains(&behind), "{behind}");
    other.served(&other.read().await);
    login.served(&login.read().await);
    unharmed(cluster.hospital(EPIC).unwrap());
}
