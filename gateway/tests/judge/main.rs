//! The judge by tables: scopes, what the EHR says of its token, a request, a verdict.

// The helpers of a test panic as its assertions do.
#![allow(clippy::unwrap_used, clippy::panic)]

mod answers;
mod bundles;
mod operations;
mod pages;
mod property;
mod reads;
mod searches;
mod setup;
mod writes;
