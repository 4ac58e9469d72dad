//! The FHIR road from an app's socket to an EHR's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "the memory test uses the rest")]
mod ehr;
#[allow(dead_code, reason = "the memory test uses the rest")]
mod gateway;

mod access;
mod answers;
mod headers;
mod inspection;
mod metadata;
mod paging;
mod plans;
mod writes;
