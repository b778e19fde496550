//! The health service that gRPC probes ask.

use std::pin::Pin;

use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use crate::health_proto::health_check_response::ServingStatus;
use crate::health_proto::health_server::{Health, HealthServer};
use crate::health_proto::{HealthCheckRequest, HealthCheckResponse};

/// A health service for a server whose services all serve from its first moment to its last.
pub fn serving(services: &'static [&'static str]) -> HealthServer<Serving> {
    HealthServer::new(Serving { services })
}

/// Answers `SERVING` for the server as a whole and for the services named.
#[derive(Debug)]
pub struct Serving {
    services: &'static [&'static str],
}

impl Serving {
    fn status(&self, service: &str) -> ServingStatus {
        if service.is_empty() || self.services.contains(&service) {
            ServingStatus::Serving
        } else {
            ServingStatus::ServiceUnknown
        }
    }
}

#[tonic::async_trait]
impl Health for Serving {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        match self.status(&request.get_ref().service) {
            ServingStatus::ServiceUnknown => Err(Status::not_found("no such service here")),
            status => Ok(Response::new(HealthCheckResponse { status: status.into() })),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// The present state, and then nothing until the server ends, which is the only change there is.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let status = self.status(&request.get_ref().service).into();
        let now = tokio_stream::once(Ok(HealthCheckResponse { status }));
        Ok(Response::new(Box::pin(now.chain(tokio_stream::pending()))))
    }
}
