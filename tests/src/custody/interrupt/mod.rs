//! Interrupted refreshes, by count: a process with some forty refreshes in flight is killed (`kill -9`) at random and
//! at chosen instants, again and again, before a strict EHR that burns refresh tokens. Each refresh that was cut is
//! counted by the instant, with what it cost.

mod account;
mod count;
mod driver;
mod endpoint;
mod told;
pub mod victim;

pub use account::Report;
pub use count::Instant;
pub use driver::{Options, run};
pub use endpoint::Die;
