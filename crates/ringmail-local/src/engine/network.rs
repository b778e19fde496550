//! What others see of the objects: service addresses, names, and the registry's files.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Pod, Service};
use rand::seq::IndexedRandom as _;
use ringmail_redirect::Protocol;
use ringmail_redirect::services::{self, ServiceMap};
use serde_json::Value;

use super::{Engine, State};
use crate::dns::{EndpointRecord, PodRecord, PortRecord, ServiceRecord, Zone};
use crate::endpoints::{self, Endpoint, endpoints};
use crate::manifest::{Kind, Object};

/// Where service addresses are translated.
pub trait Router: Send + Sync + 'static {
    /// Puts this map in place of the one before. The error is one sentence.
    fn apply(&self, map: ServiceMap) -> BoxFuture<'_, Result<(), String>>;
}

/// The network namespace of this process.
#[derive(Clone, Copy, Debug)]
pub struct KernelRouter;

impl Router for KernelRouter {
    fn apply(&self, map: ServiceMap) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let applied = tokio::task::spawn_blocking(move || services::apply(&map)).await;
            match applied {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(error) => Err(error.to_string()),
            }
        })
    }
}

/// Everything that depends on objects and pods alone.
pub(super) struct NetworkView {
    services: ServiceMap,
    services_changed: bool,
    zone: Zone,
    registry: Vec<Value>,
}

impl Engine {
    pub(super) fn network_view(&self, state: &State) -> NetworkView {
        let pods: Vec<Pod> = state.pods.values().map(super::PodEntry::as_pod).collect();
        let services: Vec<(&Service, Vec<Endpoint>)> =
            state.store.services().map(|service| (service, endpoints(service, pods.iter()))).collect();
        let map = service_map(&services);
        NetworkView {
            services_changed: state.services.as_ref() != Some(&map),
            services: map,
            zone: zone(&self.context.domain, state, &services, &pods),
            registry: registry(state, &pods),
        }
    }

    /// Brings all of it into effect; `false` when something failed and is to be tried again.
    pub(super) async fn apply_network(&self, view: NetworkView) -> bool {
        self.zone.set(view.zone);
        if let Err(error) = self.registry.lock().sync(view.registry.iter()) {
            tracing::warn!(%error, "writing the objects for the control plane");
            return false;
        }
        if view.services_changed {
            if let Err(error) = self.router.apply(view.services.clone()).await {
                tracing::warn!(%error, "translating service addresses");
                return false;
            }
            self.state.lock().services = Some(view.services);
        }
        true
    }

    /// A pod that serves a service's port now, chosen by chance: for those who come from outside of the mesh.
    pub fn endpoint(&self, namespace: &str, service: &str, port: u16) -> Option<SocketAddr> {
        let found = self.endpoints_of(namespace, service);
        let sockets: Vec<SocketAddr> = found
            .iter()
            .filter_map(|endpoint| {
                let like = *endpoint.addresses.first()?;
                endpoint.socket(port, "TCP", like)
            })
            .collect();
        sockets.choose(&mut rand::rng()).copied()
    }

    pub(super) fn endpoints_of(&self, namespace: &str, service: &str) -> Vec<Endpoint> {
        let state = self.state.lock();
        let key = crate::manifest::ObjectKey::new(Kind::Service, namespace, service);
        let Some(Object::Service(service)) = state.store.get(&key).map(Arc::as_ref) else {
            return Vec::new();
        };
        let pods: Vec<Pod> = state.pods.values().map(super::PodEntry::as_pod).collect();
        endpoints(service, pods.iter())
    }
}

fn service_map(services: &[(&Service, Vec<Endpoint>)]) -> ServiceMap {
    let mut map = BTreeMap::new();
    for (service, endpoints) in services {
        for address in cluster_ips(service) {
            for port in service.spec.iter().flat_map(|s| s.ports.iter().flatten()) {
                let Ok(number) = u16::try_from(port.port) else { continue };
                let name = port.protocol.as_deref().unwrap_or("TCP");
                let protocol = if name == "UDP" { Protocol::Udp } else { Protocol::Tcp };
                let targets: Vec<SocketAddr> =
                    endpoints.iter().filter_map(|e| e.socket(number, name, address)).collect();
                map.insert(
                    (SocketAddr::new(address, number), name == "UDP"),
                    services::Service {
                        address: SocketAddr::new(address, number),
                        protocol,
                        endpoints: targets,
                    },
                );
            }
        }
    }
    ServiceMap { services: map.into_values().collect() }
}

fn zone(domain: &str, state: &State, services: &[(&Service, Vec<Endpoint>)], pods: &[Pod]) -> Zone {
    let services: Vec<ServiceRecord> = services
        .iter()
        .map(|(service, endpoints)| ServiceRecord {
            namespace: service.metadata.namespace.clone().unwrap_or_default(),
            name: service.metadata.name.clone().unwrap_or_default(),
            addresses: cluster_ips(service),
            ports: service
                .spec
                .iter()
                .flat_map(|s| s.ports.iter().flatten())
                .filter_map(|port| {
                    Some(PortRecord {
                        name: port.name.clone(),
                        protocol: port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase(),
                        port: u16::try_from(port.port).ok()?,
                    })
                })
                .collect(),
            endpoints: endpoints
                .iter()
                .map(|endpoint| EndpointRecord {
                    addresses: endpoint.addresses.clone(),
                    hostname: endpoint.hostname.clone(),
                    ports: endpoint
                        .ports
                        .iter()
                        .map(|port| PortRecord {
                            name: port.name.clone(),
                            protocol: port.protocol.to_ascii_lowercase(),
                            port: port.target,
                        })
                        .collect(),
                })
                .collect(),
        })
        .collect();
    let pods: Vec<PodRecord> = pods
        .iter()
        .filter(|pod| !endpoints::is_over(pod))
        .map(|pod| PodRecord {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            addresses: endpoints::addresses(pod),
        })
        .collect();
    let namespaces: Vec<String> = state
        .store
        .iter()
        .filter(|(key, _)| key.kind == Kind::Namespace)
        .map(|(key, _)| key.name.clone())
        .collect();
    Zone::new(domain, &services, &pods, &namespaces)
}

/// What the control plane is to know. Secrets and config maps are none of its business.
fn registry(state: &State, pods: &[Pod]) -> Vec<Value> {
    let objects = state
        .store
        .iter()
        .filter(|(key, _)| !matches!(key.kind, Kind::Secret | Kind::ConfigMap | Kind::Pod))
        .map(|(_, object)| object.to_json());
    // A pod is plain data with string keys, which JSON always holds.
    objects.chain(pods.iter().map(|pod| serde_json::to_value(pod).unwrap_or_default())).collect()
}

/// A service's virtual addresses; none for a headless one.
fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else { return Vec::new() };
    match &spec.cluster_ips {
        Some(all) => all.iter().filter_map(|ip| ip.parse().ok()).collect(),
        None => spec.cluster_ip.iter().filter_map(|ip| ip.parse().ok()).collect(),
    }
}
