//! Everything that speaks to an EHR, or fetches what others name.
//!
//! ```text
//! Identities ──► ClientContext ──► UpstreamClient (one a worker) ──► Connector: guard, DNS, proxy, TLS
//!                                     │ send, with a permit of the site's gate
//!            fetch ◄──────────────────┤
//!   discovery, jwks                   └──► token: code, refresh, client_credentials, revoke
//! ```
//!
//! What an exchange may have done at the EHR is never guessed: [`SendError`] and [`TokenOutcome`] tell
//! "nothing has left" from "the outcome is unknown". Nothing is retried here but what never left.

mod assertion;
mod body;
pub(crate) mod cache;
mod client;
mod connector;
pub mod discovery;
mod ehrs;
mod fetch;
mod gate;
mod guard;
pub mod id_token;
mod jwks;
pub mod keys;
mod retry;
mod template;
mod tls;
pub mod token;

#[cfg(test)]
mod tests;

pub use assertion::{ASSERTION_TYPE, AuthFault, Client, Prover};
pub use body::{BodyError, CollectError, Guarded, Outgoing, collect};
pub use client::{ClientContext, Clients, Identities, NotSent, SendError, SiteLink, UpstreamClient, Waits};
pub use discovery::{Discovered, Discovery, DiscoveryError};
pub use ehrs::{Ehrs, TakeOnFault};
pub use fetch::{FetchError, FetchLimits, Fetched, fetch};
pub use gate::{Gates, Lane, Permit, SiteGate, refresh_share};
pub use guard::{Guard, RefusedAddress};
pub use jwks::{Jwks, JwksError, lifetime};
pub use keys::{KeyFault, SigningSets};
pub use retry::{RETRY_AFTER_CAP, date, retry_after};
pub use template::Placeholders;
pub use tls::{Roots, TlsFault};
pub use token::{CodeGrant, Refusal, RevokeOutcome, TokenClient, TokenHint, TokenOutcome};
