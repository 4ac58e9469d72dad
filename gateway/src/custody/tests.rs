//! Custody against a strict EHR and a real store, with calls counted and time held by the test.

mod deaths;
mod doubt;
mod ends;
mod flow;
mod herd;
mod keeping;
mod lease;
mod many;
mod outage;
mod spill;
mod table;
mod town;
mod wheel;
mod world;
