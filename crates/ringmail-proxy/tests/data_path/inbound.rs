//! Inbound connections: what they are, who they are, and whether they may.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::Mesh;
use crate::support::plane::{Plane, anybody, only, server_policy};
use crate::support::rig::{App, GREETING, Proxy, Speaks, ask};
use ringmail_api::sources::source::Kind;
use ringmail_identity::Identity;
use ringmail_proxy::tls;
use ringmail_vocab::{CloseReason, ClosedBy, Flow, PlaintextReason, RefusalReason, Security};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

struct Pod {
    mesh: Arc<Mesh>,
    plane: Plane,
    app: App,
    proxy: Proxy,
    entry: SocketAddr,
}

impl Pod {
    async fn new(speaks: Speaks, more: &[(&str, &str)]) -> Self {
        Self::on(Plane::up().await, speaks, more).await
    }

    async fn on(plane: Plane, speaks: Speaks, more: &[(&str, &str)]) -> Self {
        let mesh = Mesh::new();
        let app = App::start(speaks).await;
        let proxy = Proxy::new(&mesh, &mesh.id("web", "ballot"), &plane, more);
        let entry = proxy.inbound(app.addr).await;
        Self { mesh, plane, app, proxy, entry }
    }

    fn name(&self) -> Identity {
        self.mesh.id("web", "ballot").identity()
    }

    /// A mutual connection of another workload. It comes from 127.0.0.2, which is no `localhost` to a policy.
    async fn meshed(&self, service_account: &str) -> tls::TlsConnection<TcpStream> {
        let credentials = self.mesh.credentials(&self.mesh.id(service_account, "ballot"));
        let socket = tokio::net::TcpSocket::new_v4().expect("makes");
        socket.bind("127.0.0.2:0".parse().expect("an address")).expect("binds");
        let stream = socket.connect(self.entry).await.expect("connects");
        credentials.connect(stream, &self.name(), self.name().as_str()).await.expect("handshake")
    }

    async fn ask_meshed(&self, service_account: &str, text: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut stream = self.meshed(service_account).await;
        let work = async {
            stream.write_all(text).await?;
            stream.shutdown().await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.map(|_| answer)
        };
        tokio::time::timeout(Duration::from_secs(20), work).await.expect("an end, good or bad")
    }

    fn unmeshed(&self, kind: Kind) {
        self.plane.source("127.0.0.1", self.app.addr.port(), kind);
    }
}

fn refusal(flow: &Flow) -> (RefusalReason, Option<&str>) {
    match &flow.security {
        Security::Refused { reason, .. } => {
            (*reason, flow.closed.as_ref().and_then(|closed| closed.code.as_deref()))
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn plaintext_reaches_the_application_and_is_told_as_plaintext() {
    let pod = Pod::new(Speaks::Echo, &[]).await;
    assert_eq!(ask(pod.entry, b"hello").await.expect("answers"), b"hello");
    let flow = pod.proxy.closed().await;
    assert_eq!(flow.security, Security::Plaintext { reason: PlaintextReason::NoTlsFromRemote });
    assert_eq!((flow.dst, flow.sent, flow.received), (pod.app.addr, 5, 5));
}

#[tokio::test]
async fn random_bytes_are_just_bytes() {
    let pod = Pod::new(Speaks::Echo, &[]).await;
    for seed in 0..40_u32 {
        let noise: Vec<u8> = (0..200_u32)
            .map(|i| (seed.wrapping_mul(2_654_435_761).wrapping_add(i * i * 40_503) >> 7) as u8)
            .collect();
        // Not the beginning of a handshake, of which more would be waited for.
        if noise[0] != 0x16 {
            assert_eq!(ask(pod.entry, &noise).await.expect("echoed"), noise);
        }
    }
    // A record that says handshake and holds none is no ClientHello, and passes as what it is.
    let lie = [0x16, 3, 1, 0, 4, 9, 9, 9, 9];
    assert_eq!(ask(pod.entry, &lie).await.expect("echoed"), lie);
}

#[tokio::test]
async fn another_server_name_passes_through_untouched() {
    let pod = Pod::new(Speaks::Echo, &[]).await;
    let credentials = pod.mesh.credentials(&pod.mesh.id("bot", "ballot"));
    let stream = TcpStream::connect(pod.entry).await.expect("connects");
    // The application is an echo: the client gets its own hello back, so the bytes were not touched.
    let error =
        credentials.connect(stream, &pod.name(), "app.example").await.err().expect("no TLS server there");
    assert!(matches!(error, tls::TlsError::Protocol(_)), "{error}");
    let flow = pod.proxy.closed().await;
    assert_eq!(flow.security, Security::Passthrough { sni: "app.example".to_owned() });
    let got = pod.app.got.lock()[0].clone();
    assert_eq!((got[0], got[5]), (0x16, 1), "a ClientHello");
}

#[tokio::test]
async fn all_authenticated_lets_in_whom_the_mesh_knows_and_nobody_else() {
    let pod = Pod::new(Speaks::Echo, &[("INBOUND_DEFAULT_POLICY", "all-authenticated")]).await;
    // Refused: plaintext.
    assert!(ask(pod.entry, b"hello").await.is_err(), "a reset");
    assert_eq!(refusal(&pod.proxy.refused().await), (RefusalReason::PolicyDenied, Some("RM1220")));
    // Refused: TLS without a certificate.
    let stream = TcpStream::connect(pod.entry).await.expect("connects");
    let name = pod.name();
    let mut anonymous = tls::connect(stream, None, &pod.mesh.anchors, &name, name.as_str())
        .await
        .expect("TLS itself is fine");
    assert!(anonymous.read(&mut [0; 1]).await.is_err());
    // Refused: TLS for another name, which nobody has verified.
    let credentials = pod.mesh.credentials(&pod.mesh.id("bot", "ballot"));
    let stream = TcpStream::connect(pod.entry).await.expect("connects");
    assert!(credentials.connect(stream, &name, "app.example").await.is_err());
    assert_eq!(pod.app.connections(), 0, "the application was never dialled");
    // Let in: an identity of the mesh.
    assert_eq!(pod.ask_meshed("bot", b"hello").await.expect("answers"), b"hello");
    let flow =
        pod.proxy.flow("the mutual one", |flow| flow.security.is_mutual() && flow.closed.is_some()).await;
    assert_eq!(flow.security.proven_peer(), Some(&pod.mesh.id("bot", "ballot").identity()));
    assert_eq!(pod.app.connections(), 1);
}

#[tokio::test]
async fn deny_lets_in_nobody() {
    let pod = Pod::new(Speaks::Echo, &[("INBOUND_DEFAULT_POLICY", "deny")]).await;
    assert!(ask(pod.entry, b"hello").await.is_err());
    assert!(pod.ask_meshed("bot", b"hello").await.is_err());
    assert_eq!(pod.app.connections(), 0);
}

#[tokio::test]
async fn the_control_planes_policy_replaces_the_default_and_outlives_an_outage() {
    let pod = Pod::on(Plane::down().await, Speaks::Echo, &[("INBOUND_DEFAULT_POLICY", "deny")]).await;
    assert!(pod.ask_meshed("bot", b"hello").await.is_err(), "the default, while nobody answers");
    let bot = pod.mesh.id("bot", "ballot").identity();
    pod.plane.policy(pod.app.addr.port(), server_policy(vec![only(&[&bot])], Vec::new()));
    pod.plane.start();
    let deadline = Instant::now() + Duration::from_secs(20);
    while pod.ask_meshed("bot", b"hello").await.is_err() {
        assert!(Instant::now() < deadline, "never heard");
    }
    assert!(pod.ask_meshed("emoji", b"hello").await.is_err(), "another identity");
    pod.plane.stop();
    assert_eq!(pod.ask_meshed("bot", b"hello").await.expect("the last word holds"), b"hello");
    assert!(pod.ask_meshed("emoji", b"hello").await.is_err(), "the last word holds");
}

#[tokio::test]
async fn a_change_of_policy_ends_what_it_no_longer_allows() {
    let pod = Pod::new(Speaks::Echo, &[("INBOUND_DEFAULT_POLICY", "deny")]).await;
    let (bot, emoji) = (pod.mesh.id("bot", "ballot").identity(), pod.mesh.id("emoji", "ballot").identity());
    let port = pod.app.addr.port();
    pod.plane.policy(port, server_policy(vec![only(&[&bot, &emoji])], Vec::new()));
    let deadline = Instant::now() + Duration::from_secs(20);
    while pod.ask_meshed("bot", b"hello").await.is_err() {
        assert!(Instant::now() < deadline, "never heard");
    }
    let (mut bots, mut emojis) = (pod.meshed("bot").await, pod.meshed("emoji").await);
    for stream in [&mut bots, &mut emojis] {
        stream.write_all(b"1").await.expect("writes");
        stream.read_exact(&mut [0; 1]).await.expect("echoed");
    }
    pod.plane.policy(port, server_policy(vec![only(&[&emoji])], Vec::new()));
    let read = tokio::time::timeout(Duration::from_secs(20), bots.read(&mut [0; 1])).await;
    assert!(read.expect("in time").is_err(), "ended");
    emojis.write_all(b"2").await.expect("writes");
    emojis.read_exact(&mut [0; 1]).await.expect("goes on");
    let ended =
        |flow: &Flow| flow.closed.as_ref().is_some_and(|closed| closed.reason == CloseReason::PolicyChanged);
    let closed = pod.proxy.flow("the ended one", ended).await.closed.expect("closed");
    assert_eq!((closed.by, closed.code.as_deref()), (ClosedBy::Proxy, Some("RM1221")));
}

#[tokio::test]
async fn a_policy_that_is_none_closes_the_port() {
    let pod = Pod::new(Speaks::Echo, &[]).await;
    let broken = linkerd2_proxy_api::inbound::Server {
        protocol: None,
        ..server_policy(vec![anybody(&["0.0.0.0/0"])], Vec::new())
    };
    pod.plane.policy(pod.app.addr.port(), broken);
    let deadline = Instant::now() + Duration::from_secs(20);
    while pod.ask_meshed("bot", b"hello").await.is_ok() {
        assert!(Instant::now() < deadline, "never heard");
    }
    assert!(ask(pod.entry, b"hello").await.is_err(), "to localhost as well");
}

#[tokio::test]
async fn a_silent_unmeshed_client_is_greeted_after_the_grace() {
    let pod = Pod::new(Speaks::First, &[]).await;
    pod.unmeshed(Kind::Unmeshed);
    let began = Instant::now();
    let mut client = TcpStream::connect(pod.entry).await.expect("connects");
    let mut greeting = vec![0; GREETING.len()];
    client.read_exact(&mut greeting).await.expect("greeted");
    let waited = began.elapsed();
    assert_eq!(greeting, GREETING);
    assert!(waited >= Duration::from_millis(90) && waited < Duration::from_secs(2), "{waited:?}");
    drop(client);
    assert_eq!(
        pod.proxy.closed().await.security,
        Security::Plaintext { reason: PlaintextReason::SilentUnmeshedClient }
    );
}

#[tokio::test]
async fn a_silent_client_that_is_meshed_or_unknown_never_sees_plaintext() {
    for known in [Some(Kind::Meshed), Some(Kind::Unknown), None] {
        let pod = Pod::new(Speaks::First, &[("HANDSHAKE_TIMEOUT", "600ms")]).await;
        if let Some(kind) = known {
            pod.unmeshed(kind);
        }
        let began = Instant::now();
        let mut client = TcpStream::connect(pod.entry).await.expect("connects");
        assert!(client.read(&mut [0; 1]).await.is_err(), "a reset, and not a byte before it");
        assert!(began.elapsed() >= Duration::from_millis(600), "the whole deadline: {known:?}");
        assert_eq!(refusal(&pod.proxy.refused().await), (RefusalReason::HandshakeTimeout, Some("RM1218")));
        assert_eq!(pod.app.connections(), 0);
    }
}

#[tokio::test]
async fn a_late_hello_of_a_meshed_client_is_still_a_handshake() {
    let pod = Pod::new(Speaks::First, &[]).await;
    pod.unmeshed(Kind::Meshed);
    let credentials = pod.mesh.credentials(&pod.mesh.id("bot", "ballot"));
    let stream = TcpStream::connect(pod.entry).await.expect("connects");
    // Longer than the grace: as if the first packets had been lost.
    tokio::time::sleep(Duration::from_millis(250)).await;
    let mut stream = credentials.connect(stream, &pod.name(), pod.name().as_str()).await.expect("handshake");
    let mut greeting = vec![0; GREETING.len()];
    stream.read_exact(&mut greeting).await.expect("greeted");
    assert_eq!(greeting, GREETING);
}

#[tokio::test]
async fn a_silent_unmeshed_client_is_not_greeted_where_policy_wants_identities() {
    let more = [("HANDSHAKE_TIMEOUT", "500ms"), ("INBOUND_DEFAULT_POLICY", "all-authenticated")];
    let pod = Pod::new(Speaks::First, &more).await;
    pod.unmeshed(Kind::Unmeshed);
    let mut client = TcpStream::connect(pod.entry).await.expect("connects");
    assert!(client.read(&mut [0; 1]).await.is_err());
    assert_eq!((pod.app.connections(), pod.plane.sources_opened()), (0, 0), "nobody was asked for nothing");
}

#[tokio::test]
async fn an_unmeshed_client_that_ends_at_once_still_hears_the_server() {
    let pod = Pod::new(Speaks::First, &[]).await;
    pod.unmeshed(Kind::Unmeshed);
    assert_eq!(ask(pod.entry, b"").await.expect("greeted"), GREETING);
    // A meshed one that does so has failed to say hello: nothing is sent.
    let pod = Pod::new(Speaks::First, &[]).await;
    pod.unmeshed(Kind::Meshed);
    assert_eq!(ask(pod.entry, b"").await.unwrap_or_default(), b"");
    assert_eq!(pod.app.connections(), 0);
}

#[tokio::test]
async fn clients_that_speak_are_not_asked_about() {
    let pod = Pod::new(Speaks::Echo, &[]).await;
    ask(pod.entry, b"hello").await.expect("answers");
    pod.ask_meshed("bot", b"hello").await.expect("answers");
    assert_eq!(pod.plane.sources_opened(), 0);
}

#[tokio::test]
async fn half_a_hello_and_then_silence_ends_at_the_deadline() {
    let pod = Pod::new(Speaks::Echo, &[("HANDSHAKE_TIMEOUT", "400ms")]).await;
    pod.unmeshed(Kind::Unmeshed);
    let mut client = TcpStream::connect(pod.entry).await.expect("connects");
    client.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).await.expect("writes");
    assert!(client.read(&mut [0; 1]).await.is_err());
    assert_eq!(refusal(&pod.proxy.refused().await), (RefusalReason::HandshakeTimeout, Some("RM1215")));
    assert_eq!(pod.app.connections(), 0, "not taken for plaintext, though its source is unmeshed");
}

#[tokio::test]
async fn a_handshake_that_stalls_ends_at_the_deadline() {
    let pod = Pod::new(Speaks::Echo, &[("HANDSHAKE_TIMEOUT", "400ms")]).await;
    let (near, mut recorded) = tokio::io::duplex(1 << 16);
    let credentials = pod.mesh.credentials(&pod.mesh.id("bot", "ballot"));
    let name = pod.name();
    let hello = tokio::spawn(async move { credentials.connect(near, &name, name.as_str()).await.is_ok() });
    let mut bytes = vec![0; 4096];
    let read = recorded.read(&mut bytes).await.expect("a hello");
    let mut client = TcpStream::connect(pod.entry).await.expect("connects");
    client.write_all(&bytes[..read]).await.expect("writes");
    // The server answers, and then nothing more comes.
    client.read_exact(&mut [0; 5]).await.expect("a ServerHello");
    assert_eq!(refusal(&pod.proxy.refused().await), (RefusalReason::HandshakeTimeout, Some("RM1215")));
    hello.abort();
}

#[tokio::test]
async fn connections_that_are_opened_and_left_do_not_hurt_others() {
    let pod = Pod::new(Speaks::Echo, &[]).await;
    pod.unmeshed(Kind::Meshed);
    // Their ends are in this process too: it needs more files than a shell gives.
    ringmail_proxy::accept::Limits::of_process();
    let mut idle = Vec::new();
    // More than all the places that this proxy has, from one address.
    for count in 0..3_000 {
        let socket = tokio::net::TcpSocket::new_v4().expect("makes");
        socket.bind("127.0.0.3:0".parse().expect("an address")).expect("binds");
        // Beyond its share it is refused, maybe before it knows that it is connected.
        let Ok(mut stream) = socket.connect(pod.entry).await else { continue };
        if count % 2 == 0 {
            let _ = stream.write_all(&[0x16, 3, 1]).await;
        }
        idle.push(stream);
    }
    for _ in 0..10 {
        let began = Instant::now();
        assert_eq!(pod.ask_meshed("bot", b"hello").await.expect("answers"), b"hello");
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn beyond_its_bound_a_proxy_refuses_and_recovers() {
    let mesh = Mesh::new();
    let plane = Plane::up().await;
    let app = App::start(Speaks::Echo).await;
    let mut proxy = Proxy::new(&mesh, &mesh.id("web", "ballot"), &plane, &[]);
    proxy.limits = ringmail_proxy::accept::Limits::new(1, 1);
    let entry = proxy.inbound(app.addr).await;
    let mut first = TcpStream::connect(entry).await.expect("connects");
    first.write_all(b"1").await.expect("writes");
    first.read_exact(&mut [0; 1]).await.expect("echoed");
    assert!(ask(entry, b"2").await.is_err());
    assert_eq!(refusal(&proxy.refused().await), (RefusalReason::Overloaded, Some("RM1207")));
    drop(first);
    let deadline = Instant::now() + Duration::from_secs(20);
    while ask(entry, b"3").await.is_err() {
        assert!(Instant::now() < deadline, "never recovered");
    }
}

#[tokio::test]
async fn a_destination_that_is_not_this_pod_is_refused() {
    let pod = Pod::new(Speaks::Echo, &[("INBOUND_IPS", "10.1.2.3")]).await;
    assert!(ask(pod.entry, b"hello").await.is_err());
    assert_eq!(refusal(&pod.proxy.refused().await).1, Some("RM1202"));
    let pod = Pod::new(Speaks::Echo, &[("INBOUND_IPS", "127.0.0.1")]).await;
    assert!(ask(pod.entry, b"hello").await.is_ok());
}

#[tokio::test]
async fn an_application_that_is_not_there_is_a_reset_with_a_reason() {
    let pod = Pod::new(Speaks::Echo, &[]).await;
    let nobody = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        listener.local_addr().expect("has one")
    };
    let entry = pod.proxy.inbound(nobody).await;
    assert!(ask(entry, b"hello").await.is_err());
    assert_eq!(refusal(&pod.proxy.refused().await), (RefusalReason::ConnectFailed, Some("RM1206")));
}

#[tokio::test]
async fn a_pod_without_a_certificate_serves_plaintext_and_holds_back_tls() {
    let mesh = Mesh::new();
    let plane = Plane::up().await;
    let app = App::start(Speaks::Echo).await;
    let id = mesh.id("web", "ballot");
    let proxy = Proxy::with(&mesh, &id.identity(), None, &plane, &[]);
    let entry = proxy.inbound(app.addr).await;
    assert_eq!(ask(entry, b"hello").await.expect("answers"), b"hello");
    let client = mesh.credentials(&mesh.id("bot", "ballot"));
    let name = id.identity();
    let handshake = tokio::spawn(async move {
        let stream = TcpStream::connect(entry).await.expect("connects");
        client.connect(stream, &name, name.as_str()).await.is_ok()
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!handshake.is_finished());
    proxy.credentials.send_replace(Some(mesh.credentials(&id)));
    assert!(handshake.await.expect("no panic"));
}
