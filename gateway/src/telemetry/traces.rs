//! Spans to an OpenTelemetry collector, over OTLP (HTTP, protobuf). A lost collector costs spans,
//! never requests.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::{propagation::TextMapPropagator as _, trace::TracerProvider as _};
use opentelemetry_http::{HeaderExtractor, HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracerProvider},
};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{Layer, registry::LookupSpan};

/// How spans are carried to the collector: the gateway's own client, plugged in by `app`.
#[async_trait]
pub trait Carrier: Send + Sync + 'static {
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, HttpError>;
}

/// The exporter's batch thread has no reactor: an async client would die there without a word. So the
/// work is spawned on a kept runtime and only its end is awaited there.
struct OnRuntime {
    carrier: Arc<dyn Carrier>,
    runtime: tokio::runtime::Handle,
}

impl fmt::Debug for OnRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnRuntime")
    }
}

#[async_trait]
impl HttpClient for OnRuntime {
    async fn send_bytes(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, HttpError> {
        let carrier = self.carrier.clone();
        self.runtime.spawn(async move { carrier.send(request).await }).await?
    }
}

/// The span of one request, below the app's own if it sent a `traceparent` (W3C Trace Context). Its
/// attributes are filled in as they are found out, and none of them names a patient.
pub fn request(headers: &http::HeaderMap, road: &'static str) -> tracing::Span {
    let span = tracing::info_span!(
        "request",
        otel.kind = "server",
        mantel.road = road,
        mantel.interaction = tracing::field::Empty,
        mantel.vendor = tracing::field::Empty,
        mantel.site = tracing::field::Empty,
        http.response.status_code = tracing::field::Empty,
    );
    let parent = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
    // Fails only where no exporter listens, and then nobody misses it.
    let _ = span.set_parent(parent);
    span
}

/// The running exporter.
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// `endpoint` is the collector's base (`https://collector.example.org:4318`); `sampled` the share of
    /// traces that are kept where the app's `traceparent` does not decide it.
    ///
    /// # Errors
    /// If the exporter cannot be built from the endpoint.
    pub fn start(
        endpoint: &str,
        sampled: f64,
        carrier: Arc<dyn Carrier>,
        runtime: tokio::runtime::Handle,
    ) -> anyhow::Result<Self> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(OnRuntime { carrier, runtime })
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(Duration::from_secs(10))
            .build()?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(sampled))))
            .with_resource(Resource::builder().with_service_name("mantel").build())
            .build();
        Ok(Self { provider })
    }

    /// The layer that turns `tracing` spans of this crate into OpenTelemetry ones.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        tracing_opentelemetry::layer().with_tracer(self.provider.tracer("mantel"))
    }

    /// Sends what is left. Blocks: call it where that is allowed.
    pub fn stop(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(Duration::from_secs(5)) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}
