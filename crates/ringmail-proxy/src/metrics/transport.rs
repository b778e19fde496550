//! `tcp_*`: what is known of a connection without looking inside.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use ringmail_vocab::CloseReason;

use super::table::{Table, encode_each};

/// One socket of the connections that share a label set.
#[derive(Debug, Default)]
pub struct TransportSeries {
    opened: AtomicU64,
    open: AtomicI64,
    read: AtomicU64,
    written: AtomicU64,
    closed: [AtomicU64; CLOSE_REASONS.len()],
}

impl TransportSeries {
    /// A connection opened.
    pub(crate) fn opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// The connection counts in another series from now on, since more is known of it.
    pub(crate) fn moved_away(&self) {
        self.opened.fetch_sub(1, Ordering::Relaxed);
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Bytes were read from and written to this socket.
    pub(crate) fn moved(&self, read: u64, written: u64) {
        self.read.fetch_add(read, Ordering::Relaxed);
        self.written.fetch_add(written, Ordering::Relaxed);
    }

    /// The connection closed.
    pub(crate) fn closed(&self, reason: CloseReason) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(index) = CLOSE_REASONS.iter().position(|known| *known == reason) {
            self.closed[index].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// All transports.
pub(super) struct Transports(pub(super) Table<TransportSeries>);

impl fmt::Debug for Transports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transports")
    }
}

impl Collector for Transports {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let table = &self.0;
        table
            .encode_counter(&mut encoder, "tcp_open", "Connections opened", |series| load(&series.opened))?;
        let all = table.sorted();
        encode_each(
            &mut encoder,
            "tcp_open_connections",
            "Connections open now",
            MetricType::Gauge,
            &all,
            |mut metric, series| metric.encode_gauge(&series.open.load(Ordering::Relaxed)),
        )?;
        table.encode_counter(&mut encoder, "tcp_read_bytes", "Bytes read from peers", |series| {
            load(&series.read)
        })?;
        table.encode_counter(&mut encoder, "tcp_write_bytes", "Bytes written to peers", |series| {
            load(&series.written)
        })?;
        let mut closed = Vec::new();
        for (set, series) in &all {
            for (index, reason) in CLOSE_REASONS.iter().enumerate() {
                let count = load(&series.closed[index]);
                if count > 0 {
                    let errno = (*reason == CloseReason::Reset).then(|| ("errno", "ECONNRESET".to_owned()));
                    let more = errno.into_iter().chain([("reason", reason.label().to_owned())]);
                    closed.push((set.with(more), count));
                }
            }
        }
        encode_each(
            &mut encoder,
            "tcp_close",
            "Connections closed",
            MetricType::Counter,
            &closed,
            |mut metric, count| metric.encode_counter::<super::LabelSet, _, u64>(count, None),
        )
    }
}

const CLOSE_REASONS: [CloseReason; 8] = [
    CloseReason::Finished,
    CloseReason::Reset,
    CloseReason::Truncated,
    CloseReason::Refused,
    CloseReason::Drained,
    CloseReason::PolicyChanged,
    CloseReason::Idle,
    CloseReason::Error,
];
