//! What proxies have said, in bounds: every open flow and the latest that are closed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use ringmail_vocab::{Flow, FlowId};
use tokio::sync::{broadcast, watch};

use crate::join::{Account, Witness};
use crate::names::{Named, NamedPod};

/// Flows of all proxies. Times are milliseconds since the Unix epoch by viz's own clock and come from the caller.
#[derive(Debug)]
pub struct Store {
    proxies: Mutex<HashMap<String, Proxy>>,
    version: watch::Sender<u64>,
    events: broadcast::Sender<FlowEvent>,
}

/// A connection that opened or closed, as one proxy says.
#[derive(Clone, Debug)]
pub struct FlowEvent {
    /// The pod of that proxy.
    pub pod: Arc<NamedPod>,
    /// What it says.
    pub account: Arc<Account>,
}

#[derive(Debug)]
struct Proxy {
    pod: Arc<NamedPod>,
    state: State,
    run: String,
    open: HashMap<FlowId, Arc<Account>>,
    closed: VecDeque<Arc<Account>>,
    /// From this moment on, no closed flow has been missed or forgotten.
    complete_since: u64,
    /// Flows beyond the bound.
    beyond: u64,
    /// When the latest of the closed flows ended that may have been forgotten or never told.
    forgotten: Option<u64>,
    /// Whether what comes is the state at the begin of a stream, not news.
    snapshot_at: u64,
}

#[derive(Debug)]
enum State {
    Connecting { since: u64 },
    Connected,
    Lost { at: u64, reason: String },
}

impl Default for Store {
    fn default() -> Self {
        Self {
            proxies: Mutex::default(),
            version: watch::Sender::new(0),
            events: broadcast::channel(EVENTS).0,
        }
    }
}

impl Store {
    /// A proxy is about to be asked: from here on it counts as one that should be heard.
    pub fn expect(&self, pod: &Arc<NamedPod>, now: u64) {
        self.proxies.lock().entry(pod.uid.clone()).or_insert_with(|| Proxy::new(pod.clone(), now)).pod =
            pod.clone();
        self.bump();
    }

    /// A proxy's stream has begun, with everything that is open and the latest that are closed to follow. `run` tells
    /// one start of the proxy from another.
    pub fn connected(&self, pod: &Arc<NamedPod>, run: &str, now: u64) {
        let mut proxies = self.proxies.lock();
        let proxy = proxies.entry(pod.uid.clone()).or_insert_with(|| Proxy::new(pod.clone(), now));
        if proxy.run == run {
            // What is still open is told again; what ended meanwhile is not, or comes as closed.
            proxy.open.clear();
        } else {
            proxy.close_all(now);
            run.clone_into(&mut proxy.run);
        }
        proxy.pod = pod.clone();
        proxy.state = State::Connected;
        proxy.complete_since = now;
        proxy.snapshot_at = now;
        drop(proxies);
        self.bump();
    }

    /// A proxy told that this stream has missed changes; its whole state follows anew.
    pub fn missed(&self, pod: &Arc<NamedPod>, now: u64) {
        if let Some(proxy) = self.proxies.lock().get_mut(&pod.uid) {
            proxy.open.clear();
            proxy.complete_since = now;
            proxy.snapshot_at = now;
            proxy.forgotten = Some(now);
        }
        self.bump();
    }

    /// One flow as a proxy tells it. `peer` is whose the other end's address is now.
    pub fn record(&self, pod: &Arc<NamedPod>, flow: Flow, peer: Option<Named>, now: u64) {
        let mut proxies = self.proxies.lock();
        let Some(proxy) = proxies.get_mut(&pod.uid) else { return };
        let event = proxy.record(flow, peer, now);
        drop(proxies);
        if let Some(account) = event {
            let _ = self.events.send(FlowEvent { pod: pod.clone(), account });
        }
        self.bump();
    }

    /// A proxy's stream has ended, or could not be opened.
    pub fn lost(&self, pod: &Arc<NamedPod>, reason: &str, now: u64) {
        if let Some(proxy) = self.proxies.lock().get_mut(&pod.uid) {
            let at = match proxy.state {
                State::Lost { at, .. } => at,
                State::Connecting { since } => since,
                State::Connected => now,
            };
            proxy.state = State::Lost { at, reason: reason.to_owned() };
        }
        self.bump();
    }

    /// A pod is gone: its proxy says no more. What it said stays until it is old.
    pub fn gone(&self, uid: &str, now: u64) {
        if let Some(proxy) = self.proxies.lock().get_mut(uid) {
            proxy.close_all(now);
            proxy.state = State::Lost { at: now, reason: String::new() };
        }
        self.bump();
    }

    /// Forgets what was closed more than [`KEEP_MS`] ago, and proxies of which nothing is left.
    pub fn forget_old(&self, now: u64) {
        self.proxies.lock().retain(|_, proxy| {
            while proxy
                .closed
                .front()
                .is_some_and(|account| account.closed_at.is_some_and(|at| at + KEEP_MS < now))
            {
                proxy.closed.pop_front();
            }
            !(proxy.is_gone() && proxy.closed.is_empty())
        });
    }

    /// Everything known, for a join.
    pub fn view(&self, now: u64) -> Vec<Arc<Account>> {
        let proxies = self.proxies.lock();
        proxies.values().flat_map(|proxy| proxy.accounts(now)).collect()
    }

    /// Who is heard at the moment, for a join.
    pub fn witnesses(&self) -> BTreeMap<String, Witness> {
        let proxies = self.proxies.lock();
        let connected = proxies.iter().filter(|(_, proxy)| matches!(proxy.state, State::Connected));
        connected
            .map(|(uid, proxy)| (uid.clone(), Witness { complete_since: proxy.complete_since }))
            .collect()
    }

    /// Meshed pods that are not heard, and those that have said more than is kept, each with its reason.
    pub fn unobserved(&self, now: u64) -> Vec<String> {
        let proxies = self.proxies.lock();
        let mut all: Vec<String> = proxies
            .values()
            .filter_map(|proxy| {
                let name = proxy.pod.full_name();
                match &proxy.state {
                    State::Connecting { since } if since + PATIENCE_MS < now => {
                        Some(format!("{name}: not connected yet"))
                    }
                    State::Lost { at, reason } if !reason.is_empty() && at + PATIENCE_MS < now => {
                        Some(format!("{name}: {reason}"))
                    }
                    State::Connected if proxy.beyond > 0 => Some(format!(
                        "{name}: {} connections beyond the {MAX_OPEN} that are kept",
                        proxy.beyond
                    )),
                    _ => None,
                }
            })
            .collect();
        all.sort();
        all
    }

    /// Proxies of which not all connections are known that ended since a moment: more ended than are kept. What is
    /// said of their pairs is said of the rest.
    pub fn forgotten(&self, since: u64) -> Vec<String> {
        let proxies = self.proxies.lock();
        let mut all: Vec<String> = proxies
            .values()
            .filter(|proxy| proxy.forgotten.is_some_and(|at| at >= since))
            .map(|proxy| {
                let name = proxy.pod.full_name();
                format!("{name}: more connections ended than are kept; the earlier ones are not counted")
            })
            .collect();
        all.sort();
        all
    }

    /// Whether a proxy is being connected to that may yet answer in a moment.
    pub fn is_connecting(&self, now: u64) -> bool {
        let fresh =
            |proxy: &Proxy| matches!(proxy.state, State::Connecting { since } if since + PATIENCE_MS >= now);
        self.proxies.lock().values().any(fresh)
    }

    /// Wakes at every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Connections that open and close from now on.
    pub fn events(&self) -> broadcast::Receiver<FlowEvent> {
        self.events.subscribe()
    }

    fn bump(&self) {
        self.version.send_modify(|version| *version += 1);
    }
}

impl Proxy {
    fn new(pod: Arc<NamedPod>, now: u64) -> Self {
        Self {
            pod,
            state: State::Connecting { since: now },
            run: String::new(),
            open: HashMap::new(),
            closed: VecDeque::new(),
            complete_since: now,
            beyond: 0,
            forgotten: None,
            snapshot_at: now,
        }
    }

    fn is_gone(&self) -> bool {
        matches!(&self.state, State::Lost { reason, .. } if reason.is_empty())
    }

    /// Takes a flow; returns it where it is news to who watches openings and closings.
    fn record(&mut self, flow: Flow, peer: Option<Named>, now: u64) -> Option<Arc<Account>> {
        let id = flow.id;
        let before = self.open.get(&id).cloned();
        let seen_open = before.is_some();
        let closed_at =
            flow.closed.as_ref().map(|closed| if seen_open { now } else { closed.at_ms.min(now) });
        // A snapshot repeats closed flows that an earlier stream of the same run has told.
        if !seen_open
            && closed_at.is_some()
            && self.closed.iter().any(|known| known.run == self.run && known.flow.id == id)
        {
            return None;
        }
        // The name of an address is that of the moment: the next pod may get the same address.
        let peer = before.as_ref().and_then(|before| before.peer.clone()).or(peer);
        let account = Arc::new(Account {
            pod: self.pod.clone(),
            run: self.run.clone(),
            peer,
            first_seen: before.as_ref().map_or(now, |before| before.first_seen),
            closed_at,
            flow,
        });
        if let Some(closed_at) = closed_at {
            self.open.remove(&id);
            let place = self.closed.partition_point(|known| known.closed_at.unwrap_or(0) <= closed_at);
            self.closed.insert(place, account.clone());
            if self.closed.len() > MAX_CLOSED
                && let Some(forgotten) = self.closed.pop_front()
            {
                self.complete_since = self.complete_since.max(forgotten.closed_at.unwrap_or(0) + 1);
                self.forgotten = self.forgotten.max(forgotten.closed_at);
            }
            let news = seen_open
                || account.flow.closed.as_ref().is_some_and(|closed| closed.at_ms >= self.snapshot_at);
            return news.then_some(account);
        }
        if !seen_open && self.open.len() >= MAX_OPEN {
            self.beyond += 1;
            return None;
        }
        let news = !seen_open && account.flow.opened_ms >= self.snapshot_at;
        self.open.insert(id, account.clone());
        news.then_some(account)
    }

    fn close_all(&mut self, now: u64) {
        let open = std::mem::take(&mut self.open);
        for account in open.into_values() {
            self.closed.push_back(Arc::new(Account { closed_at: Some(now), ..(*account).clone() }));
        }
        while self.closed.len() > MAX_CLOSED {
            let forgotten = self.closed.pop_front().and_then(|account| account.closed_at);
            self.forgotten = self.forgotten.max(forgotten);
        }
    }

    /// Of a proxy that is not heard any more, what was open counts until it fell silent.
    fn accounts(&self, now: u64) -> Vec<Arc<Account>> {
        let silent_since = match &self.state {
            State::Lost { at, .. } if at + PATIENCE_MS < now => Some(*at),
            _ => None,
        };
        let open = self.open.values().map(|account| match silent_since {
            Some(at) => Arc::new(Account { closed_at: Some(at), ..(**account).clone() }),
            None => account.clone(),
        });
        open.chain(self.closed.iter().cloned()).collect()
    }
}

/// How long closed flows are kept, in milliseconds: the widest window that edges can look back.
pub const KEEP_MS: u64 = 10 * 60 * 1000;
/// How long a proxy may be silent before it is told as unobserved, in milliseconds.
const PATIENCE_MS: u64 = 5_000;
const MAX_OPEN: usize = 20_000;
const MAX_CLOSED: usize = 5_000;
const EVENTS: usize = 4_096;
