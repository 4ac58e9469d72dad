//! A disk that breaks: ext4 in a file, which the kernel turns read-only under whoever writes, as it does when
//! it meets an error (`errors=remount-ro`). What is open for writing keeps no administrator's `remount,ro`
//! from failing, so this is how a file system becomes read-only under a database.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

/// `$1`: a directory with the image and the place where it is mounted. Answers each word that it is told, and
/// unmounts at the end of its input, however that came.
const SUPERVISOR: &str = r#"
place="$1/disk"
attach() { mount -o loop,errors=remount-ro "$1/image" "$place"; }
truncate -s 64M "$1/image" && mkfs.ext4 -q "$1/image" && mkdir "$place" && attach "$1" || { echo no; exit 1; }
echo done
while read -r word; do
    case $word in
    break) echo broken >"/sys/fs/ext4/$(basename "$(findmnt -no SOURCE "$place")")/trigger_fs_error" ;;
    mend) umount "$place" && { fsck.ext4 -fy "$1/image"; [ $? -le 1 ]; } >/dev/null && attach "$1" ;;
    esac && echo done || echo no
done
umount -l "$place"
rm -r "$1"
"#;

/// Ends with this value and with this process.
pub struct BlockDisk {
    dir: PathBuf,
    shell: Child,
    tell: Option<ChildStdin>,
    said: BufReader<ChildStdout>,
}

impl BlockDisk {
    /// # Errors
    /// When no loop device may be mounted here.
    pub fn mount() -> Result<Self> {
        let dir: TempDir = tempfile::Builder::new().prefix("mtl-block").tempdir()?;
        let mut shell = Command::new("sh");
        shell.args(["-c", SUPERVISOR, "sh"]).arg(dir.path());
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut shell = shell.spawn().context("sh does not start")?;
        let (tell, said) = (shell.stdin.take(), shell.stdout.take().context("a shell without stdout")?);
        let mut disk = Self { dir: dir.path().to_owned(), shell, tell, said: BufReader::new(said) };
        disk.hear("mount a file as a disk")?;
        // From here on the shell removes it.
        let _ = dir.keep();
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.join("disk")
    }

    /// From now on it takes no writes, not through files that are open either.
    ///
    /// # Errors
    /// When the kernel cannot be told.
    pub fn fail(&mut self) -> Result<()> {
        self.order("break")
    }

    /// As an operator would, when nobody uses it: unmounts, checks, mounts.
    ///
    /// # Errors
    /// When it is in use, or past mending.
    pub fn mend(&mut self) -> Result<()> {
        self.order("mend")
    }

    fn order(&mut self, word: &str) -> Result<()> {
        writeln!(self.tell.as_mut().context("no shell")?, "{word}")?;
        self.hear(word)
    }

    fn hear(&mut self, what: &str) -> Result<()> {
        let mut said = String::new();
        self.said.read_line(&mut said)?;
        ensure!(said.trim() == "done", "cannot {what} in {}", self.dir.display());
        Ok(())
    }
}

/// Whether a disk can break here: not without root, nor in a container without devices.
pub fn can_break() -> bool {
    Path::new("/dev/loop-control").exists() && BlockDisk::mount().is_ok()
}

impl Drop for BlockDisk {
    fn drop(&mut self) {
        drop(self.tell.take());
        let _ = self.shell.wait();
    }
}
