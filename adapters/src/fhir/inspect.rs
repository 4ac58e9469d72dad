//! Shows a body's resources to a judge before any of their bytes leave.
//!
//! Of a Bundle one entry after the other is held, shown and then passed, dropped or replaced, so memory is
//! bounded by the largest entry; any other resource is held whole. Only members that R4 gives a Bundle and its
//! entries pass, since data could lie in others. `total` never passes: it would count what was dropped (and
//! mostly comes before the entries), nor does `signature`, which would be wrong.
//!
//! JSON only; under inspection nothing else is asked of an EHR.

mod scanner;

use std::{borrow::Cow, fmt};

use bytes::BufMut;
use serde::Deserialize;
use serde_json::value::RawValue;

use self::scanner::{Piece, Scanner};
use super::{compartment::is_object, members::Members};

/// The largest entry, or resource that is no Bundle, that is held.
pub const LARGEST: usize = 4 << 20;

/// Members of a Bundle that pass as they are.
const BUNDLE_MEMBERS: [&str; 8] =
    ["id", "meta", "implicitRules", "language", "identifier", "type", "timestamp", "link"];

/// Members of an entry that pass.
const ENTRY_MEMBERS: [&str; 7] = ["id", "link", "fullUrl", "resource", "search", "request", "response"];

/// Why an inspected answer is broken off: all of them are the EHR's fault (502), and nothing that was not
/// judged has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("an entry or resource is larger than 4 MB")]
    TooLarge,
    #[error("the body is no JSON object, or says something twice")]
    Malformed,
    #[error("the body ends before its JSON does")]
    Truncated,
}

/// What the judge sees: an entry of a Bundle, or a resource by itself.
#[derive(Debug)]
pub struct Part<'a> {
    /// Its place among the entries; 0 for a resource by itself.
    pub index: usize,
    pub in_bundle: bool,
    pub full_url: Option<Cow<'a, str>>,
    /// In JSON, byte for byte.
    pub resource: Option<&'a [u8]>,
    /// `match`, `include` or `outcome`.
    pub search_mode: Option<Cow<'a, str>>,
    pub request_url: Option<Cow<'a, str>>,
    pub response_status: Option<Cow<'a, str>>,
    pub response_location: Option<Cow<'a, str>>,
    /// `response.outcome`: a resource too.
    pub outcome: Option<&'a [u8]>,
}

/// What becomes of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    Drop,
    /// Another entry in its place, as a JSON object: entries of a batch-response answer by their index.
    Replace(Vec<u8>),
}

/// How an inspected body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A Bundle: how many entries were dropped or replaced.
    Bundle { dropped: usize },
    /// A resource by itself, passed.
    Passed,
    /// A resource by itself, withheld: nothing has left, and the answer is that of one that does not exist.
    Withheld,
}

/// Inspects one body.
pub struct Inspector<J> {
    judge: J,
    scanner: Scanner,
    kind: Kind,
    /// What came before it was clear that it is a Bundle; all of it, where it is none.
    whole: Vec<u8>,
    /// Members that came before `resourceType`.
    early: Vec<(String, Vec<u8>)>,
    seen: Vec<String>,
    index: usize,
    passed: usize,
    dropped: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unknown,
    Bundle,
    Other,
}

impl<J> fmt::Debug for Inspector<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inspector").field("index", &self.index).field("dropped", &self.dropped).finish_non_exhaustive()
    }
}

impl<J: FnMut(&Part<'_>) -> Verdict> Inspector<J> {
    pub fn new(judge: J) -> Self {
        Self {
            judge,
            scanner: Scanner::default(),
            kind: Kind::Unknown,
            whole: Vec::new(),
            early: Vec::new(),
            seen: Vec::new(),
            index: 0,
            passed: 0,
            dropped: 0,
        }
    }

    /// Takes the next bytes, and appends to `out` what was judged and passes.
    pub fn push(&mut self, chunk: &[u8], out: &mut impl BufMut) -> Result<(), Fault> {
        if self.kind != Kind::Bundle {
            if self.whole.len().saturating_add(chunk.len()) > LARGEST && self.kind == Kind::Other {
                return Err(Fault::TooLarge);
            }
            self.whole.extend_from_slice(chunk);
        }
        let mut rest = chunk;
        while self.kind != Kind::Other {
            let (piece, tail) = self.scanner.next(rest)?;
            rest = tail;
            match piece {
                Piece::More => break,
                Piece::Member { name, value } => self.member(name, value, out)?,
                Piece::Entry(entry) => self.entry(&entry, out)?,
                Piece::End if self.kind == Kind::Bundle => {
                    if self.passed > 0 {
                        out.put_u8(b']');
                    }
                    out.put_u8(b'}');
                }
                Piece::EntriesEnd if self.seen.iter().any(|name| name == "entry") => return Err(Fault::Malformed),
                Piece::EntriesEnd => self.seen.push("entry".into()),
                // An object without a resourceType is nothing that could be judged.
                Piece::End => return Err(Fault::Malformed),
            }
        }
        if self.kind != Kind::Bundle && self.whole.len() > LARGEST {
            return Err(Fault::TooLarge);
        }
        Ok(())
    }

    /// The end of the body.
    pub fn finish(&mut self, out: &mut impl BufMut) -> Result<Ending, Fault> {
        match self.kind {
            Kind::Bundle if self.scanner.is_done() => Ok(Ending::Bundle { dropped: self.dropped }),
            Kind::Bundle | Kind::Unknown => Err(Fault::Truncated),
            Kind::Other => {
                let text = self.whole.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&self.whole);
                let resource: &RawValue = serde_json::from_slice(text).map_err(fault)?;
                let part = Part {
                    index: 0,
                    in_bundle: false,
                    full_url: None,
                    resource: Some(resource.get().as_bytes()),
                    search_mode: None,
                    request_url: None,
                    response_status: None,
                    response_location: None,
                    outcome: None,
                };
                match (self.judge)(&part) {
                    Verdict::Keep => {
                        out.put_slice(text);
                        Ok(Ending::Passed)
                    }
                    Verdict::Drop | Verdict::Replace(_) => Ok(Ending::Withheld),
                }
            }
        }
    }

    fn member(&mut self, name: String, value: Vec<u8>, out: &mut impl BufMut) -> Result<(), Fault> {
        let parsed: &RawValue = serde_json::from_slice(&value).map_err(fault)?;
        if self.seen.contains(&name) {
            return Err(Fault::Malformed);
        }
        self.seen.push(name.clone());
        if name == "resourceType" {
            let resource_type: String = serde_json::from_str(parsed.get()).map_err(fault)?;
            if resource_type != "Bundle" {
                self.kind = Kind::Other;
                return Ok(());
            }
            self.kind = Kind::Bundle;
            self.whole = Vec::new();
            self.scanner.enter_entries();
            out.put_slice(br#"{"resourceType":"Bundle""#);
            for (name, value) in std::mem::take(&mut self.early) {
                self.bundle_member(&name, &value, out)?;
            }
            return Ok(());
        }
        match self.kind {
            Kind::Bundle => self.bundle_member(&name, &value, out),
            _ => {
                self.early.push((name, value));
                Ok(())
            }
        }
    }

    fn bundle_member(&mut self, name: &str, value: &[u8], out: &mut impl BufMut) -> Result<(), Fault> {
        if name == "entry" {
            let entries: Vec<&RawValue> = serde_json::from_slice(value).map_err(fault)?;
            return entries.into_iter().try_for_each(|entry| self.entry(entry.get().as_bytes(), out));
        }
        if !BUNDLE_MEMBERS.contains(&name) {
            return Ok(());
        }
        self.close_entries(out);
        out.put_slice(format!(",\"{name}\":").as_bytes());
        out.put_slice(value.trim_ascii());
        Ok(())
    }

    /// Ends the list of entries before another member.
    fn close_entries(&mut self, out: &mut impl BufMut) {
        if self.passed > 0 {
            out.put_u8(b']');
            self.passed = 0;
        }
    }

    fn entry(&mut self, text: &[u8], out: &mut impl BufMut) -> Result<(), Fault> {
        let members: Members<'_> = serde_json::from_slice(text).map_err(fault)?;
        let part = members.part(self.index).map_err(fault)?;
        self.index += 1;
        let kept = match (self.judge)(&part) {
            Verdict::Keep => members.kept(text),
            Verdict::Replace(other) => {
                self.dropped += 1;
                other.into()
            }
            Verdict::Drop => {
                self.dropped += 1;
                return Ok(());
            }
        };
        out.put_slice(if self.passed == 0 { b",\"entry\":[" } else { b"," });
        self.passed += 1;
        out.put_slice(&kept);
        Ok(())
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
fn fault(error: serde_json::Error) -> Fault {
    if error.is_eof() { Fault::Truncated } else { Fault::Malformed }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Search<'a> {
    #[serde(borrow)]
    mode: Option<Cow<'a, str>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Asked<'a> {
    #[serde(borrow)]
    url: Option<Cow<'a, str>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Answered<'a> {
    #[serde(borrow)]
    status: Option<Cow<'a, str>>,
    #[serde(borrow)]
    location: Option<Cow<'a, str>>,
    #[serde(borrow)]
    outcome: Option<&'a RawValue>,
}

impl<'a> Members<'a> {
    fn read<T: Deserialize<'a> + Default>(&self, name: &str) -> serde_json::Result<T> {
        self.get(name).map_or_else(|| Ok(T::default()), |value| serde_json::from_str(value.get()))
    }

    fn part(&self, index: usize) -> serde_json::Result<Part<'a>> {
        if ["search", "request", "response"]
            .iter()
            .any(|name| self.get(name).is_some_and(|it| !is_object(it.get().as_bytes())))
        {
            return Err(serde::de::Error::custom("expected an object"));
        }
        let search: Search<'a> = self.read("search")?;
        let asked: Asked<'a> = self.read("request")?;
        let answered: Answered<'a> = self.read("response")?;
        Ok(Part {
            index,
            in_bundle: true,
            full_url: self.read::<Option<Cow<'a, str>>>("fullUrl")?,
            resource: self.get("resource").map(|value| value.get().as_bytes()),
            search_mode: search.mode,
            request_url: asked.url,
            response_status: answered.status,
            response_location: answered.location,
            outcome: answered.outcome.map(|value| value.get().as_bytes()),
        })
    }

    /// The entry as it came, or without the members that do not pass.
    fn kept<'t>(&self, text: &'t [u8]) -> Cow<'t, [u8]> {
        let passes = |name: &str| ENTRY_MEMBERS.contains(&name);
        if self.0.iter().all(|(name, _)| passes(name)) {
            return Cow::Borrowed(text.trim_ascii());
        }
        let mut out = vec![b'{'];
        for (name, value) in self.0.iter().filter(|(name, _)| passes(name)) {
            if out.len() > 1 {
                out.push(b',');
            }
            // These names hold nothing that JSON escapes.
            out.extend_from_slice(format!("\"{name}\":").as_bytes());
            out.extend_from_slice(value.get().as_bytes());
        }
        out.push(b'}');
        out.into()
    }
}
