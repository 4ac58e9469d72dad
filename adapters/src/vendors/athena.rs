//! Athena.

use crate::adapter::Adapter;

pub struct Athena;

impl Adapter for Athena {
    fn name(&self) -> &'static str {
        "athena"
    }
}
