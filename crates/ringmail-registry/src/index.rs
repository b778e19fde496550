//! All objects together, with the answers that the control plane gives from them.
//!
//! An [`Index`] is plain data: each change returns the [`Key`]s whose answer may have changed. What is asked by name
//! is answered by one namespace alone, so an object of another namespace cannot change it. Only addresses belong to
//! nobody's namespace: whose a pod's address is follows from the pod's status, which the node writes, and of two
//! services that claim one virtual address the older keeps it.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ringmail_identity::{TrustDomain, WorkloadId};
use ringmail_vocab::WorkloadRef;

use crate::object::{Node, Object, ObjectName, ObjectRef, Pod, Service, is_opaque};
use crate::scope::Scope;

/// The port of proxies' admin servers: plaintext, never part of the mesh.
pub const ADMIN_PORT: u16 = 4191;
/// The port of proxies' control servers (tap, flows): always mutual TLS.
pub const CONTROL_PORT: u16 = 4190;
/// The label whose value is the namespace of the control plane to which a pod's proxy belongs.
pub const MESHED_LABEL: &str = "ringmail.dev/control-plane-ns";

/// Which mesh the answers are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshSettings {
    /// The domain of all identities.
    pub trust_domain: TrustDomain,
    /// The control plane's namespace: pods labelled with it are meshed.
    pub control_plane_namespace: String,
}

/// What an answer depends on: subscribe to it to learn when it may have changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// The set of all pods, or any field of one of them.
    Pods,
    /// One pod, by name, with its owners.
    Pod(ObjectName),
    /// One service, by name, without its endpoints.
    Service(ObjectName),
    /// The endpoints behind one port of a service.
    Endpoints(ServicePort),
    /// What an address belongs to: a pod, a service or a node.
    Ip(IpAddr),
}

/// A port of a service, whether or not the service or the port exists.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// The service.
    pub service: ObjectName,
    /// The port that clients call.
    pub port: u16,
}

/// A pod's port, as discovery tells it to a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where to dial.
    pub address: SocketAddr,
    /// The pod and what owns it.
    pub workload: WorkloadRef,
    /// The pod's uid.
    pub pod_uid: Arc<str>,
    /// The identity that must answer there; `None`: plaintext.
    pub identity: Option<WorkloadId>,
    /// Whether the port is opaque.
    pub opaque: bool,
    /// The pod's label `pod-template-hash`.
    pub template_hash: Option<String>,
}

/// All objects and what follows from them.
#[derive(Debug)]
pub struct Index {
    settings: MeshSettings,
    scopes: HashMap<Arc<str>, Scope>,
    nodes: HashMap<Arc<str>, Node>,
    /// Who claims an address, in the order in which the claims were first seen.
    pods_by_ip: HashMap<IpAddr, Vec<Arc<Pod>>>,
    services_by_ip: HashMap<IpAddr, Vec<Arc<Service>>>,
    /// How many objects say that an address is a node's.
    node_ips: HashMap<IpAddr, usize>,
}

impl Index {
    /// An empty index.
    pub fn new(settings: MeshSettings) -> Self {
        Self {
            settings,
            scopes: HashMap::new(),
            nodes: HashMap::new(),
            pods_by_ip: HashMap::new(),
            services_by_ip: HashMap::new(),
            node_ips: HashMap::new(),
        }
    }

    /// The mesh that the answers are for.
    pub fn settings(&self) -> &MeshSettings {
        &self.settings
    }

    /// Adds an object or replaces the one of the same name; says which answers may have changed.
    pub fn apply(&mut self, object: Object) -> Vec<Key> {
        match object {
            Object::Pod(pod) => self.set_pod(&pod.name.clone(), Some(&Arc::new(pod))),
            Object::Service(service) => self.set_service(&service.name.clone(), Some(&Arc::new(service))),
            Object::Node(node) => self.set_node(&node.name.clone(), Some(node)),
            Object::Namespace(namespace) => {
                self.scope(&namespace.name.clone()).set_namespace(Some(namespace))
            }
            Object::Controller(controller) => {
                let (kind, name) = (controller.kind.clone(), controller.name.clone());
                self.set_controller(&kind, &name, Some(controller))
            }
        }
    }

    /// Removes an object; says which answers may have changed.
    pub fn delete(&mut self, object: &ObjectRef) -> Vec<Key> {
        let keys = match object {
            ObjectRef::Pod(name) => self.set_pod(name, None),
            ObjectRef::Service(name) => self.set_service(name, None),
            ObjectRef::Node(name) => self.set_node(name, None),
            ObjectRef::Namespace(name) => self.scope(name).set_namespace(None),
            ObjectRef::Controller(kind, name) => self.set_controller(kind, name, None),
        };
        self.scopes.retain(|_, scope| !scope.is_empty());
        keys
    }

    /// A pod by its name.
    pub fn pod(&self, name: &ObjectName) -> Option<Arc<Pod>> {
        self.scopes.get(&name.namespace)?.pods.get(&name.name).cloned()
    }

    /// The pod that an address belongs to now: not a terminated one, not one on its node's network. Where two claim
    /// it, the address has been given on and the younger pod has it.
    pub fn pod_by_ip(&self, ip: IpAddr) -> Option<Arc<Pod>> {
        // `max_by_key` takes the last of equals: timestamps have seconds, and what was seen later is younger.
        self.pods_by_ip.get(&ip)?.iter().max_by_key(|pod| (&pod.created, !pod.terminating)).cloned()
    }

    /// All pods, in no order.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.scopes.values().flat_map(|scope| scope.pods.values())
    }

    /// A service by its name.
    pub fn service(&self, name: &ObjectName) -> Option<Arc<Service>> {
        self.scopes.get(&name.namespace)?.services.get(&name.name).map(|state| state.service.clone())
    }

    /// The service that a virtual address belongs to.
    pub fn service_by_ip(&self, ip: IpAddr) -> Option<Arc<Service>> {
        // `min_by_key` takes the first of equals: what was seen first is older.
        self.services_by_ip.get(&ip)?.iter().min_by_key(|service| &service.created).cloned()
    }

    /// Whether an address is a node's, and so no pod's: a gateway, a kubelet, a pod on the host's network.
    pub fn is_node(&self, ip: IpAddr) -> bool {
        self.node_ips.contains_key(&ip)
    }

    /// The endpoints behind a port of a service, ordered by address: pods that its selector chooses, that are ready
    /// (unless it publishes others too), not terminating, and have the target port. `None`: no such service or port.
    pub fn endpoints(&self, port: &ServicePort) -> Option<Vec<Endpoint>> {
        let scope = self.scopes.get(&port.service.namespace)?;
        scope.endpoints(&self.settings, &port.service.name, port.port)
    }

    /// A pod with the controller at the top of its owners, as tables print it.
    pub fn workload(&self, pod: &Pod) -> WorkloadRef {
        match self.scopes.get(&pod.name.namespace) {
            Some(scope) => scope.workload(pod),
            None => Scope::default().workload(pod),
        }
    }

    /// One port of a pod as discovery tells it, at one of the pod's addresses.
    pub fn endpoint(&self, pod: &Pod, address: SocketAddr) -> Endpoint {
        endpoint(&self.settings, pod, address, self.workload(pod))
    }

    /// Whether a pod has a proxy of this mesh.
    pub fn meshed(&self, pod: &Pod) -> bool {
        meshed(&self.settings, pod)
    }

    /// The identity that must answer on a port of a pod; `None` where its proxy does not.
    pub fn identity(&self, pod: &Pod, port: u16) -> Option<WorkloadId> {
        identity(&self.settings, pod, port)
    }

    /// The identity of a pod's proxy, whatever the port; `None` where it has none.
    pub fn pod_identity(&self, pod: &Pod) -> Option<WorkloadId> {
        pod_identity(&self.settings, pod)
    }

    /// Whether a port of a service is opaque: by the service's annotation, else its namespace's, else by default.
    pub fn opaque_service_port(&self, service: &Service, port: u16) -> bool {
        let namespace = self.scopes.get(&service.name.namespace).and_then(|scope| scope.namespace.as_ref());
        let set =
            service.opaque.as_ref().or_else(|| namespace.and_then(|namespace| namespace.opaque.as_ref()));
        is_opaque(set, port)
    }

    fn scope(&mut self, namespace: &Arc<str>) -> &mut Scope {
        self.scopes.entry(namespace.clone()).or_default()
    }

    fn set_pod(&mut self, name: &ObjectName, pod: Option<&Arc<Pod>>) -> Vec<Key> {
        let settings = self.settings.clone();
        let scope = self.scope(&name.namespace);
        let old = scope.pods.get(&name.name).cloned();
        if old.as_ref() == pod {
            return Vec::new();
        }
        let mut keys = scope.set_pod(&settings, name, pod);
        keys.extend([Key::Pods, Key::Pod(name.clone())]);
        let (held, holds) = (holder(old.as_ref()), holder(pod));
        let claims: BTreeSet<IpAddr> =
            [&held, &holds].into_iter().flatten().flat_map(|pod| pod.ips.iter().copied()).collect();
        for ip in claims {
            keys.extend(self.claim_for_pod(ip, held.as_deref(), holds.as_ref()));
        }
        let node_ips = |pod: Option<&Arc<Pod>>| pod.map(|pod| pod.host_ips.clone()).unwrap_or_default();
        keys.extend(self.count_node_ips(&node_ips(old.as_ref()), &node_ips(pod)));
        keys
    }

    /// Moves one pod's claim on one address from its old state to its new one.
    fn claim_for_pod(&mut self, ip: IpAddr, old: Option<&Pod>, new: Option<&Arc<Pod>>) -> Option<Key> {
        let before = self.pod_by_ip(ip);
        let claims = self.pods_by_ip.entry(ip).or_default();
        let place =
            old.and_then(|old| claims.iter().position(|pod| pod.name == old.name && pod.uid == old.uid));
        match (place, new.filter(|pod| pod.ips.contains(&ip))) {
            // The same pod keeps its place in the order of arrival; another of its name is a newcomer.
            (Some(place), Some(new)) if claims[place].uid == new.uid => claims[place] = new.clone(),
            (place, new) => {
                if let Some(place) = place {
                    claims.remove(place);
                }
                claims.extend(new.cloned());
            }
        }
        if claims.is_empty() {
            self.pods_by_ip.remove(&ip);
        }
        (before != self.pod_by_ip(ip)).then_some(Key::Ip(ip))
    }

    fn set_service(&mut self, name: &ObjectName, service: Option<&Arc<Service>>) -> Vec<Key> {
        let scope = self.scope(&name.namespace);
        let old = scope.services.get(&name.name).map(|state| state.service.clone());
        if old.as_ref() == service {
            return Vec::new();
        }
        scope.set_service(name, service.cloned());
        let mut keys = vec![Key::Service(name.clone())];
        let ports = |service: &Arc<Service>| service.ports.iter().map(|port| port.port).collect::<Vec<_>>();
        let ports: BTreeSet<u16> = [old.as_ref(), service].into_iter().flatten().flat_map(ports).collect();
        keys.extend(
            ports.into_iter().map(|port| Key::Endpoints(ServicePort { service: name.clone(), port })),
        );
        let ips: BTreeSet<IpAddr> = [old.as_ref(), service]
            .into_iter()
            .flatten()
            .flat_map(|service| service.cluster_ips.iter().copied())
            .collect();
        for ip in ips {
            keys.extend(self.claim_for_service(ip, name, service));
        }
        keys
    }

    fn claim_for_service(
        &mut self,
        ip: IpAddr,
        name: &ObjectName,
        new: Option<&Arc<Service>>,
    ) -> Option<Key> {
        let before = self.service_by_ip(ip);
        let claims = self.services_by_ip.entry(ip).or_default();
        let place = claims.iter().position(|service| service.name == *name);
        match (place, new.filter(|service| service.cluster_ips.contains(&ip))) {
            (Some(place), Some(new)) => claims[place] = new.clone(),
            (Some(place), None) => drop(claims.remove(place)),
            (None, new) => claims.extend(new.cloned()),
        }
        if claims.is_empty() {
            self.services_by_ip.remove(&ip);
        }
        (before != self.service_by_ip(ip)).then_some(Key::Ip(ip))
    }

    fn set_controller(
        &mut self,
        kind: &Arc<str>,
        name: &ObjectName,
        new: Option<crate::object::Controller>,
    ) -> Vec<Key> {
        let (mut keys, pods) = self.scope(&name.namespace).set_controller(kind, name, new);
        for pod in pods {
            keys.extend([Key::Pods, Key::Pod(pod.name.clone())]);
            let own = |ip: &&IpAddr| self.pod_by_ip(**ip).is_some_and(|holder| holder.name == pod.name);
            keys.extend(pod.ips.iter().filter(own).map(|ip| Key::Ip(*ip)));
        }
        keys
    }

    fn set_node(&mut self, name: &Arc<str>, node: Option<Node>) -> Vec<Key> {
        let new = node.as_ref().map(|node| node.addresses.clone()).unwrap_or_default();
        let old = match node {
            Some(node) => self.nodes.insert(name.clone(), node),
            None => self.nodes.remove(name),
        };
        self.count_node_ips(&old.map(|node| node.addresses).unwrap_or_default(), &new)
    }

    fn count_node_ips(&mut self, old: &[IpAddr], new: &[IpAddr]) -> Vec<Key> {
        if old == new {
            return Vec::new();
        }
        let touched: BTreeSet<IpAddr> = old.iter().chain(new).copied().collect();
        let before: Vec<_> = touched.into_iter().map(|ip| (ip, self.is_node(ip))).collect();
        for ip in new {
            *self.node_ips.entry(*ip).or_default() += 1;
        }
        for ip in old {
            if let Some(count) = self.node_ips.get_mut(ip) {
                *count -= 1;
            }
        }
        self.node_ips.retain(|_, count| *count > 0);
        before.into_iter().filter(|(ip, was)| self.is_node(*ip) != *was).map(|(ip, _)| Key::Ip(ip)).collect()
    }
}

fn holder(pod: Option<&Arc<Pod>>) -> Option<Arc<Pod>> {
    pod.filter(|pod| pod.holds_addresses()).cloned()
}

/// One port of a pod as discovery tells it.
pub(crate) fn endpoint(
    settings: &MeshSettings,
    pod: &Pod,
    address: SocketAddr,
    workload: WorkloadRef,
) -> Endpoint {
    Endpoint {
        address,
        workload,
        pod_uid: pod.uid.clone(),
        identity: identity(settings, pod, address.port()),
        opaque: pod.is_opaque(address.port()),
        template_hash: pod.labels.get("pod-template-hash").cloned(),
    }
}

fn meshed(settings: &MeshSettings, pod: &Pod) -> bool {
    !pod.host_network
        && pod
            .labels
            .get(MESHED_LABEL)
            .is_some_and(|namespace| *namespace == settings.control_plane_namespace)
}

fn pod_identity(settings: &MeshSettings, pod: &Pod) -> Option<WorkloadId> {
    if !meshed(settings, pod) {
        return None;
    }
    WorkloadId::new(&pod.service_account, &pod.name.namespace, &settings.trust_domain).ok()
}

fn identity(settings: &MeshSettings, pod: &Pod, port: u16) -> Option<WorkloadId> {
    // The proxy's own ports are listed as skipped because no redirection applies to them; the control port
    // terminates TLS itself, the admin port never does.
    let secured = match port {
        ADMIN_PORT => false,
        CONTROL_PORT => true,
        port => !pod.skip_inbound.contains(port),
    };
    if secured { pod_identity(settings, pod) } else { None }
}
