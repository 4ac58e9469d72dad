//! Headers and parameters that a profile adds, and how a query is written.

use std::{borrow::Cow, collections::BTreeMap};

use http::{HeaderMap, HeaderName, HeaderValue, header::ACCEPT};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::Unplannable;
use crate::profile::Profile;

/// What `{client_id}` and `{tenant}` in a profile's values stand for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Placeholders<'a> {
    pub client_id: Option<&'a str>,
    pub tenant: Option<&'a str>,
}

impl Placeholders<'_> {
    /// None where a placeholder has no value.
    pub(super) fn fill<'t>(&self, text: &'t str) -> Option<Cow<'t, str>> {
        let mut text = Cow::Borrowed(text);
        for (placeholder, value) in [("{client_id}", self.client_id), ("{tenant}", self.tenant)] {
            if text.contains(placeholder) {
                text = Cow::Owned(text.replace(placeholder, value?));
            }
        }
        Some(text)
    }
}

/// The headers of a discovery request. JSON is always asked for: without `Accept` Epic's and others'
/// `/metadata` is XML. A header whose placeholder has no value is left out.
pub fn discovery_headers(profile: &Profile, client_id: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json, application/fhir+json;q=0.9"));
    let placeholders = Placeholders { client_id, tenant: None };
    for (name, value) in set_headers(&profile.headers.discovery, placeholders).flatten() {
        headers.insert(name, value);
    }
    headers
}

/// Sets the profile's headers of a FHIR request. They replace the app's, but for `Accept`, which an app
/// may choose (a Binary in its own type).
///
/// # Errors
/// Where a placeholder has no value, or a value cannot stand in a header.
pub fn fhir_headers(
    headers: &mut HeaderMap,
    profile: &Profile,
    placeholders: Placeholders<'_>,
) -> Result<(), Unplannable> {
    for header in set_headers(&profile.headers.fhir, placeholders) {
        let (name, value) = header.ok_or_else(|| unknown("a header"))?;
        let chosen =
            name == ACCEPT && headers.get(ACCEPT).is_some_and(|accept| accept.as_bytes().trim_ascii() != b"*/*");
        if !chosen {
            headers.insert(name, value);
        }
    }
    Ok(())
}

fn set_headers<'a>(
    set: &'a BTreeMap<String, String>,
    placeholders: Placeholders<'a>,
) -> impl Iterator<Item = Option<(HeaderName, HeaderValue)>> + 'a {
    set.iter().map(move |(name, value)| {
        let value = placeholders.fill(value)?;
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(&value).ok()?))
    })
}

/// Sets the profile's parameters; the app's of the same name (in any case, with any modifier) are
/// removed: `ah-practice` would change the tenant.
pub(super) fn set_parameters(
    query: &mut Vec<(String, String)>,
    profile: &Profile,
    placeholders: Placeholders<'_>,
) -> Result<(), Unplannable> {
    query.retain(|(name, _)| !profile.query.keys().any(|set| base_name(name).eq_ignore_ascii_case(set)));
    for (name, value) in &profile.query {
        let value = placeholders.fill(value).ok_or_else(|| unknown(name))?;
        query.push((name.clone(), value.into_owned()));
    }
    Ok(())
}

/// The raw query of a further page with the profile's parameters: vendors leave their own out of their
/// links (athenahealth's `next` lacks `ah-practice`). Everything else keeps its bytes: paging tokens are
/// opaque.
///
/// # Errors
/// Where a placeholder has no value.
pub fn page_query(
    raw: Option<&str>,
    profile: &Profile,
    placeholders: Placeholders<'_>,
) -> Result<Option<String>, Unplannable> {
    let mut set = Vec::new();
    set_parameters(&mut set, profile, placeholders)?;
    let ours = |pair: &str| {
        let name = pair.split('=').next().unwrap_or_default();
        let name = percent_decode_str(name).decode_utf8_lossy();
        profile.query.keys().any(|set| base_name(&name).eq_ignore_ascii_case(set))
    };
    let mut parts: Vec<Cow<'_, str>> =
        raw.unwrap_or_default().split('&').filter(|pair| !pair.is_empty() && !ours(pair)).map(Cow::Borrowed).collect();
    if !set.is_empty() {
        parts.push(Cow::Owned(encode_query(&set)));
    }
    Ok((!parts.is_empty()).then(|| parts.join("&")))
}

/// A parameter's name without its modifier.
pub(super) fn base_name(name: &str) -> &str {
    name.split_once(':').map_or(name, |(base, _)| base)
}

fn unknown(what: &str) -> Unplannable {
    Unplannable {
        status: 422,
        code: "incomplete",
        reason: format!(
            "This EHR needs {what} with each request, whose value is not known for this grant: launch again, or let the \
             operator set `tenant` for the site"
        ),
    }
}

/// What may stand in a query as it is (RFC 3986 §3.4), less what separates pairs or means a blank.
/// athenahealth refuses an encoded `/` in `ah-practice`.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/')
    .remove(b':')
    .remove(b',')
    .remove(b'@')
    .remove(b'$')
    .remove(b'*');

/// Writes a query, `a=b&c=d`, without `?`.
pub fn encode_query(pairs: &[(String, String)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text.extend(utf8_percent_encode(name, QUERY));
        text.push('=');
        text.extend(utf8_percent_encode(value, QUERY));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_survive_and_slashes_stay() {
        let pairs = [
            ("ah-practice".to_owned(), "Organization/a-1.Practice-195900".to_owned()),
            ("code".to_owned(), "http://loinc.org|8302-2,b c".to_owned()),
            ("name:contains".to_owned(), "Müller & +#%=".to_owned()),
        ];
        let text = encode_query(&pairs);
        assert_eq!(
            text,
            "ah-practice=Organization/a-1.Practice-195900&code=http://loinc.org%7C8302-2,b%20c&name:contains=M%C3%BCller%20%26%20%2B%23%25%3D"
        );
        let back = form_urlencoded::parse(text.as_bytes()).into_owned().collect::<Vec<_>>();
        assert_eq!(back, pairs);
    }
}
