//! A small scanner of Rust sources, for the tests that hold who may know whom. It reads paths
//! (`use a::{b, c::D}` and `a::b::D` in code alike), and neither comments nor literals.
//!
//! Other packages' tests include it by `#[path]`: what it reads must mean the same in each.

#![allow(dead_code, reason = "each test uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot read its sources fails")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A path as it stands in a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub line: usize,
    /// `crate`, `super` and `self` included, as written.
    pub segments: Vec<String>,
    /// How many inline `mod`s surround it.
    pub inline: usize,
}

impl Named {
    pub fn text(&self) -> String {
        self.segments.join("::")
    }

    pub fn starts_with(&self, path: &[&str]) -> bool {
        self.segments.len() >= path.len() && self.segments.iter().zip(path).all(|(is, asked)| is == asked)
    }

    /// The path from the root of its crate, if it leads there: `module` is that of the file.
    pub fn absolute(&self, module: &[String]) -> Option<Vec<String>> {
        let first = self.segments.first()?;
        if first == "crate" {
            return Some(self.segments[1..].to_vec());
        }
        if first != "super" && first != "self" {
            return None;
        }
        let climbs = self.segments.iter().filter(|segment| *segment == "super").count();
        let rest = self.segments.iter().skip_while(|segment| matches!(segment.as_str(), "super" | "self"));
        // Within inline modules the first steps stay in the file.
        let climbs = climbs.saturating_sub(self.inline);
        let here = module.len().saturating_sub(climbs);
        Some(module[..here].iter().chain(rest).cloned().collect())
    }
}

/// The module that a file is, below its `src`: `oauth/mod.rs` is `[oauth]`, `lib.rs` none.
pub fn module_of(below_src: &Path) -> Vec<String> {
    let mut segments: Vec<String> =
        below_src.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if segments.last().is_some_and(|last| matches!(last.as_str(), "mod" | "lib" | "main")) {
        segments.pop();
    }
    segments
}

/// All `.rs` files below a directory, sorted, with their text.
pub fn sources(directory: &Path) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                files.push((path, text));
            }
        }
    }
    files.sort();
    assert!(!files.is_empty(), "no sources below {}", directory.display());
    files
}

/// All paths of a source, single names too.
pub fn paths(source: &str) -> Vec<Named> {
    let tokens = tokens(source);
    let mut found = Vec::new();
    let (mut at, mut depth) = (0, 0_usize);
    // The depths of braces at which an inline module was opened.
    let mut inline: Vec<usize> = Vec::new();
    while let Some(token) = tokens.get(at) {
        match &token.kind {
            Kind::Mark('{') => depth += 1,
            Kind::Mark('}') => {
                depth = depth.saturating_sub(1);
                inline.pop_if(|opened| *opened == depth);
            }
            Kind::Word(word) if word == "mod" && mark(&tokens, at + 2) == Some('{') => inline.push(depth),
            Kind::Word(_) => {
                let mut tree = Tree { tokens: &tokens, inline: inline.len(), found: &mut found };
                at = tree.read(at, &[]);
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

struct Tree<'a> {
    tokens: &'a [Token],
    inline: usize,
    found: &'a mut Vec<Named>,
}

impl Tree<'_> {
    /// Reads one path, or a tree of them, below `prefix`; returns the place behind it.
    fn read(&mut self, mut at: usize, prefix: &[String]) -> usize {
        let mut segments = prefix.to_vec();
        let line = self.tokens.get(at).map_or(0, |token| token.line);
        loop {
            match self.tokens.get(at).map(|token| &token.kind) {
                Some(Kind::Word(word)) => {
                    // `self` at the end of a tree's branch is the prefix itself.
                    if word != "self" || segments.is_empty() {
                        segments.push(word.clone());
                    }
                    at += 1;
                }
                Some(Kind::Mark('*')) if !prefix.is_empty() || segments.len() > prefix.len() => {
                    segments.push("*".to_owned());
                    at += 1;
                }
                Some(Kind::Mark('{')) => return self.branches(at + 1, &segments),
                _ => break,
            }
            if !matches!(self.tokens.get(at).map(|token| &token.kind), Some(Kind::Colons)) {
                break;
            }
            at += 1;
        }
        self.found.push(Named { line, segments, inline: self.inline });
        at
    }

    fn branches(&mut self, mut at: usize, prefix: &[String]) -> usize {
        while let Some(token) = self.tokens.get(at) {
            at = match token.kind {
                Kind::Mark('}') => return at + 1,
                Kind::Mark('{' | '*') | Kind::Word(_) => self.branch(at, prefix),
                _ => at + 1,
            };
        }
        at
    }

    fn branch(&mut self, at: usize, prefix: &[String]) -> usize {
        let mut behind = self.read(at, prefix);
        // `as name` gives no path.
        if matches!(self.tokens.get(behind).map(|token| &token.kind), Some(Kind::Word(word)) if word == "as") {
            behind += 2;
        }
        behind
    }
}

fn mark(tokens: &[Token], at: usize) -> Option<char> {
    match tokens.get(at)?.kind {
        Kind::Mark(mark) => Some(mark),
        _ => None,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Word(String),
    Colons,
    Mark(char),
}

#[derive(Debug)]
struct Token {
    line: usize,
    kind: Kind,
}

fn tokens(source: &str) -> Vec<Token> {
    let text: Vec<char> = source.chars().collect();
    let get = |at: usize| text.get(at).copied().unwrap_or('\0');
    let (mut tokens, mut at, mut line) = (Vec::new(), 0, 1);
    while at < text.len() {
        let start = at;
        let kind = match get(at) {
            '/' if get(at + 1) == '/' => {
                at = end_of_line(&text, at);
                None
            }
            '/' if get(at + 1) == '*' => {
                at = end_of_comment(&text, at);
                None
            }
            '"' => {
                at = end_of_string(&text, at + 1);
                None
            }
            '\'' => {
                at = end_of_quote(&text, at);
                None
            }
            ':' if get(at + 1) == ':' => {
                at += 2;
                Some(Kind::Colons)
            }
            first if first == '_' || first.is_alphanumeric() => {
                while get(at) == '_' || get(at).is_alphanumeric() {
                    at += 1;
                }
                let word: String = text[start..at].iter().collect();
                match end_of_prefixed(&text, &word, at) {
                    Some(end) => {
                        at = end;
                        None
                    }
                    None if first.is_ascii_digit() => None,
                    None => Some(Kind::Word(word)),
                }
            }
            other => {
                at += 1;
                (!other.is_whitespace()).then_some(Kind::Mark(other))
            }
        };
        if let Some(kind) = kind {
            tokens.push(Token { line, kind });
        }
        line += text[start..at.min(text.len())].iter().filter(|c| **c == '\n').count();
    }
    tokens
}

fn end_of_line(text: &[char], at: usize) -> usize {
    text[at..].iter().position(|c| *c == '\n').map_or(text.len(), |found| at + found)
}

/// Block comments nest.
fn end_of_comment(text: &[char], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while at < text.len() {
        match (text[at], text.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    at
}

fn end_of_string(text: &[char], mut at: usize) -> usize {
    while at < text.len() {
        match text[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// A character, or a lifetime's quote alone.
fn end_of_quote(text: &[char], at: usize) -> usize {
    if text.get(at + 1) == Some(&'\\') {
        let close = text.iter().skip(at + 3).position(|c| *c == '\'');
        return close.map_or(text.len(), |found| at + 3 + found + 1);
    }
    if text.get(at + 2) == Some(&'\'') { at + 3 } else { at + 1 }
}

/// `r"…"`, `br#"…"#`, `b"…"`, `c"…"`, `b'…'`, where `word` has been read up to `at`; `r#name` is a name.
fn end_of_prefixed(text: &[char], word: &str, at: usize) -> Option<usize> {
    let hashes = text[at..].iter().take_while(|c| **c == '#').count();
    let quote = text.get(at + hashes).copied();
    match (word, quote) {
        ("r" | "br" | "cr", Some('"')) => {
            let body = at + hashes + 1;
            let closing = |from: usize| text[from..].iter().take_while(|c| **c == '#').count() >= hashes;
            let close = (body..text.len()).find(|place| text[*place] == '"' && closing(place + 1));
            Some(close.map_or(text.len(), |place| place + 1 + hashes))
        }
        ("b" | "c", Some('"')) if hashes == 0 => Some(end_of_string(text, at + 1)),
        ("b", Some('\'')) if hashes == 0 => Some(end_of_quote(text, at)),
        _ => None,
    }
}
