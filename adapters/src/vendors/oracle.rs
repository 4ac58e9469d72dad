//! Oracle.

use crate::adapter::Adapter;

pub struct Oracle;

impl Adapter for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
    }
}
