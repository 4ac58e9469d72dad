//! Sealing at rest: AES-256-GCM under a key per record, derived from a configured seal key.
//!
//! ```text
//! 1 | length of the key id | key id | nonce (12) | ciphertext and tag
//! ```
//!
//! The associated data is the record's place (table, column, id), so that whoever can write to the
//! database still cannot show one grant's tokens under another. A key per record keeps every key far
//! below the 2^32 seals that random nonces allow (NIST SP 800-38D, 8.3).

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    hkdf::{HKDF_SHA256, Prk, Salt},
    hmac,
};
use serde::{Serialize, de::DeserializeOwned};
use zeroize::{Zeroize, Zeroizing};

use super::{SealedSuccessor, StoreError, StoreResult};
use crate::{config::SealKey, secret::Secret};

const VERSION: u8 = 1;
const TAG_LEN: usize = 16;

/// Where a sealed value lives. Each place is another key or other associated data.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub table: &'static str,
    pub column: &'static str,
    pub id: &'a [u8],
}

impl Place<'_> {
    /// Names have no zero byte and the id comes last, so that no two places give one string.
    fn bytes(&self, label: &str, column: &str) -> Vec<u8> {
        [label.as_bytes(), self.table.as_bytes(), column.as_bytes(), self.id].join(&0)
    }
}

/// The configured seal keys: the first one writes, all read.
pub struct Sealer {
    first: Key,
    others: Vec<Key>,
}

struct Key {
    id: String,
    prk: Prk,
}

impl Sealer {
    /// Refuses an empty list, ids that are empty, longer than 255 bytes or there twice.
    pub fn new(keys: &[SealKey]) -> StoreResult<Self> {
        let refuse = |what: String| Err(StoreError::Incompatible(what));
        let mut made: Vec<Key> = Vec::with_capacity(keys.len());
        for key in keys {
            if key.id.is_empty() || key.id.len() > 255 {
                return refuse(format!("`store.seal`: the id {:?} is not 1 to 255 bytes long", key.id));
            }
            if made.iter().any(|other| other.id == key.id) {
                return refuse(format!("`store.seal`: the id {:?} is there twice", key.id));
            }
            let prk = Salt::new(HKDF_SHA256, b"mantel store").extract(key.bytes.expose());
            made.push(Key { id: key.id.clone(), prk });
        }
        let mut made = made.into_iter();
        match made.next() {
            Some(first) => Ok(Self { first, others: made.collect() }),
            None => refuse("`store.seal` is empty: expected at least one key of 32 bytes".into()),
        }
    }

    /// The id of the key that writes.
    pub fn writes_with(&self) -> &str {
        &self.first.id
    }

    /// A key for another purpose, such as the MAC of paging links, from the key that writes: replicas
    /// with the same first key agree on it.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        self.first.derive(purpose)
    }

    /// The same from each key, the writing one first: for what an older key has marked.
    pub fn derive_each(&self, purpose: &str) -> impl Iterator<Item = [u8; 32]> {
        self.each().map(move |key| key.derive(purpose))
    }

    /// Names a value that must be found again but not be guessed from a dump (a patient, a subject):
    /// one name per key, the writing one's first.
    pub fn names(&self, purpose: &str, parts: &[&[u8]]) -> Vec<[u8; 32]> {
        self.derive_each(purpose).map(|key| mac(&key, parts)).collect()
    }

    /// Seals `plain`, which is overwritten.
    pub fn seal(&self, place: Place<'_>, mut plain: Zeroizing<Vec<u8>>) -> StoreResult<Vec<u8>> {
        self.first.seal(place, &mut plain).map_err(|_| StoreError::Unavailable("sealing failed".into()))
    }

    /// Opens what [`Self::seal`] made for the same place.
    ///
    /// # Errors
    /// [`StoreError::UnknownSealKey`], or [`StoreError::Corrupt`] for what is cut, changed or moved.
    pub fn open(&self, place: Place<'_>, sealed: &[u8]) -> StoreResult<Zeroizing<Vec<u8>>> {
        let corrupt = |what: &str| StoreError::Corrupt(format!("{}.{}: {what}", place.table, place.column));
        let (id, nonce, body) = split(sealed).ok_or_else(|| corrupt("this is no sealed record"))?;
        let Some(key) = self.each().find(|key| key.id.as_bytes() == id) else {
            return Err(StoreError::UnknownSealKey(String::from_utf8_lossy(id).into_owned()));
        };
        key.open(place, nonce, body).ok_or_else(|| corrupt("the record was changed, or belongs elsewhere"))
    }

    pub fn seal_json<T: Serialize + ?Sized>(&self, place: Place<'_>, value: &T) -> StoreResult<Vec<u8>> {
        let mut plain = Wiped(Zeroizing::new(Vec::with_capacity(1024)));
        serde_json::to_writer(&mut plain, value)
            .map_err(|error| StoreError::Corrupt(format!("{}.{}: {error}", place.table, place.column)))?;
        self.seal(place, plain.0)
    }

    pub fn open_json<T: DeserializeOwned>(&self, place: Place<'_>, sealed: &[u8]) -> StoreResult<T> {
        let plain = self.open(place, sealed)?;
        // serde's messages quote values: only where it stopped may be told.
        serde_json::from_slice(&plain).map_err(|error| {
            StoreError::Corrupt(format!(
                "{}.{}: not the expected form at {}",
                place.table,
                place.column,
                error.column()
            ))
        })
    }

    fn each(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl Key {
    fn derive(&self, purpose: &str) -> [u8; 32] {
        expand(&self.prk, &[b"mantel purpose\0".as_slice(), purpose.as_bytes()].concat())
    }

    fn aead(&self, place: Place<'_>) -> Result<RandomizedNonceKey, aws_lc_rs::error::Unspecified> {
        let key = Zeroizing::new(expand(&self.prk, &place.bytes("mantel record", "")));
        RandomizedNonceKey::new(&AES_256_GCM, key.as_slice())
    }

    fn seal(&self, place: Place<'_>, plain: &mut [u8]) -> Result<Vec<u8>, aws_lc_rs::error::Unspecified> {
        let (nonce, tag) = self
            .aead(place)?
            .seal_in_place_separate_tag(Aad::from(place.bytes("mantel place", place.column)), plain)?;
        let mut sealed = Vec::with_capacity(2 + self.id.len() + NONCE_LEN + plain.len() + TAG_LEN);
        sealed.extend([VERSION, u8::try_from(self.id.len()).unwrap_or(u8::MAX)]);
        sealed.extend(self.id.as_bytes());
        sealed.extend(nonce.as_ref());
        sealed.extend(&*plain);
        sealed.extend(tag.as_ref());
        Ok(sealed)
    }

    fn open(&self, place: Place<'_>, nonce: [u8; NONCE_LEN], body: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let mut plain = Zeroizing::new(body.to_vec());
        let place_bytes = place.bytes("mantel place", place.column);
        let length =
            self.aead(place).ok()?.open_in_place(Nonce::from(&nonce), Aad::from(place_bytes), &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }
}

fn split(sealed: &[u8]) -> Option<(&[u8], [u8; NONCE_LEN], &[u8])> {
    let (&[version, length], rest) = sealed.split_first_chunk()?;
    let (id, rest) = rest.split_at_checked(usize::from(length))?;
    let (nonce, body) = rest.split_first_chunk()?;
    (version == VERSION && body.len() >= TAG_LEN).then_some((id, *nonce, body))
}

#[allow(clippy::expect_used, reason = "32 bytes is a length that HKDF-SHA256 always gives")]
fn expand(prk: &Prk, info: &[u8]) -> [u8; 32] {
    let mut out = [0_u8; 32];
    prk.expand(&[info], HKDF_SHA256).and_then(|okm| okm.fill(&mut out)).expect("HKDF-SHA256 gives 32 bytes");
    out
}

/// HMAC-SHA256 over parts, each with its length, so that no two lists give one string.
fn mac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut out = [0_u8; 32];
    out.copy_from_slice(context.sign().as_ref());
    out
}

/// A growing buffer that leaves no copies behind: `Vec` would, each time it moves.
struct Wiped(Zeroizing<Vec<u8>>);

impl std::io::Write for Wiped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.capacity() - self.0.len() < bytes.len() {
            let mut larger = Vec::with_capacity((self.0.len() + bytes.len()).saturating_mul(2));
            larger.extend_from_slice(&self.0);
            self.0.zeroize();
            *self.0 = larger;
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

// ---- the successor of a refresh token ----------------------------------------------------------------

fn successor_key(presented: &str) -> Key {
    Key { id: "predecessor".into(), prk: Salt::new(HKDF_SHA256, b"mantel successor").extract(presented.as_bytes()) }
}

const SUCCESSOR: Place<'static> = Place { table: "refresh_tokens", column: "successor", id: b"" };

/// Seals the successor of a refresh token of ours under a key derived from the presented predecessor:
/// the store, which holds only its hash, cannot open it, and any replica that is shown it can.
pub fn seal_successor(presented: &str, successor: &str) -> SealedSuccessor {
    let mut plain = Zeroizing::new(successor.as_bytes().to_vec());
    // Where sealing failed there is nothing to open: the grace is lost, the token is not.
    SealedSuccessor(successor_key(presented).seal(SUCCESSOR, &mut plain).unwrap_or_default())
}

/// Opens it again for who presents the same predecessor.
pub fn open_successor(presented: &str, sealed: &SealedSuccessor) -> Option<Secret<String>> {
    let (_, nonce, body) = split(&sealed.0)?;
    let plain = successor_key(presented).open(SUCCESSOR, nonce, body)?;
    std::str::from_utf8(&plain).ok().map(Secret::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(ids: &[(&str, u8)]) -> Sealer {
        let keys: Vec<_> =
            ids.iter().map(|(id, byte)| SealKey { id: (*id).into(), bytes: Secret::new([*byte; 32]) }).collect();
        Sealer::new(&keys).unwrap()
    }

    fn plain(text: &str) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(text.as_bytes().to_vec())
    }

    const HERE: Place<'static> = Place { table: "grants", column: "tokens", id: b"1" };

    #[test]
    fn a_record_opens_at_its_place_only() {
        let sealer = keys(&[("a", 1)]);
        let sealed = sealer.seal(HERE, plain("the text")).unwrap();
        assert_eq!(&sealed[..3], &[1, 1, b'a']);
        assert_eq!(*sealer.open(HERE, &sealed).unwrap(), b"the text");
        for elsewhere in
            [Place { id: b"2", ..HERE }, Place { column: "facts", ..HERE }, Place { table: "codes", ..HERE }]
        {
            assert!(matches!(sealer.open(elsewhere, &sealed), Err(StoreError::Corrupt(_))));
        }
    }

    #[test]
    fn each_changed_or_missing_byte_is_noticed() {
        let sealer = keys(&[("a", 1)]);
        let sealed = sealer.seal(HERE, plain("the text")).unwrap();
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(sealer.open(HERE, &changed).is_err(), "byte {at}");
            assert!(sealer.open(HERE, &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn the_first_key_writes_and_all_read() {
        let old = keys(&[("old", 1)]).seal(HERE, plain("x")).unwrap();
        let both = keys(&[("new", 2), ("old", 1)]);
        assert_eq!(*both.open(HERE, &old).unwrap(), b"x");
        let new = both.seal(HERE, plain("y")).unwrap();
        assert!(matches!(keys(&[("old", 1)]).open(HERE, &new), Err(StoreError::UnknownSealKey(id)) if id == "new"));
        assert_eq!(*keys(&[("new", 2)]).open(HERE, &new).unwrap(), b"y");
        assert!(matches!(keys(&[("new", 3)]).open(HERE, &new), Err(StoreError::Corrupt(_))));
    }

    #[test]
    fn keys_that_cannot_serve_are_refused() {
        let key = |id: &str| SealKey { id: id.into(), bytes: Secret::new([1; 32]) };
        for bad in [vec![], vec![key("")], vec![key(&"x".repeat(256))], vec![key("a"), key("a")]] {
            assert!(Sealer::new(&bad).is_err());
        }
    }

    #[test]
    fn a_derived_key_depends_on_key_and_purpose() {
        let sealer = keys(&[("a", 1), ("b", 2)]);
        assert_eq!(sealer.derive("paging"), keys(&[("c", 1)]).derive("paging"));
        assert_ne!(sealer.derive("paging"), sealer.derive("other"));
        assert_eq!(
            sealer.derive_each("paging").collect::<Vec<_>>(),
            [sealer.derive("paging"), keys(&[("b", 2)]).derive("paging")]
        );
        assert_ne!(sealer.names("p", &[b"ab", b"c"]), sealer.names("p", &[b"a", b"bc"]));
    }

    #[test]
    fn a_successor_opens_for_its_predecessor_only() {
        let sealed = seal_successor("mtl_rt_one", "mtl_rt_two");
        assert_eq!(open_successor("mtl_rt_one", &sealed).unwrap().expose(), "mtl_rt_two");
        assert!(open_successor("mtl_rt_other", &sealed).is_none());
        assert!(open_successor("mtl_rt_one", &SealedSuccessor(vec![])).is_none());
    }

    #[test]
    fn a_long_record_survives_the_growing_buffer() {
        let sealer = keys(&[("a", 1)]);
        let long: Vec<String> = (0..10_000).map(|n| n.to_string()).collect();
        let sealed = sealer.seal_json(HERE, &long).unwrap();
        assert_eq!(sealer.open_json::<Vec<String>>(HERE, &sealed).unwrap(), long);
        assert!(matches!(sealer.open_json::<u8>(HERE, &sealed), Err(StoreError::Corrupt(_))));
    }
}
