//! Which strings are `Bundle.link.url` of the outermost Bundle.
//!
//! Only those are paging links of the server's own making. Links of entries and of nested Bundles may come
//! from whoever wrote the data; a binding on one of them would open what was never judged.

use std::collections::VecDeque;

use memchr::memchr2;

/// Puts another URL in the place of a paging link: given the EHR's, it answers what the app sees.
pub type LinkHook = Box<dyn FnMut(&str) -> String + Send>;

/// The hook, and where its links stand in a JSON text.
pub(super) struct Links {
    hook: LinkHook,
    tracker: Tracker,
    /// Positions of opening quotes in the whole text.
    found: VecDeque<u64>,
    /// Where the buffer that is being scanned begins in the whole text.
    start: u64,
}

impl Links {
    pub(super) fn new(hook: LinkHook) -> Self {
        Self { hook, tracker: Tracker::default(), found: VecDeque::new(), start: 0 }
    }

    /// `held` bytes of the buffer were there before, `chunk` is new.
    pub(super) fn feed(&mut self, held: usize, chunk: &[u8]) {
        self.start = self.tracker.at.saturating_sub(u64::try_from(held).unwrap_or(u64::MAX));
        while self.found.front().is_some_and(|at| *at < self.start) {
            self.found.pop_front();
        }
        self.tracker.feed(chunk, &mut self.found);
    }

    /// Whether the quote at that place of the buffer opens a link.
    pub(super) fn holds(&self, quote: usize) -> bool {
        let at = self.start.saturating_add(u64::try_from(quote).unwrap_or(u64::MAX));
        self.found.binary_search(&at).is_ok()
    }

    pub(super) fn bind(&mut self, url: &str) -> String {
        (self.hook)(url)
    }
}

/// The longest raw name that is told apart: `"resourceType"` fully escaped has 72 bytes.
const LONGEST_NAME: usize = 80;

/// Walks a JSON text: strings, depth, and the names of the members that lead to a link.
struct Tracker {
    at: u64,
    depth: u64,
    within: Within,
    /// Whether a colon came last: the next string is a value.
    is_value: bool,
    /// The string that is being read, raw; only on the levels that count.
    text: Vec<u8>,
    reading: bool,
    /// The name of the member that is open on the first level.
    first: Name,
    /// The same on the third, within an object of an array.
    third: Name,
    /// Whether the second level is an array.
    in_list: bool,
    /// It is no Bundle, or its links have been seen. (Should a second list of links come, its URLs are rewritten
    /// like any others, and refused when they come back without a binding.)
    is_over: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    Structure,
    String,
    Escape,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    ResourceType,
    Link,
    Url,
    Other,
}

impl Default for Tracker {
    fn default() -> Self {
        Self {
            at: 0,
            depth: 0,
            within: Within::Structure,
            is_value: false,
            text: Vec::new(),
            reading: false,
            first: Name::Other,
            third: Name::Other,
            in_list: false,
            is_over: false,
        }
    }
}

impl Tracker {
    fn feed(&mut self, chunk: &[u8], found: &mut VecDeque<u64>) {
        let start = self.at;
        self.at = start.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        let mut at = 0;
        while let Some(byte) = chunk.get(at).copied().filter(|_| !self.is_over) {
            match self.within {
                Within::Structure => {
                    if byte == b'"' {
                        self.open_string(start.saturating_add(u64::try_from(at).unwrap_or(u64::MAX)), found);
                    } else {
                        self.structure(byte);
                    }
                    at += 1;
                }
                Within::Escape => {
                    self.read(&[byte]);
                    self.within = Within::String;
                    at += 1;
                }
                Within::String => {
                    let rest = chunk.get(at..).unwrap_or_default();
                    let end = memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
                    self.read(rest.get(..end).unwrap_or_default());
                    match rest.get(end) {
                        Some(b'"') => self.close_string(),
                        Some(_) => {
                            self.read(b"\\");
                            self.within = Within::Escape;
                        }
                        None => {}
                    }
                    at += end + 1;
                }
            }
        }
    }

    #[inline]
    fn structure(&mut self, byte: u8) {
        match byte {
            b'{' | b'[' => {
                self.depth = self.depth.saturating_add(1);
                match self.depth {
                    2 => self.in_list = byte == b'[',
                    3 => self.third = Name::Other,
                    _ => {}
                }
                self.is_value = false;
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                self.is_over = self.depth == 1 && self.first == Name::Link;
            }
            b':' => self.is_value = true,
            b',' => self.is_value = false,
            _ => {}
        }
    }

    fn open_string(&mut self, at: u64, found: &mut VecDeque<u64>) {
        self.within = Within::String;
        let is_link =
            self.depth == 3 && self.is_value && self.third == Name::Url && self.first == Name::Link && self.in_list;
        if is_link {
            found.push_back(at);
        }
        self.reading = self.depth == 1 || self.depth == 3 && !self.is_value;
        self.text.clear();
    }

    fn read(&mut self, text: &[u8]) {
        if self.reading && self.text.len() < LONGEST_NAME {
            self.text.extend(text.iter().take(LONGEST_NAME));
        }
    }

    fn close_string(&mut self) {
        self.within = Within::Structure;
        if !self.reading {
            return;
        }
        let text = decode(&self.text);
        match (self.depth, self.is_value) {
            (1, false) => self.first = name(&text),
            (1, true) if self.first == Name::ResourceType => self.is_over = text != b"Bundle",
            (3, false) => self.third = name(&text),
            _ => {}
        }
    }
}

fn name(text: &[u8]) -> Name {
    match text {
        b"resourceType" => Name::ResourceType,
        b"link" => Name::Link,
        b"url" => Name::Url,
        _ => Name::Other,
    }
}

fn decode(raw: &[u8]) -> Vec<u8> {
    use super::{
        bases::{Decoded, Step},
        json::JsonText,
    };
    let mut text = JsonText::new(raw, 0);
    let mut decoded = Vec::with_capacity(raw.len());
    while let Step::Byte(byte) = text.step() {
        decoded.push(byte);
    }
    decoded
}
