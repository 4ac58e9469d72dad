//! Epic.

use crate::adapter::Adapter;

pub struct Epic;

impl Adapter for Epic {
    fn name(&self) -> &'static str {
        "epic"
    }
}
