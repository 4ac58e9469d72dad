//! What stands before a string: whether its quote is escaped, whose member it is.
//!
//! Looks back over the buffer and over the last bytes that were passed before it.

use super::{
    bases::{Decoded, Step},
    json::JsonText,
};

/// The longest raw member name that is looked at; `instantiatesCanonical` fully escaped has 126 bytes.
const LONGEST_NAME: usize = 200;
/// What is remembered of passed bytes, runs of white space counting as one byte: a name, its quotes, a colon.
const REMEMBERED: usize = LONGEST_NAME + 16;
/// What a string is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Value,
    /// A member's name, or the value of a member that is left alone.
    LeftAlone,
    /// A value or a name: its end must be seen.
    Unknown,
}

/// White space as JSON has it.
pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Members whose strings are names or text, never links.
pub(super) fn is_left_alone(name: &[u8]) -> bool {
    matches!(name, b"system" | b"profile" | b"value" | b"div") || name.starts_with(b"instantiates")
}

/// The last bytes that have been passed on.
#[derive(Default)]
pub(super) struct Before {
    /// Runs of white space are one blank here: within names nobody cares, and between tokens they may be long.
    bytes: Vec<u8>,
    /// Whether an odd number of backslashes stands right before `bytes`.
    odd: bool,
}

impl Before {
    pub(super) fn pass(&mut self, passed: &[u8]) {
        if passed.is_empty() {
            return;
        }
        let ready = passed.len().checked_sub(REMEMBERED).and_then(|at| passed.split_at_checked(at));
        if let Some((before, tail)) = ready
            && !tail.windows(2).any(|pair| pair.iter().all(|byte| is_blank(*byte)))
            && let Some(run) = before.iter().rev().position(|byte| *byte != b'\\')
        {
            self.odd = run % 2 == 1;
            self.bytes.clear();
            self.bytes.extend_from_slice(tail);
            return;
        }
        let mut tail = Vec::with_capacity(REMEMBERED);
        let mut at = passed.len();
        while at > 0 && tail.len() < REMEMBERED {
            at -= 1;
            let byte = passed.get(at).copied().unwrap_or_default();
            push_collapsed(&mut tail, byte);
        }
        let run = passed.get(..at).unwrap_or_default().iter().rev().take_while(|byte| **byte == b'\\').count();
        if at > 0 && run < at {
            self.odd = run % 2 == 1;
        } else {
            // The old bytes reach into what is remembered, or into the run of backslashes before it.
            let mut skipped = run;
            for byte in self.bytes.iter().rev() {
                if tail.len() < REMEMBERED && skipped == 0 {
                    push_collapsed(&mut tail, *byte);
                } else if *byte == b'\\' {
                    skipped += 1;
                } else {
                    self.odd = false;
                    break;
                }
            }
            self.odd ^= skipped % 2 == 1;
        }
        tail.reverse();
        self.bytes = tail;
    }
}

fn push_collapsed(reversed: &mut Vec<u8>, byte: u8) {
    match reversed.last() {
        _ if !is_blank(byte) => reversed.push(byte),
        Some(b' ') => {}
        _ => reversed.push(b' '),
    }
}

/// Looks back over the buffer into what was passed before it.
pub(super) struct Back<'a> {
    pub(super) before: &'a Before,
    pub(super) buffer: &'a [u8],
}

impl Back<'_> {
    fn get(&self, at: isize) -> Option<u8> {
        match usize::try_from(at) {
            Ok(at) => self.buffer.get(at).copied(),
            Err(_) => {
                self.before.bytes.len().checked_sub(at.unsigned_abs()).and_then(|at| self.before.bytes.get(at).copied())
            }
        }
    }

    /// Whether an odd number of backslashes stands before `at`.
    pub(super) fn is_escaped(&self, at: isize) -> bool {
        let mut odd = false;
        let mut at = at - 1;
        loop {
            match self.get(at) {
                Some(b'\\') => odd = !odd,
                Some(_) => return odd,
                None => return odd ^ self.before.odd,
            }
            at -= 1;
        }
    }

    /// The last byte before `at` that is no white space.
    pub(super) fn significant(&self, at: isize) -> Option<(u8, isize)> {
        let mut at = at - 1;
        while let Some(byte) = self.get(at) {
            if !is_blank(byte) {
                return Some((byte, at));
            }
            at -= 1;
        }
        None
    }

    /// What the string is that opens at `quote`. (Arrays that are left alone are walked, not looked up here.)
    pub(super) fn role(&self, quote: isize) -> Role {
        match self.significant(quote) {
            Some((b':', colon)) if self.name_is_left_alone(colon) => Role::LeftAlone,
            None | Some((b':' | b'[', _)) => Role::Value,
            Some((b',', _)) => Role::Unknown,
            // An opening brace, or the backslash of an escaped quote within a string.
            Some(_) => Role::LeftAlone,
        }
    }

    /// Whether the name before this colon is one of those whose strings are left alone.
    pub(super) fn name_is_left_alone(&self, colon: isize) -> bool {
        let Some((b'"', end)) = self.significant(colon) else { return false };
        if self.is_escaped(end) {
            return false;
        }
        let mut reversed = Vec::with_capacity(LONGEST_NAME);
        let mut at = end - 1;
        while let Some(byte) = self.get(at) {
            if byte == b'"' && !self.is_escaped(at) {
                reversed.reverse();
                return decoded_is_left_alone(reversed);
            }
            if reversed.len() >= LONGEST_NAME {
                return false;
            }
            reversed.push(byte);
            at -= 1;
        }
        false
    }
}

fn decoded_is_left_alone(mut raw: Vec<u8>) -> bool {
    if !raw.contains(&b'\\') {
        return is_left_alone(&raw);
    }
    raw.push(b'"');
    let mut text = JsonText::new(&raw, 0);
    let mut name = Vec::with_capacity(raw.len());
    while let Step::Byte(byte) = text.step() {
        name.push(byte);
    }
    is_left_alone(&name)
}
