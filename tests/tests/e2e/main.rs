//! End to end: the built gateway, simulated EHRs, and an app, over real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed test panics")]

mod bad_input;
mod clock;
mod cors;
mod crash;
mod custody;
mod deaths;
mod ehr_faults;
mod fhir;
mod keys;
mod launches;
mod leak;
mod memory;
mod processes;
mod raw_http;
mod read_only;
mod readme;
mod registrations;
mod review;
mod store;
mod telemetry;
mod tls;
mod tokens;
mod writes;
