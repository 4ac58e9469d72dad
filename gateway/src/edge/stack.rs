//! The layers around the authorization server and its pages. They stand in this order, outside in:
//! sensitive headers first, so that nothing below can log them; compression above the panic catcher,
//! so that its answer is compressed like any other; the load limit innermost but one, so that what it
//! sheds is still marked and logged.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use tokio::sync::Semaphore;
use tower::{ServiceBuilder, ServiceExt as _, util::BoxCloneSyncService};
use tower_http::{
    catch_panic::CatchPanicLayer, compression::CompressionLayer, sensitive_headers::SetSensitiveRequestHeadersLayer,
    set_header::SetResponseHeaderLayer,
};

use super::{cors::Readers, respond};
use crate::{
    config::Config,
    error::{Error, Kind, Side},
    oauth::{self, OAuth},
    proxy::{Body, BoxError},
};

/// Whole time of a control request: the callback waits for an EHR's token endpoint (60 s).
const DEADLINE: Duration = Duration::from_secs(90);
/// Requests in work; more are shed with 503 before they queue.
const IN_WORK: usize = 1024;

/// Who may read a control road's answers from a script.
pub fn readers(path: &str) -> Readers {
    let leaf = path.rsplit('/').next().unwrap_or_default();
    if path.starts_with("/.well-known/")
        || path.ends_with("/.well-known/smart-configuration")
        || path == "/oauth/jwks"
        || path.starts_with("/keys/")
        || path.starts_with("/style/")
    {
        Readers::Anyone
    } else if path.contains("/oauth/") && matches!(leaf, "token" | "revoke" | "introspect") {
        Readers::Registered
    } else {
        Readers::Nobody
    }
}

type Stacked = BoxCloneSyncService<Request<oauth::Call>, Response<Body>, Infallible>;

/// The stack; cheap to clone.
#[derive(Clone)]
pub struct ControlStack {
    layers: Stacked,
    in_work: Arc<Semaphore>,
}

impl ControlStack {
    pub fn new(oauth: Arc<OAuth>) -> Self {
        let roads = tower::service_fn(move |request: Request<oauth::Call>| {
            let oauth = oauth.clone();
            async move {
                let (parts, mut call) = request.into_parts();
                // The layers saw the head; the handler gets it as they left it.
                *call.request.headers_mut() = parts.headers;
                Ok::<_, Infallible>(oauth.serve(call).await.map(Full::new))
            }
        });
        let layers = ServiceBuilder::new()
            .layer(SetSensitiveRequestHeadersLayer::new([header::AUTHORIZATION, header::COOKIE]))
            .layer(SetResponseHeaderLayer::if_not_present(
                header::X_CONTENT_TYPE_OPTIONS,
                HeaderValue::from_static("nosniff"),
            ))
            .layer(SetResponseHeaderLayer::if_not_present(
                header::REFERRER_POLICY,
                HeaderValue::from_static("no-referrer"),
            ))
            .map_response(|response: Response<_>| response.map(boxed))
            .layer(CompressionLayer::new())
            .layer(CatchPanicLayer::custom(|_panic: Box<dyn std::any::Any + Send>| {
                tracing::error!("a panic while serving a control request");
                respond::plain(&Error::internal("panic"), "").map(Full::new)
            }))
            .service(roads);
        Self { layers: BoxCloneSyncService::new(layers), in_work: Arc::new(Semaphore::new(IN_WORK)) }
    }

    /// Answers a request, and names its endpoint.
    pub async fn serve(
        self,
        mut request: Request<Bytes>,
        config: Arc<Config>,
        id: String,
    ) -> (Response<Body>, &'static str) {
        let endpoint = oauth::endpoint(request.uri().path());
        let Ok(_permit) = self.in_work.try_acquire() else {
            let error = Error::unavailable(
                Side::Gateway,
                "The gateway is at its limit of requests in work.",
                Duration::from_secs(1),
            );
            return (respond::plain(&error, &id).map(Body::from), endpoint);
        };
        if request.method() == Method::HEAD && oauth::only_reads(request.uri().path()) {
            *request.method_mut() = Method::GET;
        }
        let mut head = Request::new(());
        *head.method_mut() = request.method().clone();
        *head.uri_mut() = request.uri().clone();
        *head.headers_mut() = request.headers().clone();
        let request = head.map(|()| oauth::Call { config, request, request_id: id.clone() });
        match tokio::time::timeout(DEADLINE, self.layers.oneshot(request)).await {
            Ok(Ok(response)) => (response, endpoint),
            Ok(Err(never)) => match never {},
            Err(_elapsed) => {
                let error = Error::new(Kind::GatewayTimeout, Side::Gateway, "The request took too long.");
                (respond::plain(&error, &id).map(Body::from), endpoint)
            }
        }
    }
}

fn boxed<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    Body::boxed(body.map_err(Into::into).boxed_unsync())
}
