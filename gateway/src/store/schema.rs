//! The schema's steps, the same for each engine: its tables in two dialects.
//!
//! They only add (`tests/store.rs` holds that), so that a binary of the level before goes on working beside
//! and after this one: a deploy can be rolled out and back.

/// A migration.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub version: i64,
    pub name: &'static str,
    pub sqlite: &'static str,
    pub postgres: &'static str,
}

macro_rules! step {
    ($version:literal, $name:literal, $file:literal) => {
        Step {
            version: $version,
            name: $name,
            sqlite: include_str!(concat!("migrations/sqlite/", $file)),
            postgres: include_str!(concat!("migrations/postgres/", $file)),
        }
    };
}

/// Oldest first.
pub const STEPS: &[Step] = &[
    step!(1, "begin", "0001_begin.sql"),
    step!(2, "replicas", "0002_replicas.sql"),
    step!(3, "seal key states", "0003_seal_key_states.sql"),
    step!(4, "last use", "0004_last_use.sql"),
    step!(5, "registrations", "0005_registrations.sql"),
];

/// The steps that a binary knows. Its level is the last of them: a schema may ask for a later one in
/// `min_binary`.
#[derive(Clone, Debug)]
pub struct Schema {
    steps: Vec<Step>,
}

impl Default for Schema {
    /// This binary's.
    fn default() -> Self {
        Self { steps: STEPS.to_vec() }
    }
}

impl Schema {
    /// What a later binary would know: for tests of rolling upgrades.
    #[must_use]
    pub fn and(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    pub fn level(&self) -> i64 {
        self.steps.last().map_or(0, |step| step.version)
    }
}
