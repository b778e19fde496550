//! `Destination.GetProfile`: what an address or a service's name is.

use std::net::SocketAddr;

use ringmail_api::linkerd::destination::DestinationProfile;
use ringmail_registry::{Index, Service};

use super::messages::{resource, weighted_addr};
use super::target::{Names, Target};
use crate::fault::Refusal;
use crate::stream::View;

/// What one stream of profiles has told.
#[derive(Debug)]
pub struct Profile {
    target: Target,
    names: Names,
    told: Option<DestinationProfile>,
}

impl Profile {
    /// Nothing told yet.
    pub fn new(target: Target, names: Names) -> Self {
        Self { target, names, told: None }
    }

    fn now(&self, index: &Index) -> Option<DestinationProfile> {
        match &self.target {
            Target::Service(port) => self.service(index, &*index.service(&port.service)?, port.port),
            Target::Address(address) => match index.service_by_ip(address.ip()) {
                Some(service) => self.service(index, &service, address.port()),
                None => pod(index, *address),
            },
        }
    }

    /// A service's profile. One whose endpoints the registry cannot know (no selector) is like no service: the
    /// proxy then leaves the choice to the cluster. A port that it does not have gets an empty profile.
    fn service(&self, index: &Index, service: &Service, port: u16) -> Option<DestinationProfile> {
        if !service.has_endpoints() {
            return None;
        }
        if service.port(port).is_none() {
            return Some(DestinationProfile::default());
        }
        Some(DestinationProfile {
            fully_qualified_name: self.names.full(&service.name),
            opaque_protocol: index.opaque_service_port(service, port),
            parent_ref: Some(resource("Service", &service.name, port)),
            ..DestinationProfile::default()
        })
    }
}

impl View for Profile {
    type Message = DestinationProfile;

    fn update(&mut self, index: &Index, _synced: bool) -> Result<Vec<DestinationProfile>, Refusal> {
        match self.now(index) {
            Some(now) if self.told.as_ref() == Some(&now) => Ok(Vec::new()),
            Some(now) => {
                self.told = Some(now.clone());
                Ok(vec![now])
            }
            // Nobody's yet. The stream stays, so that its proxy hears at once when a meshed pod takes the address.
            None if self.told.is_none() => match &self.target {
                Target::Address(_) => Ok(vec![self.told.insert(DestinationProfile::default()).clone()]),
                Target::Service(port) => {
                    Err(Refusal::Unknown(format!("{}:{}", self.names.full(&port.service), port.port)))
                }
            },
            // A pod or a service went and nothing took its address: whoever answers there next has to prove the
            // old identity until it is known who that is. Prefers a refused connection over a plaintext one.
            None => Ok(Vec::new()),
        }
    }
}

fn pod(index: &Index, address: SocketAddr) -> Option<DestinationProfile> {
    let pod = index.pod_by_ip(address.ip())?;
    let endpoint = index.endpoint(&pod, address);
    let mut addr = weighted_addr(&endpoint);
    addr.metric_labels.insert("namespace".to_owned(), pod.name.namespace.to_string());
    Some(DestinationProfile {
        opaque_protocol: endpoint.opaque,
        endpoint: Some(addr),
        ..DestinationProfile::default()
    })
}
