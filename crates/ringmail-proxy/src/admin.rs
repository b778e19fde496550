//! Port 4191: `/live`, `/ready`, `/metrics`, and the log's filter for whoever is on this machine.
//!
//! Plain HTTP/1 on a small runtime of its own, so that a scrape never hurts traffic. Nothing here shows the
//! environment or a key. Connections, headers and bodies are bounded; a slow client is cut off.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::certify::CertifyStatus;
use crate::drain::{Drain, Phase};
use crate::flows::Flows;
use crate::metrics::Metrics;

/// What the admin server shows.
#[derive(Clone)]
pub struct AdminContext {
    /// Where the certificate stands.
    pub certify: watch::Receiver<CertifyStatus>,
    /// Whether the proxy ends.
    pub drain: Drain,
    /// The metrics.
    pub metrics: Metrics,
    /// The flows, whose bytes are counted before a scrape.
    pub flows: Flows,
    /// The log's filter.
    pub log: Arc<dyn LogFilter>,
}

/// The filter of the running log.
pub trait LogFilter: Send + Sync + 'static {
    /// The filter in force.
    fn get(&self) -> String;
    /// Another filter; the error says what is wrong with it.
    fn set(&self, filter: &str) -> Result<(), String>;
}

/// Serves until the listener is gone.
pub async fn serve(listener: TcpListener, context: AdminContext) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted on the admin port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            context.metrics.bounds().control_connections_refused.inc();
            continue;
        };
        let context = context.clone();
        tokio::spawn(async move {
            let _slot = slot;
            let service = service_fn(|request| answer(&context, peer, request));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(MAX_HEADER)
                .max_headers(MAX_HEADERS)
                .serve_connection(TokioIo::new(stream), service);
            // A client that reads its answer for longer than this is not scraping.
            if let Ok(Err(error)) = tokio::time::timeout(MAX_LIFE, connection).await {
                tracing::debug!(%peer, %error, "admin connection");
            }
        });
    }
}

async fn answer(
    context: &AdminContext,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(respond(context, peer, request).await)
}

/// The answer to one request.
pub async fn respond<B>(
    context: &AdminContext,
    peer: SocketAddr,
    request: Request<B>,
) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    match request.uri().path() {
        "/live" if reads => text(StatusCode::OK, "live\n"),
        "/ready" if reads => match why_not_ready(context) {
            None => text(StatusCode::OK, "ready\n"),
            Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        },
        "/metrics" if reads => {
            context.flows.flush_metrics();
            match context.metrics.encode() {
                Ok(metrics) => with_type(StatusCode::OK, OPENMETRICS, metrics),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            }
        }
        "/proxy-log-level" => log_level(context, peer, request).await,
        "/live" | "/ready" | "/metrics" => {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n");
            response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
            response
        }
        _ => text(StatusCode::NOT_FOUND, "there is /live, /ready, /metrics and /proxy-log-level\n"),
    }
}

fn why_not_ready(context: &AdminContext) -> Option<String> {
    if context.drain.phase() > Phase::Running {
        return Some("draining".to_owned());
    }
    context.certify.borrow().why_not_ready(SystemTime::now())
}

async fn log_level<B>(context: &AdminContext, peer: SocketAddr, request: Request<B>) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if !peer.ip().to_canonical().is_loopback() {
        return text(StatusCode::FORBIDDEN, "only from this machine's loopback\n");
    }
    match *request.method() {
        Method::GET => text(StatusCode::OK, context.log.get() + "\n"),
        Method::PUT => {
            let body = Limited::new(request.into_body(), MAX_FILTER);
            let collected = tokio::time::timeout(HEADER_TIMEOUT, std::pin::pin!(body).collect()).await;
            let Ok(Ok(body)) = collected else {
                return text(
                    StatusCode::BAD_REQUEST,
                    "a filter of at most 4 KiB, such as `info,ringmail_proxy=debug`\n",
                );
            };
            let body = body.to_bytes();
            let filter = String::from_utf8_lossy(&body);
            match context.log.set(filter.trim()) {
                Ok(()) => {
                    tracing::info!(filter = filter.trim(), "the log's filter was changed");
                    text(StatusCode::NO_CONTENT, "")
                }
                Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
            }
        }
        _ => {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET or PUT\n");
            response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, PUT"));
            response
        }
    }
}

fn text(status: StatusCode, body: impl Into<String>) -> Response<Full<Bytes>> {
    with_type(status, "text/plain; charset=utf-8", body.into())
}

fn with_type(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const MAX_CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_LIFE: Duration = Duration::from_mins(5);
const MAX_HEADER: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
const MAX_FILTER: usize = 4 * 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
