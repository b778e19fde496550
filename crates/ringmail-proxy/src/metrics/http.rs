//! `request_total`, `response_total` and `response_latency_ms`: what the observers saw.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::LabelSet;
use super::table::{Table, encode_each};

/// The requests of the connections that share a label set.
#[derive(Debug, Default)]
pub struct RequestSeries {
    requests: AtomicU64,
    responses: Mutex<HashMap<Response, u64>>,
    latency: Mutex<HashMap<u16, Histogram>>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Response {
    /// The HTTP status; 0 when the request ended without one.
    pub status: u16,
    /// The gRPC status, where there was one.
    pub grpc: Option<u32>,
    /// Whether the stream was reset or the connection ended before its end.
    pub broken: bool,
}

impl Response {
    /// `success`, or `failure` for a 5xx, a reset, and the gRPC codes that are the server's fault.
    pub fn classification(&self) -> &'static str {
        let failed = match self.grpc {
            Some(code) => GRPC_FAILURES.contains(&code),
            None => self.status == 0 || self.status >= 500,
        };
        if failed || self.broken { "failure" } else { "success" }
    }
}

#[derive(Clone, Debug, Default)]
struct Histogram {
    buckets: [u64; BUCKETS.len()],
    sum: f64,
    count: u64,
}

impl RequestSeries {
    /// A request began.
    pub(crate) fn requested(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// The response's head came after `latency`.
    pub(crate) fn answered(&self, status: u16, latency: Duration) {
        let mut all = self.latency.lock();
        let status = if all.len() < MAX_STATUSES || all.contains_key(&status) { status } else { 0 };
        let histogram = all.entry(status).or_default();
        let ms = latency.as_secs_f64() * 1e3;
        let index = BUCKETS.iter().position(|bound| ms <= *bound).unwrap_or(BUCKETS.len() - 1);
        histogram.buckets[index] += 1;
        histogram.sum += ms;
        histogram.count += 1;
    }

    /// The response ended.
    pub(crate) fn ended(&self, mut response: Response) {
        // A server may invent codes without end; what gRPC does not define counts as one.
        response.grpc = response.grpc.map(|code| code.min(GRPC_CODES));
        let mut all = self.responses.lock();
        if all.len() >= MAX_RESPONSES && !all.contains_key(&response) {
            response = Response { status: 0, grpc: None, broken: response.broken };
        }
        *all.entry(response).or_default() += 1;
    }
}

/// All requests.
pub(super) struct Requests(pub(super) Table<RequestSeries>);

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Requests")
    }
}

impl Collector for Requests {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        self.0.encode_counter(encoder, "request", "HTTP requests", |series| {
            series.requests.load(Ordering::Relaxed)
        })?;
        let (mut responses, mut latencies) = (Vec::new(), Vec::new());
        for (set, series) in self.0.sorted() {
            let mut of_set: Vec<_> =
                series.responses.lock().iter().map(|(key, count)| (*key, *count)).collect();
            of_set.sort_unstable();
            for (response, count) in of_set {
                responses.push((response_labels(&set, &response), count));
            }
            let mut of_set: Vec<_> =
                series.latency.lock().iter().map(|(key, value)| (*key, value.clone())).collect();
            of_set.sort_unstable_by_key(|(status, _)| *status);
            for (status, histogram) in of_set {
                latencies.push((set.with([("status_code", status.to_string())]), histogram));
            }
        }
        encode_each(
            encoder,
            "response",
            "HTTP responses",
            MetricType::Counter,
            &responses,
            |mut metric, count| metric.encode_counter::<LabelSet, _, u64>(count, None),
        )?;
        let help = "Milliseconds from a request's head to its response's";
        encode_each(
            encoder,
            "response_latency_ms",
            help,
            MetricType::Histogram,
            &latencies,
            |mut metric, histogram| {
                let buckets: Vec<_> = BUCKETS.into_iter().zip(histogram.buckets).collect();
                metric.encode_histogram::<LabelSet>(histogram.sum, histogram.count, &buckets, None)
            },
        )
    }
}

fn response_labels(set: &LabelSet, response: &Response) -> LabelSet {
    let mut more = Vec::new();
    if response.status != 0 {
        more.push(("status_code", response.status.to_string()));
    }
    more.push(("classification", response.classification().to_owned()));
    if let Some(code) = response.grpc {
        more.push(("grpc_status", code.to_string()));
    }
    if response.broken {
        more.push(("error", "reset".to_owned()));
    }
    set.with(more)
}

/// Linkerd's bounds (wire.md 9.4), in milliseconds.
const BUCKETS: [f64; 26] = [
    1.0,
    2.0,
    3.0,
    4.0,
    5.0,
    10.0,
    20.0,
    30.0,
    40.0,
    50.0,
    100.0,
    200.0,
    300.0,
    400.0,
    500.0,
    1_000.0,
    2_000.0,
    3_000.0,
    4_000.0,
    5_000.0,
    10_000.0,
    20_000.0,
    30_000.0,
    40_000.0,
    50_000.0,
    f64::INFINITY,
];
const MAX_STATUSES: usize = 64;
const MAX_RESPONSES: usize = 128;
/// Codes from here on are unknown to gRPC.
const GRPC_CODES: u32 = 17;
/// Unknown, DeadlineExceeded, PermissionDenied stays the caller's; Internal, Unavailable, DataLoss, Unimplemented.
const GRPC_FAILURES: [u32; 6] = [2, 4, 12, 13, 14, 15];
