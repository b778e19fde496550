//! What `/metrics` tells, in the OpenMetrics text format.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The counters and gauges of one process. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Mutex<Registry>,
    issuer_cert_ttl_seconds: Gauge,
    issuer_reloads: Family<Outcome, Counter>,
    certificates_issued: Counter,
    certificates_refused: Family<Code, Counter>,
    streams_open: Family<Rpc, Gauge>,
    streams_sent: Family<Rpc, Counter>,
    refusals: Family<RpcCode, Counter>,
    registry_synced: Gauge,
    registry_pods: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rpc {
    rpc: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcCode {
    rpc: &'static str,
    grpc_status: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        macro_rules! register {
            ($name:literal, $help:literal) => {{
                let metric = Default::default();
                registry.register($name, $help, Clone::clone(&metric));
                metric
            }};
        }
        let inner = Inner {
            issuer_cert_ttl_seconds: register!(
                "issuer_cert_ttl_seconds",
                "Time until the issuer can sign no longer"
            ),
            issuer_reloads: register!(
                "issuer_reloads",
                "Times that the issuer or the anchors were read anew"
            ),
            certificates_issued: register!("certificates_issued", "Certificates issued"),
            certificates_refused: register!("certificates_refused", "Certificates refused, by error code"),
            streams_open: register!("grpc_streams_open", "Streams open at this moment"),
            streams_sent: register!("grpc_stream_messages_sent", "Messages sent on streams"),
            refusals: register!("grpc_refusals", "Questions that were not answered"),
            registry_synced: register!("registry_synced", "Whether the registry has read its source once"),
            registry_pods: register!("registry_pods", "Pods in the registry"),
            registry: Mutex::new(registry),
        };
        Self(Arc::new(inner))
    }

    /// All metrics as text. `ttl`: seconds until the issuer can sign no longer, where there is an issuer.
    pub fn encode(&self, synced: bool, pods: usize, ttl: Option<i64>) -> String {
        self.0.registry_synced.set(i64::from(synced));
        self.0.registry_pods.set(i64::try_from(pods).unwrap_or(i64::MAX));
        self.0.issuer_cert_ttl_seconds.set(ttl.unwrap_or(0));
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.0.registry.lock());
        text
    }

    /// A certificate was issued.
    pub fn issued(&self) {
        self.0.certificates_issued.inc();
    }

    /// A certificate was refused for the reason with this code.
    pub fn refused(&self, code: &'static str) {
        self.0.certificates_refused.get_or_create(&Code { code }).inc();
    }

    /// The issuer or the anchors were read anew, well or not.
    pub fn issuer_reloaded(&self, well: bool) {
        let result = if well { "ok" } else { "error" };
        self.0.issuer_reloads.get_or_create(&Outcome { result }).inc();
    }

    /// A question was not answered.
    pub fn not_answered(&self, rpc: &'static str, status: &tonic::Status) {
        let labels =
            RpcCode { rpc, grpc_status: u32::try_from(i32::from(status.code())).unwrap_or_default() };
        self.0.refusals.get_or_create(&labels).inc();
    }

    /// A stream opens; it counts as open until the guard is dropped.
    pub fn stream(&self, rpc: &'static str) -> OpenStream {
        self.0.streams_open.get_or_create(&Rpc { rpc }).inc();
        OpenStream { metrics: self.clone(), rpc }
    }
}

/// A stream that is open.
#[derive(Debug)]
pub struct OpenStream {
    metrics: Metrics,
    rpc: &'static str,
}

impl OpenStream {
    /// A message was sent on it.
    pub fn sent(&self) {
        self.metrics.0.streams_sent.get_or_create(&Rpc { rpc: self.rpc }).inc();
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.metrics.0.streams_open.get_or_create(&Rpc { rpc: self.rpc }).dec();
    }
}
