//! compartment
