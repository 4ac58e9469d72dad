//! JSON as EHRs send it, read without guessing: a member that stands twice is a fault, since two
//! readers that pick different ones can be played against each other.

use std::{cell::RefCell, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Why a body is no JSON that can be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum JsonFault {
    Empty,
    NotUtf8,
    Html,
    Xml,
    Syntax { line: usize, column: usize },
    Duplicate(String),
}

#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) value: Value,
    pub(crate) byte_order_mark: bool,
}

/// Reads a whole body. Nesting is bounded by serde_json's limit of 128 levels.
pub(crate) fn parse(body: &[u8]) -> Result<Parsed, JsonFault> {
    let text = std::str::from_utf8(body).map_err(|_| JsonFault::NotUtf8)?;
    let (text, byte_order_mark) = match text.strip_prefix('\u{feff}') {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    match sniff(text) {
        Sniffed::Nothing => return Err(JsonFault::Empty),
        Sniffed::Html => return Err(JsonFault::Html),
        Sniffed::Xml => return Err(JsonFault::Xml),
        Sniffed::Other => {}
    }
    let duplicate = RefCell::new(None);
    let mut from = serde_json::Deserializer::from_str(text);
    let value = Unique(&duplicate).deserialize(&mut from).and_then(|value| from.end().map(|()| value));
    match (value, duplicate.into_inner()) {
        (Ok(value), _) => Ok(Parsed { value, byte_order_mark }),
        (Err(_), Some(name)) => Err(JsonFault::Duplicate(name)),
        (Err(error), None) => Err(JsonFault::Syntax { line: error.line(), column: error.column() }),
    }
}

/// What a text looks like by its beginning; content types lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sniffed {
    Nothing,
    Html,
    Xml,
    Other,
}

pub(crate) fn sniff(text: &str) -> Sniffed {
    let text = text.trim_start_matches('\u{feff}').trim_start();
    if text.is_empty() {
        return Sniffed::Nothing;
    }
    if !text.starts_with('<') {
        return Sniffed::Other;
    }
    let head = text.chars().take(512).collect::<String>().to_ascii_lowercase();
    let html = ["<!doctype html", "<html", "<head", "<body"].iter().any(|tag| head.contains(tag));
    if html { Sniffed::Html } else { Sniffed::Xml }
}

/// What kind of JSON value it is, in words for a message.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Builds a [`Value`] and notes the first member that stands twice in one object.
#[derive(Clone, Copy)]
struct Unique<'a>(&'a RefCell<Option<String>>);

impl<'de> DeserializeSeed<'de> for Unique<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = from.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = from.next_key::<String>()? {
            if members.contains_key(&name) {
                self.0.borrow_mut().get_or_insert_with(|| name.chars().take(80).collect());
                return Err(A::Error::custom("a member stands twice"));
            }
            let value = from.next_value_seed(self)?;
            members.insert(name, value);
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_found_at_any_depth() {
        let fault = parse(br#"{"a":{"b":[{"c":1,"c":1}]}}"#).unwrap_err();
        assert_eq!(fault, JsonFault::Duplicate("c".into()));
    }

    #[test]
    fn escaped_names_are_the_same_name() {
        assert_eq!(parse(br#"{"ab":1,"a\u0062":2}"#).unwrap_err(), JsonFault::Duplicate("ab".into()));
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = "[".repeat(100_000);
        assert!(matches!(parse(deep.as_bytes()), Err(JsonFault::Syntax { .. })));
    }

    #[test]
    fn what_follows_the_value_is_a_fault() {
        assert!(matches!(parse(b"{} {}"), Err(JsonFault::Syntax { .. })));
    }
}
