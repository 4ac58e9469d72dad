//! Events as JSON lines on standard error, or as text for a terminal.

use tracing::Level;
use tracing_subscriber::{
    EnvFilter, Layer as _, filter::filter_fn, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use super::traces::Traces;

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Text,
}

/// HTTP libraries log whole heads at `debug` and `trace`, tokens among them: they stay off whatever
/// the operator's filter says. No directives: one for a module (`hyper::proto=trace`) would beat those.
const NEVER: [(&str, Option<Level>); 5] =
    [("hyper", None), ("hyper_util", None), ("h2", None), ("rustls", Some(Level::WARN)), ("sqlx", Some(Level::WARN))];

fn may_speak(target: &str, level: &Level) -> bool {
    NEVER.iter().all(|(library, most)| {
        let inside = target.strip_prefix(library).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
        !inside || most.is_some_and(|most| *level <= most)
    })
}

/// Takes on the process's events. `filter` is in `tracing`'s directive syntax (`info`, `mantel=debug`).
///
/// # Errors
/// If a subscriber was there already, or the filter cannot be read.
pub fn init(format: Format, filter: &str, traces: Option<&Traces>) -> anyhow::Result<()> {
    let directives = EnvFilter::try_new(filter)?;
    let never = filter_fn(|of| may_speak(of.target(), of.level()));
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
    tracing_subscriber::registry().with(directives).with(never).with(lines).with(spans).try_init()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_that_see_tokens_are_silent() {
        for (target, level, speaks) in [
            ("mantel::oauth", Level::TRACE, true),
            ("hyper", Level::ERROR, false),
            ("hyper::proto::h1::io", Level::TRACE, false),
            ("hyper_util::client::legacy", Level::WARN, false),
            ("hyper_rustls", Level::WARN, true),
            ("h2::codec", Level::DEBUG, false),
            ("h2o", Level::DEBUG, true),
            ("sqlx::query", Level::DEBUG, false),
            ("sqlx::query", Level::WARN, true),
            ("rustls::client", Level::INFO, false),
        ] {
            assert_eq!(may_speak(target, &level), speaks, "{target} {level}");
        }
    }
}
