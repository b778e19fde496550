//! What Linkerd's proxy demands of the messages it gets (wire.md 6.3, 6.4, 7.1, 7.2). Answers are checked against
//! these rules, not against the code that makes them.

use std::net::{IpAddr, SocketAddr};

use ringmail_api::linkerd::destination::tls_identity::Strategy;
use ringmail_api::linkerd::destination::{Update, WeightedAddr, update};
use ringmail_api::linkerd::inbound::{self, authn, proxy_protocol as inbound_protocol};
use ringmail_api::linkerd::meta::{Metadata, metadata};
use ringmail_api::linkerd::outbound::{self, backend, proxy_protocol as outbound_protocol};
use ringmail_identity::Identity;

pub(crate) type Valid = Result<(), String>;

pub(crate) fn endpoint(addr: &WeightedAddr) -> Valid {
    let address = addr.addr.ok_or("addr is missing")?;
    let address = SocketAddr::try_from(address).map_err(|_| "addr is malformed")?;
    demand(address.port() != 0, "port 0")?;
    if let Some(tls) = &addr.tls_identity {
        let name = match tls.strategy.as_ref().ok_or("tls_identity without a strategy")? {
            Strategy::DnsLikeIdentity(dns) => {
                dns.name.parse::<Identity>().map_err(|error| error.to_string())?
            }
            Strategy::UriLikeIdentity(_) => {
                demand(tls.server_name.is_some(), "a URI without a server name means plaintext")?;
                return Ok(());
            }
        };
        let server_name = tls.server_name.as_ref().map_or(name.as_str(), |name| &name.name);
        demand(!server_name.ends_with('.') && server_name.contains('.'), "the server name is no DNS name")?;
    }
    if let Some(transport) = addr.protocol_hint.as_ref().and_then(|hint| hint.opaque_transport.as_ref()) {
        demand((1..65535).contains(&transport.inbound_port), "inbound_port")?;
    }
    Ok(())
}

/// `first`: whether it is the first message of a stream.
pub(crate) fn destination_update(message: &Update, first: bool) -> Valid {
    match message.update.as_ref().ok_or("empty update")? {
        update::Update::Add(set) => {
            demand(!set.addrs.is_empty(), "an empty add is ignored")?;
            set.addrs.iter().try_for_each(endpoint)
        }
        update::Update::Remove(set) => {
            demand(!first, "a stream starts with add or no_endpoints")?;
            demand(!set.addrs.is_empty(), "an empty remove says nothing")
        }
        update::Update::NoEndpoints(_) => Ok(()),
    }
}

pub(crate) fn server(server: &inbound::Server) -> Valid {
    let kind = server
        .protocol
        .as_ref()
        .and_then(|protocol| protocol.kind.as_ref())
        .ok_or("protocol without a kind")?;
    demand(server.labels.get("name").is_some_and(|name| !name.is_empty()), "labels without name")?;
    server.authorizations.iter().try_for_each(authz)?;
    match kind {
        inbound_protocol::Kind::Detect(detect) => {
            demand(detect.timeout.is_some(), "detect without timeout")?;
            detect.http_routes.iter().try_for_each(inbound_route)
        }
        inbound_protocol::Kind::Opaque(_) | inbound_protocol::Kind::Tls(_) => Ok(()),
        inbound_protocol::Kind::Http1(http) => http.routes.iter().try_for_each(inbound_route),
        inbound_protocol::Kind::Http2(http) => http.routes.iter().try_for_each(inbound_route),
        inbound_protocol::Kind::Grpc(_) => Err("gRPC servers are not made here".to_owned()),
    }
}

fn inbound_route(route: &inbound::HttpRoute) -> Valid {
    named(route.metadata.as_ref())?;
    demand(!route.rules.is_empty(), "a route without rules")?;
    for one in route.rules.iter().flat_map(|rule| &rule.matches) {
        demand(one.path.as_ref().is_none_or(|path| path.kind.is_some()), "a path match without a kind")?;
        demand(one.method.as_ref().is_none_or(|method| method.r#type.is_some()), "a method without a type")?;
    }
    route.authorizations.iter().try_for_each(authz)
}

fn authz(authz: &inbound::Authz) -> Valid {
    demand(!authz.networks.is_empty(), "an authorization without networks")?;
    for network in &authz.networks {
        let net = network.net.ok_or("a network without net")?;
        ipnet::IpNet::try_from(net).map_err(|error| error.to_string())?;
    }
    let permit = authz.authentication.as_ref().and_then(|authn| authn.permit.as_ref()).ok_or("no permit")?;
    if let authn::Permit::MeshTls(tls) = permit {
        demand(tls.clients.is_some(), "mesh TLS without clients")?;
    }
    demand(
        authz.metadata.is_some() || authz.labels.contains_key("name"),
        "neither metadata nor labels.name",
    )?;
    authz.metadata.as_ref().map_or(Ok(()), |metadata| named(Some(metadata)))
}

pub(crate) fn outbound_policy(policy: &outbound::OutboundPolicy) -> Valid {
    named(policy.metadata.as_ref())?;
    let kind = policy
        .protocol
        .as_ref()
        .and_then(|protocol| protocol.kind.as_ref())
        .ok_or("protocol without a kind")?;
    match kind {
        outbound_protocol::Kind::Detect(detect) => {
            demand(detect.timeout.is_some(), "detect without timeout")?;
            opaque(detect.opaque.as_ref().ok_or("detect without opaque")?)?;
            let http1 = detect.http1.as_ref().ok_or("detect without http1")?;
            http1.routes.iter().try_for_each(outbound_route)?;
            let http2 = detect.http2.as_ref().ok_or("detect without http2")?;
            http2.routes.iter().try_for_each(outbound_route)
        }
        outbound_protocol::Kind::Opaque(routes) => opaque(routes),
        other => Err(format!("not made here: {other:?}")),
    }
}

fn opaque(opaque: &outbound_protocol::Opaque) -> Valid {
    use outbound::opaque_route::distribution::Kind;
    demand(opaque.routes.len() <= 1, "more than one opaque route")?;
    for route in &opaque.routes {
        named(route.metadata.as_ref())?;
        let [rule] = route.rules.as_slice() else { return Err("not exactly one rule".to_owned()) };
        match rule.backends.as_ref().and_then(|backends| backends.kind.as_ref()).ok_or("no distribution")? {
            Kind::Empty(_) => {}
            Kind::FirstAvailable(first) => {
                demand(!first.backends.is_empty(), "no backend")?;
                first.backends.iter().try_for_each(|one| self::backend(one.backend.as_ref()))?;
            }
            Kind::RandomAvailable(random) => {
                demand(random.backends.iter().any(|one| one.weight > 0), "all weights are 0")?;
            }
        }
    }
    Ok(())
}

fn outbound_route(route: &outbound::HttpRoute) -> Valid {
    use outbound::http_route::distribution::Kind;
    named(route.metadata.as_ref())?;
    for rule in &route.rules {
        match rule.backends.as_ref().and_then(|backends| backends.kind.as_ref()).ok_or("no distribution")? {
            Kind::Empty(_) => {}
            Kind::FirstAvailable(first) => {
                demand(!first.backends.is_empty(), "no backend")?;
                first.backends.iter().try_for_each(|one| self::backend(one.backend.as_ref()))?;
            }
            Kind::RandomAvailable(random) => {
                demand(random.backends.iter().any(|one| one.weight > 0), "all weights are 0")?;
            }
        }
    }
    Ok(())
}

fn backend(backend: Option<&outbound::Backend>) -> Valid {
    let backend = backend.ok_or("no backend")?;
    named(backend.metadata.as_ref())?;
    let queue = backend.queue.as_ref().ok_or("no queue")?;
    demand(queue.failfast_timeout.is_some(), "a queue without failfast_timeout")?;
    match backend.kind.as_ref().ok_or("a backend without a kind")? {
        backend::Kind::Forward(addr) => endpoint(addr),
        backend::Kind::Balancer(balancer) => {
            let discovery = balancer.discovery.as_ref().and_then(|discovery| discovery.kind.as_ref());
            let backend::endpoint_discovery::Kind::Dst(dst) = discovery.ok_or("no discovery")?;
            let (name, port) = dst.path.rsplit_once(':').ok_or("a path without port")?;
            demand(
                name.parse::<Identity>().is_ok() && name.parse::<IpAddr>().is_err(),
                "the path has no DNS name",
            )?;
            demand(port.parse::<u16>().is_ok_and(|port| port != 0), "the path has no port")?;
            match balancer.load.as_ref().ok_or("no load")? {
                backend::balance_p2c::Load::PeakEwma(ewma) => demand(
                    ewma.default_rtt.is_some() && ewma.decay.is_some(),
                    "a peak EWMA without durations",
                ),
                backend::balance_p2c::Load::PenaltyPeakEwma(_) => Ok(()),
            }
        }
    }
}

fn named(metadata: Option<&Metadata>) -> Valid {
    match metadata.and_then(|metadata| metadata.kind.as_ref()).ok_or("no metadata")? {
        metadata::Kind::Default(name) => demand(!name.is_empty(), "a default without a name"),
        metadata::Kind::Resource(resource) => {
            let parts = [&resource.group, &resource.kind, &resource.name, &resource.namespace];
            demand(
                parts.iter().all(|part| !part.is_empty()),
                "a resource lacks group, kind, name or namespace",
            )
        }
    }
}

fn demand(holds: bool, problem: &str) -> Valid {
    if holds { Ok(()) } else { Err(problem.to_owned()) }
}
