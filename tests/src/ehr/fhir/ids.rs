//! Each vendor's own style of ids, so that a mix-up between sites shows.

use crate::ehr::contract::Vendor;

/// The practice whose patients a simulated athenaOne holds.
pub const PRACTICE: &str = "195900";

/// Where a resource stands in the data: the `nth` of its type, `serial` among all.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub ty: &'a str,
    pub source: &'a str,
    pub nth: u64,
    pub serial: u64,
}

pub fn style(vendor: Vendor, place: Place<'_>) -> String {
    let Place { ty, source, nth, serial } = place;
    match vendor {
        Vendor::Epic => opaque(ty, &format!("{ty}/{source}")),
        Vendor::Oracle if ty == "Patient" => (12_724_066 + nth).to_string(),
        Vendor::Oracle => (197_000_000 + serial * 7).to_string(),
        Vendor::Athena => practice(ty, nth),
        Vendor::AthenaPractice => format!("ap-{}", 4000 + serial * 3),
        Vendor::Generic => source.to_owned(),
    }
}

/// An id for a resource that a client creates, the `serial`-th of this server.
pub fn fresh(vendor: Vendor, ty: &str, serial: u64) -> String {
    let source = format!("created/{serial}");
    match vendor {
        Vendor::Generic => uuid(&source),
        Vendor::Athena => practice(ty, 900_000 + serial),
        _ => style(vendor, Place { ty, source: &source, nth: 900_000 + serial, serial: 900_000 + serial }),
    }
}

fn practice(ty: &str, nth: u64) -> String {
    match ty {
        "Patient" => format!("a-{PRACTICE}.E-{}", 14_545 + nth),
        "Organization" if nth == 0 => format!("a-1.Practice-{PRACTICE}"),
        "Practitioner" => format!("a-{PRACTICE}.Provider-{}", 1 + nth),
        "Encounter" => format!("a-{PRACTICE}.encounter-{}", 30_001 + nth),
        "AllergyIntolerance" => format!("a-{PRACTICE}.pa-{}", 2078 + nth),
        "Observation" => format!("a-{PRACTICE}.resultamb-{}", 3223 + nth),
        _ => format!("a-{PRACTICE}.{ty}-{}", 1 + nth),
    }
}

/// Epic's ids: `e`, then what only Epic can read, then `3`; a patient's are the shortest.
fn opaque(ty: &str, source: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-.";
    let length = if ty == "Patient" { 22 } else { 43 };
    let mut text = String::from("e");
    let mut state = hash(source);
    for _ in 0..length {
        state = mix(state);
        let index = usize::try_from(state >> 58).unwrap_or(0);
        text.push(ALPHABET.get(index).map_or('A', |byte| char::from(*byte)));
    }
    text.push('3');
    text
}

/// A UUID by its looks, the same for the same source.
pub fn uuid(source: &str) -> String {
    let high = mix(hash(source));
    let low = mix(high);
    format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xfff,
        low >> 52,
        low & 0xffff_ffff_ffff
    )
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The finaliser of SplitMix64.
const fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
