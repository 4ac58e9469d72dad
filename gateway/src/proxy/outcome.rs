//! Errors of an EHR as one OperationOutcome: its own words, with its URLs moved and without what names
//! its servers.

use http::{HeaderValue, Response, StatusCode, header};
use mantel_adapters::{
    adapter::{Issue, NormalisedError, Severity, VendorCode},
    fhir::rewrite::Bases,
};
use serde_json::{Map, Value, json};

use super::{Body, headers::FHIR_JSON_UTF8};

/// What stands in the place of a URL that names a server of the EHR.
const A_URL: &str = "[a URL of the EHR]";

/// Makes texts of an EHR fit for an app.
#[derive(Clone, Copy)]
pub(super) struct Scrub<'a> {
    pub(super) bases: &'a Bases,
    /// The EHR's own, and those of its `link_bases`.
    pub(super) hosts: &'a [String],
}

impl Scrub<'_> {
    /// URLs below the EHR's bases are moved; others on its hosts, or on names that only its own network
    /// knows, are taken out.
    pub(super) fn text(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, url, after)) = next_url(rest) {
            out.push_str(before);
            match self.bases.moved(url) {
                Some(moved) => out.push_str(&moved),
                None if self.is_internal(url) => out.push_str(A_URL),
                None => out.push_str(url),
            }
            rest = after;
        }
        out.push_str(rest);
        out
    }

    fn is_internal(&self, url: &str) -> bool {
        let Ok(url) = url::Url::parse(url) else { return true };
        match url.host() {
            Some(url::Host::Domain(name)) => {
                !name.contains('.') || self.hosts.iter().any(|host| host.eq_ignore_ascii_case(name))
            }
            Some(_) | None => true,
        }
    }
}

/// The next `http…` URL of a text: what stands before it, it, and what follows.
fn next_url(text: &str) -> Option<(&str, &str, &str)> {
    let lower = text.to_ascii_lowercase();
    let start = match (lower.find("http://"), lower.find("https://")) {
        (Some(one), Some(other)) => one.min(other),
        (one, other) => one.or(other)?,
    };
    let (before, tail) = text.split_at_checked(start)?;
    let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | '(' | ')' | '[' | ']' | '`' | ';');
    let end = tail.find(ends).unwrap_or(tail.len());
    // A full stop or comma ends the sentence, not the URL.
    let end = tail.get(..end).map_or(end, |url| url.trim_end_matches(['.', ',', ':', '!']).len());
    let (url, after) = tail.split_at_checked(end)?;
    Some((before, url, after))
}

/// The OperationOutcome of an EHR's error. With `at_most`, no issue is graver than that.
pub(super) fn document(error: &NormalisedError, scrub: Scrub<'_>, id: &str, at_most: Option<Severity>) -> Value {
    let issues: Vec<Value> = error.issues.iter().map(|found| issue(found, scrub, at_most)).collect();
    json!({ "resourceType": "OperationOutcome", "id": id, "issue": issues })
}

fn issue(found: &Issue, scrub: Scrub<'_>, at_most: Option<Severity>) -> Value {
    let severity = at_most.map_or(found.severity, |most| found.severity.max(most));
    let mut issue = Map::new();
    issue.insert("severity".into(), severity.text().into());
    issue.insert("code".into(), found.code.into());
    let mut details = Map::new();
    if !found.vendor_codes.is_empty() {
        details.insert("coding".into(), found.vendor_codes.iter().map(coding).collect());
    }
    if let Some(text) = &found.text {
        details.insert("text".into(), scrub.text(text).into());
    }
    if !details.is_empty() {
        issue.insert("details".into(), details.into());
    }
    if let Some(diagnostics) = &found.diagnostics {
        issue.insert("diagnostics".into(), scrub.text(diagnostics).into());
    }
    if !found.expression.is_empty() {
        issue.insert("expression".into(), found.expression.iter().map(|text| scrub.text(text)).collect());
    }
    issue.into()
}

fn coding(code: &VendorCode) -> Value {
    let mut coding = Map::new();
    // A system is the name of a code system, no link.
    for (name, value) in [("system", &code.system), ("display", &code.display)] {
        if let Some(value) = value {
            coding.insert(name.into(), value.as_str().into());
        }
    }
    coding.insert("code".into(), code.code.as_str().into());
    coding.into()
}

/// The answer to the app.
pub(super) fn response(
    error: &NormalisedError,
    scrub: Scrub<'_>,
    id: &str,
    retry_after: Option<std::time::Duration>,
) -> Response<Body> {
    let mut response = Response::new(Body::full(document(error, scrub, id, None).to_string().into()));
    *response.status_mut() = StatusCode::from_u16(error.status).unwrap_or(StatusCode::BAD_GATEWAY);
    response.headers_mut().insert(header::CONTENT_TYPE, FHIR_JSON_UTF8);
    if let Some(wait) = retry_after {
        // Rounded up: a client that waits exactly so long must not come too early.
        let seconds = u64::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u64::MAX);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_the_ehr_are_moved_or_taken_out() {
        let bases = Bases::new(["https://ehr.example/api/r4"], "https://gateway.example/fhir/r4").unwrap();
        let scrub = Scrub { bases: &bases, hosts: &["ehr.example".into()] };
        for (given, expected) in [
            ("no URL at all", "no URL at all"),
            ("See https://ehr.example/api/r4/Patient/1.", "See https://gateway.example/fhir/r4/Patient/1."),
            (
                "\"HTTPS://ehr.example/api/r4/Patient?name=x\" failed",
                "\"https://gateway.example/fhir/r4/Patient?name=x\" failed",
            ),
            ("at https://ehr.example/internal/x, then", "at [a URL of the EHR], then"),
            ("http://fhir01:8080/x and http://10.0.0.7/y", "[a URL of the EHR] and [a URL of the EHR]"),
            ("read https://docs.vendor.example/errors", "read https://docs.vendor.example/errors"),
            ("http://", "[a URL of the EHR]"),
            ("ä https://ehr.example/ä ö", "ä [a URL of the EHR] ö"),
        ] {
            assert_eq!(scrub.text(given), expected, "{given}");
        }
    }
}
