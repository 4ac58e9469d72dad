//! Other processes, by their id.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

/// `kill` with a signal's name; whether there was such a process.
///
/// # Errors
/// When there is no `kill`.
pub fn signal(name: &str, pid: u32) -> Result<bool> {
    let mut kill = Command::new("kill");
    kill.arg(format!("-{name}")).arg(pid.to_string()).stdin(Stdio::null()).stderr(Stdio::null());
    Ok(kill.status().context("`kill` does not start")?.success())
}

/// The processes whose parent is this one.
///
/// # Errors
/// When there is no `/proc`.
pub fn children(of: u32) -> Result<Vec<u32>> {
    let pids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter(|pid| state(*pid).is_some_and(|(_, parent)| parent == of)).collect())
}

/// A zombie is dead.
pub fn alive(pid: u32) -> bool {
    state(pid).is_some_and(|(state, _)| state != 'Z')
}

/// Whether none of its threads runs any more, after SIGSTOP: `kill` returns before the first of them has seen it,
/// and on a busy machine the others go on for a while.
pub fn stands(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let stopped = |stat: String| stat_of(&stat).is_some_and(|(state, _)| matches!(state, 'T' | 'Z' | 'X'));
    // One that has ended meanwhile has no file.
    threads.flatten().all(|thread| fs::read_to_string(thread.path().join("stat")).map_or(true, stopped))
}

/// A process's state and parent; none once it has ended.
fn state(pid: u32) -> Option<(char, u32)> {
    stat_of(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn stat_of(stat: &str) -> Option<(char, u32)> {
    // They stand after the name, which may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_whitespace();
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}
