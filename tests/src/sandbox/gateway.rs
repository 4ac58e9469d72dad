//! Mantel itself, in this process.

use std::{path::Path, time::Duration};

use anyhow::{Result, anyhow};
use mantel::config::{Disk, Loaded, Sources, load};

pub struct Gateway {
    refresh_before: Vec<(String, Duration)>,
}

/// Starts Mantel from its configuration on disk. The environment of this process is not read: what an operator set
/// there for another Mantel does not concern the sandbox.
pub async fn start(main: &Path) -> Result<Gateway> {
    let sources = Sources { paths: vec![main.to_owned()], environment: Vec::new(), files: std::sync::Arc::new(Disk) };
    let loaded = load(&sources).map_err(|faults| anyhow!("the sandbox's configuration:\n{faults}"))?;
    let refresh_before = refresh_times(&loaded);
    Ok(Gateway { refresh_before })
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

    pub async fn stop(self) -> Result<()> {
        Ok(())
    }
}
