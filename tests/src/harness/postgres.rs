//! A real PostgreSQL for tests: Debian's binaries, a data directory of its own, a port on loopback.
//!
//! A static is never dropped, and a test may be killed: the server runs below a shell that reads its commands
//! from a pipe of ours, and at the pipe's end, however it came, stops the server and deletes its files.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr},
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{sync::OnceCell, task::spawn_blocking};

use super::process::{alive, children, signal};
use crate::ports::free_port;

/// The one role, a superuser who needs no password.
const ROLE: &str = "mantel";
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// `$1`: the base directory; then the server's command. Answers each command with a line.
const SUPERVISOR: &str = r#"
base=$1; shift; pid=
stop() {
    [ -n "$pid" ] || return 0
    kill -"$1" "$pid"; kill -CONT "$pid"; wait "$pid"; pid=
}
while read -r word; do
    case $word in
        start) "$@" >>"$base/log" 2>&1 & pid=$!; echo "$pid" ;;
        *) stop "$word" 2>>"$base/log"; echo 0 ;;
    esac
done
stop QUIT 2>/dev/null
rm -rf "$base"
"#;

/// How a server is made to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Clients are told and cut off, and all is written.
    Fast,
    /// At once; the next start recovers from the write-ahead log.
    Immediate,
    /// `kill -9` of all of its processes.
    Kill,
}

impl Stop {
    const fn signal(self) -> &'static str {
        match self {
            Self::Fast => "INT",
            Self::Immediate => "QUIT",
            Self::Kill => "KILL",
        }
    }
}

/// A server, which ends with this value and with this process. Handles are cheap to clone.
#[derive(Clone)]
pub struct Postgres(Arc<Server>);

struct Server {
    binaries: PathBuf,
    base: PathBuf,
    port: u16,
    databases: AtomicU32,
    supervisor: Mutex<Supervisor>,
}

struct Supervisor {
    shell: Child,
    /// None once the end has come.
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// Of the postmaster; none while it is stopped.
    pid: Option<u32>,
}

/// Whom the server runs as: PostgreSQL refuses root.
#[derive(Clone, Copy)]
struct User(Option<(u32, u32)>);

impl Postgres {
    /// A server of one's own, for tests that stop it.
    ///
    /// # Errors
    /// When PostgreSQL is not installed, or does not start.
    pub async fn start() -> Result<Self> {
        let server = spawn_blocking(Server::make).await??;
        let started = Self(Arc::new(server));
        started.start_again().await?;
        Ok(started)
    }

    /// The server that all tests of a process share.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub async fn shared() -> Result<Self> {
        static SHARED: OnceCell<Postgres> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await.cloned()
    }

    /// The URL of a fresh, empty database.
    ///
    /// # Errors
    /// When the server is away.
    pub async fn database(&self) -> Result<String> {
        let name = format!("t{}", self.0.databases.fetch_add(1, Relaxed));
        self.query("postgres", &format!("CREATE DATABASE {name}")).await?;
        Ok(self.url(self.address(), &name))
    }

    /// The URL of a database through another address, such as a [`super::wire::Wire`]'s.
    pub fn url(&self, through: SocketAddr, database: &str) -> String {
        format!("postgres://{ROLE}@{through}/{database}")
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.0.port).into()
    }

    /// Where its socket lies, for `?host=`.
    pub fn socket_dir(&self) -> &Path {
        &self.0.base
    }

    /// What `psql` prints: a line for each row, columns divided by `|`.
    ///
    /// # Errors
    /// When the server is away, or the statement is refused.
    pub async fn query(&self, database: &str, sql: &str) -> Result<String> {
        let mut psql = self.0.psql(database, sql);
        let output = spawn_blocking(move || psql.output()).await?.context("psql does not start")?;
        ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }

    /// What `pg_dump` writes of the database at a URL, and after it the bytes of each `bytea` as they are.
    ///
    /// # Errors
    /// When the server is away, or there is no `pg_dump`.
    pub async fn dump(&self, url: &str) -> Result<Vec<u8>> {
        let mut dump = Command::new(self.0.binaries.join("pg_dump"));
        dump.arg(url).stdin(Stdio::null());
        let output = spawn_blocking(move || dump.output()).await?.context("pg_dump does not start")?;
        ensure!(output.status.success(), "pg_dump: {}", String::from_utf8_lossy(&output.stderr));
        let mut text = output.stdout;
        let digits = |word: &str| {
            let pairs =
                word.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
            pairs.collect::<Option<Vec<u8>>>()
        };
        let words = String::from_utf8_lossy(&text).into_owned();
        for word in words.split_ascii_whitespace().filter_map(|word| word.strip_prefix("\\\\x")) {
            text.extend_from_slice(&digits(word).with_context(|| format!("no bytea: {word}"))?);
            text.push(b'\n');
        }
        Ok(text)
    }

    /// # Errors
    /// When it does not stop.
    pub async fn stop(&self, how: Stop) -> Result<()> {
        let server = self.0.clone();
        spawn_blocking(move || server.stop(how)).await?
    }

    /// After [`Postgres::stop`]; waits until it takes statements.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_again(&self) -> Result<()> {
        let server = self.0.clone();
        spawn_blocking(move || server.spawn()).await?
    }

    /// # Errors
    /// As [`Postgres::stop`] and [`Postgres::start_again`].
    pub async fn restart(&self, how: Stop) -> Result<()> {
        self.stop(how).await?;
        self.start_again().await
    }

    /// SIGSTOP to all of its processes: connections stay, and nothing is answered.
    ///
    /// # Errors
    /// When it is not running.
    pub fn pause(&self) -> Result<()> {
        self.0.signal_all("STOP")
    }

    /// # Errors
    /// When it is not running.
    pub fn resume(&self) -> Result<()> {
        self.0.signal_all("CONT")
    }

    /// What the server said.
    ///
    /// # Errors
    /// When it never started.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.0.base.join("log"))?).into_owned())
    }
}

impl Server {
    fn make() -> Result<Self> {
        let binaries = binaries()?;
        let user = User::new()?;
        // A socket's path has 107 bytes at most: not below a build directory.
        let base = tempfile::Builder::new().prefix("mtl-pg").tempdir()?;
        user.own(base.path())?;
        let data = base.path().join("data");
        let template = template(&binaries, user)?;
        run(Command::new("cp").arg("-a").arg(&template).arg(&data)).context("the template cannot be copied")?;
        let port = free_port()?;
        // From here on the shell deletes it.
        let base = base.keep();
        let mut command = user.command("sh");
        command.args(["-c", SUPERVISOR, "sh"]).arg(&base).arg(binaries.join("postgres")).arg("-D").arg(&data);
        command.arg("-k").arg(&base).arg("-p").arg(port.to_string());
        for setting in [
            "listen_addresses=127.0.0.1",
            "max_connections=200",
            "shared_buffers=32MB",
            "fsync=on",
            "synchronous_commit=on",
            // A client that died in the middle is noticed.
            "client_connection_check_interval=1s",
        ] {
            command.args(["-c", setting]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        // Ctrl-C at a terminal is for us alone; the pipe's end is for the shell.
        command.process_group(0);
        let mut shell = command.spawn().context("sh does not start")?;
        let commands = shell.stdin.take();
        let answers = BufReader::new(shell.stdout.take().context("a shell without stdout")?);
        let supervisor = Mutex::new(Supervisor { shell, commands, answers, pid: None });
        Ok(Self { binaries, base, port, databases: AtomicU32::new(0), supervisor })
    }

    fn spawn(&self) -> Result<()> {
        self.supervisor().start()?;
        let deadline = Instant::now() + START_TIMEOUT;
        // Recovery has its time; `pg_isready` answers 0 once connections are accepted.
        while !self.psql("postgres", "SELECT 1").output()?.status.success() {
            if Instant::now() > deadline {
                bail!("PostgreSQL was not ready in {START_TIMEOUT:?}: {}", fs::read_to_string(self.base.join("log"))?);
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        Ok(())
    }

    fn stop(&self, how: Stop) -> Result<()> {
        let mut supervisor = self.supervisor();
        let postmaster = supervisor.pid.context("PostgreSQL is not running")?;
        let orphans = if how == Stop::Kill { children(postmaster)? } else { Vec::new() };
        supervisor.stop(how)?;
        for pid in &orphans {
            signal("KILL", *pid)?;
        }
        // While one of them lives, no other postmaster starts on its memory.
        while orphans.iter().any(|pid| alive(*pid)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn psql(&self, database: &str, sql: &str) -> Command {
        let mut psql = Command::new(self.binaries.join("psql"));
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-U", ROLE, "-d", database, "-c", sql]);
        psql.arg("-h").arg(&self.base).arg("-p").arg(self.port.to_string());
        psql.stdin(Stdio::null());
        psql
    }

    /// Its processes: each backend leads a session of its own, so there is no group to signal.
    fn signal_all(&self, name: &str) -> Result<()> {
        let postmaster = self.supervisor().pid.context("PostgreSQL is not running")?;
        // The postmaster first, so that it forks no more; a backend that is gone by now needs no signal.
        ensure!(signal(name, postmaster)?, "no postmaster {postmaster}");
        for pid in children(postmaster)? {
            signal(name, pid)?;
        }
        Ok(())
    }

    fn supervisor(&self) -> std::sync::MutexGuard<'_, Supervisor> {
        self.supervisor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Supervisor {
    fn start(&mut self) -> Result<()> {
        ensure!(self.pid.is_none(), "PostgreSQL runs already");
        self.pid = Some(self.ask("start")?);
        Ok(())
    }

    fn stop(&mut self, how: Stop) -> Result<()> {
        self.ask(how.signal())?;
        self.pid = None;
        Ok(())
    }

    fn ask(&mut self, word: &str) -> Result<u32> {
        let commands = self.commands.as_mut().context("the shell above PostgreSQL is gone")?;
        writeln!(commands, "{word}")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        line.trim().parse().with_context(|| format!("the shell above PostgreSQL answered {line:?}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A paused one would hear of its end only by SIGKILL, 5 s later.
        let _ = self.signal_all("CONT");
        let supervisor = self.supervisor.get_mut().unwrap_or_else(PoisonError::into_inner);
        supervisor.commands = None;
        // Its files are gone when this returns.
        let _ = supervisor.shell.wait();
    }
}

impl User {
    fn new() -> Result<Self> {
        if id(&["-u"])? != 0 {
            return Ok(Self(None));
        }
        let (user, group) = (id(&["-u", "postgres"]), id(&["-g", "postgres"]));
        Ok(Self(Some((
            user.context("PostgreSQL refuses root, and there is no user `postgres`")?,
            group.context("there is no group of `postgres`")?,
        ))))
    }

    fn command(self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        // It may not read where the tests are.
        command.current_dir("/");
        if let Self(Some((user, group))) = self {
            command.uid(user).gid(group);
        }
        command
    }

    fn own(self, path: &Path) -> Result<()> {
        if let Self(Some((user, group))) = self {
            chown(path, Some(user), Some(group))?;
        }
        Ok(())
    }
}

fn id(args: &[&str]) -> Result<u32> {
    let output = Command::new("id").args(args).output().context("`id` does not start")?;
    String::from_utf8_lossy(&output.stdout).trim().parse().with_context(|| format!("id {args:?} gave no number"))
}

/// Debian keeps them out of PATH.
fn binaries() -> Result<PathBuf> {
    let has = |dir: &PathBuf| dir.join("initdb").is_file() && dir.join("postgres").is_file();
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin")))
        })
        .filter(|(_, dir)| has(dir))
        .collect();
    versions.sort();
    if let Some((_, newest)) = versions.pop() {
        return Ok(newest);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).find(has);
    found.context("PostgreSQL is not installed: expected /usr/lib/postgresql/*/bin or initdb in PATH; tests/run.sh --install installs it")
}

/// A data directory as `initdb` makes it, kept in the build directory from one run to the next.
fn template(binaries: &Path, user: User) -> Result<PathBuf> {
    let version = Command::new(binaries.join("postgres")).arg("--version").output()?;
    let version: String = String::from_utf8_lossy(&version.stdout)
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .collect();
    let own = std::env::current_exe()?;
    let target = own.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file());
    let kept =
        target.unwrap_or(&std::env::temp_dir()).join(format!("{}-by-{}", version.trim_matches('-'), id(&["-u"])?));
    if kept.is_dir() {
        return Ok(kept);
    }
    let dir = tempfile::Builder::new().prefix("mtl-pg").tempdir()?;
    user.own(dir.path())?;
    let made = dir.path().join("data");
    let mut initdb = user.command(binaries.join("initdb"));
    initdb.args(["-U", ROLE, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"]).arg(&made);
    run(&mut initdb).context("initdb")?;
    // Two processes may be here at once; the first one's stays.
    let near =
        tempfile::Builder::new().prefix("postgres").tempdir_in(kept.parent().context("a path without parent")?)?;
    run(Command::new("cp").arg("-a").arg(&made).arg(near.path()))?;
    if fs::rename(near.path().join("data"), &kept).is_err() {
        ensure!(kept.is_dir(), "{} cannot be made", kept.display());
    }
    Ok(kept)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use super::*;

    fn processes(base: &Path) -> usize {
        let base = base.to_str().unwrap();
        let all = fs::read_dir("/proc").unwrap().flatten();
        all.filter(|entry| {
            fs::read_to_string(entry.path().join("cmdline"))
                .is_ok_and(|line| line.contains(base) && line.contains("-D"))
        })
        .count()
    }

    #[tokio::test]
    async fn what_is_committed_outlives_stops_and_nothing_outlives_the_value() {
        let server = Postgres::start().await.unwrap();
        let url = server.database().await.unwrap();
        let database = url.rsplit_once('/').unwrap().1;
        server.query(database, "CREATE TABLE told (n int)").await.unwrap();
        for (n, how) in [Stop::Fast, Stop::Immediate, Stop::Kill].into_iter().enumerate() {
            server.query(database, &format!("INSERT INTO told VALUES ({n})")).await.unwrap();
            server.restart(how).await.unwrap();
            let count = server.query(database, "SELECT count(*) FROM told").await.unwrap();
            assert_eq!(count, (n + 1).to_string(), "{how:?}");
        }
        server.pause().unwrap();
        let asked = tokio::time::timeout(Duration::from_millis(300), server.query(database, "SELECT 1")).await;
        assert!(asked.is_err(), "a paused server answered");
        server.resume().unwrap();
        assert_eq!(server.query(database, "SELECT 1").await.unwrap(), "1");
        let base = server.0.base.clone();
        assert!(processes(&base) > 0);
        server.pause().unwrap();
        drop(server);
        assert!(!base.exists(), "its files are left");
        assert_eq!(processes(&base), 0, "its processes are left");
    }
}
