//! `OutboundPolicies`: how a call is made (wire.md 7.2). Linkerd's proxies ask this; ours ask for profiles.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use prost_types::Duration;
use ringmail_api::linkerd::destination::WeightedAddr;
use ringmail_api::linkerd::http_route::{HttpRouteMatch, PathMatch, path_match};
use ringmail_api::linkerd::meta::Metadata;
use ringmail_api::linkerd::opaque_route::Forbidden;
use ringmail_api::linkerd::outbound::backend::balance_p2c::{Load, PeakEwma};
use ringmail_api::linkerd::outbound::backend::endpoint_discovery::{self, DestinationGet};
use ringmail_api::linkerd::outbound::backend::{self, BalanceP2c, EndpointDiscovery};
use ringmail_api::linkerd::outbound::proxy_protocol::{Detect, Http1, Http2, Kind, Opaque};
use ringmail_api::linkerd::outbound::{
    Backend, HttpRoute, OpaqueRoute, OutboundPolicy, ProxyProtocol, Queue, TrafficSpec, http_route,
    opaque_route, traffic_spec,
};
use ringmail_registry::{Index, Key, Service};

use super::inbound::default_metadata;
use crate::fault::Refusal;
use crate::roles::destination::{Names, Target, resource};
use crate::stream::View;

/// Where traffic goes, as a proxy describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic(Target);

impl Traffic {
    /// Reads a request.
    pub fn read(spec: &TrafficSpec, names: &Names) -> Result<Self, Refusal> {
        match spec.target.as_ref().ok_or(Refusal::NoTraffic)? {
            traffic_spec::Target::Addr(address) => {
                let port = u16::try_from(address.port).ok().filter(|port| *port != 0);
                let port = port.ok_or(Refusal::Port(address.port))?;
                let ip = address
                    .ip
                    .and_then(|ip| std::net::IpAddr::try_from(ip).ok())
                    .ok_or(Refusal::NoTraffic)?;
                Ok(Self(Target::Address(SocketAddr::new(ip.to_canonical(), port))))
            }
            traffic_spec::Target::Authority(authority) => names.read(authority).map(Self),
        }
    }

    /// What the answer depends on.
    pub fn key(&self) -> Key {
        match &self.0 {
            Target::Address(address) => Key::Ip(address.ip()),
            Target::Service(port) => Key::Service(port.service.clone()),
        }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Target::Address(address) => address.fmt(f),
            Target::Service(port) => write!(f, "{}:{}", port.service, port.port),
        }
    }
}

/// What one stream about outbound traffic has told.
#[derive(Debug)]
pub struct Outbound {
    traffic: Traffic,
    names: Names,
    networks: Arc<[IpNet]>,
    told: Option<OutboundPolicy>,
}

impl Outbound {
    /// Nothing told yet. Outside `networks` nothing is the cluster's.
    pub fn new(traffic: Traffic, names: Names, networks: Arc<[IpNet]>) -> Self {
        Self { traffic, names, networks, told: None }
    }

    fn now(&self, index: &Index) -> Option<OutboundPolicy> {
        let (service, port) = match &self.traffic.0 {
            Target::Service(port) => (index.service(&port.service), port.port),
            Target::Address(address) => (index.service_by_ip(address.ip()), address.port()),
        };
        if let Some(service) = service {
            return service.has_endpoints().then(|| self.service(index, &service, port));
        }
        match &self.traffic.0 {
            // A pod, or an address that nothing is known of: the profile says more than a policy could.
            Target::Address(address)
                if self.networks.iter().all(|network| !network.contains(&address.ip())) =>
            {
                Some(egress(*address))
            }
            _ => None,
        }
    }

    fn service(&self, index: &Index, service: &Service, port: u16) -> OutboundPolicy {
        let metadata = resource("Service", &service.name, port);
        if service.port(port).is_none() {
            return OutboundPolicy {
                protocol: Some(protocol(Kind::Opaque(forbidden()))),
                metadata: Some(metadata),
            };
        }
        let path = format!("{}:{port}", self.names.full(&service.name));
        let discovery =
            EndpointDiscovery { kind: Some(endpoint_discovery::Kind::Dst(DestinationGet { path })) };
        let load = Load::PeakEwma(PeakEwma { default_rtt: Some(DEFAULT_RTT), decay: Some(DECAY) });
        let backend = Backend {
            metadata: Some(metadata.clone()),
            queue: Some(QUEUE),
            kind: Some(backend::Kind::Balancer(BalanceP2c { discovery: Some(discovery), load: Some(load) })),
        };
        policy(metadata, &backend, index.opaque_service_port(service, port))
    }
}

impl View for Outbound {
    type Message = OutboundPolicy;

    fn update(&mut self, index: &Index, _synced: bool) -> Result<Vec<OutboundPolicy>, Refusal> {
        let now = self.now(index).ok_or_else(|| Refusal::NoPolicy(self.traffic.to_string()))?;
        if self.told.as_ref() == Some(&now) {
            return Ok(Vec::new());
        }
        self.told = Some(now.clone());
        Ok(vec![now])
    }
}

/// An address outside the cluster: forwarded as it is.
fn egress(address: SocketAddr) -> OutboundPolicy {
    let metadata = default_metadata("egress-fallback");
    let forward = WeightedAddr { addr: Some(address.into()), weight: 1, ..WeightedAddr::default() };
    let kind = Some(backend::Kind::Forward(forward));
    let backend = Backend { metadata: Some(metadata.clone()), queue: Some(QUEUE), kind };
    policy(metadata, &backend, false)
}

fn policy(metadata: Metadata, backend: &Backend, opaque: bool) -> OutboundPolicy {
    let kind = if opaque {
        Kind::Opaque(opaque_route_to(backend))
    } else {
        let routes = vec![http_route_to(backend)];
        Kind::Detect(Detect {
            timeout: Some(DETECT),
            opaque: Some(opaque_route_to(backend)),
            http1: Some(Http1 { routes: routes.clone(), failure_accrual: None }),
            http2: Some(Http2 { routes, failure_accrual: None }),
        })
    };
    OutboundPolicy { protocol: Some(protocol(kind)), metadata: Some(metadata) }
}

fn protocol(kind: Kind) -> ProxyProtocol {
    ProxyProtocol { kind: Some(kind) }
}

fn opaque_route_to(backend: &Backend) -> Opaque {
    use opaque_route::distribution::{FirstAvailable, Kind};
    let backend = opaque_route::RouteBackend { backend: Some(backend.clone()), filters: Vec::new() };
    let backends = opaque_route::Distribution {
        kind: Some(Kind::FirstAvailable(FirstAvailable { backends: vec![backend] })),
    };
    let rule = opaque_route::Rule { backends: Some(backends), filters: Vec::new() };
    Opaque { routes: vec![OpaqueRoute { metadata: Some(default_metadata("opaque")), rules: vec![rule] }] }
}

/// A port that a service does not have: refused at once.
fn forbidden() -> Opaque {
    use opaque_route::distribution::{Empty, Kind};
    let backends = opaque_route::Distribution { kind: Some(Kind::Empty(Empty {})) };
    let filter = opaque_route::Filter { kind: Some(opaque_route::filter::Kind::Forbidden(Forbidden {})) };
    let rule = opaque_route::Rule { backends: Some(backends), filters: vec![filter] };
    Opaque { routes: vec![OpaqueRoute { metadata: Some(default_metadata("opaque")), rules: vec![rule] }] }
}

fn http_route_to(backend: &Backend) -> HttpRoute {
    use http_route::distribution::{FirstAvailable, Kind};
    let backend =
        http_route::RouteBackend { backend: Some(backend.clone()), ..http_route::RouteBackend::default() };
    let backends = http_route::Distribution {
        kind: Some(Kind::FirstAvailable(FirstAvailable { backends: vec![backend] })),
    };
    let all = PathMatch { kind: Some(path_match::Kind::Prefix("/".to_owned())) };
    let rule = http_route::Rule {
        matches: vec![HttpRouteMatch { path: Some(all), ..HttpRouteMatch::default() }],
        backends: Some(backends),
        ..http_route::Rule::default()
    };
    HttpRoute { metadata: Some(default_metadata("http")), hosts: Vec::new(), rules: vec![rule] }
}

// Linkerd's numbers (wire.md 7.2).
const DETECT: Duration = Duration { seconds: 10, nanos: 0 };
const DEFAULT_RTT: Duration = Duration { seconds: 0, nanos: 30_000_000 };
const DECAY: Duration = Duration { seconds: 10, nanos: 0 };
const QUEUE: Queue = Queue { capacity: 100, failfast_timeout: Some(Duration { seconds: 3, nanos: 0 }) };
