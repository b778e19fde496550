//! Which pods stand behind a service, and at which ports.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::manifest::check::named_port;

/// A pod behind a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The pod's name.
    pub pod: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its host name, where the pod has one under this service.
    pub hostname: Option<String>,
    /// For each of the service's ports, the pod's.
    pub ports: Vec<EndpointPort>,
}

/// A service's port at a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// The service's name for it.
    pub name: Option<String>,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The service's port.
    pub port: u16,
    /// The pod's port.
    pub target: u16,
}

impl Endpoint {
    /// Where a service's port is reached at this pod, in the family of `like`.
    pub fn socket(&self, port: u16, protocol: &str, like: IpAddr) -> Option<SocketAddr> {
        let target = self.ports.iter().find(|p| p.port == port && p.protocol == protocol)?.target;
        let address = self.addresses.iter().find(|a| a.is_ipv4() == like.is_ipv4())?;
        Some(SocketAddr::new(*address, target))
    }
}

/// The pods of a service that may be used now: selected, with an address, not ending, and ready (unless the service wants them
/// unready too).
pub fn endpoints<'a>(service: &Service, pods: impl Iterator<Item = &'a Pod>) -> Vec<Endpoint> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let Some(selector) = spec.selector.as_ref().filter(|s| !s.is_empty()) else { return Vec::new() };
    let unready_too = spec.publish_not_ready_addresses == Some(true);
    pods.filter(|pod| pod.metadata.namespace == service.metadata.namespace)
        .filter(|pod| selected(selector, pod))
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .filter(|pod| unready_too && !is_over(pod) || is_ready(pod))
        .filter_map(|pod| {
            let families = spec.ip_families.as_deref().unwrap_or_default();
            let wanted =
                |ip: &IpAddr| families.is_empty() || families.iter().any(|f| (f == "IPv4") == ip.is_ipv4());
            let addresses: Vec<IpAddr> = addresses(pod).into_iter().filter(wanted).collect();
            if addresses.is_empty() {
                return None;
            }
            let pod_spec = pod.spec.as_ref()?;
            let under = pod_spec.subdomain.as_deref() == service.metadata.name.as_deref();
            let ports = spec.ports.iter().flatten().filter_map(|port| {
                let target = match &port.target_port {
                    None => port.port,
                    Some(IntOrString::Int(number)) => *number,
                    Some(IntOrString::String(name)) => {
                        let sidecars = pod_spec.init_containers.iter().flatten();
                        pod_spec.containers.iter().chain(sidecars).find_map(|c| named_port(c, name))?
                    }
                };
                Some(EndpointPort {
                    name: port.name.clone(),
                    protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                    port: u16::try_from(port.port).ok()?,
                    target: u16::try_from(target).ok()?,
                })
            });
            Some(Endpoint {
                pod: pod.metadata.name.clone().unwrap_or_default(),
                addresses,
                hostname: pod_spec.hostname.clone().filter(|_| under),
                ports: ports.collect(),
            })
        })
        .collect()
}

/// Whether a pod's condition `Ready` is true.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// A pod's addresses.
pub fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let ips = pod.status.as_ref().and_then(|s| s.pod_ips.as_ref());
    ips.into_iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect()
}

/// Whether every container of a pod has ended for good.
pub fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn selected(selector: &BTreeMap<String, String>, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    selector.iter().all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(extra: &str) -> Service {
        serde_saphyr::from_str(&format!(
            "metadata: {{name: web, namespace: a}}\nspec: {{selector: {{app: web}}, ports: [{{name: http, port: 80, \
             targetPort: http}}, {{port: 90, protocol: UDP}}]{extra}}}"
        ))
        .unwrap()
    }

    fn pod(ready: bool) -> Pod {
        serde_saphyr::from_str(&format!(
            "metadata: {{name: p, namespace: a, labels: {{app: web, x: y}}}}\nspec: {{containers: [{{name: c, ports: \
             [{{name: http, containerPort: 8080}}]}}], hostname: p, subdomain: web}}\nstatus: {{phase: Running, podIPs: \
             [{{ip: 10.142.0.5}}], conditions: [{{type: Ready, status: '{}'}}]}}",
            if ready { "True" } else { "False" }
        ))
        .unwrap()
    }

    #[test]
    fn ready_pods_are_endpoints_with_named_and_default_ports() {
        let found = endpoints(&service(""), [pod(true), pod(false)].iter());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].hostname.as_deref(), Some("p"));
        let v4 = "10.0.0.1".parse().unwrap();
        assert_eq!(found[0].socket(80, "TCP", v4).unwrap().to_string(), "10.142.0.5:8080");
        assert_eq!(found[0].socket(90, "UDP", v4).unwrap().to_string(), "10.142.0.5:90");
        assert_eq!(found[0].socket(90, "TCP", v4), None);
        assert_eq!(found[0].socket(80, "TCP", "::1".parse().unwrap()), None);
    }

    #[test]
    fn unready_pods_count_where_the_service_wants_them_and_ending_ones_never() {
        let wants = service(", publishNotReadyAddresses: true");
        assert_eq!(endpoints(&wants, [pod(false)].iter()).len(), 1);
        let mut ending = pod(true);
        ending.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(endpoints(&service(""), [ending].iter()).len(), 0);
    }
}
