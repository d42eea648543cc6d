//! The calls of containerd's diff service: a layer is unpacked by the store, and a snapshot's changes become a blob.
//!
//! What concerns another snapshotter's mounts is not implemented here: containerd then asks its next differ.
//!
//! Source: containerd `core/diff`; OCI image specification, media types of layers.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use store::manifest::{Descriptor, media};
use store::{Digest, Hashed, Store};
use tonic::{Request, Response, Status};

use crate::containerd::services::diff::v1 as proto;
use crate::containerd::types;
use crate::content::{Content, Made, Parts, unique};
use crate::metrics::{Metrics, count};
use crate::mounts::Places;
use crate::service::status;
use proto::diff_server::Diff;
use proto::{ApplyRequest, ApplyResponse, DiffRequest, DiffResponse};

/// On a blob: the digest of its tar.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

#[derive(Debug)]
pub(crate) struct Service {
    pub store: Arc<Store>,
    pub content: Content,
    pub metrics: Arc<Metrics>,
}

/// Layers that are tars, whether compressed or not: not those that are encrypted or of another form.
fn is_tar(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or(kind);
    let base = kind.strip_suffix("+gzip").or_else(|| kind.strip_suffix("+zstd")).unwrap_or(kind);
    matches!(
        base,
        media::OCI_LAYER
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    )
}

impl Service {
    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let r = request.into_inner();
        let diff = r.diff.ok_or_else(|| Status::invalid_argument("there is no blob to apply"))?;
        // Payloads are for what processes layers of other types: CRI sends them with every layer, in case it is encrypted.
        if !is_tar(&diff.media_type) {
            return Err(Status::unimplemented("only plain and compressed tars are applied here"));
        }
        let foreign = || Status::unimplemented("these are mounts of another snapshotter");
        let upper = Places::of(&r.mounts).and_then(|places| places.upper).ok_or_else(foreign)?;
        let blob = Descriptor {
            media_type: diff.media_type,
            digest: diff.digest.parse().map_err(|e| Status::invalid_argument(format!("{e}")))?,
            size: u64::try_from(diff.size).map_err(|e| Status::invalid_argument(e.to_string()))?,
            platform: None,
            annotations: Default::default(),
        };
        let (id, name) = self.snapshot(upper).await?.ok_or_else(foreign)?;
        let (source, store) = (self.content.of(&name)?.source(), Arc::clone(&self.store));
        let size = blob.size;
        let applied =
            tokio::task::spawn_blocking(move || store.apply_to_snapshot(id, &source, &blob));
        let applied = applied.await.map_err(|e| Status::internal(format!("lost: {e}")))?;
        let applied = applied.map_err(|e| status(&e))?.ok_or_else(foreign)?;
        if applied.size.is_some() {
            count(&self.metrics.unpacked, 1);
            count(&self.metrics.bytes, size);
        } else {
            count(&self.metrics.known, 1);
        }
        let applied = types::Descriptor {
            media_type: media::OCI_LAYER.to_owned(),
            digest: applied.diff_id.to_string(),
            // Of a layer that was there nobody asks how long its tar was.
            size: i64::try_from(applied.size.unwrap_or(0)).unwrap_or(i64::MAX),
            ..types::Descriptor::default()
        };
        Ok(Response::new(ApplyResponse { applied: Some(applied) }))
    }

    /// The snapshot that has `tree`: its number and name.
    async fn snapshot(&self, tree: PathBuf) -> Result<Option<(i64, String)>, Status> {
        let store = Arc::clone(&self.store);
        let found = tokio::task::spawn_blocking(move || store.snapshot_of(&tree)).await;
        found.map_err(|e| Status::internal(format!("lost: {e}")))?.map_err(|e| status(&e))
    }

    async fn diff(&self, request: Request<DiffRequest>) -> Result<Response<DiffResponse>, Status> {
        let r = request.into_inner();
        let foreign = || Status::unimplemented("these mounts do not differ by one layer here");
        let changed = changed(&r).ok_or_else(foreign)?;
        let (_, name) = self.snapshot(changed.clone()).await?.ok_or_else(foreign)?;
        let caller = self.content.of(&name)?;
        let kind = match r.media_type.as_str() {
            "" => media::OCI_LAYER_GZIP,
            media::OCI_LAYER => media::OCI_LAYER,
            ZSTD => ZSTD,
            media::OCI_LAYER_GZIP => media::OCI_LAYER_GZIP,
            "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
                "application/vnd.docker.image.rootfs.diff.tar.gzip"
            }
            other => return Err(Status::unimplemented(format!("no layer is made as {other}"))),
        };
        let store = Arc::clone(&self.store);
        let labels = r.labels;
        let make = move |parts: &mut Parts| make(&store, &changed, kind, labels, parts);
        let reference = if r.r#ref.is_empty() { format!("strata-{}", unique()) } else { r.r#ref };
        let (digest, size) = caller.write(reference, make).await?;
        let diff = types::Descriptor {
            media_type: kind.to_owned(),
            digest: digest.to_string(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            ..types::Descriptor::default()
        };
        Ok(Response::new(DiffResponse { diff: Some(diff) }))
    }
}

/// The one directory that the right mounts have on top of the left ones.
fn changed(r: &DiffRequest) -> Option<PathBuf> {
    let (left, right) = (Places::of(&r.left)?, Places::of(&r.right)?);
    if left.upper.is_some() {
        return None;
    }
    match right.upper {
        Some(upper) if same(&right.lowers, &left.lowers) => Some(upper),
        Some(_) => None,
        // A committed snapshot, viewed.
        None => {
            let (top, rest) = right.lowers.split_first()?;
            same(rest, &left.lowers).then(|| top.clone())
        }
    }
}

/// Whether these are the same trees, by whatever names.
fn same(these: &[PathBuf], those: &[PathBuf]) -> bool {
    let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
    these.len() == those.len()
        && these.iter().zip(those).all(|(this, that)| this == that || real(this) == real(that))
}

/// Writes the tar of a snapshot's own tree, compressed as `kind` says.
fn make(
    store: &Store,
    tree: &std::path::Path,
    kind: &str,
    mut labels: HashMap<String, String>,
    parts: &mut Parts,
) -> Result<Made, Status> {
    let broken = |e: io::Error| Status::aborted(format!("the blob can't be written: {e}"));
    let mut blob = Hashed::new(io::BufWriter::with_capacity(1 << 20, parts));
    let diff_id = if kind == media::OCI_LAYER {
        write(store, tree, &mut blob)?
    } else if kind == ZSTD {
        let mut to = zstd::Encoder::new(&mut blob, 0).map_err(broken)?;
        let diff_id = write(store, tree, &mut to)?;
        to.finish().map_err(broken)?;
        diff_id
    } else {
        let level = flate2::Compression::default();
        let mut to = flate2::write::GzEncoder::new(&mut blob, level);
        let diff_id = write(store, tree, &mut to)?;
        to.finish().map_err(broken)?;
        diff_id
    };
    blob.flush().map_err(broken)?;
    labels.insert(UNCOMPRESSED.to_owned(), diff_id.to_string());
    let (_, digest, size) = blob.finish();
    Ok(Made { digest, size, labels })
}

fn write(store: &Store, tree: &std::path::Path, to: &mut dyn Write) -> Result<Digest, Status> {
    let mut tar = Hashed::new(io::BufWriter::with_capacity(256 << 10, to));
    store.write_snapshot(tree, &mut tar).map_err(|e| status(&e))?;
    tar.flush().map_err(|e| Status::aborted(format!("the blob can't be written: {e}")))?;
    Ok(tar.finish().1)
}

#[tonic::async_trait]
impl Diff for Service {
    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let key = request.get_ref().diff.as_ref().map(|diff| diff.digest.clone());
        let metrics = Arc::clone(&self.metrics);
        metrics.of("apply", &key.unwrap_or_default(), Self::apply(self, request)).await
    }

    async fn diff(&self, request: Request<DiffRequest>) -> Result<Response<DiffResponse>, Status> {
        let key = request.get_ref().r#ref.clone();
        let metrics = Arc::clone(&self.metrics);
        metrics.of("diff", &key, Self::diff(self, request)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_one_layer_more_is_a_diff() {
        let mount = |kind: &str, source: &str, options: &[&str]| types::Mount {
            r#type: kind.to_owned(),
            source: source.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..types::Mount::default()
        };
        let base = mount("bind", "/s/1/layer", &["ro", "rbind"]);
        let two = mount("overlay", "overlay", &["index=off", "lowerdir=/s/2/layer:/s/1/layer"]);
        let on_base = mount("overlay", "overlay", &["upperdir=/s/3/fs", "lowerdir=/s/1/layer"]);
        let alone = mount("bind", "/s/4/fs", &["rw", "rbind"]);
        let cases = [
            (vec![base.clone()], on_base.clone(), Some("/s/3/fs")),
            (vec![base.clone()], two.clone(), Some("/s/2/layer")),
            (vec![], alone.clone(), Some("/s/4/fs")),
            (vec![], base.clone(), Some("/s/1/layer")),
            (vec![two.clone()], on_base.clone(), None),
            (vec![alone], on_base, None),
            (vec![base], mount("ext4", "/dev/x", &[]), None),
        ];
        for (left, right, want) in cases {
            let request = DiffRequest { left, right: vec![right], ..DiffRequest::default() };
            assert_eq!(changed(&request), want.map(PathBuf::from), "{request:?}");
        }
        assert!(is_tar("application/vnd.oci.image.layer.v1.tar+zstd") && is_tar(media::OCI_LAYER));
        assert!(!is_tar("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"));
    }
}
