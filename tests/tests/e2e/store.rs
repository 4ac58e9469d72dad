//! The store in trouble: locked, full, cut from its answers. Nobody is logged out by it, and after it everything works
//! by itself.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use http::StatusCode;
use mantel_tests::{
    ehr::{
        contract::Vendor,
        faults::{Fault, FaultKind},
        server::Running,
    },
    harness::{
        Answer, Ehr, World,
        app::{App, Tokens, visitor},
        disk::limit_files,
        read,
    },
};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};

pub const REFRESH: &str = "token:refresh_token";
/// After a trouble's end.
pub const SOON: Duration = Duration::from_secs(10);

pub struct Login {
    pub app: App,
    pub tokens: Tokens,
}

impl Login {
    /// One whose first tokens at the EHR live so long.
    pub async fn of(world: &World, lifetime: Option<u64>) -> Self {
        let ehr = world.ehr(Vendor::Epic);
        ehr.auth.set_lifetime(lifetime);
        // Without an identity none takes the place of the one before.
        let app = App::at(&world.gateway.site_base(Vendor::Epic)).await.unwrap();
        let app = app.asking("launch/patient offline_access patient/Patient.read");
        let tokens = app.launch(ehr).await.unwrap();
        ehr.auth.set_lifetime(None);
        Self { app, tokens }
    }

    fn url(&self) -> String {
        format!("{}/Patient/{}", self.app.base, self.tokens.text("patient"))
    }

    pub async fn read(&self) -> Answer {
        read(&self.url(), self.tokens.access()).await.unwrap()
    }

    pub fn reading(&self) -> tokio::task::JoinHandle<anyhow::Result<Answer>> {
        let (url, token) = (self.url(), self.tokens.access().to_owned());
        tokio::spawn(async move { read(&url, &token).await })
    }

    /// Waits until it is served again: never a 401 on the way.
    pub async fn served(&self) {
        let began = Instant::now();
        loop {
            let answer = self.read().await;
            if answer.status == StatusCode::OK {
                return;
            }
            held_back(&answer);
            assert!(began.elapsed() < SOON, "after {:?}: {}", began.elapsed(), answer.text());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Told to come again, as a fault of ours.
#[track_caller]
pub fn held_back(answer: &Answer) {
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text());
    assert!(answer.header("retry-after").is_some(), "{:?}", answer.headers);
}

#[track_caller]
pub fn unharmed(ehr: &Running) {
    for grant in ehr.grants() {
        assert_eq!((grant.reuses, grant.ended), (0, None), "{grant:?}");
    }
}

async fn beside(world: &World) -> SqliteConnection {
    SqliteConnectOptions::new().filename(world.gateway.dir().join("mantel.db")).connect().await.unwrap()
}

pub async fn tell(world: &World, statement: &'static str) {
    let mut beside = beside(world).await;
    sqlx::query(statement).execute(&mut beside).await.unwrap();
    beside.close().await.unwrap();
}

/// Takes intents, and no answers.
const REFUSE: &str = "CREATE TRIGGER full BEFORE UPDATE OF generation ON grants BEGIN SELECT RAISE(FAIL, 'full'); END";
pub const TAKE: &str = "DROP TRIGGER full";

pub fn spill(world: &World) -> PathBuf {
    world.gateway.dir().join("mantel.db.spill")
}

pub fn answers(directory: &Path) -> Vec<PathBuf> {
    let Ok(files) = fs::read_dir(directory) else { return Vec::new() };
    files.map(|it| it.unwrap().path()).filter(|it| it.to_string_lossy().contains(".answer")).collect()
}

pub async fn spilled(world: &World, event: &str) -> f64 {
    world.gateway.metric(&format!("mantel_spill_answers_total{{event=\"{event}\"}}")).await.unwrap()
}

/// A login whose token at the EHR has just ended, and whose next one the store does not take.
pub async fn in_the_spill() -> (World, Login) {
    let world = World::start([Ehr::strict(Vendor::Epic)]).await.unwrap();
    let login = Login::of(&world, Some(2)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    tell(&world, REFUSE).await;
    let answer = login.read().await;
    assert_eq!(answer.status, StatusCode::OK, "durable in the spill, hence shared: {}", answer.text());
    assert_eq!(answers(&spill(&world)).len(), 1);
    (world, login)
}

#[tokio::test]
async fn an_answer_survives_the_store_and_a_kill() {
    let (mut world, login) = in_the_spill().await;
    assert_eq!(world.gateway.metric("mantel_spill_depth").await.unwrap(), 1.0);
    world.gateway.kill().unwrap();
    // The store is still in trouble: it serves from the spill, and says that it is not ready.
    world.gateway.launch().unwrap();
    let began = Instant::now();
    while read(&login.url(), login.tokens.access()).await.is_err() {
        assert!(began.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(login.read().await.status, StatusCode::OK);
    assert!(!world.gateway.is_ready().await);
    tell(&world, TAKE).await;
    world.gateway.wait_ready(SOON).await.unwrap();
    assert_eq!((spilled(&world, "replayed").await, answers(&spill(&world)).len()), (1.0, 0));
    let ehr = world.ehr(Vendor::Epic);
    assert_eq!(ehr.expire_access_tokens(), 1);
    login.served().await;
    unharmed(ehr);
    let [grant] = <[_; 1]>::try_from(ehr.grants()).unwrap();
    assert_eq!(grant.generation, 2, "{grant:?}");
}

#[tokio::test]
async fn a_bad_file_is_set_aside_and_the_good_one_replayed() {
    let (mut world, login) = in_the_spill().await;
    world.gateway.kill().unwrap();
    tell(&world, TAKE).await;
    let [good] = <[_; 1]>::try_from(answers(&spill(&world))).unwrap();
    let content = fs::read(&good).unwrap();
    let other = "00000000-0000-7000-8000-000000000001.1.0.answer";
    fs::write(spill(&world).join(other), &content[..content.len() / 2]).unwrap();
    world.gateway.spawn().await.unwrap();
    assert_eq!((spilled(&world, "bad").await, spilled(&world, "replayed").await), (1.0, 1.0));
    assert!(spill(&world).join("bad").join(other).is_file());
    let log = world.gateway.log("events.log").unwrap();
    assert!(log.contains(other) && log.contains("expected a whole answer"), "{log}");
    assert_eq!(login.read().await.status, StatusCode::OK);
    unharmed(world.ehr(Vendor::Epic));
}

#[tokio::test]
async fn an_answer_sealed_by_an_unknown_key_refuses_the_start() {
    let (mut world, login) = in_the_spill().await;
    world.gateway.kill().unwrap();
    tell(&world, TAKE).await;
    let [good] = <[_; 1]>::try_from(answers(&spill(&world))).unwrap();
    let content = fs::read(&good).unwrap();
    // The key's id follows what tells a spill file, its format, the seal's version and the id's length.
    let mut foreign = content.clone();
    foreign[11] ^= 1;
    fs::write(&good, foreign).unwrap();
    let fault = world.gateway.spawn().await.unwrap_err().to_string();
    assert!(fault.contains("is sealed by key") && fault.contains("`store.seal`"), "{fault}");
    fs::write(&good, content).unwrap();
    world.gateway.spawn().await.unwrap();
    assert_eq!(login.read().await.status, StatusCode::OK);
    unharmed(world.ehr(Vendor::Epic));
}

#[tokio::test]
async fn two_gateways_do_not_share_a_spill() {
    let world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| fs::read_to_string(world.gateway.dir().join(name)).unwrap();
    let path = spill(&world);
    let other = file("mantel.toml").replace("[store]", &format!("[store]\nspill = {:?}", path.display().to_string()));
    fs::write(dir.path().join("mantel.toml"), other).unwrap();
    fs::copy(world.gateway.dir().join("seal"), dir.path().join("seal")).unwrap();
    let output = Command::new(mantel_tests::harness::binary().unwrap())
        .args(["serve", "--config"])
        .arg(dir.path())
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && log.contains("in use by another gateway process"), "{log}");
}

/// Ten seconds in which nothing can be written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_slow_by_ten_seconds_costs_no_login() {
    let world = World::start([Ehr::strict(Vendor::Epic)]).await.unwrap();
    let ehr = world.ehr(Vendor::Epic);
    let [fresh, due, expired, flying] = [
        Login::of(&world, None).await,
        Login::of(&world, Some(20)).await,
        Login::of(&world, Some(5)).await,
        Login::of(&world, Some(3)).await,
    ];
    tokio::time::sleep(Duration::from_secs(3)).await;
    // One refresh is at the EHR when the trouble begins.
    ehr.faults.add(Fault::new(REFRESH, FaultKind::Hold).times(1));
    let waiting = flying.reading();
    ehr.faults.wait_held(1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut lock = beside(&world).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut lock).await.unwrap();
    let began = Instant::now();
    ehr.faults.release();
    let answer = waiting.await.unwrap().unwrap();
    assert_eq!(answer.status, StatusCode::OK, "its new token is in the spill: {}", answer.text());
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert_eq!(answers(&spill(&world)).len(), 1);
    assert_eq!(flying.read().await.status, StatusCode::OK);
    assert_eq!(fresh.read().await.status, StatusCode::OK);
    assert_eq!(due.read().await.status, StatusCode::OK, "the old one lives");
    // Nothing is sent for it unless its intent is stored.
    held_back(&expired.read().await);
    let answer = fresh.app.try_refresh(&[("refresh_token", fresh.tokens.refresh())]).await.unwrap();
    let error = answer.json().unwrap()["error"].clone();
    assert_eq!((answer.status.as_u16(), error), (503, "temporarily_unavailable".into()));
    assert!(!world.gateway.is_ready().await);
    tokio::time::sleep_until((began + Duration::from_secs(10)).into()).await;
    sqlx::query("ROLLBACK").execute(&mut lock).await.unwrap();
    world_serves(&world, [&fresh, &due, &expired, &flying]).await;
}

/// After a trouble: everything works by itself, and each login has lived through it.
async fn world_serves(world: &World, logins: [&Login; 4]) {
    let began = Instant::now();
    for login in logins {
        login.served().await;
    }
    while world.gateway.metric("mantel_spill_depth").await.unwrap() > 0.0 || !world.gateway.is_ready().await {
        assert!(began.elapsed() < SOON, "the spill is not empty");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(answers(&spill(world)).is_empty());
    for login in logins {
        login.app.refresh(login.tokens.refresh()).await.unwrap();
    }
    let ehr = world.ehr(Vendor::Epic);
    assert!(ehr.expire_access_tokens() >= 4);
    for login in logins {
        login.served().await;
    }
    unharmed(ehr);
}

/// No file can grow, neither the database nor the spill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_costs_no_login() {
    let world = World::start([Ehr::strict(Vendor::Epic)]).await.unwrap();
    let ehr = world.ehr(Vendor::Epic);
    let [fresh, due, expired, flying] = [
        Login::of(&world, None).await,
        Login::of(&world, Some(30)).await,
        Login::of(&world, Some(3)).await,
        Login::of(&world, Some(3)).await,
    ];
    tokio::time::sleep(Duration::from_secs(3)).await;
    ehr.faults.add(Fault::new(REFRESH, FaultKind::Hold).times(1));
    let waiting = flying.reading();
    ehr.faults.wait_held(1).await;
    let pid = world.gateway.pid().unwrap();
    limit_files(pid, true).unwrap();
    ehr.faults.release();
    // Its answer is in memory alone: who comes now is told to come again.
    let began = Instant::now();
    while world.gateway.metric("mantel_store_faults_total").await.unwrap() < 1.0 {
        assert!(began.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    held_back(&flying.read().await);
    held_back(&expired.read().await);
    assert_eq!(fresh.read().await.status, StatusCode::OK);
    assert_eq!(due.read().await.status, StatusCode::OK);
    let answer = fresh.app.try_refresh(&[("refresh_token", fresh.tokens.refresh())]).await.unwrap();
    assert_eq!(answer.json().unwrap()["error"], "temporarily_unavailable", "{}", answer.status);
    // A launch ends at the app, which is told to try again.
    let mut browser = visitor();
    let page = browser.get(&fresh.app.url(&[]).unwrap()).await.unwrap();
    assert!(
        page.redirect_param("error").as_deref() == Some("temporarily_unavailable") || page.status == 503,
        "{} {}",
        page.status,
        page.text()
    );
    assert!(!world.gateway.is_ready().await);
    limit_files(pid, false).unwrap();
    let answer = waiting.await.unwrap().unwrap();
    assert_eq!(answer.status, StatusCode::OK, "who waited has waited for it: {}", answer.text());
    world_serves(&world, [&fresh, &due, &expired, &flying]).await;
}
