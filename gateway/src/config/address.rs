//! Checks of addresses: what may stand in a URL that a browser, an EHR or an app compares byte for byte.
//! Each answers with what was expected.

use url::{Host, Url};

type Checked<T> = Result<T, String>;

/// A URL whose text is what it seems to be: the parser drops tabs and newlines, trims spaces and turns
/// `\` into `/`, so that what is compared as text and what is dialled would be two things.
fn parse(text: &str, expected: &str) -> Checked<Url> {
    let plain = text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'\\' | b'"' | b'<' | b'>' | b'`'));
    let url = if plain { Url::parse(text).ok() } else { None };
    let url = url.ok_or_else(|| format!("{expected}, without blanks"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("{expected}, without user and password"));
    }
    Ok(url)
}

/// Names and addresses of this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => is_localhost(name),
        None => false,
    }
}

/// Hosts that surely lead to no public address; what a name resolves to is judged when it is dialled.
pub(super) fn is_private(url: &Url) -> bool {
    let literal = match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_private() || ip.is_link_local(),
        Some(Host::Ipv6(ip)) => ip.is_unique_local() || ip.is_unicast_link_local(),
        _ => false,
    };
    literal || is_loopback(url)
}

pub(super) fn is_localhost(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost")
}

/// A FHIR base of an EHR, or something else that is fetched: https; http only of this machine in the sandbox.
pub(super) fn fetched(text: &str, sandbox: bool, what: &str) -> Checked<Url> {
    let expected = format!("{what}: an absolute https URL");
    let url = parse(text, &expected)?;
    if url.host().is_none() || !matches!(url.scheme(), "https" | "http") {
        return Err(expected);
    }
    if url.scheme() == "http" && !(sandbox && is_loopback(&url)) {
        return Err(format!("{expected} (http only in the sandbox, for a loopback host or *.localhost)"));
    }
    if url.fragment().is_some() {
        return Err(format!("{expected} without a fragment"));
    }
    Ok(url)
}

/// The same without a query.
pub(super) fn base(text: &str, sandbox: bool, what: &str) -> Checked<Url> {
    let url = fetched(text, sandbox, what)?;
    if url.query().is_some() { Err(format!("{what}: an absolute https URL without a query")) } else { Ok(url) }
}

/// A URL that is only compared: another spelling of a base, of any scheme of the web.
pub(super) fn spelling(text: &str) -> Checked<Url> {
    let expected = "an absolute URL without query and fragment, as the EHR writes it";
    let url = parse(text, expected)?;
    let fits = matches!(url.scheme(), "https" | "http") && url.host().is_some();
    if fits && url.query().is_none() && url.fragment().is_none() { Ok(url) } else { Err(expected.into()) }
}

/// The public URL: an origin and nothing more, spelt as browsers spell origins.
pub(super) fn public(text: &str) -> Checked<Url> {
    let expected = "an https origin such as https://gateway.example.org: no path, no query, no slash at the end";
    let url = parse(text, expected)?;
    if !matches!(url.scheme(), "https" | "http") || url.origin().ascii_serialization() != text {
        return Err(expected.into());
    }
    if url.scheme() == "http" && !is_loopback(&url) {
        return Err(format!("{expected} (http only for a loopback host or *.localhost)"));
    }
    Ok(url)
}

/// A redirect URI of an app (conformance A5; RFC 8252 §7): compared byte for byte, except for a loopback's port.
pub(super) fn redirect(text: &str, sandbox: bool) -> Checked<()> {
    let expected = "an absolute https URL, http://127.0.0.1 or http://[::1] with any port, or a private scheme with a dot (com.example.app:/callback)";
    let url = parse(text, expected)?;
    if url.fragment().is_some() {
        return Err("a URL without a fragment (RFC 6749 section 3.1.2)".into());
    }
    if text.contains('*') {
        return Err("a whole URL: none is compared by a pattern (RFC 9700 section 2.1)".into());
    }
    match url.scheme() {
        "https" | "http" => web(text, &url, sandbox),
        scheme if scheme.contains('.') => Ok(()),
        _ => Err(expected.into()),
    }
}

/// Where an EHR launch opens the app: as a redirect URI, but only in the browser.
pub(super) fn launch(text: &str, sandbox: bool) -> Checked<()> {
    let expected = "an absolute https URL, or http://127.0.0.1 or http://[::1]";
    let url = parse(text, expected)?;
    if url.fragment().is_some() {
        return Err("a URL without a fragment: parameters are added to it".into());
    }
    if matches!(url.scheme(), "https" | "http") { web(text, &url, sandbox) } else { Err(expected.into()) }
}

fn web(text: &str, url: &Url, sandbox: bool) -> Checked<()> {
    // A name may be resolved to somebody else's address (RFC 8252 §8.3).
    if url.host_str().is_some_and(is_localhost) {
        return if sandbox {
            Ok(())
        } else {
            Err("http://127.0.0.1 or http://[::1] in the place of localhost: use 127.0.0.1".into())
        };
    }
    if url.scheme() == "https" {
        return if url.host().is_some() { Ok(()) } else { Err("a URL with a host".into()) };
    }
    let literal = ["http://127.0.0.1", "http://[::1]"].iter().filter_map(|host| text.strip_prefix(host));
    let mut rest = literal.map(|rest| rest.is_empty() || rest.starts_with([':', '/', '?']));
    if rest.any(|fits| fits) { Ok(()) } else { Err("https (http only for 127.0.0.1 and [::1])".into()) }
}

/// An origin as browsers send it in `Origin` (conformance A12).
pub(super) fn origin(text: &str) -> Checked<()> {
    let expected = "an origin as browsers send it: https://app.example.org, without path or slash at the end";
    let url = parse(text, expected)?;
    match url.scheme() {
        "https" | "http" if url.origin().ascii_serialization() != text => Err(expected.into()),
        "https" => Ok(()),
        "http" if is_loopback(&url) => Ok(()),
        "http" => Err(format!("{expected} (http only for a loopback host or *.localhost)")),
        // Shells around web apps: capacitor://localhost, ionic://localhost.
        scheme => {
            let host = text.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://")).unwrap_or_default();
            let fits = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
            if fits { Ok(()) } else { Err(expected.into()) }
        }
    }
}

/// A source for `frame-ancestors`: an origin, whose host may begin with `*.`; nothing that could end the directive.
pub(super) fn frame_origin(text: &str) -> Checked<()> {
    let expected = "an https origin, whose host may begin with *.";
    let plain = text.replacen("://*.", "://any.", 1);
    if plain.bytes().any(|b| matches!(b, b';' | b',' | b'*' | b'\'')) {
        return Err(expected.into());
    }
    origin(&plain).map_err(|_| expected.into())
}
