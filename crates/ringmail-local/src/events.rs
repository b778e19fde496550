//! What happened, for those who wait: the last events, and those to come.

use std::collections::VecDeque;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::protocol::{Event, Severity};

/// The events of a mesh.
#[derive(Debug)]
pub struct Events {
    began: Instant,
    kept: Mutex<(u64, VecDeque<Event>)>,
    count: watch::Sender<u64>,
}

impl Default for Events {
    fn default() -> Self {
        Self { began: Instant::now(), kept: Mutex::default(), count: watch::Sender::new(0) }
    }
}

impl Events {
    /// Adds one; the oldest goes when there are many.
    pub fn push(&self, severity: Severity, about: String, reason: &str, message: String) {
        let at_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        match severity {
            Severity::Normal => tracing::info!(%about, reason, "{message}"),
            Severity::Warning => tracing::warn!(%about, reason, "{message}"),
        }
        let mut kept = self.kept.lock();
        kept.1.push_back(Event { at_ms, severity, about, reason: reason.to_owned(), message });
        if kept.1.len() > MOST {
            kept.1.pop_front();
            kept.0 += 1;
        }
        let count = kept.0 + kept.1.len() as u64;
        drop(kept);
        self.count.send_replace(count);
    }

    /// The events from number `from` on, and the number of the next one.
    pub fn since(&self, from: u64) -> (Vec<Event>, u64) {
        let kept = self.kept.lock();
        let skip = usize::try_from(from.saturating_sub(kept.0)).unwrap_or(usize::MAX);
        (kept.1.iter().skip(skip).cloned().collect(), kept.0 + kept.1.len() as u64)
    }

    /// Changes with every event.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.count.subscribe()
    }
}

const MOST: usize = 2000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_events_go_and_numbers_stay() {
        let events = Events::default();
        for n in 0..MOST + 10 {
            events.push(Severity::Normal, String::new(), "x", n.to_string());
        }
        let (all, next) = events.since(0);
        assert_eq!((all.len(), next), (MOST, MOST as u64 + 10));
        assert_eq!(all[0].message, "10");
        assert_eq!(events.since(next - 1).0[0].message, (MOST + 9).to_string());
        assert!(events.since(next).0.is_empty());
    }
}
