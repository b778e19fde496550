//! Addresses that some route of this namespace leads to, for proofs where there is no default route.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::ruleset::Family;

/// One address behind each route that leaves the namespace: the gateway where the route has one, else an address of
/// the network it leads to. Loopback, link-local and multicast routes are left out.
pub(crate) fn reachable(family: Family) -> Vec<IpAddr> {
    // The thread's own view: `/proc/net` is the main thread's.
    let read =
        |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
    match family {
        Family::V4 => parse_v4(&read("route")),
        Family::V6 => parse_v6(&read("ipv6_route")),
    }
}

/// Columns: interface, destination, gateway, flags, ..., mask (the eighth); addresses as a number in host order.
fn parse_v4(text: &str) -> Vec<IpAddr> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let address = |index: usize| {
            let number = u32::from_str_radix(fields.get(index)?, 16).ok()?;
            Some(Ipv4Addr::from(number.to_ne_bytes()))
        };
        let (destination, gateway, mask) = (address(1)?, address(2)?, address(7)?);
        if *fields.first()? == "lo" {
            return None;
        }
        if !gateway.is_unspecified() {
            return Some(IpAddr::V4(gateway));
        }
        let net = Ipv4Net::with_netmask(destination, mask).ok()?;
        let usable = !destination.is_link_local() && !destination.is_multicast();
        usable.then(|| some_host(IpNet::V4(net)))
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// Columns: destination, its prefix length, source, its length, next hop, metric, ..., flags, interface; all in hex.
fn parse_v6(text: &str) -> Vec<IpAddr> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let address = |index: usize| {
            let number = u128::from_str_radix(fields.get(index)?, 16).ok()?;
            Some(Ipv6Addr::from(number))
        };
        let (destination, hop) = (address(0)?, address(4)?);
        let length = u8::from_str_radix(fields.get(1)?, 16).ok()?;
        let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
        let dead = flags & (ROUTE_REJECT | ROUTE_LOCAL) != 0 || *fields.get(9)? == "lo";
        let local = |address: &Ipv6Addr| address.is_unicast_link_local() || address.is_multicast();
        if dead || local(&destination) {
            return None;
        }
        if !hop.is_unspecified() && !local(&hop) {
            return Some(IpAddr::V6(hop));
        }
        Some(some_host(IpNet::V6(Ipv6Net::new(destination, length).ok()?)))
    };
    text.lines().filter_map(line).collect()
}

/// The last usable address: routers and this pod itself tend to have the first ones.
fn some_host(net: IpNet) -> IpAddr {
    let single = net.prefix_len() + 1 >= net.max_prefix_len();
    match net.broadcast() {
        last if single => last,
        IpAddr::V4(last) => IpAddr::V4(Ipv4Addr::from(u32::from(last) - 1)),
        IpAddr::V6(last) => IpAddr::V6(Ipv6Addr::from(u128::from(last) - 1)),
    }
}

const ROUTE_REJECT: u32 = 0x0200;
const ROUTE_LOCAL: u32 = 0x8000_0000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_and_networks_give_an_address() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t01008E0A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            lo\t0000007F\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n";
        assert_eq!(
            parse_v4(table),
            ["10.142.0.1".parse::<IpAddr>().unwrap(), "192.168.1.254".parse().unwrap()]
        );
        let table = "\
fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
fd000000000000000000000000000002 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000002 00000000 80200001     eth0
";
        assert_eq!(parse_v6(table), ["fd00::ffff:ffff:ffff:fffe".parse::<IpAddr>().unwrap()]);
        assert_eq!(parse_v4("garbage\nx y\n"), Vec::<IpAddr>::new());
    }
}
