//! links

/// The parameter that carries a paging link's binding.
pub const BINDING: &str = "_mantel";
