//! Parameters of OAuth requests. A parameter that comes twice is an error, an empty one is absent, an
//! unknown one is ignored (RFC 6749 §3.1, §3.2).

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

/// Longest value that is taken. Scopes are the longest real ones; an EHR's `launch` may be a JWT.
const LONGEST: usize = 16 << 10;

/// What is wrong with the parameters as such.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamsFault {
    #[error("the parameter `{0}` came more than once; expected it at most once (RFC 6749 §3.1)")]
    Repeated(String),
    #[error("the parameter `{0}` is longer than {LONGEST} bytes")]
    TooLong(String),
    #[error("the parameters are not UTF-8 in percent-encoding")]
    NotUtf8,
}

/// Parameters by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Params(BTreeMap<String, String>);

impl Params {
    /// # Errors
    /// For a repeated or over-long parameter and for what is not UTF-8.
    pub fn parse(encoded: &[u8]) -> Result<Self, ParamsFault> {
        match Self::parse_with_faults(encoded) {
            (params, None) => Ok(params),
            (_, Some(fault)) => Err(fault),
        }
    }

    /// The parameters that are in order, and the first fault: where a faulty parameter must not keep
    /// the others from being looked at (an app is told of it by redirect, RFC 6749 §4.1.2.1).
    pub fn parse_with_faults(encoded: &[u8]) -> (Self, Option<ParamsFault>) {
        let mut params = BTreeMap::new();
        let mut repeated = BTreeSet::new();
        let mut first = None;
        for pair in encoded.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
            let mut halves = pair.splitn(2, |byte| *byte == b'=');
            let (name, value) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
            let (Some(name), Some(value)) = (decode(name), decode(value)) else {
                first.get_or_insert(ParamsFault::NotUtf8);
                continue;
            };
            if value.len() > LONGEST {
                first.get_or_insert(ParamsFault::TooLong(shown(&name)));
            } else if value.is_empty() {
                continue;
            } else {
                match params.entry(name) {
                    Entry::Vacant(free) => {
                        free.insert(value);
                    }
                    Entry::Occupied(taken) => {
                        first.get_or_insert(ParamsFault::Repeated(shown(taken.key())));
                        repeated.insert(taken.key().clone());
                    }
                }
            }
        }
        for name in repeated {
            params.remove(&name);
        }
        (Self(params), first)
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

fn decode(part: &[u8]) -> Option<String> {
    let spaced: Vec<u8> = part.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent_encoding::percent_decode(&spaced).decode_utf8().map(Into::into).ok()
}

/// A name that may be shown again: short, and of harmless characters.
fn shown(name: &str) -> String {
    name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')).take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_refused_and_empties_are_absent() {
        let params = Params::parse(b"a=1&b=&c=x%20y+z&&d").unwrap();
        assert_eq!(
            (params.get("a"), params.get("b"), params.get("c"), params.get("d")),
            (Some("1"), None, Some("x y z"), None)
        );
        assert_eq!(Params::parse(b"state=1&state=2"), Err(ParamsFault::Repeated("state".into())));
        let (rest, fault) = Params::parse_with_faults(b"state=1&state=2&client_id=a");
        assert_eq!((rest.get("state"), rest.get("client_id")), (None, Some("a")));
        assert!(fault.is_some());
        assert_eq!(Params::parse(b"a=%ff"), Err(ParamsFault::NotUtf8));
        assert_eq!(
            Params::parse(format!("a={}", "x".repeat(LONGEST + 1)).as_bytes()),
            Err(ParamsFault::TooLong("a".into()))
        );
    }
}
