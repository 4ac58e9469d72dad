//! The FHIR road.

mod body;

use std::{sync::Arc, time::Duration};

pub use body::{Body, BoxError};
use http::{Request, Response};
use hyper::body::Incoming;
use mantel_adapters::{
    fhir::interaction::InteractionKind,
    site::{AppId, SiteId, VendorId},
};

use crate::{
    config::{Base, Config},
    error::Result,
    store::GrantId,
    telemetry::metrics::Outcome,
};

/// One request on the FHIR road.
pub struct Call {
    /// The snapshot that serves it whole.
    pub config: Arc<Config>,
    pub base: Base,
    /// The raw path below the base: empty, or from `/` on.
    pub tail: String,
    pub request: Request<Incoming>,
    pub request_id: String,
}

/// What was found out on the way, for log and metrics; filled as far as the request came.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub site: Option<(VendorId, SiteId)>,
    pub app: Option<AppId>,
    pub grant: Option<GrantId>,
    pub kind: Option<InteractionKind>,
    pub resource_type: Option<String>,
    /// Time spent waiting for the EHR.
    pub ehr: Duration,
    /// Whether the request carried a bearer.
    pub token_came: bool,
    /// Whose fault an answer is that is not 2xx; none: by its status.
    pub outcome: Option<Outcome>,
}

/// The FHIR road of one worker.
pub struct Proxy;

impl Proxy {
    /// Serves one request.
    pub async fn serve(&self, _call: Call, _facts: &mut Facts) -> Result<Response<Body>> {
        Err(crate::error::Error::internal("x"))
    }
}
