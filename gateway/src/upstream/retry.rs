//! `Retry-After`, in both forms (RFC 9110 §10.2.3).

use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderMap, header};

use crate::clock::Timestamp;

/// Nobody waits longer on an EHR's word: some name hours for a fault of minutes.
pub const RETRY_AFTER_CAP: Duration = Duration::from_secs(3600);

/// How long to wait before the next try, at most an hour. Nonsense counts as absent.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are a very long time.
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        now.until(read_date(text)?)
    };
    Some(wait.min(RETRY_AFTER_CAP))
}

/// When an answer was made, by its maker's clock (RFC 9110 §6.6.1). None where a cache keeps it for a while.
pub fn date(headers: &HeaderMap) -> Option<Timestamp> {
    if headers.contains_key(header::AGE) {
        return None;
    }
    read_date(headers.get(header::DATE)?.to_str().ok()?.trim())
}

fn read_date(text: &str) -> Option<Timestamp> {
    let at = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(Timestamp(i64::try_from(at.as_millis()).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_read_and_capped() {
        // Sun, 06 Nov 1994 08:49:37 GMT
        let now = Timestamp(784_111_777_000);
        let table = [
            ("120", Some(120)),
            ("0", Some(0)),
            ("86400", Some(3600)),
            ("99999999999999999999999", Some(3600)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("Mon, 07 Nov 1994 08:49:37 GMT", Some(3600)),
            ("soon", None),
            ("-1", None),
            ("1.5", None),
            ("", None),
        ];
        for (text, expected) in table {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, text.parse().unwrap());
            assert_eq!(retry_after(&headers, now), expected.map(Duration::from_secs), "{text:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
