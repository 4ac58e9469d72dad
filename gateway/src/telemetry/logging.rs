//! Events as JSON lines on standard error, or as text for a terminal.

use tracing_subscriber::{EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use super::traces::Traces;

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Text,
}

/// HTTP libraries log whole heads at `debug` and `trace`, tokens among them: they stay off whatever
/// the operator's filter says.
const NEVER: [&str; 5] = ["hyper=off", "hyper_util=off", "h2=off", "rustls=warn", "sqlx=warn"];

/// Takes on the process's events. `filter` is in `tracing`'s directive syntax (`info`, `mantel=debug`).
///
/// # Errors
/// If a subscriber was there already, or the filter cannot be read.
pub fn init(format: Format, filter: &str, traces: Option<&Traces>) -> anyhow::Result<()> {
    let mut directives = EnvFilter::try_new(filter)?;
    for never in NEVER {
        directives = directives.add_directive(never.parse()?);
    }
    let lines = match format {
        Format::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_writer(std::io::stderr)
            .boxed(),
        Format::Text => tracing_subscriber::fmt::layer().with_target(false).with_writer(std::io::stderr).boxed(),
    };
    let spans = traces.map(Traces::layer);
    tracing_subscriber::registry().with(directives).with(lines).with(spans).try_init()?;
    Ok(())
}
