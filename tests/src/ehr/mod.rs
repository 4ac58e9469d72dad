//! Simulated EHRs: as strict as the real ones are strange.
//!
//! A product of its own: `simulated-ehr --vendor epic --port 9100` lets an app team use one in its CI,
//! without the gateway.
//!
//! [`server::start`] opens a listener for one [`simulator::Simulator`], which asks its two halves: [`auth`],
//! the authorization server, and [`fhir`]. [`contract`] is what the halves know of each other. [`faults`] and
//! [`control`] are for tests, and [`visitor`] goes through the pages as a person would.

pub mod auth;
pub mod contract;
pub mod control;
pub mod faults;
pub mod fhir;
pub mod jwt;
pub mod pages;
pub mod server;
pub mod simulator;
pub mod visitor;
pub mod web;
