//! Sessions with apps: our own codes and tokens, our id_tokens, and the grant behind a bearer.

pub mod bearers;
pub mod mint;
pub mod signer;

pub use bearers::{Bearers, Session};
pub use mint::Mint;
pub use signer::Signer;
