//! `ringmail.flows.v1.Flows/Watch`.

use std::pin::Pin;

use futures::Stream;
use ringmail_api::flows::{Flow, FlowBatch, ProxyInfo, WatchFlowsRequest, flows_server};
use ringmail_identity::Identity;
use tonic::{Request, Response, Status};

use crate::flows::{Batch, Flows};

/// Tells the flows of this proxy.
pub(super) struct FlowsService {
    flows: Flows,
    local: Identity,
}

impl FlowsService {
    pub(super) fn new(flows: Flows, local: Identity) -> Self {
        Self { flows, local }
    }
}

#[tonic::async_trait]
impl flows_server::Flows for FlowsService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<FlowBatch, Status>> + Send>>;

    async fn watch(&self, _: Request<WatchFlowsRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let proxy = ProxyInfo {
            identity: self.local.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            run: self.flows.run().to_owned(),
        };
        let first = FlowBatch { flows: Vec::new(), dropped: 0, proxy: Some(proxy) };
        // Polled only when the reader takes more: a slow one lags behind in its subscription, not in memory here.
        let rest = futures::stream::unfold(self.flows.subscribe(), |mut subscription| async {
            let batch = subscription.next().await;
            Some((Ok(to_wire(&batch)), subscription))
        });
        let stream = futures::StreamExt::chain(futures::stream::iter([Ok(first)]), rest);
        Ok(Response::new(Box::pin(stream)))
    }
}

fn to_wire(batch: &Batch) -> FlowBatch {
    FlowBatch {
        flows: batch.flows.iter().map(|flow| Flow::from(&**flow)).collect(),
        dropped: batch.dropped,
        proxy: None,
    }
}
