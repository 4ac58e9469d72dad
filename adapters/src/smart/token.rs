//! Token answers of EHRs (RFC 6749 §5, SMART App Launch 2.2), parsed leniently: what real servers send
//! wrongly but clearly is taken, what could be read in two ways is refused.

mod introspection;
mod meaning;

use std::{borrow::Cow, fmt};

use serde_json::{Map, Value};

pub use self::{
    introspection::{Introspection, parse_introspection},
    meaning::{ErrorFacts, meaning, meaning_of},
};
use super::{
    error::is_code,
    json::{self, JsonFault, Sniffed},
    launch::LaunchContext,
};

/// A lifetime is counted with a clock that overflows at some point; nobody's token lives longer.
const LONGEST_LIFETIME: u64 = 10 * 365 * 24 * 3600;

/// A successful answer. Tokens are plain here: the caller wraps them at once.
#[derive(Clone, PartialEq)]
pub struct TokenAnswer {
    pub access_token: String,
    /// Always `Bearer`; any other type is refused.
    pub token_type: &'static str,
    /// Seconds; absent or unreadable: the profile's `assume_lifetime`.
    pub expires_in: Option<u64>,
    /// As it came; absent means as asked (RFC 6749 §5.1).
    pub scope: Option<String>,
    /// Absent: the old one stays.
    pub refresh_token: Option<String>,
    /// Seconds until the refresh token ends, where the EHR says so. No specification names the member: it is
    /// `refresh_expires_in` (Keycloak, and there 0 is never) or `refresh_token_expires_in`.
    pub refresh_expires_in: Option<u64>,
    pub id_token: Option<String>,
    pub context: LaunchContext,
    /// What else the EHR sent (`location`, `user`, `ah_practice` …): adapters read it, apps do not.
    pub extras: Map<String, Value>,
}

impl fmt::Debug for TokenAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenAnswer")
            .field("expires_in", &self.expires_in)
            .field("refresh_token", &self.refresh_token.is_some())
            .field("id_token", &self.id_token.is_some())
            .finish_non_exhaustive()
    }
}

/// An answer without a token.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("the token endpoint answered {status} {kind}{}", .error.as_deref().map(|code| format!(" {code}")).unwrap_or_default())]
pub struct TokenError {
    pub status: u16,
    /// The OAuth error code, if it has the form of one.
    pub error: Option<String>,
    /// The EHR's words: for the operator and for matching, never for logs.
    pub description: Option<Box<str>>,
    pub error_uri: Option<Box<str>>,
    pub kind: TokenErrorKind,
    /// The beginning of the body, for rules that match on it.
    excerpt: Box<str>,
}

impl fmt::Debug for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenError")
            .field("status", &self.status)
            .field("error", &self.error)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// What kind of answer it was that is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenErrorKind {
    /// An OAuth error, or what a vendor sends in its place.
    OAuth,
    Empty,
    NotJson,
    Html,
    /// JSON, but the named member is missing or cannot be used.
    Malformed(&'static str),
    /// A member stands twice.
    Duplicate,
}

impl fmt::Display for TokenErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OAuth => f.write_str("with an error"),
            Self::Empty => f.write_str("without a body"),
            Self::NotJson => f.write_str("with something that is no JSON"),
            Self::Html => f.write_str("with an HTML page"),
            Self::Malformed(member) => write!(f, "with an answer whose `{member}` is missing or unusable"),
            Self::Duplicate => f.write_str("with an answer in which a member stands twice"),
        }
    }
}

/// Reads the answer of a token endpoint. The body is looked at whatever the content type says.
///
/// # Errors
/// Everything that is not a usable token, errors with status 200 too.
pub fn parse_answer(status: u16, content_type: Option<&str>, body: &[u8]) -> Result<TokenAnswer, TokenError> {
    let refused =
        |kind| TokenError { status, error: None, description: None, error_uri: None, kind, excerpt: excerpt(body) };
    let mut members = match members(content_type, body) {
        Ok(members) => members,
        Err(kind) => return Err(refused(kind)),
    };
    members.retain(|_, value| !value.is_null());
    if !(200..300).contains(&status) || error_code(&members).is_some() {
        let error = error_code(&members);
        let kind = if error.is_some() { TokenErrorKind::OAuth } else { TokenErrorKind::Malformed("error") };
        return Err(TokenError {
            error,
            description: string(&members, &["error_description", "errorSummary", "message"]),
            error_uri: string(&members, &["error_uri"]),
            ..refused(kind)
        });
    }
    answer(members).map_err(|member| refused(TokenErrorKind::Malformed(member)))
}

fn answer(mut members: Map<String, Value>) -> Result<TokenAnswer, &'static str> {
    let access_token = token(&mut members, "access_token")?.ok_or("access_token")?;
    let token_type = match members.remove("token_type") {
        None => "Bearer",
        Some(Value::String(given)) if given.eq_ignore_ascii_case("bearer") => "Bearer",
        Some(_) => return Err("token_type"),
    };
    let refresh_token = token(&mut members, "refresh_token")?;
    let id_token = token(&mut members, "id_token")?;
    let expires_in = members.remove("expires_in").as_ref().and_then(seconds);
    let ends = ["refresh_expires_in", "refresh_token_expires_in"].map(|name| members.remove(name));
    let refresh_expires_in = ends.iter().flatten().find_map(seconds).filter(|seconds| *seconds > 0);
    let scope = members.remove("scope").and_then(scope);
    let context = LaunchContext::take_from(&mut members)?;
    Ok(TokenAnswer {
        access_token,
        token_type,
        expires_in,
        scope,
        refresh_token,
        refresh_expires_in,
        id_token,
        context,
        extras: members,
    })
}

fn members(content_type: Option<&str>, body: &[u8]) -> Result<Map<String, Value>, TokenErrorKind> {
    let form = content_type
        .is_some_and(|given| given.trim_start().to_ascii_lowercase().starts_with("application/x-www-form-urlencoded"));
    if form && !body.trim_ascii_start().starts_with(b"{") {
        return form_members(body);
    }
    match json::parse(body) {
        Ok(parsed) => match parsed.value {
            Value::Object(members) => Ok(members),
            _ => Err(TokenErrorKind::NotJson),
        },
        Err(JsonFault::Empty) => Err(TokenErrorKind::Empty),
        Err(JsonFault::Html) => Err(TokenErrorKind::Html),
        Err(JsonFault::Duplicate(_)) => Err(TokenErrorKind::Duplicate),
        // Vendors' error texts in ISO-8859-1: the codes in them are ASCII.
        Err(JsonFault::NotUtf8) => match json::parse(latin1(body).as_bytes()) {
            Ok(json::Parsed { value: Value::Object(members), .. }) => Ok(members),
            _ => Err(TokenErrorKind::NotJson),
        },
        Err(JsonFault::Xml | JsonFault::Syntax { .. }) => Err(TokenErrorKind::NotJson),
    }
}

fn form_members(body: &[u8]) -> Result<Map<String, Value>, TokenErrorKind> {
    let text = std::str::from_utf8(body).map_err(|_| TokenErrorKind::NotJson)?;
    match json::sniff(text) {
        Sniffed::Nothing => return Err(TokenErrorKind::Empty),
        Sniffed::Html => return Err(TokenErrorKind::Html),
        Sniffed::Xml => return Err(TokenErrorKind::NotJson),
        Sniffed::Other => {}
    }
    let mut members = Map::new();
    for (name, value) in form_urlencoded::parse(text.trim().as_bytes()) {
        if members.insert(name.into_owned(), Value::String(value.into_owned())).is_some() {
            return Err(TokenErrorKind::Duplicate);
        }
    }
    Ok(members)
}

/// A token as it may stand in a header or a form: visible ASCII. Empty is absent.
fn token(members: &mut Map<String, Value>, name: &'static str) -> Result<Option<String>, &'static str> {
    match members.remove(name) {
        None => Ok(None),
        Some(Value::String(token)) if token.is_empty() => Ok(None),
        Some(Value::String(token)) if token.bytes().all(|b| b.is_ascii_graphic()) => Ok(Some(token)),
        Some(_) => Err(name),
    }
}

fn seconds(value: &Value) -> Option<u64> {
    let seconds = match value {
        Value::Number(number) => number.as_u64().or_else(|| whole(number.as_f64()?)),
        Value::String(text) => text.trim().parse().ok().or_else(|| whole(text.trim().parse().ok()?)),
        _ => None,
    };
    seconds.map(|seconds| seconds.min(LONGEST_LIFETIME))
}

/// `570.0`: a float that a serializer made of an integer.
fn whole(number: f64) -> Option<u64> {
    // The cast saturates; NaN and negative numbers have been turned away.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked in the condition")]
    (number >= 0.0).then_some(number as u64)
}

fn scope(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Array(items) => Some(items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")),
        _ => None,
    }
}

/// `error`, or what Okta calls it. A text that has not the form of a code is none.
fn error_code(members: &Map<String, Value>) -> Option<String> {
    ["error", "errorCode"]
        .iter()
        .find_map(|name| members.get(*name)?.as_str())
        .filter(|code| is_code(code))
        .map(str::to_owned)
}

fn string(members: &Map<String, Value>, names: &[&str]) -> Option<Box<str>> {
    let found = names.iter().find_map(|name| members.get(*name)?.as_str())?;
    (!found.is_empty()).then(|| found.chars().take(2000).collect::<String>().into())
}

fn excerpt(body: &[u8]) -> Box<str> {
    let head = body.get(..4096).unwrap_or(body);
    std::str::from_utf8(head).map_or_else(|_| latin1(head), Cow::Borrowed).into()
}

/// Each byte is its own character: what a server means that says nothing or ISO-8859-1.
fn latin1(body: &[u8]) -> Cow<'static, str> {
    Cow::Owned(body.iter().map(|byte| char::from(*byte)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, body: &str) -> TokenErrorKind {
        parse_answer(status, Some("application/json"), body.as_bytes()).unwrap_err().kind
    }

    #[test]
    fn nothing_of_the_ehr_is_in_debug_but_the_code() {
        let answer = parse_answer(200, None, br#"{"access_token":"canary","refresh_token":"canary","patient":"7077"}"#);
        let shown = format!("{:?}", answer.unwrap());
        assert!(!shown.contains("canary") && !shown.contains("7077"), "{shown}");
        let error = parse_answer(400, None, br#"{"error":"invalid_grant","error_description":"canary"}"#).unwrap_err();
        let shown = format!("{error:?} {error}");
        assert!(!shown.contains("canary") && shown.contains("invalid_grant"), "{shown}");
    }

    #[test]
    fn lifetimes_are_numbers_however_they_are_written() {
        for (given, expected) in [
            ("570", Some(570)),
            ("570.0", Some(570)),
            ("\" 570 \"", Some(570)),
            ("\"570.0\"", Some(570)),
            ("-1", None),
            ("\"soon\"", None),
            ("1e300", Some(LONGEST_LIFETIME)),
            ("\"NaN\"", None),
        ] {
            let body = format!(r#"{{"access_token":"a","expires_in":{given}}}"#);
            assert_eq!(parse_answer(200, None, body.as_bytes()).unwrap().expires_in, expected, "{given}");
        }
    }

    #[test]
    fn a_refresh_tokens_end_has_two_names_and_none_where_it_has_none() {
        for (given, expected) in [
            (r#""refresh_expires_in":1800"#, Some(1800)),
            (r#""refresh_token_expires_in":"86400""#, Some(86400)),
            (r#""refresh_expires_in":0"#, None),
            (r#""refresh_expires_in":"never","refresh_token_expires_in":60"#, Some(60)),
            (r#""refresh_expires_in":null"#, None),
            (r#""refresh_expires_in":1e300"#, Some(LONGEST_LIFETIME)),
        ] {
            let body = format!(r#"{{"access_token":"a",{given}}}"#);
            let answer = parse_answer(200, None, body.as_bytes()).unwrap();
            assert_eq!((answer.refresh_expires_in, answer.extras.len()), (expected, 0), "{given}");
        }
    }

    #[test]
    fn a_token_that_could_break_a_header_is_refused() {
        assert_eq!(kind(200, r#"{"access_token":"a\r\nX-Evil: 1"}"#), TokenErrorKind::Malformed("access_token"));
        assert_eq!(
            kind(200, r#"{"access_token":"a","refresh_token":["b"]}"#),
            TokenErrorKind::Malformed("refresh_token")
        );
        assert_eq!(kind(200, r#"{"access_token":"a","token_type":"DPoP"}"#), TokenErrorKind::Malformed("token_type"));
    }

    #[test]
    fn a_patient_that_is_none_is_refused() {
        assert_eq!(kind(200, r#"{"access_token":"a","patient":"Encounter/1"}"#), TokenErrorKind::Malformed("patient"));
        assert_eq!(kind(200, r#"{"access_token":"a","patient":["1","2"]}"#), TokenErrorKind::Malformed("patient"));
    }

    #[test]
    fn extensions_reach_the_app_and_other_members_do_not() {
        let body =
            br#"{"access_token":"a","__epic.dstu2.patient":"T1","https://x.example/y":1,"user":"2","intent":null}"#;
        let answer = parse_answer(200, None, body).unwrap();
        let names = answer.context.extensions.keys().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(names, ["__epic.dstu2.patient", "https://x.example/y"]);
        assert_eq!(answer.extras.keys().map(String::as_str).collect::<Vec<_>>(), ["user"]);
    }

    #[test]
    fn forms_with_a_repeated_member_are_refused() {
        let form = Some("application/x-www-form-urlencoded; charset=utf-8");
        let error = parse_answer(200, form, b"access_token=a&access_token=b").unwrap_err();
        assert_eq!(error.kind, TokenErrorKind::Duplicate);
    }

    #[test]
    fn errors_in_latin_1_keep_their_code() {
        let error =
            parse_answer(400, None, b"{\"error\":\"invalid_grant\",\"error_description\":\"expir\xe9\"}").unwrap_err();
        assert_eq!((error.error.as_deref(), error.description.as_deref()), (Some("invalid_grant"), Some("expiré")));
    }

    #[test]
    fn what_is_no_code_is_not_taken_for_one() {
        let error = parse_answer(400, None, br#"{"error":"evil\ncode"}"#).unwrap_err();
        assert_eq!((error.error, error.kind), (None, TokenErrorKind::Malformed("error")));
    }
}
