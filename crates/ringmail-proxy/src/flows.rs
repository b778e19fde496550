//! Each connection is a flow: recorded from accept to close, told to whoever watches.
//!
//! Start here: [`Flows::open`] at accept, [`FlowHandle::set_security`] once it is known, [`FlowHandle::close`] at the
//! end. The byte path touches [`Counters`] only; once a second [`Flows::keep_current`] tells watchers what moved and
//! hands the bytes to the metrics, so neither costs anything for each read.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use ringmail_vocab::{
    CloseReason, Closed, ClosedBy, Direction, Flow, FlowId, Protocol, RefusalReason, Security,
};
use tokio::sync::broadcast;

use crate::metrics::{Labels, Metrics, Side, TransportSeries};

/// The flows of one run of this proxy. Cheap to clone.
#[derive(Clone)]
pub struct Flows(Arc<Inner>);

struct Inner {
    run: String,
    next: AtomicU64,
    metrics: Metrics,
    state: Mutex<State>,
    changes: broadcast::Sender<Arc<Flow>>,
}

#[derive(Default)]
struct State {
    open: HashMap<FlowId, Arc<Open>>,
    recent: VecDeque<Arc<Flow>>,
}

/// Bytes and requests of one connection, counted by whoever moves them.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes of the application from client to server.
    pub sent: AtomicU64,
    /// Bytes of the application from server to client.
    pub received: AtomicU64,
    /// HTTP requests seen.
    pub requests: AtomicU64,
}

struct Open {
    id: FlowId,
    direction: Direction,
    src: SocketAddr,
    original_dst: SocketAddr,
    opened_ms: u64,
    counters: Arc<Counters>,
    protocol: AtomicU8,
    facts: Mutex<Facts>,
}

struct Facts {
    dst: SocketAddr,
    dialled_from: Option<SocketAddr>,
    security: Option<Security>,
    labels: Labels,
    series: Option<Series>,
    told: Moving,
    counted: (u64, u64),
    /// Told less often: its bytes are the telling itself.
    quiet: bool,
}

/// The two sides of a connection in the metrics.
struct Series {
    src: Arc<TransportSeries>,
    dst: Arc<TransportSeries>,
}

/// What moves while a flow is open.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Moving {
    sent: u64,
    received: u64,
    requests: u64,
    protocol: u8,
}

/// The right and the duty to tell what becomes of one connection.
///
/// Dropped without [`FlowHandle::close`], the flow is closed by the proxy for [`CloseReason::Error`]: a task that
/// panicked or was cancelled leaves no connection that looks open for ever.
pub struct FlowHandle {
    flows: Flows,
    open: Arc<Open>,
    ended: bool,
}

/// What an observer needs of a flow: its id, its counters and its protocol. Cheap to clone.
#[derive(Clone)]
pub struct FlowRef(Arc<Open>);

impl Flows {
    /// No flow yet. `run` changes with every start of the proxy.
    pub fn new(run: impl Into<String>, metrics: Metrics) -> Self {
        let (changes, _) = broadcast::channel(CHANGES);
        Self(Arc::new(Inner {
            run: run.into(),
            next: AtomicU64::new(1),
            metrics,
            state: Mutex::default(),
            changes,
        }))
    }

    /// The name of this run.
    pub fn run(&self) -> &str {
        &self.0.run
    }

    /// Records a connection at accept. It is told to watchers once its security is known.
    pub fn open(
        &self,
        direction: Direction,
        src: SocketAddr,
        dst: SocketAddr,
        original_dst: SocketAddr,
    ) -> FlowHandle {
        let open = Arc::new(Open {
            id: FlowId(self.0.next.fetch_add(1, Ordering::Relaxed)),
            direction,
            src,
            original_dst,
            opened_ms: now_ms(),
            counters: Arc::default(),
            protocol: AtomicU8::new(protocol_number(Protocol::Unknown)),
            facts: Mutex::new(Facts {
                dst,
                dialled_from: None,
                security: None,
                labels: Labels::default(),
                series: None,
                told: Moving::default(),
                counted: (0, 0),
                quiet: false,
            }),
        });
        let mut state = self.0.state.lock();
        if state.open.len() < MAX_OPEN {
            state.open.insert(open.id, Arc::clone(&open));
        } else {
            // Its end is still recorded; only its life is not.
            self.0.metrics.bounds().flows_not_listed.inc();
        }
        FlowHandle { flows: self.clone(), open, ended: false }
    }

    /// How many flows are open.
    pub fn open_count(&self) -> usize {
        self.0.state.lock().open.len()
    }

    /// Every flow that is open with known security and the latest that are closed, then changes.
    pub fn subscribe(&self) -> Subscription {
        // Subscribed first, so that no change is lost between the two. What is told twice, is told last as it is last.
        let changes = self.0.changes.subscribe();
        let (recent, open): (Vec<_>, Vec<_>) = {
            let state = self.0.state.lock();
            (state.recent.iter().cloned().collect(), state.open.values().cloned().collect())
        };
        let mut open: Vec<_> = open.iter().filter_map(|open| open.flow(&open.facts.lock(), None)).collect();
        open.sort_by_key(|flow| flow.id);
        let snapshot = recent.into_iter().chain(open.into_iter().map(Arc::new)).collect();
        Subscription { flows: self.clone(), changes, snapshot, dropped: 0 }
    }

    /// Tells watchers, once a second, which open flows have moved, and keeps the metrics current; for ever.
    pub async fn keep_current(self) {
        let mut ticks = tokio::time::interval(TELL_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut seconds = 0_u64;
        loop {
            ticks.tick().await;
            seconds += 1;
            self.tell_moved(seconds.is_multiple_of(QUIET_EVERY));
            if seconds.is_multiple_of(60) {
                self.0.metrics.forget_idle();
            }
        }
    }

    /// One round of [`Flows::keep_current`], with the quiet flows or without them.
    pub fn tell_moved(&self, quiet_too: bool) {
        let open: Vec<Arc<Open>> = self.0.state.lock().open.values().cloned().collect();
        for open in open {
            let mut facts = open.facts.lock();
            open.count(&mut facts);
            let now = open.moving();
            if facts.security.is_none() || facts.told == now || (facts.quiet && !quiet_too) {
                continue;
            }
            facts.told = now;
            let flow = open.flow(&facts, None);
            drop(facts);
            if let Some(flow) = flow {
                self.tell_open(flow);
            }
        }
    }

    /// Hands the bytes of open flows to the metrics, before a scrape.
    pub fn flush_metrics(&self) {
        let open: Vec<Arc<Open>> = self.0.state.lock().open.values().cloned().collect();
        for open in open {
            open.count(&mut open.facts.lock());
        }
    }

    fn tell_open(&self, flow: Flow) {
        if self.0.changes.receiver_count() == 0 {
            return;
        }
        // Under the lock and only if it is still listed: an open flow told after its end would live for ever.
        let state = self.0.state.lock();
        if state.open.contains_key(&flow.id) {
            let _ = self.0.changes.send(Arc::new(flow));
        }
    }

    fn end(&self, open: &Open, closed: Closed) {
        let mut facts = open.facts.lock();
        if facts.security.is_none() {
            facts.security = Some(Security::Refused { reason: RefusalReason::HandshakeFailed, peer: None });
            open.enter_metrics(&mut facts, &self.0.metrics);
        }
        open.count(&mut facts);
        if let Some(series) = facts.series.take() {
            series.src.closed(closed.reason);
            series.dst.closed(closed.reason);
        }
        let flow = open.flow(&facts, Some(closed)).map(Arc::new);
        drop(facts);
        let mut state = self.0.state.lock();
        state.open.remove(&open.id);
        if let Some(flow) = flow {
            if state.recent.len() == RECENT {
                state.recent.pop_front();
            }
            state.recent.push_back(Arc::clone(&flow));
            let _ = self.0.changes.send(flow);
        }
    }
}

impl Open {
    fn moving(&self) -> Moving {
        Moving {
            sent: self.counters.sent.load(Ordering::Relaxed),
            received: self.counters.received.load(Ordering::Relaxed),
            requests: self.counters.requests.load(Ordering::Relaxed),
            protocol: self.protocol.load(Ordering::Relaxed),
        }
    }

    fn flow(&self, facts: &Facts, closed: Option<Closed>) -> Option<Flow> {
        let moving = self.moving();
        Some(Flow {
            id: self.id,
            direction: self.direction,
            src: self.src,
            dst: facts.dst,
            original_dst: self.original_dst,
            dialled_from: facts.dialled_from,
            security: facts.security.clone()?,
            protocol: protocol_of(moving.protocol),
            sent: moving.sent,
            received: moving.received,
            requests: moving.requests,
            opened_ms: self.opened_ms,
            closed,
        })
    }

    fn enter_metrics(&self, facts: &mut Facts, metrics: &Metrics) {
        let Some(security) = &facts.security else { return };
        let side = |side| {
            metrics.transport(self.direction, side, self.original_dst, facts.dst, security, &facts.labels)
        };
        let series = Series { src: side(Side::Source), dst: side(Side::Destination) };
        if let Some(before) = facts.series.replace(series) {
            before.src.moved_away();
            before.dst.moved_away();
        }
        if let Some(series) = &facts.series {
            series.src.opened();
            series.dst.opened();
        }
    }

    /// Adds to the metrics what was moved since the last time. What came from the client was read from the source
    /// and written to the destination.
    fn count(&self, facts: &mut Facts) {
        let Some(series) = &facts.series else { return };
        let (sent, received) =
            (self.counters.sent.load(Ordering::Relaxed), self.counters.received.load(Ordering::Relaxed));
        let (more_sent, more_received) =
            (sent.saturating_sub(facts.counted.0), received.saturating_sub(facts.counted.1));
        series.src.moved(more_sent, more_received);
        series.dst.moved(more_received, more_sent);
        facts.counted = (sent, received);
    }
}

impl FlowHandle {
    /// The flow's number in this run.
    pub fn id(&self) -> FlowId {
        self.open.id
    }

    /// Where the bytes go, once an endpoint was chosen, and from which address the proxy dialled it.
    pub fn set_dst(&self, dst: SocketAddr, dialled_from: Option<SocketAddr>) {
        let mut facts = self.open.facts.lock();
        facts.dst = dst;
        facts.dialled_from = dialled_from;
    }

    /// What discovery (`dst_…`) or policy (`srv_…`) says of the other side, for the metrics; before
    /// [`FlowHandle::set_security`].
    pub fn set_labels(&self, labels: Labels) {
        self.open.facts.lock().labels = labels;
    }

    /// What protects the connection. From here on watchers know of it.
    pub fn set_security(&self, security: Security) {
        let mut facts = self.open.facts.lock();
        facts.security = Some(security);
        self.open.enter_metrics(&mut facts, &self.flows.0.metrics);
        facts.told = self.open.moving();
        let flow = self.open.flow(&facts, None);
        drop(facts);
        if let Some(flow) = flow {
            self.flows.tell_open(flow);
        }
    }

    /// What protects the connection, if it is known yet.
    pub fn security(&self) -> Option<Security> {
        self.open.facts.lock().security.clone()
    }

    /// The counters that the relay moves.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.open.counters
    }

    /// What was recognised inside, where no observer says it.
    pub fn set_protocol(&self, protocol: Protocol) {
        self.open.protocol.store(protocol_number(protocol), Ordering::Relaxed);
    }

    /// Tells this flow's movements every half minute only: for connections that carry flows themselves, which would
    /// otherwise never come to rest.
    pub fn set_quiet(&self) {
        self.open.facts.lock().quiet = true;
    }

    /// The part of the flow that an observer may change.
    pub fn reference(&self) -> FlowRef {
        FlowRef(Arc::clone(&self.open))
    }

    /// The end of the connection. `code` is a stable error code such as `RM1203`.
    pub fn close(mut self, by: ClosedBy, reason: CloseReason, code: Option<&'static str>) {
        self.finish(by, reason, code);
    }

    fn finish(&mut self, by: ClosedBy, reason: CloseReason, code: Option<&'static str>) {
        if !std::mem::replace(&mut self.ended, true) {
            self.flows.end(&self.open, Closed { at_ms: now_ms(), by, reason, code: code.map(str::to_owned) });
        }
    }
}

impl Drop for FlowHandle {
    fn drop(&mut self) {
        self.finish(ClosedBy::Proxy, CloseReason::Error, None);
    }
}

impl FlowRef {
    /// The flow's number in this run.
    pub fn id(&self) -> FlowId {
        self.0.id
    }

    /// The counters of the connection.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// What an observer recognised.
    pub fn set_protocol(&self, protocol: Protocol) {
        self.0.protocol.store(protocol_number(protocol), Ordering::Relaxed);
    }
}

/// A watcher's place in the stream of changes.
pub struct Subscription {
    flows: Flows,
    changes: broadcast::Receiver<Arc<Flow>>,
    snapshot: VecDeque<Arc<Flow>>,
    dropped: u64,
}

/// Some flows, in the order in which they are to be applied.
#[derive(Debug, Default)]
pub struct Batch {
    /// Flows: one that was told before is replaced.
    pub flows: Vec<Arc<Flow>>,
    /// How many changes this watcher missed just before, since it was slow. A new snapshot follows.
    pub dropped: u64,
}

impl Subscription {
    /// The next batch: first the snapshot in parts, then changes as they come.
    pub async fn next(&mut self) -> Batch {
        loop {
            if self.dropped > 0 {
                let dropped = std::mem::take(&mut self.dropped);
                // What was missed may be the end of a flow: the state is told anew rather than left wrong.
                let fresh = self.flows.subscribe();
                self.changes = fresh.changes;
                self.snapshot = fresh.snapshot;
                self.flows.0.metrics.bounds().flow_changes_dropped.inc_by(dropped);
                return Batch { flows: Vec::new(), dropped };
            }
            if !self.snapshot.is_empty() {
                let part = self.snapshot.len().min(BATCH);
                return Batch { flows: self.snapshot.drain(..part).collect(), dropped: 0 };
            }
            let mut batch = Batch::default();
            match self.changes.recv().await {
                Ok(flow) => batch.flows.push(flow),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    self.dropped = missed;
                    continue;
                }
                // The sender lives in `self.flows`, so the stream cannot end.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
            while batch.flows.len() < BATCH {
                match self.changes.try_recv() {
                    Ok(flow) => batch.flows.push(flow),
                    Err(broadcast::error::TryRecvError::Lagged(missed)) => {
                        self.dropped = missed;
                        break;
                    }
                    Err(_) => break,
                }
            }
            return batch;
        }
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Unknown => 0,
        Protocol::Http1 => 1,
        Protocol::Http2 => 2,
        Protocol::Tcp => 3,
    }
}

fn protocol_of(number: u8) -> Protocol {
    match number {
        1 => Protocol::Http1,
        2 => Protocol::Http2,
        3 => Protocol::Tcp,
        _ => Protocol::Unknown,
    }
}

/// Closed flows that a new watcher still learns.
const RECENT: usize = 2_048;
/// Open flows that are listed; connections beyond it work and are recorded at their end.
const MAX_OPEN: usize = 65_536;
/// Changes that a watcher may lag behind.
const CHANGES: usize = 4_096;
/// Flows in one batch.
const BATCH: usize = 256;
/// How often open flows that moved are told.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Of these rounds, the quiet flows take part in one.
const QUIET_EVERY: u64 = 30;
