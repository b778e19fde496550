//! What an observer reports.

use std::borrow::Cow;
use std::fmt;

use super::Headers;

/// Something an observer saw. Text and headers are borrowed from the connection's bytes: a consumer copies what it keeps.
///
/// `stream` counts the requests of a connection from 0, in the order in which they began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The protocol is known. Comes first, and once, except that a connection upgraded to `h2c` is also reported as HTTP/2.
    Detected(Protocol),
    /// A request's head is complete.
    Request {
        /// Index of the request on this connection.
        stream: u64,
        /// Method, target and headers.
        head: RequestHead<'a>,
    },
    /// A response's head is complete. Informational ones (1xx) may come several times before the final one.
    Response {
        /// Index of the request that this answers.
        stream: u64,
        /// Status and headers.
        head: ResponseHead<'a>,
    },
    /// The exchange is over: the response ended, or never will.
    End {
        /// Index of the request.
        stream: u64,
        /// How it ended and what it carried.
        end: End<'a>,
    },
    /// The observer stopped reading; open requests were ended before this, as [`EndCause::Unobserved`]. The last event.
    GaveUp(Reason),
}

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge, or after an upgrade from HTTP/1.1.
    Http2,
    /// Anything else. No further event follows.
    NotHttp,
}

/// Version of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
    /// HTTP/2
    Http2,
}

impl Version {
    /// `HTTP/1.0`, `HTTP/1.1`, `HTTP/2.0`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A request's head. Bytes that are not UTF-8 appear as replacement characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead<'a> {
    /// As sent, for example `GET`. Empty only for an HTTP/2 request that left it out.
    pub method: Cow<'a, str>,
    /// `http` where an HTTP/1 request does not say.
    pub scheme: Cow<'a, str>,
    /// Of the target, else `Host`; without user information; empty when there is none.
    pub authority: Cow<'a, str>,
    /// Without the query; `*` for `OPTIONS *`, empty for `CONNECT`.
    pub path: Cow<'a, str>,
    /// Version of the request.
    pub version: Version,
    /// `:protocol` of an extended CONNECT (RFC 8441), for example `websocket`.
    pub protocol: Option<Cow<'a, str>>,
    /// Fields in the order sent, without HTTP/2's pseudo-fields.
    pub headers: Headers<'a>,
}

/// A response's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead<'a> {
    /// 100 to 999.
    pub status: u16,
    /// Version of the response.
    pub version: Version,
    /// Fields in the order sent, without HTTP/2's pseudo-fields.
    pub headers: Headers<'a>,
}

impl ResponseHead<'_> {
    /// Whether another response to the same request follows (1xx). True for 101 too, whose request ends with it unless it
    /// goes on as HTTP/2.
    pub fn informational(&self) -> bool {
        (100..200).contains(&self.status)
    }
}

/// How an exchange ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End<'a> {
    /// Why it is over.
    pub cause: EndCause,
    /// Bytes of the request's body seen so far, without chunk or frame overhead. More may follow when the response ended
    /// before the request.
    pub request_bytes: u64,
    /// Bytes of the response's body, without chunk or frame overhead.
    pub response_bytes: u64,
    /// `grpc-status`, from the trailers, else from the response's headers.
    pub grpc_status: Option<u32>,
    /// HTTP/2 error code of the reset, with [`EndCause::Reset`].
    pub reset: Option<u32>,
    /// The response's trailers.
    pub trailers: Headers<'a>,
}

/// Why an exchange is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndCause {
    /// The response ended as its framing says, or the connection left HTTP (CONNECT, upgrade).
    Complete,
    /// HTTP/2: one side reset the stream, or the server went away without having begun it (`REFUSED_STREAM`).
    Reset,
    /// The connection closed before the response was complete.
    Closed,
    /// The observer gave up while it was open.
    Unobserved,
}

/// Why an observer gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The connection left HTTP by CONNECT or by an upgrade to another protocol. Nothing is wrong.
    Tunnel,
    /// A head, header block or decoded header list above 64 KiB or 1024 fields, or an HPACK table above 64 KiB.
    HeadTooLarge,
    /// More requests are open at once than are tracked.
    TooManyOpen,
    /// Not what the protocol allows, or nothing that can be read safely; says which rule.
    Malformed(&'static str),
}

impl Reason {
    /// A word for metrics: few values, never the peer's bytes.
    pub fn label(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::HeadTooLarge => "head_too_large",
            Self::TooManyOpen => "too_many_open",
            Self::Malformed(_) => "malformed",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tunnel => f.write_str("the connection left HTTP"),
            Self::HeadTooLarge => f.write_str("headers above 64 KiB or 1024 fields"),
            Self::TooManyOpen => f.write_str("too many requests open at once"),
            Self::Malformed(what) => f.write_str(what),
        }
    }
}
