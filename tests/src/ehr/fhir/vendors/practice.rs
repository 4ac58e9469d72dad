//! athenaPractice and athenaFlow: a HAPI server behind the practice's own gateway (`vendors.md` §3).

use http::StatusCode;
use serde_json::json;

use crate::ehr::fhir::{
    House, catalog,
    fault::Fault,
    reply::{self, Reply},
};

pub fn fault(house: &House, fault: &Fault) -> Reply {
    match fault {
        Fault::NoToken | Fault::BadToken => Reply::text(StatusCode::UNAUTHORIZED, "text/plain", "Not authorized."),
        Fault::NoScope(_) | Fault::Hidden { .. } | Fault::Refused => {
            Reply::outcome(StatusCode::FORBIDDEN, vec![reply::issue("error", "processing", "Not authorized")])
        }
        Fault::NotFound { ty, id } => {
            hapi(StatusCode::NOT_FOUND, &format!("HAPI-2001: Resource {ty}/{id} is not known"))
        }
        Fault::UnknownType(ty) => {
            let known: Vec<&str> = catalog::rules(house.vendor).iter().map(|rule| rule.name).collect();
            let text =
                format!("HAPI-0302: Unknown resource type '{ty}' - Server knows how to handle: [{}]", known.join(", "));
            hapi(StatusCode::NOT_FOUND, &text)
        }
        Fault::UnknownParameters { method, ty, names } => {
            let text = format!(
                "Invalid request: The FHIR endpoint on this server does not know how to handle {method} operation[{ty}] with parameters [[{}]]",
                names.join(", ")
            );
            hapi(StatusCode::BAD_REQUEST, &text)
        }
        Fault::Parameter { reason, .. } => hapi(StatusCode::BAD_REQUEST, reason),
        Fault::PageGone(id) => {
            hapi(StatusCode::GONE, &format!("Search ID \"{id}\" does not exist and may have expired"))
        }
        other => super::generic::fault(other),
    }
}

/// HAPI says everything twice: in the narrative and in the issue.
fn hapi(status: StatusCode, text: &str) -> Reply {
    let shown = text.replace('&', "&amp;").replace('<', "&lt;");
    let div = format!(
        "<div xmlns=\"http://www.w3.org/1999/xhtml\"><h1>Operation Outcome</h1><table border=\"0\"><tr><td style=\"font-weight: bold;\">ERROR</td><td>[]</td><td>{shown}</td></tr></table></div>"
    );
    let outcome = json!({
        "resourceType": "OperationOutcome",
        "text": {"status": "generated", "div": div},
        "issue": [{"severity": "error", "code": "processing", "diagnostics": text}],
    });
    Reply::fhir(status, outcome)
}
