//! Mantel: one SMART on FHIR API in front of many EHRs.
//!
//! Knowledge flows one way; each room may use those to its right, never to its left
//! (`tests/arrows.rs` holds that):
//!
//! ```text
//! main → app → edge → oauth | proxy | admin → session | custody → upstream | replicas → store
//!      → telemetry → config, clock, entropy, secret, error → adapters
//! ```

pub mod admin;
pub mod app;
pub mod clock;
pub mod config;
pub mod custody;
pub mod edge;
pub mod entropy;
pub mod error;
pub mod lifecycle;
pub mod oauth;
pub mod proxy;
pub mod replicas;
pub mod secret;
pub mod session;
pub mod store;
pub mod telemetry;
pub mod upstream;
