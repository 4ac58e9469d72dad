//! One file a vendor; no vendor knows another.

pub mod athena;
pub mod epic;
pub mod generic;
pub mod oracle;
