//! One tap: as many proxies as it chooses, one stream of items.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use prost::Message as _;
use ringmail_api::flows;
use ringmail_api::linkerd::tap::TapEvent;
use ringmail_api::linkerd::tap::tap_client::TapClient;
use ringmail_api::linkerd::tap::tap_event::http::Event;
use ringmail_api::linkerd::tap::tap_event::{self, ProxyDirection};
use ringmail_api::viz::{TapItem, TapNote, tap_item};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::plan::{Plan, plural};
use super::{matching, nearest};
use crate::collect::{connect, said};
use crate::names::{Named, NamedPod, Names};
use crate::redact::redact;
use crate::resource::Kind;
use crate::store::Store;

pub(super) struct Tap {
    pub(super) plan: Plan,
    pub(super) names: Arc<dyn Names>,
    pub(super) store: Arc<Store>,
    pub(super) port: u16,
    pub(super) items: mpsc::Sender<Result<TapItem, Status>>,
}

/// What the tasks of one tap share.
struct Shared {
    tap: Tap,
    /// Whether anything has been shown.
    seen: AtomicBool,
    /// Items that the reader was too slow for.
    dropped: AtomicU64,
}

impl Tap {
    /// Runs until the reader goes.
    pub(super) async fn run(self) {
        let shared = Arc::new(Shared { tap: self, seen: AtomicBool::new(false), dropped: AtomicU64::new(0) });
        let closed = shared.clone();
        tokio::select! {
            () = closed.tap.items.closed() => {}
            () = async { if closed.tap.plan.tcp { connections(shared).await } else { requests(shared).await } } => {}
            () = remarks(closed.clone()) => {}
        }
    }
}

impl Shared {
    fn show(&self, item: TapItem) {
        self.seen.store(true, Ordering::Relaxed);
        if self.tap.items.try_send(Ok(item)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn note(&self, text: String) {
        let item = TapItem { item: Some(tap_item::Item::Note(TapNote { text })), ..TapItem::default() };
        let _ = self.tap.items.send(Ok(item)).await;
    }

    fn labels(&self, address: Option<IpAddr>) -> HashMap<String, String> {
        let Some(ip) = address.map(|ip| ip.to_canonical()) else { return HashMap::new() };
        match self.tap.names.by_ip(ip) {
            Some(Named::Pod(pod)) => pod_labels(&pod),
            Some(Named::Node) => HashMap::from([("node".to_owned(), ip.to_string())]),
            None => HashMap::new(),
        }
    }
}

/// Keeps a task for each pod that is chosen, whatever pods come and go.
async fn requests(shared: Arc<Shared>) {
    let mut changes = shared.tap.names.changes();
    let mut watched: HashMap<String, (Vec<IpAddr>, u32, AbortHandle)> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let pods = shared.tap.plan.tapped(shared.tap.names.as_ref());
        let (limit, window) = shared.tap.plan.budget(pods.len());
        watched.retain(|uid, (ips, budget, task)| {
            let stays = pods.iter().any(|pod| pod.uid == *uid && pod.ips == *ips) && *budget == limit;
            if !stays {
                task.abort();
            }
            stays
        });
        for pod in pods {
            watched.entry(pod.uid.clone()).or_insert_with(|| {
                let ips = pod.ips.clone();
                (ips, limit, tasks.spawn(observe(shared.clone(), pod, limit, window)))
            });
        }
        while tasks.try_join_next().is_some() {}
        if changes.next().await.is_none() {
            changes = shared.tap.names.changes();
            sleep(PAUSE).await;
        }
        sleep(PAUSE).await;
    }
}

/// Observes one proxy for ever. Each stream shows at most `limit` requests; the next begins when it is used up, and not
/// before `window` has passed since its first request. What is still to come of those requests is read beside the next.
async fn observe(shared: Arc<Shared>, pod: Arc<NamedPod>, limit: u32, window: Duration) {
    let mut backoff = PAUSE;
    let mut drains = Drains::default();
    let mut complained = false;
    // One connection for all streams: a proxy bounds how many it takes.
    let mut channel = None;
    loop {
        match observe_once(&shared, &pod, limit, &mut channel, &mut drains).await {
            Ok(first) => {
                backoff = PAUSE;
                let next = first.map_or_else(|| Instant::now() + PAUSE, |first| first + window);
                sleep_until(next).await;
            }
            Err(reason) => {
                channel = None;
                if !std::mem::replace(&mut complained, true) {
                    shared.note(format!("{}: {reason}; trying again", pod.full_name())).await;
                }
                sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
    }
}

/// One stream, until its requests are used up. Returns when the first of them began.
async fn observe_once(
    shared: &Arc<Shared>,
    pod: &Arc<NamedPod>,
    limit: u32,
    channel: &mut Option<Channel>,
    drains: &mut Drains,
) -> Result<Option<Instant>, String> {
    let plan = &shared.tap.plan;
    let to = plan.to_ips(shared.tap.names.as_ref()).map(Arc::new);
    let request = matching::request(plan, to.as_deref(), &pod.ips, limit);
    let ip = pod.ips.first().ok_or("it has no address")?;
    let connected = match channel.take() {
        Some(channel) => channel,
        None => connect(SocketAddr::new(*ip, shared.tap.port)).await?,
    };
    let stream = TapClient::new(channel.insert(connected).clone()).observe(request).await;
    let mut stream = stream
        .map_err(|status| format!("RM1703: its proxy refused the tap: {}", said(&status)))?
        .into_inner();
    let (mut begun, mut first) = (0, None);
    while begun < limit {
        let event = match stream.message().await {
            Ok(Some(event)) => event,
            Ok(None) => return Ok(first),
            Err(status) => return Err(format!("RM1703: its proxy ended the tap: {}", said(&status))),
        };
        if is_begin(&event) {
            begun += 1;
            first.get_or_insert_with(Instant::now);
        }
        forward(shared, event, to.as_deref());
    }
    drains.add(shared.clone(), stream, to);
    Ok(first)
}

/// Streams whose requests are used up and whose responses are still to come, at most so many.
#[derive(Default)]
struct Drains {
    tasks: JoinSet<()>,
    order: VecDeque<AbortHandle>,
}

impl Drains {
    fn add(
        &mut self,
        shared: Arc<Shared>,
        mut stream: Streaming<TapEvent>,
        to: Option<Arc<HashSet<IpAddr>>>,
    ) {
        while self.tasks.try_join_next().is_some() {}
        self.order.retain(|task| !task.is_finished());
        if self.order.len() >= MAX_DRAINS
            && let Some(oldest) = self.order.pop_front()
        {
            oldest.abort();
        }
        let task = self.tasks.spawn(async move {
            while let Ok(Some(event)) = stream.message().await {
                forward(&shared, event, to.as_deref());
            }
        });
        self.order.push_back(task);
    }
}

fn forward(shared: &Shared, mut event: TapEvent, to: Option<&HashSet<IpAddr>>) {
    let ip = |address: Option<&ringmail_api::linkerd::net::TcpAddress>| {
        address.and_then(|address| address.ip).and_then(|ip| IpAddr::try_from(ip).ok())
    };
    let (source, destination) = (ip(event.source.as_ref()), ip(event.destination.as_ref()));
    if let Some(to) = to {
        let there = destination.is_some_and(|ip| to.contains(&ip.to_canonical()));
        if !there || event.proxy_direction() == ProxyDirection::Inbound {
            return;
        }
    }
    clean(&mut event, shared.tap.plan.headers);
    shared.show(TapItem {
        src_labels: shared.labels(source),
        dst_labels: shared.labels(destination),
        item: Some(tap_item::Item::Event(event.encode_to_vec())),
    });
}

/// Headers only if they are wanted, and secrets never.
fn clean(event: &mut TapEvent, wanted: bool) {
    let Some(tap_event::Event::Http(http)) = &mut event.event else { return };
    let headers = match &mut http.event {
        Some(Event::RequestInit(init)) => &mut init.headers,
        Some(Event::ResponseInit(init)) => &mut init.headers,
        Some(Event::ResponseEnd(end)) => &mut end.trailers,
        None => return,
    };
    match headers {
        Some(headers) if wanted => redact(headers),
        _ => *headers = None,
    }
}

fn is_begin(event: &TapEvent) -> bool {
    let Some(tap_event::Event::Http(http)) = &event.event else { return false };
    matches!(http.event, Some(Event::RequestInit(_)))
}

/// Connections that open and close, from what is collected anyway.
async fn connections(shared: Arc<Shared>) {
    let mut events = shared.tap.store.events();
    loop {
        let event = match events.recv().await {
            Ok(event) => event,
            Err(RecvError::Lagged(missed)) => {
                shared.dropped.fetch_add(missed, Ordering::Relaxed);
                continue;
            }
            Err(RecvError::Closed) => return,
        };
        let names = shared.tap.names.as_ref();
        if !shared.tap.plan.tapped(names).iter().any(|pod| pod.uid == event.pod.uid) {
            continue;
        }
        let flow = &event.account.flow;
        if shared.tap.plan.to_ips(names).is_some_and(|to| !to.contains(&flow.dst.ip().to_canonical())) {
            continue;
        }
        let own = pod_labels(&event.pod);
        let peer = match &event.account.peer {
            Some(Named::Pod(pod)) => pod_labels(pod),
            _ => shared.labels(Some(crate::join::Account::peer_address(flow).ip())),
        };
        let (src_labels, dst_labels) = match flow.direction {
            ringmail_vocab::Direction::Inbound => (peer, own),
            ringmail_vocab::Direction::Outbound => (own, peer),
        };
        let flow = flows::Flow::from(flow).encode_to_vec();
        shared.show(TapItem { src_labels, dst_labels, item: Some(tap_item::Item::Flow(flow)) });
    }
}

/// Says what is watched and what came nearest when nothing has matched for a while, and how much was lost.
async fn remarks(shared: Arc<Shared>) {
    sleep(QUIET).await;
    if !shared.seen.load(Ordering::Relaxed) {
        let text = nearest::describe(&shared.tap).await;
        if !shared.seen.load(Ordering::Relaxed) {
            shared.note(text).await;
        }
    }
    loop {
        sleep(QUIET).await;
        let dropped = shared.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let what = plural(usize::try_from(dropped).unwrap_or(usize::MAX), "event");
            shared.note(format!("{what} not shown: they came faster than they could be printed")).await;
        }
    }
}

fn pod_labels(pod: &NamedPod) -> HashMap<String, String> {
    let workload = &pod.workload;
    let mut labels = HashMap::from([
        ("pod".to_owned(), workload.pod.clone()),
        ("namespace".to_owned(), workload.namespace.clone()),
        ("serviceaccount".to_owned(), workload.service_account.clone()),
    ]);
    if !workload.owner_kind.is_empty() {
        labels.insert(Kind::label(&workload.owner_kind).to_owned(), workload.owner.clone());
    }
    for (label, name) in
        [("ringmail.dev/control-plane-ns", "control_plane_ns"), ("pod-template-hash", "pod_template_hash")]
    {
        if let Some(value) = pod.labels.get(label) {
            labels.insert(name.to_owned(), value.clone());
        }
    }
    labels
}

const PAUSE: Duration = Duration::from_millis(200);
const QUIET: Duration = Duration::from_secs(3);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
const MAX_DRAINS: usize = 32;
