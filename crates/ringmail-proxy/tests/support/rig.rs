//! Proxies in this process: outbound and inbound, over loopback, with original destinations that a test gives.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ringmail_identity::{Identity, WorkloadId};
use ringmail_proxy::accept::Limits;
use ringmail_proxy::config::Config;
use ringmail_proxy::discovery::Discovery;
use ringmail_proxy::drain::{Drain, DrainTrigger};
use ringmail_proxy::flows::Flows;
use ringmail_proxy::inbound::{self, InboundContext};
use ringmail_proxy::metrics::Metrics;
use ringmail_proxy::orig_dst::OriginalDst;
use ringmail_proxy::outbound::{self, OutboundContext};
use ringmail_proxy::policy::Policies;
use ringmail_proxy::sources::Sources;
use ringmail_proxy::tap::TapHub;
use ringmail_proxy::tls::Credentials;
use ringmail_vocab::{Flow, Security};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::plane::Plane;
use super::{Mesh, config};

/// One proxy, without its listeners.
pub struct Proxy {
    pub config: Arc<Config>,
    pub credentials: watch::Sender<Option<Arc<Credentials>>>,
    pub flows: Flows,
    pub hub: TapHub,
    pub metrics: Metrics,
    pub drain: Drain,
    pub trigger: DrainTrigger,
    pub discovery: Discovery,
    pub policies: Policies,
    pub sources: Sources,
    pub limits: Limits,
}

impl Proxy {
    /// A proxy of `id` with a certificate, whose control plane is `plane`.
    pub fn new(mesh: &Mesh, id: &WorkloadId, plane: &Plane, more: &[(&str, &str)]) -> Self {
        Self::with(mesh, &id.identity(), Some(mesh.credentials(id)), plane, more)
    }

    pub fn with(
        mesh: &Mesh,
        local: &Identity,
        credentials: Option<Arc<Credentials>>,
        plane: &Plane,
        more: &[(&str, &str)],
    ) -> Self {
        let networks = [("DESTINATION_PROFILE_NETWORKS", "127.0.0.0/8"), ("HANDSHAKE_TIMEOUT", "5s")];
        let all: Vec<_> = networks.iter().chain(more).copied().collect();
        let config = Arc::new(config(mesh, local, Path::new("/nonexistent"), &all));
        let metrics = Metrics::new();
        let (trigger, drain) = Drain::new();
        Self {
            discovery: Discovery::start((&*config).into(), plane.channel()),
            policies: Policies::start((&*config).into(), plane.channel()),
            sources: Sources::start(plane.channel()),
            credentials: watch::Sender::new(credentials),
            flows: Flows::new("test", metrics.clone()),
            hub: TapHub::new(metrics.clone()),
            metrics,
            drain,
            trigger,
            limits: Limits::new(2_000, 100),
            config,
        }
    }

    /// An outbound listener whose connections all mean `original_dst`.
    pub async fn outbound(&self, original_dst: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("has one");
        self.outbound_on(listener, OriginalDst::fixed(original_dst));
        addr
    }

    pub fn outbound_on(&self, listener: TcpListener, original_dst: OriginalDst) {
        let context = OutboundContext {
            config: Arc::clone(&self.config),
            credentials: self.credentials.subscribe(),
            flows: self.flows.clone(),
            hub: self.hub.clone(),
            metrics: self.metrics.clone(),
            discovery: self.discovery.clone(),
            drain: self.drain.clone(),
            original_dst,
            limits: self.limits.clone(),
        };
        tokio::spawn(outbound::serve(listener, context));
    }

    /// An inbound listener whose connections all mean the application at `app`.
    pub async fn inbound(&self, app: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("has one");
        let context = InboundContext {
            config: Arc::clone(&self.config),
            credentials: self.credentials.subscribe(),
            flows: self.flows.clone(),
            hub: self.hub.clone(),
            metrics: self.metrics.clone(),
            policies: self.policies.clone(),
            sources: self.sources.clone(),
            drain: self.drain.clone(),
            original_dst: OriginalDst::fixed(app),
            limits: self.limits.clone(),
        };
        tokio::spawn(inbound::serve(listener, context));
        addr
    }

    /// The first flow, open or closed, that `wanted` takes.
    pub async fn flow(&self, what: &str, wanted: impl Fn(&Flow) -> bool) -> Flow {
        let mut watcher = self.flows.subscribe();
        let mut seen = Vec::new();
        let search = async {
            loop {
                for flow in watcher.next().await.flows {
                    if wanted(&flow) {
                        return Flow::clone(&flow);
                    }
                    seen.push(flow);
                }
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(20), search).await;
        found.unwrap_or_else(|_| panic!("no flow: {what}; there were {seen:#?}"))
    }

    /// The first flow that is closed.
    pub async fn closed(&self) -> Flow {
        self.flow("a closed one", |flow| flow.closed.is_some()).await
    }

    /// The first flow that is closed and was refused.
    pub async fn refused(&self) -> Flow {
        let refused =
            |flow: &Flow| flow.closed.is_some() && matches!(flow.security, Security::Refused { .. });
        self.flow("a refused one", refused).await
    }
}

/// What an application does with a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// Sends back what comes.
    Echo,
    /// Greets first, then sends back what comes.
    First,
}

/// An application that knows nothing of any mesh.
pub struct App {
    pub addr: SocketAddr,
    /// What each connection brought, in the order of the connections.
    pub got: Arc<Mutex<Vec<Vec<u8>>>>,
}

pub const GREETING: &[u8] = b"220 ready\r\n";

impl App {
    pub async fn start(speaks: Speaks) -> Self {
        Self::start_at("127.0.0.1:0", speaks).await
    }

    pub async fn start_at(addr: &str, speaks: Speaks) -> Self {
        let listener = TcpListener::bind(addr).await.expect("binds");
        let addr = listener.local_addr().expect("has one");
        let got: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let record = Arc::clone(&got);
        tokio::spawn(async move {
            loop {
                let Ok((mut stream, _)) = listener.accept().await else { return };
                let index = {
                    let mut record = record.lock();
                    record.push(Vec::new());
                    record.len() - 1
                };
                let record = Arc::clone(&record);
                tokio::spawn(async move {
                    if speaks == Speaks::First && stream.write_all(GREETING).await.is_err() {
                        return;
                    }
                    let mut buf = [0; 4096];
                    while let Ok(read @ 1..) = stream.read(&mut buf).await {
                        record.lock()[index].extend_from_slice(&buf[..read]);
                        if stream.write_all(&buf[..read]).await.is_err() {
                            return;
                        }
                    }
                    let _ = stream.shutdown().await;
                });
            }
        });
        Self { addr, got }
    }

    pub fn connections(&self) -> usize {
        self.got.lock().len()
    }
}

/// Sends, ends its direction, and takes what comes back.
pub async fn ask(addr: SocketAddr, text: &[u8]) -> std::io::Result<Vec<u8>> {
    let work = async {
        let mut stream = TcpStream::connect(addr).await?;
        stream.write_all(text).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("an end, good or bad")
}
