//! Gateways as an operator runs several of them: what they share, and what may happen to one of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed test panics")]

mod away;
mod deaths;
mod killed;
mod login;
mod quiet;
mod rolling;
mod skewed;
mod slow;
mod stopped;
mod world;
