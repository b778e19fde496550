//! A control plane whose answers a test gives, and changes, and takes away.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use linkerd2_proxy_api::destination::destination_server::{Destination, DestinationServer};
use linkerd2_proxy_api::destination::{
    AddrSet, DestinationProfile, GetDestination, NoEndpoints, TlsIdentity, Update, WeightedAddr,
    WeightedAddrSet,
    tls_identity::{DnsLikeIdentity, Strategy},
    update,
};
use linkerd2_proxy_api::inbound as policy;
use linkerd2_proxy_api::inbound::inbound_server_policies_server::{
    InboundServerPolicies, InboundServerPoliciesServer,
};
use linkerd2_proxy_api::meta::{Metadata, metadata};
use parking_lot::Mutex;
use ringmail_api::sources;
use ringmail_api::sources::sources_server::{Sources, SourcesServer};
use ringmail_identity::Identity;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

/// The script of one kind of watch: what each key's streams have been told, in order, from the start of the stream.
struct Script<M> {
    told: Mutex<HashMap<String, Vec<Result<M, Status>>>>,
    more: broadcast::Sender<(String, Result<M, Status>)>,
    opened: AtomicUsize,
}

impl<M: Clone + Send + 'static> Script<M> {
    fn new() -> Self {
        Self { told: Mutex::default(), more: broadcast::channel(256).0, opened: AtomicUsize::new(0) }
    }

    /// What streams for `key` begin with from now on; those that are open hear it too.
    fn tell(&self, key: &str, message: Result<M, Status>, keep: bool) {
        let mut told = self.told.lock();
        let script = told.entry(key.to_owned()).or_default();
        if !keep {
            script.clear();
        }
        script.push(message.clone());
        let _ = self.more.send((key.to_owned(), message));
    }

    fn watch(&self, key: String) -> ReceiverStream<Result<M, Status>> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        let told = self.told.lock();
        let (sender, receiver) = mpsc::channel(64);
        let mut more = self.more.subscribe();
        let begin = told.get(&key).cloned().unwrap_or_default();
        drop(told);
        tokio::spawn(async move {
            for message in begin {
                if sender.send(message).await.is_err() {
                    return;
                }
            }
            loop {
                tokio::select! {
                    () = sender.closed() => return,
                    next = more.recv() => match next {
                        Ok((about, message)) if about == key => {
                            let last = message.is_err();
                            if sender.send(message).await.is_err() || last {
                                return;
                            }
                        }
                        Ok(_) => {}
                        Err(_) => return,
                    }
                }
            }
        });
        ReceiverStream::new(receiver)
    }
}

struct Scripts {
    profiles: Script<DestinationProfile>,
    services: Script<Update>,
    policies: Script<policy::Server>,
    sources: Script<sources::Source>,
}

/// The control plane. Its answers outlive its outages.
#[derive(Clone)]
pub struct Plane {
    scripts: Arc<Scripts>,
    pub addr: SocketAddr,
    server: Arc<Mutex<Option<Running>>>,
}

struct Running(Option<tokio::runtime::Runtime>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Plane {
    /// One that does not answer yet.
    pub async fn down() -> Self {
        // An address that was free a moment ago, on a loopback address that nothing else here uses.
        let listener = TcpListener::bind("127.0.0.77:0").await.expect("binds");
        let scripts = Scripts {
            profiles: Script::new(),
            services: Script::new(),
            policies: Script::new(),
            sources: Script::new(),
        };
        let addr = listener.local_addr().expect("has one");
        Self { scripts: Arc::new(scripts), addr, server: Arc::default() }
    }

    pub async fn up() -> Self {
        let this = Self::down().await;
        this.start();
        this
    }

    pub fn start(&self) {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM.nonblocking(), None)
            .expect("makes");
        socket.set_reuse_address(true).expect("sets");
        socket.bind(&self.addr.into()).expect("binds");
        socket.listen(64).expect("listens");
        let builder = Server::builder()
            .add_service(DestinationServer::new(self.clone()))
            .add_service(InboundServerPoliciesServer::new(self.clone()))
            .add_service(SourcesServer::new(self.clone()));
        // A runtime of its own, so that all of it can be taken away at once.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("builds");
        runtime.spawn(async move {
            let listener = TcpListener::from_std(socket.into()).expect("registers");
            builder.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)).await
        });
        *self.server.lock() = Some(Running(Some(runtime)));
    }

    /// Ends the server and every connection to it.
    pub fn stop(&self) {
        *self.server.lock() = None;
    }

    /// A client's channel, which reconnects by itself.
    pub fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.addr)).expect("a URI").connect_lazy()
    }

    pub fn profiles_opened(&self) -> usize {
        self.scripts.profiles.opened.load(Ordering::Relaxed)
    }

    pub fn sources_opened(&self) -> usize {
        self.scripts.sources.opened.load(Ordering::Relaxed)
    }

    pub fn profile(&self, addr: SocketAddr, profile: DestinationProfile) {
        self.scripts.profiles.tell(&addr.to_string(), Ok(profile), false);
    }

    pub fn profile_refused(&self, addr: SocketAddr, status: Status) {
        self.scripts.profiles.tell(&addr.to_string(), Err(status), false);
    }

    /// `addr` belongs to the service `name`.
    pub fn is_service(&self, addr: SocketAddr, name: &str) {
        self.profile(
            addr,
            DestinationProfile { fully_qualified_name: name.to_owned(), ..DestinationProfile::default() },
        );
    }

    /// `addr` is one pod.
    pub fn is_pod(&self, addr: SocketAddr, peer: Option<&Identity>) {
        self.profile(
            addr,
            DestinationProfile { endpoint: Some(endpoint(addr, peer)), ..DestinationProfile::default() },
        );
    }

    /// The endpoints of `name:port` are these from now on.
    pub fn endpoints(&self, name: &str, endpoints: Vec<WeightedAddr>) {
        let add = WeightedAddrSet {
            addrs: endpoints,
            metric_labels: [("service".to_owned(), "web".to_owned())].into(),
        };
        self.scripts.services.tell(name, Ok(Update { update: Some(update::Update::Add(add)) }), false);
    }

    /// One more message to the streams of `name:port`.
    pub fn remove(&self, name: &str, addrs: &[SocketAddr]) {
        let remove = AddrSet { addrs: addrs.iter().map(|addr| (*addr).into()).collect() };
        self.scripts.services.tell(name, Ok(Update { update: Some(update::Update::Remove(remove)) }), true);
    }

    pub fn no_endpoints(&self, name: &str) {
        let none = update::Update::NoEndpoints(NoEndpoints { exists: true });
        self.scripts.services.tell(name, Ok(Update { update: Some(none) }), false);
    }

    pub fn policy(&self, port: u16, server: policy::Server) {
        self.scripts.policies.tell(&port.to_string(), Ok(server), false);
    }

    pub fn source(&self, ip: &str, port: u16, kind: sources::source::Kind) {
        let source = sources::Source { kind: kind as i32, identity: String::new() };
        self.scripts.sources.tell(&format!("{ip} {port}"), Ok(source), false);
    }
}

pub fn endpoint(addr: SocketAddr, peer: Option<&Identity>) -> WeightedAddr {
    WeightedAddr {
        addr: Some(addr.into()),
        tls_identity: peer.map(|peer| TlsIdentity {
            strategy: Some(Strategy::DnsLikeIdentity(DnsLikeIdentity { name: peer.to_string() })),
            server_name: Some(DnsLikeIdentity { name: peer.to_string() }),
        }),
        ..WeightedAddr::default()
    }
}

pub fn named(name: &str) -> Metadata {
    Metadata { kind: Some(metadata::Kind::Default(name.to_owned())) }
}

pub fn network(net: &str) -> policy::Network {
    policy::Network { net: Some(net.parse::<ipnet::IpNet>().expect("a network").into()), except: Vec::new() }
}

pub fn anybody(networks: &[&str]) -> policy::Authz {
    use policy::authn::{Permit, PermitUnauthenticated};
    policy::Authz {
        networks: networks.iter().map(|net| network(net)).collect(),
        authentication: Some(policy::Authn {
            permit: Some(Permit::Unauthenticated(PermitUnauthenticated {})),
        }),
        metadata: Some(named("anybody")),
        ..policy::Authz::default()
    }
}

pub fn only(identities: &[&Identity]) -> policy::Authz {
    use policy::authn::permit_mesh_tls::{Clients, PermitClientIdentities};
    use policy::authn::{Permit, PermitMeshTls};
    let identities =
        identities.iter().map(|identity| policy::Identity { name: identity.to_string() }).collect();
    let clients = Clients::Identities(PermitClientIdentities { identities, suffixes: Vec::new() });
    policy::Authz {
        networks: vec![network("0.0.0.0/0")],
        authentication: Some(policy::Authn {
            permit: Some(Permit::MeshTls(PermitMeshTls { clients: Some(clients) })),
        }),
        metadata: Some(named("only-some")),
        ..policy::Authz::default()
    }
}

pub fn probe(path: &str, networks: &[&str]) -> policy::HttpRoute {
    exempt(linkerd2_proxy_api::http_types::http_method::Registered::Get, path, networks)
}

/// What the control plane lets in for a gRPC probe.
pub fn grpc_probe(networks: &[&str]) -> policy::HttpRoute {
    let post = linkerd2_proxy_api::http_types::http_method::Registered::Post;
    exempt(post, "/grpc.health.v1.Health/Check", networks)
}

fn exempt(
    method: linkerd2_proxy_api::http_types::http_method::Registered,
    path: &str,
    networks: &[&str],
) -> policy::HttpRoute {
    use linkerd2_proxy_api::http_route::{HttpRouteMatch, PathMatch, path_match};
    use linkerd2_proxy_api::http_types::{HttpMethod, http_method};
    let method = HttpMethod { r#type: Some(http_method::Type::Registered(method as i32)) };
    let path = PathMatch { kind: Some(path_match::Kind::Exact(path.to_owned())) };
    let matched = HttpRouteMatch { path: Some(path), method: Some(method), ..HttpRouteMatch::default() };
    policy::HttpRoute {
        metadata: Some(named("probe")),
        authorizations: vec![anybody(networks)],
        rules: vec![policy::http_route::Rule { matches: vec![matched], filters: Vec::new() }],
        ..policy::HttpRoute::default()
    }
}

pub fn server_policy(
    authorizations: Vec<policy::Authz>,
    http_routes: Vec<policy::HttpRoute>,
) -> policy::Server {
    let detect = policy::proxy_protocol::Detect { http_routes, ..policy::proxy_protocol::Detect::default() };
    policy::Server {
        protocol: Some(policy::ProxyProtocol { kind: Some(policy::proxy_protocol::Kind::Detect(detect)) }),
        authorizations,
        labels: [("name".to_owned(), "test".to_owned())].into(),
        ..policy::Server::default()
    }
}

type Watch<M> = Pin<Box<dyn tokio_stream::Stream<Item = Result<M, Status>> + Send>>;

#[tonic::async_trait]
impl Destination for Plane {
    type GetStream = Watch<Update>;
    type GetProfileStream = Watch<DestinationProfile>;

    async fn get(&self, request: Request<GetDestination>) -> Result<Response<Self::GetStream>, Status> {
        Ok(Response::new(Box::pin(self.scripts.services.watch(request.into_inner().path))))
    }

    async fn get_profile(
        &self,
        request: Request<GetDestination>,
    ) -> Result<Response<Self::GetProfileStream>, Status> {
        Ok(Response::new(Box::pin(self.scripts.profiles.watch(request.into_inner().path))))
    }
}

#[tonic::async_trait]
impl InboundServerPolicies for Plane {
    type WatchPortStream = Watch<policy::Server>;

    async fn get_port(&self, _: Request<policy::PortSpec>) -> Result<Response<policy::Server>, Status> {
        Err(Status::unimplemented("the proxy watches"))
    }

    async fn watch_port(
        &self,
        request: Request<policy::PortSpec>,
    ) -> Result<Response<Self::WatchPortStream>, Status> {
        Ok(Response::new(Box::pin(self.scripts.policies.watch(request.into_inner().port.to_string()))))
    }
}

#[tonic::async_trait]
impl Sources for Plane {
    type WatchStream = Watch<sources::Source>;

    async fn watch(
        &self,
        request: Request<sources::SourceRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        Ok(Response::new(Box::pin(self.scripts.sources.watch(format!("{} {}", request.ip, request.port)))))
    }
}
