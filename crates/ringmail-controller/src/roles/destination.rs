//! The role destination: where a connection goes, which identity must answer there, and what a source is.

mod endpoints;
mod messages;
mod profile;
mod sources;
mod target;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use ringmail_api::linkerd::destination::destination_server::{Destination, DestinationServer};
use ringmail_api::linkerd::destination::{DestinationProfile, GetDestination, Update};
use ringmail_api::sources::sources_server::{Sources, SourcesServer};
use ringmail_api::sources::{Source, SourceRequest};
use ringmail_registry::{Key, ServicePort};
use tonic::{Request, Response, Status};

pub use endpoints::Endpoints;
pub(crate) use messages::resource;
pub use messages::tls_identity;
pub use profile::Profile;
pub use sources::SourceKind;
pub use target::{Names, Target};

use crate::fault::{Refusal, printable};
use crate::server::MAX_REQUEST;
use crate::stream::{Answers, Streams};

/// The services of the role. Clones share the registry.
#[derive(Clone, Debug)]
pub struct Discovery {
    streams: Streams,
    names: Names,
    networks: Arc<[IpNet]>,
}

impl Discovery {
    /// Answers from the registry of `streams`, for services named under `cluster_domain`. In `networks` every address
    /// is a pod's, a service's or a node's.
    pub fn new(streams: Streams, cluster_domain: &str, networks: &[IpNet]) -> Self {
        Self { streams, names: Names::new(cluster_domain), networks: networks.into() }
    }

    /// As Linkerd's destination service.
    pub fn into_server(self) -> DestinationServer<Self> {
        DestinationServer::new(self).max_decoding_message_size(MAX_REQUEST)
    }

    /// As our service about sources.
    pub fn into_sources_server(self) -> SourcesServer<Self> {
        SourcesServer::new(self).max_decoding_message_size(MAX_REQUEST)
    }

    async fn endpoints(&self, path: &str) -> Result<(ServicePort, Endpoints), Refusal> {
        self.streams.synced(|| printable(path)).await?;
        let port = match self.names.read(path)? {
            Target::Address(address) => return Err(Refusal::Address(address.to_string())),
            Target::Service(port) => port,
        };
        let index = self.streams.registry().read();
        match index.service(&port.service) {
            Some(service) if service.has_endpoints() => Ok((port.clone(), Endpoints::new(port))),
            // Proxies retry what is not found: the service may be made in a moment.
            _ => Err(Refusal::NoService(self.names.full(&port.service))),
        }
    }

    async fn profile(&self, path: &str) -> Result<(Key, Profile), Refusal> {
        self.streams.synced(|| printable(path)).await?;
        let target = self.names.read(path)?;
        let key = match &target {
            Target::Address(address) => Key::Ip(address.ip()),
            Target::Service(port) => Key::Service(port.service.clone()),
        };
        if let Target::Address(address) = &target {
            self.await_pod(address.ip()).await;
        }
        Ok((key, Profile::new(target, self.names.clone())))
    }

    /// Gives the registry a moment to hear of a new pod: `no pod` would mean plaintext to it. An address outside the
    /// cluster's networks, or a node's, is nothing to wait for.
    async fn await_pod(&self, ip: IpAddr) {
        if !self.networks.iter().any(|network| network.contains(&ip)) {
            return;
        }
        let known = self.streams.registry().wait_for(Key::Ip(ip), |index| {
            let known =
                index.is_node(ip) || index.pod_by_ip(ip).is_some() || index.service_by_ip(ip).is_some();
            known.then_some(())
        });
        // What is still unknown then is answered as unknown.
        let _ = tokio::time::timeout(NEW_POD, known).await;
    }
}

#[tonic::async_trait]
impl Destination for Discovery {
    type GetStream = Answers<Update>;
    type GetProfileStream = Answers<DestinationProfile>;

    async fn get(&self, request: Request<GetDestination>) -> Result<Response<Self::GetStream>, Status> {
        const RPC: &str = "Get";
        log(RPC, &request);
        let path = &request.get_ref().path;
        let (port, view) = self.endpoints(path).await.map_err(|refusal| self.streams.refuse(RPC, refusal))?;
        Ok(Response::new(self.streams.follow(RPC, Key::Endpoints(port), view)?))
    }

    async fn get_profile(
        &self,
        request: Request<GetDestination>,
    ) -> Result<Response<Self::GetProfileStream>, Status> {
        const RPC: &str = "GetProfile";
        log(RPC, &request);
        let path = &request.get_ref().path;
        let (key, view) = self.profile(path).await.map_err(|refusal| self.streams.refuse(RPC, refusal))?;
        Ok(Response::new(self.streams.follow(RPC, key, view)?))
    }
}

#[tonic::async_trait]
impl Sources for Discovery {
    type WatchStream = Answers<Source>;

    async fn watch(&self, request: Request<SourceRequest>) -> Result<Response<Self::WatchStream>, Status> {
        const RPC: &str = "Sources.Watch";
        let request = request.get_ref();
        let view = SourceKind::new(&request.ip, request.port, self.networks.clone());
        let view = view.map_err(|refusal| self.streams.refuse(RPC, refusal))?;
        Ok(Response::new(self.streams.follow(RPC, Key::Ip(view.ip()), view)?))
    }
}

/// Who asked for what: the context is the word of the asker and serves nothing but this line.
fn log(rpc: &'static str, request: &Request<GetDestination>) {
    let GetDestination { path, context_token, .. } = request.get_ref();
    let peer = request.remote_addr();
    tracing::debug!(rpc, ?peer, path = %printable(path), context = %printable(context_token.trim()), "asked");
}

/// How long an address of the cluster's networks may take to become a known pod's.
const NEW_POD: Duration = Duration::from_millis(500);
