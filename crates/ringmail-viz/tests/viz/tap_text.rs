//! The lines of tap, to the blank.

use std::collections::HashMap;
use std::net::SocketAddr;

use prost::Message as _;
use ringmail_api::flows;
use ringmail_api::linkerd::http_types::{Headers, headers::Header};
use ringmail_api::linkerd::tap::tap_event::http::{Event, RequestInit, ResponseEnd, ResponseInit, StreamId};
use ringmail_api::linkerd::tap::tap_event::{
    EndpointMeta, Event as TapEventKind, Http, ProxyDirection, RouteMeta,
};
use ringmail_api::linkerd::tap::{Eos, TapEvent};
use ringmail_api::viz::{TapItem, tap_item};
use ringmail_viz::tap::{Format, Printed, grpc_status_name};
use ringmail_vocab::PlaintextReason;

use crate::support::{ended, inbound, mutual, outbound, plain, pod};

const ID: Option<StreamId> = Some(StreamId { base: 3, stream: 7 });

fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn event(direction: ProxyDirection, tls: &str, event: Event) -> TapEvent {
    let address = |text: &str| text.parse::<SocketAddr>().expect("an address").into();
    let (source, destination) = match direction {
        ProxyDirection::Inbound => (tls, "loopback"),
        _ => ("loopback", tls),
    };
    TapEvent {
        source: Some(address("10.142.0.9:40112")),
        source_meta: Some(EndpointMeta { labels: labels(&[("tls", source)]) }),
        destination: Some(address("10.142.0.12:8080")),
        destination_meta: Some(EndpointMeta { labels: labels(&[("tls", destination)]) }),
        route_meta: Some(RouteMeta { labels: labels(&[("route", "r"), ("a", "b")]) }),
        proxy_direction: direction.into(),
        event: Some(TapEventKind::Http(Http { event: Some(event) })),
    }
}

fn item(event: &TapEvent) -> TapItem {
    TapItem {
        item: Some(tap_item::Item::Event(event.encode_to_vec())),
        src_labels: labels(&[("pod", "bot-0"), ("deployment", "bot")]),
        dst_labels: labels(&[("pod", "web-0")]),
    }
}

fn out(format: Format, item: &TapItem) -> String {
    match format.print(item) {
        Ok(Some(Printed::Out(text))) => text,
        other => panic!("no output: {other:?}"),
    }
}

fn request() -> Event {
    let headers = Headers {
        headers: vec![
            Header { name: "accept".to_owned(), value: b"*/*".to_vec() },
            Header { name: "x-bytes".to_owned(), value: vec![0xff, 0xfe] },
        ],
    };
    Event::RequestInit(RequestInit {
        id: ID,
        method: Some(http::Method::POST.into()),
        scheme: Some("http".into()),
        authority: "web.ballot:80".to_owned(),
        path: "/api/vote".to_owned(),
        headers: Some(headers),
    })
}

fn micros(micros: i32) -> prost_types::Duration {
    prost_types::Duration { seconds: 0, nanos: micros * 1_000 + 999 }
}

fn end(eos: Option<Eos>) -> Event {
    Event::ResponseEnd(ResponseEnd {
        id: ID,
        since_request_init: Some(micros(907)),
        since_response_init: Some(micros(95)),
        response_bytes: 5,
        eos,
        trailers: None,
    })
}

#[test]
fn three_lines_tell_a_request() {
    let inbound = |tls, kind| out(Format::Default, &item(&event(ProxyDirection::Inbound, tls, kind)));
    assert_eq!(
        inbound("true", request()),
        "req id=3:7 proxy=in  src=10.142.0.9:40112 dst=10.142.0.12:8080 tls=true :method=POST :authority=web.ballot:80 :path=/api/vote\n"
    );
    let response = Event::ResponseInit(ResponseInit {
        id: ID,
        since_request_init: Some(micros(812)),
        http_status: 200,
        headers: None,
    });
    assert_eq!(
        inbound("no_tls_from_remote", response),
        "rsp id=3:7 proxy=in  src=10.142.0.9:40112 dst=10.142.0.12:8080 tls=no_tls_from_remote :status=200 latency=812µs\n"
    );
    assert_eq!(
        inbound("true", end(None)),
        "end id=3:7 proxy=in  src=10.142.0.9:40112 dst=10.142.0.12:8080 tls=true duration=95µs response-length=5B\n"
    );
}

#[test]
fn an_outbound_request_tells_the_destinations_tls() {
    let outbound =
        |eos| out(Format::Default, &item(&event(ProxyDirection::Outbound, "true", end(Some(eos)))));
    assert_eq!(
        outbound(Eos::from_grpc_status(2)),
        "end id=3:7 proxy=out src=10.142.0.9:40112 dst=10.142.0.12:8080 tls=true grpc-status=Unknown duration=95µs response-length=5B\n"
    );
    let reset = Eos { end: Some(ringmail_api::linkerd::tap::eos::End::ResetErrorCode(8)) };
    assert!(outbound(reset).contains(" tls=true reset-error=8 duration=95µs "));
}

#[test]
fn what_is_unknown_is_shown_as_unknown() {
    let mut unknown = event(ProxyDirection::Unknown, "true", request());
    unknown.event = None;
    assert_eq!(
        out(Format::Default, &item(&unknown)),
        "unknown proxy=??? src=10.142.0.9:40112 dst=10.142.0.12:8080 tls=\n"
    );
    assert_eq!(
        (grpc_status_name(0), grpc_status_name(16), grpc_status_name(17)),
        ("OK".into(), "Unauthenticated".into(), "Code(17)".into())
    );
}

#[test]
fn wide_appends_sorted_labels_of_both_ends() {
    let text = out(Format::Wide, &item(&event(ProxyDirection::Inbound, "true", end(None))));
    assert!(text.ends_with(
        " response-length=5B src_deployment=bot src_pod=bot-0 src_tls=true dst_pod=web-0 dst_tls=loopback rt_a=b rt_route=r\n"
    ), "{text}");
}

#[test]
fn json_has_the_known_shape() {
    let value = |kind| -> serde_json::Value {
        serde_json::from_str(&out(Format::Json, &item(&event(ProxyDirection::Inbound, "true", kind))))
            .expect("JSON")
    };
    let request = value(request());
    assert_eq!(
        request["source"],
        serde_json::json!({"ip": "10.142.0.9", "port": 40112, "metadata": {"deployment": "bot", "pod": "bot-0", "tls": "true"}})
    );
    assert_eq!(request["proxyDirection"], "INBOUND");
    assert_eq!(
        request["requestInitEvent"],
        serde_json::json!({
            "id": {"base": 3, "stream": 7}, "method": "POST", "scheme": "HTTP", "authority": "web.ballot:80", "path": "/api/vote",
            "headers": [{"name": "accept", "valueStr": "*/*"}, {"name": "x-bytes", "valueBin": "//4="}],
        })
    );
    assert!(request.get("responseInitEvent").is_none());
    let ended = value(end(None));
    assert_eq!(
        ended["responseEndEvent"],
        serde_json::json!({
            "id": {"base": 3, "stream": 7}, "sinceRequestInit": {"seconds": 0, "nanos": 907_999},
            "sinceResponseInit": {"seconds": 0, "nanos": 95_999}, "responseBytes": 5, "trailers": null,
            "grpcStatusCode": 0, "isGrpc": false,
        })
    );
    assert_eq!(value(end(Some(Eos::from_grpc_status(0))))["responseEndEvent"]["isGrpc"], true);
}

#[test]
fn a_path_cannot_steer_the_terminal() {
    let Event::RequestInit(init) = request() else { unreachable!("it is a request") };
    let sly = Event::RequestInit(RequestInit { path: "/\x1b[2J\nreq id=0:0".to_owned(), ..init });
    let text = out(Format::Default, &item(&event(ProxyDirection::Inbound, "true", sly)));
    assert!(!text.contains('\x1b') && text.matches('\n').count() == 1, "{text:?}");
}

#[test]
fn connections_are_two_lines() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    let flow_item = |flow: &ringmail_vocab::Flow| TapItem {
        item: Some(tap_item::Item::Flow(flows::Flow::from(flow).encode_to_vec())),
        src_labels: labels(&[("pod", "bot-0")]),
        dst_labels: labels(&[("pod", "web-0")]),
    };
    let open = outbound(&bot, &web, 1, mutual(&web, "e1"));
    assert_eq!(
        out(Format::Default, &flow_item(&open)),
        "open  id=1 proxy=out src=10.142.0.1:30001 dst=10.142.0.2:8080 tls=true\n"
    );
    let closed = inbound(&bot, &web, 1, plain(PlaintextReason::NoTlsFromRemote));
    let closed = ended(closed.clone(), closed.opened_ms + 812);
    assert_eq!(
        out(Format::Default, &flow_item(&closed)),
        "close id=1001 proxy=in  src=10.142.0.1:40001 dst=10.142.0.2:8080 tls=no_tls_from_remote by=client reason=finished sent=10B received=20B duration=812ms\n"
    );
    assert!(out(Format::Wide, &flow_item(&open)).ends_with(
        " protocol=http1 version=TLSv1.3 cipher=TLS13_AES_128_GCM_SHA256 group=X25519MLKEM768 server_id=web.ballot.serviceaccount.identity.ringmail.cluster.local src_pod=bot-0 dst_pod=web-0\n"
    ));
    let json: serde_json::Value = serde_json::from_str(&out(Format::Json, &flow_item(&open))).expect("JSON");
    assert_eq!(
        (&json["flow"]["security"]["kind"], &json["labels"]["source"]["pod"]),
        (&"mutual".into(), &"bot-0".into())
    );
}

#[test]
fn noise_in_the_place_of_an_event_is_an_error_and_no_panic() {
    let broken = TapItem { item: Some(tap_item::Item::Event(vec![0xff; 9])), ..TapItem::default() };
    for format in [Format::Default, Format::Wide, Format::Json] {
        assert!(format.print(&broken).expect_err("an error").to_string().starts_with("RM1707: "));
    }
}
