//! The permission set `cruds`, and its two roundings to v1 (`conformance.md` C2).

use std::{fmt, ops::BitOr};

/// A set of create, read, update, delete, search. Displayed as v2 writes it.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Permissions(u8);

impl Permissions {
    pub const NONE: Self = Self(0);
    pub const CREATE: Self = Self(1);
    pub const READ: Self = Self(2);
    pub const UPDATE: Self = Self(4);
    pub const DELETE: Self = Self(8);
    pub const SEARCH: Self = Self(16);
    pub const ALL: Self = Self(31);
    /// What v1 calls `read`: `rs`.
    pub const V1_READ: Self = Self(2 | 16);
    /// What v1 calls `write`: `cud`.
    pub const V1_WRITE: Self = Self(1 | 4 | 8);

    /// In v2's order.
    const LETTERS: [(char, Self); 5] =
        [('c', Self::CREATE), ('r', Self::READ), ('u', Self::UPDATE), ('d', Self::DELETE), ('s', Self::SEARCH)];

    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub const fn intersect(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those of `self` that are not in `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// One by one, in v2's order.
    pub fn iter(self) -> impl Iterator<Item = Self> {
        Self::LETTERS.into_iter().map(|(_, one)| one).filter(move |one| self.contains(*one))
    }

    /// Exactly as v2 has it: at least one letter, in the order `cruds`, none twice.
    pub(crate) fn parse_v2(letters: &str) -> Option<Self> {
        let mut order = Self::LETTERS.into_iter();
        let mut found = Self::NONE;
        for letter in letters.chars() {
            let (_, permission) = order.find(|(known, _)| *known == letter)?;
            found = found.union(permission);
        }
        (!found.is_empty()).then_some(found)
    }

    /// v2's letters in any order.
    pub(crate) fn parse_unordered(letters: &str) -> Option<Self> {
        let mut found = Self::NONE;
        for letter in letters.chars() {
            let (_, permission) = Self::LETTERS.into_iter().find(|(known, _)| *known == letter)?;
            found = found.union(permission);
        }
        (!found.is_empty()).then_some(found)
    }

    pub(crate) fn parse_v1(word: &str) -> Option<Self> {
        match word {
            "read" => Some(Self::V1_READ),
            "write" => Some(Self::V1_WRITE),
            "*" => Some(Self::ALL),
            _ => None,
        }
    }

    /// The v1 word that says exactly this.
    pub fn v1_word(self) -> Option<&'static str> {
        match self {
            Self::V1_READ => Some("read"),
            Self::V1_WRITE => Some("write"),
            Self::ALL => Some("*"),
            _ => None,
        }
    }

    /// The largest set within this one that v1 can say: what a v1 app may be told.
    pub fn v1_floor(self) -> Self {
        self.v1_words().filter(|word| self.contains(*word)).fold(Self::NONE, Self::union)
    }

    /// The smallest set around this one that v1 can say: what a v1 EHR must be asked.
    pub fn v1_ceiling(self) -> Self {
        self.v1_words().filter(|word| !self.intersect(*word).is_empty()).fold(Self::NONE, Self::union)
    }

    fn v1_words(self) -> impl Iterator<Item = Self> {
        [Self::V1_READ, Self::V1_WRITE].into_iter()
    }
}

impl BitOr for Permissions {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

impl fmt::Display for Permissions {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        Self::LETTERS.iter().filter(|(_, one)| self.contains(*one)).try_for_each(|(letter, _)| to.write_char(*letter))
    }
}

impl fmt::Debug for Permissions {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "Permissions({self})")
    }
}
