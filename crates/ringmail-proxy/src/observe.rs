//! Reads HTTP in passing, for tap, metrics and the flow's own protocol and requests.
//!
//! One [`Observer`] belongs to one connection and is fed by its relay. It never fails, never blocks and never changes a
//! byte. What it cannot follow it stops reading. Work happens where a message begins or ends, not for each read.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use ringmail_vocab::{Direction, Protocol, Security};
use ringmail_wire::http::{End, EndCause, Event, Protocol as Seen, RequestHead, ResponseHead};

use crate::flows::FlowRef;
use crate::metrics::{Labels, Metrics, RequestSeries, Response};
use crate::tap::{EndSeen, ResponseSeen, Subject, TapHub, TapRequest};

/// What an observer needs to know of its connection.
#[derive(Clone)]
pub struct ObserveContext {
    /// The flow whose protocol and requests it sets.
    pub flow: FlowRef,
    /// Which side this proxy is on.
    pub direction: Direction,
    /// The client's address.
    pub src: SocketAddr,
    /// The server's address.
    pub dst: SocketAddr,
    /// What protects the connection.
    pub security: Security,
    /// What discovery (`dst_…`) or policy (`srv_…`) says of the server.
    pub labels: Labels,
    /// Whom to tell.
    pub hub: TapHub,
    /// Where to count.
    pub metrics: Metrics,
}

/// Reads one connection in passing.
pub struct Observer(Option<Box<Inner>>);

struct Inner {
    parser: ringmail_wire::http::Observer,
    watch: Watch,
}

struct Watch {
    subject: Subject,
    flow: FlowRef,
    hub: TapHub,
    metrics: Metrics,
    open: HashMap<u64, Exchange>,
    /// The series of the latest authority: most connections have one only.
    latest: Option<(String, Arc<RequestSeries>)>,
}

/// One request and what came back so far.
struct Exchange {
    series: Arc<RequestSeries>,
    began: Instant,
    answered: Option<(Instant, u16)>,
    taps: Vec<TapRequest>,
}

impl Observer {
    /// An observer of a connection that has not carried a byte yet.
    pub fn new(context: ObserveContext) -> Self {
        let ObserveContext { flow, direction, src, dst, security, labels, hub, metrics } = context;
        let subject = Subject { direction, src, dst, security, labels };
        let watch = Watch { subject, flow, hub, metrics, open: HashMap::new(), latest: None };
        Self(Some(Box::new(Inner { parser: ringmail_wire::http::Observer::new(), watch })))
    }

    /// An observer that looks away: for opaque ports.
    pub fn off() -> Self {
        Self(None)
    }

    /// Bytes that the client sent.
    pub fn client(&mut self, bytes: &[u8]) {
        if let Some(Inner { parser, watch }) = self.0.as_deref_mut() {
            parser.client(bytes, &mut |event| watch.event(event));
            self.forget_if_done();
        }
    }

    /// Bytes that the server sent.
    pub fn server(&mut self, bytes: &[u8]) {
        if let Some(Inner { parser, watch }) = self.0.as_deref_mut() {
            parser.server(bytes, &mut |event| watch.event(event));
            self.forget_if_done();
        }
    }

    /// The connection is over: what is still open ended with it.
    pub fn finish(&mut self) {
        if let Some(mut inner) = self.0.take() {
            let Inner { parser, watch } = &mut *inner;
            parser.close(&mut |event| watch.event(event));
        }
    }

    /// Whether it still reads.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    fn forget_if_done(&mut self) {
        if self.0.as_deref().is_some_and(|inner| !inner.parser.observing()) {
            self.0 = None;
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Watch {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Detected(seen) => self.flow.set_protocol(match seen {
                Seen::Http1 => Protocol::Http1,
                Seen::Http2 => Protocol::Http2,
                Seen::NotHttp => Protocol::Tcp,
            }),
            Event::Request { stream, head } => self.request(stream, &head),
            Event::Response { stream, head } => self.response(stream, &head),
            Event::End { stream, end } => self.end(stream, &end),
            Event::GaveUp(reason) => {
                tracing::debug!(flow = self.flow.id().0, %reason, "stopped reading HTTP in passing");
            }
        }
    }

    fn request(&mut self, stream: u64, head: &RequestHead<'_>) {
        self.flow.counters().requests.fetch_add(1, Ordering::Relaxed);
        let series = self.series(&head.authority);
        series.requested();
        if self.open.len() >= MAX_OPEN {
            self.metrics.bounds().requests_not_observed.inc();
            return;
        }
        let taps = self.hub.begin(&self.subject, head);
        self.open.insert(stream, Exchange { series, began: Instant::now(), answered: None, taps });
    }

    fn response(&mut self, stream: u64, head: &ResponseHead<'_>) {
        // 101 is final for what an observer can tell: the connection leaves HTTP with it.
        if head.informational() && head.status != 101 {
            return;
        }
        let Some(exchange) = self.open.get_mut(&stream) else { return };
        let now = Instant::now();
        let since_request = now.duration_since(exchange.began);
        if exchange.answered.replace((now, head.status)).is_none() {
            exchange.series.answered(head.status, since_request);
        }
        for tap in &exchange.taps {
            tap.response(&self.subject, &ResponseSeen { head, since_request });
        }
    }

    fn end(&mut self, stream: u64, end: &End<'_>) {
        let Some(exchange) = self.open.remove(&stream) else { return };
        // What nobody could read to its end is neither a success nor a failure.
        if end.cause != EndCause::Unobserved {
            exchange.series.ended(Response {
                status: exchange.answered.map_or(0, |(_, status)| status),
                grpc: end.grpc_status,
                broken: matches!(end.cause, EndCause::Reset | EndCause::Closed),
            });
        }
        let now = Instant::now();
        let seen = EndSeen {
            end,
            since_request: now.duration_since(exchange.began),
            since_response: exchange.answered.map(|(at, _)| now.duration_since(at)),
        };
        for tap in exchange.taps {
            tap.end(&self.subject, &seen);
        }
    }

    fn series(&mut self, authority: &str) -> Arc<RequestSeries> {
        // An inbound proxy does not label by authority: a client could make as many as it likes.
        let authority = if self.subject.direction == Direction::Outbound { authority } else { "" };
        match &self.latest {
            Some((latest, series)) if latest == authority => Arc::clone(series),
            _ => {
                let Subject { direction, dst, security, labels, .. } = &self.subject;
                let series = self.metrics.requests(*direction, *dst, security, labels, authority);
                self.latest = Some((authority.to_owned(), Arc::clone(&series)));
                series
            }
        }
    }
}

/// Requests that one connection may have open and observed.
const MAX_OPEN: usize = 1_024;
