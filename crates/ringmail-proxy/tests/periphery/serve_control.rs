//! Who may ask port 4190, and what the others are told.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use ringmail_api::flows::WatchFlowsRequest;
use ringmail_api::flows::flows_client::FlowsClient;
use ringmail_api::linkerd::tap::ObserveRequest;
use ringmail_api::linkerd::tap::tap_client::TapClient;
use ringmail_identity::Identity;
use ringmail_identity::anchors::TrustAnchors;
use ringmail_proxy::flows::{Flows, Subscription};
use ringmail_proxy::metrics::Metrics;
use ringmail_proxy::serve_control::{self, ControlContext};
use ringmail_proxy::tap::TapHub;
use ringmail_proxy::tls::{self, Credentials, CredentialsRx};
use ringmail_vocab::{CloseReason, Closed, Direction, Flow, PlaintextReason, RefusalReason, Security};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tonic::Code;

use super::support::{self, Mesh};

struct Proxy {
    addr: SocketAddr,
    local: Identity,
    flows: Flows,
    metrics: Metrics,
    _credentials: watch::Sender<Option<Arc<Credentials>>>,
}

impl Proxy {
    async fn start(mesh: &Arc<Mesh>, service_account: &str, allowed: Option<Identity>) -> Self {
        let id = mesh.id(service_account, "ballot");
        Self::with(Some(mesh.credentials(&id)), id.identity(), allowed).await
    }

    async fn with(credentials: Option<Arc<Credentials>>, local: Identity, allowed: Option<Identity>) -> Self {
        Self::patient(credentials, local, allowed, Duration::from_millis(500)).await
    }

    async fn patient(
        credentials: Option<Arc<Credentials>>,
        local: Identity,
        allowed: Option<Identity>,
        handshake_timeout: Duration,
    ) -> Self {
        let metrics = Metrics::new();
        let flows = Flows::new("run-7", metrics.clone());
        let (sender, credentials): (_, CredentialsRx) = watch::channel(credentials);
        let context = ControlContext {
            credentials,
            local: local.clone(),
            allowed,
            own_ips: Arc::new(BTreeSet::new()),
            handshake_timeout,
            flows: flows.clone(),
            hub: TapHub::new(metrics.clone()),
            metrics: metrics.clone(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("has one");
        tokio::spawn(serve_control::serve(listener, context));
        Self { addr, local, flows, metrics, _credentials: sender }
    }

    async fn plain(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.expect("connects")
    }

    /// A channel over TLS, with a client certificate or without.
    async fn channel(&self, mesh: &Mesh, credentials: Option<&Credentials>) -> Channel {
        let connecting =
            tls::connect(self.plain().await, credentials, &mesh.anchors, &self.local, self.local.as_str());
        Channel::over(connecting.await.expect("a handshake")).await.expect("HTTP/2")
    }
}

/// HTTP/2 over a given stream, as tonic's clients take it.
#[derive(Clone)]
struct Channel(hyper::client::conn::http2::SendRequest<tonic::body::Body>);

impl Channel {
    async fn over<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static>(io: IO) -> Result<Self, hyper::Error> {
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await;
        let (sender, connection) = handshake?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }
}

impl tower::Service<http::Request<tonic::body::Body>> for Channel {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<tonic::body::Body>) -> Self::Future {
        let path = request.uri().path().to_owned();
        *request.uri_mut() = format!("http://proxy{path}").parse().expect("a URI");
        Box::pin(self.0.send_request(request))
    }
}

fn viz(mesh: &Mesh) -> (Identity, Arc<Credentials>) {
    let id = mesh.id("viz", "ringmail");
    (id.identity(), mesh.credentials(&id))
}

/// The next flow that is closed.
async fn closed(watcher: &mut Subscription) -> (Arc<Flow>, Closed) {
    let find = async {
        loop {
            if let Some(flow) = watcher.next().await.flows.into_iter().find(|flow| flow.closed.is_some()) {
                let closed = flow.closed.clone().expect("is closed");
                return (flow, closed);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), find).await.expect("ends in time")
}

#[tokio::test]
async fn the_one_that_may_gets_who_the_proxy_is_and_its_flows_with_its_own_among_them() {
    let mesh = Mesh::new();
    let (viz, credentials) = viz(&mesh);
    let proxy = Proxy::start(&mesh, "web", Some(viz.clone())).await;
    let channel = proxy.channel(&mesh, Some(&credentials)).await;
    let mut stream =
        FlowsClient::new(channel.clone()).watch(WatchFlowsRequest {}).await.expect("may").into_inner();
    let first = stream.message().await.expect("a batch").expect("goes on");
    let info = first.proxy.expect("says who it is");
    assert_eq!(
        (info.identity, info.run.as_str(), info.version.as_str()),
        (proxy.local.to_string(), "run-7", env!("CARGO_PKG_VERSION"))
    );
    let batch = stream.message().await.expect("a batch").expect("goes on");
    let flow = Flow::try_from(batch.flows[0].clone()).expect("a flow");
    let Security::Mutual { peer, tls } = &flow.security else { panic!("{flow:?}") };
    assert_eq!((peer, flow.direction), (&viz, Direction::Inbound));
    assert_eq!(tls.exporter.len(), 64);

    let status = TapClient::new(channel).observe(ObserveRequest::default()).await.expect_err("no limit");
    assert_eq!(status.code(), Code::InvalidArgument, "tap is there too: {status}");
}

#[tokio::test]
async fn anybody_else_is_unauthenticated_and_both_names_are_told() {
    let mesh = Mesh::new();
    let (viz, _) = viz(&mesh);
    let proxy = Proxy::start(&mesh, "web", Some(viz.clone())).await;
    let mallory = mesh.id("mallory", "ballot");
    let credentials = mesh.credentials(&mallory);
    for (credentials, who) in
        [(Some(&*credentials), mallory.to_string()), (None, "without a client certificate".to_owned())]
    {
        let channel = proxy.channel(&mesh, credentials).await;
        let watch = FlowsClient::new(channel.clone()).watch(WatchFlowsRequest {}).await.expect_err("may not");
        let tap = TapClient::new(channel).observe(ObserveRequest::default()).await.expect_err("may not");
        for status in [watch, tap] {
            assert_eq!(status.code(), Code::Unauthenticated);
            for part in ["RM1120", &who, viz.as_str(), proxy.local.as_str()] {
                assert!(status.message().contains(part), "{part}: {status}");
            }
        }
    }
}

#[tokio::test]
async fn where_nobody_may_nobody_does() {
    let mesh = Mesh::new();
    let (_, credentials) = viz(&mesh);
    let proxy = Proxy::start(&mesh, "web", None).await;
    let channel = proxy.channel(&mesh, Some(&credentials)).await;
    let status = FlowsClient::new(channel).watch(WatchFlowsRequest {}).await.expect_err("may not");
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("TAP_SVC_NAME is unset"), "{status}");
}

#[tokio::test]
async fn plaintext_is_refused_with_the_reason_and_recorded_as_refused() {
    let mesh = Mesh::new();
    let (viz, _) = viz(&mesh);
    let proxy = Proxy::start(&mesh, "web", Some(viz.clone())).await;
    let mut watcher = proxy.flows.subscribe();
    let mut stream = proxy.plain().await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("writes");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer and an end");
    assert_eq!(&answer[9..][3..4], [7], "GOAWAY after SETTINGS");
    let text = String::from_utf8_lossy(&answer[26..]);
    assert!(
        text.starts_with("RM1121: ") && text.contains(viz.as_str()) && text.contains(proxy.local.as_str()),
        "{text}"
    );
    let (flow, end) = closed(&mut watcher).await;
    assert_eq!(flow.security, Security::Refused { reason: RefusalReason::PolicyDenied, peer: None });
    assert_eq!((end.reason, end.code.as_deref()), (CloseReason::Refused, Some("RM1121")));
}

#[tokio::test]
async fn the_allowed_ones_own_proxy_may_be_asked_from_inside_its_pod() {
    let mesh = Mesh::new();
    let id = mesh.id("viz", "ringmail");
    let proxy = Proxy::with(Some(mesh.credentials(&id)), id.identity(), Some(id.identity())).await;
    let channel = Channel::over(proxy.plain().await).await.expect("HTTP/2");
    let mut stream = FlowsClient::new(channel).watch(WatchFlowsRequest {}).await.expect("may").into_inner();
    stream.message().await.expect("a batch").expect("goes on");
    let batch = stream.message().await.expect("a batch").expect("goes on");
    let flow = Flow::try_from(batch.flows[0].clone()).expect("a flow");
    assert_eq!(flow.security, Security::Plaintext { reason: PlaintextReason::Loopback });
}

#[tokio::test]
async fn a_certificate_of_another_mesh_is_no_certificate() {
    let mesh = Mesh::new();
    let other = Mesh::new();
    let (viz, _) = viz(&mesh);
    let proxy = Proxy::start(&mesh, "web", Some(viz)).await;
    let mut watcher = proxy.flows.subscribe();
    // The right name, and a certificate of the wrong mesh; the caller believes both meshes.
    let id = mesh.id("viz", "ringmail");
    let both = mesh.anchors.certificates().iter().chain(other.anchors.certificates()).cloned();
    let both = TrustAnchors::from_der(both).expect("roots");
    let (chain, key) = support::leaf(&other, &id);
    let forged = Credentials::new(id.identity(), &both, chain, key).expect("stands under the other mesh");
    let connected = forged.connect(proxy.plain().await, &proxy.local, proxy.local.as_str()).await;
    if let Ok(tls) = connected {
        // In TLS 1.3 the refusal comes after the client's own end of the handshake.
        let called = match Channel::over(tls).await {
            Ok(channel) => FlowsClient::new(channel).watch(WatchFlowsRequest {}).await.is_ok(),
            Err(_) => false,
        };
        assert!(!called);
    }
    let (flow, end) = closed(&mut watcher).await;
    assert_eq!(
        flow.security,
        Security::Refused { reason: RefusalReason::UnknownIssuer, peer: Some(id.identity()) }
    );
    assert_eq!(end.code.as_deref(), Some("RM1124"));
}

#[tokio::test]
async fn before_the_first_certificate_and_for_another_name_there_is_an_alert() {
    let mesh = Mesh::new();
    let (viz, credentials) = viz(&mesh);
    let local = mesh.id("web", "ballot").identity();
    let proxy = Proxy::with(None, local.clone(), Some(viz.clone())).await;
    let mut watcher = proxy.flows.subscribe();
    let error =
        credentials.connect(proxy.plain().await, &local, local.as_str()).await.err().expect("refused");
    assert!(error.to_string().contains("InternalError"), "{error}");
    assert_eq!(closed(&mut watcher).await.1.code.as_deref(), Some("RM1123"));

    let proxy = Proxy::start(&mesh, "web", Some(viz)).await;
    let mut watcher = proxy.flows.subscribe();
    let error =
        credentials.connect(proxy.plain().await, &local, "other.example").await.err().expect("refused");
    assert!(error.to_string().contains("UnrecognisedName"), "{error}");
    assert_eq!(closed(&mut watcher).await.1.code.as_deref(), Some("RM1122"));
}

#[tokio::test]
async fn half_a_hello_and_silence_ends_at_the_deadline() {
    let mesh = Mesh::new();
    let (viz, _) = viz(&mesh);
    let proxy = Proxy::start(&mesh, "web", Some(viz)).await;
    let mut watcher = proxy.flows.subscribe();
    let mut stream = proxy.plain().await;
    stream.write_all(&[22, 3, 1, 1, 0, 1]).await.expect("writes");
    let mut byte = [0];
    assert!(matches!(stream.read(&mut byte).await, Ok(0) | Err(_)));
    let (flow, end) = closed(&mut watcher).await;
    assert_eq!(flow.security, Security::Refused { reason: RefusalReason::HandshakeTimeout, peer: None });
    assert_eq!(end.code.as_deref(), Some("RM1125"));
}

#[tokio::test]
async fn strangers_are_bounded_and_do_not_shut_the_allowed_one_out() {
    let mesh = Mesh::new();
    let (viz, credentials) = viz(&mesh);
    let id = mesh.id("web", "ballot");
    let proxy =
        Proxy::patient(Some(mesh.credentials(&id)), id.identity(), Some(viz), Duration::from_secs(3)).await;
    // The one that may comes first and keeps its connection, whatever follows.
    let channel = proxy.channel(&mesh, Some(&credentials)).await;
    FlowsClient::new(channel.clone()).watch(WatchFlowsRequest {}).await.expect("may");
    let mut held = Vec::new();
    for _ in 0..80 {
        // A refusal may come before the connection is there.
        let socket = TcpSocket::new_v4().expect("makes");
        socket.bind("127.0.0.2:0".parse().expect("an address")).expect("binds");
        held.extend(socket.connect(proxy.addr).await);
    }
    let refused = "ringmail_control_connections_refused_total 64\n";
    support::until("the surplus is refused", || proxy.metrics.encode().expect("encodes").contains(refused))
        .await;
    FlowsClient::new(channel).watch(WatchFlowsRequest {}).await.expect("still may");
    // One address cannot take all places.
    let channel = proxy.channel(&mesh, Some(&credentials)).await;
    FlowsClient::new(channel).watch(WatchFlowsRequest {}).await.expect("may come again meanwhile");
    // All addresses together have a bound.
    for last in 3..9 {
        for _ in 0..16 {
            let socket = TcpSocket::new_v4().expect("makes");
            socket.bind(std::net::SocketAddr::from(([127, 0, 0, last], 0))).expect("binds");
            held.extend(socket.connect(proxy.addr).await);
        }
    }
    let refused = format!("ringmail_control_connections_refused_total {}\n", 64 + 6 * 16 - 48);
    support::until("the rest is refused", || proxy.metrics.encode().expect("encodes").contains(&refused))
        .await;
    // Silent strangers lose their place at the deadline, so a new connection finds room.
    support::until("the strangers are gone", || proxy.flows.open_count() <= 2).await;
    let channel = proxy.channel(&mesh, Some(&credentials)).await;
    FlowsClient::new(channel).watch(WatchFlowsRequest {}).await.expect("may again");
}
