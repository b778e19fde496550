//! The policy of each port, watched on the control plane.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use linkerd2_proxy_api::inbound::inbound_server_policies_client::InboundServerPoliciesClient;
use linkerd2_proxy_api::inbound::{PortSpec, Server};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use super::ServerPolicy;
use crate::cache::{Cache, Entry, Expire, Full, Standing, sweep_regularly};
use crate::config::{Config, DefaultPolicy, PortSet};
use crate::follow::{Channel, Heard, follow};
use crate::report::{Code, trouble};

/// The policy of one port, as it changes. The port is watched at least as long as this lives.
pub struct PortPolicy {
    policy: watch::Receiver<Arc<ServerPolicy>>,
    _watched: Option<Arc<Entry<Port>>>,
}

impl PortPolicy {
    /// What holds now.
    pub fn now(&self) -> Arc<ServerPolicy> {
        Arc::clone(&self.policy.borrow())
    }

    /// The next change; what holds then.
    pub async fn changed(&mut self) -> Arc<ServerPolicy> {
        if self.policy.changed().await.is_err() {
            // Whoever told is gone: what it said last holds.
            std::future::pending::<()>().await;
        }
        Arc::clone(&self.policy.borrow_and_update())
    }
}

impl fmt::Debug for PortPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PortPolicy").field(&self.now()).finish()
    }
}

/// The policies of this pod's ports. Cheap to clone.
#[derive(Clone)]
pub struct Policies(Arc<Inner>);

struct Inner {
    settings: Settings,
    open: Box<OpenWatch>,
    runtime: Handle,
    /// Ports that are watched from the start and for ever.
    eager: HashMap<u16, Port>,
    others: Cache<u16, Port>,
}

type OpenWatch = dyn Fn(u16, Listener, &Handle) -> JoinHandle<()> + Send + Sync;

/// What policy needs to know of its proxy.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the policy service is told of this workload.
    pub workload: String,
    /// What holds until it has answered.
    pub default: DefaultPolicy,
    /// The networks that the `cluster-…` defaults mean.
    pub cluster: Vec<IpNet>,
    /// Ports that are watched from the start.
    pub ports: PortSet,
    /// Ports whose bytes are never read, until policy says otherwise.
    pub opaque_ports: PortSet,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        Self {
            workload: config.policy_workload.clone(),
            default: config.inbound_default_policy,
            cluster: config.policy_cluster_networks.clone(),
            ports: config.inbound_ports.clone(),
            opaque_ports: config.inbound_ports_disable_protocol_detection.clone(),
        }
    }
}

impl Policies {
    /// Asks through `channel`. Watches run on the runtime that this is called on.
    pub fn start<C: Channel>(settings: Settings, channel: C) -> Self {
        let workload = settings.workload.clone();
        let open = move |port: u16, listener: Listener, runtime: &Handle| {
            let spec = PortSpec { workload: workload.clone(), port: u32::from(port) };
            runtime.spawn(watch_port(channel.clone(), spec, listener))
        };
        let (open, runtime) = (Box::new(open) as Box<OpenWatch>, Handle::current());
        let eager = settings
            .ports
            .iter()
            .map(|port| (port, Port::watch(port, &settings, &*open, &runtime)))
            .collect();
        let inner = Arc::new(Inner { settings, open, runtime, eager, others: Cache::new(MAX_PORTS, IDLE) });
        sweep_regularly(&inner, |inner| &inner.others);
        Self(inner)
    }

    /// The policy of a port, now and as it changes: the default until the control plane has answered, after that its
    /// last word. `None` when more ports are in use than this proxy watches.
    pub fn port(&self, port: u16) -> Option<PortPolicy> {
        if let Some(eager) = self.0.eager.get(&port) {
            return Some(PortPolicy { policy: eager.policy.clone(), _watched: None });
        }
        let watch = || Port::watch(port, &self.0.settings, &*self.0.open, &self.0.runtime);
        match self.0.others.get(&port, watch) {
            Ok(watched) => Some(PortPolicy { policy: watched.policy.clone(), _watched: Some(watched) }),
            Err(Full) => None,
        }
    }
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

struct Port {
    policy: watch::Receiver<Arc<ServerPolicy>>,
    standing: Standing,
    _task: AbortOnDropHandle<()>,
}

impl Port {
    fn watch(port: u16, settings: &Settings, open: &OpenWatch, runtime: &Handle) -> Self {
        let opaque = settings.opaque_ports.contains(port);
        let default = ServerPolicy::default_of(settings.default, &settings.cluster, opaque);
        let (policy, receiver) = watch::channel(Arc::new(default));
        let standing = Standing::default();
        let listener = Listener { port, policy, standing: standing.clone() };
        Self { policy: receiver, standing, _task: AbortOnDropHandle::new(open(port, listener, runtime)) }
    }
}

impl Expire for Port {
    fn may_expire(&self) -> bool {
        self.standing.may_expire()
    }
}

struct Listener {
    port: u16,
    policy: watch::Sender<Arc<ServerPolicy>>,
    standing: Standing,
}

impl Listener {
    fn heard(&self, heard: Heard<Server>) {
        match heard {
            Heard::Message(server) => {
                self.standing.heard();
                let policy = ServerPolicy::try_from(server).unwrap_or_else(|error| {
                    trouble(Code::PolicyInvalid, &format_args!("port {}", self.port), &error);
                    ServerPolicy::invalid()
                });
                self.policy.send_if_modified(|now| {
                    let changed = **now != policy;
                    if changed {
                        *now = Arc::new(policy);
                    }
                    changed
                });
            }
            Heard::Lost(status) => {
                self.standing.lost();
                trouble(Code::PolicyWatch, &format_args!("port {}", self.port), &status);
            }
        }
    }
}

async fn watch_port<C: Channel>(channel: C, spec: PortSpec, listener: Listener) {
    let open = || {
        let (spec, mut client) = (spec.clone(), InboundServerPoliciesClient::new(channel.clone()));
        async move { client.watch_port(spec).await }
    };
    follow(open, |heard| listener.heard(heard)).await;
}

/// Ports watched at once beside those that are watched from the start.
const MAX_PORTS: usize = 1_024;
const IDLE: Duration = Duration::from_secs(90);
