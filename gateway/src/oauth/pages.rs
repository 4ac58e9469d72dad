//! Pages for people. They work without JavaScript, load nothing from elsewhere, and may be framed only
//! by the origins that a site names (`guard.md`, "The browser").

use askama::Template;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

/// The style sheet of all pages, at `/style/page.css`.
pub const STYLE_SHEET: &str = include_str!("../../templates/page.css");

#[derive(Template)]
#[template(path = "organizations.html")]
pub struct Organizations<'a> {
    pub app: &'a str,
    pub query: &'a str,
    /// Where the search form leads.
    pub action: &'a str,
    pub cancel: &'a str,
    pub searchable: bool,
    pub choices: Vec<Choice<'a>>,
    /// How many are not shown.
    pub more: usize,
}

/// An organization to choose.
pub struct Choice<'a> {
    pub name: &'a str,
    pub detail: String,
    pub href: String,
}

#[derive(Template)]
#[template(path = "fault.html")]
pub struct Fault<'a> {
    pub title: &'a str,
    /// Text and, at every second place, words of the protocol.
    pub explanation: Vec<&'a str>,
    pub way_on: &'a Option<(&'static str, String)>,
    pub new_window: bool,
    pub request_id: &'a str,
}

/// A page with its headers.
pub fn page(status: StatusCode, template: &impl Template, frame_ancestors: &[String]) -> Response<Bytes> {
    let body = match template.render() {
        Ok(body) => body,
        Err(error) => {
            tracing::error!(%error, "a page could not be rendered");
            return Response::builder()
                .status(StatusCode::INTERNAL_SERVER_ERROR)
                .body(Bytes::new())
                .unwrap_or_default();
        }
    };
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let ancestors = if frame_ancestors.is_empty() { "'none'".to_owned() } else { frame_ancestors.join(" ") };
    let policy = format!(
        "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors {ancestors}"
    );
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}
