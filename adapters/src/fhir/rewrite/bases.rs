//! The bases that a rewriter looks for and the one that it puts in their place.

use std::borrow::Cow;

use memchr::memmem::Finder;
use percent_encoding::percent_decode_str;

/// What is wrong with a base.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no FHIR base: expected an absolute http or https URL without query and fragment")]
pub struct InvalidBase {
    pub given: String,
}

/// URLs below a base whose next segment is one of these are names of artefacts, not links.
const DEFINITIONS: [&str; 14] = [
    "StructureDefinition",
    "ValueSet",
    "CodeSystem",
    "ConceptMap",
    "NamingSystem",
    "SearchParameter",
    "OperationDefinition",
    "CapabilityStatement",
    "CompartmentDefinition",
    "ImplementationGuide",
    "StructureMap",
    "MessageDefinition",
    "GraphDefinition",
    "TerminologyCapabilities",
];
const LONGEST_DEFINITION: usize = 24;

/// One character of a string may take six bytes in JSON (`\u0068`).
const WIDEST: usize = 6;

/// The compiled pair: prefixes to look for, and the base that takes their place.
#[derive(Debug)]
pub struct Bases {
    /// Longest first, so that a base below another wins.
    from: Vec<Base>,
    to: String,
    pub(super) hosts: Vec<Finder<'static>>,
    /// What may hide a host in JSON.
    pub(super) escape: Finder<'static>,
    longest: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Base {
    /// In lower case.
    scheme: &'static str,
    /// Host, and port unless it is the scheme's default.
    authority: String,
    /// Without a slash at its end; empty, or begins with one.
    path: String,
}

impl Base {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "https" => "https",
            "http" => "http",
            _ => return None,
        };
        let rest = rest.trim_end_matches('/');
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'<' | b'>' | b'&' | b'\'');
        if authority.is_empty() || rest.contains(['?', '#', '@']) || !rest.bytes().all(plain) {
            return None;
        }
        let authority = authority.strip_suffix(default_port(scheme)).unwrap_or(authority);
        Some(Self { scheme, authority: authority.to_owned(), path: path.to_owned() })
    }

    fn len(&self) -> usize {
        self.scheme.len() + 3 + self.authority.len() + 4 + self.path.len()
    }

    fn find<D: Decoded>(&self, mut text: D) -> Found<D> {
        for wanted in self.scheme.bytes() {
            match text.step() {
                Step::Byte(byte) if byte.to_ascii_lowercase() == wanted => {}
                Step::More => return Found::More,
                _ => return Found::No,
            }
        }
        for wanted in b"://".iter().chain(self.authority.as_bytes()) {
            match text.step() {
                Step::Byte(byte) if byte == *wanted => {}
                Step::More => return Found::More,
                _ => return Found::No,
            }
        }
        let mut port = text.clone();
        match port.step() {
            Step::More => return Found::More,
            Step::Byte(b':') => {
                for wanted in default_port(self.scheme).bytes().skip(1) {
                    match port.step() {
                        Step::Byte(byte) if byte == wanted => {}
                        Step::More => return Found::More,
                        _ => return Found::No,
                    }
                }
                text = port;
            }
            _ => {}
        }
        for wanted in self.path.bytes() {
            match text.step() {
                Step::Byte(byte) if byte == wanted => {}
                Step::More => return Found::More,
                _ => return Found::No,
            }
        }
        match text.clone().step() {
            Step::End | Step::Byte(b'/' | b'?' | b'#') => Found::Yes(text),
            Step::More => Found::More,
            Step::Byte(_) => Found::No,
        }
    }
}

fn default_port(scheme: &str) -> &'static str {
    if scheme == "https" { ":443" } else { ":80" }
}

/// One decoded byte of a string as it stands in JSON or XML, or in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Bytes that no base has are told as 0xFF where decoding them is of no use.
    Byte(u8),
    End,
    /// The buffer ends here.
    More,
}

pub(super) trait Decoded: Clone {
    fn step(&mut self) -> Step;
    /// How far the buffer has been read.
    fn at(&self) -> usize;
}

/// A string in the clear.
#[derive(Clone)]
pub(super) struct Plain<'a> {
    text: &'a [u8],
    at: usize,
}

impl Decoded for Plain<'_> {
    fn step(&mut self) -> Step {
        let Some(byte) = self.text.get(self.at) else { return Step::End };
        self.at += 1;
        Step::Byte(*byte)
    }

    fn at(&self) -> usize {
        self.at
    }
}

/// Whether a string begins with a base.
pub(super) enum Found<D> {
    No,
    More,
    /// Read up to the end of the base.
    Yes(D),
}

impl Bases {
    /// `from`: every spelling of the base that is looked for; `to`: the base that replaces it.
    /// Trailing slashes do not count.
    pub fn new<I>(from: I, to: &str) -> Result<Self, InvalidBase>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let invalid = |given: &str| InvalidBase { given: given.chars().take(200).collect() };
        let parse = |given: &str| Base::parse(given).ok_or_else(|| invalid(given));
        parse(to)?;
        let mut bases = from.into_iter().map(|given| parse(given.as_ref())).collect::<Result<Vec<_>, _>>()?;
        bases.sort_by_key(|base| std::cmp::Reverse(base.len()));
        bases.dedup();
        let mut authorities: Vec<&str> = bases.iter().map(|base| base.authority.as_str()).collect();
        authorities.sort_unstable();
        authorities.dedup();
        let hosts = authorities.into_iter().map(|host| Finder::new(host).into_owned()).collect();
        let longest = bases.iter().map(Base::len).max().unwrap_or(0);
        Ok(Self { from: bases, to: to.trim_end_matches('/').to_owned(), hosts, escape: Finder::new(b"\\u00"), longest })
    }

    /// The base that takes the others' place, without a slash at its end.
    pub fn to(&self) -> &str {
        &self.to
    }

    /// Within how many bytes of its opening quote it is certain whether a JSON string begins with a base.
    pub(super) fn reach(&self) -> usize {
        self.longest.saturating_add(2).saturating_mul(WIDEST)
    }

    pub(super) fn find<D: Decoded>(&self, text: &D) -> Found<D> {
        for base in &self.from {
            match base.find(text.clone()) {
                Found::No => {}
                other => return other,
            }
        }
        Found::No
    }

    /// What follows the base in a URL below it (nothing, or text that begins with `/`, `?` or `#`).
    pub fn below<'a>(&self, url: &'a str) -> Option<&'a str> {
        match self.find(&Plain { text: url.as_bytes(), at: 0 }) {
            Found::Yes(end) => url.get(end.at..),
            Found::No | Found::More => None,
        }
    }

    /// The URL under the other base, if it lies below one that is looked for. Knows no names: a URL of a
    /// StructureDefinition moves too.
    pub fn moved(&self, url: &str) -> Option<String> {
        self.below(url).map(|rest| format!("{}{rest}", self.to))
    }

    /// A string as the rewriter treats it: URLs of definitions are names and stay.
    pub fn rewrite<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let Found::Yes(end) = self.find(&Plain { text: text.as_bytes(), at: 0 }) else { return text.into() };
        match (names_definition(end.clone()), text.get(end.at..)) {
            (Some(false), Some(rest)) => format!("{}{rest}", self.to).into(),
            _ => text.into(),
        }
    }

    /// The value of a search parameter: each of its alternatives (`a,b`; `\,` separates nothing).
    pub fn rewrite_parameter<'a>(&self, value: &'a str) -> Cow<'a, str> {
        if !value.contains("://") {
            return value.into();
        }
        let mut out = String::with_capacity(value.len());
        let mut rest = value;
        loop {
            let end = comma(rest).unwrap_or(rest.len());
            let (item, tail) = rest.split_at(end);
            out.push_str(&self.rewrite(item));
            let Some(next) = tail.strip_prefix(',') else { break };
            out.push(',');
            rest = next;
        }
        out.into()
    }

    /// `Location` or `Content-Location`. A path-absolute value is taken relative to the EHR's host, as
    /// RFC 9110 §10.2.2 has it: below a base's path it becomes absolute under the other base, since the
    /// app would resolve it against ours.
    pub fn rewrite_location<'a>(&self, value: &'a str) -> Cow<'a, str> {
        if let Some(moved) = self.moved(value) {
            return moved.into();
        }
        if !value.starts_with('/') || value.starts_with("//") {
            return value.into();
        }
        let below = |base: &Base| {
            let rest = value.strip_prefix(base.path.as_str())?;
            (rest.is_empty() || rest.starts_with(['/', '?', '#'])).then(|| format!("{}{rest}", self.to))
        };
        self.from.iter().find_map(below).map_or(value.into(), Cow::Owned)
    }

    /// `Link` (RFC 8288): each `<URL>` that stands outside a quoted string.
    pub fn rewrite_link_header<'a>(&self, value: &'a str) -> Cow<'a, str> {
        let (mut out, mut rest, mut changed) = (String::with_capacity(value.len()), value, false);
        while let Some(at) = rest.find(['<', '"']) {
            let (before, from) = rest.split_at(at);
            out.push_str(before);
            let quoted = from.starts_with('"');
            let end = if quoted { closing_quote(from) } else { from.find('>') };
            let Some(end) = end else {
                rest = from;
                break;
            };
            let (token, tail) = from.split_at(end);
            match token.strip_prefix('<').and_then(|url| self.moved(url)) {
                Some(moved) if !quoted => {
                    changed = true;
                    out.push('<');
                    out.push_str(&moved);
                }
                _ => out.push_str(token),
            }
            let mut tail = tail.chars();
            out.extend(tail.next());
            rest = tail.as_str();
        }
        if !changed {
            return value.into();
        }
        out.push_str(rest);
        out.into()
    }

    /// Whether a `Location` of a redirect stays below a base, dot segments and encoded ones counted.
    pub fn holds(&self, url: &str) -> bool {
        let Some(rest) = self.below(url) else { return false };
        let path = rest.split(['?', '#']).next().unwrap_or_default();
        let path = percent_decode_str(path).decode_utf8_lossy().replace('\\', "/");
        !path.split('/').any(|segment| segment == "..")
    }
}

fn comma(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let found = byte == b',' && !escaped;
        escaped = byte == b'\\' && !escaped;
        found
    })
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().enumerate().skip(1).find_map(|(at, byte)| {
        let found = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        found.then_some(at)
    })
}

/// Whether the segment that follows a base is the type of a definition; `None`: the buffer ends first.
pub(super) fn names_definition<D: Decoded>(mut text: D) -> Option<bool> {
    match text.step() {
        Step::Byte(b'/') => {}
        Step::More => return None,
        _ => return Some(false),
    }
    let mut name = [0_u8; LONGEST_DEFINITION];
    let mut length = 0;
    loop {
        match text.step() {
            Step::More => return None,
            Step::End | Step::Byte(b'/' | b'?' | b'#' | b'|') => break,
            Step::Byte(byte) => match name.get_mut(length) {
                Some(place) => {
                    *place = byte;
                    length += 1;
                }
                None => return Some(false),
            },
        }
    }
    let name = name.get(..length).unwrap_or_default();
    Some(DEFINITIONS.iter().any(|definition| definition.as_bytes() == name))
}
