//! Names of what is configured. They stand in URLs that are filed at vendors' portals, so they are
//! permanent, and one form serves all: `[a-z0-9-]{1,63}`.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What is wrong with a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no {what}: expected 1 to 63 of a-z, 0-9 and -")]
pub struct InvalidName {
    pub what: &'static str,
    pub given: String,
}

fn checked(what: &'static str, text: &str) -> Result<Arc<str>, InvalidName> {
    let fits = (1..=63).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    if fits { Ok(Arc::from(text)) } else { Err(InvalidName { what, given: text.chars().take(80).collect() }) }
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident = $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                checked($what, text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

names! {
    /// An EHR product line: `epic`, `oracle`, `athena`, or one that an operator adds.
    VendorId = "vendor name";
    /// One FHIR base of a vendor and persona.
    SiteId = "site name";
    /// A client registered with Mantel; its name is its `client_id`.
    AppId = "app name";
    /// What was filed at a vendor's portal.
    RegistrationId = "registration name";
    /// A set of keys that signs client assertions, published at `/keys/{name}.json`.
    KeySetId = "key set name";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_form() {
        assert!("general-hospital-2".parse::<SiteId>().is_ok());
        for bad in ["", "General", "a_b", "a/b", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<SiteId>().is_err(), "{bad:?} was taken");
        }
    }
}
