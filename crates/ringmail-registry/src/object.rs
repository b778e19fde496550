//! What the registry keeps of Kubernetes objects: only the fields that an answer needs.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::ports::PortSet;

/// The name of an object that lives in a namespace. There is no way to look one up without its namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name in that namespace.
    pub name: Arc<str>,
}

impl ObjectName {
    /// A name from its two parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    /// `<namespace>/<name>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One object, as far as the registry keeps it.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A pod with its status.
    Pod(Pod),
    /// A service.
    Service(Service),
    /// A namespace.
    Namespace(Namespace),
    /// A node: its addresses are no pod's.
    Node(Node),
    /// A ReplicaSet, Deployment, StatefulSet, DaemonSet, Job, CronJob or ReplicationController.
    Controller(Controller),
}

impl Object {
    /// Reads a Kubernetes object from its JSON; `None` for a kind that no answer depends on.
    pub fn from_json(value: serde_json::Value) -> Result<Option<Self>, crate::ObjectError> {
        crate::parse::object(value)
    }

    /// What names this object.
    pub fn reference(&self) -> ObjectRef {
        match self {
            Self::Pod(pod) => ObjectRef::Pod(pod.name.clone()),
            Self::Service(service) => ObjectRef::Service(service.name.clone()),
            Self::Namespace(namespace) => ObjectRef::Namespace(namespace.name.clone()),
            Self::Node(node) => ObjectRef::Node(node.name.clone()),
            Self::Controller(controller) => {
                ObjectRef::Controller(controller.kind.clone(), controller.name.clone())
            }
        }
    }
}

/// What names an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ObjectRef {
    /// A pod.
    Pod(ObjectName),
    /// A service.
    Service(ObjectName),
    /// A namespace.
    Namespace(Arc<str>),
    /// A node.
    Node(Arc<str>),
    /// A controller: its kind in lower case, then its name.
    Controller(Arc<str>, ObjectName),
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => write!(f, "pod {name}"),
            Self::Service(name) => write!(f, "service {name}"),
            Self::Namespace(name) => write!(f, "namespace {name}"),
            Self::Node(name) => write!(f, "node {name}"),
            Self::Controller(kind, name) => write!(f, "{kind} {name}"),
        }
    }
}

/// A pod, from its metadata, spec and status.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// Its namespace and name.
    pub name: ObjectName,
    /// Its uid: another pod of the same name has another.
    pub uid: Arc<str>,
    /// `metadata.creationTimestamp` as it stands (RFC 3339, UTC); empty where absent.
    pub created: String,
    /// Its addresses, the primary one first; empty until it has one. For a pod on the host's network the node's.
    pub ips: Vec<IpAddr>,
    /// The addresses of its node, as the pod's status tells them.
    pub host_ips: Vec<IpAddr>,
    /// All labels.
    pub labels: BTreeMap<String, String>,
    /// The annotations of the mesh: those whose prefix ends in `ringmail.dev` or `linkerd.io`.
    pub annotations: BTreeMap<String, String>,
    /// The service account; `default` where the spec names none.
    pub service_account: String,
    /// The node it runs on, once scheduled.
    pub node: Option<String>,
    /// How far it has come.
    pub phase: Phase,
    /// Whether its condition `Ready` is true.
    pub ready: bool,
    /// Whether its deletion has been asked for.
    pub terminating: bool,
    /// Whether it uses its node's network: then its addresses are not its own.
    pub host_network: bool,
    /// Ports that its containers (init sidecars included) declare.
    pub ports: Vec<PodPort>,
    /// HTTP and gRPC probes of its containers (init sidecars included).
    pub probes: Vec<Probe>,
    /// Its owners.
    pub owners: Vec<Owner>,
    /// Ports whose inbound connections skip the proxy (effective annotation).
    pub skip_inbound: PortSet,
    /// Ports whose outbound connections skip the proxy (effective annotation).
    pub skip_outbound: PortSet,
    /// Ports that are opaque (effective annotation); `None` where it says nothing.
    pub opaque: Option<PortSet>,
    /// Ports whose callers need an identity, whatever the policy (annotation `proxy-require-identity-inbound-ports`).
    pub require_identity: PortSet,
}

impl Pod {
    /// Whether all its containers have ended for good: it holds its address no longer.
    pub fn terminated(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// Whether its addresses are its own and in use.
    pub fn holds_addresses(&self) -> bool {
        !self.host_network && !self.terminated()
    }

    /// An annotation of the mesh, `config.ringmail.dev/<option>`, else Linkerd's counterpart.
    pub fn config(&self, option: &str) -> Option<&str> {
        config(&self.annotations, option)
    }

    /// Whether a port is opaque: by annotation, else by default.
    pub fn is_opaque(&self, port: u16) -> bool {
        is_opaque(self.opaque.as_ref(), port)
    }

    /// The number that a named port has in this pod.
    pub fn named_port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        self.ports
            .iter()
            .find(|port| port.name.as_deref() == Some(name) && port.protocol == protocol)
            .map(|port| port.number)
    }
}

/// Where an object says nothing: ports of protocols in which the server speaks first or which are not HTTP.
pub const DEFAULT_OPAQUE_PORTS: [u16; 8] = [25, 587, 3306, 4444, 5432, 6379, 9300, 11211];

pub(crate) fn is_opaque(set: Option<&PortSet>, port: u16) -> bool {
    match set {
        Some(set) => set.contains(port),
        None => DEFAULT_OPAQUE_PORTS.contains(&port),
    }
}

/// The value of a mesh option among annotations: ours wins over Linkerd's.
pub fn config<'a>(annotations: &'a BTreeMap<String, String>, option: &str) -> Option<&'a str> {
    let of = |domain: &str| annotations.get(&format!("config.{domain}/{option}")).map(String::as_str);
    of("ringmail.dev").or_else(|| of("linkerd.io"))
}

/// `status.phase` of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Not all containers have started; also where the status says nothing.
    #[default]
    Pending,
    /// At least one container runs or is being restarted.
    Running,
    /// All containers ended well and stay ended.
    Succeeded,
    /// All containers ended, at least one badly, and stay ended.
    Failed,
    /// The node does not answer.
    Unknown,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP: what the mesh carries.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port that a container declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPort {
    /// The container's name.
    pub container: String,
    /// The port's name.
    pub name: Option<String>,
    /// Its number.
    pub number: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// A probe of the kubelet that speaks to a port of the pod over plain HTTP or gRPC.
///
/// HTTPS probes are left out: the application's own TLS hides their path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Probe {
    /// The container's name.
    pub container: String,
    /// The port's number; named ports are resolved in the container.
    pub port: u16,
    /// What it asks.
    pub action: ProbeAction,
}

/// What a probe asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeAction {
    /// `GET` of this path (without its query).
    HttpGet(String),
    /// `grpc.health.v1.Health/Check`.
    Grpc,
}

/// An entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The kind in lower case.
    pub kind: Arc<str>,
    /// The name, in the namespace of what it owns.
    pub name: Arc<str>,
    /// The uid.
    pub uid: Arc<str>,
    /// Whether it is the managing controller.
    pub controller: bool,
}

/// A service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Its namespace and name.
    pub name: ObjectName,
    /// Its uid.
    pub uid: Arc<str>,
    /// `metadata.creationTimestamp` as it stands.
    pub created: String,
    /// Its virtual addresses, the primary one first; empty for a headless one.
    pub cluster_ips: Vec<IpAddr>,
    /// Whether it has no virtual address (`clusterIP: None`).
    pub headless: bool,
    /// Its type.
    pub kind: ServiceKind,
    /// Its ports.
    pub ports: Vec<ServicePortSpec>,
    /// The labels that its pods carry; `None` when its endpoints come from elsewhere.
    pub selector: Option<BTreeMap<String, String>>,
    /// The annotations of the mesh.
    pub annotations: BTreeMap<String, String>,
    /// Whether pods that are not ready count as endpoints (`publishNotReadyAddresses`).
    pub publish_not_ready: bool,
    /// Whether IPv6 addresses of pods are preferred (its primary family).
    pub prefers_ipv6: bool,
    /// Ports that are opaque by annotation; `None` where it says nothing.
    pub opaque: Option<PortSet>,
}

impl Service {
    /// The TCP port of this number.
    pub fn port(&self, number: u16) -> Option<&ServicePortSpec> {
        self.ports.iter().find(|port| port.port == number && port.protocol == Protocol::Tcp)
    }

    /// Whether its selector chooses a pod with these labels. An absent or empty selector chooses nothing.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        match &self.selector {
            Some(selector) if !selector.is_empty() => {
                selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            }
            _ => false,
        }
    }

    /// Whether the registry can tell its endpoints: it has a selector and is no alias for a name elsewhere.
    pub fn has_endpoints(&self) -> bool {
        self.kind != ServiceKind::ExternalName
            && self.selector.as_ref().is_some_and(|selector| !selector.is_empty())
    }
}

/// `spec.type` of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceKind {
    /// Reachable inside the cluster.
    #[default]
    ClusterIp,
    /// Also on a port of each node.
    NodePort,
    /// Also through a load balancer outside.
    LoadBalancer,
    /// An alias for a DNS name.
    ExternalName,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePortSpec {
    /// Its name; absent when the service has one port only.
    pub name: Option<String>,
    /// The port that clients call.
    pub port: u16,
    /// The pods' port behind it.
    pub target: TargetPort,
    /// Its protocol.
    pub protocol: Protocol,
}

/// `targetPort` of a service's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// The same number in every pod.
    Number(u16),
    /// The port of this name, whatever its number in each pod.
    Name(String),
}

/// A namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct Namespace {
    /// Its name.
    pub name: Arc<str>,
    /// All labels.
    pub labels: BTreeMap<String, String>,
    /// The annotations of the mesh.
    pub annotations: BTreeMap<String, String>,
    /// Ports that are opaque by annotation; `None` where it says nothing.
    pub opaque: Option<PortSet>,
}

/// A node.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Its addresses that are IP addresses.
    pub addresses: Vec<IpAddr>,
}

/// What owns pods, or what owns what owns them.
#[derive(Clone, Debug, PartialEq)]
pub struct Controller {
    /// Its kind in lower case: `replicaset`, `deployment`, `statefulset`, `daemonset`, `job`, `cronjob`,
    /// `replicationcontroller`.
    pub kind: Arc<str>,
    /// Its namespace and name.
    pub name: ObjectName,
    /// Its uid.
    pub uid: Arc<str>,
    /// Its owners.
    pub owners: Vec<Owner>,
}
