//! gRPC's health protocol: whoever answers at all is healthy, if the database does.

use std::pin::Pin;
use std::sync::Arc;

use store::Store;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::grpc::health::v1::health_check_response::ServingStatus;
use crate::grpc::health::v1::health_server::Health;
use crate::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse};

#[derive(Debug)]
pub(crate) struct Service(pub Arc<Store>);

/// What can be asked for: all, or one service.
const SERVICES: [&str; 3] =
    ["", "containerd.services.snapshots.v1.Snapshots", "containerd.services.diff.v1.Diff"];

impl Service {
    async fn status(&self, service: &str) -> ServingStatus {
        if !SERVICES.contains(&service) {
            return ServingStatus::ServiceUnknown;
        }
        let store = Arc::clone(&self.0);
        match tokio::task::spawn_blocking(move || store.usage()).await {
            Ok(Ok(_)) => ServingStatus::Serving,
            failed => {
                tracing::warn!(?failed, "the store does not answer");
                ServingStatus::NotServing
            }
        }
    }
}

#[tonic::async_trait]
impl Health for Service {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        match self.status(&request.into_inner().service).await {
            ServingStatus::ServiceUnknown => Err(Status::not_found("there is no such service")),
            status => Ok(Response::new(HealthCheckResponse { status: status.into() })),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let status = self.status(&request.into_inner().service).await;
        // It changes when this process ends, and the stream with it.
        let now = tokio_stream::once(Ok(HealthCheckResponse { status: status.into() }));
        Ok(Response::new(Box::pin(now.chain(tokio_stream::pending()))))
    }
}
