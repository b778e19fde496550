//! Outbound connections, through real proxies and a control plane that changes and goes away.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::plane::{Plane, endpoint};
use crate::support::rig::{App, GREETING, Proxy, Speaks, ask};
use crate::support::{Mesh, until};
use linkerd2_proxy_api::destination::DestinationProfile;
use ringmail_identity::anchors::TrustAnchors;
use ringmail_proxy::orig_dst::OriginalDst;
use ringmail_proxy::tls::Credentials;
use ringmail_vocab::{CloseReason, ClosedBy, PlaintextReason, RefusalReason, Security};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const WEB: &str = "web.ballot.svc.cluster.local:80";

fn vip() -> SocketAddr {
    ([127, 143, 0, 1], 80).into()
}

/// A meshed `web` (application behind an inbound proxy) and a `bot` that calls it through an outbound one.
struct Pair {
    mesh: Arc<Mesh>,
    plane: Plane,
    app: App,
    bot: Proxy,
    web: Proxy,
    /// Where web's inbound proxy answers: what a real pod's redirected port would be.
    web_addr: SocketAddr,
    /// Where the bot's application connects; it means [`vip`].
    entry: SocketAddr,
}

impl Pair {
    async fn new(speaks: Speaks, more: &[(&str, &str)]) -> Self {
        Self::on(Plane::up().await, speaks, more).await
    }

    async fn on(plane: Plane, speaks: Speaks, more: &[(&str, &str)]) -> Self {
        let mesh = Mesh::new();
        let (bot, web) = (mesh.id("bot", "ballot"), mesh.id("web", "ballot"));
        let app = App::start(speaks).await;
        let web = Proxy::new(&mesh, &web, &plane, &[]);
        let web_addr = web.inbound(app.addr).await;
        let bot = Proxy::new(&mesh, &bot, &plane, more);
        let entry = bot.outbound(vip()).await;
        plane.is_service(vip(), "web.ballot.svc.cluster.local");
        plane.endpoints(WEB, vec![endpoint(web_addr, Some(&mesh.id("web", "ballot").identity()))]);
        Self { mesh, plane, app, bot, web, web_addr, entry }
    }
}

#[tokio::test]
async fn two_meshed_ends_speak_mutual_tls_and_tell_of_the_same_handshake() {
    let pair = Pair::new(Speaks::Echo, &[]).await;
    assert_eq!(ask(pair.entry, b"hello").await.expect("answers"), b"hello");
    let (near, far) = (pair.bot.closed().await, pair.web.closed().await);
    let (Security::Mutual { peer: server, tls: at_bot }, Security::Mutual { peer: client, tls: at_web }) =
        (&near.security, &far.security)
    else {
        panic!("mutual at both ends: {near:?} {far:?}")
    };
    assert_eq!(server, &pair.mesh.id("web", "ballot").identity());
    assert_eq!(client, &pair.mesh.id("bot", "ballot").identity());
    assert_eq!((&at_bot.exporter, &at_bot.client_random), (&at_web.exporter, &at_web.client_random));
    assert_eq!((near.sent, near.received, far.sent, far.received), (5, 5, 5, 5));
    assert_eq!((near.dst, near.original_dst), (pair.web_addr, vip()));
    assert_eq!(near.dialled_from, Some(far.src), "what the server sees as its peer");
    let closed = near.closed.expect("closed");
    assert_eq!((closed.by, closed.reason, closed.code), (ClosedBy::Client, CloseReason::Finished, None));
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_at_once_over_tls() {
    let pair = Pair::new(Speaks::First, &[]).await;
    let began = Instant::now();
    let mut client = TcpStream::connect(pair.entry).await.expect("connects");
    let mut greeting = vec![0; GREETING.len()];
    client.read_exact(&mut greeting).await.expect("greeted");
    assert_eq!(greeting, GREETING);
    // Far below any detection timeout, with room for a slow machine.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    drop(client);
    assert!(pair.web.closed().await.security.is_mutual());
}

#[tokio::test]
async fn an_endpoint_without_an_identity_is_plaintext_by_discoverys_word() {
    let pair = Pair::new(Speaks::Echo, &[]).await;
    pair.plane.endpoints(WEB, vec![endpoint(pair.app.addr, None)]);
    assert_eq!(ask(pair.entry, b"hello").await.expect("answers"), b"hello");
    let reason = PlaintextReason::NotProvidedByServiceDiscovery;
    assert_eq!(pair.bot.closed().await.security, Security::Plaintext { reason });
}

#[tokio::test]
async fn an_address_that_discovery_does_not_have_is_plaintext() {
    let pair = Pair::new(Speaks::Echo, &[]).await;
    pair.plane.profile_refused(pair.app.addr, tonic::Status::invalid_argument("not mine"));
    let entry = pair.bot.outbound(pair.app.addr).await;
    assert_eq!(ask(entry, b"hello").await.expect("answers"), b"hello");
    let empty = App::start(Speaks::Echo).await;
    pair.plane.profile(empty.addr, DestinationProfile::default());
    let entry = pair.bot.outbound(empty.addr).await;
    assert_eq!(ask(entry, b"hello").await.expect("answers"), b"hello");
    let reason = PlaintextReason::NotProvidedByServiceDiscovery;
    for app in [&pair.app, &empty] {
        let flow = pair.bot.flow("to it", |flow| flow.dst == app.addr).await;
        assert_eq!(flow.security, Security::Plaintext { reason });
    }
}

#[tokio::test]
async fn a_pod_called_by_its_address_is_meshed_too() {
    let pair = Pair::new(Speaks::Echo, &[]).await;
    let web = pair.mesh.id("web", "ballot").identity();
    pair.plane.is_pod(pair.web_addr, Some(&web));
    let entry = pair.bot.outbound(pair.web_addr).await;
    assert_eq!(ask(entry, b"hello").await.expect("answers"), b"hello");
    assert_eq!(pair.bot.closed().await.security.proven_peer(), Some(&web));
}

#[tokio::test]
async fn outside_the_mesh_nobody_is_asked() {
    let pair = Pair::new(Speaks::Echo, &[("DESTINATION_PROFILE_NETWORKS", "10.0.0.0/8")]).await;
    let entry = pair.bot.outbound(pair.app.addr).await;
    assert_eq!(ask(entry, b"hello").await.expect("answers"), b"hello");
    assert_eq!(
        pair.bot.closed().await.security,
        Security::Plaintext { reason: PlaintextReason::OutsideMesh }
    );
    assert_eq!(pair.plane.profiles_opened(), 0);
}

#[tokio::test]
async fn this_pod_itself_is_called_in_plaintext() {
    let plane = Plane::down().await;
    let pair = Pair::on(plane, Speaks::Echo, &[("INBOUND_IPS", "127.0.0.1")]).await;
    let entry = pair.bot.outbound(pair.app.addr).await;
    assert_eq!(ask(entry, b"hello").await.expect("answers"), b"hello");
    assert_eq!(pair.bot.closed().await.security, Security::Plaintext { reason: PlaintextReason::Loopback });
}

#[tokio::test]
async fn an_unknown_address_is_held_while_the_control_plane_is_away_and_then_refused() {
    let pair = Pair::on(Plane::down().await, Speaks::Echo, &[("DISCOVERY_TIMEOUT", "300ms")]).await;
    // The address is the application's own: plaintext would reach it.
    let entry = pair.bot.outbound(pair.app.addr).await;
    let began = Instant::now();
    assert!(ask(entry, b"secret").await.is_err(), "a reset");
    assert!(began.elapsed() >= Duration::from_millis(300), "held first");
    let flow = pair.bot.refused().await;
    assert_eq!(flow.security, Security::Refused { reason: RefusalReason::DiscoveryTimeout, peer: None });
    assert_eq!(flow.closed.and_then(|closed| closed.code).as_deref(), Some("RM1204"));
    assert_eq!(pair.app.connections(), 0, "not a byte in plaintext");
}

#[tokio::test]
async fn what_is_held_goes_on_when_the_control_plane_comes_in_time() {
    let pair = Pair::on(Plane::down().await, Speaks::Echo, &[("DISCOVERY_TIMEOUT", "20s")]).await;
    let asked = tokio::spawn(ask(pair.entry, b"hello"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!asked.is_finished());
    pair.plane.start();
    assert_eq!(asked.await.expect("no panic").expect("answers"), b"hello");
    assert!(pair.bot.closed().await.security.is_mutual());
}

#[tokio::test]
async fn known_destinations_serve_while_the_control_plane_is_away_and_follow_it_when_it_is_back() {
    let pair = Pair::new(Speaks::Echo, &[]).await;
    let mut open = TcpStream::connect(pair.entry).await.expect("connects");
    open.write_all(b"1").await.expect("writes");
    open.read_exact(&mut [0; 1]).await.expect("echoed");
    pair.plane.stop();
    open.write_all(b"2").await.expect("writes");
    open.read_exact(&mut [0; 1]).await.expect("an open connection goes on");
    for _ in 0..5 {
        assert_eq!(ask(pair.entry, b"hello").await.expect("a new one as well"), b"hello");
    }
    assert!(pair.web.flow("the new ones", |flow| flow.closed.is_some()).await.security.is_mutual());
    // Back again, with another endpoint: the first answer replaces what was known.
    let other = App::start(Speaks::Echo).await;
    let other_addr = pair.web.inbound(other.addr).await;
    let web = pair.mesh.id("web", "ballot").identity();
    pair.plane.endpoints(WEB, vec![endpoint(other_addr, Some(&web))]);
    pair.plane.start();
    let deadline = Instant::now() + Duration::from_secs(20);
    while other.connections() == 0 {
        assert!(Instant::now() < deadline, "never followed");
        assert_eq!(ask(pair.entry, b"hello").await.expect("answers all the while"), b"hello");
    }
    let before = pair.app.connections();
    for _ in 0..10 {
        ask(pair.entry, b"hello").await.expect("answers");
    }
    assert_eq!(pair.app.connections(), before, "the old endpoint is gone");
}

#[tokio::test]
async fn endpoints_come_and_go_and_none_is_told_at_once() {
    let pair = Pair::new(Speaks::Echo, &[]).await;
    assert!(ask(pair.entry, b"hello").await.is_ok());
    pair.plane.remove(WEB, &[pair.web_addr]);
    let deadline = Instant::now() + Duration::from_secs(20);
    while ask(pair.entry, b"hello").await.is_ok() {
        assert!(Instant::now() < deadline, "never followed");
    }
    let flow = pair.bot.refused().await;
    assert_eq!(flow.security, Security::Refused { reason: RefusalReason::NoEndpoints, peer: None });
    assert_eq!(flow.closed.and_then(|closed| closed.code).as_deref(), Some("RM1205"));
    let web = pair.mesh.id("web", "ballot").identity();
    pair.plane.endpoints(WEB, vec![endpoint(pair.web_addr, Some(&web))]);
    while ask(pair.entry, b"hello").await.is_err() {
        assert!(Instant::now() < deadline, "never came back");
    }
}

#[tokio::test]
async fn a_service_that_has_no_endpoint_from_the_start_is_refused_at_once() {
    let pair = Pair::new(Speaks::Echo, &[]).await;
    pair.plane.no_endpoints(WEB);
    let began = Instant::now();
    assert!(ask(pair.entry, b"hello").await.is_err());
    assert!(began.elapsed() < Duration::from_secs(5), "not held: it is known");
    assert_eq!(
        pair.bot.refused().await.security,
        Security::Refused { reason: RefusalReason::NoEndpoints, peer: None }
    );
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_left_for_another() {
    let pair = Pair::new(Speaks::Echo, &[]).await;
    let web = pair.mesh.id("web", "ballot").identity();
    let dead = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        listener.local_addr().expect("has one")
    };
    pair.plane.endpoints(WEB, vec![endpoint(dead, Some(&web)), endpoint(pair.web_addr, Some(&web))]);
    for _ in 0..30 {
        assert_eq!(ask(pair.entry, b"hello").await.expect("the other answers"), b"hello");
    }
}

#[tokio::test]
async fn an_endpoint_that_proves_another_name_is_refused_with_both_names() {
    let pair = Pair::new(Speaks::Echo, &[]).await;
    let expected = pair.mesh.id("voting", "ballot").identity();
    // The inbound proxy would pass another name through; so the impostor has web's name for a server name.
    let mut impostor = endpoint(pair.web_addr, Some(&expected));
    let web = pair.mesh.id("web", "ballot").identity();
    impostor.tls_identity.as_mut().expect("has one").server_name.as_mut().expect("has one").name =
        web.to_string();
    pair.plane.endpoints(WEB, vec![impostor.clone()]);
    assert!(ask(pair.entry, b"secret").await.is_err());
    let flow = pair.bot.refused().await;
    let peer = Some(web.clone());
    assert_eq!(flow.security, Security::Refused { reason: RefusalReason::WrongIdentity, peer });
    assert_eq!(flow.closed.and_then(|closed| closed.code).as_deref(), Some("RM1212"));
    let met = pair.web.refused().await;
    assert!(
        matches!(met.security, Security::Refused { reason: RefusalReason::RefusedByPeer, .. }),
        "{met:?}"
    );
    assert_eq!(pair.app.connections(), 0);

    // With a good endpoint beside it, the application notices nothing, and the refusal is recorded all the same.
    let good = App::start(Speaks::Echo).await;
    let good_addr = pair.web.inbound(good.addr).await;
    pair.plane.endpoints(WEB, vec![impostor, endpoint(good_addr, Some(&web))]);
    until("both endpoints are known", || pair.bot.flows.open_count() == 0).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while ask(pair.entry, b"hello").await.is_err() {
        assert!(Instant::now() < deadline, "never followed");
    }
    for _ in 0..10 {
        assert_eq!(ask(pair.entry, b"hello").await.expect("answers"), b"hello");
    }
    assert_eq!(pair.app.connections(), 0);
}

#[tokio::test]
async fn a_client_whose_certificate_the_server_refuses_learns_it_and_says_so() {
    let pair = Pair::new(Speaks::Echo, &[]).await;
    let other = Mesh::new();
    let both =
        TrustAnchors::from_pem(&format!("{}{}", pair.mesh.anchors_pem, other.anchors_pem)).expect("reads");
    let id = other.id("bot", "ballot");
    let (chain, key) = crate::support::leaf(&other, &id);
    let stranger = Credentials::new(id.identity(), &both, chain, key).expect("stands");
    pair.bot.credentials.send_replace(Some(Arc::new(stranger)));
    assert!(ask(pair.entry, b"secret").await.is_err(), "a reset, not an end");
    let web = pair.mesh.id("web", "ballot").identity();
    let flow = pair.bot.refused().await;
    assert_eq!(flow.security, Security::Refused { reason: RefusalReason::RefusedByPeer, peer: Some(web) });
    let closed = flow.closed.expect("closed");
    assert_eq!(
        (closed.by, closed.reason, closed.code.as_deref()),
        (ClosedBy::Server, CloseReason::Refused, Some("RM1213"))
    );
    let met = pair.web.refused().await;
    assert_eq!(
        met.security,
        Security::Refused { reason: RefusalReason::UnknownIssuer, peer: Some(id.identity()) }
    );
    assert_eq!(pair.app.connections(), 0);
}

#[tokio::test]
async fn a_meshed_endpoint_that_does_not_speak_tls_never_sees_plaintext() {
    let pair = Pair::new(Speaks::Echo, &[]).await;
    let web = pair.mesh.id("web", "ballot").identity();
    // The application itself, where its proxy should be. It sends the hello back, which is no answer to it.
    pair.plane.endpoints(WEB, vec![endpoint(pair.app.addr, Some(&web))]);
    assert!(ask(pair.entry, b"secret").await.is_err());
    let flow = pair.bot.refused().await;
    assert_eq!(flow.security, Security::Refused { reason: RefusalReason::HandshakeFailed, peer: Some(web) });
    let got = pair.app.got.lock().clone();
    assert!(got.iter().all(|bytes| !bytes.windows(6).any(|window| window == b"secret")));
    assert_eq!(got[0][0], 0x16, "a TLS handshake is all that it saw");
}

#[tokio::test]
async fn without_a_certificate_a_meshed_endpoint_waits_for_one() {
    let pair = Pair::new(Speaks::Echo, &[("DISCOVERY_TIMEOUT", "20s")]).await;
    let present = pair.bot.credentials.send_replace(None);
    let asked = tokio::spawn(ask(pair.entry, b"hello"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!asked.is_finished() && pair.app.connections() == 0);
    pair.bot.credentials.send_replace(present);
    assert_eq!(asked.await.expect("no panic").expect("answers"), b"hello");
    assert!(pair.bot.closed().await.security.is_mutual());
}

#[tokio::test]
async fn a_connection_to_the_proxy_itself_is_no_loop_but_a_refusal() {
    let pair = Pair::new(Speaks::Echo, &[]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let own = listener.local_addr().expect("has one");
    pair.bot.outbound_on(listener, OriginalDst::fixed(own));
    assert!(ask(own, b"hello").await.is_err());
    assert_eq!(
        pair.bot.refused().await.security,
        Security::Refused { reason: RefusalReason::Loop, peer: None }
    );
    // A connection that nobody redirected has no original destination.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let direct = listener.local_addr().expect("has one");
    pair.bot.outbound_on(listener, OriginalDst::kernel());
    assert!(ask(direct, b"hello").await.is_err());
    let flow = pair.bot.flow("to it", |flow| flow.original_dst == direct && flow.closed.is_some()).await;
    assert_eq!(flow.closed.and_then(|closed| closed.code).as_deref(), Some("RM1200"));
}

#[tokio::test]
async fn opaque_destinations_are_mutual_and_not_read() {
    let pair = Pair::new(Speaks::Echo, &[]).await;
    let request = b"GET / HTTP/1.1\r\nhost: web\r\n\r\n";
    pair.plane.profile(
        vip(),
        DestinationProfile {
            fully_qualified_name: "web.ballot.svc.cluster.local".to_owned(),
            opaque_protocol: true,
            ..DestinationProfile::default()
        },
    );
    assert_eq!(ask(pair.entry, request).await.expect("answers"), request);
    let flow = pair.bot.closed().await;
    assert!(flow.security.is_mutual());
    assert_eq!((flow.requests, flow.protocol), (0, ringmail_vocab::Protocol::Unknown));
    // The server's end, which is not opaque, reads the same bytes.
    until("the request is counted", || {
        pair.web.metrics.encode().is_ok_and(|text| text.contains("request_total"))
    })
    .await;
    assert_eq!(pair.web.closed().await.requests, 1);
}

#[tokio::test]
async fn a_forced_drain_resets_what_is_open_and_says_why() {
    let pair = Pair::new(Speaks::Echo, &[]).await;
    let mut client = TcpStream::connect(pair.entry).await.expect("connects");
    client.write_all(b"1").await.expect("writes");
    client.read_exact(&mut [0; 1]).await.expect("echoed");
    pair.bot.trigger.start();
    client.write_all(b"2").await.expect("writes");
    client.read_exact(&mut [0; 1]).await.expect("draining goes on serving");
    assert_eq!(ask(pair.entry, b"hello").await.expect("new ones as well"), b"hello");
    assert_eq!(pair.bot.drain.held(), 1);
    pair.bot.trigger.force();
    assert!(client.read(&mut [0; 1]).await.is_err(), "a reset");
    let flow = pair
        .bot
        .flow("drained", |flow| flow.closed.as_ref().is_some_and(|c| c.reason == CloseReason::Drained))
        .await;
    assert_eq!(flow.closed.map(|closed| closed.by), Some(ClosedBy::Proxy));
    until("no guard is held", || pair.bot.drain.held() == 0).await;
}
