//! The syntax of scopes as `conformance.md` part C1 has it; what they mean is the scope translation's.

/// What the checks of a configuration ask of a scope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// `patient/*.rs`
    pub wildcard: bool,
    pub system: bool,
}

const PLAIN: [&str; 6] = ["launch", "openid", "fhirUser", "profile", "offline_access", "online_access"];

/// Parses one scope; else what was expected. `lowercase` takes `patient/observation.read` too.
pub(super) fn check(scope: &str, lowercase: bool) -> Result<Shape, String> {
    // RFC 6749 §3.3
    if scope.is_empty() || !scope.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\')) {
        return Err("one scope, without blanks, quotes and backslashes".into());
    }
    if PLAIN.contains(&scope) || scope.starts_with("__") {
        return Ok(Shape::default());
    }
    if let Some(context) = scope.strip_prefix("launch/") {
        let kind = context.split_once("?role=").map_or(context, |(kind, _)| kind);
        let fits = !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_lowercase());
        return if fits { Ok(Shape::default()) } else { Err("launch/ and a type in lower case".into()) };
    }
    match scope.split_once('/') {
        Some((context @ ("patient" | "user" | "system"), rest)) => {
            resource(rest, lowercase).map(|shape| Shape { system: context == "system", ..shape })
        }
        _ if scope.contains("://") => Ok(Shape::default()),
        _ => Err("a SMART scope: launch…, openid, fhirUser, offline_access, patient/Type.rs, user/…, system/…".into()),
    }
}

fn resource(text: &str, lowercase: bool) -> Result<Shape, String> {
    let (head, query) = text.split_once('?').map_or((text, None), |(head, query)| (head, Some(query)));
    let (kind, permissions) = head.split_once('.').ok_or("a resource type, a dot and permissions: Observation.rs")?;
    let first = kind.bytes().next().unwrap_or_default();
    let letters = kind.bytes().all(|b| b.is_ascii_alphabetic());
    if kind != "*" && !(letters && (first.is_ascii_uppercase() || (lowercase && first.is_ascii_lowercase()))) {
        return Err("a FHIR resource type as FHIR writes it (Observation), or *".into());
    }
    let v1 = matches!(permissions, "read" | "write" | "*");
    if !v1 && !is_v2(permissions) {
        return Err("permissions from c, r, u, d, s in this order, or read, write or *".into());
    }
    if v1 && query.is_some() {
        return Err("permissions of v2 (.rs) with a query".into());
    }
    if query
        .is_some_and(|query| query.split('&').any(|pair| pair.split_once('=').is_none_or(|(name, _)| name.is_empty())))
    {
        return Err("a query of name=value pairs".into());
    }
    Ok(Shape { wildcard: kind == "*", system: false })
}

fn is_v2(permissions: &str) -> bool {
    let rest = "cruds".chars().fold(permissions, |rest, letter| rest.strip_prefix(letter).unwrap_or(rest));
    !permissions.is_empty() && rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_of_the_standard_are_taken() {
        let good = [
            "launch",
            "launch/patient",
            "launch/imagingstudy",
            "launch/list?role=https://example.org/role",
            "openid",
            "fhirUser",
            "offline_access",
            "patient/Observation.rs",
            "user/*.cruds",
            "system/*.read",
            "patient/*.*",
            "patient/Observation.rs?category=http://terminology.hl7.org/CodeSystem/observation-category|laboratory",
            "http://smarthealthit.org/fhir/scopes/launch",
            "__vendor",
        ];
        for scope in good {
            assert!(check(scope, false).is_ok(), "{scope} was refused");
        }
        assert!(check("patient/*.rs", false).is_ok_and(|shape| shape.wildcard && !shape.system));
        assert!(check("system/Patient.rs", false).is_ok_and(|shape| !shape.wildcard && shape.system));
    }

    #[test]
    fn malformed_ones_are_refused() {
        let bad = [
            "",
            "a b",
            "patient/Observation.sr",
            "patient/Observation.dus",
            "patient/Observation.rr",
            "patient/Observation.",
            "patient/Observation.readwrite",
            "patient/observation.rs",
            "Patient/Observation.rs",
            "patient/Observation.read?category=x",
            "patient/Observation",
            "patient/.rs",
            "launch/",
            "launch/Patient",
            "offlineaccess",
            "patient/Observation.rs?category",
            "patient/Observation.rs?=x",
        ];
        for scope in bad {
            assert!(check(scope, false).is_err(), "{scope} was taken");
        }
        assert!(check("patient/observation.read", true).is_ok());
    }
}
