//! Who may call a port of this pod.
//!
//! Start here: [`Policies::port`] is the policy of a port, watched on the control plane; [`ServerPolicy::decide`] says
//! whether a client may connect, [`ServerPolicy::permits_request`] whether it may make one of the few requests (probes)
//! that are exempt by path on a port that is closed to it otherwise.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use http::Method;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use ringmail_identity::Identity;

use crate::config::DefaultPolicy;

mod watch;
mod wire;

pub use watch::{Policies, PortPolicy, Settings};
pub use wire::PolicyError;

/// Who may call one port. Immutable: a change is a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerPolicy {
    protocol: Protocol,
    rule: Rule,
    authorizations: Vec<Authorization>,
    routes: Vec<Route>,
}

/// What policy says of a port's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Find out, or HTTP of some version: read in passing.
    Detect,
    /// Never read its bytes.
    Opaque,
}

/// An object of the control plane, for messages and metrics.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The API group; empty for a default.
    pub group: Arc<str>,
    /// The kind; `default` for a default.
    pub kind: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

/// Whom one rule lets in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization {
    rule: Rule,
    networks: Vec<Network>,
    clients: Clients,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Network {
    net: IpNet,
    except: Vec<IpNet>,
}

/// What a client must prove.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Clients {
    /// Nothing.
    Anybody,
    /// That it speaks mesh TLS.
    AnyTls,
    /// One of these names; a suffix is `.a.b`, the empty one means any name.
    Named { names: Vec<Identity>, suffixes: Vec<String> },
}

/// Requests that a rule lets in by method and path.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Route {
    requests: Vec<(Method, String)>,
    authorizations: Vec<Authorization>,
}

/// A client, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client<'a> {
    /// Its address.
    pub ip: IpAddr,
    /// What it has proven.
    pub tls: ClientTls<'a>,
}

/// What a client has proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientTls<'a> {
    /// Nothing: plaintext, or TLS that is not ours.
    None,
    /// It speaks TLS with us and has shown no certificate.
    Anonymous,
    /// An identity of the mesh.
    Identity(&'a Identity),
}

impl ServerPolicy {
    /// The policy that a setting names. The `cluster-…` ones let in `cluster` only; with `opaque`, bytes are not read.
    pub fn default_of(policy: DefaultPolicy, cluster: &[IpNet], opaque: bool) -> Self {
        let rule = Rule::default_named(policy.label());
        let networks = if policy.is_of_cluster() {
            cluster.iter().copied().map(Network::from).collect()
        } else {
            everywhere()
        };
        let clients = if policy.is_authenticated() {
            Clients::Named { names: Vec::new(), suffixes: vec![String::new()] }
        } else {
            Clients::Anybody
        };
        let authorizations = match policy {
            DefaultPolicy::Deny => Vec::new(),
            _ => vec![Authorization { rule: rule.clone(), networks, clients }],
        };
        let protocol = if opaque { Protocol::Opaque } else { Protocol::Detect };
        Self { protocol, rule, authorizations, routes: Vec::new() }
    }

    /// Lets nobody in: what stands for a policy that breaks its own rules.
    pub fn invalid() -> Self {
        let rule = Rule::default_named("invalid");
        Self { protocol: Protocol::Detect, rule, authorizations: Vec::new(), routes: Vec::new() }
    }

    /// Whether a client may connect: the rule that lets it in, if any.
    pub fn decide(&self, client: Client<'_>) -> Option<&Rule> {
        self.authorizations
            .iter()
            .find(|authorization| authorization.permits(client))
            .map(|found| &found.rule)
    }

    /// Whether some requests may be let in that [`Self::decide`] would not: then they must be looked at one by one.
    pub fn has_requests_for(&self, client: Client<'_>) -> bool {
        self.routes.iter().any(|route| route.permits(client))
    }

    /// Whether a client may make this request, by method and exact path.
    pub fn permits_request(&self, client: Client<'_>, method: &Method, path: &str) -> bool {
        let matches = |route: &Route| route.requests.iter().any(|(m, p)| m == method && p == path);
        self.routes.iter().any(|route| matches(route) && route.permits(client))
    }

    /// Whether bytes may be read in passing.
    pub fn is_opaque(&self) -> bool {
        self.protocol == Protocol::Opaque
    }

    /// The server object or default that this policy is.
    pub fn rule(&self) -> &Rule {
        &self.rule
    }
}

impl Authorization {
    fn permits(&self, client: Client<'_>) -> bool {
        let ip = client.ip.to_canonical();
        self.networks.iter().any(|network| network.contains(ip)) && self.clients.include(client.tls)
    }

    /// The pod itself is always let in by a policy of the control plane (wire.md 7.1).
    fn localhost() -> Self {
        let networks = vec![
            IpNet::from(IpAddr::V4(Ipv4Addr::LOCALHOST)).into(),
            IpNet::from(IpAddr::V6(Ipv6Addr::LOCALHOST)).into(),
        ];
        Self { rule: Rule::default_named("localhost"), networks, clients: Clients::Anybody }
    }
}

impl Network {
    fn contains(&self, ip: IpAddr) -> bool {
        self.net.contains(&ip) && !self.except.iter().any(|except| except.contains(&ip))
    }
}

impl From<IpNet> for Network {
    fn from(net: IpNet) -> Self {
        Self { net, except: Vec::new() }
    }
}

impl Clients {
    fn include(&self, tls: ClientTls<'_>) -> bool {
        match (self, tls) {
            (Self::Anybody, _) | (Self::AnyTls, ClientTls::Anonymous | ClientTls::Identity(_)) => true,
            (Self::Named { names, suffixes }, ClientTls::Identity(identity)) => {
                names.contains(identity) || suffixes.iter().any(|suffix| is_below(identity, suffix))
            }
            (Self::AnyTls | Self::Named { .. }, _) => false,
        }
    }
}

/// A suffix with parts is about DNS names; the empty one takes any proven name, a SPIFFE ID as well.
fn is_below(identity: &Identity, suffix: &str) -> bool {
    let name = identity.as_str();
    suffix.is_empty() || (!name.contains("://") && name.len() > suffix.len() && name.ends_with(suffix))
}

impl Route {
    fn permits(&self, client: Client<'_>) -> bool {
        self.authorizations.iter().any(|authorization| authorization.permits(client))
    }
}

impl Rule {
    fn default_named(name: &str) -> Self {
        Self { group: "".into(), kind: "default".into(), name: name.into() }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.group.is_empty() {
            write!(f, "{}/", self.group)?;
        }
        write!(f, "{}/{}", self.kind, self.name)
    }
}

fn everywhere() -> Vec<Network> {
    vec![IpNet::V4(Ipv4Net::default()).into(), IpNet::V6(Ipv6Net::default()).into()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(name: &str) -> Identity {
        name.parse().expect("an identity")
    }

    #[test]
    fn each_default_lets_in_whom_it_names() {
        let dns = identity("web.ballot.serviceaccount.identity.ringmail.cluster.local");
        let spiffe = identity("spiffe://cluster.local/ns/ballot/sa/web");
        let cluster: Vec<IpNet> = vec!["10.0.0.0/8".parse().expect("a network")];
        let (near, far) = ("10.1.2.3", "192.0.2.1");
        let clients = [
            (near, ClientTls::None),
            (near, ClientTls::Anonymous),
            (near, ClientTls::Identity(&dns)),
            (near, ClientTls::Identity(&spiffe)),
            (far, ClientTls::None),
            (far, ClientTls::Identity(&dns)),
            ("::ffff:10.1.2.3", ClientTls::None),
        ];
        for (policy, allowed) in [
            (DefaultPolicy::Deny, [false, false, false, false, false, false, false]),
            (DefaultPolicy::AllAuthenticated, [false, false, true, true, false, true, false]),
            (DefaultPolicy::AllUnauthenticated, [true, true, true, true, true, true, true]),
            (DefaultPolicy::ClusterAuthenticated, [false, false, true, true, false, false, false]),
            (DefaultPolicy::ClusterUnauthenticated, [true, true, true, true, false, false, true]),
            (DefaultPolicy::Audit, [true, true, true, true, true, true, true]),
        ] {
            let policy = ServerPolicy::default_of(policy, &cluster, false);
            for ((ip, tls), allowed) in clients.iter().zip(allowed) {
                let client = Client { ip: ip.parse().expect("an address"), tls: *tls };
                assert_eq!(policy.decide(client).is_some(), allowed, "{} for {client:?}", policy.rule());
            }
        }
    }

    #[test]
    fn a_suffix_takes_names_below_it_and_not_itself_nor_uris() {
        let suffix = ".ballot.serviceaccount.identity.ringmail.cluster.local";
        assert!(is_below(&identity("web.ballot.serviceaccount.identity.ringmail.cluster.local"), suffix));
        assert!(!is_below(&identity("ballot.serviceaccount.identity.ringmail.cluster.local"), suffix));
        assert!(!is_below(&identity("evilballot.serviceaccount.identity.ringmail.cluster.local"), suffix));
        assert!(!is_below(
            &identity("spiffe://x/web.ballot.serviceaccount.identity.ringmail.cluster.local"),
            suffix
        ));
    }
}
