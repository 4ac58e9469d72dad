//! The cookie that binds a launch to its browser: one per launch, so that parallel tabs do not disturb
//! each other; partitioned, so that it lives in an EHR's frame where third-party cookies are blocked;
//! `__Host-`, so that no neighbour can set it (`guard.md`, "The browser").

use cookie::{Cookie, SameSite, time::Duration};
use http::{HeaderMap, HeaderValue, header};

use crate::{
    secret::{Secret, TokenHash},
    store::{Launch, LaunchId},
};

/// As long as a launch lives.
const MAX_AGE: Duration = Duration::minutes(15);

fn name(launch: LaunchId) -> String {
    format!("__Host-launch-{}", launch.0.simple())
}

/// `Set-Cookie` that binds.
pub fn bind(launch: LaunchId, value: &Secret<String>) -> Option<HeaderValue> {
    set(launch, value.expose(), MAX_AGE)
}

/// `Set-Cookie` that forgets.
pub fn release(launch: LaunchId) -> Option<HeaderValue> {
    set(launch, "", Duration::ZERO)
}

fn set(launch: LaunchId, value: &str, max_age: Duration) -> Option<HeaderValue> {
    let cookie = Cookie::build((name(launch), value))
        .path("/")
        .secure(true)
        .http_only(true)
        .same_site(SameSite::None)
        .partitioned(true)
        .max_age(max_age)
        .build();
    let mut value = HeaderValue::from_str(&cookie.to_string()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Whether the browser is the one that the launch was bound to.
pub fn holds(headers: &HeaderMap, launch: &Launch) -> bool {
    let Some(expected) = launch.browser else { return false };
    let wanted = name(launch.id);
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(Cookie::split_parse)
        .filter_map(Result::ok)
        .any(|cookie| cookie.name() == wanted && TokenHash::of(cookie.value()) == expected)
}
