//! `InboundServerPolicies`: who may call one port of one pod (wire.md 7.1).

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;
use prost_types::Duration;
use ringmail_api::linkerd::http_route::{HttpRouteMatch, PathMatch, path_match};
use ringmail_api::linkerd::http_types::{HttpMethod, http_method};
use ringmail_api::linkerd::inbound::authn::permit_mesh_tls::{Clients, PermitClientIdentities};
use ringmail_api::linkerd::inbound::authn::{Permit, PermitMeshTls, PermitUnauthenticated};
use ringmail_api::linkerd::inbound::proxy_protocol::{Detect, Kind, Opaque};
use ringmail_api::linkerd::inbound::{
    Authn, Authz, HttpRoute, IdentitySuffix, Network, ProxyProtocol, Server, http_route,
};
use ringmail_api::linkerd::meta::{Metadata, metadata};
use ringmail_registry::{Index, ObjectName, Pod, Probe, ProbeAction};

use super::default_policy::DefaultPolicy;
use crate::fault::Refusal;
use crate::stream::View;

/// What the answers depend on beside the pod.
#[derive(Clone, Debug)]
pub struct InboundSettings {
    /// Who may call a pod that does not say.
    pub default: DefaultPolicy,
    /// Where callers are that a `cluster-…` policy lets in.
    pub cluster_networks: Vec<IpNet>,
    /// Where probes come from.
    pub probe_networks: Vec<IpNet>,
}

/// What one stream about a port has told.
#[derive(Debug)]
pub struct Inbound {
    pod: ObjectName,
    port: u16,
    settings: Arc<InboundSettings>,
    told: Option<Server>,
}

impl Inbound {
    /// Nothing told yet.
    pub fn new(pod: ObjectName, port: u16, settings: Arc<InboundSettings>) -> Self {
        Self { pod, port, settings, told: None }
    }
}

impl View for Inbound {
    type Message = Server;

    fn update(&mut self, index: &Index, _synced: bool) -> Result<Vec<Server>, Refusal> {
        let Some(pod) = index.pod(&self.pod) else {
            // The proxy keeps the last policy and asks again.
            return Err(Refusal::NoPod { pod: self.pod.to_string(), port: self.port });
        };
        let now = server(&self.settings, &pod, self.port);
        if self.told.as_ref() == Some(&now) {
            return Ok(Vec::new());
        }
        self.told = Some(now.clone());
        Ok(vec![now])
    }
}

/// The policy of one port of a pod.
pub(super) fn server(settings: &InboundSettings, pod: &Pod, port: u16) -> Server {
    let policy = policy(settings, pod, port);
    let opaque = pod.is_opaque(port);
    let kind = if opaque {
        Kind::Opaque(Opaque {})
    } else {
        Kind::Detect(Detect {
            timeout: Some(DETECT),
            http_routes: routes(settings, pod, port),
            http_local_rate_limit: None,
        })
    };
    Server {
        protocol: Some(ProxyProtocol { kind: Some(kind) }),
        server_ips: pod.ips.iter().map(|ip| (*ip).into()).collect(),
        authorizations: authorizations(settings, policy),
        labels: labels(policy.name()),
    }
}

fn policy(settings: &InboundSettings, pod: &Pod, port: u16) -> DefaultPolicy {
    let policy = match pod.config("default-inbound-policy").map(str::parse) {
        None => settings.default,
        Some(Ok(policy)) => policy,
        Some(Err(error)) => {
            // A typing error must not open what its author wanted to close.
            tracing::warn!(
                "RM1624: pod {}: annotation `config.ringmail.dev/default-inbound-policy`: {error}; until it is mended: deny",
                pod.name
            );
            DefaultPolicy::Deny
        }
    };
    if pod.require_identity.contains(port) { policy.with_identity() } else { policy }
}

fn authorizations(settings: &InboundSettings, policy: DefaultPolicy) -> Vec<Authz> {
    let everywhere = [IpNet::default(), IpNet::V6(ipnet::Ipv6Net::default())];
    let networks = if policy.cluster_only() { settings.cluster_networks.as_slice() } else { &everywhere };
    let permit = match policy {
        DefaultPolicy::Deny => return Vec::new(),
        policy if policy.authenticated() => {
            // The empty suffix: every name.
            let clients = PermitClientIdentities {
                identities: Vec::new(),
                suffixes: vec![IdentitySuffix { parts: Vec::new() }],
            };
            Permit::MeshTls(PermitMeshTls { clients: Some(Clients::Identities(clients)) })
        }
        _ => Permit::Unauthenticated(PermitUnauthenticated {}),
    };
    vec![authorization(policy.name(), networks, permit)]
}

/// The routes of a port: one for its probes, open to where probes come from, and one for all else, which has only the
/// port's own authorizations.
fn routes(settings: &InboundSettings, pod: &Pod, port: u16) -> Vec<HttpRoute> {
    let mut matches: Vec<_> = pod.probes.iter().filter(|probe| probe.port == port).map(probe_match).collect();
    matches.dedup();
    let rest = route(
        "default",
        vec![HttpRouteMatch {
            path: Some(path(path_match::Kind::Prefix("/".to_owned()))),
            ..HttpRouteMatch::default()
        }],
    );
    if matches.is_empty() {
        return vec![rest];
    }
    let mut probes = route("probe", matches);
    let permit = Permit::Unauthenticated(PermitUnauthenticated {});
    probes.authorizations = vec![authorization("probe", &settings.probe_networks, permit)];
    vec![probes, rest]
}

fn route(name: &str, matches: Vec<HttpRouteMatch>) -> HttpRoute {
    HttpRoute {
        metadata: Some(default_metadata(name)),
        hosts: Vec::new(),
        authorizations: Vec::new(),
        rules: vec![http_route::Rule { matches, filters: Vec::new() }],
    }
}

fn probe_match(probe: &Probe) -> HttpRouteMatch {
    let (exact, method) = match &probe.action {
        ProbeAction::HttpGet(path) => (path.clone(), http_method::Registered::Get),
        ProbeAction::Grpc => (GRPC_HEALTH.to_owned(), http_method::Registered::Post),
    };
    HttpRouteMatch {
        path: Some(path(path_match::Kind::Exact(exact))),
        method: Some(HttpMethod { r#type: Some(http_method::Type::Registered(method.into())) }),
        ..HttpRouteMatch::default()
    }
}

fn path(kind: path_match::Kind) -> PathMatch {
    PathMatch { kind: Some(kind) }
}

fn authorization(name: &str, networks: &[IpNet], permit: Permit) -> Authz {
    let network = |net: &IpNet| Network { net: Some((*net).into()), except: Vec::new() };
    Authz {
        networks: networks.iter().map(network).collect(),
        authentication: Some(Authn { permit: Some(permit) }),
        labels: labels(name),
        metadata: Some(default_metadata(name)),
    }
}

/// The labels of what no object of the cluster stands behind.
fn labels(name: &str) -> HashMap<String, String> {
    [("group", ""), ("kind", "default"), ("name", name)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

/// The metadata of what no object of the cluster stands behind.
pub(super) fn default_metadata(name: &str) -> Metadata {
    Metadata { kind: Some(metadata::Kind::Default(name.to_owned())) }
}

/// The method that a kubelet's gRPC probe calls (gRPC health checking protocol).
const GRPC_HEALTH: &str = "/grpc.health.v1.Health/Check";
/// How long a proxy may look for a protocol. Ours does not wait at all.
const DETECT: Duration = Duration { seconds: 10, nanos: 0 };
