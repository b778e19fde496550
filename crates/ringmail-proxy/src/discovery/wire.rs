//! Endpoints from their wire form.

use std::collections::HashMap;
use std::net::SocketAddr;

use linkerd2_proxy_api::destination::{
    AddrSet, TlsIdentity, WeightedAddr, WeightedAddrSet, protocol_hint::Protocol, tls_identity::Strategy,
};
use ringmail_identity::Identity;

use crate::balance::{EndpointSpec, PeerName};
use crate::metrics::Labels;
use crate::orig_dst::unmap;

/// Why an endpoint is left out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error("an endpoint without a usable address")]
    Address,
    #[error("`{addr}` has an identity that cannot be checked: {problem}")]
    Identity { addr: SocketAddr, problem: String },
}

/// All usable endpoints of a set; what cannot be used is told to `problem`.
pub(super) fn endpoints(set: WeightedAddrSet, mut problem: impl FnMut(Unusable)) -> Vec<EndpointSpec> {
    let labels = set.metric_labels;
    let mut specs = Vec::with_capacity(set.addrs.len());
    for addr in set.addrs {
        match endpoint(addr, &labels) {
            Ok(spec) => specs.push(spec),
            Err(unusable) => problem(unusable),
        }
    }
    specs
}

/// One endpoint. `shared` are the labels of its set.
///
/// An identity that cannot be checked makes the endpoint unusable: without it the connection would be plaintext
/// between two meshed ends.
pub(super) fn endpoint(
    addr: WeightedAddr,
    shared: &HashMap<String, String>,
) -> Result<EndpointSpec, Unusable> {
    let labels = addr.metric_labels;
    let tcp =
        addr.addr.filter(|tcp| (1..=u32::from(u16::MAX)).contains(&tcp.port)).ok_or(Unusable::Address)?;
    let socket = unmap(SocketAddr::try_from(tcp).map_err(|_| Unusable::Address)?);
    let peer = match addr.tls_identity {
        None => None,
        Some(identity) => {
            Some(peer(identity).map_err(|problem| Unusable::Identity { addr: socket, problem })?)
        }
    };
    let opaque = matches!(addr.protocol_hint.and_then(|hint| hint.protocol), Some(Protocol::Opaque(_)));
    let all = shared.iter().filter(|(key, _)| !labels.contains_key(*key)).chain(&labels);
    let labels = Labels::new(all.map(|(key, value)| (format!("dst_{key}"), value.clone())));
    Ok(EndpointSpec { addr: socket, peer, labels, opaque })
}

/// The usable addresses of a set.
pub(super) fn addresses(set: AddrSet) -> Vec<SocketAddr> {
    set.addrs.into_iter().filter_map(|tcp| SocketAddr::try_from(tcp).ok()).map(unmap).collect()
}

fn peer(identity: TlsIdentity) -> Result<PeerName, String> {
    let name = match identity.strategy {
        Some(Strategy::DnsLikeIdentity(dns)) => dns.name,
        Some(Strategy::UriLikeIdentity(uri)) => uri.uri,
        None => return Err("it has no name".to_owned()),
    };
    let parsed: Identity = name.parse().map_err(|error| format!("{error}"))?;
    let sni = match identity.server_name {
        Some(server) => server.name,
        None if name.contains("://") => return Err(format!("`{name}` comes without a server name")),
        None => name,
    };
    // What the handshake could not send must not wait for the handshake to fail.
    match rustls_pki_types::DnsName::try_from(sni.as_str()) {
        Ok(_) => Ok(PeerName { identity: parsed, sni }),
        Err(_) => Err(format!("`{sni}` is no server name")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use linkerd2_proxy_api::destination::tls_identity::{DnsLikeIdentity, UriLikeIdentity};

    const NAME: &str = "web.ballot.serviceaccount.identity.ringmail.cluster.local";

    fn meshed(strategy: Strategy, server_name: Option<&str>) -> WeightedAddr {
        WeightedAddr {
            addr: Some(SocketAddr::from(([10, 1, 2, 3], 80)).into()),
            tls_identity: Some(TlsIdentity {
                strategy: Some(strategy),
                server_name: server_name.map(|name| DnsLikeIdentity { name: name.to_owned() }),
            }),
            metric_labels: [("pod".to_owned(), "web-1".to_owned())].into(),
            ..WeightedAddr::default()
        }
    }

    fn dns(name: &str) -> Strategy {
        Strategy::DnsLikeIdentity(DnsLikeIdentity { name: name.to_owned() })
    }

    #[test]
    fn a_meshed_endpoint_has_a_name_and_labels() {
        let shared =
            [("namespace".to_owned(), "ballot".to_owned()), ("pod".to_owned(), "other".to_owned())].into();
        let spec = endpoint(meshed(dns(NAME), None), &shared).expect("usable");
        assert_eq!(
            spec.peer.map(|peer| (peer.identity.to_string(), peer.sni)),
            Some((NAME.to_owned(), NAME.to_owned()))
        );
        assert_eq!(
            (spec.labels.get("dst_pod"), spec.labels.get("dst_namespace")),
            (Some("web-1"), Some("ballot"))
        );
    }

    #[test]
    fn an_identity_that_cannot_be_checked_is_never_plaintext() {
        let uri = || Strategy::UriLikeIdentity(UriLikeIdentity { uri: "spiffe://a/ns/b/sa/c".to_owned() });
        for bad in [meshed(dns("..."), None), meshed(dns(NAME), Some("not a name")), meshed(uri(), None)] {
            assert!(matches!(endpoint(bad, &HashMap::new()), Err(Unusable::Identity { .. })));
        }
        assert!(endpoint(meshed(uri(), Some(NAME)), &HashMap::new()).is_ok());
        let plain = WeightedAddr { tls_identity: None, ..meshed(dns(NAME), None) };
        assert_eq!(endpoint(plain, &HashMap::new()).map(|spec| spec.peer), Ok(None));
    }

    #[test]
    fn an_endpoint_without_an_address_is_left_out_and_the_others_stay() {
        let mut problems = Vec::new();
        let nowhere = WeightedAddr { addr: None, ..meshed(dns(NAME), None) };
        let set =
            WeightedAddrSet { addrs: vec![nowhere, meshed(dns(NAME), None)], ..WeightedAddrSet::default() };
        assert_eq!(endpoints(set, |problem| problems.push(problem)).len(), 1);
        assert_eq!(problems, [Unusable::Address]);
    }
}
