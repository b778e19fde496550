//! What can go wrong between a plan and a proven redirection, each with its code.

use std::io;
use std::net::SocketAddr;

use crate::ruleset::{Family, TableDifference};

/// Why rules could not be made, applied, read or proven.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// The plan or an option makes no sense.
    #[error("RM1300: {field}: `{value}`: {why}")]
    Option {
        /// The option or field.
        field: &'static str,
        /// What it was.
        value: String,
        /// What is wrong with it, and what would be right.
        why: String,
    },
    /// The kernel has no nf_tables.
    #[error(
        "RM1301: this kernel has no nf_tables ({source}); load the module `nf_tables`, or take a kernel built with \
         CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET"
    )]
    NoNfTables {
        /// What the socket call said.
        source: io::Error,
    },
    /// The process may not change the rules of its network namespace.
    #[error(
        "RM1302: no permission to {attempt}: this needs CAP_NET_ADMIN in the pod's network namespace (on Kubernetes: \
         `securityContext.capabilities.add: [NET_ADMIN]` on the init container)"
    )]
    NoPermission {
        /// What was tried.
        attempt: String,
    },
    /// The kernel knows nf_tables, but refuses this object.
    #[error("RM1303: the kernel refused {object}: {source}{}", hint(source))]
    Refused {
        /// The table, chain or rule, in `nft` syntax.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Talking to the kernel failed.
    #[error("RM1304: netlink: {attempt}: {source}")]
    Netlink {
        /// What was tried.
        attempt: &'static str,
        /// What the call said.
        source: io::Error,
    },
    /// The kernel's answer could not be read.
    #[error("RM1305: netlink: the kernel's answer cannot be read: {0}")]
    Answer(&'static str),
    /// The kernel's table is not the planned one.
    #[error(
        "RM1306: the rules in the kernel are not the planned ones: {0}; something else changed table `inet ringmail`"
    )]
    Differs(TableDifference),
    /// Another program listens where the proxy will.
    #[error(
        "RM1307: cannot prove the redirection: port {address} is taken by another program; the proxy would not start \
         either, so free it or choose another port"
    )]
    PortTaken {
        /// The proxy's outbound address.
        address: SocketAddr,
    },
    /// The connection went somewhere else.
    #[error(
        "RM1308: a connection to {target} did not land in the proxy at {proxy} within {waited_ms} ms: {what}; the \
         rules stand in the kernel, so another table or a program such as a CNI plugin or an eBPF socket hook acts first"
    )]
    NotRedirected {
        /// Where the connection was addressed.
        target: SocketAddr,
        /// Where it should have come out.
        proxy: SocketAddr,
        /// How long was waited.
        waited_ms: u128,
        /// What became of the connection.
        what: String,
    },
    /// The connection came, but the kernel does not tell whom it was meant for.
    #[error(
        "RM1309: a connection to {target} landed in the proxy at {proxy}, but its original destination reads {seen}"
    )]
    OriginalDestination {
        /// Where the connection was addressed.
        target: SocketAddr,
        /// Where it came out.
        proxy: SocketAddr,
        /// What `SO_ORIGINAL_DST` said.
        seen: String,
    },
    /// No family has anything to prove a redirection with.
    #[error("RM1310: cannot prove the redirection: IPv4: {ipv4}; IPv6: {ipv6}")]
    NothingToProve {
        /// Why not with IPv4.
        ipv4: Absence,
        /// Why not with IPv6.
        ipv6: Absence,
    },
    /// The validator is itself exempt from redirection.
    #[error(
        "RM1311: cannot prove the redirection as uid {uid}, which is the proxy's own and exempt; run as another user"
    )]
    Exempt {
        /// The uid of this process.
        uid: u32,
    },
    /// A call of the proof failed.
    #[error("RM1312: cannot prove the redirection with {family}: {attempt}: {source}")]
    Probe {
        /// The address family.
        family: Family,
        /// What was tried.
        attempt: &'static str,
        /// What the call said.
        source: io::Error,
    },
    /// The rules are more than one netlink message batch can carry here.
    #[error(
        "RM1313: {bytes} bytes of rules do not fit into one batch; raise the sysctl net.core.wmem_max above it"
    )]
    TooLarge {
        /// The size of the batch.
        bytes: usize,
    },
    /// The command's own output failed.
    #[error("RM1314: cannot print: {0}")]
    Output(#[source] io::Error),
}

impl RedirectError {
    /// The stable code, such as `RM1302`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Option { .. } => "RM1300",
            Self::NoNfTables { .. } => "RM1301",
            Self::NoPermission { .. } => "RM1302",
            Self::Refused { .. } => "RM1303",
            Self::Netlink { .. } => "RM1304",
            Self::Answer(_) => "RM1305",
            Self::Differs(_) => "RM1306",
            Self::PortTaken { .. } => "RM1307",
            Self::NotRedirected { .. } => "RM1308",
            Self::OriginalDestination { .. } => "RM1309",
            Self::NothingToProve { .. } => "RM1310",
            Self::Exempt { .. } => "RM1311",
            Self::Probe { .. } => "RM1312",
            Self::TooLarge { .. } => "RM1313",
            Self::Output(_) => "RM1314",
        }
    }
}

/// Why a family has nothing to prove a redirection with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Absence {
    /// The plan does not redirect this family.
    #[error("not asked for")]
    NotPlanned,
    /// The namespace has no loopback address of this family.
    #[error(
        "off in this network namespace (no loopback address: is `lo` up, is net.ipv6.conf.all.disable_ipv6 set?)"
    )]
    Off,
    /// The namespace has no route that a connection could take.
    #[error("no route leads out of this network namespace (is the pod's interface up and addressed?)")]
    NoRoute,
}

fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(
            nix::libc::ENOENT | nix::libc::EOPNOTSUPP | nix::libc::EPROTONOSUPPORT | nix::libc::EAFNOSUPPORT,
        ) => {
            " (a module such as nft_redir, nft_nat, nft_chain_nat or nft_reject_inet is missing in this kernel)"
        }
        _ => "",
    }
}
