//! Addresses of pods and services.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::problem::Problem;

/// Which address families the pods have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpFamily {
    /// IPv4 only.
    #[default]
    Ipv4,
    /// IPv6 only.
    Ipv6,
    /// Both; IPv4 comes first.
    Dual,
}

/// The networks of a mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Networks {
    /// Networks of the pods, one a family, the preferred one first.
    pub pods: Vec<IpNet>,
    /// Networks of the services, in the same order.
    pub services: Vec<IpNet>,
}

impl Networks {
    /// Networks from the options `--pod-cidr`, `--service-cidr` (each one network, or two of different families separated by a
    /// comma) and `--ip-family`.
    pub fn parse(family: IpFamily, pods: Option<&str>, services: Option<&str>) -> Result<Self, Problem> {
        let pods = choose("--pod-cidr", family, pods, [PODS_V4.into(), PODS_V6.into()])?;
        let services = choose("--service-cidr", family, services, [SERVICES_V4.into(), SERVICES_V6.into()])?;
        for pod in &pods {
            for service in &services {
                if pod.contains(service) || service.contains(pod) {
                    return Err(Problem::new(
                        "RM1553",
                        format!("--pod-cidr {pod}, --service-cidr {service}"),
                        "the two networks overlap",
                        "choose networks that have no address in common",
                    ));
                }
            }
        }
        Ok(Self { pods, services })
    }

    /// The pods' gateway in each family: where probes come from.
    pub fn gateways(&self) -> Vec<IpAddr> {
        self.pods.iter().map(|net| nth(*net, GATEWAY)).collect()
    }

    /// The name server's address in each family.
    pub fn dns(&self) -> Vec<IpAddr> {
        self.services.iter().map(|net| nth(*net, DNS)).collect()
    }

    /// A control-plane service's addresses, by its fixed place in the network.
    pub fn fixed(&self, place: u128) -> Vec<IpAddr> {
        self.services.iter().map(|net| nth(*net, place)).collect()
    }

    /// All of them, as a list of CIDRs.
    pub fn listed(&self) -> String {
        let all = self.pods.iter().chain(&self.services);
        all.map(ToString::to_string).collect::<Vec<_>>().join(",")
    }
}

impl Default for Networks {
    fn default() -> Self {
        Self { pods: vec![PODS_V4.into()], services: vec![SERVICES_V4.into()] }
    }
}

/// Hands out addresses of a network, the longest unused first, so that an address that a client still remembers does not become
/// another pod's at once.
#[derive(Clone, Debug)]
pub struct Pool {
    net: IpNet,
    first: u128,
    next: u128,
    taken: BTreeSet<u128>,
}

impl Pool {
    /// A pool of `net` whose places below `first` are kept for fixed uses.
    pub fn new(net: IpNet, first: u128) -> Self {
        Self { net, first, next: first, taken: BTreeSet::new() }
    }

    /// The next free address; `None` when the network is used up.
    pub fn take(&mut self) -> Option<IpAddr> {
        let last = size(self.net).saturating_sub(2);
        let span = last.checked_sub(self.first)?.checked_add(1)?;
        for step in 0..=(self.taken.len() as u128).min(span) {
            let place = self.first + (self.next - self.first + step) % span;
            if self.taken.insert(place) {
                self.next = if place == last { self.first } else { place + 1 };
                return Some(nth(self.net, place));
            }
        }
        None
    }

    /// Takes one certain address; `false` when it is not in this network or not free.
    pub fn claim(&mut self, address: IpAddr) -> bool {
        self.place(address).is_some_and(|place| self.taken.insert(place))
    }

    /// Gives an address back.
    pub fn give_back(&mut self, address: IpAddr) {
        if let Some(place) = self.place(address) {
            self.taken.remove(&place);
        }
    }

    /// Whether an address belongs to this network.
    pub fn holds(&self, address: IpAddr) -> bool {
        self.net.contains(&address)
    }

    /// Whether it is a network of IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.net.addr().is_ipv4()
    }

    fn place(&self, address: IpAddr) -> Option<u128> {
        self.net.contains(&address).then(|| bits(address) - bits(self.net.network()))
    }
}

/// Place of the pods' gateway in their network.
pub const GATEWAY: u128 = 1;

/// Places of services that are the same in every mesh: pods are started with them.
pub const IDENTITY: u128 = 2;
/// See [`IDENTITY`].
pub const DESTINATION: u128 = 3;
/// See [`IDENTITY`].
pub const POLICY: u128 = 4;
/// See [`IDENTITY`].
pub const DNS: u128 = 10;

/// First place of pods and of services that are not fixed.
pub const FIRST_POD: u128 = 2;
/// See [`FIRST_POD`].
pub const FIRST_SERVICE: u128 = 32;

const PODS_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 142, 0, 0), 16);
const SERVICES_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 143, 0, 0), 16);
const PODS_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd72, 0x6d, 0x142, 0, 0, 0, 0, 0), 64);
const SERVICES_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd72, 0x6d, 0x143, 0, 0, 0, 0, 0), 108);

fn choose(
    option: &str,
    family: IpFamily,
    given: Option<&str>,
    default: [IpNet; 2],
) -> Result<Vec<IpNet>, Problem> {
    let mut nets = Vec::new();
    for text in given.into_iter().flat_map(|g| g.split(',')) {
        let bad = |what: String| {
            Problem::new(
                "RM1553",
                format!("{option} {text}"),
                what,
                "write a network such as `10.142.0.0/16`",
            )
        };
        let net: IpNet = text.trim().parse().map_err(|_| bad("is not a network".into()))?;
        if size(net) < 64 {
            return Err(bad("is too small: at least 64 addresses are needed".into()));
        }
        nets.push(net.trunc());
    }
    let pick = |v4: bool| {
        let found = nets.iter().find(|n| matches!(n, IpNet::V4(_)) == v4).copied();
        found.unwrap_or(default[usize::from(!v4)])
    };
    let wanted = match family {
        IpFamily::Ipv4 => vec![pick(true)],
        IpFamily::Ipv6 => vec![pick(false)],
        IpFamily::Dual => vec![pick(true), pick(false)],
    };
    if let Some(unused) = nets.iter().find(|n| !wanted.contains(n)) {
        return Err(Problem::new(
            "RM1553",
            format!("{option} {unused}"),
            "is not used with this --ip-family",
            "give one network of each family that the mesh has",
        ));
    }
    Ok(wanted)
}

fn size(net: IpNet) -> u128 {
    let bits = u32::from(net.max_prefix_len() - net.prefix_len());
    1u128.checked_shl(bits).unwrap_or(u128::MAX)
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address at a place of a network. Places come from [`Pool`]s and the constants above and lie within it.
fn nth(net: IpNet, place: u128) -> IpAddr {
    match net {
        IpNet::V4(net) => IpAddr::V4(Ipv4Addr::from_bits(net.network().to_bits().wrapping_add(place as u32))),
        IpNet::V6(net) => IpAddr::V6(Ipv6Addr::from_bits(net.network().to_bits().wrapping_add(place))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fixed_addresses_are_where_everybody_expects_them() {
        let networks = Networks::parse(IpFamily::Ipv4, None, None).unwrap();
        assert_eq!(networks.gateways(), ["10.142.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(networks.dns(), ["10.143.0.10".parse::<IpAddr>().unwrap()]);
        assert_eq!(networks.fixed(IDENTITY), ["10.143.0.2".parse::<IpAddr>().unwrap()]);
        let dual = Networks::parse(IpFamily::Dual, Some("10.9.0.0/24"), None).unwrap();
        assert_eq!(dual.pods.len(), 2);
        assert_eq!(dual.gateways()[0].to_string(), "10.9.0.1");
    }

    #[test]
    fn an_address_comes_back_only_after_all_others() {
        let mut pool = Pool::new("10.0.0.0/29".parse().unwrap(), 2);
        let first = pool.take().unwrap();
        pool.give_back(first);
        let more: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(more.len(), 5);
        assert_eq!(more.last(), Some(&first));
        assert!(!pool.claim(first));
        assert!(pool.take().is_none());
    }

    #[test]
    fn networks_that_overlap_or_are_no_networks_are_refused() {
        for (pods, services) in
            [("10.143.1.0/24", None), ("x", None), ("10.0.0.0/30", None), ("fd00::/64", None)]
        {
            let error = Networks::parse(IpFamily::Ipv4, Some(pods), services).unwrap_err();
            assert_eq!(error.code, "RM1553", "{pods}");
        }
    }
}
