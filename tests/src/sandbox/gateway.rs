//! Mantel itself, in this process.

use std::{io, path::Path, sync::Arc, time::Duration};

use anyhow::{Result, anyhow};
use mantel::{
    app::{self, Ports},
    config::{Disk, Loaded, Sources, load},
};

pub struct Gateway {
    /// None once it is stopped.
    running: Option<app::Running>,
    refresh_before: Vec<(String, Duration)>,
}

/// Starts Mantel from its configuration on disk. The environment of this process is not read: what an operator set
/// there for another Mantel does not concern the sandbox.
pub async fn start(main: &Path) -> Result<Gateway> {
    let sources = Sources { paths: vec![main.to_owned()], environment: Vec::new(), files: Arc::new(Disk) };
    let loaded = load(&sources).map_err(|faults| anyhow!("the sandbox's configuration:\n{faults}"))?;
    let refresh_before = refresh_times(&loaded);
    // The terminal belongs to the sandbox's own words.
    let ports = Ports { access_log: Box::new(io::sink()), ..Ports::of_process() };
    let running = app::start(loaded.config, ports).await?;
    Ok(Gateway { running: Some(running), refresh_before })
}

fn refresh_times(loaded: &Loaded) -> Vec<(String, Duration)> {
    let sites = loaded.config.sites.iter();
    sites.map(|(id, site)| (id.to_string(), site.profile.tokens.refresh_before)).collect()
}

impl Gateway {
    /// How long before its end an access token of this site is renewed, before clamping.
    pub fn refresh_before(&self, site: &str) -> Duration {
        self.refresh_before.iter().find(|(known, _)| known == site).map(|(_, before)| *before).unwrap_or_default()
    }

    pub async fn stop(mut self) -> Result<()> {
        match self.running.take() {
            Some(running) => running.stop().await,
            None => Ok(()),
        }
    }
}

impl Drop for Gateway {
    /// Dropped alone, Mantel would go on until its runtime ends.
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.stopping().cancel();
        }
    }
}
