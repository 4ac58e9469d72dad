//! Paging links that say too little to be judged when they come back carry what was judged of the
//! search that they continue, under a MAC (`guard.md` 7):
//!
//! ```text
//! _mantel = base64url( MAC[16] ‖ mode ‖ type )     MAC = HMAC-SHA256(key, grant ‖ mode ‖ type ‖ URL)
//! ```
//!
//! The key is derived from the seal key that writes, and those of all that are configured are tried, so that any
//! replica can read what another wrote, also while the seal key changes.

use std::sync::Arc;

use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mantel_adapters::fhir::types::is_resource_type;

use crate::store::{GrantId, sealing::Sealer};

/// 128 bits: a forger has one try a request.
const MAC_LENGTH: usize = 16;

/// What the MAC's key is derived for.
const KEY: &str = "paging links";

/// Tells the MACs of pages from others that the key may make one day.
const PURPOSE: &[u8] = b"mantel page 1\0";

/// What was judged of the search that a page belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageFacts {
    /// The one type that was searched for; none: several.
    pub resource_type: Option<String>,
    /// Whether its answers had to be inspected.
    pub inspected: bool,
}

impl PageFacts {
    fn write(&self) -> Vec<u8> {
        let mut bytes = vec![u8::from(self.inspected)];
        bytes.extend_from_slice(self.resource_type.as_deref().unwrap_or_default().as_bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (mode, name) = bytes.split_first()?;
        let name = std::str::from_utf8(name).ok()?;
        let resource_type = match name {
            "" => None,
            name if is_resource_type(name) => Some(name.to_owned()),
            _ => return None,
        };
        let inspected = match mode {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some(Self { resource_type, inspected })
    }
}

/// Makes and checks bindings.
pub struct Pages(Arc<Sealer>);

impl Pages {
    pub fn new(sealer: Arc<Sealer>) -> Self {
        Self(sealer)
    }

    /// `url`: [`mantel_adapters::fhir::links::canonical`].
    pub fn bind(&self, grant: GrantId, facts: &PageFacts, url: &str) -> String {
        let facts = facts.write();
        let tag = tag(&self.0.derive(KEY), grant, &facts, url);
        let mut bytes = tag.as_ref().get(..MAC_LENGTH).unwrap_or_default().to_vec();
        bytes.extend_from_slice(&facts);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The facts, if this binding was made for that URL and grant.
    pub fn open(&self, grant: GrantId, binding: &str, url: &str) -> Option<PageFacts> {
        let bytes = URL_SAFE_NO_PAD.decode(binding).ok()?;
        let (mac, facts) = bytes.split_at_checked(MAC_LENGTH)?;
        let fits = |key: [u8; 32]| {
            let tag = tag(&key, grant, facts, url);
            tag.as_ref().get(..MAC_LENGTH).is_some_and(|made| verify_slices_are_equal(made, mac).is_ok())
        };
        self.0.derive_each(KEY).any(fits).then(|| PageFacts::read(facts)).flatten()
    }
}

fn tag(key: &[u8; 32], grant: GrantId, facts: &[u8], url: &str) -> hmac::Tag {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    context.update(PURPOSE);
    context.update(grant.0.as_bytes());
    // Of fixed width, so that no byte of the facts can be read as one of the URL.
    context.update(&u64::try_from(facts.len()).unwrap_or(u64::MAX).to_be_bytes());
    context.update(facts);
    context.update(url.as_bytes());
    context.sign()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::SealKey, secret::Secret};

    fn pages(keys: &[(&str, u8)]) -> Pages {
        let key = |(id, byte): &(&str, u8)| SealKey { id: (*id).into(), bytes: Secret::new([*byte; 32]) };
        Pages::new(Arc::new(Sealer::new(&keys.iter().map(key).collect::<Vec<_>>()).unwrap()))
    }

    #[test]
    fn a_binding_outlives_a_change_of_the_key_that_writes() {
        let facts = PageFacts { resource_type: None, inspected: true };
        let binding = pages(&[("old", 1), ("new", 2)]).bind(grant(1), &facts, "?_getpages=a");
        assert_eq!(pages(&[("new", 2), ("old", 1)]).open(grant(1), &binding, "?_getpages=a"), Some(facts));
        assert_eq!(pages(&[("new", 2)]).open(grant(1), &binding, "?_getpages=a"), None);
    }

    fn grant(number: u128) -> GrantId {
        GrantId(uuid::Uuid::from_u128(number))
    }

    #[test]
    fn a_binding_opens_its_own_url_and_grant_only() {
        let pages_of_one = pages(&[("k", 7)]);
        for resource_type in [None, Some("Observation".to_owned())] {
            for inspected in [false, true] {
                let facts = PageFacts { resource_type: resource_type.clone(), inspected };
                let binding = pages_of_one.bind(grant(1), &facts, "?_getpages=a");
                assert_eq!(pages_of_one.open(grant(1), &binding, "?_getpages=a"), Some(facts));
                assert_eq!(pages_of_one.open(grant(1), &binding, "?_getpages=b"), None);
                assert_eq!(pages_of_one.open(grant(2), &binding, "?_getpages=a"), None);
                assert_eq!(pages(&[("k", 8)]).open(grant(1), &binding, "?_getpages=a"), None);
            }
        }
    }

    #[test]
    fn no_changed_byte_passes() {
        let pages_of_one = pages(&[("k", 7)]);
        let facts = PageFacts { resource_type: Some("Observation".into()), inspected: true };
        let binding = URL_SAFE_NO_PAD.decode(pages_of_one.bind(grant(1), &facts, "/Observation?cursor=1")).unwrap();
        for place in 0..binding.len() {
            let mut changed = binding.clone();
            changed[place] ^= 1;
            let changed = URL_SAFE_NO_PAD.encode(changed);
            assert_eq!(pages_of_one.open(grant(1), &changed, "/Observation?cursor=1"), None, "byte {place}");
        }
        for length in 0..binding.len() {
            let cut = URL_SAFE_NO_PAD.encode(&binding[..length]);
            assert_eq!(pages_of_one.open(grant(1), &cut, "/Observation?cursor=1"), None, "cut to {length}");
        }
    }
}
