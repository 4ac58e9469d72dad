//! `{client_id}` and `{tenant}` in what a profile adds to a request.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};

/// What a profile's placeholders stand for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Placeholders<'a> {
    pub client_id: &'a str,
    pub tenant: Option<&'a str>,
}

impl Placeholders<'_> {
    /// The text with its placeholders filled; none if it wants a tenant and there is none.
    pub fn fill(&self, text: &str) -> Option<String> {
        if text.contains("{tenant}") && self.tenant.is_none() {
            return None;
        }
        Some(text.replace("{client_id}", self.client_id).replace("{tenant}", self.tenant.unwrap_or_default()))
    }

    /// The headers that a profile adds. One whose value cannot be sent is left out.
    pub fn headers(&self, of: &BTreeMap<String, String>) -> HeaderMap {
        of.iter()
            .filter_map(|(name, value)| {
                let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
                Some((name, HeaderValue::from_str(&self.fill(value)?).ok()?))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_and_what_cannot_be_sent_is_left_out() {
        let profile = BTreeMap::from(
            [
                ("Epic-Client-ID", "{client_id}"),
                ("X-Practice", "a-1.{tenant}"),
                ("X-Broken", "a\nb"),
                ("not a name", "x"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        let with = Placeholders { client_id: "abc", tenant: Some("195900") }.headers(&profile);
        assert_eq!(with.get("epic-client-id").unwrap(), "abc");
        assert_eq!(with.get("x-practice").unwrap(), "a-1.195900");
        assert_eq!(with.len(), 2);
        let without = Placeholders { client_id: "abc", tenant: None }.headers(&profile);
        assert_eq!(without.len(), 1);
    }
}
