//! Which connections of a pod go to the proxy.

use ipnet::IpNet;

use crate::error::RedirectError;
use crate::ruleset::{
    Action, Base, Chain, Family, Hook, Interface, Kind, Match, PortRange, Protocol, Rule, Table,
    TableDifference,
};
use crate::{ADMIN_PORT, CONTROL_PORT, INBOUND_PORT, OUTBOUND_PORT, TABLE, kernel};

/// What to redirect, and what to leave alone.
///
/// Only TCP is redirected. Loopback traffic never is. The default has no exemption for the proxy's own connections;
/// one of `exempt_uid` and `exempt_mark` must be set, else the proxy would be sent to itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where connections to the pod go.
    pub inbound_port: u16,
    /// Where connections from the pod go.
    pub outbound_port: u16,
    /// The proxy's uid, whose connections are left alone.
    pub exempt_uid: Option<u32>,
    /// The proxy's socket mark, whose connections are left alone.
    pub exempt_mark: Option<u32>,
    /// Ports of the pod that are reached directly. The default holds the proxy's own control and admin port.
    pub skip_inbound: Vec<PortRange>,
    /// Ports elsewhere that are reached directly.
    pub skip_outbound: Vec<PortRange>,
    /// Networks whose clients reach the pod directly.
    pub skip_sources: Vec<IpNet>,
    /// Networks that the pod reaches directly.
    pub skip_destinations: Vec<IpNet>,
    /// Whether IPv6 is redirected as well as IPv4.
    pub ipv6: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            inbound_port: INBOUND_PORT,
            outbound_port: OUTBOUND_PORT,
            exempt_uid: None,
            exempt_mark: None,
            skip_inbound: PortRange::new(CONTROL_PORT, ADMIN_PORT).into_iter().collect(),
            skip_outbound: Vec::new(),
            skip_sources: Vec::new(),
            skip_destinations: Vec::new(),
            ipv6: true,
        }
    }
}

impl Plan {
    /// The ruleset, whether or not the plan passes [`Self::check`].
    pub fn table(&self) -> Table {
        Table { name: TABLE.to_owned(), chains: vec![self.inbound(), self.outbound()] }
    }

    /// The ruleset in `nft` syntax.
    pub fn to_nft(&self) -> String {
        self.table().to_string()
    }

    /// Puts the rules in place of whatever table of this name was there, in one atomic step.
    pub fn apply(&self) -> Result<(), RedirectError> {
        self.check()?;
        kernel::replace(&self.table())
    }

    /// Removes the table; nothing happens where there is none.
    ///
    /// Redirected connections that stand end with the last NAT rule of the namespace, since the kernel then no longer
    /// translates their packets.
    pub fn remove() -> Result<(), RedirectError> {
        kernel::remove(TABLE)
    }

    /// The table as the kernel has it, `None` where there is none.
    pub fn list() -> Result<Option<Table>, RedirectError> {
        kernel::list(TABLE)
    }

    /// Compares the kernel's table with the plan.
    pub fn compare(&self) -> Result<(), RedirectError> {
        let Some(found) = Self::list()? else {
            return Err(RedirectError::Differs(TableDifference::TableMissing(TABLE.to_owned())));
        };
        self.table().difference(&found).map_or(Ok(()), |difference| Err(RedirectError::Differs(difference)))
    }

    /// Refuses plans that would cut the pod off or leave the proxy out.
    pub fn check(&self) -> Result<(), RedirectError> {
        let refuse = |field, value: String, why: &str| {
            Err(RedirectError::Option { field, value, why: why.to_owned() })
        };
        if self.inbound_port == 0 {
            return refuse("incoming proxy port", "0".to_owned(), "a port is 1 to 65535");
        }
        if self.outbound_port == 0 {
            return refuse("outgoing proxy port", "0".to_owned(), "a port is 1 to 65535");
        }
        if self.inbound_port == self.outbound_port {
            let why = "the incoming and the outgoing proxy port must differ";
            return refuse("outgoing proxy port", self.outbound_port.to_string(), why);
        }
        match (self.exempt_uid, self.exempt_mark) {
            (None, None) => refuse(
                "proxy uid, proxy mark",
                "none".to_owned(),
                "one of them must be given, else the proxy's own connections would be sent back to it",
            ),
            (Some(0), _) => refuse(
                "proxy uid",
                "0".to_owned(),
                "would exempt every program that runs as root from the mesh",
            ),
            (_, Some(0)) => {
                refuse("proxy mark", "0".to_owned(), "would exempt every connection, since 0 is no mark")
            }
            _ => Ok(()),
        }
    }

    fn inbound(&self) -> Chain {
        let mut rules = vec![Rule::new([Match::In(Interface::loopback())], Action::Return)];
        rules.extend(self.other_family());
        rules.extend(skip_ports(&self.skip_inbound));
        rules.extend(
            self.skip_sources.iter().map(|net| Rule::new([Match::Source(net.trunc())], Action::Return)),
        );
        rules.push(Rule::new([Match::Protocol(Protocol::Tcp)], Action::Redirect(self.inbound_port)));
        let base = Base { kind: Kind::Nat, hook: Hook::Prerouting, priority: DESTINATION_NAT };
        Chain { name: "prerouting".to_owned(), base: Some(base), rules }
    }

    fn outbound(&self) -> Chain {
        let mut rules = Vec::new();
        rules.extend(self.exempt_uid.map(|uid| Rule::new([Match::Uid(uid)], Action::Return)));
        rules.extend(self.exempt_mark.map(|mark| Rule::new([Match::Mark(mark)], Action::Return)));
        rules.push(Rule::new([Match::Out(Interface::loopback())], Action::Return));
        rules.extend(self.other_family());
        rules.extend(skip_ports(&self.skip_outbound));
        let nets = self.skip_destinations.iter();
        rules.extend(nets.map(|net| Rule::new([Match::Destination(net.trunc())], Action::Return)));
        rules.push(Rule::new([Match::Protocol(Protocol::Tcp)], Action::Redirect(self.outbound_port)));
        let base = Base { kind: Kind::Nat, hook: Hook::Output, priority: DESTINATION_NAT };
        Chain { name: "output".to_owned(), base: Some(base), rules }
    }

    fn other_family(&self) -> Option<Rule> {
        (!self.ipv6).then(|| Rule::new([Match::Family(Family::V6)], Action::Return))
    }
}

/// Reads `25,587,3306-3310`; blanks and empty items are tolerated, as in Linkerd's lists.
pub fn parse_ports(text: &str) -> Result<Vec<PortRange>, String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items
        .map(|item| {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            let number = |part: &str| part.trim().parse::<u16>().ok();
            let range = number(first).zip(number(last)).and_then(|(first, last)| PortRange::new(first, last));
            range.ok_or_else(|| {
                format!("`{item}` is neither a port (1 to 65535) nor a range such as 3306-3310")
            })
        })
        .collect()
}

fn skip_ports(ports: &[PortRange]) -> impl Iterator<Item = Rule> {
    ports.iter().map(|ports| Rule::new([Match::Port(Protocol::Tcp, *ports)], Action::Return))
}

const DESTINATION_NAT: i32 = -100;

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan { exempt_mark: Some(crate::PROXY_MARK), ..Plan::default() }
    }

    #[test]
    fn port_lists_read_as_linkerds_do() {
        let ports = parse_ports(" 25, ,587,3306-3310,").expect("valid");
        assert_eq!(ports.iter().map(ToString::to_string).collect::<Vec<_>>(), ["25", "587", "3306-3310"]);
        for bad in ["x", "0", "70000", "9-1", "1-", "-"] {
            assert!(parse_ports(bad).expect_err(bad).contains(bad), "{bad}");
        }
    }

    #[test]
    fn a_plan_that_would_loop_or_exempt_everything_is_refused_and_a_sound_one_is_not() {
        assert!(plan().check().is_ok());
        for bad in [
            Plan { exempt_mark: None, ..plan() },
            Plan { exempt_mark: Some(0), ..plan() },
            Plan { exempt_uid: Some(0), ..plan() },
            Plan { outbound_port: 4143, ..plan() },
            Plan { inbound_port: 0, ..plan() },
        ] {
            assert_eq!(bad.check().expect_err("refused").code(), "RM1300", "{bad:?}");
        }
    }

    #[test]
    fn the_text_is_what_nft_prints() {
        let plan = Plan {
            exempt_uid: Some(2102),
            skip_outbound: parse_ports("25,3306-3310").expect("valid"),
            skip_sources: vec![
                "10.1.2.3/8".parse().expect("a network"),
                "fd00::1/128".parse().expect("a network"),
            ],
            ipv6: false,
            ..plan()
        };
        let expected = "table inet ringmail {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		iifname \"lo\" return
		meta nfproto ipv6 return
		tcp dport 4190-4191 return
		ip saddr 10.0.0.0/8 return
		ip6 saddr fd00::1 return
		meta l4proto tcp redirect to :4143
	}

	chain output {
		type nat hook output priority -100; policy accept;
		meta skuid 2102 return
		meta mark 0x00002102 return
		oifname \"lo\" return
		meta nfproto ipv6 return
		tcp dport 25 return
		tcp dport 3306-3310 return
		meta l4proto tcp redirect to :4140
	}
}
";
        assert_eq!(plan.to_nft(), expected);
    }
}
