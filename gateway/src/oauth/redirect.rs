//! Redirects. Always 303: the next request is a GET without a body, whatever this one was.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

/// A redirect that no cache keeps.
pub fn to(location: &str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    let Ok(value) = HeaderValue::from_str(location) else {
        // Locations are made of URLs that were checked; a control character in one is a bug of ours.
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        return response;
    };
    *response.status_mut() = StatusCode::SEE_OTHER;
    response.headers_mut().insert(header::LOCATION, value);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A URI with pairs added to its query. The URI itself stays byte for byte: it was registered so.
pub fn with_query(uri: &str, pairs: &[(&str, &str)]) -> String {
    let query: String = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    let joint = match uri.split_once('?') {
        None => "?",
        Some((_, rest)) if rest.is_empty() || rest.ends_with('&') => "",
        Some(_) => "&",
    };
    format!("{uri}{joint}{query}")
}

#[cfg(test)]
mod tests {
    use super::with_query;

    #[test]
    fn queries_are_added_behind_what_is_there() {
        assert_eq!(with_query("https://a.example/cb", &[("a", "1 2")]), "https://a.example/cb?a=1+2");
        assert_eq!(with_query("https://a.example/cb?x=y", &[("a", "&")]), "https://a.example/cb?x=y&a=%26");
        assert_eq!(with_query("com.example.app:/cb", &[("a", "1")]), "com.example.app:/cb?a=1");
    }
}
