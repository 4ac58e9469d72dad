//! Token answers of EHRs, parsed leniently.

/// Filled by the parser.
pub struct TokenAnswer {}
