//! Puts the proxy in the path of a pod's connections: nftables through netlink, as data.
//!
//! Start here: a [`Plan`] says which connections go to the proxy; [`Plan::table`] turns it into a [`Table`], a ruleset
//! as data, which can be printed ([`Plan::to_nft`]), applied and removed atomically, and read back from the kernel
//! ([`Plan::list`]). [`validate`] proves on a live connection that the rules hold. [`services`] spreads connections to
//! virtual addresses over endpoints, and [`init`] is the init container's command.
//!
//! Everything acts on the network namespace of the calling thread and needs `CAP_NET_ADMIN` there, as root or in a
//! user namespace. No external program is run.

mod encode;
mod error;
mod expression;
pub mod init;
mod kernel;
mod netlink;
mod plan;
mod routes;
mod ruleset;
pub mod services;
mod validate;

pub use error::{Absence, RedirectError};
pub use plan::{Plan, parse_ports};
pub use ruleset::{
    Action, Base, Chain, Family, Hook, Interface, Kind, Match, PortRange, Protocol, Rule, Table,
    TableDifference,
};
pub use validate::{Proof, Validation, validate};

/// The socket mark of a proxy whose pod has one uid only, so that the uid cannot tell proxy from application.
pub const PROXY_MARK: u32 = 0x2102;

/// The uid of the proxy where a pod can have several.
pub const PROXY_UID: u32 = 2102;

/// Where the proxy takes the application's connections.
pub const OUTBOUND_PORT: u16 = 4140;

/// Where the proxy takes connections to the application.
pub const INBOUND_PORT: u16 = 4143;

/// Tap and flows; reached directly, never redirected.
pub const CONTROL_PORT: u16 = 4190;

/// `/live`, `/ready`, `/metrics`; reached directly, never redirected.
pub const ADMIN_PORT: u16 = 4191;

/// The table that [`Plan`] owns, in family `inet`.
pub const TABLE: &str = "ringmail";
