//! One indented object an event.

use std::collections::BTreeMap;

use ringmail_api::linkerd::http_types::Headers;
use ringmail_api::linkerd::net::TcpAddress;
use ringmail_api::linkerd::tap::tap_event::http::{Event, StreamId};
use ringmail_api::linkerd::tap::tap_event::{self, ProxyDirection};
use ringmail_api::linkerd::tap::{TapEvent, eos};
use ringmail_api::viz::TapItem;
use ringmail_vocab::Flow;
use serde_json::{Map, Value, json};

use super::line::{event_labels, method, scheme, socket, sorted};

pub(super) fn event(event: &TapEvent, item: &TapItem) -> Result<String, serde_json::Error> {
    let (source, destination) = event_labels(event, item);
    let route = event.route_meta.as_ref().map(|meta| meta.labels.iter().collect::<BTreeMap<_, _>>());
    let mut object = Map::new();
    object.insert("source".to_owned(), endpoint(event.source.as_ref(), &source));
    object.insert("destination".to_owned(), endpoint(event.destination.as_ref(), &destination));
    object.insert("routeMeta".to_owned(), json!(route));
    let direction = match event.proxy_direction() {
        ProxyDirection::Inbound => "INBOUND",
        ProxyDirection::Outbound => "OUTBOUND",
        ProxyDirection::Unknown => "UNKNOWN",
    };
    object.insert("proxyDirection".to_owned(), json!(direction));
    let Some(tap_event::Event::Http(http)) = &event.event else {
        return serde_json::to_string_pretty(&object);
    };
    match &http.event {
        None => {}
        Some(Event::RequestInit(init)) => {
            object.insert(
                "requestInitEvent".to_owned(),
                json!({
                    "id": id(init.id.as_ref()),
                    "method": method(init.method.as_ref()),
                    "scheme": scheme(init.scheme.as_ref()),
                    "authority": init.authority,
                    "path": init.path,
                    "headers": headers(init.headers.as_ref()),
                }),
            );
        }
        Some(Event::ResponseInit(init)) => {
            object.insert(
                "responseInitEvent".to_owned(),
                json!({
                    "id": id(init.id.as_ref()),
                    "sinceRequestInit": duration(init.since_request_init.as_ref()),
                    "httpStatus": init.http_status,
                    "headers": headers(init.headers.as_ref()),
                }),
            );
        }
        Some(Event::ResponseEnd(end)) => {
            let eos = end.eos.as_ref().and_then(|eos| eos.end.as_ref());
            let mut body = json!({
                "id": id(end.id.as_ref()),
                "sinceRequestInit": duration(end.since_request_init.as_ref()),
                "sinceResponseInit": duration(end.since_response_init.as_ref()),
                "responseBytes": end.response_bytes,
                "trailers": headers(end.trailers.as_ref()),
                "grpcStatusCode": if let Some(eos::End::GrpcStatusCode(code)) = eos { *code } else { 0 },
            });
            if let Some(eos::End::ResetErrorCode(code)) = eos {
                body["resetErrorCode"] = json!(code);
            }
            // A status of 0 is printed in any case: this tells gRPC's OK from no gRPC.
            body["isGrpc"] = json!(matches!(eos, Some(eos::End::GrpcStatusCode(_))));
            object.insert("responseEndEvent".to_owned(), body);
        }
    }
    serde_json::to_string_pretty(&object)
}

pub(super) fn flow(flow: &Flow, item: &TapItem) -> Result<String, serde_json::Error> {
    let labels = json!({"source": sorted(&item.src_labels), "destination": sorted(&item.dst_labels)});
    serde_json::to_string_pretty(&json!({"flow": flow, "labels": labels}))
}

fn endpoint(address: Option<&TcpAddress>, labels: &BTreeMap<String, String>) -> Value {
    let address = socket(address);
    json!({
        "ip": address.map(|address| address.ip().to_string()).unwrap_or_default(),
        "port": address.map_or(0, |address| address.port()),
        "metadata": labels,
    })
}

fn id(id: Option<&StreamId>) -> Value {
    let id = id.copied().unwrap_or_default();
    json!({"base": id.base, "stream": id.stream})
}

fn duration(duration: Option<&prost_types::Duration>) -> Value {
    duration.map_or(Value::Null, |duration| json!({"seconds": duration.seconds, "nanos": duration.nanos}))
}

/// `null` where headers were not asked for.
fn headers(headers: Option<&Headers>) -> Value {
    let Some(headers) = headers else { return Value::Null };
    let header = |name: &str, value: &[u8]| match std::str::from_utf8(value) {
        Ok(text) => json!({"name": name, "valueStr": text}),
        Err(_) => json!({"name": name, "valueBin": base64(value)}),
    };
    headers.headers.iter().map(|h| header(&h.name, &h.value)).collect()
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
