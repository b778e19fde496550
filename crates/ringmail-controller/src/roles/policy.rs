//! The role policy: who may call a pod's port, and how a call to a service is made.

mod default_policy;
mod inbound;
mod outbound;
mod workload;

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use ringmail_api::linkerd::inbound::inbound_server_policies_server::{
    InboundServerPolicies, InboundServerPoliciesServer,
};
use ringmail_api::linkerd::inbound::{PortSpec, Server};
use ringmail_api::linkerd::outbound::outbound_policies_server::{OutboundPolicies, OutboundPoliciesServer};
use ringmail_api::linkerd::outbound::{OutboundPolicy, TrafficSpec};
use ringmail_registry::{Key, Pod};
use tonic::{Request, Response, Status};

pub use default_policy::{DefaultPolicy, PolicyError};
pub use inbound::{Inbound, InboundSettings};
pub use outbound::{Outbound, Traffic};
pub use workload::read_workload;

use crate::fault::Refusal;
use crate::roles::destination::Names;
use crate::server::MAX_REQUEST;
use crate::stream::{Answers, Streams, View};

/// The services of the role. Clones share the registry.
#[derive(Clone, Debug)]
pub struct Policies {
    streams: Streams,
    inbound: Arc<InboundSettings>,
    names: Names,
    networks: Arc<[IpNet]>,
}

impl Policies {
    /// Answers from the registry of `streams`, for services named under `cluster_domain`.
    pub fn new(streams: Streams, inbound: InboundSettings, cluster_domain: &str) -> Self {
        let networks = inbound.cluster_networks.as_slice().into();
        Self { streams, inbound: Arc::new(inbound), names: Names::new(cluster_domain), networks }
    }

    /// As Linkerd's inbound policy service.
    pub fn into_inbound_server(self) -> InboundServerPoliciesServer<Self> {
        InboundServerPoliciesServer::new(self).max_decoding_message_size(MAX_REQUEST)
    }

    /// As Linkerd's outbound policy service.
    pub fn into_outbound_server(self) -> OutboundPoliciesServer<Self> {
        OutboundPoliciesServer::new(self).max_decoding_message_size(MAX_REQUEST)
    }

    async fn inbound(&self, spec: &PortSpec) -> Result<(Key, Inbound), Refusal> {
        let pod = read_workload(&spec.workload)?;
        let port = u16::try_from(spec.port).ok().filter(|port| *port != 0).ok_or(Refusal::Port(spec.port))?;
        self.streams.synced(|| format!("the policy of pod `{pod}`, port {port}")).await?;
        let key = Key::Pod(pod.clone());
        // A proxy may ask a moment before the registry hears of its pod; unknown is answered after that.
        let known = self.streams.registry().wait_for(key.clone(), |index| index.pod(&pod));
        let _: Result<Arc<Pod>, _> = tokio::time::timeout(NEW_POD, known).await;
        Ok((key, Inbound::new(pod, port, self.inbound.clone())))
    }

    async fn outbound(&self, spec: &TrafficSpec) -> Result<(Key, Outbound), Refusal> {
        let traffic = Traffic::read(spec, &self.names)?;
        self.streams.synced(|| traffic.to_string()).await?;
        Ok((traffic.key(), Outbound::new(traffic, self.names.clone(), self.networks.clone())))
    }

    /// The first message of a view, as the answer to a question without a stream.
    fn once<V: View>(&self, rpc: &'static str, mut view: V) -> Result<Response<V::Message>, Status> {
        let registry = self.streams.registry();
        let first =
            view.update(&registry.read(), registry.is_synced()).map(|messages| messages.into_iter().next());
        let first = first.map_err(|refusal| self.streams.refuse(rpc, refusal))?;
        first.map(Response::new).ok_or_else(|| Status::internal("the first answer of a view is empty"))
    }
}

#[tonic::async_trait]
impl InboundServerPolicies for Policies {
    type WatchPortStream = Answers<Server>;

    async fn get_port(&self, request: Request<PortSpec>) -> Result<Response<Server>, Status> {
        const RPC: &str = "GetPort";
        let found = self.inbound(request.get_ref()).await;
        let (_, view) = found.map_err(|refusal| self.streams.refuse(RPC, refusal))?;
        self.once(RPC, view)
    }

    async fn watch_port(
        &self,
        request: Request<PortSpec>,
    ) -> Result<Response<Self::WatchPortStream>, Status> {
        const RPC: &str = "WatchPort";
        let found = self.inbound(request.get_ref()).await;
        let (key, view) = found.map_err(|refusal| self.streams.refuse(RPC, refusal))?;
        Ok(Response::new(self.streams.follow(RPC, key, view)?))
    }
}

#[tonic::async_trait]
impl OutboundPolicies for Policies {
    type WatchStream = Answers<OutboundPolicy>;

    async fn get(&self, request: Request<TrafficSpec>) -> Result<Response<OutboundPolicy>, Status> {
        const RPC: &str = "OutboundPolicies.Get";
        let found = self.outbound(request.get_ref()).await;
        let (_, view) = found.map_err(|refusal| self.streams.refuse(RPC, refusal))?;
        self.once(RPC, view)
    }

    async fn watch(&self, request: Request<TrafficSpec>) -> Result<Response<Self::WatchStream>, Status> {
        const RPC: &str = "OutboundPolicies.Watch";
        let found = self.outbound(request.get_ref()).await;
        let (key, view) = found.map_err(|refusal| self.streams.refuse(RPC, refusal))?;
        Ok(Response::new(self.streams.follow(RPC, key, view)?))
    }
}

/// How long a pod may take to appear in the registry, from its proxy's first question.
const NEW_POD: Duration = Duration::from_secs(2);
