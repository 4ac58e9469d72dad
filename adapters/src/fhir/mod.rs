//! FHIR R4: what a request does, whom a resource is about, and links.

pub mod capability;
pub mod compartment;
pub mod constraint;
pub mod inspect;
pub mod interaction;
pub mod links;
mod members;
pub mod merge;
pub mod operations;
pub mod outcome;
pub mod rewrite;
pub mod types;
pub mod wrap;
