//! What a tap is told, as messages.

use std::collections::HashMap;
use std::time::Duration;

use ringmail_api::linkerd::http_types::{
    Headers as WireHeaders, HttpMethod, Scheme, headers::Header, scheme as wire_scheme,
};
use ringmail_api::linkerd::tap::tap_event::http::{Event, RequestInit, ResponseEnd, ResponseInit, StreamId};
use ringmail_api::linkerd::tap::tap_event::{self, EndpointMeta, Http, ProxyDirection, RouteMeta};
use ringmail_api::linkerd::tap::{Eos, TapEvent, eos};
use ringmail_vocab::{Direction, PlaintextReason, Security};
use ringmail_wire::http::{End, Headers, RequestHead, ResponseHead, Version};

use super::Subject;

/// A response's head, and when it came.
#[derive(Clone, Debug)]
pub struct ResponseSeen<'a> {
    /// The head.
    pub head: &'a ResponseHead<'a>,
    /// Time since the request's head.
    pub since_request: Duration,
}

/// An exchange's end, and when it came.
#[derive(Clone, Debug)]
pub struct EndSeen<'a> {
    /// The end.
    pub end: &'a End<'a>,
    /// Time since the request's head.
    pub since_request: Duration,
    /// Time since the response's head, where there was one.
    pub since_response: Option<Duration>,
}

/// An event of one connection.
pub(super) fn of_subject(subject: &Subject, http: Http) -> TapEvent {
    let tls = tls_labels(subject.direction, &subject.security);
    let loopback = HashMap::from([("tls".to_owned(), PlaintextReason::Loopback.label().to_owned())]);
    let (source, mut destination, direction) = match subject.direction {
        Direction::Inbound => (tls, loopback, ProxyDirection::Inbound),
        Direction::Outbound => (loopback, tls, ProxyDirection::Outbound),
    };
    for (key, value) in subject.labels.iter() {
        let key = key.strip_prefix("dst_").unwrap_or(key);
        destination.entry(key.to_owned()).or_insert_with(|| value.to_owned());
    }
    TapEvent {
        source: Some(subject.src.into()),
        source_meta: Some(EndpointMeta { labels: source }),
        route_meta: Some(RouteMeta::default()),
        destination: Some(subject.dst.into()),
        destination_meta: Some(EndpointMeta { labels: destination }),
        proxy_direction: direction.into(),
        event: Some(tap_event::Event::Http(http)),
    }
}

pub(super) fn request_init(id: StreamId, head: &RequestHead<'_>, headers: bool) -> Http {
    let pseudo = [
        (":method", head.method.as_bytes()),
        (":scheme", head.scheme.as_bytes()),
        (":authority", head.authority.as_bytes()),
        (":path", head.path.as_bytes()),
    ];
    http(Event::RequestInit(RequestInit {
        id: Some(id),
        method: Some(method(&head.method)),
        scheme: Some(scheme(&head.scheme)),
        authority: head.authority.clone().into_owned(),
        path: head.path.clone().into_owned(),
        headers: headers
            .then(|| extract(head.headers, if head.version == Version::Http2 { &pseudo } else { &[] })),
    }))
}

pub(super) fn response_init(id: StreamId, seen: &ResponseSeen<'_>, headers: bool) -> Http {
    let status = seen.head.status.to_string();
    let pseudo = [(":status", status.as_bytes())];
    http(Event::ResponseInit(ResponseInit {
        id: Some(id),
        since_request_init: duration(seen.since_request),
        http_status: seen.head.status.into(),
        headers: headers.then(|| {
            extract(seen.head.headers, if seen.head.version == Version::Http2 { &pseudo } else { &[] })
        }),
    }))
}

pub(super) fn response_end(id: StreamId, seen: &EndSeen<'_>, headers: bool) -> Http {
    let end = match (seen.end.reset, seen.end.grpc_status) {
        (Some(code), _) => Some(eos::End::ResetErrorCode(code)),
        (None, Some(code)) => Some(eos::End::GrpcStatusCode(code)),
        (None, None) => None,
    };
    http(Event::ResponseEnd(ResponseEnd {
        id: Some(id),
        since_request_init: duration(seen.since_request),
        since_response_init: seen.since_response.and_then(duration),
        response_bytes: seen.end.response_bytes,
        eos: end.map(|end| Eos { end: Some(end) }),
        trailers: headers.then(|| extract(seen.end.trailers, &[])),
    }))
}

fn http(event: Event) -> Http {
    Http { event: Some(event) }
}

fn duration(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

/// `tls` and who is at the other end (wire.md 8.4).
fn tls_labels(direction: Direction, security: &Security) -> HashMap<String, String> {
    let mut labels = HashMap::from([("tls".to_owned(), security.tap_label().to_owned())]);
    let name = if direction == Direction::Inbound { "client_id" } else { "server_id" };
    if let Some(peer) = security.proven_peer() {
        labels.insert(name.to_owned(), peer.to_string());
    }
    if let Security::Passthrough { sni } = security {
        labels.insert("sni".to_owned(), sni.clone());
    }
    labels
}

fn method(method: &str) -> HttpMethod {
    use ringmail_api::linkerd::http_types::http_method::{Registered, Type};
    let kind = match Registered::from_str_name(method) {
        Some(registered) => Type::Registered(registered.into()),
        None => Type::Unregistered(method.to_owned()),
    };
    HttpMethod { r#type: Some(kind) }
}

fn scheme(scheme: &str) -> Scheme {
    use wire_scheme::{Registered, Type};
    let kind = match scheme {
        "http" => Type::Registered(Registered::Http.into()),
        "https" => Type::Registered(Registered::Https.into()),
        other => Type::Unregistered(other.to_owned()),
    };
    Scheme { r#type: Some(kind) }
}

/// Headers as a tap may see them: what proves who somebody is stays in this proxy.
fn extract(headers: Headers<'_>, pseudo: &[(&str, &[u8])]) -> WireHeaders {
    let header = |name: &str, value: &[u8]| Header { name: name.to_owned(), value: value.to_vec() };
    let own = pseudo.iter().map(|(name, value)| header(name, value));
    let sent = headers.iter().map(|(name, value)| {
        let name = name.to_ascii_lowercase();
        let value = if is_secret(&name) { REDACTED } else { value };
        header(&name, value)
    });
    WireHeaders { headers: own.chain(sent).collect() }
}

fn is_secret(name: &str) -> bool {
    SECRET.contains(&name) || SECRET_PARTS.iter().any(|part| name.contains(part))
}

/// Headers whose value is a credential by their definition.
const SECRET: [&str; 6] =
    ["authorization", "proxy-authorization", "cookie", "set-cookie", "cookie2", "authentication-info"];
/// Parts of names that people give to credentials.
const SECRET_PARTS: [&str; 8] =
    ["api-key", "apikey", "auth-token", "access-token", "secret", "password", "csrf-token", "session"];
const REDACTED: &[u8] = b"[redacted]";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_never_shown_and_other_headers_are() {
        for name in [
            "authorization",
            "cookie",
            "set-cookie",
            "x-api-key",
            "x-amz-security-token-secret",
            "x-session-id",
        ] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["content-type", "accept", "user-agent", "grpc-status", "x-request-id"] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
