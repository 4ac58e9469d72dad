//! A disk that can be full.
//!
//! A small tmpfs of its own, which only root can mount. Where that cannot be, the limit on the size of a
//! process's files stands in for it (`ulimit -f`, changed at run time by `prlimit`): a write fails then with
//! EFBIG in the place of ENOSPC.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::{fs::FileExt as _, process::CommandExt as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

/// `$1`: where; `$2`: its size. Unmounts at the end of its input, however that came.
const SUPERVISOR: &str = r#"
mount -t tmpfs -o "size=$2,mode=700" tmpfs "$1" || { echo; exit 1; }
echo mounted
read -r _
umount -l "$1"
rmdir "$1"
"#;

/// A file system of a few megabytes; it ends with this value and with this process.
pub struct Disk {
    place: PathBuf,
    megabytes: u32,
    shell: Child,
}

impl Disk {
    /// # Errors
    /// When nothing may be mounted here.
    pub fn mount(megabytes: u32) -> Result<Self> {
        let place = tempfile::Builder::new().prefix("mtl-disk").tempdir()?;
        let mut shell = Command::new("sh");
        shell.args(["-c", SUPERVISOR, "sh"]).arg(place.path()).arg(format!("{megabytes}m"));
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut shell = shell.spawn().context("sh does not start")?;
        let mut said = String::new();
        let stdout = shell.stdout.take().context("a shell without stdout")?;
        BufReader::new(stdout).read_line(&mut said)?;
        if said.trim() != "mounted" {
            shell.wait()?;
            bail!("no tmpfs can be mounted");
        }
        // From here on the shell removes it.
        Ok(Self { place: place.keep(), megabytes, shell })
    }

    pub fn directory(&self) -> Result<TempDir> {
        Ok(tempfile::tempdir_in(&self.place)?)
    }

    /// Takes all the room that is left.
    ///
    /// # Errors
    /// When there is room without end.
    pub fn fill(&self) -> Result<()> {
        let ballast = fs::File::options().create(true).append(true).open(self.ballast())?;
        let mut end = ballast.metadata()?.len();
        for piece in [1 << 20, 64 << 10, 4 << 10] {
            let piece = vec![0; piece];
            while let Ok(written @ 1..) = ballast.write_at(&piece, end) {
                end += u64::try_from(written)?;
                ensure!(end <= u64::from(self.megabytes) << 20, "{} has no end", self.place.display());
            }
        }
        Ok(())
    }

    /// # Errors
    /// When what fills it cannot be deleted.
    pub fn free(&self) -> Result<()> {
        match fs::remove_file(self.ballast()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn ballast(&self) -> PathBuf {
        self.place.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// Limits the size of all files of a process that ignores SIGXFSZ to nothing, or not at all: the stand-in for
/// a full disk.
///
/// # Errors
/// When there is no `prlimit`, or no such process.
pub fn limit_files(pid: u32, full: bool) -> Result<()> {
    let limit = if full { "--fsize=0:unlimited" } else { "--fsize=unlimited:unlimited" };
    let status = Command::new("prlimit").args(["--pid", &pid.to_string(), limit]).stderr(Stdio::null()).status()?;
    ensure!(status.success(), "prlimit refuses");
    Ok(())
}

/// Where a directory can be filled: on a disk of its own if there can be one.
pub fn directory(disk: Option<&Disk>) -> Result<TempDir> {
    match disk {
        Some(disk) => disk.directory(),
        None => Ok(tempfile::tempdir()?),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use std::path::Path;

    use super::*;

    fn mounted(place: &Path) -> bool {
        fs::read_to_string("/proc/mounts").unwrap().contains(place.to_str().unwrap())
    }

    #[test]
    fn a_disk_is_full_and_free_again_and_goes() {
        let Ok(disk) = Disk::mount(4) else {
            // Not root, or in a container without that right: `limit_files` stands in.
            return;
        };
        let place = disk.place.clone();
        let dir = disk.directory().unwrap();
        fs::write(dir.path().join("a"), "before").unwrap();
        for file in ["b", "c"] {
            let file = dir.path().join(file);
            disk.fill().unwrap();
            let large = vec![1; 512 << 10];
            assert!(fs::write(&file, &large).is_err());
            disk.free().unwrap();
            fs::write(&file, &large).unwrap();
        }
        assert!(mounted(&place));
        drop(disk);
        assert!(!mounted(&place) && !place.exists());
    }
}
