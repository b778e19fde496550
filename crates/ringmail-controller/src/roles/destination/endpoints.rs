//! `Destination.Get`: the endpoints of a port of a service, as a full set first and then as differences.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use ringmail_api::linkerd::destination::{AddrSet, NoEndpoints, Update, WeightedAddrSet, update};
use ringmail_registry::{Endpoint, Index, ServicePort};

use super::messages::weighted_addr;
use crate::fault::Refusal;
use crate::stream::View;

/// What one stream of endpoints has told.
#[derive(Debug)]
pub struct Endpoints {
    port: ServicePort,
    told: Option<Told>,
}

#[derive(Debug, PartialEq, Eq)]
enum Told {
    None { exists: bool },
    Some(BTreeMap<SocketAddr, Endpoint>),
}

impl Endpoints {
    /// Nothing told yet.
    pub fn new(port: ServicePort) -> Self {
        Self { port, told: None }
    }

    fn now(&self, index: &Index) -> Told {
        let endpoints = index.endpoints(&self.port).unwrap_or_default();
        if endpoints.is_empty() {
            return Told::None { exists: index.service(&self.port.service).is_some() };
        }
        Told::Some(endpoints.into_iter().map(|endpoint| (endpoint.address, endpoint)).collect())
    }

    fn add<'a>(&self, endpoints: impl Iterator<Item = &'a Endpoint>) -> Vec<Update> {
        let service = &self.port.service;
        let labels = HashMap::from([
            ("namespace".to_owned(), service.namespace.to_string()),
            ("service".to_owned(), service.name.to_string()),
        ]);
        let addrs: Vec<_> = endpoints.map(weighted_addr).collect();
        let set = |addrs: &[_]| WeightedAddrSet { addrs: addrs.to_vec(), metric_labels: labels.clone() };
        addrs.chunks(CHUNK).map(|addrs| update(update::Update::Add(set(addrs)))).collect()
    }
}

impl View for Endpoints {
    type Message = Update;

    fn update(&mut self, index: &Index, _synced: bool) -> Result<Vec<Update>, Refusal> {
        let now = self.now(index);
        let messages = match (&self.told, &now) {
            (Some(told), now) if told == now => Vec::new(),
            (_, Told::None { exists }) => {
                vec![update(update::Update::NoEndpoints(NoEndpoints { exists: *exists }))]
            }
            (Some(Told::Some(told)), Told::Some(now)) => {
                // New ones first: a replacement of all endpoints leaves no moment without any. An address whose
                // pod changed is told anew, which replaces its identity.
                let new = now.values().filter(|endpoint| told.get(&endpoint.address) != Some(*endpoint));
                let mut messages = self.add(new);
                let gone: Vec<_> = told.keys().filter(|address| !now.contains_key(address)).collect();
                if !gone.is_empty() {
                    let addrs = gone.into_iter().map(|address| (*address).into()).collect();
                    messages.push(update(update::Update::Remove(AddrSet { addrs })));
                }
                messages
            }
            (None | Some(Told::None { .. }), Told::Some(now)) => self.add(now.values()),
        };
        self.told = Some(now);
        Ok(messages)
    }
}

fn update(update: update::Update) -> Update {
    Update { update: Some(update) }
}

/// Endpoints in one message: clients refuse messages above 4 MiB, and one endpoint takes less than 2 KiB.
const CHUNK: usize = 1000;
