//! Errors of FHIR servers, in whatever form, as facts for one OperationOutcome.
//!
//! EHRs answer with outcomes, with JSON of their own, with texts, with HTML, with XML though JSON was
//! asked, and with nothing. An app sees one form. The body's own beginning tells more than its content
//! type (a 401 without a body is `text/html` at Oracle), and both more than the status: 200 with a
//! firewall's block page is no answer.

use serde_json::Value;

use super::{
    Adapter,
    outcome::{self, clip, issue_type},
};
use crate::smart::json::{Sniffed, sniff};

/// An answer of a FHIR server, as far as it tells what went wrong.
#[derive(Clone, Copy, Debug)]
pub struct FhirAnswer<'a> {
    pub status: u16,
    pub content_type: Option<&'a str>,
    pub www_authenticate: Option<&'a str>,
    /// The body, or its beginning.
    pub body: &'a [u8],
    /// The app asked for a document in its own type (a Binary): HTML with a 2xx is one.
    pub may_be_html: bool,
}

/// What kind of body it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AnswerKind {
    Outcome,
    XmlOutcome,
    /// JSON that is no OperationOutcome.
    Json,
    Text,
    Html,
    Empty,
}

/// An error for the app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NormalisedError {
    /// What the app is answered with.
    pub status: u16,
    /// FHIR issue-type of the gravest issue.
    pub code: &'static str,
    /// Never empty. The EHR's words, or ours where it has none.
    pub diagnostics: String,
    /// Of all issues.
    pub vendor_codes: Vec<VendorCode>,
    /// All issues, as the EHR sent them; at least one, the first with `code` and `diagnostics`.
    pub issues: Vec<Issue>,
    pub kind: AnswerKind,
    /// The patient's record is locked behind a reason that only the EHR can ask for: never retried or
    /// fanned out.
    pub break_the_glass: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    pub severity: Severity,
    pub code: &'static str,
    /// `details.text`
    pub text: Option<String>,
    pub diagnostics: Option<String>,
    pub vendor_codes: Vec<VendorCode>,
    pub expression: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VendorCode {
    pub system: Option<String>,
    pub code: String,
    pub display: Option<String>,
}

/// Gravest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Fatal,
    Error,
    Warning,
    Information,
}

impl Severity {
    /// The code in FHIR.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Fatal => "fatal",
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Information => "information",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Fatal, Self::Error, Self::Warning, Self::Information].into_iter().find(|known| known.text() == text)
    }
}

impl NormalisedError {
    pub fn has_code(&self, code: &str) -> bool {
        self.vendor_codes.iter().any(|given| given.code == code)
    }

    /// Replaces what the app is told first; the EHR's own issues follow.
    pub fn tell(&mut self, status: u16, code: &'static str, diagnostics: &str) {
        self.status = status;
        self.code = code;
        diagnostics.clone_into(&mut self.diagnostics);
        let issue = Issue {
            severity: Severity::Error,
            code,
            text: None,
            diagnostics: Some(diagnostics.to_owned()),
            vendor_codes: Vec::new(),
            expression: Vec::new(),
        };
        if self.kind == AnswerKind::Outcome || self.kind == AnswerKind::XmlOutcome {
            self.issues.insert(0, issue);
        } else {
            self.issues = vec![issue];
        }
    }
}

/// The error in an answer; none where it is no error.
pub fn fhir_error(adapter: &dyn Adapter, answer: &FhirAnswer<'_>) -> Option<NormalisedError> {
    let text = decode(answer.body);
    let kind = kind(&text, answer.content_type);
    let success = (200..400).contains(&answer.status);
    if success && (kind != AnswerKind::Html || answer.may_be_html) {
        return None;
    }
    let default_code = default_code(answer.status);
    let issues = issues(kind, &text, default_code);
    let first = issues.iter().min_by_key(|issue| issue.severity).cloned();
    let code = first.as_ref().map_or(default_code, |issue| issue.code);
    let words = first.and_then(|issue| issue.diagnostics.or(issue.text)).filter(|words| !words.trim().is_empty());
    let challenge = answer.www_authenticate.map(Challenge::read).unwrap_or_default();
    // A challenge to a token of ours names the EHR's servers; only what concerns rights is passed on.
    let challenged = challenge.description.filter(|_| answer.status == 403);
    let mut error = NormalisedError {
        status: status(answer.status),
        code,
        diagnostics: words.or(challenged).unwrap_or_else(|| our_words(answer.status, kind)),
        vendor_codes: issues.iter().flat_map(|issue| issue.vendor_codes.iter().cloned()).collect(),
        issues,
        kind,
        break_the_glass: false,
    };
    error.vendor_codes.extend(challenge.error.map(|code| VendorCode { system: None, code, display: None }));
    if kind == AnswerKind::Html {
        // An HTML page is no answer of a FHIR server, whatever its status says.
        error.status = 502;
        error.code = if success { "exception" } else { "transient" };
    }
    if error.issues.is_empty() {
        error.issues.push(Issue {
            severity: Severity::Error,
            code: error.code,
            text: None,
            diagnostics: Some(error.diagnostics.clone()),
            vendor_codes: Vec::new(),
            expression: Vec::new(),
        });
    } else {
        error.issues.sort_by_key(|issue| issue.severity);
    }
    adapter.amend_error(answer, &mut error);
    Some(error)
}

/// UTF-8, else ISO-8859-1 (athenaPractice), where each byte is its own character.
fn decode(body: &[u8]) -> String {
    match std::str::from_utf8(body) {
        Ok(text) => text.to_owned(),
        Err(_) => body.iter().map(|byte| char::from(*byte)).collect(),
    }
}

fn kind(text: &str, content_type: Option<&str>) -> AnswerKind {
    // A page without the tags that pages begin with.
    let as_html = content_type.is_some_and(|given| given.trim_start().to_ascii_lowercase().starts_with("text/html"));
    match sniff(text) {
        Sniffed::Nothing => AnswerKind::Empty,
        Sniffed::Html => AnswerKind::Html,
        Sniffed::Xml if text.contains("<OperationOutcome") => AnswerKind::XmlOutcome,
        Sniffed::Xml if as_html => AnswerKind::Html,
        Sniffed::Xml => AnswerKind::Text,
        Sniffed::Other => match serde_json::from_str::<Value>(text.trim_start_matches('\u{feff}')) {
            Ok(Value::Object(object))
                if object.get("resourceType").and_then(Value::as_str) == Some("OperationOutcome") =>
            {
                AnswerKind::Outcome
            }
            Ok(_) => AnswerKind::Json,
            Err(_) if as_html => AnswerKind::Html,
            Err(_) => AnswerKind::Text,
        },
    }
}

fn issues(kind: AnswerKind, text: &str, default_code: &'static str) -> Vec<Issue> {
    let one = |diagnostics: String| {
        vec![Issue {
            severity: Severity::Error,
            code: default_code,
            text: None,
            diagnostics: Some(diagnostics),
            vendor_codes: Vec::new(),
            expression: Vec::new(),
        }]
    };
    match kind {
        AnswerKind::Outcome => match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
            Ok(Value::Object(object)) => outcome::from_json(&object, default_code),
            _ => Vec::new(),
        },
        AnswerKind::XmlOutcome => outcome::from_xml(text, default_code),
        AnswerKind::Json => message(text).map(one).unwrap_or_default(),
        AnswerKind::Text if !text.trim_start().starts_with('<') => one(clip(text.trim())),
        AnswerKind::Text | AnswerKind::Html | AnswerKind::Empty => Vec::new(),
    }
}

/// Where foreign JSON keeps its words.
fn message(text: &str) -> Option<String> {
    let words = match serde_json::from_str(text.trim_start_matches('\u{feff}')).ok()? {
        Value::String(words) => words,
        Value::Object(object) => {
            let members =
                ["message", "error_description", "errorSummary", "detailedmessage", "detail", "title", "error"];
            members.iter().find_map(|name| object.get(*name)?.as_str())?.to_owned()
        }
        _ => return None,
    };
    (!words.trim().is_empty()).then(|| clip(words.trim()))
}

/// What the gateway answers: 4xx are the app's to act on; of 5xx only what tells it when to come back.
fn status(upstream: u16) -> u16 {
    match upstream {
        // Of our own doing: a proxy before the EHR, a request that we were too slow to send.
        407 => 502,
        408 => 504,
        400..=499 | 501 | 503 | 504 => upstream,
        _ => 502,
    }
}

fn default_code(status: u16) -> &'static str {
    let code = match status {
        400 => "invalid",
        401 => "login",
        403 | 451 => "forbidden",
        404 => "not-found",
        405 | 406 | 415 | 501 => "not-supported",
        408 | 504 => "timeout",
        409 | 412 => "conflict",
        410 => "deleted",
        413 | 414 | 431 => "too-long",
        423 => "lock-error",
        429 => "throttled",
        502 | 503 => "transient",
        500.. => "exception",
        _ => "processing",
    };
    issue_type(code).unwrap_or("processing")
}

fn our_words(status: u16, kind: AnswerKind) -> String {
    match (kind, status) {
        (AnswerKind::Html, _) => format!("The EHR answered with an HTML page (status {status}) where FHIR was asked"),
        (_, 401) => "The EHR does not accept the token of this grant".into(),
        (_, 403) => "The EHR refuses this request and gives no reason".into(),
        (_, 404) => "The EHR does not know this resource".into(),
        (_, 406) => "The EHR does not answer in the format that was asked".into(),
        (_, 409 | 412) => "The resource was changed meanwhile, or exists already".into(),
        (_, 410) => "The resource has been deleted".into(),
        (_, 429) => "The EHR's limit of requests is reached".into(),
        (_, 500..) => format!("The EHR failed (status {status})"),
        _ => format!("The EHR refused the request (status {status}) and gives no reason"),
    }
}

/// `error` and `error_description` of a Bearer challenge (RFC 6750 §3).
#[derive(Default)]
struct Challenge {
    error: Option<String>,
    description: Option<String>,
}

impl Challenge {
    fn read(header: &str) -> Self {
        let value = |name: &str| {
            let (_, rest) = header.split_once(&format!("{name}=\""))?;
            let (value, _) = rest.split_once('"')?;
            (!value.is_empty()).then(|| clip(value))
        };
        // `error="` is also the end of no other parameter's name; `error_description="` is apart.
        Self { error: value("error"), description: value("error_description") }
    }
}
