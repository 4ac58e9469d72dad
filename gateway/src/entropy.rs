//! Random values, and the names made of them.

use std::sync::Arc;

use aws_lc_rs::rand::SecureRandom as _;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::{clock::Timestamp, secret::Secret};

pub trait Entropy: Send + Sync {
    fn fill(&self, bytes: &mut [u8]);
}

pub type SharedEntropy = Arc<dyn Entropy>;

/// The operating system's generator, by way of aws-lc.
pub struct SystemEntropy(aws_lc_rs::rand::SystemRandom);

impl SystemEntropy {
    pub fn new() -> Self {
        Self(aws_lc_rs::rand::SystemRandom::new())
    }
}

impl Default for SystemEntropy {
    fn default() -> Self {
        Self::new()
    }
}

impl Entropy for SystemEntropy {
    #[allow(clippy::expect_used, reason = "without random numbers nothing may go on")]
    fn fill(&self, bytes: &mut [u8]) {
        self.0.fill(bytes).expect("the operating system has no random numbers");
    }
}

/// 256 random bits as base64url, behind a prefix that secret scanners know (`mtl_at_`).
pub fn token(entropy: &dyn Entropy, prefix: &str) -> Secret<String> {
    let mut bits = [0_u8; 32];
    entropy.fill(&mut bits);
    let mut text = String::with_capacity(prefix.len() + 43);
    text.push_str(prefix);
    URL_SAFE_NO_PAD.encode_string(bits, &mut text);
    Secret::new(text)
}

/// A random UUID (version 4).
pub fn uuid4(entropy: &dyn Entropy) -> uuid::Uuid {
    let mut bits = [0_u8; 16];
    entropy.fill(&mut bits);
    uuid::Builder::from_random_bytes(bits).into_uuid()
}

/// A UUID that sorts by time (version 7).
pub fn uuid7(entropy: &dyn Entropy, now: Timestamp) -> uuid::Uuid {
    let mut bits = [0_u8; 10];
    entropy.fill(&mut bits);
    uuid::Builder::from_unix_timestamp_millis(u64::try_from(now.0).unwrap_or(0), &bits).into_uuid()
}

/// A deterministic generator: for tests.
pub struct TestEntropy(std::sync::atomic::AtomicU64);

impl TestEntropy {
    pub const fn new(seed: u64) -> Self {
        Self(std::sync::atomic::AtomicU64::new(seed))
    }
}

impl Entropy for TestEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            // SplitMix64: any counter gives a well-mixed value.
            let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, std::sync::atomic::Ordering::Relaxed);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            chunk.copy_from_slice(&z.to_le_bytes()[..chunk.len()]);
        }
    }
}
