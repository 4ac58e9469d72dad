//! Configuration: figment layers (built-in `vendors.toml` < the operator's files < `MANTEL_*`
//! environment), all faults at once, and the checked snapshot that the other rooms see.
//!
//! ```text
//! Sources → layers (figment, with the place of each key) → reader (typed, notes what is wrong and where)
//!         → server, profiles, registrations, sites, apps → cross → Config
//! ```
//!
//! A fault names file, line and key, what was given and what was expected; it never shows a secret.

mod address;
mod apps;
mod cross;
mod database;
mod describe;
mod fault;
mod layers;
mod load;
mod model;
mod profile_checks;
mod profiles;
mod reader;
mod registrations;
mod scopes;
mod secrets;
mod server;
mod sites;
mod sources;
mod urls;

pub use fault::{Fault, Faults, Note, Origin};
pub use load::{Loaded, Provenance, load};
pub use model::*;
pub use sources::{Disk, Files, Sources};
pub use urls::{Base, Urls};
