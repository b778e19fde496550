//! Every setting of the proxy, declared once: name, default, format, meaning.
//!
//! Start here: the table in [`settings!`] is the only place that knows a variable's name. [`Config::from_env`] reads
//! them all and returns every failure at once. `docs/proxy-configuration.md` is made from the same table; a test
//! compares it, and rewrites it when `UPDATE_DOCS` is set.
//!
//! Each setting is the environment variable `RINGMAIL_PROXY_<NAME>`; where that is unset, `LINKERD2_PROXY_<NAME>`.

use std::collections::BTreeSet;
use std::fmt;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use ringmail_identity::Identity;
use ringmail_identity::anchors::TrustAnchors;

mod format;
mod values;

use format::Format;
pub use values::{ControlAddress, DefaultPolicy, LogFormat, PortSet};

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The name without its prefix.
    pub name: &'static str,
    /// What holds when it is unset.
    pub default: DefaultValue,
    /// How its value is written.
    pub format: &'static str,
    /// What it means.
    pub doc: &'static str,
}

/// What holds when a setting is unset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultValue {
    /// The proxy does not start.
    Required,
    /// Nothing: the meaning says what follows.
    Unset,
    /// This text, as if it were set.
    Text(&'static str),
}

macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $field:ident: $type:ty = $name:literal, $kind:ident $(($default:literal))?, $format:ident;)+) => {
        /// The settings of one proxy: parsed, complete, and never changed.
        #[derive(Clone, Debug)]
        pub struct Config {
            $($(#[doc = $doc])+ pub $field: $type,)+
        }

        /// The table.
        pub const SETTINGS: &[Setting] = &[
            $(Setting {
                name: $name,
                default: default_value!($kind $($default)?),
                format: format::$format.says,
                doc: concat!($($doc, "\n"),+),
            },)+
        ];

        impl Config {
            /// Reads every setting through `get`, which is given full names of variables.
            pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
                let mut reader = Reader { get: &get, problems: Vec::new() };
                $(let $field = reader.$kind($name, $($default,)? &format::$format);)+
                let config = (|| Some(Self { $($field: $field?),+ }))();
                match config {
                    Some(config) => {
                        config.check(&mut reader.problems);
                        if reader.problems.is_empty() { Ok(config) } else { Err(ConfigError(reader.problems)) }
                    }
                    None => Err(ConfigError(reader.problems)),
                }
            }
        }
    };
}

macro_rules! default_value {
    (required) => {
        DefaultValue::Required
    };
    (optional) => {
        DefaultValue::Unset
    };
    (or $default:literal) => {
        DefaultValue::Text($default)
    };
}

settings! {
    /// Where the inbound proxy listens: connections to this pod are redirected here.
    inbound_listen_addr: Vec<SocketAddr> = "INBOUND_LISTEN_ADDR", or("0.0.0.0:4143"), ADDRESS_LIST;
    /// Where the outbound proxy listens: connections of this pod's applications are redirected here.
    outbound_listen_addrs: Vec<SocketAddr> = "OUTBOUND_LISTEN_ADDRS", or("127.0.0.1:4140"), ADDRESS_LIST;
    /// Where tap and flows are served, over mutual TLS, to the identity `TAP_SVC_NAME` alone.
    control_listen_addr: SocketAddr = "CONTROL_LISTEN_ADDR", or("0.0.0.0:4190"), ADDRESS;
    /// Where `/live`, `/ready` and `/metrics` are served.
    admin_listen_addr: SocketAddr = "ADMIN_LISTEN_ADDR", or("0.0.0.0:4191"), ADDRESS;
    /// The identity service, which signs this proxy's certificates. On a loopback address it is spoken to in
    /// plaintext, elsewhere over TLS, and then `IDENTITY_SVC_NAME` is needed.
    identity_svc_addr: ControlAddress = "IDENTITY_SVC_ADDR", required, CONTROL_ADDRESS;
    /// The identity that the identity service must prove.
    identity_svc_name: Option<Identity> = "IDENTITY_SVC_NAME", optional, IDENTITY;
    /// The destination service, which says where a connection goes and who must answer there. As for identity.
    destination_svc_addr: ControlAddress = "DESTINATION_SVC_ADDR", required, CONTROL_ADDRESS;
    /// The identity that the destination service must prove.
    destination_svc_name: Option<Identity> = "DESTINATION_SVC_NAME", optional, IDENTITY;
    /// The policy service, which says who may call this pod. As for identity.
    policy_svc_addr: ControlAddress = "POLICY_SVC_ADDR", required, CONTROL_ADDRESS;
    /// The identity that the policy service must prove.
    policy_svc_name: Option<Identity> = "POLICY_SVC_NAME", optional, IDENTITY;
    /// The file with the token that proves this workload to the identity service. Read anew for each certificate.
    identity_token_file: PathBuf = "IDENTITY_TOKEN_FILE", required, PATH;
    /// The root certificates of the mesh, as PEM text (not a path).
    identity_trust_anchors: TrustAnchors = "IDENTITY_TRUST_ANCHORS", required, TRUST_ANCHORS;
    /// The identity of this workload, which its certificates prove.
    identity_local_name: Identity = "IDENTITY_LOCAL_NAME", required, IDENTITY;
    /// What the destination service is told of this workload with each question, as it stands: JSON with `ns`,
    /// `nodeName` and `pod`.
    destination_context: String = "DESTINATION_CONTEXT", or(""), TEXT;
    /// What the policy service is told of this workload, as it stands: JSON with `ns` and `pod`.
    policy_workload: String = "POLICY_WORKLOAD", required, TEXT;
    /// The one identity that may ask for tap and flows. Unset: nobody.
    tap_svc_name: Option<Identity> = "TAP_SVC_NAME", optional, IDENTITY;
    /// The addresses of this pod. An inbound connection to another address is refused. Empty: not checked.
    inbound_ips: BTreeSet<IpAddr> = "INBOUND_IPS", or(""), IPS;
    /// The ports of this pod whose policy is watched from the start. Others are watched from their first connection.
    inbound_ports: PortSet = "INBOUND_PORTS", or(""), PORTS;
    /// Ports whose bytes are never read in passing: no tap, no HTTP metrics. Mutual TLS holds for them as for others.
    inbound_ports_disable_protocol_detection: PortSet = "INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION", or(""), PORTS;
    /// Who may call a port until the policy service has answered for it.
    inbound_default_policy: DefaultPolicy = "INBOUND_DEFAULT_POLICY", or("all-unauthenticated"), POLICY;
    /// The networks that the `cluster-…` default policies mean.
    policy_cluster_networks: Vec<IpNet> = "POLICY_CLUSTER_NETWORKS", or(""), NETWORKS;
    /// The mesh's networks: addresses in them are asked of the destination service, and never taken for plaintext
    /// before it has answered. Addresses outside are passed on as they are.
    destination_profile_networks: Vec<IpNet> = "DESTINATION_PROFILE_NETWORKS", or("10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fd00::/8"), NETWORKS;
    /// How long dialling an endpoint may take.
    outbound_connect_timeout: Duration = "OUTBOUND_CONNECT_TIMEOUT", or("1s"), DURATION;
    /// How long dialling the application may take.
    inbound_connect_timeout: Duration = "INBOUND_CONNECT_TIMEOUT", or("300ms"), DURATION;
    /// TCP keepalive on connections from other pods, so that a peer that vanished is noticed.
    inbound_accept_keepalive: Option<Duration> = "INBOUND_ACCEPT_KEEPALIVE", or("10s"), OPTIONAL_DURATION;
    /// TCP keepalive on connections from this pod's applications.
    outbound_accept_keepalive: Option<Duration> = "OUTBOUND_ACCEPT_KEEPALIVE", or("10s"), OPTIONAL_DURATION;
    /// How long a TLS handshake may take, from accept to its end.
    handshake_timeout: Duration = "HANDSHAKE_TIMEOUT", or("10s"), DURATION;
    /// How long a connection to an unknown address inside the mesh's networks is held until the destination service
    /// answers; then it is refused.
    discovery_timeout: Duration = "DISCOVERY_TIMEOUT", or("10s"), DURATION;
    /// How long a silent client that is known to be unmeshed, and may speak plaintext, is waited for.
    silent_grace: Duration = "SILENT_GRACE", or("100ms"), DURATION;
    /// A mark set on every socket that the proxy dials from, by which redirection leaves them alone. Unset: none; then
    /// the proxy's user id must say it.
    socket_mark: Option<u32> = "SOCKET_MARK", optional, MARK;
    /// What is logged, as a filter: `info`, `warn,ringmail_proxy=debug`.
    log: String = "LOG", or("info"), LOG_FILTER;
    /// How the log is written.
    log_format: LogFormat = "LOG_FORMAT", or("plain"), LOG_FORMAT;
    /// How long open connections may go on after SIGTERM or SIGINT. A second signal ends them at once.
    shutdown_grace_period: Duration = "SHUTDOWN_GRACE_PERIOD", or("2m"), DURATION;
    /// The threads that move bytes. Unset: as many as there are CPUs, at most 4.
    cores: Option<NonZeroUsize> = "CORES", optional, CORES;
}

impl Config {
    /// Reads the environment of this process.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::read(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    /// The threads that move bytes.
    pub fn data_threads(&self) -> usize {
        let of_machine = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MAX_CORES);
        self.cores.map_or_else(of_machine, NonZeroUsize::get)
    }

    /// What only two settings together can get wrong.
    fn check(&self, problems: &mut Vec<Problem>) {
        for (service, addr, name) in [
            ("IDENTITY", &self.identity_svc_addr, &self.identity_svc_name),
            ("DESTINATION", &self.destination_svc_addr, &self.destination_svc_name),
            ("POLICY", &self.policy_svc_addr, &self.policy_svc_name),
        ] {
            if name.is_none() && !addr.is_loopback() {
                problems.push(Problem {
                    variable: format!("{OURS}{service}_SVC_NAME"),
                    reason: format!(
                        "is unset, and `{addr}` is not on loopback: set the identity that the service must prove there"
                    ),
                });
            }
        }
        if self.identity_local_name.as_str().contains("://") {
            problems.push(Problem {
                variable: format!("{OURS}IDENTITY_LOCAL_NAME"),
                reason: format!(
                    "`{}` is a URI; needed: the DNS-like name, beside which the certificate holds the URI",
                    self.identity_local_name
                ),
            });
        }
        if self.inbound_default_policy.is_of_cluster() && self.policy_cluster_networks.is_empty() {
            problems.push(Problem {
                variable: format!("{OURS}INBOUND_DEFAULT_POLICY"),
                reason: format!(
                    "`{}` needs the cluster's networks: set `{OURS}POLICY_CLUSTER_NETWORKS`",
                    self.inbound_default_policy
                ),
            });
        }
    }
}

/// Variables with our prefix that are no settings: most likely misspelt ones.
pub fn unknown_variables(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let known = |name: &str| SETTINGS.iter().any(|setting| setting.name == name);
    names.into_iter().filter(|name| name.strip_prefix(OURS).is_some_and(|rest| !known(rest))).collect()
}

/// `docs/proxy-configuration.md`.
pub fn documentation() -> String {
    let mut page = String::from(
        "# Configuration of the proxy\n\n\
         Generated from `crates/ringmail-proxy/src/config.rs`; to change it, change the table there and run\n\
         `UPDATE_DOCS=1 cargo test -p ringmail-proxy --test periphery`.\n\n\
         Each setting is the environment variable `RINGMAIL_PROXY_<NAME>`; where that is unset, `LINKERD2_PROXY_<NAME>`.\n\
         All are read once, at start. Whatever is wrong is printed at once, and the proxy exits with code 64.\n",
    );
    for setting in SETTINGS {
        let default = match setting.default {
            DefaultValue::Required => "required".to_owned(),
            DefaultValue::Unset => "unset by default".to_owned(),
            DefaultValue::Text("") => "default empty".to_owned(),
            DefaultValue::Text(text) => format!("default `{text}`"),
        };
        let doc: Vec<&str> = setting.doc.lines().map(str::trim).collect();
        let _ = write!(
            page,
            "\n## `{}`\n\n{}\n\n- {default}\n- {}\n",
            setting.name,
            doc.join("\n").trim_end(),
            setting.format
        );
    }
    page
}

struct Reader<'a> {
    get: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn required<T>(&mut self, name: &str, format: &Format<T>) -> Option<T> {
        if let Some(variable) = self.find(name, format) {
            return self.parse(&variable, format);
        }
        self.problems.push(Problem {
            variable: format!("{OURS}{name}"),
            reason: format!("is unset; needed: {}", format.says),
        });
        None
    }

    #[expect(
        clippy::option_option,
        reason = "the outer one is whether reading went well, as for the other kinds"
    )]
    fn optional<T>(&mut self, name: &str, format: &Format<T>) -> Option<Option<T>> {
        match self.find(name, format) {
            Some(variable) => self.parse(&variable, format).map(Some),
            None => Some(None),
        }
    }

    fn or<T>(&mut self, name: &str, default: &str, format: &Format<T>) -> Option<T> {
        let variable =
            self.find(name, format).unwrap_or_else(|| (format!("{OURS}{name}"), default.to_owned()));
        self.parse(&variable, format)
    }

    /// The variable that is set, ours before Linkerd's. An empty one counts as unset unless the format knows it.
    fn find<T>(&self, name: &str, format: &Format<T>) -> Option<(String, String)> {
        let read = |prefix: &str| {
            let variable = format!("{prefix}{name}");
            (self.get)(&variable).map(|value| (variable, value))
        };
        read(OURS)
            .or_else(|| read(LINKERDS))
            .filter(|(_, value)| format.takes_empty || !value.trim().is_empty())
    }

    fn parse<T>(&mut self, (variable, value): &(String, String), format: &Format<T>) -> Option<T> {
        match (format.read)(value) {
            Ok(parsed) => Some(parsed),
            Err(reason) => {
                self.problems.push(Problem {
                    variable: variable.clone(),
                    reason: format!("{reason}; needed: {}", format.says),
                });
                None
            }
        }
    }
}

/// What is wrong with one variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its full name.
    pub variable: String,
    /// What is wrong, and what it should be.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.variable, self.reason)
    }
}

/// Everything that is wrong with an environment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError(pub Vec<Problem>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RM1100: the configuration has {} problem(s)", self.0.len())?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// The prefix of our variables.
pub const OURS: &str = "RINGMAIL_PROXY_";
/// The prefix that is read where ours is unset.
pub const LINKERDS: &str = "LINKERD2_PROXY_";
const MAX_CORES: usize = 4;
