//! The vocabulary of SMART App Launch and FHIR R4, and what each EHR vendor does differently.
//!
//! Values in, values out: this crate does no IO, reads no clock and draws no random numbers
//! (`tests/purity.rs` holds that). Whoever needs the time or a random value hands it in.
//!
//! - [`smart`]: scopes, discovery documents, token answers, launch context, OAuth errors.
//! - [`fhir`]: interactions, outcomes, patient compartments, links and their rewriting.
//! - [`profile`]: what can be said of a vendor in data; the built-in ones are in `vendors.toml`.
//! - [`adapter`] and [`vendors`]: what a profile cannot say in data.

pub mod adapter;
pub mod fhir;
pub mod profile;
pub mod registry;
pub mod site;
pub mod smart;
pub mod vendors;
