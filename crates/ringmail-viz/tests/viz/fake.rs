//! Proxies and pods that are not there: a flows and tap server on a loopback address for each.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use futures::{StreamExt, stream};
use ringmail_api::flows::flows_server::{Flows, FlowsServer};
use ringmail_api::flows::{FlowBatch, ProxyInfo, WatchFlowsRequest};
use ringmail_api::linkerd::tap::tap_server::{Tap, TapServer};
use ringmail_api::linkerd::tap::{ObserveRequest, TapEvent};
use ringmail_viz::client::VizClient;
use ringmail_viz::names::{Changes, Named, NamedPod, Names};
use ringmail_viz::server::{Settings, VizServer};
use ringmail_vocab::Flow;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, watch};
use tokio_stream::wrappers::{BroadcastStream, TcpListenerStream, WatchStream};
use tonic::{Request, Response, Status};

use crate::support::{pod, unmeshed};

pub(crate) const SETTLE_MS: u64 = 400;

/// Pods that a test may change at any time.
#[derive(Clone)]
pub(crate) struct Pods(Arc<watch::Sender<Vec<Arc<NamedPod>>>>);

impl Pods {
    pub(crate) fn new(pods: Vec<Arc<NamedPod>>) -> Self {
        Self(Arc::new(watch::Sender::new(pods)))
    }

    pub(crate) fn set(&self, pods: Vec<Arc<NamedPod>>) {
        self.0.send_replace(pods);
    }
}

impl Names for Pods {
    fn pods(&self) -> Vec<Arc<NamedPod>> {
        self.0.borrow().clone()
    }

    fn by_ip(&self, ip: IpAddr) -> Option<Named> {
        self.0.borrow().iter().find(|pod| pod.ips.contains(&ip)).cloned().map(Named::Pod)
    }

    fn service(&self, _: &str, name: &str) -> Option<Vec<IpAddr>> {
        let behind: Vec<_> = self
            .pods()
            .iter()
            .filter(|pod| pod.workload.owner == name)
            .flat_map(|pod| pod.ips.clone())
            .collect();
        (!behind.is_empty()).then_some(behind)
    }

    fn changes(&self) -> Changes {
        Box::pin(WatchStream::from_changes(self.0.subscribe()).map(drop))
    }
}

/// A block of loopback addresses that no other test in this run uses: all proxies listen on one port.
pub(crate) fn addresses() -> impl FnMut(&str) -> Arc<NamedPod> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let block = NEXT.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id().to_le_bytes();
    let mut host = 0;
    move |name| {
        host += 1;
        let base = if name == "legacy" { unmeshed(name, host) } else { pod(name, host) };
        let ip = [127, process[0] | 1, process[1] ^ u8::try_from(block % 256).expect("a byte"), host];
        Arc::new(NamedPod { ips: vec![ip.into()], uid: format!("{}-{block}", base.uid), ..(*base).clone() })
    }
}

/// The proxy of one pod: what it says and what it was asked.
#[derive(Clone)]
pub(crate) struct FakeProxy {
    identity: String,
    first: Vec<Flow>,
    flows: broadcast::Sender<Vec<Flow>>,
    events: broadcast::Sender<TapEvent>,
    asked: Arc<Mutex<Vec<ObserveRequest>>>,
}

impl FakeProxy {
    /// Starts a proxy that bears `identity` and begins with these flows.
    pub(crate) async fn start(pod: &NamedPod, port: u16, identity: &str, first: Vec<Flow>) -> Self {
        let proxy = Self {
            identity: identity.to_owned(),
            first,
            flows: broadcast::channel(64).0,
            events: broadcast::channel(64).0,
            asked: Arc::default(),
        };
        let listener =
            TcpListener::bind(SocketAddr::new(pod.ips[0], port)).await.expect("a free loopback address");
        let server = tonic::transport::Server::builder()
            .add_service(FlowsServer::new(proxy.clone()))
            .add_service(TapServer::new(proxy.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        proxy
    }

    /// The proxy that a pod should have.
    pub(crate) async fn of(pod: &NamedPod, port: u16, first: Vec<Flow>) -> Self {
        let identity = pod.identity.as_ref().map(ToString::to_string).unwrap_or_default();
        Self::start(pod, port, &identity, first).await
    }

    pub(crate) fn tell(&self, flow: Flow) {
        let _ = self.flows.send(vec![flow]);
    }

    pub(crate) fn happens(&self, event: TapEvent) -> bool {
        self.events.send(event).is_ok()
    }

    pub(crate) fn asked(&self) -> Vec<ObserveRequest> {
        self.asked.lock().expect("no panic").clone()
    }
}

#[tonic::async_trait]
impl Flows for FakeProxy {
    type WatchStream = stream::BoxStream<'static, Result<FlowBatch, Status>>;

    async fn watch(&self, _: Request<WatchFlowsRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let batch = |flows: Vec<Flow>| FlowBatch {
            flows: flows.iter().map(Into::into).collect(),
            ..FlowBatch::default()
        };
        let proxy =
            ProxyInfo { identity: self.identity.clone(), version: "0".to_owned(), run: "run".to_owned() };
        let first = FlowBatch { proxy: Some(proxy), ..batch(self.first.clone()) };
        let later = BroadcastStream::new(self.flows.subscribe())
            .filter_map(move |flows| async move { flows.ok().map(batch).map(Ok) });
        Ok(Response::new(stream::iter([Ok(first)]).chain(later).boxed()))
    }
}

#[tonic::async_trait]
impl Tap for FakeProxy {
    type ObserveStream = stream::BoxStream<'static, Result<TapEvent, Status>>;

    async fn observe(
        &self,
        request: Request<ObserveRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let request = request.into_inner();
        let prefix = path_prefix(&request);
        self.asked.lock().expect("no panic").push(request);
        let events = BroadcastStream::new(self.events.subscribe());
        let matching = events.filter_map(move |event| {
            let event = event.ok().filter(|event| path(event).is_none_or(|path| path.starts_with(&prefix)));
            std::future::ready(event.map(Ok))
        });
        Ok(Response::new(matching.boxed()))
    }
}

/// The one condition that the fake knows.
fn path_prefix(request: &ObserveRequest) -> String {
    use ringmail_api::linkerd::tap::observe_request::r#match::http::{Match as HttpMatch, string_match};
    use ringmail_api::linkerd::tap::observe_request::r#match::{Http, Match, Seq};
    let Some(Match::All(Seq { matches })) = request.r#match.as_ref().and_then(|tree| tree.r#match.as_ref())
    else {
        return String::new();
    };
    let prefix = matches.iter().find_map(|part| match &part.r#match {
        Some(Match::Http(Http { r#match: Some(HttpMatch::Path(path)) })) => match &path.r#match {
            Some(string_match::Match::Prefix(prefix)) => Some(prefix.clone()),
            _ => None,
        },
        _ => None,
    });
    prefix.unwrap_or_default()
}

fn path(event: &TapEvent) -> Option<&str> {
    use ringmail_api::linkerd::tap::tap_event::{Event, http};
    match &event.event {
        Some(Event::Http(kind)) => match &kind.event {
            Some(http::Event::RequestInit(init)) => Some(&init.path),
            _ => None,
        },
        None => None,
    }
}

/// Starts viz and connects to it.
pub(crate) async fn viz(pods: &Pods, port: u16) -> VizClient {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let settings = Settings {
        control_port: port,
        settle: std::time::Duration::from_millis(SETTLE_MS),
        ..Settings::new("ringmail")
    };
    tokio::spawn(VizServer::new(pods.clone(), settings).serve(listener, std::future::pending()));
    VizClient::over(TcpStream::connect(address).await.expect("viz listens")).await.expect("viz answers")
}

/// Asks again until the answer fits, at most ten seconds.
pub(crate) async fn until<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(std::time::Instant::now() < deadline, "no fitting answer in ten seconds");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
