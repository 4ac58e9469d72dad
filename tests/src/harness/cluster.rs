//! Several gateways over one store behind one public URL, with a network between all of them that can be cut.
//!
//! ```text
//! app ── front ─┬─ gateway 0 ─┬─ wire ── EHR (one wire each)
//!               └─ gateway 1 ─┴─ wire ── PostgreSQL
//! ```

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use tempfile::TempDir;

use super::{
    APP, Ehr, Gateway, SCOPES, SECRET_APP, config,
    disk::{self, Disk, limit_files},
    postgres::Postgres,
    wire::Wire,
};
use crate::{
    ehr::server::{Options, Running, start},
    ports::free_port,
};

/// How large the disk of one gateway is: some thousand grants and their logs.
const DISK_MEGABYTES: u32 = 64;

/// So long a gateway may take to be ready, on a busy machine.
const READY: Duration = Duration::from_secs(30);

/// What all gateways share.
#[derive(Clone)]
pub enum StoreKind {
    /// In the one gateway's own directory.
    Sqlite,
    /// A fresh database of this server.
    Postgres(Postgres),
}

pub struct Plan<'a> {
    pub gateways: usize,
    pub store: StoreKind,
    pub ehrs: Vec<Ehr>,
    /// Further TOML for `mantel.toml`.
    pub more: &'a str,
    /// Gives each gateway a disk that can be full.
    pub small_disks: bool,
    /// Gives each gateway a clock that can be set, where Debian's libfaketime is installed.
    pub own_clocks: bool,
}

impl Plan<'_> {
    pub fn new(gateways: usize, store: StoreKind, ehrs: Vec<Ehr>) -> Self {
        Self { gateways, store, ehrs, more: "", small_disks: false, own_clocks: false }
    }
}

/// A simulated EHR behind its wire.
pub struct Hospital {
    pub name: String,
    pub ehr: Running,
    pub wire: Wire,
}

/// One of the gateways.
pub struct Node {
    pub gateway: Gateway,
    /// Its own address; [`Cluster::public`] leads to any.
    pub address: SocketAddr,
    // Dropped after the gateway, which lives on it.
    disk: Option<Disk>,
    /// Its clock's file, which is written though its disk is full.
    clock: Option<TempDir>,
}

pub struct Cluster {
    // The gateways end first.
    pub nodes: Vec<Node>,
    /// Leads to the gateways by turns.
    pub front: Wire,
    pub public: String,
    pub hospitals: BTreeMap<String, Hospital>,
    pub store: Option<StoreServer>,
}

/// PostgreSQL behind its wire.
pub struct StoreServer {
    pub server: Postgres,
    pub database: String,
    pub wire: Wire,
}

impl Cluster {
    /// # Errors
    /// When something does not start.
    pub async fn start(plan: Plan<'_>) -> Result<Self> {
        ensure!(
            plan.gateways == 1 || matches!(plan.store, StoreKind::Postgres(_)),
            "SQLite serves one gateway, not {}",
            plan.gateways
        );
        let front = Wire::start([]).await?;
        let public = format!("http://{}", front.address());
        let mut hospitals = BTreeMap::new();
        let mut sites = Vec::new();
        for Ehr { name, options, site } in plan.ehrs {
            let wire = Wire::start([]).await?;
            // What the EHR says of itself leads through the wire.
            let ehr = start(Options { origin: Some(format!("http://{}", wire.address())), ..options }).await?;
            wire.lead_to([ehr.address]);
            for app in [APP, SECRET_APP] {
                ehr.auth.register(config::record(&name, &public, app, &SCOPES))?;
            }
            sites.push((name.clone(), config::site_toml(&name, &ehr, &site, &SCOPES)));
            hospitals.insert(name.clone(), Hospital { name, ehr, wire });
        }
        let store = match plan.store {
            StoreKind::Sqlite => None,
            StoreKind::Postgres(server) => Some(StoreServer::new(server).await?),
        };
        let store_lines = match &store {
            None => "url = \"sqlite://mantel.db\"".to_owned(),
            // Each in its own directory, as SQLite's is.
            Some(store) => {
                format!("url = \"{}\"\nspill = \"spill\"", store.server.url(store.wire.address(), &store.database))
            }
        };
        let mut nodes = Vec::new();
        for _ in 0..plan.gateways {
            // Where none can be mounted, a limit stands in.
            let disk = if plan.small_disks { Disk::mount(DISK_MEGABYTES).ok() } else { None };
            let dir = disk::directory(disk.as_ref())?;
            let (port, admin_port) = (free_port()?, free_port()?);
            let server = config::Server {
                public: &public,
                port,
                admin_port,
                store: &store_lines,
                more: plan.more,
                scopes: &SCOPES,
            };
            config::write(dir.path(), &server, &sites)?;
            let mut gateway = Gateway::new(public.clone(), format!("http://127.0.0.1:{admin_port}"), dir)?;
            // Beside SQLite's file there is one anyway.
            if store.is_some() {
                let socket = gateway.dir().join("admin.sock");
                gateway.set_environment("MANTEL_SERVER__ADMIN_SOCKET", socket);
            }
            if plan.small_disks {
                gateway.log_elsewhere()?;
                if disk.is_none() {
                    gateway.expect_limited_files();
                }
            }
            let mut clock = None;
            if plan.own_clocks
                && let Some(library) = clock_library()
            {
                let (dir, file) = clock_file()?;
                gateway.set_environment("LD_PRELOAD", library);
                gateway.set_environment("FAKETIME_TIMESTAMP_FILE", file);
                // Deadlines go by the monotonic clock, which no administrator can set.
                gateway.set_environment("DONT_FAKE_MONOTONIC", "1");
                gateway.set_environment("FAKETIME_CACHE_DURATION", "1");
                clock = Some(dir);
            }
            nodes.push(Node { gateway, address: (Ipv4Addr::LOCALHOST, port).into(), disk, clock });
        }
        front.lead_to(nodes.iter().map(|node| node.address));
        try_join_all(nodes.iter_mut().map(|node| async {
            node.gateway.launch()?;
            node.gateway.wait_ready(READY).await
        }))
        .await?;
        Ok(Self { nodes, front, public, hospitals, store })
    }

    /// # Errors
    /// When there is none.
    pub fn node(&mut self, number: usize) -> Result<&mut Node> {
        self.nodes.get_mut(number).with_context(|| format!("there is no gateway {number}"))
    }

    /// # Errors
    /// When there is none.
    pub fn hospital(&self, name: &str) -> Result<&Hospital> {
        self.hospitals.get(name).with_context(|| format!("there is no hospital {name}"))
    }

    /// A site's FHIR base, by whichever gateway.
    pub fn base(&self, site: &str) -> String {
        format!("{}/sites/{site}/fhir/r4", self.public)
    }
}

impl StoreServer {
    async fn new(server: Postgres) -> Result<Self> {
        let url = server.database().await?;
        let (_, database) = url.rsplit_once('/').context("a URL without a database")?;
        let wire = Wire::start([server.address()]).await?;
        Ok(Self { database: database.to_owned(), server, wire })
    }
}

impl Node {
    /// Its own URL for a public one.
    pub fn own(&self, public: &str) -> String {
        match public.strip_prefix(&self.gateway.public) {
            Some(rest) => format!("http://{}{rest}", self.address),
            None => public.to_owned(),
        }
    }

    /// `kill -9`, and a new process, which is not awaited.
    ///
    /// # Errors
    /// When it does not start.
    pub fn replace(&mut self) -> Result<()> {
        self.gateway.kill()?;
        self.gateway.launch()
    }

    /// No room is left for what this gateway writes.
    ///
    /// # Errors
    /// When neither a disk nor a limit can be had, or it does not run.
    pub fn fill_disk(&self) -> Result<()> {
        match &self.disk {
            Some(disk) => disk.fill(),
            None => limit_files(self.gateway.pid().context("the gateway does not run")?, true),
        }
    }

    /// # Errors
    /// As [`Node::fill_disk`].
    pub fn free_disk(&self) -> Result<()> {
        match (&self.disk, self.gateway.pid()) {
            (Some(disk), _) => disk.free(),
            (None, Some(pid)) => limit_files(pid, false),
            (None, None) => Ok(()),
        }
    }

    /// Sets its wall clock so many seconds off ours. Its monotonic clock goes on.
    ///
    /// # Errors
    /// When it has no clock of its own.
    pub fn set_clock(&self, seconds: i32) -> Result<()> {
        let clock = self.clock.as_ref();
        let clock = clock.context("no clock of its own: `faketime` is not installed, or the plan did not ask")?;
        let file = clock.path().join(CLOCK);
        // Renamed into place, or it could be read half written.
        let next = file.with_extension("next");
        std::fs::write(&next, format!("{seconds:+}"))?;
        Ok(std::fs::rename(next, file)?)
    }

    /// Waits until the process has seen that its machine's clock is so many seconds off the time that it goes by.
    ///
    /// # Errors
    /// When it does not within ten seconds.
    pub async fn clock_seen(&self, seconds: i32) -> Result<()> {
        self.gateway.clock_seen(seconds).await
    }
}

/// The file's name in its directory.
const CLOCK: &str = "clock";

fn clock_file() -> Result<(TempDir, PathBuf)> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join(CLOCK);
    std::fs::write(&file, "+0")?;
    Ok((dir, file))
}

/// Debian's package `faketime`.
pub fn clock_library() -> Option<PathBuf> {
    let dirs = std::fs::read_dir("/usr/lib").ok()?.flatten();
    dirs.map(|dir| dir.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.is_file())
}
