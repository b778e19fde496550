//! A ruleset as data, and its text in `nft` syntax.
//!
//! Only what this crate needs of nftables: matches on family, protocol, port, address, owner, mark and interface, and
//! the verdicts that send a connection elsewhere. The text is what `nft list table` prints for the same rules.

use std::fmt;
use std::net::SocketAddr;

use ipnet::IpNet;

/// A table of family `inet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Its chains, in order of creation.
    pub chains: Vec<Chain>,
}

impl Table {
    /// The first difference between this (planned) table and the one found in the kernel.
    pub fn difference(&self, found: &Self) -> Option<TableDifference> {
        for chain in &self.chains {
            let Some(other) = found.chains.iter().find(|other| other.name == chain.name) else {
                return Some(TableDifference::ChainMissing(chain.name.clone()));
            };
            if other.base != chain.base {
                return Some(TableDifference::ChainElsewhere(chain.name.clone()));
            }
            for (index, rule) in chain.rules.iter().enumerate() {
                if other.rules.get(index) != Some(rule) {
                    return Some(TableDifference::RuleMissing {
                        chain: chain.name.clone(),
                        planned: rule.to_string(),
                        found: other
                            .rules
                            .get(index)
                            .map_or_else(|| "nothing".to_owned(), ToString::to_string),
                    });
                }
            }
            if let Some(extra) = other.rules.get(chain.rules.len()) {
                return Some(TableDifference::RuleExtra {
                    chain: chain.name.clone(),
                    found: extra.to_string(),
                });
            }
        }
        let extra =
            found.chains.iter().find(|other| self.chains.iter().all(|chain| chain.name != other.name));
        extra.map(|chain| TableDifference::ChainExtra(chain.name.clone()))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {} {{", self.name)?;
        for (index, chain) in self.chains.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            writeln!(f, "\tchain {} {{", chain.name)?;
            if let Some(base) = &chain.base {
                writeln!(f, "\t\t{base}")?;
            }
            for rule in &chain.rules {
                writeln!(f, "\t\t{rule}")?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

/// What is not as planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableDifference {
    /// There is no such table.
    #[error("table `inet {0}` is missing")]
    TableMissing(String),
    /// A planned chain is not there.
    #[error("chain `{0}` is missing")]
    ChainMissing(String),
    /// A chain that nobody planned.
    #[error("chain `{0}` was added")]
    ChainExtra(String),
    /// A chain stands at another hook or priority.
    #[error("chain `{0}` has another hook, type or priority")]
    ChainElsewhere(String),
    /// A planned rule is not at its place.
    #[error("chain `{chain}` should have `{planned}` where it has `{found}`")]
    RuleMissing {
        /// The chain.
        chain: String,
        /// The planned rule.
        planned: String,
        /// What stands there.
        found: String,
    },
    /// A rule that nobody planned.
    #[error("chain `{chain}` also has `{found}`")]
    RuleExtra {
        /// The chain.
        chain: String,
        /// The rule.
        found: String,
    },
}

/// A chain; with a [`Base`] the kernel calls it, without one other chains do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name, unique in its table.
    pub name: String,
    /// Where the kernel calls it.
    pub base: Option<Base>,
    /// Its rules, the first that decides wins.
    pub rules: Vec<Rule>,
}

/// Where the kernel calls a chain. The policy is always `accept`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// The chain's type.
    pub kind: Kind,
    /// The hook.
    pub hook: Hook,
    /// Lower is earlier; -100 is destination NAT, 100 source NAT.
    pub priority: i32,
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "type {} hook {} priority ", self.kind, self.hook)?;
        match (self.hook, self.priority) {
            (Hook::Prerouting, -100) => f.write_str("dstnat")?,
            (Hook::Prerouting, -110) => f.write_str("dstnat - 10")?,
            (Hook::Postrouting, 100) => f.write_str("srcnat")?,
            (_, priority) => write!(f, "{priority}")?,
        }
        f.write_str("; policy accept;")
    }
}

/// The type of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sees the first packet of each connection and may change its addresses.
    Nat,
    /// Sees every packet.
    Filter,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
        })
    }
}

/// A place in the kernel's packet path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets that came in, before routing.
    Prerouting,
    /// Packets made here, before they leave.
    Output,
    /// All packets that leave, after routing.
    Postrouting,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prerouting => "prerouting",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        })
    }
}

/// One rule: when all matches hold, the action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// All must hold.
    pub matches: Vec<Match>,
    /// What then happens.
    pub action: Action,
}

impl Rule {
    /// A rule from its parts.
    pub fn new(matches: impl IntoIterator<Item = Match>, action: Action) -> Self {
        Self { matches: matches.into_iter().collect(), action }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for one in &self.matches {
            write!(f, "{one} ")?;
        }
        write!(f, "{}", self.action)
    }
}

/// What a packet or its socket must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// Of this address family.
    Family(Family),
    /// Of this transport protocol.
    Protocol(Protocol),
    /// To these ports.
    Port(Protocol, PortRange),
    /// From this network.
    Source(IpNet),
    /// To this network.
    Destination(IpNet),
    /// Of a socket with this owner.
    Uid(u32),
    /// With this mark.
    Mark(u32),
    /// Came in by this interface.
    In(Interface),
    /// Will leave by this interface.
    Out(Interface),
    /// The first packet of a connection.
    NewConnection,
    /// One time in so many, at random.
    OneIn(u32),
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Family(family) => write!(f, "meta nfproto {}", family.word()),
            Self::Protocol(protocol) => write!(f, "meta l4proto {protocol}"),
            Self::Port(protocol, ports) => write!(f, "{protocol} dport {ports}"),
            Self::Source(net) => write!(f, "{} saddr {}", ip_word(net), bare(net)),
            Self::Destination(net) => write!(f, "{} daddr {}", ip_word(net), bare(net)),
            Self::Uid(uid) => write!(f, "meta skuid {uid}"),
            Self::Mark(mark) => write!(f, "meta mark 0x{mark:08x}"),
            Self::In(interface) => write!(f, "iifname \"{interface}\""),
            Self::Out(interface) => write!(f, "oifname \"{interface}\""),
            Self::NewConnection => f.write_str("ct state new"),
            Self::OneIn(count) => write!(f, "numgen random mod {count} 0"),
        }
    }
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Leaves this chain.
    Return,
    /// Sends the connection to a port of this machine.
    Redirect(u16),
    /// Sends the connection to another address.
    Dnat(SocketAddr),
    /// Replaces the source by the address of the interface it leaves by.
    Masquerade,
    /// Refuses a TCP connection.
    ResetTcp,
    /// Refuses with ICMP port unreachable.
    Unreachable,
    /// Goes on in another chain, and comes back.
    Jump(String),
    /// Goes on in another chain.
    Goto(String),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Return => f.write_str("return"),
            Self::Redirect(port) => write!(f, "redirect to :{port}"),
            Self::Dnat(address @ SocketAddr::V4(_)) => write!(f, "dnat ip to {address}"),
            Self::Dnat(address @ SocketAddr::V6(_)) => write!(f, "dnat ip6 to {address}"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::ResetTcp => f.write_str("reject with tcp reset"),
            Self::Unreachable => f.write_str("reject"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    fn word(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// The name of a network interface: 1 to 15 bytes, none of them NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface(String);

impl Interface {
    /// The loopback interface.
    pub fn loopback() -> Self {
        Self("lo".to_owned())
    }

    /// `None` when it cannot be an interface's name.
    pub fn new(name: &str) -> Option<Self> {
        let fits = (1..=15).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'*');
        fits.then(|| Self(name.to_owned()))
    }

    pub(crate) fn padded(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(self.0.bytes()) {
            *to = from;
        }
        bytes
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Ports from `first` to `last`, both included; `first <= last`, never port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// One port; `None` for port 0.
    pub fn one(port: u16) -> Option<Self> {
        Self::new(port, port)
    }

    /// `None` when empty or when it holds port 0.
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first > 0 && first <= last).then_some(Self { first, last })
    }

    /// The lowest port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    pub fn last(self) -> u16 {
        self.last
    }

    /// Whether the port is one of these.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

fn ip_word(net: &IpNet) -> &'static str {
    match net {
        IpNet::V4(_) => "ip",
        IpNet::V6(_) => "ip6",
    }
}

fn bare(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.trunc().to_string() }
}
