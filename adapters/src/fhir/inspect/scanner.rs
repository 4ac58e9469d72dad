//! Cuts a JSON object into its members, and a Bundle's entries into elements, as the bytes come.
//!
//! It finds only where values end; whether they are JSON is checked where they are parsed.

use memchr::memchr2;

use super::{Fault, LARGEST};

/// What the next bytes complete.
pub(super) enum Piece {
    /// Nothing yet: more bytes are needed.
    More,
    Member {
        name: String,
        value: Vec<u8>,
    },
    /// An element of the member `entry`, once [`Scanner::enter_entries`] was called.
    Entry(Vec<u8>),
    EntriesEnd,
    /// The object is complete; from here on only white space may come.
    End,
}

#[derive(Default)]
pub(super) struct Scanner {
    state: State,
    /// What was collected of a name, value or entry.
    text: Vec<u8>,
    name: String,
    extent: Extent,
    enters_entries: bool,
    /// How much of a byte order mark was read.
    mark: usize,
    /// Whether a comma must come before the next item, or has come and demands one.
    comma: Comma,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    Members,
    Name,
    Colon,
    ValueStart,
    Value,
    Entries,
    Entry,
    Done,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Comma {
    /// Nothing stands before: an item or the end.
    #[default]
    None,
    /// An item came: a comma or the end.
    Due,
    /// A comma came: an item.
    Seen,
}

/// Where a value ends that is being read.
#[derive(Default)]
struct Extent {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// A number, `true`, `false` or `null`: it ends where something else begins.
    scalar: bool,
}

impl Extent {
    /// How many of these bytes belong to the value, and whether it ends with them.
    fn take(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut at = 0;
        while let Some(byte) = bytes.get(at).copied() {
            if self.escaped {
                self.escaped = false;
            } else if self.in_string {
                let rest = bytes.get(at..).unwrap_or_default();
                let Some(found) = memchr2(b'"', b'\\', rest) else { return (bytes.len(), false) };
                at += found;
                if rest.get(found) == Some(&b'\\') {
                    self.escaped = true;
                } else {
                    self.in_string = false;
                    if self.depth == 0 {
                        return (at + 1, true);
                    }
                }
            } else if self.scalar {
                if matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r') {
                    return (at, true);
                }
            } else {
                match byte {
                    b'"' => self.in_string = true,
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => {
                        self.depth = self.depth.saturating_sub(1);
                        if self.depth == 0 {
                            return (at + 1, true);
                        }
                    }
                    _ if self.depth == 0 => self.scalar = true,
                    _ => {}
                }
            }
            at += 1;
        }
        (bytes.len(), false)
    }
}

impl Scanner {
    /// From now on the member `entry` is handed over element by element.
    pub(super) fn enter_entries(&mut self) {
        self.enters_entries = true;
    }

    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Reads up to the next piece; answers it and the bytes behind it.
    pub(super) fn next<'b>(&mut self, mut bytes: &'b [u8]) -> Result<(Piece, &'b [u8]), Fault> {
        while let [byte, rest @ ..] = bytes {
            match self.state {
                State::Name | State::Value | State::Entry => {
                    let (taken, ends) = self.extent.take(bytes);
                    let (taken, rest) = bytes.split_at_checked(taken).unwrap_or((bytes, &[]));
                    if self.text.len() + taken.len() > LARGEST {
                        return Err(Fault::TooLarge);
                    }
                    self.text.extend_from_slice(taken);
                    bytes = rest;
                    if ends && let Some(piece) = self.complete()? {
                        return Ok((piece, bytes));
                    }
                    continue;
                }
                _ if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') => {}
                State::Start => match (byte, self.mark) {
                    (b'{', 0 | 3) => self.state = State::Members,
                    (0xEF, 0) | (0xBB, 1) | (0xBF, 2) => self.mark += 1,
                    _ => return Err(Fault::Malformed),
                },
                State::Members => match (byte, self.comma) {
                    (b'"', Comma::None | Comma::Seen) => {
                        self.begin(State::Name);
                        continue;
                    }
                    (b',', Comma::Due) => self.comma = Comma::Seen,
                    (b'}', Comma::None | Comma::Due) => {
                        self.state = State::Done;
                        return Ok((Piece::End, rest));
                    }
                    _ => return Err(Fault::Malformed),
                },
                State::Colon if *byte == b':' => self.state = State::ValueStart,
                State::ValueStart if self.enters_entries && self.name == "entry" && *byte == b'[' => {
                    self.comma = Comma::None;
                    self.state = State::Entries;
                }
                State::ValueStart => {
                    self.begin(State::Value);
                    continue;
                }
                State::Entries => match (byte, self.comma) {
                    (b'{', Comma::None | Comma::Seen) => {
                        self.begin(State::Entry);
                        continue;
                    }
                    (b',', Comma::Due) => self.comma = Comma::Seen,
                    (b']', Comma::None | Comma::Due) => {
                        self.state = State::Members;
                        self.comma = Comma::Due;
                        return Ok((Piece::EntriesEnd, rest));
                    }
                    _ => return Err(Fault::Malformed),
                },
                State::Colon | State::Done => return Err(Fault::Malformed),
            }
            bytes = rest;
        }
        Ok((Piece::More, bytes))
    }

    fn begin(&mut self, state: State) {
        self.text.clear();
        self.extent = Extent::default();
        self.state = state;
    }

    fn complete(&mut self) -> Result<Option<Piece>, Fault> {
        let text = std::mem::take(&mut self.text);
        match self.state {
            State::Name => {
                self.name = serde_json::from_slice(&text).map_err(|_| Fault::Malformed)?;
                self.state = State::Colon;
                Ok(None)
            }
            State::Entry => {
                self.state = State::Entries;
                self.comma = Comma::Due;
                Ok(Some(Piece::Entry(text)))
            }
            _ => {
                self.state = State::Members;
                self.comma = Comma::Due;
                Ok(Some(Piece::Member { name: std::mem::take(&mut self.name), value: text }))
            }
        }
    }
}
