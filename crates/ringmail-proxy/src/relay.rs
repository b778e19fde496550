//! Moves the bytes of one connection, both ways in one task, and tells how it ended.
//!
//! Each direction ends on its own (half-close), a reset on one side becomes a reset on the other, and a TLS stream that
//! was cut becomes a reset too. While a receiver is slow, nothing more is read for it: at most [`CHUNK`] bytes of each
//! direction wait here. An idle connection has no buffer at all: reads go through one buffer of the thread.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use ringmail_vocab::{CloseReason, ClosedBy};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::flows::Counters;
use crate::observe::Observer;
use crate::sockets::close_with_reset;
use crate::tls::{Prefixed, TlsConnection};

/// One side of a connection: a byte stream with a TCP socket underneath.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send {
    /// The socket.
    fn tcp(&self) -> &TcpStream;
}

impl Wire for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl<W: Wire> Wire for Prefixed<W> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().tcp()
    }
}

impl<W: Wire> Wire for TlsConnection<W> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().tcp()
    }
}

/// How a connection ended.
#[derive(Debug)]
pub struct End {
    /// Which side ended it: the first to end its direction, or the one that failed.
    pub by: ClosedBy,
    /// Why.
    pub reason: CloseReason,
    /// What the failing side's socket or TLS said.
    pub error: Option<io::Error>,
}

/// Moves bytes between `client` and `server` until both directions have ended or one side fails. Whatever is not a
/// clean end is passed on: both sockets are then set to close with a reset.
///
/// May be dropped at any time; [`cut`] then ends the connection.
pub async fn relay<C: Wire, S: Wire>(
    client: &mut C,
    server: &mut S,
    counters: &Counters,
    observer: &mut Observer,
) -> End {
    let mut up = Way::default();
    let mut down = Way::default();
    let mut first = None;
    let mut broken = None;
    let end = poll_fn(|cx| {
        if !up.done() {
            match up.poll(cx, client, server, &counters.sent, |bytes| observer.client(bytes)) {
                Poll::Ready(Ok(())) => first = first.or(Some(ClosedBy::Client)),
                Poll::Ready(Err(Failure::Read(error))) => {
                    return Poll::Ready(failed(ClosedBy::Client, error));
                }
                Poll::Ready(Err(Failure::Write(error))) => {
                    broken = broken.take().or(Some((ClosedBy::Server, error)));
                }
                Poll::Pending => {}
            }
        }
        if !down.done() {
            match down.poll(cx, server, client, &counters.received, |bytes| observer.server(bytes)) {
                Poll::Ready(Ok(())) => first = first.or(Some(ClosedBy::Server)),
                Poll::Ready(Err(Failure::Read(error))) => {
                    return Poll::Ready(failed(ClosedBy::Server, error));
                }
                Poll::Ready(Err(Failure::Write(error))) => {
                    broken = broken.take().or(Some((ClosedBy::Client, error)));
                }
                Poll::Pending => {}
            }
        }
        if !(up.done() && down.done()) {
            // A side that takes no more may still have sent what its peer should see (a refusal before the reset):
            // the other direction goes on until it ends, which a dead socket does at once.
            return Poll::Pending;
        }
        Poll::Ready(match broken.take() {
            Some((by, error)) => failed(by, error),
            None => End { by: first.unwrap_or(ClosedBy::Client), reason: CloseReason::Finished, error: None },
        })
    })
    .await;
    observer.finish();
    if end.reason != CloseReason::Finished {
        cut(client, server);
    }
    end
}

/// Makes both sockets close with a reset.
pub fn cut<C: Wire, S: Wire>(client: &C, server: &S) {
    close_with_reset(client.tcp());
    close_with_reset(server.tcp());
}

fn failed(by: ClosedBy, error: io::Error) -> End {
    let reason = match error.kind() {
        io::ErrorKind::UnexpectedEof => CloseReason::Truncated,
        io::ErrorKind::InvalidData => CloseReason::Error,
        _ => CloseReason::Reset,
    };
    End { by, reason, error: Some(error) }
}

/// One direction.
#[derive(Default)]
struct Way {
    /// What the receiver has not taken yet, from `taken` on.
    waiting: Vec<u8>,
    taken: usize,
    state: State,
    unflushed: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Moving,
    /// The sender has ended; the end is on its way to the receiver.
    Ending,
    Done,
}

enum Failure {
    Read(io::Error),
    Write(io::Error),
}

impl Way {
    fn done(&self) -> bool {
        self.state == State::Done
    }

    /// Moves what can be moved now. Ready when the sender's end has reached the receiver, or at a failure; a failed
    /// write ends this way, a failed read ends the connection.
    fn poll<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        count: &AtomicU64,
        mut observe: impl FnMut(&[u8]),
    ) -> Poll<Result<(), Failure>> {
        let result = SCRATCH.with(|scratch| {
            let scratch = &mut *scratch.borrow_mut();
            self.poll_with(cx, from, to, count, &mut observe, scratch)
        });
        if let Poll::Ready(outcome) = &result {
            if !matches!(outcome, Err(Failure::Read(_))) {
                self.state = State::Done;
            }
            self.waiting = Vec::new();
        }
        result
    }

    fn poll_with<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        count: &AtomicU64,
        observe: &mut impl FnMut(&[u8]),
        scratch: &mut [u8],
    ) -> Poll<Result<(), Failure>> {
        loop {
            while self.taken < self.waiting.len() {
                let taken = ready!(write(cx, to, &self.waiting[self.taken..]))?;
                self.taken += taken;
                self.unflushed = true;
                count.fetch_add(taken as u64, Ordering::Relaxed);
            }
            self.waiting.clear();
            self.taken = 0;
            if self.state == State::Ending {
                return match ready!(Pin::new(&mut *to).poll_shutdown(cx)) {
                    // The receiver is gone already: then it needs no end.
                    Err(error) if error.kind() != io::ErrorKind::NotConnected => {
                        Poll::Ready(Err(Failure::Write(error)))
                    }
                    _ => Poll::Ready(Ok(())),
                };
            }
            let mut buf = ReadBuf::new(scratch);
            match Pin::new(&mut *from).poll_read(cx, &mut buf) {
                Poll::Pending => {
                    // Nothing to hold: an idle connection gives its buffer back.
                    self.waiting = Vec::new();
                    if self.unflushed {
                        ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Failure::Write)?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failure::Read(error))),
                Poll::Ready(Ok(())) => {}
            }
            let mut bytes = buf.filled();
            if bytes.is_empty() {
                self.state = State::Ending;
                continue;
            }
            observe(bytes);
            while !bytes.is_empty() {
                match write(cx, to, bytes) {
                    Poll::Ready(Ok(taken)) => {
                        bytes = &bytes[taken..];
                        self.unflushed = true;
                        count.fetch_add(taken as u64, Ordering::Relaxed);
                    }
                    Poll::Ready(Err(failure)) => return Poll::Ready(Err(failure)),
                    Poll::Pending => {
                        self.waiting.extend_from_slice(bytes);
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}

fn write<W: AsyncWrite + Unpin>(
    cx: &mut Context<'_>,
    to: &mut W,
    bytes: &[u8],
) -> Poll<Result<usize, Failure>> {
    Poll::Ready(match ready!(Pin::new(to).poll_write(cx, bytes)) {
        Ok(0) => Err(Failure::Write(io::ErrorKind::WriteZero.into())),
        Ok(taken) => Ok(taken),
        Err(error) => Err(Failure::Write(error)),
    })
}

thread_local! {
    /// A read happens inside one poll, so one buffer serves all connections of a thread.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into_boxed_slice());
}

/// Bytes moved at once, and the most that wait in one direction: two TLS records (RFC 8446 5.1).
pub const CHUNK: usize = 32 * 1024;
