//! The server role: collects from proxies, answers the command line.

mod matching;
mod nearest;
mod observe;
mod plan;

use std::sync::Arc;
use std::time::Duration;

use ringmail_api::viz::viz_server::{Viz, VizServer as VizService};
use ringmail_api::viz::{EdgesRequest, EdgesResponse, TapItem, TapRequest};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status};

use self::plan::Plan;
use crate::collect::{Collector, now_ms};
use crate::edges::{CONTROL_PORT, Edges, Query, edges};
use crate::join::join;
use crate::names::Names;
use crate::resource::Kind;
use crate::store::{KEEP_MS, Store};

/// Which mesh is collected from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The namespace of the control plane, whose own traffic is not listed unless it is asked for.
    pub control_plane_namespace: String,
    /// The proxies' control port: tap and flows.
    pub control_port: u16,
    /// How long a connection of which one end has spoken waits for the other's word before it counts as one witness.
    pub settle: Duration,
}

impl Settings {
    /// The usual settings for a mesh whose control plane lives in this namespace.
    pub fn new(control_plane_namespace: &str) -> Self {
        Self {
            control_plane_namespace: control_plane_namespace.to_owned(),
            control_port: CONTROL_PORT,
            settle: Duration::from_secs(3),
        }
    }
}

/// The server. Its API has no authentication of its own: it is to listen on its pod's loopback address only.
#[derive(Clone)]
pub struct VizServer {
    names: Arc<dyn Names>,
    store: Arc<Store>,
    settings: Settings,
    taps: Arc<Semaphore>,
}

/// The server could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener or the protocol failed.
    #[error("RM1708: viz cannot serve its API: {0}")]
    Transport(#[from] tonic::transport::Error),
}

impl VizServer {
    /// A server that has not collected anything yet.
    pub fn new(names: impl Names, settings: Settings) -> Self {
        Self {
            names: Arc::new(names),
            store: Arc::default(),
            settings,
            taps: Arc::new(Semaphore::new(MAX_TAPS)),
        }
    }

    /// Collects and answers until `shutdown` ends.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        let collector = Collector {
            names: self.names.clone(),
            store: self.store.clone(),
            port: self.settings.control_port,
        };
        let server = tonic::transport::Server::builder()
            .add_service(VizService::new(self))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown);
        tokio::select! {
            result = server => Ok(result?),
            () = collector.run() => Ok(()),
        }
    }

    fn edges_now(&self, query: &Query) -> Edges {
        let now = now_ms();
        let settle = u64::try_from(self.settings.settle.as_millis()).unwrap_or(u64::MAX);
        let connections = join(&self.store.view(now), &self.store.witnesses(), now, settle);
        edges(&connections, query, now)
    }
}

#[tonic::async_trait]
impl Viz for VizServer {
    type TapStream = ReceiverStream<Result<TapItem, Status>>;

    async fn edges(&self, request: Request<EdgesRequest>) -> Result<Response<EdgesResponse>, Status> {
        let request = request.into_inner();
        let kind = Kind::parse(&request.kind).filter(|kind| kind.has_edges()).ok_or_else(|| {
            Status::invalid_argument(format!("RM1701: Resource type is not supported: {}", request.kind))
        })?;
        let query = Query {
            kind,
            namespace: (!request.namespace.is_empty()).then_some(request.namespace),
            window_ms: if request.window_ms == 0 { WINDOW_MS } else { request.window_ms.min(KEEP_MS) },
            mesh_traffic: request.mesh_traffic,
            control_plane_namespace: self.settings.control_plane_namespace.clone(),
        };
        // A row that stands on one end's first word alone, or a proxy that is just being asked, is worth a moment.
        let deadline = tokio::time::Instant::now() + self.settings.settle + LOOK_AGAIN;
        let rows = loop {
            let edges = self.edges_now(&query);
            let settled = !edges.unsettled && !self.store.is_connecting(now_ms());
            if settled || tokio::time::Instant::now() >= deadline {
                break edges.rows;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        let now = now_ms();
        let mut unobserved = self.store.unobserved(now);
        unobserved.extend(self.store.forgotten(now.saturating_sub(query.window_ms)));
        Ok(Response::new(EdgesResponse { edges: rows, unobserved }))
    }

    async fn tap(&self, request: Request<TapRequest>) -> Result<Response<Self::TapStream>, Status> {
        let permit = self.taps.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("RM1706: {MAX_TAPS} taps run already; end one of them first"))
        })?;
        let plan =
            Plan::of(request.into_inner()).map_err(|error| Status::invalid_argument(error.to_string()))?;
        plan.check(self.names.as_ref()).map_err(|error| Status::not_found(error.to_string()))?;
        let (items, stream) = tokio::sync::mpsc::channel(TAP_BUFFER);
        let tap = observe::Tap {
            plan,
            names: self.names.clone(),
            store: self.store.clone(),
            port: self.settings.control_port,
            items,
        };
        tokio::spawn(async move {
            tap.run().await;
            drop(permit);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// How far back closed connections count where the request does not say.
const WINDOW_MS: u64 = 60_000;
const LOOK_AGAIN: Duration = Duration::from_millis(200);
const MAX_TAPS: usize = 16;
const TAP_BUFFER: usize = 1_024;
