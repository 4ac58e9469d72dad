//! A plain R4 server: the status and the outcome that the specification names.

use http::StatusCode;

use crate::ehr::fhir::{
    fault::Fault,
    reply::{Reply, issue},
};

pub fn fault(fault: &Fault) -> Reply {
    let (status, code, text) = match fault {
        Fault::NoToken | Fault::BadToken => {
            (StatusCode::UNAUTHORIZED, "login", "a live access token is needed".to_owned())
        }
        Fault::NoScope(ty) => {
            (StatusCode::FORBIDDEN, "forbidden", format!("the token's scopes do not cover this use of {ty}"))
        }
        Fault::Refused | Fault::OtherPractice => {
            (StatusCode::FORBIDDEN, "forbidden", "the request reaches beyond the token's grant".to_owned())
        }
        // What the bearer may not see is not there.
        Fault::NotFound { ty, id } | Fault::Hidden { ty, id } => {
            (StatusCode::NOT_FOUND, "not-found", format!("{ty}/{id} is not known"))
        }
        Fault::UnknownPath => (StatusCode::NOT_FOUND, "not-found", "no such place".to_owned()),
        Fault::UnknownType(ty) => (StatusCode::NOT_FOUND, "not-supported", format!("type {ty} is not supported")),
        Fault::Unsupported(what) => {
            (StatusCode::METHOD_NOT_ALLOWED, "not-supported", format!("{what} is not supported"))
        }
        Fault::Gone { ty, id } => (StatusCode::GONE, "deleted", format!("{ty}/{id} was deleted")),
        Fault::Merged { into } => (StatusCode::GONE, "deleted", format!("merged into Patient/{into}")),
        Fault::Unacceptable => (StatusCode::NOT_ACCEPTABLE, "not-supported", "only FHIR JSON is served".to_owned()),
        Fault::MediaType => {
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-supported", "the body's media type is not supported".to_owned())
        }
        Fault::Malformed(reason) => (StatusCode::BAD_REQUEST, "structure", reason.clone()),
        Fault::Parameter { name, reason } => (StatusCode::BAD_REQUEST, "value", format!("{name}: {reason}")),
        Fault::UnknownParameters { ty, names, .. } => {
            (StatusCode::BAD_REQUEST, "not-supported", format!("{ty} has no parameter {}", names.join(", ")))
        }
        Fault::Needs { ty, .. } => (StatusCode::BAD_REQUEST, "required", format!("{ty}: too few parameters")),
        Fault::Practice(reason) => (StatusCode::BAD_REQUEST, "required", reason.clone()),
        Fault::PageGone(_) => (StatusCode::GONE, "processing", "the page's search has expired".to_owned()),
        Fault::TooMany => (StatusCode::FORBIDDEN, "too-costly", "too many patients".to_owned()),
        Fault::MatchWanted => (StatusCode::PRECONDITION_FAILED, "required", "If-Match is needed".to_owned()),
        Fault::Stale => (StatusCode::PRECONDITION_FAILED, "conflict", "the version is not the newest".to_owned()),
        Fault::Several => (StatusCode::PRECONDITION_FAILED, "multiple-matches", "the criteria fit several".to_owned()),
        Fault::ModifierExtension(ty) => {
            (StatusCode::UNPROCESSABLE_ENTITY, "extension", format!("{ty}: unknown modifierExtension"))
        }
        Fault::Required { ty, element } => {
            (StatusCode::UNPROCESSABLE_ENTITY, "required", format!("{ty}.{element} is missing"))
        }
        Fault::Invalid(reason) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid", reason.clone()),
        Fault::Issues(status, issues) => return Reply::outcome(*status, issues.clone()),
    };
    let reply = Reply::outcome(status, vec![issue("error", code, text)]);
    match fault {
        Fault::NoToken => reply.with("www-authenticate", "Bearer"),
        Fault::BadToken => reply.with("www-authenticate", "Bearer error=\"invalid_token\""),
        Fault::NoScope(_) => reply.with("www-authenticate", "Bearer error=\"insufficient_scope\""),
        _ => reply,
    }
}
