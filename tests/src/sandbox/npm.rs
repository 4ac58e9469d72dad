//! `fhirclient`, the SMART client library that most apps use, from npm as it is published there.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use tokio::process::Command;

const PACKAGE: &str = "fhirclient";
const VERSION: &str = "2.6.3";
/// SHA-512 of the package, as npm's lock files have it.
const INTEGRITY: &str = "CirZixcwWelbkIXxpxlNQx5+ZdJirl6F1s4y4yvA1X7hHAkr9n99aVHaMi0wX+97nATjKQ65X6NB5as/wZoJzg==";
/// What a page loads of it.
const BUILD: &str = "package/build/fhir-client.js";

/// Where packages are kept between starts: beside what cargo builds.
pub fn cache() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/sandbox/npm")
}

/// The library's browser build; it is fetched if the cache has it not.
///
/// Only the package itself is: its build needs none of the hundreds of packages that it depends on for Node.
///
/// # Errors
/// When npm or tar is missing, the package cannot be fetched, or it is another one than expected.
pub async fn fhirclient(cache: &Path) -> Result<Vec<u8>> {
    let home = cache.join(format!("{PACKAGE}-{VERSION}"));
    let build = home.join(BUILD);
    if let Ok(found) = tokio::fs::read(&build).await {
        return Ok(found);
    }
    tokio::fs::create_dir_all(cache).await.with_context(|| format!("cannot make {}", cache.display()))?;
    // Several sandboxes may start at once: each unpacks in a place of its own, and the first one to finish wins.
    let fresh = tempfile::tempdir_in(cache)?;
    let spec = format!("{PACKAGE}@{VERSION}");
    run(Command::new("npm").args(["pack", &spec, "--silent"]).current_dir(fresh.path()), "npm").await?;
    let packed = fresh.path().join(format!("{PACKAGE}-{VERSION}.tgz"));
    let bytes = tokio::fs::read(&packed).await.with_context(|| format!("npm pack {spec} left no package"))?;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA512, &bytes);
    let given = BASE64_STANDARD.encode(digest);
    ensure!(given == INTEGRITY, "{spec}: given a package with SHA-512 {given}, expected {INTEGRITY}");
    run(Command::new("tar").arg("-xzf").arg(&packed).current_dir(fresh.path()), "tar").await?;
    tokio::fs::remove_file(&packed).await?;
    let fresh = fresh.keep();
    if tokio::fs::rename(&fresh, &home).await.is_err() {
        // Another one was first; its copy is as good.
        tokio::fs::remove_dir_all(&fresh).await?;
    }
    tokio::fs::read(&build).await.with_context(|| format!("{spec} has no {BUILD}"))
}

async fn run(command: &mut Command, program: &str) -> Result<()> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    let done = command.output().await;
    let done = done.with_context(|| {
        format!("the demo app's library {PACKAGE} is fetched with npm (it comes with Node.js): cannot run {program}")
    })?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "fetching {PACKAGE} from npm: {program} failed: {}", said.trim());
    Ok(())
}
