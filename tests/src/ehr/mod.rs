//! Simulated EHRs: as strict as the real ones are strange.
//!
//! A product of its own: `simulated-ehr --vendor epic --port 9100` lets an app team use one in its CI,
//! without the gateway.

pub mod auth;
pub mod contract;
pub mod fhir;
