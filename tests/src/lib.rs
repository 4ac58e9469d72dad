//! Simulated EHRs, the sandbox, and what Mantel's end-to-end tests are built of.
//!
//! [`ehr`] shares no code with the gateway: a shared bug must not hide.

pub mod custody;
pub mod demo;
pub mod ehr;
pub mod harness;
pub mod ports;
pub mod sandbox;
pub mod storm;
