//! Scopes of a configuration: parsed once, by the scope translation's own grammar.

use mantel_adapters::{
    profile::ScopePolicy,
    smart::{
        scope::{Context, Scope},
        translate::{Allowed, ScopeFault, Ticked},
    },
};

use super::reader::{Context as Reader, Given};

/// What an app may ask for.
pub(super) fn allowed(context: &Reader<'_>, scopes: &[Given<String>]) -> Allowed {
    good(context, scopes, |scope| Allowed::parse(&[scope]).err());
    let texts: Vec<_> =
        scopes.iter().map(|scope| scope.value.as_str()).filter(|scope| Allowed::parse(&[scope]).is_ok()).collect();
    Allowed::parse(&texts).unwrap_or_default()
}

/// What is ticked at a vendor; with its profile, only what can have been ticked there.
pub(super) fn ticked(context: &Reader<'_>, scopes: &[Given<String>], policy: Option<&ScopePolicy>) -> Ticked {
    let fault = |scope: &str| match Ticked::parse(&[scope]) {
        Err(faults) => Some(faults),
        Ok(ticked) => policy.map(|policy| ticked.check(policy)).filter(|faults| !faults.is_empty()),
    };
    good(context, scopes, fault);
    let texts: Vec<_> =
        scopes.iter().map(|scope| scope.value.as_str()).filter(|scope| Ticked::parse(&[scope]).is_ok()).collect();
    Ticked::parse(&texts).unwrap_or_default()
}

fn good(context: &Reader<'_>, scopes: &[Given<String>], fault: impl Fn(&str) -> Option<Vec<ScopeFault>>) {
    for scope in scopes {
        if let Some(first) = fault(&scope.value).and_then(|faults| faults.into_iter().next()) {
            context.refuse(scope, expectation(&first));
        }
    }
}

/// A fault's expectation, without what was given: the report says that itself.
fn expectation(fault: &ScopeFault) -> String {
    let text = fault.to_string();
    text.split_once("expected ").map_or_else(|| text.clone(), |(_, expected)| expected.to_owned())
}

/// Whether a list of scopes has one of `system/`.
pub(super) fn has_system(ticked: &Ticked) -> bool {
    ticked.set().has_context(Context::System)
}

/// Whether an app may ask for a refresh token.
pub(super) fn asks_refresh(allowed: &Allowed) -> bool {
    [Scope::OfflineAccess, Scope::OnlineAccess].iter().any(|scope| allowed.set().has(scope))
}
