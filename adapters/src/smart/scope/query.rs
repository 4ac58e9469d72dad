//! The query of a scope, `?category=…|laboratory`.

use std::{
    borrow::Cow,
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
};

use percent_encoding::percent_decode_str;

/// A constraint: search parameters that a resource must all match. Compared decoded and without regard to order; the
/// text is kept, for an app is answered in what it wrote.
#[derive(Clone)]
pub struct ScopeQuery {
    text: String,
    /// Decoded, sorted, none twice.
    pairs: Vec<(String, String)>,
}

impl ScopeQuery {
    /// Parses what follows the `?`. `None` where a pair has no name or no value, or an escape is no UTF-8 or a control
    /// character.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut pairs = text.split('&').map(pair).collect::<Option<Vec<_>>>()?;
        pairs.sort_unstable();
        pairs.dedup();
        Some(Self { text: text.to_owned(), pairs })
    }

    /// Name (with modifier, if any) and value, decoded.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it speaks of nothing but `category`, the one parameter that ONC demands and vendors take.
    pub fn is_category_only(&self) -> bool {
        self.pairs.iter().all(|(name, _)| name == "category")
    }
}

fn pair(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let (name, value) = (decode(name)?, decode(value)?);
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte);
    (!name.is_empty() && name.bytes().all(known) && !value.is_empty()).then_some((name, value))
}

/// As the query of a FHIR search is decoded.
fn decode(text: &str) -> Option<String> {
    let plain: Cow<'_, str> = if text.contains('+') { text.replace('+', " ").into() } else { text.into() };
    let hex = |digit: Option<&u8>| digit.is_some_and(u8::is_ascii_hexdigit);
    let bytes = plain.as_bytes();
    let escapes = memchr::memchr_iter(b'%', bytes);
    if !escapes.into_iter().all(|at| hex(bytes.get(at + 1)) && hex(bytes.get(at + 2))) {
        return None;
    }
    let decoded = percent_decode_str(&plain).decode_utf8().ok()?;
    (!decoded.chars().any(char::is_control)).then(|| decoded.into_owned())
}

impl PartialEq for ScopeQuery {
    fn eq(&self, other: &Self) -> bool {
        self.pairs == other.pairs
    }
}

impl Eq for ScopeQuery {}

impl PartialOrd for ScopeQuery {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ScopeQuery {
    fn cmp(&self, other: &Self) -> Ordering {
        self.pairs.cmp(&other.pairs)
    }
}

impl Hash for ScopeQuery {
    fn hash<H: Hasher>(&self, to: &mut H) {
        self.pairs.hash(to);
    }
}

impl fmt::Display for ScopeQuery {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.text)
    }
}

impl fmt::Debug for ScopeQuery {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "ScopeQuery({:?})", self.text)
    }
}
