//! The probe exemption: what a closed port lets through, and what tries to slip in behind it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::support::plane::{Plane, anybody, probe, server_policy};
use crate::support::rig::Proxy;
use crate::support::{Mesh, until};
use parking_lot::Mutex;
use ringmail_proxy::config::Config;
use ringmail_vocab::{PlaintextReason, RefusalReason, Security};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// An HTTP application that believes every byte: it answers each line that looks like a request, wherever it stands.
struct Credulous {
    addr: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Credulous {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("has one");
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let record = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let record = Arc::clone(&record);
                tokio::spawn(async move {
                    let mut all = Vec::new();
                    let mut buf = [0; 4096];
                    let mut answered = 0;
                    while let Ok(read @ 1..) = stream.read(&mut buf).await {
                        all.extend_from_slice(&buf[..read]);
                        let text = String::from_utf8_lossy(&all).into_owned();
                        let requests: Vec<_> =
                            text.split("\r\n").filter(|line| line.contains(" HTTP/1.")).collect();
                        if text.ends_with("\r\n\r\n") {
                            for line in &requests[answered..] {
                                record.lock().push((*line).to_owned());
                                let _ =
                                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                            }
                            answered = requests.len();
                        }
                    }
                });
            }
        });
        Self { addr, heard }
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().clone()
    }
}

struct Closed {
    plane: Plane,
    app: Credulous,
    proxy: Proxy,
    entry: SocketAddr,
}

impl Closed {
    /// A pod whose port takes `GET /healthz` from `networks`, and nothing else.
    async fn to_all_but_probes(networks: &[&str]) -> Self {
        let mesh = Mesh::new();
        let plane = Plane::up().await;
        let app = Credulous::start().await;
        let port = app.addr.port();
        plane.policy(port, server_policy(Vec::new(), vec![probe("/healthz", networks)]));
        // Sources on loopback are let in by every policy of the control plane, so the clients here come from elsewhere:
        // 127.0.0.2 is no `localhost` to a policy.
        let ports = port.to_string();
        let more = [("INBOUND_DEFAULT_POLICY", "deny"), ("INBOUND_PORTS", ports.as_str())];
        let proxy = Proxy::new(&mesh, &mesh.id("web", "ballot"), &plane, &more);
        let _: &Config = &proxy.config;
        let entry = proxy.inbound(app.addr).await;
        let this = Self { plane, app, proxy, entry };
        this.settled().await;
        this
    }

    /// Until the policy has been heard.
    async fn settled(&self) {
        let port = self.app.addr.port();
        until("the policy is heard", || {
            self.proxy.policies.port(port).is_some_and(|policy| policy.now().rule().name.as_ref() == "test")
        })
        .await;
    }

    /// Everything that comes back for these bytes; the client ends when `end`, else it waits for the proxy to.
    async fn send(&self, bytes: &str, end: bool) -> String {
        let socket = tokio::net::TcpSocket::new_v4().expect("makes");
        socket.bind("127.0.0.2:0".parse().expect("an address")).expect("binds");
        let mut stream = socket.connect(self.entry).await.expect("connects");
        stream.write_all(bytes.as_bytes()).await.expect("writes");
        if end {
            stream.shutdown().await.expect("ends");
        }
        read_all(&mut stream).await
    }
}

async fn read_all(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    // A reset ends it as well as an end; what came before counts.
    let _ =
        tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut all)).await.expect("an end");
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test]
async fn a_probe_comes_through_and_is_seen_as_plaintext() {
    let pod = Closed::to_all_but_probes(&["127.0.0.2/32"]).await;
    let answer = pod.send("GET /healthz HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n", false).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("ok"), "{answer}");
    assert_eq!(pod.app.heard(), ["GET /healthz HTTP/1.1"]);
    let flow = pod.proxy.closed().await;
    assert_eq!(flow.security, Security::Plaintext { reason: PlaintextReason::NoTlsFromRemote });
    assert_eq!(flow.requests, 1, "tap and flows see it");
}

#[tokio::test]
async fn two_probes_on_one_connection_come_through() {
    let pod = Closed::to_all_but_probes(&["127.0.0.2/32"]).await;
    let two = "GET /healthz HTTP/1.1\r\nhost: pod\r\n\r\n".repeat(2);
    let answer = pod.send(&two, true).await;
    assert_eq!(answer.matches("200 OK").count(), 2, "{answer}");
}

#[tokio::test]
async fn other_requests_are_refused_with_a_reason_and_never_reach_the_application() {
    let pod = Closed::to_all_but_probes(&["127.0.0.2/32"]).await;
    for request in [
        "GET / HTTP/1.1\r\nhost: pod\r\n\r\n",
        "GET /healthz/ HTTP/1.1\r\nhost: pod\r\n\r\n",
        "GET /healthz/../admin HTTP/1.1\r\nhost: pod\r\n\r\n",
        "GET /%68ealthz HTTP/1.1\r\nhost: pod\r\n\r\n",
        "POST /healthz HTTP/1.1\r\nhost: pod\r\ncontent-length: 0\r\n\r\n",
        "HEAD /healthz HTTP/1.1\r\nhost: pod\r\n\r\n",
        "GET http://admin/healthz HTTP/1.1\r\nhost: pod\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nhost: pod\r\n\r\n",
        "CONNECT pod:80 HTTP/1.1\r\nhost: pod\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nhost: pod\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nhost: pod\r\nhost: admin\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nhost: pod\r\nexpect: 100-continue\r\n\r\n",
    ] {
        let answer = pod.send(request, false).await;
        assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{request}: {answer}");
        // HEAD has no body; all have the reason.
        assert!(answer.contains("l5d-proxy-error: "), "{answer}");
    }
    assert_eq!(pod.app.heard(), Vec::<String>::new());
    let flow = pod.proxy.refused().await;
    assert!(matches!(flow.security, Security::Refused { reason: RefusalReason::PolicyDenied, .. }));
    assert_eq!(flow.closed.and_then(|closed| closed.code).as_deref(), Some("RM1223"));
}

#[tokio::test]
async fn nothing_is_smuggled_behind_a_permitted_request() {
    let pod = Closed::to_all_but_probes(&["127.0.0.2/32"]).await;
    let hidden = "GET /admin HTTP/1.1\r\nhost: pod\r\n\r\n";
    let length = hidden.len();
    for request in [
        // Behind it, in the open.
        format!("GET /healthz HTTP/1.1\r\nhost: pod\r\n\r\n{hidden}"),
        // In a body that an application may not read.
        format!("GET /healthz HTTP/1.1\r\nhost: pod\r\ncontent-length: {length}\r\n\r\n{hidden}"),
        format!(
            "GET /healthz HTTP/1.1\r\nhost: pod\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n{hidden}\r\n0\r\n\r\n"
        ),
        // Lengths that contradict each other.
        format!(
            "GET /healthz HTTP/1.1\r\nhost: pod\r\ncontent-length: 0\r\ncontent-length: {length}\r\n\r\n{hidden}"
        ),
        format!(
            "GET /healthz HTTP/1.1\r\nhost: pod\r\ncontent-length: {length}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!("GET /healthz HTTP/1.0\r\nhost: pod\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("GET /healthz HTTP/1.1\r\nhost: pod\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("GET /healthz HTTP/1.1\r\nhost: pod\r\ntransfer-encoding: xchunked\r\n\r\n{hidden}"),
        // In a header, by bare or folded line ends.
        "GET /healthz HTTP/1.1\r\nhost: pod\r\nx: a\n\nGET /admin HTTP/1.1\r\n\r\n".to_owned(),
        "GET /healthz HTTP/1.1\r\nhost: pod\r\nx: a\rGET /admin HTTP/1.1\r\n\r\n".to_owned(),
        "GET /healthz HTTP/1.1\r\nhost: pod\r\nx: a\r\n GET /admin HTTP/1.1\r\n\r\n".to_owned(),
        // In the request line.
        "GET /healthz HTTP/1.1 \r\nGET /admin HTTP/1.1\r\nhost: pod\r\n\r\n".to_owned(),
        "GET /healthz\tHTTP/1.1\r\nhost: pod\r\n\r\n".to_owned(),
        // Behind an upgrade, and in another protocol.
        format!(
            "GET /healthz HTTP/1.1\r\nhost: pod\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n{hidden}"
        ),
        format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{hidden}"),
        format!("\r\n\r\n{hidden}"),
    ] {
        pod.send(&request, true).await;
        let heard = pod.app.heard();
        assert!(
            heard.iter().all(|line| line.starts_with("GET /healthz HTTP/1.")),
            "{request:?} came through as {heard:?}"
        );
    }
}

#[tokio::test]
async fn the_same_bytes_reach_the_application_where_the_port_is_open() {
    // The twin of the test above: without the exemption's gate the hidden request is heard.
    let pod = Closed::to_all_but_probes(&["127.0.0.2/32"]).await;
    pod.plane.policy(pod.app.addr.port(), server_policy(vec![anybody(&["0.0.0.0/0"])], Vec::new()));
    let port = pod.app.addr.port();
    until("the policy is heard", || {
        let client = ringmail_proxy::policy::Client {
            ip: std::net::Ipv4Addr::new(127, 0, 0, 2).into(),
            tls: ringmail_proxy::policy::ClientTls::None,
        };
        pod.proxy.policies.port(port).is_some_and(|policy| policy.now().decide(client).is_some())
    })
    .await;
    pod.send("GET /healthz HTTP/1.1\r\nhost: pod\r\ncontent-length: 35\r\n\r\nGET /admin HTTP/1.1\r\nhost: pod\r\n\r\n", true).await;
    assert_eq!(pod.app.heard(), ["GET /healthz HTTP/1.1", "GET /admin HTTP/1.1"]);
}

#[tokio::test]
async fn a_probe_from_elsewhere_is_no_probe() {
    let pod = Closed::to_all_but_probes(&["10.142.0.1/32"]).await;
    let answer = pod.send("GET /healthz HTTP/1.1\r\nhost: pod\r\n\r\n", false).await;
    assert_eq!(answer, "", "a reset");
    assert_eq!(pod.app.heard(), Vec::<String>::new());
    assert_eq!(pod.proxy.refused().await.closed.and_then(|closed| closed.code).as_deref(), Some("RM1220"));
}

#[tokio::test]
async fn a_client_cannot_speak_for_the_mesh_in_a_header() {
    let pod = Closed::to_all_but_probes(&["127.0.0.2/32"]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let raw = listener.local_addr().expect("has one");
    pod.plane.policy(raw.port(), server_policy(Vec::new(), vec![probe("/healthz", &["127.0.0.2/32"])]));
    until("the policy is heard", || {
        pod.proxy.policies.port(raw.port()).is_some_and(|policy| policy.now().rule().name.as_ref() == "test")
    })
    .await;
    let entry = pod.proxy.inbound(raw).await;
    let app = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        let mut buf = [0; 4096];
        let read = stream.read(&mut buf).await.expect("reads");
        stream
            .write_all(b"HTTP/1.1 204 No Content\r\nkeep-alive: 5\r\nx-mine: 1\r\n\r\n")
            .await
            .expect("writes");
        String::from_utf8_lossy(&buf[..read]).to_ascii_lowercase()
    });
    let request = "GET /healthz?full=1 HTTP/1.1\r\nHost: pod\r\nL5d-Client-Id: admin.ballot\r\nX-Kept: 1\r\nX-Hop: 1\r\nConnection: x-hop\r\n\r\n";
    let answer = Closed { entry, ..pod }.send(request, true).await.to_ascii_lowercase();
    let seen = app.await.expect("no panic");
    assert!(seen.starts_with("get /healthz?full=1 http/1.1\r\n") && seen.contains("x-kept: 1"), "{seen}");
    assert!(!seen.contains("l5d-client-id") && !seen.contains("x-hop"), "{seen}");
    assert!(seen.contains("connection: close"), "a connection of its own: {seen}");
    assert!(answer.contains("x-mine: 1") && !answer.contains("keep-alive: 5"), "{answer}");
}
