//! Configuration: figment layers (built-in `vendors.toml` < the operator's files < `MANTEL_*`
//! environment), all faults at once, and the checked snapshot that the other rooms see.

mod model;
mod urls;

pub use model::*;
pub use urls::{Base, Urls};
