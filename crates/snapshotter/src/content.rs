//! containerd's content store: blobs are read where they lie or over gRPC, and written over gRPC.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use store::manifest::Descriptor;
use store::source::SourceError;
use store::{BlobSource, Digest};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::containerd::services::content::v1 as proto;
use crate::containerd::services::leases::v1::CreateRequest;
use crate::containerd::services::leases::v1::leases_client::LeasesClient;
use proto::content_client::ContentClient;
use proto::{AbortRequest, ReadContentRequest, UpdateRequest, WriteAction, WriteContentRequest};

/// Whose content it is, in the header of each call.
const NAMESPACE: &str = "containerd-namespace";
/// What keeps content that nothing refers to yet, likewise.
const LEASE: &str = "containerd-lease";
/// How long a blob that was made is kept for whoever asked for it.
const KEPT: Duration = Duration::from_secs(3600);
/// Bytes of one answer, with room for what is around them.
const MESSAGE: usize = 16 << 20;

/// Where containerd's content is.
#[derive(Debug, Clone)]
pub struct Content {
    /// The directory of the content store; tried first.
    pub dir: PathBuf,
    /// containerd itself.
    pub channel: Channel,
}

/// The content store, for one call of containerd's.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    content: Content,
    headers: MetadataMap,
}

impl Content {
    /// The content of whoever has the snapshot with this name. containerd passes on neither namespace nor lease to a
    /// differ; but it begins the names of snapshots with the namespace.
    pub(crate) fn of(&self, snapshot: &str) -> Result<Caller, Status> {
        let namespace = snapshot.split_once('/').map_or("", |(namespace, _)| namespace);
        let value = namespace.parse().map_err(|_| Status::internal("no namespace"))?;
        let mut headers = MetadataMap::new();
        headers.insert(NAMESPACE, value);
        Ok(Caller { content: self.clone(), headers })
    }
}

impl Caller {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.headers.clone();
        request
    }

    fn client(&self) -> ContentClient<Channel> {
        ContentClient::new(self.content.channel.clone()).max_decoding_message_size(MESSAGE)
    }

    /// A source of blobs; to be read from threads that may wait.
    pub fn source(self) -> Source {
        Source { caller: self, runtime: Handle::current() }
    }

    /// The same, with a lease that ends by itself.
    async fn leased(&self) -> Result<Self, Status> {
        let end = prost_types::Timestamp::from(SystemTime::now() + KEPT);
        let labels = [("containerd.io/gc.expire".to_owned(), end.to_string())].into();
        let create = CreateRequest { id: format!("strata-{}", unique()), labels };
        let mut leases = LeasesClient::new(self.content.channel.clone());
        let lease = leases.create(self.request(create)).await?.into_inner().lease;
        let id = lease.map_or_else(String::new, |lease| lease.id);
        let mut leased = self.clone();
        leased.headers.insert(LEASE, id.parse().map_err(|_| Status::internal("no lease"))?);
        Ok(leased)
    }

    /// Writes a blob of which `make` gives the content in parts, and gives its descriptor's digest and size. `labels` are
    /// what the blob is to have, as known when its content is.
    pub async fn write(
        &self,
        reference: String,
        make: impl FnOnce(&mut Parts) -> Result<Made, Status> + Send + 'static,
    ) -> Result<(Digest, u64), Status> {
        let leased = self.leased().await?;
        let (to, from) = mpsc::channel(4);
        let begun = reference.clone();
        let making = tokio::task::spawn_blocking(move || {
            let mut parts = Parts { to, reference: begun, at: 0 };
            let made = make(&mut parts)?;
            parts.commit(&made)?;
            Ok::<_, Status>(made)
        });
        let wrote = leased.send(ReceiverStream::new(from)).await;
        let made = making.await.map_err(|e| Status::internal(format!("the diff is lost: {e}")))?;
        match (made, wrote) {
            (Ok(made), Ok(())) => Ok((made.digest, made.size)),
            (Ok(made), Err(e)) if e.code() == Code::AlreadyExists => {
                self.label(&made).await?;
                Ok((made.digest, made.size))
            }
            // What is written first fails first; who makes it then finds nobody to take it.
            (made, wrote) => {
                let abort = self.request(AbortRequest { r#ref: reference });
                if let Err(error) = self.client().abort(abort).await
                    && error.code() != Code::NotFound
                {
                    tracing::warn!(%error, "containerd keeps an unfinished blob until it expires");
                }
                Err(wrote.err().or(made.err()).unwrap_or_else(|| Status::internal("no blob")))
            }
        }
    }

    async fn send(&self, parts: ReceiverStream<WriteContentRequest>) -> Result<(), Status> {
        let mut answers = self.client().write(self.request(parts)).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            if answer.action == i32::from(WriteAction::Commit) {
                return Ok(());
            }
        }
        Err(Status::aborted("containerd took no whole blob"))
    }

    /// Gives a blob that was there before its labels.
    async fn label(&self, made: &Made) -> Result<(), Status> {
        let paths = made.labels.keys().map(|name| format!("labels.{name}")).collect();
        let info = proto::Info {
            digest: made.digest.to_string(),
            labels: made.labels.clone(),
            ..proto::Info::default()
        };
        let mask = Some(prost_types::FieldMask { paths });
        let update = UpdateRequest { info: Some(info), update_mask: mask };
        self.client().update(self.request(update)).await?;
        Ok(())
    }
}

/// What no other blob or lease is called.
pub(crate) fn unique() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    format!("{}-{}", std::process::id(), since.map_or(0, |since| since.as_nanos()))
}

/// A blob that was made.
#[derive(Debug)]
pub(crate) struct Made {
    pub digest: Digest,
    pub size: u64,
    pub labels: std::collections::HashMap<String, String>,
}

/// Takes a blob in parts.
#[derive(Debug)]
pub(crate) struct Parts {
    to: mpsc::Sender<WriteContentRequest>,
    reference: String,
    at: u64,
}

impl Parts {
    fn part(&mut self, request: WriteContentRequest) -> io::Result<()> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        let offset = i64::try_from(self.at).map_err(io::Error::other)?;
        self.at += request.data.len() as u64;
        let reference = self.reference.clone();
        self.to
            .blocking_send(WriteContentRequest { r#ref: reference, offset, ..request })
            .map_err(gone)
    }

    fn commit(&mut self, made: &Made) -> Result<(), Status> {
        let commit = WriteContentRequest {
            action: WriteAction::Commit.into(),
            total: i64::try_from(made.size).unwrap_or(i64::MAX),
            expected: made.digest.to_string(),
            labels: made.labels.clone(),
            ..WriteContentRequest::default()
        };
        self.part(commit).map_err(|e| Status::aborted(e.to_string()))
    }
}

impl io::Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Below what a message may have.
        let bytes = &bytes[..bytes.len().min(1 << 20)];
        if !bytes.is_empty() {
            self.part(WriteContentRequest {
                action: WriteAction::Write.into(),
                data: bytes.to_vec(),
                ..WriteContentRequest::default()
            })?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Blobs of containerd's. The store verifies what comes.
#[derive(Debug)]
pub(crate) struct Source {
    caller: Caller,
    runtime: Handle,
}

impl BlobSource for Source {
    fn manifest(&self) -> Result<(Vec<u8>, String), SourceError> {
        Err("containerd asks for layers alone".into())
    }

    fn blob(&self, blob: &Descriptor, from: u64) -> Result<Box<dyn Read + Send>, SourceError> {
        let path = self.caller.content.dir.join("blobs/sha256").join(blob.digest.hex());
        match File::open(&path) {
            Ok(mut file) => {
                file.seek(SeekFrom::Start(from))?;
                return Ok(Box::new(file));
            }
            Err(error) => tracing::debug!(?path, %error, "the blob is read over gRPC"),
        }
        let (to, parts) = mpsc::channel(4);
        let caller = self.caller.clone();
        let wanted = ReadContentRequest {
            digest: blob.digest.to_string(),
            offset: i64::try_from(from)?,
            size: 0,
        };
        self.runtime.spawn(async move {
            let read = async {
                let request = caller.request(wanted);
                let mut answers = caller.client().read(request).await?.into_inner();
                while let Some(answer) = answers.message().await? {
                    if to.send(Ok(answer.data)).await.is_err() {
                        break;
                    }
                }
                Ok::<_, Status>(())
            };
            if let Err(status) = read.await {
                let why = format!("containerd does not give the blob: {}", status.message());
                // Nobody may want it any more.
                drop(to.send(Err(io::Error::other(why))).await);
            }
        });
        Ok(Box::new(Answers { parts, part: Vec::new(), at: 0 }))
    }

    fn is_local(&self) -> bool {
        true
    }
}

struct Answers {
    parts: mpsc::Receiver<io::Result<Vec<u8>>>,
    part: Vec<u8>,
    at: usize,
}

impl Read for Answers {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.part.len() {
            let Some(part) = self.parts.blocking_recv() else { return Ok(0) };
            (self.part, self.at) = (part?, 0);
        }
        let count = into.len().min(self.part.len() - self.at);
        into[..count].copy_from_slice(&self.part[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
