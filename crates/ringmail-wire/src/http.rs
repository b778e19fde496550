//! HTTP/1 and HTTP/2, read in passing: bytes in, [`Event`]s out, the bytes themselves untouched.
//!
//! Start here: an [`Observer`] is fed what the client and the server of one connection send. It decides the protocol from
//! the client's first bytes, then reports each request, response and end. Bodies are skipped by length, never copied;
//! a head is copied only when it arrives in pieces. Whatever an observer cannot follow, it gives up on with one event, and
//! nobody else notices.

mod detect;
mod event;
mod h1;
mod h2;
mod headers;
mod target;

pub use event::{End, EndCause, Event, Protocol, Reason, RequestHead, ResponseHead, Version};
pub use headers::Headers;

use detect::Detected;

/// Where an observer's events go. It is called in the order in which things became known.
pub type Emit<'a> = &'a mut dyn FnMut(Event<'_>);

/// Reads one connection in passing.
///
/// Feed bytes as they are relayed, the request's before the response that answers it: an observer that is called when bytes
/// are *read* is always in time. Each [`Event::Request`] is followed by exactly one [`Event::End`] of the same stream, by
/// [`Observer::close`] at the latest.
#[derive(Debug)]
pub struct Observer {
    state: State,
}

impl Observer {
    /// An observer for a connection of which nothing has been seen yet.
    pub fn new() -> Self {
        Self { state: State::Undecided(detect::Detector::default()) }
    }

    /// Whether more bytes can lead to more events. Once `false` it stays so, and feeding may stop.
    pub fn observing(&self) -> bool {
        !matches!(self.state, State::Done)
    }

    /// Takes bytes that the client sent.
    pub fn client(&mut self, bytes: &[u8], emit: Emit<'_>) {
        if bytes.is_empty() {
            return;
        }
        let outcome = match &mut self.state {
            State::Undecided(detector) => {
                let decided = detector.client(bytes);
                self.decided(decided, bytes, emit);
                return;
            }
            State::Http1(connection) => connection.client(bytes, emit),
            State::Http2(connection) => connection.client(bytes, emit),
            State::Done => return,
        };
        self.settle(outcome, emit);
    }

    /// Takes bytes that the server sent.
    pub fn server(&mut self, bytes: &[u8], emit: Emit<'_>) {
        if bytes.is_empty() {
            return;
        }
        let outcome = match &mut self.state {
            State::Undecided(detector) => {
                if detector.server(bytes) == Detected::NotHttp {
                    self.state = State::Done;
                    emit(Event::Detected(Protocol::NotHttp));
                }
                return;
            }
            State::Http1(connection) => connection.server(bytes, emit),
            State::Http2(connection) => connection.server(bytes, emit),
            State::Done => return,
        };
        self.settle(outcome, emit);
    }

    /// The connection is over: ends what is still open. A response that is delimited by the close ends well.
    pub fn close(&mut self, emit: Emit<'_>) {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Http1(mut connection) => connection.close(emit),
            State::Http2(mut connection) => connection.end_all(EndCause::Closed, emit),
            State::Undecided(_) | State::Done => {}
        }
    }

    fn decided(&mut self, decided: Detected, latest: &[u8], emit: Emit<'_>) {
        let State::Undecided(detector) = &mut self.state else { return };
        let (protocol, next) = match decided {
            Detected::NotYet => return,
            Detected::NotHttp => (Protocol::NotHttp, State::Done),
            Detected::Http1 if detector.server_spoke() => (Protocol::NotHttp, State::Done),
            Detected::Http1 => (Protocol::Http1, State::Http1(Box::default())),
            Detected::Http2 => (Protocol::Http2, State::Http2(Box::new(h2::Connection::with_preface()))),
        };
        // What came in earlier pieces was kept; when all came at once, `latest` is all and nothing was copied.
        let (kept, from_server) = detector.take();
        self.state = next;
        emit(Event::Detected(protocol));
        self.client(&kept, emit);
        self.client(latest, emit);
        self.server(&from_server, emit);
    }

    fn settle(&mut self, outcome: Result<Next, Reason>, emit: Emit<'_>) {
        match outcome {
            Ok(Next::Same) => {}
            Ok(Next::Http2 { stream, request_bytes, client, server }) => {
                emit(Event::Detected(Protocol::Http2));
                self.state = State::Http2(Box::new(h2::Connection::upgraded(stream, request_bytes)));
                self.client(&client, emit);
                self.server(&server, emit);
            }
            Err(reason) => {
                match std::mem::replace(&mut self.state, State::Done) {
                    State::Http1(mut connection) => connection.end_all(EndCause::Unobserved, emit),
                    State::Http2(mut connection) => connection.end_all(EndCause::Unobserved, emit),
                    State::Undecided(_) | State::Done => {}
                }
                emit(Event::GaveUp(reason));
            }
        }
    }
}

impl Default for Observer {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug)]
enum State {
    Undecided(detect::Detector),
    Http1(Box<h1::Connection>),
    Http2(Box<h2::Connection>),
    Done,
}

/// What a connection becomes after some bytes.
#[derive(Debug)]
enum Next {
    Same,
    /// An HTTP/1 request asked for `h2c` and got it: its index, its body's length, and the bytes that already belong to
    /// HTTP/2.
    Http2 {
        stream: u64,
        request_bytes: u64,
        client: Vec<u8>,
        server: Vec<u8>,
    },
}

/// Longest head (request or status line and fields), header block, decoded header list, in bytes.
const HEAD_LIMIT: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// There is one for each connection, also for the many that are idle or speak something else.
    #[test]
    fn an_observer_is_small_until_http_is_seen_and_modest_then() {
        assert!(size_of::<Observer>() <= 32, "{}", size_of::<Observer>());
        assert!(size_of::<h1::Connection>() <= 320, "{}", size_of::<h1::Connection>());
        assert!(size_of::<h2::Connection>() <= 640, "{}", size_of::<h2::Connection>());
    }
}
