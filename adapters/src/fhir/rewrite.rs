//! Moves URLs from one FHIR base to another while a body streams through.
//!
//! A string value that begins with one of the bases looked for, and goes on with `/`, `?`, `#` or not at
//! all, gets the other base; every other byte passes as it came. Left alone are members' names, narrative,
//! the members `system`, `profile`, `instantiates…` and `value`, and URLs whose next segment is the type of
//! a definition (`StructureDefinition`, `ValueSet` …): those are names, not links. In XML only attributes
//! `value` count.
//!
//! Memory is flat (what is undecided is held, a paging link at most 8 KB), and the chunks in which a body
//! comes make no difference to what leaves. A broken body passes as it is; [`sniff`] tells what should not
//! be begun at all.
//!
//! ```
//! # use std::sync::Arc;
//! # use mantel_adapters::fhir::rewrite::{Bases, Format, Rewriter};
//! let bases = Bases::new(["https://ehr.example/r4"], "https://mantel.example/fhir/r4").unwrap();
//! let mut rewriter = Rewriter::new(&Arc::new(bases), Format::Json);
//! let mut out = Vec::new();
//! rewriter.push(br#"{"reference":"https://ehr.exa"#, &mut out);
//! rewriter.push(br#"mple/r4/Patient/1"}"#, &mut out);
//! rewriter.finish(&mut out);
//! assert_eq!(out, br#"{"reference":"https://mantel.example/fhir/r4/Patient/1"}"#);
//! ```

mod bases;
mod json;
mod look_back;
mod outermost;
mod xml;

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

pub use self::{
    bases::{Bases, InvalidBase},
    outermost::LinkHook,
};
use self::{json::Json, outermost::Links, xml::Xml};

/// What a body is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Xml,
    Ndjson,
}

impl Format {
    /// The format of a `Content-Type`; `None` for what is not rewritten (text, PDF, images).
    pub fn of(content_type: &str) -> Option<Self> {
        let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/fhir+json" | "application/json+fhir" | "application/json" | "text/json" => Some(Self::Json),
            "application/json-patch+json" => Some(Self::Json),
            "application/fhir+xml" | "application/xml+fhir" | "application/xml" | "text/xml" => Some(Self::Xml),
            "application/fhir+ndjson" | "application/ndjson" | "application/x-ndjson" => Some(Self::Ndjson),
            _ => None,
        }
    }
}

/// Why a body is not what its media type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Nonsense {
    #[error("the body is in UTF-16: FHIR is UTF-8")]
    Utf16,
    #[error("the body is markup under a JSON media type")]
    MarkupForJson,
    #[error("the body does not begin like JSON")]
    NotJson,
    #[error("the body does not begin like XML")]
    NotXml,
    #[error("the body is an HTML page")]
    Html,
    #[error("the body has a DTD: FHIR forbids it")]
    Doctype,
}

/// Looks at a body's first bytes: what is nonsense then should be answered with 502 and never begun. An
/// empty body is for the caller to judge.
pub fn sniff(first: &[u8], format: Format) -> Result<(), Nonsense> {
    if first.starts_with(&[0xFF, 0xFE]) || first.starts_with(&[0xFE, 0xFF]) {
        return Err(Nonsense::Utf16);
    }
    let text = first.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(first).trim_ascii_start();
    let Some(byte) = text.first() else { return Ok(()) };
    match (format, byte) {
        (Format::Json | Format::Ndjson, b'{' | b'[') => Ok(()),
        (Format::Json | Format::Ndjson, b'<') => Err(Nonsense::MarkupForJson),
        (Format::Json | Format::Ndjson, _) => Err(Nonsense::NotJson),
        (Format::Xml, b'<') => {
            let head: Vec<u8> = text.iter().take(1024).map(u8::to_ascii_lowercase).collect();
            let has = |mark: &[u8]| memchr::memmem::find(&head, mark).is_some();
            if head.starts_with(b"<html") || has(b"<!doctype html") {
                Err(Nonsense::Html)
            } else if has(b"<!doctype") {
                Err(Nonsense::Doctype)
            } else {
                Ok(())
            }
        }
        (Format::Xml, _) => Err(Nonsense::NotXml),
    }
}

/// A part of a buffer that is replaced.
#[derive(Debug)]
struct Edit {
    start: usize,
    end: usize,
    with: Replacement,
}

#[derive(Debug)]
enum Replacement {
    /// The base.
    Base,
    /// A text, escaped for its format.
    Text(Vec<u8>),
}

enum Engine {
    Json(Box<Json>),
    Xml(Box<Xml>),
}

/// Rewrites one body.
pub struct Rewriter {
    bases: Arc<Bases>,
    /// The base as it stands in this format.
    to: Vec<u8>,
    engine: Engine,
    /// What came and is not settled yet.
    held: BytesMut,
    links: Option<Links>,
    edits: Vec<Edit>,
}

impl std::fmt::Debug for Rewriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rewriter").field("to", &self.bases.to()).field("held", &self.held.len()).finish_non_exhaustive()
    }
}

impl Rewriter {
    pub fn new(bases: &Arc<Bases>, format: Format) -> Self {
        // A base holds nothing that JSON escapes (`Base::parse`).
        let (engine, to) = match format {
            Format::Json => (Engine::Json(Box::new(Json::new(false))), bases.to().as_bytes().to_vec()),
            Format::Ndjson => (Engine::Json(Box::new(Json::new(true))), bases.to().as_bytes().to_vec()),
            Format::Xml => (Engine::Xml(Box::new(Xml::new())), xml::escape(bases.to())),
        };
        Self { bases: Arc::clone(bases), to, engine, held: BytesMut::new(), links: None, edits: Vec::new() }
    }

    /// Has the paging links of the outermost Bundle (`Bundle.link.url` below a base looked for) replaced by
    /// what `hook` makes of them. Such a link is held whole; one of 8 KB or more is rewritten like any other
    /// string.
    pub fn with_links(mut self, hook: LinkHook) -> Self {
        self.links = Some(Links::new(hook));
        self
    }

    /// Takes the next bytes, and appends to `out` what is settled.
    pub fn push(&mut self, chunk: &[u8], out: &mut impl BufMut) {
        if self.held.is_empty() {
            let settled = self.scan(chunk, 0, false);
            self.assemble(chunk, settled, out);
            self.held.extend_from_slice(chunk.get(settled..).unwrap_or_default());
        } else {
            let buffer = self.join(chunk);
            let settled = self.scan(&buffer, buffer.len() - chunk.len(), false);
            self.assemble(&buffer, settled, out);
            self.held.extend_from_slice(buffer.get(settled..).unwrap_or_default());
        }
    }

    /// As [`Rewriter::push`], and copies nothing where nothing changes.
    pub fn push_bytes(&mut self, chunk: &Bytes) -> Bytes {
        let (buffer, held) = if self.held.is_empty() {
            (chunk.clone(), 0)
        } else {
            let joined = self.join(chunk);
            let held = joined.len() - chunk.len();
            (joined.freeze(), held)
        };
        let settled = self.scan(&buffer, held, false);
        self.held.extend_from_slice(buffer.get(settled..).unwrap_or_default());
        self.cut(&buffer, settled)
    }

    /// The end of the body: appends what was held.
    pub fn finish(&mut self, out: &mut impl BufMut) {
        out.put(self.finish_bytes());
    }

    /// As [`Rewriter::finish`].
    pub fn finish_bytes(&mut self) -> Bytes {
        let buffer = self.join(&[]).freeze();
        let settled = self.scan(&buffer, buffer.len(), true);
        self.cut(&buffer, settled)
    }

    /// A reason to break the answer off: a DTD in XML, from which on nothing is rewritten.
    pub fn refused(&self) -> Option<Nonsense> {
        match &self.engine {
            Engine::Xml(xml) if xml.is_refused() => Some(Nonsense::Doctype),
            _ => None,
        }
    }

    fn join(&mut self, chunk: &[u8]) -> BytesMut {
        let mut buffer = std::mem::take(&mut self.held);
        buffer.extend_from_slice(chunk);
        buffer
    }

    fn scan(&mut self, buffer: &[u8], held: usize, last: bool) -> usize {
        self.edits.clear();
        match &mut self.engine {
            Engine::Json(json) => {
                if let Some(links) = &mut self.links {
                    links.feed(held, buffer.get(held..).unwrap_or_default());
                }
                json.scan(&self.bases, buffer, last, &mut self.links, &mut self.edits)
            }
            Engine::Xml(xml) => xml.scan(&self.bases, buffer, last, &mut self.links, &mut self.edits),
        }
    }

    fn cut(&mut self, buffer: &Bytes, settled: usize) -> Bytes {
        if self.edits.is_empty() {
            return buffer.slice(..settled);
        }
        let grown: usize = self.edits.iter().map(|edit| self.replacement(&edit.with).len()).sum();
        let mut out = BytesMut::with_capacity(settled + grown);
        self.assemble(buffer, settled, &mut out);
        out.freeze()
    }

    fn assemble(&self, buffer: &[u8], settled: usize, out: &mut impl BufMut) {
        let mut at = 0;
        for edit in &self.edits {
            out.put_slice(buffer.get(at..edit.start).unwrap_or_default());
            out.put_slice(self.replacement(&edit.with));
            at = edit.end;
        }
        out.put_slice(buffer.get(at..settled).unwrap_or_default());
    }

    fn replacement<'a>(&'a self, with: &'a Replacement) -> &'a [u8] {
        match with {
            Replacement::Base => &self.to,
            Replacement::Text(text) => text,
        }
    }
}

/// A whole body that is in memory anyway.
pub fn rewrite_all(bases: &Arc<Bases>, format: Format, body: &Bytes) -> Bytes {
    let mut rewriter = Rewriter::new(bases, format);
    let first = rewriter.push_bytes(body);
    let rest = rewriter.finish_bytes();
    if rest.is_empty() {
        return first;
    }
    let mut whole = BytesMut::from(first);
    whole.extend_from_slice(&rest);
    whole.freeze()
}
