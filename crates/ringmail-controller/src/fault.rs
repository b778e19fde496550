//! Refusals of the destination and policy roles: what callers get and operators read.

use tonic::Status;

/// Why a question of a proxy is not answered. The text begins with a stable code and names what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The registry has not read its source yet.
    #[error("RM1610: the registry is not synced yet; asked for {0}")]
    NotSynced(String),
    /// The text is neither an address nor a service's name with a port.
    #[error("RM1611: `{path}` is no `<ip>:<port>` and no `<service>.<namespace>.svc.{domain}:<port>`")]
    NoTarget {
        /// What was asked for.
        path: String,
        /// The domain of services' names.
        domain: String,
    },
    /// An address was given where a service's name is needed.
    #[error("RM1612: `{0}` is an address; endpoints are those of a service's name")]
    Address(String),
    /// There is no service of this name.
    #[error("RM1613: there is no service `{0}` with a selector")]
    NoService(String),
    /// A service whose endpoints are not known, or a source that is no address.
    #[error("RM1614: `{0}` is neither an address nor a service whose endpoints are known")]
    Unknown(String),
    /// The workload text is not understood.
    #[error("RM1620: the workload `{text}` is not `{{\"ns\": …, \"pod\": …}}`: {problem}")]
    Workload {
        /// What came.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no such pod.
    #[error("RM1621: there is no pod `{pod}`; its policy for port {port} is not known")]
    NoPod {
        /// Namespace and name.
        pod: String,
        /// The port asked for.
        port: u16,
    },
    /// A port is out of range.
    #[error("RM1622: {0} is no port (1-65535)")]
    Port(u32),
    /// No target, or one without an address.
    #[error("RM1623: the traffic has no target: an address with a port, or an authority")]
    NoTraffic,
    /// No policy is known for the traffic: the profile decides.
    #[error("RM1615: no outbound policy for `{0}`: it is no service whose endpoints are known")]
    NoPolicy(String),
    /// The process ends; another answers, or this one after its restart.
    #[error("RM1609: the control plane is shutting down")]
    ShuttingDown,
}

impl From<Refusal> for Status {
    /// The gRPC status that proxies act on (wire.md 6.2, 6.3, 7.1, 7.2).
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::NotSynced(_) | Refusal::ShuttingDown => Self::unavailable(text),
            Refusal::NoService(_) | Refusal::NoPolicy(_) | Refusal::NoPod { .. } => Self::not_found(text),
            Refusal::NoTarget { .. }
            | Refusal::Address(_)
            | Refusal::Unknown(_)
            | Refusal::Workload { .. }
            | Refusal::Port(_)
            | Refusal::NoTraffic => Self::invalid_argument(text),
        }
    }
}

/// What a stranger sent, cut and cleaned for a message or a log line.
pub fn printable(text: &str) -> String {
    text.chars().take(256).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
