//! The configuration as an operator meets it: files in, one line a fault out.

// The helpers of a test panic as its assertions do.
#![allow(clippy::unwrap_used, clippy::panic)]

mod check;
mod example;
mod faults;
mod fuzz;
mod layers;
mod rules;
mod setup;
