//! Layers that are unpacked at once and get their parents when they are committed, as containerd does it from 2.2 on: its
//! calls in its order, since no package of it is to be had to make them.
//!
//! Source: containerd `core/unpack/unpacker.go` and `core/snapshots/storage/bolt.go`, 2.2 to 2.4.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use store::manifest::media;
use store::{Digest, Store};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::containerd::services::diff::v1::ApplyRequest;
use crate::containerd::services::diff::v1::diff_client::DiffClient;
use crate::containerd::types::{Descriptor, Mount};
use crate::labels::{PARENT_CHAIN, REFERENCE};
use crate::proto::snapshots_client::SnapshotsClient;
use crate::proto::{
    CommitSnapshotRequest, PrepareSnapshotRequest, StatSnapshotRequest, ViewSnapshotRequest,
};
use crate::{Containerd, Metrics, endpoint, serve};

/// A snapshotter on a socket, and the blobs of its containerd.
struct Scene {
    temp: TempDir,
    snapshots: SnapshotsClient<Channel>,
    diff: DiffClient<Channel>,
}

/// A layer: its digest, which is its tar's too, its size, and the chain of layers up to it.
struct Layer {
    digest: Digest,
    size: i64,
    chain: String,
}

type Answer<T> = Result<T, Status>;

impl Scene {
    async fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&temp.path().join("store")).unwrap());
        let content = temp.path().join("content");
        fs::create_dir_all(content.join("blobs/sha256")).unwrap();
        let engine = Containerd { address: temp.path().join("nobody.sock"), content };
        let at = temp.path().join("strata.sock");
        let socket = UnixListener::bind(&at).unwrap();
        tokio::spawn(async move {
            serve(store, &engine, Arc::<Metrics>::default(), socket, std::future::pending()).await
        });
        let channel = endpoint(&at).unwrap().connect().await.unwrap();
        let (snapshots, diff) = (SnapshotsClient::new(channel.clone()), DiffClient::new(channel));
        Self { temp, snapshots, diff }
    }

    /// A layer of files, as a blob; a name that ends in a slash is a directory.
    fn layer(&self, below: Option<&Layer>, files: &[(&str, &str)]) -> Layer {
        let tree = tempfile::tempdir().unwrap();
        for (name, data) in files {
            let path = tree.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, data).unwrap();
        }
        let tar = Command::new("tar").arg("-cC").arg(tree.path()).arg(".").output().unwrap().stdout;
        let digest = Digest::of(&tar);
        fs::write(self.temp.path().join("content/blobs/sha256").join(digest.hex()), &tar).unwrap();
        let chain = below.map_or_else(
            || digest.to_string(),
            |below| Digest::of(format!("{} {digest}", below.chain).as_bytes()).to_string(),
        );
        Layer { digest, size: i64::try_from(tar.len()).unwrap(), chain }
    }

    async fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: &[(&str, &str)],
    ) -> Answer<Vec<Mount>> {
        let (key, parent, labels) = (key.to_owned(), parent.to_owned(), owned(labels));
        let request = PrepareSnapshotRequest { key, parent, labels, ..Default::default() };
        Ok(self.snapshots.clone().prepare(request).await?.into_inner().mounts)
    }

    async fn commit(
        &self,
        name: &str,
        key: &str,
        parent: &str,
        labels: &[(&str, &str)],
    ) -> Answer<()> {
        let (name, key, parent) = (name.to_owned(), key.to_owned(), parent.to_owned());
        let labels = owned(labels);
        let request = CommitSnapshotRequest { name, key, parent, labels, ..Default::default() };
        self.snapshots.clone().commit(request).await.map(drop)
    }

    async fn apply(&self, layer: &Layer, mounts: Vec<Mount>) -> Answer<String> {
        let diff = Some(Descriptor {
            media_type: media::OCI_LAYER.to_owned(),
            digest: layer.digest.to_string(),
            size: layer.size,
            ..Default::default()
        });
        // As CRI has it: for layers that were encrypted.
        let payloads = [("io.containerd".to_owned(), prost_types::Any::default())].into();
        let request = ApplyRequest { diff, mounts, payloads };
        let applied = self.diff.clone().apply(request).await?.into_inner().applied;
        Ok(applied.unwrap_or_default().digest)
    }

    async fn parent(&self, key: &str) -> String {
        let request = StatSnapshotRequest { key: key.to_owned(), ..Default::default() };
        let answer = self.snapshots.clone().stat(request).await.unwrap().into_inner();
        answer.info.unwrap().parent
    }

    /// The lower directories of what stands on `parent`, uppermost first.
    async fn lowers(&self, key: &str, parent: &str) -> Vec<String> {
        let (key, parent) = (key.to_owned(), parent.to_owned());
        let request = ViewSnapshotRequest { key, parent, ..Default::default() };
        let mounts = self.snapshots.clone().view(request).await.unwrap().into_inner().mounts;
        let [mount] = &mounts[..] else { panic!("one mount") };
        let option = mount.options.iter().find_map(|option| option.strip_prefix("lowerdir="));
        option.unwrap_or(&mount.source).split(':').map(str::to_owned).collect()
    }
}

fn owned(labels: &[(&str, &str)]) -> HashMap<String, String> {
    labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn has(dir: &str, name: &str) -> bool {
    fs::symlink_metadata(Path::new(dir).join(name)).is_ok()
}

/// `said` is whether containerd says what a layer will stand on, as from 2.3 on.
async fn unpacked_at_once(said: bool) {
    let scene = Scene::new().await;
    let base = scene.layer(None, &[("kept", "1"), ("gone", "1"), ("dir/old", "1")]);
    let middle = scene.layer(Some(&base), &[(".wh.gone", ""), ("middle", "2")]);
    let top = scene.layer(Some(&middle), &[("dir/.wh..wh..opq", ""), ("dir/new", "3")]);
    let layers = [base, middle, top];
    let key = |at: usize| format!("k8s.io/{at}/extract {}", layers[at].chain);
    let name = |at: usize| format!("k8s.io/1{at}/{}", layers[at].chain);
    let labels = |at: usize| {
        let mut labels = vec![(REFERENCE, layers[at].chain.as_str())];
        if said && at > 0 {
            labels.push((PARENT_CHAIN, layers[at - 1].chain.as_str()));
        }
        labels
    };
    // All of them alone, the uppermost first: none waits for another.
    let one = async |at: usize| {
        let mounts = scene.prepare(&key(at), "", &labels(at)).await.unwrap();
        let kind = if said && at > 0 { "overlay" } else { "bind" };
        assert_eq!(mounts[0].r#type, kind, "layer {at}");
        let applied = scene.apply(&layers[at], mounts).await.unwrap();
        assert_eq!(applied, layers[at].digest.to_string());
    };
    tokio::join!(one(2), one(1), one(0));
    for at in 0..layers.len() {
        let parent = if at == 0 { String::new() } else { name(at - 1) };
        scene.commit(&name(at), &key(at), &parent, &labels(at)).await.unwrap();
        assert_eq!(scene.parent(&name(at)).await, parent);
    }
    let lowers = scene.lowers("k8s.io/20/view", &name(2)).await;
    let [upper, middle, lower] = &lowers[..] else { panic!("{lowers:?}") };
    assert!(has(upper, "dir/new") && !has(upper, "kept"), "{lowers:?}");
    assert!(has(middle, "middle") && has(middle, "gone"), "the whiteout");
    assert!(has(lower, "kept") && has(lower, "dir/old"), "{lowers:?}");
    shown(&scene, &lowers);
    // Of another namespace, one after the other: the store knows the chains that came of it.
    for (at, layer) in layers.iter().enumerate() {
        let other = format!("other/{at}/extract {}", layer.chain);
        let parent = if at == 0 { String::new() } else { name(at - 1) };
        let there = scene.prepare(&other, &parent, &[(REFERENCE, &layer.chain)]).await;
        assert_eq!(there.unwrap_err().code(), Code::AlreadyExists, "layer {at}");
    }
    // And again at once: a layer alone is not its chain, so that it is not taken for one that stands on nothing.
    let alone = scene.prepare("again/1/x", "", &[(REFERENCE, &layers[1].chain)]).await.unwrap();
    assert_eq!(scene.apply(&layers[1], alone).await.unwrap(), layers[1].digest.to_string());
}

/// What the kernel makes of the chain.
fn shown(scene: &Scene, lowers: &[String]) {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: mounting needs root");
        return;
    }
    let at = scene.temp.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let script =
        r#"mount -t overlay overlay -o "ro,lowerdir=$1" "$2" && cd "$2" && find . -type f | sort"#;
    let mut shell = Command::new("unshare");
    shell.args(["-m", "sh", "-c", script, "sh"]).arg(lowers.join(":")).arg(&at);
    let out = shell.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(String::from_utf8_lossy(&out.stdout), "./dir/new\n./kept\n./middle\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_are_unpacked_at_once_become_the_chain_that_their_commits_name() {
    unpacked_at_once(true).await;
    unpacked_at_once(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_at_commit_that_cannot_be_has_the_code_that_containerd_gives_it() {
    let scene = Scene::new().await;
    scene.prepare("a", "", &[]).await.unwrap();
    scene.commit("base", "a", "", &[]).await.unwrap();
    scene.prepare("b", "", &[]).await.unwrap();
    scene.commit("other", "b", "", &[]).await.unwrap();
    scene.prepare("active", "", &[]).await.unwrap();
    // The parent at Prepare, that at Commit, and what comes of it.
    let cases = [
        ("", "", Ok("")),
        ("", "base", Ok("base")),
        ("base", "base", Ok("base")),
        ("base", "", Ok("base")),
        ("base", "other", Err(Code::InvalidArgument)),
        ("base", "absent", Err(Code::InvalidArgument)),
        ("", "absent", Err(Code::NotFound)),
        ("", "active", Err(Code::FailedPrecondition)),
    ];
    for (at, (before, after, want)) in cases.into_iter().enumerate() {
        let (key, name) = (format!("key-{at}"), format!("name-{at}"));
        scene.prepare(&key, before, &[]).await.unwrap();
        match (scene.commit(&name, &key, after, &[]).await, want) {
            (Ok(()), Ok(parent)) => assert_eq!(scene.parent(&name).await, parent),
            (Err(status), Err(code)) => {
                assert_eq!(status.code(), code, "{before:?}, {after:?}: {status}");
                // What was refused is as it was, and can still be committed.
                scene.commit(&name, &key, before, &[]).await.unwrap();
            }
            (is, want) => panic!("{before:?}, {after:?}: {is:?} and not {want:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_differ_unpacked_without_its_whiteouts_gets_no_parent() {
    let scene = Scene::new().await;
    scene.prepare("a", "", &[]).await.unwrap();
    scene.commit("base", "a", "", &[]).await.unwrap();
    let labels = [(REFERENCE, "sha256:x")];
    let said = [(REFERENCE, "sha256:x"), (PARENT_CHAIN, "sha256:y")];
    for (labels, want) in [(&labels[..], Err(Code::FailedPrecondition)), (&said[..], Ok(()))] {
        let key = format!("key-{}", labels.len());
        let mounts = scene.prepare(&key, "", labels).await.unwrap();
        let upper = crate::mounts::Places::of(&mounts).unwrap().upper.unwrap();
        fs::write(upper.join("file"), "x").unwrap();
        let name = format!("name-{}", labels.len());
        let is = scene.commit(&name, &key, "base", labels).await;
        assert_eq!(is.map_err(|status| status.code()), want);
    }
}
