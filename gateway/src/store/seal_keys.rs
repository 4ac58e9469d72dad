//! The seal keys as the store knows them, and what is sealed by each.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A seal key that the store knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownSealKey {
    pub id: String,
    pub state: SealKeyState,
    /// A known text, sealed by it.
    pub proof: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SealKeyState {
    /// A process that starts must hold it; records may be sealed by it.
    Held,
    /// As `Held`, and who starts writes with it.
    Writing,
    /// No record is sealed by it: nobody needs it.
    Retired,
}

impl SealKeyState {
    pub const ALL: [Self; 3] = [Self::Held, Self::Writing, Self::Retired];

    pub const fn text(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Writing => "writing",
            Self::Retired => "retired",
        }
    }
}

/// A table with sealed columns. The proofs of `seal_keys` are each sealed by their own key, and a successor in
/// `refresh_tokens` by its predecessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SealedTable {
    Grants,
    Launches,
    EhrLaunches,
    Codes,
    Subjects,
    Outbox,
    SigningKeys,
}

impl SealedTable {
    pub const ALL: [Self; 7] =
        [Self::Grants, Self::Launches, Self::EhrLaunches, Self::Codes, Self::Subjects, Self::Outbox, Self::SigningKeys];

    pub const fn text(self) -> &'static str {
        match self {
            Self::Grants => "grants",
            Self::Launches => "launches",
            Self::EhrLaunches => "ehr_launches",
            Self::Codes => "codes",
            Self::Subjects => "subjects",
            Self::Outbox => "outbox",
            Self::SigningKeys => "signing_keys",
        }
    }
}

/// What one call of [`super::Store::reseal`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resealed {
    pub resealed: u64,
    /// Changed by somebody else meanwhile, who sealed them by whatever key writes there.
    pub overtaken: u64,
    /// Records that cannot be opened, and why. They stay as they are.
    pub unreadable: Vec<String>,
    /// Where the next call goes on; none: the table's end was reached.
    pub next: Option<Vec<u8>>,
}

impl Resealed {
    pub(super) fn count(&mut self, seen: usize, last: Option<Vec<u8>>, wanted: usize, swapped: u64, limit: u32) {
        self.resealed = swapped;
        self.overtaken = u64::try_from(wanted).unwrap_or(0).saturating_sub(swapped);
        // Fewer than were asked for: there are no more.
        self.next = last.filter(|_| seen >= usize::try_from(limit).unwrap_or(usize::MAX));
    }
}

/// How many records of each table each key has sealed, by the key's id. A record whose id cannot be read is
/// counted under the empty one.
pub type SealUsage = BTreeMap<String, BTreeMap<SealedTable, u64>>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retired {
    /// Retired now, or before.
    Yes,
    /// So many records are sealed by it.
    Sealed(u64),
    /// It is the one that writes.
    Writes,
    /// The store knows none of that id.
    Unknown,
}
