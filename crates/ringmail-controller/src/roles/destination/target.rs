//! What a proxy asks for: `<ip>:<port>` or `<service>.<namespace>.svc.<cluster domain>:<port>`.

use std::net::SocketAddr;
use std::sync::Arc;

use ringmail_registry::{ObjectName, ServicePort};

use crate::fault::{Refusal, printable};

/// What a proxy asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An address: a pod's or a service's.
    Address(SocketAddr),
    /// A port of a service, by its full name.
    Service(ServicePort),
}

/// The names of services in one cluster domain.
#[derive(Clone, Debug)]
pub struct Names {
    domain: Arc<str>,
}

impl Names {
    /// Names that end in `svc.<domain>`.
    pub fn new(domain: &str) -> Self {
        Self { domain: domain.into() }
    }

    /// Reads a path of a request.
    pub fn read(&self, path: &str) -> Result<Target, Refusal> {
        let none = || Refusal::NoTarget { path: printable(path), domain: self.domain.to_string() };
        if let Ok(address) = path.parse::<SocketAddr>() {
            // An IPv4 address in IPv6 clothes is the IPv4 address.
            let address = SocketAddr::new(address.ip().to_canonical(), address.port());
            return if address.port() == 0 { Err(Refusal::Port(0)) } else { Ok(Target::Address(address)) };
        }
        let (name, port) = path.rsplit_once(':').ok_or_else(none)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(none)?;
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let service =
            name.strip_suffix(&*self.domain).and_then(|rest| rest.strip_suffix(".svc.")).ok_or_else(none)?;
        match service.split('.').collect::<Vec<_>>().as_slice() {
            [service, namespace] if !service.is_empty() && !namespace.is_empty() => {
                Ok(Target::Service(ServicePort { service: ObjectName::new(namespace, service), port }))
            }
            _ => Err(none()),
        }
    }

    /// The full name of a service: `<service>.<namespace>.svc.<cluster domain>`.
    pub fn full(&self, service: &ObjectName) -> String {
        format!("{}.{}.svc.{}", service.name, service.namespace, self.domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str) -> Result<Target, Refusal> {
        Names::new("cluster.local").read(path)
    }

    #[test]
    fn addresses_and_names_of_services_are_read() {
        let address = |text: &str| Target::Address(text.parse().expect("an address"));
        assert_eq!(read("10.142.0.9:80"), Ok(address("10.142.0.9:80")));
        assert_eq!(read("[fd00::9]:80"), Ok(address("[fd00::9]:80")));
        assert_eq!(read("[::ffff:10.142.0.9]:80"), Ok(address("10.142.0.9:80")));
        let web = Target::Service(ServicePort { service: ObjectName::new("ballot", "web"), port: 80 });
        for path in ["web.ballot.svc.cluster.local:80", "Web.Ballot.svc.Cluster.local.:80"] {
            assert_eq!(read(path), Ok(web.clone()), "{path}");
        }
    }

    #[test]
    fn everything_else_is_refused_with_what_came() {
        let bad = [
            "",
            ":",
            "web",
            "web:80",
            "web.ballot:80",
            "web.ballot.svc:80",
            "web.ballot.svc.cluster.local",
            "web.ballot.svc.cluster.local:0",
            "web.ballot.svc.cluster.local:65536",
            "web.ballot.svc.other.example:80",
            "pod.web.ballot.svc.cluster.local:80",
            ".ballot.svc.cluster.local:80",
            "example.com:443",
            "10.142.0.9",
            "fd00::9:80x",
        ];
        for path in bad {
            let error = read(path).expect_err(path).to_string();
            assert!(error.starts_with("RM1611") && error.contains(&format!("`{path}`")), "{error}");
        }
        assert_eq!(read("10.0.0.1:0"), Err(Refusal::Port(0)));
    }
}
