//! One line an event.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::net::SocketAddr;

use ringmail_api::linkerd::http_types::{HttpMethod, Scheme, http_method, scheme};
use ringmail_api::linkerd::net::TcpAddress;
use ringmail_api::linkerd::tap::tap_event::http::{Event, StreamId};
use ringmail_api::linkerd::tap::tap_event::{self, ProxyDirection};
use ringmail_api::linkerd::tap::{TapEvent, eos};
use ringmail_api::viz::TapItem;
use ringmail_vocab::{Direction, Flow};

use crate::table::printable;

pub(super) fn event(event: &TapEvent) -> String {
    let flow = format!(
        "proxy={} src={} dst={} tls={}",
        match event.proxy_direction() {
            ProxyDirection::Inbound => "in ",
            ProxyDirection::Outbound => "out",
            ProxyDirection::Unknown => "???",
        },
        address(event.source.as_ref()),
        address(event.destination.as_ref()),
        printable(tls(event)),
    );
    let http = match &event.event {
        Some(tap_event::Event::Http(http)) => http.event.as_ref(),
        None => None,
    };
    match http {
        None => format!("unknown {flow}"),
        Some(Event::RequestInit(init)) => format!(
            "req id={} {flow} :method={} :authority={} :path={}",
            id(init.id.as_ref()),
            printable(&method(init.method.as_ref())),
            printable(&init.authority),
            printable(&init.path),
        ),
        Some(Event::ResponseInit(init)) => format!(
            "rsp id={} {flow} :status={} latency={}µs",
            id(init.id.as_ref()),
            init.http_status,
            micros(init.since_request_init.as_ref()),
        ),
        Some(Event::ResponseEnd(end)) => {
            let status = match end.eos.as_ref().and_then(|eos| eos.end.as_ref()) {
                Some(eos::End::GrpcStatusCode(code)) => format!(" grpc-status={}", grpc_status_name(*code)),
                Some(eos::End::ResetErrorCode(code)) => format!(" reset-error={code}"),
                None => String::new(),
            };
            format!(
                "end id={} {flow}{status} duration={}µs response-length={}B",
                id(end.id.as_ref()),
                micros(end.since_response_init.as_ref()),
                end.response_bytes,
            )
        }
    }
}

pub(super) fn event_wide(event: &TapEvent, item: &TapItem) -> String {
    let mut text = self::event(event);
    let (source, destination) = event_labels(event, item);
    append(&mut text, "src", &source);
    append(&mut text, "dst", &destination);
    let route = event.route_meta.iter().flat_map(|meta| &meta.labels);
    append(&mut text, "rt", &route.map(|(key, value)| (key.clone(), value.clone())).collect());
    text
}

pub(super) fn flow(flow: &Flow) -> String {
    let mut text = format!(
        "{} id={} proxy={} src={} dst={} tls={}",
        if flow.closed.is_some() { "close" } else { "open " },
        flow.id.0,
        if flow.direction == Direction::Inbound { "in " } else { "out" },
        flow.src,
        flow.dst,
        flow.security.tap_label(),
    );
    if let Some(closed) = &flow.closed {
        let _ = write!(
            text,
            " by={} reason={} sent={}B received={}B duration={}ms",
            closed.by.label(),
            closed.reason.label(),
            flow.sent,
            flow.received,
            closed.at_ms.saturating_sub(flow.opened_ms),
        );
        if let Some(code) = &closed.code {
            let _ = write!(text, " code={}", printable(code));
        }
    }
    text
}

pub(super) fn flow_wide(flow: &Flow, item: &TapItem) -> String {
    let mut text = self::flow(flow);
    let _ = write!(text, " protocol={}", flow.protocol.label());
    if let Some(tls) = flow.security.tls() {
        let _ = write!(
            text,
            " version={} cipher={} group={}",
            printable(&tls.version),
            printable(&tls.cipher),
            printable(&tls.group)
        );
    }
    if let Some(peer) = flow.security.proven_peer() {
        let name = if flow.direction == Direction::Inbound { "client_id" } else { "server_id" };
        let _ = write!(text, " {name}={peer}");
    }
    append(&mut text, "src", &sorted(&item.src_labels));
    append(&mut text, "dst", &sorted(&item.dst_labels));
    text
}

/// The labels of both ends: the proxy's, and the registry's where the proxy says nothing.
pub(super) fn event_labels(
    event: &TapEvent,
    item: &TapItem,
) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let merged = |registry: &HashMap<String, String>, proxy: Option<&tap_event::EndpointMeta>| {
        let mut labels = sorted(registry);
        labels.extend(proxy.into_iter().flat_map(|meta| meta.labels.clone()));
        labels
    };
    (
        merged(&item.src_labels, event.source_meta.as_ref()),
        merged(&item.dst_labels, event.destination_meta.as_ref()),
    )
}

pub(super) fn sorted(labels: &HashMap<String, String>) -> BTreeMap<String, String> {
    labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

pub(super) fn method(method: Option<&HttpMethod>) -> String {
    match method.and_then(|method| method.r#type.as_ref()) {
        Some(http_method::Type::Registered(number)) => http_method::Registered::try_from(*number)
            .map_or_else(|_| number.to_string(), |m| m.as_str_name().to_owned()),
        Some(http_method::Type::Unregistered(text)) => text.clone(),
        None => String::new(),
    }
}

pub(super) fn scheme(scheme: Option<&Scheme>) -> String {
    match scheme.and_then(|scheme| scheme.r#type.as_ref()) {
        Some(scheme::Type::Registered(number)) => scheme::Registered::try_from(*number)
            .map_or_else(|_| number.to_string(), |s| s.as_str_name().to_owned()),
        Some(scheme::Type::Unregistered(text)) => text.clone(),
        None => String::new(),
    }
}

pub(super) fn socket(address: Option<&TcpAddress>) -> Option<SocketAddr> {
    let address = address?;
    let ip = std::net::IpAddr::try_from(address.ip?).ok()?;
    Some(SocketAddr::new(ip, u16::try_from(address.port).ok()?))
}

/// The name of a gRPC status, as Go spells it.
pub fn grpc_status_name(code: u32) -> String {
    match GRPC_STATUS.get(code as usize) {
        Some(name) => (*name).to_owned(),
        None => format!("Code({code})"),
    }
}

fn tls(event: &TapEvent) -> &str {
    let meta = match event.proxy_direction() {
        ProxyDirection::Inbound => event.source_meta.as_ref(),
        ProxyDirection::Outbound => event.destination_meta.as_ref(),
        ProxyDirection::Unknown => None,
    };
    meta.and_then(|meta| meta.labels.get("tls")).map_or("", String::as_str)
}

fn address(address: Option<&TcpAddress>) -> String {
    socket(address).map(|address| address.to_string()).unwrap_or_default()
}

fn id(id: Option<&StreamId>) -> String {
    let id = id.copied().unwrap_or_default();
    format!("{}:{}", id.base, id.stream)
}

fn micros(duration: Option<&prost_types::Duration>) -> i64 {
    duration.map_or(0, |d| d.seconds.saturating_mul(1_000_000).saturating_add(i64::from(d.nanos) / 1_000))
}

fn append(text: &mut String, prefix: &str, labels: &BTreeMap<String, String>) {
    for (key, value) in labels {
        let _ = write!(text, " {prefix}_{}={}", printable(key), printable(value));
    }
}

const GRPC_STATUS: &[&str] = &[
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
