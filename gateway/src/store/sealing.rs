//! Sealing at rest: AES-256-GCM under a key per record, derived from a configured seal key.
//!
//! ```text
//! 1 | length of the key id | key id | nonce (12) | ciphertext and tag
//! ```
//!
//! The associated data is the record's place (table, column, id), so that whoever can write to the
//! database still cannot show one grant's tokens under another. A key per record keeps every key far
//! below the 2^32 seals that random nonces allow (NIST SP 800-38D, 8.3).

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    hkdf::{HKDF_SHA256, Prk, Salt},
    hmac,
};
use serde::{Serialize, de::DeserializeOwned};
use zeroize::{Zeroize, Zeroizing};

use super::{SealedSuccessor, StoreError, StoreResult, records};
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

/// The configured seal keys: all read, one of them writes. The first is the one that shall write, and it does
/// once every live process holds it (`rotation`).
pub struct Sealer {
    keys: Arc<Keys>,
    /// Which of them writes, as [`Keys::all`] counts.
    writing: AtomicUsize,
}

struct Keys {
    first: Key,
    others: Vec<Key>,
}

impl Keys {
    fn all(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

struct Key {
    id: String,
    prk: Prk,
}

/// A known text: sealed by a key, it tells whether another process has the same bytes under that key's id.
const PROOF: &[u8] = b"mantel";

impl Sealer {
    /// Writes with the first key until it is told otherwise. Refuses an empty list, ids that are empty, longer
    /// than 255 bytes or there twice.
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
            Some(first) => {
                Ok(Self { keys: Arc::new(Keys { first, others: made.collect() }), writing: AtomicUsize::new(0) })
            }
            None => refuse("`store.seal` is empty: expected at least one key of 32 bytes".into()),
        }
    }

    // ---- which key ---------------------------------------------------------------------------------------

    /// The id of the key that writes.
    pub fn writes_with(&self) -> &str {
        &self.writing().id
    }

    /// The id of the key that shall write: the first of the list.
    pub fn prefers(&self) -> &str {
        &self.keys.first.id
    }

    /// Writes with another key of the list from now on. False: there is none of that id.
    ///
    /// Every live process must be able to read what is written so: [`super::rotation`] knows when.
    pub(in crate::store) fn write_with(&self, id: &str) -> bool {
        let found = self.keys.all().position(|key| key.id == id);
        if let Some(index) = found {
            self.writing.store(index, Ordering::Release);
        }
        found.is_some()
    }

    /// The same keys, of which this one goes on writing: for what must be sealed and named by one key.
    pub(in crate::store) fn fixed(&self) -> Arc<Self> {
        Arc::new(Self { keys: self.keys.clone(), writing: AtomicUsize::new(self.writing.load(Ordering::Acquire)) })
    }

    /// As [`Self::fixed`], writing with the key of that id.
    pub(in crate::store) fn fixed_to(&self, id: &str) -> StoreResult<Arc<Self>> {
        let fixed = self.fixed();
        if fixed.write_with(id) { Ok(fixed) } else { Err(StoreError::UnknownSealKey(id.to_owned())) }
    }

    /// The ids of the keys, each with a fingerprint that tells other bytes of the same id.
    pub fn held(&self) -> BTreeMap<String, String> {
        let shown = |key: &Key| {
            let print = key.derive("fingerprint");
            print.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        self.keys.all().map(|key| (key.id.clone(), shown(key))).collect()
    }

    pub fn holds(&self, id: &str) -> bool {
        self.key(id).is_some()
    }

    fn writing(&self) -> &Key {
        self.keys.all().nth(self.writing.load(Ordering::Acquire)).unwrap_or(&self.keys.first)
    }

    fn key(&self, id: &str) -> Option<&Key> {
        self.keys.all().find(|key| key.id == id)
    }

    /// The writing one first.
    fn each(&self) -> impl Iterator<Item = &Key> {
        let first = self.writing();
        std::iter::once(first).chain(self.keys.all().filter(|key| key.id != first.id))
    }

    // ---- names and derived keys --------------------------------------------------------------------------

    /// A key for another purpose, such as the MAC of paging links, from the key that writes: processes that
    /// write with the same key agree on it.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        self.writing().derive(purpose)
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

    // ---- records -----------------------------------------------------------------------------------------

    /// Seals `plain`, which is overwritten.
    pub fn seal(&self, place: Place<'_>, mut plain: Zeroizing<Vec<u8>>) -> StoreResult<Vec<u8>> {
        self.writing().seal(place, &mut plain).map_err(|_| StoreError::Unavailable("sealing failed".into()))
    }

    /// Opens what [`Self::seal`] made for the same place.
    ///
    /// # Errors
    /// [`StoreError::UnknownSealKey`], or [`StoreError::Corrupt`] for what is cut, changed or moved.
    pub fn open(&self, place: Place<'_>, sealed: &[u8]) -> StoreResult<Zeroizing<Vec<u8>>> {
        let corrupt = |what: &str| StoreError::Corrupt(format!("{}.{}: {what}", place.table, place.column));
        let (id, nonce, body) = split(sealed).ok_or_else(|| corrupt("this is no sealed record"))?;
        let Some(key) = self.keys.all().find(|key| key.id.as_bytes() == id) else {
            return Err(StoreError::UnknownSealKey(shown_id(id)));
        };
        key.open(place, nonce, body).ok_or_else(|| corrupt("the record was changed, or belongs elsewhere"))
    }

    /// Seals again, by the key that writes, what another key has sealed; from one place to another.
    pub(in crate::store) fn reseal(&self, from: Place<'_>, to: Place<'_>, sealed: &[u8]) -> StoreResult<Vec<u8>> {
        self.seal(to, self.open(from, sealed)?)
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

    // ---- proofs ------------------------------------------------------------------------------------------

    /// The known text, sealed by the key of that id.
    pub(in crate::store) fn prove(&self, id: &str) -> StoreResult<Vec<u8>> {
        self.fixed_to(id)?.seal(records::proof_place(id), Zeroizing::new(PROOF.to_vec()))
    }

    /// Whether the key of that id is the one which made the proof.
    ///
    /// # Errors
    /// [`StoreError::UnknownSealKey`] if there is none of that id, [`StoreError::Corrupt`] if it has other bytes.
    pub(in crate::store) fn check(&self, id: &str, proof: &[u8]) -> StoreResult<()> {
        if !self.holds(id) {
            return Err(StoreError::UnknownSealKey(id.to_owned()));
        }
        match self.open(records::proof_place(id), proof) {
            Ok(_) => Ok(()),
            Err(_) => Err(StoreError::Corrupt(format!(
                "the key {id:?} in `store.seal` is not the one of that name which this database is sealed by: put \
                 the bytes of the old key back, and give a new key an id of its own"
            ))),
        }
    }
}

/// The id of the key that sealed a record; none: it is no sealed record.
pub fn sealed_by(sealed: &[u8]) -> Option<String> {
    let (&[version, length], rest) = sealed.split_first_chunk()?;
    let (id, _) = rest.split_at_checked(usize::from(length))?;
    (version == VERSION && !id.is_empty()).then(|| shown_id(id))
}

/// What each record sealed by the key of that id begins with, and no other.
pub(in crate::store) fn prefix(id: &str) -> Vec<u8> {
    let length = u8::try_from(id.len()).unwrap_or(u8::MAX);
    [&[VERSION, length], id.as_bytes()].concat()
}

/// Keys' ids are printable, and what claims to be one may be anything.
fn shown_id(id: &[u8]) -> String {
    String::from_utf8_lossy(id).chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(64).collect()
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
        sealed.extend(prefix(&self.id));
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
mod tests;
