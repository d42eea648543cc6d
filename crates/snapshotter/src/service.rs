//! The calls of containerd's snapshots service.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prost_types::Timestamp;
use store::snapshots::{Fault, Kind, Snapshot, Stack};
use store::{Digest, Error, Store};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::containerd::types::Mount;
use crate::filter::Filters;
use crate::labels::{PARENT_CHAIN, REFERENCE, Wanted};
use crate::metrics::{Metrics, count};
use crate::mounts;
use crate::proto::snapshots_server::Snapshots;
use crate::proto::{
    CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, ListSnapshotsResponse,
    MountsRequest, MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse,
    RemoveSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest,
    UpdateSnapshotResponse, UsageRequest, UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
};

type Answer<T> = Result<Response<T>, Status>;

/// Snapshots in one message of a listing.
const PAGE: usize = 100;

/// What a label and its value may have together, in bytes.
const LABEL: usize = 4096;

#[derive(Debug)]
pub(crate) struct Service {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    /// Whether something waits to be swept, so that many removals are followed by one.
    sweep: Arc<AtomicBool>,
}

impl Service {
    pub fn new(store: Arc<Store>, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics, sweep: Arc::default() }
    }

    /// Clears away layers that nothing has any more, and files that were removed: nobody waits for that.
    pub fn sweep(&self) {
        if self.sweep.swap(true, Ordering::SeqCst) {
            return;
        }
        let (store, sweep) = (Arc::clone(&self.store), Arc::clone(&self.sweep));
        tokio::spawn(async move {
            // What is removed together is swept together.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            sweep.store(false, Ordering::SeqCst);
            let swept = tokio::task::spawn_blocking(move || {
                store.collect_layers()?;
                store.empty_trash()
            });
            match swept.await {
                Ok(Ok(())) => {}
                failed => {
                    tracing::warn!(
                        ?failed,
                        "what was removed stays on the disk until the next removal"
                    );
                }
            }
        });
    }

    /// Takes the counters of unions that were there before the snapshotter into its own.
    pub fn recall(&self) {
        let (store, metrics) = (Arc::clone(&self.store), Arc::clone(&self.metrics));
        tokio::task::spawn_blocking(move || {
            let found = store.snapshots().unwrap_or_else(|error| {
                tracing::warn!(%error, "unions that are there are not counted");
                Vec::new()
            });
            let active = found.into_iter().filter(|snapshot| snapshot.kind == Kind::Active);
            for snapshot in active {
                let union = Wanted::of(&snapshot.labels).is_ok_and(|wanted| wanted.needs_union());
                if union && let Ok(stack) = store.snapshot_stack(&snapshot.name) {
                    metrics.unions.watch(mounts::counters(&stack));
                }
            }
        });
    }

    /// Does what ends a snapshot's being written to, and keeps what its union has counted.
    async fn end(
        &self,
        key: String,
        act: impl FnOnce(&Store) -> store::Result<()> + Send + 'static,
    ) -> Result<(), Status> {
        let metrics = Arc::clone(&self.metrics);
        self.with(move |store| {
            let stack =
                if metrics.unions.is_empty() { None } else { store.snapshot_stack(&key).ok() };
            let counters = stack.map(|stack| mounts::counters(&stack));
            counters.iter().for_each(|counters| metrics.unions.look(counters));
            act(store)?;
            counters.iter().for_each(|counters| metrics.unions.forget(counters));
            Ok(())
        })
        .await
    }

    /// Runs what waits for the disk where it holds up nobody.
    async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Store) -> store::Result<T> + Send + 'static,
    ) -> Result<T, Status> {
        let store = Arc::clone(&self.store);
        let done = tokio::task::spawn_blocking(move || act(&store)).await;
        let done = done.map_err(|e| Status::internal(format!("the call was lost: {e}")))?;
        done.map_err(|e| status(&e))
    }

    async fn make(
        &self,
        name: String,
        parent: String,
        kind: Kind,
        labels: HashMap<String, String>,
    ) -> Result<Vec<Mount>, Status> {
        let labels = checked(labels)?;
        let wanted = Wanted::of(&labels).map_err(Status::invalid_argument)?;
        // What is to be unpacked may be here: of another image, another namespace, or from the command line.
        let chain = labels.get(REFERENCE).filter(|_| kind == Kind::Active);
        let chain = chain.and_then(|chain| chain.parse::<Digest>().ok());
        let made = self.with(move |store| {
            let parent = Some(parent.as_str()).filter(|parent| !parent.is_empty());
            if let Some(chain) = chain
                && store.adopt_snapshot(&name, parent, &chain, &labels)?
            {
                return Ok(None);
            }
            let stack = store.prepare_snapshot(&name, parent, kind, &labels)?;
            if let Some(root) = wanted.root().filter(|_| kind == Kind::Active) {
                store.give_snapshot(&stack, root)?;
            }
            Ok(Some((stack, is_user(store))))
        });
        let Some((stack, user)) = made.await? else {
            count(&self.metrics.known, 1);
            return Err(Status::already_exists("the store has this chain of layers"));
        };
        self.mounts_of(&stack, user)
    }

    fn mounts_of(&self, stack: &Stack, user: bool) -> Result<Vec<Mount>, Status> {
        let mounts = mounts::of(stack, user).map_err(Status::invalid_argument)?;
        let union = mounts.iter().any(|mount| mount.r#type.starts_with("fuse"));
        count(if union { &self.metrics.union } else { &self.metrics.kernel }, 1);
        if union {
            self.metrics.unions.watch(mounts::counters(stack));
        }
        Ok(mounts)
    }
}

/// Bytes and inodes of a snapshot: where a union counts them, by that, and by a walk otherwise.
fn usage(store: &Store, key: &str) -> store::Result<(u64, u64)> {
    // A committed one has no counters, and an absent one is told by the walk.
    if let Ok(stack) = store.snapshot_stack(key)
        && let Some(counted) = union::Counted::read(&mounts::counters(&stack)).unwrap_or_default()
        && let Some(used) = counted.used
    {
        return Ok(used);
    }
    store.snapshot_usage(key)
}

fn is_user(store: &Store) -> bool {
    store.namespace() == layer::Namespace::User
}

/// The code that containerd acts on.
///
/// Source: containerd `core/snapshots/storage`: which rule has which error.
pub(crate) fn status(error: &Error) -> Status {
    let text = error.to_string();
    let fault = match error {
        Error::Snapshot { fault, .. } => fault,
        Error::BadLayer { .. } | Error::Mismatch { .. } => return Status::data_loss(text),
        Error::Unfinished { .. } => return Status::failed_precondition(text),
        _ => return Status::internal(text),
    };
    match fault {
        Fault::Absent => Status::not_found(text),
        Fault::Exists => Status::already_exists(text),
        Fault::ParentNotCommitted | Fault::OtherParent => Status::invalid_argument(text),
        Fault::NotActive | Fault::Committed | Fault::HasChildren | Fault::NewParentNotCommitted => {
            Status::failed_precondition(text)
        }
    }
}

fn checked(labels: HashMap<String, String>) -> Result<BTreeMap<String, String>, Status> {
    for (name, value) in &labels {
        if name.len() + value.len() > LABEL {
            let why = format!("the label {name:?} has more than {LABEL} bytes with its value");
            return Err(Status::invalid_argument(why));
        }
    }
    Ok(labels.into_iter().collect())
}

fn info(snapshot: Snapshot) -> Info {
    let time = |nanos: i64| {
        let (seconds, nanos) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
        Some(Timestamp { seconds, nanos: i32::try_from(nanos).unwrap_or(0) })
    };
    let kind = match snapshot.kind {
        Kind::View => crate::proto::Kind::View,
        Kind::Active => crate::proto::Kind::Active,
        Kind::Committed => crate::proto::Kind::Committed,
    };
    Info {
        name: snapshot.name,
        parent: snapshot.parent.unwrap_or_default(),
        kind: kind.into(),
        created_at: time(snapshot.created),
        updated_at: time(snapshot.updated),
        labels: snapshot.labels.into_iter().collect(),
    }
}

impl Service {
    async fn on_prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Answer<PrepareSnapshotResponse> {
        let r = request.into_inner();
        let mounts = self.make(r.key, r.parent, Kind::Active, r.labels).await?;
        Ok(Response::new(PrepareSnapshotResponse { mounts }))
    }

    async fn on_view(&self, request: Request<ViewSnapshotRequest>) -> Answer<ViewSnapshotResponse> {
        let r = request.into_inner();
        let mounts = self.make(r.key, r.parent, Kind::View, r.labels).await?;
        Ok(Response::new(ViewSnapshotResponse { mounts }))
    }

    async fn on_mounts(&self, request: Request<MountsRequest>) -> Answer<MountsResponse> {
        let key = request.into_inner().key;
        let found = self.with(move |store| Ok((store.snapshot_stack(&key)?, is_user(store))));
        let (stack, user) = found.await?;
        Ok(Response::new(MountsResponse { mounts: self.mounts_of(&stack, user)? }))
    }

    async fn on_commit(&self, request: Request<CommitSnapshotRequest>) -> Answer<()> {
        let r = request.into_inner();
        let labels = checked(r.labels)?;
        if !r.parent.is_empty()
            && labels.contains_key(REFERENCE)
            && !labels.contains_key(PARENT_CHAIN)
        {
            self.refuse_bound(&r.key).await?;
        }
        self.end(r.key.clone(), move |store| {
            let parent = Some(r.parent.as_str()).filter(|parent| !parent.is_empty());
            store.commit_snapshot(&r.key, &r.name, parent, &labels)
        })
        .await?;
        Ok(Response::new(()))
    }

    /// containerd 2.2 does not say that a layer which it unpacks alone will stand on others. Into what is mounted for it then
    /// another differ than ours unpacks no whiteouts: with a parent the snapshot would show what its layer deletes.
    ///
    /// Source: containerd issue 13030.
    async fn refuse_bound(&self, key: &str) -> Result<(), Status> {
        let name = key.to_owned();
        let written = self.with(move |store| {
            // What else is wrong with the snapshot, its commit says.
            let upper = store.snapshot_stack(&name).ok().filter(|stack| stack.lowers.is_empty());
            let first = upper.and_then(|stack| std::fs::read_dir(stack.upper).ok()?.next());
            Ok(first.is_some())
        });
        if !written.await? {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "the snapshot {key:?} was unpacked alone by another differ than Strata's, which loses what its layer \
             deletes: have strata-diff unpack it, or let max_concurrent_unpacks be 1"
        )))
    }

    async fn on_remove(&self, request: Request<RemoveSnapshotRequest>) -> Answer<()> {
        let key = request.into_inner().key;
        self.end(key.clone(), move |store| store.remove_snapshot(&key)).await?;
        self.sweep();
        Ok(Response::new(()))
    }

    async fn on_stat(&self, request: Request<StatSnapshotRequest>) -> Answer<StatSnapshotResponse> {
        let key = request.into_inner().key;
        let snapshot = self.with(move |store| store.snapshot(&key)).await?;
        Ok(Response::new(StatSnapshotResponse { info: Some(info(snapshot)) }))
    }

    async fn on_update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Answer<UpdateSnapshotResponse> {
        let r = request.into_inner();
        let new =
            r.info.ok_or_else(|| Status::invalid_argument("there is nothing to update to"))?;
        let labels = checked(new.labels)?;
        let paths = r.update_mask.map(|mask| mask.paths).unwrap_or_default();
        let of_label = |path: &String| path.strip_prefix("labels.").map(str::to_owned);
        if let Some(other) = paths.iter().find(|path| *path != "labels" && of_label(path).is_none())
        {
            return Err(Status::invalid_argument(format!("{other:?} of a snapshot can't change")));
        }
        let all = paths.is_empty() || paths.iter().any(|path| path == "labels");
        let names: Vec<String> = paths.iter().filter_map(of_label).collect();
        let snapshot = self
            .with(move |store| {
                store.update_snapshot(&new.name, |known| {
                    if all {
                        *known = labels;
                    } else {
                        for name in names {
                            match labels.get(&name).filter(|value| !value.is_empty()) {
                                Some(value) => known.insert(name, value.clone()),
                                None => known.remove(&name),
                            };
                        }
                    }
                    known.retain(|_, value| !value.is_empty());
                })
            })
            .await?;
        Ok(Response::new(UpdateSnapshotResponse { info: Some(info(snapshot)) }))
    }

    async fn on_usage(&self, request: Request<UsageRequest>) -> Answer<UsageResponse> {
        let key = request.into_inner().key;
        let (size, inodes) = self.with(move |store| usage(store, &key)).await?;
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        Ok(Response::new(UsageResponse { size: signed(size), inodes: signed(inodes) }))
    }

    async fn on_cleanup(&self, _: Request<CleanupRequest>) -> Answer<()> {
        self.with(|store| {
            store.collect_layers()?;
            store.empty_trash()
        })
        .await?;
        Ok(Response::new(()))
    }
}

#[tonic::async_trait]
impl Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Answer<PrepareSnapshotResponse> {
        let key = request.get_ref().key.clone();
        self.metrics.of("prepare", &key, self.on_prepare(request)).await
    }

    async fn view(&self, request: Request<ViewSnapshotRequest>) -> Answer<ViewSnapshotResponse> {
        let key = request.get_ref().key.clone();
        self.metrics.of("view", &key, self.on_view(request)).await
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Answer<MountsResponse> {
        let key = request.get_ref().key.clone();
        self.metrics.of("mounts", &key, self.on_mounts(request)).await
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Answer<()> {
        let key = request.get_ref().name.clone();
        self.metrics.of("commit", &key, self.on_commit(request)).await
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Answer<()> {
        let key = request.get_ref().key.clone();
        self.metrics.of("remove", &key, self.on_remove(request)).await
    }

    async fn stat(&self, request: Request<StatSnapshotRequest>) -> Answer<StatSnapshotResponse> {
        let key = request.get_ref().key.clone();
        self.metrics.of("stat", &key, self.on_stat(request)).await
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Answer<UpdateSnapshotResponse> {
        self.metrics.of("update", "", self.on_update(request)).await
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Answer<UsageResponse> {
        let key = request.get_ref().key.clone();
        self.metrics.of("usage", &key, self.on_usage(request)).await
    }

    async fn cleanup(&self, request: Request<CleanupRequest>) -> Answer<()> {
        self.metrics.of("cleanup", "", self.on_cleanup(request)).await
    }

    type ListStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<ListSnapshotsResponse, Status>> + Send>>;

    async fn list(&self, request: Request<ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let filters = request.into_inner().filters;
        let filters = Filters::parse(&filters).map_err(Status::invalid_argument)?;
        // Read at once, so that a call that this one's answers lead to finds the database free.
        let found = self.with(|store| store.snapshots()).await?;
        let found: Vec<Info> =
            found.into_iter().filter(|snapshot| filters.let_through(snapshot)).map(info).collect();
        let page = |infos: &[Info]| Ok(ListSnapshotsResponse { info: infos.to_vec() });
        let pages: Vec<_> = found.chunks(PAGE).map(page).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(pages))))
    }
}
