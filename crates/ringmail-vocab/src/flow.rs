//! One connection, as one proxy saw it.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Security;

/// The record of one connection at one proxy.
///
/// Times are milliseconds since the Unix epoch by this proxy's clock. A proxy sends a flow when its security is
/// known, again while it is open when its counters have moved, and a last time when it is closed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// Unique in one run of one proxy.
    pub id: FlowId,
    /// Which side of the connection this proxy is.
    pub direction: Direction,
    /// The client's address: of the application for outbound, of the remote for inbound.
    pub src: SocketAddr,
    /// Where the bytes went: the chosen endpoint for outbound, this pod's address for inbound.
    pub dst: SocketAddr,
    /// Where the client meant to go, before redirection and endpoint choice.
    pub original_dst: SocketAddr,
    /// The address from which an outbound proxy dialled, which is what the server sees as its peer.
    pub dialled_from: Option<SocketAddr>,
    /// What protects it.
    pub security: Security,
    /// What the observers recognised.
    pub protocol: Protocol,
    /// Bytes of the application from client to server.
    pub sent: u64,
    /// Bytes of the application from server to client.
    pub received: u64,
    /// HTTP requests seen; 0 where the protocol is not HTTP.
    pub requests: u64,
    /// When it was accepted.
    pub opened_ms: u64,
    /// When, by whom and why it was closed; `None` while it is open.
    pub closed: Option<Closed>,
}

/// A flow's number in one run of one proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FlowId(pub u64);

/// Which side of the connection a proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The proxy is on the server's side.
    Inbound,
    /// The proxy is on the client's side.
    Outbound,
}

impl Direction {
    /// `inbound` or `outbound`, as metrics spell it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// What the observers recognised inside a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Nothing was recognised yet.
    #[default]
    Unknown,
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2, gRPC among it.
    Http2,
    /// Not HTTP, or an observer that gave up.
    Tcp,
}

impl Protocol {
    /// The protocol as a label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Tcp => "tcp",
        }
    }
}

/// The end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Who ended it.
    pub by: ClosedBy,
    /// Why.
    pub reason: CloseReason,
    /// The stable code of an error that a user may look up in `docs/errors.md`, such as `RM1203`.
    pub code: Option<String>,
}

/// Who ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClosedBy {
    /// The client's end.
    Client,
    /// The server's end.
    Server,
    /// This proxy: policy, drain, a bound, an error of its own.
    Proxy,
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// Both directions ended in order.
    Finished,
    /// One end reset it.
    Reset,
    /// A TLS stream ended without `close_notify`; passed on as a reset.
    Truncated,
    /// It never carried a byte: see the flow's security.
    Refused,
    /// The proxy drained.
    Drained,
    /// A change of policy ended it.
    PolicyChanged,
    /// Idle for longer than its timeout.
    Idle,
    /// An error of this proxy's own.
    Error,
}

macro_rules! text_by_serde {
    ($($name:ident),+) => {$(
        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                serde_json::from_value(serde_json::Value::from(text)).map_err(|_| format!("`{text}` is no {}", stringify!($name)))
            }
        }
    )+};
}

text_by_serde!(Direction, Protocol, ClosedBy, CloseReason);

impl ClosedBy {
    /// `client`, `server` or `proxy`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Proxy => "proxy",
        }
    }
}

impl CloseReason {
    /// The reason as a label: lower case, underscores; stable.
    pub fn label(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Reset => "reset",
            Self::Truncated => "truncated",
            Self::Refused => "refused",
            Self::Drained => "drained",
            Self::PolicyChanged => "policy_changed",
            Self::Idle => "idle",
            Self::Error => "error",
        }
    }
}

/// A workload as the registry names it: what edges and tap print beside an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkloadRef {
    /// The namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The kind of the controller at the top of the pod's owners in lower case (`deployment`, `statefulset`,
    /// `daemonset`, `job`, `replicaset`, …); empty for a bare pod.
    pub owner_kind: String,
    /// The name of that controller; empty for a bare pod.
    pub owner: String,
    /// The service account.
    pub service_account: String,
}
