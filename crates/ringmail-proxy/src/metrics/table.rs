//! A bounded map from label sets to what is counted under them.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;

use super::labels::LabelSet;

/// Label sets and their values. A value is live while somebody else holds its `Arc`.
pub(super) struct Table<V> {
    entries: Mutex<HashMap<LabelSet, Entry<V>>>,
    budget: usize,
    overflowed: Counter,
}

struct Entry<V> {
    value: Arc<V>,
    used: Instant,
}

impl<V: Default> Table<V> {
    /// Holds `budget` label sets, and what overflows beyond them.
    pub(super) fn new(budget: usize, overflowed: Counter) -> Self {
        Self { entries: Mutex::default(), budget, overflowed }
    }

    /// The value under `set`, or under `overflow` when the budget is spent. The overflow's sets must be few.
    pub(super) fn get(&self, set: LabelSet, overflow: impl FnOnce() -> LabelSet) -> Arc<V> {
        let mut entries = self.entries.lock();
        let set = if entries.len() < self.budget || entries.contains_key(&set) {
            set
        } else {
            self.overflowed.inc();
            overflow()
        };
        let entry =
            entries.entry(set).or_insert_with(|| Entry { value: Arc::default(), used: Instant::now() });
        entry.used = Instant::now();
        Arc::clone(&entry.value)
    }

    /// Drops what nobody holds and nobody asked for during `retain`.
    pub(super) fn forget_idle(&self, retain: Duration) {
        let now = Instant::now();
        self.entries.lock().retain(|_, entry| {
            if Arc::strong_count(&entry.value) > 1 {
                entry.used = now;
            }
            now.duration_since(entry.used) < retain
        });
    }

    /// Each label set with its value, in a stable order.
    pub(super) fn sorted(&self) -> Vec<(LabelSet, Arc<V>)> {
        let mut all: Vec<_> =
            self.entries.lock().iter().map(|(set, entry)| (set.clone(), Arc::clone(&entry.value))).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// Writes one counter of each value. The name is without `_total`.
    pub(super) fn encode_counter(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        read: impl Fn(&V) -> u64,
    ) -> fmt::Result {
        encode_each(encoder, name, help, MetricType::Counter, &self.sorted(), |mut metric, value| {
            metric.encode_counter::<LabelSet, _, u64>(&read(value), None)
        })
    }
}

/// Writes one metric for each label set.
pub(super) fn encode_each<V, S: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    kind: MetricType,
    all: &[(S, V)],
    write: impl Fn(MetricEncoder<'_>, &V) -> fmt::Result,
) -> fmt::Result {
    let help = format!("{help}.");
    let mut metric = encoder.encode_descriptor(name, &help, None, kind)?;
    for (set, value) in all {
        write(metric.encode_family(set)?, value)?;
    }
    Ok(())
}
