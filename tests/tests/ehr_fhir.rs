//! The FHIR halves of the simulated EHRs do what `vendors.md` part B says, point by point.

// Helpers of tests may panic as tests do; clippy's `allow-*-in-tests` knows only `#[test]` functions.
#![allow(clippy::expect_used, clippy::panic)]

#[path = "ehr_fhir/access.rs"]
mod access;
#[path = "ehr_fhir/athena.rs"]
mod athena;
#[path = "ehr_fhir/bundles.rs"]
mod bundles;
#[path = "ehr_fhir/client.rs"]
mod client;
#[path = "ehr_fhir/epic.rs"]
mod epic;
#[path = "ehr_fhir/every.rs"]
mod every;
#[path = "ehr_fhir/generic.rs"]
mod generic;
#[path = "ehr_fhir/oracle.rs"]
mod oracle;
#[path = "ehr_fhir/writes.rs"]
mod writes;
