//! The target of a request below a FHIR base: strict decoding on the way in, one encoding on the way out.
//!
//! What is judged must be what the EHR reads, so whatever two servers could take for different things is
//! refused (dot segments, encoded slashes, double encodings) and everything that is sent is encoded anew.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::Request;

/// Why a target is no FHIR target. All of them answer 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetFault {
    #[error("the path has an empty segment: expected [type], [type]/[id] and the like, with single slashes")]
    EmptySegment,
    #[error("the path has a `.` or `..` segment: expected the path itself")]
    DotSegment,
    #[error("a path segment holds an encoded slash or backslash: no FHIR name or id has one")]
    EncodedSlash,
    #[error("a path segment is percent-encoded twice: expected once")]
    EncodedTwice,
    #[error("the URL holds a control character")]
    Control,
    #[error("the URL has a `%` that two hexadecimal digits do not follow")]
    Percent,
    #[error("the URL's percent-encoded bytes are no UTF-8")]
    Utf8,
}

/// The pairs of a query or form, decoded, in their order.
pub type Pairs = Vec<(String, String)>;

/// Takes apart what follows the base: path segments and the query's pairs, decoded.
///
/// One trailing slash is overlooked (`[base]/`, and paging links such as `Patient/?_page_token=…`).
pub fn parse_target(raw_path: &str, raw_query: Option<&str>) -> Result<(Vec<String>, Pairs), TargetFault> {
    let path = raw_path.strip_prefix('/').unwrap_or(raw_path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let segments = if path.is_empty() && raw_path.len() <= 1 {
        Vec::new()
    } else {
        path.split('/').map(segment).collect::<Result<_, _>>()?
    };
    Ok((segments, raw_query.map_or_else(|| Ok(Vec::new()), parse_query)?))
}

fn segment(raw: &str) -> Result<String, TargetFault> {
    let text = decode(raw, false)?;
    match text.as_str() {
        "" => Err(TargetFault::EmptySegment),
        "." | ".." => Err(TargetFault::DotSegment),
        _ if text.contains(['/', '\\']) => Err(TargetFault::EncodedSlash),
        _ if text.contains('%') => Err(TargetFault::EncodedTwice),
        _ => Ok(text),
    }
}

/// Decodes `a=1&b=2` as forms are encoded (a plus is a blank); empty pairs are skipped. The bodies of
/// `POST …/_search` are read by it too.
pub fn parse_query(raw: &str) -> Result<Pairs, TargetFault> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok((decode(name, true)?, decode(value, true)?))
    };
    raw.split('&').filter(|text| !text.is_empty()).map(pair).collect()
}

fn decode(raw: &str, form: bool) -> Result<String, TargetFault> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = (rest.next().and_then(hex), rest.next().and_then(hex));
                let (Some(high), Some(low)) = digits else { return Err(TargetFault::Percent) };
                high << 4 | low
            }
            b'+' if form => b' ',
            other => other,
        });
    }
    let text = String::from_utf8(bytes).map_err(|_| TargetFault::Utf8)?;
    if text.chars().any(char::is_control) { Err(TargetFault::Control) } else { Ok(text) }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

const UNRESERVED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const SEGMENT: AsciiSet = UNRESERVED.remove(b'$').remove(b'*').remove(b':').remove(b'@').remove(b',');
const NAME: AsciiSet = UNRESERVED.remove(b':').remove(b'$').remove(b'@');
/// `/`, `:` and `,` stay: athena answers 400 to an encoded slash in `ah-practice`, and references, dates
/// and lists are readable in the EHR's logs. `|` and everything else that a strict server refuses does not.
const VALUE: AsciiSet = NAME.remove(b'/').remove(b',').remove(b'*').remove(b'!');

/// The path and query of a request as they are appended to a base without a trailing slash:
/// `/Patient/1?x=y`, or `?x=y`, or nothing.
pub fn encode_target(request: &Request) -> String {
    let mut text = String::new();
    for segment in &request.path {
        text.push('/');
        text.extend(utf8_percent_encode(segment, &SEGMENT));
    }
    if !request.query.is_empty() {
        text.push('?');
        text.push_str(&encode_pairs(&request.query));
    }
    text
}

/// The pairs as a query or a form body.
pub fn encode_pairs(pairs: &[(String, String)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text.extend(utf8_percent_encode(name, &NAME));
        text.push('=');
        text.extend(utf8_percent_encode(value, &VALUE));
    }
    text
}
