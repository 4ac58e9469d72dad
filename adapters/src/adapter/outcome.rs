//! OperationOutcomes as EHRs send them, in JSON and XML, read for their issues.

use serde_json::{Map, Value};

use super::normalise::{Issue, Severity, VendorCode};

/// FHIR R4 issue-type.
const ISSUE_TYPES: [&str; 31] = [
    "invalid",
    "structure",
    "required",
    "value",
    "invariant",
    "security",
    "login",
    "unknown",
    "expired",
    "forbidden",
    "suppressed",
    "processing",
    "not-supported",
    "duplicate",
    "multiple-matches",
    "not-found",
    "deleted",
    "too-long",
    "code-invalid",
    "extension",
    "too-costly",
    "business-rule",
    "conflict",
    "transient",
    "lock-error",
    "no-store",
    "exception",
    "timeout",
    "incomplete",
    "throttled",
    "informational",
];

/// The most issues that are read; Epic sends a dozen warnings.
const MOST_ISSUES: usize = 50;

pub(super) fn issue_type(text: &str) -> Option<&'static str> {
    ISSUE_TYPES.into_iter().find(|known| *known == text)
}

pub(super) fn from_json(outcome: &Map<String, Value>, default_code: &'static str) -> Vec<Issue> {
    let issues = outcome.get("issue").and_then(Value::as_array).into_iter().flatten();
    issues.filter_map(Value::as_object).take(MOST_ISSUES).filter_map(|issue| json_issue(issue, default_code)).collect()
}

fn json_issue(issue: &Map<String, Value>, default_code: &'static str) -> Option<Issue> {
    let text = |name: &str| issue.get(name).and_then(Value::as_str);
    let details = issue.get("details").and_then(Value::as_object);
    let codings = details.and_then(|details| details.get("coding")).and_then(Value::as_array).into_iter().flatten();
    let vendor_codes = codings
        .filter_map(|coding| {
            let text = |name: &str| coding.get(name).and_then(Value::as_str).map(clip);
            Some(VendorCode { system: text("system"), code: text("code")?, display: text("display") })
        })
        .take(MOST_ISSUES)
        .collect();
    let expression = issue.get("expression").and_then(Value::as_array).into_iter().flatten();
    let found = Issue {
        severity: text("severity").and_then(Severity::parse).unwrap_or(Severity::Error),
        code: text("code").and_then(issue_type).unwrap_or(default_code),
        text: details.and_then(|details| details.get("text")).and_then(Value::as_str).map(clip),
        diagnostics: text("diagnostics").map(clip),
        vendor_codes,
        expression: expression.filter_map(Value::as_str).map(clip).take(MOST_ISSUES).collect(),
    };
    keep(found)
}

/// A stack trace names the EHR's internals and helps nobody (NextGen).
fn keep(mut issue: Issue) -> Option<Issue> {
    let is_trace =
        |text: &String| text.trim_start().starts_with("at ") || text.contains("\n   at ") || text.contains("\n\tat ");
    if issue.diagnostics.as_ref().is_some_and(is_trace) {
        issue.diagnostics = None;
        if issue.severity > Severity::Error && issue.text.is_none() {
            return None;
        }
    }
    Some(issue)
}

/// Enough of XML for `<issue>`s: attributes `value` of three elements. Anything else is skipped.
pub(super) fn from_xml(text: &str, default_code: &'static str) -> Vec<Issue> {
    text.split("<issue>")
        .skip(1)
        .take(MOST_ISSUES)
        .filter_map(|issue| {
            let issue = issue.split("</issue>").next().unwrap_or_default();
            keep(Issue {
                severity: xml_value(issue, "severity").as_deref().and_then(Severity::parse).unwrap_or(Severity::Error),
                code: xml_value(issue, "code").as_deref().and_then(issue_type).unwrap_or(default_code),
                text: xml_value(issue, "text"),
                diagnostics: xml_value(issue, "diagnostics"),
                vendor_codes: Vec::new(),
                expression: xml_value(issue, "expression").into_iter().collect(),
            })
        })
        .collect()
}

fn xml_value(text: &str, element: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{element} "))?;
    let (tag, _) = rest.split_once('>')?;
    let (_, value) = tag.split_once("value=")?;
    let quote = value.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
    let value = value.get(1..)?.split(quote).next()?;
    let plain = value.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'");
    Some(clip(&plain.replace("&amp;", "&")))
}

/// Vendors' texts, bounded and in one line's worth of characters.
pub(super) fn clip(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1000).collect()
}
