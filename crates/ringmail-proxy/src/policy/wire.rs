//! Policies from their wire form. Whatever breaks a rule makes the whole policy invalid (wire.md 7.1).

use std::collections::HashMap;

use http::Method;
use ipnet::IpNet;
use linkerd2_proxy_api::http_route::path_match;
use linkerd2_proxy_api::inbound as api;
use linkerd2_proxy_api::inbound::authn::{Permit, PermitMeshTls, permit_mesh_tls};
use linkerd2_proxy_api::inbound::proxy_protocol::Kind;
use linkerd2_proxy_api::meta::{Metadata, metadata};

use super::{Authorization, Clients, Network, Protocol, Route, Rule, ServerPolicy};

/// Which rule a policy breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A field is missing.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// A network that is none.
    #[error("`{0}` is no network")]
    Network(&'static str),
    /// An identity that is none.
    #[error("`{0}` is no identity")]
    Identity(String),
}

impl TryFrom<api::Server> for ServerPolicy {
    type Error = PolicyError;

    fn try_from(server: api::Server) -> Result<Self, PolicyError> {
        let rule = labelled(&server.labels, "server").ok_or(PolicyError::Missing("labels.name"))?;
        let kind = server
            .protocol
            .and_then(|protocol| protocol.kind)
            .ok_or(PolicyError::Missing("protocol.kind"))?;
        let (protocol, http_routes) = match kind {
            Kind::Detect(detect) => (Protocol::Detect, detect.http_routes),
            Kind::Http1(http) => (Protocol::Detect, http.routes),
            Kind::Http2(http) => (Protocol::Detect, http.routes),
            // Of gRPC routes only what the server as a whole permits is used: a connection is let in or not.
            Kind::Grpc(_) => (Protocol::Detect, Vec::new()),
            Kind::Opaque(_) | Kind::Tls(_) => (Protocol::Opaque, Vec::new()),
        };
        let mut authorizations =
            server.authorizations.into_iter().map(authorization).collect::<Result<Vec<_>, _>>()?;
        authorizations.push(Authorization::localhost());
        let routes = http_routes.into_iter().map(route).collect::<Result<Vec<_>, _>>()?;
        let routes = routes.into_iter().flatten().collect();
        Ok(Self { protocol, rule, authorizations, routes })
    }
}

/// The object that labels name, of this kind where they do not say.
fn labelled(labels: &HashMap<String, String>, kind: &str) -> Option<Rule> {
    let label = |key: &str, default: &str| labels.get(key).map_or(default, String::as_str).into();
    let name = labels.get("name")?.as_str().into();
    Some(Rule { group: label("group", "policy.linkerd.io"), kind: label("kind", kind), name })
}

fn authorization(authz: api::Authz) -> Result<Authorization, PolicyError> {
    let rule = if let Some(rule) = authz.metadata.and_then(rule_of) {
        rule
    } else {
        labelled(&authz.labels, "serverauthorization")
            .ok_or(PolicyError::Missing("authorizations.metadata"))?
    };
    if authz.networks.is_empty() {
        return Err(PolicyError::Missing("authorizations.networks"));
    }
    let networks = authz.networks.into_iter().map(network).collect::<Result<_, _>>()?;
    let permit = authz.authentication.and_then(|authn| authn.permit);
    let clients = match permit.ok_or(PolicyError::Missing("authorizations.authentication.permit"))? {
        Permit::Unauthenticated(_) => Clients::Anybody,
        Permit::MeshTls(PermitMeshTls { clients }) => {
            match clients.ok_or(PolicyError::Missing("authorizations.authentication.meshTLS.clients"))? {
                permit_mesh_tls::Clients::Unauthenticated(_) => Clients::AnyTls,
                permit_mesh_tls::Clients::Identities(permitted) => {
                    let parse = |identity: api::Identity| {
                        identity.name.parse().map_err(|_| PolicyError::Identity(identity.name))
                    };
                    let names = permitted.identities.into_iter().map(parse).collect::<Result<_, _>>()?;
                    Clients::Named { names, suffixes: permitted.suffixes.iter().map(suffix).collect() }
                }
            }
        }
    };
    Ok(Authorization { rule, networks, clients })
}

fn network(network: api::Network) -> Result<Network, PolicyError> {
    let net = network.net.ok_or(PolicyError::Missing("networks.net"))?;
    let net = IpNet::try_from(net).map_err(|_| PolicyError::Network("networks.net"))?;
    let except = network.except.into_iter().map(IpNet::try_from).collect::<Result<_, _>>();
    Ok(Network { net, except: except.map_err(|_| PolicyError::Network("networks.except"))? })
}

/// `[a, b]` is `.a.b`, and nothing is everything.
fn suffix(suffix: &api::IdentitySuffix) -> String {
    suffix.parts.iter().fold(String::new(), |text, part| text + "." + &part.to_ascii_lowercase())
}

/// The requests that a route lets in by its own authorizations: GET by exact path, and the call of a gRPC probe. A route
/// that asks for more than method and exact path (hosts, headers, queries, filters) lets in none: this proxy does not look at those, so it must not open by them.
fn route(route: api::HttpRoute) -> Result<Option<Route>, PolicyError> {
    if route.metadata.is_none() {
        return Err(PolicyError::Missing("routes.metadata"));
    }
    let authorizations =
        route.authorizations.into_iter().map(authorization).collect::<Result<Vec<_>, _>>()?;
    if authorizations.is_empty() || !route.hosts.is_empty() {
        return Ok(None);
    }
    let mut requests = Vec::new();
    for rule in route.rules.into_iter().filter(|rule| rule.filters.is_empty()) {
        for matched in rule.matches {
            let path = matched.path.and_then(|path| path.kind);
            let method = matched.method.and_then(|method| Method::try_from(method).ok());
            let bare = matched.headers.is_empty() && matched.query_params.is_empty();
            match (path, method) {
                (Some(path_match::Kind::Exact(path)), Some(Method::GET)) if bare => {
                    requests.push((Method::GET, path));
                }
                (Some(path_match::Kind::Exact(path)), Some(Method::POST)) if bare && path == GRPC_HEALTH => {
                    requests.push((Method::POST, path));
                }
                _ => {}
            }
        }
    }
    Ok((!requests.is_empty()).then_some(Route { requests, authorizations }))
}

/// The call of a kubelet's gRPC probe (gRPC health checking protocol).
const GRPC_HEALTH: &str = "/grpc.health.v1.Health/Check";

fn rule_of(metadata: Metadata) -> Option<Rule> {
    match metadata.kind? {
        metadata::Kind::Default(name) => Some(Rule::default_named(&name)),
        metadata::Kind::Resource(resource) => {
            let kind = resource.kind.as_str().into();
            Some(Rule { group: resource.group.as_str().into(), kind, name: resource.name.as_str().into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Client, ClientTls};
    use super::*;
    use linkerd2_proxy_api::http_route::{HttpRouteMatch, PathMatch};
    use linkerd2_proxy_api::http_types::{HttpMethod, http_method};

    fn net(text: &str, except: &[&str]) -> api::Network {
        let parse = |text: &str| text.parse::<IpNet>().expect("a network").into();
        api::Network { net: Some(parse(text)), except: except.iter().map(|text| parse(text)).collect() }
    }

    fn authz(permit: Permit, networks: Vec<api::Network>) -> api::Authz {
        let metadata = Some(Metadata { kind: Some(metadata::Kind::Default("test".to_owned())) });
        api::Authz {
            networks,
            authentication: Some(api::Authn { permit: Some(permit) }),
            metadata,
            ..api::Authz::default()
        }
    }

    fn anybody() -> Permit {
        Permit::Unauthenticated(api::authn::PermitUnauthenticated {})
    }

    fn named(names: &[&str], suffixes: &[&[&str]]) -> Permit {
        let suffix = |parts: &&[&str]| api::IdentitySuffix {
            parts: parts.iter().map(|part| (*part).to_owned()).collect(),
        };
        let identities =
            permit_mesh_tls::Clients::Identities(api::authn::permit_mesh_tls::PermitClientIdentities {
                identities: names.iter().map(|name| api::Identity { name: (*name).to_owned() }).collect(),
                suffixes: suffixes.iter().map(suffix).collect(),
            });
        Permit::MeshTls(PermitMeshTls { clients: Some(identities) })
    }

    fn server(authorizations: Vec<api::Authz>, http_routes: Vec<api::HttpRoute>) -> api::Server {
        let detect = api::proxy_protocol::Detect { http_routes, ..api::proxy_protocol::Detect::default() };
        api::Server {
            protocol: Some(api::ProxyProtocol { kind: Some(Kind::Detect(detect)) }),
            authorizations,
            labels: [("name".to_owned(), "web".to_owned())].into(),
            ..api::Server::default()
        }
    }

    fn probe(path: &str, networks: Vec<api::Network>) -> api::HttpRoute {
        let get =
            HttpMethod { r#type: Some(http_method::Type::Registered(http_method::Registered::Get as i32)) };
        let matched = HttpRouteMatch {
            path: Some(PathMatch { kind: Some(path_match::Kind::Exact(path.to_owned())) }),
            method: Some(get),
            ..HttpRouteMatch::default()
        };
        api::HttpRoute {
            metadata: Some(Metadata { kind: Some(metadata::Kind::Default("probe".to_owned())) }),
            authorizations: vec![authz(anybody(), networks)],
            rules: vec![api::http_route::Rule { matches: vec![matched], filters: Vec::new() }],
            ..api::HttpRoute::default()
        }
    }

    fn client<'a>(ip: &str, tls: ClientTls<'a>) -> Client<'a> {
        Client { ip: ip.parse().expect("an address"), tls }
    }

    #[test]
    fn networks_exceptions_and_names_decide_together() {
        let web = "web.ballot.serviceaccount.identity.ringmail.cluster.local".parse().expect("an identity");
        let other = "bot.ballot.serviceaccount.identity.ringmail.cluster.local".parse().expect("an identity");
        let rules = vec![authz(
            named(&["WEB.ballot.serviceaccount.identity.ringmail.cluster.local"], &[]),
            vec![net("10.0.0.0/8", &["10.9.0.0/16"])],
        )];
        let policy = ServerPolicy::try_from(server(rules, Vec::new())).expect("valid");
        assert!(policy.decide(client("10.1.1.1", ClientTls::Identity(&web))).is_some());
        assert!(policy.decide(client("10.9.1.1", ClientTls::Identity(&web))).is_none(), "excepted");
        assert!(policy.decide(client("192.0.2.1", ClientTls::Identity(&web))).is_none(), "elsewhere");
        assert!(policy.decide(client("10.1.1.1", ClientTls::Identity(&other))).is_none(), "another name");
        assert!(policy.decide(client("10.1.1.1", ClientTls::Anonymous)).is_none());
        assert!(policy.decide(client("127.0.0.1", ClientTls::None)).is_some(), "the pod itself");
        assert_eq!(policy.rule().to_string(), "policy.linkerd.io/server/web");
    }

    #[test]
    fn a_suffix_of_no_parts_takes_every_proven_name() {
        let spiffe = "spiffe://a/ns/b/sa/c".parse().expect("an identity");
        let rules = vec![authz(named(&[], &[&[]]), vec![net("0.0.0.0/0", &[])])];
        let policy = ServerPolicy::try_from(server(rules, Vec::new())).expect("valid");
        assert!(policy.decide(client("10.1.1.1", ClientTls::Identity(&spiffe))).is_some());
        assert!(policy.decide(client("10.1.1.1", ClientTls::None)).is_none());
    }

    #[test]
    fn a_probe_is_let_in_by_method_path_and_network_only() {
        let policy = ServerPolicy::try_from(server(
            Vec::new(),
            vec![probe("/healthz", vec![net("10.142.0.1/32", &[])])],
        ));
        let policy = policy.expect("valid");
        let kubelet = client("10.142.0.1", ClientTls::None);
        assert!(policy.decide(kubelet).is_none());
        assert!(policy.has_requests_for(kubelet));
        assert!(policy.permits_request(kubelet, &Method::GET, "/healthz"));
        for (method, path) in [
            (Method::GET, "/healthz/"),
            (Method::GET, "/"),
            (Method::POST, "/healthz"),
            (Method::GET, "/Healthz"),
        ] {
            assert!(!policy.permits_request(kubelet, &method, path), "{method} {path}");
        }
        let stranger = client("10.142.0.9", ClientTls::None);
        assert!(
            !policy.has_requests_for(stranger) && !policy.permits_request(stranger, &Method::GET, "/healthz")
        );
    }

    #[test]
    fn a_route_that_asks_for_more_than_a_path_opens_nothing() {
        let mut with_host = probe("/healthz", vec![net("0.0.0.0/0", &[])]);
        with_host.hosts = vec![linkerd2_proxy_api::http_route::HostMatch::default()];
        let mut with_filter = probe("/healthz", vec![net("0.0.0.0/0", &[])]);
        with_filter.rules[0].filters = vec![api::http_route::Filter::default()];
        let mut with_prefix = probe("/healthz", vec![net("0.0.0.0/0", &[])]);
        with_prefix.rules[0].matches[0].path =
            Some(PathMatch { kind: Some(path_match::Kind::Prefix("/".to_owned())) });
        let mut without_method = probe("/healthz", vec![net("0.0.0.0/0", &[])]);
        without_method.rules[0].matches[0].method = None;
        let mut post = probe("/healthz", vec![net("0.0.0.0/0", &[])]);
        post.rules[0].matches[0].method = Some(HttpMethod {
            r#type: Some(http_method::Type::Registered(http_method::Registered::Post as i32)),
        });
        for route in [with_host, with_filter, with_prefix, without_method, post] {
            let policy = ServerPolicy::try_from(server(Vec::new(), vec![route])).expect("valid");
            assert!(!policy.has_requests_for(client("10.1.1.1", ClientTls::None)));
        }
    }

    #[test]
    fn whatever_breaks_a_rule_is_no_policy() {
        let no_network = authz(anybody(), Vec::new());
        let no_permit = api::Authz { authentication: None, ..authz(anybody(), vec![net("0.0.0.0/0", &[])]) };
        let bad_name = authz(named(&["not a name"], &[]), vec![net("0.0.0.0/0", &[])]);
        for authz in [no_network, no_permit, bad_name] {
            assert!(ServerPolicy::try_from(server(vec![authz], Vec::new())).is_err());
        }
        let unnamed = api::Server { labels: HashMap::new(), ..server(Vec::new(), Vec::new()) };
        assert_eq!(ServerPolicy::try_from(unnamed), Err(PolicyError::Missing("labels.name")));
        let kindless = api::Server { protocol: None, ..server(Vec::new(), Vec::new()) };
        assert!(ServerPolicy::try_from(kindless).is_err());
    }
}
