//! Requests and answers, whole: bodies here are small.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, ORIGIN, PRAGMA,
        VARY, X_FRAME_OPTIONS,
    },
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::ehr::auth::places::Host;

/// A request to a simulated EHR.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: Method,
    /// Which of the EHR's names it came to.
    pub host: Host,
    /// Raw.
    pub path: String,
    /// Raw, without `?`.
    pub query: Option<String>,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Milliseconds since 1970, by the EHR's own clock.
    pub now: i64,
}

impl Call {
    pub fn header(&self, name: impl http::header::AsHeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub fn bearer(&self) -> Option<&str> {
        let (scheme, token) = self.header(http::header::AUTHORIZATION)?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim())
    }

    pub fn cookie(&self, name: &str) -> Option<String> {
        let found = |text: &str| {
            cookie::Cookie::split_parse(text.to_owned())
                .flatten()
                .find(|c| c.name() == name)
                .map(|c| c.value().to_owned())
        };
        self.headers.get_all(http::header::COOKIE).iter().filter_map(|value| value.to_str().ok()).find_map(found)
    }

    pub fn has_form_body(&self) -> bool {
        self.header(CONTENT_TYPE).is_some_and(|kind| {
            kind.split(';')
                .next()
                .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded"))
        })
    }

    /// The body's pairs, or the query's for a GET.
    pub fn form(&self) -> Form {
        if self.method == Method::GET {
            Form::parse(self.query.as_deref().unwrap_or_default().as_bytes())
        } else {
            Form::parse(&self.body)
        }
    }
}

/// The pairs of a form or query, in order, repeats kept.
#[derive(Clone, Debug, Default)]
pub struct Form(Vec<(String, String)>);

impl Form {
    pub fn parse(bytes: &[u8]) -> Self {
        Self(form_urlencoded::parse(bytes).into_owned().collect())
    }

    /// An empty value counts as absent (RFC 6749 §3.1).
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).find(|value| !value.is_empty())
    }

    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A parameter that was sent more than once (RFC 6749 §3.1: it must not be).
    pub fn repeated(&self) -> Option<&str> {
        let mut names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.windows(2).find_map(|pair| match pair {
            [one, two] if one == two => Some(*one),
            _ => None,
        })
    }
}

pub type Reply = Response<Bytes>;

pub fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(body.into());
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

pub fn empty(status: StatusCode) -> Reply {
    let mut reply = Response::new(Bytes::new());
    *reply.status_mut() = status;
    reply
}

pub fn json(status: StatusCode, body: &Value) -> Reply {
    reply(status, "application/json", body.to_string())
}

/// A page of the EHR. It may be framed by the EHR itself only, as Epic's and others' pages are.
pub fn page(status: StatusCode, html: String) -> Reply {
    let mut reply = reply(status, "text/html; charset=utf-8", html);
    let headers = reply.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("frame-ancestors 'self'"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("sameorigin"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

pub fn redirect(status: StatusCode, to: &str) -> Reply {
    let Ok(location) = HeaderValue::from_str(to) else {
        return reply(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", "the address to return to is no header value");
    };
    let mut reply = empty(status);
    reply.headers_mut().insert(LOCATION, location);
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

pub fn no_store(mut reply: Reply) -> Reply {
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply.headers_mut().insert(PRAGMA, HeaderValue::from_static("no-cache"));
    reply
}

pub fn with_header(mut reply: Reply, name: HeaderName, value: &str) -> Reply {
    if let Ok(value) = HeaderValue::from_str(value) {
        reply.headers_mut().insert(name, value);
    }
    reply
}

pub fn any_origin(reply: Reply) -> Reply {
    with_header(reply, ACCESS_CONTROL_ALLOW_ORIGIN, "*")
}

pub fn echo_origin(call: &Call, reply: Reply) -> Reply {
    match call.header(ORIGIN) {
        Some(origin) => with_header(with_header(reply, ACCESS_CONTROL_ALLOW_ORIGIN, origin), VARY, "Origin"),
        None => reply,
    }
}

const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub fn encode(text: &str) -> String {
    utf8_percent_encode(text, UNRESERVED).to_string()
}

/// `url` with pairs added to its query.
pub fn with_query(url: &str, pairs: &[(&str, &str)]) -> String {
    let mut out = url.to_owned();
    for (name, value) in pairs {
        out.push(if out.contains('?') { '&' } else { '?' });
        out.push_str(&format!("{}={}", encode(name), encode(value)));
    }
    out
}
