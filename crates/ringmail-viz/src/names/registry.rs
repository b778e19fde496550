//! The registry as viz's knowledge of pods.

use std::net::IpAddr;
use std::sync::Arc;

use futures::stream;
use ringmail_registry::{Index, Key, ObjectName, Pod, Registry, ServicePort};

use super::{Changes, Named, NamedPod, Names};

/// A registry, read anew for each question.
#[derive(Clone, Debug)]
pub struct RegistryNames(Registry);

impl RegistryNames {
    /// Asks this registry.
    pub fn new(registry: Registry) -> Self {
        Self(registry)
    }
}

impl Names for RegistryNames {
    fn pods(&self) -> Vec<Arc<NamedPod>> {
        let index = self.0.read();
        index.pods().filter(|pod| pod.holds_addresses()).map(|pod| named(&index, pod)).collect()
    }

    fn by_ip(&self, ip: IpAddr) -> Option<Named> {
        let index = self.0.read();
        match index.pod_by_ip(ip) {
            Some(pod) => Some(Named::Pod(named(&index, &pod))),
            None => index.is_node(ip).then_some(Named::Node),
        }
    }

    fn service(&self, namespace: &str, name: &str) -> Option<Vec<IpAddr>> {
        let index = self.0.read();
        let service = index.service(&ObjectName::new(namespace, name))?;
        let endpoints = service.ports.iter().filter_map(|port| {
            index.endpoints(&ServicePort { service: service.name.clone(), port: port.port })
        });
        let mut ips: Vec<IpAddr> = endpoints.flatten().map(|endpoint| endpoint.address.ip()).collect();
        ips.sort();
        ips.dedup();
        Some(ips)
    }

    fn changes(&self) -> Changes {
        let subscription = self.0.subscribe(Key::Pods);
        Box::pin(stream::unfold(subscription, |mut subscription| async move {
            subscription.changed().await;
            Some(((), subscription))
        }))
    }
}

fn named(index: &Index, pod: &Pod) -> Arc<NamedPod> {
    Arc::new(NamedPod {
        workload: index.workload(pod),
        uid: pod.uid.to_string(),
        ips: pod.ips.clone(),
        labels: pod.labels.clone(),
        identity: index.pod_identity(pod).map(|id| id.identity()),
    })
}
