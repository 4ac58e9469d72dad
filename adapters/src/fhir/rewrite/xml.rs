//! The rewriter for XML: attributes `value` of FHIR elements, and nothing in narrative, comments or CDATA.
//!
//! XML is walked token by token: a comment or a narrative can only be told by where it began, and few
//! servers are asked for XML.

use memchr::{memchr, memchr2};

use super::{
    Edit, Replacement,
    bases::{Bases, Decoded, Found, Step, names_definition},
    json::HELD,
    look_back::{is_blank, is_left_alone},
    outermost::Links,
};

/// Longer names are none of those that are told apart.
const LONGEST_NAME: usize = 64;

pub(super) struct Xml {
    state: State,
    /// What follows `<!`, up to the point where it is known for what it is.
    lead: Vec<u8>,
    /// Name of the element whose tag is open; without its prefix once it is complete.
    element: Vec<u8>,
    attribute: Vec<u8>,
    /// Elements that are open.
    depth: u64,
    /// Names of the two outermost.
    root: Vec<u8>,
    member: Vec<u8>,
    /// How many `div` are open, from a narrative's own inwards.
    narrative: u64,
    /// How much of the mark that ends a comment, CDATA section or processing instruction was seen.
    matched: usize,
    doctype: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Text,
    /// After `<`.
    Markup,
    /// After `<!`.
    Declaration,
    Comment,
    Cdata,
    Instruction,
    EndTag,
    StartTag,
    /// Between attributes; `true` after a slash.
    Attributes(bool),
    AttributeName,
    /// Before `=` or the opening quote.
    Equals,
    /// At the first byte of a value that may be a link.
    Value(u8),
    /// Within a value, up to this quote.
    Skip(u8),
    /// A DTD: FHIR forbids it, nothing of it is read and nothing is touched any more.
    Refused,
}

/// An attribute's value, read up to its quote.
#[derive(Clone)]
struct XmlText<'a> {
    buffer: &'a [u8],
    at: usize,
    quote: u8,
}

impl Decoded for XmlText<'_> {
    fn step(&mut self) -> Step {
        match self.buffer.get(self.at).copied() {
            None => Step::More,
            Some(byte) if byte == self.quote => Step::End,
            Some(b'&') => {
                let rest = self.buffer.get(self.at + 1..).unwrap_or_default();
                let near = rest.get(..rest.len().min(LONGEST_REFERENCE)).unwrap_or_default();
                match memchr(b';', near) {
                    Some(end) => {
                        self.at += end + 2;
                        Step::Byte(character(near.get(..end).unwrap_or_default()))
                    }
                    None if near.len() < LONGEST_REFERENCE => Step::More,
                    None => {
                        self.at += 1;
                        Step::Byte(0xFF)
                    }
                }
            }
            Some(byte) => {
                self.at += 1;
                Step::Byte(byte)
            }
        }
    }

    fn at(&self) -> usize {
        self.at
    }
}

const LONGEST_REFERENCE: usize = 16;

/// The ASCII character of a reference; 0xFF for all others.
fn character(reference: &[u8]) -> u8 {
    let number = |digits: &[u8], radix| {
        let digits = std::str::from_utf8(digits).ok()?;
        u8::from_str_radix(digits, radix).ok().filter(u8::is_ascii)
    };
    match reference {
        b"amp" => b'&',
        b"lt" => b'<',
        b"gt" => b'>',
        b"quot" => b'"',
        b"apos" => b'\'',
        [b'#', b'x', digits @ ..] => number(digits, 16).unwrap_or(0xFF),
        [b'#', digits @ ..] => number(digits, 10).unwrap_or(0xFF),
        _ => 0xFF,
    }
}

fn local(name: &[u8]) -> &[u8] {
    memchr(b':', name).and_then(|colon| name.get(colon + 1..)).unwrap_or(name)
}

/// Escapes a text for an attribute's value.
pub(super) fn escape(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'&' => out.extend_from_slice(b"&amp;"),
            b'<' => out.extend_from_slice(b"&lt;"),
            b'"' => out.extend_from_slice(b"&quot;"),
            b'\'' => out.extend_from_slice(b"&apos;"),
            other => out.push(other),
        }
    }
    out
}

impl Xml {
    pub(super) fn new() -> Self {
        Self {
            state: State::Text,
            lead: Vec::new(),
            element: Vec::new(),
            attribute: Vec::new(),
            depth: 0,
            root: Vec::new(),
            member: Vec::new(),
            narrative: 0,
            matched: 0,
            doctype: false,
        }
    }

    /// Whether a DTD was seen.
    pub(super) fn is_refused(&self) -> bool {
        self.doctype
    }

    /// See `Json::scan`.
    pub(super) fn scan(
        &mut self,
        bases: &Bases,
        buffer: &[u8],
        last: bool,
        links: &mut Option<Links>,
        edits: &mut Vec<Edit>,
    ) -> usize {
        let mut at = 0;
        while let Some(byte) = buffer.get(at).copied() {
            let rest = buffer.get(at..).unwrap_or_default();
            match self.state {
                State::Refused => return buffer.len(),
                State::Text => match memchr(b'<', rest) {
                    Some(found) => {
                        at += found + 1;
                        self.state = State::Markup;
                    }
                    None => return buffer.len(),
                },
                State::Skip(quote) => match memchr(quote, rest) {
                    Some(found) => {
                        at += found + 1;
                        self.state = State::Attributes(false);
                    }
                    None => return buffer.len(),
                },
                State::Value(quote) => match self.judge(bases, buffer, at, quote, links) {
                    Some(edit) => {
                        self.state = State::Skip(quote);
                        if let Some(edit) = edit {
                            at = edit.end;
                            edits.push(edit);
                        }
                    }
                    None if last => self.state = State::Skip(quote),
                    None => return at,
                },
                State::Comment => at += self.until(rest, b"-->"),
                State::Cdata => at += self.until(rest, b"]]>"),
                State::Instruction => at += self.until(rest, b"?>"),
                _ => {
                    self.markup(byte);
                    at += 1;
                }
            }
        }
        buffer.len()
    }

    /// Looks for the end of a comment, CDATA section or instruction; answers how many bytes were read.
    fn until(&mut self, rest: &[u8], mark: &[u8]) -> usize {
        let first = mark.first().copied().unwrap_or_default();
        if self.matched == 0 {
            let Some(found) = memchr(first, rest) else { return rest.len() };
            self.matched = 1;
            return found + 1;
        }
        let Some(byte) = rest.first() else { return 0 };
        if mark.get(self.matched) == Some(byte) {
            self.matched += 1;
            if self.matched == mark.len() {
                self.state = State::Text;
            }
        } else if *byte != first || self.matched + 1 != mark.len() {
            // In `--->` and `]]]>` the last two marks still stand.
            self.matched = usize::from(*byte == first);
        }
        1
    }

    fn markup(&mut self, byte: u8) {
        match self.state {
            State::Markup => match byte {
                b'!' => {
                    self.lead.clear();
                    self.state = State::Declaration;
                }
                b'?' => self.begin(State::Instruction),
                b'/' => {
                    self.element.clear();
                    self.state = State::EndTag;
                }
                _ => {
                    self.element.clear();
                    self.element.push(byte);
                    self.state = State::StartTag;
                }
            },
            State::Declaration => {
                self.lead.push(byte);
                match self.lead.as_slice() {
                    b"--" => self.begin(State::Comment),
                    b"[CDATA[" => self.begin(State::Cdata),
                    lead if b"--".starts_with(lead) || b"[CDATA[".starts_with(lead) => {}
                    _ => {
                        self.doctype = true;
                        self.state = State::Refused;
                    }
                }
            }
            State::EndTag => match byte {
                b'>' => self.close(),
                _ if is_blank(byte) => {}
                _ if self.element.len() < LONGEST_NAME => self.element.push(byte),
                _ => {}
            },
            State::StartTag => match byte {
                b'>' => self.open(false),
                b'/' => self.state = State::Attributes(true),
                _ if is_blank(byte) => self.state = State::Attributes(false),
                _ if self.element.len() < LONGEST_NAME => self.element.push(byte),
                _ => {}
            },
            State::Attributes(slash) => match byte {
                b'>' => self.open(slash),
                b'/' => self.state = State::Attributes(true),
                _ if is_blank(byte) => {}
                _ => {
                    self.attribute.clear();
                    self.attribute.push(byte);
                    self.state = State::AttributeName;
                }
            },
            State::AttributeName => match byte {
                b'=' => self.state = State::Equals,
                b'>' => self.open(false),
                _ if is_blank(byte) => self.state = State::Equals,
                _ if self.attribute.len() < LONGEST_NAME => self.attribute.push(byte),
                _ => {}
            },
            State::Equals => match byte {
                b'"' | b'\'' => {
                    self.state = if self.may_be_link() { State::Value(byte) } else { State::Skip(byte) };
                }
                b'>' => self.open(false),
                _ => {}
            },
            _ => {}
        }
    }

    fn begin(&mut self, state: State) {
        self.matched = 0;
        self.state = state;
    }

    fn may_be_link(&self) -> bool {
        self.narrative == 0 && self.attribute == b"value" && !is_left_alone(local(&self.element))
    }

    fn open(&mut self, is_empty: bool) {
        self.state = State::Text;
        if is_empty {
            return;
        }
        let name = local(&self.element);
        if self.narrative > 0 || name == b"div" {
            self.narrative += u64::from(name == b"div");
        }
        match self.depth {
            0 => self.root = name.to_vec(),
            1 => self.member = name.to_vec(),
            _ => {}
        }
        self.depth = self.depth.saturating_add(1);
    }

    fn close(&mut self) {
        self.state = State::Text;
        self.depth = self.depth.saturating_sub(1);
        if self.narrative > 0 && local(&self.element) == b"div" {
            self.narrative -= 1;
        }
    }

    fn is_paging_link(&self) -> bool {
        self.depth == 2 && self.root == b"Bundle" && self.member == b"link" && local(&self.element) == b"url"
    }

    /// `None`: the buffer ends before it is certain. `Some(None)`: the value stays.
    fn judge(
        &self,
        bases: &Bases,
        buffer: &[u8],
        start: usize,
        quote: u8,
        links: &mut Option<Links>,
    ) -> Option<Option<Edit>> {
        let prefix = match bases.find(&XmlText { buffer, at: start, quote }) {
            Found::No => return Some(None),
            Found::More => return None,
            Found::Yes(end) => end,
        };
        if let Some(links) = links.as_mut().filter(|_| self.is_paging_link()) {
            let held = buffer.get(start..).unwrap_or_default();
            match memchr2(quote, b'<', held) {
                Some(length) if length < HELD => {
                    if let Some(url) = decode(buffer, start, quote) {
                        let with = Replacement::Text(escape(&links.bind(&url)));
                        return Some(Some(Edit { start, end: start + length, with }));
                    }
                }
                None if held.len() < HELD => return None,
                _ => {}
            }
        }
        if names_definition(prefix.clone())? {
            return Some(None);
        }
        Some(Some(Edit { start, end: prefix.at(), with: Replacement::Base }))
    }
}

/// A whole value in the clear; `None` where it holds what a URL does not.
fn decode(buffer: &[u8], at: usize, quote: u8) -> Option<String> {
    let mut text = XmlText { buffer, at, quote };
    let mut bytes = Vec::new();
    loop {
        match text.step() {
            Step::Byte(0xFF) | Step::More => return None,
            Step::Byte(byte) => bytes.push(byte),
            Step::End => return String::from_utf8(bytes).ok(),
        }
    }
}
