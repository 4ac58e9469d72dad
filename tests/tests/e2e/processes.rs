//! What gateway processes tell each other of themselves: which seal keys their spills need, and that one which was not
//! to serve does not.

use std::{net::SocketAddr, path::Path, process::Stdio, time::Duration};

use mantel_tests::{
    ehr::{
        contract::Vendor,
        faults::{Fault, FaultKind},
    },
    harness::{
        Ehr, World,
        app::App,
        postgres::Postgres,
        read,
        wire::{Conduct, Wire},
    },
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout},
    time::Instant,
};

use crate::{
    keys::{NEW, OLD, Replica, list_keys, mantel, new_key, onto_postgres, restart, told},
    store::{TAKE, answers, in_the_spill, spill, tell, unharmed},
};

const REFRESH: &str = "token:refresh_token";

fn rotating(dir: &Path) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = mantel(&["keys", "rotate-seal"], dir).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

#[tokio::test]
async fn a_key_does_not_retire_while_an_answer_under_it_waits_in_the_spill() {
    let (mut world, login) = in_the_spill().await;
    let dir = world.gateway.dir().to_owned();
    world.gateway.kill().unwrap();
    new_key(&dir).await;
    list_keys(&dir, &[NEW, OLD]);
    // While no gateway runs the command looks for itself.
    let (done, text) = told(&["keys", "rotate-seal"], &dir).await;
    assert!(!done && text.contains("mantel.db.spill") && text.contains("sealed by \"test\""), "{text}");

    world.gateway.launch().unwrap();
    let began = Instant::now();
    let (mut child, mut lines) = loop {
        let (mut child, mut lines) = rotating(&dir);
        if let Some(line) = lines.next_line().await.unwrap()
            && line.contains("in its spill")
        {
            assert!(line.contains("waiting: process") && line.contains("the key \"test\" has sealed"), "{line}");
            break (child, lines);
        }
        // Not started yet, or at the step before.
        child.kill().await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(20), "{}", world.gateway.log("events.log").unwrap());
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(answers(&spill(&world)).len(), 1);
    let (_, text) = told(&["keys", "list"], &dir).await;
    assert!(!text.contains("retired"), "{text}");

    // The store takes it, and the command that waits goes on by itself.
    tell(&world, TAKE).await;
    let mut said = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        said.push(line);
    }
    assert!(child.wait().await.unwrap().success(), "{said:#?}");
    assert!(said.iter().any(|line| line.contains("\"test\" is not needed any more")), "{said:#?}");
    restart(&mut world, &[NEW]).await;
    assert_eq!(world.ehr(Vendor::Epic).expire_access_tokens(), 1);
    login.served().await;
    unharmed(world.ehr(Vendor::Epic));
}

/// A process that goes without a word while the store is away from it can tell nobody what it has spilled.
#[tokio::test]
async fn a_key_does_not_retire_while_a_lost_process_may_have_spilled_by_it() {
    let vendor = Vendor::Epic;
    let mut world = World::start([Ehr::strict(vendor)]).await.unwrap();
    let database = onto_postgres(&mut world).await;
    let (dir, ehr) = (world.gateway.dir().to_owned(), &world.ehrs[&vendor]);
    new_key(&dir).await;
    let wire = Wire::start([Postgres::shared().await.unwrap().address()]).await.unwrap();
    let mut two = Replica::of(&dir, vendor);
    through(&two, &database, wire.address());
    two.start(&[OLD]).await;

    let app = App::at(&world.gateway.site_base(vendor)).await.unwrap();
    let tokens = app.launch(ehr).await.unwrap();
    two.reads(&tokens, "before").await;
    ehr.expire_access_tokens();
    ehr.counters.reset();
    ehr.faults.add(Fault::new(REFRESH, FaultKind::Hold).times(1));
    let url = format!("{}/Patient/{}", two.base, tokens.text("patient"));
    let reading = tokio::spawn(async move { read(&url, tokens.access()).await.map(|answer| (answer, tokens)) });
    let began = Instant::now();
    while ehr.counters.get(REFRESH) == 0 {
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    wire.conduct(Conduct::Cut);
    ehr.faults.clear();
    let (answer, tokens) = reading.await.unwrap().unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answers(&two.dir.path().join("spill")).len(), 1);
    two.kill().await;

    restart(&mut world, &[NEW, OLD]).await;
    let (mut child, mut lines) = rotating(&dir);
    let mut said = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        said.push(line);
    }
    assert!(!child.wait().await.unwrap().success(), "{said:#?}");
    assert!(
        said.iter().any(|line| line.contains("\"test\" may still be needed") && line.contains("spill")),
        "{said:#?}"
    );
    assert!(said.last().unwrap().contains("still needed are test"), "{said:#?}");
    let (_, text) = told(&["keys", "list"], &dir).await;
    assert!(!text.contains("retired"), "{text}");

    // Another process on that spill puts the answer into the store, and the key may go.
    wire.open();
    two.start(&[NEW, OLD]).await;
    assert_eq!(answers(&two.dir.path().join("spill")).len(), 0);
    two.reads(&tokens, "from the spill").await;
    let began = Instant::now();
    // The first looks at the others each second.
    while let (done, text) = told(&["keys", "rotate-seal"], &dir).await
        && !(done && text.contains("\"test\" is not needed any more"))
    {
        assert!(began.elapsed() < Duration::from_secs(20), "{text}");
    }
    restart(&mut world, &[NEW]).await;
    two.start(&[NEW]).await;
    world.ehr(vendor).expire_access_tokens();
    two.reads(&tokens, "without the old key").await;
    unharmed(world.ehr(vendor));
    two.stop().await;
}

/// Leads a process to its database by another address, and gives it a spill.
fn through(replica: &Replica, database: &str, address: SocketAddr) {
    let file = replica.dir.path().join("mantel.toml");
    let (before, name) = database.rsplit_once('/').unwrap();
    let (scheme, _) = before.rsplit_once('@').unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace(database, &format!("{scheme}@{address}/{name}"));
    let text = text.replace("[store]", "[store]\nspill = \"spill\"");
    std::fs::write(file, text).unwrap();
}

#[tokio::test]
async fn a_start_that_is_refused_leaves_no_process_for_the_others_to_wait_for() {
    let vendor = Vendor::Generic;
    let mut world = World::start([Ehr::new(vendor)]).await.unwrap();
    let database = onto_postgres(&mut world).await;
    let (postgres, name) = (Postgres::shared().await.unwrap(), database.rsplit('/').next().unwrap());
    let shown = async || postgres.query(name, "SELECT count(*) FROM replicas").await.unwrap();
    let alone = shown().await;
    let two = Replica::of(world.gateway.dir(), vendor);
    through(&two, &database, postgres.address());
    list_keys(two.dir.path(), &[OLD]);
    let spill = two.dir.path().join("spill");
    std::fs::create_dir(&spill).unwrap();
    // Of a later version: it refuses the start, after the process has shown itself.
    let name = "00000000-0000-7000-8000-000000000001.1.0.answer";
    std::fs::write(spill.join(name), b"MTLSPILL\x09").unwrap();
    let (served, text) = told(&["serve"], two.dir.path()).await;
    assert!(!served && text.contains(name) && text.contains("format 9"), "{text}");
    assert_eq!(shown().await, alone);
    assert_eq!(world.gateway.metric("mantel_replicas").await.unwrap(), 1.0);
}
