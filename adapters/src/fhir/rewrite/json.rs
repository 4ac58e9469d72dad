//! The rewriter for JSON and NDJSON.
//!
//! It walks no string that has nothing to do with a base. It looks for the bases' hosts and for `\u00`, which
//! may hide them, and decides around each hit: where the string begins, what it decodes to, whose member
//! it is. All that is decided by looking back a little, with two exceptions. An element of an array
//! belongs to the member that holds the array, and that may be far back: so each `[` is looked at, and
//! within arrays of members that are left alone (`profile`) every token is walked until their end. And
//! after a comma only what follows a string tells a member's name from an array's element.

use memchr::{memchr, memchr2, memchr3, memmem::Finder, memrchr};

use super::{
    Edit, Replacement,
    bases::{Bases, Decoded, Found, Step, names_definition},
    look_back::{Back, Before, Role, is_blank},
    outermost::Links,
};

/// How long a string may be held while its end must be seen.
pub(super) const HELD: usize = 8 << 10;
/// Deeper arrays within an array that is left alone are taken for ordinary ones.
const DEEPEST: usize = 1 << 16;

pub(super) struct Json {
    /// One document a line: a newline ends whatever a broken line left open.
    lines: bool,
    before: Before,
    /// What is open from the outermost array that is left alone inwards; empty outside of such arrays.
    open: Vec<Open>,
    /// Where the walk within `open` stands.
    within: Within,
    /// The next position of each host; kept to save its allocation.
    next: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    /// An array whose strings are left alone.
    Names,
    Array,
    Object,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Within {
    Structure,
    String,
    Escape,
}

/// What is to be done about a string.
enum Verdict {
    Leave,
    /// The buffer ends before it is certain.
    More,
    /// An edit, and where the search goes on.
    Edit(Edit, usize),
}

/// A string of a JSON text, read from the byte after its opening quote.
#[derive(Clone)]
pub(super) struct JsonText<'a> {
    buffer: &'a [u8],
    at: usize,
}

impl<'a> JsonText<'a> {
    pub(super) fn new(buffer: &'a [u8], at: usize) -> Self {
        Self { buffer, at }
    }
}

impl Decoded for JsonText<'_> {
    fn step(&mut self) -> Step {
        let Some(byte) = self.buffer.get(self.at) else { return Step::More };
        match byte {
            b'"' => Step::End,
            b'\\' => {
                let Some(kind) = self.buffer.get(self.at + 1) else { return Step::More };
                let (byte, width) = match kind {
                    b'u' => match unicode(self.buffer.get(self.at + 2..).unwrap_or_default()) {
                        Some(Some(byte)) => (byte, 6),
                        Some(None) => (0xFF, 2),
                        None => return Step::More,
                    },
                    b'/' | b'\\' | b'"' => (*kind, 2),
                    _ => (0xFF, 2),
                };
                self.at += width;
                Step::Byte(byte)
            }
            other => {
                self.at += 1;
                Step::Byte(*other)
            }
        }
    }

    fn at(&self) -> usize {
        self.at
    }
}

/// The ASCII character of four hexadecimal digits; `Some(None)`: another character, or no digits;
/// `None`: the buffer ends first.
fn unicode(digits: &[u8]) -> Option<Option<u8>> {
    let mut value = 0_u32;
    for place in 0..4 {
        match digits.get(place).map(|digit| char::from(*digit).to_digit(16)) {
            None => return None,
            Some(None) => return Some(None),
            Some(Some(digit)) => value = value << 4 | digit,
        }
    }
    Some(u8::try_from(value).ok().filter(u8::is_ascii))
}

impl Json {
    pub(super) fn new(lines: bool) -> Self {
        Self { lines, before: Before::default(), open: Vec::new(), within: Within::Structure, next: Vec::new() }
    }

    /// Finds what is to be changed in `buffer` and answers how much of it is settled; the rest must come
    /// again at the beginning of the next buffer. With `last` nothing follows.
    pub(super) fn scan(
        &mut self,
        bases: &Bases,
        buffer: &[u8],
        last: bool,
        links: &mut Option<Links>,
        edits: &mut Vec<Edit>,
    ) -> usize {
        let mut scan = Scan { bases, buffer, links, edits, last };
        let settled = self.run(&mut scan).unwrap_or_else(|held| held);
        let settled = if last { buffer.len() } else { settled };
        self.before.pass(buffer.get(..settled).unwrap_or_default());
        settled
    }

    /// `Err`: a string begins there whose end of the matter is not in the buffer.
    fn run(&mut self, scan: &mut Scan<'_>) -> Result<usize, usize> {
        let mut at = 0;
        loop {
            if !self.open.is_empty() {
                at = self.walk(scan, at)?;
                if !self.open.is_empty() {
                    return Ok(scan.buffer.len());
                }
            }
            match self.search(scan, at)? {
                Some(array) => at = array,
                None => return self.tail(scan),
            }
        }
    }

    /// The fast road: hit by hit up to the next array that is left alone.
    fn search(&mut self, scan: &mut Scan<'_>, from: usize) -> Result<Option<usize>, usize> {
        let buffer = scan.buffer;
        let hosts = &scan.bases.hosts;
        let find = |finder: &Finder<'_>, at: usize| {
            finder.find(buffer.get(at..).unwrap_or_default()).map_or(usize::MAX, |found| found + at)
        };
        let mut next = std::mem::take(&mut self.next);
        next.clear();
        next.extend(hosts.iter().map(|host| find(host, from)));
        let mut escape = find(&scan.bases.escape, from);
        let mut array = position(buffer, b'[', from);
        // Quotes before this position have been judged.
        let mut done = from;
        let mut outcome = Ok(None);
        loop {
            let host = next.iter().copied().min().unwrap_or(usize::MAX);
            let hit = host.min(escape).min(array);
            if hit == usize::MAX {
                break;
            }
            if hit == array {
                if self.opens_names(buffer, hit) {
                    self.open.push(Open::Names);
                    self.within = Within::Structure;
                    outcome = Ok(Some(hit + 1));
                    break;
                }
                array = position(buffer, b'[', hit + 1);
                continue;
            }
            let reach = if hit == host { HOST_REACH } else { scan.bases.reach() };
            let is_ascii = hit == host || matches!(buffer.get(hit + 4), None | Some(b'0'..=b'7'));
            let from = hit.saturating_sub(reach).max(done);
            let quote = memrchr(b'"', buffer.get(from..hit).unwrap_or_default()).map(|quote| quote + from);
            let mut resume = hit + 1;
            if let Some(quote) = quote.filter(|_| is_ascii) {
                done = quote + 1;
                match self.judge(scan, quote, None) {
                    Verdict::Leave => {}
                    Verdict::More if scan.last => {}
                    Verdict::More => {
                        outcome = Err(quote);
                        break;
                    }
                    Verdict::Edit(edit, end) => {
                        scan.edits.push(edit);
                        resume = end;
                        done = end;
                    }
                }
            }
            for (place, host) in next.iter_mut().zip(hosts) {
                if *place < resume {
                    *place = find(host, resume);
                }
            }
            if escape < resume {
                escape = find(&scan.bases.escape, resume);
            }
            if array < resume {
                array = position(buffer, b'[', resume);
            }
        }
        self.next = next;
        outcome
    }

    /// Whether the last bytes may be the beginning of a string that begins with a base.
    fn tail(&self, scan: &Scan<'_>) -> Result<usize, usize> {
        let length = scan.buffer.len();
        if scan.last {
            return Ok(length);
        }
        let from = length.saturating_sub(scan.bases.reach());
        let tail = scan.buffer.get(from..).unwrap_or_default();
        let open = memchr::memchr_iter(b'"', tail)
            .map(|quote| quote + from)
            .filter(|quote| matches!(scan.buffer.get(quote + 1), None | Some(b'h' | b'H' | b'\\')))
            .find(|quote| matches!(scan.bases.find(&JsonText::new(scan.buffer, quote + 1)), Found::More));
        open.map_or(Ok(length), Err)
    }

    /// The careful road: token by token while an array is open whose strings are left alone.
    fn walk(&mut self, scan: &mut Scan<'_>, from: usize) -> Result<usize, usize> {
        let buffer = scan.buffer;
        let mut at = from;
        while let Some(byte) = buffer.get(at).copied() {
            match self.within {
                Within::Escape => {
                    self.within = Within::String;
                    at += 1;
                    continue;
                }
                Within::String => {
                    let rest = buffer.get(at..).unwrap_or_default();
                    // No JSON string holds a newline: in NDJSON it ends a broken line.
                    let newline = if self.lines { b'\n' } else { b'"' };
                    let Some(found) = memchr3(b'"', b'\\', newline, rest) else { return Ok(buffer.len()) };
                    match rest.get(found) {
                        Some(b'\\') => self.within = Within::Escape,
                        Some(b'\n') => {
                            self.within = Within::Structure;
                            self.open.clear();
                            return Ok(at + found + 1);
                        }
                        _ => self.within = Within::Structure,
                    }
                    at += found + 1;
                    continue;
                }
                Within::Structure => {}
            }
            match byte {
                b'"' => {
                    let role = match self.open.last() {
                        Some(Open::Names) => Some(Role::LeftAlone),
                        Some(Open::Array) => Some(Role::Value),
                        _ => None,
                    };
                    match self.judge(scan, at, role) {
                        Verdict::More if !scan.last => return Err(at),
                        Verdict::Leave | Verdict::More => at += 1,
                        Verdict::Edit(edit, end) => {
                            scan.edits.push(edit);
                            at = end;
                        }
                    }
                    self.within = Within::String;
                    continue;
                }
                b'[' | b'{' if self.open.len() < DEEPEST => {
                    let parent = self.open.last().copied().unwrap_or(Open::Object);
                    self.open.push(match (byte, parent) {
                        (b'{', _) => Open::Object,
                        (_, Open::Object) if !self.opens_names(buffer, at) => Open::Array,
                        (_, Open::Object) => Open::Names,
                        (_, parent) => parent,
                    });
                }
                b'[' | b'{' => self.open.clear(),
                b']' | b'}' => {
                    self.open.pop();
                }
                b'\n' if self.lines => self.open.clear(),
                _ => {}
            }
            at += 1;
            if self.open.is_empty() {
                return Ok(at);
            }
        }
        Ok(buffer.len())
    }

    /// What to do about the string whose opening quote stands at `quote`. `role`: what it is, if known.
    fn judge(&self, scan: &mut Scan<'_>, quote: usize, role: Option<Role>) -> Verdict {
        if role == Some(Role::LeftAlone) {
            return Verdict::Leave;
        }
        let buffer = scan.buffer;
        let prefix = match scan.bases.find(&JsonText::new(buffer, quote + 1)) {
            Found::No => return Verdict::Leave,
            Found::More => return Verdict::More,
            Found::Yes(end) => end,
        };
        let back = Back { before: &self.before, buffer };
        let Ok(place) = isize::try_from(quote) else { return Verdict::Leave };
        if scan.links.as_ref().is_some_and(|links| links.holds(quote)) {
            match link(scan, quote) {
                Some(Verdict::More) if !scan.last => return Verdict::More,
                Some(Verdict::Edit(edit, end)) => return Verdict::Edit(edit, end),
                _ => {}
            }
        }
        match names_definition(prefix.clone()) {
            None => return Verdict::More,
            Some(true) => return Verdict::Leave,
            Some(false) => {}
        }
        let role = role.unwrap_or_else(|| back.role(place));
        match role {
            Role::LeftAlone => return Verdict::Leave,
            Role::Value => {}
            Role::Unknown => {
                let seen = buffer.get(..buffer.len().min(quote + HELD)).unwrap_or_default();
                match is_name(seen, prefix.at()) {
                    Some(true) => return Verdict::Leave,
                    None if seen.len() < quote + HELD => return Verdict::More,
                    Some(false) | None => {}
                }
            }
        }
        let end = prefix.at();
        Verdict::Edit(Edit { start: quote + 1, end, with: Replacement::Base }, end)
    }

    /// Whether the array that opens at `at` is the value of a member that is left alone.
    fn opens_names(&self, buffer: &[u8], at: usize) -> bool {
        let back = Back { before: &self.before, buffer };
        let Ok(at) = isize::try_from(at) else { return false };
        matches!(back.significant(at), Some((b':', colon)) if back.name_is_left_alone(colon))
    }
}

/// A host lies at most `https://`, all escaped, behind its quote.
const HOST_REACH: usize = 64;

struct Scan<'a> {
    bases: &'a Bases,
    buffer: &'a [u8],
    last: bool,
    links: &'a mut Option<Links>,
    edits: &'a mut Vec<Edit>,
}

fn position(buffer: &[u8], wanted: u8, from: usize) -> usize {
    memchr(wanted, buffer.get(from..).unwrap_or_default()).map_or(usize::MAX, |found| found + from)
}

/// Where the string that goes on at `at` ends: its closing quote.
fn closing_quote(buffer: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let found = memchr2(b'"', b'\\', buffer.get(at..)?)? + at;
        if buffer.get(found) == Some(&b'"') {
            return Some(found);
        }
        at = found + 2;
    }
}

/// Whether the string that goes on at `at` is a member's name; `None`: the buffer ends first.
fn is_name(buffer: &[u8], at: usize) -> Option<bool> {
    let end = closing_quote(buffer, at)?;
    let next = buffer.get(end + 1..)?.iter().find(|byte| !is_blank(**byte))?;
    Some(*next == b':')
}

/// A paging link, held whole and put to the hook. `None`: too long, or no string; it is then rewritten
/// like any other, and what it lacks is refused when it comes back.
fn link(scan: &mut Scan<'_>, quote: usize) -> Option<Verdict> {
    let start = quote + 1;
    let Some(end) = closing_quote(scan.buffer, start) else {
        return (scan.buffer.len() - start < HELD).then_some(Verdict::More);
    };
    if end - start >= HELD {
        return None;
    }
    let url: String = serde_json::from_slice(scan.buffer.get(quote..=end)?).ok()?;
    let with = scan.links.as_mut()?.bind(&url);
    let mut text = serde_json::to_vec(&with).ok()?;
    text.pop();
    text.drain(..1);
    Some(Verdict::Edit(Edit { start, end, with: Replacement::Text(text) }, end))
}
