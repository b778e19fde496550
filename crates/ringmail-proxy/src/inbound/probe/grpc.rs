//! Probes by gRPC: one small call over HTTP/2, whose frames leave no doubt where a request ends.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, TE};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Either, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{Answer, Gate, end_to_end};

/// Whether a connection begins with HTTP/2's preface. What was read is in `begin`.
pub(super) async fn begins<IO: AsyncRead + Unpin>(io: &mut IO, begin: &mut Vec<u8>) -> io::Result<bool> {
    while begin.len() < PREFACE.len() && PREFACE.starts_with(begin) {
        let mut part = [0; PREFACE.len()];
        let left = PREFACE.len() - begin.len();
        match io.read(&mut part[..left]).await? {
            0 => return Ok(false),
            read => begin.extend_from_slice(&part[..read]),
        }
    }
    Ok(begin == PREFACE)
}

/// Makes the call anew, on a connection of its own.
pub(super) async fn forward(gate: &Gate, request: Request<Incoming>) -> Answer {
    match tokio::time::timeout(gate.request_timeout, ask(gate, request)).await {
        Ok(Ok(answer)) => answer.map(Either::Left),
        Ok(Err(error)) => {
            tracing::debug!(dst = %gate.dst, error, "a probe got no answer");
            refusal(UNAVAILABLE, "the application does not answer")
        }
        Err(_) => refusal(DEADLINE_EXCEEDED, "the application does not answer in time"),
    }
}

async fn ask(
    gate: &Gate,
    request: Request<Incoming>,
) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, MAX_BODY).collect().await?.to_bytes();
    let stream = gate.dialer.dial(gate.dst, gate.connect_timeout).await?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    // Ends with the one exchange that it carries.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a probe's connection broke");
        }
    });
    let authority = head.uri.authority().map_or_else(|| gate.dst.to_string(), ToString::to_string);
    let mut onward = Request::new(Full::new(body));
    *onward.method_mut() = head.method;
    *onward.uri_mut() =
        Uri::builder().scheme("http").authority(authority).path_and_query(head.uri.path()).build()?;
    *onward.headers_mut() = end_to_end(&head.headers);
    onward.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    let mut answer = sender.send_request(onward).await?;
    *answer.headers_mut() = end_to_end(answer.headers());
    Ok(answer)
}

/// A gRPC status without a message.
pub(super) fn refusal(status: &'static str, why: &'static str) -> Answer {
    let mut answer = Response::new(Either::Right(Full::new(Bytes::new())));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static(status));
    headers.insert("grpc-message", HeaderValue::from_static(why));
    headers.insert("l5d-proxy-error", HeaderValue::from_static(why));
    answer
}

pub(super) const PERMISSION_DENIED: &str = "7";
const DEADLINE_EXCEEDED: &str = "4";
const UNAVAILABLE: &str = "14";
/// Calls at once on one connection.
pub(super) const MAX_STREAMS: u32 = 8;
/// Of a connection: each probe opens one, makes its call and leaves.
pub(super) const LIFE: Duration = Duration::from_mins(1);
/// The name of a service in five bytes of frame.
const MAX_BODY: usize = 4 * 1024;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
