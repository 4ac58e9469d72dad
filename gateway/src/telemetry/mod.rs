//! What SREs see. Nothing here identifies a patient: no token, code, secret, patient id, query value
//! or body reaches a log line, a metric or a span (`guard.md`).

pub mod access_log;
pub mod logging;
pub mod metrics;
pub mod traces;

pub use access_log::{AccessLog, AccessRecord};
pub use metrics::{CustodyLabels, Metrics};
