//! The types of settings that no other module has.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;

/// Where a control-plane service is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ControlAddress {
    /// An address as it is.
    Ip(SocketAddr),
    /// A DNS name and a port.
    Name(String, u16),
}

impl ControlAddress {
    /// Whether it is spoken to in plaintext: a loopback address, or `localhost.` with its dot (wire.md 1.4). Without
    /// the dot a search list may lead elsewhere.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Ip(addr) => addr.ip().is_loopback(),
            Self::Name(name, _) => name.eq_ignore_ascii_case("localhost."),
        }
    }

    /// The address, where no lookup is needed.
    pub fn known(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(addr) => Some(*addr),
            Self::Name(_, port) => {
                self.is_loopback().then_some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), *port))
            }
        }
    }
}

impl fmt::Display for ControlAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// Who may call a port for which the policy service has not answered (features.md 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DefaultPolicy {
    /// Nobody.
    Deny,
    /// Whoever proves an identity of the mesh.
    AllAuthenticated,
    /// Everybody.
    AllUnauthenticated,
    /// Whoever proves an identity and comes from the cluster's networks.
    ClusterAuthenticated,
    /// Everybody from the cluster's networks.
    ClusterUnauthenticated,
    /// Everybody; what no policy allows is logged.
    Audit,
}

impl DefaultPolicy {
    /// Every policy, in the order of the documentation.
    pub const ALL: &'static [Self] = &[
        Self::Deny,
        Self::AllAuthenticated,
        Self::AllUnauthenticated,
        Self::ClusterAuthenticated,
        Self::ClusterUnauthenticated,
        Self::Audit,
    ];

    /// The policy as annotations and settings spell it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::AllAuthenticated => "all-authenticated",
            Self::AllUnauthenticated => "all-unauthenticated",
            Self::ClusterAuthenticated => "cluster-authenticated",
            Self::ClusterUnauthenticated => "cluster-unauthenticated",
            Self::Audit => "audit",
        }
    }

    /// Whether it asks for the client's address.
    pub fn is_of_cluster(self) -> bool {
        matches!(self, Self::ClusterAuthenticated | Self::ClusterUnauthenticated)
    }

    /// Whether a client must prove an identity.
    pub fn is_authenticated(self) -> bool {
        matches!(self, Self::AllAuthenticated | Self::ClusterAuthenticated)
    }
}

impl fmt::Display for DefaultPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line for people.
    Plain,
    /// One JSON object a line.
    Json,
}

/// A set of ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet(Vec<RangeInclusive<u16>>);

impl PortSet {
    /// Takes ranges as they come.
    pub fn new(ranges: impl IntoIterator<Item = RangeInclusive<u16>>) -> Self {
        Self(ranges.into_iter().collect())
    }

    /// Whether a port is in the set.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    /// Each port, in the order in which the set was written.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.0.iter().flat_map(Clone::clone)
    }
}
