//! `io.linkerd.proxy.tap.Tap`: requests as they happen, to whoever asks for some of them (wire.md 8).
//!
//! Start here: [`TapHub::observe`] opens a tap; observers ask [`TapHub::begin`] at each request's head, and hand
//! what follows to the [`TapRequest`]s they got. With no tap open an observer pays one load of a pointer for a request.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use futures::Stream;
use parking_lot::Mutex;
use ringmail_api::linkerd::tap::{ObserveRequest, TapEvent, observe_request, tap_event, tap_server};
use ringmail_vocab::{Direction, Security};
use ringmail_wire::http::RequestHead;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::metrics::{Labels, Metrics};

mod event;
mod matching;

use matching::Matcher;

/// The taps that are open in this proxy. Cheap to clone.
#[derive(Clone)]
pub struct TapHub(Arc<Hub>);

struct Hub {
    taps: ArcSwap<Vec<Arc<Tap>>>,
    change: Mutex<()>,
    bases: AtomicU32,
    metrics: Metrics,
}

/// One `Observe` call. Its stream ends when nobody holds it any more: neither the hub nor a request that it watches.
struct Tap {
    base: u32,
    limit: u64,
    matched: AtomicU64,
    matcher: Matcher,
    headers: bool,
    events: mpsc::Sender<TapEvent>,
    metrics: Metrics,
}

/// What a tap may ask of a connection.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Which side this proxy is on.
    pub direction: Direction,
    /// The client's address.
    pub src: SocketAddr,
    /// The server's address.
    pub dst: SocketAddr,
    /// What protects the connection.
    pub security: Security,
    /// What discovery or policy says of the server.
    pub labels: Labels,
}

/// One request that one tap watches.
pub struct TapRequest {
    tap: Arc<Tap>,
    stream: u64,
}

impl TapHub {
    /// No tap is open.
    pub fn new(metrics: Metrics) -> Self {
        Self(Arc::new(Hub {
            taps: ArcSwap::default(),
            change: Mutex::new(()),
            bases: AtomicU32::new(0),
            metrics,
        }))
    }

    /// Whether nobody listens.
    pub fn is_idle(&self) -> bool {
        self.0.taps.load().is_empty()
    }

    /// Opens a tap. Its stream ends after `limit` requests have ended.
    pub fn observe(&self, request: &ObserveRequest) -> Result<TapStream, Status> {
        let matcher =
            Matcher::of_request(request).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (sender, events) = mpsc::channel(BUFFER);
        let tap = Arc::new(Tap {
            base: self.0.bases.fetch_add(1, Ordering::Relaxed),
            limit: request.limit.into(),
            matched: AtomicU64::new(0),
            matcher,
            headers: wants_headers(request),
            events: sender,
            metrics: self.0.metrics.clone(),
        });
        let base = tap.base;
        {
            let _change = self.0.change.lock();
            let mut taps = self.0.taps.load().to_vec();
            if taps.len() >= MAX_TAPS {
                return Err(Status::resource_exhausted(format!(
                    "{MAX_TAPS} taps are open in this proxy already"
                )));
            }
            taps.push(tap);
            self.0.taps.store(Arc::new(taps));
        }
        Ok(TapStream { events, hub: self.clone(), base })
    }

    /// The taps that want this request. Each of them is told of it.
    pub fn begin(&self, subject: &Subject, head: &RequestHead<'_>) -> Vec<TapRequest> {
        let taps = self.0.taps.load();
        if taps.is_empty() {
            return Vec::new();
        }
        let mut watching = Vec::new();
        for tap in taps.iter().filter(|tap| tap.matcher.matches(subject, head)) {
            let numbered = tap
                .matched
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < tap.limit).then_some(n + 1));
            let Ok(stream) = numbered else { continue };
            if stream + 1 == tap.limit {
                self.remove(tap.base);
            }
            let request = TapRequest { tap: Arc::clone(tap), stream };
            request.send(subject, event::request_init(request.id(), head, tap.headers));
            watching.push(request);
        }
        watching
    }

    fn remove(&self, base: u32) {
        let _change = self.0.change.lock();
        let taps = self.0.taps.load();
        if taps.iter().any(|tap| tap.base == base) {
            let rest: Vec<_> = taps.iter().filter(|tap| tap.base != base).cloned().collect();
            self.0.taps.store(Arc::new(rest));
        }
    }
}

impl TapRequest {
    /// The response's final head came.
    pub fn response(&self, subject: &Subject, response: &event::ResponseSeen<'_>) {
        self.send(subject, event::response_init(self.id(), response, self.tap.headers));
    }

    /// The exchange ended.
    pub fn end(self, subject: &Subject, end: &event::EndSeen<'_>) {
        self.send(subject, event::response_end(self.id(), end, self.tap.headers));
    }

    fn id(&self) -> tap_event::http::StreamId {
        tap_event::http::StreamId { base: self.tap.base, stream: self.stream }
    }

    fn send(&self, subject: &Subject, http: tap_event::Http) {
        let event = event::of_subject(subject, http);
        if let Err(mpsc::error::TrySendError::Full(_)) = self.tap.events.try_send(event) {
            self.tap.metrics.bounds().tap_events_dropped.inc();
        }
    }
}

pub use event::{EndSeen, ResponseSeen};

/// The events of one tap. Dropping it closes the tap.
pub struct TapStream {
    events: mpsc::Receiver<TapEvent>,
    hub: TapHub,
    base: u32,
}

impl Stream for TapStream {
    type Item = Result<TapEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(cx).map(|event| event.map(Ok))
    }
}

impl Drop for TapStream {
    fn drop(&mut self) {
        self.hub.remove(self.base);
    }
}

/// The gRPC service. Who may call it is decided before (see [`crate::serve_control`]).
#[derive(Clone)]
pub struct TapService(pub TapHub);

#[tonic::async_trait]
impl tap_server::Tap for TapService {
    type ObserveStream = TapStream;

    async fn observe(&self, request: Request<ObserveRequest>) -> Result<Response<TapStream>, Status> {
        self.0.observe(&request.into_inner()).map(Response::new)
    }
}

fn wants_headers(request: &ObserveRequest) -> bool {
    use observe_request::extract::{Extract, http};
    let extract = request.extract.as_ref().and_then(|extract| extract.extract.as_ref());
    extract.is_some_and(|Extract::Http(of_http)| matches!(of_http.extract, Some(http::Extract::Headers(_))))
}

/// Events that a tap may lag behind (wire.md 8.3).
const BUFFER: usize = 400;
const MAX_TAPS: usize = 64;
