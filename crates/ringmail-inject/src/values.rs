//! What differs between meshes.

use std::collections::BTreeMap;

use ipnet::IpNet;
use ringmail_identity::anchors::TrustAnchors;
use ringmail_identity::{Identity, TrustDomain};

use crate::error::InjectError;
use crate::options;

/// The settings of one mesh, from which an [`Injector`](crate::Injector) is made.
#[derive(Clone, Debug)]
pub struct Values {
    /// The namespace in which the control plane runs.
    pub control_plane_namespace: String,
    /// The trust domain, with the namespace part of its identities.
    pub trust_domain: TrustDomain,
    /// The trust anchors that proxies start with: certificates in PEM form.
    pub trust_anchors: String,
    /// Identity service: `IP:port` or `name:port`. Inside its own pod the proxy uses `127.0.0.1` and this port.
    pub identity_address: String,
    /// Destination service: as above.
    pub destination_address: String,
    /// Policy service, in the pod of the destination service: as above.
    pub policy_address: String,
    /// The one identity that may ask for taps and flows; without it nobody may.
    pub tap_identity: Option<Identity>,
    /// The mesh's networks: where its pods and services have their addresses.
    pub cluster_networks: Vec<IpNet>,
    /// By what redirection knows the proxy's own connections.
    pub exemption: Exemption,
    /// Whether IPv6 is redirected too.
    pub ipv6: bool,
    /// The audience of the proxies' tokens.
    pub token_audience: String,
    /// Who injects, for the annotation `ringmail.dev/created-by`.
    pub created_by: String,
    /// Values of options, by their names (see [`options`](crate::options)), for pods that have no annotation for them.
    pub options: BTreeMap<String, String>,
}

/// By what redirection knows the proxy's own connections, so that it leaves them alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exemption {
    /// By the proxy's uid, the option `proxy-uid`.
    Uid,
    /// By a mark on the proxy's sockets, where a pod has one uid only.
    Mark(u32),
}

impl Values {
    /// A mesh on Kubernetes, with the usual names.
    pub fn kubernetes(trust_domain: TrustDomain, trust_anchors: String) -> Self {
        let namespace = trust_domain.identity_namespace().to_owned();
        let service =
            |name: &str, port: u16| format!("{name}.{namespace}.svc.{}.:{port}", trust_domain.domain());
        Self {
            identity_address: service("identity", 8080),
            destination_address: service("destination", 8086),
            policy_address: service("policy", 8090),
            tap_identity: ringmail_identity::WorkloadId::new("viz", &namespace, &trust_domain)
                .ok()
                .map(|id| id.identity()),
            control_plane_namespace: namespace,
            trust_domain,
            trust_anchors,
            cluster_networks: CLUSTER_NETWORKS.iter().filter_map(|net| net.parse().ok()).collect(),
            exemption: Exemption::Uid,
            ipv6: true,
            token_audience: "identity.ringmail.dev".to_owned(),
            created_by: concat!("ringmail/injector ", env!("CARGO_PKG_VERSION")).to_owned(),
            options: BTreeMap::new(),
        }
    }

    /// Refuses settings that no proxy could start with; gives the fingerprints of the trust anchors.
    pub(crate) fn check(&self) -> Result<Vec<String>, InjectError> {
        let refuse = |field: &str, value: &str, why: String| {
            Err(InjectError::Values { field: field.to_owned(), value: value.to_owned(), why })
        };
        for (field, address) in [
            ("identity_address", &self.identity_address),
            ("destination_address", &self.destination_address),
            ("policy_address", &self.policy_address),
        ] {
            if port_of(address).is_none() {
                return refuse(field, address, "expected `IP:port` or `name:port`".to_owned());
            }
        }
        if self.cluster_networks.is_empty() {
            return refuse("cluster_networks", "", "at least one network is needed".to_owned());
        }
        if self.exemption == Exemption::Mark(0) {
            return refuse("exemption", "mark 0", "0 is no mark".to_owned());
        }
        if self.token_audience.is_empty() {
            return refuse("token_audience", "", "must not be empty".to_owned());
        }
        self.options.iter().try_for_each(|(name, value)| options::check_name(name, value))?;
        match TrustAnchors::from_pem(&self.trust_anchors) {
            Ok(anchors) => Ok(anchors.fingerprints().map(str::to_owned).collect()),
            Err(error) => refuse("trust_anchors", "…", error.to_string()),
        }
    }
}

/// The port of `IP:port` or `name:port`.
pub(crate) fn port_of(address: &str) -> Option<u16> {
    let (host, port) = address.rsplit_once(':')?;
    let bare_v6 = host.contains(':') && !host.starts_with('[');
    if host.is_empty() || bare_v6 { None } else { port.parse().ok().filter(|port| *port > 0) }
}

/// The private networks (RFC 1918, RFC 6598, RFC 4193).
const CLUSTER_NETWORKS: [&str; 5] =
    ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for good in ["10.0.0.1:8080", "[fd00::1]:8080", "identity.ringmail.svc.cluster.local.:8080"] {
            assert_eq!(port_of(good), Some(8080), "{good}");
        }
        for bad in ["10.0.0.1", ":8080", "fd00::1:8080", "name:0", "name:x", "name:70000"] {
            assert_eq!(port_of(bad), None, "{bad}");
        }
    }
}
