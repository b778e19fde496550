//! A bound on log lines that strangers can cause.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lets a number of lines through in each window and counts the rest.
#[derive(Debug)]
pub struct LogLimit {
    lines: u32,
    window: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    since: Instant,
    used: u32,
    suppressed: u64,
}

impl LogLimit {
    /// At most `lines` in each `window`.
    pub fn new(lines: u32, window: Duration) -> Self {
        Self { lines, window, state: Mutex::new(State { since: Instant::now(), used: 0, suppressed: 0 }) }
    }

    /// Whether a line may be written at `now`: `Some` with the number of lines that were left out since the last one.
    pub fn allow(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        if now.saturating_duration_since(state.since) >= self.window {
            state.since = now;
            state.used = 0;
        }
        if state.used < self.lines {
            state.used += 1;
            return Some(std::mem::take(&mut state.suppressed));
        }
        state.suppressed += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_limit_are_counted_and_told_with_the_next() {
        let limit = LogLimit::new(2, Duration::from_secs(1));
        let start = Instant::now();
        assert_eq!((limit.allow(start), limit.allow(start)), (Some(0), Some(0)));
        assert_eq!((limit.allow(start), limit.allow(start)), (None, None));
        let later = start + Duration::from_secs(2);
        assert_eq!((limit.allow(later), limit.allow(later)), (Some(2), Some(0)));
    }
}
