//! SMART App Launch 2.2, both as server and as client.

pub mod claims;
pub mod discovery;
pub mod error;
pub(crate) mod json;
pub mod launch;
pub mod pkce;
pub mod scope;
pub mod token;
pub mod translate;
