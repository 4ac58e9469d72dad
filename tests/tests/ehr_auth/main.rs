//! The authorization half of the simulated EHRs over real HTTP: full flows without a browser, and what each
//! vendor refuses, point by point.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod assertion;
mod athena;
mod epic;
mod faults;
mod generic;
mod kit;
mod oracle;
mod portal;
mod practice;
