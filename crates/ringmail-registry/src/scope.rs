//! The objects of one namespace, and the answers that they alone decide.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ringmail_vocab::WorkloadRef;

use crate::index::{Endpoint, Key, MeshSettings, ServicePort, endpoint};
use crate::object::{Controller, Namespace, ObjectName, Owner, Pod, Protocol, Service, TargetPort};

/// One namespace. It holds no reference to another: what is computed here cannot depend on one.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    pub(crate) namespace: Option<Namespace>,
    pub(crate) pods: BTreeMap<Arc<str>, Arc<Pod>>,
    pub(crate) services: BTreeMap<Arc<str>, ServiceState>,
    controllers: HashMap<OwnerKey, Controller>,
    /// The names of the pods that name this owner.
    owned: HashMap<OwnerKey, BTreeSet<Arc<str>>>,
}

/// A kind in lower case, then a name.
type OwnerKey = (Arc<str>, Arc<str>);

#[derive(Debug)]
pub(crate) struct ServiceState {
    pub(crate) service: Arc<Service>,
    /// The names of the pods that its selector chooses.
    members: BTreeSet<Arc<str>>,
}

impl Scope {
    pub(crate) fn is_empty(&self) -> bool {
        self.namespace.is_none()
            && self.pods.is_empty()
            && self.services.is_empty()
            && self.controllers.is_empty()
    }

    /// Sets or removes the namespace's own object: what services inherit from it may change.
    pub(crate) fn set_namespace(&mut self, namespace: Option<Namespace>) -> Vec<Key> {
        if self.namespace == namespace {
            return Vec::new();
        }
        self.namespace = namespace;
        let keys = self.services.values().flat_map(|state| {
            let ips = state.service.cluster_ips.iter().map(|ip| Key::Ip(*ip));
            ips.chain([Key::Service(state.service.name.clone())])
        });
        keys.collect()
    }

    /// Sets or removes a pod; says which endpoints changed.
    pub(crate) fn set_pod(
        &mut self,
        settings: &MeshSettings,
        name: &ObjectName,
        pod: Option<&Arc<Pod>>,
    ) -> Vec<Key> {
        let old = match pod {
            Some(pod) => self.pods.insert(name.name.clone(), pod.clone()),
            None => self.pods.remove(&name.name),
        };
        for owner in old.iter().flat_map(|pod| &pod.owners) {
            let key = key_of(owner);
            if let Some(pods) = self.owned.get_mut(&key) {
                pods.remove(&name.name);
                if pods.is_empty() {
                    self.owned.remove(&key);
                }
            }
        }
        for owner in pod.iter().flat_map(|pod| &pod.owners) {
            self.owned.entry(key_of(owner)).or_default().insert(name.name.clone());
        }

        let was = old.as_ref().map(|pod| self.workload(pod));
        let is = pod.map(|pod| self.workload(pod));
        let mut keys = Vec::new();
        for state in self.services.values_mut() {
            let chosen =
                |pod: Option<&Arc<Pod>>| pod.cloned().filter(|pod| state.service.selects(&pod.labels));
            let (old, new) = (chosen(old.as_ref()), chosen(pod));
            match &new {
                Some(_) => state.members.insert(name.name.clone()),
                None => state.members.remove(&name.name),
            };
            for port in state.service.ports.iter().filter(|port| port.protocol == Protocol::Tcp) {
                let part = |pod: &Option<Arc<Pod>>, workload: &Option<WorkloadRef>| match (pod, workload) {
                    (Some(pod), Some(workload)) => {
                        contribution(settings, &state.service, port.port, pod, workload)
                    }
                    _ => None,
                };
                if part(&old, &was) != part(&new, &is) {
                    let service = state.service.name.clone();
                    keys.push(Key::Endpoints(ServicePort { service, port: port.port }));
                }
            }
        }
        keys
    }

    /// Sets or removes a service; the caller knows which keys that touches.
    pub(crate) fn set_service(&mut self, name: &ObjectName, service: Option<Arc<Service>>) {
        match service {
            None => drop(self.services.remove(&name.name)),
            Some(service) => {
                let chosen = self.pods.iter().filter(|(_, pod)| service.selects(&pod.labels));
                let members = chosen.map(|(name, _)| name.clone()).collect();
                self.services.insert(name.name.clone(), ServiceState { service, members });
            }
        }
    }

    /// Sets or removes a controller; says which endpoints changed and which pods now have another top owner.
    pub(crate) fn set_controller(
        &mut self,
        kind: &Arc<str>,
        name: &ObjectName,
        new: Option<Controller>,
    ) -> (Vec<Key>, Vec<Arc<Pod>>) {
        let key = (kind.clone(), name.name.clone());
        if self.controllers.get(&key) == new.as_ref() {
            return (Vec::new(), Vec::new());
        }
        let pods = self.dependents(&key);
        let before: Vec<_> = pods.iter().map(|pod| self.workload(pod)).collect();
        match new {
            Some(controller) => drop(self.controllers.insert(key, controller)),
            None => drop(self.controllers.remove(&key)),
        }
        let changed = pods.into_iter().zip(before).filter(|(pod, before)| self.workload(pod) != *before);
        let pods: Vec<_> = changed.map(|(pod, _)| pod).collect();
        let mut keys = Vec::new();
        for state in self.services.values() {
            if pods.iter().any(|pod| state.members.contains(&pod.name.name)) {
                let service = &state.service.name;
                keys.extend(
                    state.service.ports.iter().map(|port| {
                        Key::Endpoints(ServicePort { service: service.clone(), port: port.port })
                    }),
                );
            }
        }
        (keys, pods)
    }

    pub(crate) fn endpoints(
        &self,
        settings: &MeshSettings,
        service: &str,
        port: u16,
    ) -> Option<Vec<Endpoint>> {
        let state = self.services.get(service)?;
        state.service.port(port)?;
        let members = state.members.iter().filter_map(|name| self.pods.get(name));
        let parts = members.filter_map(|pod| {
            let part = contribution(settings, &state.service, port, pod, &self.workload(pod))?;
            Some((part.address, Reverse(&pod.created), part))
        });
        let mut parts: Vec<_> = parts.collect();
        // While an address is being given on, two pods may claim it: the younger one has it.
        parts.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        parts.dedup_by_key(|(address, ..)| *address);
        let endpoints = parts.into_iter().map(|(.., endpoint)| endpoint).collect();
        Some(endpoints)
    }

    pub(crate) fn workload(&self, pod: &Pod) -> WorkloadRef {
        let top = self.top(pod.owners.as_slice());
        let (owner_kind, owner) =
            top.map(|owner| (owner.kind.to_string(), owner.name.to_string())).unwrap_or_default();
        WorkloadRef {
            namespace: pod.name.namespace.to_string(),
            pod: pod.name.name.to_string(),
            owner_kind,
            owner,
            service_account: pod.service_account.clone(),
        }
    }

    fn top<'a>(&'a self, owners: &'a [Owner]) -> Option<&'a Owner> {
        let mut top = managing(owners)?;
        for _ in 0..MAX_OWNERS {
            let known = self.controllers.get(&(top.kind.clone(), top.name.clone()));
            // A controller of the same name but another uid is another one.
            let known =
                known.filter(|known| top.uid.is_empty() || known.uid.is_empty() || known.uid == top.uid);
            match known.and_then(|known| managing(&known.owners)) {
                Some(next) => top = next,
                None => break,
            }
        }
        Some(top)
    }

    /// The pods below a controller, through others if need be.
    fn dependents(&self, key: &OwnerKey) -> Vec<Arc<Pod>> {
        let mut below = vec![key.clone()];
        let mut reached: BTreeSet<_> = below.iter().cloned().collect();
        let mut names = BTreeSet::new();
        while let Some(key) = below.pop() {
            names.extend(self.owned.get(&key).into_iter().flatten().cloned());
            for (child, controller) in &self.controllers {
                if controller.owners.iter().any(|owner| key_of(owner) == key) && reached.insert(child.clone())
                {
                    below.push(child.clone());
                }
            }
        }
        names.iter().filter_map(|name| self.pods.get(name).cloned()).collect()
    }
}

/// What one pod contributes to the endpoints behind one port of a service.
fn contribution(
    settings: &MeshSettings,
    service: &Service,
    port: u16,
    pod: &Pod,
    workload: &WorkloadRef,
) -> Option<Endpoint> {
    let spec = service.port(port)?;
    let usable = (pod.ready || service.publish_not_ready) && !pod.terminating && !pod.terminated();
    if !usable || !service.has_endpoints() {
        return None;
    }
    let number = match &spec.target {
        TargetPort::Number(number) => *number,
        TargetPort::Name(name) => pod.named_port(name, Protocol::Tcp)?,
    };
    let ip = pod.ips.iter().find(|ip| ip.is_ipv6() == service.prefers_ipv6).or_else(|| {
        // A service with addresses of both families reaches a pod that has the other one only.
        let both = service.cluster_ips.iter().any(IpAddr::is_ipv4)
            && service.cluster_ips.iter().any(IpAddr::is_ipv6);
        pod.ips.first().filter(|_| both || service.headless)
    })?;
    Some(endpoint(settings, pod, SocketAddr::new(*ip, number), workload.clone()))
}

fn managing(owners: &[Owner]) -> Option<&Owner> {
    owners.iter().find(|owner| owner.controller).or_else(|| owners.first().filter(|_| owners.len() == 1))
}

fn key_of(owner: &Owner) -> OwnerKey {
    (owner.kind.clone(), owner.name.clone())
}

/// Bounds a chain of owners, which objects could close to a circle.
const MAX_OWNERS: usize = 8;
