//! Tap: which requests are told, how many, to whom, and what of them.

use std::collections::HashMap;
use std::net::SocketAddr;

use futures::StreamExt;
use ringmail_api::linkerd::http_types::{HttpMethod, Scheme, http_method, scheme};
use ringmail_api::linkerd::net::IpAddress;
use ringmail_api::linkerd::tap::observe_request::r#match::{Http, Label, Match as Kind, Seq, Tcp, http, tcp};
use ringmail_api::linkerd::tap::observe_request::{Extract, Match, extract};
use ringmail_api::linkerd::tap::tap_event::{Event, http as http_event};
use ringmail_api::linkerd::tap::{ObserveRequest, TapEvent, eos, tap_event};
use ringmail_proxy::flows::Flows;
use ringmail_proxy::metrics::{Labels, Metrics};
use ringmail_proxy::observe::{ObserveContext, Observer};
use ringmail_proxy::tap::{TapHub, TapStream};
use ringmail_vocab::{Direction, PlaintextReason, Protocol, Security, TlsSession};

fn addr(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn mutual() -> Security {
    let peer = "vote-bot.ballot.serviceaccount.identity.ringmail.cluster.local".parse().expect("valid");
    Security::Mutual { peer, tls: TlsSession::default() }
}

struct Proxy {
    flows: Flows,
    hub: TapHub,
    metrics: Metrics,
}

impl Proxy {
    fn new() -> Self {
        let metrics = Metrics::new();
        Self { flows: Flows::new("run", metrics.clone()), hub: TapHub::new(metrics.clone()), metrics }
    }

    fn observer(&self, direction: Direction, security: Security, labels: Labels) -> Observer {
        let (src, dst) = (addr("10.142.0.9:40112"), addr("10.142.0.12:8080"));
        let flow = self.flows.open(direction, src, dst, dst);
        let context = ObserveContext {
            flow: flow.reference(),
            direction,
            src,
            dst,
            security,
            labels,
            hub: self.hub.clone(),
            metrics: self.metrics.clone(),
        };
        Observer::new(context)
    }

    fn inbound(&self) -> Observer {
        self.observer(Direction::Inbound, mutual(), Labels::new([("srv_name", "web-http")]))
    }

    fn tap(&self, kind: Kind, limit: u32) -> TapStream {
        self.hub.observe(&request(kind, limit)).expect("valid")
    }
}

fn request(kind: Kind, limit: u32) -> ObserveRequest {
    ObserveRequest { limit, r#match: Some(matching(kind)), extract: None }
}

fn matching(kind: Kind) -> Match {
    Match { r#match: Some(kind) }
}

fn with_headers(mut request: ObserveRequest) -> ObserveRequest {
    let headers = extract::http::Extract::Headers(extract::http::Headers {});
    request.extract =
        Some(Extract { extract: Some(extract::Extract::Http(extract::Http { extract: Some(headers) })) });
    request
}

fn everything() -> Kind {
    Kind::Source(ports(1, 65535))
}

fn ports(min: u32, max: u32) -> Tcp {
    Tcp { r#match: Some(tcp::Match::Ports(tcp::PortRange { min, max })) }
}

fn network(ip: &str, mask: u32) -> Tcp {
    let ip: std::net::IpAddr = ip.parse().expect("an address");
    Tcp { r#match: Some(tcp::Match::Netmask(tcp::Netmask { ip: Some(IpAddress::from(ip)), mask })) }
}

fn of_http(kind: http::Match) -> Kind {
    Kind::Http(Http { r#match: Some(kind) })
}

fn exact(text: &str) -> http::StringMatch {
    http::StringMatch { r#match: Some(http::string_match::Match::Exact(text.to_owned())) }
}

fn prefix(text: &str) -> http::StringMatch {
    http::StringMatch { r#match: Some(http::string_match::Match::Prefix(text.to_owned())) }
}

fn method(method: http_method::Registered) -> Kind {
    of_http(http::Match::Method(HttpMethod { r#type: Some(http_method::Type::Registered(method.into())) }))
}

fn label(key: &str, value: &str) -> Label {
    Label { key: key.to_owned(), value: value.to_owned() }
}

fn seq(kinds: impl IntoIterator<Item = Kind>) -> Seq {
    Seq { matches: kinds.into_iter().map(matching).collect() }
}

const REQUEST: &[u8] = b"POST /api/vote?for=x HTTP/1.1\r\nHost: web.ballot:80\r\nAuthorization: Bearer abc\r\nX-Trace: 7\r\nContent-Length: 2\r\n\r\nhi";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 5\r\n\r\nhello";

fn exchange(observer: &mut Observer) {
    observer.client(REQUEST);
    observer.server(RESPONSE);
}

/// Everything that has been told so far.
fn told(stream: &mut TapStream) -> Vec<TapEvent> {
    let mut all = Vec::new();
    // Unconstrained: tokio would otherwise make a task that receives much pause in between.
    while let Some(Some(event)) = futures::FutureExt::now_or_never(tokio::task::unconstrained(stream.next()))
    {
        all.push(event.expect("an event"));
    }
    all
}

fn http_of(event: &TapEvent) -> &http_event::Event {
    let Some(Event::Http(http)) = &event.event else { panic!("no HTTP: {event:?}") };
    http.event.as_ref().expect("has one")
}

#[tokio::test]
async fn a_request_its_response_and_its_end_are_told() {
    let proxy = Proxy::new();
    let mut tap = proxy.tap(everything(), 10);
    let mut observer = proxy.inbound();
    exchange(&mut observer);
    let events = told(&mut tap);
    let [init, response, end] = &events[..] else { panic!("{events:#?}") };

    let http_event::Event::RequestInit(request) = http_of(init) else { panic!("{init:?}") };
    assert_eq!((request.authority.as_str(), request.path.as_str()), ("web.ballot:80", "/api/vote"));
    assert_eq!(
        request.method,
        Some(HttpMethod { r#type: Some(http_method::Type::Registered(2 - 1)) }),
        "POST"
    );
    assert_eq!(request.scheme, Some(Scheme { r#type: Some(scheme::Type::Registered(0)) }));
    assert_eq!(request.headers, None, "nobody asked for headers");
    assert_eq!(request.id, Some(http_event::StreamId { base: 0, stream: 0 }));

    let http_event::Event::ResponseInit(response) = http_of(response) else { panic!("{response:?}") };
    assert_eq!(response.http_status, 200);
    assert!(response.since_request_init.is_some());

    let http_event::Event::ResponseEnd(ended) = http_of(end) else { panic!("{end:?}") };
    assert_eq!((ended.response_bytes, ended.eos), (5, None));
    assert!(ended.since_request_init.is_some() && ended.since_response_init.is_some());

    assert_eq!(init.proxy_direction(), tap_event::ProxyDirection::Inbound);
    assert_eq!(init.source.map(|a| a.port), Some(40112));
    assert_eq!(init.destination.map(|a| a.port), Some(8080));
}

#[tokio::test]
async fn what_protects_the_connection_is_told_on_the_side_that_has_it() {
    let name = "vote-bot.ballot.serviceaccount.identity.ringmail.cluster.local";
    let plain = |reason| Security::Plaintext { reason };
    for (direction, security, source, destination) in [
        (Direction::Inbound, mutual(), vec![("tls", "true"), ("client_id", name)], vec![("tls", "loopback")]),
        (
            Direction::Inbound,
            plain(PlaintextReason::NoTlsFromRemote),
            vec![("tls", "no_tls_from_remote")],
            vec![("tls", "loopback")],
        ),
        (
            Direction::Inbound,
            Security::ServerOnly { peer: None, tls: TlsSession::default() },
            vec![("tls", "server_only")],
            vec![("tls", "loopback")],
        ),
        (
            Direction::Outbound,
            mutual(),
            vec![("tls", "loopback")],
            vec![("tls", "true"), ("server_id", name)],
        ),
        (
            Direction::Outbound,
            plain(PlaintextReason::NotProvidedByServiceDiscovery),
            vec![("tls", "loopback")],
            vec![("tls", "not_provided_by_service_discovery")],
        ),
    ] {
        let proxy = Proxy::new();
        let mut tap = proxy.tap(everything(), 1);
        // Discovery's labels are told without their prefix, and may not speak about TLS.
        let mut observer =
            proxy.observer(direction, security, Labels::new([("dst_pod", "web-1"), ("dst_tls", "true")]));
        exchange(&mut observer);
        let event = told(&mut tap).remove(0);
        let map = |of: &[(&str, &str)]| {
            of.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<HashMap<_, _>>()
        };
        assert_eq!(event.source_meta.expect("has one").labels, map(&source));
        let mut wanted = map(&destination);
        wanted.insert("pod".to_owned(), "web-1".to_owned());
        assert_eq!(event.destination_meta.expect("has one").labels, wanted);
    }
}

#[tokio::test]
async fn matches_decide_what_is_told() {
    use http_method::Registered::{Get, Post};
    for (kind, wanted) in [
        (Kind::All(seq([everything(), method(Post)])), true),
        (Kind::All(seq([everything(), method(Get)])), false),
        (Kind::Any(seq([method(Get), method(Post)])), true),
        (Kind::Any(seq([method(Get)])), false),
        (Kind::Not(Box::new(matching(method(Get)))), true),
        (Kind::Not(Box::new(matching(method(Post)))), false),
        (Kind::Source(network("10.142.0.0", 16)), true),
        (Kind::Source(network("10.142.0.9", 32)), true),
        (Kind::Source(network("10.143.0.0", 16)), false),
        (Kind::Source(network("fd00::", 8)), false),
        (Kind::Destination(network("10.142.0.12", 32)), true),
        (Kind::Destination(ports(8080, 0)), true),
        (Kind::Destination(ports(0, 8080)), true),
        (Kind::Destination(ports(8000, 9000)), true),
        (Kind::Destination(ports(8081, 9000)), false),
        (Kind::Source(ports(8080, 8080)), false),
        (of_http(http::Match::Path(exact("/api/vote"))), true),
        (of_http(http::Match::Path(exact("/api"))), false),
        (of_http(http::Match::Path(prefix("/api"))), true),
        (of_http(http::Match::Authority(exact("web.ballot:80"))), true),
        (of_http(http::Match::Authority(prefix("emoji"))), false),
        (of_http(http::Match::Scheme(Scheme { r#type: Some(scheme::Type::Registered(0)) })), true),
        (of_http(http::Match::Scheme(Scheme { r#type: Some(scheme::Type::Registered(1)) })), false),
        (
            of_http(http::Match::Method(HttpMethod {
                r#type: Some(http_method::Type::Unregistered("POST".to_owned())),
            })),
            true,
        ),
        (Kind::DestinationLabel(label("srv_name", "web-http")), true),
        (Kind::DestinationLabel(label("srv_name", "other")), false),
        (Kind::DestinationLabel(label("tls", "loopback")), true),
        (Kind::RouteLabel(label("route", "x")), false),
    ] {
        let proxy = Proxy::new();
        let mut tap = proxy.tap(kind.clone(), 1);
        exchange(&mut proxy.inbound());
        assert_eq!(!told(&mut tap).is_empty(), wanted, "{kind:?}");
    }
}

#[test]
fn what_cannot_match_is_refused() {
    let empty = Match { r#match: None };
    let deep = (0..40).fold(everything(), |kind, _| Kind::Not(Box::new(matching(kind))));
    for kind in [
        Kind::All(Seq::default()),
        Kind::Any(Seq { matches: vec![empty.clone()] }),
        Kind::Not(Box::new(empty.clone())),
        Kind::Source(Tcp { r#match: None }),
        Kind::Source(network("10.0.0.0", 0)),
        Kind::Source(network("10.0.0.0", 33)),
        Kind::Source(network("fd00::", 129)),
        Kind::Destination(ports(0, 0)),
        Kind::Destination(ports(9, 8)),
        Kind::Destination(ports(1, 65536)),
        Kind::Http(Http { r#match: None }),
        of_http(http::Match::Path(http::StringMatch { r#match: None })),
        of_http(http::Match::Method(HttpMethod { r#type: Some(http_method::Type::Registered(99)) })),
        Kind::DestinationLabel(label("", "x")),
        Kind::RouteLabel(label("x", "")),
        deep,
        Kind::Any(seq(std::iter::repeat_n(everything(), 2_000))),
    ] {
        let status = Proxy::new()
            .hub
            .observe(&request(kind.clone(), 1))
            .err()
            .unwrap_or_else(|| panic!("taken: {kind:?}"));
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
    }
    let proxy = Proxy::new();
    assert!(proxy.hub.observe(&request(everything(), 0)).is_err(), "a limit of 0");
    assert!(
        proxy.hub.observe(&ObserveRequest { limit: 1, r#match: None, extract: None }).is_err(),
        "no match"
    );
    assert!(proxy.hub.is_idle());
}

#[tokio::test]
async fn a_tap_ends_when_the_last_of_its_requests_has_ended() {
    let proxy = Proxy::new();
    let mut tap = proxy.tap(everything(), 2);
    let mut observer = proxy.inbound();
    exchange(&mut observer);
    observer.client(REQUEST);
    // The second takes the last place: a third is not told, and the tap waits for the second's end.
    assert!(proxy.hub.is_idle());
    exchange(&mut proxy.inbound());
    assert_eq!(told(&mut tap).len(), 4);
    assert_eq!(futures::FutureExt::now_or_never(tap.next()).map(|end| end.is_none()), None, "still open");
    observer.server(RESPONSE);
    let streams: Vec<_> = tap.by_ref().map(|event| event.expect("an event")).collect::<Vec<_>>().await;
    assert_eq!(streams.len(), 2);
    let http_event::Event::ResponseEnd(end) = http_of(&streams[1]) else { panic!("{streams:?}") };
    assert_eq!(end.id, Some(http_event::StreamId { base: 0, stream: 1 }));
}

#[tokio::test]
async fn a_request_that_is_cut_off_ends_its_tap_too() {
    let proxy = Proxy::new();
    let mut tap = proxy.tap(everything(), 1);
    let mut observer = proxy.inbound();
    observer.client(REQUEST);
    observer.finish();
    assert_eq!(tap.by_ref().collect::<Vec<_>>().await.len(), 2, "its beginning and its end");
    let text = proxy.metrics.encode().expect("encodes");
    assert!(text.contains("classification=\"failure\",error=\"reset\""), "{text}");
}

#[tokio::test]
async fn each_call_has_a_base_of_its_own_and_leaves_nothing_behind() {
    let proxy = Proxy::new();
    drop(proxy.tap(everything(), 5));
    assert!(proxy.hub.is_idle());
    let mut second = proxy.tap(everything(), 5);
    exchange(&mut proxy.inbound());
    let event = told(&mut second).remove(0);
    let http_event::Event::RequestInit(request) = http_of(&event) else { panic!("{event:?}") };
    assert_eq!(request.id.map(|id| id.base), Some(1));
}

#[tokio::test]
async fn a_slow_listener_misses_events_and_the_traffic_does_not_wait() {
    let proxy = Proxy::new();
    let mut tap = proxy.tap(everything(), 1_000);
    let mut observer = proxy.inbound();
    for _ in 0..200 {
        exchange(&mut observer);
    }
    assert_eq!(told(&mut tap).len(), 400);
    assert!(proxy.metrics.encode().expect("encodes").contains("ringmail_tap_events_dropped_total 200\n"));
}

#[tokio::test]
async fn headers_come_on_request_and_credentials_never() {
    let proxy = Proxy::new();
    let mut tap = proxy.hub.observe(&with_headers(request(everything(), 1))).expect("valid");
    exchange(&mut proxy.inbound());
    let events = told(&mut tap);
    let http_event::Event::RequestInit(init) = http_of(&events[0]) else { panic!("{events:?}") };
    let headers = |all: &ringmail_api::linkerd::http_types::Headers| -> Vec<(String, String)> {
        all.headers.iter().map(|h| (h.name.clone(), String::from_utf8_lossy(&h.value).into_owned())).collect()
    };
    let own = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let sent = headers(init.headers.as_ref().expect("asked for"));
    assert!(
        sent.contains(&own("x-trace", "7")) && sent.contains(&own("authorization", "[redacted]")),
        "{sent:?}"
    );
    let http_event::Event::ResponseInit(init) = http_of(&events[1]) else { panic!("{events:?}") };
    assert!(headers(init.headers.as_ref().expect("asked for")).contains(&own("set-cookie", "[redacted]")));
    assert!(!format!("{events:?}").contains("Bearer"));
}

#[tokio::test]
async fn grpc_is_told_with_its_status_and_counted_by_it() {
    let proxy = Proxy::new();
    let mut tap = proxy.tap(everything(), 1);
    let mut observer = proxy.inbound();
    observer.client(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    // SETTINGS; then HEADERS on stream 1 with END_STREAM: :method POST, :scheme http, :path /, :authority a.
    observer.client(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    observer.client(&[0, 0, 6, 1, 5, 0, 0, 0, 1, 0x83, 0x86, 0x84, 0x41, 1, b'a']);
    // HEADERS only: :status 200, grpc-status 13 (literal, not indexed).
    let mut block = vec![0x88, 0x00, 11];
    block.extend_from_slice(b"grpc-status");
    block.extend_from_slice(&[2, b'1', b'3']);
    let mut frame = vec![0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1];
    frame.extend_from_slice(&block);
    observer.server(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    observer.server(&frame);
    let events = tap.by_ref().map(|event| event.expect("an event")).collect::<Vec<_>>().await;
    let http_event::Event::ResponseEnd(end) = http_of(&events[2]) else { panic!("{events:?}") };
    assert_eq!(end.eos.as_ref().and_then(|eos| eos.end), Some(eos::End::GrpcStatusCode(13)));
    let text = proxy.metrics.encode().expect("encodes");
    assert!(text.contains("status_code=\"200\",classification=\"failure\",grpc_status=\"13\""), "{text}");
}

#[tokio::test]
async fn requests_are_counted_without_a_tap_and_the_flow_learns_its_protocol() {
    let proxy = Proxy::new();
    let mut watcher = proxy.flows.subscribe();
    let (src, dst) = (addr("10.0.0.1:1"), addr("10.142.0.12:8080"));
    let flow = proxy.flows.open(Direction::Outbound, src, dst, dst);
    flow.set_security(mutual());
    let context = ObserveContext {
        flow: flow.reference(),
        direction: Direction::Outbound,
        src,
        dst,
        security: mutual(),
        labels: Labels::new([("dst_namespace", "ballot")]),
        hub: proxy.hub.clone(),
        metrics: proxy.metrics.clone(),
    };
    let mut observer = Observer::new(context);
    exchange(&mut observer);
    exchange(&mut observer);
    flow.close(ringmail_vocab::ClosedBy::Client, ringmail_vocab::CloseReason::Finished, None);
    let mut last = None;
    while last.as_ref().is_none_or(|flow: &std::sync::Arc<ringmail_vocab::Flow>| flow.closed.is_none()) {
        last = watcher.next().await.flows.pop();
    }
    let last = last.expect("told");
    assert_eq!((last.protocol, last.requests), (Protocol::Http1, 2));
    let text = proxy.metrics.encode().expect("encodes");
    let labels = r#"direction="outbound",authority="web.ballot:80",target_addr="10.142.0.12:8080",target_ip="10.142.0.12",target_port="8080",tls="true",server_id="vote-bot.ballot.serviceaccount.identity.ringmail.cluster.local""#;
    assert!(text.contains(&format!("request_total{{{labels},dst_namespace=\"ballot\"}} 2")), "{text}");
    assert!(text.contains("response_latency_ms_bucket{") && text.contains("le=\"50000.0\""), "{text}");
}

#[test]
fn what_is_no_http_is_left_alone() {
    let proxy = Proxy::new();
    let mut observer = proxy.inbound();
    observer.client(b"\x00\x01\x02binary");
    assert!(!observer.is_on());
    let mut off = Observer::off();
    off.client(REQUEST);
    off.server(RESPONSE);
    off.finish();
    assert!(!proxy.metrics.encode().expect("encodes").contains("request_total{"));
}
