//! The gateway's process.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use http::Method;
use tempfile::TempDir;

use super::{
    call, get,
    process::{signal, stands},
};
use crate::ehr::contract::Vendor;

/// A gateway with its files; the process ends with this value.
pub struct Gateway {
    pub public: String,
    pub admin: String,
    binary: PathBuf,
    dir: TempDir,
    environment: BTreeMap<String, OsString>,
    limited_files: bool,
    /// Where its logs go; none: into `dir`.
    logs: Option<TempDir>,
    child: Option<Child>,
}

impl Gateway {
    /// A gateway that is not running yet, whose files are in `dir`.
    ///
    /// # Errors
    /// When there is no binary.
    pub fn new(public: String, admin: String, dir: TempDir) -> Result<Self> {
        Ok(Self {
            public,
            admin,
            binary: binary()?,
            dir,
            environment: BTreeMap::new(),
            limited_files: false,
            logs: None,
            child: None,
        })
    }

    /// Of the next process: `mantel`, or `mantel-next`, which plays its next version.
    ///
    /// # Errors
    /// When there is no such binary.
    pub fn set_binary(&mut self, name: &str) -> Result<()> {
        self.binary = built(name)?;
        Ok(())
    }

    /// A variable of the next process.
    pub fn set_environment(&mut self, name: &str, value: impl Into<OsString>) {
        self.environment.insert(name.to_owned(), value.into());
    }

    /// Its logs go to another disk than its files.
    ///
    /// # Errors
    /// When there is none.
    pub fn log_elsewhere(&mut self) -> Result<()> {
        self.logs = Some(tempfile::tempdir()?);
        Ok(())
    }

    /// The file of `events.log` or `access.log`.
    pub fn log_file(&self, name: &str) -> PathBuf {
        self.logs.as_ref().unwrap_or(&self.dir).path().join(name)
    }

    /// Whether it ended by itself.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.as_mut().map(Child::try_wait).transpose()?.flatten().is_some())
    }

    /// The next process outlives a limit on its files' size: a write fails then, and no signal ends it.
    pub fn expect_limited_files(&mut self) {
        self.limited_files = true;
    }

    /// Starts the process, and waits until it is ready.
    pub async fn spawn(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_ready(Duration::from_secs(10)).await
    }

    /// Starts the process.
    pub fn launch(&mut self) -> Result<()> {
        let open = |name: &str| File::options().create(true).append(true).open(self.log_file(name));
        // What is ignored stays so in what `exec` starts.
        let mut command = if self.limited_files { Command::new("sh") } else { Command::new(&self.binary) };
        if self.limited_files {
            command.args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"]).arg(&self.binary);
        }
        let child = command
            .args(["serve", "--config"])
            .arg(self.dir.path())
            .envs(&self.environment)
            .stdin(Stdio::null())
            .stdout(open("access.log")?)
            .stderr(open("events.log")?)
            .spawn()
            .context("the gateway's binary does not start")?;
        self.child = Some(child);
        Ok(())
    }

    /// # Errors
    /// When the process has ended, or is not ready within that time.
    pub async fn wait_ready(&mut self, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            if let Some(Some(status)) = self.child.as_mut().map(Child::try_wait).transpose()? {
                bail!("the gateway ended at its start with {status}: {}", self.log("events.log")?);
            }
            if self.is_ready().await {
                return Ok(());
            }
            // Another process: there is nothing to await but its readiness.
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        bail!("the gateway was not ready in {within:?}: {}", self.log("events.log")?)
    }

    pub async fn is_ready(&self) -> bool {
        get(&format!("{}/health/ready", self.admin), &[]).await.is_ok_and(|answer| answer.status == 200)
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM, and its exit code.
    pub async fn terminate(&mut self) -> Result<Option<i32>> {
        let Some(mut child) = self.child.take() else { return Ok(None) };
        signal("TERM", child.id())?;
        Ok(tokio::task::spawn_blocking(move || child.wait()).await??.code())
    }

    /// SIGSTOP: connections stay, and nothing moves from when this returns.
    ///
    /// # Errors
    /// When no process runs, or it goes on.
    pub fn stop(&self) -> Result<()> {
        self.signal("STOP")?;
        let (pid, deadline) =
            (self.pid().context("the gateway does not run")?, Instant::now() + Duration::from_secs(10));
        while !stands(pid) {
            ensure!(Instant::now() < deadline, "the gateway's process {pid} does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When no process runs.
    pub fn resume(&self) -> Result<()> {
        self.signal("CONT")
    }

    fn signal(&self, name: &str) -> Result<()> {
        let pid = self.pid().context("the gateway does not run")?;
        ensure!(signal(name, pid)?, "the gateway's process {pid} is gone");
        Ok(())
    }

    /// The process that runs now.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What an operator tells it, such as `grants end ID`: whether that was done, and what was answered.
    ///
    /// # Errors
    /// When the command does not start.
    pub async fn tell(&self, words: &[&str]) -> Result<(bool, String)> {
        let mut command = tokio::process::Command::new(&self.binary);
        command.args(words).arg("--config").arg(self.dir.path()).envs(&self.environment).stdin(Stdio::null());
        let output = command.output().await.context("the command does not start")?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
    }

    /// `events.log` or `access.log`.
    pub fn log(&self, name: &str) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(self.log_file(name))?).into_owned())
    }

    /// A site's FHIR base.
    pub fn site_base(&self, vendor: Vendor) -> String {
        format!("{}/sites/{}/fhir/r4", self.public, vendor.text())
    }

    /// The base of the site from which the EHR launches.
    pub fn staff_base(&self, vendor: Vendor) -> String {
        let suffix = if vendor == Vendor::Oracle { "-staff" } else { "" };
        format!("{}/sites/{}{suffix}/fhir/r4", self.public, vendor.text())
    }

    pub fn uniform_base(&self) -> String {
        format!("{}/fhir/r4", self.public)
    }

    /// Waits until the process has seen that its machine's clock is so many seconds off the time that it goes by.
    ///
    /// # Errors
    /// When it does not within ten seconds.
    pub async fn clock_seen(&self, seconds: i32) -> Result<()> {
        let seconds = f64::from(seconds);
        let began = Instant::now();
        loop {
            let ahead = self.metric("mantel_clock_ahead_seconds").await?;
            if (ahead - seconds).abs() < 5.0 {
                return Ok(());
            }
            ensure!(began.elapsed() < Duration::from_secs(10), "the clock is seen {ahead} s off, not {seconds}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The value of a metric's line, such as `mantel_refreshes_total{outcome="renewed",vendor="epic"}`.
    pub async fn metric(&self, line: &str) -> Result<f64> {
        let text = call(Method::GET, &format!("{}/metrics", self.admin), &[], "").await?;
        let text = text.text();
        let value = text.lines().find_map(|known| known.strip_prefix(line)?.strip_prefix(' '));
        Ok(value.map_or(Ok(0.0), str::parse)?)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // The test is over either way.
        let _ = self.kill();
    }
}

/// The gateway's binary, built beside the test's own.
pub fn binary() -> Result<PathBuf> {
    built("mantel")
}

fn built(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let built = own.ancestors().map(|dir| dir.join(name)).find(|path| path.is_file());
    built.with_context(|| format!("there is no binary `{name}` beside the tests: run `cargo build --workspace` first"))
}
