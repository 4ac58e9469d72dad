//! Changing the key that seals the store, by the commands and among processes, while apps work; and records that are
//! sealed by a key which is not there.

use std::{
    path::Path,
    process::{Output, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use mantel_tests::{
    ehr::contract::Vendor,
    harness::{
        Ehr, World,
        app::{App, Tokens},
        binary, get,
        postgres::Postgres,
        read,
    },
    ports::free_port,
};
use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

pub const OLD: &str = "{ id = \"test\", file = \"seal\" }";
pub const NEW: &str = "{ id = \"next\", file = \"seal-next\" }";

pub fn mantel(args: &[&str], dir: &Path) -> Command {
    let mut command = Command::new(binary().unwrap());
    command.args(args).arg("--config").arg(dir).stdin(Stdio::null()).kill_on_drop(true);
    command
}

pub async fn told(args: &[&str], dir: &Path) -> (bool, String) {
    let Output { status, stdout, stderr } = mantel(args, dir).output().await.unwrap();
    (status.success(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

/// Makes the new key, as the README says.
pub async fn new_key(dir: &Path) {
    let file = dir.join("seal-next");
    let made = Command::new(binary().unwrap()).args(["keys", "new-seal"]).arg(&file).output().await.unwrap();
    assert!(made.status.success(), "{made:?}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let key = std::fs::read(&file).unwrap();
    assert_eq!(key.len(), 32);
    // Never over another.
    let again = Command::new(binary().unwrap()).args(["keys", "new-seal"]).arg(&file).output().await.unwrap();
    assert!(!again.status.success() && std::fs::read(&file).unwrap() == key, "{again:?}");
}

/// Puts other keys into `store.seal`.
pub fn list_keys(dir: &Path, keys: &[&str]) {
    let file = dir.join("mantel.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let lines = text.lines().map(|line| match line.starts_with("seal = ") {
        true => format!("seal = [{}]", keys.join(", ")),
        false => line.to_owned(),
    });
    std::fs::write(&file, lines.collect::<Vec<_>>().join("\n")).unwrap();
}

pub async fn restart(world: &mut World, keys: &[&str]) {
    assert_eq!(world.gateway.terminate().await.unwrap(), Some(0));
    list_keys(world.gateway.dir(), keys);
    world.gateway.spawn().await.unwrap();
}

fn url(app: &App, tokens: &Tokens) -> String {
    format!("{}/Patient/{}", app.base, tokens.text("patient"))
}

/// Works as apps do until it is told to stop: a read that needs a refresh at the EHR, then reads and refreshes of our
/// own.
async fn work(world: &World, vendor: Vendor, app: &App, tokens: &Tokens, stop: &AtomicBool) -> (usize, Tokens) {
    let (mut tokens, mut rounds) = (tokens.clone(), 0);
    world.ehr(vendor).expire_access_tokens();
    while !stop.load(Ordering::Relaxed) || rounds == 0 {
        let answer = read(&url(app, &tokens), tokens.access()).await.unwrap();
        assert_eq!(answer.status, 200, "{vendor:?} round {rounds}: {}", answer.text());
        let renewed = app.refresh(tokens.refresh()).await.unwrap();
        tokens.0.extend(renewed.0);
        rounds += 1;
    }
    (rounds, tokens)
}

#[tokio::test]
async fn the_seal_key_changes_while_apps_work_and_through_kills() {
    let vendors = [Vendor::Generic, Vendor::Epic];
    let worlds = [Ehr::new(Vendor::Generic), Ehr::strict(Vendor::Epic)];
    let quick = |ehr: Ehr| ehr.site("tokens.min_refresh_interval = \"0s\"");
    let mut world = World::start(worlds.map(quick)).await.unwrap();
    let dir = world.gateway.dir().to_owned();
    let mut apps = Vec::new();
    for vendor in vendors {
        let app = App::at(&world.gateway.site_base(vendor)).await.unwrap();
        let tokens = app.launch(world.ehr(vendor)).await.unwrap();
        apps.push((vendor, app, tokens));
    }
    // Authorizations that somebody has begun: enough records that a kill comes in the middle.
    let begun = apps[0].1.url(&[]).unwrap();
    for _ in 0..15 {
        assert!(join_all((0..20).map(|_| get(&begun, &[]))).await.iter().all(|it| it.as_ref().unwrap().status == 303));
    }
    new_key(&dir).await;
    restart(&mut world, &[NEW, OLD]).await;

    // Killed in the middle, and again.
    let mut cut = 0;
    for kill in 0..3 {
        let mut rotating =
            mantel(&["keys", "rotate-seal"], &dir).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(rotating.stdout.take().unwrap()).lines();
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("sealed anew") {
                break;
            }
        }
        world.gateway.kill().unwrap();
        if !rotating.wait().await.unwrap().success() {
            cut += 1;
        }
        world.gateway.spawn().await.unwrap();
        for (vendor, app, tokens) in &apps {
            let answer = read(&url(app, tokens), tokens.access()).await.unwrap();
            assert_eq!(answer.status, 200, "kill {kill}, {vendor:?}: {}", answer.text());
        }
    }
    assert!(cut > 0, "each kill came too late");

    // To its end, while apps work.
    let stop = AtomicBool::new(false);
    let working = apps.iter().map(|(vendor, app, tokens)| work(&world, *vendor, app, tokens, &stop));
    let rotating = async {
        let done = told(&["keys", "rotate-seal"], &dir).await;
        stop.store(true, Ordering::Relaxed);
        done
    };
    let (worked, (done, text)) = tokio::join!(join_all(working), rotating);
    assert!(done, "{text}\n{}", world.gateway.log("events.log").unwrap());
    assert!(text.contains("\"test\" is not needed any more") && text.contains("sealed by \"next\""), "{text}");
    for (n, (rounds, tokens)) in worked.into_iter().enumerate() {
        assert!(rounds > 0);
        apps[n].2 = tokens;
    }
    let (done, text) = told(&["keys", "list"], &dir).await;
    let retired = text.lines().any(|line| line.contains("test ") && line.contains("retired"));
    assert!(done && retired && text.contains("2 grants"), "{text}");
    // Again, there is nothing to do.
    let (done, text) = told(&["keys", "rotate-seal"], &dir).await;
    assert!(done && !text.contains("anew"), "{text}");

    // The old key is gone, and nobody logs in again.
    std::fs::remove_file(dir.join("seal")).unwrap();
    restart(&mut world, &[NEW]).await;
    for (vendor, app, tokens) in &apps {
        let stop = AtomicBool::new(true);
        assert_eq!(work(&world, *vendor, app, tokens, &stop).await.0, 1);
        assert!(world.ehr(*vendor).grants().iter().all(|grant| grant.ended.is_none() && grant.reuses == 0));
    }
    let events = world.gateway.log("events.log").unwrap();
    assert!(events.contains("RotateSeal"), "what an operator did is in the log");
}

#[tokio::test]
async fn the_seal_key_changes_while_no_gateway_runs() {
    let mut world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let dir = world.gateway.dir().to_owned();
    let app = App::at(&world.gateway.site_base(Vendor::Generic)).await.unwrap();
    let tokens = app.launch(world.ehr(Vendor::Generic)).await.unwrap();
    new_key(&dir).await;
    // The gateway has the file, and whoever does not find its socket is told so.
    let elsewhere = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(dir.join("mantel.toml")).unwrap();
    let config = config
        .replace("sandbox = true", "sandbox = true\nadmin_socket = \"other.sock\"")
        .replace("sqlite://mantel.db", &format!("sqlite://{}/mantel.db", dir.display()));
    std::fs::write(elsewhere.path().join("mantel.toml"), config).unwrap();
    std::fs::copy(dir.join("seal"), elsewhere.path().join("seal")).unwrap();
    let (done, text) = told(&["keys", "rotate-seal"], elsewhere.path()).await;
    assert!(!done && text.contains("other.sock") && text.contains("in use by another gateway process"), "{text}");

    assert_eq!(world.gateway.terminate().await.unwrap(), Some(0));
    assert!(!dir.join("mantel.db.sock").exists());
    // Without the key that it is sealed by nothing is touched.
    list_keys(&dir, &[NEW]);
    let (done, text) = told(&["keys", "rotate-seal"], &dir).await;
    assert!(!done && text.contains("\"test\"") && text.contains("`store.seal`"), "{text}");
    let refused = world.gateway.spawn().await.unwrap_err().to_string();
    assert!(
        refused.contains("\"test\\\"") || refused.contains("\"test\"") || refused.contains("\\\"test\\\""),
        "{refused}"
    );
    list_keys(&dir, &[NEW, OLD]);
    let (done, text) = told(&["keys", "rotate-seal"], &dir).await;
    assert!(done && text.contains("\"test\" is not needed any more"), "{text}");
    let (done, text) = told(&["keys", "list"], &dir).await;
    assert!(done && text.contains("next") && text.contains("writes"), "{text}");
    list_keys(&dir, &[NEW]);
    world.gateway.spawn().await.unwrap();
    let answer = read(&url(&app, &tokens), tokens.access()).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    app.refresh(tokens.refresh()).await.unwrap();
}

/// A store with one grant that is sealed by a key which is not there: an operator has taken it out too early.
#[tokio::test]
async fn a_grant_under_a_missing_key_is_unavailable_and_never_dead() {
    let mut world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let dir = world.gateway.dir().to_owned();
    let app = App::at(&world.gateway.site_base(Vendor::Generic)).await.unwrap();
    let secret_app = App::with_secret(&app.base).await.unwrap();
    let readable = app.launch(world.ehr(Vendor::Generic)).await.unwrap();
    new_key(&dir).await;
    restart(&mut world, &[NEW, OLD]).await;
    let sealed = secret_app.launch(world.ehr(Vendor::Generic)).await.unwrap();
    assert_eq!(world.gateway.terminate().await.unwrap(), Some(0));
    // No command does this: it refuses while records are sealed by it.
    let store = dir.join("mantel.db");
    let mut beside = SqliteConnectOptions::new().filename(&store).connect().await.unwrap();
    sqlx::query("UPDATE seal_keys SET state = CASE id WHEN 'next' THEN 'retired' ELSE 'writing' END")
        .execute(&mut beside)
        .await
        .unwrap();
    beside.close().await.unwrap();
    list_keys(&dir, &[OLD]);
    world.gateway.spawn().await.unwrap();
    for _ in 0..2 {
        let answer = read(&url(&app, &readable), readable.access()).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer = read(&url(&secret_app, &sealed), sealed.access()).await.unwrap();
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.header("retry-after").is_some());
        let answer = secret_app.try_refresh(&[("refresh_token", sealed.refresh())]).await.unwrap();
        assert_eq!(answer.status, 503, "{}", answer.text());
    }
    assert_eq!(world.gateway.metric("mantel_grants{state=\"ended\"}").await.unwrap(), 0.0);
    app.refresh(readable.refresh()).await.unwrap();
    app.launch(world.ehr(Vendor::Generic)).await.unwrap();
    let events = world.gateway.log("events.log").unwrap();
    assert!(events.contains("sealed by the key") && events.contains("next"), "the fault is named: {events}");
    let (_, text) = told(&["keys", "list"], &dir).await;
    assert!(text.lines().any(|line| line.contains("next ") && line.contains("retired")), "{text}");
    // The key is put back, and nobody logs in again.
    restart(&mut world, &[OLD, NEW]).await;
    let answer = read(&url(&secret_app, &sealed), sealed.access()).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    secret_app.refresh(sealed.refresh()).await.unwrap();
}

#[tokio::test]
async fn an_operator_ends_a_grant() {
    let mut world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let dir = world.gateway.dir().to_owned();
    let app = App::at(&world.gateway.site_base(Vendor::Generic)).await.unwrap();
    let tokens = app.launch(world.ehr(Vendor::Generic)).await.unwrap();
    assert_eq!(read(&url(&app, &tokens), tokens.access()).await.unwrap().status, 200);
    // Which writes what is left of the access log.
    assert_eq!(world.gateway.terminate().await.unwrap(), Some(0));
    world.gateway.spawn().await.unwrap();
    let access = world.gateway.log("access.log").unwrap();
    let line = access.lines().rev().find(|line| line.contains("\"grant\"")).unwrap_or_else(|| panic!("{access}"));
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let grant = line["grant"].as_str().unwrap();
    let (done, text) = told(&["grants", "end", grant], &dir).await;
    assert!(done && text.contains("has ended"), "{text}");
    assert_eq!(read(&url(&app, &tokens), tokens.access()).await.unwrap().status, 401);
    let refused = app.try_refresh(&[("refresh_token", tokens.refresh())]).await.unwrap();
    assert_eq!((refused.status.as_u16(), &refused.json().unwrap()["error"]), (400, &"invalid_grant".into()));
    let (done, text) = told(&["grants", "end", grant], &dir).await;
    assert!(!done && text.contains("no living grant"), "{text}");
}

#[tokio::test]
async fn only_its_owner_may_use_the_admin_socket() {
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
    let mut world = World::start([Ehr::new(Vendor::Generic)]).await.unwrap();
    let socket = world.gateway.dir().join("mantel.db.sock");
    let mode = |path: &Path| std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert!(std::fs::symlink_metadata(&socket).unwrap().file_type().is_socket());
    assert_eq!(mode(&socket), 0o600);
    // What a killed process left is replaced; what is no socket is not.
    world.gateway.kill().unwrap();
    assert!(socket.exists());
    world.gateway.spawn().await.unwrap();
    assert!(told(&["keys", "list"], world.gateway.dir()).await.0);
    assert_eq!(world.gateway.terminate().await.unwrap(), Some(0));
    std::fs::write(&socket, "a text").unwrap();
    let refused = world.gateway.spawn().await.unwrap_err().to_string();
    assert!(refused.contains("server.admin_socket"), "{refused}");
    assert_eq!(std::fs::read(&socket).unwrap(), b"a text");
    let left: Vec<_> = std::fs::read_dir(world.gateway.dir()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains(".sock.")), "{left:?}");
}

// ---- three processes -------------------------------------------------------------------------------------

/// A further process of the same gateway.
pub struct Replica {
    pub dir: tempfile::TempDir,
    pub base: String,
    pub admin: String,
    child: Option<Child>,
}

impl Replica {
    /// The configuration of `of`, at ports of its own.
    pub fn of(of: &Path, vendor: Vendor) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sites.d")).unwrap();
        let site = format!("sites.d/{}.toml", vendor.text());
        for name in ["mantel.toml", "seal", "seal-next", &site] {
            if of.join(name).exists() {
                std::fs::copy(of.join(name), dir.path().join(name)).unwrap();
            }
        }
        let (port, admin) = (free_port().unwrap(), free_port().unwrap());
        let text = std::fs::read_to_string(dir.path().join("mantel.toml")).unwrap();
        let lines = text.lines().map(|line| match line.split(' ').next() {
            Some("listen") => format!("listen = \"127.0.0.1:{port}\""),
            Some("admin_listen") => format!("admin_listen = \"127.0.0.1:{admin}\""),
            _ => line.to_owned(),
        });
        std::fs::write(dir.path().join("mantel.toml"), lines.collect::<Vec<_>>().join("\n")).unwrap();
        let base = format!("http://127.0.0.1:{port}/sites/{}/fhir/r4", vendor.text());
        Self { dir, base, admin: format!("http://127.0.0.1:{admin}"), child: None }
    }

    pub async fn start(&mut self, keys: &[&str]) {
        self.stop().await;
        list_keys(self.dir.path(), keys);
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("events.log")).unwrap();
        let child = mantel(&["serve"], self.dir.path()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.child = Some(child);
        for _ in 0..400 {
            if get(&format!("{}/health/ready", self.admin), &[]).await.is_ok_and(|answer| answer.status == 200) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("not ready: {}", std::fs::read_to_string(self.dir.path().join("events.log")).unwrap());
    }

    pub async fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = child.id().unwrap().to_string();
            Command::new("kill").args(["-TERM", &pid]).status().await.unwrap();
            assert!(child.wait().await.unwrap().success());
        }
    }

    /// `kill -9`.
    pub async fn kill(&mut self) {
        self.child.as_mut().unwrap().kill().await.unwrap();
        self.child = None;
    }

    pub async fn reads(&self, tokens: &Tokens, when: &str) {
        let url = format!("{}/Patient/{}", self.base, tokens.text("patient"));
        let answer = read(&url, tokens.access()).await.unwrap();
        let events = || std::fs::read_to_string(self.dir.path().join("events.log")).unwrap();
        assert_eq!(answer.status, 200, "{when}: {}\n{}", answer.text(), events());
    }
}

/// Moves a world's gateway to a PostgreSQL database of its own, whose URL this is.
pub async fn onto_postgres(world: &mut World) -> String {
    let postgres = Postgres::shared().await.unwrap();
    let database = postgres.database().await.unwrap();
    assert_eq!(world.gateway.terminate().await.unwrap(), Some(0));
    let file = world.gateway.dir().join("mantel.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace("url = \"sqlite://mantel.db\"", &format!("url = {database:?}"));
    let text = text.replace("sandbox = true", "sandbox = true\nadmin_socket = \"admin.sock\"");
    std::fs::write(file, text).unwrap();
    world.gateway.spawn().await.unwrap();
    database
}

#[tokio::test]
async fn the_seal_key_changes_over_three_processes() {
    let vendor = Vendor::Generic;
    let mut world = World::start([Ehr::new(vendor)]).await.unwrap();
    let dir = world.gateway.dir().to_owned();
    onto_postgres(&mut world).await;
    new_key(&dir).await;
    let (mut two, mut three) = (Replica::of(&dir, vendor), Replica::of(&dir, vendor));
    tokio::join!(two.start(&[OLD]), three.start(&[OLD]));
    let app = App::at(&world.gateway.site_base(vendor)).await.unwrap();
    let first = app.launch(world.ehr(vendor)).await.unwrap();
    two.reads(&first, "a first grant").await;

    // Put first on one of them only: it goes on writing with the old one, and says who lacks the new one.
    restart(&mut world, &[NEW, OLD]).await;
    let secret_app = App::with_secret(&app.base).await.unwrap();
    let second = secret_app.launch(world.ehr(vendor)).await.unwrap();
    tokio::join!(two.reads(&second, "put first on one"), three.reads(&second, "put first on one"));
    let mut rotating =
        mantel(&["keys", "rotate-seal"], &dir).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(rotating.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    assert!(line.contains("waiting") && line.contains("lacks the key \"next\""), "{line}");
    let (_, text) = told(&["keys", "list"], &dir).await;
    assert_eq!(text.matches("writes with test").count(), 3, "{text}");

    // The others take it, one after the other; the command that waits goes on by itself.
    two.start(&[NEW, OLD]).await;
    three.start(&[NEW, OLD]).await;
    let mut said = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        said.push(line);
    }
    assert!(rotating.wait().await.unwrap().success(), "{said:#?}");
    assert!(said.iter().any(|line| line.contains("all live processes (3) write with \"next\"")), "{said:#?}");
    assert!(said.iter().any(|line| line.contains("\"test\" is not needed any more")), "{said:#?}");
    for tokens in [&first, &second] {
        tokio::join!(two.reads(tokens, "sealed anew"), three.reads(tokens, "sealed anew"));
    }

    // A process without it may not start any more.
    let late = Replica::of(&dir, vendor);
    list_keys(late.dir.path(), &[OLD]);
    let (served, text) = told(&["serve"], late.dir.path()).await;
    assert!(!served && text.contains("next") && text.contains("`store.seal`"), "{text}");

    // The old key goes from all, and nobody logs in again.
    restart(&mut world, &[NEW]).await;
    two.start(&[NEW]).await;
    three.start(&[NEW]).await;
    world.ehr(vendor).expire_access_tokens();
    for tokens in [&first, &second] {
        two.reads(tokens, "without the old").await;
        three.reads(tokens, "without the old").await;
    }
    app.refresh(first.refresh()).await.unwrap();
    secret_app.refresh(second.refresh()).await.unwrap();
    two.stop().await;
    three.stop().await;
}
