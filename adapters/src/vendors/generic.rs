//! Any server that keeps to SMART App Launch and FHIR R4: every phase has its default.

use crate::adapter::Adapter;

pub struct Generic;

impl Adapter for Generic {
    fn name(&self) -> &'static str {
        "generic"
    }
}
