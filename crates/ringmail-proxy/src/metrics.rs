//! What a scrape of `/metrics` shows, under the names that Linkerd's dashboards know (wire.md 9.3, 9.4).
//!
//! Start here: [`Metrics`] is one proxy's registry. A connection asks once for its [`TransportSeries`] and its
//! observer once for its [`RequestSeries`]; after that they only add to numbers. The number of label sets is bounded:
//! beyond the bound a connection counts in a series without its address and names, and the overflow is counted.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use ringmail_vocab::{Direction, Security};

mod http;
mod labels;
mod table;
mod transport;

pub use http::{RequestSeries, Response};
pub use labels::Labels;
pub use transport::TransportSeries;

use http::Requests;
use labels::LabelSet;
use table::Table;
use transport::Transports;

/// The metrics of one proxy. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    transports: Arc<Transports>,
    requests: Arc<Requests>,
    authz: Arc<AuthzTables>,
    identity: IdentityMetrics,
    bounds: Bounds,
}

/// One of the two sockets of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Towards the client.
    Source,
    /// Towards the server.
    Destination,
}

/// What policy said of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allow,
    /// It may not.
    Deny,
    /// It was allowed, and a change of policy ended it.
    Terminate,
}

/// The life of this proxy's certificate.
#[derive(Clone)]
pub struct IdentityMetrics {
    /// When the present certificate ends, in seconds since the Unix epoch.
    pub expiration: Gauge<f64, AtomicU64>,
    /// When the present certificate was taken, in seconds since the Unix epoch.
    pub refreshed: Gauge<f64, AtomicU64>,
    refreshes: Family<OneLabel, Counter>,
}

/// What reached a bound.
#[derive(Clone, Default)]
pub struct Bounds {
    /// Flows that were not listed while open.
    pub flows_not_listed: Counter,
    /// Changes of flows that slow watchers missed.
    pub flow_changes_dropped: Counter,
    /// Tap events that slow listeners missed.
    pub tap_events_dropped: Counter,
    /// Connections to 4190 and 4191 that were turned away.
    pub control_connections_refused: Counter,
    /// Requests that were not observed since too many were open on one connection.
    pub requests_not_observed: Counter,
    /// Label sets that did not fit.
    pub label_sets_overflowed: Counter,
}

impl Metrics {
    /// An empty registry that knows when the process started.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let bounds = Bounds::default();
        bounds.register(&mut registry);
        let identity = IdentityMetrics::register(&mut registry);
        let transports =
            Arc::new(Transports(Table::new(MAX_TRANSPORTS, bounds.label_sets_overflowed.clone())));
        let requests = Arc::new(Requests(Table::new(MAX_REQUESTS, bounds.label_sets_overflowed.clone())));
        let authz = Arc::new(AuthzTables::new(&bounds));
        registry.register_collector(Box::new(Arc::clone(&transports)));
        registry.register_collector(Box::new(Arc::clone(&requests)));
        registry.register_collector(Box::new(Arc::clone(&authz)));
        register_build(&mut registry);
        Self(Arc::new(Inner { registry, transports, requests, authz, identity, bounds }))
    }

    /// The series of one socket of a connection. `original_dst` labels the client's side, `dst` the server's.
    pub fn transport(
        &self,
        direction: Direction,
        side: Side,
        original_dst: SocketAddr,
        dst: SocketAddr,
        security: &Security,
        labels: &Labels,
    ) -> Arc<TransportSeries> {
        let set = LabelSet::transport(direction, side, original_dst, dst, security, labels);
        self.0.transports.0.get(set, || LabelSet::transport_overflow(direction, side, security))
    }

    /// The series of the requests of one connection with one authority.
    pub fn requests(
        &self,
        direction: Direction,
        dst: SocketAddr,
        security: &Security,
        labels: &Labels,
        authority: &str,
    ) -> Arc<RequestSeries> {
        let set = LabelSet::request(direction, dst, security, labels, authority);
        self.0.requests.0.get(set, || LabelSet::request_overflow(direction, security))
    }

    /// Counts what policy said of an inbound connection (`inbound_tcp_authz_{allow,deny,terminate}_total`).
    pub fn inbound_authz(&self, verdict: Verdict, target: SocketAddr, security: &Security, labels: &Labels) {
        let table = self.0.authz.table(verdict);
        let set = LabelSet::authz(target, security, labels);
        table.get(set, || LabelSet::authz_overflow(security)).inc();
    }

    /// The life of this proxy's certificate.
    pub fn identity(&self) -> &IdentityMetrics {
        &self.0.identity
    }

    /// What reached a bound.
    pub fn bounds(&self) -> &Bounds {
        &self.0.bounds
    }

    /// Drops the label sets that nothing has used for [`RETAIN_IDLE`].
    pub fn forget_idle(&self) {
        self.0.transports.0.forget_idle(RETAIN_IDLE);
        self.0.requests.0.forget_idle(RETAIN_IDLE);
        self.0.authz.forget_idle(RETAIN_IDLE);
    }

    /// Everything in OpenMetrics text, ending in `# EOF`.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(16 * 1024);
        prometheus_client::encoding::text::encode(&mut text, &self.0.registry)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl IdentityMetrics {
    fn register(registry: &mut Registry) -> Self {
        let this =
            Self { expiration: Gauge::default(), refreshed: Gauge::default(), refreshes: Family::default() };
        registry.register(
            "control_identity_cert_expiration_timestamp_seconds",
            "When the present certificate ends, in seconds since the Unix epoch; 0 without one",
            this.expiration.clone(),
        );
        registry.register(
            "control_identity_cert_refresh_timestamp_seconds",
            "When the present certificate was taken, in seconds since the Unix epoch; 0 without one",
            this.refreshed.clone(),
        );
        registry.register(
            "control_identity_cert_refreshes",
            "Attempts to get a certificate, those among them that never reached the identity service",
            this.refreshes.clone(),
        );
        for result in ["ok", "error"] {
            let _ = this.refreshes.get_or_create(&OneLabel("result", result));
        }
        this
    }

    /// A certificate was taken.
    pub fn taken(&self, not_after: SystemTime, now: SystemTime) {
        self.expiration.set(seconds(not_after));
        self.refreshed.set(seconds(now));
        self.refreshes.get_or_create(&OneLabel("result", "ok")).inc();
    }

    /// An attempt failed, whatever the reason.
    pub fn failed(&self) {
        self.refreshes.get_or_create(&OneLabel("result", "error")).inc();
    }
}

impl Bounds {
    fn register(&self, registry: &mut Registry) {
        for (name, help, counter) in [
            (
                "ringmail_flows_not_listed",
                "Connections that were not listed while open: too many",
                &self.flows_not_listed,
            ),
            (
                "ringmail_flow_changes_dropped",
                "Changes of flows that slow watchers missed",
                &self.flow_changes_dropped,
            ),
            (
                "ringmail_tap_events_dropped",
                "Tap events that slow listeners missed",
                &self.tap_events_dropped,
            ),
            (
                "ringmail_control_connections_refused",
                "Connections to the control and admin ports that were turned away: too many",
                &self.control_connections_refused,
            ),
            (
                "ringmail_requests_not_observed",
                "Requests that were not observed: too many open on one connection",
                &self.requests_not_observed,
            ),
            (
                "ringmail_label_sets_overflowed",
                "Connections and requests counted without their address and names: too many label sets",
                &self.label_sets_overflowed,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
    }
}

/// A label set of one label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct OneLabel(&'static str, &'static str);

impl EncodeLabelSet for OneLabel {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        prometheus_client::encoding::EncodeLabel::encode(&(self.0, self.1), encoder.encode_label())
    }
}

struct AuthzTables {
    allow: Table<Counter>,
    deny: Table<Counter>,
    terminate: Table<Counter>,
}

impl AuthzTables {
    fn new(bounds: &Bounds) -> Self {
        let table = || Table::new(MAX_AUTHZ, bounds.label_sets_overflowed.clone());
        Self { allow: table(), deny: table(), terminate: table() }
    }

    fn table(&self, verdict: Verdict) -> &Table<Counter> {
        match verdict {
            Verdict::Allow => &self.allow,
            Verdict::Deny => &self.deny,
            Verdict::Terminate => &self.terminate,
        }
    }

    fn forget_idle(&self, retain: Duration) {
        for table in [&self.allow, &self.deny, &self.terminate] {
            table.forget_idle(retain);
        }
    }
}

impl fmt::Debug for AuthzTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthzTables")
    }
}

impl prometheus_client::collector::Collector for AuthzTables {
    fn encode(
        &self,
        mut encoder: prometheus_client::encoding::DescriptorEncoder<'_>,
    ) -> Result<(), fmt::Error> {
        for (name, help, table) in [
            ("inbound_tcp_authz_allow", "Inbound connections that policy allowed", &self.allow),
            ("inbound_tcp_authz_deny", "Inbound connections that policy refused", &self.deny),
            (
                "inbound_tcp_authz_terminate",
                "Inbound connections that a change of policy ended",
                &self.terminate,
            ),
        ] {
            table.encode_counter(&mut encoder, name, help, Counter::get)?;
        }
        Ok(())
    }
}

fn register_build(registry: &mut Registry) {
    let build: Family<Vec<(&'static str, &'static str)>, Gauge> = Family::default();
    build
        .get_or_create(&vec![
            ("version", env!("CARGO_PKG_VERSION")),
            ("vendor", "ringmail"),
            ("profile", PROFILE),
        ])
        .set(1);
    registry.register("proxy_build_info", "The build of this proxy", build);
    let tls: Family<Vec<(&'static str, String)>, Gauge> = Family::default();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let suites = ["TLS13_AES_128_GCM_SHA256", "TLS13_AES_256_GCM_SHA384", "TLS13_CHACHA20_POLY1305_SHA256"];
    let groups = ["X25519MLKEM768", "X25519", "secp256r1"];
    tls.get_or_create(&vec![
        ("tls_suites", suites.join(",")),
        ("tls_kx_groups", groups.join(",")),
        ("tls_key_provider", "aws-lc-rs".to_owned()),
        ("tls_fips", provider.fips().to_string()),
    ])
    .set(1);
    registry.register("rustls_info", "How this proxy speaks TLS", tls);
    let started: Gauge<f64, AtomicU64> = Gauge::default();
    started.set(seconds(SystemTime::now()));
    registry.register(
        "process_start_time_seconds",
        "When this proxy started, in seconds since the Unix epoch",
        started,
    );
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Series that nothing has used for this long are dropped.
pub const RETAIN_IDLE: Duration = Duration::from_mins(10);

const PROFILE: &str = if cfg!(debug_assertions) { "debug" } else { "release" };
const MAX_TRANSPORTS: usize = 4_096;
const MAX_REQUESTS: usize = 2_048;
const MAX_AUTHZ: usize = 1_024;
