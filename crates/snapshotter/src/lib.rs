//! containerd's proxy snapshotter: its gRPC calls, over the snapshots of the store.
//!
//! Reading order: [`filter`] (what a listing asks for), `mounts` (how a snapshot is mounted), `service` (the calls).
//!
//! Asynchronous only as far as gRPC needs it: whatever touches the disk runs on a thread that may wait.

pub mod filter;
mod mounts;
mod service;

use std::future::Future;
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

/// The types and the service that `proto` describes, in modules as its packages are.
#[allow(missing_docs, unused_qualifications, clippy::all, reason = "made by prost and tonic")]
mod containerd {
    pub mod types {
        tonic::include_proto!("containerd.types");
    }
    pub mod services {
        pub mod snapshots {
            pub mod v1 {
                tonic::include_proto!("containerd.services.snapshots.v1");
            }
        }
    }
}
use containerd::services::snapshots::v1 as proto;

/// Answers containerd on `socket` until `stop` is done; calls that are under way are finished first.
///
/// # Errors
/// Of the socket.
pub async fn serve(
    store: Arc<store::Store>,
    socket: UnixListener,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), tonic::transport::Error> {
    let service = service::Service::new(store);
    let service = proto::snapshots_server::SnapshotsServer::new(service);
    let from = UnixListenerStream::new(socket);
    Server::builder().add_service(service).serve_with_incoming_shutdown(from, stop).await
}
