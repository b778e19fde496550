//! Virtual addresses: each connection to one goes to an endpoint, every endpoint with equal chance.
//!
//! For a network namespace that routes between others. A service without endpoints refuses connections, and so does any
//! other port of a virtual address. Connections that stand keep their endpoint when the map is replaced. Connections
//! that the namespace itself makes take the same way, where some route leads to the virtual addresses (one by way of
//! `lo` will do), since the kernel asks for a route before it asks for rules.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::error::RedirectError;
use crate::kernel;
use crate::ruleset::{
    Action, Base, Chain, Hook, Kind, Match, PortRange, Protocol, Rule, Table, TableDifference,
};

/// The table of this module, in family `inet`.
pub const TABLE: &str = "ringmail-services";

/// All services of a namespace that routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceMap {
    /// One entry for each port of each virtual address; the order does not matter.
    pub services: Vec<Service>,
}

/// One port of a virtual address, and what stands behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The virtual address and port.
    pub address: SocketAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where connections go, of the same family as `address`; none refuses them.
    pub endpoints: Vec<SocketAddr>,
}

impl ServiceMap {
    /// The ruleset.
    pub fn table(&self) -> Table {
        let mut services: Vec<&Service> = self.services.iter().collect();
        services.sort_by_key(|service| (service.address, service.protocol));
        services.dedup_by_key(|service| (service.address, service.protocol));
        let (full, empty): (Vec<&Service>, Vec<&Service>) =
            services.iter().partition(|service| endpoints(service).next().is_some());

        let base = |kind, hook, priority| Some(Base { kind, hook, priority });
        let call = |chain: &str| vec![Rule::new([], Action::Jump(chain.to_owned()))];
        let call_new = |chain: &str| vec![Rule::new([Match::NewConnection], Action::Jump(chain.to_owned()))];
        let chain = |name: &str, base, rules| Chain { name: name.to_owned(), base, rules };

        let refused = empty.iter().map(|service| refuse(service.protocol, matches(service)));
        let known = full.iter().map(|service| Rule::new(matches(service), Action::Return));
        let addresses: BTreeSet<IpAddr> = services.iter().map(|service| service.address.ip()).collect();
        let others = addresses.iter().flat_map(|address| {
            [Protocol::Tcp, Protocol::Udp].map(|protocol| {
                refuse(protocol, vec![Match::Destination(IpNet::from(*address)), Match::Protocol(protocol)])
            })
        });
        let refuse = refused.chain(known).chain(others).collect();

        let choose = full
            .iter()
            .map(|service| Rule::new(matches(service), Action::Goto(chain_name(service))))
            .collect();

        // A client that reaches itself through a virtual address would see its own address as peer and refuse it.
        let own: BTreeSet<IpAddr> =
            full.iter().flat_map(|service| endpoints(service)).map(|end| end.ip()).collect();
        let own = own.into_iter().map(IpNet::from);
        let masquerade = own
            .map(|net| Rule::new([Match::Source(net), Match::Destination(net)], Action::Masquerade))
            .collect();

        let mut chains: Vec<Chain> = full
            .iter()
            .map(|service| {
                let count = endpoints(service).count() as u32;
                let rules = endpoints(service).zip(0..).map(|(endpoint, index)| {
                    // Of the endpoints that are left, each comes with equal chance; the last takes what remains.
                    let left = count - index;
                    Rule::new((left > 1).then_some(Match::OneIn(left)), Action::Dnat(endpoint))
                });
                Chain { name: chain_name(service), base: None, rules: rules.collect() }
            })
            .collect();
        chains.extend([
            chain("refuse", None, refuse),
            chain("choose", None, choose),
            chain("refuse-prerouting", base(Kind::Filter, Hook::Prerouting, BEFORE_NAT), call_new("refuse")),
            chain("refuse-output", base(Kind::Filter, Hook::Output, BEFORE_NAT), call_new("refuse")),
            chain("choose-prerouting", base(Kind::Nat, Hook::Prerouting, DESTINATION_NAT), call("choose")),
            chain("choose-output", base(Kind::Nat, Hook::Output, DESTINATION_NAT), call("choose")),
            chain("return-to-self", base(Kind::Nat, Hook::Postrouting, SOURCE_NAT), masquerade),
        ]);
        Table { name: TABLE.to_owned(), chains }
    }

    fn check(&self) -> Result<(), RedirectError> {
        for service in &self.services {
            let refuse = |why: String| {
                let value = format!("{} {}", service.protocol, service.address);
                Err(RedirectError::Option { field: "service", value, why })
            };
            if service.address.port() == 0 {
                return refuse("port 0 cannot be reached".to_owned());
            }
            if let Some(endpoint) = service.endpoints.iter().find(|endpoint| endpoint.port() == 0) {
                return refuse(format!("its endpoint {endpoint} has port 0"));
            }
            let other = |endpoint: &&SocketAddr| endpoint.is_ipv4() != service.address.is_ipv4();
            if let Some(endpoint) = service.endpoints.iter().find(other) {
                return refuse(format!("its endpoint {endpoint} is of the other address family"));
            }
            let same = |one: &&Service| one.address == service.address && one.protocol == service.protocol;
            if self.services.iter().filter(same).count() > 1 {
                return refuse("is listed twice".to_owned());
            }
        }
        Ok(())
    }
}

/// Puts this map in place of whatever was there, in one atomic step, in the calling thread's network namespace.
pub fn apply(map: &ServiceMap) -> Result<(), RedirectError> {
    map.check()?;
    kernel::replace(&map.table())
}

/// Removes all services; nothing happens where there are none.
///
/// Connections that stand end with the last NAT rule of the namespace, since the kernel then no longer translates
/// their packets; to keep them, apply an empty map instead.
pub fn remove() -> Result<(), RedirectError> {
    kernel::remove(TABLE)
}

/// The table as the kernel has it, `None` where there is none.
pub fn list() -> Result<Option<Table>, RedirectError> {
    kernel::list(TABLE)
}

/// Compares the kernel's table with the map.
pub fn compare(map: &ServiceMap) -> Result<(), RedirectError> {
    let missing = || RedirectError::Differs(TableDifference::TableMissing(TABLE.to_owned()));
    let found = list()?.ok_or_else(missing)?;
    map.table().difference(&found).map_or(Ok(()), |difference| Err(RedirectError::Differs(difference)))
}

fn matches(service: &Service) -> Vec<Match> {
    let port = PortRange::one(service.address.port()).map(|port| Match::Port(service.protocol, port));
    [Match::Destination(IpNet::from(service.address.ip()))].into_iter().chain(port).collect()
}

fn refuse(protocol: Protocol, matches: Vec<Match>) -> Rule {
    let action = match protocol {
        Protocol::Tcp => Action::ResetTcp,
        Protocol::Udp => Action::Unreachable,
    };
    Rule { matches, action }
}

fn endpoints(service: &Service) -> impl Iterator<Item = SocketAddr> {
    let unique: BTreeSet<SocketAddr> = service.endpoints.iter().copied().collect();
    unique.into_iter()
}

/// Colons cannot stand in a chain's name.
fn chain_name(service: &Service) -> String {
    let address = service.address.ip().to_string().replace(':', "_");
    format!("{}-{address}-{}", service.protocol, service.address.port())
}

const BEFORE_NAT: i32 = -110;
const DESTINATION_NAT: i32 = -100;
const SOURCE_NAT: i32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    fn service(address: &str, endpoints: &[&str]) -> Service {
        let read = |text: &str| text.parse().expect("an address");
        Service {
            address: read(address),
            protocol: Protocol::Tcp,
            endpoints: endpoints.iter().map(|one| read(one)).collect(),
        }
    }

    #[test]
    fn the_last_of_the_endpoints_takes_what_the_others_left() {
        let map = ServiceMap {
            services: vec![service("10.143.0.3:80", &["10.142.0.5:1", "10.142.0.6:2", "10.142.0.7:3"])],
        };
        let rules = &map.table().chains[0].rules;
        let text: Vec<String> = rules.iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "numgen random mod 3 0 dnat ip to 10.142.0.5:1",
                "numgen random mod 2 0 dnat ip to 10.142.0.6:2",
                "dnat ip to 10.142.0.7:3"
            ]
        );
    }

    #[test]
    fn maps_that_cannot_work_are_refused_and_a_sound_one_is_not() {
        let sound = service("10.143.0.3:80", &["10.142.0.5:1"]);
        assert!(ServiceMap { services: vec![sound.clone()] }.check().is_ok());
        for bad in [
            vec![service("10.143.0.3:0", &[])],
            vec![service("10.143.0.3:80", &["[fd00::1]:80"])],
            vec![service("10.143.0.3:80", &["10.142.0.5:0"])],
            vec![sound.clone(), sound],
        ] {
            assert_eq!(ServiceMap { services: bad }.check().expect_err("refused").code(), "RM1300");
        }
    }
}
