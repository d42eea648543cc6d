//! containerd's proxy snapshotter and differ: their gRPC calls, over the snapshots and layers of the store.
//!
//! Reading order: [`filter`] (what a listing asks for), `labels` and `mounts` (how a snapshot is mounted), `service`
//! (snapshots), [`content`] and `diff` (layers are unpacked and made), [`metrics`] with `unions`, `health`.
//!
//! Asynchronous only as far as gRPC needs it: whatever touches the disk runs on a thread that may wait.

pub mod content;
mod diff;
pub mod filter;
mod health;
mod labels;
pub mod metrics;
mod mounts;
#[cfg(test)]
mod rebase;
mod service;
mod unions;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Endpoint, Error, Server};

use content::Content;
use metrics::Metrics;

/// The types and the services that `proto` describes, in modules as its packages are.
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
        pub mod diff {
            pub mod v1 {
                tonic::include_proto!("containerd.services.diff.v1");
            }
        }
        pub mod leases {
            pub mod v1 {
                tonic::include_proto!("containerd.services.leases.v1");
            }
        }
        pub mod content {
            pub mod v1 {
                tonic::include_proto!("containerd.services.content.v1");
            }
        }
    }
}
#[allow(missing_docs, unused_qualifications, clippy::all, reason = "made by prost and tonic")]
mod grpc {
    pub mod health {
        pub mod v1 {
            tonic::include_proto!("grpc.health.v1");
        }
    }
}
use containerd::services::snapshots::v1 as proto;

/// The containerd that is served: where it is called, and where its blobs lie.
#[derive(Debug, Clone)]
pub struct Containerd {
    /// Its socket.
    pub address: PathBuf,
    /// The directory of its content store. Where a blob is not there, it is asked for over the socket.
    pub content: PathBuf,
}

/// Answers containerd on `socket` until `stop` is done; calls that are under way are finished first.
///
/// # Errors
/// Of the sockets.
pub async fn serve(
    store: Arc<store::Store>,
    engine: &Containerd,
    metrics: Arc<Metrics>,
    socket: UnixListener,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    let channel = endpoint(&engine.address)?.connect_lazy();
    let content = Content { dir: engine.content.clone(), channel };
    let snapshots = service::Service::new(Arc::clone(&store), Arc::clone(&metrics));
    snapshots.sweep();
    snapshots.recall();
    let diff = diff::Service { store: Arc::clone(&store), content, metrics };
    let from = UnixListenerStream::new(socket);
    Server::builder()
        .add_service(proto::snapshots_server::SnapshotsServer::new(snapshots))
        .add_service(containerd::services::diff::v1::diff_server::DiffServer::new(diff))
        .add_service(grpc::health::v1::health_server::HealthServer::new(health::Service(store)))
        .serve_with_incoming_shutdown(from, stop)
        .await
}

fn endpoint(socket: &Path) -> Result<Endpoint, Error> {
    Endpoint::from_shared(format!("unix://{}", socket.display()))
}
