//! The probe exemption: on a port that policy closes to a client, the requests of its probes are let in by method and
//! exact path.
//!
//! Here HTTP is terminated, for bytes that are passed on unread could hold another request behind a permitted one.
//! Each request is parsed, checked, written anew and sent on a connection of its own; whatever is unusual is refused.
//! Probes by `httpGet` come as HTTP/1, those by `grpc` as HTTP/2 ([`grpc`]).

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{Either, Empty, Full};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use ringmail_vocab::{CloseReason, ClosedBy, Security};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::client_tls;
use crate::drain::Drain;
use crate::flows::Counters;
use crate::observe::Observer;
use crate::policy::{Client, PortPolicy};
use crate::relay::Wire;
use crate::sockets::Dialer;
use crate::tls::Prefixed;

mod grpc;

/// What decides about requests, and where they go.
pub(super) struct Gate {
    pub(super) policy: PortPolicy,
    pub(super) security: Security,
    pub(super) src: SocketAddr,
    pub(super) dst: SocketAddr,
    pub(super) dialer: Dialer,
    pub(super) connect_timeout: Duration,
    pub(super) request_timeout: Duration,
}

/// What came of a connection.
pub(super) struct Passed {
    pub(super) any_permitted: bool,
    /// The latest request that was refused, and why.
    pub(super) refused: Option<String>,
    pub(super) by: ClosedBy,
    pub(super) reason: CloseReason,
}

/// Serves one connection until its client ends it.
pub(super) async fn serve<C: Wire + 'static>(
    client: C,
    gate: Gate,
    observer: Observer,
    counters: Arc<Counters>,
    drain: &Drain,
) -> Passed {
    let serving = Arc::new(Serving { gate, permitted: AtomicBool::new(false), refused: Mutex::new(None) });
    let observed = Observed { io: client, observer, counters };
    let (by, reason) = tokio::select! {
        biased;
        ended = serving.connection(observed) => ended,
        () = drain.forced() => (ClosedBy::Proxy, CloseReason::Drained),
    };
    let refused = serving.refused.lock().take();
    Passed { any_permitted: serving.permitted.load(Ordering::Relaxed), refused, by, reason }
}

/// One connection that is being served.
struct Serving {
    gate: Gate,
    permitted: AtomicBool,
    refused: Mutex<Option<String>>,
}

impl Serving {
    async fn connection<C: Wire + 'static>(
        self: &Arc<Self>,
        mut client: Observed<C>,
    ) -> (ClosedBy, CloseReason) {
        let patience = self.gate.request_timeout;
        let mut begin = Vec::new();
        let is_http2 = match tokio::time::timeout(patience, grpc::begins(&mut client, &mut begin)).await {
            Ok(Ok(is_http2)) => is_http2,
            Ok(Err(_)) => return (ClosedBy::Client, CloseReason::Reset),
            Err(_) => return (ClosedBy::Proxy, CloseReason::Error),
        };
        let io = TokioIo::new(Prefixed::new(begin, client));
        let serving = Arc::clone(self);
        let service = service_fn(move |request| {
            let serving = Arc::clone(&serving);
            async move { Ok::<_, Infallible>(serving.answer(request).await) }
        });
        let served = if is_http2 {
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(grpc::MAX_STREAMS)
                .max_header_list_size(MAX_HEAD as u32)
                .serve_connection(io, service);
            match tokio::time::timeout(grpc::LIFE, connection).await {
                Ok(served) => served,
                Err(_) => return (ClosedBy::Proxy, CloseReason::Idle),
            }
        } else {
            http1::Builder::new()
                .half_close(true)
                .timer(TokioTimer::new())
                .header_read_timeout(patience)
                .max_buf_size(MAX_HEAD)
                .serve_connection(io, service)
                .await
        };
        match served {
            Ok(()) => (ClosedBy::Client, CloseReason::Finished),
            Err(error) if error.is_parse() || error.is_timeout() => (ClosedBy::Proxy, CloseReason::Error),
            Err(_) => (ClosedBy::Client, CloseReason::Reset),
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let is_http2 = request.version() == Version::HTTP_2;
        match self.gate.check(&request) {
            Ok(path) => {
                self.permitted.store(true, Ordering::Relaxed);
                if is_http2 {
                    grpc::forward(&self.gate, request).await
                } else {
                    self.gate.forward(&request, &path).await
                }
            }
            Err(why) => {
                let what = format!("{} {}: {why}", request.method(), request.uri().path());
                *self.refused.lock() = Some(what);
                let why = "this port takes its probes' requests only";
                if is_http2 {
                    grpc::refusal(grpc::PERMISSION_DENIED, why)
                } else {
                    refusal(StatusCode::FORBIDDEN, why)
                }
            }
        }
    }
}

type Answer = Response<Either<Incoming, Full<Bytes>>>;

impl Gate {
    /// The path to ask for, if the request is one of those let in; else the rule that it breaks.
    fn check(&self, request: &Request<Incoming>) -> Result<String, &'static str> {
        let (headers, uri) = (request.headers(), request.uri());
        let is_grpc = match (request.version(), request.method()) {
            (Version::HTTP_10 | Version::HTTP_11, &Method::GET) => false,
            (Version::HTTP_2, &Method::POST) => true,
            _ => return Err("neither GET over HTTP/1 nor a gRPC call"),
        };
        if !is_grpc && (uri.scheme().is_some() || uri.authority().is_some()) {
            return Err("a target with a host");
        }
        let client = Client { ip: self.src.ip(), tls: client_tls(&self.security) };
        // Asked anew for each request: a change of policy holds at once.
        if !self.policy.now().permits_request(client, request.method(), uri.path()) {
            return Err("not exempt");
        }
        // An application that does not read a body takes it for the next request; in HTTP/2 it cannot.
        let has_body =
            !request.body().is_end_stream() || headers.contains_key(TRANSFER_ENCODING) || has_length(headers);
        if !is_grpc && has_body {
            return Err("a body");
        }
        if headers.contains_key(UPGRADE) || headers.contains_key(EXPECT) {
            return Err("more than a request");
        }
        if headers.get_all(HOST).iter().count() > 1 {
            return Err("two hosts");
        }
        Ok(uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned())
    }

    async fn forward(&self, request: &Request<Incoming>, path: &str) -> Answer {
        match tokio::time::timeout(self.request_timeout, self.ask(request, path)).await {
            Ok(Ok(answer)) => answer.map(Either::Left),
            Ok(Err(error)) => {
                tracing::debug!(dst = %self.dst, error, "a probe got no answer");
                refusal(StatusCode::BAD_GATEWAY, "the application does not answer")
            }
            Err(_) => refusal(StatusCode::GATEWAY_TIMEOUT, "the application does not answer in time"),
        }
    }

    async fn ask(
        &self,
        request: &Request<Incoming>,
        path: &str,
    ) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
        let stream = self.dialer.dial(self.dst, self.connect_timeout).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the one exchange that it carries.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a probe's connection broke");
            }
        });
        let mut onward = Request::new(Empty::<Bytes>::new());
        *onward.method_mut() = request.method().clone();
        *onward.uri_mut() = path.parse::<Uri>()?;
        *onward.headers_mut() = end_to_end(request.headers());
        if !onward.headers().contains_key(HOST) {
            onward.headers_mut().insert(HOST, HeaderValue::from_str(&self.dst.to_string())?);
        }
        onward.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        let mut answer = sender.send_request(onward).await?;
        *answer.headers_mut() = end_to_end(answer.headers());
        Ok(answer)
    }
}

fn has_length(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_LENGTH).iter().any(|length| length.as_bytes() != b"0")
}

/// Headers without those of one hop (RFC 9110 7.6.1), and without what only a proxy of the mesh may say.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let keep = |name: &HeaderName| {
        !HOP_BY_HOP.contains(&name.as_str()) && !named.contains(name) && !name.as_str().starts_with("l5d-")
    };
    headers.iter().filter(|(name, _)| keep(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn refusal(status: StatusCode, why: &'static str) -> Answer {
    let mut answer = Response::new(Either::Right(Full::new(Bytes::new())));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert("l5d-proxy-error", HeaderValue::from_static(why));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// The client's side of a terminated connection: counted and read in passing like any other.
struct Observed<IO> {
    io: IO,
    observer: Observer,
    counters: Arc<Counters>,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Observed<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let read = &buf.filled()[before..];
        this.counters.sent.fetch_add(read.len() as u64, Ordering::Relaxed);
        this.observer.client(read);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Observed<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = ready!(Pin::new(&mut this.io).poll_write(cx, buf))?;
        this.counters.received.fetch_add(written as u64, Ordering::Relaxed);
        this.observer.server(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// The largest head of a probe's request, in bytes (hyper takes no less).
const MAX_HEAD: usize = 8192;
