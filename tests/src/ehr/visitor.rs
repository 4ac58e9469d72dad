//! A browser without JavaScript: keeps cookies, follows redirects, fills in forms. For tests that walk through
//! the pages of EHRs, gateway and apps.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{
    HeaderMap, Method, Request, StatusCode,
    header::{CONTENT_TYPE, COOKIE, HOST, LOCATION, SET_COOKIE},
};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use url::Url;

/// More redirects than this in a row are a loop.
const MAX_REDIRECTS: usize = 20;

pub struct Visitor {
    client: Client<HttpConnector, Full<Bytes>>,
    /// By host and port, then by name. Paths and `Secure` are not looked at.
    cookies: HashMap<String, BTreeMap<String, String>>,
    /// Redirects to what starts with one of these are not followed.
    stops: Vec<String>,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Page {
    pub url: Url,
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// A form in a page, its fields as they would be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Form {
    pub id: String,
    pub action: String,
    pub post: bool,
    pub fields: Vec<(String, String)>,
    /// Submit buttons: id, name, value.
    pub buttons: Vec<(String, String, String)>,
}

impl Default for Visitor {
    fn default() -> Self {
        Self::new()
    }
}

impl Visitor {
    pub fn new() -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { client, cookies: HashMap::new(), stops: Vec::new() }
    }

    /// Stops at redirects to URLs that start with `prefix`: the redirect itself is then the page.
    #[must_use]
    pub fn stop_at(mut self, prefix: &str) -> Self {
        self.stops.push(prefix.to_owned());
        self
    }

    pub async fn get(&mut self, url: &str) -> Result<Page> {
        self.go(Method::GET, Url::parse(url).with_context(|| format!("no URL: {url}"))?, None).await
    }

    pub async fn post(&mut self, url: &str, fields: &[(&str, &str)]) -> Result<Page> {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        self.go(Method::POST, Url::parse(url).with_context(|| format!("no URL: {url}"))?, Some(body)).await
    }

    /// Presses the button with this id in a page, with some fields filled in otherwise.
    pub async fn press(&mut self, page: &Page, button: &str, changes: &[(&str, &str)]) -> Result<Page> {
        let forms = page.forms();
        let form = forms.iter().find(|form| form.buttons.iter().any(|(id, _, _)| id == button));
        let Some(form) = form else { bail!("{}: no button {button:?} in {}", page.url.path(), page.text()) };
        let mut fields = form.fields.clone();
        for (name, value) in changes {
            fields.retain(|(known, _)| known != name);
            fields.push(((*name).to_owned(), (*value).to_owned()));
        }
        let pressed = form.buttons.iter().find(|(id, name, _)| id == button && !name.is_empty());
        fields.extend(pressed.map(|(_, name, value)| (name.clone(), value.clone())));
        let mut to = page.url.join(&form.action).context("the form's action is no URL")?;
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(&fields).finish();
        if form.post {
            return self.go(Method::POST, to, Some(body)).await;
        }
        to.set_query(Some(&body));
        self.go(Method::GET, to, None).await
    }

    async fn go(&mut self, method: Method, url: Url, body: Option<String>) -> Result<Page> {
        let (mut method, mut url, mut body) = (method, url, body);
        for _ in 0..MAX_REDIRECTS {
            let page = self.once(&method, &url, body.as_deref()).await?;
            let Some(to) = page.redirect() else { return Ok(page) };
            if self.stops.iter().any(|prefix| to.as_str().starts_with(prefix)) {
                return Ok(page);
            }
            // As browsers do: only 307 and 308 keep the method and body.
            if !matches!(page.status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT) {
                (method, body) = (Method::GET, None);
            }
            url = to;
        }
        bail!("more than {MAX_REDIRECTS} redirects, the last to {}", url.path())
    }

    async fn once(&mut self, method: &Method, url: &Url, body: Option<&str>) -> Result<Page> {
        let place = format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(0));
        let mut bare = url.clone();
        bare.set_fragment(None);
        let mut request = Request::builder().method(method);
        // As browsers do: such names are this machine, whatever a resolver says (RFC 6761 §6.3).
        if url.host_str().is_some_and(|host| host.ends_with(".localhost")) {
            request = request.header(HOST, &place);
            bare.set_host(Some("127.0.0.1"))?;
        }
        request = request.uri(bare.as_str());
        if let Some(jar) = self.cookies.get(&place).filter(|jar| !jar.is_empty()) {
            let pairs: Vec<String> = jar.iter().map(|(name, value)| format!("{name}={value}")).collect();
            request = request.header(COOKIE, pairs.join("; "));
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default().to_owned())))?;
        let answer = self.client.request(request).await.with_context(|| format!("{} {}", method, url.path()))?;
        let (parts, body) = answer.into_parts();
        let jar = self.cookies.entry(place).or_default();
        for text in parts.headers.get_all(SET_COOKIE).iter().filter_map(|value| value.to_str().ok()) {
            let Ok(cookie) = cookie::Cookie::parse(text.to_owned()) else { continue };
            if cookie.max_age().is_some_and(|age| age.is_zero()) {
                jar.remove(cookie.name());
            } else {
                jar.insert(cookie.name().to_owned(), cookie.value().to_owned());
            }
        }
        let body = body.collect().await?.to_bytes();
        Ok(Page { url: url.clone(), status: parts.status, headers: parts.headers, body })
    }

    /// Signs in at an EHR's page as a demo account.
    pub async fn sign_in(&mut self, page: &Page, username: &str) -> Result<Page> {
        self.press(page, "sign-in", &[("username", username), ("password", crate::ehr::auth::PASSWORD)]).await
    }
}

impl Page {
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Where this redirects to.
    pub fn redirect(&self) -> Option<Url> {
        let to = self.headers.get(LOCATION).filter(|_| self.status.is_redirection())?.to_str().ok()?;
        self.url.join(to).ok()
    }

    /// A parameter of the URL that this redirects to.
    pub fn redirect_param(&self, name: &str) -> Option<String> {
        self.redirect()?.query_pairs().find(|(known, _)| known == name).map(|(_, value)| value.into_owned())
    }

    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("{}: no JSON", self.url.path()))
    }

    pub fn forms(&self) -> Vec<Form> {
        forms(&self.text())
    }

    pub fn has_button(&self, id: &str) -> bool {
        self.forms().iter().any(|form| form.buttons.iter().any(|(known, _, _)| known == id))
    }
}

/// Reads the forms of a page; enough of HTML for pages that are written by programs.
fn forms(html: &str) -> Vec<Form> {
    let mut forms: Vec<Form> = Vec::new();
    let mut select: Option<(String, bool)> = None;
    let mut rest = html;
    while let Some((_, after)) = rest.split_once('<') {
        let Some((tag, more)) = end_of_tag(after) else { break };
        rest = more;
        let (name, attributes) = tag.split_once(|c: char| c.is_whitespace()).unwrap_or((tag, ""));
        let get = |wanted: &str| attribute(attributes, wanted);
        let text = |wanted: &str| get(wanted).unwrap_or_default();
        if name.eq_ignore_ascii_case("form") {
            let post = text("method").eq_ignore_ascii_case("post");
            forms.push(Form { id: text("id"), action: text("action"), post, ..Form::default() });
            continue;
        }
        let Some(form) = forms.last_mut() else { continue };
        match name.to_ascii_lowercase().as_str() {
            "input" => {
                let kind = text("type").to_ascii_lowercase();
                match kind.as_str() {
                    "checkbox" | "radio" if get("checked").is_none() => {}
                    "submit" => form.buttons.push((text("id"), text("name"), text("value"))),
                    _ if get("name").is_some() => form.fields.push((text("name"), text("value"))),
                    _ => {}
                }
            }
            "button" => form.buttons.push((text("id"), text("name"), text("value"))),
            "select" => select = Some((text("name"), false)),
            "/select" => select = None,
            "option" => {
                if let Some((name, seen)) = &mut select {
                    // The first one counts until another is marked.
                    if get("selected").is_some() {
                        form.fields.retain(|(known, _)| known != name);
                    }
                    if get("selected").is_some() || !*seen {
                        form.fields.push((name.clone(), text("value")));
                    }
                    *seen = true;
                }
            }
            _ => {}
        }
    }
    forms
}

/// What stands before the `>` that ends a tag, and what comes after it.
fn end_of_tag(text: &str) -> Option<(&str, &str)> {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None, '>') => return Some((text.get(..at)?, text.get(at + 1..)?)),
            _ => {}
        }
    }
    None
}

fn attribute(attributes: &str, wanted: &str) -> Option<String> {
    let mut rest = attributes.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_whitespace() || c == '/').unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let (value, after) = match after.strip_prefix('=') {
            None => ("", after.trim_start_matches('/')),
            Some(after) => match after.chars().next() {
                Some(quote @ ('"' | '\'')) => after.get(1..)?.split_once(quote)?,
                _ => after.split_once(char::is_whitespace).unwrap_or((after, "")),
            },
        };
        if name.eq_ignore_ascii_case(wanted) {
            return Some(unescape(value));
        }
        rest = after.trim_start();
    }
    None
}

fn unescape(text: &str) -> String {
    let pairs = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#34;", "\""), ("&#39;", "'"), ("&#x27;", "'")];
    let text = pairs.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    text.replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_read() {
        let html = r#"<form method=post action="/go?a=1&amp;b=2" id="f"><input name="x" value="a &lt; &quot;b&quot;">
            <input type="checkbox" name="c" value="1" checked><input type="checkbox" name="d" value="1">
            <select name="s"><option value="1">one</option><option value="2" selected>two</option></select>
            <select name="t"><option value="">none</option><option value="2">two</option></select>
            <button id="ok" name="decision" value="approve">OK</button></form>"#;
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            forms(html),
            [Form {
                id: "f".into(),
                action: "/go?a=1&b=2".into(),
                post: true,
                fields: vec![pair("x", "a < \"b\""), pair("c", "1"), pair("s", "2"), pair("t", "")],
                buttons: vec![("ok".into(), "decision".into(), "approve".into())],
            }]
        );
    }
}
