//! End to end: the built gateway, simulated EHRs, and an app, over real sockets.

mod bad_input;
mod fhir;
mod launches;
mod telemetry;
mod tokens;
