//! The names of a mesh and their records, after the Kubernetes DNS specification 1.1.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// A service as DNS sees it.
#[derive(Clone, Debug, Default)]
pub struct ServiceRecord {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its virtual addresses; none for a headless service.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<PortRecord>,
    /// The pods behind a headless service that may be used now.
    pub endpoints: Vec<EndpointRecord>,
}

/// A named port.
#[derive(Clone, Debug)]
pub struct PortRecord {
    /// Name; unnamed ports have no SRV record.
    pub name: Option<String>,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Number at the address of the record that it belongs to.
    pub port: u16,
}

/// A pod behind a headless service.
#[derive(Clone, Debug)]
pub struct EndpointRecord {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its host name where it has one under this service (a stateful set's pods do).
    pub hostname: Option<String>,
    /// Its ports.
    pub ports: Vec<PortRecord>,
}

/// A pod that has an address.
#[derive(Clone, Debug)]
pub struct PodRecord {
    /// Namespace.
    pub namespace: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Every name of a mesh.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    domain: String,
    names: HashMap<String, Records>,
    /// Names without records above names with records: they exist (RFC 8020).
    parents: BTreeSet<String>,
}

/// The records of one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) services: Vec<(u16, String)>,
    pub(super) pointers: Vec<String>,
}

/// What is known of a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// It has records, or stands above names that have some.
    Name(&'a Records),
    /// It does not exist.
    Nothing,
}

impl Zone {
    /// A zone under a domain such as `cluster.local`.
    pub fn new(domain: &str, services: &[ServiceRecord], pods: &[PodRecord], namespaces: &[String]) -> Self {
        let mut zone = Self { domain: domain.to_owned(), ..Self::default() };
        zone.parent(domain);
        zone.parent(&format!("svc.{domain}"));
        zone.parent(&format!("pod.{domain}"));
        for namespace in namespaces {
            zone.parent(&format!("{namespace}.svc.{domain}"));
            zone.parent(&format!("{namespace}.pod.{domain}"));
        }
        for service in services {
            zone.service(service);
        }
        let mut pod_names: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for pod in pods {
            for address in &pod.addresses {
                let name = format!("{}.{}.pod.{domain}", dashed(*address), pod.namespace);
                pod_names.entry(name).or_default().push(*address);
            }
        }
        for (name, addresses) in pod_names {
            zone.at(&name).addresses = addresses;
        }
        zone
    }

    /// The zone's top.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    pub(super) fn find(&self, name: &str) -> Found<'_> {
        static EMPTY: Records = Records { addresses: Vec::new(), services: Vec::new(), pointers: Vec::new() };
        match self.names.get(name) {
            Some(records) => Found::Name(records),
            None if self.parents.contains(name) => Found::Name(&EMPTY),
            None => Found::Nothing,
        }
    }

    /// Whether a name lies in this zone.
    pub(super) fn holds(&self, name: &str) -> bool {
        name == self.domain || name.strip_suffix(&self.domain).is_some_and(|rest| rest.ends_with('.'))
    }

    fn service(&mut self, service: &ServiceRecord) {
        let name = format!("{}.{}.svc.{}", service.name, service.namespace, self.domain);
        if !service.addresses.is_empty() {
            self.at(&name).addresses.clone_from(&service.addresses);
            for address in &service.addresses {
                self.at(&reverse(*address)).pointers.push(name.clone());
            }
            for port in &service.ports {
                self.srv(&name, port, &name);
            }
            return;
        }
        // Headless: the name exists even while no pod may be used.
        self.at(&name);
        for endpoint in &service.endpoints {
            for address in &endpoint.addresses {
                let host = endpoint.hostname.clone().unwrap_or_else(|| dashed(*address));
                let host = format!("{host}.{name}");
                self.at(&name).addresses.push(*address);
                let records = self.at(&host);
                if !records.addresses.contains(address) {
                    records.addresses.push(*address);
                }
                let pointers = &mut self.at(&reverse(*address)).pointers;
                if endpoint.hostname.is_some() || pointers.is_empty() {
                    pointers.push(host.clone());
                }
                for port in &endpoint.ports {
                    self.srv(&name, port, &host);
                }
            }
        }
    }

    fn srv(&mut self, service: &str, port: &PortRecord, target: &str) {
        let Some(port_name) = &port.name else { return };
        let name = format!("_{port_name}._{}.{service}", port.protocol);
        let record = (port.port, target.to_owned());
        let services = &mut self.at(&name).services;
        if !services.contains(&record) {
            services.push(record);
        }
    }

    fn at(&mut self, name: &str) -> &mut Records {
        let mut rest = name;
        while let Some((_, parent)) = rest.split_once('.') {
            if !self.parents.insert(parent.to_owned()) {
                break;
            }
            rest = parent;
        }
        self.names.entry(name.to_owned()).or_default()
    }

    fn parent(&mut self, name: &str) {
        self.parents.insert(name.to_owned());
    }
}

/// `10-142-0-5`, as pods are named by their address.
fn dashed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string().replace('.', "-"),
        // A label cannot start or end with a dash, which `::` at an end would make.
        IpAddr::V6(v6) => v6.segments().map(|s| format!("{s:x}")).join("-"),
    }
}

fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(v6) => {
            let nibbles: Vec<String> = v6
                .octets()
                .iter()
                .rev()
                .flat_map(|byte| [format!("{:x}", byte & 0xf), format!("{:x}", byte >> 4)])
                .collect();
            format!("{}.ip6.arpa", nibbles.join("."))
        }
    }
}
