//! Paging links and their binding.
//!
//! What a paging link will show can mostly not be judged when it comes back: `[base]?_getpages=…` names no type,
//! `Observation?sessionID=…` no patient. Such a link gets a parameter with a MAC over the URL, the judged
//! request and the grant, and passes only with it. The MAC itself is made by who holds the key.

use std::fmt;

use super::{
    compartment::{Selector, selects},
    interaction::{Pairs, Request, TargetFault, encode_target, parse_target},
    rewrite::Bases,
};

/// The parameter that carries a paging link's binding.
pub const BINDING: &str = "_mantel";

/// What was judged of the search that a link continues.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JudgedSearch {
    /// The one type that was searched for; `None` for searches over several types.
    pub resource_type: Option<String>,
    /// The patient to whom the search was confined.
    pub patient: Option<String>,
    /// Further parameters that the judge added or relied on (a scope's query): a link must repeat them.
    pub required: Vec<(String, String)>,
}

/// What a paging link needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It says by itself what it finds, and is judged as a search when it comes back.
    Nothing,
    Binding,
}

/// Decides for the part of an EHR's link that follows its base (`/Observation?patient=1&page=2`).
pub fn need(below_base: &str, judged: &JudgedSearch, bases: &Bases) -> Need {
    let Ok((path, query)) = split(below_base) else { return Need::Binding };
    let (Some(wanted), [resource_type]) = (&judged.resource_type, path.as_slice()) else { return Need::Binding };
    if wanted != resource_type {
        return Need::Binding;
    }
    let names_patient = judged.patient.as_ref().is_none_or(|patient| {
        let mut found = false;
        let agrees = query.iter().all(|(name, value)| match selects(resource_type, name, value, bases) {
            Selector::None => true,
            Selector::Patients(ids) => {
                found = true;
                ids == [patient.as_str()]
            }
            Selector::Unclear => false,
        });
        found && agrees
    });
    if names_patient && judged.required.iter().all(|pair| query.contains(pair)) { Need::Nothing } else { Need::Binding }
}

fn split(below_base: &str) -> Result<(Vec<String>, Pairs), TargetFault> {
    let without_fragment = below_base.split('#').next().unwrap_or_default();
    let (path, query) = match without_fragment.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (without_fragment, None),
    };
    parse_target(path, query)
}

/// The form of a link over which its MAC is made: decoded and encoded anew, since clients encode URLs once more
/// in their own way, and without a binding. Both sides use it: for the EHR's link and for what an app sends.
pub fn canonical(path: &[String], query: &[(String, String)]) -> String {
    let request = Request {
        method: http::Method::GET,
        path: path.to_vec(),
        query: query.iter().filter(|(name, _)| name != BINDING).cloned().collect(),
        headers: http::HeaderMap::new(),
        body: bytes::Bytes::new(),
    };
    encode_target(&request)
}

/// Takes the binding off a raw query: what goes to the EHR keeps each of its bytes, since paging tokens are
/// opaque. Answers the rest (`None` where nothing is left) and the binding; a second binding is none.
pub fn unbind(raw_query: &str) -> (Option<String>, Option<String>) {
    let is_binding = |pair: &&str| pair.split('=').next() == Some(BINDING);
    let mut bindings = raw_query.split('&').filter(is_binding);
    let binding = match (bindings.next(), bindings.next()) {
        (Some(one), None) => one.split_once('=').map(|(_, mac)| mac.to_owned()),
        _ => None,
    };
    let rest: Vec<&str> = raw_query.split('&').filter(|pair| !is_binding(pair)).collect();
    ((!rest.is_empty()).then(|| rest.join("&")), binding)
}

/// Makes the app's links of the EHR's: the [`crate::fhir::rewrite::LinkHook`].
pub struct LinkBinder<M> {
    judged: JudgedSearch,
    mac: M,
}

impl<M> fmt::Debug for LinkBinder<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkBinder").finish_non_exhaustive()
    }
}

impl<M: FnMut(&str) -> String> LinkBinder<M> {
    /// `mac` is given [`canonical`] and answers characters of base64url.
    pub fn new(judged: JudgedSearch, mac: M) -> Self {
        Self { judged, mac }
    }

    /// What the app sees of a link. One that is not below the EHR's base stays as it is; one that cannot be
    /// read is moved without a binding and refused when it comes back.
    pub fn link(&mut self, upstream_url: &str, bases: &Bases) -> String {
        let Some(rest) = bases.below(upstream_url) else { return upstream_url.to_owned() };
        let (before_fragment, fragment) = rest.split_at(rest.find('#').unwrap_or(rest.len()));
        let (path, query) = match before_fragment.split_once('?') {
            Some((path, query)) => (path, unbind(query).0),
            None => (before_fragment, None),
        };
        let mut url = format!("{}{path}", bases.to());
        let mut separator = '?';
        if let Some(query) = &query {
            url.push('?');
            url.push_str(query);
            separator = '&';
        }
        if need(before_fragment, &self.judged, bases) == Need::Binding
            && let Ok((path, query)) = parse_target(path, query.as_deref())
        {
            let mac = (self.mac)(&canonical(&path, &query));
            url.push(separator);
            url.push_str(BINDING);
            url.push('=');
            url.push_str(&mac);
        }
        url.push_str(fragment);
        url
    }
}
