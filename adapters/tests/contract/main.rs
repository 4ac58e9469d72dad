//! One suite over all vendors: the same cases for each profile and adapter, what differs listed as data,
//! and every fixture with its expected result.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail by panicking")]

mod discovery;
mod errors;
mod hostile;
mod identity;
mod plans;
mod profiles;
mod support;
mod tokens;
