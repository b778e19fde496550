//! The output of containers: the last lines of each, and what comes.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// The output of one container, shared between its reader and those who follow. The oldest lines go when it is full.
#[derive(Clone, Debug)]
pub struct Log(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    lines: Mutex<Lines>,
    /// Number of lines ever written, and whether more can come.
    written: watch::Sender<(u64, bool)>,
}

#[derive(Debug, Default)]
struct Lines {
    kept: VecDeque<Arc<str>>,
    bytes: usize,
    /// Number of the first line kept.
    first: u64,
    /// What came after the last line end, by stream.
    partial: [Vec<u8>; 2],
}

/// Which of a program's two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl Default for Log {
    fn default() -> Self {
        Self(Arc::new(Inner { lines: Mutex::default(), written: watch::Sender::new((0, true)) }))
    }
}

impl Log {
    /// Adds what a program wrote.
    pub fn write(&self, stream: Stream, bytes: &[u8]) {
        let mut lines = self.0.lines.lock();
        let which = stream as usize;
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            lines.partial[which].extend_from_slice(&rest[..end]);
            lines.finish(which);
            rest = &rest[end + 1..];
        }
        lines.partial[which].extend_from_slice(rest);
        // A program that never ends a line must not take memory without bound.
        if lines.partial[which].len() > LONGEST_LINE {
            lines.finish(which);
        }
        let written = lines.first + lines.kept.len() as u64;
        drop(lines);
        self.0.written.send_if_modified(|(known, _)| std::mem::replace(known, written) != written);
    }

    /// No more comes: the last line may lack its end.
    pub fn close(&self) {
        let mut lines = self.0.lines.lock();
        for which in [0, 1] {
            if !lines.partial[which].is_empty() {
                lines.finish(which);
            }
        }
        let written = lines.first + lines.kept.len() as u64;
        drop(lines);
        self.0.written.send_replace((written, false));
    }

    /// The lines that are kept, the last `tail` of them.
    pub fn lines(&self, tail: Option<usize>) -> Vec<Arc<str>> {
        let lines = self.0.lines.lock();
        let skip = tail.map_or(0, |tail| lines.kept.len().saturating_sub(tail));
        lines.kept.iter().skip(skip).cloned().collect()
    }

    /// Reads from the last `tail` lines on.
    pub fn follow(&self, tail: Option<usize>) -> Follower {
        let lines = self.0.lines.lock();
        let skip = tail.map_or(0, |tail| lines.kept.len().saturating_sub(tail));
        let next = lines.first + skip as u64;
        Follower { log: self.clone(), next, written: self.0.written.subscribe() }
    }
}

impl Lines {
    fn finish(&mut self, which: usize) {
        let mut line = std::mem::take(&mut self.partial[which]);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        let line: Arc<str> = String::from_utf8_lossy(&line).into();
        self.bytes += line.len();
        self.kept.push_back(line);
        while self.kept.len() > MOST_LINES || self.bytes > MOST_BYTES {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.bytes -= oldest.len();
            self.first += 1;
        }
    }
}

/// Reads a log as it grows.
#[derive(Debug)]
pub struct Follower {
    log: Log,
    next: u64,
    written: watch::Receiver<(u64, bool)>,
}

impl Follower {
    /// The lines since the last call, waiting for at least one; `None` when no more can come. A follower that is slower than the
    /// program misses lines. Cancel safe.
    pub async fn next(&mut self) -> Option<Vec<Arc<str>>> {
        loop {
            let (_, open) = *self.written.borrow_and_update();
            let new: Vec<Arc<str>> = {
                let lines = self.log.0.lines.lock();
                let skip = self.next.saturating_sub(lines.first);
                self.next = lines.first + lines.kept.len() as u64;
                lines.kept.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX)).cloned().collect()
            };
            if !new.is_empty() {
                return Some(new);
            }
            if !open || self.written.changed().await.is_err() {
                return None;
            }
        }
    }
}

const MOST_LINES: usize = 10_000;
const MOST_BYTES: usize = 4 << 20;
const LONGEST_LINE: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn text(lines: &[Arc<str>]) -> Vec<&str> {
        lines.iter().map(AsRef::as_ref).collect()
    }

    #[tokio::test]
    async fn a_follower_sees_what_was_and_what_comes() {
        let log = Log::default();
        log.write(Stream::Out, b"one\ntwo\nthr");
        log.write(Stream::Err, b"err\n");
        log.write(Stream::Out, b"ee\r\n");
        assert_eq!(text(&log.lines(None)), ["one", "two", "err", "three"]);
        let mut follower = log.follow(Some(1));
        assert_eq!(text(&follower.next().await.unwrap()), ["three"]);
        log.write(Stream::Out, b"last");
        log.close();
        assert_eq!(text(&follower.next().await.unwrap()), ["last"]);
        assert!(follower.next().await.is_none());
    }

    #[test]
    fn the_oldest_lines_go_first_and_no_line_is_endless() {
        let log = Log::default();
        for n in 0..MOST_LINES + 5 {
            log.write(Stream::Out, format!("{n}\n").as_bytes());
        }
        let lines = log.lines(None);
        assert_eq!(lines.len(), MOST_LINES);
        assert_eq!(lines[0].as_ref(), "5");
        let log = Log::default();
        for _ in 0..2000 {
            log.write(Stream::Out, &[b'x'; 8192]);
        }
        let kept: usize = log.lines(None).iter().map(|l| l.len()).sum();
        assert!(kept <= MOST_BYTES, "{kept}");
    }
}
