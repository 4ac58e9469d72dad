//! Start and end of the process.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// SIGXFSZ, which has this number wherever we run (signal(7)).
const FILE_TOO_LARGE: i32 = 25;

/// Lets the process outlive a limit on its files' size (`ulimit -f`, `LimitFSIZE=`): a write fails then, as on a full
/// disk, and what custody holds in memory is kept.
///
/// # Errors
/// If the signal cannot be listened to.
pub fn outlive_limited_files() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    // The handler stays when its listener goes.
    drop(signal(SignalKind::from_raw(FILE_TOO_LARGE))?);
    Ok(())
}

/// Cancels `soft` at the first SIGTERM or SIGINT (requests in work may end), and ends the process at
/// the second, or when `drain` and a little more has passed.
///
/// # Errors
/// If the signals cannot be listened to.
pub fn on_signals(soft: CancellationToken, drain: Duration) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("stopping: requests in work may end");
        soft.cancel();
        tokio::select! {
            _ = terminate.recv() => {},
            _ = interrupt.recv() => {},
            () = tokio::time::sleep(drain + Duration::from_secs(10)) => {},
        }
        tracing::warn!("ended before everything in work was done");
        std::process::exit(1);
    });
    Ok(())
}
