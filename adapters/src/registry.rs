//! From the name in a profile to its adapter.

use crate::{adapter::Adapter, vendors};

/// The adapters that this build knows.
pub const ADAPTERS: [&dyn Adapter; 4] =
    [&vendors::generic::Generic, &vendors::epic::Epic, &vendors::oracle::Oracle, &vendors::athena::Athena];

/// The adapter of that name.
pub fn adapter(name: &str) -> Option<&'static dyn Adapter> {
    ADAPTERS.into_iter().find(|adapter| adapter.name() == name)
}
