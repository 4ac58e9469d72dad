//! Pages for people. They work without JavaScript, load nothing from elsewhere, and may be framed only
//! by the origins that a site names (`guard.md`, "The browser").

use askama::Template;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::fault::PageFault;

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
struct Fault<'a> {
    title: &'a str,
    explanation: &'a str,
    way_on: &'a Option<(&'static str, String)>,
    new_window: bool,
    request_id: &'a str,
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

pub(super) fn fault(fault: &PageFault, request_id: &str, frame_ancestors: &[String]) -> Response<Bytes> {
    let template = Fault {
        title: fault.title,
        explanation: &fault.explanation,
        way_on: &fault.way_on,
        new_window: fault.new_window,
        request_id,
    };
    page(fault.status, &template, frame_ancestors)
}
