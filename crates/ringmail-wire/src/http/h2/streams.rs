//! The requests of an HTTP/2 connection that have not ended.

use std::collections::HashMap;

use super::super::{Emit, End, EndCause, Event, Headers, Reason};

#[derive(Debug, Default)]
pub(super) struct Streams {
    open: HashMap<u32, Open>,
    /// The highest number that the client has used.
    highest: u32,
    requests: u64,
}

/// A request whose response has not ended.
#[derive(Debug, Default)]
pub(super) struct Open {
    pub(super) index: u64,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    /// The final response's head was seen.
    pub(super) answered: bool,
    pub(super) grpc_status: Option<u32>,
}

impl Streams {
    pub(super) fn upgraded(index: u64, request_bytes: u64) -> Self {
        let first = Open { index, request_bytes, ..Open::default() };
        Self { open: HashMap::from([(1, first)]), highest: 1, requests: index + 1 }
    }

    /// A client's HEADERS: the index of the new request, or `None` for trailers and for streams that are over.
    pub(super) fn open(&mut self, number: u32) -> Result<Option<u64>, Reason> {
        if number <= self.highest {
            return Ok(None);
        }
        if number.is_multiple_of(2) {
            return Err(Reason::Malformed("a request on a stream of the server's"));
        }
        if self.open.len() == MOST_OPEN {
            return Err(Reason::TooManyOpen);
        }
        self.highest = number;
        let index = self.requests;
        self.requests += 1;
        self.open.insert(number, Open { index, ..Open::default() });
        Ok(Some(index))
    }

    pub(super) fn get(&mut self, number: u32) -> Option<&mut Open> {
        self.open.get_mut(&number)
    }

    pub(super) fn complete(&mut self, number: u32, trailers: Headers<'_>, emit: Emit<'_>) {
        self.end(number, EndCause::Complete, None, trailers, emit);
    }

    pub(super) fn reset(&mut self, number: u32, code: u32, emit: Emit<'_>) {
        self.end(number, EndCause::Reset, Some(code), Headers::EMPTY, emit);
    }

    pub(super) fn refuse_above(&mut self, last: u32, emit: Emit<'_>) {
        for number in self.numbers(|number| number > last) {
            self.reset(number, REFUSED_STREAM, emit);
        }
    }

    pub(super) fn end_all(&mut self, cause: EndCause, emit: Emit<'_>) {
        for number in self.numbers(|_| true) {
            self.end(number, cause, None, Headers::EMPTY, emit);
        }
    }

    fn end(
        &mut self,
        number: u32,
        cause: EndCause,
        reset: Option<u32>,
        trailers: Headers<'_>,
        emit: Emit<'_>,
    ) {
        let Some(open) = self.open.remove(&number) else { return };
        let end = End {
            cause,
            request_bytes: open.request_bytes,
            response_bytes: open.response_bytes,
            grpc_status: trailers.grpc_status().or(open.grpc_status),
            reset,
            trailers,
        };
        emit(Event::End { stream: open.index, end });
    }

    /// In the order in which they were opened.
    fn numbers(&self, which: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut numbers: Vec<u32> = self.open.keys().copied().filter(|number| which(*number)).collect();
        numbers.sort_unstable();
        numbers
    }
}

/// Most requests tracked at once: ten times what servers usually allow.
const MOST_OPEN: usize = 1024;
/// RFC 9113 7.
const REFUSED_STREAM: u32 = 7;
