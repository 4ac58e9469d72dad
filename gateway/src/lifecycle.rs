//! Start and end of the process.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

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
